//! The walk over a directory: every entry once, no link followed, everything that a dataset cannot hold refused.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use fluvial_model::manifest::{Entry, File, RelativePath};
use tokio::sync::mpsc;

use super::{mtime_of, tag_of};
use crate::TransferError;
use crate::place::{Found, check_link};

/// Sends every entry below `root`; ends early when nobody receives any more.
pub(super) fn walk(root: &Path, place: &str, found: &mpsc::Sender<Found>) -> Result<(), TransferError> {
    // Directories that are still to be read: bounded by the directories of the tree, not by its files.
    let mut open = vec![RelativePath::root()];
    while let Some(directory) = open.pop() {
        let full = if directory.is_root() { root.to_owned() } else { root.join(directory.as_str()) };
        let io = |error| TransferError::io("list", place, directory.as_str(), error);
        for entry in fs::read_dir(&full).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            let refuse = |why: &str| TransferError::BadEntry {
                place: place.to_owned(),
                name: escaped(&directory, name.as_bytes()),
                why: why.to_owned(),
            };
            let Some(text) = name.to_str() else { return Err(refuse("its name is not UTF-8")) };
            let path = directory.join(text).map_err(|error| refuse(&error.to_string()))?;
            let metadata = entry.metadata().map_err(|error| TransferError::io("list", place, path.as_str(), error))?;
            if metadata.is_dir() {
                open.push(path.clone());
            }
            let entry = look("list", place, &path, &entry.path(), metadata)?;
            if found.blocking_send(entry).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// What one entry is; everything that a dataset cannot hold is refused.
pub(super) fn look(
    op: &'static str,
    place: &str,
    path: &RelativePath,
    full: &Path,
    metadata: Metadata,
) -> Result<Found, TransferError> {
    let refuse = |why: &str| TransferError::BadEntry {
        place: place.to_owned(),
        name: path.as_str().escape_debug().to_string(),
        why: why.to_owned(),
    };
    let kind = metadata.file_type();
    let entry = if kind.is_dir() {
        Entry::Directory
    } else if kind.is_file() {
        let (size, mode) = (metadata.len(), metadata.mode() & 0o7777);
        Entry::File(File { size, mtime_ns: mtime_of(&metadata), mode, digest: None })
    } else if kind.is_symlink() {
        let target = fs::read_link(full).map_err(|error| TransferError::io(op, place, path.as_str(), error))?;
        let target = target.to_str().ok_or_else(|| refuse("the target of the link is not UTF-8"))?;
        check_link(path, target).map_err(|why| refuse(&why))?;
        Entry::Symlink { target: target.to_owned() }
    } else if kind.is_fifo() {
        return Err(refuse("it is a fifo"));
    } else if kind.is_socket() {
        return Err(refuse("it is a socket"));
    } else {
        return Err(refuse("it is a device"));
    };
    Ok(Found { path: path.clone(), entry, tag: tag_of(&metadata) })
}

/// A path with everything that is not printable escaped.
fn escaped(directory: &RelativePath, name: &[u8]) -> String {
    let name = name.escape_ascii();
    if directory.is_root() { name.to_string() } else { format!("{}/{name}", directory.as_str().escape_debug()) }
}
