//! ① create, update and patch.
//!
//! Invariants: every write compares with what it was computed from; a conflict goes back to the caller only if the
//! caller named a `resourceVersion`, else the write is computed again, a bounded number of times; status and the rest
//! are written through different doors; what the hub owns of the metadata cannot be set from outside.

use axum::response::Response;
use fluvial_model::kinds::Namespace;
use fluvial_model::names::printable;
use fluvial_model::resource::{Resource as _, Scope, Writers};
use fluvial_model::store::{Compare, Op, Revision, Txn, TxnOutcome};
use fluvial_raft::Consistency;
use http::header::WARNING;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use rand::RngExt as _;
use serde_json::{Map, Value, json};

use super::body::{self, Incoming, Notation};
use super::negotiate::content_type;
use super::options::Options;
use super::patch::{self, PatchError, PatchKind};
use super::path::{Part, Target};
use super::read::answer;
use super::status::{ApiError, Subject};
use super::stored::{self, Held};
use super::{ApiState, grants, protobuf};
use crate::admission::{self, AdmissionError, Admitted};
use crate::clock::fresh_uid;
use crate::quota;

/// How often a write is computed again before the caller hears of the conflict. Each round means that another write
/// succeeded in between.
pub const ROUNDS: usize = 16;
/// How many random characters complete a `generateName`.
const SUFFIX: usize = 5;

pub(super) fn too_busy(subject: Subject) -> ApiError {
    let message = format!("the object changed {ROUNDS} times while this write was computed; try again");
    ApiError::Conflict { subject, message }
}

fn hub_writes(target: &Target) -> Result<(), ApiError> {
    match target.kind.info.writers {
        Writers::Users => Ok(()),
        Writers::Hub | Writers::HubUntilDeleted => Err(ApiError::MethodNotAllowed {
            message: format!("the hub alone writes {}: they can be read", target.kind.info.plural),
        }),
    }
}

fn metadata(object: &mut Value) -> Result<&mut Map<String, Value>, ApiError> {
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
    metadata.ok_or_else(|| ApiError::BadRequest("metadata must be an object".into()))
}

/// `metadata.namespace` and `metadata.name` must not contradict the URL, and are filled in from it.
fn match_url(target: &Target, object: &mut Value) -> Result<(), ApiError> {
    let pairs = [("namespace", target.namespace.clone()), ("name", target.name.clone())];
    let cluster_scoped = target.kind.info.scope == Scope::Cluster;
    let metadata = metadata(object)?;
    for (field, expected) in pairs {
        let given = metadata.get(field).and_then(Value::as_str).unwrap_or_default();
        match expected {
            Some(expected) if given.is_empty() || given == expected => {
                metadata.insert(field.into(), json!(expected));
            }
            Some(expected) => {
                return Err(ApiError::BadRequest(format!(
                    "the {field} of the object ({}) does not match the {field} on the URL ({expected})",
                    printable(given)
                )));
            }
            None if field == "namespace" && cluster_scoped && !given.is_empty() => {
                return Err(ApiError::BadRequest(format!(
                    "the namespace of the object ({}) must be empty: {} belong to no namespace",
                    printable(given),
                    target.kind.info.plural
                )));
            }
            None => {}
        }
    }
    Ok(())
}

fn validate(target: &Target, name: &str, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let errors = (target.kind.validate)(object, old).map_err(|error| ApiError::BadRequest(error.to_string()))?;
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::Invalid { subject: Subject::new(&target.kind.info, name), errors })
}

fn refused(subject: Subject, error: AdmissionError) -> ApiError {
    match error {
        AdmissionError::Invalid(errors) => ApiError::Invalid { subject, errors },
        AdmissionError::Conflict { message } => ApiError::Conflict { subject, message },
        AdmissionError::Objects(error) => error.into(),
        AdmissionError::Store(error) => error.into(),
        AdmissionError::Decode(error) => ApiError::BadRequest(error.to_string()),
    }
}

