//! A directory of this machine. Blocking calls run on blocking threads.
//!
//! Nothing outside the directory is ever reached: the walk follows no link, and a link is kept only when its target
//! stays inside. A target is written as `<dir>.partial` and renamed at the end, so that it is never half visible.
//! Zero bytes are not written, and holes are not read from the disk: a sparse file stays sparse.

mod walk;
mod write;

use std::collections::HashMap;
use std::fs::{File as FsFile, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{File, RelativePath};
use nix::unistd::{Whence, lseek64};
use tokio::sync::mpsc;

use super::{Detail, Found, PartLimits, Place, Tag, TargetState};
use crate::TransferError;
use crate::location::Access;

/// A directory, as a source or as the target of a copy.
pub struct LocalPlace {
    inner: Inner,
}

#[derive(Clone)]
struct Inner {
    name: String,
    /// Where entries are.
    root: PathBuf,
    /// Where they will be after the commit, of a target.
    visible: Option<PathBuf>,
    /// Held by every blocking call on a target, which a dropped future cannot stop.
    calls: Arc<()>,
}

/// How long the calls of an abandoned copy may take until the next one gives up waiting: one part on a slow disk.
const STRAY_CALLS_LIMIT: Duration = Duration::from_secs(60);

/// The targets of this process, to wait for calls that an abandoned copy left behind.
static TARGETS: LazyLock<Mutex<HashMap<PathBuf, Arc<()>>>> = LazyLock::new(Mutex::default);

impl LocalPlace {
    /// A directory that is read, removed, or written in place.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { inner: Inner { name: root.display().to_string(), root, visible: None, calls: Arc::default() } }
    }

    /// A directory that is made by a copy.
    ///
    /// # Errors
    /// When the directory has no name of its own, as `/`.
    pub fn target(visible: PathBuf) -> Result<Self, TransferError> {
        let name = visible.display().to_string();
        let Some(last) = visible.file_name() else {
            let why = "a copy needs a directory of its own".to_owned();
            return Err(TransferError::BadLocation { uri: format!("file://{name}"), why });
        };
        let mut partial = last.to_owned();
        partial.push(".partial");
        let root = visible.with_file_name(partial);
        let calls = TARGETS.lock().unwrap_or_else(PoisonError::into_inner).entry(root.clone()).or_default().clone();
        Ok(Self { inner: Inner { name, root, visible: Some(visible), calls } })
    }

    /// Runs a blocking call.
    async fn run<T: Send + 'static>(
        &self,
        op: &'static str,
        path: &RelativePath,
        call: impl FnOnce(&Inner, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, TransferError> {
        let inner = self.inner.clone();
        let path = path.clone();
        blocking(move || {
            let full = inner.full(&path);
            call(&inner, &full).map_err(|error| inner.failed(op, path.as_str(), error))
        })
        .await
    }
}

/// Runs a call on a blocking thread; when the runtime shuts down it counts as cancelled.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, TransferError> + Send + 'static,
) -> Result<T, TransferError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(TransferError::Cancelled { op: "run a blocking call" }),
    }
}

impl Inner {
    fn full(&self, path: &RelativePath) -> PathBuf {
        if path.is_root() { self.root.clone() } else { self.root.join(path.as_str()) }
    }

    fn failed(&self, op: &'static str, path: &str, error: io::Error) -> TransferError {
        TransferError::io(op, &self.name, path, error)
    }
}

/// The version of a file: any write changes its ctime, any replacement its inode.
fn tag_of(metadata: &Metadata) -> Tag {
    let ctime = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
    Tag(format!("{}-{}-{ctime}-{}", metadata.len(), mtime_of(metadata), metadata.ino()))
}

