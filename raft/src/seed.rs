//! ② The data directory of a cluster's first node that does not begin empty: what a restored hub starts from.
//!
//! The content is what a snapshot would be that this node took after its first log entry: the catalog, its copy as a
//! snapshot, and a log that is cut up to there. Nodes that join later get the snapshot, because no log leads to it.
//!
//! Invariants: all content is of one revision, and the history before it is forgotten, so that whoever watched before
//! lists again; the directory is marked last, so that one without a mark is not whole.
//!
//! Deliberately absent: the meaning of the content, and where it comes from.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use fluvial_model::store::Revision;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::{BasicNode, Membership};
use rusqlite::{Connection, params};

use crate::log::{self, LogError};
use crate::machine::{Position, file_name};
use crate::marker::{self, MarkerError};
use crate::schema::{self, replace_rows, signed, write_state};
use crate::seal;
use crate::snapshot::{self, Snapshots};
use crate::store::{StoreError, check_key};
use crate::types::{LogId, StoredMembership, Vote};

/// Where the content lies in the log: after the entry that made the node the only member.
const INDEX: u64 = 1;
/// Values of one transaction: large enough to make its share small, small enough for the write-ahead log.
const ROWS_PER_TXN: u64 = 10_000;
/// The name of the first catalog.
const GENERATION: u64 = 1;

/// A node that begins with content.
#[derive(Debug, Clone)]
pub struct Seed {
    /// Where the store will be: a directory that does not exist, or is empty.
    pub dir: PathBuf,
    /// A number that no node ever had.
    pub node_id: u64,
    /// A new cluster's.
    pub cluster_id: String,
    /// Where others reach the node.
    pub address: String,
    /// The revision at which all content is.
    pub revision: Revision,
}

/// The directory cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    #[error("{dir:?} is not empty")]
    NotEmpty { dir: PathBuf },
    #[error("cannot write {path:?}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the catalog {path:?}")]
    Catalog {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("a key cannot be stored")]
    Key(#[source] StoreError),
    #[error("cannot write the log")]
    Log(#[from] LogError),
    #[error("the first members are impossible: {reason}")]
    Membership { reason: String },
    #[error("the data directory cannot be marked")]
    Marker(#[from] MarkerError),
}

/// The directory while it is made. Dropped before [`Seeding::finish`], it leaves files that no node opens.
#[derive(Debug)]
pub struct Seeding {
    seed: Seed,
    db: Connection,
    path: PathBuf,
    open_rows: u64,
}

impl Seeding {
    /// Makes the directory and an empty catalog.
    ///
    /// # Errors
    /// A directory that holds something, and what the disk says.
    pub fn begin(seed: Seed) -> Result<Self, SeedError> {
        let failed = |source| SeedError::Io { path: seed.dir.clone(), source };
        std::fs::create_dir_all(&seed.dir).map_err(failed)?;
        if std::fs::read_dir(&seed.dir).map_err(failed)?.next().is_some() {
            return Err(SeedError::NotEmpty { dir: seed.dir });
        }
        let path = seed.dir.join(file_name(GENERATION));
        let catalog = |source| SeedError::Catalog { path: path.clone(), source };
        let db = schema::open(&path).map_err(catalog)?;
        // Synced once at the end.
        db.pragma_update(None, "synchronous", "OFF").map_err(catalog)?;
        db.execute_batch("BEGIN").map_err(catalog)?;
        Ok(Self { seed, db, path, open_rows: 0 })
    }

    /// Adds a key, which must not be there yet.
    ///
    /// # Errors
    /// A key that is too long or there already, and what the disk says.
    pub fn put(&mut self, key: &str, value: &[u8]) -> Result<(), SeedError> {
        check_key(key).map_err(SeedError::Key)?;
        self.insert(key, value).map_err(|source| SeedError::Catalog { path: self.path.clone(), source })
    }

    fn insert(&mut self, key: &str, value: &[u8]) -> rusqlite::Result<()> {
        let at = signed(self.seed.revision.0);
        self.db
            .prepare_cached(
                "INSERT INTO fv_objects (key, value, create_revision, mod_revision) VALUES (?1, ?2, ?3, ?3)",
            )?
            .execute(params![key.as_bytes(), value, at])?;
        replace_rows(&self.db, key, None, Some(value))?;
        self.open_rows += 1;
        if self.open_rows == ROWS_PER_TXN {
            self.open_rows = 0;
            self.db.execute_batch("COMMIT; BEGIN")?;
        }
        Ok(())
    }

    /// Makes the directory whole and durable. A store that is opened on it leads itself.
    ///
    /// # Errors
    /// What the disk says.
    pub fn finish(self) -> Result<(), SeedError> {
        let Self { seed, db, path, .. } = self;
        let Seed { dir, node_id, cluster_id, address, revision } = seed;
        let leader = LeaderId { term: 1, node_id };
        let at = LogId { leader_id: leader, index: INDEX };
        let alone = Membership::new(vec![[node_id].into()], BTreeMap::from([(node_id, BasicNode::new(address))]))
            .map_err(|error| SeedError::Membership { reason: format!("{error:?}") })?;
        let position = Position {
            revision: revision.0,
            compacted: revision.0,
            applied: Some(at),
            membership: StoredMembership::new(Some(at), alone),
        };
        let catalog = |source| SeedError::Catalog { path: path.clone(), source };
        write_state(&db, &position.encode()).map_err(catalog)?;
        db.execute_batch("COMMIT").map_err(catalog)?;
        // Into the one file that is synced.
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(catalog)?;
        sync(&path)?;
        let failed = |source| SeedError::Io { path: dir.clone(), source };
        let snapshots = Snapshots::open(&dir, u64::MAX).map_err(failed)?;
        snapshot::build(&db, &snapshots).map_err(failed)?;
        db.close().map_err(|(_, source)| catalog(source))?;
        seal::seal(&path).map_err(failed)?;
        log::seed(&dir.join(LOG), &Vote { leader_id: leader, committed: true }, at)?;
        marker::write(&dir, node_id, &cluster_id)?;
        marker::sync_dir(&dir).map_err(failed)
    }
}

fn sync(path: &Path) -> Result<(), SeedError> {
    let failed = |source| SeedError::Io { path: path.to_owned(), source };
    File::open(path).and_then(|file| file.sync_all()).map_err(failed)
}

/// The log's name in a node's directory.
pub const LOG: &str = "log.db";
