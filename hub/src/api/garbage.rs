//! ① What goes when something else has gone: dependents without owners, and the contents of namespaces.
//!
//! Called by the leader from time to time; it does no harm if two hubs do it at once, because every deletion compares
//! with what was read.
//!
//! Invariant: an object goes only if each of its owners was read, by a linearizable read, and found gone. Owners of
//! kinds that the hub does not know count as alive.

use std::collections::BTreeSet;

use fluvial_model::kinds::{KINDS, Namespace};
use fluvial_model::meta::OwnerReference;
use fluvial_model::resource::{Kind, Resource as _, Scope};
use fluvial_model::store::{KeyValue, Txn, TxnOutcome};
use fluvial_raft::Consistency;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::delete::{How, ORPHAN_FINALIZER, Preconditions, delete_object};
use super::status::ApiError;
use super::stored;
use crate::admission::NAMESPACE_FINALIZER;
use crate::clock::Clock;
use crate::objects::Objects;

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Dependents whose owners are gone, deleted or marked.
    pub dependents: usize,
    /// Namespaces that are gone.
    pub namespaces: usize,
}

/// The metadata that decides, read from the stored bytes without the rest of the object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: String,
    namespace: String,
    uid: String,
    finalizers: Vec<String>,
    owner_references: Vec<OwnerReference>,
    deletion_timestamp: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OnlyMeta {
    metadata: Meta,
}

struct Found {
    kind: &'static Kind,
    meta: Meta,
}

fn read(objects: &Objects, kind: &'static Kind, kv: &KeyValue) -> Option<Found> {
    let read: OnlyMeta = if kind.info.secret {
        let plain = objects.vault.open(&kv.key, &kv.value).ok()?;
        serde_json::from_slice(&plain).ok()?
    } else {
        serde_json::from_slice(&kv.value).ok()?
    };
    Some(Found { kind, meta: read.metadata })
}

