//! ④ Desired state: what one agent is told to do, as assignments, and the rule by which it accepts them.
//!
//! An assignment is kept in the store under `/assignments/CLUSTER/ID` and reaches the agent with a generation that
//! grows with every change. It names secrets; their values are added on the way out and never stored with it.
//!
//! Invariants: an id stands for one piece of work for ever; an agent never goes back to an older generation; the same
//! generation never carries different content.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::kinds::{MigrateVerify, Retention, SecretKeySelector};
use crate::uri::Uri;

/// The start of every assignment's key.
pub const ASSIGNMENTS: &str = "/assignments/";

/// The start of one cluster's assignments.
#[must_use]
pub fn assignments_prefix(cluster: &str) -> String {
    format!("{ASSIGNMENTS}{cluster}/")
}

/// The key of one assignment.
#[must_use]
pub fn assignment_key(cluster: &str, id: &str) -> String {
    format!("{ASSIGNMENTS}{cluster}/{id}")
}

/// Cluster and id of an assignment's key.
#[must_use]
pub fn split_assignment_key(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix(ASSIGNMENTS)?.split_once('/')
}

/// A dataset, as an agent knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DatasetKey {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// A place to read or write, with the names of the secrets that open it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where it appears in the dataset's tree; empty for the root.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    pub uri: Uri,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Option name → the Secret's key that gives its value. The namespace is always filled in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretKeySelector>,
}

impl Endpoint {
    /// The name under which a secret's value travels beside the assignment.
    #[must_use]
    pub fn secret_id(reference: &SecretKeySelector) -> String {
        format!("{}/{}/{}", reference.namespace, reference.name, reference.key)
    }
}

/// List the sources of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanWork {
    pub dataset: DatasetKey,
    /// The dataset's generation: a change asks for a new scan.
    pub generation: i64,
    /// What this scan is for: another text asks for a new scan.
    #[serde(default)]
    pub request: String,
    pub sources: Vec<Endpoint>,
}

/// Keep a dataset in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheWork {
    pub dataset: DatasetKey,
    /// The version to hold.
    pub root: String,
    /// Where its bytes are read.
    pub sources: Vec<Endpoint>,
    /// Paths to hold; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    #[serde(default)]
    pub pinned: bool,
    /// Fetch nothing beforehand: files come as they are read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_demand: bool,
}

/// Bring a dataset into a Storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateWork {
    pub dataset: DatasetKey,
    /// The uid of the DataMigrate: the name of the work in every journal.
    pub operation: String,
    pub sources: Vec<Endpoint>,
    /// The version to copy, if the sources are a home; else what the sources hold now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// The exact place of the new home, owned by this work alone.
    pub target: Endpoint,
    /// The sources are read through another agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<Relay>,
    pub streams: u32,
    #[serde(default)]
    pub verify: MigrateVerify,
    /// Stop, and remove what was written.
    #[serde(default)]
    pub cancel: bool,
}

/// The agent through which an agent reads what it does not reach itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    pub cluster: String,
    /// Where it listens, `HOST:PORT`; empty if nowhere: then it dials.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
}

/// Serve the sources of a migration to the agent that does it, for as long as this is assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeWork {
    pub dataset: DatasetKey,
    /// The uid of the DataMigrate.
    pub operation: String,
    /// The cluster whose agent may read, and nobody else.
    pub peer: String,
    /// Where that agent listens, `HOST:PORT`, to be dialled in case that it cannot dial this one; empty if nowhere.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub peer_address: String,
    pub sources: Vec<Endpoint>,
}

/// Remove a home that was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveWork {
    pub dataset: DatasetKey,
    pub target: Endpoint,
}

/// Show a dataset, which the cache work of the same dataset holds, as a directory of the member's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountWork {
    pub dataset: DatasetKey,
    /// The uid of the DatasetMount.
    pub mount: String,
    /// The version to show; empty if it is written.
    pub root: String,
    /// Where, absolute.
    pub directory: String,
    /// The node on whose machine; the agent's own if empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// What a writable mount writes to; nothing if it only shows the version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub homes: Vec<Endpoint>,
    /// Paths of the dataset that a writable mount only reads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_only_paths: Vec<String>,
}

/// Write a snapshot of a dataset into a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupWork {
    pub dataset: DatasetKey,
    /// The uid of the DataBackup.
    pub operation: String,
    /// The repository; its secret [`REPOSITORY_PASSWORD`] opens it.
    pub repository: Endpoint,
    pub sources: Vec<Endpoint>,
    /// The version that the sources hold, if they are a home; else what they hold now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// The objects of the catalog that go in with the data, as JSON.
    pub catalog: String,
    /// What is forgotten afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Check the repository's structure afterwards.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub check: bool,
}

/// Bring a snapshot, or a part of one, to a place: a copy whose source is a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreWork {
    /// Where to, and whether to stop. Its sources are the repository.
    pub copy: MigrateWork,
    /// The beginning of a snapshot's id, or `latest`.
    pub snapshot: String,
    /// Namespace and name of the dataset whose newest snapshot `latest` means.
    pub origin: (String, String),
    /// Files and directories to restore; everything if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// Look after a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryWork {
    /// Name and uid of the BackupRepository; it has no namespace.
    pub repository: DatasetKey,
    pub place: Endpoint,
    /// What this is for: another text asks for it again.
    pub request: String,
    pub task: RepositoryTask,
}

