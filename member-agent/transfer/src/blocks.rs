//! A directory of manifest blocks by hash: two hex digits of fan-out, atomic writes, verified on every read.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use fluvial_model::manifest::{BlockHash, block::MAX_BLOCK_BYTES};

use crate::TransferError;

/// Blocks on disk. Calls are short (one file of at most 256 KiB) and block the thread.
#[derive(Debug, Clone)]
pub struct BlockStore {
    directory: PathBuf,
}

/// Makes the names of unfinished files of one process unique.
static UNFINISHED: AtomicU64 = AtomicU64::new(0);

impl BlockStore {
    /// Opens the store, making its directory.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, TransferError> {
        let directory = directory.into();
        fs::create_dir_all(&directory).map_err(|source| failed("open", &directory, source))?;
        Ok(Self { directory })
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn file(&self, hash: &BlockHash) -> PathBuf {
        let text = hash.to_string();
        self.directory.join(&text[..2]).join(&text[2..])
    }

    /// Whether the block is there (its bytes are checked when they are read).
    #[must_use]
    pub fn has(&self, hash: &BlockHash) -> bool {
        self.file(hash).is_file()
    }

    /// The block; `None` when it is not there.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn get(&self, hash: &BlockHash) -> Result<Option<Bytes>, TransferError> {
        let file = self.file(hash);
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("read block", &file, source)),
        };
        if BlockHash::of(&bytes) != *hash {
            let source = io::Error::new(io::ErrorKind::InvalidData, "its bytes do not have the hash of its name");
            return Err(failed("read block", &file, source));
        }
        Ok(Some(bytes.into()))
    }

    /// Stores a block under its hash and returns it.
    ///
    /// # Errors
    /// When it is too large or cannot be written.
    pub fn put(&self, bytes: &[u8]) -> Result<BlockHash, TransferError> {
        let hash = BlockHash::of(bytes);
        let file = self.file(&hash);
        if bytes.len() > MAX_BLOCK_BYTES {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the block is larger than 256 KiB");
            return Err(failed("write block", &file, source));
        }
        if !file.is_file() {
            self.write(&file, bytes).map_err(|source| failed("write block", &file, source))?;
        }
        Ok(hash)
    }

    fn write(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        let directory = file.parent().unwrap_or(&self.directory);
        fs::create_dir_all(directory)?;
        let number = UNFINISHED.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.directory.join(format!("unfinished-{}-{number}", std::process::id()));
        let mut out = fs::File::create(&unfinished)?;
        out.write_all(bytes)?;
        out.sync_data()?;
        fs::rename(&unfinished, file)?;
        fs::File::open(directory)?.sync_all()
    }

    /// The closure that the readers of manifests ask for. A block that is damaged is one that is missing.
    pub fn getter(&self) -> impl Fn(&BlockHash) -> Option<Bytes> + Clone + use<> {
        let store = self.clone();
        move |hash| {
            store.get(hash).unwrap_or_else(|error| {
                tracing::warn!(block = %hash, error = &error as &dyn std::error::Error, "block unreadable");
                None
            })
        }
    }
}

fn failed(op: &'static str, file: &Path, source: io::Error) -> TransferError {
    TransferError::Blocks { op, file: file.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_comes_back_and_a_damaged_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlockStore::open(directory.path()).unwrap();
        let hash = store.put(b"block").unwrap();
        assert!(store.has(&hash));
        assert_eq!(store.get(&hash).unwrap().unwrap(), Bytes::from_static(b"block"));
        assert_eq!(store.get(&BlockHash::of(b"other")).unwrap(), None);
        fs::write(store.file(&hash), b"blick").unwrap();
        assert!(store.get(&hash).is_err());
        assert_eq!(store.getter()(&hash), None);
    }
}
