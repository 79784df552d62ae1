//! A prefix of a bucket of Azure Blob Storage, OSS or GCS, by OpenDAL; each has a file of its own for what is its own.
//!
//! A tree lies there as it does in S3 (`s3.rs`): a file is an object, with its mode and time as metadata, an empty directory an
//! empty object `dir/`, a link a small object that is marked. An object appears when it is complete. The names of metadata are
//! those of S3, but for Azure, which takes no `-` in them.
//!
//! A file in parts is one writer of OpenDAL's: its parts come in order, and it is not continued after the process has ended.
//! Nothing that is written carries a checksum: all of it is read back.

mod azblob;
mod gcs;
mod manner;
mod open;
mod oss;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{Entry, File, RelativePath};
use futures::{StreamExt, TryStreamExt, stream};
use opendal::layers::{RetryEvent, RetryInterceptor, RetryLayer};
use opendal::{ErrorKind, Lister, Metadata, Operator, Writer};
use tokio::sync::mpsc;

use self::manner::{Manner, Version};
use super::dal::{Dal, mtime_of};
use super::http::{FIRST_PAUSE, LONGEST_PAUSE, REQUEST_LIMIT, TRIES, body_limit};
use super::s3::{parse_seconds, show_seconds};
use super::{Detail, Found, PartLimits, Place, Tag, TargetState, check_link};
use crate::TransferError;
use crate::location::Access;

/// Blobs that are looked at together while listing, and removed together.
const AT_ONCE: usize = 32;
/// Listed blobs that wait to be looked at: 1,000 of about 1 KiB, some pages of what is known of them.
const LISTED_AT_ONCE: usize = 1000;
/// How long a page or a part may take, with the tries that it needs.
const STEP_LIMIT: Duration = Duration::from_secs(90);
/// Permission bits of a blob that no one gave any.
const DEFAULT_MODE: u32 = 0o644;
/// The longest link that is read.
const LINK_LIMIT: u64 = 4096;
/// Metadata: decimal seconds since the epoch.
const MTIME: &str = "mtime";

/// A prefix of a bucket.
pub(crate) struct Objects {
    dal: Dal,
    manner: Manner,
    /// The same store, whose requests OpenDAL itself tries again, below what it keeps of listings and files in parts: its
    /// lister ends after an error as if it were whole, and its writer forgets what it held back when that could not be sent.
    again: Operator,
    in_parts: Option<oss::Transport>,
    /// Empty, or with a `/` at its end.
    prefix: String,
    /// Files in parts that are under way, by the names that they were given.
    uploads: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Upload>>>>,
}

/// A file in parts.
struct Upload {
    /// Holds the last part until the next one comes: one part of memory beside what the copy counts.
    writer: Writer,
    /// Bytes that were taken; not known after a part that failed, of which some may have been sent.
    taken: Option<u64>,
}

impl Objects {
    /// A prefix of what `dal` opened. `in_parts` is there where a file in parts needs it to begin.
    fn new(dal: Dal, prefix: String, manner: Manner, in_parts: Option<oss::Transport>) -> Self {
        let again = RetryLayer::new()
            .with_jitter()
            .with_notify(Again)
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_max_times(TRIES as usize - 1);
        let again = dal.operator.clone().layer(again);
        Self { dal, manner, again, in_parts, prefix, uploads: Mutex::default() }
    }

    fn key(&self, path: &RelativePath) -> Result<String, TransferError> {
        self.dal.key(&self.prefix, path)
    }

    /// The key of what is written, if the store would keep it as it is.
    fn new_key(&self, path: &RelativePath) -> Result<String, TransferError> {
        let key = self.key(path)?;
        match (self.manner.refuses)(&key) {
            Some(why) => Err(self.dal.bad_entry(path.as_str(), why)),
            None => Ok(key),
        }
    }

    /// What is listed; the whole bucket for OpenDAL is `/`.
    fn listed_as(&self) -> &str {
        if self.prefix.is_empty() { "/" } else { &self.prefix }
    }

