//! The requests of S3 that a tree needs: signed, with deadlines, tried again where that may help, errors typed.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode, header};
use rusty_s3::actions::list_objects_v2::ListObjectsV2Response;
use rusty_s3::actions::{CompleteMultipartUploadResponse, CreateMultipartUpload, ListObjectsV2, S3Action};
use rusty_s3::{Bucket, Credentials, UrlStyle};
use url::Url;

use super::SIGNATURE_LIFE;
use super::checksum::{self, Sum};
use crate::TransferError;
use crate::location::Location;
use crate::place::http::{REQUEST_LIMIT, body_limit, client, innermost, retried};

/// How long completing an object may take: servers join parts for minutes.
const COMPLETE_LIMIT: Duration = Duration::from_secs(300);

/// One bucket.
pub(super) struct Client {
    http: reqwest::Client,
    bucket: Bucket,
    credentials: Option<Credentials>,
    endpoint: String,
    place: String,
}

/// Room that is made for a body before it comes: a server may announce anything.
const MOST_RESERVED: u64 = 64 << 20;
/// The longest XML: a page of 1,000 keys of 1,024 bytes, each byte escaped, takes about 4 MiB.
const MOST_XML: u64 = 16 << 20;

/// What is not escaped in the name of an object that is copied.
const COPY_SOURCE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A header of a request.
pub(super) type Header = (&'static str, String);

/// A part that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) etag: String,
    /// The checksum that the store answered with.
    pub(super) sum: Option<Sum>,
}

/// An answer that was a success.
pub(super) struct Reply {
    headers: header::HeaderMap,
    body: Bytes,
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(super) fn etag(&self) -> String {
        self.header("etag").unwrap_or_default().to_owned()
    }

    /// When the object was written; servers tell whole seconds here.
    pub(super) fn modified_ns(&self) -> Option<i64> {
        let time = jiff::fmt::rfc2822::parse(self.header("last-modified")?).ok()?;
        time.timestamp().as_second().checked_mul(1_000_000_000)
    }
}

/// One request, made again for every try: a signature has a time.
struct Request<'a> {
    op: &'static str,
    /// What it is about, in messages.
    path: &'a str,
    method: Method,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    limit: Duration,
    /// The most bytes that the answer may have: what a server sends must not decide over our memory.
    most: u64,
}

impl<'a> Request<'a> {
    fn new(op: &'static str, path: &'a str, method: Method) -> Self {
        let (headers, body) = (Vec::new(), Bytes::new());
        Self { op, path, method, headers, body, limit: REQUEST_LIMIT, most: MOST_XML }
    }

    /// With something that is sent, and headers that are signed with it.
    fn sending(self, headers: &[Header], body: Bytes) -> Self {
        Self { headers: headers.to_vec(), limit: body_limit(body.len() as u64), body, ..self }
    }

    /// For an answer of so many bytes.
    fn expecting(self, bytes: u64) -> Self {
        Self { limit: body_limit(bytes), most: bytes, ..self }
    }
}

impl Client {
    pub(super) fn new(location: &Location, bucket: &str, place: String) -> Result<Self, TransferError> {
        let bad = |why: String| TransferError::BadLocation { uri: location.shown(), why };
        let option = |key: &str| location.option(key).map(Cow::Borrowed);
        let region = option("region").unwrap_or(Cow::Borrowed("us-east-1")).into_owned();
        let given = option("endpoint");
        let endpoint = match &given {
            Some(endpoint) if endpoint.contains("://") => endpoint.clone().into_owned(),
            Some(endpoint) => format!("https://{endpoint}"),
            None => format!("https://s3.{region}.amazonaws.com"),
        };
        let url = Url::parse(&endpoint).map_err(|error| bad(format!("option `endpoint` is not a URL: {error}")))?;
        let style = match option("enable_virtual_host_style").as_deref() {
            Some("true") => UrlStyle::VirtualHost,
            _ => UrlStyle::Path,
        };
        let credentials = match (option("access_key_id"), option("secret_access_key")) {
            (Some(key), Some(secret)) => Some(match option("session_token") {
                Some(token) => Credentials::new_with_token(key.into_owned(), secret.into_owned(), token.into_owned()),
                None => Credentials::new(key.into_owned(), secret.into_owned()),
            }),
            (None, None) => None,
            (Some(_), None) => return Err(bad("`access_key_id` is given without `secret_access_key`".to_owned())),
            (None, Some(_)) => return Err(bad("`secret_access_key` is given without `access_key_id`".to_owned())),
        };
        let shown = url.host_str().map_or_else(String::new, |host| match url.port() {
            Some(port) => format!("{}://{host}:{port}", url.scheme()),
            None => format!("{}://{host}", url.scheme()),
        });
        let bucket = Bucket::new(url, style, bucket.to_owned(), region).map_err(|error| bad(error.to_string()))?;
        let http = client(Policy::none()).map_err(bad)?;
        Ok(Self { http, bucket, credentials, endpoint: shown, place })
    }

    fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// Sends a request until it succeeds, fails for good, or has been tried often enough.
    async fn send(&self, request: Request<'_>, sign: impl Fn() -> Url) -> Result<Reply, TransferError> {
        retried(|| self.send_once(&request, sign())).await
    }

    async fn send_once(&self, request: &Request<'_>, url: Url) -> Result<Reply, TransferError> {
        let mut builder = self.http.request(request.method.clone(), url).timeout(request.limit);
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if request.method == Method::PUT || request.method == Method::POST {
            builder = builder.header(header::CONTENT_LENGTH, request.body.len()).body(request.body.clone());
        }
        // Errors of the HTTP library name the URL, which holds the signature.
        let broken = |error: reqwest::Error| TransferError::Unreachable {
            op: request.op,
            place: self.place.clone(),
            why: innermost(&error.without_url()),
        };
        let response = builder.send().await.map_err(broken)?;
        let (status, headers) = (response.status(), response.headers().clone());
        // Into one buffer as it comes: gathered first, it would be in memory twice.
        let most = if status.is_success() { request.most } else { MOST_XML };
        let expected = response.content_length().unwrap_or(0).min(MOST_RESERVED).min(most);
        let mut response = response;
        let mut body = BytesMut::with_capacity(usize::try_from(expected).unwrap_or(0));
        while let Some(frame) = response.chunk().await.map_err(broken)? {
            if body.len() as u64 + frame.len() as u64 > most {
                return Err(self.malformed(request.op, request.path, "too many bytes"));
            }
            body.extend_from_slice(&frame);
        }
        let body = body.freeze();
        if status.is_success() {
            return Ok(Reply { headers, body });
        }
        Err(self.refused(request, status, &String::from_utf8_lossy(&body)))
    }

    /// What an answer that is no success means.
    fn refused(&self, request: &Request<'_>, status: StatusCode, body: &str) -> TransferError {
        let (op, place, path) = (request.op, self.place.clone(), request.path.to_owned());
        let code = between(body, "<Code>", "</Code>").unwrap_or_default().to_owned();
        match (status.as_u16(), code.as_str()) {
            (_, "NoSuchBucket") => TransferError::NoSuchBucket {
                op,
                bucket: self.bucket.name().to_owned(),
                endpoint: self.endpoint.clone(),
            },
            (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken") | (401, _) => {
                TransferError::CredentialsRefused { op, place, code }
            }
            (_, "XMinioStorageFull" | "QuotaExceeded" | "XMinioAdminBucketQuotaExceeded") | (507, _) => {
                TransferError::NoSpace { op, place, path }
            }
            (_, "XMinioReadQuorum" | "XMinioWriteQuorum") if status.is_server_error() => {
                TransferError::Server { op, place, path, status: status.as_u16(), code }
            }
            (400, code) if checksum::is_mismatch(code) => {
                TransferError::Damaged { op, place, path, code: code.to_owned() }
            }
            (403, _) => TransferError::Denied { op, place, path },
            (404, _) => TransferError::NotFound { op, place, path },
            (405, _) => TransferError::ReadOnly { op, place, path },
            (412, _) => TransferError::Changed { place, path },
            (408, _) => TransferError::Unreachable { op, place, why: format!("status 408 {code}") },
            (status, _) => TransferError::Server { op, place, path, status, code },
        }
    }