/// Deletes dependents whose owners are all gone, lets dependents go whose owner was deleted as `Orphan`, and goes on
/// with the deletion of namespaces.
///
/// # Errors
/// If the store does not answer; what was done so far stays done, and the next call goes on.
pub async fn collect_garbage(objects: &Objects, clock: &dyn Clock) -> Result<Collected, ApiError> {
    let now = clock.now();
    let mut collected = Collected::default();
    let mut dependents = Vec::new();
    let mut orphaning = Vec::new();
    let mut terminating = Vec::new();
    for kind in KINDS {
        visit(objects, kind, |found| {
            let deleting = found.meta.deletion_timestamp.is_some();
            if deleting && kind.info.plural == Namespace::INFO.plural {
                terminating.push(found.meta.name.clone());
            }
            if deleting && found.meta.finalizers.iter().any(|finalizer| finalizer == ORPHAN_FINALIZER) {
                orphaning.push(found);
            } else if !found.meta.owner_references.is_empty() && !deleting {
                dependents.push(found);
            }
        })
        .await?;
    }
    // Only those that somebody asks for are remembered: a store may hold millions of objects that nobody owns.
    let asked: BTreeSet<String> = dependents.iter().flat_map(|found| owner_uids(&found.meta)).collect();
    let mut uids = BTreeSet::new();
    for kind in KINDS.iter().filter(|_| !asked.is_empty()) {
        visit(objects, kind, |found| uids.extend(asked.contains(&found.meta.uid).then_some(found.meta.uid))).await?;
    }
    for owner in &orphaning {
        let is_owner = |reference: &OwnerReference| reference.uid == owner.meta.uid;
        for dependent in dependents.iter().filter(|found| found.meta.owner_references.iter().any(is_owner)) {
            edit(objects, dependent.kind, &dependent.meta, |object| drop_owner(object, &owner.meta.uid)).await?;
        }
        edit(objects, owner.kind, &owner.meta, |object| drop_finalizer(object, ORPHAN_FINALIZER)).await?;
    }
    for dependent in &dependents {
        let meta = &dependent.meta;
        if meta.owner_references.iter().any(|owner| uids.contains(&owner.uid)) {
            continue;
        }
        let mut alive = false;
        for owner in &meta.owner_references {
            alive |= is_alive(objects, &meta.namespace, owner).await?;
        }
        if alive {
            continue;
        }
        let preconditions = Preconditions { uid: Some(meta.uid.clone()), resource_version: None };
        let how = How { preconditions, ..How::default() };
        match delete_object(objects, now, dependent.kind, &meta.namespace, &meta.name, &how).await {
            Ok(_) => collected.dependents += 1,
            Err(ApiError::NotFound(_) | ApiError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    for namespace in terminating {
        collected.namespaces += usize::from(empty_namespace(objects, now, &namespace, usize::MAX).await?);
    }
    Ok(collected)
}

/// Shows what decides of every object of a kind, and holds no more than a page of them.
async fn visit(objects: &Objects, kind: &'static Kind, mut show: impl FnMut(Found)) -> Result<(), ApiError> {
    let prefix = kind.info.prefix();
    let pages = |page: Vec<KeyValue>| page.iter().filter_map(|kv| read(objects, kind, kv)).for_each(&mut show);
    stored::visit_all(&objects.store, &prefix, Consistency::Linearizable, pages).await.map(drop)
}

fn owner_uids(meta: &Meta) -> impl Iterator<Item = String> + '_ {
    meta.owner_references.iter().map(|owner| owner.uid.clone())
}

async fn is_alive(objects: &Objects, namespace: &str, owner: &OwnerReference) -> Result<bool, ApiError> {
    let same = |kind: &&Kind| kind.info.kind == owner.kind && kind.info.api_version() == owner.api_version;
    let Some(kind) = KINDS.iter().find(same) else { return Ok(true) };
    // An owner's name comes from a user: it must not point outside of its kind.
    if kind.info.name_rule.problem(&owner.name).is_some() {
        return Ok(false);
    }
    let key = kind.info.key(namespace, &owner.name);
    let held = stored::get(objects, kind, &key, Consistency::Linearizable).await?;
    Ok(held.is_some_and(|held| stored::meta(&held.object, "uid") == owner.uid))
}

/// Changes an object if it is still there; another writer's change in between is left to the next call.
async fn edit(objects: &Objects, kind: &Kind, meta: &Meta, change: impl Fn(&mut Value)) -> Result<(), ApiError> {
    let key = kind.info.key(&meta.namespace, &meta.name);
    let Some(held) = stored::get(objects, kind, &key, Consistency::Linearizable).await? else { return Ok(()) };
    if stored::meta(&held.object, "uid") != meta.uid {
        return Ok(());
    }
    let mut object = held.object;
    change(&mut object);
    let txn = if stored::is_deleting(&object) && stored::finalizers(&object).is_empty() {
        Txn::delete(key, held.revision)
    } else {
        let value = stored::encode(objects, kind, &key, &object)?;
        Txn::replace(key, held.revision, value)
    };
    objects.store.txn(txn).await?;
    Ok(())
}

fn retain(object: &mut Value, list: &str, keep: impl Fn(&Value) -> bool) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let Some(Value::Array(items)) = metadata.get_mut(list) else { return };
    items.retain(keep);
    if items.is_empty() {
        metadata.remove(list);
    }
}

fn drop_owner(object: &mut Value, uid: &str) {
    retain(object, "ownerReferences", |owner| owner.get("uid").and_then(Value::as_str) != Some(uid));
}

fn drop_finalizer(object: &mut Value, finalizer: &str) {
    retain(object, "finalizers", |held| held.as_str() != Some(finalizer));
}

/// Deletes the contents of a namespace whose deletion was asked for, at most `most` objects of them, and the namespace
/// itself once it is empty. Returns whether it is gone.
///
/// # Errors
/// If the store does not answer.
pub(super) async fn empty_namespace(
    objects: &Objects,
    now: Timestamp,
    name: &str,
    most: usize,
) -> Result<bool, ApiError> {
    let key = Namespace::INFO.key("", name);
    let namespaces = fluvial_model::kinds::find("", Namespace::INFO.plural);
    let Some(kind) = namespaces else { return Ok(false) };
    // Read before the contents: whatever is created later compares with the namespace as it was before it was marked,
    // and fails.
    let Some(held) = stored::get(objects, kind, &key, Consistency::Linearizable).await? else { return Ok(true) };
    if !stored::is_deleting(&held.object) {
        return Ok(false);
    }
    let mut left = 0;
    let mut budget = most;
    for kind in KINDS.iter().filter(|kind| kind.info.scope == Scope::Namespaced) {
        let prefix = kind.info.namespace_prefix(name);
        let (items, _) = stored::list_all(&objects.store, &prefix, Consistency::Linearizable).await?;
        for kv in items {
            let Some(object) = kv.key.strip_prefix(&prefix) else { continue };
            left += 1;
            if budget == 0 {
                continue;
            }
            budget -= 1;
            match delete_object(objects, now, kind, name, object, &How::default()).await {
                Ok(super::delete::Fate::Gone(_)) | Err(ApiError::NotFound(_)) => left -= 1,
                Ok(super::delete::Fate::Marked(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    if left > 0 {
        return Ok(false);
    }
    let mut object = held.object;
    drop_finalizer(&mut object, NAMESPACE_FINALIZER);
    let gone = stored::finalizers(&object).is_empty();
    let txn = if gone {
        Txn::delete(key, held.revision)
    } else {
        let value = stored::encode(objects, kind, &key, &object)?;
        Txn::replace(key, held.revision, value)
    };
    Ok(gone && matches!(objects.store.txn(txn).await?, TxnOutcome::Committed { .. }))
}