/// Nanoseconds since the epoch; times beyond the years 1677 to 2262 are moved to the nearest that fits.
fn mtime_of(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

/// Reads a range, leaving holes zero without touching the disk.
fn read_range(file: &FsFile, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let size = file.metadata()?.len();
    let end = size.min(offset.saturating_add(length));
    let Some(length) = end.checked_sub(offset).filter(|length| *length > 0) else { return Ok(Vec::new()) };
    let mut buffer = vec![0; usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?];
    let mut at = offset;
    while at < end {
        // ENXIO: only a hole is left. A file system without holes answers with the position itself.
        let data = match lseek64(file, at.cast_signed(), Whence::SeekData) {
            Ok(data) => data.cast_unsigned().min(end),
            Err(nix::errno::Errno::ENXIO) => break,
            Err(nix::errno::Errno::EINVAL) => at,
            Err(error) => return Err(error.into()),
        };
        if data >= end {
            break;
        }
        let hole = match lseek64(file, data.cast_signed(), Whence::SeekHole) {
            Ok(hole) => hole.cast_unsigned().min(end),
            Err(_) => end,
        };
        let range = (data - offset) as usize..(hole - offset) as usize;
        file.read_exact_at(&mut buffer[range], data)?;
        at = hole.max(data + 1);
    }
    Ok(buffer)
}

#[async_trait]
impl Place for LocalPlace {
    fn name(&self) -> &str {
        &self.inner.name
    }

    async fn probe(&self, access: Access) -> Result<(), TransferError> {
        self.run("probe", &RelativePath::root(), move |_, root| match access {
            Access::Read => std::fs::read_dir(root).map(drop),
            Access::Write => write::probe(root),
        })
        .await
    }

    async fn list(&self, _: Detail, found: mpsc::Sender<Found>) -> Result<(), TransferError> {
        let inner = self.inner.clone();
        blocking(move || walk::walk(&inner.root, &inner.name, &found)).await
    }

    async fn stat(&self, path: &RelativePath) -> Result<Found, TransferError> {
        let (inner, path) = (self.inner.clone(), path.clone());
        blocking(move || {
            let full = inner.full(&path);
            let io = |error| inner.failed("look at", path.as_str(), error);
            let metadata = write::look_inside(&inner.root, &full).map_err(io)?;
            walk::look("look at", &inner.name, &path, &full, metadata)
        })
        .await
    }

    async fn read(
        &self,
        path: &RelativePath,
        tag: Option<&Tag>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, TransferError> {
        let tag = tag.cloned();
        let read = self
            .run("read", path, move |inner, full| {
                let file = write::open_inside(&inner.root, full)?;
                let data = read_range(&file, offset, length)?;
                // Looked at after reading: what was read is the version of the tag only when it is still there.
                let still = tag.is_none_or(|tag| file.metadata().is_ok_and(|metadata| tag_of(&metadata) == tag));
                Ok(still.then(|| Bytes::from(data)))
            })
            .await?;
        read.ok_or_else(|| TransferError::Changed { place: self.inner.name.clone(), path: path.to_string() })
    }

    fn verify_detail(&self) -> Detail {
        Detail::Full
    }

    fn part_limits(&self) -> PartLimits {
        PartLimits { smallest: 1024, most: u64::MAX, in_order: false }
    }

    async fn put(&self, path: &RelativePath, file: &File, data: Bytes) -> Result<Tag, TransferError> {
        let file = *file;
        self.run("write", path, move |inner, full| {
            let out = write::create(&inner.root, full, file.size)?;
            write::write_sparse(&out, 0, &data)?;
            write::finish(&out, &file)
        })
        .await
    }

    async fn begin(&self, path: &RelativePath, file: &File) -> Result<String, TransferError> {
        let size = file.size;
        // The inode names the upload: a file that was put there by somebody else is not continued.
        self.run("write", path, move |inner, full| {
            Ok(write::create(&inner.root, full, size)?.metadata()?.ino().to_string())
        })
        .await
    }

    async fn can_continue(&self, path: &RelativePath, upload: &str) -> Result<bool, TransferError> {
        let upload = upload.to_owned();
        self.run("write", path, move |_, full| {
            Ok(std::fs::symlink_metadata(full).is_ok_and(|file| file.is_file() && file.ino().to_string() == upload))
        })
        .await
    }

    async fn put_part(
        &self,
        path: &RelativePath,
        _upload: &str,
        _number: u32,
        offset: u64,
        data: Bytes,
    ) -> Result<String, TransferError> {
        self.run("write", path, move |inner, full| {
            let out = write::open_for_writing(&inner.root, full)?;
            write::write_sparse(&out, offset, &data)?;
            // The journal is told of a part only when it is on the disk.
            out.sync_data()?;
            Ok(String::new())
        })
        .await
    }

    async fn complete(
        &self,
        path: &RelativePath,
        _upload: &str,
        file: &File,
        _receipts: &[String],
    ) -> Result<Tag, TransferError> {
        let file = *file;
        self.run("write", path, move |inner, full| {
            let out = write::open_for_writing(&inner.root, full)?;
            write::finish(&out, &file)
        })
        .await
    }

    async fn abort(&self, path: &RelativePath, _upload: &str) -> Result<(), TransferError> {
        self.remove(path).await
    }

    async fn make_directory(&self, path: &RelativePath, _empty: bool) -> Result<(), TransferError> {
        self.run("make directory", path, |inner, full| write::make_directories(&inner.root, full)).await
    }

    async fn make_symlink(&self, path: &RelativePath, target: &str) -> Result<Tag, TransferError> {
        let target = target.to_owned();
        self.run("make link", path, move |inner, full| {
            write::make_parents(&inner.root, full)?;
            write::clear(full)?;
            std::os::unix::fs::symlink(&target, full)?;
            Ok(tag_of(&std::fs::symlink_metadata(full)?))
        })
        .await
    }

    async fn sync(&self, paths: &[RelativePath]) -> Result<(), TransferError> {
        let paths = paths.to_vec();
        self.run("sync", &RelativePath::root(), move |inner, root| {
            write::sync(root, &paths.iter().map(|path| inner.full(path)).collect::<Vec<_>>())
        })
        .await
    }

    async fn remove(&self, path: &RelativePath) -> Result<(), TransferError> {
        self.run("remove", path, |_, full| write::clear(full)).await
    }

    async fn remove_all(&self) -> Result<(), TransferError> {
        self.run("remove", &RelativePath::root(), |_, root| match std::fs::remove_dir_all(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        })
        .await
    }

    async fn target_state(&self) -> Result<TargetState, TransferError> {
        // Two are held without any call: the table's and this place's. Every further one is a call, or another place of
        // the same target, which the owner of the job does not keep.
        let deadline = tokio::time::Instant::now() + STRAY_CALLS_LIMIT;
        while Arc::strong_count(&self.inner.calls) > 2 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.run("look at", &RelativePath::root(), |inner, root| {
            let exists = |path: &Path| match std::fs::symlink_metadata(path) {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error),
            };
            if let Some(visible) = &inner.visible
                && exists(visible)?
                && !write::is_empty_directory(visible)?
            {
                return Ok(TargetState::Visible);
            }
            Ok(if exists(root)? { TargetState::Partial } else { TargetState::Absent })
        })
        .await
    }

    async fn commit(&self) -> Result<(), TransferError> {
        self.run("commit", &RelativePath::root(), |inner, root| match &inner.visible {
            Some(visible) => write::commit(root, visible),
            None => write::sync(root, &[]),
        })
        .await
    }
}
