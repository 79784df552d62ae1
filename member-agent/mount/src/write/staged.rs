//! One file of a prefix while it is open: what was read and written of it, until it is at the home as a whole.
//!
//! The file is staged sparsely, in chunks: what was not read or written is fetched from the version that was opened,
//! and from no other, when it is needed. What is behind the end of that version is zeros. A file is uploaded under one
//! lock: who writes meanwhile waits, so that what arrives is one moment's content.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use fluvial_model::manifest::{File as FileEntry, RelativePath};
use fluvial_transfer::TransferError;
use fluvial_transfer::place::s3::S3Place;
use fluvial_transfer::place::s3::live::MOST_COPIED;
use fluvial_transfer::place::{Found, Place, Tag};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use nix::libc;
use quick_cache::sync::Cache;
use tokio::runtime::Handle;

use crate::files::read_file;
use crate::write::home::{Attr, Changes, Kind, OpenFile, Time, errno};
use crate::write::staging::{Staging, Unfinished};

/// The unit in which a file is staged.
pub const CHUNK_BYTES: u64 = 1 << 20;
/// Files up to this size are uploaded at once, larger ones in parts of at least it.
const PART_BYTES: u64 = 8 << 20;
/// Parts of one file that are uploaded at a time, in memory: 32 MiB, as long as 10,000 of the smallest parts are enough.
const PARTS_AT_ONCE: usize = 4;

/// What a home gives its open files.
pub(super) struct Context {
    pub place: S3Place,
    pub staging: Staging,
    /// Which home of the mount it is.
    pub home: usize,
    pub runtime: Handle,
    /// What was found at paths, and when.
    pub seen: Cache<RelativePath, (Instant, Found)>,
}

impl Context {
    /// Waits for the store. Called from threads that may block.
    pub fn wait<T>(&self, call: impl Future<Output = Result<T, TransferError>>) -> io::Result<T> {
        self.runtime.block_on(call).map_err(|error| shown(&error))
    }
}

/// What a program sees of a store's error.
pub(super) fn shown(error: &TransferError) -> io::Error {
    let number = match error {
        TransferError::NotFound { .. } => return errno(libc::ENOENT),
        TransferError::CredentialsRefused { .. } | TransferError::Denied { .. } => libc::EACCES,
        TransferError::ReadOnly { .. } => libc::EROFS,
        TransferError::NoSpace { .. } => libc::ENOSPC,
        TransferError::Changed { .. } => libc::ESTALE,
        _ => libc::EIO,
    };
    tracing::warn!(error = error as &dyn std::error::Error, "the home refused a call");
    errno(number)
}

/// A time as nanoseconds, as versions have it.
pub(super) fn nanoseconds(time: SystemTime) -> i64 {
    let nanoseconds = |since: std::time::Duration| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => nanoseconds(since),
        Err(before) => -nanoseconds(before.duration()),
    }
}

/// Nanoseconds as a time.
pub(super) fn system_time(nanoseconds: i64) -> SystemTime {
    let distance = std::time::Duration::from_nanos(nanoseconds.unsigned_abs());
    if nanoseconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}

struct Content {
    path: RelativePath,
    /// Nothing leads to it any more: it is not uploaded.
    gone: bool,
    file: File,
    size: u64,
    mode: u32,
    modified: SystemTime,
    /// The version at the home that it is based on, and how much of it still counts.
    base: Option<(Tag, u64)>,
    /// Chunks that are staged.
    there: Vec<u64>,
    staged_chunks: u64,
    /// Contents, or what is kept beside them, that are not at the home.
    dirty: bool,
    dirty_metadata: bool,
}

/// A file that is open.
pub struct Staged {
    context: Arc<Context>,
    identity: u64,
    number: u64,
    content: Mutex<Content>,
}

impl Drop for Staged {
    fn drop(&mut self) {
        let staged = self.content().staged_chunks;
        self.context.staging.give(staged * CHUNK_BYTES);
    }
}

impl Content {
    fn has(&self, chunk: u64) -> bool {
        let word = usize::try_from(chunk / 64).unwrap_or(usize::MAX);
        self.there.get(word).is_some_and(|bits| bits & (1 << (chunk % 64)) != 0)
    }

    fn note(&mut self, chunk: u64) {
        let word = usize::try_from(chunk / 64).unwrap_or(usize::MAX);
        if self.there.len() <= word {
            self.there.resize(word + 1, 0);
        }
        self.there[word] |= 1 << (chunk % 64);
        self.staged_chunks += 1;
    }

