//! Hands out join tokens.

use std::time::Duration;

use fluvial_certs::token::{MINT_BYTES, TOKEN_LIFETIME, TOKEN_LIFETIME_MAX};
use fluvial_certs::{JoinToken, SpkiPin};
use fluvial_model::kinds::{self, JoinTokenSpec};
use fluvial_model::names::{NameRule, printable};
use fluvial_model::resource::Resource as _;
use fluvial_model::store::{Txn, TxnOutcome};
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use serde::Deserialize;
use thiserror::Error;

use crate::clock::{SharedClock, fresh_uid};
use crate::objects::{ObjectError, Objects};

/// Why no token was made.
#[derive(Debug, Error)]
pub enum TokenError {
    #[error("say either which cluster the token is for, or that it is for a hub, and not both")]
    Purpose,
    #[error("cluster \"{name}\": {problem}")]
    Cluster { name: String, problem: String },
    #[error("ttlSeconds is {seconds}; it must be from 1 to {}", TOKEN_LIFETIME_MAX.as_secs())]
    Lifetime { seconds: u64 },
    #[error("storing the token")]
    Store(#[source] ObjectError),
    #[error("a token of this id exists already: try again")]
    Collision,
}

/// What a token is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TokenRequest {
    /// The cluster that may join with it.
    pub cluster: String,
    /// It is for a hub.
    pub hub: bool,
    /// How long it is good for; a quarter of an hour if not said.
    pub ttl_seconds: Option<u64>,
}

/// A token for its bearer. It is shown once and kept nowhere.
#[derive(Debug)]
pub struct MintedToken {
    pub text: SecretString,
    pub expires_at: Timestamp,
}

/// What was asked for, checked: the record to store, without its secret, and its life.
fn checked(request: &TokenRequest) -> Result<SignedDuration, TokenError> {
    match (request.cluster.as_str(), request.hub) {
        ("", true) => {}
        ("", false) | (_, true) => return Err(TokenError::Purpose),
        (name, false) => {
            if let Some(problem) = NameRule::Dns1035Label.problem(name) {
                return Err(TokenError::Cluster { name: printable(name), problem });
            }
        }
    }
    let Some(seconds) = request.ttl_seconds else { return Ok(TOKEN_LIFETIME) };
    let life = SignedDuration::try_from(Duration::from_secs(seconds)).ok();
    life.filter(|life| (SignedDuration::from_secs(1)..=TOKEN_LIFETIME_MAX).contains(life))
        .ok_or(TokenError::Lifetime { seconds })
}

/// Makes a token that pins `pin` and stores its record.
///
/// # Errors
/// If the request makes no sense or the record cannot be stored.
pub async fn mint(
    objects: &Objects,
    clock: &SharedClock,
    pin: SpkiPin,
    request: &TokenRequest,
) -> Result<MintedToken, TokenError> {
    let life = checked(request)?;
    let token = JoinToken::mint(&random(), pin);
    let now = clock.now();
    let expires_at = now.checked_add(life).unwrap_or(Timestamp::MAX);
    let spec = JoinTokenSpec {
        cluster: request.cluster.clone(),
        hub: request.hub,
        secret_hash: token.secret_hash(),
        expires_at: Some(expires_at),
    };
    let mut object = kinds::JoinToken::new("", token.id(), spec);
    object.metadata.uid = fresh_uid();
    object.metadata.creation_timestamp = Some(now);
    object.metadata.generation = 1;
    let value = objects.encode(&object).map_err(TokenError::Store)?;
    match objects.txn(Txn::create(object.key(), value)).await.map_err(TokenError::Store)? {
        TxnOutcome::Committed { .. } => Ok(MintedToken { text: token.text(), expires_at }),
        TxnOutcome::Conflict { .. } => Err(TokenError::Collision),
    }
}

/// Bytes from the process's cryptographic generator, which is seeded by the system.
fn random() -> [u8; MINT_BYTES] {
    let mut bytes = [0; MINT_BYTES];
    rand::fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(cluster: &str, hub: bool, ttl_seconds: Option<u64>) -> TokenRequest {
        TokenRequest { cluster: cluster.to_owned(), hub, ttl_seconds }
    }

    #[test]
    fn a_token_has_one_purpose_and_a_bounded_life() {
        assert_eq!(checked(&request("a", false, None)).unwrap(), TOKEN_LIFETIME);
        assert_eq!(checked(&request("", true, Some(60))).unwrap(), SignedDuration::from_secs(60));
        assert!(matches!(checked(&request("", false, None)), Err(TokenError::Purpose)));
        assert!(matches!(checked(&request("a", true, None)), Err(TokenError::Purpose)));
        assert!(matches!(checked(&request("A_b", false, None)), Err(TokenError::Cluster { .. })));
        for seconds in [0, 86_401, u64::MAX] {
            assert!(
                matches!(checked(&request("a", false, Some(seconds))), Err(TokenError::Lifetime { .. })),
                "{seconds}"
            );
        }
    }
}
