//! A file on its way into the cache: a sparse file, which parts of it are there, and who fetches which.
//!
//! Whoever needs bytes claims the parts that are missing and free, fetches them, and waits for those that others have
//! claimed: every part is fetched once, however many want it. A claim is given back when its holder fails or is dropped.
//! Who brings the last part verifies the whole file and makes it an object.
//!
//! What is there is noted in the index now and then, once it is on the disk ([`super::upkeep`]); a file that is closed before it is
//! complete is put to rest, and goes on from there, in this run of the program or another.
//!
//! Invariant: a part is noted as there only after its bytes, which are those of the version that was asked for at the
//! source, were written.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::Digest;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::fill::Origin;
use super::index::Unfinished;
use super::share::{FromPeer, hashes_of};
use super::store::{Lease, Room};
use super::{PARALLEL_RANGES, PART_BYTES, RANGE_BYTES, Shared, blocking};
use crate::engine::{EngineError, Filling};

/// Parts of one fetch.
const RANGE_PARTS: usize = (RANGE_BYTES / PART_BYTES) as usize;

/// The file.
pub(super) struct Partial {
    shared: Weak<Shared>,
    origin: Origin,
    file: Arc<File>,
    room: Mutex<Option<Room>>,
    /// The tier and the file's name there.
    place: (String, String),
    /// Set before the index says anything of the file.
    noted: Arc<AtomicBool>,
    /// Grows when what was there is not to be noted any more: the file is complete, or was wrong.
    epoch: AtomicU32,
    parts: Mutex<Parts>,
    changed: Notify,
    /// An object that was opened on its way is not given up when it arrives.
    _lease: Lease,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Missing,
    Claimed,
    There,
}

struct Parts {
    parts: Vec<Part>,
    /// Parts that are not there.
    left: usize,
    /// Some came since the last time that they were to be noted.
    unnoted: bool,
    /// The file is an object.
    complete: bool,
    /// How often the finished file was not the version's.
    refused: u32,
    /// Where the parts are from.
    from: Provenance,
    /// The tier's file system refused it: it never becomes an object.
    broken: Option<(String, String)>,
}

/// Where the parts of a file are from; kept with a file that rests.
#[derive(Default)]
pub(super) struct Provenance {
    /// The hash of each part as it came, if others may ask for it.
    hashes: Vec<Option<blake3::Hash>>,
    /// The nodes that gave parts.
    givers: BTreeSet<String>,
    /// Other nodes gave wrong bytes: the rest comes from the source.
    source_only: bool,
    /// Some parts are of an earlier run of the program: whoever gave them is forgotten.
    earlier: bool,
}

impl Provenance {
    /// Of an earlier run.
    pub(super) fn earlier() -> Self {
        Self { earlier: true, ..Self::default() }
    }
}

/// Parts that one fetch has claimed; what is not there at the end is given back. Whoever writes holds it until the bytes
/// are written, even if nobody waits for them any more: otherwise they could come after those of the next one to claim.
struct Claim {
    partial: Arc<Partial>,
    parts: Range<usize>,
}

/// What to do next for a range.
enum Step {
    Done,
    Refused,
    Broken(EngineError),
    Fetch(Claim),
    Wait,
}

impl Partial {
    /// The sparse file in `room`, and what is there of it.
    pub(super) fn new(
        shared: &Arc<Shared>,
        origin: Origin,
        (room, file, begun): (Room, File, Option<(Unfinished, Provenance)>),
    ) -> Self {
        let (begun, from) = begun.map_or((None, Provenance::default()), |(begun, from)| (Some(begun), from));
        let count = usize::try_from(origin.file.bytes.div_ceil(PART_BYTES)).unwrap_or(usize::MAX);
        let mut parts = vec![Part::Missing; count];
        for (at, part) in parts.iter_mut().enumerate() {
            if begun.as_ref().is_some_and(|begun| begun.has(at)) {
                *part = Part::There;
            }
        }
        let left = parts.iter().filter(|part| **part != Part::There).count();
        let parts = Parts { parts, left, unnoted: left < count, complete: false, refused: 0, from, broken: None };
        Self {
            shared: Arc::downgrade(shared),
            _lease: shared.store.lease(&origin.file.object),
            origin,
            file: Arc::new(file),
            place: room.place(),
            noted: room.noted(),
            epoch: AtomicU32::new(0),
            room: Mutex::new(Some(room)),
            parts: Mutex::new(parts),
            changed: Notify::new(),
        }
    }

    /// The sparse file.
    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// The object that it becomes.
    pub(super) fn object(&self) -> &str {
        &self.origin.file.object
    }

