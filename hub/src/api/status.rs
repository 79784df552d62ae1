//! ① Errors as Kubernetes `Status` objects, with the codes and reasons that its clients act on.
//!
//! Invariants: a write whose outcome is unknown is a 504 that says so, never a failure; nothing secret is repeated.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use fluvial_model::causes::chain;
use fluvial_model::field::{FieldError, FieldErrors};
use fluvial_model::resource::KindInfo;
use fluvial_raft::StoreError;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};
use thiserror::Error;

use crate::objects::ObjectError;

/// What a call is about, for the message and the details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub group: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    /// Empty for a whole collection.
    pub name: String,
}

impl Subject {
    /// An object of a kind, or its collection if `name` is empty.
    #[must_use]
    pub fn new(info: &KindInfo, name: &str) -> Self {
        Self { group: info.group, kind: info.kind, plural: info.plural, name: name.to_owned() }
    }

    /// `datasets.data.fluid.io`
    #[must_use]
    pub fn resource(&self) -> String {
        qualified(self.plural, self.group)
    }

    /// `datasets.data.fluid.io "d" is `, as a refusal begins.
    #[must_use]
    pub fn described(&self) -> String {
        let name = if self.name.is_empty() { String::new() } else { format!(" \"{}\"", self.name) };
        format!("{}{name} is ", self.resource())
    }
}

fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// Why a call was refused or could not be answered.
#[derive(Debug, Error)]
pub enum ApiError {
    #[error("{0}")]
    BadRequest(String),
    #[error("the caller presented no identity: use a client certificate of this trust domain, or a user's token")]
    Unauthorized,
    #[error("{message}")]
    TokenRefused { message: String },
    #[error("the bearer token is not the one of this hook: it must be sent as `Authorization: Bearer TOKEN`")]
    BadToken,
    #[error("{message}")]
    Forbidden { subject: Option<Subject>, message: String },
    #[error("the server could not find the requested resource: {path}")]
    NoSuchPath { path: String },
    #[error("{} \"{}\" not found", .0.resource(), .0.name)]
    NotFound(Subject),
    #[error("{message}")]
    MethodNotAllowed { message: String },
    #[error("the server can answer with {offered} only")]
    NotAcceptable { offered: &'static str },
    #[error("{} \"{}\" already exists", .0.resource(), .0.name)]
    AlreadyExists(Subject),
    #[error("Operation cannot be fulfilled on {} \"{}\": {message}", .subject.resource(), .subject.name)]
    Conflict { subject: Subject, message: String },
    #[error("{message}")]
    Expired { message: String },
    #[error("the body has more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the body of the request did not come within {seconds} s")]
    TooSlow { seconds: u64 },
    #[error("{message}")]
    UnsupportedMediaType { message: String },
    #[error("{} \"{}\" is invalid: {}", qualified(.subject.kind, .subject.group), .subject.name, listed(.errors))]
    Invalid { subject: Subject, errors: FieldErrors },
    #[error("the patch does not fit the object: {message}")]
    PatchDoesNotFit { subject: Subject, message: String },
    #[error("{message}")]
    TooManyRequests { message: String },
    #[error("{message}")]
    Unavailable { message: String, retry_after_seconds: u64 },
    #[error("{message}")]
    Timeout { message: String },
    #[error("too large resource version: {asked}, current: {newest}")]
    FutureVersion { asked: u64, newest: u64 },
    #[error("{message}")]
    Internal { message: String },
}

fn listed(errors: &FieldErrors) -> String {
    match errors.0.as_slice() {
        [one] => one.to_string(),
        many => format!("[{}]", many.iter().map(FieldError::to_string).collect::<Vec<_>>().join(", ")),
    }
}

impl ApiError {
    /// A broken rule of one field.
    #[must_use]
    pub fn invalid(subject: Subject, field: &str, message: impl Into<String>) -> Self {
        let errors = FieldErrors(vec![FieldError { field: field.to_owned(), message: message.into() }]);
        Self::Invalid { subject, errors }
    }

