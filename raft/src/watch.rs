//! ② Watching: what was applied here, pulled by each watcher at its own pace.
//!
//! The newest events are in one ring that all watchers share; who falls behind it reads the kept history from the
//! catalog; who falls behind that is told [`StoreError::Compacted`]. A watcher has no buffer of its own, so a thousand
//! slow ones cost a thousand numbers.
//!
//! A watcher sleeps until something under its prefix changed ([`crate::wake`]).
//!
//! Invariants: the ring holds whole revisions without gaps above its floor; the revision is announced after its
//! events are in the ring and its rows in the catalog.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use async_trait::async_trait;
use fluvial_model::store::{Event, Revision};
use rusqlite::Connection;
use tokio::sync::watch;

use crate::blocking::{blocking, known_bug};
use crate::health::{Failure, Health};
use crate::store::{StoreError, WatchSource};
use crate::wake::{Mark, Watchers};
use crate::{query, schema};

/// The ring's bounds: 8,192 events are some seconds of the fastest writing; 8 MiB keeps a hub's idle footprint small
/// even if each is a large object.
const RING_EVENTS: usize = 8192;
const RING_BYTES: usize = 8 << 20;
/// Events that a watcher gets at once, so that one far behind does not hold all of them in memory.
const BATCH: usize = 1024;
/// Reading connections kept open: two cores' worth of readers, twice; more are opened under load and closed again.
const IDLE_READERS: usize = 8;

#[derive(Default)]
struct Ring {
    /// Every event after this revision is here.
    floor: Revision,
    events: VecDeque<Arc<Event>>,
    bytes: usize,
}

fn event_bytes(event: &Event) -> usize {
    let value = |kv: &Option<fluvial_model::store::KeyValue>| kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
    128 + event.key.len() + value(&event.value) + value(&event.previous)
}

impl Ring {
    fn push(&mut self, events: Vec<Arc<Event>>) {
        for event in events {
            self.bytes += event_bytes(&event);
            self.events.push_back(event);
        }
        while self.events.len() > RING_EVENTS || self.bytes > RING_BYTES {
            let Some(first) = self.events.front().map(|event| event.revision) else { break };
            while let Some(event) = self.events.pop_front_if(|event| event.revision == first) {
                self.bytes -= event_bytes(&event);
            }
            self.floor = first;
        }
    }
}

struct Readers {
    path: PathBuf,
    generation: u64,
    idle: Vec<Connection>,
}

/// What the state machine shows to readers and watchers.
pub struct Shared {
    revision: watch::Sender<Revision>,
    /// How many log entries are applied: one more than the index of the last one.
    applied: watch::Sender<u64>,
    ring: RwLock<Ring>,
    watchers: Watchers,
    readers: Mutex<Readers>,
    generation: AtomicU64,
    pub health: Arc<Health>,
}

