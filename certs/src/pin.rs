//! The pin: SHA-256 of an authority's SubjectPublicKeyInfo, as a join token carries it.
//!
//! A pin names a key, not a certificate, so an authority may renew its own certificate without breaking tokens.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a text is not a pin.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("parse pin: expected \"sha256:\" and 64 lower-case hexadecimal digits")]
pub struct Error;

/// SHA-256 of a DER SubjectPublicKeyInfo. Its text is `sha256:` and lower-case hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpkiPin([u8; 32]);

impl SpkiPin {
    /// The pin of a SubjectPublicKeyInfo in DER.
    pub fn of_spki(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }

    /// The pin of a certificate's key, or `None` if the bytes are no certificate.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Self::of_spki(certificate.public_key().raw))
    }

    /// Parses 64 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// [`Error`] for anything else.
    pub fn from_hex(text: &str) -> Result<Self, Error> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| Error)?;
        // One pin has one text: hex accepts upper case, we do not.
        if hex::encode(bytes) == text { Ok(Self(bytes)) } else { Err(Error) }
    }

    /// The digits alone.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }

    /// The first certificate authority in `chain` whose key has this pin.
    ///
    /// A newcomer trusts that certificate, and no other, from then on.
    pub fn find_in<'a>(self, chain: &[CertificateDer<'a>]) -> Option<CertificateDer<'a>> {
        chain.iter().find(|der| self.matches_authority(der)).cloned()
    }

    fn matches_authority(self, der: &[u8]) -> bool {
        X509Certificate::from_der(der)
            .is_ok_and(|(_, certificate)| certificate.is_ca() && Self::of_spki(certificate.public_key().raw) == self)
    }
}

impl fmt::Display for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_hex())
    }
}

impl FromStr for SpkiPin {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::from_hex(text.strip_prefix("sha256:").ok_or(Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_and_its_text_are_one() {
        let pin = SpkiPin::of_spki(b"key");
        assert_eq!(pin.to_string().parse(), Ok(pin));
    }

    #[test]
    fn other_spellings_of_a_pin_are_refused() {
        let text = SpkiPin::of_spki(b"key").to_string();
        for wrong in [&text[7..], &text[..70], &text.to_uppercase(), &format!("{text}0"), "sha256:", ""] {
            assert_eq!(wrong.parse::<SpkiPin>(), Err(Error), "{wrong}");
        }
    }
}
