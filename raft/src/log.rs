//! ② The log: entries and votes, synced to disk before anyone is told that they are there.
//!
//! One thread owns the writing connection. It drains its queue, makes one commit (SQLite, WAL, `synchronous=FULL`: one
//! sync per commit) and then tells Raft, so many appends share one sync. Entries can be read as soon as `append`
//! returns: the newest are kept in memory, at least until they are on disk.
//!
//! Every commit counts itself and says where the log ends; [`mark`](crate::mark) has the count beside the log.
//!
//! Invariants: writes, votes included, happen in the order in which they were asked for; no callback before the sync;
//! after a failed write nothing is written again; a record whose checksum is wrong stops the node, and so
//! does a log that has lost commits.
//!
//! Deliberately absent: knowledge of what a command means.

mod meta;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use bytes::Bytes;
use fluvial_proto::v1;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::{LogState, OptionalSend};
use prost::Message as _;
use rusqlite::{Connection, params};
use tokio::sync::{mpsc, oneshot};

use self::meta::{COMMITTED, EXTENT, Extent, PURGED, VOTE, read_meta, write_meta, write_value};
use crate::blocking::{known_bug, seen};
use crate::database;
use crate::health::Health;
use crate::mark::Mark;
use crate::types::{
    Entry, LogId, TypeConfig, Vote, entry_bytes, entry_in, entry_out, log_id_in, log_id_out, vote_in, vote_out,
};

/// Jobs that may wait for the writer. Raft appends at most 4,096 entries a job and waits for votes, so this bounds
/// what is in memory but not on disk to what Raft's own channels already admit.
const QUEUE: usize = 1024;
/// Jobs that share one commit: enough to make the sync's share small, few enough to keep the commit short.
const JOBS_PER_COMMIT: usize = 256;
/// How much of the newest log stays in memory for followers and for the state machine: 8 MiB is some 8,000 objects,
/// several times what a healthy follower is ever behind.
const CACHE_BYTES: usize = 8 << 20;
/// How long a connection waits for another one's lock before it reports an error.
const BUSY: std::time::Duration = std::time::Duration::from_secs(5);
/// How much one read for a follower returns at most; with one entry of 2 MiB on top it stays within the wire's limit.
const READ_BYTES: usize = 1 << 20;

/// The format of the tables below, kept as SQLite's `user_version`; logs from before it was kept have 0 and are alike.
const FORMAT: i64 = 1;

/// What is to be done with a node whose log is damaged.
pub const REPLACE: &str = "this hub must not vote with what it cannot trust: remove it from the federation (`fluvial hub remove`) and let a new one join, under a new id and in an empty directory";

/// The log cannot be opened, or must not be trusted.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot open the log {path:?}")]
    Open {
        path: std::path::PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error(
        "the log {path:?} has format {found}, and this version of Fluvial reads formats up to {FORMAT}: use the version that wrote it, or a newer one"
    )]
    Newer { path: std::path::PathBuf, found: i64 },
    #[error("cannot start the log's writer thread")]
    Thread(#[source] io::Error),
    #[error("cannot read the log")]
    Read(#[source] rusqlite::Error),
    #[error("log record {index} is damaged: {reason}; {REPLACE}")]
    Damaged { index: u64, reason: String },
    #[error("the log's record of {name} is damaged; {REPLACE}")]
    DamagedMeta { name: &'static str },
    #[error("the log's file is damaged: {report}; {REPLACE}")]
    DamagedFile { report: String },
    #[error("the log has lost what was synced: it has {found} commits, and {synced} were made; {REPLACE}")]
    Lost { found: u64, synced: u64 },
    #[error("the log ends before record {found}, and it was written before record {written}; {REPLACE}")]
    End { found: u64, written: u64 },
    #[error("cannot use {path:?}")]
    Mark {
        path: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What SQLite says of a file that is not as it wrote it is damage, and not a passing error.
fn read_error(error: rusqlite::Error) -> LogError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => LogError::DamagedFile { report: error.to_string() },
        _ => LogError::Read(error),
    }
}

/// The same, while the log is opened.
fn opening(path: &Path, error: rusqlite::Error) -> LogError {
    match read_error(error) {
        LogError::Read(source) => LogError::Open { path: path.to_owned(), source },
        damaged => damaged,
    }
}

impl From<LogError> for io::Error {
    fn from(error: LogError) -> Self {
        Self::other(error)
    }
}

enum Job {
    Append { entries: Vec<Entry>, done: IOFlushed<TypeConfig> },
    Vote { vote: Vote, done: oneshot::Sender<io::Result<()>> },
    Truncate { from: u64, done: oneshot::Sender<io::Result<()>> },
    Purge { upto: LogId, done: oneshot::Sender<io::Result<()>> },
}

/// What is known without asking the database.
#[derive(Default)]
struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// The newest entries without gaps, up to `last`.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    /// The index of the first cached entry, or of the next one to come if none is cached.
    cache_first: u64,
    /// Entries up to here are on disk.
    flushed: u64,
}

impl State {
    fn push(&mut self, entry: Entry) {
        if self.cache.is_empty() {
            self.cache_first = entry.log_id.index;
        }
        self.cache_bytes += entry_bytes(&entry);
        self.last = Some(entry.log_id);
        self.cache.push_back(entry);
    }

    /// Drops the oldest entries that are on disk while the cache is too large.
    fn shrink(&mut self) {
        while self.cache_bytes > CACHE_BYTES && self.cache_first <= self.flushed {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.cache.pop_front() {
            self.cache_bytes -= entry_bytes(&entry);
            self.cache_first = entry.log_id.index + 1;
        }
    }
}

struct Inner {
    state: Mutex<State>,
    reader: Mutex<Connection>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn close(&self) {
        // Closing the queue ends the thread once everything queued is on disk.
        lock(&self.jobs).take();
        if let Some(writer) = lock(&self.writer).take()
            && writer.join().is_err()
        {
            tracing::error!("the log's writer thread had panicked");
        }
    }
}

/// The log of one node; clones share it.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics between two halves of a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signed(index: u64) -> i64 {
    // Indexes count entries: they do not reach 2^63.
    i64::try_from(index).unwrap_or(i64::MAX)
}

fn record_checksum(index: u64, record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&index.to_le_bytes()), record)
}