    /// Its version at the source, if that is known and needed.
    pub(super) fn tag(&self) -> Option<String> {
        self.origin.tag()
    }

    /// What a part was when it came.
    pub(super) fn hash_of(&self, part: usize) -> Option<blake3::Hash> {
        self.parts().from.hashes.get(part).copied().flatten()
    }

    /// Parts turned out not to be what they were: they are fetched again, unless the file is an object by now, which was
    /// verified as a whole.
    pub(super) fn lose(&self, offset: u64, length: u64) {
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let mut parts = self.parts();
        if parts.left == 0 {
            return;
        }
        let last = index((offset + length).div_ceil(PART_BYTES)).min(parts.parts.len());
        for at in index(offset / PART_BYTES)..last {
            if parts.parts[at] == Part::There {
                parts.parts[at] = Part::Missing;
                parts.left += 1;
            }
        }
        parts.unnoted = true;
        self.epoch.fetch_add(1, Ordering::AcqRel);
        drop(parts);
        // What the index says of them is not so any more.
        if let Some(Err(error)) = self.room().as_ref().map(Room::disown) {
            tracing::warn!(error = &error as &dyn std::error::Error, "wrong contents are not forgotten");
        }
        self.changed.notify_waiters();
    }

    /// A range for another node: what is missing comes from the source and from nowhere else.
    pub(super) async fn fill_from_source(self: &Arc<Self>, offset: u64, length: u64) -> Result<(), EngineError> {
        self.fill_range(offset, length, true).await
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tier that it is in, by its key.
    pub(super) fn tier(&self) -> &str {
        &self.place.0
    }

    /// Bytes that are there, of a file that is no object yet.
    pub(super) fn bytes_there(&self) -> u64 {
        let parts = self.parts();
        if parts.complete { 0 } else { self.unfinished(&parts).bytes_there() }
    }

    /// What is there, as the index notes it.
    fn unfinished(&self, parts: &Parts) -> Unfinished {
        let mut bits = vec![0; parts.parts.len().div_ceil(8)];
        for (at, _) in parts.parts.iter().enumerate().filter(|(_, part)| **part == Part::There) {
            bits[at / 8] |= 1 << (at % 8);
        }
        Unfinished {
            object: self.object().to_owned(),
            tier: self.place.0.clone(),
            file: self.place.1.clone(),
            bytes: self.origin.file.bytes,
            tag: self.origin.tag(),
            parts: bits,
        }
    }

    /// What is to be noted, if anything came. A file of one part is complete with it.
    fn unnoted(self: &Arc<Self>) -> Option<Unnoted> {
        let epoch = self.epoch.load(Ordering::Acquire);
        let mut parts = self.parts();
        if !std::mem::take(&mut parts.unnoted) || parts.parts.len() < 2 || parts.complete || parts.broken.is_some() {
            return None;
        }
        Some(Unnoted { file: self.unfinished(&parts), epoch, partial: self.clone() })
    }

    /// Fetches the whole file, many ranges at a time.
    pub(super) async fn fill_all(self: &Arc<Self>) -> Result<(), EngineError> {
        self.fill_parallel(0, self.origin.file.bytes).await
    }

    /// Fetches a range that somebody will read.
    pub(super) async fn fill_ahead(self: &Arc<Self>, offset: u64, length: u64) -> Result<(), EngineError> {
        self.fill_range(offset, length, false).await
    }

    async fn fill_parallel(self: &Arc<Self>, offset: u64, length: u64) -> Result<(), EngineError> {
        let useful = usize::try_from(length.div_ceil(RANGE_BYTES)).unwrap_or(usize::MAX).clamp(1, PARALLEL_RANGES);
        futures::future::try_join_all((0..useful).map(|_| self.fill_range(offset, length, false))).await.map(drop)
    }

    async fn fill_range(self: &Arc<Self>, offset: u64, length: u64, source_only: bool) -> Result<(), EngineError> {
        let refused = self.parts().refused;
        let last = offset.saturating_add(length).min(self.origin.file.bytes);
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let wanted = index(offset / PART_BYTES)..index(last.div_ceil(PART_BYTES));
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            match self.step(&wanted, refused) {
                Step::Done => return Ok(()),
                Step::Refused => return Err(self.origin.mismatch()),
                Step::Broken(error) => return Err(error),
                Step::Fetch(claim) => self.fetch(claim, &wanted, source_only).await?,
                Step::Wait => changed.await,
            }
        }
    }

