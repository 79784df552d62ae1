//! ① IdentityProvider: somebody else who knows who users are, by OpenID Connect, and what his word is worth here.
//!
//! Invariant: [`IdentityProvider::user`] decides alone about claims whose signature was checked: issuer, audience, time, and
//! names. No provider can name anybody or any group that begins with `system:`.
//!
//! Source: OpenID Connect Core 1.0, section 3.1.3.7; names and prefixes as in Kubernetes' authenticator.

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use url::Url;

use super::{FLUVIAL_GROUP, VERSION};
use crate::field::{FieldErrors, Path};
use crate::names::{NameRule, printable};
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

/// How far the clocks of a provider and of a hub may be apart.
pub const LEEWAY: SignedDuration = SignedDuration::from_secs(30);
/// The longest name of a user or a group, in bytes.
const MAX_NAME: usize = 256;
/// The most groups of one user.
const MAX_GROUPS: usize = 256;
/// Names that are the hub's own.
const RESERVED: &str = "system:";

object!(
    /// Users with tokens of this provider are users of the hub.
    IdentityProvider,
    IdentityProviderSpec,
    IdentityProviderStatus
);

/// Who he is, and how his users are called here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IdentityProviderSpec {
    /// The claim `iss` of his tokens; his keys are found below it, at `/.well-known/openid-configuration`.
    pub issuer: String,
    /// A token must be meant for one of these (claim `aud`).
    pub audiences: Vec<String>,
    /// The claim that names the user; `sub` if not said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username_claim: String,
    /// What stands before each user's name; the provider's own name and a colon if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username_prefix: Option<String>,
    /// The claim that lists the user's groups; `groups` if not said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub groups_claim: String,
    /// What stands before each group; the provider's own name and a colon if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups_prefix: Option<String>,
    /// The certificates, in PEM, by one of which his server's is signed; those that the hub's machine trusts if not said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca_bundle: String,
}

/// A provider has no state of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdentityProviderStatus {}

/// Somebody whom a provider vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    pub user: String,
    pub groups: Vec<String>,
    /// The token is worth nothing from then on.
    pub until: Timestamp,
}

/// Why claims name nobody. None of them is quoted but names.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClaimProblem {
    #[error("the token is not by this issuer")]
    Issuer,
    #[error("the token is for another audience: expected one of {expected}")]
    Audience { expected: String },
    #[error("the token has expired: ask your identity provider for another one")]
    Expired,
    #[error("the token is not good yet")]
    NotYet,
    #[error("the token has no text in the claim \"{claim}\"")]
    NoName { claim: String },
    #[error("the token's e-mail address is not verified")]
    Unverified,
    #[error(
        "the token names \"{name}\": names that begin with {RESERVED} are the hub's own, and none has more than {MAX_NAME} bytes"
    )]
    Name { name: String },
    #[error("the token has {count} groups, at most {MAX_GROUPS} are taken")]
    Groups { count: usize },
}

