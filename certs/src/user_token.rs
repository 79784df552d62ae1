//! Bearer tokens of users: `fluvialu.<id>.<secret>`, a public id by which the hub finds its record and 32 secret bytes in
//! base64url. The hub stores [`UserSecret::secret_hash`] alone; 256 random bits need no slow hash.
//!
//! Deliberately absent: whose it is and how long it is good for, which the hub's record says.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Random bytes that [`UserSecret::mint`] takes: 8 for the id, 32 for the secret.
pub const USER_SECRET_BYTES: usize = ID_BYTES + SECRET_BYTES;

const PREFIX: &str = "fluvialu";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
/// The longest text that is looked at: `fluvialu.u` and 16 digits, a dot, 43 characters.
const TEXT_BYTES: usize = 8 + 1 + 17 + 1 + 43;

/// The text is no user's token. It is not quoted: it may be a real one with a slip of the pen.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("parse user token: expected fluvialu.ID.SECRET, {TEXT_BYTES} characters; was it copied whole?")]
pub struct Malformed;

/// A user's token as its bearer holds it.
pub struct UserSecret {
    id: String,
    secret: SecretBox<[u8; SECRET_BYTES]>,
}

impl UserSecret {
    /// Makes a token from random bytes, which must come from a cryptographic source and be used once.
    #[must_use]
    pub fn mint(random: &[u8; USER_SECRET_BYTES]) -> Self {
        let (id, secret) = random.split_at(ID_BYTES);
        Self {
            // The letter makes the id a valid object name.
            id: format!("u{}", hex::encode(id)),
            secret: SecretBox::init_with_mut(|kept: &mut [u8; SECRET_BYTES]| kept.copy_from_slice(secret)),
        }
    }

    /// Whether a bearer token means to be one of these, whole or not.
    #[must_use]
    pub fn is_meant_by(text: &str) -> bool {
        text.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with('.'))
    }

    /// The public id: a valid object name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The text for its bearer.
    #[must_use]
    pub fn text(&self) -> SecretString {
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(self.secret.expose_secret()));
        format!("{PREFIX}.{}.{}", self.id, *secret).into()
    }

    /// SHA-256 of the secret, lower-case hex: what the hub stores.
    #[must_use]
    pub fn secret_hash(&self) -> String {
        hex::encode(Sha256::digest(self.secret.expose_secret()))
    }

    /// Whether the hub stored this hash, compared in a time that tells nothing.
    #[must_use]
    pub fn has_hash(&self, stored: &str) -> bool {
        self.secret_hash().as_bytes().ct_eq(stored.as_bytes()).into()
    }
}

impl FromStr for UserSecret {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() != TEXT_BYTES {
            return Err(Malformed);
        }
        let parts: Vec<&str> = text.split('.').collect();
        let &[PREFIX, id, secret] = &parts[..] else { return Err(Malformed) };
        let digits = id.strip_prefix('u').ok_or(Malformed)?;
        if digits.len() != 2 * ID_BYTES || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(Malformed);
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(secret).map_err(|_| Malformed)?);
        let bytes: &[u8; SECRET_BYTES] = bytes.as_slice().try_into().map_err(|_| Malformed)?;
        let secret = SecretBox::init_with_mut(|kept: &mut [u8; SECRET_BYTES]| kept.copy_from_slice(bytes));
        Ok(Self { id: id.to_owned(), secret })
    }
}

impl fmt::Debug for UserSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserSecret").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_every_slip_of_the_pen_is_noticed() {
        let token = UserSecret::mint(&[0xab; USER_SECRET_BYTES]);
        let text = token.text().expose_secret().to_owned();
        assert_eq!(text.len(), TEXT_BYTES);
        let read: UserSecret = text.parse().unwrap();
        assert_eq!((read.id(), read.secret_hash()), (token.id(), token.secret_hash()));
        assert!(read.has_hash(&token.secret_hash()) && !read.has_hash("") && !read.has_hash(&"0".repeat(64)));
        assert!(!format!("{token:?}").contains(&text[27..]), "the secret is not shown");
        assert!(UserSecret::is_meant_by(&text) && !UserSecret::is_meant_by("eyJhbGciOi.x.y"));
        for wrong in ["", "fluvialu", &text[1..], &text[..text.len() - 1], &text.replace("fluvialu", "fluvialx")] {
            assert!(wrong.parse::<UserSecret>().is_err(), "{wrong}");
        }
        assert!(text.replacen(".u", ".t", 1).parse::<UserSecret>().is_err());
        assert!(text.replacen("ab", "AB", 1).parse::<UserSecret>().is_err());
    }
}
