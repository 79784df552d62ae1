//! The room in which files are staged until they are at their home: so many bytes, and no more.
//!
//! Staged files have no names, so that nothing is left of them when the process ends. Notes of uploads that were begun
//! have names: who comes after a process that was killed gives those uploads up.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc;
use serde::{Deserialize, Serialize};

use crate::write::home::errno;

/// An upload that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// Which home of the mount, from 0.
    pub home: usize,
    /// The file.
    pub path: String,
    /// The store's name for the upload.
    pub upload: String,
}

struct Inner {
    directory: PathBuf,
    most: u64,
    used: AtomicU64,
    next: AtomicU64,
}

/// The room. Clones are one.
#[derive(Clone)]
pub struct Staging(Arc<Inner>);

/// A note of an upload; gone when dropped.
pub struct Note(PathBuf);

impl Drop for Note {
    fn drop(&mut self) {
        // One that stays has a finished upload given up once more, which is no error.
        let _ = fs::remove_file(&self.0);
    }
}

impl Staging {
    /// Opens a directory that is this mount's alone, and empties it. Says which uploads were not finished.
    ///
    /// # Errors
    /// When the directory cannot be made or emptied.
    pub fn open(directory: &Path, most: u64) -> io::Result<(Self, Vec<Unfinished>)> {
        make(directory)?;
        let mut unfinished = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            // A note that was not written whole names no upload that was begun.
            if let Ok(upload) = serde_json::from_slice(&fs::read(&path)?) {
                unfinished.push(upload);
            }
            fs::remove_file(&path)?;
        }
        let (used, next) = (AtomicU64::new(0), AtomicU64::new(1));
        Ok((Self(Arc::new(Inner { directory: directory.to_owned(), most, used, next })), unfinished))
    }

    /// The directory goes with the mount, and who has files open then still stages.
    fn make_directory(&self) -> io::Result<()> {
        make(&self.0.directory)
    }

    /// A new file without a name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn file(&self) -> io::Result<File> {
        self.make_directory()?;
        let path = self.0.directory.join(self.number().to_string());
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(&path)?;
        Ok(file)
    }

    /// A number that was never given.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes room.
    ///
    /// # Errors
    /// `ENOSPC` if there is none.
    pub fn take(&self, bytes: u64) -> io::Result<()> {
        let fits = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.0.most);
        let taken = self.0.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits);
        taken.map(drop).map_err(|_| errno(libc::ENOSPC))
    }

    /// Gives room back.
    pub fn give(&self, bytes: u64) {
        self.0.used.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Bytes that are taken.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Acquire)
    }

    /// Notes an upload that was begun.
    ///
    /// # Errors
    /// When it cannot be noted.
    pub fn note(&self, upload: &Unfinished) -> io::Result<Note> {
        self.make_directory()?;
        let path = self.0.directory.join(format!("{}.upload", self.number()));
        fs::write(&path, serde_json::to_vec(upload)?)?;
        Ok(Note(path))
    }
}

fn make(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_so_much_room_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let (staging, _) = Staging::open(folder.path(), 100).unwrap();
        staging.take(60).unwrap();
        assert_eq!(staging.take(41).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(staging.take(u64::MAX).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        staging.give(20);
        staging.take(41).unwrap();
        assert_eq!(staging.used(), 81);
    }

    #[test]
    fn who_comes_after_a_crash_finds_uploads_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (staging, _) = Staging::open(folder.path(), 100).unwrap();
        let upload = |upload: &str| Unfinished { home: 1, path: "a/b".into(), upload: upload.into() };
        drop(staging.note(&upload("finished")).unwrap());
        std::mem::forget(staging.note(&upload("killed")).unwrap());
        let _file = staging.file().unwrap();
        fs::write(folder.path().join("9.upload"), "{\"home\": 1, \"pa").unwrap();

        let (_, unfinished) = Staging::open(folder.path(), 100).unwrap();

        assert_eq!(unfinished, [upload("killed")]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
