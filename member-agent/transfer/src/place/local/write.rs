//! Writing into a directory, sparse and never outside it.

use std::fs::{self, File as FsFile, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fluvial_model::manifest::File;

use super::tag_of;
use crate::place::Tag;

/// Runs of zeros of this size are not written: one block of the common file systems.
const ZERO_RUN: usize = 4096;
/// From here on one `syncfs` is cheaper than a sync of each file.
const SYNC_EACH_LIMIT: usize = 4;

/// Refuses a way through a link: an ancestor could have been replaced since it was listed.
fn check_ancestors(root: &Path, full: &Path) -> io::Result<()> {
    let Ok(below) = full.strip_prefix(root) else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut at = root.to_owned();
    for component in below.parent().into_iter().flat_map(Path::components) {
        at.push(component);
        if fs::symlink_metadata(&at)?.is_symlink() {
            return Err(io::Error::other("a directory on the way is a symbolic link"));
        }
    }
    Ok(())
}

/// Opens a regular file for reading, through no link.
pub(super) fn open_inside(root: &Path, full: &Path) -> io::Result<FsFile> {
    check_ancestors(root, full)?;
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags).open(full)
}

/// What an entry is, found through no link.
pub(super) fn look_inside(root: &Path, full: &Path) -> io::Result<fs::Metadata> {
    check_ancestors(root, full)?;
    fs::symlink_metadata(full)
}

/// Opens a file that [`create`] made.
pub(super) fn open_for_writing(root: &Path, full: &Path) -> io::Result<FsFile> {
    check_ancestors(root, full)?;
    OpenOptions::new().write(true).custom_flags(nix::libc::O_NOFOLLOW).open(full)
}

/// Makes the directory that `full` will be in.
pub(super) fn make_parents(root: &Path, full: &Path) -> io::Result<()> {
    match full.parent() {
        Some(parent) if parent.starts_with(root) => make_directories(root, parent),
        _ => fs::create_dir_all(root),
    }
}

/// Makes a directory and those above it, replacing a file that an earlier version of the tree had there.
pub(super) fn make_directories(root: &Path, full: &Path) -> io::Result<()> {
    if fs::symlink_metadata(full).is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    fs::create_dir_all(root)?;
    let Ok(below) = full.strip_prefix(root) else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut at = root.to_owned();
    for component in below.components() {
        at.push(component);
        match fs::symlink_metadata(&at) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                fs::remove_file(&at)?;
                create_directory(&at)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => create_directory(&at)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Another stream may make the same directory at the same time.
fn create_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result,
    }
}

/// Removes a file, a link or an empty directory.
pub(super) fn clear(full: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(full) {
        Ok(found) if found.is_dir() => fs::remove_dir(full),
        Ok(_) => fs::remove_file(full),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        result => result,
    }
}

/// A new file of `size` zeros that take no room.
pub(super) fn create(root: &Path, full: &Path, size: u64) -> io::Result<FsFile> {
    make_parents(root, full)?;
    clear(full)?;
    // Readable by nobody else until it has its own mode.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(full)?;
    file.set_len(size)?;
    Ok(file)
}

/// Writes data at `offset`, leaving out whole runs of zeros: the file was made of zeros.
pub(super) fn write_sparse(file: &FsFile, offset: u64, data: &[u8]) -> io::Result<()> {
    let mut start = None;
    for (number, run) in data.chunks(ZERO_RUN).enumerate() {
        let at = number * ZERO_RUN;
        match (start, is_zero(run)) {
            (None, false) => start = Some(at),
            (Some(from), true) => {
                file.write_all_at(&data[from..at], offset + from as u64)?;
                start = None;
            }
            _ => {}
        }
    }
    match start {
        Some(from) => file.write_all_at(&data[from..], offset + from as u64),
        None => Ok(()),
    }
}

/// Compares with itself shifted by one byte, which becomes one fast comparison of memory.
fn is_zero(run: &[u8]) -> bool {
    run.first().is_none_or(|first| *first == 0) && run[..run.len().saturating_sub(1)] == run[run.len().min(1)..]
}

/// Gives a written file its mode and time.
pub(super) fn finish(out: &FsFile, file: &File) -> io::Result<Tag> {
    out.set_permissions(Permissions::from_mode(file.mode))?;
    let distance = Duration::from_nanos(file.mtime_ns.unsigned_abs());
    let time: SystemTime = if file.mtime_ns < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
    out.set_modified(time)?;
    Ok(tag_of(&out.metadata()?))
}

/// Makes files, or everything, durable.
pub(super) fn sync(root: &Path, files: &[PathBuf]) -> io::Result<()> {
    if (1..=SYNC_EACH_LIMIT).contains(&files.len()) {
        for file in files {
            match OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(file) {
                Ok(file) => file.sync_all()?,
                // A link, or a file that its owner may not read: it goes with everything else.
                Err(_) => return Ok(nix::unistd::syncfs(FsFile::open(root)?)?),
            }
        }
        return Ok(());
    }
    Ok(nix::unistd::syncfs(FsFile::open(root)?)?)
}

/// Makes everything durable, then visible, then the visibility durable.
pub(super) fn commit(root: &Path, visible: &Path) -> io::Result<()> {
    fs::create_dir_all(root)?;
    nix::unistd::syncfs(FsFile::open(root)?)?;
    fs::rename(root, visible)?;
    match visible.parent() {
        Some(parent) => FsFile::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

pub(super) fn is_empty_directory(path: &Path) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return Ok(false);
    }
    Ok(fs::read_dir(path)?.next().is_none())
}

/// Makes and removes a file where the tree would be made: in it, or in the nearest directory above that exists.
pub(super) fn probe(root: &Path) -> io::Result<()> {
    let mut at = root;
    while !at.try_exists()? {
        at = at.parent().ok_or(io::ErrorKind::NotFound)?;
    }
    let file = at.join(format!(".fluvial-probe-{}-{:08x}", std::process::id(), rand::random::<u32>()));
    let out = OpenOptions::new().write(true).create_new(true).open(&file)?;
    let written = out.write_all_at(b"1", 0);
    fs::remove_file(file)?;
    written
}
