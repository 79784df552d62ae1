//! A home that is a prefix of a bucket. A file is uploaded whole when it is closed; until then it is [`Staged`].
//!
//! The layout is that of the transfer crate's place, so that what is written here is listed there: a file is an object
//! with its mode and time beside it, a link an object that is marked as one, a directory an empty object `dir/`, which
//! is put whenever the last thing in a directory goes, so that the directory stays.
//! Names are looked up at the store each time they are opened; attributes alone may be [`SEEN_FOR`] old.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use fluvial_model::manifest::{Entry, File as FileEntry, RelativePath};
use fluvial_transfer::place::s3::S3Place;
use fluvial_transfer::place::s3::live::{Level, MOST_COPIED};
use fluvial_transfer::place::{Found, Place, Tag};
use fluvial_transfer::{Location, TransferError};
use nix::libc;
use quick_cache::sync::Cache;
use tokio::runtime::Handle;

use crate::write::home::{Attr, Changes, Home, How, Kind, Listed, Maker, OpenFile, Space, Time, errno, split};
use crate::write::staged::{Context, Staged, check_owner, everyone, nanoseconds, system_time};
use crate::write::staging::{Staging, Unfinished};

/// How old attributes may be that are only looked at.
const SEEN_FOR: Duration = Duration::from_secs(1);
/// Files whose attributes are remembered, some 300 bytes each.
const SEEN: usize = 20_000;
/// Locks that paths share: who works with one path waits for who works with the same.
const TURNS: usize = 64;
/// What directories and links look like: a prefix keeps no modes of theirs.
const DIRECTORY_MODE: u32 = 0o755;
const LINK_MODE: u32 = 0o777;
/// What a bucket is said to hold: nobody can ask it.
const BUCKET_BYTES: u64 = 1 << 50;
const BUCKET_FILES: u64 = 1 << 40;

/// A prefix of a bucket.
pub struct S3Home {
    context: Arc<Context>,
    open: Mutex<HashMap<RelativePath, Weak<Staged>>>,
    turns: [Mutex<()>; TURNS],
    since: SystemTime,
}

impl S3Home {
    /// Opens a prefix; nothing is contacted yet. `number` tells it from the mount's other homes.
    ///
    /// # Errors
    /// When the location cannot be used.
    pub fn open(location: &Location, staging: Staging, number: usize, runtime: Handle) -> Result<Self, TransferError> {
        let rest = location.uri.strip_prefix("s3://").unwrap_or_default();
        let place = S3Place::new(location, rest)?;
        Ok(Self {
            context: Arc::new(Context { place, staging, home: number, runtime, seen: Cache::new(SEEN) }),
            open: Mutex::default(),
            turns: std::array::from_fn(|_| Mutex::new(())),
            since: SystemTime::now(),
        })
    }

