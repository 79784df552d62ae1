//! ⑤ The native cache engine: whole files of dataset versions, kept by content in tiers of this machine.
//!
//! ```text
//! TIER/objects/ab/abcd…      a complete, verified file; its name is its BLAKE3 if the version gives one, else the hash
//!                            of dataset uid, root and path
//! TIER/unfinished/RUN-N      a file that is being fetched
//! INDEX                      which objects are complete, which parts of unfinished files are on the disk, and which path of
//!                            which dataset uses which (SQLite)
//! ```
//! A file goes to the first tier with room for all of it; files that nobody wants beforehand make room, the longest
//! unopened first, from a tier's high mark down to its low one, behind the readers' backs. Ranges of at most [`RANGE_BYTES`]
//! are fetched, [`PARTS_IN_FLIGHT`] parts at a time by all datasets and readers together: 64 MiB of contents are in memory, as
//! much again of files that have no room and are read ahead of their readers, and as much again where other nodes are asked;
//! who serves them bounds what it holds for that.
//!
//! Invariants: an object is complete and was verified (by digest if the version gives one, else every range was read
//! from exactly the version of the file that was listed with the manifest's size and time); no tier exceeds its quota,
//! files being fetched counted in; an object stays as long as any dataset uses it and no longer; a restart keeps every
//! complete file, and of others what was on the disk.
//!
//! Deliberately absent: making room by giving up other datasets. Everything that was placed is protected, pinned or not:
//! a dataset that does not fit is `Partial`, and the planner, which knows the whole fleet, decides what to take away.
//! Absent too: mounts, retries, and which node owns what ([`share`] asks, and serves).

mod fill;
mod index;
mod open;
mod order;
mod pagecache;
mod partial;
mod replay;
pub mod share;
mod store;
mod through;
mod upkeep;
mod warm;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::kinds::NodeUsage;
use fluvial_model::manifest::{RelativePath, Root};
use fluvial_model::report::CacheReport;
use fluvial_transfer::BlockStore;
use tokio::sync::{Semaphore, watch};

use crate::engine::{CacheRequest, Engine, EngineError, Loaded, OpenFile, WarmRequest, Warmed};
use fill::Mounted;
use partial::Partials;
use share::{Peers, Proofs, SharedRange};
use store::Store;
use upkeep::Upkeep;

/// Files of one dataset that are fetched at a time.
pub const PARALLEL_FILES: usize = 8;
/// Ranges of one file that are fetched at a time.
pub const PARALLEL_RANGES: usize = 8;
/// Most bytes of one fetch.
pub const RANGE_BYTES: u64 = 8 << 20;
/// The bytes that are fetched for one byte: what is there is noted in parts of this size.
pub const PART_BYTES: u64 = 1 << 20;
/// Bytes of a piece of a file that has no room, read ahead into memory.
pub const PIECE_BYTES: u64 = through::PIECE;

/// How much is in memory at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InFlight {
    /// Parts that are fetched from sources, by all datasets and readers together; no fewer than a range has.
    pub parts: u32,
    /// Ranges that are asked of other nodes.
    pub asked: usize,
    /// Pieces of files that have no room.
    pub pieces: usize,
}

impl Default for InFlight {
    /// 64 MiB each.
    fn default() -> Self {
        Self { parts: 64, asked: 8, pieces: 16 }
    }
}

/// A directory for cached files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    /// `MEM`, `SSD` or `HDD`.
    pub medium: String,
    /// The directory, this engine's alone.
    pub dir: PathBuf,
    /// Most bytes of contents in it.
    pub quota_bytes: u64,
    /// When files are given up beforehand.
    pub marks: Marks,
}

/// Marks of a tier, in hundredths of its quota: above `high`, files that nobody wants beforehand are given up until no more
/// than `low` is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// More than this begins it.
    pub high: u8,
    /// No more than this ends it.
    pub low: u8,
}

impl Default for Marks {
    fn default() -> Self {
        Self { high: 95, low: 90 }
    }
}

impl Tier {
    fn high_bytes(&self) -> u64 {
        self.quota_bytes / 100 * u64::from(self.marks.high) + self.quota_bytes % 100 * u64::from(self.marks.high) / 100
    }

    fn low_bytes(&self) -> u64 {
        self.quota_bytes / 100 * u64::from(self.marks.low) + self.quota_bytes % 100 * u64::from(self.marks.low) / 100
    }
}

