//! A prefix of a bucket of S3 or anything that speaks like it.
//!
//! A file is an object; its mode and time are user metadata (`mtime` as decimal seconds, as other tools write it). An
//! empty directory is a zero-byte object `dir/`; a link is a small object that holds its target and is marked in its
//! metadata. An object appears when it is complete. Objects of other tools are files of mode 644 and their upload time.
//!
//! Uploads carry a checksum (`checksum.rs`, `docs/decisions/0009`). Whether a store compares it is found out, not assumed.
//!
//! Why not the store library that other schemes will use: `docs/decisions/0004-resumable-multipart.md`.

mod checksum;
mod client;
mod copy;
mod keys;
pub mod live;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{Entry, File, RelativePath};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::{OnceCell, mpsc};

use self::checksum::{Receipts, Sum};
use self::client::{Client, Header, Reply};
use super::local::blocking;
use super::{Detail, Found, PartLimits, Place, Tag, TargetState, Written, check_link};
use crate::TransferError;
use crate::location::{Access, Location};

/// Objects that are looked at together while listing: with a round trip of 20 ms that is 1,600 a second.
const HEADS_AT_ONCE: usize = 32;
/// Objects that are removed together.
const DELETES_AT_ONCE: usize = 32;
/// The most bytes that are taken of a version of another size than was asked for.
const MOST_OTHER_VERSION: u64 = 16 << 20;
/// Permission bits of an object that no one gave any.
const DEFAULT_MODE: u32 = 0o644;
/// Data shorter than this are summed where they are: a millisecond at most, at some 10 GB/s.
const SUM_INLINE: usize = 8 << 20;
/// The longest link that is read.
const LINK_LIMIT: u64 = 4096;
/// Metadata: decimal seconds since the epoch.
const MTIME: &str = "x-amz-meta-mtime";
/// Metadata: octal permission bits.
const MODE: &str = "x-amz-meta-fluvial-mode";
/// Metadata: `symlink` on an object that holds the target of a link.
const KIND: &str = "x-amz-meta-fluvial-kind";

/// A prefix of a bucket.
pub struct S3Place {
    client: Client,
    name: String,
    /// Empty, or with a `/` at its end.
    prefix: String,
    /// The store does not take requests that carry checksums.
    without_sums: AtomicBool,
    /// The store does not copy between its own places.
    without_copies: AtomicBool,
    /// Whether the store refuses what does not have its checksum; looked at once, when one is confirmed first.
    compares: OnceCell<bool>,
}