    async fn head(&self, op: &'static str, key: &str, path: &RelativePath) -> Result<Metadata, TransferError> {
        self.dal.request(op, path.as_str(), REQUEST_LIMIT, || self.dal.operator.stat(key)).await
    }

    /// The next of what is below the prefix, at most `most`.
    async fn page(&self, lister: &mut Lister, most: usize) -> Result<Vec<opendal::Entry>, TransferError> {
        let mut page = Vec::new();
        while page.len() < most {
            let next = self.dal.in_time("list", STEP_LIMIT, lister.try_next()).await?;
            let Some(entry) = next.map_err(|error| self.dal.failed("list", "", &error))? else { break };
            page.push(entry);
        }
        Ok(page)
    }

    async fn lister(&self) -> Result<Lister, TransferError> {
        let list = || async { self.again.lister_with(self.listed_as()).recursive(true).limit(self.manner.page).await };
        self.dal.request("list", "", REQUEST_LIMIT, list).await
    }

    /// Whether nothing is there.
    async fn is_empty(&self) -> Result<bool, TransferError> {
        Ok(self.page(&mut self.lister().await?, 1).await?.is_empty())
    }

    /// What a listed blob is; `None` for the place itself.
    async fn found(&self, detail: Detail, entry: &opendal::Entry) -> Result<Option<Found>, TransferError> {
        let key = entry.path();
        let below = key.strip_prefix(&self.prefix).unwrap_or(key);
        let name = below.trim_end_matches('/');
        if name.is_empty() {
            return Ok(None);
        }
        let path = self.dal.path(key, name)?;
        if key.ends_with('/') {
            return Ok(Some(Found { path, entry: Entry::Directory, tag: Tag(String::new()) }));
        }
        let (tag, size) = (self.tag_of(entry.metadata()), entry.metadata().content_length());
        if detail == Detail::Tags {
            let file = File { size, mtime_ns: 0, mode: DEFAULT_MODE, digest: None };
            return Ok(Some(Found { path, entry: Entry::File(file), tag }));
        }
        let found = self.stat(&path).await?;
        if found.tag == tag { Ok(Some(found)) } else { Err(self.dal.changed(&path)) }
    }

    /// The tag of what was written; `said` is what the store answered.
    async fn written(&self, path: &RelativePath, said: &Metadata, size: u64) -> Result<Tag, TransferError> {
        match self.manner.version_of(said) {
            Some(version) => Ok(tag(version, size)),
            None => Ok(self.stat(path).await?.tag),
        }
    }

    /// The tag of a file in parts that is no longer known: it was completed, if it is there, by a try whose answer was lost. Its
    /// contents are read back, as all are.
    async fn completed(&self, path: &RelativePath, file: &File) -> Result<Tag, TransferError> {
        let found = self.stat(path).await?;
        let same = |there: &File| (there.size, there.mtime_ns, there.mode) == (file.size, file.mtime_ns, file.mode);
        match &found.entry {
            Entry::File(there) if same(there) => Ok(found.tag),
            _ => Err(self.not_there("complete", path)),
        }
    }

    async fn write(
        &self,
        path: &RelativePath,
        metadata: Vec<(String, String)>,
        data: Bytes,
    ) -> Result<Tag, TransferError> {
        let (key, size) = (self.new_key(path)?, data.len() as u64);
        let write = || {
            let write = self.dal.operator.write_with(&key, data.clone()).user_metadata(metadata.clone());
            async move { write.await }
        };
        let said = self.dal.request("write", path.as_str(), body_limit(size), write).await?;
        self.written(path, &said, size).await
    }

    async fn delete(&self, key: &str) -> Result<(), TransferError> {
        self.dal.request("remove", key, REQUEST_LIMIT, || self.dal.operator.delete(key)).await
    }

    fn tag_of(&self, metadata: &Metadata) -> Tag {
        tag(self.manner.version_of(metadata).unwrap_or_default(), metadata.content_length())
    }