fn decode(index: u64, checksum: u32, record: Vec<u8>) -> Result<Entry, LogError> {
    if record_checksum(index, &record) != checksum {
        return Err(LogError::Damaged { index, reason: "its checksum does not fit".into() });
    }
    let damaged = |reason: String| LogError::Damaged { index, reason };
    let message = v1::RaftEntry::decode(Bytes::from(record)).map_err(|error| damaged(error.to_string()))?;
    let entry = entry_in(message).map_err(|error| damaged(error.to_string()))?;
    if entry.log_id.index != index {
        return Err(damaged(format!("it says it is record {}", entry.log_id.index)));
    }
    Ok(entry)
}

/// Opens the database for writing and makes its tables if need be.
fn prepare(path: &Path) -> Result<Connection, LogError> {
    let failed = |source| opening(path, source);
    let db = database::open(path, BUSY).map_err(failed)?;
    let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    if found > FORMAT {
        return Err(LogError::Newer { path: path.to_owned(), found });
    }
    set_up(&db).map_err(failed)?;
    if found < FORMAT {
        db.pragma_update(None, "user_version", FORMAT).map_err(failed)?;
    }
    Ok(db)
}

fn set_up(db: &Connection) -> rusqlite::Result<()> {
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "wal_autocheckpoint", 2000)?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS entries (idx INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, record BLOB NOT NULL);
         CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;",
    )
}

/// Makes the log of a node whose state begins at `at`: everything up to there was committed under `vote` and cut away.
pub fn seed(path: &Path, vote: &Vote, at: LogId) -> Result<(), LogError> {
    let mut db = prepare(path)?;
    let mut seed = || {
        let txn = db.transaction()?;
        write_meta(&txn, VOTE, &vote_out(vote))?;
        write_meta(&txn, COMMITTED, &log_id_out(&at))?;
        write_meta(&txn, PURGED, &log_id_out(&at))?;
        txn.commit()
    };
    seed().map_err(|source| LogError::Open { path: path.to_owned(), source })
}

