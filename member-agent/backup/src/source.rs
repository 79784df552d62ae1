//! A dataset as the library reads it: entries in path order, contents by parts that are fetched ahead.
//!
//! What the parent snapshot has with the same size, time and digest is not read. Of what is read, the digest is taken and,
//! where the manifest has one, compared. Memory: at most [`WINDOW_BYTES`] of first parts fetched ahead, and three parts of
//! [`PART`] for each of the library's threads (as many as processors).

use std::collections::VecDeque;
use std::io::{self, Read};
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::{Buf as _, Bytes};
use fluvial_model::manifest::{Digest, Entry, File, RelativePath};
use fluvial_transfer::TransferError;
use fluvial_transfer::listing::{Listed, OpenMount};
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{ReadSource, ReadSourceEntry, ReadSourceOpen, RusticResult, jiff};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::BackupError;
use crate::digests::Digests;
use crate::entry::Dataset;
use crate::save::{Catalog, Meter};
use crate::stop::Stop;
use crate::tree::{mode_to_restic, time_to_restic};

/// Bytes of one request to a place.
const PART: u64 = 4 << 20;
/// Parts of one file that are asked for before the one at hand is used up.
const AHEAD: usize = 2;
/// Bytes of first parts that are fetched ahead, over all files.
const WINDOW_BYTES: u64 = 32 << 20;
/// Files whose first parts are fetched ahead.
const WINDOW_FILES: usize = 64;

/// What is known of files before they are read, by path order.
pub(crate) type Known<T> = Peekable<Box<dyn Iterator<Item = Result<(RelativePath, T), BackupError>> + Send>>;

/// Size, time and digest of a file in the parent snapshot.
pub(crate) type Before = (u64, i64, Option<Digest>);

/// What the threads of one backup share.
pub(crate) struct Shared {
    pub(crate) handle: Handle,
    pub(crate) mounts: Vec<OpenMount>,
    pub(crate) digests: Digests,
    pub(crate) meter: Arc<Meter>,
    pub(crate) stop: Stop,
    /// Files that were yielded and are not done with.
    pub(crate) pending: Mutex<u64>,
    pub(crate) none_pending: Condvar,
}

impl Shared {
    /// Waits until every file that was yielded has been read or left out as unchanged.
    pub(crate) fn wait(&self) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        while *pending > 0 {
            pending = self.none_pending.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn count(&self, more: bool) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if more {
            *pending += 1;
        } else {
            *pending -= 1;
            self.none_pending.notify_all();
        }
    }

    /// Asks for a part of a file.
    fn fetch(&self, row: &Listed, offset: u64) -> JoinHandle<Result<Bytes, TransferError>> {
        let mount = &self.mounts[row.mount];
        let (place, tag) = (mount.place.clone(), row.tag.clone());
        let path = row.path.strip_prefix(&mount.path).unwrap_or_else(|| row.path.clone());
        let length = size_of(&row.entry).saturating_sub(offset).min(PART);
        self.handle.spawn(async move { place.read(&path, Some(&tag), offset, length).await })
    }
}

fn size_of(entry: &Entry) -> u64 {
    entry.totals().bytes
}

/// The source of one backup. Its entries can be had once.
pub(crate) struct Source {
    pub(crate) entries: Mutex<Option<Entries>>,
}

impl ReadSource for Source {
    type Open = Opened;
    type Iter = std::iter::Flatten<std::option::IntoIter<Entries>>;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(None)
    }

    fn entries(&self) -> Self::Iter {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).take().into_iter().flatten()
    }
}

/// The entries: directories above the files, the files, the catalog entry.
pub(crate) struct Entries {
    pub(crate) shared: Arc<Shared>,
    pub(crate) dataset: Dataset,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) manifest: Option<Known<Entry>>,
    pub(crate) parent: Option<Known<Before>>,
    pub(crate) began: jiff::Timestamp,
    page: VecDeque<Listed>,
    last: Option<RelativePath>,
    files: u64,
    window: VecDeque<(u64, ReadSourceEntry<Opened>)>,
    ahead: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Top,
    Files,
    Ended,
}

impl Entries {
    pub(crate) fn new(
        shared: Arc<Shared>,
        dataset: Dataset,
        catalog: Arc<Catalog>,
        manifest: Option<Known<Entry>>,
        parent: Option<Known<Before>>,
    ) -> Self {
        Self {
            shared,
            dataset,
            catalog,
            manifest,
            parent,
            began: jiff::Timestamp::now(),
            page: VecDeque::new(),
            last: None,
            files: 0,
            window: VecDeque::new(),
            ahead: 0,
            state: State::Top,
        }
    }

