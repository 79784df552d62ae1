//! ③ Restores: which agent brings a snapshot to its place, and what the dataset becomes.
//!
//! Pending → Executing (Planning, Copying, Verifying, CuttingOver) → Complete, Failed or Cancelled, as a migration whose
//! source is a repository. Invariants: a home counts only when the agent says that all of it stands there, verified; a
//! dataset that does not exist is made together with its first home; whatever an unfinished restore wrote is removed by
//! the agent that wrote it before the operation may go.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{direct, place};
use crate::desired::{DatasetKey, Endpoint, MigrateWork, RestoreWork};
use crate::kinds::{
    BackupRepository, Cluster, DataRestore, DataRestoreStatus, Dataset, DatasetSpec, DatasetStatus, Home, HomeState,
    MigrateVerify, OperationPhase, Storage, StorageSpec,
};
use crate::migration::{DEFAULT_STREAMS, doing};
use crate::report::{MigratePhase, RestoreReport, Version};
use crate::route::{self, Source};
use crate::uri::Uri;

/// Everything that the next step depends on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub operation: &'a DataRestore,
    pub dataset: Option<&'a Dataset>,
    pub repository: Option<&'a BackupRepository>,
    pub storages: &'a BTreeMap<String, Storage>,
    pub clusters: &'a BTreeMap<String, Cluster>,
    /// The assignment as it stands: the cluster and the work.
    pub assigned: Option<(&'a str, &'a RestoreWork)>,
    /// What that cluster's agent says of it.
    pub report: Option<&'a RestoreReport>,
    pub now: Timestamp,
}

/// What should be so now.
#[derive(Debug, Clone, PartialEq)]
pub struct Next {
    pub status: DataRestoreStatus,
    /// The assignment that should exist, and where.
    pub assignment: Option<(String, RestoreWork)>,
    /// The dataset with its new home: written, or made, in the same transaction as the status.
    pub dataset: Option<Dataset>,
    /// Whether nothing is left to clean, so that the operation may be deleted.
    pub release: bool,
}

/// Decides the next state.
#[must_use]
pub fn step(facts: &Facts<'_>) -> Next {
    let mut status = facts.operation.status.clone().unwrap_or_default();
    status.operation.observed_generation = facts.operation.metadata.generation;
    if status.operation.phase.is_final() {
        return Next { status, assignment: None, dataset: None, release: true };
    }
    let stop = facts.operation.spec.cancel || facts.operation.metadata.deletion_timestamp.is_some();
    match facts.assigned {
        Some((cluster, work)) => running(facts, status, cluster, work, stop),
        None if stop => finish(facts, status, OperationPhase::Cancelled, "Cancelled", "cancelled before it began"),
        None => begin(facts, status),
    }
}

fn finish(
    facts: &Facts<'_>,
    mut status: DataRestoreStatus,
    phase: OperationPhase,
    reason: &str,
    message: &str,
) -> Next {
    status.operation.finish(phase, reason, message, facts.now);
    Next { status, assignment: None, dataset: None, release: true }
}

fn begin(facts: &Facts<'_>, mut status: DataRestoreStatus) -> Next {
    let spec = &facts.operation.spec;
    let fail = |status, reason: &str, message: String| finish(facts, status, OperationPhase::Failed, reason, &message);
    let Some((repository, place)) = facts.repository.and_then(|repository| Some((repository, place(repository)?)))
    else {
        return fail(status, "RepositoryNotFound", format!("there is no BackupRepository {}", spec.repository));
    };
    let (storage, target) = match target(facts) {
        Ok(target) => target,
        Err((reason, message)) => return fail(status, reason, message),
    };
    if !spec.storage.is_empty() && !spec.paths.is_empty() && facts.dataset.is_some() {
        let message = format!(
            "dataset {} is there: a part of a snapshot cannot become its version; name a new dataset, or a directory",
            spec.dataset
        );
        return fail(status, "PartOfVersion", message);
    }
    let cluster = Some(repository.spec.cluster.clone()).filter(|cluster| !cluster.is_empty());
    let what = format!("repository {}", repository.metadata.name);
    let source = Source { endpoints: vec![place], cluster, root: None, maybe_shared: false, what };
    // A Storage in an object store is reached by the repository's agent too; a directory by its own alone.
    let route = match direct(&[source], &storage, facts.clusters) {
        Ok(route) => route,
        Err(none) if none.may_change => {
            status.operation.wait(format!("waits for an agent: {}", none.reasons.join("; ")));
            return Next { status, assignment: None, dataset: None, release: false };
        }
        Err(none) => return fail(status, "NoRoute", none.reasons.join("; ")),
    };
    status.reasons.clone_from(&route.reasons);
    status.uri = target.uri.to_string();
    let message = format!("{} from {} by {}", route.name, route.source.what, route.executor);
    status.operation.begin(&route.executor, message, facts.now);
    let metadata = &facts.operation.metadata;
    let (namespace, name) = spec.origin(&metadata.namespace);
    let uid = facts.dataset.map_or_else(String::new, |dataset| dataset.metadata.uid.clone());
    let work = RestoreWork {
        copy: MigrateWork {
            dataset: DatasetKey { namespace: metadata.namespace.clone(), name: spec.dataset.clone(), uid },
            operation: metadata.uid.clone(),
            sources: route.source.endpoints.clone(),
            root: None,
            target,
            relay: None,
            verify: MigrateVerify::default(),
            streams: spec.parallelism.unwrap_or(DEFAULT_STREAMS),
            cancel: false,
        },
        snapshot: if spec.snapshot.is_empty() { "latest".to_owned() } else { spec.snapshot.clone() },
        origin: (namespace.to_owned(), name.to_owned()),
        paths: spec.paths.clone(),
    };
    Next { status, assignment: Some((route.executor, work)), dataset: None, release: false }
}

