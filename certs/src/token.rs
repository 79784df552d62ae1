//! Join tokens: one use, a few minutes, one purpose, and the authority's pin.
//!
//! The text is `fluvial.<id>.<secret>.<pin>`: a public id by which the hub finds its record, 32 secret bytes in
//! base64url, and the hexadecimal pin with which the newcomer recognises the hub *before* it sends the secret.
//! The hub stores [`JoinToken::secret_hash`] only; 256 random bits need no slow hash.
//!
//! [`verdict`] is the whole decision and is pure: the hub runs it where changes are applied, with the time that the
//! leader wrote into the change, so that every replica decides alike. Deliberately absent: rate limits and storage.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::pin::SpkiPin;

/// How long after first use the same key may ask again, because the first reply was lost.
pub const REISSUE_WINDOW: SignedDuration = SignedDuration::from_mins(10);
/// Default life of a token.
pub const TOKEN_LIFETIME: SignedDuration = SignedDuration::from_mins(15);
/// Longest life of a token.
pub const TOKEN_LIFETIME_MAX: SignedDuration = SignedDuration::from_hours(24);
/// Random bytes that [`JoinToken::mint`] takes: 8 for the id, 32 for the secret.
pub const MINT_BYTES: usize = ID_BYTES + SECRET_BYTES;

const PREFIX: &str = "fluvial";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
/// `fluvial` + `.` + `t` and 16 digits + `.` + 43 characters + `.` + 64 digits.
const TEXT_BYTES: usize = 7 + 1 + 17 + 1 + 43 + 1 + 64;

/// Why a text is no join token. No variant quotes the text: it may be a real one with a slip of the pen.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    #[error("parse join token: expected it to start with \"fluvial.\"")]
    Prefix,
    #[error(
        "parse join token: {found} parts separated by dots, expected 4: fluvial.ID.SECRET.PIN; was it copied whole?"
    )]
    Parts { found: usize },
    #[error("parse join token: {found} bytes, expected {TEXT_BYTES}; was it copied whole?")]
    Length { found: usize },
    #[error("parse join token: damaged id, expected 't' and 16 lower-case hexadecimal digits")]
    Id,
    #[error("parse join token: damaged secret, expected 43 base64url characters")]
    Secret,
    #[error("parse join token: damaged pin, expected 64 lower-case hexadecimal digits")]
    Pin,
}

/// A token as its bearer holds it.
pub struct JoinToken {
    id: String,
    secret: SecretBox<[u8; SECRET_BYTES]>,
    pin: SpkiPin,
}

impl JoinToken {
    /// Makes a token from random bytes, which must come from a cryptographic source and be used once.
    pub fn mint(random: &[u8; MINT_BYTES], pin: SpkiPin) -> Self {
        let (id, secret) = random.split_at(ID_BYTES);
        Self {
            // The letter makes the id a valid object name (DNS-1035).
            id: format!("t{}", hex::encode(id)),
            secret: SecretBox::init_with_mut(|kept: &mut [u8; SECRET_BYTES]| kept.copy_from_slice(secret)),
            pin,
        }
    }

    /// The public id: a valid object name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The pin of the authority that the bearer must meet.
    pub fn pin(&self) -> SpkiPin {
        self.pin
    }

    /// The text to hand to the newcomer.
    pub fn text(&self) -> SecretString {
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(self.secret.expose_secret()));
        format!("{PREFIX}.{}.{}.{}", self.id, *secret, self.pin.to_hex()).into()
    }

    /// SHA-256 of the secret, lower-case hex: what the hub stores.
    pub fn secret_hash(&self) -> String {
        hex::encode(Sha256::digest(self.secret.expose_secret()))
    }
}

impl FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        let parts: Vec<&str> = text.split('.').collect();
        if parts[0] != PREFIX {
            return Err(Error::Prefix);
        }
        let &[_, id, secret, pin] = &parts[..] else { return Err(Error::Parts { found: parts.len() }) };
        if text.len() != TEXT_BYTES {
            return Err(Error::Length { found: text.len() });
        }
        let digits = id.strip_prefix('t').ok_or(Error::Id)?;
        if digits.len() != 2 * ID_BYTES || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(Error::Id);
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(secret).map_err(|_| Error::Secret)?);
        let bytes: &[u8; SECRET_BYTES] = bytes.as_slice().try_into().map_err(|_| Error::Secret)?;
        Ok(Self {
            id: id.to_owned(),
            secret: SecretBox::init_with_mut(|kept: &mut [u8; SECRET_BYTES]| kept.copy_from_slice(bytes)),
            pin: SpkiPin::from_hex(pin).map_err(|_| Error::Pin)?,
        })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).field("pin", &self.pin.to_string()).finish_non_exhaustive()
    }
}

/// What a token lets its bearer become.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The member of the named cluster.
    Cluster(String),
    /// A hub replica.
    Hub,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(name) => write!(f, "cluster {name:?}"),
            Self::Hub => f.write_str("a hub"),
        }
    }
}

/// The first use of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// [`crate::Csr::key_hash`] of the key that used it.
    pub key_hash: String,
    /// When.
    pub at: Timestamp,
}

/// What the hub knows about a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// [`JoinToken::secret_hash`] at creation.
    pub secret_hash: String,
    /// What it is good for.
    pub purpose: Purpose,
    /// The first moment at which it is no longer good.
    pub expires_at: Timestamp,
    /// Its first use, if any.
    pub used: Option<Use>,
}

/// A token is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// First use: record it, then issue.
    Consume,
    /// The same key again within [`REISSUE_WINDOW`]: the reply was lost; issue again and record nothing.
    Reissue,
}

/// Why a token is not good.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("join token is not known to this hub; create a new one with `fluvial token create`")]
    WrongSecret,
    #[error("join token is for {allowed}, not for {requested}; create one with `fluvial token create` for it")]
    OtherPurpose { allowed: Purpose, requested: Purpose },
    #[error("join token was used at {at}; each works once, create a new one with `fluvial token create`")]
    Used { at: Timestamp },
    #[error("join token expired at {at}; create a new one with `fluvial token create`")]
    Expired { at: Timestamp },
}

/// Decides whether `presented` may be used by the key `csr_key_hash` to become `requested`.
///
/// The secret is judged first and in constant time, so a stranger learns nothing else about the record.
///
/// # Errors
/// The refusal to hand to the bearer; its text holds nothing of the secret.
pub fn verdict(
    record: &TokenRecord,
    presented: &JoinToken,
    csr_key_hash: &str,
    requested: &Purpose,
    now: Timestamp,
) -> Result<Verdict, Refusal> {
    let same_secret = presented.secret_hash().as_bytes().ct_eq(record.secret_hash.as_bytes());
    if !bool::from(same_secret) {
        return Err(Refusal::WrongSecret);
    }
    if *requested != record.purpose {
        return Err(Refusal::OtherPurpose { allowed: record.purpose.clone(), requested: requested.clone() });
    }
    if let Some(first) = &record.used {
        // A lost reply may be asked for again even when the token has expired in the meantime.
        let again = first.key_hash == csr_key_hash && now.duration_since(first.at) <= REISSUE_WINDOW;
        return if again { Ok(Verdict::Reissue) } else { Err(Refusal::Used { at: first.at }) };
    }
    if now >= record.expires_at {
        return Err(Refusal::Expired { at: record.expires_at });
    }
    Ok(Verdict::Consume)
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
