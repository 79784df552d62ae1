//! ③ Backups: which agent writes a snapshot of a dataset, and what its reports mean.
//!
//! Pending → Executing (Planning, BackingUp) → Complete, Failed or Cancelled. The snapshot is whole or not there: a backup
//! that is stopped or that loses its agent leaves nothing that has to be taken back.
//!
//! Deliberately absent: the bytes (an agent's), and what is forgotten by retention (the agent's, as restic counts).

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::desired::{BackupWork, DatasetKey, Endpoint, REPOSITORY_PASSWORD};
use crate::kinds::databackup::BackupInfos;
use crate::kinds::{
    BackupRepository, Cluster, ClusterState, DataBackup, DataBackupStatus, Dataset, OperationPhase, Placement,
    Progress, SecretKeySelector, Storage, StorageSpec,
};
use crate::report::BackupReport;
use crate::route::{self, NoRoute, Route, Source};
use crate::uri::Uri;

pub mod repository;
pub mod restore;

/// The place of a repository, with its password among the secrets; `None` if its URI is none.
#[must_use]
pub fn place(repository: &BackupRepository) -> Option<Endpoint> {
    let mut place = route::storage_endpoint(&as_storage(repository, ""), Uri::parse(&repository.spec.uri).ok()?);
    let mut password: SecretKeySelector = repository.spec.password_secret_ref.clone();
    if password.namespace.is_empty() {
        "default".clone_into(&mut password.namespace);
    }
    place.secrets.insert(REPOSITORY_PASSWORD.to_owned(), password);
    Some(place)
}

/// A repository as what routes lead to: reached by the cluster that it names, or by `cluster`.
fn as_storage(repository: &BackupRepository, cluster: &str) -> Storage {
    let spec = &repository.spec;
    let cluster = if spec.cluster.is_empty() { cluster } else { &spec.cluster };
    let spec = StorageSpec {
        uri: spec.uri.clone(),
        cluster: cluster.to_owned(),
        options: spec.options.clone(),
        encrypt_options: spec.encrypt_options.clone(),
        ..StorageSpec::default()
    };
    Storage::new("", &repository.metadata.name, spec)
}

/// Whether a cluster's agent can be given work.
fn answers(cluster: &Cluster) -> bool {
    cluster.metadata.deletion_timestamp.is_none()
        && matches!(cluster.state(), ClusterState::Ready | ClusterState::Suspect)
}

/// A route on which one agent reaches both ends.
///
/// # Errors
/// With the reason for every agent, when none does.
fn direct(sources: &[Source], target: &Storage, clusters: &BTreeMap<String, Cluster>) -> Result<Route, NoRoute> {
    let route = route::choose(sources, target, clusters)?;
    if route.relay.is_none() {
        return Ok(route);
    }
    let mut reasons: Vec<String> =
        route.reasons.iter().filter_map(|reason| reason.strip_prefix("refused: ")).map(str::to_owned).collect();
    reasons.push("backups and restores are not relayed".to_owned());
    Err(NoRoute { reasons, may_change: false })
}

/// The agent that reads the dataset and writes the repository: the repository's own, else the one nearest to the data.
fn route(
    sources: &[Source],
    repository: &BackupRepository,
    clusters: &BTreeMap<String, Cluster>,
) -> Result<Route, NoRoute> {
    if !repository.spec.cluster.is_empty() {
        return direct(sources, &as_storage(repository, ""), clusters);
    }
    let owners = sources.iter().filter_map(|source| source.cluster.clone());
    let order: Vec<String> = owners.chain(clusters.keys().cloned()).collect();
    let mut refused = NoRoute { reasons: vec!["there is no cluster".to_owned()], may_change: true };
    for cluster in order {
        match direct(sources, &as_storage(repository, &cluster), clusters) {
            Ok(route) => return Ok(route),
            Err(none) => refused = NoRoute { may_change: refused.may_change || none.may_change, ..none },
        }
    }
    Err(refused)
}

/// Everything that the next step of a backup depends on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub operation: &'a DataBackup,
    pub dataset: Option<&'a Dataset>,
    pub repository: Option<&'a BackupRepository>,
    pub storages: &'a BTreeMap<String, Storage>,
    pub clusters: &'a BTreeMap<String, Cluster>,
    /// The Placements that name the dataset.
    pub placements: &'a [&'a Placement],
    /// The assignment as it stands: the cluster and the work.
    pub assigned: Option<(&'a str, &'a BackupWork)>,
    /// What that cluster's agent says of it.
    pub report: Option<&'a BackupReport>,
    pub now: Timestamp,
}

/// What should be so now.
#[derive(Debug, Clone, PartialEq)]
pub struct Next {
    pub status: DataBackupStatus,
    /// The assignment that should exist, and where.
    pub assignment: Option<(String, BackupWork)>,
}

/// Decides the next state of a backup.
#[must_use]
pub fn step(facts: &Facts<'_>) -> Next {
    let mut status = facts.operation.status.clone().unwrap_or_default();
    status.operation.observed_generation = facts.operation.metadata.generation;
    if status.operation.phase.is_final() {
        return Next { status, assignment: None };
    }
    if facts.operation.spec.cancel || facts.operation.metadata.deletion_timestamp.is_some() {
        // Withdrawn work is stopped; nothing of it can be seen.
        return finish(facts, status, OperationPhase::Cancelled, "Cancelled", "stopped: no snapshot was written");
    }
    match facts.assigned {
        Some((cluster, work)) => running(facts, status, cluster, work),
        None => begin(facts, status),
    }
}

