//! The files of the cache: tiers with room, objects by id, and the index that says which of them are complete.
//!
//! Everything here blocks for moments and runs under one lock, so that room, index and files change together:
//! a file is renamed into its place before it is recorded, and forgotten before it is removed. What a crash leaves in
//! between is a stranger, removed when the cache opens.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use fluvial_model::kinds::MediumUsage;
use fluvial_model::manifest::RelativePath;

use super::Tier;
use super::index::{Index, Object};
use super::partial::digest_of;
use crate::engine::EngineError;

mod dormant;
mod room;

use dormant::Dormant;
pub(super) use room::Room;

/// Directory of complete files in a tier.
const OBJECTS: &str = "objects";
/// Directory of unfinished files in a tier; on the same file system, so that a rename is enough.
const UNFINISHED: &str = "unfinished";

/// Seconds to within which it is noted when a file was opened.
const OPENED_GRAIN: i64 = 30;
/// Files that are synced together.
const SYNCED_AT_ONCE: usize = 512;
/// Bytes that make way at a time for an index on a full disk.
const WAY: u64 = 16 << 20;
/// Files are not left unsynced for longer, as long as others come.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How long a tier is left alone whose file system refused something.
const TIER_REST: Duration = Duration::from_secs(10);

/// Tiers and index.
pub(super) struct Store {
    tiers: Vec<Tier>,
    inner: Mutex<Inner>,
    /// The start of the names of unfinished files: of this run of the program alone.
    run: String,
    names: AtomicU64,
}

pub(super) struct Inner {
    pub index: Index,
    /// How often each object is open now: such ones are not given up.
    open: HashMap<String, usize>,
    /// Bytes of complete objects by tier.
    used: Vec<u64>,
    /// Bytes promised to files that are being fetched, by tier.
    promised: Vec<u64>,
    /// Files that were begun and that nobody has open, the longest unopened first.
    dormant: VecDeque<Dormant>,
    /// What the file system of each tier refused, and since when.
    trouble: Vec<Option<(Instant, String)>>,
    /// Objects whose files may not be on the disk yet.
    unsynced: Vec<Object>,
    synced_at: Instant,
    /// Loads that run, by number: what they want is not given up.
    pub loads: Vec<(u64, String, Vec<RelativePath>)>,
    pub load_number: u64,
    /// Datasets of which something did not fit, and how much, in words.
    pub partial: HashMap<String, String>,
}

/// An object that is open.
pub(super) struct Lease {
    store: Arc<Store>,
    id: String,
}

fn failed(op: &'static str, file: &Path) -> impl FnOnce(io::Error) -> EngineError {
    let file = file.display().to_string();
    move |source| EngineError::Io { op, file, source }
}

/// Seconds since the epoch, to tell what was opened last.
fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

fn key(tier: &Tier) -> String {
    tier.dir.display().to_string()
}