impl S3Place {
    /// The place of a location whose URI is `s3://` and `rest`.
    ///
    /// # Errors
    /// When the URI or an option cannot be used.
    pub fn new(location: &Location, rest: &str) -> Result<Self, TransferError> {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let bad = |why: String| TransferError::BadLocation { uri: location.shown(), why };
        if bucket.is_empty() || bucket.contains(['@', '?', '#', ':']) {
            return Err(bad("it must be `s3://bucket/prefix`".to_owned()));
        }
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() {
            RelativePath::parse(prefix).map_err(|error| bad(error.to_string()))?;
        }
        let name = location.shown();
        let client = Client::new(location, bucket, name.clone())?;
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self {
            client,
            name,
            prefix,
            without_sums: AtomicBool::new(false),
            without_copies: AtomicBool::new(false),
            compares: OnceCell::new(),
        })
    }

    fn key(&self, path: &RelativePath) -> String {
        format!("{}{path}", self.prefix)
    }

    fn bad_entry(&self, name: &str, why: impl Into<String>) -> TransferError {
        TransferError::BadEntry { place: self.name.clone(), name: name.escape_debug().to_string(), why: why.into() }
    }

    /// A key beside the tree, so that no listing of it ever shows what is tried there.
    fn probe_key(&self) -> String {
        format!("{}.fluvial-probe-{:016x}", self.prefix.trim_end_matches('/'), rand::random::<u64>())
    }

    /// Does a request with the headers of its checksum; without them, from then on, where the store does not know them.
    async fn summed<T, F>(&self, sums: Vec<Header>, request: impl Fn(Vec<Header>) -> F) -> Result<T, TransferError>
    where
        F: Future<Output = Result<T, TransferError>>,
    {
        if self.without_sums.load(Ordering::Relaxed) {
            return request(Vec::new()).await;
        }
        match request(sums).await {
            Err(refused @ TransferError::Server { status: 400 | 501, .. }) => {
                // The request itself may be wrong: only one that goes through without shows that the checksum was it.
                let done = request(Vec::new()).await.map_err(|_| refused)?;
                self.without_sums.store(true, Ordering::Relaxed);
                tracing::info!(place = self.name, "the store takes no checksums: what is written is read back");
                Ok(done)
            }
            done => done,
        }
    }

    /// Writes a small object with these headers, and its sum beside them.
    async fn put_object(
        &self,
        path: &RelativePath,
        headers: Vec<Header>,
        data: Bytes,
    ) -> Result<Written, TransferError> {
        let (key, sum, size) = (self.key(path), sum_of_data(&data).await?, data.len() as u64);
        let reply = self
            .summed(vec![(checksum::HEADER, sum.to_string())], |sums| {
                let (key, headers, data) = (&key, [headers.clone(), sums].concat(), data.clone());
                async move { self.client.put(key, path.as_str(), &headers, data).await }
            })
            .await?;
        let checked = self.confirmed(path, sum, sum_of(&reply)).await?;
        Ok(Written { tag: tag_of(&reply, size), checked })
    }

    /// Whether the store keeps what was sent: it confirmed the sum, and refuses what has another one.
    async fn confirmed(&self, path: &RelativePath, sent: Sum, said: Option<Sum>) -> Result<bool, TransferError> {
        let Some(said) = said else { return Ok(false) };
        if said != sent {
            return Err(TransferError::DigestMismatch { place: self.name.clone(), path: path.to_string() });
        }
        self.compares
            .get_or_try_init(|| async { self.client.refuses_wrong_sums(&self.probe_key()).await })
            .await
            .copied()
    }

    /// What an object is, from its metadata; `listed` is the tag that it was listed with, if it was listed with one.
    async fn look(&self, path: RelativePath, size: u64, listed: Option<Tag>) -> Result<Found, TransferError> {
        let key = self.key(&path);
        let head = self.client.head(&key, path.as_str()).await?;
        let tag = tag_of(&head, size);
        if listed.is_some_and(|listed| listed != tag) {
            return Err(TransferError::Changed { place: self.name.clone(), path: path.to_string() });
        }
        if is_link(&head) {
            if size > LINK_LIMIT {
                return Err(self.bad_entry(path.as_str(), "it is marked as a link but too long to be one"));
            }
            let body = self.client.get(&key, path.as_str(), &head.etag(), 0, size).await?;
            return Ok(Found { entry: self.link(&path, &body)?, path, tag });
        }
        Ok(Found { entry: Entry::File(file_of(&head, size)), path, tag })
    }

    /// The link that an object holds.
    fn link(&self, path: &RelativePath, body: &[u8]) -> Result<Entry, TransferError> {
        let target = std::str::from_utf8(body)
            .map_err(|_| self.bad_entry(path.as_str(), "the target of the link is not UTF-8"))?;
        check_link(path, target).map_err(|why| self.bad_entry(path.as_str(), why))?;
        Ok(Entry::Symlink { target: target.to_owned() })
    }

    /// Removes every object below the prefix.
    async fn remove_objects(&self) -> Result<(), TransferError> {
        let mut token = None;
        loop {
            let page = self.client.list(&self.prefix, token.take(), None).await?;
            let deletes: Vec<_> =
                page.contents.iter().map(|object| self.client.delete(&object.key, &object.key)).collect();
            stream::iter(deletes).buffer_unordered(DELETES_AT_ONCE).try_collect::<Vec<()>>().await?;
            match page.next_continuation_token {
                Some(next) => token = Some(next),
                None => return Ok(()),
            }
        }
    }
}

/// ETag and size.
fn tag_of(reply: &Reply, size: u64) -> Tag {
    tag(&reply.etag(), size)
}

fn tag(etag: &str, size: u64) -> Tag {
    Tag(format!("{}-{size}", etag.trim_matches('"')))
}

/// The ETag inside a tag, quoted as `If-Match` needs it.
fn etag_of(tag: &Tag) -> String {
    format!("\"{}\"", tag.0.rsplit_once('-').map_or(tag.0.as_str(), |(etag, _)| etag))
}

fn is_link(head: &Reply) -> bool {
    head.header(KIND) == Some("symlink")
}

