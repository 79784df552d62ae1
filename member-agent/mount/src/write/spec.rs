//! Which homes to open, as the agent tells it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fluvial_model::causes::chain;
use fluvial_model::manifest::RelativePath;
use fluvial_transfer::{Location, TransferError};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::write::directory::Directory;
use crate::write::home::Home;
use crate::write::homes::{Homes, Placed};
use crate::write::s3::S3Home;
use crate::write::staging::Staging;

/// A home, with what opens it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeSpec {
    /// Where it appears in the dataset's tree; empty for all of it.
    pub path: String,
    /// Where it is.
    pub uri: String,
    /// Options that may be shown.
    pub options: BTreeMap<String, String>,
    /// Options that may not.
    pub secrets: BTreeMap<String, String>,
    /// Nothing may be changed in it.
    pub read_only: bool,
}

impl fmt::Debug for HomeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, uri, read_only, .. } = self;
        f.debug_struct("HomeSpec")
            .field("path", path)
            .field("uri", uri)
            .field("read_only", read_only)
            .finish_non_exhaustive()
    }
}

/// Where files are staged, and how much at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagingSpec {
    /// A directory of this mount alone.
    pub directory: PathBuf,
    /// Most bytes in it.
    pub most_bytes: u64,
}

/// Why a home cannot be written through a mount.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory cannot be opened.
    #[error("open home {uri}")]
    Directory {
        /// The home.
        uri: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A store cannot be opened.
    #[error("open home {uri}")]
    Store {
        /// The home.
        uri: String,
        /// Why.
        #[source]
        source: TransferError,
    },
    /// There is no writing to homes of this kind.
    #[error("open home {uri}: only file:// and s3:// can be written through a mount; mount it with --read-only")]
    Scheme {
        /// The home.
        uri: String,
    },
    /// The path is none.
    #[error("open home {uri}: its path in the dataset: {why}")]
    Path {
        /// The home.
        uri: String,
        /// What is wrong with it.
        why: String,
    },
    /// Files cannot be staged.
    #[error("open staging directory {directory}")]
    Staging {
        /// The directory.
        directory: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Opens homes, and removes what a process before this one left staged.
///
/// # Errors
/// The first home that cannot be opened.
pub async fn open(specs: &[HomeSpec], staging: &StagingSpec) -> Result<Homes, OpenError> {
    let failed = |source| OpenError::Staging { directory: staging.directory.display().to_string(), source };
    let (staging, unfinished) = Staging::open(&staging.directory, staging.most_bytes).map_err(failed)?;
    let mut placed = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let uri = spec.uri.clone();
        let text = spec.path.trim_matches('/');
        let path = if text.is_empty() { Ok(RelativePath::root()) } else { RelativePath::parse(text) };
        let path = path.map_err(|error| OpenError::Path { uri: uri.clone(), why: error.to_string() })?;
        let home: Arc<dyn Home> = match uri.split_once("://") {
            Some(("file", directory)) => {
                let directory = Directory::open(Path::new(directory));
                Arc::new(directory.map_err(|source| OpenError::Directory { uri, source })?)
            }
            Some(("s3", _)) => {
                let location = Location {
                    uri: uri.clone(),
                    options: spec.options.clone(),
                    secrets: spec.secrets.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect(),
                };
                let home = S3Home::open(&location, staging.clone(), index, Handle::current());
                let home = home.map_err(|source| OpenError::Store { uri, source })?;
                for upload in unfinished.iter().filter(|upload| upload.home == index) {
                    // It is nobody's any more; the store's own rules for unfinished uploads are the last resort.
                    if let Err(error) = home.abort(upload).await {
                        tracing::warn!(error = %chain(&error), path = upload.path, "an unfinished upload is left");
                    }
                }
                Arc::new(home)
            }
            _ => return Err(OpenError::Scheme { uri }),
        };
        placed.push(Placed { path, home, read_only: spec.read_only });
    }
    Ok(Homes::new(placed))
}
