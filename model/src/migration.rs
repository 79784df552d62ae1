//! ③ The state machine of a migration: from what is known, what comes next.
//!
//! Pending → Executing (Planning, Copying, Verifying, CuttingOver) → Complete, Failed or Cancelled. The bytes are an
//! agent's work; this decides who does it, when the catalog may point at the copy, and what is left to clean.
//!
//! Invariants: the catalog gains a home only when the agent says that the whole version stands there, verified; the
//! home and the operation's end are one transaction; a final phase never changes; whatever an unfinished operation
//! wrote is discarded by the agent that wrote it before the operation may go.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::bandwidth;
use crate::desired::{DatasetKey, MigrateWork, Relay, ServeWork};
use crate::kinds::datamigrate::MigratePlan;
use crate::kinds::{
    Cluster, DataMigrate, DataMigrateStatus, Dataset, Home, HomeState, Link, MigrateMode, OperationPhase, Progress,
    Storage,
};
use crate::report::{MigratePhase, MigrateReport, Problem, Version};
use crate::route::{self, Route};
use crate::uri::Uri;

/// Streams of a copy, a migration's or a restore's, for which no number is asked.
pub const DEFAULT_STREAMS: u32 = 16;

/// Everything that the next step depends on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub operation: &'a DataMigrate,
    pub dataset: Option<&'a Dataset>,
    pub storages: &'a BTreeMap<String, Storage>,
    pub clusters: &'a BTreeMap<String, Cluster>,
    pub links: &'a BTreeMap<String, Link>,
    /// An operation on the same dataset that goes first.
    pub earlier: Option<&'a str>,
    /// The assignment as it stands: the cluster and the work.
    pub assigned: Option<(&'a str, &'a MigrateWork)>,
    /// What that cluster's agent says of it.
    pub report: Option<&'a MigrateReport>,
    /// Why the agent through which the sources are read does not serve them, if it says so.
    pub not_served: Option<&'a Problem>,
    pub now: Timestamp,
}

/// What should be so now.
#[derive(Debug, Clone, PartialEq)]
pub struct Next {
    pub status: DataMigrateStatus,
    /// The assignment that should exist, and where.
    pub assignment: Option<(String, MigrateWork)>,
    /// What the agent has to serve through which the sources are read, and its cluster.
    pub serving: Option<(String, ServeWork)>,
    /// The dataset's homes and version after cutting over: written in the same transaction as the status.
    pub cut_over: Option<CutOver>,
    /// Whether nothing is left to clean, so that the operation may be deleted.
    pub release: bool,
}

/// What the dataset becomes.
#[derive(Debug, Clone, PartialEq)]
pub struct CutOver {
    pub homes: Vec<Home>,
    pub version: Version,
}

/// Decides the next state.
#[must_use]
pub fn step(facts: &Facts<'_>) -> Next {
    let mut status = facts.operation.status.clone().unwrap_or_default();
    status.observed_generation = facts.operation.metadata.generation;
    if status.phase.is_final() {
        // An agent may still hold the work: withdrawing it makes it forget.
        return Next { status, assignment: None, serving: None, cut_over: None, release: true };
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
    mut status: DataMigrateStatus,
    phase: OperationPhase,
    reason: &str,
    message: &str,
) -> Next {
    status.phase = phase;
    reason.clone_into(&mut status.reason);
    message.clone_into(&mut status.message);
    status.started_time.get_or_insert(facts.now);
    status.finished_time = Some(facts.now);
    status.duration =
        status.started_time.map_or_else(String::new, |start| duration_text(facts.now.duration_since(start)));
    if phase == OperationPhase::Complete {
        status.progress.eta_seconds = None;
        status.progress.bytes_per_second = average(&status, facts.now);
    }
    Next { status, assignment: None, serving: None, cut_over: None, release: true }
}

/// Bytes per second over the whole operation, verification and waiting included.
#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn average(status: &DataMigrateStatus, now: Timestamp) -> f64 {
    let took = status.started_time.map_or(0.0, |start| now.duration_since(start).as_secs_f64());
    if took > 0.0 { status.progress.bytes_done as f64 / took } else { 0.0 }
}

