//! ⑦ What an agent says of its work. Kept in the store under `/reports/CLUSTER/ID`, so that any hub can go on from it.
//!
//! Invariants: a report speaks of one assignment at one generation; a later report replaces the earlier whole.

use serde::{Deserialize, Serialize};

use crate::kinds::{NodeUsage, Progress};

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
    /// `SourceChanged`, `Corrupt`, `Unsupported`, `Invalid`, `Internal`.
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
