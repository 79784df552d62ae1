//! What a snapshot says of the dataset that it holds, and where it lies in the snapshot.
//!
//! ```text
//! /NAMESPACE/NAME/…                       the files
//! /NAMESPACE/NAME.fluvial/dataset.json    the entry
//! /NAMESPACE/NAME.fluvial/digests         BLAKE3 of every file, 32 bytes each, in path order
//! ```
//! A dataset's name holds no dot, so that the two never collide, and the entry sorts behind the files: it is written when
//! they have been read. Deliberately absent: values of secrets.

use std::path::PathBuf;

use fluvial_model::manifest::Totals;
use rustic_core::repofile::StringList;
use serde::{Deserialize, Serialize};

/// The version of [`Entry`] that is written.
pub const FORMAT: u32 = 1;
/// The tag of every snapshot that was written here.
pub(crate) const TAG: &str = "fluvial";
/// Begins the tag that names the dataset.
const DATASET_TAG: &str = "dataset:";

/// A dataset by its names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dataset {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Dataset {
    /// Where its files are in a snapshot.
    pub(crate) fn files(&self) -> PathBuf {
        PathBuf::from(format!("/{}/{}", self.namespace, self.name))
    }

    /// Where its entry is.
    pub(crate) fn catalog(&self) -> PathBuf {
        PathBuf::from(format!("/{}/{}.fluvial", self.namespace, self.name))
    }

    /// The tags of a snapshot of it that an operation writes.
    pub(crate) fn tags(&self, operation: &str) -> String {
        format!("{TAG},{DATASET_TAG}{}/{},{}", self.namespace, self.name, operation_tag(operation))
    }

    /// The dataset that a snapshot's tags name.
    pub(crate) fn of_tags(tags: &StringList) -> Option<Self> {
        tags.iter().find(|tag| *tag == TAG)?;
        let named = tags.iter().find_map(|tag| tag.strip_prefix(DATASET_TAG));
        let (namespace, name) = named?.split_once('/')?;
        Some(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// The tag that names the operation that wrote a snapshot.
pub(crate) fn operation_tag(operation: &str) -> String {
    format!("operation:{operation}")
}

/// The entry: what a federation needs to make the dataset again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// [`FORMAT`].
    pub format: u32,
    /// The dataset.
    pub dataset: Dataset,
    /// The manifest root of the files with their digests.
    pub root: String,
    /// Sums over the files.
    pub totals: Totals,
    /// The objects of the catalog, as the hub gave them.
    pub catalog: serde_json::Value,
}
