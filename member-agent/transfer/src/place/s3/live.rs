//! What a prefix is asked for that is written in place, file by file: one directory of it, and copies inside it.

use fluvial_model::manifest::{Entry, File, RelativePath};
use futures::{StreamExt, TryStreamExt, stream};

use super::{DEFAULT_MODE, HEADS_AT_ONCE, LINK_LIMIT, S3Place, metadata, tag};
use crate::TransferError;
use crate::place::{Found, Place, Tag};

pub use super::copy::MOST_COPIED;

impl S3Place {
    /// What is in one directory: kinds, sizes and tags; of files larger than a link can be, no modes and times.
    ///
    /// # Errors
    /// [`TransferError::NotFound`] if nothing is there.
    pub async fn children(&self, directory: &RelativePath) -> Result<Vec<Found>, TransferError> {
        let prefix = self.below(directory);
        let (mut found, mut looks) = (Vec::new(), Vec::new());
        let (mut token, mut any) = (None, directory.is_root());
        loop {
            let page = self.client.list_level(&prefix, token.take(), None).await?;
            let path = |key: &str| {
                let name = key.strip_prefix(&prefix).unwrap_or(key).trim_end_matches('/');
                directory.join(name).map_err(|error| self.bad_entry(key, error.to_string()))
            };
            for below in &page.common_prefixes {
                any = true;
                found.push(Found { path: path(&below.prefix)?, entry: Entry::Directory, tag: Tag(String::new()) });
            }
            for object in &page.contents {
                any = true;
                if object.key == prefix {
                    continue;
                }
                let (path, size) = (path(&object.key)?, object.size.unwrap_or(0));
                if size <= LINK_LIMIT {
                    looks.push(path);
                    continue;
                }
                let file = File { size, mtime_ns: 0, mode: DEFAULT_MODE, digest: None };
                let tag = tag(object.etag.as_deref().unwrap_or_default(), size);
                found.push(Found { path, entry: Entry::File(file), tag });
            }
            match page.next_continuation_token {
                Some(next) => token = Some(next),
                None => break,
            }
        }
        if !any {
            return Err(TransferError::NotFound { op: "list", place: self.name.clone(), path: directory.to_string() });
        }
        let look = |path: RelativePath| async move {
            match self.stat(&path).await {
                Ok(found) => Ok(Some(found)),
                // Removed since it was listed.
                Err(TransferError::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let looked: Vec<Option<Found>> =
            stream::iter(looks).map(look).buffer_unordered(HEADS_AT_ONCE).try_collect().await?;
        found.extend(looked.into_iter().flatten());
        Ok(found)
    }

    /// Whether a directory is there, and whether anything is in it.
    ///
    /// # Errors
    /// When the store cannot say.
    pub async fn directory(&self, directory: &RelativePath) -> Result<Option<Level>, TransferError> {
        let prefix = self.below(directory);
        let page = self.client.list_level(&prefix, None, Some(2)).await?;
        let marked = page.contents.iter().any(|object| object.key == prefix);
        let entries = page.contents.len() - usize::from(marked) + page.common_prefixes.len();
        let there = directory.is_root() || marked || entries > 0;
        Ok(there.then_some(Level { marked, empty: entries == 0 }))
    }

    /// Copies a file of so many bytes inside the store, with other metadata if `file` is given, in place of whatever is there.
    ///
    /// # Errors
    /// As [`Place::stat`], and when the store refuses.
    pub async fn copy(
        &self,
        from: &RelativePath,
        to: &RelativePath,
        size: u64,
        file: Option<&File>,
    ) -> Result<Found, TransferError> {
        let replaced = file.map(metadata);
        self.client.copy_within(&self.key(from), &self.key(to), to.as_str(), size, replaced).await?;
        self.stat(to).await
    }

    /// The prefix of what is in a directory.
    fn below(&self, directory: &RelativePath) -> String {
        if directory.is_root() { self.prefix.clone() } else { format!("{}/", self.key(directory)) }
    }
}

/// A directory, as far as its store knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// It has an object of its own, and stays when it is empty.
    pub marked: bool,
    /// Nothing is in it.
    pub empty: bool,
}