/// Adds a `Warning` header for each thing that the caller should know.
fn warn(response: &mut Response, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// The body of a call, as an object of the kind.
fn incoming(
    target: &Target,
    options: &Options,
    headers: &HeaderMap,
    bytes: &[u8],
    name: &str,
) -> Result<Incoming, ApiError> {
    let info = &target.kind.info;
    let media_type = content_type(headers);
    let value = if media_type == protobuf::MEDIA_TYPE && protobuf::is_read(info) {
        let malformed = || ApiError::BadRequest(format!("the body is no protobuf of a {}", info.kind));
        protobuf::parse(info, bytes).ok_or_else(malformed)?
    } else {
        body::parse(bytes, Notation::of(&media_type)?, info.secret)?
    };
    body::decode(target.kind, name, value, options.field_validation()?)
}

/// `POST` to a collection.
///
/// # Errors
/// Every way in which an object can be refused.
pub async fn create(
    state: &ApiState,
    target: &Target,
    options: &Options,
    parts: &Parts,
    bytes: &[u8],
) -> Result<Response, ApiError> {
    let headers = &parts.headers;
    hub_writes(target)?;
    if target.kind.info.scope == Scope::Namespaced && target.namespace.is_none() {
        let message = format!("{} are created inside a namespace", target.kind.info.plural);
        return Err(ApiError::MethodNotAllowed { message });
    }
    let dry_run = options.dry_run()?;
    let Incoming { object: template, warnings } = incoming(target, options, headers, bytes, "")?;
    for _ in 0..ROUNDS {
        let mut object = template.clone();
        let generated = new_metadata(state, target, &mut object)?;
        let name = stored::meta(&object, "name").to_owned();
        let info = &target.kind.info;
        let subject = Subject::new(info, &name);
        admission::complete(info, &mut object, None);
        validate(target, &name, &object, None)?;
        grants::check(&parts.extensions, target, &object, None)?;
        let key = info.key(target.namespace_text(), &name);
        let mut txn = Txn { compares: vec![Compare::Absent { key: key.clone() }], ops: Vec::new(), ..Txn::default() };
        txn.compares.extend(in_living_namespace(state, target).await?);
        let admitted = admission::check_create(&state.objects, info, &object).await;
        let Admitted { compares, ops } = admitted.map_err(|error| refused(subject.clone(), error))?;
        txn.compares.extend(compares);
        let counted = quota::admit(&state.objects, info, target.namespace_text(), &name).await?;
        txn.compares.extend(counted.0);
        let revision = if dry_run {
            if stored::get(&state.objects, target.kind, &key, Consistency::Linearizable).await?.is_some() {
                return Err(ApiError::AlreadyExists(subject));
            }
            None
        } else {
            txn.ops
                .push(Op::Put { key: key.clone(), value: stored::encode(&state.objects, target.kind, &key, &object)? });
            txn.ops.extend(ops);
            txn.ops.extend(counted.1);
            match state.objects.store.txn(txn).await? {
                TxnOutcome::Committed { revision } => Some(revision),
                TxnOutcome::Conflict { key: taken, .. } if taken == key && !generated => {
                    return Err(ApiError::AlreadyExists(subject));
                }
                // What the object refers to changed, or the random name was taken: look again.
                TxnOutcome::Conflict { .. } => continue,
            }
        };
        if let Some(revision) = revision {
            stored::stamp(target.kind, &mut object, revision);
        }
        let mut response = answer(state, target, headers, options, StatusCode::CREATED, &object)?;
        warn(&mut response, &warnings);
        return Ok(response);
    }
    Err(too_busy(Subject::new(&target.kind.info, stored::meta(&template, "name"))))
}

/// Gives a new object its identity. Returns whether the name was made up.
fn new_metadata(state: &ApiState, target: &Target, object: &mut Value) -> Result<bool, ApiError> {
    match_url(target, object)?;
    if !stored::meta(object, "resourceVersion").is_empty() {
        return Err(ApiError::BadRequest("resourceVersion should not be set on objects to be created".into()));
    }
    if target.kind.info.status
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("status");
    }
    let has_spec = object.get("spec").is_some();
    let info = &target.kind.info;
    let metadata = metadata(object)?;
    for field in [
        "uid",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
        "generation",
        "resourceVersion",
    ] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), json!(fresh_uid()));
    metadata.insert("creationTimestamp".into(), json!(whole_seconds(state)));
    if has_spec {
        metadata.insert("generation".into(), json!(1));
    }
    if metadata.get("name").and_then(Value::as_str).is_some_and(|name| !name.is_empty()) {
        return Ok(false);
    }
    let prefix = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
    if prefix.is_empty() {
        let subject = Subject::new(info, "");
        return Err(ApiError::invalid(subject, "metadata.name", "required value: name or generateName is required"));
    }
    let longest = info.name_rule.longest();
    let kept: String = prefix.chars().take(longest - SUFFIX).collect();
    let name = format!("{kept}{}", suffix());
    metadata.insert("name".into(), json!(name));
    Ok(true)
}

