//! ③⑧ Upkeep of one dataset: which scans, caches and removals it needs, and what is known of it.
//!
//! A pure function of the dataset, what surrounds it and what agents reported: asked again with the same facts it
//! gives the same answer, so that a lost write is repaired by asking again.
//!
//! Invariants: a source is listed by one cluster at a time, the next in order only after the one before found nothing;
//! a version is replaced only by one that was found; a home is forgotten only after it was removed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::desired::{CacheWork, DatasetKey, RemoveWork, ScanWork, Work};
use crate::kinds::cachelocation::CacheLocationSpec;
use crate::kinds::{
    CacheLocation, CacheLocationStatus, Cluster, ClusterState, Dataset, DatasetMount, DatasetMountStatus, DatasetPhase,
    DatasetStatus, Home, HomeState, Placement, Storage,
};
use crate::meta::{Condition, ConditionStatus, set_condition};
use crate::placement::Decision;
use crate::report::{CacheReport, Report, ScanReport, StoredReport};
use crate::route;
use crate::uri::{SCHEMES, Uri};

mod mounts;
pub mod rescan;
pub mod writes;

/// The engine that fills caches.
pub const ENGINE: &str = "nodecache";

/// Everything that the dataset's upkeep depends on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub dataset: &'a Dataset,
    pub storages: &'a BTreeMap<String, Storage>,
    pub clusters: &'a BTreeMap<String, Cluster>,
    /// The Placements that choose the dataset, each with its decision.
    pub placements: &'a [(&'a Placement, &'a Decision)],
    /// Reports on this dataset's assignments, by cluster and assignment id.
    pub reports: &'a BTreeMap<(String, String), StoredReport>,
    /// Names of unfinished migrations of the dataset.
    pub migrations: &'a [String],
    /// The mounts of the dataset.
    pub mounts: &'a [&'a DatasetMount],
    pub now: Timestamp,
}

/// What should be so now.
#[derive(Debug, Clone, PartialEq)]
pub struct Next {
    pub status: DatasetStatus,
    /// Scan, cache and removal work, by cluster.
    pub assignments: BTreeSet<(String, WorkById)>,
    pub cache_locations: Vec<CacheLocation>,
    /// How each mount stands, by name.
    pub mounts: BTreeMap<String, DatasetMountStatus>,
}

/// Work ordered by its id, so that sets of it compare.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkById(pub Work);

impl Eq for WorkById {}
impl PartialOrd for WorkById {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for WorkById {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.id().cmp(&other.0.id())
    }
}

/// Decides what the dataset needs.
#[must_use]
pub fn plan(facts: &Facts<'_>) -> Next {
    let mut next = Next {
        status: facts.dataset.status.clone().unwrap_or_default(),
        assignments: BTreeSet::new(),
        cache_locations: Vec::new(),
        mounts: BTreeMap::new(),
    };
    if facts.dataset.metadata.deletion_timestamp.is_some() {
        return next;
    }
    writes::notice(facts, &mut next.status);
    scan(facts, &mut next);
    homes(facts, &mut next);
    caches(facts, &mut next);
    mounts::plan(facts, &mut next);
    summary(facts, &mut next.status, &next.cache_locations);
    next
}

fn key(dataset: &Dataset) -> DatasetKey {
    DatasetKey {
        namespace: dataset.metadata.namespace.clone(),
        name: dataset.metadata.name.clone(),
        uid: dataset.metadata.uid.clone(),
    }
}

fn report<'a>(facts: &Facts<'a>, cluster: &str, work: &Work) -> Option<&'a Report> {
    facts.reports.get(&(cluster.to_owned(), work.id())).map(|stored| &stored.report)
}

