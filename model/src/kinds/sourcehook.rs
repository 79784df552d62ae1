//! ① SourceHook: an address that a store calls when something in it changed.

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FLUVIAL_GROUP, SecretKeySelector, VERSION};
use crate::field::{FieldErrors, Path};
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

/// The fewest bytes of a hook's token: 128 bits in hexadecimal digits. A shorter one could be guessed, for callers need
/// no certificate.
pub const MIN_TOKEN_BYTES: usize = 32;

object!(
    /// Notifications that come here count for every dataset of the namespace that has a mount where something changed.
    SourceHook,
    SourceHookSpec,
    SourceHookStatus
);

/// Who may call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceHookSpec {
    /// The key of a Secret of the same namespace that holds the bearer token, of at least [`MIN_TOKEN_BYTES`] bytes.
    pub token_secret_ref: SecretKeySelector,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceHookStatus {
    /// When somebody with the token called, to within [`NOTED_EVERY`].
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub called_time: Option<Timestamp>,
    /// What that call told, and which datasets it was about.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How often a call is noted in the status: stores call for every object that they take.
pub const NOTED_EVERY: SignedDuration = SignedDuration::from_secs(10);

impl SourceHook {
    /// The status with a call at `now` noted; `None` if the last one was noted just now.
    #[must_use]
    pub fn called(&self, now: Timestamp, message: &str) -> Option<SourceHookStatus> {
        let last = self.status.as_ref().and_then(|status| status.called_time);
        let due = last.is_none_or(|last| now.duration_since(last).abs() >= NOTED_EVERY);
        due.then(|| SourceHookStatus { called_time: Some(now), message: message.to_owned() })
    }
}

impl Resource for SourceHook {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "SourceHook",
        plural: "sourcehooks",
        singular: "sourcehook",
        short_names: &["hook"],
        categories: &["fluvial"],
        scope: Scope::Namespaced,
        writers: Writers::Users,
        status: true,
        name_rule: NameRule::Dns1123Subdomain,
        columns: &[
            PrinterColumn { name: "Secret", kind: "string", pointer: "/spec/tokenSecretRef/name", priority: 0 },
            PrinterColumn { name: "Called", kind: "date", pointer: "/status/calledTime", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, _old: Option<&Self>, errors: &mut FieldErrors) {
        let at = Path::root("spec").key("tokenSecretRef");
        let SecretKeySelector { name, key, namespace } = &self.spec.token_secret_ref;
        if name.is_empty() {
            errors.required(&at.key("name"), "the Secret that holds the bearer token");
        }
        if key.is_empty() {
            errors.required(&at.key("key"), "the key of the Secret that holds the bearer token");
        }
        if !namespace.is_empty() && *namespace != self.metadata.namespace {
            errors.invalid(&at.key("namespace"), namespace, "must be the hook's own namespace");
        }
    }
}
