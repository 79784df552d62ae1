//! ① Who may do what. Denied unless a rule allows it.
//!
//! Deliberately absent: roles and bindings that users write. Until they come, members of `system:masters` may do
//! everything, and other users may see what there is to discover.

use std::sync::LazyLock;

use fluvial_certs::Identity;
use fluvial_model::access::{
    AUTHENTICATED, Action, On, Policy, PolicyRule, RBAC_GROUP, Refusal, RoleRef, Subject, Who,
};
use thiserror::Error;

/// Who calls, as the TLS layer found out; put into every request's extensions. `None` is a caller without a
/// certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller(pub Option<Identity>);

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
}

impl Verb {
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

/// What every user may read, as in Kubernetes: what there is, not what is in it.
const DISCOVERY: &[&str] = &["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*"];

/// The policy that every hub has: whose identity is known may discover. Members of `system:masters` need no rule.
static BUILT_IN: LazyLock<Policy> = LazyLock::new(|| {
    let name = "system:discovery";
    let discovery = PolicyRule {
        verbs: vec!["get".to_owned()],
        non_resource_urls: DISCOVERY.iter().map(ToString::to_string).collect(),
        ..PolicyRule::default()
    };
    let everybody = Subject { kind: "Group".to_owned(), name: AUTHENTICATED.to_owned(), ..Subject::default() };
    let role = RoleRef { api_group: RBAC_GROUP.to_owned(), kind: "ClusterRole".to_owned(), name: name.to_owned() };
    let mut policy = Policy::default();
    policy.put_role("", name, vec![discovery]);
    policy.put_binding("", name, vec![everybody], role);
    policy
});

/// Whether `caller` may do `verb` to what `on` names.
///
/// # Errors
/// Whatever no rule allows.
pub fn authorize(caller: &Caller, verb: Verb, on: On<'_>) -> Result<(), Denied> {
    let action = Action { verb: verb.as_str(), on };
    match &caller.0 {
        Some(Identity::User { name, groups }) => {
            BUILT_IN.decide(Who { user: name, groups }, action)?;
            Ok(())
        }
        // Agents and hubs speak gRPC, where each call checks whose things it touches.
        Some(other @ (Identity::Cluster { .. } | Identity::Node { .. } | Identity::Hub { .. })) => {
            Err(Denied::NotAUser { caller: other.path(), action: action.to_string() })
        }
        None => Err(Denied::Anonymous),
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
                let denied = authorize(&Caller(Some(identity.clone())), Verb::Get, on);
                assert!(matches!(denied, Err(Denied::NotAUser { .. })), "{denied:?}");
            }
        }
        assert_eq!(authorize(&Caller::default(), Verb::Get, DATASETS), Err(Denied::Anonymous));
    }

    #[test]
    fn only_masters_do_more_than_discover() {
        for (groups, on, expected) in [
            (&["system:masters"][..], DATASETS, true),
            (&["system:masters"], On::Path("/elsewhere"), true),
            (&[], On::Path("/apis/data.fluid.io/v1alpha1"), true),
            (&["team"], On::Path("/openapi/v3"), true),
            (&["team"], On::Path("/elsewhere"), false),
            (&["team", "system:authenticated"], DATASETS, false),
        ] {
            assert_eq!(authorize(&user(groups), Verb::Get, on).is_ok(), expected, "{groups:?} {on:?}");
        }
        let denied = authorize(&user(&[]), Verb::List, DATASETS).unwrap_err().to_string();
        let kubernetes =
            r#"User "ann" cannot list resource "datasets" in API group "data.fluid.io" in the namespace "a""#;
        assert_eq!(denied, kubernetes);
    }
}
