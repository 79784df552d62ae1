//! Manifest blocks on this hub's disk, and, on a miss, on the other hubs'.
//!
//! Agents push the blocks of a version before they report its root; `views` lists and compares trees from them.
//!
//! Invariants: a block's name is the BLAKE3 of its bytes, checked when it is written and whenever it is read; a block
//! that no longer matches its name is removed and fetched anew; a reader sees a whole block or none.
//!
//! Deliberately absent: collection of blocks that no root reaches any more.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use fluvial_model::manifest::BlockHash;
use thiserror::Error;

use crate::peers::Peers;

/// The largest block: four times what `model::manifest` makes, so that its limit may grow without a new hub.
pub const MAX_BLOCK_BYTES: usize = 1024 * 1024;

/// Why a block was not kept or found.
#[derive(Debug, Error)]
pub enum BlockError {
    #[error("block {hash} is {size} bytes long; at most {MAX_BLOCK_BYTES} are allowed")]
    TooLarge { hash: BlockHash, size: usize },
    #[error("block {hash} has other content than its name says")]
    Mismatch { hash: BlockHash },
    #[error("a block's name must be 32 bytes, not {found}")]
    Name { found: usize },
    #[error("opening the block directory {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("writing block {hash}")]
    Write {
        hash: BlockHash,
        #[source]
        source: io::Error,
    },
    #[error("reading block {hash}")]
    Read {
        hash: BlockHash,
        #[source]
        source: io::Error,
    },
    #[error("the work on block {hash} was stopped")]
    Stopped { hash: BlockHash },
}

/// The block named by these bytes.
///
/// # Errors
/// Unless there are 32.
pub fn block_hash(bytes: &[u8]) -> Result<BlockHash, BlockError> {
    bytes.try_into().map(BlockHash::from_bytes).map_err(|_| BlockError::Name { found: bytes.len() })
}

/// The blocks of one hub; clones share them.
#[derive(Debug, Clone)]
pub struct Blocks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    /// Set once the hub knows the others.
    peers: OnceLock<Arc<Peers>>,
}

impl Blocks {
    /// The blocks below `directory`, which is made if need be.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(directory: &Path) -> Result<Self, BlockError> {
        fs::create_dir_all(directory).map_err(|source| BlockError::Open { path: directory.to_owned(), source })?;
        Ok(Self { inner: Arc::new(Inner { directory: directory.to_owned(), peers: OnceLock::new() }) })
    }

    /// From now on, blocks that are missing here are looked for at the other hubs.
    pub fn ask_peers(&self, peers: Arc<Peers>) {
        // Set once at the start; a second call would change nothing.
        let _ = self.inner.peers.set(peers);
    }

    /// Keeps a block; returns once it is on disk, and whether it was new.
    ///
    /// # Errors
    /// If its content is not what its name says, it is too large, or the disk fails.
    pub async fn put(&self, hash: BlockHash, data: Bytes) -> Result<bool, BlockError> {
        self.blocking(hash, move |blocks| blocks.put_now(hash, &data, true)).await
    }

    /// Keeps a block of a hub that is being made; it is on disk when the file system is synced. Blocks.
    ///
    /// # Errors
    /// As for [`Self::put`].
    pub(crate) fn put_unsynced(&self, hash: BlockHash, data: &[u8]) -> Result<(), BlockError> {
        self.inner.put_now(hash, data, false).map(|_| ())
    }

    /// A block that is kept here.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn get_local(&self, hash: BlockHash) -> Result<Option<Bytes>, BlockError> {
        self.blocking(hash, move |blocks| blocks.get_now(hash)).await
    }

    /// A block from here or, failing that, from another hub; then it is kept here too.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn get(&self, hash: BlockHash) -> Result<Option<Bytes>, BlockError> {
        if let Some(data) = self.get_local(hash).await? {
            return Ok(Some(data));
        }
        let Some(peers) = self.inner.peers.get() else { return Ok(None) };
        let Some(data) = peers.block(&hash).await else { return Ok(None) };
        match self.put(hash, data.clone()).await {
            Ok(_) => Ok(Some(data)),
            Err(error @ (BlockError::Mismatch { .. } | BlockError::TooLarge { .. })) => {
                tracing::warn!(%error, "another hub sent a wrong block");
                Ok(None)
            }
            // The block is good; that it could not be kept costs only the next reader.
            Err(error) => {
                tracing::warn!(%error, "a fetched block is not kept");
                Ok(Some(data))
            }
        }
    }

    /// For code that cannot wait, such as the model's readers, in a task of the blocking pool.
    pub(crate) fn getter(&self) -> impl Fn(&BlockHash) -> Option<Bytes> + use<> {
        let (blocks, runtime) = (self.clone(), tokio::runtime::Handle::current());
        move |hash| {
            let found = match blocks.inner.get_now(*hash) {
                // Only a miss waits for the network.
                Ok(None) => runtime.block_on(blocks.get(*hash)),
                here => here,
            };
            found.unwrap_or_else(|error| {
                tracing::warn!(%error, "a block cannot be read");
                None
            })
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        hash: BlockHash,
        work: impl FnOnce(&Inner) -> Result<T, BlockError> + Send + 'static,
    ) -> Result<T, BlockError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner)).await.unwrap_or(Err(BlockError::Stopped { hash }))
    }
}