impl LogStore {
    /// Opens or creates the log, checks every record, and starts the writer.
    pub fn open(path: &Path, health: Arc<Health>) -> Result<Self, LogError> {
        let open_error = |source| opening(path, source);
        let db = prepare(path)?;
        let report: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(read_error)?;
        if report != "ok" {
            return Err(LogError::DamagedFile { report });
        }
        let state = Self::load(&db)?;
        let mark_path = path.with_extension("mark");
        let mark_error = |source| LogError::Mark { path: mark_path.clone(), source };
        let mark = Mark::open(&mark_path).map_err(mark_error)?;
        let synced = mark.read().map_err(mark_error)?.map_err(|_| LogError::DamagedMeta { name: "its length" })?;
        let next = state.last.map_or(0, |last| last.index + 1);
        let extent = Extent::read(&db)?.unwrap_or(Extent { commits: 0, next });
        if extent.commits < synced {
            return Err(LogError::Lost { found: extent.commits, synced });
        }
        if extent.next != next {
            return Err(LogError::End { found: next, written: extent.next });
        }
        let reader = database::open_reader(path, BUSY).map_err(open_error)?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let inner = Arc::new(Inner {
            state: Mutex::new(state),
            reader: Mutex::new(reader),
            jobs: Mutex::new(Some(jobs)),
            writer: Mutex::new(None),
        });
        let shared = Arc::downgrade(&inner);
        let mut writer = Writer { db, health, mark, extent, shared, failed: None, committed: None };
        #[cfg(feature = "simulation")]
        if crate::simulation::running() {
            // A task in the thread's place; like the thread, it ends with the queue.
            tokio::spawn(async move {
                let mut queue = queue;
                while let Some(first) = queue.recv().await {
                    let mut jobs = gather(first, &mut queue);
                    if known_bug!(ReplyBeforeSync) {
                        reply_early(&mut jobs);
                    }
                    crate::simulation::disk_time().await;
                    writer.serve(jobs);
                }
            });
            return Ok(Self { inner });
        }
        let mut queue = queue;
        let thread = std::thread::Builder::new()
            .name("fluvial-log".into())
            .spawn(move || {
                while let Some(first) = queue.blocking_recv() {
                    writer.serve(gather(first, &mut queue));
                }
            })
            .map_err(LogError::Thread)?;
        *lock(&inner.writer) = Some(thread);
        Ok(Self { inner })
    }

    fn load(db: &Connection) -> Result<State, LogError> {
        let vote: Option<v1::RaftVote> = read_meta(db, VOTE)?;
        let vote = match vote {
            None => None,
            some => Some(vote_in(some, "RaftVote").map_err(|_| LogError::DamagedMeta { name: VOTE })?),
        };
        let purged: Option<LogId> = read_meta::<v1::RaftLogId>(db, PURGED)?.map(log_id_in);
        let mut state = State {
            vote,
            committed: read_meta::<v1::RaftLogId>(db, COMMITTED)?.map(log_id_in),
            purged,
            last: purged,
            ..State::default()
        };
        let mut expected = None;
        #[cfg(feature = "simulation")]
        let mut entries = Vec::new();
        let mut statement = db.prepare("SELECT idx, checksum, record FROM entries ORDER BY idx").map_err(read_error)?;
        let mut rows = statement.query([]).map_err(read_error)?;
        while let Some(row) = rows.next().map_err(read_error)? {
            let (index, checksum, record) = read_row(row).map_err(read_error)?;
            let entry = decode(index, checksum, record)?;
            if expected.is_some_and(|expected| expected != index) {
                return Err(LogError::Damaged { index, reason: "the records before it are missing".into() });
            }
            expected = Some(index + 1);
            #[cfg(feature = "simulation")]
            entries.push((entry.log_id.into(), crate::simulation::digest(&entry)));
            state.flushed = index;
            state.push(entry);
            state.shrink();
        }
        // What an earlier version wrote ahead of its entries.
        let end = state.last.map_or(0, |last| last.index);
        state.committed = state.committed.filter(|id| id.index <= end);
        state.cache_first =
            if state.cache.is_empty() { state.last.map_or(0, |last| last.index + 1) } else { state.cache_first };
        seen!(Opened { vote: state.vote.map(Into::into), purged: state.purged.map(Into::into), entries });
        Ok(state)
    }

    /// Writes what is queued and ends the writer; later writes fail. Blocks until it is done.
    pub fn close(&self) {
        self.inner.close();
    }

    async fn send(&self, job: Job) -> io::Result<()> {
        let jobs = lock(&self.inner.jobs).clone();
        let Some(jobs) = jobs else { return Err(io::Error::other("the log is closed")) };
        jobs.send(job).await.map_err(|_| io::Error::other("the log's writer has ended"))
    }

    /// The index of the first record that may still be here: how many entries a snapshot must hold.
    pub fn cut_before(&self) -> u64 {
        lock(&self.inner.state).purged.map_or(0, |purged| purged.index + 1)
    }