    fn file_of(&self, metadata: &Metadata) -> File {
        let mode = user_metadata(metadata, self.manner.mode).and_then(|mode| u32::from_str_radix(mode, 8).ok());
        File {
            size: metadata.content_length(),
            mtime_ns: user_metadata(metadata, MTIME).and_then(parse_seconds).unwrap_or_else(|| mtime_of(metadata)),
            mode: mode.filter(|mode| *mode <= 0o7777).unwrap_or(DEFAULT_MODE),
            digest: None,
        }
    }

    fn metadata_of(&self, file: &File) -> Vec<(String, String)> {
        let mode = (self.manner.mode.to_owned(), format!("{:o}", file.mode));
        vec![mode, (MTIME.to_owned(), show_seconds(file.mtime_ns))]
    }

    fn upload(&self, upload: &str) -> Option<Arc<tokio::sync::Mutex<Upload>>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).get(upload).cloned()
    }

    fn forget(&self, upload: &str) -> Option<Arc<tokio::sync::Mutex<Upload>>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(upload)
    }

    fn not_there(&self, op: &'static str, path: &RelativePath) -> TransferError {
        TransferError::NotFound { op, place: self.dal.name.clone(), path: path.to_string() }
    }
}

/// Version and size.
fn tag(version: &str, size: u64) -> Tag {
    Tag(format!("{}-{size}", version.trim_matches('"')))
}

/// Version and size of a tag.
fn parts_of(tag: &Tag) -> Option<(&str, u64)> {
    let (version, size) = tag.0.rsplit_once('-')?;
    Some((version, size.parse().ok()?))
}

fn user_metadata<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a str> {
    let mut all = metadata.user_metadata()?.into_iter();
    all.find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value)
}

/// Says that something is tried again, without the error's text, which may hold a URL with a token.
struct Again;

impl RetryInterceptor for Again {
    fn intercept(&self, event: RetryEvent<'_>) {
        tracing::debug!(attempt = event.attempt, "a page or a part failed, trying again");
    }
}

#[async_trait]
impl Place for Objects {
    fn name(&self) -> &str {
        &self.dal.name
    }

    async fn probe(&self, access: Access) -> Result<(), TransferError> {
        match access {
            Access::Read if self.is_empty().await? && !self.prefix.is_empty() => {
                Err(self.not_there("probe", &RelativePath::root()))
            }
            Access::Read => Ok(()),
            Access::Write => {
                // Beside the tree, so that no listing of it ever shows it.
                let beside = self.prefix.trim_end_matches('/');
                let key = format!("{beside}.fluvial-probe-{:016x}", rand::random::<u64>());
                let write = || async { self.dal.operator.write(&key, Bytes::from_static(b"1")).await };
                self.dal.request("probe", "", REQUEST_LIMIT, write).await?;
                self.delete(&key).await
            }
        }
    }

    async fn list(&self, detail: Detail, found: mpsc::Sender<Found>) -> Result<(), TransferError> {
        let mut lister = self.lister().await?;
        let mut any = false;
        loop {
            let page = self.page(&mut lister, LISTED_AT_ONCE).await?;
            if page.is_empty() {
                break;
            }
            any = true;
            let looks: Vec<_> = page.iter().map(|entry| self.found(detail, entry)).collect();
            let mut looks = stream::iter(looks).buffer_unordered(AT_ONCE);
            while let Some(entry) = looks.try_next().await? {
                if let Some(entry) = entry
                    && found.send(entry).await.is_err()
                {
                    return Ok(());
                }
            }
        }
        if any || self.prefix.is_empty() { Ok(()) } else { Err(self.not_there("list", &RelativePath::root())) }
    }

