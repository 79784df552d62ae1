//! ① Who may do what. Denied unless a rule allows it.
//!
//! Deliberately absent: the rules ([`Rights`] has those of the store), and who the caller is, which the server finds out.

use std::sync::Arc;

use fluvial_certs::Identity;
use fluvial_model::access::{Action, On, Refusal, Who};
use fluvial_model::kinds::ClaimProblem;
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use thiserror::Error;

use super::status::ApiError;
use crate::oidc::Problem;
use crate::rights::Rights;

/// Who calls, by certificate or by token; put into every request's extensions. `None` is a caller with neither.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller(pub Option<Identity>);

impl Caller {
    /// The user in the words of access rules; only users have rights.
    #[must_use]
    pub fn who(&self) -> Option<Who<'_>> {
        match &self.0 {
            Some(Identity::User { name, groups }) => Some(Who { user: name, groups }),
            _ => None,
        }
    }
}

/// The token by which a caller was known, in the request's extensions: it ends, and may be taken back, while an answer lasts.
#[derive(Clone)]
pub struct Bearer {
    pub proof: Proof,
    /// When it ends.
    pub until: Timestamp,
}

/// What such a token is worth something by.
#[derive(Clone)]
pub enum Proof {
    /// The hub's record of it.
    Own(Arc<SecretString>),
    /// The identity provider with this uid.
    Provider(String),
}

impl Bearer {
    /// Looks whether it is still worth something.
    ///
    /// # Errors
    /// 401 if it is not.
    pub fn check(&self, rights: &Rights, now: Timestamp) -> Result<(), ApiError> {
        let refused = |message: String| Err(ApiError::TokenRefused { message });
        match &self.proof {
            Proof::Own(token) => match rights.authenticate(token.expose_secret(), now) {
                Ok(_) => Ok(()),
                Err(problem) => refused(problem.to_string()),
            },
            Proof::Provider(uid) if !rights.has_provider(uid) => refused(Problem::Unknown.to_string()),
            Proof::Provider(_) if self.until <= now => refused(ClaimProblem::Expired.to_string()),
            Proof::Provider(_) => Ok(()),
        }
    }
}

/// What a caller wants to do, in Kubernetes' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    /// A question to the catalog.
    Query,
    /// Giving a role that allows what the giver may not do.
    Bind,
    /// Writing a role that allows what the writer may not do.
    Escalate,
    /// Acting as somebody else, or making credentials for them.
    Impersonate,
}

impl Verb {
    /// Whether it changes something.
    #[must_use]
    pub const fn changes(self) -> bool {
        match self {
            Self::Create | Self::Update | Self::Patch | Self::Delete | Self::DeleteCollection => true,
            Self::Get | Self::List | Self::Watch | Self::Query => false,
            Self::Bind | Self::Escalate | Self::Impersonate => false,
        }
    }

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Query => "query",
            Self::Bind => "bind",
            Self::Escalate => "escalate",
            Self::Impersonate => "impersonate",
        }
    }
}

/// The caller may not.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Denied {
    #[error("no identity was presented")]
    Anonymous,
    #[error("{caller} cannot {action}: only users have access to the API")]
    NotAUser { caller: String, action: String },
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Whether `caller` may do `verb` to what `on` names.
///
/// # Errors
/// Whatever no rule allows.
pub fn authorize(rights: &Rights, caller: &Caller, verb: Verb, on: On<'_>) -> Result<(), Denied> {
    let action = Action { verb: verb.as_str(), on };
    match (&caller.0, caller.who()) {
        (_, Some(who)) => {
            rights.policy().decide(who, action)?;
            Ok(())
        }
        // Agents and hubs speak gRPC, where each call checks whose things it touches.
        (Some(other), None) => Err(Denied::NotAUser { caller: other.path(), action: action.to_string() }),
        (None, None) => Err(Denied::Anonymous),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATASETS: On<'_> =
        On::Resource { group: "data.fluid.io", resource: "datasets", subresource: "", namespace: "a", name: "" };

    fn user(groups: &[&str]) -> Caller {
        Caller(Some(Identity::User { name: "ann".into(), groups: groups.iter().map(ToString::to_string).collect() }))
    }

    #[test]
    fn only_users_have_access() {
        for identity in [Identity::Cluster { name: "a".into() }, Identity::Hub { id: 1 }] {
            for on in [DATASETS, On::Path("/apis")] {
                let denied = authorize(&Rights::default(), &Caller(Some(identity.clone())), Verb::Get, on);
                assert!(matches!(denied, Err(Denied::NotAUser { .. })), "{denied:?}");
            }
        }
        assert_eq!(authorize(&Rights::default(), &Caller::default(), Verb::Get, DATASETS), Err(Denied::Anonymous));
    }

    #[test]
    fn without_a_rule_only_masters_may_anything() {
        for (groups, on, expected) in [
            (&["system:masters"][..], DATASETS, true),
            (&["system:masters"], On::Path("/elsewhere"), true),
            (&[], On::Path("/apis"), false),
            (&["team", "system:authenticated"], DATASETS, false),
        ] {
            let found = authorize(&Rights::default(), &user(groups), Verb::Get, on).is_ok();
            assert_eq!(found, expected, "{groups:?} {on:?}");
        }
        let denied = authorize(&Rights::default(), &user(&[]), Verb::List, DATASETS).unwrap_err().to_string();
        let kubernetes =
            r#"User "ann" cannot list resource "datasets" in API group "data.fluid.io" in the namespace "a""#;
        assert_eq!(denied, kubernetes);
    }
}
