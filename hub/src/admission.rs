//! ① Admission: what must hold of other objects before an object is written, and what the hub adds to it.
//!
//! Follows the kind's own rules (`model`), which look at one object alone. Each check returns the compares that keep
//! it true until the write happens: they join the write's transaction, so that nothing can slip between.
//!
//! Deliberately absent: what a route needs (the planner's), and access rules ([`crate::api`]).

use fluvial_model::access::{RoleRef, Subject};
use fluvial_model::field::{FieldErrors, Path};
use fluvial_model::kinds::cluster::CLUSTER_FINALIZER;
use fluvial_model::kinds::datamigrate::MIGRATE_FINALIZER;
use fluvial_model::kinds::datarestore::RESTORE_FINALIZER;
use fluvial_model::kinds::rbac;
use fluvial_model::kinds::{
    BackupRepository, Cluster, ClusterRoleBinding, DataBackup, DataLoad, DataMigrate, DataRestore, Dataset, Namespace,
    RoleBinding, Storage, User,
};
use fluvial_model::names::printable;
use fluvial_model::resource::{DecodeError, KindInfo, Resource};
use fluvial_model::store::{Compare, Op};
use fluvial_raft::{Consistency, ListRequest, StoreError};
use jiff::Timestamp;
use serde_json::{Value, json};
use thiserror::Error;

use crate::enrol::revocations::user_revocation;
use crate::objects::{ObjectError, Objects};

/// Held by every namespace until its contents are gone.
pub const NAMESPACE_FINALIZER: &str = "fluvial.io/namespace-contents";
/// How many names an error offers at most.
const MOST_NAMES: usize = 10;