fn finish(facts: &Facts<'_>, mut status: DataBackupStatus, phase: OperationPhase, reason: &str, message: &str) -> Next {
    status.operation.finish(phase, reason, message, facts.now);
    Next { status, assignment: None }
}

fn begin(facts: &Facts<'_>, mut status: DataBackupStatus) -> Next {
    let spec = &facts.operation.spec;
    let fail = |status, reason: &str, message: String| finish(facts, status, OperationPhase::Failed, reason, &message);
    if spec.repository.is_empty() {
        let message = format!("spec.backupPath {} is no repository: name one in spec.repository", spec.backup_path);
        return fail(status, "PathNotSupported", message);
    }
    let Some(dataset) = facts.dataset else {
        return fail(status, "DatasetNotFound", format!("there is no dataset {}", spec.dataset));
    };
    let Some((repository, place)) = facts.repository.and_then(|repository| Some((repository, place(repository)?)))
    else {
        return fail(status, "RepositoryNotFound", format!("there is no BackupRepository {}", spec.repository));
    };
    let known = dataset.status.clone().unwrap_or_default();
    if known.observed_generation != dataset.metadata.generation || known.root.is_none() {
        status.operation.wait("waits until the dataset's sources were listed".to_owned());
        return Next { status, assignment: None };
    }
    let route = match route(&route::sources(dataset, facts.storages), repository, facts.clusters) {
        Ok(route) => route,
        Err(none) if none.may_change => {
            status.operation.wait(format!("waits for an agent: {}", none.reasons.join("; ")));
            return Next { status, assignment: None };
        }
        Err(none) => return fail(status, "NoRoute", none.reasons.join("; ")),
    };
    status.reasons.clone_from(&route.reasons);
    status.infos = BackupInfos { path: place.uri.to_string(), node: route.executor.clone() };
    status.operation.progress =
        Progress { bytes_total: known.total_bytes, files_total: known.files, ..Progress::default() };
    let message = format!("{} by {}", route.source.what, route.executor);
    status.operation.begin(&route.executor, message, facts.now);
    if spec.dry_run {
        return finish(facts, status, OperationPhase::Complete, "DryRun", "planned only: nothing was written");
    }
    let work = BackupWork {
        dataset: DatasetKey {
            namespace: dataset.metadata.namespace.clone(),
            name: dataset.metadata.name.clone(),
            uid: dataset.metadata.uid.clone(),
        },
        operation: facts.operation.metadata.uid.clone(),
        repository: place,
        root: route.source.root.clone(),
        sources: route.source.endpoints.clone(),
        catalog: catalog(dataset, facts.placements),
        retention: repository.spec.retention.clone(),
        check: spec.check,
    };
    Next { status, assignment: Some((route.executor, work)) }
}

/// What goes in with the data, as JSON: the dataset as it would be applied, and the Placements that name it. Secrets are
/// named in it, as they are in the objects.
fn catalog(dataset: &Dataset, placements: &[&Placement]) -> String {
    let metadata = &dataset.metadata;
    let placed: Vec<_> =
        placements.iter().map(|p| serde_json::json!({"name": p.metadata.name, "spec": p.spec})).collect();
    serde_json::json!({
        "apiVersion": dataset.api_version,
        "kind": dataset.kind,
        "metadata": {
            "namespace": metadata.namespace,
            "name": metadata.name,
            "labels": metadata.labels,
            "annotations": metadata.annotations,
        },
        "spec": dataset.spec,
        "placements": placed,
    })
    .to_string()
}

fn running(facts: &Facts<'_>, mut status: DataBackupStatus, cluster: &str, work: &BackupWork) -> Next {
    if !facts.clusters.contains_key(cluster) {
        let message = format!("cluster {cluster}, whose agent did the work, was removed");
        return finish(facts, status, OperationPhase::Failed, "ClusterRemoved", &message);
    }
    let keep = |status| Next { status, assignment: Some((cluster.to_owned(), work.clone())) };
    let Some(report) = facts.report else {
        status.operation.message = format!("waits for the agent of {cluster}");
        return keep(status);
    };
    let problem = report.problem.as_ref();
    status.operation.go_on("BackingUp", &report.progress, problem);
    if let Some(written) = &report.written {
        status.bytes_read = written.bytes_read;
        status.forgotten = written.forgotten;
        status.check_problems.clone_from(&written.check_problems);
        let id: String = written.snapshot.id.chars().take(8).collect();
        let mut message = format!("snapshot {id}");
        if !written.remark.is_empty() {
            message.push_str(&format!("; {}", written.remark));
        }
        status.snapshot = Some(written.snapshot.clone());
        return match &written.check_problems {
            Some(problems) if !problems.is_empty() => {
                let message = format!("{message}; the check found: {}", problems.join("; "));
                finish(facts, status, OperationPhase::Failed, "Damaged", &message)
            }
            _ => finish(facts, status, OperationPhase::Complete, "BackedUp", &message),
        };
    }
    match problem.filter(|problem| !problem.retrying) {
        Some(problem) => finish(facts, status, OperationPhase::Failed, &problem.reason, &problem.message),
        None => keep(status),
    }
}

#[cfg(test)]
mod tests;
