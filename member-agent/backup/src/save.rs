//! One snapshot of a dataset, read from where its data are.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use fluvial_model::manifest::{Built, Entry as ManifestEntry, File, Root, Totals, walk};
use fluvial_transfer::listing::{Listing, OpenMount};
use fluvial_transfer::place::Detail;
use fluvial_transfer::{BlockStore, SourceMount, TransferError};
use rustic_core::repofile::{NodeType, SnapshotFile};
use rustic_core::{BackupOptions, ParentOptions, SnapshotOptions};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::BackupError;
use crate::digests::{self, Digests};
use crate::entry::{Dataset, Entry, FORMAT, operation_tag};
use crate::repository::{Repository, Snapshot, Target, entry, tell};
use crate::source::{Before, Counts, Entries, Known, Shared, Source};
use crate::tree::{Indexed, Selection, Walk, size_and_time};

/// Paths that an error names at most.
const NAMED_PATHS: usize = 100;

/// What to back up, and where.
#[derive(Debug, Clone)]
pub struct Save {
    /// Names the work: a snapshot that it has written already is its answer.
    pub id: String,
    /// The repository.
    pub repository: Target,
    /// The dataset.
    pub dataset: Dataset,
    /// Where its data are.
    pub sources: Vec<SourceMount>,
    /// The manifest that they must have, when they are a home. Its blocks are in the block store.
    pub source_root: Option<Root>,
    /// The objects of the catalog that go in with the data.
    pub catalog: serde_json::Value,
    /// The name under which the snapshot is listed.
    pub host: String,
    /// A folder of this machine for listings, this work's alone.
    pub scratch: PathBuf,
}

/// What was backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The manifest root of its files, with digests; its blocks are in the block store.
    pub root: Root,
    /// Sums over its files.
    pub totals: Totals,
    /// Bytes that were read: the others are the parent snapshot's.
    pub bytes_read: u64,
}

/// How far a backup is.
#[derive(Debug, Default)]
pub struct Meter {
    counts: Counts,
    files_total: AtomicU64,
    bytes_total: AtomicU64,
}

impl Meter {
    /// Files and bytes that are done with, and how many there are: all 0 until the source was listed.
    #[must_use]
    pub fn now(&self) -> [u64; 4] {
        [&self.counts.files_done, &self.counts.bytes_done, &self.files_total, &self.bytes_total]
            .map(|counter| counter.load(Ordering::Relaxed))
    }

    pub(crate) fn file_done(&self) {
        Counts::add(&self.counts.files_done, 1);
    }

    pub(crate) fn read(&self, bytes: u64) {
        Counts::add(&self.counts.bytes_done, bytes);
        Counts::add(&self.counts.bytes_read, bytes);
    }

    pub(crate) fn unchanged(&self, bytes: u64) {
        Counts::add(&self.counts.bytes_done, bytes);
        self.file_done();
    }
}

/// Backs up.
///
/// # Errors
/// See [`BackupError`]; whatever it is, the repository has no snapshot of it, and what was written of it is used by the next
/// attempt, or removed by pruning.
pub async fn save(
    job: Save,
    blocks: &BlockStore,
    meter: Arc<Meter>,
    cancel: CancellationToken,
) -> Result<Saved, BackupError> {
    let handle = Handle::current();
    let scratch = job.scratch.clone();
    std::fs::create_dir_all(&scratch).map_err(|error| BackupError::file("make directory", &scratch, error))?;
    let open = |mount: &SourceMount| Ok(OpenMount { path: mount.path.clone(), place: mount.location.open()? });
    let mounts: Vec<OpenMount> = job.sources.iter().map(open).collect::<Result<_, TransferError>>()?;
    let file = scratch.join("source");
    let listed = Listing::of(&file, &mounts, Detail::Full);
    let listing = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(TransferError::Cancelled { op: "back up" }.into()),
        listing = Box::pin(listed) => listing?,
    };
    let (blocks, child) = (blocks.clone(), cancel.child_token());
    // When the caller is dropped, the threads of the library must be told.
    let guard = child.clone().drop_guard();
    let saved = tokio::task::spawn_blocking(move || run(job, mounts, listing, blocks, meter, handle, child)).await;
    drop(guard);
    let _ = std::fs::remove_dir_all(&scratch);
    saved.map_err(|_| TransferError::Cancelled { op: "back up" })?
}