/// Why an object was not admitted.
#[derive(Debug, Error)]
pub enum AdmissionError {
    #[error("the object refers to what is not there")]
    Invalid(FieldErrors),
    #[error("{message}")]
    Conflict { message: String },
    #[error("reading what the object refers to")]
    Objects(#[from] ObjectError),
    #[error("reading what the object refers to")]
    Store(#[from] StoreError),
    #[error("the object cannot be read as its kind")]
    Decode(#[from] DecodeError),
}

/// What must still hold when the object is written, and what is written with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

fn is<R: Resource>(info: &KindInfo) -> bool {
    info.group == R::INFO.group && info.plural == R::INFO.plural
}

/// Adds what every object of the kind carries. An object that is being deleted gets nothing, except that a namespace
/// keeps its finalizer until the hub has emptied it.
pub fn complete(info: &KindInfo, object: &mut Value, old: Option<&Value>) {
    let deleting = old.is_some_and(|old| old.pointer("/metadata/deletionTimestamp").is_some_and(Value::is_string));
    if is::<Namespace>(info) {
        let held = old.is_none_or(|old| finalizers(old).any(|name| name == NAMESPACE_FINALIZER));
        if held || !deleting {
            add_finalizer(object, NAMESPACE_FINALIZER);
        }
        if object.pointer("/status/phase").is_none()
            && let Some(fields) = object.as_object_mut()
        {
            fields.insert("status".into(), json!({ "phase": "Active" }));
        }
    }
    if is::<RoleBinding>(info) || is::<ClusterRoleBinding>(info) {
        complete_binding(object);
    }
    if deleting {
        return;
    }
    if is::<DataMigrate>(info) {
        add_finalizer(object, MIGRATE_FINALIZER);
    }
    if is::<DataRestore>(info) {
        add_finalizer(object, RESTORE_FINALIZER);
    }
    if is::<Cluster>(info) {
        add_finalizer(object, CLUSTER_FINALIZER);
    }
}

/// Fills in what clients leave out of a binding.
fn complete_binding(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    let read = |fields: &serde_json::Map<String, Value>, name| fields.get(name).cloned().unwrap_or_default();
    let role = serde_json::from_value::<RoleRef>(read(fields, "roleRef"));
    let subjects = serde_json::from_value::<Vec<Subject>>(read(fields, "subjects"));
    let (Ok(mut role), mut subjects) = (role, subjects.unwrap_or_default()) else { return };
    rbac::complete_binding(&mut role, &mut subjects);
    fields.insert("roleRef".into(), json!(role));
    if !subjects.is_empty() {
        fields.insert("subjects".into(), json!(subjects));
    }
}

fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object.pointer("/metadata/finalizers").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn add_finalizer(object: &mut Value, finalizer: &str) {
    if finalizers(object).any(|held| held == finalizer) {
        return;
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        let list = metadata.entry("finalizers").or_insert_with(|| json!([]));
        if let Value::Array(list) = list {
            list.push(json!(finalizer));
        }
    }
}

/// What is written when an object of the kind goes: the certificates of a user that is gone are denied.
#[must_use]
pub fn with_its_deletion(info: &KindInfo, name: &str, now: Timestamp) -> Option<Op> {
    is::<User>(info).then(|| {
        let (key, value) = user_revocation(name, now);
        Op::Put { key, value }
    })
}

/// Checks what a new object refers to.
///
/// # Errors
/// [`AdmissionError::Invalid`] names the field and what there is instead; [`AdmissionError::Conflict`] names the
/// object that is in the way.
pub async fn check_create(objects: &Objects, info: &KindInfo, object: &Value) -> Result<Admitted, AdmissionError> {
    if is::<DataMigrate>(info) {
        return check_migrate(objects, &DataMigrate::from_value(object)?).await;
    }
    if is::<DataBackup>(info) {
        let backup = DataBackup::from_value(object)?;
        let (mut admitted, mut errors, spec) = (Admitted::default(), FieldErrors::default(), Path::root("spec"));
        let namespace = &backup.metadata.namespace;
        let (dataset, repository) = (&backup.spec.dataset, &backup.spec.repository);
        require::<Dataset>(objects, namespace, dataset, &spec.key("dataset"), &mut errors, &mut admitted).await?;
        // One of Fluid's paths is told of by the operation's end, as Fluid does.
        if !repository.is_empty() {
            let at = spec.key("repository");
            require::<BackupRepository>(objects, "", repository, &at, &mut errors, &mut admitted).await?;
        }
        return if errors.is_empty() { Ok(admitted) } else { Err(AdmissionError::Invalid(errors)) };
    }
    if is::<DataRestore>(info) {
        let restore = DataRestore::from_value(object)?;
        let (mut admitted, mut errors, spec) = (Admitted::default(), FieldErrors::default(), Path::root("spec"));
        let (repository, storage) = (&restore.spec.repository, &restore.spec.storage);
        require::<BackupRepository>(objects, "", repository, &spec.key("repository"), &mut errors, &mut admitted)
            .await?;
        if !storage.is_empty() {
            require::<Storage>(objects, "", storage, &spec.key("storage"), &mut errors, &mut admitted).await?;
        }
        return if errors.is_empty() { Ok(admitted) } else { Err(AdmissionError::Invalid(errors)) };
    }
    if is::<DataLoad>(info) {
        return check_load(objects, &DataLoad::from_value(object)?).await;
    }
    if is::<Storage>(info) {
        let storage = Storage::from_value(object)?;
        let at = Path::root("spec").key("cluster");
        let mut admitted = Admitted::default();
        let mut errors = FieldErrors::default();
        require::<Cluster>(objects, "", &storage.spec.cluster, &at, &mut errors, &mut admitted).await?;
        return if errors.is_empty() { Ok(admitted) } else { Err(AdmissionError::Invalid(errors)) };
    }
    Ok(Admitted::default())
}

async fn check_load(objects: &Objects, load: &DataLoad) -> Result<Admitted, AdmissionError> {
    let mut admitted = Admitted::default();
    let mut errors = FieldErrors::default();
    let spec = Path::root("spec");
    let (namespace, name) = load.dataset();
    let at = spec.key("dataset").key("name");
    require::<Dataset>(objects, namespace, name, &at, &mut errors, &mut admitted).await?;
    if !load.spec.cluster.is_empty() {
        let at = spec.key("cluster");
        require::<Cluster>(objects, "", &load.spec.cluster, &at, &mut errors, &mut admitted).await?;
    }
    // The dataset may change while it is loaded: the load is of what it is then.
    admitted.compares.clear();
    if errors.is_empty() { Ok(admitted) } else { Err(AdmissionError::Invalid(errors)) }
}

async fn check_migrate(objects: &Objects, migrate: &DataMigrate) -> Result<Admitted, AdmissionError> {
    let mut admitted = Admitted::default();
    let mut errors = FieldErrors::default();
    let spec = Path::root("spec");
    let dataset_at = spec.key("from").key("dataset").key("name");
    let storage_at = spec.key("to").key("storage").key("name");
    let (namespace, name) = migrate.dataset().unwrap_or_default();
    let dataset = require::<Dataset>(objects, namespace, name, &dataset_at, &mut errors, &mut admitted).await?;
    let target = migrate.target().unwrap_or_default();
    let storage = require::<Storage>(objects, "", target, &storage_at, &mut errors, &mut admitted).await?;
    if let Some(storage) = &storage {
        let cluster = &storage.spec.cluster;
        if objects.get::<Cluster>("", cluster, Consistency::Stale).await?.is_none() {
            let problem = format!("its cluster {} does not exist any more", printable(cluster));
            errors.invalid(&storage_at, target, problem);
        }
    }
    if !errors.is_empty() {
        return Err(AdmissionError::Invalid(errors));
    }
    // The dataset was read before the operations: whoever adds one in between writes the dataset too, see below.
    let prefix = DataMigrate::INFO.namespace_prefix(&migrate.metadata.namespace);
    let request = ListRequest { prefix, ..ListRequest::default() };
    for kv in objects.store.list(request).await?.items {
        let other = objects.decode::<DataMigrate>(&kv)?.object;
        let same = other.dataset() == Some((namespace, name)) && other.metadata.name != migrate.metadata.name;
        if same && !other.phase().is_final() {
            let message = format!(
                "dataset {namespace}/{name} is being migrated by DataMigrate \"{}\" ({}): wait for it, or set its \
                 spec.cancel",
                other.metadata.name,
                other.phase().as_str()
            );
            return Err(AdmissionError::Conflict { message });
        }
    }
    // Writing the dataset back as it is makes two operations of one dataset conflict, so that one sees the other.
    if let Some(dataset) = dataset {
        let key = dataset.key();
        let value = objects.encode(&dataset)?;
        admitted.ops.push(Op::Put { key, value });
    }
    Ok(admitted)
}

/// The object that a field names; it must exist and stay, unchanged, until the write.
async fn require<R: Resource>(
    objects: &Objects,
    namespace: &str,
    name: &str,
    at: &Path,
    errors: &mut FieldErrors,
    admitted: &mut Admitted,
) -> Result<Option<R>, AdmissionError> {
    if R::INFO.name_rule.problem(name).is_none()
        && let Some(found) = objects.get::<R>(namespace, name, Consistency::Linearizable).await?
    {
        if found.object.meta().deletion_timestamp.is_some() {
            errors.invalid(at, name, format!("this {} is being deleted", R::INFO.kind));
            return Ok(None);
        }
        admitted.compares.push(Compare::UnchangedSince { key: found.object.key(), revision: found.revision });
        return Ok(Some(found.object));
    }
    let prefix = R::INFO.key(namespace, "");
    let request = ListRequest { prefix, limit: Some(MOST_NAMES), ..ListRequest::default() };
    let listing = objects.store.list(request).await?;
    let mut names: Vec<&str> = listing.items.iter().filter_map(|kv| kv.key.rsplit('/').next()).collect();
    if listing.more {
        names.push("…");
    }
    let there = if names.is_empty() { "there are none".to_owned() } else { format!("there are: {}", names.join(", ")) };
    errors.push(at, format!("no {} named {}; {there}", R::INFO.kind, printable(name)));
    Ok(None)
}
