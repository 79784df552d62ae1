//! The seam: a tree that can be listed, read and written, wherever it is.
//!
//! One contract suite (`tests/contract.rs`) runs over every implementation. Paths are relative to the place; entries
//! never carry digests; a [`Tag`] names one version of one file, so that two versions are never mixed.

mod dal;
mod http;
pub mod limited;
pub mod local;
pub(crate) mod objects;
pub mod readonly;
pub mod s3;
pub(crate) mod store;
pub(crate) mod web;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::block::MAX_TARGET_BYTES;
use fluvial_model::manifest::{Entry, File, RelativePath};
use tokio::sync::mpsc;

use crate::TransferError;
use crate::location::Access;

/// Names one version of one file at one place: ETag and size, or size, times and inode.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag(pub String);

/// What is known of a file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The version that is there now.
    pub tag: Tag,
    /// The place compared what arrived with a checksum of what was sent, said so, and is known to refuse what differs:
    /// reading back would tell nothing new.
    pub checked: bool,
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where.
    pub path: RelativePath,
    /// What, without digest.
    pub entry: Entry,
    /// Which version.
    pub tag: Tag,
}

/// How much a listing has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Everything.
    Full,
    /// Paths, sizes and tags; kind, mode and mtime may be those of a plain file.
    Tags,
}

/// Listed entries that wait to be stored: some pages of an S3 listing (1,000 entries of about 200 bytes each).
pub const LISTING_QUEUE: usize = 4096;