fn run(
    job: Save,
    mounts: Vec<OpenMount>,
    listing: Listing,
    blocks: BlockStore,
    meter: Arc<Meter>,
    handle: Handle,
    cancel: CancellationToken,
) -> Result<Saved, BackupError> {
    if let Some(root) = job.source_root {
        fluvial_transfer::source_has_manifest(&listing, Detail::Full, root, &blocks)?;
    }
    let bare = listing.build_undigested(&blocks)?;
    meter.files_total.store(bare.totals.files, Ordering::Relaxed);
    meter.bytes_total.store(bare.totals.bytes, Ordering::Relaxed);
    let repository = Repository::open(&job.repository, &handle, cancel)?;
    let _shared = repository.lock(false)?;
    let stop = repository.stop.clone();
    let indexed = repository.indexed()?;
    let place = repository.files.place();
    if let Some(saved) = written_before(&repository, &indexed, &job)? {
        return Ok(saved);
    }
    let parent = repository.find("latest", &job.dataset).ok();
    let parent = parent.filter(|parent| Dataset::of_tags(&parent.tags).as_ref() == Some(&job.dataset));
    let digests = Digests::create(&job.scratch.join("digests"), regular_files(&listing)?)?;
    let shared = Arc::new(Shared {
        handle,
        mounts,
        digests,
        meter,
        stop: stop.clone(),
        pending: Mutex::new(0),
        none_pending: Condvar::new(),
    });
    let catalog = Arc::new(Catalog {
        shared: shared.clone(),
        listing,
        again: job.scratch.join("again"),
        blocks: blocks.clone(),
        bare,
        dataset: job.dataset.clone(),
        objects: job.catalog,
        built: OnceLock::new(),
    });
    let before =
        parent.as_ref().map(|parent| parent_files(&indexed, parent, &job.dataset, place)).transpose()?.flatten();
    let manifest = job.source_root.map(|root| manifest_of(root, &blocks));
    let entries = Entries::new(shared.clone(), job.dataset.clone(), catalog.clone(), manifest, before);
    let source = Source { entries: Mutex::new(Some(entries)) };
    let options = SnapshotOptions::default().host(Some(job.host)).command(Some("fluvial backup".to_owned()));
    let snapshot = options.add_tags(&job.dataset.tags(&job.id)).and_then(|options| options.to_snapshot());
    let snapshot = snapshot.map_err(|error| BackupError::library("back up", place, &error))?;
    let mut parents = ParentOptions::default();
    match &parent {
        Some(parent) => parents.parents = vec![parent.id.to_hex().as_str().to_owned()],
        None => parents.force = true,
    }
    let mut backup = BackupOptions::default();
    backup.no_scan = true;
    backup.parent_opts = parents;
    let written = indexed.archive(&backup, &source, snapshot, &[job.dataset.files()]);
    let written = written.map_err(|error| BackupError::library("back up", place, &error));
    let written = stop.settle(written)?;
    let built = catalog.built.get().copied().ok_or_else(|| lost("the digests"))?;
    let mut snapshot = tell(&written);
    (snapshot.files, snapshot.bytes) = (built.totals.files, built.totals.bytes);
    snapshot.root = Some(built.root.to_string());
    let bytes_read = shared.meter.counts.bytes_read.load(Ordering::Relaxed);
    Ok(Saved { snapshot, root: built.root, totals: built.totals, bytes_read })
}

/// The snapshot that this very work wrote before it was killed, if it came so far.
fn written_before(repository: &Repository, indexed: &Indexed, job: &Save) -> Result<Option<Saved>, BackupError> {
    let tag = operation_tag(&job.id);
    let Some(written) = repository.all()?.into_iter().find(|snapshot| snapshot.tags.contains(&tag)) else {
        return Ok(None);
    };
    let place = repository.files.place();
    let Some(entry) = entry(indexed, &written, &job.dataset, place)? else { return Ok(None) };
    let damaged =
        |_| BackupError::Damaged { place: place.to_owned(), what: format!("root {:?} of an entry", entry.root) };
    let root: Root = entry.root.parse().map_err(damaged)?;
    let mut snapshot = tell(&written);
    (snapshot.files, snapshot.bytes) = (entry.totals.files, entry.totals.bytes);
    snapshot.root = Some(entry.root.clone());
    Ok(Some(Saved { snapshot, root, totals: entry.totals, bytes_read: 0 }))
}

fn lost(what: &str) -> BackupError {
    TransferError::Build { why: format!("{what} of some files are missing after all were read") }.into()
}

/// Regular files of a listing: each has a digest.
fn regular_files(listing: &Listing) -> Result<u64, BackupError> {
    let (mut files, mut last) = (0, None);
    loop {
        let page = listing.page(last.as_ref())?;
        let Some(end) = page.last() else { return Ok(files) };
        files += page.iter().filter(|row| matches!(row.entry, ManifestEntry::File(_))).count() as u64;
        last = Some(end.path.clone());
    }
}

fn manifest_of(root: Root, blocks: &BlockStore) -> Known<ManifestEntry> {
    let told = |source| BackupError::from(TransferError::Manifest { op: "back up", source });
    let entries: Box<dyn Iterator<Item = _> + Send> =
        Box::new(walk(root, blocks.getter()).map(move |entry| entry.map_err(told)));
    entries.peekable()
}

/// The files of the parent snapshot with their digests; `None` if it has no entry that can be read.
fn parent_files(
    indexed: &Arc<Indexed>,
    parent: &SnapshotFile,
    dataset: &Dataset,
    place: &str,
) -> Result<Option<Known<Before>>, BackupError> {
    let Ok(top) = indexed.node_from_path(parent.tree, &dataset.files()) else { return Ok(None) };
    let Some(tree) = top.subtree else { return Ok(None) };
    let Ok(mut digests) = SavedDigests::open(indexed, parent, dataset, place) else { return Ok(None) };
    let files = Walk::new(indexed.clone(), tree, Selection::default(), place)?.filter_map(move |step| match step {
        Ok((path, node)) if node.node_type == NodeType::File => {
            let (size, time) = size_and_time(&node.meta);
            Some(digests.next().map(|digest| (path, (size, time, digest))))
        }
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    });
    let files: Box<dyn Iterator<Item = _> + Send> = Box::new(files);
    Ok(Some(files.peekable()))
}