/// The checksum that the store confirmed.
fn sum_of(reply: &Reply) -> Option<Sum> {
    reply.header(checksum::HEADER).and_then(Sum::parse)
}

/// The checksum of data, off the threads of the runtime where it would take long.
async fn sum_of_data(data: &Bytes) -> Result<Sum, TransferError> {
    if data.len() < SUM_INLINE {
        return Ok(Sum::of(data));
    }
    let data = data.clone();
    blocking(move || Ok(Sum::of(&data))).await
}

fn file_of(head: &Reply, size: u64) -> File {
    let mode = head.header(MODE).and_then(|mode| u32::from_str_radix(mode, 8).ok()).filter(|mode| *mode <= 0o7777);
    let mtime_ns = head.header(MTIME).and_then(parse_seconds).or_else(|| head.modified_ns()).unwrap_or(0);
    File { size, mtime_ns, mode: mode.unwrap_or(DEFAULT_MODE), digest: None }
}

/// Decimal seconds as nanoseconds; `None` for anything else.
pub(super) fn parse_seconds(text: &str) -> Option<i64> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(seconds) || !digits(fraction) {
        return None;
    }
    let fraction: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let total = seconds.parse::<i128>().ok()?.checked_mul(1_000_000_000)?.checked_add(fraction.parse().ok()?)?;
    i64::try_from(if negative { -total } else { total }).ok()
}

pub(super) fn show_seconds(mtime_ns: i64) -> String {
    let distance = mtime_ns.unsigned_abs();
    let sign = if mtime_ns < 0 { "-" } else { "" };
    format!("{sign}{}.{:09}", distance / 1_000_000_000, distance % 1_000_000_000)
}

fn metadata(file: &File) -> Vec<Header> {
    vec![(MODE, format!("{:o}", file.mode)), (MTIME, show_seconds(file.mtime_ns))]
}

#[async_trait]
impl Place for S3Place {
    fn name(&self) -> &str {
        &self.name
    }

    async fn probe(&self, access: Access) -> Result<(), TransferError> {
        let page = self.client.list(&self.prefix, None, Some(1)).await?;
        match access {
            Access::Read if page.contents.is_empty() && !self.prefix.is_empty() => {
                Err(TransferError::NotFound { op: "probe", place: self.name.clone(), path: String::new() })
            }
            Access::Read => Ok(()),
            Access::Write => {
                let key = self.probe_key();
                self.client.put(&key, "", &[], Bytes::from_static(b"1")).await?;
                self.client.delete(&key, "").await
            }
        }
    }

    async fn list(&self, detail: Detail, found: mpsc::Sender<Found>) -> Result<(), TransferError> {
        let mut token = None;
        let mut any = false;
        let mut keys = keys::Collisions::default();
        loop {
            let page = self.client.list(&self.prefix, token.take(), None).await?;
            let mut looks = Vec::new();
            for object in &page.contents {
                any = true;
                let Some(below) = object.key.strip_prefix(&self.prefix) else {
                    return Err(self.bad_entry(&object.key, "the server listed a key outside the prefix"));
                };
                if below.is_empty() {
                    continue;
                }
                let (name, directory) = below.strip_suffix('/').map_or((below, false), |name| (name, true));
                let path = RelativePath::parse(name).map_err(|error| self.bad_entry(below, error.to_string()))?;
                let size = object.size.unwrap_or(0);
                if directory && size > 0 {
                    return Err(self.bad_entry(below, "its key ends in `/` but it holds data"));
                }
                keys.add(below).map_err(|why| self.bad_entry(below, why))?;
                // Some servers list no ETags: their objects are looked at one by one.
                let tag = object.etag.as_deref().filter(|etag| !etag.is_empty()).map(|etag| tag(etag, size));
                looks.push((path, directory, size, tag));
            }
            let looks = looks.into_iter().map(|(path, directory, size, tag)| async move {
                match (detail, tag) {
                    (_, tag) if directory => {
                        Ok(Found { path, entry: Entry::Directory, tag: tag.unwrap_or(Tag(String::new())) })
                    }
                    (Detail::Tags, Some(tag)) => {
                        let file = File { size, mtime_ns: 0, mode: DEFAULT_MODE, digest: None };
                        Ok(Found { path, entry: Entry::File(file), tag })
                    }
                    (_, tag) => self.look(path, size, tag).await,
                }
            });
            let mut looks = stream::iter(looks).buffer_unordered(HEADS_AT_ONCE);
            while let Some(entry) = looks.next().await {
                if found.send(entry?).await.is_err() {
                    return Ok(());
                }
            }
            match page.next_continuation_token {
                Some(next) => token = Some(next),
                None => break,
            }
        }
        if any || self.prefix.is_empty() {
            return Ok(());
        }
        Err(TransferError::NotFound { op: "list", place: self.name.clone(), path: String::new() })
    }

