//! ② A catalog that follows a history kept elsewhere: what `fluvial-etcd` reads from.
//!
//! The tables, the projection, the history and the watchers are those of the state machine; what is missing is the
//! log. Whoever owns the history gives it in order ([`Replica::apply`]), or, where it is no longer there, everything
//! at one revision ([`Replica::fill`]).
//!
//! Invariants: a batch of changes and the revision up to which the history is applied are one SQLite transaction, so a
//! change that is given twice is applied once; a filling takes the catalog's place whole or not at all.
//!
//! Deliberately absent: the sync of every commit, as in the state machine: what a power cut takes is given again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fluvial_model::audit;
use fluvial_model::store::{Event, KeyValue, Revision};
use rusqlite::{Connection, OptionalExtension as _};
use tokio::sync::watch;

use crate::health::{self, Failure};
use crate::machine::{Catalog, MachineError, file_name, record};
use crate::marker::{self, MarkerError};
use crate::query;
use crate::schema::{self, StateRow, read_state, replace_rows, signed, unsigned, write_state};
use crate::store::{ListRequest, Listing, StoreError, Watch};
use crate::trail;
use crate::watch::{LocalWatch, Shared};

/// How often the kept history is measured, in changes: a hundredth of what is kept by default.
const TRIM_EVERY: usize = 1000;
/// Where a filling keeps the audit trail until all of it is there.
const TRAIL_TABLE: &str = "CREATE TABLE IF NOT EXISTS fv_filling (revision INTEGER PRIMARY KEY, entries BLOB NOT NULL)";
/// How the names of catalogs begin that are being filled.
const UNFINISHED: &str = "incoming-";

