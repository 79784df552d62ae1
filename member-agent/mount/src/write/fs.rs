//! What the kernel asks of a writable mount.
//!
//! Nothing that the kernel is told is good for any time: names and attributes are asked for anew whenever they are used,
//! and pages are dropped when a file is opened, so that who opens a file sees what was closed before, on any mount. Calls
//! block on the home, and are made on threads of their own.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use fluvial_model::manifest::RelativePath;
use fluvial_model::manifest::path::MAX_COMPONENT_BYTES;
use fluvial_transfer::place::check_link;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use nix::libc;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

pub use crate::write::answers::HomeProbe;
use crate::write::answers::{BLOCK_SIZE, Shared, answer, how, maker, set, text};
use crate::write::home::{Changes, Home, How, Space, errno};
use crate::write::homes::Homes;
use crate::write::news::News;

/// How long the kernel may believe what it was told.
const TTL: Duration = Duration::ZERO;
/// The most that is read or written at a time.
const MOST_BYTES: u32 = 1 << 20;
/// Reads and writes under way at a time, each with at most [`MOST_BYTES`] in memory. The kernel has one write of a file
/// under way at a time, and [`MOST_BACKGROUND`] reads ahead: 64 MiB are taken only if 64 files are written at once.
const TRANSFERS: usize = 64;
/// Reads ahead that the kernel has under way.
const MOST_BACKGROUND: u16 = 16;

/// The file system.
pub struct HomeFs {
    shared: Arc<Shared>,
    runtime: Handle,
}

/// Answers with what went well, or with the error.
macro_rules! respond {
    ($reply:ident, $done:expr, $good:expr) => {
        match $done {
            Ok(value) => ($good)(value),
            Err(error) => $reply.error(answer(&error)),
        }
    };
}

impl HomeFs {
    /// A file system over these homes, which says by `news` that something was written.
    #[must_use]
    pub fn new(home: Homes, news: Arc<News>, runtime: Handle) -> Self {
        let shared = Shared::new(home, news, TRANSFERS);
        Self { shared: Arc::new(shared), runtime }
    }

    /// To look at it while it runs.
    #[must_use]
    pub fn probe(&self) -> HomeProbe {
        HomeProbe::new(self.shared.clone())
    }

    fn call(&self, call: impl FnOnce(&Shared) + Send + 'static) {
        let shared = self.shared.clone();
        self.runtime.spawn_blocking(move || call(&shared));
    }

    fn remove(
        &self,
        parent: INodeNo,
        name: &OsStr,
        reply: ReplyEmpty,
        remove: fn(&Homes, &RelativePath) -> io::Result<()>,
    ) {
        let name = text(name);
        self.call(move |shared| {
            let done = shared.with_paths(|| {
                let name = name?;
                shared.changed(remove(&shared.home, &shared.child(parent, &name)?))?;
                shared.nodes().removed(parent.0, &name);
                Ok(())
            });
            respond!(reply, done, |()| reply.ok());
        });
    }

    /// A turn for something that holds up to [`MOST_BYTES`] in memory. The kernel waits for it.
    fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.runtime.block_on(self.shared.transfers.clone().acquire_owned()).ok()
    }
}

