//! A snapshot as a place that can be listed and read: what a restore copies from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{File, RelativePath};
use fluvial_transfer::place::{Detail, Found, PartLimits, Place, Tag, TargetState};
use fluvial_transfer::{Access, TransferError};
use rustic_core::TreeId;
use rustic_core::repofile::Node;
use tokio::sync::mpsc;

use crate::BackupError;
use crate::stop::Stop;
use crate::tree::{Indexed, Selection, Walk, entry_of};

/// Directories that are kept decoded: those that the streams of a copy are in, and the ones above.
const DIRECTORIES: usize = 64;

/// A snapshot's files, below one of its trees.
#[derive(Clone)]
pub(crate) struct SnapshotPlace {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    repository: Arc<Indexed>,
    tree: TreeId,
    selection: Selection,
    stop: Stop,
    directories: Mutex<HashMap<TreeId, Arc<HashMap<String, Node>>>>,
}

impl SnapshotPlace {
    pub(crate) fn new(name: String, repository: Arc<Indexed>, tree: TreeId, selection: Selection, stop: Stop) -> Self {
        let directories = Mutex::default();
        Self { inner: Arc::new(Inner { name, repository, tree, selection, stop, directories }) }
    }

    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Inner) -> Result<T, TransferError> + Send + 'static,
    ) -> Result<T, TransferError> {
        let inner = self.inner.clone();
        match tokio::task::spawn_blocking(move || call(&inner)).await {
            Ok(result) => result,
            Err(_) => Err(TransferError::Cancelled { op: "read a snapshot" }),
        }
    }
}

impl Inner {
    /// What went wrong, told by the place below if it was that.
    fn failed(&self, op: &'static str, path: &str, error: BackupError) -> TransferError {
        match self.stop.take().unwrap_or(error) {
            BackupError::Transfer(error) => error,
            error => TransferError::Io {
                op,
                place: self.name.clone(),
                path: path.to_owned(),
                source: std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string()),
            },
        }
    }

    fn missing(&self, op: &'static str, path: &RelativePath) -> TransferError {
        TransferError::NotFound { op, place: self.name.clone(), path: path.to_string() }
    }

    fn directory(&self, tree: TreeId) -> Result<Arc<HashMap<String, Node>>, BackupError> {
        let known = self.directories.lock().unwrap_or_else(PoisonError::into_inner).get(&tree).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let read =
            self.repository.get_tree(&tree).map_err(|error| BackupError::library("read tree", &self.name, &error))?;
        let named = read.nodes.into_iter().map(|node| (node.name().to_string_lossy().into_owned(), node));
        let directory = Arc::new(named.collect::<HashMap<_, _>>());
        let mut all = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= DIRECTORIES {
            all.clear();
        }
        all.insert(tree, directory.clone());
        Ok(directory)
    }

    fn node(&self, op: &'static str, path: &RelativePath) -> Result<Node, TransferError> {
        let mut tree = Some(self.tree);
        let mut found = None;
        for name in path.components() {
            let at = tree.ok_or_else(|| self.missing(op, path))?;
            let directory = self.directory(at).map_err(|error| self.failed(op, path.as_str(), error))?;
            let node = directory.get(name).cloned().ok_or_else(|| self.missing(op, path))?;
            tree = node.subtree;
            found = Some(node);
        }
        found.ok_or_else(|| self.missing(op, path))
    }

    fn found(&self, path: &RelativePath, node: &Node) -> Result<Found, TransferError> {
        let entry = entry_of(node, path, &self.name, None)?;
        Ok(Found { path: path.clone(), entry, tag: tag_of(node) })
    }

    fn read(&self, path: &RelativePath, tag: Option<&Tag>, offset: u64, length: u64) -> Result<Bytes, TransferError> {
        let node = self.node("read", path)?;
        if tag.is_some_and(|tag| *tag != tag_of(&node)) {
            return Err(TransferError::Changed { place: self.name.clone(), path: path.to_string() });
        }
        let told = |error| self.failed("read", path.as_str(), BackupError::library("read", &self.name, &error));
        let file = self.repository.open_file(&node).map_err(|error| told(*error))?;
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        // Ranges beyond the end are cut here: the library makes room for what it is asked for.
        let length = length.min(node.meta.size.saturating_sub(offset));
        let bytes =
            self.repository.read_file_at(&file, number(offset), number(length)).map_err(|error| told(*error))?;
        if bytes.len() as u64 != length {
            let what = format!("{path} ends early");
            return Err(self.failed("read", path.as_str(), BackupError::Damaged { place: self.name.clone(), what }));
        }
        Ok(bytes)
    }
}

