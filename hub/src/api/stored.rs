//! ① Untyped objects in the store: the API reads and writes every kind the same way.
//!
//! Invariant: `resourceVersion` is never stored; a Secret passes the vault both ways.

use std::sync::Arc;

use fluvial_model::causes::chain;
use fluvial_model::resource::Kind;
use fluvial_model::store::{KeyValue, Revision};
use fluvial_raft::Consistency;
use serde_json::{Value, json};

use super::status::ApiError;
use crate::objects::Objects;

/// An object as it stands in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    pub key: String,
    pub object: Value,
    pub revision: Revision,
    /// The stored bytes.
    pub bytes: Vec<u8>,
}

/// The object in a stored value, shown at `revision`.
///
/// # Errors
/// If the value is damaged or was sealed with another key.
pub fn decode(objects: &Objects, kind: &Kind, kv: &KeyValue, revision: Revision) -> Result<Value, ApiError> {
    let broken = |error: &dyn std::error::Error| ApiError::Internal {
        message: format!("the object stored at {} cannot be read: {}", kv.key, chain(error)),
    };
    let mut object: Value = if kind.info.secret {
        let plain = objects.vault.open(&kv.key, &kv.value).map_err(|error| broken(&error))?;
        serde_json::from_slice(&plain).map_err(|error| broken(&error))?
    } else {
        serde_json::from_slice(&kv.value).map_err(|error| broken(&error))?
    };
    stamp(kind, &mut object, revision);
    Ok(object)
}

/// Writes the kind and the revision into an object that goes out.
pub fn stamp(kind: &Kind, object: &mut Value, revision: Revision) {
    let Value::Object(fields) = object else { return };
    fields.insert("apiVersion".into(), json!(kind.info.api_version()));
    fields.insert("kind".into(), json!(kind.info.kind));
    if let Value::Object(metadata) = fields.entry("metadata").or_insert_with(|| json!({})) {
        metadata.insert("resourceVersion".into(), json!(revision.to_string()));
    }
}

/// The bytes to store for an object.
///
/// # Errors
/// If a Secret cannot be sealed.
pub fn encode(objects: &Objects, kind: &Kind, key: &str, object: &Value) -> Result<Vec<u8>, ApiError> {
    let plain = unversioned(object).to_string().into_bytes();
    if kind.info.secret {
        return objects.vault.seal(key, &plain).map_err(|error| ApiError::Internal { message: error.to_string() });
    }
    Ok(plain)
}

fn unversioned(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    object
}

/// Whether two objects say the same, whatever the order of their fields and their revisions.
#[must_use]
pub fn same(one: &Value, other: &Value) -> bool {
    unversioned(one) == unversioned(other)
}

/// The object at a key, if there is one.
///
/// # Errors
/// If the store does not answer or the value is damaged.
pub async fn get(
    objects: &Objects,
    kind: &Kind,
    key: &str,
    consistency: Consistency,
) -> Result<Option<Held>, ApiError> {
    let Some(kv) = objects.store.get(key, consistency).await? else { return Ok(None) };
    let object = decode(objects, kind, &kv, kv.mod_revision)?;
    Ok(Some(Held { key: kv.key, object, revision: kv.mod_revision, bytes: kv.value }))
}

/// A page of a collection is at most this many keys: what is read from the store at once, 1,000 objects of some KB.
pub const PAGE: usize = 1000;

/// Every object under a prefix, page by page, all at one revision.
///
/// # Errors
/// If the store does not answer or a value is damaged.
pub async fn list_all(
    store: &Arc<dyn fluvial_raft::Store>,
    prefix: &str,
    consistency: Consistency,
) -> Result<(Vec<KeyValue>, Revision), ApiError> {
    let mut items = Vec::new();
    let revision = visit_all(store, prefix, consistency, |page| items.extend(page)).await?;
    Ok((items, revision))
}

/// Shows every object under a prefix, page by page, all at one revision; holds no more than a page.
///
/// # Errors
/// If the store does not answer.
pub async fn visit_all(
    store: &Arc<dyn fluvial_raft::Store>,
    prefix: &str,
    consistency: Consistency,
    mut visit: impl FnMut(Vec<KeyValue>),
) -> Result<Revision, ApiError> {
    let mut request = fluvial_raft::ListRequest {
        prefix: prefix.to_owned(),
        limit: Some(PAGE),
        consistency,
        ..fluvial_raft::ListRequest::default()
    };
    loop {
        let page = store.list(request.clone()).await?;
        request.after = page.items.last().map(|kv| kv.key.clone());
        request.revision = Some(page.revision);
        // That revision has been applied here.
        request.consistency = Consistency::Stale;
        visit(page.items);
        if !page.more {
            return Ok(page.revision);
        }
    }
}

/// A text field of an object's metadata, empty if absent.
#[must_use]
pub fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// The finalizers of an object.
#[must_use]
pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.map(|items| items.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

/// Whether the object's deletion has been asked for.
#[must_use]
pub fn is_deleting(object: &Value) -> bool {
    !meta(object, "deletionTimestamp").is_empty()
}
