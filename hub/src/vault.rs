//! ② Encrypts Secrets before they reach the store, so that neither log, catalog nor snapshot holds one in the clear.
//!
//! Each stored value is `{"fluvial.io/encrypted": base64(nonce ‖ ciphertext)}` under XChaCha20-Poly1305, bound to the
//! key it is stored at, so that a value moved to another key does not open. The data key is shared by the hubs and
//! lives in their data directories.
//!
//! Deliberately absent: rotation of the data key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use serde_json::{Value, json};
use thiserror::Error;
use zeroize::Zeroizing;

const FIELD: &str = "fluvial.io/encrypted";
const NONCE_BYTES: usize = 24;

/// The bytes of a data key.
pub const KEY_BYTES: usize = 32;

/// Why a stored Secret cannot be opened. Says nothing of its content.
#[derive(Debug, Error)]
pub enum VaultError {
    #[error("the secret stored at {key} is not in the expected form")]
    Malformed { key: String },
    #[error("the secret stored at {key} cannot be decrypted with this hub's data key")]
    WrongKey { key: String },
    #[error("the secret to be stored at {key} cannot be encrypted")]
    Encrypt { key: String },
}

/// Opens and closes Secrets.
pub struct Vault {
    cipher: XChaCha20Poly1305,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault(..)")
    }
}

impl Vault {
    #[must_use]
    pub fn new(key: &Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self { cipher: XChaCha20Poly1305::new(&(**key).into()) }
    }

    /// What is stored at `key` in place of `plain`.
    ///
    /// # Errors
    /// If the value is too large for the cipher.
    pub fn seal(&self, key: &str, plain: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut sealed = rand::random::<[u8; NONCE_BYTES]>().to_vec();
        let nonce = XNonce::try_from(sealed.as_slice()).map_err(|_| VaultError::Encrypt { key: key.to_owned() })?;
        let text = self
            .cipher
            .encrypt(&nonce, Payload { msg: plain, aad: key.as_bytes() })
            .map_err(|_| VaultError::Encrypt { key: key.to_owned() })?;
        sealed.extend_from_slice(&text);
        Ok(json!({ FIELD: STANDARD.encode(sealed) }).to_string().into_bytes())
    }

    /// What `seal` was given for this key.
    ///
    /// # Errors
    /// If the stored bytes were not made by `seal` with this data key for this key.
    pub fn open(&self, key: &str, stored: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let malformed = || VaultError::Malformed { key: key.to_owned() };
        let value: Value = serde_json::from_slice(stored).map_err(|_| malformed())?;
        let text = value.get(FIELD).and_then(Value::as_str).ok_or_else(malformed)?;
        let sealed = STANDARD.decode(text).map_err(|_| malformed())?;
        let (nonce, text) = sealed.split_at_checked(NONCE_BYTES).ok_or_else(malformed)?;
        let nonce = XNonce::try_from(nonce).map_err(|_| malformed())?;
        self.cipher
            .decrypt(&nonce, Payload { msg: text, aad: key.as_bytes() })
            .map(Zeroizing::new)
            .map_err(|_| VaultError::WrongKey { key: key.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_only_with_its_key_at_its_place() {
        let vault = Vault::new(&Zeroizing::new([7; KEY_BYTES]));
        let stored = vault.seal("/registry/core/secrets/default/a", b"hunter2").unwrap();
        assert!(!String::from_utf8_lossy(&stored).contains("hunter2"));
        assert_eq!(&**vault.open("/registry/core/secrets/default/a", &stored).unwrap(), b"hunter2");
        assert!(matches!(vault.open("/registry/core/secrets/default/b", &stored), Err(VaultError::WrongKey { .. })));
        let other = Vault::new(&Zeroizing::new([8; KEY_BYTES]));
        assert!(matches!(other.open("/registry/core/secrets/default/a", &stored), Err(VaultError::WrongKey { .. })));
        assert!(matches!(vault.open("/registry/core/secrets/default/a", b"{}"), Err(VaultError::Malformed { .. })));
    }
}