impl Store {
    /// Opens the tiers and forgets what index and disk do not agree on. On a disk that is full, cached files make way for
    /// the index.
    pub(super) fn open(index: &Path, tiers: Vec<Tier>) -> Result<Arc<Self>, EngineError> {
        loop {
            match Self::open_now(index, tiers.clone()) {
                Err(error) if error.is_full() && make_way(&tiers) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cached files make way on a full disk");
                }
                opened => return opened,
            }
        }
    }

    fn open_now(index: &Path, tiers: Vec<Tier>) -> Result<Arc<Self>, EngineError> {
        for dir in index.parent().into_iter().chain(tiers.iter().map(|tier| tier.dir.as_path())) {
            fs::create_dir_all(dir).map_err(failed("make directory", dir))?;
        }
        let mut index = Index::open(index)?;
        verify_unsynced(&mut index, &tiers)?;
        let mut used = vec![0; tiers.len()];
        let mut known: Vec<HashSet<String>> = vec![HashSet::new(); tiers.len()];
        let mut gone = Vec::new();
        for object in index.objects()? {
            let tier = tiers.iter().position(|tier| key(tier) == object.tier);
            let right = tier.filter(|tier| {
                fs::metadata(place(&tiers[*tier], &object.id)).is_ok_and(|file| file.len() == object.bytes)
            });
            match right {
                Some(tier) => {
                    used[tier] += object.bytes;
                    known[tier].insert(object.id);
                }
                None => {
                    tracing::warn!(object = object.id, "cached file is gone or damaged; it will be fetched again");
                    gone.push(object);
                }
            }
        }
        index.forget(&gone)?;
        let dormant = dormant::found(&index, &tiers, &used)?;
        let mut promised = vec![0; used.len()];
        dormant.iter().for_each(|dormant| promised[dormant.tier] += dormant.file.bytes);
        for (number, tier) in tiers.iter().enumerate() {
            let unfinished = tier.dir.join(UNFINISHED);
            fs::create_dir_all(&unfinished).map_err(failed("make directory", &unfinished))?;
            let begun = dormant.iter().filter(|dormant| dormant.tier == number).map(|found| found.file.file.clone());
            remove_others(&unfinished, &begun.collect())?;
            for fan_out in entries(&tier.dir.join(OBJECTS))? {
                remove_others(&fan_out.path(), &known[number])?;
            }
        }
        let inner = Inner {
            index,
            open: HashMap::new(),
            promised,
            dormant,
            trouble: vec![None; used.len()],
            used,
            unsynced: Vec::new(),
            synced_at: Instant::now(),
            loads: Vec::new(),
            load_number: 0,
            partial: HashMap::new(),
        };
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let run = format!("{:x}", started.as_nanos());
        Ok(Arc::new(Self { tiers, inner: Mutex::new(inner), run, names: AtomicU64::new(0) }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panicking thread left half done is a transaction that SQLite rolled back.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a tier alone for a while, because of what its file system says.
    fn troubled(&self, tier: usize, op: &'static str, error: &io::Error) -> EngineError {
        let dir = key(&self.tiers[tier]);
        tracing::warn!(tier = dir, %error, "the cache cannot {op}; the tier is left alone for {TIER_REST:?}");
        let why = error.to_string();
        self.lock().trouble[tier] = Some((Instant::now(), why.clone()));
        EngineError::TierFailed { op, tier: dir, why }
    }

    /// A tier that is left alone now, if there is one, as the error of what cannot be done without it.
    pub(super) fn trouble(&self, op: &'static str) -> Option<EngineError> {
        let inner = self.lock();
        let found = inner.trouble.iter().enumerate().find(|(_, trouble)| rests(trouble))?;
        let (tier, (_, why)) = (found.0, found.1.as_ref()?);
        Some(EngineError::TierFailed { op, tier: key(&self.tiers[tier]), why: why.clone() })
    }

    /// Opens the file of an object; while the lease lives, it is not given up. `None` if the file is gone or its disk does
    /// not give it: the object is forgotten then, and is to be fetched again.
    pub(super) fn open_object(
        self: &Arc<Self>,
        object: &Object,
        opened: i64,
    ) -> Result<Option<(fs::File, Lease)>, EngineError> {
        let id = &object.id;
        let mut inner = self.lock();
        let tier = self.tiers.iter().position(|known| key(known) == object.tier);
        let file = match tier.map(|tier| fs::File::open(place(&self.tiers[tier], id))) {
            Some(Ok(file)) => file,
            // Open files are the program's limit, not the disk's.
            Some(Err(error)) if matches!(error.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE)) => {
                return Err(failed("open", Path::new(&object.tier))(error));
            }
            lost => {
                tracing::warn!(object = id, "cached file cannot be opened; it will be fetched again");
                inner.index.forget(std::slice::from_ref(object))?;
                if let Some(tier) = tier {
                    inner.used[tier] = inner.used[tier].saturating_sub(object.bytes);
                }
                drop(inner);
                if let (Some(tier), Some(Err(error))) = (tier, lost)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    self.troubled(tier, "open cached file", &error);
                }
                return Ok(None);
            }
        };
        let now = now();
        if now - opened > OPENED_GRAIN {
            inner.index.opened(id, now)?;
        }
        Ok(Some((file, self.leased(&mut inner, id))))
    }

    /// Keeps an object that may still be on its way from being given up.
    pub(super) fn lease(self: &Arc<Self>, id: &str) -> Lease {
        self.leased(&mut self.lock(), id)
    }

    fn leased(self: &Arc<Self>, inner: &mut Inner, id: &str) -> Lease {
        *inner.open.entry(id.to_owned()).or_default() += 1;
        Lease { store: self.clone(), id: id.to_owned() }
    }

    /// Removes files that the index has forgotten.
    pub(super) fn remove(&self, inner: &mut Inner, objects: &[Object]) -> Result<(), EngineError> {
        for object in objects {
            let Some(tier) = self.tiers.iter().position(|tier| key(tier) == object.tier) else { continue };
            inner.used[tier] = inner.used[tier].saturating_sub(object.bytes);
            let file = place(&self.tiers[tier], &object.id);
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &file)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Syncs the files that came since the last time, if they are many or that was long ago. What a power cut takes before
    /// is found out when the cache opens; what a tier could not write is given up.
    pub(super) fn sync(&self, now: bool) -> Result<(), EngineError> {
        let objects = {
            let mut inner = self.lock();
            let due = inner.unsynced.len() >= SYNCED_AT_ONCE || inner.synced_at.elapsed() >= SYNC_EVERY;
            if inner.unsynced.is_empty() || !(due || now) {
                return Ok(());
            }
            inner.synced_at = Instant::now();
            std::mem::take(&mut inner.unsynced)
        };
        let lost = self.sync_tiers(|_| true);
        let (lost, synced): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| lost.contains(&object.tier));
        let mut inner = self.lock();
        inner.index.forget(&lost)?;
        if let Err(error) = self.remove(&mut inner, &lost) {
            tracing::warn!(error = &error as &dyn std::error::Error, "files that could not be synced stay behind");
        }
        inner.index.synced(&synced)
    }

    /// Syncs tiers while others go on; returns those that could not be.
    fn sync_tiers(&self, chosen: impl Fn(&str) -> bool) -> Vec<String> {
        let mut lost = Vec::new();
        for (number, tier) in self.tiers.iter().enumerate().filter(|(_, tier)| chosen(&key(tier))) {
            if let Err(error) = sync_tier(tier) {
                self.troubled(number, "sync", &error);
                lost.push(key(tier));
            }
        }
        lost
    }

    /// Use of the media by all datasets together, `begun` (bytes by tier) counted in.
    pub(super) fn media(&self, begun: &[(String, u64)]) -> Vec<MediumUsage> {
        let used = self.lock().used.clone();
        self.by_medium(|tier| {
            let begun = begun.iter().filter(|(name, _)| *name == key(&self.tiers[tier])).map(|(_, bytes)| bytes);
            used[tier] + begun.sum::<u64>()
        })
    }

    /// Use of the media, given the bytes of each tier by its key.
    pub(super) fn media_of(&self, by_tier: &[(String, u64)]) -> Vec<MediumUsage> {
        self.by_medium(|tier| {
            by_tier.iter().filter(|(name, _)| *name == key(&self.tiers[tier])).map(|(_, bytes)| *bytes).sum()
        })
    }

    fn by_medium(&self, used: impl Fn(usize) -> u64) -> Vec<MediumUsage> {
        let mut media: Vec<MediumUsage> = Vec::new();
        for (number, tier) in self.tiers.iter().enumerate() {
            let at = media.iter().position(|medium| medium.medium == tier.medium).unwrap_or_else(|| {
                media.push(MediumUsage { medium: tier.medium.clone(), ..MediumUsage::default() });
                media.len() - 1
            });
            media[at].cached_bytes += used(number);
            media[at].capacity_bytes = media[at].capacity_bytes.saturating_add(tier.quota_bytes);
        }
        media
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut inner = self.store.lock();
        if let Some(count) = inner.open.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                inner.open.remove(&self.id);
            }
        }
    }
}