/// What a node cache is made of.
#[derive(Clone)]
pub struct NodeCacheConfig {
    /// The file of the index.
    pub index: PathBuf,
    /// Fastest first.
    pub tiers: Vec<Tier>,
    /// The node, with zone and region, as reports name it; its media are filled in.
    pub node: NodeUsage,
    /// Where the blocks of versions are.
    pub blocks: BlockStore,
    /// The other nodes of the cluster, if caches are shared.
    pub peers: Option<Arc<dyn Peers>>,
    /// How much is in memory at a time.
    pub in_flight: InFlight,
}

/// The engine. Clones are one engine.
#[derive(Clone)]
pub struct NodeCache {
    shared: Arc<Shared>,
}

struct Shared {
    node: NodeUsage,
    blocks: BlockStore,
    store: Arc<Store>,
    /// Parts that may be in memory, and how many these are.
    ranges: Arc<Semaphore>,
    parts: u32,
    peers: Option<Arc<dyn Peers>>,
    /// Ranges that are asked of other nodes at a time: what waits for them must not keep others from the source.
    asked: Arc<Semaphore>,
    proofs: Proofs,
    /// Pieces of files without room.
    pieces: Arc<Semaphore>,
    partials: Partials,
    /// The sources of what was prepared since the start, by uid.
    mounts: Mutex<HashMap<String, Arc<Vec<Mounted>>>>,
    stopped: watch::Sender<bool>,
    upkeep: Upkeep,
    orders: replay::Orders,
    /// Parts that replays may have in flight, and how many these are.
    replays: Semaphore,
    replayed: u32,
    /// Files that were opened and that nobody had begun to fetch.
    misses: AtomicU64,
}

impl NodeCache {
    /// Opens the cache: keeps every complete file, removes what is neither complete nor known. Blocks the thread for a
    /// look at every file.
    ///
    /// # Errors
    /// When a directory or the index cannot be used.
    pub fn open(config: NodeCacheConfig) -> Result<Self, EngineError> {
        let NodeCacheConfig { index, tiers, node, blocks, peers, in_flight } = config;
        let parts = in_flight.parts.max(u32::try_from(RANGE_BYTES / PART_BYTES).unwrap_or(u32::MAX));
        let replayed = replay::PARTS.min(parts / 4);
        let store = Store::open(&index, tiers)?;
        let shared = Shared {
            node,
            blocks,
            store,
            ranges: Arc::new(Semaphore::new(parts as usize)),
            parts,
            peers,
            asked: Arc::new(Semaphore::new(in_flight.asked.max(1))),
            proofs: Proofs::default(),
            pieces: Arc::new(Semaphore::new(in_flight.pieces.max(1))),
            partials: Partials::default(),
            mounts: Mutex::default(),
            stopped: watch::Sender::new(false),
            upkeep: Upkeep::default(),
            orders: replay::Orders::default(),
            replays: Semaphore::new(replayed as usize),
            replayed,
            misses: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A range for another node, from the cache or from the source; at most [`RANGE_BYTES`], from the first byte of a
    /// part.
    ///
    /// # Errors
    /// As [`Engine::open`] and [`crate::Filling::fill`]; also when what is cached is not what was fetched.
    pub async fn serve(&self, asked: SharedRange) -> Result<Bytes, EngineError> {
        self.unless_stopped("share", share::serve(&self.shared, asked)).await
    }

    /// How many files were opened, since the start, that nobody had begun to fetch.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.shared.misses.load(Ordering::Relaxed)
    }

    /// Runs a call until the engine is stopped.
    async fn unless_stopped<T>(
        &self,
        op: &'static str,
        call: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        let mut stopped = self.shared.stopped.subscribe();
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => Err(EngineError::Stopped { op }),
            ended = call => ended,
        }
    }

    /// Runs a call that blocks.
    async fn blocking<T: Send + 'static>(
        &self,
        op: &'static str,
        call: impl FnOnce(&Shared) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let shared = self.shared.clone();
        blocking(op, move || call(&shared)).await
    }
}

impl Shared {
    fn mounts(&self) -> MutexGuard<'_, HashMap<String, Arc<Vec<Mounted>>>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether other nodes may ask for what is fetched.
    fn is_shared(&self) -> bool {
        self.peers.as_ref().is_some_and(|peers| peers.any())
    }

    /// The sources of a dataset.
    fn mounts_of(&self, uid: &str) -> Result<Arc<Vec<Mounted>>, EngineError> {
        self.mounts().get(uid).cloned().ok_or_else(|| EngineError::NotPrepared { dataset: uid.to_owned() })
    }
}