    fn forget_from(&mut self, chunk: u64, staging: &Staging) {
        for later in chunk..self.there.len() as u64 * 64 {
            if self.has(later) {
                self.there[usize::try_from(later / 64).unwrap_or(usize::MAX)] &= !(1 << (later % 64));
                self.staged_chunks -= 1;
                staging.give(CHUNK_BYTES);
            }
        }
    }

    /// The part of a chunk that must come from the home, if any of it must.
    fn wanting(&self, chunk: u64) -> Option<(Tag, u64, u64)> {
        let (tag, valid) = self.base.as_ref()?;
        let start = chunk * CHUNK_BYTES;
        (!self.has(chunk) && start < *valid).then(|| (tag.clone(), start, (start + CHUNK_BYTES).min(*valid)))
    }

    fn entry(&self) -> FileEntry {
        FileEntry { size: self.size, mtime_ns: nanoseconds(self.modified), mode: self.mode, digest: None }
    }

    fn is_dirty(&self) -> bool {
        !self.gone && (self.dirty || self.dirty_metadata || self.base.is_none())
    }
}

fn chunks(offset: u64, end: u64) -> std::ops::Range<u64> {
    offset / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES)
}

impl Staged {
    /// A file that is not at the home yet.
    pub(super) fn new(context: Arc<Context>, path: RelativePath, number: u64, mode: u32) -> io::Result<Self> {
        Self::make(context, path, number, FileEntry { size: 0, mtime_ns: 0, mode, digest: None }, None)
    }

    /// A file as it is at the home.
    pub(super) fn of(context: Arc<Context>, number: u64, entry: &FileEntry, found: &Found) -> io::Result<Self> {
        Self::make(context, found.path.clone(), number, *entry, Some((found.tag.clone(), entry.size)))
    }