    /// Gives up an upload that a process before this one began.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn abort(&self, upload: &Unfinished) -> Result<(), TransferError> {
        let Ok(path) = RelativePath::parse(&upload.path) else { return Ok(()) };
        self.context.place.abort(&path, &upload.upload).await
    }

    fn place(&self) -> &S3Place {
        &self.context.place
    }

    fn table(&self) -> MutexGuard<'_, HashMap<RelativePath, Weak<Staged>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn staged(&self, path: &RelativePath) -> Option<Arc<Staged>> {
        self.table().get(path)?.upgrade()
    }

    fn keep(&self, path: &RelativePath, staged: &Arc<Staged>) {
        let mut table = self.table();
        table.retain(|_, staged| staged.strong_count() > 0);
        table.insert(path.clone(), Arc::downgrade(staged));
    }

    /// A turn for everybody who works with these paths.
    fn turn(&self, paths: &[&RelativePath]) -> Vec<MutexGuard<'_, ()>> {
        let mut numbers: Vec<usize> =
            paths.iter().map(|path| usize::try_from(hash(path) % TURNS as u64).unwrap_or(0)).collect();
        // In one order, so that two who want the same two do not wait for each other.
        numbers.sort_unstable();
        numbers.dedup();
        numbers.iter().map(|number| self.turns[*number].lock().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    /// What is at a path now.
    fn look(&self, path: &RelativePath) -> io::Result<Found> {
        self.context.seen.remove(path);
        if path.is_root() {
            return Ok(directory_at(path));
        }
        match self.context.wait(self.place().stat(path)) {
            Ok(found) => {
                self.context.seen.insert(path.clone(), (Instant::now(), found.clone()));
                Ok(found)
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                let level = self.context.wait(self.place().directory(path))?;
                level.map(|_| directory_at(path)).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// What was at a path a moment ago.
    fn glance(&self, path: &RelativePath) -> io::Result<Found> {
        match self.context.seen.get(path) {
            Some((at, found)) if at.elapsed() < SEEN_FOR => Ok(found),
            _ => self.look(path),
        }
    }

    /// What is at a path now, if anything is.
    fn find(&self, path: &RelativePath) -> io::Result<Option<Found>> {
        match self.look(path) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn attr(&self, found: &Found) -> Attr {
        let (kind, size, mode, modified) = match &found.entry {
            Entry::File(file) => (Kind::File, file.size, file.mode, system_time(file.mtime_ns)),
            Entry::Directory => (Kind::Directory, 0, DIRECTORY_MODE, self.since),
            Entry::Symlink { target } => (Kind::Link, target.len() as u64, LINK_MODE, self.since),
        };
        Attr {
            number: hash(&found.path),
            // Above those of open files.
            identity: hash(&found.tag.0) | 1 << 63,
            kind,
            size,
            blocks: size.div_ceil(512),
            mode,
            links: if kind == Kind::Directory { 2 } else { 1 },
            owner: everyone(),
            accessed: modified,
            modified,
            changed: modified,
        }
    }

    /// The file of a path that is to be opened.
    fn open_file(&self, path: &RelativePath, found: &Found) -> io::Result<Arc<Staged>> {
        let entry = match &found.entry {
            Entry::File(entry) => entry,
            Entry::Directory => return Err(errno(libc::EISDIR)),
            Entry::Symlink { .. } => return Err(errno(libc::ELOOP)),
        };
        if let Some(staged) = self.staged(path).filter(|staged| staged.is_of(&found.tag)) {
            return Ok(staged);
        }
        let staged = Arc::new(Staged::of(self.context.clone(), hash(path), entry, found)?);
        self.keep(path, &staged);
        Ok(staged)
    }

    /// Has the directory of a path stay when what is at the path goes.
    fn keep_parent(&self, path: &RelativePath) -> io::Result<()> {
        let (parent, _) = split(path)?;
        match self.context.wait(self.place().directory(&parent))? {
            Some(Level { marked: true, .. }) => Ok(()),
            _ => self.context.wait(self.place().make_directory(&parent, true)),
        }
    }

    /// Removes what is at a path at the home.
    fn remove(&self, path: &RelativePath) -> io::Result<()> {
        self.keep_parent(path)?;
        self.context.seen.remove(path);
        self.context.wait(self.place().remove(path))
    }

    /// Nothing leads to the open file of a path any more.
    fn detach(&self, path: &RelativePath) -> io::Result<Option<Arc<Staged>>> {
        let staged = self.staged(path);
        if let Some(staged) = &staged {
            staged.detach()?;
        }
        self.table().remove(path);
        Ok(staged)
    }

    /// What could not be removed or replaced is still there for who has it open.
    fn attach_if_failed(
        &self,
        path: &RelativePath,
        staged: Option<Arc<Staged>>,
        done: io::Result<()>,
    ) -> io::Result<()> {
        if done.is_err()
            && let Some(staged) = staged
        {
            staged.attach();
            self.keep(path, &staged);
        }
        done
    }

    fn rename_directory(&self, from: &RelativePath, to: &RelativePath) -> io::Result<()> {
        // Objects are renamed one by one: only nothing is renamed at once.
        if !self.list(from)?.is_empty() {
            return Err(errno(libc::EXDEV));
        }
        match self.find(to)? {
            Some(Found { entry: Entry::Directory, .. }) if !self.list(to)?.is_empty() => {
                return Err(errno(libc::ENOTEMPTY));
            }
            Some(Found { entry: Entry::Directory, .. }) | None => {}
            Some(_) => return Err(errno(libc::ENOTDIR)),
        }
        self.context.wait(self.place().make_directory(to, true))?;
        self.remove(from)
    }
}

fn hash(of: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    // Room for the bits by which homes and numbers of our own are told.
    hasher.finish() >> 9
}

fn directory_at(path: &RelativePath) -> Found {
    Found { path: path.clone(), entry: Entry::Directory, tag: Tag(String::new()) }
}

impl Home for S3Home {
    fn stat(&self, path: &RelativePath) -> io::Result<Attr> {
        let staged = self.staged(path);
        if let Some(staged) = staged.as_ref().filter(|staged| staged.is_newer()) {
            return staged.attr();
        }
        let found = self.glance(path)?;
        match staged.filter(|staged| staged.is_of(&found.tag)) {
            Some(staged) => staged.attr(),
            None => Ok(self.attr(&found)),
        }
    }

    fn list(&self, path: &RelativePath) -> io::Result<Vec<Listed>> {
        let here = Instant::now();
        let mut listed: HashMap<String, Kind> = HashMap::new();
        for found in self.context.wait(self.place().children(path))? {
            let kind = self.attr(&found).kind;
            if let Some(name) = found.path.name() {
                listed.insert(name.to_owned(), kind);
            }
            let known = matches!(&found.entry, Entry::File(file) if file.mtime_ns != 0);
            if known {
                self.context.seen.insert(found.path.clone(), (here, found));
            }
        }
        // Files that were made and are not closed yet.
        for (open, staged) in self.table().iter() {
            let new = staged.upgrade().is_some_and(|staged| !staged.is_at_home());
            if new && let Some(name) = open.name().filter(|_| open.parent().as_ref() == Some(path)) {
                listed.insert(name.to_owned(), Kind::File);
            }
        }
        let number = |name: &str| path.join(name).map_or(0, |path| hash(&path));
        Ok(listed.into_iter().map(|(name, kind)| Listed { number: number(&name), name, kind }).collect())
    }

    fn open(&self, path: &RelativePath, how: How) -> io::Result<Arc<dyn OpenFile>> {
        let _turn = self.turn(&[path]);
        let staged = match self.staged(path).filter(|staged| staged.is_newer()) {
            Some(staged) => staged,
            None => self.open_file(path, &self.look(path)?)?,
        };
        if how.truncate {
            staged.truncate()?;
        }
        Ok(staged)
    }

    fn create(&self, path: &RelativePath, maker: Maker, how: How) -> io::Result<Arc<dyn OpenFile>> {
        let _turn = self.turn(&[path]);
        let known = match self.staged(path).filter(|staged| staged.is_newer()) {
            Some(staged) => Some(staged),
            None => self.find(path)?.map(|found| self.open_file(path, &found)).transpose()?,
        };
        if let Some(staged) = known {
            if how.exclusive {
                return Err(errno(libc::EEXIST));
            }
            if how.truncate {
                staged.truncate()?;
            }
            return Ok(staged);
        }
        let staged = Arc::new(Staged::new(self.context.clone(), path.clone(), hash(path), maker.mode)?);
        self.keep(path, &staged);
        Ok(staged)
    }

    fn make_directory(&self, path: &RelativePath, _maker: Maker) -> io::Result<()> {
        let _turn = self.turn(&[path]);
        if self.staged(path).is_some_and(|staged| staged.is_newer()) || self.find(path)?.is_some() {
            return Err(errno(libc::EEXIST));
        }
        self.context.wait(self.place().make_directory(path, true))
    }

    fn make_link(&self, path: &RelativePath, target: &str, _maker: Maker) -> io::Result<()> {
        let _turn = self.turn(&[path]);
        if self.staged(path).is_some_and(|staged| staged.is_newer()) || self.find(path)?.is_some() {
            return Err(errno(libc::EEXIST));
        }
        self.context.wait(self.place().make_symlink(path, target)).map(drop)
    }

    fn read_link(&self, path: &RelativePath) -> io::Result<String> {
        match self.glance(path)?.entry {
            Entry::Symlink { target } => Ok(target),
            _ => Err(errno(libc::EINVAL)),
        }
    }

    fn unlink(&self, path: &RelativePath) -> io::Result<()> {
        let _turn = self.turn(&[path]);
        let new = self.staged(path).is_some_and(|staged| !staged.is_at_home());
        if !new && self.look(path)?.entry == Entry::Directory {
            return Err(errno(libc::EISDIR));
        }
        let staged = self.detach(path)?;
        // One that is not at the home leaves nothing there.
        let removed = if new { Ok(()) } else { self.remove(path) };
        self.attach_if_failed(path, staged, removed)
    }

    fn remove_directory(&self, path: &RelativePath) -> io::Result<()> {
        let _turn = self.turn(&[path]);
        if self.look(path)?.entry != Entry::Directory {
            return Err(errno(libc::ENOTDIR));
        }
        if !self.list(path)?.is_empty() {
            return Err(errno(libc::ENOTEMPTY));
        }
        self.remove(path)
    }

    fn rename(&self, from: &RelativePath, to: &RelativePath, replace: bool) -> io::Result<()> {
        if from == to {
            return Ok(());
        }
        let _turn = self.turn(&[from, to]);
        let staged = self.staged(from).filter(|staged| staged.is_newer());
        let found = if staged.is_some() { self.find(from)? } else { Some(self.look(from)?) };
        let there = self.staged(to).is_some_and(|staged| staged.is_newer()) || self.find(to)?.is_some();
        if there && !replace {
            return Err(errno(libc::EEXIST));
        }
        if staged.is_none() && found.as_ref().is_some_and(|found| found.entry == Entry::Directory) {
            return self.rename_directory(from, to);
        }
        if there && self.find(to)?.is_some_and(|found| found.entry == Entry::Directory) {
            return Err(errno(libc::EISDIR));
        }
        let size = |found: &Found| if let Entry::File(file) = &found.entry { file.size } else { 0 };
        if staged.is_none() && found.as_ref().is_some_and(|found| size(found) > MOST_COPIED) {
            return Err(errno(libc::EXDEV));
        }
        let replaced = self.detach(to)?;
        self.context.seen.remove(to);
        let moving = staged.or_else(|| self.staged(from));
        let moved = match &moving {
            Some(moving) if moving.is_newer() => moving.move_to(to, None),
            _ => self.context.wait(self.place().copy(from, to, found.as_ref().map_or(0, size), None)).and_then(
                |copied| match &moving {
                    Some(moving) => moving.move_to(to, Some(copied.tag)),
                    None => Ok(()),
                },
            ),
        };
        self.attach_if_failed(to, replaced, moved)?;
        self.table().remove(from);
        if let Some(moving) = &moving {
            self.keep(to, moving);
        }
        if found.is_some() { self.remove(from) } else { Ok(()) }
    }

    fn change(&self, path: &RelativePath, changes: &Changes) -> io::Result<()> {
        check_owner(changes)?;
        let _turn = self.turn(&[path]);
        if let Some(staged) = self.staged(path).filter(|staged| staged.is_newer()) {
            return staged.change(changes);
        }
        let found = self.look(path)?;
        let entry = match &found.entry {
            Entry::File(entry) => entry,
            other => {
                let mode = if *other == Entry::Directory { DIRECTORY_MODE } else { LINK_MODE };
                let kept = changes.modified.is_none() && changes.mode.is_none_or(|changed| changed == mode);
                return if kept { Ok(()) } else { Err(errno(libc::EPERM)) };
            }
        };
        if let Some(staged) = self.staged(path).filter(|staged| staged.is_of(&found.tag)) {
            staged.change(changes)?;
            return staged.flush();
        }
        if changes.size.is_some_and(|size| size != entry.size) {
            let staged = self.open_file(path, &found)?;
            staged.change(changes)?;
            self.context.seen.remove(path);
            return staged.flush();
        }
        if changes.mode.is_none() && changes.modified.is_none() {
            return Ok(());
        }
        let mtime_ns = match changes.modified {
            None => entry.mtime_ns,
            Some(Time::Now) => nanoseconds(SystemTime::now()),
            Some(Time::At(time)) => nanoseconds(time),
        };
        let file = FileEntry { mtime_ns, mode: changes.mode.unwrap_or(entry.mode), ..*entry };
        if file.size > MOST_COPIED {
            return Err(errno(libc::EPERM));
        }
        let copied = self.context.wait(self.place().copy(path, path, file.size, Some(&file)))?;
        self.context.seen.insert(path.clone(), (Instant::now(), copied));
        Ok(())
    }

    /// A store has it durable when it says so.
    fn sync_directory(&self, _path: &RelativePath) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space {
            bytes: BUCKET_BYTES,
            bytes_free: BUCKET_BYTES,
            bytes_available: BUCKET_BYTES,
            files: BUCKET_FILES,
            files_free: BUCKET_FILES,
        })
    }
}