/// Runs a call on a blocking thread; when the runtime ends it counts as stopped.
async fn blocking<T: Send + 'static>(
    op: &'static str,
    call: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(EngineError::Stopped { op }),
    }
}

#[async_trait]
impl Engine for NodeCache {
    fn name(&self) -> &'static str {
        "nodecache"
    }

    async fn prepare(&self, request: &CacheRequest) -> Result<(), EngineError> {
        let request = request.clone();
        upkeep::begin(&self.shared);
        self.blocking("prepare", move |shared| {
            let mounts = fill::mounts(&request)?;
            let mut inner = shared.store.lock();
            let dropped = inner.index.prepare(&request, &shared.blocks.getter())?;
            shared.mounts().insert(request.dataset.uid.clone(), Arc::new(mounts));
            shared.store.remove(&mut inner, &dropped)?;
            inner.discard_unused(&shared.store)?;
            shared.orders.prepared(&request.dataset.uid, &inner.index)
        })
        .await
    }

    async fn load(&self, request: &CacheRequest) -> Result<Loaded, EngineError> {
        self.unless_stopped("load", fill::load(&self.shared, request)).await
    }

    async fn warm(&self, request: &WarmRequest, progress: &watch::Sender<Warmed>) -> Result<Warmed, EngineError> {
        self.unless_stopped("load", warm::warm(&self.shared, request, progress)).await
    }

    async fn ahead(&self, uid: &str, root: Root, path: &RelativePath) -> Result<(), EngineError> {
        self.unless_stopped("open", open::ahead(&self.shared, uid, root, path)).await
    }

    async fn open_complete(&self, uid: &str, root: Root, path: &RelativePath) -> Result<Option<OpenFile>, EngineError> {
        self.unless_stopped("open", open::open_complete(&self.shared, uid, root, path)).await
    }

    async fn open(&self, uid: &str, root: Root, path: &RelativePath) -> Result<OpenFile, EngineError> {
        self.unless_stopped("open", open::open(&self.shared, uid, root, path)).await
    }

    async fn status(&self, uid: &str) -> Result<Option<CacheReport>, EngineError> {
        let uid = uid.to_owned();
        self.blocking("status", move |shared| {
            let begun = shared.partials.bytes_there();
            let (held, partial) = {
                let inner = shared.store.lock();
                (upkeep::held(&inner, &uid, begun)?, inner.partial.contains_key(&uid))
            };
            let Some(held) = held else { return Ok(None) };
            let complete = held.cached_files == held.total_files;
            let phase = match (complete, held.on_demand, partial) {
                (true, ..) => "Ready",
                (false, true, _) => "OnDemand",
                (false, false, true) => "Partial",
                (false, false, false) => "Filling",
            };
            Ok(Some(CacheReport {
                phase: phase.to_owned(),
                cached_bytes: held.cached_bytes,
                total_bytes: held.total_bytes,
                cached_files: held.cached_files,
                total_files: held.total_files,
                nodes: vec![NodeUsage { media: shared.store.media_of(&held.by_tier), ..shared.node.clone() }],
                root: held.root,
                problem: None,
            }))
        })
        .await
    }

    async fn usage(&self) -> Result<Vec<NodeUsage>, EngineError> {
        self.blocking("usage", |shared| {
            let begun = shared.partials.bytes_there();
            let begun = upkeep::begun(&shared.store.lock(), begun)?;
            let begun: Vec<_> = begun.into_iter().map(|(_, tier, bytes)| (tier, bytes)).collect();
            Ok(vec![NodeUsage { media: shared.store.media(&begun), ..shared.node.clone() }])
        })
        .await
    }

    async fn evict(&self, uid: &str) -> Result<(), EngineError> {
        let uid = uid.to_owned();
        self.blocking("evict", move |shared| {
            shared.mounts().remove(&uid);
            replay::write(shared)?;
            replay::forget(shared, &uid);
            let mut inner = shared.store.lock();
            inner.partial.remove(&uid);
            let dropped = inner.index.evict(&uid)?;
            shared.store.remove(&mut inner, &dropped)?;
            inner.discard_unused(&shared.store)
        })
        .await
    }

    async fn stop(&self) {
        self.shared.stopped.send_replace(true);
        upkeep::end(&self.shared).await;
        let last = |shared: &Shared| {
            upkeep::note(shared)?;
            replay::write(shared)?;
            shared.store.sync(true)
        };
        if let Err(error) = self.blocking("stop", last).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cached files were not synced");
        }
    }
}

#[cfg(test)]
mod tests;
