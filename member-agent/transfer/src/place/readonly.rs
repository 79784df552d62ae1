//! Places that are only read: what a source must do, and a [`Place`] that refuses the rest by name.

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{File, RelativePath};
use tokio::sync::mpsc;

use super::{Detail, Found, PartLimits, Place, Tag, TargetState};
use crate::TransferError;
use crate::location::Access;

/// The reading half of a [`Place`]; each call means what it means there.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// [`Place::name`].
    fn name(&self) -> &str;
    /// [`Place::probe`] for reading.
    async fn probe(&self) -> Result<(), TransferError>;
    /// [`Place::list`].
    async fn list(&self, detail: Detail, found: mpsc::Sender<Found>) -> Result<(), TransferError>;
    /// [`Place::stat`].
    async fn stat(&self, path: &RelativePath) -> Result<Found, TransferError>;
    /// [`Place::fetch`].
    async fn fetch(&self, path: &RelativePath, size: u64) -> Result<(Found, Bytes), TransferError> {
        let found = self.stat(path).await?;
        let data = self.read(path, Some(&found.tag), 0, size).await?;
        Ok((found, data))
    }
    /// [`Place::read`].
    async fn read(
        &self,
        path: &RelativePath,
        tag: Option<&Tag>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, TransferError>;
}

/// A source as a place.
#[derive(Debug)]
pub struct ReadOnly<S>(pub S);

impl<S: Source> ReadOnly<S> {
    fn refuse<T>(&self, op: &'static str, path: &RelativePath) -> Result<T, TransferError> {
        Err(TransferError::ReadOnly { op, place: self.0.name().to_owned(), path: path.to_string() })
    }
}

#[async_trait]
impl<S: Source> Place for ReadOnly<S> {
    fn name(&self) -> &str {
        self.0.name()
    }

    async fn probe(&self, access: Access) -> Result<(), TransferError> {
        match access {
            Access::Read => self.0.probe().await,
            Access::Write => self.refuse("probe", &RelativePath::root()),
        }
    }

    async fn list(&self, detail: Detail, found: mpsc::Sender<Found>) -> Result<(), TransferError> {
        self.0.list(detail, found).await
    }

    async fn stat(&self, path: &RelativePath) -> Result<Found, TransferError> {
        self.0.stat(path).await
    }

    async fn fetch(&self, path: &RelativePath, size: u64) -> Result<(Found, Bytes), TransferError> {
        self.0.fetch(path, size).await
    }

    async fn read(
        &self,
        path: &RelativePath,
        tag: Option<&Tag>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, TransferError> {
        self.0.read(path, tag, offset, length).await
    }

    fn verify_detail(&self) -> Detail {
        Detail::Full
    }

    fn part_limits(&self) -> PartLimits {
        PartLimits { smallest: 1, most: u64::MAX, in_order: false }
    }

    async fn put(&self, path: &RelativePath, _: &File, _: Bytes) -> Result<Tag, TransferError> {
        self.refuse("write", path)
    }

    async fn begin(&self, path: &RelativePath, _: &File) -> Result<String, TransferError> {
        self.refuse("write", path)
    }

    async fn can_continue(&self, _: &RelativePath, _: &str) -> Result<bool, TransferError> {
        Ok(false)
    }

    async fn put_part(&self, path: &RelativePath, _: &str, _: u32, _: u64, _: Bytes) -> Result<String, TransferError> {
        self.refuse("write", path)
    }

    async fn complete(&self, path: &RelativePath, _: &str, _: &File, _: &[String]) -> Result<Tag, TransferError> {
        self.refuse("write", path)
    }

    async fn abort(&self, _: &RelativePath, _: &str) -> Result<(), TransferError> {
        Ok(())
    }

    async fn make_directory(&self, path: &RelativePath, _: bool) -> Result<(), TransferError> {
        self.refuse("make directory", path)
    }

    async fn make_symlink(&self, path: &RelativePath, _: &str) -> Result<Tag, TransferError> {
        self.refuse("make link", path)
    }

    async fn sync(&self, _: &[RelativePath]) -> Result<(), TransferError> {
        self.refuse("sync", &RelativePath::root())
    }

    async fn remove(&self, path: &RelativePath) -> Result<(), TransferError> {
        self.refuse("remove", path)
    }

    async fn remove_all(&self) -> Result<(), TransferError> {
        self.refuse("remove", &RelativePath::root())
    }

    async fn target_state(&self) -> Result<TargetState, TransferError> {
        self.refuse("write", &RelativePath::root())
    }

    async fn commit(&self) -> Result<(), TransferError> {
        self.refuse("write", &RelativePath::root())
    }
}
