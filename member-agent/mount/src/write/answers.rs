//! Answers of a writable mount, from its homes and from what is known of its inodes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use fluvial_model::manifest::RelativePath;
use fluvial_model::manifest::path::MAX_COMPONENT_BYTES;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, INodeNo, Notifier, OpenAccMode, OpenFlags, ReplyDirectory, Request,
    TimeOrNow,
};
use nix::libc;
use tokio::sync::Semaphore;

use crate::write::home::{Attr, Changes, Home, How, Kind, Listed, Maker, OpenFile, Time, errno};
use crate::write::homes::Homes;
use crate::write::news::News;
use crate::write::nodes::{Nodes, bad_path};

/// What programs are told to read and write at a time.
pub(super) const BLOCK_SIZE: u32 = 128 << 10;
/// Inodes that are remembered, some 300 bytes each, until the kernel is asked to forget some.
const MOST_NODES: usize = 200_000;
/// So many at a time.
const FORGET_AT_ONCE: usize = 20_000;

/// What answers need when they come from another thread.
pub(super) struct Shared {
    pub(super) home: Homes,
    nodes: Mutex<Nodes>,
    /// Held for reading by whoever works with a path, and for writing by who moves a directory.
    paths: RwLock<()>,
    pub(super) directories: Mutex<HashMap<u64, Arc<Vec<Listed>>>>,
    written: Mutex<HashMap<u64, bool>>,
    pub(super) next_handle: AtomicU64,
    pub(super) transfers: Arc<Semaphore>,
    pub(super) news: Arc<News>,
    notifier: OnceLock<Notifier>,
    forgetting: AtomicBool,
}

/// To look at it while it runs.
#[derive(Clone)]
pub struct HomeProbe(Arc<Shared>);

impl HomeProbe {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Open files.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.0.written.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// By what the kernel is asked to forget.
    pub fn notify_by(&self, notifier: Notifier) {
        // Said once, when the session begins.
        let _ = self.0.notifier.set(notifier);
    }
}

/// What a call gives, or what the program in the mount is to see.
type Done<T> = io::Result<T>;

impl Shared {
    pub(super) fn new(home: Homes, news: Arc<News>, transfers: usize) -> Self {
        Self {
            home,
            nodes: Mutex::default(),
            paths: RwLock::default(),
            directories: Mutex::default(),
            written: Mutex::default(),
            next_handle: AtomicU64::new(1),
            transfers: Arc::new(Semaphore::new(transfers)),
            news,
            notifier: OnceLock::new(),
            forgetting: AtomicBool::new(false),
        }
    }

