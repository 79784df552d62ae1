//! A home that is a directory: every call is a call of the file system below.
//!
//! Nothing outside the directory is reached: names are looked up below its open descriptor, and no link on the way is
//! followed, whoever put it there. What is written is in the file below at once; there is nothing to stage and nothing
//! to lose when the process dies.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fluvial_model::manifest::RelativePath;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, OpenHow, RenameFlags, ResolveFlag, fallocate, openat2, renameat2};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, UtimensatFlags, fchmod, fstat, fstatat, futimens, mkdirat, utimensat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat};

use crate::files::read_file;
use crate::write::home::{Attr, Changes, Home, How, Kind, Listed, Maker, OpenFile, Space, Time, errno, split};

const SET_GROUP_ID: u32 = 0o2000;

/// A directory.
#[derive(Debug)]
pub struct Directory {
    root: OwnedFd,
}

impl Directory {
    /// Opens a directory that is there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(Self { root: nix::fcntl::open(path, flags, Mode::empty())? })
    }

    /// Opens what is at a path.
    fn at(&self, path: &RelativePath, flags: OFlag) -> io::Result<OwnedFd> {
        let name = if path.is_root() { "." } else { path.as_str() };
        below(&self.root, name, flags, 0)
    }

    /// The directory that a path lies in, and its name there.
    fn parent<'p>(&self, path: &'p RelativePath) -> io::Result<(OwnedFd, &'p str)> {
        let (parent, name) = split(path)?;
        Ok((self.at(&parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?, name))
    }
}

/// Opens a path below an open directory, following nothing.
fn below(directory: &OwnedFd, path: &str, flags: OFlag, mode: u32) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .mode(Mode::from_bits_truncate(mode))
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    loop {
        match openat2(directory, path, how) {
            // The kernel says so when a rename crossed the look-up.
            Err(nix::errno::Errno::EAGAIN) => {}
            opened => return Ok(opened?),
        }
    }
}

/// An open file by a name that calls for paths take.
fn by_number(file: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

fn time(seconds: i64, nanoseconds: i64) -> SystemTime {
    let part = Duration::from_nanos(nanoseconds.unsigned_abs());
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { SystemTime::UNIX_EPOCH - whole } else { SystemTime::UNIX_EPOCH + whole };
    base + part
}

fn kind(mode: u32) -> Option<Kind> {
    match mode & libc::S_IFMT {
        libc::S_IFREG => Some(Kind::File),
        libc::S_IFDIR => Some(Kind::Directory),
        libc::S_IFLNK => Some(Kind::Link),
        _ => None,
    }
}

/// What is known of an entry; a special file, which no dataset holds, is not there.
fn attr(stat: &FileStat) -> io::Result<Attr> {
    let kind = kind(stat.st_mode).ok_or_else(|| errno(libc::ENOENT))?;
    Ok(Attr {
        number: stat.st_ino,
        identity: stat.st_ino,
        kind,
        size: stat.st_size.unsigned_abs(),
        blocks: stat.st_blocks.unsigned_abs(),
        mode: stat.st_mode & 0o7777,
        links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        owner: (stat.st_uid, stat.st_gid),
        accessed: time(stat.st_atime, stat.st_atime_nsec),
        modified: time(stat.st_mtime, stat.st_mtime_nsec),
        changed: time(stat.st_ctime, stat.st_ctime_nsec),
    })
}

fn spec(time: Option<Time>) -> TimeSpec {
    match time {
        None => TimeSpec::UTIME_OMIT,
        Some(Time::Now) => TimeSpec::UTIME_NOW,
        Some(Time::At(time)) => match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => TimeSpec::from_duration(since),
            Err(before) => {
                // Seconds before, then nanoseconds after them.
                let before = before.duration();
                let nanoseconds = i64::from(before.subsec_nanos());
                let seconds = -i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                if nanoseconds == 0 {
                    TimeSpec::new(seconds, 0)
                } else {
                    TimeSpec::new(seconds - 1, 1_000_000_000 - nanoseconds)
                }
            }
        },
    }
}

/// Who owns what is made in a directory: in one with the set-group-ID bit, its group does.
fn owner(parent: &OwnedFd, maker: Maker) -> io::Result<(Option<Uid>, Option<Gid>, u32)> {
    let stat = fstat(parent)?;
    let inherits = stat.st_mode & SET_GROUP_ID != 0;
    let group = if inherits { stat.st_gid } else { maker.owner.1 };
    Ok((Some(Uid::from_raw(maker.owner.0)), Some(Gid::from_raw(group)), if inherits { SET_GROUP_ID } else { 0 }))
}

