//! Restores a snapshot, or a part of it, to a place.
//!
//! The snapshot is the source of an ordinary copy: what is done survives any end, every file is read back from the target
//! and compared, and the target appears at once. Where the snapshot has digests, the copy must have them too.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fluvial_model::manifest::{Digest, RelativePath, Root, TreeBuilder};
use fluvial_transfer::copy::copy_between;
use fluvial_transfer::listing::OpenMount;
use fluvial_transfer::{BlockStore, CopyContext, CopyJob, CopyReport, Location, SourceMount, TransferError};
use rustic_core::TreeId;
use rustic_core::repofile::{NodeType, SnapshotFile};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::BackupError;
use crate::entry::{Dataset, Entry};
use crate::lock::Lock;
use crate::place::SnapshotPlace;
use crate::repository::{Repository, Snapshot, Target, entry, tell};
use crate::save::SavedDigests;
use crate::tree::{Selection, Walk, entry_of};

/// What to restore, and where.
#[derive(Debug, Clone)]
pub struct Restore {
    /// Names the work in the journal: the same id continues it.
    pub id: String,
    /// The repository.
    pub repository: Target,
    /// The beginning of a snapshot's id, or `latest`.
    pub snapshot: String,
    /// The dataset whose newest snapshot is meant by `latest`.
    pub dataset: Dataset,
    /// Files and directories to restore; everything if there are none.
    pub paths: Vec<RelativePath>,
    /// The directory or prefix that is made.
    pub target: Location,
    /// Parts under way at once.
    pub streams: usize,
    /// As [`CopyJob::memory`].
    pub memory: Option<u64>,
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    /// From which snapshot.
    pub snapshot: Snapshot,
    /// Its entry, if it was written by a federation.
    pub entry: Option<Entry>,
    /// What was made.
    pub copy: CopyReport,
}

/// Restores, or goes on restoring.
///
/// # Errors
/// See [`BackupError`]; whatever it is, the same call goes on, and [`fluvial_transfer::discard`] cleans up.
pub async fn restore(job: Restore, ctx: CopyContext) -> Result<Restored, BackupError> {
    let handle = Handle::current();
    let cancel = ctx.cancel.child_token();
    let guard = cancel.clone().drop_guard();
    let (asked, blocks) = (job.clone(), ctx.blocks.clone());
    let opened = tokio::task::spawn_blocking(move || open(&asked, &blocks, &handle, cancel)).await;
    let opened = opened.map_err(|_| TransferError::Cancelled { op: "restore" })??;
    let source = SourceMount { path: RelativePath::root(), location: job.repository.location.clone() };
    let mut copy = CopyJob::new(job.id, vec![source], job.target.clone());
    copy.source_root = opened.root;
    copy.streams = job.streams;
    copy.memory = job.memory;
    let target = job.target.open_target()?;
    let mount = OpenMount { path: RelativePath::root(), place: Arc::new(opened.place) };
    let copied = Box::pin(copy_between(copy, ctx, vec![mount], target)).await;
    drop(guard);
    // Dropping a lock waits for its thread and removes its file.
    let lock = opened.lock;
    let _ = tokio::task::spawn_blocking(move || drop(lock)).await;
    Ok(Restored { snapshot: opened.snapshot, entry: opened.entry, copy: copied? })
}

struct Opened {
    place: SnapshotPlace,
    snapshot: Snapshot,
    entry: Option<Entry>,
    root: Option<Root>,
    lock: Lock,
}

