//! ① User: somebody to whom the hub gives credentials, and UserToken: its record of one that it gave.
//!
//! Whoever has a certificate of the hub's authority, or a token of an identity provider, is a user, too, without an object.
//! Invariant: deleting a User makes everything useless that was issued to it so far.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FLUVIAL_GROUP, VERSION};
use crate::field::{FieldErrors, Path};
use crate::names::{MAX_LABEL, NameRule};
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

/// The longest group, in bytes: X.509's bound for an organization.
const MAX_GROUP: usize = 64;
/// The most groups of one user, as many as fit into a certificate.
const MAX_GROUPS: usize = 32;

object!(
    /// Somebody who may have credentials of the hub.
    User,
    UserSpec,
    UserStatus
);

/// Who it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UserSpec {
    /// The groups that bindings may name. Tokens have those of now, certificates those of the moment of issue.
    pub groups: Vec<String>,
}

/// A user has no state of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserStatus {}

impl Resource for User {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "User",
        plural: "users",
        singular: "user",
        short_names: &[],
        categories: &["fluvial"],
        scope: Scope::Cluster,
        writers: Writers::Users,
        status: false,
        name_rule: NameRule::Dns1123Subdomain,
        columns: &[
            PrinterColumn { name: "Groups", kind: "string", pointer: "/spec/groups", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, _old: Option<&Self>, errors: &mut FieldErrors) {
        let name = &self.metadata.name;
        if name.len() > MAX_LABEL {
            let problem = format!("must have at most {MAX_LABEL} characters, to fit into a certificate");
            errors.invalid(&Path::root("metadata").key("name"), name, problem);
        }
        let groups = Path::root("spec").key("groups");
        if self.spec.groups.len() > MAX_GROUPS {
            errors.push(&groups, format!("{} groups, at most {MAX_GROUPS}", self.spec.groups.len()));
        }
        for (i, group) in self.spec.groups.iter().enumerate() {
            if group.is_empty() || group.len() > MAX_GROUP || !group.bytes().all(|b| b.is_ascii_graphic()) {
                let problem = format!("must be 1 to {MAX_GROUP} visible ASCII characters");
                errors.invalid(&groups.index(i), group, problem);
            }
        }
    }
}

object!(
    /// A bearer token of a user. Its name is the token's public id.
    UserToken,
    UserTokenSpec,
    UserTokenStatus
);

/// Whose it is, and until when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UserTokenSpec {
    pub user: String,
    /// Of the User that it was given to: another one of the same name does not have it.
    pub user_uid: String,
    /// SHA-256 of the secret part, hex.
    pub secret_hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub expires_at: Option<Timestamp>,
}

/// A token has no state of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserTokenStatus {}

impl Resource for UserToken {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "UserToken",
        plural: "usertokens",
        singular: "usertoken",
        short_names: &[],
        categories: &["fluvial"],
        scope: Scope::Cluster,
        // Made by the hub's call for credentials, which alone knows the secret.
        writers: Writers::HubUntilDeleted,
        status: false,
        name_rule: NameRule::Dns1123Subdomain,
        columns: &[
            PrinterColumn { name: "User", kind: "string", pointer: "/spec/user", priority: 0 },
            PrinterColumn { name: "Expires", kind: "string", pointer: "/spec/expiresAt", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, _old: Option<&Self>, _errors: &mut FieldErrors) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_must_fit_into_a_certificate() {
        let problems = |name: &str, groups: &[&str]| {
            let spec = UserSpec { groups: groups.iter().map(ToString::to_string).collect() };
            let mut errors = FieldErrors::default();
            User::new("", name, spec).validate(None, &mut errors);
            errors.0.into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        assert_eq!(problems("ann", &["team:vision", "system:masters"]), <[&str; 0]>::default());
        assert_eq!(problems(&"a".repeat(64), &["", "two words", "é"]).len(), 4);
        assert_eq!(problems("ann", &vec!["g"; 33]), ["spec.groups"]);
    }
}
