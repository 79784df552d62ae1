//! ① Bodies: bytes to JSON or YAML to an object of the kind, strictly.
//!
//! Invariants: nothing larger than [`MAX_BODY`] is read, nothing deeper than the parser's limit is built, and a value
//! of a Secret is never repeated in an error.

use std::ops::Deref;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use fluvial_model::field::FieldErrors;
use fluvial_model::field::Path;
use fluvial_model::resource::{DecodeError, Kind};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::options::FieldValidation;
use super::status::{ApiError, Subject};

/// The most bytes of one body: etcd's default request limit, which Kubernetes' users know.
pub const MAX_BODY: usize = 3 * 512 * 1024;

/// How long a body may take to come.
pub(crate) const BODY_WITHIN: Duration = Duration::from_secs(30);
/// Bodies up to this size are taken at once; what takes more is rare, and waits for its turn.
const SMALL: usize = 64 * 1024;
/// Larger bodies that are received at a time: 24 MiB at most.
const RECEIVED_AT_ONCE: usize = 16;
/// Larger bodies that are worked on at a time: one, because it keeps a thread busy that others wait for. A list of numbers takes 16 times its bytes when it is parsed, and is held
/// three times while it is decoded: some 75 MB.
const WORKED_ON_AT_ONCE: usize = 1;
/// How long a larger body waits for a turn.
const TURN_WITHIN: Duration = Duration::from_secs(10);

static RECEIVED: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(RECEIVED_AT_ONCE)));
static WORKED_ON: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(WORKED_ON_AT_ONCE)));

/// A whole body; a large one has its turn for as long as this lives.
#[derive(Debug)]
pub struct Received {
    bytes: Bytes,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a whole body.
///
/// # Errors
/// 413 if it is too large, 408 if it is too slow, 429 if many large ones come at a time, 400 if it broke off.
pub async fn read(body: Body) -> Result<Received, ApiError> {
    let received = tokio::time::timeout(BODY_WITHIN, receive(body)).await;
    let (bytes, receiving) = received.map_err(|_| ApiError::TooSlow { seconds: BODY_WITHIN.as_secs() })??;
    let turn = if receiving.is_some() { Some(turn(&WORKED_ON).await?) } else { None };
    Ok(Received { bytes, _turn: turn })
}

async fn receive(mut body: Body) -> Result<(Bytes, Option<OwnedSemaphorePermit>), ApiError> {
    let mut bytes = BytesMut::new();
    let mut receiving = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::BadRequest("the body broke off".into()))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BODY {
            return Err(ApiError::TooLarge { limit: MAX_BODY });
        }
        if bytes.len() + data.len() > SMALL && receiving.is_none() {
            receiving = Some(turn(&RECEIVED).await?);
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.freeze(), receiving))
}

async fn turn(turns: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
    match tokio::time::timeout(TURN_WITHIN, turns.clone().acquire_owned()).await {
        Ok(Ok(turn)) => Ok(turn),
        Ok(Err(_)) | Err(_) => {
            Err(ApiError::TooManyRequests { message: "many large bodies are being read already: try again".into() })
        }
    }
}

/// How a body is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notation {
    Json,
    Yaml,
}

impl Notation {
    /// The notation of an object's media type; JSON if none is named.
    ///
    /// # Errors
    /// 415 for any other.
    pub fn of(media_type: &str) -> Result<Self, ApiError> {
        match media_type {
            "" | "application/json" => Ok(Self::Json),
            "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Self::Yaml),
            other => Err(ApiError::UnsupportedMediaType {
                message: format!(
                    "the body of the request was in an unknown format ({}): application/json and application/yaml are read",
                    fluvial_model::names::printable(other)
                ),
            }),
        }
    }
}

/// The most brackets that are open at a time in YAML. Its parser looks at all of them for each byte that follows, before
/// it looks at the depth: 100,000 of them keep it busy for a minute.
const MAX_OPEN: usize = 256;

/// Whether more brackets are open at some place of a text than any object has. Quotes and comments are not looked at: who
/// quotes that many is refused, too.
fn opens_too_much(bytes: &[u8]) -> bool {
    let mut open = 0_usize;
    bytes.iter().any(|byte| {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        open > MAX_OPEN
    })
}