/// Lists the sources if that has not been done for this generation of the spec, is asked for, or is due.
fn scan(facts: &Facts<'_>, next: &mut Next) {
    let dataset = facts.dataset;
    let generation = dataset.metadata.generation;
    let unsupported: Vec<&str> = dataset
        .spec
        .mounts
        .iter()
        .filter(|m| Uri::parse(&m.mount_point).is_err())
        .map(|m| m.mount_point.split_once("://").map_or("?", |(scheme, _)| scheme))
        .collect();
    if !unsupported.is_empty() {
        let message = format!("scheme {} is not supported: use one of {}", unsupported.join(", "), SCHEMES.join(", "));
        condition(facts, &mut next.status, "Scanned", ConditionStatus::False, "Unsupported", &message);
        return;
    }
    let endpoints = route::mount_endpoints(dataset);
    if endpoints.is_empty() {
        next.status.observed_generation = generation;
        condition(facts, &mut next.status, "Scanned", ConditionStatus::False, "NoMounts", "the dataset has no mounts");
        return;
    }
    let Some(request) = rescan::request(dataset, facts.now) else { return };
    rescan::begin(&mut next.status);
    let known = next.status.observed_generation == generation && next.status.root.is_some();
    let work = Work::Scan(ScanWork { dataset: key(dataset), generation, request: request.clone(), sources: endpoints });
    let mut said = Vec::new();
    for cluster in scanners(facts) {
        next.assignments.insert((cluster.clone(), WorkById(work.clone())));
        let current = match report(facts, &cluster, &work) {
            Some(Report::Scan(scan)) if scan.generation == generation && scan.request == request => Some(scan),
            _ => None,
        };
        match current {
            Some(ScanReport { found: Some(version), .. }) => {
                let status = &mut next.status;
                // What the sources hold is what they held: the version stays, with all that is known of it since.
                let same = known && status.scanned_root.as_ref() == Some(&version.root);
                if !same {
                    status.root = Some(version.root.clone());
                    status.digested = version.digested;
                    status.files = version.totals.files;
                    status.directories = version.totals.directories;
                    status.total_bytes = version.totals.bytes;
                }
                status.observed_generation = generation;
                status.scanned_root = Some(version.root.clone());
                status.rescan_handled = rescan::requested(dataset);
                rescan::end(status);
                status.source_cluster = Some(cluster.clone());
                status.scanned_time = Some(facts.now);
                let message = format!("listed by {cluster}");
                condition(facts, status, "Scanned", ConditionStatus::True, "Listed", &message);
                // Known now: nobody needs to list it any more.
                next.assignments.retain(|(_, w)| !matches!(w.0, Work::Scan(_)));
                return;
            }
            Some(ScanReport { problem: Some(problem), .. }) => {
                said.push(format!("{cluster}: {}: {}", problem.reason, problem.message));
                if problem.retrying {
                    break;
                }
            }
            _ => {
                said.push(format!("waits for {cluster}"));
                break;
            }
        }
    }
    let all_failed = !said.is_empty() && !said.iter().any(|s| s.starts_with("waits"));
    if known && !all_failed {
        // The version that is known stays, and stays good.
        return;
    }
    let reason = if all_failed { "SourceUnreadable" } else { "Waiting" };
    let message =
        if said.is_empty() { "waits for a Ready cluster that can read the mounts".to_owned() } else { said.join("; ") };
    condition(facts, &mut next.status, "Scanned", ConditionStatus::False, reason, &message);
}

/// The clusters that may be able to list the mounts, the likeliest first. Files in a Storage are its cluster's alone: on
/// another machine the same path is another thing.
fn scanners(facts: &Facts<'_>) -> Vec<String> {
    let owners = route::owners(&route::mount_endpoints(facts.dataset), facts.storages);
    let known = facts.dataset.status.as_ref().and_then(|s| s.source_cluster.clone());
    let mut order: Vec<String> = known.into_iter().filter(|name| owners.is_empty() || owners.contains(name)).collect();
    if owners.is_empty() {
        order.extend(facts.clusters.keys().cloned());
    } else {
        order.extend(owners);
    }
    let mut seen = BTreeSet::new();
    order.retain(|name| {
        let state = facts.clusters.get(name).map(Cluster::state);
        matches!(state, Some(ClusterState::Ready | ClusterState::Suspect)) && seen.insert(name.clone())
    });
    order
}

