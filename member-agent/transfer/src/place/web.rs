//! Files of a web server, read only: one file by its URL, or, when the URL ends in `/`, the tree that its index pages name.
//!
//! An index page is what servers make of a directory: HTML with links. Links to what lies directly below the page's own URL
//! are its entries, those that end in `/` its directories; every other link (parents, sorting, other servers) is left
//! alone. Size, time and version of a file are those of its headers; a file without a strong ETag and without a time of
//! change is refused, because two versions of it could not be told apart. Every answer must name the version that was
//! asked for, whether or not the server heeds `If-Match`; a range must be answered by that range.
//!
//! Why not through OpenDAL: it lists nothing over HTTP, and takes the whole file for an answer to a range.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use fluvial_model::manifest::{Entry, File, RelativePath};
use futures::{StreamExt, stream};
use percent_encoding::percent_decode_str;
use reqwest::header::{self, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Method, Response, StatusCode};
use tokio::sync::mpsc;
use url::Url;

use super::http::{REQUEST_LIMIT, body_limit, client, innermost, retried};
use super::readonly::Source;
use super::{Detail, Found, Tag};
use crate::TransferError;
use crate::location::Location;

/// Redirects that are followed: mirrors send elsewhere.
const MOST_REDIRECTS: usize = 5;
/// The longest index page: some 100,000 entries.
const MOST_INDEX: u64 = 16 << 20;
/// Files that are looked at together while listing.
const HEADS_AT_ONCE: usize = 16;
/// Permission bits of every file: servers tell none.
const MODE: u32 = 0o644;

/// A file or a tree of a web server.
pub(crate) struct Web {
    http: reqwest::Client,
    /// Of the file, or, with a `/` at its end, of the tree.
    url: Url,
    /// The file's name, if it is one.
    single: Option<RelativePath>,
    authorization: Option<header::HeaderValue>,
    name: String,
}

/// What the headers of an answer say of a file.
struct Version {
    size: u64,
    mtime_ns: i64,
    etag: Option<String>,
}

impl Version {
    /// ETag, or time, and size.
    fn tag(&self) -> Tag {
        match &self.etag {
            Some(etag) => Tag(format!("{etag} {}", self.size)),
            None => Tag(format!("{} {}", self.mtime_ns, self.size)),
        }
    }
}

/// The ETag of a tag, if it has one.
fn etag_of(tag: &Tag) -> Option<&str> {
    tag.0.rsplit_once(' ').map(|(etag, _)| etag).filter(|etag| etag.starts_with('"'))
}

impl Web {
    /// Options are OpenDAL's: `username` and, among the secrets, `password` or `token`.
    ///
    /// # Errors
    /// When the URI or an option cannot be used.
    pub(crate) fn new(location: &Location) -> Result<Self, TransferError> {
        let bad = |why: String| TransferError::BadLocation { uri: location.shown(), why };
        let mut url = Url::parse(&location.uri).map_err(|error| bad(error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(bad("user, password, query and fragment do not belong into it".to_owned()));
        }
        let single = if url.path().ends_with('/') {
            None
        } else {
            let last = decoded(url.path().rsplit('/').next().unwrap_or_default());
            Some(RelativePath::parse(&last).map_err(|error| bad(error.to_string()))?)
        };
        // As users write names, not as URLs have them.
        let path: Vec<_> = url.path().split('/').skip(1).map(decoded).collect();
        url.path_segments_mut().map_err(|()| bad("it must be `https://HOST/…`".to_owned()))?.clear().extend(path);
        let given = |text: String| {
            let mut value =
                header::HeaderValue::from_str(&text).map_err(|_| bad("a secret is no header".to_owned()))?;
            value.set_sensitive(true);
            Ok(value)
        };
        let authorization = match (location.option("token"), location.option("username")) {
            (Some(token), _) => Some(given(format!("Bearer {token}"))?),
            (None, Some(user)) => {
                use base64::Engine as _;
                let both = format!("{user}:{}", location.option("password").unwrap_or_default());
                Some(given(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(both)))?)
            }
            (None, None) => None,
        };
        let http = client(Policy::limited(MOST_REDIRECTS)).map_err(bad)?;
        Ok(Self { http, url, single, authorization, name: location.shown() })
    }

