//! Private keys: ECDSA P-256, made locally, never sent anywhere.
//!
//! Invariant: the key leaves this type only as [`SecretString`] PEM or as the DER that rustls takes; `Debug` shows
//! nothing of it, and its memory is wiped on drop.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, PublicKeyData, SigningKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use secrecy::{ExposeSecret, SecretString};
use zeroize::{Zeroize, Zeroizing};

use crate::pin::SpkiPin;

/// Why a key could not be made, read or used. The library's own words are left out: they may quote its input.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    #[error("generate key: no random bytes from the operating system")]
    Generate,
    #[error("read key: expected a PKCS #8 \"PRIVATE KEY\" in PEM for ECDSA P-256")]
    Parse,
    #[error("write signing request")]
    Request,
}

/// A private key with its public half.
pub struct KeyPair(Zeroizing<rcgen::KeyPair>);

impl KeyPair {
    /// Makes a new ECDSA P-256 key.
    ///
    /// # Errors
    /// [`Error::Generate`] if the operating system has no random bytes to give.
    pub fn generate() -> Result<Self, Error> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|_| Error::Generate)?;
        Ok(Self(Zeroizing::new(pair)))
    }

    /// Reads a key written by [`KeyPair::to_pem`].
    ///
    /// # Errors
    /// [`Error::Parse`] for anything but one ECDSA P-256 key in PKCS #8 PEM.
    pub fn from_pem(pem: &SecretString) -> Result<Self, Error> {
        let pair = rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(pem.expose_secret(), &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|_| Error::Parse)?;
        Ok(Self(Zeroizing::new(pair)))
    }

    /// The key as PKCS #8 PEM.
    pub fn to_pem(&self) -> SecretString {
        self.0.serialize_pem().into()
    }

    /// The key in the form that rustls takes.
    pub fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialized_der().to_vec()).into()
    }

    /// The public half as a DER SubjectPublicKeyInfo.
    pub fn spki(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// The pin of the public half.
    pub fn pin(&self) -> SpkiPin {
        SpkiPin::of_spki(&self.spki())
    }

    /// A signing request in PEM. It carries the public key and proves possession of the private one; it asks for
    /// nothing, because the authority decides everything else.
    ///
    /// # Errors
    /// [`Error::Request`] if signing fails.
    pub fn csr(&self) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&*self.0).map_err(|_| Error::Request)?;
        request.pem().map_err(|_| Error::Request)
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("pin", &self.pin().to_string()).finish_non_exhaustive()
    }
}

impl PublicKeyData for KeyPair {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for KeyPair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// Wipes a DER key that is about to be dropped.
pub(crate) fn wipe(key: &mut PrivateKeyDer<'static>) {
    key.zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_pem() {
        let key = KeyPair::generate().unwrap();
        let read = KeyPair::from_pem(&key.to_pem()).unwrap();
        assert_eq!((read.spki(), read.to_der()), (key.spki(), key.to_der()));
    }

    #[test]
    fn debug_shows_the_pin_and_nothing_else() {
        let key = KeyPair::generate().unwrap();
        assert_eq!(format!("{key:?}"), format!("KeyPair {{ pin: \"{}\", .. }}", key.pin()));
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_quoted() {
        let error = KeyPair::from_pem(&"-----BEGIN PRIVATE KEY-----\nhunter2\n".into()).unwrap_err();
        assert_eq!(error, Error::Parse);
        assert!(!error.to_string().contains("hunter2"));
    }
}
