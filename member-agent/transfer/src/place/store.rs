//! A directory of a store that OpenDAL speaks to, read only: WebHDFS.
//!
//! Files have their size and time; everything has mode 644, as OpenDAL tells no other. A tag is the ETag, or time and size
//! where the store has none: then a file is looked at again after each read, and what was read counts only if it is still
//! the same. Not written to: such a store keeps neither modes nor times, so that no copy in it could have its source's root
//! (`docs/decisions/0010`).

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{Entry, File, RelativePath};
use futures::TryStreamExt;
use opendal::{Metadata, Operator, services};
use reqwest::redirect::Policy;
use tokio::sync::mpsc;

use super::dal::{Dal, mtime_of};
use super::http::{REQUEST_LIMIT, body_limit};
use super::readonly::Source;
use super::{Detail, Found, Tag};
use crate::TransferError;
use crate::location::Location;

/// Permission bits of every file.
const MODE: u32 = 0o644;
/// Redirects that are followed.
const MOST_REDIRECTS: usize = 3;

/// A directory of a store.
pub(crate) struct Store {
    dal: Dal,
    /// Empty, or with a `/` at its end.
    prefix: String,
}

impl Store {
    /// A directory of HDFS, by the REST API of its name node: `webhdfs://HOST:PORT/DIR`. Options are OpenDAL's:
    /// `endpoint` (for TLS: `https://HOST:PORT`), `user_name` and, among the secrets, `delegation`.
    ///
    /// # Errors
    /// When the URI or an option cannot be used.
    pub(crate) fn webhdfs(location: &Location, rest: &str) -> Result<Self, TransferError> {
        let bad = |why: String| TransferError::BadLocation { uri: location.shown(), why };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.is_empty() || authority.contains(['@', '?', '#']) {
            return Err(bad("it must be `webhdfs://HOST:PORT/DIR`, with the name node's HTTP port".to_owned()));
        }
        let path = path.trim_end_matches('/');
        if !path.is_empty() {
            RelativePath::parse(path).map_err(|error| bad(error.to_string()))?;
        }
        // The root stays `/`: OpenDAL makes a root that is not there, and sources are never written to.
        let mut builder = services::Webhdfs::default().root("/");
        builder = match location.option("endpoint") {
            Some(endpoint) => builder.endpoint(endpoint),
            None => builder.endpoint(&format!("http://{authority}")),
        };
        if let Some(user) = location.option("user_name") {
            builder = builder.user_name(user);
        }
        if let Some(token) = location.option("delegation") {
            builder = builder.delegation(token);
        }
        let operator = Operator::new(builder).map_err(|error| bad(error.message().to_owned()))?;
        // A name node sends its readers to a data node.
        let dal = Dal::new(operator, Policy::limited(MOST_REDIRECTS), location.shown()).map_err(bad)?;
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        Ok(Self { dal, prefix })
    }

    fn key(&self, path: &RelativePath) -> Result<String, TransferError> {
        self.dal.key(&self.prefix, path)
    }

    async fn look(&self, op: &'static str, key: &str, path: &str) -> Result<Metadata, TransferError> {
        self.dal.request(op, path, REQUEST_LIMIT, || self.dal.operator.stat(key)).await
    }

    /// Sends what one directory holds; returns the directories among it.
    async fn list_one(
        &self,
        directory: &str,
        found: &mpsc::Sender<Found>,
    ) -> Result<Option<Vec<String>>, TransferError> {
        let shown = directory.strip_prefix(&self.prefix).unwrap_or(directory);
        let key = if directory.is_empty() { "/" } else { directory };
        let mut entries = self.dal.request("list", shown, REQUEST_LIMIT, || self.dal.operator.lister(key)).await?;
        let mut below = Vec::new();
        loop {
            let next = self.dal.in_time("list", REQUEST_LIMIT, entries.try_next()).await?;
            let Some(entry) = next.map_err(|error| self.dal.failed("list", shown, &error))? else {
                return Ok(Some(below));
            };
            let name = entry.path().strip_prefix(directory).unwrap_or(entry.path()).trim_matches('/');
            if name.is_empty() {
                continue;
            }
            let full = format!("{directory}{name}");
            let relative = full.strip_prefix(&self.prefix).unwrap_or(&full);
            let path = self.dal.path(&full, relative)?;
            if entry.metadata().is_dir() {
                below.push(format!("{full}/"));
            }
            if found.send(found_of(path, entry.metadata())).await.is_err() {
                return Ok(None);
            }
        }
    }
}

/// The version of a file.
fn tag_of(metadata: &Metadata) -> Tag {
    let size = metadata.content_length();
    match metadata.etag() {
        Some(etag) => Tag(format!("{etag} {size}")),
        None => Tag(format!("{} {size}", mtime_of(metadata))),
    }
}

/// The size that a tag says.
fn size_of(tag: &Tag) -> Option<u64> {
    tag.0.rsplit_once(' ')?.1.parse().ok()
}

fn found_of(path: RelativePath, metadata: &Metadata) -> Found {
    if metadata.is_dir() {
        return Found { path, entry: Entry::Directory, tag: Tag(String::new()) };
    }
    let (size, mtime_ns) = (metadata.content_length(), mtime_of(metadata));
    Found { path, entry: Entry::File(File { size, mtime_ns, mode: MODE, digest: None }), tag: tag_of(metadata) }
}

#[async_trait]
impl Source for Store {
    fn name(&self) -> &str {
        &self.dal.name
    }

    async fn probe(&self) -> Result<(), TransferError> {
        let key = if self.prefix.is_empty() { "/" } else { &self.prefix };
        self.look("probe", key, "").await.map(drop)
    }

    async fn list(&self, _: Detail, found: mpsc::Sender<Found>) -> Result<(), TransferError> {
        // A directory that is not there is listed as empty.
        self.probe().await?;
        let mut open = vec![self.prefix.clone()];
        while let Some(directory) = open.pop() {
            match self.list_one(&directory, &found).await? {
                Some(below) => open.extend(below),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    async fn stat(&self, path: &RelativePath) -> Result<Found, TransferError> {
        Ok(found_of(path.clone(), &self.look("look at", &self.key(path)?, path.as_str()).await?))
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
            None => self.stat(path).await?.tag,
        };
        // Stores differ in what they say to a range behind the end.
        let size = size_of(&tag).ok_or_else(|| self.dal.changed(path))?;
        let end = size.min(offset.saturating_add(length));
        let data = if offset < end {
            let read = || {
                let reading = self.dal.operator.read_with(&key).range(offset..end);
                async move { reading.await }
            };
            let data = self.dal.request("read", path.as_str(), body_limit(end - offset), read).await;
            match data {
                // It is shorter now.
                Err(TransferError::Denied { .. } | TransferError::Server { status: 400, .. })
                    if self.stat(path).await?.tag != tag =>
                {
                    return Err(self.dal.changed(path));
                }
                data => data?.to_bytes(),
            }
        } else {
            Bytes::new()
        };
        if self.stat(path).await?.tag != tag {
            return Err(self.dal.changed(path));
        }
        if data.len() as u64 != end.saturating_sub(offset) {
            let why = format!("{} bytes came of {}", data.len(), end.saturating_sub(offset));
            return Err(TransferError::Unreachable { op: "read", place: self.dal.name.clone(), why });
        }
        Ok(data)
    }
}