    fn url_of(&self, path: &RelativePath) -> Result<Url, TransferError> {
        if self.single.as_ref().is_some_and(|single| single == path) {
            return Ok(self.url.clone());
        }
        let missing = || TransferError::NotFound { op: "read", place: self.name.clone(), path: path.to_string() };
        let mut url = self.url.clone();
        if self.single.is_some() {
            return Err(missing());
        }
        url.path_segments_mut().map_err(|()| missing())?.pop_if_empty().extend(path.as_str().split('/'));
        Ok(url)
    }

    fn bad_entry(&self, name: &str, why: impl Into<String>) -> TransferError {
        TransferError::BadEntry { place: self.name.clone(), name: name.escape_debug().to_string(), why: why.into() }
    }

    fn changed(&self, path: &str) -> TransferError {
        TransferError::Changed { place: self.name.clone(), path: path.to_owned() }
    }

    fn malformed(&self, op: &'static str, path: &str, what: &str) -> TransferError {
        let (place, path, code) = (self.name.clone(), path.to_owned(), format!("with {what}"));
        TransferError::Server { op, place, path, status: 200, code }
    }

    fn broken(&self, op: &'static str, error: reqwest::Error) -> TransferError {
        TransferError::Unreachable { op, place: self.name.clone(), why: innermost(&error.without_url()) }
    }

    /// One request, and what an answer that is no success means.
    async fn send(
        &self,
        op: &'static str,
        path: &str,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        limit: Duration,
    ) -> Result<Response, TransferError> {
        let mut request = self.http.request(method, url.clone()).timeout(limit).headers(headers.clone());
        // What is compressed on the way has another length.
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization.clone());
        }
        let response = request.send().await.map_err(|error| self.broken(op, error))?;
        let (status, place, path) = (response.status(), self.name.clone(), path.to_owned());
        match status {
            status if status.is_success() => Ok(response),
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(TransferError::NotFound { op, place, path }),
            StatusCode::UNAUTHORIZED => {
                Err(TransferError::CredentialsRefused { op, place, code: status.as_str().to_owned() })
            }
            StatusCode::FORBIDDEN => Err(TransferError::Denied { op, place, path }),
            StatusCode::PRECONDITION_FAILED => Err(self.changed(&path)),
            status => Err(TransferError::Server { op, place, path, status: status.as_u16(), code: String::new() }),
        }
    }

    /// The version that headers tell of a file of `size` bytes.
    fn version(&self, path: &str, headers: &HeaderMap, size: u64) -> Result<Version, TransferError> {
        let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        // A weak one says that versions are much alike.
        let etag = text(header::ETAG).filter(|etag| etag.starts_with('"')).map(str::to_owned);
        let time = text(header::LAST_MODIFIED).and_then(|text| jiff::fmt::rfc2822::parse(text).ok());
        let time = time.and_then(|time| time.timestamp().as_second().checked_mul(1_000_000_000));
        if etag.is_none() && time.is_none() {
            return Err(self.bad_entry(path, "the server tells neither an ETag nor a time of change"));
        }
        Ok(Version { size, mtime_ns: time.unwrap_or(0), etag })
    }

    async fn look(&self, path: &RelativePath) -> Result<Found, TransferError> {
        let url = self.url_of(path)?;
        retried(|| async {
            let op = "look at";
            let answer = self.send(op, path.as_str(), Method::HEAD, &url, &HeaderMap::new(), REQUEST_LIMIT).await?;
            let size = length_of(answer.headers());
            let size = size.ok_or_else(|| self.bad_entry(path.as_str(), "the server does not tell its size"))?;
            let version = self.version(path.as_str(), answer.headers(), size)?;
            let file = File { size, mtime_ns: version.mtime_ns, mode: MODE, digest: None };
            Ok(Found { path: path.clone(), entry: Entry::File(file), tag: version.tag() })
        })
        .await
    }

    async fn body(
        &self,
        op: &'static str,
        path: &str,
        mut answer: Response,
        most: u64,
    ) -> Result<Bytes, TransferError> {
        let expected = answer.content_length().unwrap_or(0).min(most);
        let mut body = BytesMut::with_capacity(usize::try_from(expected).unwrap_or(0));
        while let Some(frame) = answer.chunk().await.map_err(|error| self.broken(op, error))? {
            if body.len() as u64 + frame.len() as u64 > most {
                return Err(self.malformed(op, path, "too many bytes"));
            }
            body.extend_from_slice(&frame);
        }
        Ok(body.freeze())
    }

    /// What an index page names: directories and files.
    async fn index(&self, directory: &RelativePath) -> Result<(Vec<RelativePath>, Vec<RelativePath>), TransferError> {
        let mut url = self.url.clone();
        if !directory.is_root() {
            let segments = url.path_segments_mut();
            let mut segments = segments.map_err(|()| self.bad_entry(directory.as_str(), "it has no URL"))?;
            segments.pop_if_empty().extend(directory.as_str().split('/')).push("");
        }
        let (op, path) = ("list", directory.as_str());
        let page = retried(|| async {
            let answer = self.send(op, path, Method::GET, &url, &HeaderMap::new(), body_limit(MOST_INDEX)).await?;
            let html = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            if !html.is_some_and(|kind| kind.starts_with("text/html")) {
                return Err(self.malformed(op, path, "no index page, which a location that ends in `/` needs"));
            }
            self.body(op, path, answer, MOST_INDEX).await
        })
        .await?;
        let (mut directories, mut files) = (Vec::new(), Vec::new());
        for (name, is_directory) in entries(&url, &String::from_utf8_lossy(&page)) {
            let full = if directory.is_root() { name } else { format!("{directory}/{name}") };
            let path = RelativePath::parse(&full).map_err(|error| self.bad_entry(&full, error.to_string()))?;
            if is_directory { &mut directories } else { &mut files }.push(path);
        }
        Ok((directories, files))
    }
}