impl IdentityProvider {
    /// Who the claims of a token say its bearer is. The caller has checked the signature with the provider's keys.
    ///
    /// # Errors
    /// See [`ClaimProblem`].
    pub fn user(&self, claims: &Value, now: Timestamp) -> Result<Vouched, ClaimProblem> {
        let spec = &self.spec;
        if claims.get("iss").and_then(Value::as_str) != Some(spec.issuer.as_str()) {
            return Err(ClaimProblem::Issuer);
        }
        if !texts(claims.get("aud")).any(|audience| spec.audiences.iter().any(|known| known == audience)) {
            return Err(ClaimProblem::Audience { expected: spec.audiences.join(", ") });
        }
        let time = |claim: &str| {
            let seconds = claims.get(claim).and_then(|value| value.as_i64().or_else(|| whole(value)));
            seconds.and_then(|seconds| Timestamp::from_second(seconds).ok())
        };
        let until = time("exp").and_then(|exp| exp.checked_add(LEEWAY).ok()).filter(|until| *until > now);
        let until = until.ok_or(ClaimProblem::Expired)?;
        let soon = now.checked_add(LEEWAY).unwrap_or(now);
        if claims.get("nbf").is_some() && time("nbf").is_none_or(|from| from > soon) {
            return Err(ClaimProblem::NotYet);
        }
        let claim = or(&spec.username_claim, "sub");
        let name = claims.get(claim).and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| ClaimProblem::NoName { claim: claim.to_owned() })?;
        if claim == "email" && claims.get("email_verified").is_some_and(|verified| *verified != Value::Bool(true)) {
            return Err(ClaimProblem::Unverified);
        }
        let user = self.prefixed(spec.username_prefix.as_deref(), name)?;
        let listed: Vec<&str> = texts(claims.get(or(&spec.groups_claim, "groups"))).collect();
        if listed.len() > MAX_GROUPS {
            return Err(ClaimProblem::Groups { count: listed.len() });
        }
        let groups = listed.into_iter().map(|group| self.prefixed(spec.groups_prefix.as_deref(), group));
        Ok(Vouched { user, groups: groups.collect::<Result<_, _>>()?, until })
    }

    fn prefixed(&self, prefix: Option<&str>, name: &str) -> Result<String, ClaimProblem> {
        let full = match prefix {
            Some(prefix) => format!("{prefix}{name}"),
            None => format!("{}:{name}", self.metadata.name),
        };
        let bad = full.starts_with(RESERVED) || full.len() > MAX_NAME || full.chars().any(char::is_control);
        if bad { Err(ClaimProblem::Name { name: printable(&full) }) } else { Ok(full) }
    }
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// A number with a fraction, as some providers write times.
fn whole(value: &Value) -> Option<i64> {
    #[allow(clippy::cast_possible_truncation, reason = "seconds far outside of the range are refused as times")]
    value.as_f64().map(|seconds| seconds as i64)
}

/// A text, or a list of texts.
fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let list = match value {
        Some(Value::Array(items)) => items.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    list.iter().filter_map(Value::as_str)
}

