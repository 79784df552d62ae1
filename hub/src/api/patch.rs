//! ① Merge patches, JSON patches, and strategic merge patches, which are merge patches with directives.
//!
//! Invariant: whatever a patch does, its result is no deeper and not much larger than a body may be: a patch of a few
//! hundred bytes could otherwise double an object forty times.

use json_patch::PatchOperation;
use serde_json::{Map, Value};
use thiserror::Error;

/// The deepest object that is handled: what the JSON parser reads.
pub const MAX_DEPTH: usize = 127;
/// The most operations of a JSON patch, as in Kubernetes.
pub const MAX_OPERATIONS: usize = 10_000;
/// The most bytes that copies in one JSON patch may add: twice the largest body.
pub const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

/// Which rules a patch follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 7386.
    Merge,
    /// RFC 6902.
    Json,
    /// Kubernetes' own, for its core kinds.
    Strategic,
}

impl PatchKind {
    /// The kind that a media type names.
    #[must_use]
    pub fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "application/merge-patch+json" => Some(Self::Merge),
            "application/json-patch+json" => Some(Self::Json),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// Why a patch was not applied.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PatchError {
    /// It is no patch.
    #[error("the patch is malformed: {0}")]
    Malformed(String),
    /// It is one, but not for this object.
    #[error("{0}")]
    DoesNotFit(String),
}

/// The object with the patch applied.
///
/// # Errors
/// See [`PatchError`].
pub fn apply(kind: PatchKind, object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let mut result = object.clone();
    match kind {
        PatchKind::Json => apply_json(&mut result, patch)?,
        PatchKind::Merge | PatchKind::Strategic => {
            if !patch.is_object() {
                return Err(PatchError::Malformed("it must be a JSON object".into()));
            }
            if kind == PatchKind::Merge {
                json_patch::merge(&mut result, patch);
            } else {
                merge_strategic(&mut result, patch, "")?;
            }
        }
    }
    if !result.is_object() {
        return Err(PatchError::DoesNotFit("the result is no object".into()));
    }
    Ok(result)
}

fn apply_json(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let operations: Vec<PatchOperation> =
        serde_json::from_value(patch.clone()).map_err(|error| PatchError::Malformed(error.to_string()))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::Malformed(format!("{} operations, at most {MAX_OPERATIONS}", operations.len())));
    }
    let mut copied = 0;
    for (position, operation) in operations.iter().enumerate() {
        let at = |message: String| PatchError::DoesNotFit(format!("operation {position}: {message}"));
        let moved_depth = match operation {
            PatchOperation::Add(add) => depth(&add.value),
            PatchOperation::Replace(replace) => depth(&replace.value),
            PatchOperation::Copy(copy) => {
                let source = object.pointer(copy.from.as_str());
                copied += source.map_or(0, size);
                if copied > MAX_COPIED_BYTES {
                    return Err(at(format!("copies add more than {MAX_COPIED_BYTES} bytes")));
                }
                source.map_or(0, depth)
            }
            PatchOperation::Move(moved) => object.pointer(moved.from.as_str()).map_or(0, depth),
            PatchOperation::Remove(_) | PatchOperation::Test(_) => 0,
        };
        if operation.path().as_str().matches('/').count() + moved_depth > MAX_DEPTH {
            return Err(at(format!("the result would be nested deeper than {MAX_DEPTH}")));
        }
        json_patch::patch(object, std::slice::from_ref(operation))
            .map_err(|error| at(format!("{}: {}", operation.path(), error.kind)))?;
    }
    Ok(())
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 1,
    }
}

/// About how many bytes a value takes as JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| size(item) + 1).sum::<usize>(),
        Value::Object(fields) => 2 + fields.iter().map(|(key, field)| key.len() + size(field) + 4).sum::<usize>(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

/// The lists that strategic patches merge instead of replacing, and the key of their items; none for plain items.
const MERGED_LISTS: &[(&str, Option<&str>)] = &[("finalizers", None), ("ownerReferences", Some("uid"))];

fn merge_strategic(object: &mut Value, patch: &Value, field: &str) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return Ok(());
    };
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *object = Value::Object(without_directives(patch));
            return Ok(());
        }
        Some("delete") => {
            *object = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(PatchError::Malformed(format!("{field}: unknown directive $patch: {other}"))),
    }
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Value::Object(fields) = object else { return Ok(()) };
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = value.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(Value::Array(items)) = fields.get_mut(list) {
                items.retain(|item| !gone.contains(item));
            }
        }
    }
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        let merged = MERGED_LISTS.iter().find(|(name, _)| name == key);
        match (value, merged) {
            (Value::Null, _) => {
                fields.remove(key);
            }
            (Value::Array(items), Some((_, item_key))) => {
                let list = fields.entry(key.clone()).or_insert_with(|| Value::Array(Vec::new()));
                merge_list(list, items, *item_key);
            }
            _ => merge_strategic(fields.entry(key.clone()).or_insert(Value::Null), value, key)?,
        }
    }
    Ok(())
}