    async fn run(&self, job: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Job) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.send(job(done)).await?;
        wait.await.map_err(|_| io::Error::other("the log's writer has ended"))?
    }

    /// The entries of `start..end` in order, at most about `limit` bytes of them but at least one if there is one.
    fn read(&self, start: u64, end: u64, limit: usize) -> Result<Vec<Entry>, LogError> {
        let mut bytes = 0;
        let mut within = |entry: &Entry| {
            let first = bytes == 0;
            bytes += entry_bytes(entry);
            first || bytes <= limit
        };
        let (cached_from, cached) = {
            let state = lock(&self.inner.state);
            let skip = usize::try_from(start.saturating_sub(state.cache_first)).unwrap_or(usize::MAX);
            let wanted = state.cache.iter().skip(skip).take_while(|entry| entry.log_id.index < end);
            if start >= state.cache_first {
                return Ok(wanted.take_while(|entry| within(entry)).cloned().collect());
            }
            (state.cache_first, wanted.cloned().collect::<Vec<_>>())
        };
        let mut entries = Vec::new();
        {
            let reader = lock(&self.inner.reader);
            let mut statement = reader
                .prepare_cached("SELECT idx, checksum, record FROM entries WHERE idx >= ?1 AND idx < ?2 ORDER BY idx")
                .map_err(read_error)?;
            let mut rows = statement.query(params![signed(start), signed(end.min(cached_from))]).map_err(read_error)?;
            while let Some(row) = rows.next().map_err(read_error)? {
                let (index, checksum, record) = read_row(row).map_err(read_error)?;
                let entry = decode(index, checksum, record)?;
                if !within(&entry) {
                    return Ok(entries);
                }
                entries.push(entry);
            }
        }
        entries.extend(cached.into_iter().take_while(|entry| within(entry)));
        if let Some(hole) = entries.windows(2).find(|pair| pair[0].log_id.index + 1 != pair[1].log_id.index) {
            let index = hole[1].log_id.index;
            return Err(LogError::Damaged { index, reason: "the records before it are missing".into() });
        }
        Ok(entries)
    }
}

fn read_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<(u64, u32, Vec<u8>)> {
    let index: i64 = row.get(0)?;
    Ok((u64::try_from(index).unwrap_or(0), row.get(1)?, row.get(2)?))
}

/// The jobs that share the next commit.
fn gather(first: Job, queue: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let mut jobs = vec![first];
    while jobs.len() < JOBS_PER_COMMIT {
        match queue.try_recv() {
            Ok(job) => jobs.push(job),
            Err(_) => break,
        }
    }
    jobs
}

/// Tells Raft whether `entries` are on disk.
fn tell(_entries: &[Entry], done: IOFlushed<TypeConfig>, result: io::Result<()>) {
    #[cfg(feature = "simulation")]
    if let (Ok(()), Some(last)) = (&result, _entries.last()) {
        seen!(Flushed { at: last.log_id.into() });
    }
    done.io_completed(result);
}

#[cfg(feature = "simulation")]
fn reply_early(jobs: &mut [Job]) {
    for job in jobs {
        if let Job::Append { entries, done } = job {
            tell(entries, std::mem::replace(done, IOFlushed::noop()), Ok(()));
        }
    }
}

struct Writer {
    db: Connection,
    health: Arc<Health>,
    mark: Mark,
    extent: Extent,
    /// What is known of the log, for as long as anyone has it open.
    shared: Weak<Inner>,
    /// Why writing stopped. After a failed sync the disk's state is unknown: trying again could turn a loss into a lie.
    failed: Option<String>,
    committed: Option<LogId>,
}

impl Writer {
    fn with_state(&self, with: impl FnOnce(&mut State)) {
        if let Some(inner) = self.shared.upgrade() {
            with(&mut lock(&inner.state));
        }
    }

    /// Makes one commit of `jobs` and then tells those who wait for it.
    fn serve(&mut self, jobs: Vec<Job>) {
        let mut committed = None;
        self.with_state(|state| committed = state.committed);
        if self.failed.is_none() {
            let written = self.write(&jobs, committed).map_err(io::Error::other);
            if let Err(error) = written.and_then(|()| self.mark.set(self.extent.commits)) {
                self.health.fail_with("the log cannot be written", &error);
                self.failed = Some(error.to_string());
            }
        }
        if self.failed.is_none() {
            let flushed = jobs.iter().rev().find_map(|job| match job {
                Job::Append { entries, .. } => entries.last().map(|entry| entry.log_id.index),
                _ => None,
            });
            if let Some(flushed) = flushed {
                self.with_state(|state| {
                    state.flushed = flushed;
                    state.shrink();
                });
            }
        }
        for job in jobs {
            let result = match &self.failed {
                None => Ok(()),
                Some(reason) => Err(io::Error::other(format!("the log cannot be written: {reason}"))),
            };
            match job {
                Job::Append { entries, done } => tell(&entries, done, result),
                Job::Vote { vote: _vote, done } => {
                    #[cfg(feature = "simulation")]
                    if result.is_ok() {
                        seen!(Voted { vote: _vote.into() });
                    }
                    let _ = done.send(result);
                }
                Job::Truncate { done, .. } | Job::Purge { done, .. } => {
                    // A caller that no longer waits has lost interest, not the write.
                    let _ = done.send(result);
                }
            }
        }
    }