    fn step(self: &Arc<Self>, wanted: &Range<usize>, refused: u32) -> Step {
        let mut parts = self.parts();
        if parts.complete {
            return Step::Done;
        }
        if let Some((tier, why)) = parts.broken.clone() {
            return Step::Broken(EngineError::TierFailed { op: "load", tier, why });
        }
        if parts.refused != refused {
            return Step::Refused;
        }
        let whole = wanted.start == 0 && wanted.end >= parts.parts.len();
        if parts.left == 0 {
            // Whoever brought the last part has it verified. Who wants all of it waits for that, and sees to it himself
            // if it failed.
            return match (whole, self.room().is_some()) {
                (false, _) => Step::Done,
                (true, true) => Step::Fetch(Claim { partial: self.clone(), parts: 0..0 }),
                (true, false) => Step::Wait,
            };
        }
        let within = wanted.start.min(parts.parts.len())..wanted.end.min(parts.parts.len());
        let Some(first) = within.clone().find(|at| parts.parts[*at] == Part::Missing) else {
            let there = within.into_iter().all(|at| parts.parts[at] == Part::There);
            return if there { Step::Done } else { Step::Wait };
        };
        let most = within.end.min(first + RANGE_PARTS);
        let end = (first..most).find(|at| parts.parts[*at] != Part::Missing).unwrap_or(most);
        parts.parts[first..end].fill(Part::Claimed);
        Step::Fetch(Claim { partial: self.clone(), parts: first..end })
    }