/// What is to be done with a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "lowercase")]
pub enum RepositoryTask {
    /// Tell which snapshots it has; make it if there is none and `create` is given.
    List { create: bool },
    /// Check it, reading all contents if `read_data` is given.
    Check { read_data: bool },
    /// Forget what retention does not keep, and remove what no snapshot needs.
    Prune { retention: Option<Retention> },
}

/// The option of a repository's endpoint whose secret is its password.
pub const REPOSITORY_PASSWORD: &str = "password";

/// Bring files of a dataset, which the cache work of the same dataset holds, into the cache now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadWork {
    pub dataset: DatasetKey,
    /// The uid of the DataLoad.
    pub operation: String,
    /// The version that the cache is to hold.
    pub root: String,
    /// Files and directories; everything if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Into the page cache, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub page_cache: bool,
}

/// What an assignment asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "work", rename_all = "lowercase")]
pub enum Work {
    Scan(ScanWork),
    Cache(CacheWork),
    Migrate(MigrateWork),
    Remove(RemoveWork),
    Mount(MountWork),
    Serve(ServeWork),
    Backup(BackupWork),
    Restore(RestoreWork),
    Repository(RepositoryWork),
    Load(LoadWork),
}

impl Work {
    /// The id of the assignment: one for each piece of work.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            Self::Scan(w) => format!("scan/{}/{}/{}", w.dataset.namespace, w.dataset.name, w.dataset.uid),
            Self::Cache(w) => format!("cache/{}/{}/{}", w.dataset.namespace, w.dataset.name, w.dataset.uid),
            Self::Migrate(w) => format!("migrate/{}/{}/{}", w.dataset.namespace, w.dataset.name, w.operation),
            Self::Remove(w) => format!(
                "remove/{}/{}/{}",
                w.dataset.namespace,
                w.dataset.name,
                w.target.uri.path().rsplit('/').next().unwrap_or_default()
            ),
            Self::Mount(w) => format!("mount/{}/{}/{}", w.dataset.namespace, w.dataset.name, w.mount),
            Self::Serve(w) => format!("serve/{}/{}/{}", w.dataset.namespace, w.dataset.name, w.operation),
            Self::Backup(w) => format!("backup/{}/{}/{}", w.dataset.namespace, w.dataset.name, w.operation),
            Self::Restore(w) => {
                format!("restore/{}/{}/{}", w.copy.dataset.namespace, w.copy.dataset.name, w.copy.operation)
            }
            // No namespace is called so.
            Self::Repository(w) => format!("repository/-/{}/{}", w.repository.name, w.repository.uid),
            Self::Load(w) => format!("load/{}/{}/{}", w.dataset.namespace, w.dataset.name, w.operation),
        }
    }

    /// The dataset that the work is for.
    #[must_use]
    pub fn dataset(&self) -> &DatasetKey {
        match self {
            Self::Scan(w) => &w.dataset,
            Self::Cache(w) => &w.dataset,
            Self::Migrate(w) => &w.dataset,
            Self::Remove(w) => &w.dataset,
            Self::Mount(w) => &w.dataset,
            Self::Serve(w) => &w.dataset,
            Self::Backup(w) => &w.dataset,
            Self::Restore(w) => &w.copy.dataset,
            Self::Repository(w) => &w.repository,
            Self::Load(w) => &w.dataset,
        }
    }

    /// Every place that the work opens. What is read through another agent that one opens.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        let (sources, target): (&[Endpoint], Option<&Endpoint>) = match self {
            Self::Scan(w) => (&w.sources, None),
            Self::Cache(w) => (&w.sources, None),
            Self::Migrate(w) if w.relay.is_some() => (&[], Some(&w.target)),
            Self::Migrate(w) => (&w.sources, Some(&w.target)),
            Self::Serve(w) => (&w.sources, None),
            Self::Remove(w) => (&[], Some(&w.target)),
            Self::Mount(w) => (&w.homes, None),
            Self::Load(_) => (&[], None),
            Self::Backup(w) => (&w.sources, Some(&w.repository)),
            Self::Restore(w) => (&w.copy.sources, Some(&w.copy.target)),
            Self::Repository(w) => (&[], Some(&w.place)),
        };
        sources.iter().chain(target)
    }
}

/// What to do with an assignment that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// Write it down, then act.
    Accept,
    /// Known already.
    Duplicate,
    /// Older than what is known: a late message.
    Stale,
    /// The known generation with other content: the sender is broken, nothing is changed.
    Contradiction,
}

/// Decides on an offered `(generation, content)` against what is written down.
#[must_use]
pub fn accept<T: PartialEq>(known: Option<(u64, &T)>, offered: (u64, &T)) -> Acceptance {
    match known {
        None => Acceptance::Accept,
        Some((generation, _)) if offered.0 > generation => Acceptance::Accept,
        Some((generation, _)) if offered.0 < generation => Acceptance::Stale,
        Some((_, content)) if content == offered.1 => Acceptance::Duplicate,
        Some(_) => Acceptance::Contradiction,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_never_goes_back() {
        assert_eq!(accept(None, (1, &"a")), Acceptance::Accept);
        assert_eq!(accept(Some((3, &"a")), (4, &"b")), Acceptance::Accept);
        assert_eq!(accept(Some((3, &"a")), (3, &"a")), Acceptance::Duplicate);
        assert_eq!(accept(Some((3, &"a")), (2, &"b")), Acceptance::Stale);
        assert_eq!(accept(Some((3, &"a")), (3, &"b")), Acceptance::Contradiction);
    }
}
