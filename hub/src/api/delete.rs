//! ① delete and deletecollection.
//!
//! Invariants: an object with finalizers is marked and stays until they are gone; the `default` namespace stays; what
//! the caller said about uid and resourceVersion holds where the object goes.

use axum::response::Response;
use fluvial_model::kinds::Namespace;
use fluvial_model::resource::{Kind, Resource as _, Writers};
use fluvial_model::store::{Revision, Txn, TxnOutcome};
use fluvial_raft::Consistency;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ApiState;
use super::body::{self, Notation};
use super::defaults::DEFAULT_NAMESPACE;
use super::garbage;
use super::negotiate::content_type;
use super::options::Options;
use super::path::Target;
use super::read::{answer, collect};
use super::status::{ApiError, Subject, deleted, json_response};
use super::stored;
use super::write::{ROUNDS, seconds, too_busy};
use crate::admission;
use crate::objects::Objects;

/// Held until the dependents of an object that is deleted with `propagationPolicy: Orphan` have been let go.
pub const ORPHAN_FINALIZER: &str = "fluvial.io/orphan";
/// How many objects a namespace's deletion removes before it answers; the leader removes the rest.
const AT_ONCE: usize = 200;

/// What a deletion must find.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

/// The fields of `DeleteOptions` that matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeleteOptions {
    kind: Option<String>,
    preconditions: Option<Preconditions>,
    propagation_policy: Option<String>,
    dry_run: Option<Vec<String>>,
}

/// How objects are to be deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct How {
    pub preconditions: Preconditions,
    pub orphan: bool,
    pub dry_run: bool,
}

fn how(options: &Options, headers: &HeaderMap, bytes: &[u8]) -> Result<How, ApiError> {
    let body: DeleteOptions = if bytes.iter().all(u8::is_ascii_whitespace) {
        DeleteOptions::default()
    } else {
        let value = body::parse(bytes, Notation::of(&content_type(headers))?, false)?;
        if !value.is_object() {
            return Err(ApiError::BadRequest("the body is no DeleteOptions: it is no object".into()));
        }
        serde_json::from_value(value)
            .map_err(|error| ApiError::BadRequest(format!("the body is no DeleteOptions: {error}")))?
    };
    if body.kind.as_deref().is_some_and(|kind| kind != "DeleteOptions" && !kind.is_empty()) {
        return Err(ApiError::BadRequest("the body is no DeleteOptions: its kind is another".into()));
    }
    let orphan = match body.propagation_policy.as_deref().or_else(|| options.text("propagationPolicy")) {
        None | Some("" | "Background" | "Foreground") => false,
        Some("Orphan") => true,
        Some(other) => {
            return Err(ApiError::BadRequest(format!(
                "propagationPolicy \"{}\" must be Background, Foreground or Orphan",
                fluvial_model::names::printable(other)
            )));
        }
    };
    let dry_run = match body.dry_run.as_deref() {
        None | Some([]) => options.dry_run()?,
        Some([all]) if all == "All" => true,
        Some(_) => return Err(ApiError::BadRequest("dryRun must be [\"All\"]".into())),
    };
    Ok(How { preconditions: body.preconditions.unwrap_or_default(), orphan, dry_run })
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// It is gone; this was its last state.
    Gone(Value),
    /// It waits for its finalizers.
    Marked(Value),
}

fn may_delete(kind: &Kind) -> Result<(), ApiError> {
    let info = &kind.info;
    if matches!(info.writers, Writers::Users | Writers::HubUntilDeleted) {
        return Ok(());
    }
    Err(ApiError::MethodNotAllowed { message: format!("the hub alone writes {}: they can be read", info.plural) })
}

