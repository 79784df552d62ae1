//! ① What every object carries: metadata and conditions, in Kubernetes' shape.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::field::{FieldErrors, Path};
use crate::names::{NameRule, label_key_problem, label_value_problem};

/// The most bytes that all annotations of an object may take, as in Kubernetes.
pub const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

/// Standard object metadata. `resourceVersion` is never stored: it is the store's revision, filled in on the way out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// A prefix to which the hub adds a random suffix when no name is given.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub generate_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Counts the changes of `spec`; starts at 1.
    #[serde(skip_serializing_if = "is_zero")]
    pub generation: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub creation_timestamp: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub deletion_timestamp: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_grace_period_seconds: Option<i64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Deletion waits until this list is empty.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub finalizers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub owner_references: Vec<OwnerReference>,
    /// Accepted and dropped: Fluvial keeps no field ownership yet.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    #[schemars(skip)]
    pub managed_fields: Vec<serde_json::Value>,
    /// Accepted and dropped, as Kubernetes does.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(skip)]
    pub self_link: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// Clients write `null` where they mean "none".
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// The object that this one belongs to; when it goes, this one goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

impl ObjectMeta {
    /// Reports every rule that the metadata breaks.
    pub fn validate(&self, rule: NameRule, errors: &mut FieldErrors) {
        let path = Path::root("metadata");
        if let Some(problem) = rule.problem(&self.name) {
            errors.invalid(&path.key("name"), &self.name, problem);
        }
        for (key, value) in &self.labels {
            let at = path.key("labels").key(key);
            if let Some(problem) = label_key_problem(key) {
                errors.invalid(&path.key("labels"), key, format!("key {problem}"));
            }
            if let Some(problem) = label_value_problem(value) {
                errors.invalid(&at, value, problem);
            }
        }
        for key in self.annotations.keys() {
            if let Some(problem) = label_key_problem(key) {
                errors.invalid(&path.key("annotations"), key, format!("key {problem}"));
            }
        }
        let bytes: usize = self.annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
        if bytes > MAX_ANNOTATION_BYTES {
            errors.push(&path.key("annotations"), format!("too long: {bytes} bytes, at most {MAX_ANNOTATION_BYTES}"));
        }
        for (i, finalizer) in self.finalizers.iter().enumerate() {
            if label_key_problem(finalizer).is_some() || !finalizer.contains('/') {
                errors.invalid(&path.key("finalizers").index(i), finalizer, "must be DOMAIN/NAME".to_owned());
            }
        }
    }
}

/// `True`, `False` or `Unknown`, as Kubernetes spells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

/// One observed aspect of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: ConditionStatus,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
    /// When `status` last changed.
    #[schemars(with = "String")]
    pub last_transition_time: Timestamp,
}

/// Sets a condition by type; the transition time moves only when the status does.
pub fn set_condition(conditions: &mut Vec<Condition>, new: Condition) {
    match conditions.iter_mut().find(|c| c.kind == new.kind) {
        Some(old) => {
            let since = if old.status == new.status { old.last_transition_time } else { new.last_transition_time };
            *old = Condition { last_transition_time: since, ..new };
        }
        None => conditions.push(new),
    }
}
