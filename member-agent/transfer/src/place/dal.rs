//! What all stores behind OpenDAL share: requests with deadlines that are tried again, what their errors mean, and names.

use std::time::Duration;

use fluvial_model::manifest::RelativePath;
use opendal::{ErrorKind, HttpTransporter, Metadata, Operator};
use opendal_http_transport_reqwest::ReqwestTransport;
use reqwest::redirect::Policy;

use super::http::{client, innermost, retried};
use crate::TransferError;

/// The longest text of a server that an error repeats.
const LONGEST_WORD: usize = 200;
/// Why a name cannot be kept.
const WHITE_SPACE: &str = "a name that begins or ends with white space cannot be in this kind of store";
/// The stores' words for keys and tokens that they do not take: Azure's, OSS's, those of the two APIs of GCS.
const REFUSED: [&str; 11] = [
    "AuthenticationFailed",
    "AuthorizationFailure",
    "InvalidAuthenticationInfo",
    "NoAuthenticationInformation",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidSecurityToken",
    "SecurityTokenExpired",
    "authError",
    "Invalid Credentials",
    "AuthenticationRequired",
];
/// Their words for a container or bucket that is not there.
const NO_BUCKET: [&str; 3] = ["ContainerNotFound", "NoSuchBucket", "The specified bucket does not exist"];

/// A store, by OpenDAL.
pub(super) struct Dal {
    pub(super) operator: Operator,
    /// The place in messages.
    pub(super) name: String,
}

impl Dal {
    /// A store with connections of its own.
    ///
    /// # Errors
    /// Why there can be no client.
    pub(super) fn new(operator: Operator, redirect: Policy, name: String) -> Result<Self, String> {
        let transport = HttpTransporter::new(ReqwestTransport::new(client(redirect)?));
        Ok(Self::over(operator, transport, name))
    }

    /// A store over what sends its requests.
    pub(super) fn over(operator: Operator, transport: HttpTransporter, name: String) -> Self {
        let context = operator.base_context().clone().with_http_transport(transport);
        Self { operator: operator.with_context(context), name }
    }

    /// A path as the store knows it. OpenDAL takes white space from both ends: such a name would be another one.
    pub(super) fn key(&self, prefix: &str, path: &RelativePath) -> Result<String, TransferError> {
        let key = format!("{prefix}{path}");
        if key.trim() == key { Ok(key) } else { Err(self.bad_entry(path.as_str(), WHITE_SPACE)) }
    }

    /// The path of what is listed as `key`, and `below` the place.
    pub(super) fn path(&self, key: &str, below: &str) -> Result<RelativePath, TransferError> {
        if key.trim() != key {
            return Err(self.bad_entry(below, WHITE_SPACE));
        }
        RelativePath::parse(below).map_err(|error| self.bad_entry(below, error.to_string()))
    }

    pub(super) fn bad_entry(&self, name: &str, why: impl Into<String>) -> TransferError {
        TransferError::BadEntry { place: self.name.clone(), name: name.escape_debug().to_string(), why: why.into() }
    }

    pub(super) fn changed(&self, path: &RelativePath) -> TransferError {
        TransferError::Changed { place: self.name.clone(), path: path.to_string() }
    }

    /// What an error of OpenDAL means.
    pub(super) fn failed(&self, op: &'static str, path: &str, error: &opendal::Error) -> TransferError {
        let (place, path) = (self.name.clone(), path.to_owned());
        // What is not found is named, and a name can have any word in it.
        let refused = REFUSED.iter().find(|code| error.message().contains(**code));
        if let Some(code) = refused.filter(|_| error.kind() != ErrorKind::NotFound) {
            return TransferError::CredentialsRefused { op, place, code: (*code).to_owned() };
        }
        if NO_BUCKET.iter().any(|code| error.message().contains(code)) {
            let info = self.operator.info();
            return TransferError::NoSuchBucket { op, bucket: info.name().to_owned(), endpoint: place };
        }
        let cause = std::error::Error::source(error).map(innermost);
        let mut why = cause.unwrap_or_else(|| error.message().to_owned());
        why.truncate(why.floor_char_boundary(LONGEST_WORD));
        match error.kind() {
            ErrorKind::NotFound => TransferError::NotFound { op, place, path },
            ErrorKind::PermissionDenied => TransferError::Denied { op, place, path },
            ErrorKind::ConditionNotMatch => TransferError::Changed { place, path },
            ErrorKind::RateLimited => TransferError::Server { op, place, path, status: 429, code: why },
            ErrorKind::ConfigInvalid => TransferError::BadLocation { uri: place, why },
            // What passes. Of what OpenDAL itself tried again it does not tell whether it may: later is worth a try.
            _ if error.is_temporary() || error.is_persistent() => TransferError::Unreachable { op, place, why },
            // An answer that is neither a success nor something that passes.
            kind => TransferError::Server { op, place, path, status: 400, code: format!("{kind}: {why}") },
        }
    }

    /// Waits for one answer, but not for ever.
    pub(super) async fn in_time<T>(
        &self,
        op: &'static str,
        limit: Duration,
        answer: impl Future<Output = T>,
    ) -> Result<T, TransferError> {
        tokio::time::timeout(limit, answer).await.map_err(|_| TransferError::Unreachable {
            op,
            place: self.name.clone(),
            why: format!("no answer within {} s", limit.as_secs()),
        })
    }

    /// Does one request in time, again where that may help.
    pub(super) async fn request<T, F>(
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
            let call = self.in_time(op, limit, call());
            async move { call.await?.map_err(|error| self.failed(op, path, &error)) }
        })
        .await
    }
}

/// When the store says that it was written, in nanoseconds.
pub(super) fn mtime_of(metadata: &Metadata) -> i64 {
    let time = metadata.last_modified().map(|time| time.into_inner().as_nanosecond());
    time.and_then(|time| i64::try_from(time).ok()).unwrap_or(0)
}