/// Deletes one object, or marks it for deletion.
///
/// # Errors
/// 404, 409 where a precondition fails, 403 for the `default` namespace, or whatever the store says.
pub async fn delete_object(
    objects: &Objects,
    now: Timestamp,
    kind: &Kind,
    namespace: &str,
    name: &str,
    how: &How,
) -> Result<Fate, ApiError> {
    let subject = Subject::new(&kind.info, name);
    let is_namespace = kind.info.plural == Namespace::INFO.plural && kind.info.group.is_empty();
    if is_namespace && name == DEFAULT_NAMESPACE {
        let message = format!("namespaces \"{name}\" is forbidden: this namespace may not be deleted");
        return Err(ApiError::Forbidden { subject: Some(subject), message });
    }
    let key = kind.info.key(namespace, name);
    for _ in 0..ROUNDS {
        let held = stored::get(objects, kind, &key, Consistency::Linearizable).await?;
        let held = held.ok_or_else(|| ApiError::NotFound(subject.clone()))?;
        let uid = stored::meta(&held.object, "uid");
        check(&subject, &how.preconditions, uid, held.revision)?;
        if stored::is_deleting(&held.object) && !stored::finalizers(&held.object).is_empty() {
            return Ok(Fate::Marked(held.object));
        }
        let mut object = held.object;
        if how.orphan && !stored::finalizers(&object).contains(&ORPHAN_FINALIZER) {
            push_finalizer(&mut object, ORPHAN_FINALIZER);
        }
        let gone = stored::finalizers(&object).is_empty();
        let txn = if gone {
            let mut txn = Txn::delete(key.clone(), held.revision);
            txn.ops.extend(admission::with_its_deletion(&kind.info, name, now));
            txn
        } else {
            mark(&mut object, now, is_namespace);
            Txn::replace(key.clone(), held.revision, stored::encode(objects, kind, &key, &object)?)
        };
        let revision = if how.dry_run {
            held.revision
        } else {
            match objects.store.txn(txn).await? {
                TxnOutcome::Committed { revision } => revision,
                TxnOutcome::Conflict { .. } => continue,
            }
        };
        stored::stamp(kind, &mut object, revision);
        return Ok(if gone { Fate::Gone(object) } else { Fate::Marked(object) });
    }
    Err(too_busy(subject))
}

fn check(subject: &Subject, wanted: &Preconditions, uid: &str, revision: Revision) -> Result<(), ApiError> {
    let conflict = |message: String| Err(ApiError::Conflict { subject: subject.clone(), message });
    if let Some(wanted) = &wanted.uid
        && wanted != uid
    {
        let wanted = fluvial_model::names::printable(wanted);
        return conflict(format!("the uid in the precondition ({wanted}) is not the object's ({uid})"));
    }
    if let Some(wanted) = &wanted.resource_version
        && *wanted != revision.to_string()
    {
        let wanted = fluvial_model::names::printable(wanted);
        return conflict(format!(
            "the resourceVersion in the precondition ({wanted}) is not the object's ({revision})"
        ));
    }
    Ok(())
}

fn push_finalizer(object: &mut Value, finalizer: &str) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
        && let Value::Array(list) = metadata.entry("finalizers").or_insert_with(|| json!([]))
    {
        list.push(json!(finalizer));
    }
}

/// Notes when the deletion was asked for.
fn mark(object: &mut Value, now: Timestamp, is_namespace: bool) {
    if is_namespace && let Some(fields) = object.as_object_mut() {
        fields.insert("status".into(), json!({ "phase": "Terminating" }));
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("deletionTimestamp".into(), json!(seconds(now)));
        metadata.insert("deletionGracePeriodSeconds".into(), json!(0));
        if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
            metadata.insert("generation".into(), json!(generation + 1));
        }
    }
}

/// `DELETE` of one object.
///
/// # Errors
/// See [`delete_object`].
pub async fn delete(
    state: &ApiState,
    target: &Target,
    name: &str,
    options: &Options,
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<Response, ApiError> {
    may_delete(target.kind)?;
    let how = how(options, headers, bytes)?;
    let now = state.clock.now();
    let fate = delete_object(&state.objects, now, target.kind, target.namespace_text(), name, &how).await?;
    match fate {
        Fate::Gone(object) => {
            let subject = Subject::new(&target.kind.info, name);
            Ok(json_response(StatusCode::OK, &deleted(&subject, stored::meta(&object, "uid"))))
        }
        Fate::Marked(object) => {
            if target.kind.info.plural == Namespace::INFO.plural && !how.dry_run {
                // Most namespaces are small: their deletion is over when it is answered.
                garbage::empty_namespace(&state.objects, now, name, AT_ONCE).await?;
            }
            answer(state, target, headers, options, StatusCode::OK, &object)
        }
    }
}

/// `DELETE` of a collection: everything that is selected.
///
/// # Errors
/// The first error of [`delete_object`]; what was deleted before it stays deleted.
pub async fn delete_collection(
    state: &ApiState,
    target: &Target,
    options: &Options,
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<Response, ApiError> {
    may_delete(target.kind)?;
    let how = how(options, headers, bytes)?;
    let info = &target.kind.info;
    let listed = collect(state, target, options).await?;
    let mut items = Vec::new();
    for object in listed.objects {
        let (namespace, name) = (stored::meta(&object, "namespace"), stored::meta(&object, "name"));
        match delete_object(&state.objects, state.clock.now(), target.kind, namespace, name, &how).await {
            Ok(Fate::Gone(object) | Fate::Marked(object)) => items.push(object),
            // Somebody else was faster.
            Err(ApiError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let metadata = json!({ "resourceVersion": state.objects.store.revision().to_string() });
    let list = json!({
        "kind": format!("{}List", info.kind), "apiVersion": info.api_version(), "metadata": metadata, "items": items,
    });
    Ok(json_response(StatusCode::OK, &list))
}
