//! The key of a snapshot, from a password: Argon2id (RFC 9106).

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::SnapshotError;

/// The bytes of a key.
pub const KEY_BYTES: usize = 32;
const SALT_BYTES: usize = 16;
const ALGORITHM: &str = "argon2id";

/// The second recommendation of RFC 9106, section 4, with one lane: 64 MiB, three times.
const MEMORY_KIB: u32 = 64 * 1024;
const ITERATIONS: u32 = 3;
/// What a file may ask for at most: it must not exhaust the machine of whoever reads it.
const MAX_MEMORY_KIB: u32 = 1024 * 1024;
const MAX_ITERATIONS: u32 = 64;

/// How a password becomes a key; none of it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Derivation {
    pub algorithm: String,
    pub memory_kib: u32,
    pub iterations: u32,
    /// Base64.
    pub salt: String,
}

impl Derivation {
    /// One for a new snapshot, with a salt that no other has.
    #[must_use]
    pub fn fresh() -> Self {
        Self {
            algorithm: ALGORITHM.to_owned(),
            memory_kib: MEMORY_KIB,
            iterations: ITERATIONS,
            salt: STANDARD.encode(rand::random::<[u8; SALT_BYTES]>()),
        }
    }

    /// The key that `password` gives.
    ///
    /// # Errors
    /// An empty password, and numbers that are not allowed.
    pub fn derive(&self, password: &SecretString) -> Result<Zeroizing<[u8; KEY_BYTES]>, SnapshotError> {
        if password.expose_secret().is_empty() {
            return Err(SnapshotError::NoPassword);
        }
        let salt = self.check()?;
        let failed = |error: argon2::Error| SnapshotError::Derive { reason: error.to_string() };
        let params = Params::new(self.memory_kib, self.iterations, 1, Some(KEY_BYTES)).map_err(failed)?;
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(password.expose_secret().as_bytes(), &salt, key.as_mut_slice())
            .map_err(failed)?;
        Ok(key)
    }

    /// Whether a key may be derived so, and the salt.
    ///
    /// # Errors
    /// What is not allowed.
    pub fn check(&self) -> Result<Vec<u8>, SnapshotError> {
        let wrong = |reason: &str| SnapshotError::Derive { reason: reason.to_owned() };
        if self.algorithm != ALGORITHM {
            return Err(wrong("the algorithm must be argon2id"));
        }
        if self.memory_kib > MAX_MEMORY_KIB || self.iterations > MAX_ITERATIONS {
            return Err(wrong("more than 1 GiB of memory or 64 iterations is not allowed"));
        }
        let salt = STANDARD.decode(&self.salt).map_err(|_| wrong("the salt must be base64"))?;
        if salt.len() < SALT_BYTES { Err(wrong("the salt must have at least 16 bytes")) } else { Ok(salt) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(salt: &str) -> Derivation {
        Derivation { memory_kib: 64, iterations: 1, salt: STANDARD.encode(salt), ..Derivation::fresh() }
    }

    #[test]
    fn a_key_depends_on_password_and_salt_and_on_nothing_else() {
        let key = |salt, password: &str| small(salt).derive(&SecretString::from(password)).unwrap();
        assert_eq!(key("0123456789abcdef", "a"), key("0123456789abcdef", "a"));
        assert_ne!(key("0123456789abcdef", "a"), key("0123456789abcdef", "b"));
        assert_ne!(key("0123456789abcdef", "a"), key("0123456789abcdeg", "a"));
        assert_ne!(Derivation::fresh().salt, Derivation::fresh().salt);
    }

    #[test]
    fn what_is_weak_or_would_exhaust_the_machine_is_refused() {
        let refused = |derivation: Derivation| derivation.derive(&"password".into()).unwrap_err().to_string();
        assert!(refused(small("short")).contains("16 bytes"));
        assert!(refused(Derivation { memory_kib: u32::MAX, ..Derivation::fresh() }).contains("1 GiB"));
        assert!(refused(Derivation { iterations: 65, ..Derivation::fresh() }).contains("64 iterations"));
        assert!(refused(Derivation { algorithm: "md5".into(), ..Derivation::fresh() }).contains("argon2id"));
        assert!(refused(Derivation { memory_kib: 0, ..Derivation::fresh() }).contains("deriving"));
        let empty = Derivation::fresh().derive(&"".into());
        assert!(matches!(empty, Err(SnapshotError::NoPassword)));
    }
}
