//! What Google Cloud Storage answers, by the references of its JSON API and, for files in parts, of its XML API.

use std::collections::BTreeMap;
use std::sync::Mutex;

use fluvial_transfer::Location;
use serde_json::{Value, json};

use super::recorded::{Answer, BUCKET, Contents, InParts, Object, Request, lock, serve};

/// What lets one ask.
pub const TOKEN: &str = "ya29.hidden-token";
const IN_PARTS: InParts = InParts {
    metadata: "x-goog-meta-",
    smallest: 5 << 20,
    error: xml_error,
    // The ETag here is not the one of the JSON API.
    completed: |object| {
        Answer::new("200 OK", "<CompleteMultipartUploadResult/>").with("etag", format!("\"{}\"", object.etag))
    },
};

/// A server with one bucket, until the process ends.
pub struct Gcs {
    pub port: u16,
}

impl Gcs {
    pub fn start() -> Self {
        Self { port: serve(Mutex::new(Contents::default()), answer) }
    }

    pub fn location_at(&self, port: u16, prefix: &str) -> Location {
        let mut location = self.unsigned(port, prefix);
        location.secrets.insert("token".into(), TOKEN.into());
        location
    }

    pub fn unsigned(&self, port: u16, prefix: &str) -> Location {
        let mut location = Location::new(format!("gs://{BUCKET}/{prefix}"));
        location.options.insert("endpoint".into(), format!("http://127.0.0.1:{port}"));
        location
    }
}

fn json_error(status: &str, reason: &str, message: &str) -> Answer {
    let code: u32 = status[..3].parse().unwrap();
    let error = json!({ "domain": "global", "reason": reason, "message": message });
    let body = json!({ "error": { "code": code, "message": message, "errors": [error] } });
    Answer::new(status, body.to_string()).with("content-type", "application/json")
}

fn xml_error(status: &str, code: &str) -> Answer {
    Answer::new(
        status,
        format!("<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} it is.</Message></Error>"),
    )
}

fn resource(key: &str, object: &Object) -> Value {
    json!({
        "kind": "storage#object",
        "name": key,
        "bucket": BUCKET,
        "size": object.data.len().to_string(),
        "generation": object.generation.to_string(),
        "metageneration": "1",
        "etag": format!("CJ{}=", object.generation),
        "md5Hash": "",
        "contentType": "application/octet-stream",
        "updated": "2023-11-14T22:13:20.123Z",
        "metadata": object.metadata,
    })
}

fn answer(contents: &Mutex<Contents>, request: &Request) -> Answer {
    let path = &request.raw_path;
    let json_api = path.starts_with("/storage/v1/") || path.starts_with("/upload/storage/v1/");
    if request.header("authorization") != format!("Bearer {TOKEN}") {
        return if json_api {
            json_error("401 Unauthorized", "authError", "Invalid Credentials")
        } else {
            xml_error("401 Unauthorized", "AuthenticationRequired")
        };
    }
    let mut contents = lock(contents);
    if !json_api {
        return in_parts(&mut contents, request);
    }
    let (bucket, key) = path.split_once("/b/").unwrap().1.split_once("/o").unwrap();
    if bucket != BUCKET {
        return json_error("404 Not Found", "notFound", "The specified bucket does not exist.");
    }
    let key = super::recorded::decoded(key.trim_start_matches('/'));
    match request.method.as_str() {
        "POST" if path.starts_with("/upload/") => insert(&mut contents, request),
        "GET" if key.is_empty() => list(&contents, request),
        "DELETE" => match contents.objects.remove(&key) {
            Some(_) => Answer::new("204 No Content", ""),
            None => no_object(&key),
        },
        "GET" => match contents.objects.get(&key) {
            None => no_object(&key),
            Some(object) => get(&key, object, request),
        },
        _ => json_error("501 Not Implemented", "notImplemented", "not known here"),
    }
}

fn no_object(key: &str) -> Answer {
    json_error("404 Not Found", "notFound", &format!("No such object: {BUCKET}/{key}"))
}

fn get(key: &str, object: &Object, request: &Request) -> Answer {
    let wanted = request.parameter("ifGenerationMatch");
    if wanted.is_some_and(|wanted| wanted != object.generation.to_string()) {
        let message = "At least one of the pre-conditions you specified did not hold.";
        return json_error("412 Precondition Failed", "conditionNotMet", message);
    }
    if request.parameter("alt") != Some("media") {
        return Answer::new("200 OK", resource(key, object).to_string());
    }
    match request.range(object.data.len()) {
        Ok(range) => Answer::bytes(&object.data, range).with("x-goog-generation", object.generation.to_string()),
        Err(()) => json_error("416 Requested range not satisfiable", "requestedRangeNotSatisfiable", "beyond the end"),
    }
}

fn insert(contents: &mut Contents, request: &Request) -> Answer {
    let key = request.parameter("name").unwrap().to_owned();
    if key.len() > 1024 || key.contains(['\r', '\n']) {
        return json_error("400 Bad Request", "invalid", "The name is not allowed.");
    }
    let (metadata, data) = match request.parameter("uploadType") {
        Some("media") => (BTreeMap::new(), request.body.clone()),
        Some("multipart") => related(request),
        _ => return json_error("501 Not Implemented", "notImplemented", "not known here"),
    };
    let object = contents.put(&key, data, metadata);
    Answer::new("200 OK", resource(&key, object).to_string())
}

/// The two parts of a body of `multipart/related`: a description and the data.
fn related(request: &Request) -> (BTreeMap<String, String>, Vec<u8>) {
    let kind = request.header("content-type");
    assert!(kind.starts_with("multipart/related"), "{kind}");
    let boundary = format!("--{}", kind.split_once("boundary=").unwrap().1.trim_matches('"'));
    let at = |needle: &[u8], from: usize| {
        request.body[from..].windows(needle.len()).position(|window| window == needle).unwrap() + from
    };
    let description = at(b"\r\n\r\n", 0) + 4;
    let second = at(boundary.as_bytes(), description);
    let data = at(b"\r\n\r\n", second) + 4;
    // Before a part without contents the line break of its head is the boundary's.
    let end = request.body.len() - format!("\r\n{boundary}--\r\n").len();
    assert!(request.body[end..].starts_with(format!("\r\n{boundary}--").as_bytes()));
    let data = data.min(end);
    let described: Value = serde_json::from_slice(&request.body[description..second - 2]).unwrap();
    let metadata = described["metadata"].as_object().into_iter().flatten();
    let metadata = metadata.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()));
    (metadata.collect(), request.body[data..end].to_vec())
}

fn list(contents: &Contents, request: &Request) -> Answer {
    let parameter = |name| request.parameter(name).unwrap_or_default();
    let (page, next) = contents.page(parameter("prefix"), parameter("pageToken"));
    let items: Vec<Value> = page.iter().map(|(key, object)| resource(key, object)).collect();
    let mut body = json!({ "kind": "storage#objects" });
    // Without items there is no list of them.
    if !items.is_empty() {
        body["items"] = items.into();
    }
    if let Some(next) = next {
        body["nextPageToken"] = next.into();
    }
    Answer::new("200 OK", body.to_string())
}

/// The XML API: `/BUCKET/KEY`.
fn in_parts(contents: &mut Contents, request: &Request) -> Answer {
    let path = request.path();
    let Some((BUCKET, key)) = path[1..].split_once('/') else { return xml_error("404 Not Found", "NoSuchBucket") };
    let unknown = || xml_error("501 Not Implemented", "NotImplemented");
    contents.in_parts(&IN_PARTS, key, request).unwrap_or_else(unknown)
}
