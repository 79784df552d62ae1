//! What the kernel asks of a mount, answered from the tree and from whoever has the contents.
//!
//! An inode number is `version << 40 | rank`, with 1 for the root of the current version: nothing has to be remembered
//! for the kernel, and a process that takes a mount over understands the numbers that its predecessor gave out. A
//! directory of an older version goes on showing that version to those who are in it.
//!
//! The kernel may read a file itself, from the cache file below, when the file is complete (passthrough); else it asks
//! here. It refuses to mix the two on one inode: how an inode is open decides how it is opened again, until it is closed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use fluvial_model::manifest::rank::{Ranked, weight};
use fluvial_model::manifest::{BlockRef, Item, ReadError};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};
use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::OnceCell;

use crate::files::{Contents, Files, Opened, ReadAt, read_file};
use crate::opens::{Opens, Registered};
use crate::raw;
use crate::siblings::{BATCH, SMALL_BYTES, Siblings};
use crate::table::{self, Found, OpenFile, Table};
use crate::tree::Tree;

/// Ranks of one version.
const RANK_BITS: u32 = 40;
/// The root, of whatever version is current.
const ROOT: u64 = 1;
/// How long the kernel may believe what a version says: it never changes, and a new version takes its names back.
const TTL: Duration = Duration::from_secs(24 * 3600);
/// The most that the kernel asks for at a time.
pub const MOST_READ: u32 = 1 << 20;
/// Reads that the kernel keeps under way by itself (readahead): 64 × 1 MiB.
const MOST_BACKGROUND: u16 = 64;
/// What programs are told to read at a time.
const BLOCK_SIZE: u32 = 256 << 10;
const DIRECTORY_MODE: u16 = 0o755;
const LINK_MODE: u16 = 0o777;

/// How complete files are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// By the kernel, from the cache file.
    Passthrough,
    /// Through this process; why.
    Daemon(String),
    /// And written, at the home.
    ReadWrite,
}

/// The versions of a mount by number; the last one is current.
#[derive(Default)]
pub struct Versions(RwLock<Vec<(u32, Arc<Tree>)>>);

impl Versions {
    /// Adds a version, current from now on. A number that is there already is left alone.
    pub fn add(&self, number: u32, tree: Arc<Tree>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if !all.iter().any(|(known, _)| *known == number) {
            all.push((number, tree));
            all.sort_by_key(|(number, _)| *number);
        }
    }

    /// The current version.
    #[must_use]
    pub fn current(&self) -> Option<(u32, Arc<Tree>)> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }

    fn get(&self, number: u32) -> Option<Arc<Tree>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|(known, _)| *known == number).map(|(_, tree)| tree.clone())
    }
}

/// A file that a program has open.
struct OpenHandle {
    inode: u64,
    passthrough: bool,
    /// Nothing yet if it was opened in the process before this one.
    opened: OnceCell<Arc<Opened>>,
}

/// The kernel's side of a mount.
pub(crate) struct Kernel {
    /// The device.
    pub device: Arc<File>,
    /// Where it is noted what is open.
    pub table: Arc<Mutex<Table>>,
    /// What the process before this one had open.
    pub found: Found,
}

/// What answers need when they come later.
struct Shared {
    versions: Arc<Versions>,
    files: Arc<dyn Files>,
    mode: Mutex<Mode>,
    opens: Mutex<Opens>,
    siblings: Mutex<Siblings>,
    handles: RwLock<HashMap<u64, Arc<OpenHandle>>>,
    next_handle: AtomicU64,
    device: Arc<File>,
    table: Arc<Mutex<Table>>,
    /// Handles that the process before this one noted, by the request that each is the answer to.
    inherited: Mutex<HashMap<u64, u64>>,
}

/// The file system.
pub struct DatasetFs {
    shared: Arc<Shared>,
    runtime: Handle,
    owner: (u32, u32),
}

/// How many files are open, and how complete ones are read.
#[derive(Clone)]
pub struct Probe(Arc<Shared>);

