//! ① Tokens of identity providers (OpenID Connect): whose keys signed them, and who they say their bearer is.
//!
//! Keys are fetched when a token needs them that are not known, and kept; a provider that is away does not lock out those
//! whose keys are known.
//!
//! Invariants: only signatures with public keys count; a provider is asked at most once in [`ASK_EVERY`], whatever tokens come;
//! what a provider answers is bounded in size and time.
//!
//! Deliberately absent: what claims are worth (`model`), signing in (the user's client does that), and introspection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fluvial_certs::Identity;
use fluvial_model::causes::chain;
use fluvial_model::kinds::IdentityProvider;
use futures::StreamExt as _;
use jiff::Timestamp;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::rights::Rights;

/// A provider's keys are asked for again at most so often, while tokens come that are signed with unknown ones.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// Keys are asked for again after this, so that one that was withdrawn does not count for ever.
const FRESH: Duration = Duration::from_secs(10 * 60);
/// How long one answer of a provider may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The most bytes of one.
const MAX_ANSWER: usize = 256 * 1024;
/// The longest token that is looked at: a header's worth.
const MAX_TOKEN: usize = 12 * 1024;

/// The algorithms whose signatures count: those with a public key.
const ALGORITHMS: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Why a token opens nothing. Nothing of it is quoted.
#[derive(Debug, Error)]
pub enum Problem {
    #[error("the bearer token is neither of this hub nor of an identity provider that it knows")]
    Unknown,
    #[error("the bearer token is signed with {0:?}, which does not count")]
    Algorithm(Algorithm),
    #[error("the bearer token is signed with a key that its identity provider does not publish")]
    Key,
    #[error("the bearer token's signature is wrong")]
    Signature,
    #[error(transparent)]
    Claims(#[from] fluvial_model::kinds::ClaimProblem),
    #[error("the identity provider \"{name}\" cannot be asked for its keys: {why}")]
    Away { name: String, why: String },
}

/// Who somebody is by his token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub identity: Identity,
    pub until: Timestamp,
    /// The provider's uid: when it is gone, the token is worth nothing.
    pub provider: String,
}

/// What is known of one provider's keys.
#[derive(Debug, Default)]
struct Keys {
    set: Option<JwkSet>,
    fetched: Option<Instant>,
    tried: Option<Instant>,
    /// Why the last try failed.
    problem: Option<String>,
}

/// The keys of all providers, by what the provider is and says: one that is changed is another one.
#[derive(Debug, Default)]
pub struct Providers {
    keys: Mutex<HashMap<String, Arc<Mutex<Keys>>>>,
}

