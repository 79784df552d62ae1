//! Naming what mounts hold, without reading contents.

use std::path::PathBuf;

use fluvial_model::manifest::{Root, Totals};
use tokio_util::sync::CancellationToken;

use crate::listing::{Listing, OpenMount};
use crate::location::SourceMount;
use crate::place::Detail;
use crate::place::local::blocking;
use crate::{BlockStore, TransferError};

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The manifest, whose blocks are in the store.
    pub root: Root,
    /// Its sums.
    pub totals: Totals,
    /// Whether the files have digests: never, contents are not read.
    pub digested: bool,
    /// The tags of the files, a [`Listing`], kept in the block store's directory.
    pub tags: PathBuf,
}

/// Opens every mount.
pub(crate) fn open(mounts: &[SourceMount]) -> Result<Vec<OpenMount>, TransferError> {
    mounts.iter().map(|mount| Ok(OpenMount { path: mount.path.clone(), place: mount.location.open()? })).collect()
}

/// Lists the mounts and stores their manifest, without digests.
///
/// # Errors
/// What the places report; entries that a dataset cannot hold; [`TransferError::Cancelled`].
pub async fn scan(
    mounts: &[SourceMount],
    blocks: &BlockStore,
    cancel: CancellationToken,
) -> Result<Scan, TransferError> {
    let mounts = open(mounts)?;
    let work = async {
        let directory = blocks.directory().join("tags");
        std::fs::create_dir_all(&directory).map_err(|source| TransferError::Blocks {
            op: "make directory",
            file: directory.display().to_string(),
            source,
        })?;
        let unfinished = directory.join(format!("unfinished-{:016x}", rand::random::<u64>()));
        let listing = Listing::of(&unfinished, &mounts, Detail::Full).await;
        let listing = listing.inspect_err(|_| drop(std::fs::remove_file(&unfinished)))?;
        let blocks = blocks.clone();
        blocking(move || {
            let built = listing.build_undigested(&blocks)?;
            let tags = directory.join(built.root.to_string());
            std::fs::rename(&unfinished, &tags).map_err(|source| TransferError::Blocks {
                op: "rename listing",
                file: tags.display().to_string(),
                source,
            })?;
            Ok(Scan { root: built.root, totals: built.totals, digested: false, tags })
        })
        .await
    };
    tokio::select! {
        scan = Box::pin(work) => scan,
        () = cancel.cancelled() => Err(TransferError::Cancelled { op: "scan" }),
    }
}

/// How much a copy of the mounts would be: the sums of a scan.
///
/// # Errors
/// As [`scan`].
pub async fn estimate(
    mounts: &[SourceMount],
    blocks: &BlockStore,
    cancel: CancellationToken,
) -> Result<Totals, TransferError> {
    scan(mounts, blocks, cancel).await.map(|scan| scan.totals)
}