impl Probe {
    /// How complete files are read, as far as it is known.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.0.mode().clone()
    }

    /// Lets go of files that were closed long enough ago. To be called now and then.
    pub fn sweep(&self) {
        self.0.opens().sweep(Instant::now());
    }

    /// The table of what is open, for a successor.
    pub(crate) fn table(&self) -> io::Result<File> {
        self.0.table().file().try_clone()
    }

    /// Open files.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.0.handles.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Shared {
    fn mode(&self) -> MutexGuard<'_, Mode> {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opens(&self) -> MutexGuard<'_, Opens> {
        self.opens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, handle: FileHandle) -> Option<Arc<OpenHandle>> {
        self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0).cloned()
    }

    /// Answers an open of a file that is complete and registered with the kernel already; gives the reply back if it is
    /// not.
    fn opened_again(&self, request: u64, inode: u64, reply: ReplyOpen) -> Option<ReplyOpen> {
        let Some((opened, backing)) = self.opens().again(inode) else { return Some(reply) };
        self.answer(request, inode, opened, Some(backing), reply);
        None
    }

    /// Answers an open: by passthrough if the file is complete and the inode is not open in the other way.
    fn opened(&self, request: u64, inode: u64, opened: Opened, reply: ReplyOpen) {
        let opened = Arc::new(opened);
        let backing = {
            let mut all = self.opens();
            let opens = all.inode(inode);
            let backing = match &opened.contents {
                // What is registered is complete, whatever the cache has by now.
                _ if opens.backing.is_some() => opens.backing.clone(),
                Contents::Complete(file) if opens.daemon == 0 => self.register(inode, file),
                _ => None,
            };
            if backing.is_some() {
                opens.passthrough += 1;
                opens.backing.clone_from(&backing);
                if matches!(opened.contents, Contents::Complete(_)) {
                    opens.keep(&opened);
                }
            } else {
                opens.daemon += 1;
            }
            backing
        };
        self.answer(request, inode, opened, backing, reply);
    }

    /// Answers an open that was counted: noted first, so that a process that takes over knows of it.
    fn answer(
        &self,
        request: u64,
        inode: u64,
        opened: Arc<Opened>,
        backing: Option<Arc<Registered>>,
        reply: ReplyOpen,
    ) {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let passthrough = backing.is_some();
        let (request, _) = table::request(request);
        if let Err(error) = self.table().opened(handle, OpenFile { inode, passthrough, request }) {
            tracing::warn!(%error, "an open file cannot be noted");
            self.opens().close(inode, passthrough, Instant::now());
            return reply.error(errno(&error));
        }
        let open = Arc::new(OpenHandle { inode, passthrough, opened: OnceCell::new_with(Some(opened)) });
        self.handles.write().unwrap_or_else(PoisonError::into_inner).insert(handle, open);
        match backing {
            Some(backing) => raw::with_registered(reply, backing.number, |reply, name| {
                reply.opened_passthrough(FileHandle(handle), FopenFlags::empty(), name);
            }),
            None => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    /// Registers the file below an inode with the kernel.
    fn register(&self, inode: u64, file: &File) -> Option<Arc<Registered>> {
        if *self.mode() != Mode::Passthrough {
            return None;
        }
        match Registered::new(&self.device, &self.table, inode, file) {
            Ok(registered) => Some(Arc::new(registered)),
            Err(error) => {
                tracing::warn!(%error, "the kernel takes no cache file for passthrough; reads go through this process");
                *self.mode() = Mode::Daemon(format!("the kernel refused a cache file: {error}"));
                None
            }
        }
    }

    /// Forgets a handle.
    fn released(&self, handle: u64) {
        let open = self.handles.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
        let Some(open) = open else { return };
        self.table().closed(handle);
        self.opens().close(open.inode, open.passthrough, Instant::now());
    }

    /// An open that the kernel says again was not answered: the handle that was noted for it was never given out.
    fn asked_again(&self, number: u64) {
        let (request, again) = table::request(number);
        if again {
            let never_given = self.inherited.lock().unwrap_or_else(PoisonError::into_inner).remove(&request);
            never_given.into_iter().for_each(|handle| self.released(handle));
        }
    }
}

/// An inode, looked up.
struct Inode {
    version: u32,
    rank: u64,
    tree: Arc<Tree>,
    place: Arc<Ranked>,
}

impl DatasetFs {
    /// A file system over these versions, whose files belong to `owner` (user and group).
    #[must_use]
    pub(crate) fn new(
        versions: Arc<Versions>,
        files: Arc<dyn Files>,
        runtime: Handle,
        owner: (u32, u32),
        kernel: Kernel,
    ) -> Self {
        // A limit that cannot be read is taken for the smallest that systems have.
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let shared = Shared {
            versions,
            files,
            mode: Mutex::new(Mode::Passthrough),
            opens: Mutex::new(Opens::new(descriptors)),
            siblings: Mutex::default(),
            handles: RwLock::new(kernel.found.files.iter().map(|(handle, open)| (*handle, inherited(open))).collect()),
            // Handles that a process before this one gave out are never given again.
            next_handle: AtomicU64::new((u64::from(std::process::id()) << 32) | 1),
            device: kernel.device,
            table: kernel.table,
            inherited: Mutex::new(kernel.found.files.iter().map(|(handle, open)| (open.request, *handle)).collect()),
        };
        let made = Self { shared: Arc::new(shared), runtime, owner };
        made.inherit(&kernel.found);
        made
    }

    /// Counts what the process before this one had open. What it registered for nobody, and what it may have registered
    /// when it was killed, ends here.
    fn inherit(&self, found: &Found) {
        let mut opens = self.shared.opens();
        for file in found.files.values() {
            let inode = opens.inode(file.inode);
            let count = if file.passthrough { &mut inode.passthrough } else { &mut inode.daemon };
            *count += 1;
        }
        for (number, ino) in found.registered.iter().map(|(number, inode)| (*number, *inode)) {
            let registered = Registered::known(&self.shared.device, &self.shared.table, number);
            let Some(inode) = opens.known(ino).filter(|inode| inode.passthrough > 0) else { continue };
            inode.backing = Some(Arc::new(registered));
            if let Ok(found) = self.inode(INodeNo(ino)) {
                inode.lease = Some(self.shared.files.keep(found.tree.root, found.place.path.clone()));
            }
        }
        if let Some(number) = found.unnoted {
            drop(Registered::known(&self.shared.device, &self.shared.table, number));
        }
    }

    /// To look at it while it runs.
    #[must_use]
    pub fn probe(&self) -> Probe {
        Probe(self.shared.clone())
    }

    fn inode(&self, ino: INodeNo) -> Result<Inode, Errno> {
        let (version, rank, tree) = if ino.0 == ROOT {
            let (version, tree) = self.shared.versions.current().ok_or(Errno::EIO)?;
            (version, 0, tree)
        } else {
            let version = u32::try_from(ino.0 >> RANK_BITS).map_err(|_| Errno::ESTALE)?;
            let tree = self.shared.versions.get(version).ok_or(Errno::ESTALE)?;
            (version, ino.0 & ((1 << RANK_BITS) - 1), tree)
        };
        match tree.place(rank) {
            Ok(Some(place)) => Ok(Inode { version, rank, tree, place }),
            Ok(None) => Err(Errno::ESTALE),
            Err(error) => Err(unreadable(&error)),
        }
    }

    fn directory(&self, ino: INodeNo) -> Result<(Inode, BlockRef), Errno> {
        let inode = self.inode(ino)?;
        match inode.place.item {
            Item::Directory(block) => Ok((inode, block)),
            Item::File(_) | Item::Symlink { .. } => Err(Errno::ENOTDIR),
        }
    }

    /// A regular file, and its size.
    fn file(&self, ino: INodeNo) -> Result<(Inode, u64), Errno> {
        let inode = self.inode(ino)?;
        match inode.place.item {
            Item::File(file) => Ok((inode, file.size)),
            Item::Directory(_) | Item::Symlink { .. } => Err(Errno::EISDIR),
        }
    }

    /// Has the small files behind one fetched, if its reader goes through the directory.
    fn fetch_siblings(&self, inode: &Inode) {
        let parent = inode.place.parent;
        let mut siblings = self.shared.siblings.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(from) = siblings.step(inode.version, parent, inode.rank) else { return };
        let Ok(Some(directory)) = inode.tree.place(parent) else { return };
        let Item::Directory(block) = directory.item else { return };
        let (mut paths, mut looked, mut to) = (Vec::new(), 0, from);
        // What cannot be read is met by who opens it.
        let _ = inode.tree.entries(&block, parent, from, &mut |rank, entry| {
            (looked, to) = (looked + 1, rank + weight(&entry.item));
            if let (Item::File(file), Ok(path)) = (&entry.item, directory.path.join(&entry.name))
                && file.size <= SMALL_BYTES
            {
                paths.push(path);
            }
            if looked < BATCH { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        siblings.asked(to);
        drop(siblings);
        let (shared, root) = (self.shared.clone(), inode.tree.root);
        self.runtime.spawn(async move {
            for some in paths.chunks(BATCH / 4) {
                shared.files.ahead(root, some.to_vec()).await;
            }
        });
    }

    /// Reads for a handle that the process before this one gave out.
    fn read_again(
        &self,
        inode: Inode,
        size: u64,
        open: Arc<OpenHandle>,
        (offset, length): (u64, u32),
        reply: ReplyData,
    ) {
        let shared = self.shared.clone();
        self.runtime.spawn(async move {
            let file = || async { shared.files.open(inode.tree.root, &inode.place.path, size).await.map(Arc::new) };
            match open.opened.get_or_try_init(file).await.map(|opened| opened.contents.clone()) {
                Ok(Contents::Complete(file)) => read_complete(&file, offset, length, reply),
                Ok(Contents::Partial(contents)) => read_partial(contents, offset, length, reply).await,
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn attributes(&self, ino: u64, item: &Item) -> FileAttr {
        let (size, mtime_ns, kind, perm, nlink) = match item {
            Item::File(file) => {
                let perm = u16::try_from(file.mode & 0o7777).unwrap_or_default();
                (file.size, file.mtime_ns, FileType::RegularFile, perm, 1)
            }
            Item::Directory(_) => (0, 0, FileType::Directory, DIRECTORY_MODE, 2),
            Item::Symlink { target } => (target.len() as u64, 0, FileType::Symlink, LINK_MODE, 1),
        };
        let since = Duration::from_nanos(mtime_ns.unsigned_abs());
        let time = if mtime_ns < 0 { SystemTime::UNIX_EPOCH - since } else { SystemTime::UNIX_EPOCH + since };
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: BLOCK_SIZE,
            flags: 0,
        }
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let (inode, block) = self.directory(parent)?;
        // A name that is not UTF-8 cannot be in a manifest.
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        match inode.tree.child(&block, inode.rank, name) {
            Ok(Some((rank, item))) => Ok(self.attributes(number(inode.version, rank), &item)),
            Ok(None) => Err(Errno::ENOENT),
            Err(error) => Err(unreadable(&error)),
        }
    }

    /// Hands the entries of a directory to `add`, from where the reader is, until it says that it is full. The position
    /// behind an entry is 1 more than the rank of the next one, counted from the directory's.
    fn list(
        &self,
        ino: INodeNo,
        offset: u64,
        mut add: impl FnMut(u64, u64, &OsStr, &FileAttr) -> bool,
    ) -> Result<(), Errno> {
        let (inode, block) = self.directory(ino)?;
        let own = self.attributes(ino.0, &inode.place.item);
        if offset == 0 && add(ino.0, 1, OsStr::new("."), &own) {
            return Ok(());
        }
        if offset <= 1 {
            let parent = if inode.place.parent == 0 { ROOT } else { number(inode.version, inode.place.parent) };
            if add(parent, 2, OsStr::new(".."), &FileAttr { ino: INodeNo(parent), ..own }) {
                return Ok(());
            }
        }
        let from = inode.rank + offset.max(2) - 1;
        let listed = inode.tree.entries(&block, inode.rank, from, &mut |rank, entry| {
            let after = rank + weight(&entry.item) - inode.rank + 1;
            let child = number(inode.version, rank);
            let full = add(child, after, OsStr::new(&entry.name), &self.attributes(child, &entry.item));
            if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        listed.map_err(|error| unreadable(&error))
    }
}

/// A handle of the process before this one.
fn inherited(open: &OpenFile) -> Arc<OpenHandle> {
    Arc::new(OpenHandle { inode: open.inode, passthrough: open.passthrough, opened: OnceCell::new() })
}

/// The inode number of a rank that is not the root's.
fn number(version: u32, rank: u64) -> u64 {
    (u64::from(version) << RANK_BITS) | rank
}

/// What a program sees when a block of the tree is missing or damaged.
fn unreadable(error: &ReadError) -> Errno {
    tracing::error!(error = error as &dyn std::error::Error, "the tree cannot be read");
    Errno::EIO
}

fn read_complete(file: &File, offset: u64, length: u32, reply: ReplyData) {
    match read_file(file, offset, length) {
        Ok(data) => reply.data(&data),
        Err(error) => reply.error(errno(&error)),
    }
}

async fn read_partial(contents: Arc<dyn ReadAt>, offset: u64, length: u32, reply: ReplyData) {
    match contents.read_at(offset, length).await {
        Ok(data) => reply.data(&data),
        Err(error) => {
            tracing::warn!(%error, offset, length, "read failed");
            reply.error(errno(&error));
        }
    }
}

/// What a program sees of an error.
fn errno(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

impl Filesystem for DatasetFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        // What this kernel does not have is done without.
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_background(MOST_BACKGROUND);
        let _ = config.set_max_write(MOST_READ);
        let _ = config.set_max_readahead(MOST_READ);
        if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_err() {
            *self.shared.mode() = Mode::Daemon("the kernel has no passthrough for FUSE".to_owned());
        } else if config.set_max_stack_depth(1).is_err() {
            *self.shared.mode() = Mode::Daemon("the kernel takes no file system below this one".to_owned());
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.inode(ino) {
            Ok(inode) => reply.attr(&TTL, &self.attributes(ino.0, &inode.place.item)),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.inode(ino).map(|inode| inode.place.item.clone()) {
            Ok(Item::Symlink { target }) => reply.data(target.as_bytes()),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let request = req.unique().0;
        self.shared.asked_again(request);
        let (inode, size) = match self.file(ino) {
            Ok(found) => found,
            Err(error) => return reply.error(error),
        };
        let Some(reply) = self.shared.opened_again(request, ino.0, reply) else { return };
        if size <= SMALL_BYTES {
            self.fetch_siblings(&inode);
        }
        let shared = self.shared.clone();
        self.runtime.spawn(async move {
            match shared.files.open(inode.tree.root, &inode.place.path, size).await {
                Ok(opened) => shared.opened(request, ino.0, opened, reply),
                Err(error) => {
                    tracing::warn!(path = inode.place.path.as_str(), %error, "open failed");
                    reply.error(errno(&error));
                }
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(handle) = self.shared.handle(fh) else { return reply.error(Errno::EBADF) };
        let Some(opened) = handle.opened.get() else {
            return match self.file(ino) {
                Ok((inode, size)) => self.read_again(inode, size, handle, (offset, length), reply),
                Err(error) => reply.error(error),
            };
        };
        match &opened.contents {
            Contents::Complete(file) => read_complete(file, offset, length, reply),
            Contents::Partial(contents) => {
                let contents = contents.clone();
                self.runtime.spawn(async move { read_partial(contents, offset, length, reply).await });
            }
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // Nothing is ever written: the kernel need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.released(fh.0);
        reply.ok();
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The root's entries are another version's one day; the kernel is told then.
        match self.directory(ino) {
            Ok(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.list(ino, offset, |child, after, name, attributes| {
            reply.add(INodeNo(child), after, attributes.kind, name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let listed = self.list(ino, offset, |child, after, name, attributes| {
            reply.add(INodeNo(child), after, name, &TTL, attributes, Generation(0))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        // Versions have no extended attributes: the kernel need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let totals = self.shared.versions.current().and_then(|(_, tree)| tree.totals().ok()).unwrap_or_default();
        let blocks = totals.bytes.div_ceil(u64::from(BLOCK_SIZE));
        reply.statfs(blocks, 0, 0, totals.files.saturating_add(totals.dirs), 0, BLOCK_SIZE, 255, BLOCK_SIZE);
    }
}
