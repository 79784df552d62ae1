//! Fetching what is missing: list the sources where digests are not known, then read files in parallel, verify, keep.

use std::sync::Arc;

use bytes::Bytes;
use fluvial_model::manifest::{Entry, RelativePath, Root};
use fluvial_transfer::TransferError;
use fluvial_transfer::place::{Detail, Found, LISTING_QUEUE, Place, Tag};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::index::{ListedFile, Missing};
use super::partial::Partial;
use super::share::SharedRange;
use super::store::Room;
use super::{PARALLEL_FILES, PART_BYTES, Shared, blocking};
use crate::engine::{CacheRequest, EngineError, Loaded};

/// Missing files that are looked up at a time: enough to keep all fetches busy, some 100 KiB of names.
const BATCH: u32 = 256;
/// Listed files that are recorded at a time: one transaction each.
const LISTED_BATCH: usize = 1000;

/// A source that has been opened.
#[derive(Clone)]
pub(super) struct Mounted {
    path: RelativePath,
    place: Arc<dyn Place>,
}

/// Opens the sources of a request, the deepest first: the deepest mount above a path is the one that shows it.
pub(super) fn mounts(request: &CacheRequest) -> Result<Vec<Mounted>, EngineError> {
    let mut mounts = Vec::new();
    for source in &request.sources {
        let place = source
            .location
            .open()
            .map_err(|error| EngineError::Source { dataset: request.dataset.name.clone(), source: Box::new(error) })?;
        mounts.push(Mounted { path: source.path.clone(), place });
    }
    mounts.sort_by_key(|mount| std::cmp::Reverse(mount.path.depth()));
    Ok(mounts)
}

/// The version that a file is of.
#[derive(Debug, Clone)]
pub(super) struct Of {
    pub uid: String,
    pub root: Root,
}

/// A file, and where it can be read.
pub(super) struct Origin {
    pub dataset: String,
    of: Of,
    pub file: Missing,
    place: Arc<dyn Place>,
    path: RelativePath,
    /// The version to read, if nothing else tells a good copy from a bad one.
    tag: Option<Tag>,
    /// It is not known which version is at the source: that is looked at when the file is read, which is once.
    unseen: bool,
}

impl Origin {
    /// Finds the mount that shows a file, and, where its digest is not known, which version of it is there.
    pub(super) async fn find(dataset: &str, of: Of, file: Missing, mounts: &[Mounted]) -> Result<Self, EngineError> {
        let missing = || EngineError::NoSource { dataset: dataset.to_owned(), path: file.path.clone() };
        let path = RelativePath::parse(&file.path).map_err(|_| missing())?;
        let (mount, below) =
            mounts.iter().find_map(|mount| Some((mount, path.strip_prefix(&mount.path)?))).ok_or_else(missing)?;
        let place = mount.place.clone();
        let mut origin = Self { dataset: dataset.to_owned(), of, file, place, path: below, tag: None, unseen: false };
        if origin.file.digest.is_some() {
            return Ok(origin);
        }
        let listed = match origin.file.listed.take() {
            Some(listed) => listed,
            None if origin.file.bytes <= PART_BYTES => {
                origin.unseen = true;
                return Ok(origin);
            }
            None => match origin.place.stat(&origin.path).await {
                Ok(Found { entry: Entry::File(found), tag, .. }) => {
                    ListedFile { path: path.to_string(), bytes: found.size, mtime_ns: found.mtime_ns, tag: tag.0 }
                }
                Ok(_) | Err(TransferError::NotFound { .. }) => return Err(origin.differs("it is gone")),
                Err(error) => return Err(origin.of_source(error)),
            },
        };
        origin.check(listed.bytes, listed.mtime_ns)?;
        origin.tag = Some(Tag(listed.tag));
        Ok(origin)
    }

    /// Whether what is at the source is the version's file, as far as its size and time tell.
    fn check(&self, bytes: u64, mtime_ns: i64) -> Result<(), EngineError> {
        if bytes != self.file.bytes {
            return Err(self.differs("it has another size"));
        }
        if mtime_ns != self.file.mtime_ns {
            return Err(self.differs("it has another modification time"));
        }
        Ok(())
    }

    /// A range of it, as other nodes know it.
    pub(super) fn shared(&self, offset: u64, length: u64) -> Option<SharedRange> {
        Some(SharedRange {
            uid: self.of.uid.clone(),
            root: self.of.root,
            path: RelativePath::parse(&self.file.path).ok()?,
            digest: self.file.digest,
            tag: self.tag(),
            offset,
            length,
        })
    }