    fn make(
        context: Arc<Context>,
        path: RelativePath,
        number: u64,
        entry: FileEntry,
        base: Option<(Tag, u64)>,
    ) -> io::Result<Self> {
        let modified = if base.is_some() { system_time(entry.mtime_ns) } else { SystemTime::now() };
        let content = Content {
            path,
            gone: false,
            file: context.staging.file()?,
            size: entry.size,
            mode: entry.mode,
            modified,
            base,
            there: Vec::new(),
            staged_chunks: 0,
            dirty: false,
            dirty_metadata: false,
        };
        let identity = context.staging.number();
        Ok(Self { context, identity, number, content: Mutex::new(content) })
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is what there is to see, whatever the home has by now: it is newer.
    pub(super) fn is_newer(&self) -> bool {
        self.content().is_dirty()
    }

    /// Whether it is based on this version.
    pub(super) fn is_of(&self, tag: &Tag) -> bool {
        self.content().base.as_ref().is_some_and(|(base, _)| base == tag)
    }

    /// Whether it has ever been at the home.
    pub(super) fn is_at_home(&self) -> bool {
        self.content().base.is_some()
    }

    /// Puts a chunk into the file. What was only read makes room, if there is none.
    fn stage(&self, content: &mut Content, chunk: u64) -> io::Result<()> {
        if content.has(chunk) {
            return Ok(());
        }
        let staging = &self.context.staging;
        if let Err(full) = staging.take(CHUNK_BYTES) {
            if content.dirty || content.base.is_none() || content.staged_chunks == 0 {
                return Err(full);
            }
            content.forget_from(0, staging);
            content.file.set_len(0)?;
            staging.take(CHUNK_BYTES)?;
        }
        let staged = self.fetch(content, chunk).and_then(|data| match data {
            Some((data, offset)) => content.file.write_all_at(&data, offset),
            None => Ok(()),
        });
        match staged {
            Ok(()) => content.note(chunk),
            Err(_) => staging.give(CHUNK_BYTES),
        }
        staged
    }

    /// What must come from the home of a chunk, and where it belongs.
    fn fetch(&self, content: &Content, chunk: u64) -> io::Result<Option<(Bytes, u64)>> {
        let Some((tag, start, end)) = content.wanting(chunk) else { return Ok(None) };
        let data = self.context.wait(self.context.place.read(&content.path, Some(&tag), start, end - start))?;
        if data.len() as u64 != end - start {
            return Err(errno(libc::EIO));
        }
        Ok(Some((data, start)))
    }

    fn read_staged(&self, content: &mut Content, offset: u64, end: u64) -> io::Result<Vec<u8>> {
        let mut unstaged = Vec::new();
        for chunk in chunks(offset, end) {
            match self.stage(content, chunk) {
                // Without room it is read through.
                Err(full) if full.raw_os_error() == Some(libc::ENOSPC) => {
                    unstaged.extend(self.fetch(content, chunk)?);
                }
                staged => staged?,
            }
        }
        let length = u32::try_from(end - offset).map_err(|_| errno(libc::EINVAL))?;
        let mut data = read_file(&content.file, offset, length)?;
        // Behind the end of what is staged are zeros.
        data.resize(length as usize, 0);
        for (part, start) in unstaged {
            let (from, to) = (start.max(offset), (start + part.len() as u64).min(end));
            if from < to {
                let at = |position: u64, base: u64| usize::try_from(position - base).unwrap_or(usize::MAX);
                data[at(from, offset)..at(to, offset)].copy_from_slice(&part[at(from, start)..at(to, start)]);
            }
        }
        Ok(data)
    }

    fn resize(&self, content: &mut Content, size: u64) -> io::Result<()> {
        if size < content.size {
            content.forget_from(size.div_ceil(CHUNK_BYTES), &self.context.staging);
            if content.file.metadata()?.len() > size {
                content.file.set_len(size)?;
            }
            if let Some((_, valid)) = &mut content.base {
                *valid = size.min(*valid);
            }
        }
        content.dirty |= size != content.size;
        content.size = size;
        content.modified = SystemTime::now();
        Ok(())
    }

    /// Empties it.
    pub(super) fn truncate(&self) -> io::Result<()> {
        let mut content = self.content();
        self.resize(&mut content, 0)?;
        content.dirty = true;
        Ok(())
    }

    /// Nothing leads to it any more, from now on: what is not staged of it is, for who has it open.
    pub(super) fn detach(&self) -> io::Result<()> {
        let mut content = self.content();
        for chunk in chunks(0, content.size) {
            if content.wanting(chunk).is_some() {
                self.stage(&mut content, chunk)?;
            }
        }
        content.gone = true;
        Ok(())
    }

    /// Something leads to it after all.
    pub(super) fn attach(&self) {
        self.content().gone = false;
    }

    /// Puts it to another path of the home: uploaded there, unless the home has copied it.
    pub(super) fn move_to(&self, to: &RelativePath, copied: Option<Tag>) -> io::Result<()> {
        let mut content = self.content();
        let from = std::mem::replace(&mut content.path, to.clone());
        if let Some(tag) = copied {
            let size = content.size;
            content.base = Some((tag, size));
            return Ok(());
        }
        let uploaded = self.upload(&mut content, &from);
        if uploaded.is_err() {
            content.path = from;
        }
        uploaded
    }

    /// Has the home hold what this holds.
    fn settle(&self) -> io::Result<()> {
        let mut content = self.content();
        if !content.is_dirty() {
            return Ok(());
        }
        let path = content.path.clone();
        self.upload(&mut content, &path)
    }

    /// Uploads the file to its path; what is not staged of it comes from the version that it is based on, at `from`.
    fn upload(&self, content: &mut Content, from: &RelativePath) -> io::Result<()> {
        let (place, entry, path) = (&self.context.place, content.entry(), content.path.clone());
        let unchanged = !content.dirty && content.base.is_some() && content.size <= MOST_COPIED;
        let tag = if unchanged && content.dirty_metadata && *from == path {
            self.context.wait(place.copy(&path, &path, content.size, Some(&entry)))?.tag
        } else if content.size <= PART_BYTES {
            let data = self.part(content, from, 0, content.size)?;
            self.context.wait(place.put(&path, &entry, data))?
        } else {
            self.upload_parts(content, from, &entry)?
        };
        self.context.seen.remove(&path);
        content.base = Some((tag, content.size));
        (content.dirty, content.dirty_metadata) = (false, false);
        Ok(())
    }

    fn upload_parts(&self, content: &Content, from: &RelativePath, entry: &FileEntry) -> io::Result<Tag> {
        let (place, path) = (&self.context.place, &content.path);
        let part_bytes = content.size.div_ceil(place.part_limits().most).max(PART_BYTES).next_multiple_of(CHUNK_BYTES);
        let parts = content.size.div_ceil(part_bytes);
        let upload = self.context.wait(place.begin(path, entry))?;
        let unfinished = Unfinished { home: self.context.home, path: path.to_string(), upload: upload.clone() };
        let uploaded = self.context.staging.note(&unfinished).and_then(|note| {
            let put = |number: u64| {
                let (start, end) = (number * part_bytes, ((number + 1) * part_bytes).min(content.size));
                let upload = &upload;
                async move {
                    let data = self.gather(content, from, start, end).await?;
                    let number = u32::try_from(number).unwrap_or(u32::MAX);
                    place.put_part(path, upload, number, start, data).await.map_err(|error| shown(&error))
                }
            };
            let receipts = stream::iter(0..parts).map(put).buffered(PARTS_AT_ONCE).try_collect::<Vec<String>>();
            let receipts = self.context.runtime.block_on(receipts)?;
            let tag = self.context.wait(place.complete(path, &upload, entry, &receipts))?;
            drop(note);
            Ok(tag)
        });
        if uploaded.is_err() {
            // The error that counts is the first one.
            let _ = self.context.wait(place.abort(path, &upload));
        }
        uploaded
    }

    fn part(&self, content: &Content, from: &RelativePath, start: u64, end: u64) -> io::Result<Bytes> {
        self.context.runtime.block_on(self.gather(content, from, start, end))
    }

    /// A range of the file, from where each piece of it is.
    async fn gather(&self, content: &Content, from: &RelativePath, start: u64, end: u64) -> io::Result<Bytes> {
        let length = u32::try_from(end - start).map_err(|_| errno(libc::EFBIG))?;
        let mut data = read_file(&content.file, start, length)?;
        data.resize(length as usize, 0);
        for chunk in chunks(start, end) {
            let Some((tag, first, last)) = content.wanting(chunk) else { continue };
            let last = last.min(end);
            let read = self.context.place.read(from, Some(&tag), first, last - first).await;
            let read = read.map_err(|error| shown(&error))?;
            let at = |position: u64| usize::try_from(position - start).unwrap_or(usize::MAX);
            if read.len() as u64 != last - first {
                return Err(errno(libc::EIO));
            }
            data[at(first)..at(last)].copy_from_slice(&read);
        }
        Ok(data.into())
    }
}

/// Who owns everything at a home that keeps no owners.
pub(super) fn everyone() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

/// Whether a change is one that a prefix can keep.
///
/// # Errors
/// `EPERM` for another owner.
pub(super) fn check_owner(changes: &Changes) -> io::Result<()> {
    let (user, group) = everyone();
    let other = changes.user.is_some_and(|id| id != user) || changes.group.is_some_and(|id| id != group);
    if other { Err(errno(libc::EPERM)) } else { Ok(()) }
}

impl OpenFile for Staged {
    fn attr(&self) -> io::Result<Attr> {
        let content = self.content();
        Ok(Attr {
            number: self.number,
            identity: self.identity,
            kind: Kind::File,
            size: content.size,
            blocks: content.size.div_ceil(512),
            mode: content.mode,
            links: u32::from(!content.gone),
            owner: everyone(),
            accessed: content.modified,
            modified: content.modified,
            changed: content.modified,
        })
    }