impl Filesystem for HomeFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_MAX_PAGES;
        // What this kernel does not have is done without.
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_write(MOST_BYTES);
        let _ = config.set_max_readahead(MOST_BYTES);
        let _ = config.set_max_background(MOST_BACKGROUND);
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = text(name);
        self.call(move |shared| {
            let found = shared.with_paths(|| {
                let name = name?;
                shared.enter(parent, &name, &shared.child(parent, &name)?)
            });
            respond!(reply, found, |attr: FileAttr| reply.entry(&TTL, &attr, Generation(0)));
            shared.forget_some();
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.shared.nodes().forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.call(move |shared| {
            let attr = shared.with_paths(|| shared.attr(ino, fh));
            respond!(reply, attr, |attr: FileAttr| reply.attr(&TTL, &attr));
        });
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        user: Option<u32>,
        group: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mode = mode.map(|mode| mode & 0o7777);
        let changes = Changes { mode, user, group, size, accessed: set(accessed), modified: set(modified) };
        self.call(move |shared| {
            let done = shared.with_paths(|| shared.changed(shared.change(ino, fh, &changes)));
            respond!(reply, done, |attr: FileAttr| reply.attr(&TTL, &attr));
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.call(move |shared| {
            let target = shared.with_paths(|| shared.home.read_link(&shared.path(ino)?));
            respond!(reply, target, |target: String| reply.data(target.as_bytes()));
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        if mode & libc::S_IFMT != libc::S_IFREG {
            // No dataset holds FIFOs, sockets and devices.
            return reply.error(Errno::EPERM);
        }
        let (name, maker) = (text(name), maker(req, mode, umask));
        self.call(move |shared| {
            let made = shared.with_paths(|| {
                let name = name?;
                let path = shared.child(parent, &name)?;
                let how = How { write: true, exclusive: true, ..How::default() };
                shared.changed(shared.home.create(&path, maker, how)?.flush())?;
                shared.enter(parent, &name, &path)
            });
            respond!(reply, made, |attr: FileAttr| reply.entry(&TTL, &attr, Generation(0)));
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (name, maker) = (text(name), maker(req, mode, umask));
        self.call(move |shared| {
            let made = shared.with_paths(|| {
                let name = name?;
                let path = shared.child(parent, &name)?;
                shared.changed(shared.home.make_directory(&path, maker))?;
                shared.enter(parent, &name, &path)
            });
            respond!(reply, made, |attr: FileAttr| reply.entry(&TTL, &attr, Generation(0)));
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply, Homes::unlink);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply, Homes::remove_directory);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, target, maker) = (text(link_name), target.as_os_str().to_owned(), maker(req, 0o777, 0));
        self.call(move |shared| {
            let made = shared.with_paths(|| {
                let name = name?;
                let path = shared.child(parent, &name)?;
                let target = target.to_str().ok_or_else(|| errno(libc::EILSEQ))?;
                // Refused now rather than when the sources are listed.
                check_link(&path, target).map_err(|_| errno(libc::EPERM))?;
                shared.changed(shared.home.make_link(&path, target, maker))?;
                shared.enter(parent, &name, &path)
            });
            respond!(reply, made, |attr: FileAttr| reply.entry(&TTL, &attr, Generation(0)));
        });
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let (name, new_name, replace) = (text(name), text(newname), flags.is_empty());
        self.call(move |shared| {
            let done =
                name.and_then(|name| shared.changed(shared.rename((parent, &name), (newparent, &new_name?), replace)));
            respond!(reply, done, |()| reply.ok());
        });
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        // A dataset has every file once.
        reply.error(Errno::EPERM);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.call(move |shared| {
            let opened = shared.with_paths(|| shared.open(ino, how(flags)));
            respond!(reply, opened, |handle: FileHandle| reply.opened(handle, FopenFlags::empty()));
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, maker) = (text(name), maker(req, mode, umask));
        self.call(move |shared| {
            let made = shared.with_paths(|| shared.create(parent, &name?, maker, how(OpenFlags(flags))));
            respond!(reply, made, |(attr, handle): (FileAttr, FileHandle)| {
                reply.created(&TTL, &attr, Generation(0), handle, FopenFlags::empty());
            });
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let turn = self.turn();
        self.call(move |shared| {
            let read = shared.file(ino, fh).and_then(|file| file.read(offset, size));
            respond!(reply, read, |data: Vec<u8>| reply.data(&data));
            drop(turn);
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let turn = self.turn();
        let data = data.to_vec();
        // Pages of a mapping have their place, whatever the file was opened with.
        let append = how(flags).append && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        self.call(move |shared| {
            shared.note_written(fh.0);
            let wrote = shared.file(ino, fh).and_then(|file| file.write(offset, &data, append));
            let length = u32::try_from(data.len()).unwrap_or(MOST_BYTES);
            respond!(reply, wrote, |()| reply.written(length));
            drop(turn);
        });
    }

    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.call(move |shared| {
            let done = shared.settle(ino, fh, |file| file.flush());
            respond!(reply, done, |()| reply.ok());
        });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.call(move |shared| {
            shared.release(ino, fh);
            reply.ok();
        });
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.call(move |shared| {
            let done = shared.settle(ino, fh, |file| file.sync(datasync));
            respond!(reply, done, |()| reply.ok());
        });
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let handle = self.shared.next_handle.fetch_add(1, Ordering::Relaxed);
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.call(move |shared| {
            let done = shared.with_paths(|| shared.read_directory(ino, fh, offset, &mut reply));
            respond!(reply, done, |()| reply.ok());
        });
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.shared.directories.lock().unwrap_or_else(PoisonError::into_inner).remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.call(move |shared| {
            let done = shared.with_paths(|| shared.home.sync_directory(&shared.path(ino)?));
            respond!(reply, done, |()| reply.ok());
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.call(move |shared| {
            respond!(reply, shared.home.space(), |space: Space| {
                let unit = u64::from(BLOCK_SIZE);
                let (all, free, available) =
                    (space.bytes / unit, space.bytes_free / unit, space.bytes_available / unit);
                let longest = u32::try_from(MAX_COMPONENT_BYTES).unwrap_or(u32::MAX);
                reply.statfs(all, free, available, space.files, space.files_free, BLOCK_SIZE, longest, BLOCK_SIZE);
            });
        });
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        // Datasets have no extended attributes: the kernel need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.call(move |shared| {
            shared.note_written(fh.0);
            let done = shared.file(ino, fh).and_then(|file| file.reserve(mode, offset, length));
            respond!(reply, done, |()| reply.ok());
        });
    }
}