    /// Its version at the source, if that is known and needed.
    pub(super) fn tag(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| tag.0.clone())
    }

    pub(super) async fn read(&self, offset: u64, length: u64) -> Result<Bytes, EngineError> {
        if !self.unseen {
            let read = self.place.read(&self.path, self.tag.as_ref(), offset, length).await;
            return read.map_err(|error| self.of_source(error));
        }
        match self.place.fetch(&self.path, self.file.bytes).await {
            Ok((Found { entry: Entry::File(found), .. }, data)) => {
                self.check(found.size, found.mtime_ns)?;
                let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
                Ok(data.slice(at(offset)..at(offset.saturating_add(length))))
            }
            Ok(_) | Err(TransferError::NotFound { .. }) => Err(self.differs("it is gone")),
            Err(error) => Err(self.of_source(error)),
        }
    }

    fn of_source(&self, error: TransferError) -> EngineError {
        // The version that is wanted is gone: asking again does not bring it back.
        if matches!(error, TransferError::Changed { .. }) {
            return self.differs("it was replaced or written to");
        }
        EngineError::Source { dataset: self.dataset.clone(), source: Box::new(error) }
    }

    pub(super) fn differs(&self, why: &'static str) -> EngineError {
        EngineError::SourceDiffers { dataset: self.dataset.clone(), path: self.file.path.clone(), why }
    }

    pub(super) fn mismatch(&self) -> EngineError {
        EngineError::DigestMismatch { dataset: self.dataset.clone(), path: self.file.path.clone() }
    }
}

/// What became of one file.
enum Fetched {
    Kept,
    NoRoom,
}

/// Fetches what is wanted and missing.
pub(super) async fn load(shared: &Arc<Shared>, request: &CacheRequest) -> Result<Loaded, EngineError> {
    let uid = request.dataset.uid.clone();
    let dataset = request.dataset.name.clone();
    let mounts = mounts(request)?;
    let (known, listing) = with_index(shared, "load", {
        let uid = uid.clone();
        move |inner| {
            inner.partial.remove(&uid);
            Ok((inner.index.held(&uid)?.is_some(), inner.index.needs_listing(&uid)?))
        }
    })
    .await?;
    if !known {
        return Err(EngineError::NotPrepared { dataset });
    }
    if listing {
        list(shared, &uid, &dataset, &mounts).await?;
    }

    let mut progress = Progress::default();
    let mut fetching = JoinSet::new();
    let mut after = String::new();
    loop {
        let batch = with_index(shared, "load", {
            let (uid, after) = (uid.clone(), after.clone());
            move |inner| inner.index.missing(&uid, &after, BATCH)
        })
        .await?;
        let Some(last) = batch.last() else { break };
        after.clone_from(&last.path);
        for file in batch {
            while fetching.len() >= PARALLEL_FILES {
                progress.note(fetching.join_next().await)?;
            }
            let of = Of { uid: uid.clone(), root: request.root };
            let fetch = Fetch { shared: shared.clone(), dataset: dataset.clone(), of, file };
            fetching.spawn(fetch.run(mounts.clone()));
        }
    }
    while !fetching.is_empty() {
        progress.note(fetching.join_next().await)?;
    }
    progress.end(shared, uid).await
}

/// Runs a call on the index.
pub(super) async fn with_index<T: Send + 'static>(
    shared: &Arc<Shared>,
    op: &'static str,
    call: impl FnOnce(&mut super::store::Inner) -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let shared = shared.clone();
    blocking(op, move || call(&mut shared.store.lock())).await
}

/// What has come of the files so far.
#[derive(Default)]
struct Progress {
    first_fault: Option<EngineError>,
    without_room: Vec<(String, u64)>,
}

type Ended = Result<(String, u64, Result<Fetched, EngineError>), tokio::task::JoinError>;

impl Progress {
    fn note(&mut self, ended: Option<Ended>) -> Result<(), EngineError> {
        match ended {
            None => Ok(()),
            Some(Ok((_, _, Ok(Fetched::Kept)))) => Ok(()),
            Some(Ok((path, bytes, Ok(Fetched::NoRoom)))) => {
                self.without_room.push((path, bytes));
                Ok(())
            }
            // The other files would meet the same; whoever called comes back.
            Some(Ok((_, _, Err(error)))) if error.is_transient() => Err(error),
            Some(Ok((_, _, Err(error)))) => {
                self.first_fault.get_or_insert(error);
                Ok(())
            }
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Some(Err(_)) => Err(EngineError::Stopped { op: "load" }),
        }
    }

    async fn end(self, shared: &Arc<Shared>, uid: String) -> Result<Loaded, EngineError> {
        let partial = self.without_room.first().map(|(path, _)| {
            let bytes: u64 = self.without_room.iter().map(|(_, bytes)| bytes).sum();
            let files = self.without_room.len();
            format!("no room in the cache for {files} files of {bytes} bytes, {path:?} the first of them")
        });
        if let Some(message) = partial.clone() {
            with_index(shared, "load", move |inner| {
                inner.partial.insert(uid, message);
                Ok(())
            })
            .await?;
        }
        // What a tier refuses now it may take later.
        let trouble = shared.store.trouble("load").filter(|_| partial.is_some());
        match (self.first_fault.or(trouble), partial) {
            (Some(error), _) => Err(error),
            (None, Some(message)) => Ok(Loaded::Partial(message)),
            (None, None) => Ok(Loaded::Complete),
        }
    }
}