/// Whether a tier is left alone now.
fn rests(trouble: &Option<(Instant, String)>) -> bool {
    trouble.as_ref().is_some_and(|(since, _)| since.elapsed() < TIER_REST)
}

/// The file of an object: two hex digits of fan-out.
fn place(tier: &Tier, id: &str) -> PathBuf {
    tier.dir.join(OBJECTS).join(id.get(..2).unwrap_or("00")).join(id)
}

/// Removes some cached files, whichever they are: what was begun, or else [`WAY`] bytes of what is complete. False if there
/// is nothing left to remove.
fn make_way(tiers: &[Tier]) -> bool {
    let mut removed = 0;
    for tier in tiers {
        let begun = entries(&tier.dir.join(UNFINISHED)).unwrap_or_default();
        let shelves = entries(&tier.dir.join(OBJECTS)).unwrap_or_default();
        let complete = shelves.into_iter().flat_map(|shelf| entries(&shelf.path()).unwrap_or_default());
        for file in begun.into_iter().chain(complete) {
            let bytes = file.metadata().map_or(0, |found| found.len()).max(1);
            if removed < WAY && fs::remove_file(file.path()).is_ok() {
                removed += bytes;
            }
        }
        // What was removed can be used again when the file system has noted it.
        if let Err(error) = sync_tier(tier) {
            tracing::warn!(%error, dir = %tier.dir.display(), "a tier cannot be synced");
        }
    }
    removed > 0
}

/// Looks at files that may not have been on the disk when the machine went down, and forgets those that are not right.
fn verify_unsynced(index: &mut Index, tiers: &[Tier]) -> Result<(), EngineError> {
    let unsynced = index.unsynced()?;
    if unsynced.is_empty() {
        return Ok(());
    }
    let (mut right, mut lost) = (Vec::new(), Vec::new());
    for (object, digest) in unsynced {
        let file = tiers.iter().find(|tier| key(tier) == object.tier).map(|tier| place(tier, &object.id));
        let found = file.and_then(|file| fs::File::open(file).ok()).and_then(|file| {
            let long = file.metadata().is_ok_and(|found| found.len() == object.bytes);
            long.then(|| digest_of(&file, object.bytes).ok()).flatten()
        });
        if found == Some(digest) {
            right.push(object);
        } else {
            tracing::warn!(object = object.id, "cached file did not reach the disk; it will be fetched again");
            lost.push(object);
        }
    }
    for tier in tiers {
        sync_tier(tier).map_err(failed("sync", &tier.dir))?;
    }
    index.forget(&lost)?;
    index.synced(&right)
}

/// Brings everything that was written to a tier onto its disk.
fn sync_tier(tier: &Tier) -> io::Result<()> {
    nix::unistd::syncfs(fs::File::open(&tier.dir)?).map_err(io::Error::from)
}

fn entries(dir: &Path) -> Result<Vec<fs::DirEntry>, EngineError> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>().map_err(failed("list", dir)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed("list", dir)(error)),
    }
}

/// Removes the files of a directory that are not known.
fn remove_others(dir: &Path, known: &HashSet<String>) -> Result<(), EngineError> {
    for file in entries(dir)? {
        if !file.file_name().to_str().is_some_and(|name| known.contains(name)) {
            fs::remove_file(file.path()).map_err(failed("remove", &file.path()))?;
        }
    }
    Ok(())
}
