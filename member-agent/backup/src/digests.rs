//! The BLAKE3 digests of a tree's files in path order, 32 bytes each, in a file of this machine while they are being
//! gathered and in the snapshot afterwards: its size is known before the first file was read.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fluvial_model::manifest::Digest;

use crate::BackupError;

/// Bytes of one digest.
pub(crate) const LENGTH: u64 = 32;

/// Digests on disk; all zeros where none is known yet.
pub(crate) struct Digests {
    file: File,
    path: PathBuf,
    size: u64,
}

impl Digests {
    /// A new file for the digests of `files` files, replacing what is there.
    pub(crate) fn create(path: &Path, files: u64) -> Result<Self, BackupError> {
        let failed = |error| BackupError::file("make the file of digests", path, error);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).map_err(failed)?;
        file.set_len(files * LENGTH).map_err(failed)?;
        Ok(Self { file, path: path.to_owned(), size: files * LENGTH })
    }

    /// Bytes of all digests.
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Notes the digest of the file with this number.
    pub(crate) fn set(&self, number: u64, digest: &Digest) -> Result<(), BackupError> {
        let written = self.file.write_all_at(digest.as_bytes(), number * LENGTH);
        written.map_err(|error| BackupError::file("note a digest", &self.path, error))
    }

    /// The digest of the file with this number, if it is known.
    pub(crate) fn get(&self, number: u64) -> Result<Option<Digest>, BackupError> {
        let mut bytes = [0; LENGTH as usize];
        self.read_at(&mut bytes, number * LENGTH)
            .map_err(|error| BackupError::file("read a digest", &self.path, error))?;
        Ok((bytes != [0; LENGTH as usize]).then(|| Digest::from_bytes(bytes)))
    }

    /// Raw bytes.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl Drop for Digests {
    fn drop(&mut self) {
        // Made anew by the next run.
        let _ = std::fs::remove_file(&self.path);
    }
}