fn merge_list(list: &mut Value, items: &[Value], key: Option<&str>) {
    let Value::Array(list) = list else { return };
    for item in items {
        let same = |other: &&mut Value| match key {
            Some(key) => other.get(key).is_some() && other.get(key) == item.get(key),
            None => *other == item,
        };
        let deletes = item.get("$patch").and_then(Value::as_str) == Some("delete");
        match (list.iter_mut().find(same), key, deletes) {
            (Some(_), Some(key), true) => list.retain(|other| other.get(key) != item.get(key)),
            (Some(other), _, _) => json_patch::merge(other, item),
            (None, _, true) => {}
            (None, _, false) => list.push(item.clone()),
        }
    }
}

fn without_directives(fields: &Map<String, Value>) -> Map<String, Value> {
    fields.iter().filter(|(key, _)| !key.starts_with('$')).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_patch_sets_and_removes() {
        let object = json!({ "a": 1, "b": { "c": 2, "d": [1, 2] } });
        let result = apply(PatchKind::Merge, &object, &json!({ "a": null, "b": { "d": [3] } })).unwrap();
        assert_eq!(result, json!({ "b": { "c": 2, "d": [3] } }));
        assert!(matches!(apply(PatchKind::Merge, &object, &json!([1])), Err(PatchError::Malformed(_))));
    }

    #[test]
    fn a_json_patch_is_checked_by_its_tests() {
        let object = json!({ "a": [1, 2] });
        let good = json!([{ "op": "test", "path": "/a/0", "value": 1 }, { "op": "add", "path": "/a/-", "value": 3 }]);
        assert_eq!(apply(PatchKind::Json, &object, &good).unwrap(), json!({ "a": [1, 2, 3] }));
        let wrong = json!([{ "op": "test", "path": "/a/0", "value": 9 }]);
        assert!(matches!(apply(PatchKind::Json, &object, &wrong), Err(PatchError::DoesNotFit(_))));
        let missing = json!([{ "op": "remove", "path": "/x" }]);
        assert!(matches!(apply(PatchKind::Json, &object, &missing), Err(PatchError::DoesNotFit(_))));
        let whole = json!([{ "op": "replace", "path": "", "value": 1 }]);
        assert!(matches!(apply(PatchKind::Json, &object, &whole), Err(PatchError::DoesNotFit(_))));
        for malformed in [json!({}), json!([{ "op": "burn", "path": "/a" }]), json!([{ "op": "add" }])] {
            assert!(
                matches!(apply(PatchKind::Json, &object, &malformed), Err(PatchError::Malformed(_))),
                "{malformed}"
            );
        }
    }

    #[test]
    fn a_json_patch_cannot_make_the_object_huge_or_bottomless() {
        let doubling: Vec<Value> =
            (0..60).map(|i| json!({ "op": "copy", "from": "/a", "path": format!("/a/x{i}") })).collect();
        let object = json!({ "a": { "text": "0123456789" } });
        assert!(matches!(apply(PatchKind::Json, &object, &json!(doubling)), Err(PatchError::DoesNotFit(_))));
        let nesting: Vec<Value> = (0..400).map(|_| json!({ "op": "move", "from": "/a", "path": "/b" })).collect();
        assert!(apply(PatchKind::Json, &object, &json!(nesting)).is_err());
        let deeper: Vec<Value> = (0..200)
            .flat_map(|_| {
                [
                    json!({ "op": "add", "path": "/b", "value": {} }),
                    json!({ "op": "move", "from": "/a", "path": "/b/c" }),
                    json!({ "op": "move", "from": "/b", "path": "/a" }),
                ]
            })
            .collect();
        assert!(matches!(apply(PatchKind::Json, &object, &json!(deeper)), Err(PatchError::DoesNotFit(_))));
    }

    #[test]
    fn a_strategic_patch_merges_finalizers_and_obeys_directives() {
        let object = json!({ "metadata": { "finalizers": ["a/x"], "labels": { "k": "v" } }, "data": { "p": "1" } });
        let patch = json!({
            "metadata": { "finalizers": ["b/y"], "$setElementOrder/finalizers": ["a/x", "b/y"] },
            "data": { "$patch": "replace", "q": "2" },
        });
        let result = apply(PatchKind::Strategic, &object, &patch).unwrap();
        let expected =
            json!({ "metadata": { "finalizers": ["a/x", "b/y"], "labels": { "k": "v" } }, "data": { "q": "2" } });
        assert_eq!(result, expected);
        let removal =
            json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": ["a/x"], "labels": { "k": null } } });
        let result = apply(PatchKind::Strategic, &object, &removal).unwrap();
        assert_eq!(result, json!({ "metadata": { "finalizers": [], "labels": {} }, "data": { "p": "1" } }));
    }
}