/// Parses a body.
///
/// # Errors
/// 400 with what is wrong, and where.
pub fn parse(bytes: &[u8], notation: Notation, secret: bool) -> Result<Value, ApiError> {
    let problem = match notation {
        Notation::Json => match serde_json::from_slice(bytes) {
            Ok(value) => return Ok(value),
            Err(error) if error.to_string().starts_with("recursion limit exceeded") => {
                "it is nested deeper than 127 levels, the greatest depth that is accepted".to_owned()
            }
            // Syntax errors speak of positions, not of values.
            Err(error) => error.to_string(),
        },
        Notation::Yaml if opens_too_much(bytes) => {
            format!("it is nested deeper than {MAX_OPEN} levels, far beyond the greatest depth that is accepted")
        }
        Notation::Yaml => match serde_yaml_ng::from_slice(bytes) {
            Ok(value) => return Ok(value),
            Err(error) if secret => match error.location() {
                Some(at) => format!("at line {} column {}", at.line(), at.column()),
                None => "it is no YAML of an object".to_owned(),
            },
            Err(error) if error.to_string().contains("recursion limit") => {
                "it is nested deeper than 128 levels, the greatest depth that is accepted".to_owned()
            }
            Err(error) => error.to_string(),
        },
    };
    Err(ApiError::BadRequest(format!("the body could not be read: {problem}")))
}

/// An object of the kind, and what the caller should be warned of.
#[derive(Debug)]
pub struct Incoming {
    pub object: Value,
    pub warnings: Vec<String>,
}

/// Reads a value as an object of the kind: unknown fields pruned or refused, nulls taken as absent, a Secret's plain
/// text folded into its data.
///
/// # Errors
/// 400 for what is no such object, 422 for fields that break the kind's own rules already in reading.
pub fn decode(kind: &Kind, name: &str, mut value: Value, validation: FieldValidation) -> Result<Incoming, ApiError> {
    let info = &kind.info;
    let bad = |message: String| ApiError::BadRequest(message);
    let Some(fields) = value.as_object_mut() else {
        return Err(bad(format!("the body is no object: a {} is expected", info.kind)));
    };
    for (field, expected) in [("apiVersion", info.api_version()), ("kind", info.kind.to_owned())] {
        match fields.get(field) {
            None | Some(Value::Null) => {
                fields.insert(field.to_owned(), json!(expected));
            }
            Some(Value::String(given)) if given.is_empty() || *given == expected => {
                fields.insert(field.to_owned(), json!(expected));
            }
            Some(Value::String(given)) => {
                let given = fluvial_model::names::printable(given);
                return Err(bad(format!("the {field} of the object ({given}) does not match the URL's ({expected})")));
            }
            Some(_) => return Err(bad(format!("{field} must be a text"))),
        }
    }
    drop_nulls(&mut value);
    let given = value.clone();
    let decoded = (kind.decode)(value).map_err(|error| refused(kind, name, error))?;
    if let Some(path) = list_for_object(&given, &decoded.object, "") {
        return Err(bad(format!(
            "the body cannot be handled as a {}: {path}: a list, where an object is expected",
            info.kind
        )));
    }
    let mut unknown: Vec<String> = decoded.unknown.iter().map(|path| normal_path(path)).collect();
    unknown.sort_unstable();
    unknown.dedup();
    let warnings: Vec<String> = unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
    let warnings = match validation {
        FieldValidation::Strict if !warnings.is_empty() => {
            return Err(bad(format!(
                "{} in version \"{}\" cannot be handled as a {}: strict decoding error: {}",
                info.kind,
                info.version,
                info.kind,
                warnings.join(", ")
            )));
        }
        FieldValidation::Strict | FieldValidation::Ignore => Vec::new(),
        FieldValidation::Warn => warnings,
    };
    let mut object = decoded.object;
    if info.secret {
        fold_secret(name, kind, &mut object)?;
    }
    Ok(Incoming { object, warnings })
}

/// Serde's words for a value that does not fit, as an answer.
fn refused(kind: &Kind, name: &str, error: DecodeError) -> ApiError {
    let DecodeError::Type { path, problem } = error;
    let subject = Subject::new(&kind.info, name);
    let at = |field: &str| if path == "." { field.to_owned() } else { format!("{path}.{field}") };
    if let Some(field) = problem.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        return ApiError::invalid(subject, &at(field), "required value");
    }
    if problem.starts_with("unknown variant") {
        return ApiError::invalid(subject, &path, problem);
    }
    // Serde repeats the value that it did not expect.
    let problem = if kind.info.secret { "the value has the wrong type" } else { problem.as_str() };
    let kind = kind.info.kind;
    ApiError::BadRequest(format!("the body cannot be handled as a {kind}: {path}: {problem}"))
}