    fn read(&self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        let mut content = self.content();
        let end = offset.saturating_add(u64::from(length)).min(content.size);
        if end <= offset { Ok(Vec::new()) } else { self.read_staged(&mut content, offset, end) }
    }

    fn write(&self, offset: u64, data: &[u8], append: bool) -> io::Result<()> {
        let mut content = self.content();
        let offset = if append { content.size } else { offset };
        let end = offset.checked_add(data.len() as u64).ok_or_else(|| errno(libc::EFBIG))?;
        for chunk in chunks(offset, end) {
            let whole = offset <= chunk * CHUNK_BYTES && (chunk + 1) * CHUNK_BYTES <= end;
            if !whole || content.wanting(chunk).is_none() {
                self.stage(&mut content, chunk)?;
            } else if !content.has(chunk) {
                self.context.staging.take(CHUNK_BYTES)?;
                content.note(chunk);
            }
        }
        content.file.write_all_at(data, offset)?;
        content.size = content.size.max(end);
        content.modified = SystemTime::now();
        content.dirty = true;
        Ok(())
    }

    fn change(&self, changes: &Changes) -> io::Result<()> {
        check_owner(changes)?;
        let mut content = self.content();
        if let Some(size) = changes.size {
            self.resize(&mut content, size)?;
        }
        if let Some(mode) = changes.mode {
            content.mode = mode;
            content.dirty_metadata = true;
        }
        if let Some(time) = changes.modified {
            content.modified = match time {
                Time::Now => SystemTime::now(),
                Time::At(time) => time,
            };
            content.dirty_metadata = true;
        }
        Ok(())
    }

    fn reserve(&self, mode: i32, offset: u64, length: u64) -> io::Result<()> {
        if mode != 0 {
            return Err(errno(libc::EOPNOTSUPP));
        }
        let mut content = self.content();
        let end = offset.checked_add(length).ok_or_else(|| errno(libc::EFBIG))?;
        let size = content.size.max(end);
        self.resize(&mut content, size)
    }

    fn flush(&self) -> io::Result<()> {
        self.settle()
    }

    fn sync(&self, _data_only: bool) -> io::Result<()> {
        self.settle()
    }
}