    fn code_and_reason(&self) -> (StatusCode, &'static str) {
        match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::Unauthorized | Self::BadToken | Self::TokenRefused { .. } => {
                (StatusCode::UNAUTHORIZED, "Unauthorized")
            }
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, "Forbidden"),
            Self::NoSuchPath { .. } | Self::NotFound(_) => (StatusCode::NOT_FOUND, "NotFound"),
            Self::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::NotAcceptable { .. } => (StatusCode::NOT_ACCEPTABLE, "NotAcceptable"),
            Self::AlreadyExists(_) => (StatusCode::CONFLICT, "AlreadyExists"),
            Self::Conflict { .. } => (StatusCode::CONFLICT, "Conflict"),
            Self::Expired { .. } => (StatusCode::GONE, "Expired"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge"),
            Self::TooSlow { .. } => (StatusCode::REQUEST_TIMEOUT, "Timeout"),
            Self::UnsupportedMediaType { .. } => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType"),
            Self::Invalid { .. } | Self::PatchDoesNotFit { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
            Self::TooManyRequests { .. } => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            Self::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            Self::Timeout { .. } | Self::FutureVersion { .. } => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
            Self::Internal { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn code(&self) -> StatusCode {
        self.code_and_reason().0
    }

    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Unavailable { retry_after_seconds, .. } => Some((*retry_after_seconds).max(1)),
            Self::TooManyRequests { .. } | Self::FutureVersion { .. } => Some(1),
            _ => None,
        }
    }

    /// The `Status` object.
    #[must_use]
    pub fn status(&self) -> Value {
        let (code, reason) = self.code_and_reason();
        let mut details = serde_json::Map::new();
        let subject = match self {
            Self::Forbidden { subject: Some(subject), .. } => Some((subject, subject.plural)),
            Self::NotFound(subject) | Self::AlreadyExists(subject) | Self::Conflict { subject, .. } => {
                Some((subject, subject.plural))
            }
            Self::Invalid { subject, .. } | Self::PatchDoesNotFit { subject, .. } => Some((subject, subject.kind)),
            _ => None,
        };
        if let Some((subject, kind)) = subject {
            details.insert("name".into(), json!(subject.name));
            if !subject.group.is_empty() {
                details.insert("group".into(), json!(subject.group));
            }
            details.insert("kind".into(), json!(kind));
        }
        match self {
            Self::Invalid { errors, .. } => {
                let causes: Vec<Value> = errors.0.iter().map(cause).collect();
                details.insert("causes".into(), Value::Array(causes));
            }
            Self::FutureVersion { .. } => {
                let cause = json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
                details.insert("causes".into(), json!([cause]));
            }
            _ => {}
        }
        if let Some(seconds) = self.retry_after() {
            details.insert("retryAfterSeconds".into(), json!(seconds));
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": reason, "code": code.as_u16(),
        });
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }
}

/// Kubernetes' names for the ways in which a field can be wrong, read off the wording of `model::field`.
fn cause(error: &FieldError) -> Value {
    let reason = if error.message.starts_with("required value") {
        "FieldValueRequired"
    } else if error.message.starts_with("no ") {
        "FieldValueNotFound"
    } else {
        "FieldValueInvalid"
    };
    json!({ "reason": reason, "message": error.message, "field": error.field })
}

/// A `Success` Status for a deletion that is done.
#[must_use]
pub fn deleted(subject: &Subject, uid: &str) -> Value {
    let mut details = json!({ "name": subject.name, "kind": subject.plural, "uid": uid });
    if !subject.group.is_empty() {
        details["group"] = json!(subject.group);
    }
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::Internal { message } = &self {
            tracing::error!(error = %message, "a call could not be answered");
        }
        let mut response = json_response(self.code(), &self.status());
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A JSON body with a status.
pub fn json_response(code: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Compacted { oldest } => Self::Expired {
                message: format!("too old resource version: history begins at {oldest}; list again without one"),
            },
            StoreError::FutureRevision { asked, newest } => Self::FutureVersion { asked: asked.0, newest: newest.0 },
            StoreError::Unavailable { reason, retry_after } => Self::Unavailable {
                message: format!("the store is unavailable: {reason}; nothing was changed, try again"),
                retry_after_seconds: retry_after.as_secs(),
            },
            StoreError::UnknownOutcome { reason } => Self::Timeout {
                message: format!(
                    "the outcome of the write is not known ({reason}): it may have happened; read the object to find out"
                ),
            },
            StoreError::TooLarge { limit, .. } => Self::TooLarge { limit },
            StoreError::Malformed { reason } => Self::BadRequest(reason),
            error @ (StoreError::Corrupt { .. } | StoreError::Storage(_)) => Self::Internal { message: chain(&error) },
        }
    }
}

impl From<ObjectError> for ApiError {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::Store { source, .. } => source.into(),
            other => Self::Internal { message: chain(&other) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_is_a_timeout_that_says_so() {
        let error = ApiError::from(StoreError::UnknownOutcome { reason: "the leader was lost".into() });
        let status = error.status();
        assert_eq!((&status["code"], &status["reason"]), (&json!(504), &json!("Timeout")));
        assert!(status["message"].as_str().unwrap().contains("may have happened"), "{status}");
    }

    #[test]
    fn a_lost_leader_asks_the_caller_to_try_again() {
        let response = ApiError::from(StoreError::Unavailable {
            reason: "no leader".into(),
            retry_after: std::time::Duration::from_millis(500),
        })
        .into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
    }

    #[test]
    fn each_broken_field_is_a_cause() {
        let subject = Subject { group: "fluvial.io", kind: "Storage", plural: "storages", name: "s".into() };
        let status = ApiError::invalid(subject, "spec.uri", "required value: a location").status();
        let expected = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 422, "reason": "Invalid",
            "message": "Storage.fluvial.io \"s\" is invalid: spec.uri: required value: a location",
            "details": { "name": "s", "group": "fluvial.io", "kind": "Storage", "causes": [
                { "reason": "FieldValueRequired", "message": "required value: a location", "field": "spec.uri" },
            ] },
        });
        assert_eq!(status, expected);
    }
}
