//! ① Who may do what. Denied unless a rule allows it.
//!
//! Deliberately absent: roles and bindings; every user is an administrator until they come.

use fluvial_certs::Identity;
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
    #[error("{caller} cannot {verb} resource \"{resource}\": only users have access to the API")]
    NotAUser { caller: String, verb: &'static str, resource: String },
}

/// Whether `caller` may do `verb` to `resource` (a plural name, or a path outside of the kinds).
///
/// # Errors
/// Whatever no rule allows.
pub fn authorize(caller: &Caller, verb: Verb, resource: &str) -> Result<(), Denied> {
    match &caller.0 {
        Some(Identity::User { .. }) => Ok(()),
        // Agents and hubs speak gRPC, where each call checks whose things it touches.
        Some(other @ (Identity::Cluster { .. } | Identity::Node { .. } | Identity::Hub { .. })) => {
            Err(Denied::NotAUser { caller: other.path(), verb: verb.as_str(), resource: resource.to_owned() })
        }
        None => Err(Denied::Anonymous),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_users_have_access() {
        let user = Caller(Some(Identity::User { name: "ann".into(), groups: vec![] }));
        assert_eq!(authorize(&user, Verb::Delete, "datasets"), Ok(()));
        for identity in [Identity::Cluster { name: "a".into() }, Identity::Hub { id: 1 }] {
            let denied = authorize(&Caller(Some(identity)), Verb::Get, "secrets");
            assert!(matches!(denied, Err(Denied::NotAUser { .. })), "{denied:?}");
        }
        assert_eq!(authorize(&Caller::default(), Verb::Get, "datasets"), Err(Denied::Anonymous));
    }
}
