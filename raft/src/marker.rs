//! Whose data directory this is.
//!
//! A node that starts on another node's files would vote twice under two names; one that starts on an emptied
//! directory under its old name forgets its votes. Both can split the cluster, so the directory names its owner and
//! a marked directory without its log is refused.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::log::REPLACE;

const FILE: &str = "node.json";

/// The data directory is not this node's to use.
#[derive(Debug, thiserror::Error)]
pub enum MarkerError {
    #[error(
        "data directory {dir:?} belongs to node {found_node} of cluster {found_cluster:?}, not to node {node} of cluster {cluster:?}"
    )]
    Foreign { dir: PathBuf, node: u64, cluster: String, found_node: u64, found_cluster: String },
    #[error(
        "data directory {dir:?} has lost its log file {log:?}: a node must not start without its log under its old id; remove the node from the cluster and join again under a new id"
    )]
    LogLost { dir: PathBuf, log: PathBuf },
    #[error("data directory {dir:?} is in use by another process")]
    InUse { dir: PathBuf },
    #[error("cannot lock the data directory by {path:?}")]
    Lock {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read the owner of the data directory from {path:?}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the owner of the data directory in {path:?} is unreadable; {REPLACE}")]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("cannot write the owner of the data directory to {path:?}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    node: u64,
    cluster: String,
}

/// Keeps other processes away from `dir` for as long as the returned file is open.
pub fn lock(dir: &Path) -> Result<fs::File, MarkerError> {
    let path = dir.join("lock");
    let failed = |source| MarkerError::Lock { path: path.clone(), source };
    let file = fs::File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(MarkerError::InUse { dir: dir.to_owned() }),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Checks, before anything is opened, that `dir` is new or belongs to this node. Returns whether it is new.
pub fn check(dir: &Path, node: u64, cluster: &str, log: &Path) -> Result<bool, MarkerError> {
    let path = dir.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(source) => return Err(MarkerError::Read { path, source }),
    };
    let owner: Owner = serde_json::from_slice(&text).map_err(|source| MarkerError::Parse { path, source })?;
    if owner.node != node || owner.cluster != cluster {
        return Err(MarkerError::Foreign {
            dir: dir.to_owned(),
            node,
            cluster: cluster.to_owned(),
            found_node: owner.node,
            found_cluster: owner.cluster,
        });
    }
    if !log.exists() {
        return Err(MarkerError::LogLost { dir: dir.to_owned(), log: log.to_owned() });
    }
    Ok(false)
}

/// Marks `dir`, once its log exists.
pub fn write(dir: &Path, node: u64, cluster: &str) -> Result<(), MarkerError> {
    let path = dir.join(FILE);
    let owner = Owner { node, cluster: cluster.to_owned() };
    let store = || -> std::io::Result<()> {
        let mut temp = tempfile::NamedTempFile::new_in(dir)?;
        serde_json::to_writer(&mut temp, &owner)?;
        temp.flush()?;
        temp.as_file().sync_all()?;
        temp.persist(&path).map_err(|error| error.error)?;
        sync_dir(dir)
    };
    store().map_err(|source| MarkerError::Write { path: path.clone(), source })
}

/// Makes renames and new names in `dir` durable.
pub fn sync_dir(dir: &Path) -> std::io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_another_node_or_cluster_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.db");
        assert!(check(dir.path(), 1, "a", &log).unwrap());
        fs::write(&log, b"").unwrap();
        write(dir.path(), 1, "a").unwrap();
        assert!(!check(dir.path(), 1, "a", &log).unwrap());
        assert!(matches!(check(dir.path(), 2, "a", &log), Err(MarkerError::Foreign { found_node: 1, .. })));
        assert!(matches!(check(dir.path(), 1, "b", &log), Err(MarkerError::Foreign { .. })));
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(MarkerError::InUse { .. })));
        drop(held);
        lock(dir.path()).unwrap();
    }

    #[test]
    fn a_marked_directory_without_its_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 1, "a").unwrap();
        assert!(matches!(check(dir.path(), 1, "a", &dir.path().join("log.db")), Err(MarkerError::LogLost { .. })));
    }
}
