//! ② What a store promises, whoever implements it.
//!
//! - Every completed transaction is durable; a linearizable read never returns what is not.
//! - One growing revision, +1 per transaction that changes something.
//! - A watch is ordered, unique, without gaps inside the kept history, whole revisions at a time, and resumable.
//! - An unknown outcome is never reported as a failure: see [`StoreError::UnknownOutcome`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fluvial_model::store::{Event, KeyValue, Revision, Txn, TxnOutcome};

use crate::health::Failure;

/// Longest key, in bytes: a kind, a namespace and a name of 253 each leave room.
pub const MAX_KEY_BYTES: usize = 1024;
/// Most writes and, separately, most compares in one transaction.
pub const MAX_TXN_OPS: usize = 512;
/// What every store takes in one transaction, whatever it is: etcd's default, less one for what the audit trail says of
/// it. What may be larger is cut where it can be.
pub const COMMON_TXN_OPS: usize = 127;
/// Most bytes of keys and values in one transaction: etcd's 1.5 MiB request limit, with room for a large Secret beside.
pub const MAX_TXN_BYTES: usize = 2 * 1024 * 1024;

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read began, anywhere.
    #[default]
    Linearizable,
    /// What this replica has applied; never waits for another hub.
    Stale,
}

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// Keys that begin with this; all keys if empty.
    pub prefix: String,
    /// Only keys after this one.
    pub after: Option<String>,
    /// At most so many items.
    pub limit: Option<usize>,
    /// The state at this revision; the newest if absent.
    pub revision: Option<Revision>,
    pub consistency: Consistency,
}

/// A page of keys in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub items: Vec<KeyValue>,
    /// The state that was listed: ask for the next page at this revision.
    pub revision: Revision,
    /// Whether keys follow after the last item.
    pub more: bool,
    /// How many follow; counting stops at [`REMAINING_CAP`].
    pub remaining: u64,
}

/// Counting what is left over stops here, so that a page of a huge list costs no more than a page of a long one.
pub const REMAINING_CAP: u64 = 10_000;

/// Who leads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader's node id, if one is known.
    pub leader: Option<u64>,
    /// Whether this node leads. It may have lost the lead without knowing it yet: only a write or a linearizable read
    /// proves it.
    pub is_self: bool,
    /// The term, growing with every election.
    pub term: u64,
}

/// Why a store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The history before `oldest` is forgotten: list again and watch from the listing's revision.
    #[error("the revision is compacted: history begins at revision {oldest}")]
    Compacted { oldest: Revision },
    /// The revision has not happened yet.
    #[error("revision {asked} has not happened yet: the newest is {newest}")]
    FutureRevision { asked: Revision, newest: Revision },
    /// Certainly not applied; try again after `retry_after`.
    #[error("the store is unavailable: {reason}")]
    Unavailable { reason: String, retry_after: Duration },
    /// A write that may or may not have happened: read to find out, and never report it as failed.
    #[error("the outcome of the write is unknown: {reason}")]
    UnknownOutcome { reason: String },
    /// The request exceeds a limit; nothing happened.
    #[error("{what} is too large: {size}, the limit is {limit}")]
    TooLarge { what: &'static str, size: usize, limit: usize },
    /// The request makes no sense; nothing happened.
    #[error("malformed request: {reason}")]
    Malformed { reason: String },
    /// Stored bytes are damaged; this replica must not be trusted.
    #[error("stored data is damaged: {what}")]
    Corrupt { what: String },
    /// The local database failed.
    #[error("the local database failed")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// How long a caller waits before it tries again when no leader is known: about one election.
pub const RETRY_AFTER: Duration = Duration::from_millis(500);

impl StoreError {
    /// Nothing happened, for this reason; worth another try.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into(), retry_after: RETRY_AFTER }
    }

    /// This node has stopped.
    pub(crate) fn stopped(failure: &Failure) -> Self {
        Self::unavailable(format!("this hub has stopped: {failure}"))
    }

    /// The local database failed.
    pub fn storage(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Storage(error.into())
    }
}

/// Where a [`Watch`] gets its events.
#[async_trait]
pub trait WatchSource: Send {
    /// The next events, whole revisions in order; waits until there are some. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<Vec<Arc<Event>>, StoreError>;
    /// Everything up to here was delivered.
    fn revision(&self) -> Revision;
}

/// The changes under a prefix, in order.
pub struct Watch {
    source: Box<dyn WatchSource>,
}

impl Watch {
    /// A watch that pulls from `source`.
    #[must_use]
    pub fn new(source: Box<dyn WatchSource>) -> Self {
        Self { source }
    }

    /// The next events, never a part of a revision; waits until there are some. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the watcher fell behind the kept history; the watch is then over.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, StoreError> {
        self.source.next().await
    }

    /// Everything up to here was delivered: where to resume.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.source.revision()
    }
}

/// An ordered map with revisions.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The value of `key`, if it exists.
    async fn get(&self, key: &str, consistency: Consistency) -> Result<Option<KeyValue>, StoreError>;
    /// A page of keys.
    async fn list(&self, request: ListRequest) -> Result<Listing, StoreError>;
    /// Checks all compares and makes all writes, or none.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;
    /// Events under `prefix` with a revision greater than `after`.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;
    /// Forgets the history before `up_to`, which can itself still be listed and watched from.
    async fn compact(&self, up_to: Revision) -> Result<(), StoreError>;
    /// The newest revision applied here.
    fn revision(&self) -> Revision;
    /// Who leads, as this node knows it.
    fn leadership(&self) -> tokio::sync::watch::Receiver<Leadership>;
    /// Why this node has stopped, if it has: then it answers nothing any more.
    fn failure(&self) -> Option<Failure> {
        None
    }
}

/// Whether a transaction is within the limits and means something.
///
/// # Errors
/// [`StoreError::TooLarge`] and [`StoreError::Malformed`]: nothing was tried.
pub fn check_txn(txn: &Txn) -> Result<(), StoreError> {
    use fluvial_model::store::{Compare, Op};
    for (what, size) in [
        ("the number of compares", txn.compares.len()),
        ("the number of writes", txn.ops.len()),
        ("the number of audit entries", txn.audit.len()),
    ] {
        if size > MAX_TXN_OPS {
            return Err(StoreError::TooLarge { what, size, limit: MAX_TXN_OPS });
        }
    }
    let mut bytes = 0;
    for key in txn.compares.iter().map(Compare::key).chain(txn.ops.iter().map(Op::key)) {
        check_key(key)?;
        bytes += key.len();
    }
    for op in &txn.ops {
        if let Op::Put { value, .. } = op {
            bytes += value.len();
        }
    }
    if bytes > MAX_TXN_BYTES {
        return Err(StoreError::TooLarge { what: "the transaction", size: bytes, limit: MAX_TXN_BYTES });
    }
    if let Some(key) = txn.written_twice() {
        return Err(StoreError::Malformed { reason: format!("key {key:?} is written twice") });
    }
    Ok(())
}

/// Whether a key may be stored.
///
/// # Errors
/// As [`check_txn`].
pub fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() {
        return Err(StoreError::Malformed { reason: "the key is empty".into() });
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(StoreError::TooLarge { what: "the key", size: key.len(), limit: MAX_KEY_BYTES });
    }
    Ok(())
}