    async fn stat(&self, path: &RelativePath) -> Result<Found, TransferError> {
        let head = self.client.head(&self.key(path), path.as_str()).await?;
        let size = head.header("content-length").and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| self.bad_entry(path.as_str(), "the server does not tell its size"))?;
        if is_link(&head) {
            return self.look(path.clone(), size, None).await;
        }
        Ok(Found { entry: Entry::File(file_of(&head, size)), path: path.clone(), tag: tag_of(&head, size) })
    }

    async fn fetch(&self, path: &RelativePath, size: u64) -> Result<(Found, Bytes), TransferError> {
        // Another version may have other sizes: the caller sees which one it got.
        let most = size.max(MOST_OTHER_VERSION);
        let (reply, body) = self.client.get_whole(&self.key(path), path.as_str(), None, most).await?;
        if is_link(&reply) {
            return Ok((self.stat(path).await?, body));
        }
        let size = body.len() as u64;
        let entry = Entry::File(file_of(&reply, size));
        Ok((Found { entry, path: path.clone(), tag: tag_of(&reply, size) }, body))
    }

    /// Mode, time and kind come with the contents.
    fn source_detail(&self) -> Detail {
        Detail::Tags
    }

    async fn read_listed(&self, path: &RelativePath, tag: &Tag, size: u64) -> Result<(Entry, Bytes), TransferError> {
        let changed = || TransferError::Changed { place: self.name.clone(), path: path.to_string() };
        let etag = etag_of(tag);
        let (reply, body) = self.client.get_whole(&self.key(path), path.as_str(), Some(&etag), size).await?;
        if tag_of(&reply, body.len() as u64) != *tag {
            return Err(changed());
        }
        let entry = if is_link(&reply) { self.link(path, &body)? } else { Entry::File(file_of(&reply, size)) };
        Ok((entry, body))
    }

    async fn read(
        &self,
        path: &RelativePath,
        tag: Option<&Tag>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, TransferError> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let etag = tag.map(etag_of).unwrap_or_default();
        self.client.get(&self.key(path), path.as_str(), &etag, offset, length).await
    }

    /// An ETag and what was written with it are one: the listing has the ETag.
    fn verify_detail(&self) -> Detail {
        Detail::Tags
    }

    fn part_limits(&self) -> PartLimits {
        PartLimits { smallest: 5 << 20, most: 10_000, in_order: false }
    }

    async fn put(&self, path: &RelativePath, file: &File, data: Bytes) -> Result<Tag, TransferError> {
        Ok(self.put_checked(path, file, data).await?.tag)
    }

    async fn put_checked(&self, path: &RelativePath, file: &File, data: Bytes) -> Result<Written, TransferError> {
        self.put_object(path, metadata(file), data).await
    }

    fn as_s3(&self) -> Option<&S3Place> {
        Some(self)
    }

    async fn copy_inside(
        &self,
        path: &RelativePath,
        file: &File,
        from: &dyn Place,
        below: &RelativePath,
        tag: &Tag,
    ) -> Result<Option<Written>, TransferError> {
        match from.as_s3() {
            Some(from) => self.copy_between(path, file, from, below, tag).await,
            None => Ok(None),
        }
    }

    async fn begin(&self, path: &RelativePath, file: &File) -> Result<String, TransferError> {
        let key = self.key(path);
        self.summed(checksum::upload_headers(), |sums| {
            let (key, headers) = (&key, [metadata(file), sums].concat());
            async move { self.client.begin(key, path.as_str(), &headers).await }
        })
        .await
    }

    async fn can_continue(&self, path: &RelativePath, upload: &str) -> Result<bool, TransferError> {
        match self.client.has_upload(&self.key(path), path.as_str(), upload).await {
            Ok(()) => Ok(true),
            Err(TransferError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn put_part(
        &self,
        path: &RelativePath,
        upload: &str,
        number: u32,
        _offset: u64,
        data: Bytes,
    ) -> Result<String, TransferError> {
        let (key, sum, length) = (self.key(path), sum_of_data(&data).await?, data.len() as u64);
        let reply = self
            .summed(vec![(checksum::HEADER, sum.to_string())], |sums| {
                let (key, data) = (&key, data.clone());
                async move { self.client.put_part(key, path.as_str(), upload, number, &sums, data).await }
            })
            .await?;
        let confirmed = self.confirmed(path, sum, sum_of(&reply)).await?;
        let sent = !self.without_sums.load(Ordering::Relaxed);
        Ok(checksum::receipt(&reply.etag(), sent.then_some((sum, length)), confirmed))
    }

    async fn complete(
        &self,
        path: &RelativePath,
        upload: &str,
        file: &File,
        receipts: &[String],
    ) -> Result<Tag, TransferError> {
        Ok(self.complete_checked(path, upload, file, receipts).await?.tag)
    }

    async fn complete_checked(
        &self,
        path: &RelativePath,
        upload: &str,
        file: &File,
        receipts: &[String],
    ) -> Result<Written, TransferError> {
        let Receipts { parts, whole, confirmed } = checksum::from_receipts(receipts, file.size);
        let (etag, said) = self.client.complete(&self.key(path), path.as_str(), upload, &parts, whole).await?;
        let checked = match whole {
            Some(whole) => self.confirmed(path, whole, said).await? && confirmed,
            None => false,
        };
        Ok(Written { tag: tag(&etag, file.size), checked })
    }

    async fn abort(&self, path: &RelativePath, upload: &str) -> Result<(), TransferError> {
        match self.client.abort(&self.key(path), path.as_str(), upload).await {
            Err(TransferError::NotFound { .. }) => Ok(()),
            result => result,
        }
    }

    async fn make_directory(&self, path: &RelativePath, empty: bool) -> Result<(), TransferError> {
        if !empty {
            return Ok(());
        }
        let key = if path.is_root() { self.prefix.clone() } else { format!("{}/", self.key(path)) };
        if key.is_empty() {
            return Ok(());
        }
        self.client.put(&key, path.as_str(), &[], Bytes::new()).await.map(drop)
    }

    async fn make_symlink(&self, path: &RelativePath, target: &str) -> Result<Tag, TransferError> {
        Ok(self.make_symlink_checked(path, target).await?.tag)
    }

    async fn make_symlink_checked(&self, path: &RelativePath, target: &str) -> Result<Written, TransferError> {
        let kind = vec![(KIND, "symlink".to_owned())];
        self.put_object(path, kind, Bytes::copy_from_slice(target.as_bytes())).await
    }

    async fn sync(&self, _: &[RelativePath]) -> Result<(), TransferError> {
        Ok(())
    }

    async fn remove(&self, path: &RelativePath) -> Result<(), TransferError> {
        let key = self.key(path);
        self.client.delete(&key, path.as_str()).await?;
        self.client.delete(&format!("{key}/"), path.as_str()).await
    }

    async fn remove_all(&self) -> Result<(), TransferError> {
        if self.prefix.is_empty() {
            let why = "a whole bucket is never removed; give the tree a prefix".to_owned();
            return Err(TransferError::BadLocation { uri: self.name.clone(), why });
        }
        self.remove_objects().await
    }

    async fn target_state(&self) -> Result<TargetState, TransferError> {
        let page = self.client.list(&self.prefix, None, Some(1)).await?;
        Ok(if page.contents.is_empty() { TargetState::Absent } else { TargetState::Partial })
    }

    async fn commit(&self) -> Result<(), TransferError> {
        Ok(())
    }
}

/// How long a signed request may wait before it is sent.
const SIGNATURE_LIFE: Duration = Duration::from_secs(900);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_their_text() {
        for mtime in [0, 1, -1, 1_700_000_000_123_456_789, -5_000_000_001, i64::MAX, i64::MIN] {
            assert_eq!(parse_seconds(&show_seconds(mtime)), Some(mtime));
        }
        assert_eq!(parse_seconds("1354823593"), Some(1_354_823_593_000_000_000));
        assert_eq!(parse_seconds("soon"), None);
    }

    #[test]
    fn a_tag_gives_its_etag_back() {
        assert_eq!(etag_of(&tag("\"abc-3\"", 10)), "\"abc-3\"");
    }
}
