//! ⑦ What an agent says of its work. Kept in the store under `/reports/CLUSTER/ID`, so that any hub can go on from it.
//!
//! Invariants: a report speaks of one assignment at one generation; a later report replaces the earlier whole.

use serde::{Deserialize, Serialize};

use crate::kinds::{NodeUsage, Progress, SnapshotInfo};

/// The start of every report's key.
pub const REPORTS: &str = "/reports/";

/// The start of one cluster's reports.
#[must_use]
pub fn reports_prefix(cluster: &str) -> String {
    format!("{REPORTS}{cluster}/")
}

/// The key of one report.
#[must_use]
pub fn report_key(cluster: &str, id: &str) -> String {
    format!("{REPORTS}{cluster}/{id}")
}

/// Cluster and assignment id of a report's key.
#[must_use]
pub fn split_report_key(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix(REPORTS)?.split_once('/')
}

/// Why a piece of work cannot be done, as far as the agent can tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// One word that programs can branch on: `NotFound`, `AccessDenied`, `ReadOnly`, `NoSpace`, `Unreachable`,
    /// `SourceChanged`, `Corrupt`, `Unsupported`, `Invalid`, `Internal`, `WrongPassword`, `Locked`.
    pub reason: String,
    pub message: String,
    /// Whether the agent goes on trying by itself.
    pub retrying: bool,
}

/// Totals of a version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub files: u64,
    pub directories: u64,
    pub bytes: u64,
}

/// A version of a dataset, as found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub root: String,
    pub totals: Totals,
    /// Whether every file's digest is in the manifest.
    pub digested: bool,
}

/// The state of a piece of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "lowercase")]
pub enum Report {
    Scan(ScanReport),
    Cache(CacheReport),
    Migrate(MigrateReport),
    Remove(RemoveReport),
    Mount(MountReport),
    Serve(ServeReport),
    Backup(BackupReport),
    Restore(RestoreReport),
    Repository(RepositoryReport),
    Load(LoadReport),
}

/// A scan ended, or cannot end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanReport {
    /// The dataset generation that was scanned.
    pub generation: i64,
    /// What the scan was for.
    #[serde(default)]
    pub request: String,
    pub found: Option<Version>,
    pub problem: Option<Problem>,
}

/// What the cache holds of a dataset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheReport {
    /// `Filling`, `Ready`, `Partial` or `Failed`.
    pub phase: String,
    pub root: String,
    pub cached_bytes: u64,
    pub total_bytes: u64,
    pub cached_files: u64,
    pub total_files: u64,
    pub nodes: Vec<NodeUsage>,
    pub problem: Option<Problem>,
}

/// What a cluster says of a cache when its agent's machine says `own` and its other nodes say `others`.
///
/// What is placed every node is to hold, and what is read each node that reads it: the cluster holds at least what the
/// node holds that has the most. It is as far as the node that is behind.
#[must_use]
pub fn merge<'a>(own: CacheReport, others: impl Iterator<Item = &'a CacheReport>) -> CacheReport {
    // The worst first.
    let rank = |phase: &str| ["Failed", "Partial", "Filling", "OnDemand", "Ready"].iter().position(|p| *p == phase);
    let mut merged = own;
    for other in others.filter(|other| other.phase == "Failed" || !other.root.is_empty()) {
        merged.nodes.extend(other.nodes.iter().cloned());
        // What a node holds of another version than the one that is wanted now is only so many bytes.
        if other.root != merged.root {
            merged.phase = if merged.phase == "Ready" { "Filling".to_owned() } else { merged.phase };
            continue;
        }
        if rank(&other.phase) < rank(&merged.phase) {
            merged.phase.clone_from(&other.phase);
        }
        if other.cached_bytes > merged.cached_bytes {
            (merged.cached_bytes, merged.cached_files) = (other.cached_bytes, other.cached_files);
        }
        if merged.problem.is_none() {
            merged.problem.clone_from(&other.problem);
        }
    }
    merged
}

/// Where a migration stands on the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MigratePhase {
    Planning,
    Copying,
    Verifying,
    /// The target holds the whole verified version: the hub may cut over.
    Done,
    Failed,
    /// Cancelled, and nothing is left at the target.
    Discarded,
}

/// How far a migration is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrateReport {
    pub phase: MigratePhase,
    pub progress: Progress,
    /// With `Done`: the version at the target.
    pub version: Option<Version>,
    pub problem: Option<Problem>,
}