    /// Fetches ahead until the window is full or everything is in it.
    fn fill(&mut self) -> Result<(), BackupError> {
        if self.state == State::Top {
            self.window.push_back((0, directory(self.dataset.files())));
            self.state = State::Files;
        }
        while self.state == State::Files && self.window.len() < WINDOW_FILES && self.ahead < WINDOW_BYTES {
            if self.page.is_empty() {
                self.page = self.catalog.listing.page(self.last.as_ref())?.into();
                self.last = self.page.back().map(|row| row.path.clone()).or(self.last.take());
            }
            match self.page.pop_front() {
                Some(row) => {
                    let (ahead, entry) = self.entry(row)?;
                    self.ahead += ahead;
                    self.window.push_back((ahead, entry));
                }
                None => {
                    self.state = State::Ended;
                    self.catalog()?;
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, row: Listed) -> Result<(u64, ReadSourceEntry<Opened>), BackupError> {
        let path = self.dataset.files().join(row.path.as_str());
        let file = match &row.entry {
            Entry::Directory => return Ok((0, directory(path))),
            Entry::Symlink { target } => {
                self.shared.meter.file_done();
                return Ok((
                    0,
                    node(
                        path,
                        NodeType::from_link(Path::new(target)),
                        Metadata { mode: Some(0o777), ..Default::default() },
                    ),
                ));
            }
            Entry::File(file) => *file,
        };
        let number = self.files;
        self.files += 1;
        let expected = match advance(&mut self.manifest, &row.path)? {
            Some(Entry::File(File { digest, .. })) => digest,
            _ => None,
        };
        let before = advance(&mut self.parent, &row.path)?
            .filter(|(size, time, _)| (*size, *time) == (file.size, file.mtime_ns));
        let known = before.and_then(|(_, _, digest)| digest);
        let unchanged = known.filter(|known| expected.is_none_or(|expected| expected == *known));
        if let Some(digest) = unchanged {
            self.shared.digests.set(number, &digest)?;
        }
        let time = time_to_restic(file.mtime_ns);
        // The library compares this time too: another contents of the same size and time is told by it.
        let changed = if before.is_some() && unchanged.is_none() { Some(self.began) } else { time };
        let meta = Metadata {
            mode: Some(mode_to_restic(file.mode)),
            mtime: time,
            atime: time,
            ctime: changed,
            size: file.size,
            links: 1,
            ..Metadata::default()
        };
        let first = (unchanged.is_none() && file.size > 0).then(|| self.shared.fetch(&row, 0));
        let ahead = if first.is_some() { file.size.min(PART) } else { 0 };
        self.shared.count(true);
        let file = Pending { shared: self.shared.clone(), row, number, expected, first, opened: false };
        let mut entry = node(path, NodeType::File, meta);
        entry.open = Some(Opened::File(Box::new(file)));
        Ok((ahead, entry))
    }

    fn catalog(&mut self) -> Result<(), BackupError> {
        let folder = self.dataset.catalog();
        self.window.push_back((0, directory(folder.clone())));
        for (name, size, opened) in [
            ("dataset.json", self.catalog.entry_size()?, Opened::Entry(self.catalog.clone())),
            ("digests", self.catalog.digests_size(), Opened::Digests(self.catalog.clone())),
        ] {
            let time = Some(self.began);
            let meta = Metadata {
                mode: Some(0o644),
                mtime: time,
                atime: time,
                ctime: time,
                size,
                links: 1,
                ..Metadata::default()
            };
            let mut entry = node(folder.join(name), NodeType::File, meta);
            entry.open = Some(opened);
            self.window.push_back((0, entry));
        }
        Ok(())
    }
}

impl Iterator for Entries {
    type Item = RusticResult<ReadSourceEntry<Opened>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.shared.stop.stopped() {
            return None;
        }
        if let Err(error) = self.fill() {
            self.shared.stop.fail(error);
            return None;
        }
        let (ahead, entry) = self.window.pop_front()?;
        self.ahead -= ahead;
        Some(Ok(entry))
    }
}

/// What is known of exactly this path.
fn advance<T>(known: &mut Option<Known<T>>, path: &RelativePath) -> Result<Option<T>, BackupError> {
    let Some(known) = known else { return Ok(None) };
    loop {
        match known.next_if(|next| next.as_ref().map_or(true, |(at, _)| at <= path)) {
            None => return Ok(None),
            Some(Ok((at, value))) if at == *path => return Ok(Some(value)),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
        }
    }
}

fn node(path: PathBuf, kind: NodeType, meta: Metadata) -> ReadSourceEntry<Opened> {
    let node = Node::new_node(path.file_name().unwrap_or_default(), kind, meta);
    ReadSourceEntry { path, node, open: None }
}

/// A directory. Manifests know neither time nor mode of directories: they get the ones that change nothing.
fn directory(path: PathBuf) -> ReadSourceEntry<Opened> {
    let epoch = Some(jiff::Timestamp::UNIX_EPOCH);
    node(
        path,
        NodeType::Dir,
        Metadata { mode: Some(0o755), mtime: epoch, atime: epoch, ctime: epoch, ..Metadata::default() },
    )
}

/// What an entry is read from.
pub(crate) enum Opened {
    File(Box<Pending>),
    Entry(Arc<Catalog>),
    Digests(Arc<Catalog>),
}

impl ReadSourceOpen for Opened {
    type Reader = Box<dyn Read + Send>;

    fn open(self) -> RusticResult<Self::Reader> {
        let told = |catalog: &Catalog, result: Result<Box<dyn Read + Send>, BackupError>| {
            result.map_err(|error| {
                catalog.shared.stop.fail(error);
                Stop::stand_in()
            })
        };
        match self {
            Self::File(file) => Ok(Box::new(FileReader::new(file))),
            Self::Entry(catalog) => told(&catalog, catalog.read_entry()),
            Self::Digests(catalog) => told(&catalog, catalog.clone().read_digests()),
        }
    }
}

/// A file that was yielded. Dropped unopened, the library found it unchanged.
pub(crate) struct Pending {
    shared: Arc<Shared>,
    row: Listed,
    number: u64,
    expected: Option<Digest>,
    first: Option<JoinHandle<Result<Bytes, TransferError>>>,
    opened: bool,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(first) = self.first.take() {
            first.abort();
        }
        if !self.opened {
            self.shared.meter.unchanged(size_of(&self.row.entry));
        }
        self.shared.count(false);
    }
}

/// Reads a file by parts.
struct FileReader {
    file: Box<Pending>,
    size: u64,
    /// Bytes asked for, and bytes that came.
    asked: u64,
    came: u64,
    parts: VecDeque<JoinHandle<Result<Bytes, TransferError>>>,
    part: Bytes,
    hasher: blake3::Hasher,
    done: bool,
}

impl FileReader {
    fn new(mut file: Box<Pending>) -> Self {
        file.opened = true;
        let size = size_of(&file.row.entry);
        let parts: VecDeque<_> = file.first.take().into_iter().collect();
        let asked = if parts.is_empty() { 0 } else { size.min(PART) };
        Self { file, size, asked, came: 0, parts, part: Bytes::new(), hasher: blake3::Hasher::new(), done: false }
    }