    fn malformed(&self, op: &'static str, path: &str, what: &str) -> TransferError {
        TransferError::Server {
            op,
            place: self.place.clone(),
            path: path.to_owned(),
            status: 200,
            code: format!("with {what}"),
        }
    }

    /// One page of keys.
    pub(super) async fn list(
        &self,
        prefix: &str,
        token: Option<String>,
        limit: Option<usize>,
    ) -> Result<ListObjectsV2Response, TransferError> {
        self.list_by(prefix, None, token, limit).await
    }

    async fn list_by(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        token: Option<String>,
        limit: Option<usize>,
    ) -> Result<ListObjectsV2Response, TransferError> {
        let reply = self
            .send(Request::new("list", "", Method::GET), || {
                let mut action = self.bucket.list_objects_v2(self.credentials());
                action.with_prefix(prefix);
                if let Some(delimiter) = delimiter {
                    action.with_delimiter(delimiter);
                }
                if let Some(token) = &token {
                    action.with_continuation_token(token.clone());
                }
                if let Some(limit) = limit {
                    action.with_max_keys(limit);
                }
                action.sign(SIGNATURE_LIFE)
            })
            .await?;
        let text =
            std::str::from_utf8(&reply.body).map_err(|_| self.malformed("list", "", "a list that is not UTF-8"))?;
        ListObjectsV2::parse_response(text).map_err(|_| self.malformed("list", "", "a list that cannot be parsed"))
    }

    /// One page of one level: objects, and prefixes that end in `/`.
    pub(super) async fn list_level(
        &self,
        prefix: &str,
        token: Option<String>,
        limit: Option<usize>,
    ) -> Result<ListObjectsV2Response, TransferError> {
        self.list_by(prefix, Some("/"), token, limit).await
    }

    pub(super) async fn head(&self, key: &str, path: &str) -> Result<Reply, TransferError> {
        let request = Request::new("look at", path, Method::HEAD);
        self.send(request, || self.bucket.head_object(self.credentials(), key).sign(SIGNATURE_LIFE)).await
    }

    /// The same, with the checksum that the store keeps.
    pub(super) async fn head_with_sum(&self, key: &str, path: &str) -> Result<Reply, TransferError> {
        let headers = [("x-amz-checksum-mode", "ENABLED".to_owned())];
        let request = Request::new("look at", path, Method::HEAD).sending(&headers, Bytes::new());
        self.send(request, || {
            let mut action = self.bucket.head_object(self.credentials(), key);
            for (name, value) in &headers {
                action.headers_mut().insert(*name, value.as_str());
            }
            action.sign(SIGNATURE_LIFE)
        })
        .await
    }

    /// Whether requests here reach the other's bucket as well: one endpoint and region, the same keys.
    pub(super) fn reaches(&self, other: &Self) -> bool {
        let keys = |client: &Self| {
            client.credentials.as_ref().map(|keys| {
                let token = keys.token().map(str::to_owned);
                (keys.key().to_owned(), keys.secret().to_owned(), token)
            })
        };
        self.endpoint == other.endpoint && self.bucket.region() == other.bucket.region() && keys(self) == keys(other)
    }

    pub(super) fn bucket_name(&self) -> &str {
        self.bucket.name()
    }

    /// Has the store copy one version of an object, with its metadata and a checksum of its own.
    pub(super) async fn copy(
        &self,
        key: &str,
        path: &str,
        source_bucket: &str,
        source_key: &str,
        etag: &str,
        size: u64,
    ) -> Result<(), TransferError> {
        let mut headers = checksum::upload_headers();
        headers.truncate(1);
        headers.push(("x-amz-copy-source-if-match", etag.to_owned()));
        self.copy_from(key, path, &format!("{source_bucket}/{source_key}"), size, headers).await
    }