/// Letters and digits that make no words.
fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    (0..SUFFIX).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}

/// Kubernetes' clients read whole seconds.
pub(super) fn whole_seconds(state: &ApiState) -> String {
    seconds(state.clock.now())
}

pub(super) fn seconds(now: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// That the namespace exists, stays, and is not about to go.
async fn in_living_namespace(state: &ApiState, target: &Target) -> Result<Option<Compare>, ApiError> {
    let Some(namespace) = &target.namespace else { return Ok(None) };
    let subject = || Subject::new(&Namespace::INFO, namespace);
    let found = state.objects.get::<Namespace>("", namespace, Consistency::Linearizable).await?;
    let found = found.ok_or_else(|| ApiError::NotFound(subject()))?;
    if found.object.metadata.deletion_timestamp.is_some() {
        let message = format!("namespace {namespace} is being terminated: nothing new can be created in it");
        return Err(ApiError::Forbidden { subject: Some(subject()), message });
    }
    Ok(Some(Compare::UnchangedSince { key: found.object.key(), revision: found.revision }))
}

/// `PUT` of one object, or of its status.
///
/// # Errors
/// 409 for a stale `resourceVersion`, and every way in which an object can be refused.
pub async fn update(
    state: &ApiState,
    target: &Target,
    name: &str,
    options: &Options,
    parts: &Parts,
    bytes: &[u8],
) -> Result<Response, ApiError> {
    let headers = &parts.headers;
    hub_writes(target)?;
    let Incoming { object, warnings } = incoming(target, options, headers, bytes, name)?;
    change(state, target, name, options, parts, |_| Ok(Incoming { object: object.clone(), warnings: warnings.clone() }))
        .await
}

/// `PATCH` of one object, or of its status.
///
/// # Errors
/// 415 for other patches than merge and JSON patches, 422 for one that does not fit, and as [`update`].
pub async fn patch(
    state: &ApiState,
    target: &Target,
    name: &str,
    options: &Options,
    parts: &Parts,
    bytes: &[u8],
) -> Result<Response, ApiError> {
    let headers = &parts.headers;
    hub_writes(target)?;
    let media_type = content_type(headers);
    let core = target.kind.info.group.is_empty();
    let kind = PatchKind::of(&media_type).filter(|kind| core || *kind != PatchKind::Strategic);
    let kind = kind.ok_or_else(|| ApiError::UnsupportedMediaType {
        message: match media_type.as_str() {
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
                "server-side apply is not supported: use client-side apply (kubectl apply without --server-side)".into()
            }
            _ => "a patch must be application/merge-patch+json or application/json-patch+json".into(),
        },
    })?;
    let validation = options.field_validation()?;
    let patch = body::parse(bytes, Notation::Json, target.kind.info.secret)?;
    change(state, target, name, options, parts, |held| {
        let patched = patch::apply(kind, &held.object, &patch).map_err(|error| match error {
            error @ PatchError::Malformed(_) => ApiError::BadRequest(error.to_string()),
            PatchError::DoesNotFit(message) => {
                ApiError::PatchDoesNotFit { subject: Subject::new(&target.kind.info, name), message }
            }
        })?;
        body::decode(target.kind, name, patched, validation)
    })
    .await
}

