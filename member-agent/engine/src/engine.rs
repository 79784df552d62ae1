//! The seam: something that holds versions of datasets.
//!
//! Life of a dataset in an engine: [`Engine::prepare`] says which version to hold (again at every change),
//! [`Engine::load`] fetches what is missing, [`Engine::open`] hands out one file, [`Engine::evict`] gives it all up. All
//! may be repeated, and a future that is dropped leaves a state from which the same call goes on.

use std::any::Any;
use std::fs::File;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::desired::DatasetKey;
use fluvial_model::kinds::NodeUsage;
use fluvial_model::manifest::{ReadError, RelativePath, Root};
use fluvial_model::report::CacheReport;
use fluvial_transfer::{SourceMount, TransferError};
use tokio::sync::watch;

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
    /// Nothing is fetched by [`Engine::load`]: files come as they are opened and read, and go when room is needed.
    pub on_demand: bool,
}

/// Which files of a prepared version are to be brought near their readers now.
#[derive(Debug, Clone)]
pub struct WarmRequest {
    /// The dataset, by uid.
    pub uid: String,
    /// Its version.
    pub root: Root,
    /// Files and directories; everything if empty.
    pub paths: Vec<RelativePath>,
    /// Into the page cache, too.
    pub page_cache: bool,
}

/// What came of a load so far, or at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Warmed {
    /// Files that are there.
    pub files_done: u64,
    /// Files that were asked for.
    pub files_total: u64,
    /// Bytes of the files that are there, and of parts of others.
    pub bytes_done: u64,
    /// Bytes that were asked for.
    pub bytes_total: u64,
    /// Bytes that are in the page cache, too.
    pub page_cache_bytes: u64,
    /// Bytes that should be there and had no room.
    pub page_cache_left_out: u64,
    /// Bytes that there was room for in the page cache.
    pub page_cache_room: u64,
    /// Files that had no room in the tiers, in words for people.
    pub without_room: Option<String>,
}

/// A file of a version, open for reading. While it lives, the file is not given up for others.
pub struct OpenFile {
    /// Bytes of the whole file.
    pub size: u64,
    /// Where its contents are.
    pub contents: Contents,
    /// What keeps it from being given up; dropped with it.
    pub lease: Option<Arc<dyn Any + Send + Sync>>,
}

/// Where the contents of an open file are.
#[derive(Clone)]
pub enum Contents {
    /// All of them, verified, in this file.
    Complete(Arc<File>),
    /// In this file once they were asked for; what was not is a hole.
    Filling(Arc<File>, Arc<dyn Filling>),
    /// Nowhere: there is no room. Every read goes to the source.
    Through(Arc<dyn Through>),
}

/// A file that fills.
#[async_trait]
pub trait Filling: Send + Sync {
    /// Returns when `length` bytes from `offset` are in the file. Many may ask for the same bytes: they are fetched once.
    /// A future that is dropped leaves the rest to the next.
    ///
    /// # Errors
    /// When they cannot be fetched, or the finished file turns out not to be the version's. After
    /// [`EngineError::TierFailed`] this file never fills: whoever reads opens it again, and is given another.
    async fn fill(&self, offset: u64, length: u64) -> Result<(), EngineError>;

    /// Whether the whole file is there and verified.
    fn is_complete(&self) -> bool;

    /// For the engine that made it.
    fn as_any(&self) -> &dyn Any;
}

/// A file that is read from its source.
#[async_trait]
pub trait Through: Send + Sync {
    /// `length` bytes from `offset`, fewer at the end of the file.
    ///
    /// # Errors
    /// When they cannot be fetched.
    async fn read(&self, offset: u64, length: u64) -> Result<Bytes, EngineError>;
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
    /// The dataset holds another version now.
    #[error("open {path:?}: version {root} was replaced")]
    Superseded {
        /// The version asked for.
        root: Root,
        /// The path.
        path: String,
    },
    /// There is no such file in the version.
    #[error("open {path:?}: there is no such file in version {root}")]
    NotFound {
        /// The version.
        root: Root,
        /// The path.
        path: String,
    },
    /// The dataset was not prepared.
    #[error("use {dataset}: it was not prepared")]
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
    /// The file system of a tier refuses what is written to it: it is full, read-only or broken. The tier is left alone for
    /// a while; readers are served from another one or from the source.
    #[error("{op}: the cache in {tier} cannot be written ({why})")]
    TierFailed {
        /// What was being done.
        op: &'static str,
        /// The tier's directory.
        tier: String,
        /// What its file system says.
        why: String,
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
            Self::Stopped { .. } | Self::TierFailed { .. } => true,
            Self::Manifest { .. }
            | Self::NoSource { .. }
            | Self::DigestMismatch { .. }
            | Self::SourceDiffers { .. }
            | Self::NotPrepared { .. }
            | Self::Superseded { .. }
            | Self::NotFound { .. }
            | Self::Io { .. }
            | Self::Index { .. } => false,
        }
    }

    /// Whether a disk has no room left.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            // The second one: no room for what SQLite shares between those who have the index open.
            Self::Index { source, .. } => source.sqlite_error().is_some_and(|error| {
                error.code == rusqlite::ErrorCode::DiskFull
                    || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
            }),
            Self::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            _ => false,
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

    /// Fetches files of a prepared version now, whether they are wanted beforehand or not, and tells how far it is. They are held
    /// like files that were opened; as long as this runs, they are not given up. Called again, it goes on.
    ///
    /// # Errors
    /// [`EngineError::Superseded`] when another version is prepared, [`EngineError::NotPrepared`], and as
    /// [`Engine::load`].
    async fn warm(&self, request: &WarmRequest, progress: &watch::Sender<Warmed>) -> Result<Warmed, EngineError>;

    /// Opens one file of the version `root` of a prepared dataset (by uid); its contents are there, or come as they are
    /// asked for.
    ///
    /// # Errors
    /// [`EngineError::Superseded`] when another version was prepared, [`EngineError::NotFound`], and as
    /// [`Engine::load`].
    async fn open(&self, uid: &str, root: Root, path: &RelativePath) -> Result<OpenFile, EngineError>;

    /// Opens a file of the version that is prepared if all of it is there; nothing is fetched.
    ///
    /// # Errors
    /// As [`Engine::open`].
    async fn open_complete(&self, uid: &str, root: Root, path: &RelativePath) -> Result<Option<OpenFile>, EngineError>;

    /// Fetches a file that will be opened soon, if there is room for it. Nobody waits for it.
    ///
    /// # Errors
    /// As [`Engine::open`].
    async fn ahead(&self, uid: &str, root: Root, path: &RelativePath) -> Result<(), EngineError>;

    /// What is held of a dataset (by uid); `None` if it was not prepared. The phase is `Ready`, `Partial`, `Filling` or
    /// `OnDemand`, and no problem is told: both of that is for who calls [`Engine::load`].
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
