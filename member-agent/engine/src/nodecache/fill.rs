//! Fetching what is missing: list the sources where digests are not known, then read files in parallel, verify, keep.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use fluvial_model::manifest::{Digest, Entry, RelativePath};
use fluvial_transfer::TransferError;
use fluvial_transfer::place::{Detail, Found, LISTING_QUEUE, Place, Tag};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::index::{ListedFile, Missing};
use super::store::Room;
use super::{PARALLEL_FILES, RANGE_BYTES, Shared, blocking};
use crate::engine::{CacheRequest, EngineError, Loaded};

/// Missing files that are looked up at a time: enough to keep all fetches busy, some 100 KiB of names.
const BATCH: u32 = 256;
/// Listed files that are recorded at a time: one transaction each.
const LISTED_BATCH: usize = 1000;

/// One lock for every object that is being fetched, so that two datasets do not fetch it twice.
#[derive(Default)]
pub(super) struct InFlight(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl InFlight {
    fn get(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds are left over.
        if locks.len() > 4 * PARALLEL_FILES {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        locks.entry(id.to_owned()).or_default().clone()
    }
}

/// A source that has been opened.
#[derive(Clone)]
struct Mounted {
    path: RelativePath,
    place: Arc<dyn Place>,
}

/// A file where it can be read.
struct Readable {
    place: Arc<dyn Place>,
    path: RelativePath,
    /// The version to read, if nothing else tells a good copy from a bad one.
    tag: Option<Tag>,
}

/// What became of one file.
enum Fetched {
    Kept,
    NoRoom,
}

pub(super) async fn load(shared: &Arc<Shared>, request: &CacheRequest) -> Result<Loaded, EngineError> {
    let uid = request.dataset.uid.clone();
    let dataset = request.dataset.name.clone();
    let of_source = |error| EngineError::Source { dataset: dataset.clone(), source: Box::new(error) };
    let mut mounts = Vec::new();
    for source in &request.sources {
        let place = source.location.open().map_err(of_source)?;
        mounts.push(Mounted { path: source.path.clone(), place });
    }
    // The deepest mount above a path is the one that shows it.
    mounts.sort_by_key(|mount| std::cmp::Reverse(mount.path.depth()));

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
            let fetch = Fetch { shared: shared.clone(), dataset: dataset.clone(), file };
            fetching.spawn(fetch.run(mounts.clone()));
        }
    }
    while !fetching.is_empty() {
        progress.note(fetching.join_next().await)?;
    }
    progress.end(shared, uid).await
}

/// Runs a call on the index.
async fn with_index<T: Send + 'static>(
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
        match (self.first_fault, partial) {
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
    file: Missing,
}

impl Fetch {
    async fn run(self, mounts: Vec<Mounted>) -> (String, u64, Result<Fetched, EngineError>) {
        let result = self.fetch(&mounts).await;
        (self.file.path, self.file.bytes, result)
    }

    async fn fetch(&self, mounts: &[Mounted]) -> Result<Fetched, EngineError> {
        let lock = self.shared.in_flight.get(&self.file.object);
        let _alone = lock.lock().await;
        let id = self.file.object.clone();
        if with_index(&self.shared, "load", move |inner| inner.index.has(&id)).await? {
            return Ok(Fetched::Kept);
        }
        let Ok(_turn) = self.shared.files.acquire().await else {
            return Err(EngineError::Stopped { op: "load" });
        };
        let Some(room) = self.shared.store.room(self.file.bytes) else { return Ok(Fetched::NoRoom) };
        let digest = self.copy(mounts, &room).await?;
        let id = self.file.object.clone();
        blocking("keep file", move || room.keep(&id, &digest)).await?;
        Ok(Fetched::Kept)
    }

    /// Reads the file into its room and verifies it.
    async fn copy(&self, mounts: &[Mounted], room: &Room) -> Result<Digest, EngineError> {
        let Readable { place, path, tag } = self.source(mounts)?;
        let failed = |source| EngineError::Io { op: "write", file: room.file().display().to_string(), source };
        let mut out = tokio::fs::File::create(room.file()).await.map_err(failed)?;
        let mut hasher = blake3::Hasher::new();
        let mut offset = 0;
        while offset < self.file.bytes {
            let length = RANGE_BYTES.min(self.file.bytes - offset);
            let data = place.read(&path, tag.as_ref(), offset, length).await.map_err(|error| self.of_source(error))?;
            if data.len() as u64 != length {
                return Err(self.differs("it is shorter"));
            }
            hasher.update(&data);
            out.write_all(&data).await.map_err(failed)?;
            offset += length;
        }
        let digest = Digest::from_bytes(*hasher.finalize().as_bytes());
        if self.file.digest.is_some_and(|expected| expected != digest) {
            return Err(EngineError::DigestMismatch { dataset: self.dataset.clone(), path: self.file.path.clone() });
        }
        out.flush().await.map_err(failed)?;
        out.sync_all().await.map_err(failed)?;
        Ok(digest)
    }

    /// Where the file is read.
    fn source(&self, mounts: &[Mounted]) -> Result<Readable, EngineError> {
        let missing = || EngineError::NoSource { dataset: self.dataset.clone(), path: self.file.path.clone() };
        let path = RelativePath::parse(&self.file.path).map_err(|_| missing())?;
        let (mount, below) =
            mounts.iter().find_map(|mount| Some((mount, path.strip_prefix(&mount.path)?))).ok_or_else(missing)?;
        if self.file.digest.is_some() {
            return Ok(Readable { place: mount.place.clone(), path: below, tag: None });
        }
        let Some(listed) = &self.file.listed else { return Err(self.differs("it is gone")) };
        if listed.bytes != self.file.bytes {
            return Err(self.differs("it has another size"));
        }
        if listed.mtime_ns != self.file.mtime_ns {
            return Err(self.differs("it has another modification time"));
        }
        Ok(Readable { place: mount.place.clone(), path: below, tag: Some(Tag(listed.tag.clone())) })
    }

    fn of_source(&self, error: TransferError) -> EngineError {
        EngineError::Source { dataset: self.dataset.clone(), source: Box::new(error) }
    }

    fn differs(&self, why: &'static str) -> EngineError {
        EngineError::SourceDiffers { dataset: self.dataset.clone(), path: self.file.path.clone(), why }
    }
}