    async fn stat(&self, path: &RelativePath) -> Result<Found, TransferError> {
        let metadata = self.head("look at", &self.key(path)?, path).await?;
        let tag = self.tag_of(&metadata);
        if user_metadata(&metadata, self.manner.kind) != Some("symlink") {
            return Ok(Found { path: path.clone(), entry: Entry::File(self.file_of(&metadata)), tag });
        }
        let bad = |why: String| self.dal.bad_entry(path.as_str(), why);
        if metadata.content_length() > LINK_LIMIT {
            return Err(bad("it is marked as a link but too long to be one".to_owned()));
        }
        let body = self.read(path, Some(&tag), 0, LINK_LIMIT).await?;
        let target =
            String::from_utf8(body.to_vec()).map_err(|_| bad("the target of the link is not UTF-8".to_owned()))?;
        check_link(path, &target).map_err(bad)?;
        Ok(Found { path: path.clone(), entry: Entry::Symlink { target }, tag })
    }

    /// Mode, time and kind are looked at with the contents.
    fn source_detail(&self) -> Detail {
        Detail::Tags
    }

    async fn read(
        &self,
        path: &RelativePath,
        tag: Option<&Tag>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, TransferError> {
        let key = self.key(path)?;
        let tag = match tag {
            Some(tag) => tag.clone(),
            None => self.tag_of(&self.head("read", &key, path).await?),
        };
        let (version, size) = parts_of(&tag).ok_or_else(|| self.dal.changed(path))?;
        let etag = format!("\"{version}\"");
        let end = size.min(offset.saturating_add(length));
        if offset >= end {
            return Ok(Bytes::new());
        }
        let read = || {
            let read = self.dal.operator.read_with(&key).range(offset..end);
            let read = match self.manner.version {
                Version::ETag => read.if_match(&etag),
                Version::Generation => read.if_version_match(version),
            };
            async move { read.await }
        };
        let data = self.dal.request("read", path.as_str(), body_limit(end - offset), read).await?.to_bytes();
        if data.len() as u64 != end - offset {
            let why = format!("{} bytes came of {}", data.len(), end - offset);
            return Err(TransferError::Unreachable { op: "read", place: self.dal.name.clone(), why });
        }
        Ok(data)
    }

    /// An ETag and what was written with it are one: the listing has the ETag.
    fn verify_detail(&self) -> Detail {
        Detail::Tags
    }

    fn part_limits(&self) -> PartLimits {
        self.manner.parts
    }

    async fn put(&self, path: &RelativePath, file: &File, data: Bytes) -> Result<Tag, TransferError> {
        self.write(path, self.metadata_of(file), data).await
    }

    async fn begin(&self, path: &RelativePath, file: &File) -> Result<String, TransferError> {
        let key = self.new_key(path)?;
        let metadata = self.metadata_of(file);
        let operator = match &self.in_parts {
            Some(transport) => transport.beginning_with(&self.again, &metadata),
            None => self.again.clone(),
        };
        let begin = || {
            let writer = operator.writer_with(&key).user_metadata(metadata.clone());
            async move { writer.await }
        };
        let writer = self.dal.request("write", path.as_str(), REQUEST_LIMIT, begin).await?;
        let upload = format!("{:032x}", rand::random::<u128>());
        let entry = Arc::new(tokio::sync::Mutex::new(Upload { writer, taken: Some(0) }));
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).insert(upload.clone(), entry);
        Ok(upload)
    }

    /// OpenDAL does not tell which blocks are a file's.
    async fn can_continue(&self, _: &RelativePath, _: &str) -> Result<bool, TransferError> {
        Ok(false)
    }

    async fn put_part(
        &self,
        path: &RelativePath,
        upload: &str,
        number: u32,
        offset: u64,
        data: Bytes,
    ) -> Result<String, TransferError> {
        let upload = self.upload(upload).ok_or_else(|| self.not_there("write", path))?;
        let mut upload = upload.lock().await;
        let length = data.len() as u64;
        let taken = upload.taken.ok_or_else(|| self.not_there("write", path))?;
        if offset != taken {
            let what = format!("part {number} of {path} came at byte {offset}; the next one begins at byte {taken}");
            return Err(TransferError::BadJob { what });
        }
        upload.taken = None;
        let write = self.dal.in_time("write", STEP_LIMIT + body_limit(length), upload.writer.write(data)).await?;
        write.map_err(|error| self.dal.failed("write", path.as_str(), &error))?;
        upload.taken = Some(taken + length);
        Ok(String::new())
    }