    fn write(&mut self, jobs: &[Job], committed: Option<LogId>) -> rusqlite::Result<()> {
        let _working = self.health.log.begin();
        let txn = self.db.transaction()?;
        let mut extent = Extent { commits: self.extent.commits + 1, ..self.extent };
        for job in jobs {
            let before = extent.next;
            extent.next = extent.after(job);
            match job {
                Job::Append { entries, .. } => {
                    let mut insert = txn
                        .prepare_cached("INSERT OR REPLACE INTO entries (idx, checksum, record) VALUES (?1, ?2, ?3)")?;
                    for entry in entries {
                        let record = entry_out(entry).encode_to_vec();
                        let index = entry.log_id.index;
                        insert.execute(params![signed(index), record_checksum(index, &record), record])?;
                    }
                }
                Job::Vote { .. } if known_bug!(VoteNotSynced) => {}
                Job::Vote { vote, .. } => write_meta(&txn, VOTE, &vote_out(vote))?,
                Job::Truncate { .. } if known_bug!(TruncateInMemory) => extent.next = before,
                Job::Truncate { from, .. } => {
                    txn.prepare_cached("DELETE FROM entries WHERE idx >= ?1")?.execute([signed(*from)])?;
                }
                Job::Purge { upto, .. } => {
                    txn.prepare_cached("DELETE FROM entries WHERE idx <= ?1")?.execute([signed(upto.index)])?;
                    write_meta(&txn, PURGED, &log_id_out(upto))?;
                }
            }
        }
        // How far is committed rides along: it only saves work at the next start, so it is not worth a sync of its own. It
        // may be said of entries that wait for the next commit, and must not be on the disk before them.
        let committed = committed.filter(|id| id.index < extent.next).or(self.committed);
        if committed != self.committed
            && let Some(id) = &committed
        {
            write_meta(&txn, COMMITTED, &log_id_out(id))?;
        }
        write_value(&txn, EXTENT, &extent.encode())?;
        txn.commit()?;
        (self.committed, self.extent) = (committed, extent);
        Ok(())
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        Ok(self.read(start, end, usize::MAX)?)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(lock(&self.inner.state).vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        Ok(self.read(start, end, READ_BYTES)?)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = lock(&self.inner.state);
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.run(|done| Job::Vote { vote: *vote, done }).await?;
        lock(&self.inner.state).vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        lock(&self.inner.state).committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(lock(&self.inner.state).committed)
    }

    async fn append<I>(&mut self, entries: I, done: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        {
            let mut state = lock(&self.inner.state);
            for entry in &entries {
                seen!(Appended {
                    before: state.last.map(Into::into),
                    at: entry.log_id.into(),
                    digest: crate::simulation::digest(entry)
                });
                state.push(entry.clone());
            }
        }
        self.send(Job::Append { entries, done }).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index + 1);
        seen!(Truncated { from });
        {
            let mut state = lock(&self.inner.state);
            while state.cache.back().is_some_and(|entry| entry.log_id.index >= from) {
                if let Some(entry) = state.cache.pop_back() {
                    state.cache_bytes -= entry_bytes(&entry);
                }
            }
            if state.cache.is_empty() {
                state.cache_first = from;
            }
            state.flushed = state.flushed.min(from.saturating_sub(1));
            if state.last.is_some_and(|known| known.index >= from) {
                state.last = last.max(state.purged);
            }
        }
        self.run(|done| Job::Truncate { from, done }).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.run(|done| Job::Purge { upto, done }).await?;
        seen!(Purged { upto: upto.into() });
        let mut state = lock(&self.inner.state);
        while state.cache.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
            state.pop_front();
        }
        state.cache_first = state.cache_first.max(upto.index + 1);
        state.purged = state.purged.max(Some(upto));
        state.last = state.last.max(Some(upto));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
