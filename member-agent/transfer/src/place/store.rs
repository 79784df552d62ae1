//! A directory of a store that OpenDAL speaks to, read only: WebHDFS.
//!
//! Files have their size and time; everything has mode 644, as OpenDAL tells no other. A tag is the ETag, or time and size
//! where the store has none: then a file is looked at again after each read, and what was read counts only if it is still
//! the same. Not written to: such a store keeps neither modes nor times, so that no copy in it could have its source's root
//! (`docs/decisions/0010`).

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{Entry, File, RelativePath};
use futures::TryStreamExt;
use opendal::{ErrorKind, HttpTransporter, Metadata, Operator, services};
use opendal_http_transport_reqwest::ReqwestTransport;
use reqwest::redirect::Policy;
use tokio::sync::mpsc;

use super::http::{REQUEST_LIMIT, body_limit, client, innermost, retried};
use super::readonly::Source;
use super::{Detail, Found, Tag};
use crate::TransferError;
use crate::location::Location;

/// Permission bits of every file.
const MODE: u32 = 0o644;
/// Redirects that are followed.
const MOST_REDIRECTS: usize = 3;
/// The longest text of a server that an error repeats.
const LONGEST_WORD: usize = 200;

/// A directory of a store.
pub(crate) struct Store {
    operator: Operator,
    name: String,
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
        let http = client(Policy::limited(MOST_REDIRECTS)).map_err(bad)?;
        let transport = HttpTransporter::new(ReqwestTransport::new(http));
        let context = operator.base_context().with_http_transport(transport);
        let operator = operator.with_context(context);
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        Ok(Self { operator, name: location.shown(), prefix })
    }

    /// A path as the store knows it. OpenDAL takes white space from both ends: such a name would be another one.
    fn key(&self, path: &RelativePath) -> Result<String, TransferError> {
        let key = format!("{}{path}", self.prefix);
        if key.trim() == key { Ok(key) } else { Err(self.bad_entry(path.as_str(), WHITE_SPACE)) }
    }

    fn bad_entry(&self, name: &str, why: impl Into<String>) -> TransferError {
        TransferError::BadEntry { place: self.name.clone(), name: name.escape_debug().to_string(), why: why.into() }
    }

    fn changed(&self, path: &RelativePath) -> TransferError {
        TransferError::Changed { place: self.name.clone(), path: path.to_string() }
    }

    /// What an error of OpenDAL means.
    fn failed(&self, op: &'static str, path: &str, error: &opendal::Error) -> TransferError {
        let (place, path) = (self.name.clone(), path.to_owned());
        let cause = std::error::Error::source(error).map(innermost);
        let mut why = cause.unwrap_or_else(|| error.message().to_owned());
        why.truncate(why.floor_char_boundary(LONGEST_WORD));
        match error.kind() {
            ErrorKind::NotFound => TransferError::NotFound { op, place, path },
            ErrorKind::PermissionDenied => TransferError::Denied { op, place, path },
            ErrorKind::ConditionNotMatch => TransferError::Changed { place, path },
            ErrorKind::RateLimited => TransferError::Server { op, place, path, status: 429, code: why },
            ErrorKind::ConfigInvalid => TransferError::BadLocation { uri: place, why },
            _ if error.is_temporary() => TransferError::Unreachable { op, place, why },
            // An answer that is neither a success nor something that passes.
            kind => TransferError::Server { op, place, path, status: 400, code: format!("{kind}: {why}") },
        }
    }

    /// Does one request in time, again where that may help.
    async fn request<T, F>(
        &self,
        op: &'static str,
        path: &str,
        limit: Duration,
        mut call: impl FnMut() -> F,
    ) -> Result<T, TransferError>
    where
        F: Future<Output = opendal::Result<T>>,
    {
        retried(|| {
            let call = tokio::time::timeout(limit, call());
            async move {
                match call.await {
                    Ok(answer) => answer.map_err(|error| self.failed(op, path, &error)),
                    Err(_) => Err(TransferError::Unreachable {
                        op,
                        place: self.name.clone(),
                        why: format!("no answer within {} s", limit.as_secs()),
                    }),
                }
            }
        })
        .await
    }

    async fn look(&self, op: &'static str, key: &str, path: &str) -> Result<Metadata, TransferError> {
        self.request(op, path, REQUEST_LIMIT, || self.operator.stat(key)).await
    }

    /// Sends what one directory holds; returns the directories among it.
    async fn list_one(
        &self,
        directory: &str,
        found: &mpsc::Sender<Found>,
    ) -> Result<Option<Vec<String>>, TransferError> {
        let shown = directory.strip_prefix(&self.prefix).unwrap_or(directory);
        let key = if directory.is_empty() { "/" } else { directory };
        let mut entries = self.request("list", shown, REQUEST_LIMIT, || self.operator.lister(key)).await?;
        let mut below = Vec::new();
        loop {
            let next = tokio::time::timeout(REQUEST_LIMIT, entries.try_next()).await;
            let next = next.map_err(|_| TransferError::Unreachable {
                op: "list",
                place: self.name.clone(),
                why: format!("no answer within {} s", REQUEST_LIMIT.as_secs()),
            })?;
            let Some(entry) = next.map_err(|error| self.failed("list", shown, &error))? else { return Ok(Some(below)) };
            let name = entry.path().strip_prefix(directory).unwrap_or(entry.path()).trim_matches('/');
            if name.is_empty() {
                continue;
            }
            let full = format!("{directory}{name}");
            let relative = full.strip_prefix(&self.prefix).unwrap_or(&full);
            if full.trim() != full {
                return Err(self.bad_entry(relative, WHITE_SPACE));
            }
            let path = RelativePath::parse(relative).map_err(|error| self.bad_entry(relative, error.to_string()))?;
            if entry.metadata().is_dir() {
                below.push(format!("{full}/"));
            }
            if found.send(found_of(path, entry.metadata())).await.is_err() {
                return Ok(None);
            }
        }
    }
}

/// Why a name cannot be kept.
const WHITE_SPACE: &str = "a name that begins or ends with white space cannot be read from this kind of store";

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

fn mtime_of(metadata: &Metadata) -> i64 {
    let time = metadata.last_modified().map(|time| time.into_inner().as_nanosecond());
    time.and_then(|time| i64::try_from(time).ok()).unwrap_or(0)
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
        &self.name
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
        let size = size_of(&tag).ok_or_else(|| self.changed(path))?;
        let end = size.min(offset.saturating_add(length));
        let data = if offset < end {
            let read = || {
                let reading = self.operator.read_with(&key).range(offset..end);
                async move { reading.await }
            };
            let data = self.request("read", path.as_str(), body_limit(end - offset), read).await;
            match data {
                // It is shorter now.
                Err(TransferError::Denied { .. } | TransferError::Server { status: 400, .. })
                    if self.stat(path).await?.tag != tag =>
                {
                    return Err(self.changed(path));
                }
                data => data?.to_bytes(),
            }
        } else {
            Bytes::new()
        };
        if self.stat(path).await?.tag != tag {
            return Err(self.changed(path));
        }
        if data.len() as u64 != end.saturating_sub(offset) {
            let why = format!("{} bytes came of {}", data.len(), end.saturating_sub(offset));
            return Err(TransferError::Unreachable { op: "read", place: self.name.clone(), why });
        }
        Ok(data)
    }
}
