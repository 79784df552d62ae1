//! ③ The state machine of a load: from what is known, what comes next.
//!
//! Pending → Executing → Complete, Failed or Cancelled. Every cluster that holds the dataset when the load begins, or the one
//! that is named, has its agent bring the files; a version that changes meanwhile is loaded in its new shape. A load leaves
//! nothing that must be cleaned: withdrawing its work ends it, and what was brought stays as if it had been read.
//!
//! Invariants: only a cluster whose cache is assigned the dataset is given work, and for the version that its cache is to hold;
//! a report counts only for that version; a final phase never changes.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::desired::{CacheWork, DatasetKey, LoadWork};
use crate::kinds::dataload::{ClusterLoad, DataLoadStatus, LoadTier};
use crate::kinds::{CacheLocationStatus, DataLoad, Dataset, OperationPhase, Progress};
use crate::report::{LoadPhase, LoadReport};
use crate::upkeep::rescan;

/// Everything that the next step depends on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub operation: &'a DataLoad,
    pub dataset: Option<&'a Dataset>,
    /// The clusters that there are.
    pub clusters: &'a BTreeSet<String>,
    /// What the caches of the dataset are to hold, by cluster.
    pub caches: &'a BTreeMap<String, &'a CacheWork>,
    /// What they hold, by cluster.
    pub held: &'a BTreeMap<String, CacheLocationStatus>,
    /// The assignments as they stand, by cluster.
    pub assigned: &'a BTreeMap<String, LoadWork>,
    /// What the agents say of them.
    pub reports: &'a BTreeMap<String, &'a LoadReport>,
    pub now: Timestamp,
}

/// What should be so now.
#[derive(Debug, Clone, PartialEq)]
pub struct Next {
    pub status: DataLoadStatus,
    /// The assignments that should exist, by cluster.
    pub assignments: BTreeMap<String, LoadWork>,
    /// The dataset's sources are to be listed again, by this text.
    pub rescan: Option<String>,
}

/// Decides the next state.
#[must_use]
pub fn step(facts: &Facts<'_>) -> Next {
    let mut status = facts.operation.status.clone().unwrap_or_default();
    status.operation.observed_generation = facts.operation.metadata.generation;
    if status.operation.phase.is_final() {
        return Next { status, assignments: BTreeMap::new(), rescan: None };
    }
    if facts.operation.spec.cancel || facts.operation.metadata.deletion_timestamp.is_some() {
        return finish(facts, status, OperationPhase::Cancelled, "Cancelled", "stopped; what was loaded by then stays");
    }
    if status.operation.phase == OperationPhase::Executing { running(facts, status) } else { begin(facts, status) }
}

fn finish(facts: &Facts<'_>, mut status: DataLoadStatus, phase: OperationPhase, reason: &str, message: &str) -> Next {
    let operation = &mut status.operation;
    operation.finish(phase, reason, message, facts.now);
    operation.progress.bytes_per_second =
        rate(operation.progress.bytes_done, operation.started_time.unwrap_or(facts.now), facts.now);
    Next { status, assignments: BTreeMap::new(), rescan: None }
}

#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn rate(bytes: u64, since: Timestamp, now: Timestamp) -> f64 {
    let took = now.duration_since(since).as_secs_f64();
    if took > 0.0 { bytes as f64 / took } else { 0.0 }
}

fn wait(mut status: DataLoadStatus, message: &str, rescan: Option<String>) -> Next {
    message.clone_into(&mut status.operation.message);
    Next { status, assignments: BTreeMap::new(), rescan }
}

/// No agent has the work yet.
fn begin(facts: &Facts<'_>, mut status: DataLoadStatus) -> Next {
    let spec = &facts.operation.spec;
    let fail = |status, reason: &str, message: &str| finish(facts, status, OperationPhase::Failed, reason, message);
    let Some(dataset) = facts.dataset else {
        return fail(status, "DatasetNotFound", "the dataset does not exist");
    };
    if !spec.cluster.is_empty() && !facts.clusters.contains(&spec.cluster) {
        return fail(status, "ClusterNotFound", &format!("there is no cluster {}", spec.cluster));
    }
    let known = dataset.status.clone().unwrap_or_default();
    if known.observed_generation != dataset.metadata.generation || known.root.is_none() {
        return wait(status, "waits until the dataset's sources were listed", None);
    }
    if spec.load_metadata && !spec.dry_run {
        let request = format!("load {}", facts.operation.metadata.uid);
        if known.rescan_handled != request {
            let asked = rescan::requested(dataset) == request;
            return wait(status, "waits until the dataset's sources were listed again", (!asked).then_some(request));
        }
    }
    let holders: Vec<(&String, &&CacheWork)> =
        facts.caches.iter().filter(|(cluster, _)| spec.cluster.is_empty() || **cluster == spec.cluster).collect();
    if holders.is_empty() {
        let message = match spec.cluster.as_str() {
            "" => "no cluster holds the dataset: place it by a Placement, or mount it".to_owned(),
            cluster => format!("cluster {cluster} does not hold the dataset: place it there, or mount it"),
        };
        let dry = spec.dry_run;
        return if dry { fail(status, "NotHeld", &message) } else { wait(status, &message, None) };
    }
    if spec.dry_run {
        status.clusters = holders.iter().map(|(cluster, _)| planned(facts, cluster)).collect();
        status.operation.progress = sum(&status.clusters);
        return finish(facts, status, OperationPhase::Complete, "DryRun", "planned only: nothing was loaded");
    }
    let work = |cache: &CacheWork| LoadWork {
        dataset: DatasetKey {
            namespace: dataset.metadata.namespace.clone(),
            name: dataset.metadata.name.clone(),
            uid: dataset.metadata.uid.clone(),
        },
        operation: facts.operation.metadata.uid.clone(),
        root: cache.root.clone(),
        paths: facts.operation.paths(),
        page_cache: spec.tier == LoadTier::PageCache,
    };
    let assignments: BTreeMap<String, LoadWork> =
        holders.into_iter().map(|(cluster, cache)| (cluster.clone(), work(cache))).collect();
    status.operation.phase = OperationPhase::Executing;
    "Loading".clone_into(&mut status.operation.reason);
    status.operation.message = format!("in {}", assignments.keys().cloned().collect::<Vec<_>>().join(", "));
    status.operation.started_time = Some(facts.now);
    "Unfinished".clone_into(&mut status.operation.duration);
    status.clusters = assignments
        .keys()
        .map(|cluster| ClusterLoad {
            cluster: cluster.clone(),
            phase: OperationPhase::Executing,
            ..ClusterLoad::default()
        })
        .collect();
    Next { status, assignments, rescan: None }
}

