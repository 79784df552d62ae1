//! ② The state machine: committed commands become rows of the catalog and events for watchers.
//!
//! Invariants: a batch of entries, how far the log is applied, the membership and the revision are one SQLite
//! transaction; the outcome of a command depends on the command and the state alone; answers and events go out after
//! the commit.
//!
//! Deliberately absent: the sync of every commit. The catalog runs with `synchronous=NORMAL`; what a power cut takes is
//! applied again from the log, which is never cut beyond the last synced snapshot. A catalog that was not closed in order is
//! not trusted either: see [`seal`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fluvial_model::store::{Event, KeyValue, Op, Revision, Txn, TxnOutcome};
use fluvial_proto::v1;
use futures::{Stream, StreamExt as _};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use prost::Message as _;
use rusqlite::{Connection, params};

use crate::blocking::{blocking, known_bug, seen};
use crate::health::Health;
use crate::log::REPLACE;
use crate::query;
use crate::schema::{self, StateRow, read_state, replace_rows, signed, write_state};
use crate::seal;
use crate::snapshot::{SnapshotBuilder, SnapshotFile, Snapshots, copy_checked};
use crate::trail;
use crate::types::{
    Applied, Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, entry_bytes, log_id_in, log_id_out,
    stored_membership_in, stored_membership_out,
};
use crate::watch::Shared;

/// Entries and bytes that share one transaction: large enough to make the commit's share small, small enough that
/// answers do not wait long for their neighbours.
const BATCH_ENTRIES: usize = 512;
const BATCH_BYTES: usize = 4 << 20;

/// The catalog cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("cannot read the data directory {dir:?}")]
    Dir {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot open the catalog {path:?}")]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("the catalog's record of what is applied is damaged")]
    Damaged,
    #[error("the catalog {path:?} is damaged, and the snapshot and the log do not have all of it; {REPLACE}")]
    Lost { path: PathBuf },
}

/// What is applied, as decoded from the catalog.
#[derive(Debug, Clone, Default)]
pub struct Position {
    pub revision: u64,
    pub compacted: u64,
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
}

impl Position {
    /// Decodes the state row.
    pub fn decode(row: StateRow) -> Result<Self, MachineError> {
        let applied = row
            .applied
            .map(|bytes| v1::RaftLogId::decode(Bytes::from(bytes)).map(log_id_in))
            .transpose()
            .map_err(|_| MachineError::Damaged)?;
        let membership = match row.membership {
            None => StoredMembership::default(),
            Some(bytes) => v1::RaftStoredMembership::decode(Bytes::from(bytes))
                .ok()
                .and_then(|stored| stored_membership_in(stored).ok())
                .ok_or(MachineError::Damaged)?,
        };
        Ok(Self { revision: row.revision, compacted: row.compacted, applied, membership })
    }

    /// The state row of this position.
    pub fn encode(&self) -> StateRow {
        StateRow {
            revision: self.revision,
            compacted: self.compacted,
            applied: self.applied.as_ref().map(|id| log_id_out(id).encode_to_vec()),
            membership: Some(stored_membership_out(&self.membership).encode_to_vec()),
        }
    }

    /// How many log entries are applied.
    pub fn entries(&self) -> u64 {
        self.applied.map_or(0, |id| id.index + 1)
    }
}

/// The writing side of the catalog.
pub struct Catalog {
    pub db: Connection,
    pub path: PathBuf,
    pub generation: u64,
    pub at: Position,
    /// The node was shut down: nothing is applied any more.
    pub closed: bool,
}

/// The name of a generation's file. Each has its own, so that its write-ahead log can never be taken for another's.
pub fn file_name(generation: u64) -> String {
    format!("catalog-{generation}.db")
}

fn generation_of(name: &str) -> Option<u64> {
    name.strip_prefix("catalog-")?.strip_suffix(".db")?.parse().ok()
}

impl Catalog {
    /// Opens the newest catalog of `dir` if it is as it was closed; otherwise the catalog is a new one, to be filled from
    /// the snapshot and the log. `can_be_made_again` says whether they have all of it.
    pub fn open(dir: &Path, can_be_made_again: bool) -> Result<Self, MachineError> {
        let newest = generations(dir)?.into_iter().max();
        let mut generation = newest.unwrap_or(1);
        let path = dir.join(file_name(generation));
        let sealed = seal::open(&path).map_err(|source| MachineError::Dir { dir: dir.to_owned(), source })?;
        if !sealed {
            if !can_be_made_again {
                return Err(MachineError::Lost { path });
            }
            if newest.is_some() {
                tracing::info!(path = %path.display(), "the catalog was not closed in order: it is made again");
                generation += 1;
            }
        }
        Self::remove_others(dir, generation)?;
        Self::at_path(dir, generation)
    }