/// The replica cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    #[error("cannot use the data directory {dir:?}")]
    Dir {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the data directory cannot be used")]
    Marker(#[from] MarkerError),
    #[error("the catalog cannot be opened")]
    Catalog(#[from] MachineError),
    #[error("the catalog does not say whose history it follows")]
    Source(#[source] rusqlite::Error),
}

/// One change of the history: a value that was written, or none if the key was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    pub key: String,
    pub value: Option<KeyValue>,
}

/// What the audit trail says of one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trail {
    pub revision: Revision,
    pub entries: Vec<audit::Entry>,
}

struct Open {
    catalog: Catalog,
    /// Whose history this is; empty until the first filling.
    source: String,
    /// Changes since the history was last measured.
    untrimmed: usize,
    /// Held for its lock.
    _lock: std::fs::File,
}

/// The catalog of a history that is kept elsewhere; clones share it.
#[derive(Clone)]
pub struct Replica {
    dir: Arc<Path>,
    open: Arc<Mutex<Option<Open>>>,
    shared: Arc<Shared>,
    /// How many changes of history are kept.
    history: usize,
}

/// A new catalog that is being filled.
pub struct Filling {
    db: Connection,
    file: tempfile::TempPath,
}

impl Replica {
    /// Opens the catalog in `dir`, or an empty one, and keeps other processes away from it.
    ///
    /// # Errors
    /// A directory that is in use or damaged, and what the disk says.
    pub fn open(dir: &Path, history: usize) -> Result<Self, ReplicaError> {
        std::fs::create_dir_all(dir).map_err(|source| ReplicaError::Dir { dir: dir.to_owned(), source })?;
        let lock = marker::lock(dir)?;
        remove_unfinished(dir).map_err(|source| ReplicaError::Dir { dir: dir.to_owned(), source })?;
        let catalog = Catalog::open(dir, true)?;
        let source = source_of(&catalog.db).map_err(ReplicaError::Source)?;
        let revision = Revision(catalog.at.revision);
        let shared = Arc::new(Shared::new(&catalog.path, catalog.generation, revision, 0, Arc::default()));
        let open = Open { catalog, source, untrimmed: 0, _lock: lock };
        Ok(Self { dir: dir.into(), open: Arc::new(Mutex::new(Some(open))), shared, history })
    }

    /// Whose history it follows; empty before the first filling.
    #[must_use]
    pub fn source(&self) -> String {
        self.lock().as_ref().map(|open| open.source.clone()).unwrap_or_default()
    }

    /// Applies `changes` and appends `trail`, each in order, and forgets the history before `forget`; afterwards everything up to
    /// `upto` is applied. What was applied before is passed over.
    ///
    /// # Errors
    /// What the database says; nothing is applied then.
    pub async fn apply(
        &self,
        changes: Vec<Change>,
        trail: Vec<Trail>,
        upto: Revision,
        forget: Option<Revision>,
    ) -> Result<(), StoreError> {
        let replica = self.clone();
        blocking(move || {
            let mut open = replica.lock();
            let open = open.as_mut().ok_or_else(closed)?;
            let health = &replica.shared.health;
            if let Some(failure) = health.failure() {
                return Err(StoreError::stopped(&failure));
            }
            let _working = health.machine.begin();
            let events = open.apply((changes, trail), upto, forget, replica.history).map_err(|error| {
                health.fail_with("writing the catalog", &error);
                query::failed(error)
            })?;
            replica.shared.publish(events, Revision(open.catalog.at.revision), 0);
            Ok(())
        })
        .await
    }

    /// Begins a new catalog beside this one.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn fill(&self) -> Result<Filling, StoreError> {
        let dir = Arc::clone(&self.dir);
        blocking(move || {
            let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&dir).map_err(StoreError::storage)?;
            let file = file.into_temp_path();
            let db = schema::open(&file).map_err(query::failed)?;
            Ok(Filling { db, file })
        })
        .await
    }

    /// Puts what was filled in the place of this catalog: the state of `source` at `revision`, without a history.
    /// Watchers from before are told [`StoreError::Compacted`].
    ///
    /// # Errors
    /// What disk and database say; the catalog is then as before.
    pub async fn install(&self, filling: Filling, source: &str, revision: Revision) -> Result<(), StoreError> {
        let (replica, source) = (self.clone(), source.to_owned());
        blocking(move || {
            let mut open = replica.lock();
            let open = open.as_mut().ok_or_else(closed)?;
            filling.finish(&source, revision, &replica.dir, open.catalog.generation + 1)?;
            open.catalog = Catalog::at_path(&replica.dir, open.catalog.generation + 1).map_err(StoreError::storage)?;
            open.source = source;
            let generation = open.catalog.generation;
            replica.shared.replace(&open.catalog.path, generation, revision, 0);
            Catalog::remove_others(&replica.dir, generation).map_err(StoreError::storage)
        })
        .await
    }

    /// Why the catalog is written no more, to wait for.
    #[must_use]
    pub fn failures(&self) -> watch::Receiver<Option<Failure>> {
        self.shared.health.failures()
    }

    /// Why the catalog is written no more, if it is not.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.shared.health.failure()
    }

    /// Ends following when the disk does not answer a write for `limit`.
    pub async fn watch_stalls(&self, limit: Duration) {
        health::watch_stalls(Arc::clone(&self.shared.health), limit).await;
    }

    /// Whether the disk has answered everything that was asked of it.
    #[must_use]
    pub fn disk_is_idle(&self) -> bool {
        self.shared.health.is_idle()
    }

    /// Ends all writing; afterwards the directory can be opened again. One that was not closed begins empty: it is
    /// filled anew.
    pub fn close(&self) {
        if let Some(mut open) = self.lock().take()
            && self.failure().is_none()
        {
            open.catalog.seal();
        }
    }

    /// What `key` holds here.
    ///
    /// # Errors
    /// What the database says.
    pub fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        // A point read of a cached page takes microseconds, less than the way to another thread.
        self.shared.read(|db| query::get_now(db, key))
    }

    /// A page of what is here.
    ///
    /// # Errors
    /// A revision that is forgotten or has not happened here.
    pub async fn list(&self, request: ListRequest) -> Result<Listing, StoreError> {
        let ListRequest { prefix, after, limit, revision, .. } = request;
        self.shared.read_blocking(move |db| query::list(db, &prefix, after.as_deref(), limit, revision)).await
    }

    /// Events under `prefix` with a revision greater than `after`, which must have happened here.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if the history after it is forgotten.
    pub async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        Ok(Watch::new(Box::new(LocalWatch::start(&self.shared, prefix, after).await?)))
    }

    /// Everything up to here is applied.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.shared.revision()
    }

    /// The same, followed.
    #[must_use]
    pub fn revisions(&self) -> watch::Receiver<Revision> {
        self.shared.revisions()
    }

    /// The catalog's file, for read-only connections. It changes with [`Self::generation`].
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.shared.path()
    }

    /// Grows when a filling has replaced the catalog's file.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.generation()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        // A panic inside leaves at worst an open transaction, which SQLite rolls back.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn apply(
        &mut self,
        (changes, trail): (Vec<Change>, Vec<Trail>),
        upto: Revision,
        forget: Option<Revision>,
        history: usize,
    ) -> rusqlite::Result<Vec<Arc<Event>>> {
        let Catalog { db, at, .. } = &mut self.catalog;
        let mut state = read_state(db)?;
        let done = Revision(state.revision);
        let txn = db.transaction()?;
        let mut events = Vec::with_capacity(changes.len());
        for Change { revision, key, value } in changes.into_iter().filter(|change| change.revision > done) {
            let previous = query::get(&txn, &key)?;
            if value.is_none() && previous.is_none() {
                continue;
            }
            let event = Event { revision, key, value, previous };
            record(&txn, &event)?;
            events.push(Arc::new(event));
        }
        for Trail { revision, entries } in trail.into_iter().filter(|trail| trail.revision > done) {
            trail::append(&txn, revision.0, entries)?;
        }
        // The order in which the history returns them.
        events.sort_by(|a: &Arc<Event>, b| (a.revision, &a.key).cmp(&(b.revision, &b.key)));
        state.revision = state.revision.max(upto.0);
        self.untrimmed += events.len();
        let mut compacted = forget.map_or(0, |forget| forget.0.min(state.revision));
        if self.untrimmed >= TRIM_EVERY {
            self.untrimmed = 0;
            compacted = compacted.max(oldest_kept(&txn, history)?.unwrap_or(0));
        }
        if compacted > state.compacted {
            txn.prepare_cached("DELETE FROM fv_history WHERE revision <= ?1")?.execute([signed(compacted)])?;
            state.compacted = compacted;
        }
        write_state(&txn, &state)?;
        txn.commit()?;
        (at.revision, at.compacted) = (state.revision, state.compacted);
        Ok(events)
    }
}