fn open(job: &Restore, blocks: &BlockStore, handle: &Handle, cancel: CancellationToken) -> Result<Opened, BackupError> {
    let repository = Repository::open(&job.repository, handle, cancel)?;
    let lock = repository.lock(false)?;
    let snapshot = repository.find(&job.snapshot, &job.dataset)?;
    let indexed = repository.indexed()?;
    let at = repository.files.place();
    let owner = Dataset::of_tags(&snapshot.tags);
    let entry = owner.as_ref().map(|owner| entry(&indexed, &snapshot, owner, at)).transpose()?.flatten();
    let top = top(&repository, &indexed, &snapshot, owner.as_ref())?;
    let mut told = tell(&snapshot);
    told.root = entry.as_ref().map(|entry| entry.root.clone());
    let selection = Selection(job.paths.clone());
    let place = format!("snapshot {} in {at}", snapshot.id);
    let digests = match &owner {
        Some(owner) if entry.is_some() => Some(SavedDigests::open(&indexed, &snapshot, owner, at)?),
        _ => None,
    };
    let root = repository.stop.settle(manifest(&indexed, top, digests, &selection, blocks, &place))?;
    if let (Some(entry), Some(root), true) = (&entry, root, job.paths.is_empty())
        && entry.root != root.to_string()
    {
        let what = format!("snapshot {} has manifest root {root}, its entry says {}", snapshot.id, entry.root);
        return Err(BackupError::Damaged { place: at.to_owned(), what });
    }
    let place = SnapshotPlace::new(place, indexed, top, selection, repository.stop.clone());
    Ok(Opened { place, snapshot: told, entry, root, lock })
}

/// The tree that holds the files: the dataset's, or the one path that a snapshot of others is of.
fn top(
    repository: &Repository,
    indexed: &crate::tree::Indexed,
    snapshot: &SnapshotFile,
    owner: Option<&Dataset>,
) -> Result<TreeId, BackupError> {
    let paths: Vec<PathBuf> = snapshot.paths.iter().map(PathBuf::from).collect();
    let path = match (owner, paths.as_slice()) {
        (Some(owner), _) => owner.files(),
        (None, [one]) => one.clone(),
        (None, _) => return Ok(snapshot.tree),
    };
    let node = indexed.node_from_path(snapshot.tree, &path);
    let damaged = |what: String| BackupError::Damaged { place: repository.files.place().to_owned(), what };
    let node = node.map_err(|error| damaged(format!("snapshot {}: {}", snapshot.id, error.display_log())))?;
    match node.subtree {
        Some(tree) => Ok(tree),
        // A snapshot of a single file is shown from the directory that holds it.
        None => match indexed.node_from_path(snapshot.tree, path.parent().unwrap_or(Path::new("/"))) {
            Ok(parent) => parent.subtree.ok_or_else(|| damaged(format!("snapshot {} has no directory", snapshot.id))),
            Err(_) => Ok(snapshot.tree),
        },
    }
}

/// The manifest of what is chosen, if the snapshot has digests. Also finds out whether every path that was asked for is
/// there.
fn manifest(
    indexed: &Arc<crate::tree::Indexed>,
    top: TreeId,
    mut digests: Option<SavedDigests>,
    selection: &Selection,
    blocks: &BlockStore,
    place: &str,
) -> Result<Option<Root>, BackupError> {
    let digested = digests.is_some();
    let mut missing = selection.0.clone();
    let mut builder = TreeBuilder::new(|_, bytes: Vec<u8>| blocks.put(&bytes).map(drop));
    // Digests stand in the order of all files, so that all have to be passed.
    let all = if digested { Selection::default() } else { selection.clone() };
    for step in Walk::new(indexed.clone(), top, all, place)? {
        let (path, node) = step?;
        let digest: Option<Digest> = match (&mut digests, &node.node_type) {
            (Some(digests), NodeType::File) => digests.next()?,
            _ => None,
        };
        if !selection.has(&path) {
            continue;
        }
        missing.retain(|wanted| *wanted != path);
        let entry = entry_of(&node, &path, place, digest)?;
        let pushed = builder.push(&path, entry);
        pushed.map_err(|error| TransferError::Build { why: error.to_string() })?;
    }
    if let Some(path) = missing.first() {
        return Err(BackupError::NoPath { snapshot: place.to_owned(), path: path.to_string() });
    }
    let built = builder.finish().map_err(|error| TransferError::Build { why: error.to_string() })?;
    Ok(digested.then_some(built.root))
}