/// Homes that were replaced are removed by an agent that reaches them, and then forgotten.
fn homes(facts: &Facts<'_>, next: &mut Next) {
    let mut kept: Vec<Home> = Vec::new();
    let mut stuck = Vec::new();
    for home in std::mem::take(&mut next.status.homes) {
        if home.state != HomeState::Removing {
            kept.push(home);
            continue;
        }
        let place = facts.storages.get(&home.storage).zip(Uri::parse(&home.uri).ok());
        let Some((storage, uri)) = place else {
            // Its Storage is gone, and with it the key to the place: there is nothing left to do.
            continue;
        };
        let work =
            Work::Remove(RemoveWork { dataset: key(facts.dataset), target: route::storage_endpoint(storage, uri) });
        match report(facts, &home.cluster, &work) {
            Some(Report::Remove(said)) if said.removed => {}
            said => {
                if let Some(Report::Remove(said)) = said
                    && let Some(problem) = &said.problem
                {
                    stuck.push(format!("{}: {}: {}", home.uri, problem.reason, problem.message));
                }
                next.assignments.insert((home.cluster.clone(), WorkById(work)));
                kept.push(home);
            }
        }
    }
    next.status.homes = kept;
    if stuck.is_empty() {
        next.status.conditions.retain(|c| c.kind != "HomesRemoved");
    } else {
        condition(facts, &mut next.status, "HomesRemoved", ConditionStatus::False, "Retrying", &stuck.join("; "));
    }
}

/// What a cluster's cache should hold.
#[derive(Default)]
struct Wanted {
    /// An empty path is everything.
    paths: BTreeSet<String>,
    pinned: bool,
    /// A Placement wants it; else files come as a mount's readers ask for them.
    placed: bool,
}

/// Caches in every cluster that a Placement chose, and below every mount.
fn caches(facts: &Facts<'_>, next: &mut Next) {
    let mut wanted: BTreeMap<&str, Wanted> = BTreeMap::new();
    // What is written is read at the home.
    for mount in mounts::live(facts).filter(|mount| !writes::wanted(facts, mount)) {
        wanted.entry(&mount.spec.cluster).or_default();
    }
    for (placement, decision) in facts.placements {
        for cluster in &decision.clusters {
            let Wanted { paths, pinned, placed } = wanted.entry(cluster).or_default();
            *placed = true;
            // An empty list of paths is "all", which swallows every other list.
            if placement.spec.paths.is_empty() {
                paths.insert(String::new());
            }
            paths.extend(placement.spec.paths.iter().map(|p| p.trim_matches('/').to_owned()));
            *pinned |= placement.spec.pinned;
        }
    }
    let dataset = Dataset { status: Some(next.status.clone()), ..facts.dataset.clone() };
    let sources = route::sources(&dataset, facts.storages);
    for (cluster, Wanted { paths, pinned, placed }) in wanted {
        let mut location = CacheLocation::new(
            &dataset.metadata.namespace,
            &format!("{}.{cluster}", dataset.metadata.name),
            CacheLocationSpec { dataset: dataset.metadata.name.clone(), cluster: cluster.to_owned() },
        );
        let mut status =
            CacheLocationStatus { engine: ENGINE.to_owned(), phase: "Pending".to_owned(), ..Default::default() };
        let source = route::nearest(&sources, cluster);
        match (next.status.root.clone(), source) {
            (None, _) => "waits until the dataset's sources were listed".clone_into(&mut status.message),
            (Some(_), None) => {
                "Failed".clone_into(&mut status.phase);
                "the cluster reaches neither a home nor the mounts of the dataset".clone_into(&mut status.message);
            }
            (Some(root), Some(source)) => {
                let all = paths.contains("");
                let work = Work::Cache(CacheWork {
                    dataset: key(&dataset),
                    root: source.root.clone().unwrap_or(root),
                    sources: source.endpoints.clone(),
                    paths: if all { Vec::new() } else { paths.into_iter().collect() },
                    pinned,
                    on_demand: !placed,
                });
                if let Some(Report::Cache(said)) = report(facts, cluster, &work) {
                    status = cache_status(said, facts.now);
                }
                next.assignments.insert((cluster.to_owned(), WorkById(work)));
            }
        }
        location.status = Some(status);
        next.cache_locations.push(location);
    }
}