#[derive(Deserialize)]
struct Issued {
    iss: String,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Providers {
    /// Who the bearer of a token is.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn authenticate(&self, rights: &Rights, token: &str, now: Timestamp) -> Result<Known, Problem> {
        if token.len() > MAX_TOKEN {
            return Err(Problem::Unknown);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Problem::Unknown)?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(Problem::Algorithm(header.alg));
        }
        // Not believed yet: it says whose keys to try.
        let claimed: Issued = jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| Problem::Unknown)?;
        let provider = rights.provider(&claimed.iss).ok_or(Problem::Unknown)?;
        let key = self.key(&provider, header.kid.as_deref(), header.alg).await?;
        let mut validation = Validation::new(header.alg);
        // Times and audiences are judged with the rest of the claims, by the hub's clock.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let claims = jsonwebtoken::decode::<Value>(token, &key, &validation).map_err(|_| Problem::Signature)?.claims;
        let vouched = provider.user(&claims, now)?;
        let identity = Identity::User { name: vouched.user, groups: vouched.groups };
        Ok(Known { identity, until: vouched.until, provider: provider.metadata.uid })
    }

    /// The key that a token says it is signed with.
    async fn key(
        &self,
        provider: &IdentityProvider,
        kid: Option<&str>,
        alg: Algorithm,
    ) -> Result<DecodingKey, Problem> {
        let meta = &provider.metadata;
        let slot = {
            let mut all = self.keys.lock().await;
            let id = format!("{}/{}", meta.uid, meta.generation);
            if !all.contains_key(&id) {
                // Earlier states of the same provider are not asked for any more.
                all.retain(|other, _| !other.starts_with(&format!("{}/", meta.uid)));
            }
            all.entry(id).or_default().clone()
        };
        let mut keys = slot.lock().await;
        let now = Instant::now();
        let found = keys.set.as_ref().and_then(|set| find(set, kid, alg));
        let stale = keys.fetched.is_none_or(|at| now.duration_since(at) >= FRESH);
        let may_ask = keys.tried.is_none_or(|at| now.duration_since(at) >= ASK_EVERY);
        if (found.is_none() || stale) && may_ask {
            keys.tried = Some(now);
            match fetch(provider).await {
                Ok(set) => *keys = Keys { set: Some(set), fetched: Some(now), tried: Some(now), problem: None },
                Err(why) => {
                    tracing::warn!(provider = %meta.name, why, "the keys of an identity provider cannot be read");
                    keys.problem = Some(why);
                }
            }
        }
        match (keys.set.as_ref().and_then(|set| find(set, kid, alg)), &keys.set, &keys.problem) {
            (Some(key), ..) => Ok(key),
            (None, None, Some(why)) => Err(Problem::Away { name: meta.name.clone(), why: why.clone() }),
            (None, ..) => Err(Problem::Key),
        }
    }
}

/// The key with this id, or, for a token without one, the only key.
fn find(set: &JwkSet, kid: Option<&str>, alg: Algorithm) -> Option<DecodingKey> {
    let usable = |key: &&Jwk| {
        let signs = key.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
        let fits = key.common.key_algorithm.is_none_or(|known| known.to_string() == format!("{alg:?}"));
        signs && fits
    };
    let mut usable = set.keys.iter().filter(usable);
    let key = match kid {
        Some(kid) => usable.find(|key| key.common.key_id.as_deref() == Some(kid)),
        None => usable.next().filter(|_| usable.next().is_none()),
    };
    DecodingKey::from_jwk(key?).ok()
}

/// Asks a provider for its keys.
async fn fetch(provider: &IdentityProvider) -> Result<JwkSet, String> {
    let spec = &provider.spec;
    let mut builder = reqwest::Client::builder()
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(ANSWER_WITHIN)
        .timeout(ANSWER_WITHIN);
    if !spec.ca_bundle.is_empty() {
        let roots = reqwest::Certificate::from_pem_bundle(spec.ca_bundle.as_bytes());
        builder = builder.tls_certs_only(roots.map_err(|error| format!("spec.caBundle: {error}"))?);
    }
    let client = builder.build().map_err(|error| chain(&error))?;
    let place = format!("{}/.well-known/openid-configuration", spec.issuer.trim_end_matches('/'));
    let discovery: Discovery = get(&client, &place).await?;
    if discovery.issuer != spec.issuer {
        return Err(format!("{place} is about another issuer"));
    }
    get(&client, &discovery.jwks_uri).await
}

async fn get<T: DeserializeOwned>(client: &reqwest::Client, place: &str) -> Result<T, String> {
    let failed = |error: reqwest::Error| chain(&error);
    let answer = client.get(place).send().await.map_err(failed)?.error_for_status().map_err(failed)?;
    let mut bytes = Vec::new();
    let mut body = answer.bytes_stream();
    while let Some(part) = body.next().await {
        bytes.extend_from_slice(&part.map_err(failed)?);
        if bytes.len() > MAX_ANSWER {
            return Err(format!("{place} answers with more than {MAX_ANSWER} bytes"));
        }
    }
    serde_json::from_slice(&bytes).map_err(|error| format!("{place}: {error}"))
}