pub(crate) fn duration_text(d: SignedDuration) -> String {
    let seconds = d.as_secs().max(0);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

fn wait(mut status: DataMigrateStatus, phase: OperationPhase, message: String) -> Next {
    status.phase = phase;
    status.message = message;
    Next { status, assignment: None, serving: None, cut_over: None, release: false }
}

/// No agent has the work yet.
fn begin(facts: &Facts<'_>, mut status: DataMigrateStatus) -> Next {
    let fail = |status, reason: &str, message: String| finish(facts, status, OperationPhase::Failed, reason, &message);
    if let Some(earlier) = facts.earlier {
        return wait(status, OperationPhase::Pending, format!("waits for {earlier}, which migrates the same dataset"));
    }
    let Some(dataset) = facts.dataset else {
        return fail(status, "DatasetNotFound", "the dataset does not exist".to_owned());
    };
    let target_name = facts.operation.target().unwrap_or_default();
    let Some(target) = facts.storages.get(target_name) else {
        return fail(status, "StorageNotFound", format!("there is no Storage {target_name}"));
    };
    let known = dataset.status.clone().unwrap_or_default();
    if known.observed_generation != dataset.metadata.generation || known.root.is_none() {
        let problem = known.conditions.iter().find(|c| c.kind == "Scanned" && !c.message.is_empty());
        let why = problem.map_or(String::new(), |c| format!(": {}", c.message));
        return wait(status, OperationPhase::Pending, format!("waits until the dataset's sources were listed{why}"));
    }
    let there = known.homes.iter().find(|home| {
        home.storage == target_name && home.state == HomeState::Ready && Some(&home.root) == known.root.as_ref()
    });
    if let Some(home) = there
        && !facts.operation.spec.dry_run
    {
        return already_there(facts, status, &known.homes, home);
    }
    let route = match route::choose(&route::sources(dataset, facts.storages), target, facts.clusters) {
        Ok(route) => route,
        Err(none) if none.may_change => {
            return wait(status, OperationPhase::Pending, format!("waits for an agent: {}", none.reasons.join("; ")));
        }
        Err(none) => return fail(status, "NoRoute", none.reasons.join("; ")),
    };
    let room = target
        .spec
        .capacity_bytes
        .map(|capacity| capacity.saturating_sub(target.status.as_ref().map_or(0, |s| s.used_bytes)));
    if let Some(room) = room.filter(|room| *room < known.total_bytes) {
        let message = format!("Storage {target_name} has room for {room} bytes, the dataset has {}", known.total_bytes);
        return fail(status, "NoSpace", message);
    }
    let Some(target_uri) = home_uri(facts.operation, target) else {
        return fail(status, "Invalid", format!("the URI of Storage {target_name} cannot hold this dataset"));
    };
    let mut plan = plan(&route, target, &target_uri, known.total_bytes, known.files);
    // What has no digest yet must be read to get one.
    let inside = route::server_side(&route.source, &route::storage_endpoint(target, target_uri.clone()));
    match inside.filter(|_| known.digested) {
        Some(true) => {
            plan.reasons.insert(0, format!("the store copies by itself, told by {}", plan.executor));
            "server-side".clone_into(&mut plan.route);
        }
        Some(false) => {
            plan.reasons.push("if the keys of both ends are the same, the store copies by itself".to_owned())
        }
        None => {}
    }
    let forecast =
        bandwidth::forecast(facts.links, facts.clusters, &plan.from_cluster, &plan.to_cluster, known.total_bytes);
    (plan.seconds, plan.cost) = (forecast.seconds, forecast.cost);
    plan.reasons.extend(forecast.reasons);
    status.plan = Some(plan);
    status.progress = Progress { bytes_total: known.total_bytes, files_total: known.files, ..Progress::default() };
    if facts.operation.spec.dry_run {
        return finish(facts, status, OperationPhase::Complete, "DryRun", "planned only: nothing was copied");
    }
    let work = MigrateWork {
        dataset: DatasetKey {
            namespace: dataset.metadata.namespace.clone(),
            name: dataset.metadata.name.clone(),
            uid: dataset.metadata.uid.clone(),
        },
        operation: facts.operation.metadata.uid.clone(),
        root: route.source.root.clone(),
        relay: route.relay.clone(),
        sources: route.source.endpoints.clone(),
        target: route::storage_endpoint(target, target_uri),
        streams: facts.operation.spec.parallelism.unwrap_or(DEFAULT_STREAMS),
        verify: facts.operation.spec.verify,
        cancel: false,
    };
    status.phase = OperationPhase::Executing;
    "Planning".clone_into(&mut status.reason);
    status.message = format!("{} by {}", route.name, route.executor);
    let serving = serving(facts, &work, &route.executor);
    status.started_time = Some(facts.now);
    "Unfinished".clone_into(&mut status.duration);
    Next { status, assignment: Some((route.executor, work)), serving, cut_over: None, release: false }
}

/// What the agent must serve through which `executor`'s agent does `work`.
fn serving(facts: &Facts<'_>, work: &MigrateWork, executor: &str) -> Option<(String, ServeWork)> {
    let through = work.relay.as_ref().filter(|_| !work.cancel)?;
    let serve = ServeWork {
        dataset: work.dataset.clone(),
        operation: work.operation.clone(),
        peer: executor.to_owned(),
        peer_address: route::address(executor, facts.clusters).to_owned(),
        sources: work.sources.clone(),
    };
    Some((through.cluster.clone(), serve))
}

/// The agent through which the sources are read, where it listens now.
fn relay_now(facts: &Facts<'_>, known: &Relay) -> Relay {
    Relay { cluster: known.cluster.clone(), address: route::address(&known.cluster, facts.clusters).to_owned() }
}

/// The version already stands at the target: a copy has nothing to do, a move has only the other homes to retire.
fn already_there(facts: &Facts<'_>, mut status: DataMigrateStatus, homes: &[Home], home: &Home) -> Next {
    status.root = Some(home.root.clone());
    let version = facts.dataset.and_then(|d| d.status.as_ref()).map(|known| Version {
        root: home.root.clone(),
        totals: crate::report::Totals { files: known.files, directories: known.directories, bytes: known.total_bytes },
        digested: known.digested,
    });
    let mut next =
        finish(facts, status, OperationPhase::Complete, "AlreadyThere", "the version is at the target already");
    if facts.operation.spec.mode == MigrateMode::Move {
        next.cut_over = version.map(|version| CutOver { homes: retire_others(homes, home), version });
    }
    next
}

/// Where the copy goes: a place of its own, so that an unfinished one is never mistaken for a home.
fn home_uri(operation: &DataMigrate, target: &Storage) -> Option<Uri> {
    let (namespace, dataset) = operation.dataset()?;
    let own: String = operation.metadata.uid.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
    let base = Uri::parse(&target.spec.uri).ok()?;
    base.join(namespace).and_then(|u| u.join(dataset)).and_then(|u| u.join(&own)).ok()
}

fn plan(route: &Route, target: &Storage, to: &Uri, bytes: u64, files: u64) -> MigratePlan {
    let from: Vec<_> = route.source.endpoints.iter().map(|e| e.uri.to_string()).collect();
    MigratePlan {
        route: route.name.to_owned(),
        executor: route.executor.clone(),
        through: route.relay.as_ref().map(|relay| relay.cluster.clone()).unwrap_or_default(),
        from_uri: from.join(", "),
        from_cluster: route.source.cluster.clone().unwrap_or_default(),
        to_uri: to.to_string(),
        to_cluster: target.spec.cluster.clone(),
        bytes,
        files,
        seconds: None,
        cost: None,
        reasons: route.reasons.clone(),
    }
}

/// An agent has the work.
fn running(facts: &Facts<'_>, mut status: DataMigrateStatus, cluster: &str, work: &MigrateWork, stop: bool) -> Next {
    let keep = |status: DataMigrateStatus, cancel: bool| {
        let relay = work.relay.as_ref().map(|known| relay_now(facts, known));
        let work = MigrateWork { cancel, relay, ..work.clone() };
        let serving = serving(facts, &work, cluster);
        Next { status, assignment: Some((cluster.to_owned(), work)), serving, cut_over: None, release: false }
    };
    status.phase = OperationPhase::Executing;
    // The cluster is gone for good: nobody will report any more.
    if !facts.clusters.contains_key(cluster) {
        let message = format!("cluster {cluster}, whose agent did the work, was removed");
        let phase = if stop { OperationPhase::Cancelled } else { OperationPhase::Failed };
        return finish(facts, status, phase, "ClusterRemoved", &message);
    }
    if let Some(gone) = work.relay.as_ref().filter(|relay| !stop && !facts.clusters.contains_key(&relay.cluster)) {
        // Withdrawing unfinished work makes its agent remove what it wrote.
        let message = format!("cluster {}, through whose agent the sources were read, was removed", gone.cluster);
        return finish(facts, status, OperationPhase::Failed, "ClusterRemoved", &message);
    }
    let Some(report) = facts.report else {
        status.message = format!("waits for the agent of {cluster}");
        return keep(status, stop);
    };
    if report.progress != Progress::default() {
        status.progress = report.progress.clone();
    }
    let problem = report.problem.as_ref();
    match report.phase {
        MigratePhase::Done if !stop && !work.cancel => match cut_over(facts, status.clone(), work, report) {
            Ok(next) => next,
            Err((reason, message)) => {
                // The copy stands but no catalog entry may point at it: its agent removes it first.
                reason.clone_into(&mut status.reason);
                status.message = message;
                keep(status, true)
            }
        },
        MigratePhase::Discarded if stop => {
            finish(facts, status, OperationPhase::Cancelled, "Cancelled", "stopped, and what was written was removed")
        }
        MigratePhase::Discarded => {
            let (reason, message) = (status.reason.clone(), status.message.clone());
            finish(facts, status, OperationPhase::Failed, &reason, &message)
        }
        MigratePhase::Failed if !stop && !work.cancel => {
            // Withdrawing unfinished work makes its agent remove what it wrote.
            let (reason, message) =
                problem.map_or(("Internal", "the agent gave no reason"), |p| (p.reason.as_str(), p.message.as_str()));
            finish(facts, status, OperationPhase::Failed, reason, message)
        }
        // The reason why the copy is being removed stays until it is.
        _ if work.cancel && !stop => keep(status, true),
        phase => {
            doing(phase, stop).clone_into(&mut status.reason);
            let problem = facts.not_served.filter(|_| !stop).or(problem);
            status.message = problem.map_or_else(String::new, |p| format!("{}: {}", p.reason, p.message));
            keep(status, stop)
        }
    }
}

/// What an agent does, in a status's words.
pub(crate) const fn doing(phase: MigratePhase, stop: bool) -> &'static str {
    match phase {
        _ if stop => "Cancelling",
        MigratePhase::Planning => "Planning",
        MigratePhase::Copying => "Copying",
        MigratePhase::Verifying => "Verifying",
        MigratePhase::Done | MigratePhase::Failed | MigratePhase::Discarded => "CuttingOver",
    }
}