/// The contents of a node, wherever it is.
fn tag_of(node: &Node) -> Tag {
    let mut hasher = blake3::Hasher::new();
    for blob in node.content.iter().flatten() {
        hasher.update(blob.to_hex().as_str().as_bytes());
    }
    let time = node.meta.mtime.map_or(0, rustic_core::jiff::Timestamp::as_nanosecond);
    let mode = node.meta.mode.unwrap_or(0);
    Tag(format!("{}-{time}-{mode:o}-{}-{}", node.meta.size, node.node_type, hasher.finalize().to_hex()))
}

/// What nobody calls on a source.
fn read_only<T>(place: &str) -> Result<T, TransferError> {
    Err(TransferError::ReadOnly { op: "write", place: place.to_owned(), path: String::new() })
}

#[async_trait]
impl Place for SnapshotPlace {
    fn name(&self) -> &str {
        &self.inner.name
    }

    async fn probe(&self, access: Access) -> Result<(), TransferError> {
        match access {
            Access::Read => Ok(()),
            Access::Write => read_only(&self.inner.name),
        }
    }

    async fn list(&self, _: Detail, found: mpsc::Sender<Found>) -> Result<(), TransferError> {
        self.run(move |inner| {
            let walk = Walk::new(inner.repository.clone(), inner.tree, inner.selection.clone(), &inner.name);
            for step in walk.map_err(|error| inner.failed("list", "", error))? {
                let (path, node) = step.map_err(|error| inner.failed("list", "", error))?;
                if found.blocking_send(inner.found(&path, &node)?).is_err() {
                    break;
                }
            }
            Ok(())
        })
        .await
    }

    async fn stat(&self, path: &RelativePath) -> Result<Found, TransferError> {
        let path = path.clone();
        self.run(move |inner| inner.found(&path, &inner.node("look at", &path)?)).await
    }

    async fn read(
        &self,
        path: &RelativePath,
        tag: Option<&Tag>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, TransferError> {
        let (path, tag) = (path.clone(), tag.cloned());
        self.run(move |inner| inner.read(&path, tag.as_ref(), offset, length)).await
    }

    fn verify_detail(&self) -> Detail {
        Detail::Full
    }

    fn part_limits(&self) -> PartLimits {
        PartLimits { smallest: 1, most: u64::MAX, in_order: false }
    }

    async fn put(&self, _: &RelativePath, _: &File, _: Bytes) -> Result<Tag, TransferError> {
        read_only(&self.inner.name)
    }

    async fn begin(&self, _: &RelativePath, _: &File) -> Result<String, TransferError> {
        read_only(&self.inner.name)
    }

    async fn can_continue(&self, _: &RelativePath, _: &str) -> Result<bool, TransferError> {
        read_only(&self.inner.name)
    }

    async fn put_part(&self, _: &RelativePath, _: &str, _: u32, _: u64, _: Bytes) -> Result<String, TransferError> {
        read_only(&self.inner.name)
    }

    async fn complete(&self, _: &RelativePath, _: &str, _: &File, _: &[String]) -> Result<Tag, TransferError> {
        read_only(&self.inner.name)
    }

    async fn abort(&self, _: &RelativePath, _: &str) -> Result<(), TransferError> {
        read_only(&self.inner.name)
    }

    async fn make_directory(&self, _: &RelativePath, _: bool) -> Result<(), TransferError> {
        read_only(&self.inner.name)
    }

    async fn make_symlink(&self, _: &RelativePath, _: &str) -> Result<Tag, TransferError> {
        read_only(&self.inner.name)
    }

    async fn sync(&self, _: &[RelativePath]) -> Result<(), TransferError> {
        read_only(&self.inner.name)
    }

    async fn remove(&self, _: &RelativePath) -> Result<(), TransferError> {
        read_only(&self.inner.name)
    }

    async fn remove_all(&self) -> Result<(), TransferError> {
        read_only(&self.inner.name)
    }

    async fn target_state(&self) -> Result<TargetState, TransferError> {
        Ok(TargetState::Visible)
    }

    async fn commit(&self) -> Result<(), TransferError> {
        read_only(&self.inner.name)
    }
}