/// A home was removed, or cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveReport {
    pub removed: bool,
    pub problem: Option<Problem>,
}

/// Sources are served to another agent, or cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeReport {
    pub problem: Option<Problem>,
}

/// How a mount stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountReport {
    /// Readers are served.
    pub mounted: bool,
    /// The version that is shown.
    pub root: String,
    /// The process that serves it.
    pub process: Option<u32>,
    /// Complete files are read by the kernel from the cache.
    pub passthrough: bool,
    /// Why they are not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub without_passthrough: String,
    /// It is written through, at the dataset's sources.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub writable: bool,
    /// Another text whenever something was written.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub written: String,
    pub problem: Option<Problem>,
}

/// How far a backup is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BackupReport {
    pub progress: Progress,
    /// With the end: the snapshot, what was read for it, and how many were forgotten after it.
    pub written: Option<WrittenSnapshot>,
    pub problem: Option<Problem>,
}

/// A snapshot that stands in its repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenSnapshot {
    pub snapshot: SnapshotInfo,
    pub bytes_read: u64,
    pub forgotten: u64,
    /// What the check found, if there was one.
    pub check_problems: Option<Vec<String>>,
    /// Why retention or the check could not be done; the snapshot stands all the same.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remark: String,
}

/// How far a restore is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// As of a migration.
    pub copy: MigrateReport,
    /// With the end: which snapshot it was, …
    pub snapshot: Option<SnapshotInfo>,
    /// … and the objects of the catalog that came with it, as JSON.
    pub catalog: Option<String>,
}

/// What came of looking after a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryReport {
    /// What it was for.
    pub request: String,
    /// The snapshots that it has, once the task is done.
    pub found: Option<FoundSnapshots>,
    /// After a check: what is wrong.
    pub problems: Option<Vec<String>>,
    pub problem: Option<Problem>,
}

/// Snapshots of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundSnapshots {
    /// The newest, the newest first.
    pub newest: Vec<SnapshotInfo>,
    pub count: u64,
}

/// Where a load stands on the agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadPhase {
    #[default]
    Loading,
    Done,
    Failed,
}

/// How far a load is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    pub phase: LoadPhase,
    /// The version that is loaded.
    pub root: String,
    pub progress: Progress,
    /// Bytes in the page cache, if they were to be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_cache_bytes: Option<u64>,
    /// With `Done`: what is to be known of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub problem: Option<Problem>,
}

/// A report and the assignment generation that it speaks of, as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredReport {
    pub generation: u64,
    pub report: Report,
}

/// What an agent says of itself, when it connects and when it changes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentReport {
    /// `host` or `kubernetes`.
    pub platform: String,
    pub version: String,
    /// Tells one installation of the agent (one data directory) from another.
    pub instance: String,
    /// Tells one process of that installation from another: made anew at each start.
    #[serde(default)]
    pub process: String,
    /// Tells the machine, and what the agent sees of its file systems, from others: who reads the same text sees the
    /// same mounts.
    #[serde(default)]
    pub machine: String,
    pub engines: Vec<String>,
    pub nodes: Vec<NodeUsage>,
    /// Where other agents reach it, `HOST:PORT`; empty if they do not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(node: &str, phase: &str, root: &str, cached_bytes: u64) -> CacheReport {
        let nodes = vec![NodeUsage { node: node.to_owned(), ..NodeUsage::default() }];
        let (phase, root) = (phase.to_owned(), root.to_owned());
        CacheReport { phase, root, cached_bytes, total_bytes: 100, nodes, ..CacheReport::default() }
    }

    #[test]
    fn a_cluster_is_as_far_as_the_node_that_is_behind_and_holds_what_one_holds() {
        let (ready, filling) = (says("a", "Ready", "r", 100), says("b", "Filling", "r", 40));
        let merged = merge(ready.clone(), [&filling].into_iter());
        assert_eq!((merged.phase.as_str(), merged.cached_bytes, merged.nodes.len()), ("Filling", 100, 2));
        let merged = merge(filling, [&ready].into_iter());
        assert_eq!((merged.phase.as_str(), merged.cached_bytes, merged.nodes.len()), ("Filling", 100, 2));
        let older = says("b", "Ready", "before", 300);
        let merged = merge(ready.clone(), [&older].into_iter());
        assert_eq!((merged.phase.as_str(), merged.cached_bytes), ("Filling", 100), "it holds another version");
        assert_eq!(merge(ready.clone(), std::iter::empty()), ready);
    }
}