    /// Has the store copy an object inside the bucket, with its metadata or with other.
    pub(super) async fn copy_within(
        &self,
        from: &str,
        to: &str,
        path: &str,
        size: u64,
        metadata: Option<Vec<Header>>,
    ) -> Result<(), TransferError> {
        let mut headers = Vec::new();
        if let Some(metadata) = metadata {
            headers.push(("x-amz-metadata-directive", "REPLACE".to_owned()));
            headers.extend(metadata);
        }
        self.copy_from(to, path, &format!("{}/{from}", self.bucket.name()), size, headers).await
    }

    async fn copy_from(
        &self,
        key: &str,
        path: &str,
        source: &str,
        size: u64,
        mut headers: Vec<Header>,
    ) -> Result<(), TransferError> {
        headers.push(("x-amz-copy-source", utf8_percent_encode(source, COPY_SOURCE).to_string()));
        let request = Request::new("copy", path, Method::PUT).sending(&headers, Bytes::new());
        let limit = body_limit(size).max(COMPLETE_LIMIT);
        let reply = self.send(Request { limit, ..request }, || self.signed_put(key, &headers)).await?;
        let text = String::from_utf8_lossy(&reply.body);
        // A success can still carry an error in its body.
        if text.contains("<CopyObjectResult") {
            return Ok(());
        }
        Err(self.refused(&Request::new("copy", path, Method::PUT), StatusCode::INTERNAL_SERVER_ERROR, &text))
    }

    /// A whole object of at most `most` bytes, with what a look at it would tell; with an ETag, exactly that version.
    pub(super) async fn get_whole(
        &self,
        key: &str,
        path: &str,
        etag: Option<&str>,
        most: u64,
    ) -> Result<(Reply, Bytes), TransferError> {
        let mut request = Request::new("read", path, Method::GET).expecting(most);
        request.headers.extend(etag.filter(|etag| !etag.is_empty()).map(|etag| ("if-match", etag.to_owned())));
        let sign = || self.bucket.get_object(self.credentials(), key).sign(SIGNATURE_LIFE);
        let mut reply = self.send(request, sign).await?;
        let body = std::mem::take(&mut reply.body);
        Ok((reply, body))
    }