/// Gives away what was made, if the process may: without that right everything is its own.
fn give(given: nix::Result<()>) -> io::Result<()> {
    match given {
        Err(nix::errno::Errno::EPERM) if !nix::unistd::geteuid().is_root() => Ok(()),
        given => Ok(given?),
    }
}

impl Home for Directory {
    fn stat(&self, path: &RelativePath) -> io::Result<Attr> {
        if path.is_root() {
            return attr(&fstat(&self.root)?);
        }
        let (parent, name) = self.parent(path)?;
        attr(&fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    fn list(&self, path: &RelativePath) -> io::Result<Vec<Listed>> {
        let directory = self.at(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut listed = Vec::new();
        for entry in std::fs::read_dir(by_number(&directory))? {
            let entry = entry?;
            let kind = entry.file_type().ok().and_then(|kind| {
                let file = kind.is_file().then_some(Kind::File);
                let directory = || kind.is_dir().then_some(Kind::Directory);
                file.or_else(directory).or_else(|| kind.is_symlink().then_some(Kind::Link))
            });
            // What no dataset holds is not shown: its sources cannot be listed either, and say why.
            if let (Ok(name), Some(kind)) = (entry.file_name().into_string(), kind) {
                let number = std::os::unix::fs::DirEntryExt::ino(&entry);
                listed.push(Listed { name, kind, number });
            }
        }
        Ok(listed)
    }

    fn open(&self, path: &RelativePath, how: How) -> io::Result<Arc<dyn OpenFile>> {
        let (parent, name) = self.parent(path)?;
        Ok(Arc::new(Open::of(&parent, name, how)?))
    }

    fn create(&self, path: &RelativePath, maker: Maker, how: How) -> io::Result<Arc<dyn OpenFile>> {
        let (parent, name) = self.parent(path)?;
        // Writable for its maker whatever its mode is.
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = match below(&parent, name, flags, 0o600) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && !how.exclusive => {
                return Ok(Arc::new(Open::of(&parent, name, how)?));
            }
            file => file?,
        };
        let (user, group, _) = owner(&parent, maker)?;
        give(fchown(&file, user, group))?;
        fchmod(&file, Mode::from_bits_truncate(maker.mode))?;
        let append = if how.append { Some(Open::appending(&file)?) } else { None };
        Ok(Arc::new(Open { file: file.into(), append }))
    }

    fn make_directory(&self, path: &RelativePath, maker: Maker) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        mkdirat(&parent, name, Mode::from_bits_truncate(0o700))?;
        let (user, group, inherited) = owner(&parent, maker)?;
        let made = below(&parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)?;
        give(fchown(&made, user, group))?;
        Ok(fchmod(&made, Mode::from_bits_truncate(maker.mode | inherited))?)
    }

    fn make_link(&self, path: &RelativePath, target: &str, maker: Maker) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        symlinkat(target, &parent, name)?;
        let (user, group, _) = owner(&parent, maker)?;
        give(fchownat(&parent, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW))
    }

    fn read_link(&self, path: &RelativePath) -> io::Result<String> {
        let (parent, name) = self.parent(path)?;
        let target = nix::fcntl::readlinkat(&parent, name)?;
        target.into_string().map_err(|_| errno(libc::EILSEQ))
    }