    fn room(&self) -> MutexGuard<'_, Option<Room>> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(
        self: &Arc<Self>,
        mut claim: Claim,
        wanted: &Range<usize>,
        source_only: bool,
    ) -> Result<(), EngineError> {
        let Some(shared) = self.shared.upgrade() else { return Err(EngineError::Stopped { op: "load" }) };
        let start = claim.parts.start as u64 * PART_BYTES;
        let end = (claim.parts.end as u64 * PART_BYTES).min(self.origin.file.bytes);
        // Until the bytes are on their way to the disk, and, of a file that is hashed from memory, until it is.
        let (mut whole, mut turn) = (None, None);
        if end > start {
            let given = if source_only { None } else { self.ask(&shared, start, end - start).await };
            let (data, giver) = match given {
                Some((FromPeer { node, data }, asked)) => {
                    turn = Some(asked);
                    (data, Some(node))
                }
                None => {
                    turn = Some(shared.turn(end - start).await?);
                    (self.origin.read(start, end - start).await?, None)
                }
            };
            if data.len() as u64 != end - start {
                return Err(self.origin.differs("it is shorter"));
            }
            let written = data.clone();
            let write = move || match claim.partial.file.write_all_at(&written, start) {
                Ok(()) => Ok((claim, turn)),
                Err(error) => Err(claim.partial.refused(&error)),
            };
            (claim, turn) = match blocking("write", write).await {
                Ok(written) => written,
                Err(error) => return Err(self.give_up(&shared, error)),
            };
            self.note(start, &data, giver, source_only || shared.is_shared());
            whole = (data.len() as u64 == self.origin.file.bytes).then_some(data);
        }
        if !claim.there() {
            return Ok(());
        }
        // Goes on by itself when nobody waits: a reader of a part does not.
        let partial = self.clone();
        let finishing = blocking("keep file", move || {
            let _turn = turn;
            partial.finish(&shared, whole)
        });
        let finishing = tokio::spawn(finishing);
        if wanted.len() < self.parts().parts.len() {
            return Ok(());
        }
        match finishing.await {
            Ok(finished) => finished,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(EngineError::Stopped { op: "load" }),
        }
    }

    /// A range from the node that owns it, if that is another one and it can be believed.
    async fn ask(&self, shared: &Shared, start: u64, length: u64) -> Option<(FromPeer, OwnedSemaphorePermit)> {
        let peers = shared.peers.as_ref()?;
        if self.parts().from.source_only {
            return None;
        }
        let range = self.origin.shared(start, length)?;
        let turn = shared.asked.clone().acquire_owned().await.ok()?;
        let given = peers.read(&range).await?;
        if given.data.len() as u64 == length {
            return Some((given, turn));
        }
        tracing::warn!(node = given.node, path = self.origin.file.path, "a node gave too few bytes");
        peers.distrust(&given.node);
        None
    }

    /// Notes what parts were when they came, if others may ask for them, and who gave them.
    fn note(&self, start: u64, data: &[u8], giver: Option<String>, shared: bool) {
        let hashes: Vec<_> = if shared { hashes_of(data).map(Some).collect() } else { Vec::new() };
        let mut parts = self.parts();
        parts.from.givers.extend(giver);
        if shared && parts.from.hashes.is_empty() {
            parts.from.hashes = vec![None; parts.parts.len()];
        }
        let first = usize::try_from(start / PART_BYTES).unwrap_or(usize::MAX);
        for (known, hash) in parts.from.hashes.iter_mut().skip(first).zip(hashes) {
            *known = hash;
        }
    }

    /// Verifies the file and makes it an object. `whole` are its contents, if they are at hand.
    fn finish(&self, shared: &Shared, whole: Option<Bytes>) -> Result<(), EngineError> {
        let taken = {
            let parts = self.parts();
            // Somebody else may have verified it meanwhile, and have begun it anew.
            if parts.left == 0 { self.room().take() } else { None }
        };
        // Taken by whoever verifies it now.
        let Some(mut room) = taken else { return Ok(()) };
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let verified = self.verify(whole).map_err(|error| room.troubled("read cached file", &error));
        let finished = verified.and_then(|digest| match digest {
            None => Ok(None),
            Some(digest) => room.keep(&digest).map(|()| Some(digest)),
        });
        if matches!(finished, Ok(None))
            && let Err(error) = room.disown()
        {
            // The digest finds it out again.
            tracing::warn!(error = &error as &dyn std::error::Error, "wrong contents are not forgotten");
        }
        let mut parts = self.parts();
        let mut retried = false;
        match &finished {
            Ok(Some(_)) => {
                parts.complete = true;
                let hashes: Option<Vec<_>> = parts.from.hashes.iter().copied().collect();
                if let Some(hashes) = hashes.filter(|hashes| hashes.len() == parts.parts.len()) {
                    shared.proofs.put(self.object(), Arc::new(hashes));
                }
                shared.partials.forget_this(self);
            }
            Ok(None) => {
                // The source is asked before anybody is told.
                let givers = std::mem::take(&mut parts.from.givers);
                retried = !givers.is_empty() || std::mem::take(&mut parts.from.earlier);
                for node in givers {
                    tracing::warn!(node, path = self.origin.file.path, "bytes of other nodes were not the version's");
                    shared.peers.iter().for_each(|peers| peers.distrust(&node));
                }
                parts.from.source_only |= retried;
                parts.refused += u32::from(!retried);
                parts.left = parts.parts.len();
                parts.unnoted = false;
                parts.parts.fill(Part::Missing);
                *self.room() = Some(room);
            }
            Err(_) => *self.room() = Some(room),
        }
        drop(parts);
        let finished = finished.map_err(|error| self.give_up(shared, error));
        self.changed.notify_waiters();
        if finished?.is_some() || retried { Ok(()) } else { Err(self.origin.mismatch()) }
    }

    /// What it means that the file system refuses this file.
    fn refused(&self, error: &std::io::Error) -> EngineError {
        match self.room().as_ref() {
            Some(room) => room.troubled("write cached file", error),
            // Somebody has all of it in hand.
            None => EngineError::Stopped { op: "load" },
        }
    }

    /// If the error is the tier's, lets the next one who opens the file begin anew, elsewhere.
    fn give_up(&self, shared: &Shared, error: EngineError) -> EngineError {
        if let EngineError::TierFailed { tier, why, .. } = &error {
            self.parts().broken = Some((tier.clone(), why.clone()));
            shared.partials.forget_this(self);
            self.changed.notify_waiters();
        }
        error
    }

    /// The digest of what was fetched; `None` if it is another one than the version's.
    fn verify(&self, whole: Option<Bytes>) -> std::io::Result<Option<Digest>> {
        let digest = match whole {
            Some(data) => Digest::of(&data),
            None => digest_of(&self.file, self.origin.file.bytes)?,
        };
        if self.origin.file.digest.is_some_and(|expected| expected != digest) {
            return Ok(None);
        }
        Ok(Some(digest))
    }
}

/// BLAKE3 of what is in the file now.
pub(super) fn digest_of(file: &File, bytes: u64) -> std::io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < bytes {
        let length = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..length], offset)?;
        hasher.update(&buffer[..length]);
        offset += length as u64;
    }
    Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
}