/// Serde reads a list as an object whose fields it gives in order, which no client means. Finds where that happened.
fn list_for_object(given: &Value, read: &Value, path: &str) -> Option<String> {
    match (given, read) {
        (Value::Array(_), Value::Object(_)) => Some(path.to_owned()),
        (Value::Array(given), Value::Array(read)) => given
            .iter()
            .zip(read)
            .enumerate()
            .find_map(|(i, (given, read))| list_for_object(given, read, &format!("{path}[{i}]"))),
        (Value::Object(given), Value::Object(read)) => given.iter().find_map(|(key, given)| {
            let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            list_for_object(given, read.get(key)?, &at)
        }),
        _ => None,
    }
}

/// Takes fields that are null away: in a request they mean "not given".
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// `spec.mounts.0.?.x` as Kubernetes writes it: `spec.mounts[0].x`.
fn normal_path(path: &str) -> String {
    let mut out = String::new();
    for part in path.split('.').filter(|part| *part != "?") {
        if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            out.push_str(&format!("[{part}]"));
        } else {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(&fluvial_model::names::printable(part));
        }
    }
    out
}

/// Moves `stringData` into `data` and checks that the rest of it is base64.
fn fold_secret(name: &str, kind: &Kind, object: &mut Value) -> Result<(), ApiError> {
    let Value::Object(fields) = object else { return Ok(()) };
    let plain = fields.remove("stringData");
    let data = fields.entry("data").or_insert_with(|| json!({}));
    let Value::Object(data) = data else { return Ok(()) };
    let mut errors = FieldErrors::default();
    for (key, value) in data.iter() {
        if value.as_str().is_none_or(|text| STANDARD.decode(text.trim()).is_err()) {
            errors.push(&Path::root("data").key(key), "must be base64 text; plain text goes into stringData");
        }
    }
    if !errors.is_empty() {
        return Err(ApiError::Invalid { subject: Subject::new(&kind.info, name), errors });
    }
    if let Some(Value::Object(plain)) = plain {
        for (key, value) in plain {
            data.insert(key, json!(STANDARD.encode(value.as_str().unwrap_or_default())));
        }
    }
    if data.is_empty() {
        fields.remove("data");
    }
    if fields.get("type").and_then(Value::as_str).unwrap_or_default().is_empty() {
        fields.insert("type".into(), json!("Opaque"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use fluvial_model::kinds;

    use super::*;

    fn kind(plural: &str) -> &'static Kind {
        kinds::KINDS.iter().find(|kind| kind.info.plural == plural).unwrap()
    }

    #[test]
    fn every_unknown_field_is_named() {
        let body =
            json!({ "spec": { "mounts": [{ "mountPoint": "file:///a", "hello": 1 }], "bogus": {} }, "other": 2 });
        let error = decode(kind("datasets"), "d", body.clone(), FieldValidation::Strict).unwrap_err();
        let text = error.to_string();
        for field in ["\"other\"", "\"spec.bogus\"", "\"spec.mounts[0].hello\""] {
            assert!(text.contains(field), "{text}");
        }
        let warned = decode(kind("datasets"), "d", body.clone(), FieldValidation::Warn).unwrap();
        assert_eq!(warned.warnings.len(), 3);
        assert_eq!(warned.object["spec"]["mounts"], json!([{ "mountPoint": "file:///a" }]));
        assert_eq!(
            decode(kind("datasets"), "d", body, FieldValidation::Ignore).unwrap().warnings,
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_secrets_plain_text_is_folded_and_never_repeated() {
        let body = json!({ "stringData": { "a": "hunter2" }, "data": { "b": "aGk=" } });
        let secret = decode(kind("secrets"), "s", body, FieldValidation::Strict).unwrap().object;
        assert_eq!(secret["data"], json!({ "a": "aHVudGVyMg==", "b": "aGk=" }));
        assert!(secret.get("stringData").is_none());
        for bad in [
            json!({ "data": { "a": "hunter2!" } }),
            json!({ "data": "hunter2!" }),
            json!({ "stringData": ["hunter2!"] }),
        ] {
            let error = decode(kind("secrets"), "s", bad, FieldValidation::Strict).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn depth_is_named_when_it_is_what_is_wrong() {
        for (text, notation) in [("[".repeat(100_000), Notation::Json), ("[".repeat(1_000_000), Notation::Yaml)] {
            let error = parse(text.as_bytes(), notation, false).unwrap_err();
            assert!(error.to_string().contains("deeper than"), "{error}");
        }
    }

    #[test]
    fn a_missing_field_is_named_with_its_path() {
        let error =
            decode(kind("storages"), "s", json!({ "spec": { "cluster": "a" } }), FieldValidation::Strict).unwrap_err();
        assert_eq!(error.code().as_u16(), 422);
        assert!(error.to_string().contains("spec.uri: required value"), "{error}");
    }
}