/// Where the copy goes, as a Storage for the route and as the exact place.
fn target(facts: &Facts<'_>) -> Result<(Storage, Endpoint), (&'static str, String)> {
    let spec = &facts.operation.spec;
    if let Some(directory) = &spec.directory {
        let uri = format!("file://{}", directory.path);
        let parsed = Uri::parse(&uri).map_err(|error| ("Invalid", error.to_string()))?;
        let storage = StorageSpec { uri, cluster: directory.cluster.clone(), ..StorageSpec::default() };
        let storage = Storage::new("", "", storage);
        let endpoint = route::storage_endpoint(&storage, parsed);
        return Ok((storage, endpoint));
    }
    let storage = facts.storages.get(&spec.storage);
    let storage = storage.ok_or_else(|| ("StorageNotFound", format!("there is no Storage {}", spec.storage)))?;
    let metadata = &facts.operation.metadata;
    // A place of its own, as a migration's.
    let own: String = metadata.uid.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
    let base = Uri::parse(&storage.spec.uri);
    let home =
        base.and_then(|u| u.join(&metadata.namespace)).and_then(|u| u.join(&spec.dataset)).and_then(|u| u.join(&own));
    let home = home.map_err(|error| ("Invalid", format!("the URI of Storage {}: {error}", spec.storage)))?;
    Ok((storage.clone(), route::storage_endpoint(storage, home)))
}

fn running(facts: &Facts<'_>, mut status: DataRestoreStatus, cluster: &str, work: &RestoreWork, stop: bool) -> Next {
    let keep = |status: DataRestoreStatus, cancel: bool| {
        let work = RestoreWork { copy: MigrateWork { cancel, ..work.copy.clone() }, ..work.clone() };
        Next { status, assignment: Some((cluster.to_owned(), work)), dataset: None, release: false }
    };
    if !facts.clusters.contains_key(cluster) {
        let message = format!("cluster {cluster}, whose agent did the work, was removed");
        let phase = if stop { OperationPhase::Cancelled } else { OperationPhase::Failed };
        return finish(facts, status, phase, "ClusterRemoved", &message);
    }
    let Some(report) = facts.report else {
        status.operation.message = format!("waits for the agent of {cluster}");
        return keep(status, stop);
    };
    let copy = &report.copy;
    let problem = copy.problem.as_ref();
    let cancelling = work.copy.cancel;
    match copy.phase {
        MigratePhase::Done if !stop && !cancelling => match complete(facts, status.clone(), work, report) {
            Ok(next) => next,
            Err((reason, message)) => {
                // What was restored cannot count: its agent removes it first.
                reason.clone_into(&mut status.operation.reason);
                status.operation.message = message;
                keep(status, true)
            }
        },
        MigratePhase::Discarded if stop => {
            finish(facts, status, OperationPhase::Cancelled, "Cancelled", "stopped, and what was written was removed")
        }
        MigratePhase::Discarded => {
            let (reason, message) = (status.operation.reason.clone(), status.operation.message.clone());
            finish(facts, status, OperationPhase::Failed, &reason, &message)
        }
        MigratePhase::Failed if !stop && !cancelling => {
            let (reason, message) =
                problem.map_or(("Internal", "the agent gave no reason"), |p| (p.reason.as_str(), p.message.as_str()));
            finish(facts, status, OperationPhase::Failed, reason, message)
        }
        _ if cancelling && !stop => keep(status, true),
        phase => {
            status.operation.go_on(doing(phase, stop), &copy.progress, problem);
            keep(status, stop)
        }
    }
}