    /// A range of an object; with an ETag, of exactly that version.
    pub(super) async fn get(
        &self,
        key: &str,
        path: &str,
        etag: &str,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, TransferError> {
        let mut request = Request::new("read", path, Method::GET).expecting(length);
        request.headers.push(("range", format!("bytes={offset}-{}", offset.saturating_add(length).saturating_sub(1))));
        if !etag.is_empty() {
            request.headers.push(("if-match", etag.to_owned()));
        }
        let reply = self.send(request, || self.bucket.get_object(self.credentials(), key).sign(SIGNATURE_LIFE)).await;
        match reply {
            // A range behind the end: nothing is there, as with a file.
            Err(TransferError::Server { status: 416, .. }) => Ok(Bytes::new()),
            // A server that ignores ranges would give wrong bytes.
            Ok(reply) if offset > 0 && reply.header("content-range").is_none() => {
                Err(self.malformed("read", path, "the whole object instead of a range"))
            }
            Ok(reply) => Ok(reply.body),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn put(
        &self,
        key: &str,
        path: &str,
        headers: &[Header],
        body: Bytes,
    ) -> Result<Reply, TransferError> {
        let request = Request::new("write", path, Method::PUT).sending(headers, body);
        self.send(request, || self.signed_put(key, headers)).await
    }

    /// Whether the store refuses bytes that do not have the checksum that is said: some take the header and give it back
    /// unread. Written to `key` by one that does.
    pub(super) async fn refuses_wrong_sums(&self, key: &str) -> Result<bool, TransferError> {
        let body = Bytes::from_static(b"these bytes have another checksum");
        let headers = [(checksum::HEADER, Sum::of(b"other bytes").to_string())];
        let request = Request::new("probe", "", Method::PUT).sending(&headers, body);
        match self.send_once(&request, self.signed_put(key, &headers)).await {
            Err(TransferError::Damaged { .. }) => Ok(true),
            Ok(_) => self.delete(key, "").await.map(|()| false),
            Err(error) => Err(error),
        }
    }

    fn signed_put(&self, key: &str, headers: &[Header]) -> Url {
        let mut action = self.bucket.put_object(self.credentials(), key);
        for (name, value) in headers {
            action.headers_mut().insert(*name, value.as_str());
        }
        action.sign(SIGNATURE_LIFE)
    }

    pub(super) async fn delete(&self, key: &str, path: &str) -> Result<(), TransferError> {
        let request = Request::new("remove", path, Method::DELETE);
        let sent = self.send(request, || self.bucket.delete_object(self.credentials(), key).sign(SIGNATURE_LIFE)).await;
        match sent {
            Ok(_) | Err(TransferError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn begin(&self, key: &str, path: &str, headers: &[Header]) -> Result<String, TransferError> {
        let request = Request::new("write", path, Method::POST).sending(headers, Bytes::new());
        let reply = self
            .send(request, || {
                let mut action = self.bucket.create_multipart_upload(self.credentials(), key);
                for (name, value) in headers {
                    action.headers_mut().insert(*name, value.as_str());
                }
                action.sign(SIGNATURE_LIFE)
            })
            .await?;
        let created = CreateMultipartUpload::parse_response(&String::from_utf8_lossy(&reply.body))
            .map_err(|_| self.malformed("write", path, "no upload id"))?;
        Ok(created.upload_id().to_owned())
    }

    /// Whether the upload exists: an error when it does not.
    pub(super) async fn has_upload(&self, key: &str, path: &str, upload: &str) -> Result<(), TransferError> {
        let request = Request::new("write", path, Method::GET);
        self.send(request, || self.bucket.list_parts(self.credentials(), key, upload).sign(SIGNATURE_LIFE))
            .await
            .map(drop)
    }

    /// Writes one part (`number` from 0).
    pub(super) async fn put_part(
        &self,
        key: &str,
        path: &str,
        upload: &str,
        number: u32,
        headers: &[Header],
        body: Bytes,
    ) -> Result<Reply, TransferError> {
        let part = u16::try_from(number + 1).map_err(|_| self.malformed("write", path, "too many parts"))?;
        let request = Request::new("write", path, Method::PUT).sending(headers, body);
        self.send(request, || {
            let mut action = self.bucket.upload_part(self.credentials(), key, part, upload);
            for (name, value) in headers {
                action.headers_mut().insert(*name, value.as_str());
            }
            action.sign(SIGNATURE_LIFE)
        })
        .await
    }

    /// Completes an object and returns its ETag and, when the parts had checksums, that of the whole as the store says it.
    pub(super) async fn complete(
        &self,
        key: &str,
        path: &str,
        upload: &str,
        parts: &[Part],
        whole: Option<Sum>,
    ) -> Result<(String, Option<Sum>), TransferError> {
        let headers = whole.map(checksum::whole_headers).unwrap_or_default();
        let sign = || {
            let mut action =
                self.bucket.complete_multipart_upload(self.credentials(), key, upload, std::iter::empty::<&str>());
            for (name, value) in &headers {
                action.headers_mut().insert(*name, value.as_str());
            }
            action.sign(SIGNATURE_LIFE)
        };
        let body = Bytes::from(checksum::parts_xml(parts, whole.is_some()));
        let request = Request::new("write", path, Method::POST).sending(&headers, body);
        let reply = self.send(Request { limit: COMPLETE_LIMIT, ..request }, sign).await?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        // A success can still carry an error in its body.
        let done = CompleteMultipartUploadResponse::parse(&text).map_err(|_| {
            self.refused(&Request::new("write", path, Method::POST), StatusCode::INTERNAL_SERVER_ERROR, &text)
        })?;
        Ok((done.etag().to_owned(), between(&text, checksum::START, checksum::END).and_then(Sum::parse)))
    }

    pub(super) async fn abort(&self, key: &str, path: &str, upload: &str) -> Result<(), TransferError> {
        let request = Request::new("abort", path, Method::DELETE);
        self.send(request, || self.bucket.abort_multipart_upload(self.credentials(), key, upload).sign(SIGNATURE_LIFE))
            .await
            .map(drop)
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(inner, _)| inner)
}