/// Notes which version of every file is at the sources.
async fn list(shared: &Arc<Shared>, uid: &str, dataset: &str, mounts: &[Mounted]) -> Result<(), EngineError> {
    let owned = uid.to_owned();
    with_index(shared, "list sources", move |inner| inner.index.clear_listed(&owned)).await?;
    // The deepest mounts come last: what they show hides what is under them.
    for mount in mounts.iter().rev() {
        let (found, mut incoming) = mpsc::channel(LISTING_QUEUE);
        let listing = mount.place.list(Detail::Full, found);
        let record = async {
            let mut entries = Vec::with_capacity(LISTED_BATCH);
            while incoming.recv_many(&mut entries, LISTED_BATCH).await > 0 {
                let files: Vec<_> = entries.drain(..).filter_map(|found| listed(&mount.path, found)).collect();
                let uid = uid.to_owned();
                with_index(shared, "list sources", move |inner| inner.index.add_listed(&uid, &files)).await?;
            }
            Ok::<(), EngineError>(())
        };
        let (listing, record) = tokio::join!(listing, record);
        record?;
        listing.map_err(|error| EngineError::Source { dataset: dataset.to_owned(), source: Box::new(error) })?;
    }
    Ok(())
}

fn listed(mount: &RelativePath, found: Found) -> Option<ListedFile> {
    let Entry::File(file) = found.entry else { return None };
    // A path that becomes too long below its mount cannot be in the manifest either.
    let path = mount.join_path(&found.path).ok()?.to_string();
    Some(ListedFile { path, bytes: file.size, mtime_ns: file.mtime_ns, tag: found.tag.0 })
}

/// One file on its way.
struct Fetch {
    shared: Arc<Shared>,
    dataset: String,
    of: Of,
    file: Missing,
}

impl Fetch {
    async fn run(self, mounts: Vec<Mounted>) -> (String, u64, Result<Fetched, EngineError>) {
        let result = self.fetch(&mounts).await;
        (self.file.path, self.file.bytes, result)
    }

    async fn fetch(&self, mounts: &[Mounted]) -> Result<Fetched, EngineError> {
        if self.file.listed.is_none() && self.file.digest.is_none() {
            // The listing that came before this did not have it.
            let (dataset, path) = (self.dataset.clone(), self.file.path.clone());
            return Err(EngineError::SourceDiffers { dataset, path, why: "it is gone" });
        }
        match begin(&self.shared, &self.dataset, self.of.clone(), self.file.clone(), mounts).await? {
            Begun::Complete(_) => Ok(Fetched::Kept),
            Begun::Partial(partial) => partial.fill_all().await.map(|()| Fetched::Kept),
            Begun::NoRoom(_) => Ok(Fetched::NoRoom),
        }
    }
}

/// How a file that was not there a moment ago can be read.
pub(super) enum Begun {
    /// It has come meanwhile, into this tier.
    Complete(String),
    /// It is on its way.
    Partial(Arc<Partial>),
    /// There is no room for it.
    NoRoom(Box<Origin>),
}

/// Begins a file, unless somebody else has.
pub(super) async fn begin(
    shared: &Arc<Shared>,
    dataset: &str,
    of: Of,
    file: Missing,
    mounts: &[Mounted],
) -> Result<Begun, EngineError> {
    let object = file.object.clone();
    let origin = Box::new(Origin::find(dataset, of, file, mounts).await?);
    let shared = shared.clone();
    blocking("load", move || {
        let mut origin = Some(origin);
        let mut tier = None;
        let partial = shared.partials.get_or(&object, || {
            tier = shared.store.lock().index.tier_of(&object)?;
            if tier.is_some() {
                return Ok(None);
            }
            let Some(found) = origin.take() else { return Ok(None) };
            let made = match shared.store.resume(&object, found.tag().as_deref()) {
                Some((room, file, begun)) => Some((room, file, Some(begun))),
                None => make_file(&shared, &object, found.file.bytes)?.map(|(room, file)| (room, file, None)),
            };
            Ok(match made {
                Some(made) => Some(Partial::new(&shared, *found, made)),
                None => {
                    origin = Some(found);
                    None
                }
            })
        })?;
        Ok(match (partial, tier, origin) {
            (Some(partial), ..) => Begun::Partial(partial),
            (None, Some(tier), _) => Begun::Complete(tier),
            (None, None, Some(origin)) => Begun::NoRoom(origin),
            (None, None, None) => return Err(EngineError::Stopped { op: "load" }),
        })
    })
    .await
}

/// An empty file in the first tier that has room and takes it.
fn make_file(shared: &Shared, object: &str, bytes: u64) -> Result<Option<(Room, std::fs::File)>, EngineError> {
    loop {
        let Some(room) = shared.store.room(object, bytes)? else { return Ok(None) };
        match room.create() {
            Ok(file) => return Ok(Some((room, file))),
            // That tier is left alone now: the next one is tried.
            Err(EngineError::TierFailed { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}