    pub(super) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> MutexGuard<'_, HashMap<u64, bool>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self, ino: INodeNo) -> Done<RelativePath> {
        self.nodes().path(ino.0)
    }

    pub(super) fn child(&self, parent: INodeNo, name: &str) -> Done<RelativePath> {
        self.nodes().path(parent.0)?.join(name).map_err(|error| bad_path(&error))
    }

    /// Works with paths that stay what they are meanwhile.
    pub(super) fn with_paths<T>(&self, call: impl FnOnce() -> Done<T>) -> Done<T> {
        let _paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        call()
    }

    /// The home was changed.
    pub(super) fn changed<T>(&self, done: Done<T>) -> Done<T> {
        if done.is_ok() {
            self.news.wrote();
        }
        done
    }

    pub(super) fn enter(&self, parent: INodeNo, name: &str, path: &RelativePath) -> Done<FileAttr> {
        let attr = self.home.stat(path)?;
        let number = self.nodes().enter(parent.0, name, &attr);
        Ok(shown(number, &attr))
    }

    pub(super) fn attr(&self, ino: INodeNo, fh: Option<FileHandle>) -> Done<FileAttr> {
        // Who has it open sees the file that is open, wherever its name leads by now.
        let handle = {
            let nodes = self.nodes();
            fh.and_then(|fh| nodes.handle(ino.0, fh.0)).or_else(|| nodes.any_handle(ino.0))
        };
        match handle {
            Some(file) => Ok(shown(ino.0, &file.attr()?)),
            None => Ok(shown(ino.0, &self.home.stat(&self.path(ino)?)?)),
        }
    }

    pub(super) fn change(&self, ino: INodeNo, fh: Option<FileHandle>, changes: &Changes) -> Done<FileAttr> {
        let handle = {
            let nodes = self.nodes();
            let given = fh.filter(|_| changes.size.is_some()).and_then(|fh| nodes.handle(ino.0, fh.0));
            given.or_else(|| if nodes.is_gone(ino.0) { nodes.any_handle(ino.0) } else { None })
        };
        match handle {
            Some(file) => {
                file.change(changes)?;
                if let Some(fh) = fh {
                    self.note_written(fh.0);
                }
            }
            None => self.home.change(&self.path(ino)?, changes)?,
        }
        self.attr(ino, fh)
    }

    pub(super) fn note_written(&self, handle: u64) {
        if let Some(written) = self.written().get_mut(&handle) {
            *written = true;
        }
    }

    /// A new handle of an open file.
    fn add(&self, number: u64, file: Arc<dyn OpenFile>, how: How) -> Done<FileHandle> {
        let identity = file.attr().map(|attr| attr.identity).ok();
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.written().insert(handle, how.truncate);
        self.nodes().opened(number, handle, file, identity);
        Ok(FileHandle(handle))
    }

    pub(super) fn open(&self, ino: INodeNo, how: How) -> Done<FileHandle> {
        let file = if self.nodes().is_gone(ino.0) {
            // By `/proc/PID/fd`: it is open already.
            self.nodes().any_handle(ino.0).ok_or_else(|| errno(libc::ESTALE))?
        } else {
            self.home.open(&self.path(ino)?, how)?
        };
        self.add(ino.0, file, how)
    }

    pub(super) fn create(&self, parent: INodeNo, name: &str, maker: Maker, how: How) -> Done<(FileAttr, FileHandle)> {
        let file = self.home.create(&self.child(parent, name)?, maker, how)?;
        let attr = file.attr()?;
        let number = self.nodes().enter(parent.0, name, &attr);
        let handle = self.add(number, file, How { truncate: true, ..how })?;
        Ok((shown(number, &attr), handle))
    }

    pub(super) fn file(&self, ino: INodeNo, fh: FileHandle) -> Done<Arc<dyn OpenFile>> {
        self.nodes().handle(ino.0, fh.0).ok_or_else(|| errno(libc::EBADF))
    }

    /// What a `close` and an `fsync` wait for.
    pub(super) fn settle(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        settle: impl FnOnce(&dyn OpenFile) -> Done<()>,
    ) -> Done<()> {
        settle(self.file(ino, fh)?.as_ref())?;
        let wrote = self.written().get_mut(&fh.0).is_some_and(std::mem::take);
        if wrote {
            self.news.wrote();
        }
        Ok(())
    }

    /// The last close of a handle. What was written after the last flush, by a mapping, goes with it.
    pub(super) fn release(&self, ino: INodeNo, fh: FileHandle) {
        let wrote = self.written().remove(&fh.0).unwrap_or_default();
        let Some(file) = self.nodes().closed(ino.0, fh.0) else { return };
        if wrote {
            if let Err(error) = file.flush() {
                tracing::error!(%error, "what was written after the last close did not reach the home");
            }
            self.news.wrote();
        }
    }

    pub(super) fn rename(
        &self,
        (parent, name): (INodeNo, &str),
        (to, new_name): (INodeNo, &str),
        replace: bool,
    ) -> Done<()> {
        let kind = {
            let nodes = self.nodes();
            let number = nodes.shown(parent.0, name, 0);
            nodes.kind(number)
        };
        let moved = || {
            self.home.rename(&self.child(parent, name)?, &self.child(to, new_name)?, replace)?;
            self.nodes().renamed((parent.0, name), (to.0, new_name));
            Ok(())
        };
        if kind == Some(Kind::File) {
            return self.with_paths(moved);
        }
        let _paths = self.paths.write().unwrap_or_else(PoisonError::into_inner);
        moved()
    }

    fn listed(&self, ino: INodeNo, fh: FileHandle, offset: u64) -> Done<Arc<Vec<Listed>>> {
        let directories = || self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        // From the start again: as it is now.
        if offset > 0
            && let Some(listed) = directories().get(&fh.0)
        {
            return Ok(listed.clone());
        }
        let listed = Arc::new(self.home.list(&self.path(ino)?)?);
        directories().insert(fh.0, listed.clone());
        Ok(listed)
    }

    pub(super) fn read_directory(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: &mut ReplyDirectory,
    ) -> Done<()> {
        let listed = self.listed(ino, fh, offset)?;
        for (dots, at) in [(".", 0_u64), ("..", 1)] {
            if offset <= at && reply.add(ino, at + 1, FileType::Directory, dots) {
                return Ok(());
            }
        }
        let from = usize::try_from(offset.saturating_sub(2)).unwrap_or(usize::MAX);
        let nodes = self.nodes();
        for (at, entry) in listed.iter().enumerate().skip(from) {
            let number = nodes.shown(ino.0, &entry.name, entry.number);
            if reply.add(INodeNo(number), at as u64 + 3, file_type(entry.kind), &entry.name) {
                break;
            }
        }
        Ok(())
    }

    /// Has the kernel forget names that nobody uses, if it knows too many.
    pub(super) fn forget_some(&self) {
        let Some(notifier) = self.notifier.get() else { return };
        if self.nodes().len() < MOST_NODES || self.forgetting.swap(true, Ordering::AcqRel) {
            return;
        }
        let idle = self.nodes().idle(FORGET_AT_ONCE);
        for (parent, name) in idle {
            // One that the kernel has forgotten by itself is as good.
            let _ = notifier.inval_entry(INodeNo(parent), OsStr::new(&*name));
        }
        self.forgetting.store(false, Ordering::Release);
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Link => FileType::Symlink,
    }
}

fn shown(number: u64, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.accessed,
        mtime: attr.modified,
        ctime: attr.changed,
        crtime: attr.changed,
        kind: file_type(attr.kind),
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or_default(),
        nlink: attr.links,
        uid: attr.owner.0,
        gid: attr.owner.1,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// A name that a dataset can hold.
pub(super) fn text(name: &OsStr) -> Done<String> {
    if name.as_bytes().len() > MAX_COMPONENT_BYTES {
        return Err(errno(libc::ENAMETOOLONG));
    }
    name.to_str().map(str::to_owned).ok_or_else(|| errno(libc::EILSEQ))
}

pub(super) fn answer(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

pub(super) fn how(flags: OpenFlags) -> How {
    let has = |flag: i32| flags.0 & flag != 0;
    How {
        write: flags.acc_mode() != OpenAccMode::O_RDONLY,
        append: has(libc::O_APPEND),
        truncate: has(libc::O_TRUNC),
        exclusive: has(libc::O_EXCL),
    }
}

pub(super) fn set(time: Option<TimeOrNow>) -> Option<Time> {
    time.map(|time| match time {
        TimeOrNow::Now => Time::Now,
        TimeOrNow::SpecificTime(time) => Time::At(time),
    })
}

pub(super) fn maker(req: &Request, mode: u32, umask: u32) -> Maker {
    Maker { mode: mode & 0o7777 & !umask, owner: (req.uid(), req.gid()) }
}
