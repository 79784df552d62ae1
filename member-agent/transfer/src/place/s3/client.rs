//! The requests of S3 that a tree needs: signed, with deadlines, retried with jittered backoff, errors typed.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::{Method, StatusCode, header};
use rusty_s3::actions::list_objects_v2::ListObjectsV2Response;
use rusty_s3::actions::{CompleteMultipartUploadResponse, CreateMultipartUpload, ListObjectsV2, S3Action};
use rusty_s3::{Bucket, Credentials, UrlStyle};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::SIGNATURE_LIFE;
use crate::TransferError;
use crate::location::Location;

/// Tries of one request. With the pauses below that is about 20 s of trouble that a copy does not notice.
const TRIES: u32 = 6;
/// The pause after the first failure; doubled after each, up to [`LONGEST_PAUSE`], halved to doubled at random.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long one request may take: the base, and what its body needs at 1 MiB/s.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
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
const MOST_RESERVED: usize = 64 << 20;

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
}

impl Client {
    pub(super) fn new(location: &Location, bucket: &str, place: String) -> Result<Self, TransferError> {
        let bad = |why: String| TransferError::BadLocation { uri: location.shown(), why };
        let option = |key: &str| -> Option<Cow<'_, str>> {
            let secret = location.secrets.get(key).map(SecretString::expose_secret);
            secret.or_else(|| location.options.get(key).map(String::as_str)).map(Cow::Borrowed)
        };
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
        // The first provider that is installed stays; every crate of the workspace installs this one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .pool_idle_timeout(Duration::from_secs(20))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| bad(format!("the HTTP client cannot be built: {error}")))?;
        Ok(Self { http, bucket, credentials, endpoint: shown, place })
    }

    fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// Sends a request until it succeeds, fails for good, or has been tried often enough.
    async fn send(&self, request: Request<'_>, sign: impl Fn() -> Url) -> Result<Reply, TransferError> {
        let mut pause = FIRST_PAUSE;
        let mut tried = 1;
        loop {
            let error = match self.send_once(&request, sign()).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            if !error.is_transient() || matches!(error, TransferError::Changed { .. }) || tried == TRIES {
                return Err(error);
            }
            tracing::debug!(error = &error as &dyn std::error::Error, tried, "request failed, trying again");
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            tried += 1;
        }
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
        let expected = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        let mut response = response;
        let mut body = BytesMut::with_capacity(expected.min(MOST_RESERVED));
        while let Some(frame) = response.chunk().await.map_err(broken)? {
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
        let request = Request {
            op: "list",
            path: "",
            method: Method::GET,
            headers: Vec::new(),
            body: Bytes::new(),
            limit: REQUEST_LIMIT,
        };
        let reply = self
            .send(request, || {
                let mut action = self.bucket.list_objects_v2(self.credentials());
                action.with_prefix(prefix);
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

    pub(super) async fn head(&self, key: &str, path: &str) -> Result<Reply, TransferError> {
        let request = Request {
            op: "look at",
            path,
            method: Method::HEAD,
            headers: Vec::new(),
            body: Bytes::new(),
            limit: REQUEST_LIMIT,
        };
        self.send(request, || self.bucket.head_object(self.credentials(), key).sign(SIGNATURE_LIFE)).await
    }

    /// A whole object of at most `most` bytes, with what a look at it would tell.
    pub(super) async fn get_whole(&self, key: &str, path: &str, most: u64) -> Result<(Reply, Bytes), TransferError> {
        let (headers, body) = (Vec::new(), Bytes::new());
        let request = Request { op: "read", path, method: Method::GET, headers, body, limit: body_limit(most) };
        let sign = || self.bucket.get_object(self.credentials(), key).sign(SIGNATURE_LIFE);
        let reply = self.send(request, sign).await?;
        let body = reply.body.clone();
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
        let mut headers =
            vec![("range", format!("bytes={offset}-{}", offset.saturating_add(length).saturating_sub(1)))];
        if !etag.is_empty() {
            headers.push(("if-match", etag.to_owned()));
        }
        let request =
            Request { op: "read", path, method: Method::GET, headers, body: Bytes::new(), limit: body_limit(length) };
        let reply = self.send(request, || self.bucket.get_object(self.credentials(), key).sign(SIGNATURE_LIFE)).await;
        match reply {
            // A range behind the end: nothing is there, as with a file.
            Err(TransferError::Server { status: 416, .. }) => Ok(Bytes::new()),
            // A server that ignores ranges would give wrong bytes.
            Ok(reply) if offset > 0 && reply.header("content-range").is_none() => {
                Err(self.malformed("read", path, "the whole object instead of a range"))
            }
            Ok(reply) if reply.body.len() as u64 > length => Err(self.malformed("read", path, "too many bytes")),
            Ok(reply) => Ok(reply.body),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn put(
        &self,
        key: &str,
        path: &str,
        metadata: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Reply, TransferError> {
        let limit = body_limit(body.len() as u64);
        let request = Request { op: "write", path, method: Method::PUT, headers: metadata.to_vec(), body, limit };
        self.send(request, || {
            let mut action = self.bucket.put_object(self.credentials(), key);
            for (name, value) in metadata {
                action.headers_mut().insert(*name, value.as_str());
            }
            action.sign(SIGNATURE_LIFE)
        })
        .await
    }

    pub(super) async fn delete(&self, key: &str, path: &str) -> Result<(), TransferError> {
        let request = Request {
            op: "remove",
            path,
            method: Method::DELETE,
            headers: Vec::new(),
            body: Bytes::new(),
            limit: REQUEST_LIMIT,
        };
        let sent = self.send(request, || self.bucket.delete_object(self.credentials(), key).sign(SIGNATURE_LIFE)).await;
        match sent {
            Ok(_) | Err(TransferError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn begin(
        &self,
        key: &str,
        path: &str,
        metadata: &[(&'static str, String)],
    ) -> Result<String, TransferError> {
        let request = Request {
            op: "write",
            path,
            method: Method::POST,
            headers: metadata.to_vec(),
            body: Bytes::new(),
            limit: REQUEST_LIMIT,
        };
        let reply = self
            .send(request, || {
                let mut action = self.bucket.create_multipart_upload(self.credentials(), key);
                for (name, value) in metadata {
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
        let request = Request {
            op: "write",
            path,
            method: Method::GET,
            headers: Vec::new(),
            body: Bytes::new(),
            limit: REQUEST_LIMIT,
        };
        self.send(request, || self.bucket.list_parts(self.credentials(), key, upload).sign(SIGNATURE_LIFE))
            .await
            .map(drop)
    }

    /// Writes one part (`number` from 0) and returns its ETag.
    pub(super) async fn put_part(
        &self,
        key: &str,
        path: &str,
        upload: &str,
        number: u32,
        body: Bytes,
    ) -> Result<String, TransferError> {
        let part = u16::try_from(number + 1).map_err(|_| self.malformed("write", path, "too many parts"))?;
        let limit = body_limit(body.len() as u64);
        let request = Request { op: "write", path, method: Method::PUT, headers: Vec::new(), body, limit };
        let reply = self
            .send(request, || self.bucket.upload_part(self.credentials(), key, part, upload).sign(SIGNATURE_LIFE))
            .await?;
        Ok(reply.etag())
    }

    /// Completes an object and returns its ETag.
    pub(super) async fn complete(
        &self,
        key: &str,
        path: &str,
        upload: &str,
        receipts: &[String],
    ) -> Result<String, TransferError> {
        let etags = || receipts.iter().map(String::as_str);
        let action = || self.bucket.complete_multipart_upload(self.credentials(), key, upload, etags());
        let body = Bytes::from(action().body());
        let request =
            Request { op: "write", path, method: Method::POST, headers: Vec::new(), body, limit: COMPLETE_LIMIT };
        let reply = self.send(request, || action().sign(SIGNATURE_LIFE)).await?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        // A success can still carry an error in its body.
        CompleteMultipartUploadResponse::parse(&text).map(|done| done.etag().to_owned()).map_err(|_| {
            let request = Request {
                op: "write",
                path,
                method: Method::POST,
                headers: Vec::new(),
                body: Bytes::new(),
                limit: COMPLETE_LIMIT,
            };
            self.refused(&request, StatusCode::INTERNAL_SERVER_ERROR, &text)
        })
    }

    pub(super) async fn abort(&self, key: &str, path: &str, upload: &str) -> Result<(), TransferError> {
        let request = Request {
            op: "abort",
            path,
            method: Method::DELETE,
            headers: Vec::new(),
            body: Bytes::new(),
            limit: REQUEST_LIMIT,
        };
        self.send(request, || self.bucket.abort_multipart_upload(self.credentials(), key, upload).sign(SIGNATURE_LIFE))
            .await
            .map(drop)
    }
}

fn body_limit(bytes: u64) -> Duration {
    REQUEST_LIMIT + Duration::from_secs(bytes >> 20)
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(inner, _)| inner)
}

/// The last cause of an error: the one that tells something.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}
