//! What the authority reads from a signing request: a public key whose private half the sender holds.
//!
//! Names, extensions and wishes in the request are not even parsed into values; [`crate::authority`] decides them.

use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

/// Largest accepted request in bytes of PEM. Ours have about 500; the rest is room for other tools' extras.
pub const CSR_MAX_BYTES: usize = 16 * 1024;

/// Why a request was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    #[error("read signing request: {bytes} bytes, expected at most {CSR_MAX_BYTES}")]
    TooLarge { bytes: usize },
    #[error("read signing request: expected one PKCS #10 \"CERTIFICATE REQUEST\" in PEM")]
    Malformed,
    #[error("verify signing request: not signed by the key that it contains")]
    Signature,
    #[error("verify signing request: unsupported key, expected ECDSA P-256, ECDSA P-384 or Ed25519")]
    Algorithm,
}

/// A request whose signature has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr {
    key: SubjectPublicKeyInfo,
}

impl Csr {
    /// Reads a request and checks that it is signed by the key it contains.
    ///
    /// # Errors
    /// See [`Error`]. Never panics, whatever the text.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        if pem.len() > CSR_MAX_BYTES {
            return Err(Error::TooLarge { bytes: pem.len() });
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Malformed)?;
        Self::from_der(&der)
    }

    /// As [`Csr::from_pem`], for DER.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn from_der(der: &[u8]) -> Result<Self, Error> {
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| Error::Malformed)?;
        if !rest.is_empty() {
            return Err(Error::Malformed);
        }
        let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
            .map_err(|_| Error::Algorithm)?;
        let supported = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
        if !supported.contains(&key.algorithm()) {
            return Err(Error::Algorithm);
        }
        request.verify_signature().map_err(|_| Error::Signature)?;
        Ok(Self { key })
    }

    /// SHA-256 of the SubjectPublicKeyInfo, lower-case hex: what a used join token remembers.
    pub fn key_hash(&self) -> String {
        hex::encode(Sha256::digest(self.key.subject_public_key_info()))
    }

    /// The public key.
    pub fn public_key(&self) -> &SubjectPublicKeyInfo {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keys::KeyPair;

    fn request_der() -> Vec<u8> {
        let pem = KeyPair::generate().unwrap().csr().unwrap();
        CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
    }

    #[test]
    fn a_request_yields_the_key_that_made_it() {
        let key = KeyPair::generate().unwrap();
        let csr = Csr::from_pem(&key.csr().unwrap()).unwrap();
        assert_eq!(format!("sha256:{}", csr.key_hash()), key.pin().to_string());
    }

    #[test]
    fn a_request_signed_by_another_key_is_refused() {
        let mut der = request_der();
        *der.last_mut().unwrap() ^= 1;
        assert_eq!(Csr::from_der(&der), Err(Error::Signature));
    }

    #[test]
    fn an_oversized_request_is_refused_unread() {
        assert_eq!(Csr::from_pem(&"x".repeat(16 * 1024 + 1)), Err(Error::TooLarge { bytes: 16 * 1024 + 1 }));
    }

    #[test]
    fn text_that_is_no_request_is_refused() {
        assert_eq!(Csr::from_pem("hello"), Err(Error::Malformed));
        assert_eq!(Csr::from_der(&[request_der(), vec![0]].concat()), Err(Error::Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Csr::from_der(&bytes);
        }

        #[test]
        fn a_request_with_one_byte_changed_is_refused_or_names_the_same_key(at in any::<prop::sample::Index>(), flip in 1u8..) {
            let mut der = request_der();
            let before = Csr::from_der(&der).unwrap();
            let at = at.index(der.len());
            der[at] ^= flip;
            // The signature does not cover its own wrapping, so a change there may go unnoticed and does no harm.
            if let Ok(after) = Csr::from_der(&der) {
                prop_assert_eq!(after, before, "byte {}", at);
            }
        }
    }
}