    fn unlink(&self, path: &RelativePath) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir)?)
    }

    fn remove_directory(&self, path: &RelativePath) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(unlinkat(&parent, name, UnlinkatFlags::RemoveDir)?)
    }

    fn rename(&self, from: &RelativePath, to: &RelativePath, replace: bool) -> io::Result<()> {
        let (from_parent, from_name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
        Ok(renameat2(&from_parent, from_name, &to_parent, to_name, flags)?)
    }

    fn change(&self, path: &RelativePath, changes: &Changes) -> io::Result<()> {
        if path.is_root() {
            return change_open(&self.root, changes);
        }
        let (parent, name) = self.parent(path)?;
        if let Some(size) = changes.size {
            File::from(below(&parent, name, OFlag::O_WRONLY, 0)?).set_len(size)?;
        }
        if changes.user.is_some() || changes.group.is_some() {
            let (user, group) = (changes.user.map(Uid::from_raw), changes.group.map(Gid::from_raw));
            fchownat(&parent, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        if let Some(mode) = changes.mode {
            let entry = below(&parent, name, OFlag::O_PATH, 0)?;
            if kind(fstat(&entry)?.st_mode) == Some(Kind::Link) {
                return Err(errno(libc::EOPNOTSUPP));
            }
            std::fs::set_permissions(by_number(&entry), Permissions::from_mode(mode))?;
        }
        if changes.accessed.is_some() || changes.modified.is_some() {
            let (accessed, modified) = (spec(changes.accessed), spec(changes.modified));
            utimensat(&parent, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?;
        }
        Ok(())
    }

    fn sync_directory(&self, path: &RelativePath) -> io::Result<()> {
        File::from(self.at(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?).sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let stat = fstatvfs(&self.root)?;
        let unit = stat.fragment_size();
        Ok(Space {
            bytes: stat.blocks() * unit,
            bytes_free: stat.blocks_free() * unit,
            bytes_available: stat.blocks_available() * unit,
            files: stat.files(),
            files_free: stat.files_free(),
        })
    }
}

fn change_open(file: &impl AsFd, changes: &Changes) -> io::Result<()> {
    if changes.user.is_some() || changes.group.is_some() {
        fchown(file, changes.user.map(Uid::from_raw), changes.group.map(Gid::from_raw))?;
    }
    if let Some(mode) = changes.mode {
        fchmod(file, Mode::from_bits_truncate(mode))?;
    }
    if changes.accessed.is_some() || changes.modified.is_some() {
        futimens(file, &spec(changes.accessed), &spec(changes.modified))?;
    }
    Ok(())
}

/// An open file of the directory.
struct Open {
    file: File,
    /// The same file, for writes that go to the end wherever that is by then. Pages that were written through a mapping
    /// have their place, and come through the other one.
    append: Option<File>,
}

impl Open {
    fn of(parent: &OwnedFd, name: &str, how: How) -> io::Result<Self> {
        let truncate = if how.truncate { OFlag::O_TRUNC } else { OFlag::empty() };
        let access = if how.write || how.truncate { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        // A FIFO that somebody put there is not waited for.
        let file = below(parent, name, access | truncate | OFlag::O_NONBLOCK, 0)?;
        match kind(fstat(&file)?.st_mode) {
            Some(Kind::File) => {}
            Some(Kind::Directory) => return Err(errno(libc::EISDIR)),
            Some(Kind::Link) | None => return Err(errno(libc::ENOENT)),
        }
        let append = if how.append { Some(Self::appending(&file)?) } else { None };
        Ok(Self { file: file.into(), append })
    }

    fn appending(file: &OwnedFd) -> io::Result<File> {
        File::options().append(true).open(by_number(file))
    }
}

impl OpenFile for Open {
    fn attr(&self) -> io::Result<Attr> {
        attr(&fstat(&self.file)?)
    }

    fn read(&self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        read_file(&self.file, offset, length)
    }

    fn write(&self, offset: u64, data: &[u8], append: bool) -> io::Result<()> {
        let file = self.append.as_ref().filter(|_| append).unwrap_or(&self.file);
        file.write_all_at(data, offset)
    }

    fn change(&self, changes: &Changes) -> io::Result<()> {
        if let Some(size) = changes.size {
            match self.file.set_len(size) {
                // Open for reading only, by somebody who may write.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    File::options().write(true).open(by_number(&self.file))?.set_len(size)?;
                }
                done => done?,
            }
        }
        change_open(&self.file, changes)
    }

    fn reserve(&self, mode: i32, offset: u64, length: u64) -> io::Result<()> {
        let mode = FallocateFlags::from_bits(mode).ok_or_else(|| errno(libc::EOPNOTSUPP))?;
        let (offset, length) = (i64::try_from(offset), i64::try_from(length));
        let (Ok(offset), Ok(length)) = (offset, length) else { return Err(errno(libc::EFBIG)) };
        Ok(fallocate(&self.file, mode, offset, length)?)
    }

    /// What was written is in the file below already; what a network file system under it has to say comes at its own
    /// close.
    fn flush(&self) -> io::Result<()> {
        let copy = self.file.try_clone()?;
        Ok(nix::unistd::close(OwnedFd::from(copy))?)
    }

    fn sync(&self, data_only: bool) -> io::Result<()> {
        if data_only { self.file.sync_data() } else { self.file.sync_all() }
    }
}
