//! The seam: something that holds versions of datasets.
//!
//! Life of a dataset in an engine: [`Engine::prepare`] says which version to hold (again at every change),
//! [`Engine::load`] fetches what is missing, [`Engine::evict`] gives it up. All three may be repeated, and a future that
//! is dropped leaves a state from which the same call goes on.

use std::io;

use async_trait::async_trait;
use fluvial_model::desired::DatasetKey;
use fluvial_model::kinds::NodeUsage;
use fluvial_model::manifest::{ReadError, RelativePath, Root};
use fluvial_model::report::CacheReport;
use fluvial_transfer::{SourceMount, TransferError};

/// Which version of which dataset to hold, and where its bytes are read.
#[derive(Debug, Clone)]
pub struct CacheRequest {
    /// The dataset; its uid is its name in the engine.
    pub dataset: DatasetKey,
    /// The version. Its blocks must be at hand.
    pub root: Root,
    /// Where the bytes are.
    pub sources: Vec<SourceMount>,
    /// Files and directories to hold; everything if empty.
    pub paths: Vec<RelativePath>,
    /// Never to be given up for others.
    pub pinned: bool,
}

/// How a load ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// Everything that is wanted is held.
    Complete,
    /// The rest does not fit; why, in words for people.
    Partial(String),
}

/// Why an engine could not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The version's tree cannot be read; a block may have to be fetched first.
    #[error("prepare {dataset}: read manifest of version {root}")]
    Manifest {
        /// The dataset.
        dataset: String,
        /// The version.
        root: Root,
        /// Why.
        #[source]
        source: Box<ReadError>,
    },
    /// A source cannot be read.
    #[error("load {dataset}: read source")]
    Source {
        /// The dataset.
        dataset: String,
        /// Why.
        #[source]
        source: Box<TransferError>,
    },
    /// No source is mounted above a path of the version.
    #[error("load {dataset}: {path:?} is below none of the sources' paths")]
    NoSource {
        /// The dataset.
        dataset: String,
        /// The path.
        path: String,
    },
    /// A file's contents are not those of the version.
    #[error("load {dataset}: the contents of {path:?} do not have the digest that the version gives")]
    DigestMismatch {
        /// The dataset.
        dataset: String,
        /// The path.
        path: String,
    },
    /// A file is another one than the version's.
    #[error("load {dataset}: {path:?} is not the file of the version any more: {why}")]
    SourceDiffers {
        /// The dataset.
        dataset: String,
        /// The path.
        path: String,
        /// In which way.
        why: &'static str,
    },
    /// The dataset was not prepared.
    #[error("load {dataset}: it was not prepared")]
    NotPrepared {
        /// The dataset.
        dataset: String,
    },
    /// A file of the cache cannot be written, read or removed.
    #[error("{op} {file}")]
    Io {
        /// What was being done.
        op: &'static str,
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The index cannot be used.
    #[error("{op}: cache index")]
    Index {
        /// What was being done.
        op: &'static str,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The engine or the program is ending.
    #[error("{op}: the engine is stopped")]
    Stopped {
        /// What was being done.
        op: &'static str,
    },
}

impl EngineError {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Source { source, .. } => source.is_transient(),
            Self::Stopped { .. } => true,
            Self::Manifest { .. }
            | Self::NoSource { .. }
            | Self::DigestMismatch { .. }
            | Self::SourceDiffers { .. }
            | Self::NotPrepared { .. }
            | Self::Io { .. }
            | Self::Index { .. } => false,
        }
    }
}

/// Something that holds versions of datasets. The suite in `contract` says what each call promises.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// The name by which reports call it.
    fn name(&self) -> &'static str;

    /// Makes `request` what is to be held of its dataset: keeps what both versions share, drops what the new one does not
    /// need. Durable when it returns. Reads no source.
    ///
    /// # Errors
    /// When the version's blocks are not at hand, or nothing can be written.
    async fn prepare(&self, request: &CacheRequest) -> Result<(), EngineError>;

    /// Fetches what is missing of a prepared dataset. A permanent fault of one file does not keep the others from being
    /// fetched; it is returned at the end. A transient one ends the call.
    ///
    /// # Errors
    /// The first fault; [`EngineError::is_transient`] says whether to call again.
    async fn load(&self, request: &CacheRequest) -> Result<Loaded, EngineError>;

    /// What is held of a dataset (by uid); `None` if it was not prepared. The phase is `Ready`, `Partial` or `Filling`,
    /// and no problem is told: both of that is for who calls [`Engine::load`].
    ///
    /// # Errors
    /// When the engine cannot look.
    async fn status(&self, uid: &str) -> Result<Option<CacheReport>, EngineError>;

    /// Room and what is used of it, of all datasets together.
    ///
    /// # Errors
    /// When the engine cannot look.
    async fn usage(&self) -> Result<Vec<NodeUsage>, EngineError>;

    /// Gives up a dataset (by uid) and everything that no other needs. It is no error when it is not there.
    ///
    /// # Errors
    /// When something cannot be removed.
    async fn evict(&self, uid: &str) -> Result<(), EngineError>;

    /// Ends every call that is under way and refuses new loads; what is held stays.
    async fn stop(&self);
}
