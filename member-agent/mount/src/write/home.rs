//! The seam: what a home must be able to do to be written through a mount.
//!
//! Calls block and are made from threads that may. Errors are what the program in the mount is to see. Paths are
//! relative to the home; the root is always there. Every implementation is held to one simple file system in memory, by
//! random operations through a mount (`mount_model` in the tests of the whole).

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use fluvial_model::manifest::RelativePath;
use nix::libc;

/// What an entry is. Nothing else can be made, and nothing else is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

/// What is known of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// The inode number that it should have, if it is free.
    pub number: u64,
    /// Tells one file from another that has taken its place.
    pub identity: u64,
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes that it takes.
    pub blocks: u64,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Names that it has.
    pub links: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Last read.
    pub accessed: SystemTime,
    /// Last written.
    pub modified: SystemTime,
    /// Last changed in any way.
    pub changed: SystemTime,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// As [`Attr::number`].
    pub number: u64,
}

/// Who makes something, and with which permission bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maker {
    /// Permission bits, the umask taken away.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct How {
    /// For writing too.
    pub write: bool,
    /// Every write goes to the end.
    pub append: bool,
    /// Emptied first.
    pub truncate: bool,
    /// Only if it is made by this call.
    pub exclusive: bool,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// Now, by the home's clock.
    Now,
    /// This one.
    At(SystemTime),
}

/// What to change of an entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub user: Option<u32>,
    /// Group.
    pub group: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last read.
    pub accessed: Option<Time>,
    /// Last written.
    pub modified: Option<Time>,
}

/// Room, in bytes and entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub bytes: u64,
    /// What is free.
    pub bytes_free: u64,
    /// What is free for those who are not root.
    pub bytes_available: u64,
    /// Entries that there can be.
    pub files: u64,
    /// Entries that can still be made.
    pub files_free: u64,
}

/// A tree that is written in place.
pub trait Home: Send + Sync + 'static {
    /// An entry, as it is now.
    ///
    /// # Errors
    /// `ENOENT` if there is none; what the home says.
    fn stat(&self, path: &RelativePath) -> io::Result<Attr>;

    /// Everything in a directory, in no order.
    ///
    /// # Errors
    /// As [`Home::stat`], `ENOTDIR`.
    fn list(&self, path: &RelativePath) -> io::Result<Vec<Listed>>;

    /// Opens a file that is there.
    ///
    /// # Errors
    /// As [`Home::stat`], `EISDIR`.
    fn open(&self, path: &RelativePath, how: How) -> io::Result<Arc<dyn OpenFile>>;

    /// Makes a file, or opens it if it is there and need not be made.
    ///
    /// # Errors
    /// `EEXIST` with [`How::exclusive`]; what the home says.
    fn create(&self, path: &RelativePath, maker: Maker, how: How) -> io::Result<Arc<dyn OpenFile>>;

    /// Makes a directory.
    ///
    /// # Errors
    /// `EEXIST`; what the home says.
    fn make_directory(&self, path: &RelativePath, maker: Maker) -> io::Result<()>;

    /// Makes a symbolic link. Its target was checked.
    ///
    /// # Errors
    /// `EEXIST`; what the home says.
    fn make_link(&self, path: &RelativePath, target: &str, maker: Maker) -> io::Result<()>;

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` if it is none.
    fn read_link(&self, path: &RelativePath) -> io::Result<String>;

    /// Removes a file or a link. Who has it open keeps it.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`; what the home says.
    fn unlink(&self, path: &RelativePath) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`; what the home says.
    fn remove_directory(&self, path: &RelativePath) -> io::Result<()>;

    /// Renames an entry, in place of another one if `replace`.
    ///
    /// # Errors
    /// `EEXIST` if there is another one and it must stay; `EXDEV` for what this home cannot rename in one step, which
    /// programs then copy and remove.
    fn rename(&self, from: &RelativePath, to: &RelativePath, replace: bool) -> io::Result<()>;

    /// Changes an entry.
    ///
    /// # Errors
    /// What the home says; `EPERM` for what it cannot keep.
    fn change(&self, path: &RelativePath, changes: &Changes) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// What the home says.
    fn sync_directory(&self, path: &RelativePath) -> io::Result<()>;

    /// The room there is.
    ///
    /// # Errors
    /// What the home says.
    fn space(&self) -> io::Result<Space>;
}

/// A file that is open, with or without a name. Closed when dropped; what it is to say of that is said by
/// [`OpenFile::flush`].
pub trait OpenFile: Send + Sync {
    /// What it is now.
    ///
    /// # Errors
    /// What the home says.
    fn attr(&self) -> io::Result<Attr>;

    /// `length` bytes from `offset`; fewer at the end only.
    ///
    /// # Errors
    /// What the home says.
    fn read(&self, offset: u64, length: u32) -> io::Result<Vec<u8>>;

    /// Writes at `offset`, or, with `append`, at the end.
    ///
    /// # Errors
    /// `ENOSPC` if there is no room; what the home says. Nothing is written then.
    fn write(&self, offset: u64, data: &[u8], append: bool) -> io::Result<()>;

    /// Changes it.
    ///
    /// # Errors
    /// As [`Home::change`].
    fn change(&self, changes: &Changes) -> io::Result<()>;

    /// Makes room, as `fallocate` with this mode does.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a mode that the home does not have.
    fn reserve(&self, mode: i32, offset: u64, length: u64) -> io::Result<()>;

    /// What a `close` waits for: what was written is at the home.
    ///
    /// # Errors
    /// Why it is not.
    fn flush(&self) -> io::Result<()>;

    /// What was written is at the home and durable there.
    ///
    /// # Errors
    /// Why it is not.
    fn sync(&self, data_only: bool) -> io::Result<()>;
}

/// An error by its number.
#[must_use]
pub fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// A path as the parent and the name in it.
///
/// # Errors
/// `EBUSY` for the root, which is nowhere.
pub fn split(path: &RelativePath) -> io::Result<(RelativePath, &str)> {
    let name = path.name().ok_or_else(|| errno(libc::EBUSY))?;
    Ok((path.parent().unwrap_or_else(RelativePath::root), name))
}