/// The operation's end with the new home, or why there must be none: a reason and a message.
fn cut_over(
    facts: &Facts<'_>,
    mut status: DataMigrateStatus,
    work: &MigrateWork,
    report: &MigrateReport,
) -> Result<Next, (&'static str, String)> {
    let version = report.version.clone().ok_or_else(|| ("Internal", "the agent named no version".to_owned()))?;
    let dataset = facts
        .dataset
        .filter(|d| d.metadata.uid == work.dataset.uid)
        .ok_or_else(|| ("DatasetNotFound", "the dataset was deleted meanwhile".to_owned()))?;
    // A source that is a home was read at a known root: the copy must have the same one.
    if let Some(root) = work.root.as_ref().filter(|root| **root != version.root) {
        return Err(("Corrupt", format!("the copy has root {}, its source has {root}", version.root)));
    }
    let target = facts.operation.target().unwrap_or_default();
    let storage = facts
        .storages
        .get(target)
        .ok_or_else(|| ("StorageNotFound", format!("Storage {target} was deleted meanwhile")))?;
    let home = Home {
        storage: target.to_owned(),
        cluster: storage.spec.cluster.clone(),
        uri: work.target.uri.to_string(),
        root: version.root.clone(),
        bytes: version.totals.bytes,
        files: version.totals.files,
        state: HomeState::Ready,
        verified_time: facts.now,
        operation: facts.operation.metadata.uid.clone(),
    };
    let present = dataset.status.as_ref().map(|s| s.homes.clone()).unwrap_or_default();
    let mut homes = match facts.operation.spec.mode {
        MigrateMode::Move => retire_others(&present, &home),
        // One Storage holds one version: an older one goes, whatever the mode.
        MigrateMode::Copy => {
            present.into_iter().map(|h| if h.storage == home.storage { retire(h) } else { h }).collect()
        }
    };
    homes.retain(|h| h.uri != home.uri);
    homes.push(home);
    status.root = Some(version.root.clone());
    let totals = version.totals;
    status.progress = Progress {
        files_done: totals.files,
        files_total: totals.files,
        bytes_done: totals.bytes,
        bytes_total: totals.bytes,
        ..status.progress
    };
    let mut next = finish(facts, status, OperationPhase::Complete, "Verified", "the copy is complete and verified");
    next.cut_over = Some(CutOver { homes, version });
    Ok(next)
}

fn retire(home: Home) -> Home {
    Home { state: HomeState::Removing, ..home }
}

fn retire_others(homes: &[Home], keep: &Home) -> Vec<Home> {
    homes.iter().map(|h| if h.uri == keep.uri { h.clone() } else { retire(h.clone()) }).collect()
}

#[cfg(test)]
mod tests;