impl Resource for IdentityProvider {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "IdentityProvider",
        plural: "identityproviders",
        singular: "identityprovider",
        short_names: &["idp"],
        categories: &["fluvial"],
        scope: Scope::Cluster,
        writers: Writers::Users,
        status: false,
        name_rule: NameRule::Dns1035Label,
        columns: &[
            PrinterColumn { name: "Issuer", kind: "string", pointer: "/spec/issuer", priority: 0 },
            PrinterColumn { name: "Audiences", kind: "string", pointer: "/spec/audiences", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, _old: Option<&Self>, errors: &mut FieldErrors) {
        let at = Path::root("spec");
        let spec = &self.spec;
        let plain = Url::parse(&spec.issuer).is_ok_and(|url| {
            url.scheme() == "https" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty()
        });
        if !plain {
            let problem = "must be an https URL without query and fragment, exactly as the provider writes it";
            errors.invalid(&at.key("issuer"), &spec.issuer, problem);
        }
        if spec.audiences.iter().all(String::is_empty) {
            errors.required(&at.key("audiences"), "the client id that the provider's tokens for this hub are made for");
        }
        for (field, prefix) in [("usernamePrefix", &spec.username_prefix), ("groupsPrefix", &spec.groups_prefix)] {
            if let Some(prefix) = prefix.as_deref().filter(|prefix| prefix.starts_with(RESERVED)) {
                errors.invalid(&at.key(field), prefix, format!("names that begin with {RESERVED} are the hub's own"));
            }
        }
        if !spec.ca_bundle.is_empty() && !spec.ca_bundle.contains("-----BEGIN CERTIFICATE-----") {
            errors.push(&at.key("caBundle"), "must be certificates in PEM");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn provider(change: impl FnOnce(&mut IdentityProviderSpec)) -> IdentityProvider {
        let mut spec = IdentityProviderSpec {
            issuer: "https://id.example/".into(),
            audiences: vec!["fluvial".into()],
            ..IdentityProviderSpec::default()
        };
        change(&mut spec);
        IdentityProvider::new("", "corp", spec)
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn claims(changes: &Value) -> Value {
        let mut claims = json!({
            "iss": "https://id.example/", "aud": ["other", "fluvial"], "sub": "ann", "exp": 1_800_000_060,
            "groups": ["vision"],
        });
        for (claim, value) in changes.as_object().unwrap() {
            claims[claim] = value.clone();
        }
        claims
    }

    #[test]
    fn who_is_vouched_for_has_the_providers_name_before_his() {
        let found = provider(|_| {}).user(&claims(&json!({})), now()).unwrap();
        assert_eq!((found.user.as_str(), found.groups), ("corp:ann", vec!["corp:vision".to_owned()]));
        assert_eq!(found.until, Timestamp::from_second(1_800_000_090).unwrap());
        let bare = provider(|spec| {
            spec.username_claim = "email".into();
            spec.username_prefix = Some(String::new());
            spec.groups_prefix = Some("g/".into());
        });
        let found = bare.user(&claims(&json!({ "email": "a@b.example", "groups": "one" })), now()).unwrap();
        assert_eq!((found.user.as_str(), found.groups), ("a@b.example", vec!["g/one".to_owned()]));
        let unverified = claims(&json!({ "email": "a@b.example", "email_verified": false }));
        assert_eq!(bare.user(&unverified, now()), Err(ClaimProblem::Unverified));
    }

    #[test]
    fn claims_that_are_not_for_us_or_not_for_now_name_nobody() {
        use ClaimProblem::{Expired, Issuer, NotYet};
        let audience = ClaimProblem::Audience { expected: "fluvial".into() };
        for (changes, expected) in [
            (json!({ "iss": "https://id.example" }), Issuer),
            (json!({ "iss": null }), Issuer),
            (json!({ "aud": "fluvial2" }), audience.clone()),
            (json!({ "aud": [] }), audience),
            (json!({ "exp": 1_799_999_970 }), Expired),
            (json!({ "exp": null }), Expired),
            (json!({ "exp": "tomorrow" }), Expired),
            (json!({ "nbf": 1_800_000_031 }), NotYet),
            (json!({ "nbf": "x" }), NotYet),
            (json!({ "sub": "" }), ClaimProblem::NoName { claim: "sub".into() }),
            (json!({ "groups": vec!["g"; 257] }), ClaimProblem::Groups { count: 257 }),
        ] {
            assert_eq!(provider(|_| {}).user(&claims(&changes), now()), Err(expected), "{changes}");
        }
        assert!(
            provider(|_| {}).user(&claims(&json!({ "exp": 1_799_999_971, "nbf": 1_800_000_030.5 })), now()).is_ok()
        );
    }

    #[test]
    fn no_provider_makes_a_master() {
        let bare =
            provider(|spec| (spec.username_prefix, spec.groups_prefix) = (Some(String::new()), Some(String::new())));
        for changes in [json!({ "sub": "system:admin" }), json!({ "groups": ["system:masters"] })] {
            assert!(matches!(bare.user(&claims(&changes), now()), Err(ClaimProblem::Name { .. })), "{changes}");
        }
        // Nor by halves.
        let half = provider(|spec| spec.groups_prefix = Some("system".into()));
        let split = half.user(&claims(&json!({ "groups": [":masters"] })), now());
        assert!(matches!(split, Err(ClaimProblem::Name { .. })), "{split:?}");
        let mut errors = FieldErrors::default();
        provider(|spec| {
            spec.issuer = "http://id.example".into();
            spec.audiences.clear();
            spec.groups_prefix = Some("system:".into());
            spec.ca_bundle = "x".into();
        })
        .validate(None, &mut errors);
        let fields: Vec<String> = errors.0.into_iter().map(|error| error.field).collect();
        assert_eq!(fields, ["spec.issuer", "spec.audiences", "spec.groupsPrefix", "spec.caBundle"]);
    }
}