impl Inner {
    /// 256 directories keep each small.
    fn path(&self, hash: &BlockHash) -> PathBuf {
        let name = hash.to_string();
        let (first, rest) = name.split_at(2);
        self.directory.join(first).join(rest)
    }

    fn put_now(&self, hash: BlockHash, data: &[u8], synced: bool) -> Result<bool, BlockError> {
        if data.len() > MAX_BLOCK_BYTES {
            return Err(BlockError::TooLarge { hash, size: data.len() });
        }
        if BlockHash::of(data) != hash {
            return Err(BlockError::Mismatch { hash });
        }
        let path = self.path(&hash);
        if path.exists() {
            return Ok(false);
        }
        self.write(&path, data, synced).map_err(|source| BlockError::Write { hash, source })?;
        Ok(true)
    }

    fn write(&self, path: &Path, data: &[u8], synced: bool) -> io::Result<()> {
        let directory = path.parent().unwrap_or(&self.directory);
        fs::create_dir_all(directory)?;
        // Named by chance, so that two writers of one block do not meet; left over only by a power cut.
        let temporary = directory.join(format!(".{:016x}", rand::random::<u64>()));
        let written = (|| {
            let mut file = fs::File::create_new(&temporary)?;
            file.write_all(data)?;
            if synced {
                file.sync_data()?;
            }
            fs::rename(&temporary, path)?;
            if synced { fs::File::open(directory)?.sync_all() } else { Ok(()) }
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn get_now(&self, hash: BlockHash) -> Result<Option<Bytes>, BlockError> {
        let path = self.path(&hash);
        let data = match fs::read(&path) {
            Ok(data) => data,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(BlockError::Read { hash, source }),
        };
        if BlockHash::of(&data) == hash {
            return Ok(Some(data.into()));
        }
        tracing::warn!(%hash, "a block on disk is damaged and is removed");
        fs::remove_file(&path).map_err(|source| BlockError::Read { hash, source })?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_block_is_kept_under_its_own_hash_alone() {
        let directory = tempfile::tempdir().unwrap();
        let blocks = Blocks::open(directory.path()).unwrap();
        let hash = BlockHash::of(b"block");
        let wrong = blocks.put(hash, Bytes::from_static(b"other")).await;
        assert!(matches!(wrong, Err(BlockError::Mismatch { .. })));
        assert!(blocks.put(hash, Bytes::from_static(b"block")).await.unwrap());
        assert!(!blocks.put(hash, Bytes::from_static(b"block")).await.unwrap());
        assert_eq!(blocks.get(hash).await.unwrap(), Some(Bytes::from_static(b"block")));
        assert_eq!(blocks.get(BlockHash::of(b"none")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_block_that_is_too_large_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let blocks = Blocks::open(directory.path()).unwrap();
        let data = Bytes::from(vec![7; MAX_BLOCK_BYTES + 1]);
        let refused = blocks.put(BlockHash::of(&data), data).await;
        assert!(matches!(refused, Err(BlockError::TooLarge { .. })));
    }

    #[tokio::test]
    async fn a_damaged_block_is_missing_and_can_be_put_again() {
        let directory = tempfile::tempdir().unwrap();
        let blocks = Blocks::open(directory.path()).unwrap();
        let hash = BlockHash::of(b"block");
        blocks.put(hash, Bytes::from_static(b"block")).await.unwrap();
        fs::write(blocks.inner.path(&hash), b"bl0ck").unwrap();
        assert_eq!(blocks.get(hash).await.unwrap(), None);
        assert!(blocks.put(hash, Bytes::from_static(b"block")).await.unwrap());
    }
}
