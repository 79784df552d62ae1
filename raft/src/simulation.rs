//! What a simulation of the store holds on to: it runs what blocks in place, sees what nodes do, and can switch a known
//! bug on, to prove that it would be found. Only with the feature `simulation`, which nothing that is shipped has.
//!
//! A simulation runs on one thread: [`begin`] there, and everything that this crate does on that thread is part of it.
//!
//! Deliberately absent: the network, the disk and the clock, which the simulation brings from outside.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;

use crate::node::RaftStore;
use crate::store::Store as _;
use crate::types::{Entry, LogId, Raft, Vote, entry_out};

/// Who led when an entry was proposed, and where in the log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    pub term: u64,
    pub node: u64,
    pub index: u64,
}

impl From<LogId> for At {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
    }
}

/// A vote: for whom, in which term, and whether a majority has confirmed that it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot {
    pub term: u64,
    pub node: u64,
    pub confirmed: bool,
}

impl From<Vote> for Ballot {
    fn from(vote: Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.node_id, confirmed: vote.committed }
    }
}

/// What a node did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The log was opened.
    Opened { vote: Option<Ballot>, purged: Option<At>, entries: Vec<(At, u32)> },
    /// The catalog was opened.
    CatalogOpened { applied: Option<At>, revision: u64 },
    /// An entry follows `before` in the log, not on disk yet; the digest is of its bytes.
    Appended { before: Option<At>, at: At, digest: u32 },
    /// Raft was told that the log is on disk up to here.
    Flushed { at: At },
    /// Raft was told that the vote is on disk.
    Voted { vote: Ballot },
    /// The log was cut at its end: this index and all after it are gone.
    Truncated { from: u64 },
    /// The log was cut at its beginning.
    Purged { upto: At },
    /// An entry was applied; the digest is of what it came to.
    Applied { at: At, revision: u64, digest: u32 },
    /// A snapshot has replaced the catalog.
    Installed { at: Option<At>, revision: u64 },
    /// A snapshot was made.
    Built { at: Option<At> },
}

/// Mistakes that others have made, or that we could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Raft is told that entries are on disk before they are.
    ReplyBeforeSync,
    /// Raft is told that a vote is on disk, and it is in memory.
    VoteNotSynced,
    /// How far is applied is committed apart from what was applied.
    AppliedApart,
    /// Who thinks that it leads answers reads without asking a majority.
    ReadWithoutQuorum,
    /// A linearizable read does not wait until the replica has caught up.
    ReadWithoutWaiting,
    /// A watcher that fell behind goes on with what is new.
    WatchDropsOnLag,
    /// A watcher gets the first change of several and goes on after the last.
    WatchCutsBatch,
    /// A write with an unknown outcome is tried again.
    RetryUnknown,
    /// The log is cut below a snapshot that is not on disk.
    SnapshotNotSynced,
    /// The end of the log is cut in memory only.
    TruncateInMemory,
    /// The condition of a write is not checked again when it is applied.
    CompareSkipped,
    /// An installed snapshot leaves readers and watchers with the catalog before it.
    InstallUnannounced,
}

impl Bug {
    pub const ALL: [Self; 12] = [
        Self::ReplyBeforeSync,
        Self::VoteNotSynced,
        Self::AppliedApart,
        Self::ReadWithoutQuorum,
        Self::ReadWithoutWaiting,
        Self::WatchDropsOnLag,
        Self::WatchCutsBatch,
        Self::RetryUnknown,
        Self::SnapshotNotSynced,
        Self::TruncateInMemory,
        Self::CompareSkipped,
        Self::InstallUnannounced,
    ];
}

/// What the simulation brings.
pub trait Simulation {
    /// A node did this. Which one, the simulation knows: it runs them one after the other.
    fn seen(&self, seen: Seen);
    /// How long the next work on the disk takes.
    fn disk_time(&self) -> Duration;
    /// The mistake that is switched on.
    fn bug(&self) -> Option<Bug>;
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<dyn Simulation>>> = const { RefCell::new(None) };
}

/// From now on this thread simulates.
pub fn begin(simulation: Rc<dyn Simulation>) {
    CURRENT.with(|current| *current.borrow_mut() = Some(simulation));
}

fn current() -> Option<Rc<dyn Simulation>> {
    CURRENT.with(|current| current.borrow().clone())
}

pub(crate) fn running() -> bool {
    current().is_some()
}

pub(crate) fn seen(what: impl FnOnce() -> Seen) {
    if let Some(simulation) = current() {
        simulation.seen(what());
    }
}

pub(crate) fn bug(bug: Bug) -> bool {
    current().is_some_and(|simulation| simulation.bug() == Some(bug))
}

/// The time that the disk takes.
pub(crate) async fn disk_time() {
    let time = current().map_or(Duration::ZERO, |simulation| simulation.disk_time());
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// What a node that thinks that it leads would answer if it asked nobody.
pub(crate) fn believed_index(raft: &Raft) -> Option<u64> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    (metrics.state == ServerState::Leader).then(|| metrics.last_applied.map_or(0, |id| id.index))
}

pub(crate) fn digest(entry: &Entry) -> u32 {
    use prost::Message as _;
    crc32c::crc32c(&entry_out(entry).encode_to_vec())
}

/// A node from inside, as Raft reports itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub leads: bool,
    pub vote: Ballot,
    pub last: Option<u64>,
    pub committed: Option<At>,
    pub applied: Option<At>,
    pub snapshot: Option<At>,
    pub purged: Option<At>,
    pub voters: Vec<u64>,
    /// Why the node has stopped, if it has.
    pub failed: Option<String>,
}

impl RaftStore {
    /// What Raft reports of this node.
    #[must_use]
    pub fn probe(&self) -> Probe {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        Probe {
            leads: metrics.state == ServerState::Leader,
            vote: metrics.vote.into(),
            last: metrics.last_log_index,
            committed: metrics.local_committed.map(At::from),
            applied: metrics.last_applied.map(At::from),
            snapshot: metrics.snapshot.map(At::from),
            purged: metrics.purged.map(At::from),
            voters: metrics.membership_config.membership().voter_ids().collect(),
            failed: self.failure().map(|failure| failure.reason).or(metrics
                .running_state
                .as_ref()
                .err()
                .map(ToString::to_string)),
        }
    }

    /// A digest of everything in the catalog but how it is laid out on disk, and the log index that it is of.
    ///
    /// # Errors
    /// With what the database says.
    pub fn state_digest(&self) -> Result<(u64, u32), crate::StoreError> {
        self.inner.shared.read(|db| {
            let mut digest = 0;
            for table in ["fv_objects", "fv_history", "fv_state"] {
                let mut statement =
                    db.prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2")).map_err(crate::StoreError::storage)?;
                let columns = statement.column_count();
                let mut rows = statement.query([]).map_err(crate::StoreError::storage)?;
                while let Some(row) = rows.next().map_err(crate::StoreError::storage)? {
                    for column in 0..columns {
                        let value = row.get_ref(column).map_err(crate::StoreError::storage)?;
                        digest = crc32c::crc32c_append(digest, format!("{value:?}").as_bytes());
                    }
                }
            }
            let row = crate::schema::read_state(db).map_err(crate::StoreError::storage)?;
            let at = crate::machine::Position::decode(row).map_err(crate::StoreError::storage)?;
            Ok((at.entries(), digest))
        })
    }
}