/// The entries of an index page: names that lie directly below its URL, and whether they are directories.
fn entries(page: &Url, html: &str) -> std::collections::BTreeSet<(String, bool)> {
    let mut found = std::collections::BTreeSet::new();
    let lower = html.to_ascii_lowercase();
    let mut at = 0;
    while let Some(start) = lower[at..].find("href=").map(|start| at + start + "href=".len()) {
        at = start;
        let Some(quote) = html[start..].chars().next().filter(|quote| matches!(quote, '"' | '\'')) else { continue };
        let Some(end) = html[start + 1..].find(quote).map(|end| start + 1 + end) else { break };
        at = end;
        let link = html[start + 1..end].replace("&amp;", "&").replace("&#39;", "'").replace("&quot;", "\"");
        let Ok(target) = page.join(&link) else { continue };
        let below = target.path().strip_prefix(page.path()).unwrap_or_default();
        let name = decoded(below.trim_end_matches('/'));
        let own = target.origin() == page.origin() && target.query().is_none() && target.fragment().is_none();
        if own && !name.is_empty() && !below.trim_end_matches('/').contains('/') {
            found.insert((name, below.ends_with('/')));
        }
    }
    found
}

/// A part of a URL as a name.
fn decoded(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}

fn length_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// First byte and size of the whole that an answer to a range names.
fn range_of(headers: &HeaderMap) -> Option<(u64, u64)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, size) = text.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, size.parse().ok()?))
}

#[async_trait]
impl Source for Web {
    fn name(&self) -> &str {
        &self.name
    }

    async fn probe(&self) -> Result<(), TransferError> {
        match &self.single {
            Some(file) => self.look(file).await.map(drop),
            None => self.index(&RelativePath::root()).await.map(drop),
        }
    }