impl Shared {
    /// The catalog at `path`, applied up to `revision` and `applied`.
    pub fn new(path: &Path, generation: u64, revision: Revision, applied: u64, health: Arc<Health>) -> Self {
        Self {
            revision: watch::Sender::new(revision),
            applied: watch::Sender::new(applied),
            ring: RwLock::new(Ring { floor: revision, ..Ring::default() }),
            watchers: Watchers::default(),
            readers: Mutex::new(Readers { path: path.to_owned(), generation, idle: Vec::new() }),
            generation: AtomicU64::new(generation),
            health,
        }
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn path(&self) -> PathBuf {
        self.readers().path.clone()
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    pub fn revisions(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Announces what a commit of the catalog made visible.
    pub fn publish(&self, events: Vec<Arc<Event>>, revision: Revision, applied: u64) {
        let concerned = self.watchers.mark(&events);
        if !events.is_empty() {
            self.ring.write().unwrap_or_else(PoisonError::into_inner).push(events);
        }
        self.revision.send_if_modified(|current| std::mem::replace(current, revision) != revision);
        self.applied.send_replace(applied);
        Watchers::wake(&concerned);
    }

    /// Moves readers and watchers to another catalog file, after a snapshot was installed.
    pub fn replace(&self, path: &Path, generation: u64, revision: Revision, applied: u64) {
        {
            let mut readers = self.readers();
            *readers = Readers { path: path.to_owned(), generation, idle: Vec::new() };
            self.generation.store(generation, Ordering::Release);
        }
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Ring { floor: revision, ..Ring::default() };
        let concerned = self.watchers.mark_all(revision);
        self.revision.send_replace(revision);
        self.applied.send_replace(applied);
        Watchers::wake(&concerned);
    }

    /// Runs `read` on a reading connection. Blocks the thread for as long as it reads.
    pub fn read<T>(&self, read: impl FnOnce(&mut Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let (idle, path, generation) = {
            let mut readers = self.readers();
            (readers.idle.pop(), readers.path.clone(), readers.generation)
        };
        let mut db = match idle {
            Some(db) => db,
            None => schema::open_reader(&path).map_err(StoreError::storage)?,
        };
        let result = read(&mut db);
        let mut readers = self.readers();
        if readers.generation == generation && readers.idle.len() < IDLE_READERS {
            readers.idle.push(db);
        }
        result
    }

    /// The same on a thread where blocking is fine.
    pub async fn read_blocking<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(self);
        match blocking(move || shared.read(read)).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::storage(error)),
        }
    }

    /// Events after `after` from the ring: a batch and up to where it is complete; none if they are no longer there.
    fn recent(&self, after: Revision, prefix: &str) -> Option<(Vec<Arc<Event>>, Revision)> {
        let newest = self.revision();
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        if after < ring.floor {
            return None;
        }
        let start = ring.events.partition_point(|event| event.revision <= after);
        let mut batch: Vec<Arc<Event>> = Vec::new();
        for event in ring.events.range(start..).take_while(|event| event.revision <= newest) {
            if let Some(last) = batch.last()
                && batch.len() >= BATCH
                && last.revision != event.revision
            {
                let upto = last.revision;
                return Some((batch, upto));
            }
            if event.key.starts_with(prefix) {
                batch.push(Arc::clone(event));
            }
        }
        Some((batch, newest))
    }
}

/// A watcher of the state that is applied here.
pub struct LocalWatch {
    shared: Arc<Shared>,
    at: Revision,
    prefix: String,
    mark: Arc<Mark>,
    failures: watch::Receiver<Option<Failure>>,
}

impl LocalWatch {
    /// Watches `prefix` for events after `after`, which must have happened here.
    pub async fn start(shared: &Arc<Shared>, prefix: &str, after: Revision) -> Result<Self, StoreError> {
        let oldest = shared.read_blocking(|db| query::oldest(db)).await?;
        if after < oldest {
            return Err(StoreError::Compacted { oldest });
        }
        let mark = shared.watchers.enter(prefix);
        // What happened before nobody marked for it.
        Watchers::begin(&mark, shared.revision());
        let failures = shared.health.failures();
        Ok(Self { shared: Arc::clone(shared), at: after, prefix: prefix.to_owned(), mark, failures })
    }
}

impl Drop for LocalWatch {
    fn drop(&mut self) {
        self.shared.watchers.leave(&self.mark);
    }
}

#[async_trait]
impl WatchSource for LocalWatch {
    async fn next(&mut self) -> Result<Vec<Arc<Event>>, StoreError> {
        loop {
            // In this order: see `wake`.
            let newest = self.shared.revision();
            if self.mark.due() <= self.at {
                self.at = self.at.max(newest);
            } else if newest > self.at {
                let (mut events, upto) = match self.shared.recent(self.at, &self.prefix) {
                    Some(recent) => recent,
                    None if known_bug!(WatchDropsOnLag) => (Vec::new(), newest),
                    None => {
                        let (at, prefix) = (self.at, self.prefix.clone());
                        let page = self.shared.read_blocking(move |db| query::events(db, at));
                        let (mut events, upto) = page.await?;
                        events.retain(|event| event.key.starts_with(&prefix));
                        (events, upto)
                    }
                };
                if known_bug!(WatchCutsBatch) && events.len() > 1 {
                    events.truncate(1);
                }
                self.at = self.at.max(upto);
                if !events.is_empty() {
                    return Ok(events);
                }
                if self.at < newest {
                    continue;
                }
            }
            let closed = || StoreError::unavailable("the store is closed");
            tokio::select! {
                () = self.mark.woken() => {}
                // Whoever watches must go to another node: nothing will happen here any more.
                failed = self.failures.wait_for(Option::is_some) => {
                    let failed = failed.map_err(|_| closed())?;
                    return Err(failed.as_ref().map_or_else(closed, StoreError::stopped));
                }
            }
        }
    }

    fn revision(&self) -> Revision {
        let newest = self.shared.revision();
        if self.mark.due() <= self.at { self.at.max(newest) } else { self.at }
    }
}