/// The operation's end, with the dataset that it made or filled; or why there must be none.
fn complete(
    facts: &Facts<'_>,
    mut status: DataRestoreStatus,
    work: &RestoreWork,
    report: &RestoreReport,
) -> Result<Next, (&'static str, String)> {
    let spec = &facts.operation.spec;
    let version = report.copy.version.clone().ok_or_else(|| ("Internal", "the agent named no version".to_owned()))?;
    status.snapshot.clone_from(&report.snapshot);
    status.root = Some(version.root.clone());
    status.operation.go_on("CuttingOver", &report.copy.progress, None);
    let id: String = report.snapshot.as_ref().map_or("", |snapshot| &snapshot.id).chars().take(8).collect();
    let message = format!("snapshot {id} is restored and verified");
    if spec.directory.is_some() {
        return Ok(finish(facts, status, OperationPhase::Complete, "Restored", &message));
    }
    let storage = facts.storages.get(&spec.storage);
    let storage =
        storage.ok_or_else(|| ("StorageNotFound", format!("Storage {} was deleted meanwhile", spec.storage)))?;
    let home = Home {
        storage: spec.storage.clone(),
        cluster: storage.spec.cluster.clone(),
        uri: work.copy.target.uri.to_string(),
        root: version.root.clone(),
        bytes: version.totals.bytes,
        files: version.totals.files,
        state: HomeState::Ready,
        verified_time: facts.now,
        operation: facts.operation.metadata.uid.clone(),
    };
    let dataset = match facts.dataset {
        Some(dataset) if dataset.metadata.uid == work.copy.dataset.uid => {
            let mut dataset = dataset.clone();
            let mut known = dataset.status.unwrap_or_default();
            // One Storage holds one version: an older one goes.
            let others = known.homes.into_iter().filter(|other| other.uri != home.uri);
            let retire = |other: Home| {
                if other.storage == home.storage { Home { state: HomeState::Removing, ..other } } else { other }
            };
            known.homes = others.map(retire).collect();
            dataset.status = Some(filled(known, &version, home));
            dataset
        }
        Some(_) if !work.copy.dataset.uid.is_empty() => {
            return Err(("DatasetNotFound", "the dataset was deleted meanwhile".to_owned()));
        }
        Some(_) => return Err(("DatasetExists", "a dataset of this name was made meanwhile".to_owned())),
        None if !work.copy.dataset.uid.is_empty() => {
            return Err(("DatasetNotFound", "the dataset was deleted meanwhile".to_owned()));
        }
        None => made(facts, report.catalog.as_deref(), &version, home),
    };
    let mut next = finish(facts, status, OperationPhase::Complete, "Restored", &message);
    next.dataset = Some(dataset);
    Ok(next)
}

fn filled(mut status: DatasetStatus, version: &Version, home: Home) -> DatasetStatus {
    status.homes.push(home);
    status.root = Some(version.root.clone());
    status.digested = version.digested;
    status.files = version.totals.files;
    status.directories = version.totals.directories;
    status.total_bytes = version.totals.bytes;
    status
}

/// The dataset of a snapshot, made again: as its entry describes it, without mounts if there is no entry. What it holds is
/// what was restored; its mounts are listed when somebody asks for it.
fn made(facts: &Facts<'_>, catalog: Option<&str>, version: &Version, home: Home) -> Dataset {
    let metadata = &facts.operation.metadata;
    let entry: Option<Dataset> = catalog.and_then(|text| serde_json::from_str(text).ok());
    let spec = entry.as_ref().map_or_else(DatasetSpec::default, |entry| entry.spec.clone());
    let mut dataset = Dataset::new(&metadata.namespace, &facts.operation.spec.dataset, spec);
    if let Some(entry) = entry {
        dataset.metadata.labels = entry.metadata.labels;
        dataset.metadata.annotations = entry.metadata.annotations;
        // A request that was answered in another federation.
        dataset.metadata.annotations.remove(crate::upkeep::rescan::REQUESTED);
    }
    dataset.metadata.generation = 1;
    dataset.metadata.creation_timestamp = Some(facts.now);
    let known = DatasetStatus { observed_generation: 1, scanned_time: Some(facts.now), ..DatasetStatus::default() };
    dataset.status = Some(filled(known, version, home));
    dataset
}
