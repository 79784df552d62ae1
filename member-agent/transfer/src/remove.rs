//! Reading a range of a file of a dataset, and removing a home's tree.

use bytes::Bytes;
use fluvial_model::manifest::RelativePath;

use crate::TransferError;
use crate::location::{Location, SourceMount};

/// Up to `length` bytes of the file `path` of a dataset whose data are at `sources` (a home is one mount at the root).
///
/// # Errors
/// When no mount has the path, or what its place reports.
pub async fn read_range(
    sources: &[SourceMount],
    path: &RelativePath,
    offset: u64,
    length: u64,
) -> Result<Bytes, TransferError> {
    let mount = sources
        .iter()
        .filter_map(|mount| path.strip_prefix(&mount.path).map(|below| (mount, below)))
        .max_by_key(|(mount, _)| mount.path.depth());
    let Some((mount, below)) = mount.filter(|(_, below)| !below.is_root()) else {
        return Err(TransferError::NotFound { op: "read", place: "the dataset".to_owned(), path: path.to_string() });
    };
    mount.location.open()?.read(&below, None, offset, length).await
}

/// Removes the tree at a location, and nothing else. It is no error when there is none.
///
/// # Errors
/// What the place reports; a whole bucket or file system is refused.
pub async fn remove_tree(location: &Location) -> Result<(), TransferError> {
    // Opening as a target refuses a location that has no name of its own.
    location.open_target()?;
    location.open()?.remove_all().await
}