fn cache_status(said: &CacheReport, now: Timestamp) -> CacheLocationStatus {
    CacheLocationStatus {
        engine: ENGINE.to_owned(),
        phase: said.phase.clone(),
        cached_bytes: said.cached_bytes,
        total_bytes: said.total_bytes,
        cached_files: said.cached_files,
        total_files: said.total_files,
        cached_fraction: fraction(said.cached_bytes, said.total_bytes, said.phase == "Ready"),
        nodes: said.nodes.clone(),
        root: Some(said.root.clone()).filter(|root| !root.is_empty()),
        message: said.problem.as_ref().map_or_else(String::new, |p| format!("{}: {}", p.reason, p.message)),
        reported_time: Some(now),
    }
}

#[allow(clippy::cast_precision_loss, reason = "a fraction for people")]
fn fraction(part: u64, whole: u64, complete: bool) -> f64 {
    match whole {
        // A dataset of empty files is cached whole once its cache says so.
        0 => f64::from(u8::from(complete)),
        _ => (part as f64 / whole as f64).min(1.0),
    }
}

fn summary(facts: &Facts<'_>, status: &mut DatasetStatus, locations: &[CacheLocation]) {
    let unreadable = status.conditions.iter().any(|c| c.kind == "Scanned" && c.reason == "SourceUnreadable");
    status.phase = match status.root {
        _ if !facts.migrations.is_empty() => DatasetPhase::DataMigrating,
        Some(_) if status.observed_generation == facts.dataset.metadata.generation => DatasetPhase::Bound,
        _ if unreadable => DatasetPhase::Failed,
        _ => DatasetPhase::NotBound,
    };
    status.operation_ref.clear();
    if !facts.migrations.is_empty() {
        status.operation_ref.insert("DataMigrate".to_owned(), facts.migrations.join(","));
    }
    let known = status.root.is_some();
    status.ufs_total = if known { human_bytes(status.total_bytes) } else { "[Calculating]".to_owned() };
    status.file_num = if known { status.files.to_string() } else { "[Calculating]".to_owned() };
    let held: Vec<&CacheLocationStatus> = locations.iter().filter_map(|l| l.status.as_ref()).collect();
    status.cache_states.clear();
    if !held.is_empty() {
        let cached: u64 = held.iter().map(|s| s.cached_bytes).sum();
        let total: u64 = held.iter().map(|s| s.total_bytes).sum();
        let capacity: u64 = held.iter().flat_map(|s| &s.nodes).flat_map(|n| &n.media).map(|m| m.capacity_bytes).sum();
        let complete = held.iter().all(|s| s.phase == "Ready");
        let percentage = format!("{:.1}%", fraction(cached, total, complete) * 100.0);
        status.cache_states.insert("cached".to_owned(), human_bytes(cached));
        status.cache_states.insert("cacheCapacity".to_owned(), human_bytes(capacity));
        status.cache_states.insert("cachedPercentage".to_owned(), percentage);
    }
}

/// Bytes for people, in binary units as Fluid writes them: `1.50GiB`.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.2}{unit}")
}

fn condition(
    facts: &Facts<'_>,
    status: &mut DatasetStatus,
    kind: &str,
    is: ConditionStatus,
    reason: &str,
    message: &str,
) {
    set_condition(
        &mut status.conditions,
        Condition {
            kind: kind.to_owned(),
            status: is,
            observed_generation: facts.dataset.metadata.generation,
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: facts.now,
        },
    );
}

#[cfg(test)]
mod tests;