    async fn complete(
        &self,
        path: &RelativePath,
        upload: &str,
        file: &File,
        _: &[String],
    ) -> Result<Tag, TransferError> {
        let entry = self.upload(upload).ok_or_else(|| self.not_there("complete", path))?;
        let mut entry = entry.lock().await;
        let taken = entry.taken.ok_or_else(|| self.not_there("complete", path))?;
        if taken != file.size {
            let what = format!("{path} has {} bytes, of which {taken} came", file.size);
            return Err(TransferError::BadJob { what });
        }
        entry.taken = None;
        // The last part is sent with it.
        let close = self.dal.in_time("complete", STEP_LIMIT + body_limit(file.size), entry.writer.close()).await?;
        let tag = match close {
            Ok(said) => self.written(path, &said, file.size).await?,
            Err(error) if error.kind() == ErrorKind::NotFound => self.completed(path, file).await?,
            Err(error) => return Err(self.dal.failed("complete", path.as_str(), &error)),
        };
        self.forget(upload);
        Ok(tag)
    }

    async fn abort(&self, path: &RelativePath, upload: &str) -> Result<(), TransferError> {
        let Some(upload) = self.forget(upload) else { return Ok(()) };
        let abort = || async { upload.lock().await.writer.abort().await };
        self.dal.request("give up", path.as_str(), REQUEST_LIMIT, abort).await
    }

    async fn make_directory(&self, path: &RelativePath, empty: bool) -> Result<(), TransferError> {
        let key = if path.is_root() { self.prefix.clone() } else { format!("{}/", self.new_key(path)?) };
        if !empty || key.is_empty() {
            return Ok(());
        }
        self.dal.request("make directory", path.as_str(), REQUEST_LIMIT, || self.dal.operator.create_dir(&key)).await
    }

    async fn make_symlink(&self, path: &RelativePath, target: &str) -> Result<Tag, TransferError> {
        let data = Bytes::copy_from_slice(target.as_bytes());
        let tag = self.write(path, vec![(self.manner.kind.to_owned(), "symlink".to_owned())], data).await?;
        // A link is not read back by the copy, as it is where a file system keeps it.
        if self.read(path, Some(&tag), 0, LINK_LIMIT).await? != target.as_bytes() {
            return Err(TransferError::DigestMismatch { place: self.dal.name.clone(), path: path.to_string() });
        }
        Ok(tag)
    }

    async fn sync(&self, _: &[RelativePath]) -> Result<(), TransferError> {
        Ok(())
    }

    async fn remove(&self, path: &RelativePath) -> Result<(), TransferError> {
        let key = self.key(path)?;
        self.delete(&key).await?;
        self.delete(&format!("{key}/")).await
    }

    async fn remove_all(&self) -> Result<(), TransferError> {
        if self.prefix.is_empty() {
            let why = "a whole bucket is never removed; give the tree a prefix".to_owned();
            return Err(TransferError::BadLocation { uri: self.dal.name.clone(), why });
        }
        let mut lister = self.lister().await?;
        loop {
            let page = self.page(&mut lister, LISTED_AT_ONCE).await?;
            if page.is_empty() {
                return Ok(());
            }
            let deletes: Vec<_> = page.iter().map(|entry| self.delete(entry.path())).collect();
            stream::iter(deletes).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        }
    }

    async fn target_state(&self) -> Result<TargetState, TransferError> {
        Ok(if self.is_empty().await? { TargetState::Absent } else { TargetState::Partial })
    }

    async fn commit(&self) -> Result<(), TransferError> {
        Ok(())
    }
}
