//! ④ JoinToken: the hub's record of a token that was handed out. It holds a hash, never the token.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FLUVIAL_GROUP, VERSION};
use crate::field::FieldErrors;
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

object!(
    /// A token that one cluster, or one hub, may join with, once. Its name is the token's public id.
    JoinToken,
    JoinTokenSpec,
    JoinTokenStatus
);

/// What the token is good for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JoinTokenSpec {
    /// The cluster that may join; empty for a hub's token.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// For a hub, not a cluster.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hub: bool,
    /// SHA-256 of the secret part, hex.
    pub secret_hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub expires_at: Option<Timestamp>,
}

/// Whether it was used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JoinTokenStatus {
    /// SHA-256 of the key that used the token, hex: the same key may ask again after a lost reply.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub used_by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub used_at: Option<Timestamp>,
}

impl Resource for JoinToken {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "JoinToken",
        plural: "jointokens",
        singular: "jointoken",
        short_names: &[],
        categories: &["fluvial"],
        scope: Scope::Cluster,
        // Made by the hub's token call, which alone knows the secret; users list and delete them.
        writers: Writers::HubUntilDeleted,
        status: false,
        name_rule: NameRule::Dns1123Subdomain,
        columns: &[
            PrinterColumn { name: "Cluster", kind: "string", pointer: "/spec/cluster", priority: 0 },
            PrinterColumn { name: "Expires", kind: "string", pointer: "/spec/expiresAt", priority: 0 },
            PrinterColumn { name: "Used", kind: "string", pointer: "/status/usedAt", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, _old: Option<&Self>, _errors: &mut FieldErrors) {}
}