/// The digests of a snapshot, one after the other.
pub(crate) struct SavedDigests {
    indexed: Arc<Indexed>,
    file: rustic_core::vfs::OpenFile,
    place: String,
    offset: usize,
    page: bytes::Bytes,
}

impl SavedDigests {
    pub(crate) fn open(
        indexed: &Arc<Indexed>,
        snapshot: &SnapshotFile,
        dataset: &Dataset,
        place: &str,
    ) -> Result<Self, BackupError> {
        let told = |error| BackupError::library("read the digests of a snapshot", place, &error);
        let node = indexed.node_from_path(snapshot.tree, &dataset.catalog().join("digests"));
        let file = indexed.open_file(&node.map_err(|error| told(*error))?).map_err(|error| told(*error))?;
        Ok(Self { indexed: indexed.clone(), file, place: place.to_owned(), offset: 0, page: bytes::Bytes::new() })
    }

    /// The digest of the next file; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<fluvial_model::manifest::Digest>, BackupError> {
        const PAGE: usize = 2048 * digests::LENGTH as usize;
        if self.page.is_empty() {
            let read = self.indexed.read_file_at(&self.file, self.offset, PAGE);
            self.page =
                read.map_err(|error| BackupError::library("read the digests of a snapshot", &self.place, &error))?;
            self.offset += self.page.len();
        }
        let length = digests::LENGTH as usize;
        if self.page.len() < length {
            return Ok(None);
        }
        let digest = <[u8; 32]>::try_from(self.page.split_to(length).as_ref());
        Ok(digest.ok().map(fluvial_model::manifest::Digest::from_bytes))
    }
}

/// The catalog entry in the making: complete only when every file has been read.
pub(crate) struct Catalog {
    pub(crate) shared: Arc<Shared>,
    pub(crate) listing: Listing,
    again: PathBuf,
    blocks: BlockStore,
    /// The manifest without digests.
    bare: Built,
    dataset: Dataset,
    objects: serde_json::Value,
    built: OnceLock<Built>,
}

impl Catalog {
    fn text(&self, root: Root) -> Result<Vec<u8>, BackupError> {
        let entry = Entry {
            format: FORMAT,
            dataset: self.dataset.clone(),
            root: root.to_string(),
            totals: self.bare.totals,
            catalog: self.objects.clone(),
        };
        serde_json::to_vec_pretty(&entry).map_err(|error| TransferError::Build { why: error.to_string() }.into())
    }

    /// Every root is as long as another.
    pub(crate) fn entry_size(&self) -> Result<u64, BackupError> {
        Ok(self.text(self.bare.root)?.len() as u64)
    }

    pub(crate) fn digests_size(&self) -> u64 {
        self.shared.digests.size()
    }

    /// Waits for all files; then the source must still be what was listed.
    pub(crate) fn read_entry(&self) -> Result<Box<dyn Read + Send>, BackupError> {
        self.shared.wait();
        if self.shared.stop.stopped() {
            return Err(TransferError::Cancelled { op: "back up" }.into());
        }
        let again = self.shared.handle.block_on(Listing::of(&self.again, &self.shared.mounts, Detail::Tags))?;
        let paths = self.listing.changed(&again, NAMED_PATHS)?;
        if !paths.is_empty() {
            return Err(TransferError::SourceChanged { paths }.into());
        }
        let mut number = 0;
        let built = self.listing.build(&self.blocks, |row| {
            let ManifestEntry::File(file) = row.entry else { return Ok(row.entry) };
            let digest = self.shared.digests.get(number).ok().flatten();
            number += 1;
            let why =
                || TransferError::Build { why: format!("{:?} has no digest after it was read", row.path.as_str()) };
            Ok(ManifestEntry::File(File { digest: Some(digest.ok_or_else(why)?), ..file }))
        })?;
        let text = self.text(built.root)?;
        let _ = self.built.set(built);
        Ok(Box::new(Cursor::new(text)))
    }

    /// Waits for all files.
    pub(crate) fn read_digests(self: Arc<Self>) -> Result<Box<dyn Read + Send>, BackupError> {
        self.shared.wait();
        Ok(Box::new(DigestReader { catalog: self, offset: 0 }))
    }
}

struct DigestReader {
    catalog: Arc<Catalog>,
    offset: u64,
}

impl Read for DigestReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let rest = self.catalog.digests_size() - self.offset;
        let length = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.catalog.shared.digests.read_at(&mut buffer[..length], self.offset);
        read.inspect_err(|error| {
            let error = std::io::Error::new(error.kind(), error.to_string());
            self.catalog.shared.stop.fail(BackupError::file("read digests", Path::new("digests"), error));
        })?;
        self.offset += length as u64;
        Ok(length)
    }
}