/// Removes what a process that was killed had begun to fill.
fn remove_unfinished(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The revision up to which history may go, if there is more of it than `history` changes.
fn oldest_kept(db: &Connection, history: usize) -> rusqlite::Result<Option<u64>> {
    let kept = i64::try_from(history).unwrap_or(i64::MAX);
    db.prepare_cached("SELECT revision FROM fv_history ORDER BY revision DESC LIMIT 1 OFFSET ?1")?
        .query_row([kept], |row| row.get(0).map(unsigned))
        .optional()
}

/// Whose history a catalog follows.
fn source_of(db: &Connection) -> rusqlite::Result<String> {
    db.execute_batch("CREATE TABLE IF NOT EXISTS fv_source (one INTEGER PRIMARY KEY CHECK (one = 1), source TEXT)")?;
    let source = db.query_row("SELECT source FROM fv_source", [], |row| row.get(0)).optional()?;
    Ok(source.unwrap_or_default())
}

impl Filling {
    /// Adds a page of the state, and gives the filling back for the next.
    ///
    /// # Errors
    /// What the database says.
    pub async fn put(mut self, page: Vec<KeyValue>) -> Result<Self, StoreError> {
        blocking(move || {
            let txn = self.db.transaction().map_err(query::failed)?;
            for kv in page {
                insert(&txn, &kv).map_err(query::failed)?;
            }
            txn.commit().map_err(query::failed)?;
            Ok(self)
        })
        .await
    }

    /// Adds a page of the audit trail, which comes in any order, and gives the filling back for the next.
    ///
    /// # Errors
    /// What the database says.
    pub async fn put_trail(mut self, page: Vec<(Revision, Vec<u8>)>) -> Result<Self, StoreError> {
        blocking(move || {
            let write = |db: &mut Connection| {
                let txn = db.transaction()?;
                txn.execute_batch(TRAIL_TABLE)?;
                for (revision, entries) in page {
                    txn.prepare_cached("INSERT INTO fv_filling VALUES (?1, ?2)")?
                        .execute(rusqlite::params![signed(revision.0), entries])?;
                }
                txn.commit()
            };
            write(&mut self.db).map_err(query::failed)?;
            Ok(self)
        })
        .await
    }

    /// Appends what [`Filling::put_trail`] was given, in the order of revisions; `decode` reads the entries of one.
    ///
    /// # Errors
    /// What the database and `decode` say.
    pub async fn order_trail(
        mut self,
        decode: impl Fn(&[u8]) -> Result<Vec<audit::Entry>, StoreError> + Send + 'static,
    ) -> Result<Self, StoreError> {
        blocking(move || {
            let txn = self.db.transaction().map_err(query::failed)?;
            txn.execute_batch(TRAIL_TABLE).map_err(query::failed)?;
            {
                let mut all =
                    txn.prepare("SELECT revision, entries FROM fv_filling ORDER BY revision").map_err(query::failed)?;
                let mut rows = all.query([]).map_err(query::failed)?;
                while let Some(row) = rows.next().map_err(query::failed)? {
                    let revision = row.get(0).map(unsigned).map_err(query::failed)?;
                    let entries: Vec<u8> = row.get(1).map_err(query::failed)?;
                    trail::append(&txn, revision, decode(&entries)?).map_err(query::failed)?;
                }
            }
            txn.execute_batch("DROP TABLE fv_filling").map_err(query::failed)?;
            txn.commit().map_err(query::failed)?;
            Ok(self)
        })
        .await
    }

    /// Marks the state as whole and gives the file its name.
    fn finish(self, source: &str, revision: Revision, dir: &Path, generation: u64) -> Result<(), StoreError> {
        source_of(&self.db).map_err(query::failed)?;
        let write = || {
            self.db.execute("INSERT INTO fv_source (one, source) VALUES (1, ?1)", [source])?;
            let row = StateRow { revision: revision.0, compacted: revision.0, ..StateRow::default() };
            write_state(&self.db, &row)
        };
        write().map_err(query::failed)?;
        // Closing folds the write-ahead log into the file, which is moved alone.
        self.db.close().map_err(|(_, error)| query::failed(error))?;
        let path = dir.join(file_name(generation));
        std::fs::File::open(&self.file).and_then(|file| file.sync_all()).map_err(StoreError::storage)?;
        self.file.persist(path).map_err(StoreError::storage)?;
        marker::sync_dir(dir).map_err(StoreError::storage)
    }
}

fn insert(db: &Connection, kv: &KeyValue) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO fv_objects (key, value, create_revision, mod_revision) VALUES (?1, ?2, ?3, ?4)")?
        .execute(rusqlite::params![
            kv.key.as_bytes(),
            kv.value,
            signed(kv.create_revision.0),
            signed(kv.mod_revision.0)
        ])?;
    replace_rows(db, &kv.key, None, Some(&kv.value))
}