    async fn list(&self, _: Detail, found: mpsc::Sender<Found>) -> Result<(), TransferError> {
        if let Some(file) = &self.single {
            let file = self.look(file).await?;
            // A receiver that is gone wants nothing more.
            let _ = found.send(file).await;
            return Ok(());
        }
        let mut open = vec![RelativePath::root()];
        while let Some(directory) = open.pop() {
            let (directories, files) = self.index(&directory).await?;
            for path in &directories {
                let own = Found { path: path.clone(), entry: Entry::Directory, tag: Tag(String::new()) };
                if found.send(own).await.is_err() {
                    return Ok(());
                }
            }
            open.extend(directories);
            let looks = files.into_iter().map(|path| async move { self.look(&path).await });
            let mut looks = stream::iter(looks).buffer_unordered(HEADS_AT_ONCE);
            while let Some(file) = looks.next().await {
                if found.send(file?).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn stat(&self, path: &RelativePath) -> Result<Found, TransferError> {
        self.look(path).await
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
        let url = self.url_of(path)?;
        let mut headers = HeaderMap::new();
        let range = format!("bytes={offset}-{}", offset.saturating_add(length) - 1);
        let values = [(header::RANGE, Some(range.as_str())), (header::IF_MATCH, tag.and_then(etag_of))];
        for (name, value) in values.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            let value = header::HeaderValue::from_str(value).map_err(|_| self.changed(path.as_str()))?;
            headers.insert(name, value);
        }
        let (op, shown) = ("read", path.as_str());
        retried(|| async {
            let answer = self.send(op, shown, Method::GET, &url, &headers, body_limit(length)).await?;
            let size = match answer.status() {
                // Nothing is there, as with a file; a file that is shorter now has another tag.
                StatusCode::RANGE_NOT_SATISFIABLE => {
                    let now = self.look(path).await?;
                    let same = tag.is_none_or(|tag| *tag == now.tag);
                    return if same { Ok(Bytes::new()) } else { Err(self.changed(shown)) };
                }
                StatusCode::PARTIAL_CONTENT => match range_of(answer.headers()) {
                    Some((first, size)) if first == offset => size,
                    _ => return Err(self.malformed(op, shown, "another range than was asked for")),
                },
                _ if offset > 0 => return Err(self.malformed(op, shown, "the whole file instead of a range")),
                _ => length_of(answer.headers()).ok_or_else(|| self.malformed(op, shown, "no length"))?,
            };
            let version = self.version(shown, answer.headers(), size)?;
            if tag.is_some_and(|tag| *tag != version.tag()) {
                return Err(self.changed(shown));
            }
            if answer.status() != StatusCode::PARTIAL_CONTENT && size > length {
                return Err(self.malformed(op, shown, "the whole file instead of a range"));
            }
            let body = self.body(op, shown, answer, length).await?;
            if body.len() as u64 == length.min(size.saturating_sub(offset)) {
                return Ok(body);
            }
            Err(TransferError::Unreachable { op, place: self.name.clone(), why: "the answer was cut off".to_owned() })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_page_names_what_lies_directly_below_it() {
        let page = Url::parse("https://host/data/set/").unwrap();
        let html = r##"<a href="../">Parent</a> <A HREF="?C=M;O=A">Modified</A> <a href='a%20b.txt'>a b</a>
            <a href="/data/set/sub/">sub</a> <a href="https://other/data/set/x">x</a> <a href="sub/deep">no</a>
            <a href="a%20b.txt">again</a> <a href="#top">top</a> <a href="mailto:me@host">me</a> <a href="&#39;q&#39;">q</a>"##;
        let found: Vec<_> = entries(&page, html).into_iter().collect();
        assert_eq!(found, [("'q'".to_owned(), false), ("a b.txt".to_owned(), false), ("sub".to_owned(), true)]);
    }

    #[test]
    fn ranges_are_read_as_servers_write_them() {
        let headers = |text: &str| HeaderMap::from_iter([(header::CONTENT_RANGE, text.parse().unwrap())]);
        assert_eq!(range_of(&headers("bytes 5-9/100")), Some((5, 100)));
        assert_eq!(range_of(&headers("bytes */100")), None);
        assert_eq!(range_of(&headers("bytes 5-9/*")), None);
    }
}
