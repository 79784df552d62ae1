//! ① The core kinds that clients expect: Namespace, Secret and Event.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::catalog::{Cell, Row};
use crate::field::{FieldErrors, Path};
use crate::meta::ObjectMeta;
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

/// The most bytes of one Secret, as in Kubernetes.
pub const MAX_SECRET_BYTES: usize = 1024 * 1024;

object!(
    /// A namespace.
    Namespace,
    NamespaceSpec,
    NamespaceStatus
);

/// A namespace has nothing to ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NamespaceSpec {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
}

/// `Active` or `Terminating`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NamespaceStatus {
    pub phase: String,
}

const CORE: KindInfo = KindInfo {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    scope: Scope::Namespaced,
    writers: Writers::Users,
    status: false,
    name_rule: NameRule::Dns1123Subdomain,
    columns: &[],
    secret: false,
};

impl Resource for Namespace {
    const INFO: KindInfo = KindInfo {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        scope: Scope::Cluster,
        status: true,
        name_rule: NameRule::Dns1035Label,
        columns: &[
            PrinterColumn { name: "Status", kind: "string", pointer: "/status/phase", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        ..CORE
    };

    metadata_accessors!();

    fn validate(&self, _old: Option<&Self>, _errors: &mut FieldErrors) {}
}

/// A Secret. Its values are base64 text, encrypted before they are stored, and shown to nobody but those who may read
/// Secrets.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Secret {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub secret_type: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// Write-only convenience: plain text, moved to `data` on the way in.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub string_data: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub immutable: Option<bool>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret")
            .field("metadata", &self.metadata)
            .field("keys", &self.data.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Resource for Secret {
    const INFO: KindInfo = KindInfo {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        columns: &[
            PrinterColumn { name: "Type", kind: "string", pointer: "/type", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        secret: true,
        ..CORE
    };

    metadata_accessors!();

    fn validate(&self, old: Option<&Self>, errors: &mut FieldErrors) {
        let data = Path::root("data");
        let bytes: usize = self.data.iter().chain(&self.string_data).map(|(k, v)| k.len() + v.len()).sum();
        if bytes > MAX_SECRET_BYTES {
            errors.push(&data, format!("too long: {bytes} bytes, at most {MAX_SECRET_BYTES}"));
        }
        let key_ok = |key: &str| {
            !key.is_empty()
                && key.len() <= 253
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        for key in self.data.keys().chain(self.string_data.keys()).filter(|key| !key_ok(key)) {
            errors.invalid(&data, key, "key must be letters, digits, '-', '_' or '.', at most 253 characters");
        }
        if let Some(old) = old
            && old.immutable == Some(true)
            && old.data != self.data
        {
            errors.immutable(&data);
        }
    }
}

/// Something that happened to an object, in the shape of Kubernetes' core Event.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Event {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub involved_object: ObjectReference,
    pub reason: String,
    pub message: String,
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub event_type: String,
    pub count: i32,
    #[schemars(with = "Option<String>")]
    pub first_timestamp: Option<Timestamp>,
    #[schemars(with = "Option<String>")]
    pub last_timestamp: Option<Timestamp>,
    pub source: EventSource,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_time: Option<Value>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reporting_component: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reporting_instance: String,
}

/// The object that an event is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectReference {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_path: String,
}

/// Who says so.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EventSource {
    pub component: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
}

impl Resource for Event {
    const INFO: KindInfo = KindInfo {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        columns: &[
            PrinterColumn { name: "Last Seen", kind: "date", pointer: "/lastTimestamp", priority: 0 },
            PrinterColumn { name: "Type", kind: "string", pointer: "/type", priority: 0 },
            PrinterColumn { name: "Reason", kind: "string", pointer: "/reason", priority: 0 },
            PrinterColumn { name: "Object", kind: "string", pointer: "/involvedObject/name", priority: 0 },
            PrinterColumn { name: "Message", kind: "string", pointer: "/message", priority: 0 },
        ],
        ..CORE
    };

    metadata_accessors!();

    fn validate(&self, _old: Option<&Self>, _errors: &mut FieldErrors) {}

    fn project(&self) -> Vec<Row> {
        vec![Row {
            table: "events",
            cells: vec![
                Cell::text(&self.metadata.namespace),
                Cell::text(&self.involved_object.kind),
                Cell::text(&self.involved_object.name),
                Cell::text(&self.event_type),
                Cell::text(&self.reason),
                Cell::text(&self.message),
                Cell::Integer(i64::from(self.count)),
                Cell::time(self.last_timestamp),
            ],
        }]
    }
}