impl Claim {
    /// Notes that the parts are there; true if nothing is left.
    fn there(&self) -> bool {
        let mut parts = self.partial.parts();
        for at in self.parts.clone() {
            if parts.parts[at] != Part::There {
                parts.parts[at] = Part::There;
                parts.left -= 1;
                parts.unnoted = true;
            }
        }
        parts.left == 0
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut parts = self.partial.parts();
        for at in self.parts.clone() {
            if parts.parts[at] == Part::Claimed {
                parts.parts[at] = Part::Missing;
            }
        }
        drop(parts);
        self.partial.changed.notify_waiters();
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let room = self.room.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let mut parts = self.parts();
        let file = self.unfinished(&parts);
        // Otherwise the room is given back here.
        if let Some(room) = room
            && parts.broken.is_none()
            && file.bytes_there() > 0
        {
            let from = std::mem::take(&mut parts.from);
            drop(parts);
            room.rest(file, from);
        }
        if let Some(shared) = self.shared.upgrade() {
            shared.partials.forget_this(self);
        }
    }
}

/// What came of a file since the last time.
pub(super) struct Unnoted {
    pub(super) file: Unfinished,
    epoch: u32,
    partial: Arc<Partial>,
}

impl Unnoted {
    /// Whether it may be noted still. To be asked with the index in hand: whoever makes it wrong forgets it there afterwards.
    pub(super) fn stands(&self) -> bool {
        self.partial.noted.store(true, Ordering::Relaxed);
        self.partial.epoch.load(Ordering::Acquire) == self.epoch
    }

    /// It could not be: another time.
    pub(super) fn again(&self) {
        self.partial.parts().unnoted = true;
    }
}

/// What readers hold of it.
pub(super) struct Filler {
    pub(super) partial: Arc<Partial>,
    /// The dataset that it was opened in.
    pub(super) uid: String,
}

#[async_trait]
impl Filling for Filler {
    async fn fill(&self, offset: u64, length: u64) -> Result<(), EngineError> {
        if let Some(shared) = self.partial.shared.upgrade() {
            let file = &self.partial.origin.file;
            shared.orders.note(&self.uid, &file.path, (offset, length), file.bytes);
        }
        self.partial.fill_parallel(offset, length).await
    }

    fn is_complete(&self) -> bool {
        self.partial.parts().complete
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// How long whoever opens a file waits for the last one to put it to rest: a few system calls.
const RESTS_WITHIN: Duration = Duration::from_secs(5);

/// The files that are on their way.
#[derive(Default)]
pub(super) struct Partials {
    /// Each from when it is begun until it is complete or was put to rest.
    by_object: Mutex<HashMap<String, Weak<Partial>>>,
    rested: Condvar,
}

impl Partials {
    fn by_object(&self) -> MutexGuard<'_, HashMap<String, Weak<Partial>>> {
        self.by_object.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of an object on its way, begun by `create` if it is not.
    pub(super) fn get_or<E>(
        &self,
        object: &str,
        create: impl FnOnce() -> Result<Option<Partial>, E>,
    ) -> Result<Option<Arc<Partial>>, E> {
        // One that nobody holds any more has its room until it rests.
        let rests = |all: &mut HashMap<_, Weak<Partial>>| all.get(object).is_some_and(|one| one.strong_count() == 0);
        let waited = self.rested.wait_timeout_while(self.by_object(), RESTS_WITHIN, rests);
        let (mut by_object, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if let Some(partial) = by_object.get(object).and_then(Weak::upgrade) {
            return Ok(Some(partial));
        }
        let Some(partial) = create()?.map(Arc::new) else { return Ok(None) };
        by_object.insert(object.to_owned(), Arc::downgrade(&partial));
        Ok(Some(partial))
    }

    /// Whether an object is on its way.
    pub(super) fn has(&self, object: &str) -> bool {
        self.by_object().get(object).is_some_and(|partial| partial.strong_count() > 0)
    }

    /// Forgets a file, but not another one that was begun for the same object meanwhile.
    fn forget_this(&self, partial: &Partial) {
        let mut by_object = self.by_object();
        if by_object.get(partial.object()).is_some_and(|known| std::ptr::eq(known.as_ptr(), partial)) {
            by_object.remove(partial.object());
            self.rested.notify_all();
        }
    }

    /// Each of them. Not to be dropped under the store's lock.
    fn all(&self) -> Vec<Arc<Partial>> {
        self.by_object().values().filter_map(Weak::upgrade).collect()
    }

    /// What is to be noted.
    pub(super) fn unnoted(&self) -> Vec<Unnoted> {
        self.all().iter().filter_map(Partial::unnoted).collect()
    }

    /// What is there of each: object, tier and bytes.
    pub(super) fn bytes_there(&self) -> Vec<(String, String, u64)> {
        let of = |partial: &Arc<Partial>| (partial.object().to_owned(), partial.place.0.clone(), partial.bytes_there());
        self.all().iter().map(of).collect()
    }
}