    /// Closes it in order, so that it can be opened again, unless somebody still reads: then it is made again.
    pub fn seal(&mut self) {
        let left = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        let sealed = match left {
            Ok(0) => seal::seal(&self.path).map_err(|error| error.to_string()),
            Ok(_) => Err("somebody reads it".into()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = sealed {
            tracing::info!(reason, "the catalog is not closed in order: it will be made again");
        }
    }

    /// Opens one generation.
    pub fn at_path(dir: &Path, generation: u64) -> Result<Self, MachineError> {
        let path = dir.join(file_name(generation));
        let open_error = |source| MachineError::Open { path: path.clone(), source };
        let db = schema::open(&path).map_err(open_error)?;
        let at = Position::decode(read_state(&db).map_err(open_error)?)?;
        seen!(CatalogOpened { applied: at.applied.map(Into::into), revision: at.revision });
        Ok(Self { db, path, generation, at, closed: false })
    }

    /// Removes every catalog but that of `keep`.
    pub fn remove_others(dir: &Path, keep: u64) -> Result<(), MachineError> {
        let dir_error = |source| MachineError::Dir { dir: dir.to_owned(), source };
        let kept = file_name(keep);
        for entry in std::fs::read_dir(dir).map_err(dir_error)? {
            let entry = entry.map_err(dir_error)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("catalog-") && !name.starts_with(&kept) {
                std::fs::remove_file(entry.path()).map_err(dir_error)?;
            }
        }
        Ok(())
    }

    /// Applies `entries`, all or none, and returns what each came to and the events.
    pub fn apply(&mut self, entries: &[Entry]) -> rusqlite::Result<(Vec<Applied>, Vec<Arc<Event>>)> {
        let mut at = self.at.clone();
        let mut results = Vec::with_capacity(entries.len());
        let mut events = Vec::new();
        #[cfg(feature = "simulation")]
        let mut digests = Vec::with_capacity(entries.len());
        if known_bug!(AppliedApart)
            && let Some(last) = entries.last()
        {
            let early = Position { applied: Some(last.log_id), ..at.clone() };
            write_state(&self.db, &early.encode())?;
        }
        let txn = self.db.transaction()?;
        for entry in entries {
            let _events_before = events.len();
            results.push(match &entry.payload {
                EntryPayload::Blank => Applied::Nothing,
                EntryPayload::Membership(membership) => {
                    at.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    Applied::Nothing
                }
                EntryPayload::Normal(command) => apply_command(&txn, &mut at, command.0.clone(), &mut events)?,
            });
            at.applied = Some(entry.log_id);
            #[cfg(feature = "simulation")]
            digests.push((at.revision, outcome_digest(results.last(), &events[_events_before..])));
        }
        write_state(&txn, &at.encode())?;
        txn.commit()?;
        self.at = at;
        #[cfg(feature = "simulation")]
        for (entry, (revision, digest)) in entries.iter().zip(digests) {
            seen!(Applied { at: entry.log_id.into(), revision, digest });
        }
        Ok((results, events))
    }
}

/// What an entry came to, for the comparison of replicas.
#[cfg(feature = "simulation")]
fn outcome_digest(result: Option<&Applied>, events: &[Arc<Event>]) -> u32 {
    crc32c::crc32c(format!("{result:?} {events:?}").as_bytes())
}

fn generations(dir: &Path) -> Result<Vec<u64>, MachineError> {
    let dir_error = |source| MachineError::Dir { dir: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(dir_error)? {
        let entry = entry.map_err(dir_error)?;
        found.extend(generation_of(&entry.file_name().to_string_lossy()));
    }
    Ok(found)
}

fn apply_command(
    db: &Connection,
    at: &mut Position,
    command: Bytes,
    events: &mut Vec<Arc<Event>>,
) -> rusqlite::Result<Applied> {
    use v1::command::Kind;
    let kind = match v1::Command::decode(command) {
        Ok(v1::Command { kind: Some(kind) }) => kind,
        // A newer version's command: every replica of this version refuses it alike.
        Ok(v1::Command { kind: None }) => return Ok(Applied::Malformed { reason: "unknown kind of command".into() }),
        Err(error) => return Ok(Applied::Malformed { reason: format!("undecodable command: {error}") }),
    };
    match kind {
        Kind::Txn(txn) => apply_txn(db, at, txn.into(), events),
        Kind::Compact(upto) if upto > at.revision => Ok(Applied::Future { newest: Revision(at.revision) }),
        Kind::Compact(upto) => {
            if upto > at.compacted {
                db.prepare_cached("DELETE FROM fv_history WHERE revision <= ?1")?.execute([signed(upto)])?;
                at.compacted = upto;
            }
            Ok(Applied::Compacted { oldest: Revision(at.compacted) })
        }
    }
}

fn apply_txn(db: &Connection, at: &mut Position, txn: Txn, events: &mut Vec<Arc<Event>>) -> rusqlite::Result<Applied> {
    if let Some(key) = txn.written_twice() {
        return Ok(Applied::Malformed { reason: format!("key {key:?} is written twice") });
    }
    for compare in txn.compares.iter().filter(|_| !known_bug!(CompareSkipped)) {
        let current = query::get(db, compare.key())?;
        if !compare.holds(current.as_ref().map(|kv| kv.mod_revision)) {
            return Ok(Applied::Txn(TxnOutcome::Conflict { key: compare.key().to_owned(), current }));
        }
    }
    let audit = txn.audit;
    let revision = Revision(at.revision + 1);
    let mut changes = Vec::with_capacity(txn.ops.len());
    for op in txn.ops {
        if let Some(event) = apply_op(db, revision, op)? {
            changes.push(Arc::new(event));
        }
    }
    if !changes.is_empty() {
        at.revision = revision.0;
        // The order in which the history returns them.
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        events.append(&mut changes);
    }
    trail::append(db, at.revision, audit)?;
    Ok(Applied::Txn(TxnOutcome::Committed { revision: Revision(at.revision) }))
}

fn apply_op(db: &Connection, revision: Revision, op: Op) -> rusqlite::Result<Option<Event>> {
    let previous = query::get(db, op.key())?;
    let (key, value) = match op {
        Op::Put { key, value } => (key, Some(value)),
        Op::Delete { .. } if previous.is_none() => return Ok(None),
        Op::Delete { key } => (key, None),
    };
    let value = value.map(|value| {
        let create_revision = previous.as_ref().map_or(revision, |kv| kv.create_revision);
        KeyValue { key: key.clone(), value, create_revision, mod_revision: revision }
    });
    let event = Event { revision, key, value, previous };
    record(db, &event)?;
    Ok(Some(event))
}

/// Writes one change: into the history, the projected rows and the objects.
pub fn record(db: &Connection, event: &Event) -> rusqlite::Result<()> {
    let Event { revision, key, value, previous } = event;
    db.prepare_cached(
        "INSERT INTO fv_history (revision, key, deleted, previous, previous_create, previous_mod)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        signed(revision.0),
        key.as_bytes(),
        value.is_none(),
        previous.as_ref().map(|kv| &kv.value),
        previous.as_ref().map(|kv| signed(kv.create_revision.0)),
        previous.as_ref().map(|kv| signed(kv.mod_revision.0)),
    ])?;
    let old = previous.as_ref().map(|kv| kv.value.as_slice());
    replace_rows(db, key, old, value.as_ref().map(|kv| kv.value.as_slice()))?;
    match value {
        None => {
            db.prepare_cached("DELETE FROM fv_objects WHERE key = ?1")?.execute([key.as_bytes()])?;
        }
        Some(kv) => {
            let sql = if previous.is_some() {
                "UPDATE fv_objects SET value = ?2, create_revision = ?3, mod_revision = ?4 WHERE key = ?1"
            } else {
                "INSERT INTO fv_objects (key, value, create_revision, mod_revision) VALUES (?1, ?2, ?3, ?4)"
            };
            db.prepare_cached(sql)?.execute(params![
                key.as_bytes(),
                kv.value,
                signed(kv.create_revision.0),
                signed(revision.0)
            ])?;
        }
    }
    Ok(())
}

/// Waits for what is being applied and lets nothing follow; a catalog that is whole can be opened again. Blocks.
pub fn close(catalog: &Mutex<Catalog>, whole: bool) {
    let mut catalog = lock(catalog);
    if !std::mem::replace(&mut catalog.closed, true) && whole {
        catalog.seal();
    }
}

/// Raft's state machine over the catalog.
pub struct StateMachine {
    catalog: Arc<Mutex<Catalog>>,
    shared: Arc<Shared>,
    snapshots: Arc<Snapshots>,
}

fn lock(catalog: &Mutex<Catalog>) -> MutexGuard<'_, Catalog> {
    // A panic inside leaves at worst an open transaction, which SQLite rolls back.
    catalog.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StateMachine {
    /// Opens the catalog in `dir`.
    pub fn open(
        dir: &Path,
        snapshots: Arc<Snapshots>,
        health: Arc<Health>,
        can_be_made_again: bool,
    ) -> Result<(Self, Arc<Shared>), MachineError> {
        let catalog = Catalog::open(dir, can_be_made_again)?;
        let at = &catalog.at;
        let shared = Shared::new(&catalog.path, catalog.generation, Revision(at.revision), at.entries(), health);
        let shared = Arc::new(shared);
        let machine = Self { catalog: Arc::new(Mutex::new(catalog)), shared: Arc::clone(&shared), snapshots };
        Ok((machine, shared))
    }

    /// What [`close`] needs later.
    pub fn catalog(&self) -> Arc<Mutex<Catalog>> {
        Arc::clone(&self.catalog)
    }

    /// Puts the catalog of `snapshot` in the place of this one.
    fn install(
        catalog: &mut Catalog,
        shared: &Shared,
        snapshots: &Snapshots,
        meta: &SnapshotMeta,
        snapshot: &SnapshotFile,
    ) -> io::Result<()> {
        if catalog.closed {
            return Err(io::Error::other("the node was shut down"));
        }
        let dir = snapshots.dir().to_owned();
        let generation = catalog.generation + 1;
        // Kept first: a crash after it finds the snapshot at the next start and installs it then.
        snapshots.keep(meta, snapshot)?;
        let mut file = tempfile::Builder::new().prefix("incoming-").tempfile_in(&dir)?;
        copy_checked(snapshot, file.as_file_mut())?;
        file.as_file().sync_all()?;
        file.persist(dir.join(file_name(generation))).map_err(|error| error.error)?;
        crate::marker::sync_dir(&dir)?;
        let new = Catalog::at_path(&dir, generation).map_err(io::Error::other)?;
        if new.at.applied != meta.last_log_id {
            return Err(io::Error::other(format!(
                "the snapshot holds the state at {:?} but is announced as {:?}",
                new.at.applied, meta.last_log_id
            )));
        }
        *catalog = new;
        seen!(Installed { at: catalog.at.applied.map(Into::into), revision: catalog.at.revision });
        if known_bug!(InstallUnannounced) {
            return Ok(());
        }
        shared.replace(&catalog.path, generation, Revision(catalog.at.revision), catalog.at.entries());
        Catalog::remove_others(&dir, generation).map_err(io::Error::other)
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let catalog = lock(&self.catalog);
        Ok((catalog.at.applied, catalog.at.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut stream: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        loop {
            let mut entries = Vec::new();
            let mut responders = Vec::new();
            let mut bytes = 0;
            while entries.len() < BATCH_ENTRIES && bytes < BATCH_BYTES {
                let Some(item) = stream.next().await else { break };
                let (entry, responder) = item?;
                bytes += entry_bytes(&entry);
                entries.push(entry);
                responders.push(responder);
            }
            if entries.is_empty() {
                return Ok(());
            }
            let (catalog, shared) = (Arc::clone(&self.catalog), Arc::clone(&self.shared));
            let results = blocking(move || {
                let mut catalog = lock(&catalog);
                if catalog.closed {
                    return Err(io::Error::other("the node was shut down"));
                }
                let working = shared.health.machine.begin();
                let applied = catalog.apply(&entries);
                drop(working);
                let (results, events) = applied.map_err(|error| {
                    shared.health.fail_with("the catalog cannot be written", &error);
                    io::Error::other(error)
                })?;
                shared.publish(events, Revision(catalog.at.revision), catalog.at.entries());
                Ok(results)
            })
            .await??;
            for (responder, result) in responders.into_iter().zip(results) {
                if let Some(responder) = responder {
                    responder.send(result);
                }
            }
        }
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        let (path, at, bytes) = {
            let catalog = lock(&self.catalog);
            let pages: i64 = catalog.db.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap_or(0);
            let page: i64 = catalog.db.query_row("PRAGMA page_size", [], |row| row.get(0)).unwrap_or(0);
            (catalog.path.clone(), catalog.at.entries(), schema::unsigned(pages.saturating_mul(page)))
        };
        if !force && !self.snapshots.due(at, bytes) {
            return None;
        }
        if !force && !self.snapshots.has_room(bytes) {
            return None;
        }
        Some(SnapshotBuilder::new(&path, Arc::clone(&self.snapshots), Arc::clone(&self.shared.health)))
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let path = lock(&self.catalog).path.clone();
        SnapshotBuilder::new(&path, Arc::clone(&self.snapshots), Arc::clone(&self.shared.health))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let (catalog, shared, snapshots) =
            (Arc::clone(&self.catalog), Arc::clone(&self.shared), Arc::clone(&self.snapshots));
        let meta = meta.clone();
        blocking(move || {
            Self::install(&mut lock(&catalog), &shared, &snapshots, &meta, &snapshot).inspect_err(|error| {
                shared.health.fail_with("a snapshot cannot be installed", error);
            })
        })
        .await?
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let snapshots = Arc::clone(&self.snapshots);
        blocking(move || snapshots.current()).await?
    }
}

#[cfg(test)]
mod tests;