    /// The next part; empty at the end.
    fn next(&mut self) -> Result<Bytes, BackupError> {
        let shared = self.file.shared.clone();
        while self.parts.len() <= AHEAD && self.asked < self.size {
            self.parts.push_back(shared.fetch(&self.file.row, self.asked));
            self.asked = self.size.min(self.asked + PART);
        }
        let Some(part) = self.parts.pop_front() else {
            self.finish()?;
            return Ok(Bytes::new());
        };
        let cancelled = |_| TransferError::Cancelled { op: "read" };
        let part = shared.handle.block_on(part).map_err(cancelled)??;
        let expected = (self.size - self.came).min(PART);
        if part.len() as u64 != expected {
            let place = shared.mounts[self.file.row.mount].place.name().to_owned();
            return Err(TransferError::Changed { place, path: self.file.row.path.to_string() }.into());
        }
        self.hasher.update(&part);
        self.came += expected;
        shared.meter.read(expected);
        if self.came == self.size {
            self.finish()?;
        }
        Ok(part)
    }

    /// Everything was read: notes the digest, or refuses what the manifest does not name.
    fn finish(&mut self) -> Result<(), BackupError> {
        if std::mem::replace(&mut self.done, true) {
            return Ok(());
        }
        let digest = Digest::from_bytes(*self.hasher.finalize().as_bytes());
        if self.file.expected.is_some_and(|expected| expected != digest) {
            return Err(TransferError::SourceDiffers { paths: vec![self.file.row.path.clone()] }.into());
        }
        self.file.shared.digests.set(self.file.number, &digest)?;
        self.file.shared.meter.file_done();
        Ok(())
    }
}

impl Read for FileReader {
    /// Fills the whole buffer unless the file ends: the chunker never asks for more again than it once was given.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            if self.part.is_empty() {
                if self.file.shared.stop.stopped() {
                    return Err(io::Error::other("the work has ended"));
                }
                self.part = self.next().map_err(|error| {
                    self.file.shared.stop.fail(error);
                    io::Error::other("the file cannot be read; the reason is told elsewhere")
                })?;
                if self.part.is_empty() {
                    break;
                }
            }
            let length = self.part.len().min(buffer.len() - filled);
            buffer[filled..filled + length].copy_from_slice(&self.part[..length]);
            self.part.advance(length);
            filled += length;
        }
        Ok(filled)
    }
}

/// Counts, for progress.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) files_done: AtomicU64,
    pub(crate) bytes_done: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
}

impl Counts {
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Ordering::Relaxed);
    }
}