/// Reads, computes, writes; again if another write came between.
async fn change(
    state: &ApiState,
    target: &Target,
    name: &str,
    options: &Options,
    parts: &Parts,
    wanted: impl Fn(&Held) -> Result<Incoming, ApiError>,
) -> Result<Response, ApiError> {
    let dry_run = options.dry_run()?;
    let info = &target.kind.info;
    let subject = Subject::new(info, name);
    let key = info.key(target.namespace_text(), name);
    for _ in 0..ROUNDS {
        let held = stored::get(&state.objects, target.kind, &key, Consistency::Linearizable).await?;
        let held = held.ok_or_else(|| ApiError::NotFound(subject.clone()))?;
        let Incoming { object: mut new, warnings } = wanted(&held)?;
        match_url(target, &mut new)?;
        preconditions(&subject, &held, &new)?;
        let mut object = merged(target, &subject, &held.object, new)?;
        validate(target, name, &object, Some(&held.object))?;
        grants::check(&parts.extensions, target, &object, Some(&held.object))?;
        let unchanged = stored::same(&object, &held.object);
        let revision = if dry_run || unchanged {
            held.revision
        } else {
            let txn = if stored::is_deleting(&object) && stored::finalizers(&object).is_empty() {
                let mut txn = Txn::delete(key.clone(), held.revision);
                txn.ops.extend(admission::with_its_deletion(info, name, state.clock.now()));
                txn
            } else {
                Txn::replace(key.clone(), held.revision, stored::encode(&state.objects, target.kind, &key, &object)?)
            };
            match state.objects.store.txn(txn).await? {
                TxnOutcome::Committed { revision } => revision,
                TxnOutcome::Conflict { .. } => continue,
            }
        };
        stored::stamp(target.kind, &mut object, revision);
        let mut response = answer(state, target, &parts.headers, options, StatusCode::OK, &object)?;
        warn(&mut response, &warnings);
        return Ok(response);
    }
    Err(too_busy(subject))
}

/// What the caller says it saw must be what is there.
fn preconditions(subject: &Subject, held: &Held, new: &Value) -> Result<(), ApiError> {
    let conflict = |message: &str| Err(ApiError::Conflict { subject: subject.clone(), message: message.to_owned() });
    let version = stored::meta(new, "resourceVersion");
    if !version.is_empty() {
        let version: u64 = version.parse().map_err(|_| {
            ApiError::invalid(subject.clone(), "metadata.resourceVersion", "must be one that this API handed out")
        })?;
        if Revision(version) != held.revision {
            return conflict(
                "the object has been modified; please apply your changes to the latest version and try again",
            );
        }
    }
    let uid = stored::meta(new, "uid");
    if !uid.is_empty() && uid != stored::meta(&held.object, "uid") {
        return conflict("the object was deleted and another was created under its name: the uid differs");
    }
    Ok(())
}

/// What is stored when `new` replaces `old` through one of the two doors.
fn merged(target: &Target, subject: &Subject, old: &Value, mut new: Value) -> Result<Value, ApiError> {
    if target.part == Part::Status {
        let mut object = old.clone();
        if let Some(fields) = object.as_object_mut() {
            match new.get_mut("status").map(Value::take) {
                Some(status) => fields.insert("status".into(), status),
                None => fields.remove("status"),
            };
        }
        return Ok(object);
    }
    if target.kind.info.status
        && let Some(fields) = new.as_object_mut()
    {
        match old.get("status") {
            Some(status) => fields.insert("status".into(), status.clone()),
            None => fields.remove("status"),
        };
    }
    let generation = old.pointer("/metadata/generation").and_then(Value::as_i64);
    let spec_changed = old.get("spec") != new.get("spec");
    let fields = metadata(&mut new)?;
    for field in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generateName"] {
        match old.pointer(&format!("/metadata/{field}")) {
            Some(value) => fields.insert(field.to_owned(), value.clone()),
            None => fields.remove(field),
        };
    }
    for field in ["managedFields", "selfLink"] {
        fields.remove(field);
    }
    match generation {
        Some(generation) => fields.insert("generation".into(), json!(generation + i64::from(spec_changed))),
        None => fields.remove("generation"),
    };
    if stored::is_deleting(old) {
        let before = stored::finalizers(old);
        if let Some(added) = stored::finalizers(&new).into_iter().find(|finalizer| !before.contains(finalizer)) {
            let message =
                format!("no new finalizers can be added to an object that is being deleted: {}", printable(added));
            return Err(ApiError::invalid(subject.clone(), "metadata.finalizers", message));
        }
    }
    admission::complete(&target.kind.info, &mut new, Some(old));
    Ok(new)
}