fn closed() -> StoreError {
    StoreError::unavailable("the store is closed")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(StoreError::storage(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str, created: u64, revision: u64) -> Change {
        let (create_revision, mod_revision) = (Revision(created), Revision(revision));
        let value = KeyValue { key: key.into(), value: value.into(), create_revision, mod_revision };
        Change { revision: mod_revision, key: key.into(), value: Some(value) }
    }

    #[tokio::test]
    async fn what_is_given_twice_is_applied_once_and_survives() {
        let dir = tempfile::tempdir().unwrap();
        let replica = Replica::open(dir.path(), 1000).unwrap();
        let changes = vec![put("a", "1", 5, 5), put("b", "1", 5, 5), put("a", "2", 5, 9)];
        replica.apply(changes.clone(), vec![], Revision(9), None).await.unwrap();
        let gone = Change { revision: Revision(12), key: "b".into(), value: None };
        replica.apply([changes, vec![gone]].concat(), vec![], Revision(20), None).await.unwrap();
        let mut watch = replica.watch("", Revision(4)).await.unwrap();
        let events = watch.next().await.unwrap();
        let seen: Vec<_> = events.iter().map(|event| (event.revision.0, event.key.as_str())).collect();
        assert_eq!(seen, [(5, "a"), (5, "b"), (9, "a"), (12, "b")]);
        assert_eq!(events[2].previous.as_ref().map(|kv| kv.mod_revision), Some(Revision(5)));
        replica.close();
        assert!(replica.apply(vec![put("c", "1", 21, 21)], vec![], Revision(21), None).await.is_err());

        let replica = Replica::open(dir.path(), 1000).unwrap();
        assert_eq!(replica.revision(), Revision(20));
        let at = |revision| ListRequest { revision: Some(Revision(revision)), ..ListRequest::default() };
        let keys = |listing: Listing| listing.items.into_iter().map(|kv| kv.key).collect::<Vec<_>>();
        assert_eq!(keys(replica.list(at(11)).await.unwrap()), ["a", "b"]);
        assert_eq!(keys(replica.list(at(12)).await.unwrap()), ["a"]);
        replica.apply(vec![], vec![], Revision(20), Some(Revision(11))).await.unwrap();
        assert!(matches!(replica.list(at(10)).await, Err(StoreError::Compacted { oldest: Revision(11) })));
    }

    #[tokio::test]
    async fn a_filling_takes_the_place_whole_and_ends_old_watches() {
        let dir = tempfile::tempdir().unwrap();
        let replica = Replica::open(dir.path(), 1000).unwrap();
        replica.apply(vec![put("old", "1", 5, 5)], vec![], Revision(5), None).await.unwrap();
        let mut behind = replica.watch("", Revision(5)).await.unwrap();
        let filling = replica.fill().await.unwrap();
        let page = put("new", "1", 7, 8).value.unwrap();
        let filling = filling.put(vec![page]).await.unwrap();
        assert!(replica.get("old").unwrap().is_some(), "nothing changes before the end");
        replica.install(filling, "there", Revision(30)).await.unwrap();
        assert_eq!((replica.get("old").unwrap(), replica.source().as_str()), (None, "there"));
        assert!(matches!(behind.next().await, Err(StoreError::Compacted { oldest: Revision(30) })));
        replica.apply(vec![put("new", "2", 7, 31)], vec![], Revision(31), None).await.unwrap();
        replica.close();
        let replica = Replica::open(dir.path(), 1000).unwrap();
        assert_eq!((replica.revision(), replica.source().as_str()), (Revision(31), "there"));
        // A filling that never ended leaves nothing behind.
        std::mem::forget(replica.fill().await.unwrap());
        replica.close();
        Replica::open(dir.path(), 1000).unwrap();
        let left = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with(UNFINISHED)));
    }

    #[tokio::test]
    async fn the_history_is_bounded_by_changes() {
        let dir = tempfile::tempdir().unwrap();
        let replica = Replica::open(dir.path(), 10).unwrap();
        // Revisions with gaps: others write into the same history.
        let changes = (1..=1500).map(|number| put("a", "1", 3, number * 3)).collect();
        replica.apply(changes, vec![], Revision(4500), None).await.unwrap();
        let refused = replica.watch("", Revision(3)).await.err();
        assert!(matches!(refused, Some(StoreError::Compacted { oldest }) if oldest.0 == 4500 - 30));
        let mut watch = replica.watch("", Revision(4470)).await.unwrap();
        assert_eq!(watch.next().await.unwrap().len(), 10);
    }
}