/// What a load would find, as far as the cluster's reports tell: of the whole dataset.
fn planned(facts: &Facts<'_>, cluster: &str) -> ClusterLoad {
    let held = facts.held.get(cluster).cloned().unwrap_or_default();
    let known = facts.dataset.and_then(|dataset| dataset.status.clone()).unwrap_or_default();
    ClusterLoad {
        cluster: cluster.to_owned(),
        phase: OperationPhase::Pending,
        message: if facts.operation.paths().is_empty() {
            String::new()
        } else {
            "the numbers are those of the whole dataset".to_owned()
        },
        progress: Progress {
            files_done: held.cached_files,
            files_total: known.files,
            bytes_done: held.cached_bytes,
            bytes_total: known.total_bytes,
            ..Progress::default()
        },
        ..ClusterLoad::default()
    }
}

/// Agents have the work.
fn running(facts: &Facts<'_>, mut status: DataLoadStatus) -> Next {
    let mut assignments = facts.assigned.clone();
    for load in &mut status.clusters {
        if load.phase.is_final() {
            // Its work stays until all are done: it is withdrawn with the others.
            continue;
        }
        let over = |load: &mut ClusterLoad, phase: OperationPhase, reason: &str, message: String| {
            load.phase = phase;
            reason.clone_into(&mut load.reason);
            load.message = message;
        };
        let failed = OperationPhase::Failed;
        let (Some(work), Some(cache)) = (assignments.get_mut(&load.cluster), facts.caches.get(&load.cluster)) else {
            let message = "the cluster does not hold the dataset any more".to_owned();
            over(load, failed, "NotHeld", message);
            continue;
        };
        if work.root != cache.root {
            work.root.clone_from(&cache.root);
            continue;
        }
        let Some(report) = facts.reports.get(&load.cluster).filter(|report| report.root == work.root) else { continue };
        load.progress = report.progress.clone();
        load.page_cache_bytes = report.page_cache_bytes;
        let problem = report.problem.as_ref();
        match report.phase {
            LoadPhase::Loading => {
                load.message = problem.map_or_else(String::new, |p| format!("{}: {}", p.reason, p.message));
            }
            LoadPhase::Done => over(load, OperationPhase::Complete, "", report.message.clone()),
            LoadPhase::Failed => {
                let (reason, message) = problem.map_or(("Internal", "the agent gave no reason".to_owned()), |p| {
                    (p.reason.as_str(), p.message.clone())
                });
                over(load, failed, reason, message);
            }
        }
    }
    status.operation.progress = sum(&status.clusters);
    let open: Vec<&ClusterLoad> = status.clusters.iter().filter(|load| !load.phase.is_final()).collect();
    let said = |loads: &[&ClusterLoad]| {
        let words = loads.iter().filter(|load| !load.message.is_empty());
        words.map(|load| format!("{}: {}", load.cluster, load.message)).collect::<Vec<_>>().join("; ")
    };
    if !open.is_empty() {
        let names: Vec<&str> = open.iter().map(|load| load.cluster.as_str()).collect();
        let problems = said(&open);
        status.operation.message = if problems.is_empty() { format!("in {}", names.join(", ")) } else { problems };
        return Next { status, assignments, rescan: None };
    }
    let all: Vec<&ClusterLoad> = status.clusters.iter().collect();
    let bad = all.iter().find(|load| load.phase != OperationPhase::Complete).map(|load| load.reason.clone());
    let message = said(&all);
    match bad {
        Some(reason) => finish(facts, status, OperationPhase::Failed, &reason, &message),
        None => finish(facts, status, OperationPhase::Complete, "Loaded", &message),
    }
}

/// All clusters together. The time that is left is the longest.
fn sum(loads: &[ClusterLoad]) -> Progress {
    let mut all = Progress::default();
    for load in loads {
        let one = &load.progress;
        all.files_done += one.files_done;
        all.files_total += one.files_total;
        all.bytes_done += one.bytes_done;
        all.bytes_total += one.bytes_total;
        all.bytes_per_second += one.bytes_per_second;
        if let Some(eta) = one.eta_seconds {
            all.eta_seconds = Some(all.eta_seconds.map_or(eta, |longest| longest.max(eta)));
        }
    }
    all
}

#[cfg(test)]
mod tests;