/// Something that holds a tree.
#[async_trait]
pub trait Place: Send + Sync + 'static {
    /// The place in messages, without secrets.
    fn name(&self) -> &str;

    /// Checks that the place can be used.
    async fn probe(&self, access: Access) -> Result<(), TransferError>;

    /// Sends every entry, in any order, parents of entries not necessarily among them. A place that does not exist is
    /// [`TransferError::NotFound`]. Ends without an error when the receiver is gone.
    async fn list(&self, detail: Detail, found: mpsc::Sender<Found>) -> Result<(), TransferError>;

    /// One entry, in full. What is not there is [`TransferError::NotFound`]; a directory that no entry of its own stands
    /// for may be said not to be there.
    async fn stat(&self, path: &RelativePath) -> Result<Found, TransferError>;

    /// A whole file of about `size` bytes, with what [`Place::stat`] says of exactly the version that was read.
    async fn fetch(&self, path: &RelativePath, size: u64) -> Result<(Found, Bytes), TransferError> {
        let found = self.stat(path).await?;
        let data = self.read(path, Some(&found.tag), 0, size).await?;
        Ok((found, data))
    }

    /// What a listing of a source has to know: [`Detail::Tags`] where [`Place::read_listed`] tells the rest with the data,
    /// in the same request.
    fn source_detail(&self) -> Detail {
        Detail::Full
    }

    /// The whole of a file that was listed with `tag` and `size` bytes, and what it is. Another version is
    /// [`TransferError::Changed`].
    async fn read_listed(&self, path: &RelativePath, tag: &Tag, size: u64) -> Result<(Entry, Bytes), TransferError> {
        let found = self.stat(path).await?;
        if found.tag != *tag {
            return Err(TransferError::Changed { place: self.name().to_owned(), path: path.to_string() });
        }
        Ok((found.entry, self.read(path, Some(tag), 0, size).await?))
    }

    /// `length` bytes of a file from `offset`, fewer at its end. With a tag, exactly that version is read, otherwise
    /// [`TransferError::Changed`].
    async fn read(
        &self,
        path: &RelativePath,
        tag: Option<&Tag>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, TransferError>;

    /// What a listing for verification needs: where a tag says everything of what was written, only tags.
    fn verify_detail(&self) -> Detail;

    /// The smallest part, the largest number of parts, and their order, of a file written in parts.
    fn part_limits(&self) -> PartLimits;

    /// Writes a small file at once. It is there completely or not at all (for a target: once it is committed).
    async fn put(&self, path: &RelativePath, file: &File, data: Bytes) -> Result<Tag, TransferError>;

    /// As [`Place::put`], and whether the place itself saw to it that the bytes are those that were sent.
    async fn put_checked(&self, path: &RelativePath, file: &File, data: Bytes) -> Result<Written, TransferError> {
        Ok(Written { tag: self.put(path, file, data).await?, checked: false })
    }

    /// This place, if it is one of S3: two of one store can be copied between by the store itself.
    fn as_s3(&self) -> Option<&s3::S3Place> {
        None
    }

    /// Has the store copy a file that it holds in another of its places too, where it is listed as `below` with `tag` and
    /// is what `file` says, digest included. `None`, and nothing written, where that cannot be.
    async fn copy_inside(
        &self,
        _path: &RelativePath,
        _file: &File,
        _from: &dyn Place,
        _below: &RelativePath,
        _tag: &Tag,
    ) -> Result<Option<Written>, TransferError> {
        Ok(None)
    }

    /// Starts a file in parts and names the upload.
    async fn begin(&self, path: &RelativePath, file: &File) -> Result<String, TransferError>;

    /// Whether an upload that was started can still be continued.
    async fn can_continue(&self, path: &RelativePath, upload: &str) -> Result<bool, TransferError>;

    /// Writes one part and returns its receipt. Parts may come in any order and again, but for [`PartLimits::in_order`].
    async fn put_part(
        &self,
        path: &RelativePath,
        upload: &str,
        number: u32,
        offset: u64,
        data: Bytes,
    ) -> Result<String, TransferError>;

    /// Completes a file from the receipts of all its parts in order.
    async fn complete(
        &self,
        path: &RelativePath,
        upload: &str,
        file: &File,
        receipts: &[String],
    ) -> Result<Tag, TransferError>;

    /// As [`Place::complete`], and whether the place itself saw to it that the bytes of all parts are those that were sent.
    async fn complete_checked(
        &self,
        path: &RelativePath,
        upload: &str,
        file: &File,
        receipts: &[String],
    ) -> Result<Written, TransferError> {
        Ok(Written { tag: self.complete(path, upload, file, receipts).await?, checked: false })
    }

    /// Gives up a file in parts; it is no error when there is none.
    async fn abort(&self, path: &RelativePath, upload: &str) -> Result<(), TransferError>;

    /// Makes a directory; `empty` tells whether anything will be in it.
    async fn make_directory(&self, path: &RelativePath, empty: bool) -> Result<(), TransferError>;

    /// Makes a symbolic link.
    async fn make_symlink(&self, path: &RelativePath, target: &str) -> Result<Tag, TransferError>;

    /// [`Place::make_symlink`], and whether it is known that the link is the one that was asked for. If not, a read of the
    /// path gives its target.
    async fn make_symlink_checked(&self, path: &RelativePath, target: &str) -> Result<Written, TransferError> {
        Ok(Written { tag: self.make_symlink(path, target).await?, checked: true })
    }

    /// Makes what was written to these files durable.
    async fn sync(&self, paths: &[RelativePath]) -> Result<(), TransferError>;

    /// Removes one file, link or empty directory; it is no error when there is none.
    async fn remove(&self, path: &RelativePath) -> Result<(), TransferError>;

    /// Removes the whole tree and the place itself; it is no error when there is none.
    async fn remove_all(&self) -> Result<(), TransferError>;

    /// What a target is at the moment.
    async fn target_state(&self) -> Result<TargetState, TransferError>;

    /// Makes everything durable and visible at once.
    async fn commit(&self) -> Result<(), TransferError>;
}

/// What [`Place::part_limits`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartLimits {
    /// Smallest part in bytes, the last one excepted.
    pub smallest: u64,
    /// Largest number of parts.
    pub most: u64,
    /// Parts come one after the other, each once.
    pub in_order: bool,
}

/// What is at a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetState {
    /// Nothing.
    Absent,
    /// Something that is not visible yet, or, where there is no such difference, something.
    Partial,
    /// A committed tree.
    Visible,
}

/// Whether a link stays inside the tree, by its text alone, wherever the tree is.
///
/// # Errors
/// Why it cannot be part of a dataset.
pub fn check_link(link: &RelativePath, target: &str) -> Result<(), String> {
    if target.is_empty() || target.contains('\0') || target.len() > MAX_TARGET_BYTES {
        return Err(format!("the target of the link must have 1 to {MAX_TARGET_BYTES} bytes and no NUL"));
    }
    let outside = || format!("the link points outside the tree, to {target:?}");
    if target.starts_with('/') {
        return Err(outside());
    }
    let mut depth = link.depth() - 1;
    for component in target.split('/') {
        match component {
            "" | "." => {}
            ".." => depth = depth.checked_sub(1).ok_or_else(outside)?,
            _ => depth += 1,
        }
    }
    Ok(())
}
