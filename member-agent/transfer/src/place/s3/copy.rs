//! Copies that the store makes by itself: one endpoint, one set of keys, no byte through the agent.
//!
//! The source's size, mode and time must be those of its manifest, and the copy is of exactly the version that was listed.
//! The store computes the checksum of what it copies anew; it is compared with the one that it keeps of the source, which it
//! compared when the source was written. Where either is missing, the copy counts as not verified, and is read back.

use std::sync::atomic::Ordering;

use fluvial_model::manifest::{Entry, File, RelativePath};

use super::{S3Place, etag_of, file_of, is_link, sum_of, tag_of};
use crate::TransferError;
use crate::place::{Tag, Written};

/// The largest object that one request copies (Amazon S3 API reference, CopyObject).
pub const MOST_COPIED: u64 = 5 << 30;

impl S3Place {
    /// Has the store copy `file`, as its manifest says it, from `below` in another place of it. `None` if the store cannot,
    /// does not want to, or holds something else there: then the file is copied as any other.
    pub(super) async fn copy_between(
        &self,
        path: &RelativePath,
        file: &File,
        from: &Self,
        below: &RelativePath,
        tag: &Tag,
    ) -> Result<Option<Written>, TransferError> {
        if file.size > MOST_COPIED || self.without_copies.load(Ordering::Relaxed) || !self.client.reaches(&from.client)
        {
            return Ok(None);
        }
        let (to, source) = (self.key(path), from.key(below));
        let head = from.client.head_with_sum(&source, below.as_str()).await?;
        if is_link(&head) || Entry::File(file_of(&head, file.size)) != Entry::File(File { digest: None, ..*file }) {
            return Ok(None);
        }
        match self.client.copy(&to, path.as_str(), from.client.bucket_name(), &source, &etag_of(tag), file.size).await {
            Ok(()) => {}
            Err(error @ (TransferError::Denied { .. } | TransferError::Server { status: 400..=499 | 501, .. })) => {
                tracing::info!(
                    place = self.name,
                    error = &error as &dyn std::error::Error,
                    "the store does not copy by itself"
                );
                self.without_copies.store(true, Ordering::Relaxed);
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let copied = self.client.head_with_sum(&to, path.as_str()).await?;
        let checked = match sum_of(&head) {
            Some(sum) => self.confirmed(path, sum, sum_of(&copied)).await?,
            None => false,
        };
        Ok(Some(Written { tag: tag_of(&copied, file.size), checked }))
    }
}
