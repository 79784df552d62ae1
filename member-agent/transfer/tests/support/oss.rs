//! What Alibaba Cloud OSS answers, by its API reference: signatures of versions 1 and 4 are made again and compared.

use std::sync::Mutex;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use fluvial_transfer::Location;
use hmac::{Hmac, KeyInit as _, Mac as _};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::recorded::{Answer, BUCKET, Contents, InParts, Object, Request, escaped, lock, serve};

/// Who may ask.
pub const KEY_ID: &str = "LTAI5tTester";
pub const KEY_SECRET: &str = "oss-hidden-secret";
const METADATA: &str = "x-oss-meta-";
const IN_PARTS: InParts = InParts {
    metadata: METADATA,
    smallest: 100 << 10,
    error,
    completed: |object| {
        let body =
            format!("<CompleteMultipartUploadResult><ETag>\"{}\"</ETag></CompleteMultipartUploadResult>", object.etag);
        Answer::new("200 OK", body)
    },
};
/// Parameters that are signed by version 1, of those that are sent.
const SUBRESOURCES: [&str; 4] = ["continuation-token", "partNumber", "uploadId", "uploads"];
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const IN_PATHS: &AsciiSet = &UNRESERVED.remove(b'/');

/// A server with one bucket, until the process ends.
pub struct Oss {
    pub port: u16,
    /// With it requests are signed by version 4.
    region: Option<&'static str>,
}

impl Oss {
    pub fn start(region: Option<&'static str>) -> Self {
        Self { port: serve(Mutex::new(Contents::default()), answer), region }
    }

    pub fn location_at(&self, port: u16, prefix: &str) -> Location {
        let mut location = self.unsigned(port, prefix);
        location.secrets.insert("access_key_id".into(), KEY_ID.into());
        location.secrets.insert("access_key_secret".into(), KEY_SECRET.into());
        location
    }

    pub fn unsigned(&self, port: u16, prefix: &str) -> Location {
        let mut location = Location::new(format!("oss://{BUCKET}/{prefix}"));
        location.options.insert("endpoint".into(), format!("http://127.0.0.1:{port}"));
        location.options.insert("addressing_style".into(), "path".into());
        if let Some(region) = self.region {
            location.options.insert("region".into(), region.into());
        }
        location
    }
}

fn error(status: &str, code: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{code} it is.</Message>\
         <RequestId>5C3D</RequestId><HostId>{BUCKET}</HostId></Error>"
    );
    Answer::new(status, body).with("content-type", "application/xml")
}

/// What is wrong with who asks; nothing if nothing is.
fn refused(request: &Request) -> Option<Answer> {
    let given = request.header("authorization");
    let (id, signature, right) = if let Some(keys) = given.strip_prefix("OSS ") {
        let (id, signature) = keys.split_once(':')?;
        (id.to_owned(), signature.to_owned(), version_1(request))
    } else if let Some(given) = given.strip_prefix("OSS4-HMAC-SHA256 ") {
        let field = |name: &str| given.split_once(&format!("{name}="))?.1.split(',').next();
        let credential = field("Credential").unwrap();
        let (id, scope) = credential.split_once('/').unwrap();
        let additional = field("AdditionalHeaders").unwrap_or_default();
        (id.to_owned(), field("Signature").unwrap().to_owned(), version_4(request, scope, additional))
    } else {
        return Some(error("403 Forbidden", "AccessDenied"));
    };
    if id != KEY_ID {
        return Some(error("403 Forbidden", "InvalidAccessKeyId"));
    }
    (signature != right).then(|| error("403 Forbidden", "SignatureDoesNotMatch"))
}

/// "Include signatures in the Authorization header", version 1.
fn version_1(request: &Request) -> String {
    let mut text = format!(
        "{}\n{}\n{}\n{}\n",
        request.method,
        request.header("content-md5"),
        request.header("content-type"),
        request.header("date")
    );
    for (name, value) in request.headers.iter().filter(|(name, _)| name.starts_with("x-oss-")) {
        text += &format!("{name}:{value}\n");
    }
    text += &request.path();
    let mut signed: Vec<_> = request.query.iter().filter(|(key, _)| SUBRESOURCES.contains(&key.as_str())).collect();
    signed.sort();
    for (at, (key, value)) in signed.into_iter().enumerate() {
        text += if at == 0 { "?" } else { "&" };
        text += key;
        if let Some(value) = value {
            text += &format!("={value}");
        }
    }
    let mut mac = Hmac::<Sha1>::new_from_slice(KEY_SECRET.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    BASE64_STANDARD.encode(mac.finalize().into_bytes())
}

/// "Include a V4 signature in the Authorization header".
fn version_4(request: &Request, scope: &str, additional: &str) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, UNRESERVED).to_string();
    let mut query: Vec<String> = request
        .query
        .iter()
        .map(|(key, value)| match value.as_deref().filter(|value| !value.is_empty()) {
            Some(value) => format!("{}={}", encoded(key), encoded(value)),
            None => encoded(key),
        })
        .collect();
    query.sort();
    let more: Vec<&str> = additional.split(';').collect();
    let headers: String = request
        .headers
        .iter()
        .filter(|(name, _)| {
            name.starts_with("x-oss-")
                || ["content-type", "content-md5"].contains(&name.as_str())
                || more.contains(&name.as_str())
        })
        .map(|(name, value)| format!("{name}:{value}\n"))
        .collect();
    let canonical = format!(
        "{}\n{}\n{}\n{headers}\n{additional}\n{}",
        request.method,
        utf8_percent_encode(&request.path(), IN_PATHS),
        query.join("&"),
        request.header("x-oss-content-sha256")
    );
    let text = format!(
        "OSS4-HMAC-SHA256\n{}\n{scope}\n{}",
        request.header("x-oss-date"),
        hex(&Sha256::digest(canonical.as_bytes()))
    );
    let mut key = format!("aliyun_v4{KEY_SECRET}").into_bytes();
    for step in scope.split('/').chain([text.as_str()]) {
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        mac.update(step.as_bytes());
        key = mac.finalize().into_bytes().to_vec();
    }
    hex(&key)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn told(object: &Object, answer: Answer) -> Answer {
    let answer =
        answer.with("etag", format!("\"{}\"", object.etag)).with("last-modified", "Tue, 14 Nov 2023 22:13:20 GMT");
    object.metadata.iter().fold(answer, |answer, (name, value)| answer.with(&format!("{METADATA}{name}"), value))
}

fn answer(contents: &Mutex<Contents>, request: &Request) -> Answer {
    if let Some(refused) = refused(request) {
        return refused;
    }
    let path = request.path();
    let (bucket, key) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    if bucket != BUCKET {
        return error("404 Not Found", "NoSuchBucket");
    }
    if key.len() > 1023 || key.starts_with(['/', '\\']) {
        return error("400 Bad Request", "InvalidObjectName");
    }
    let mut contents = lock(contents);
    if let Some(answer) = contents.in_parts(&IN_PARTS, key, request) {
        return answer;
    }
    let (upload, number) = (request.parameter("uploadId"), request.parameter("partNumber"));
    match (request.method.as_str(), upload, number) {
        ("GET", ..) if key.is_empty() && request.parameter("list-type") == Some("2") => list(&contents, request),
        ("PUT", None, None) => {
            let object = contents.put(key, request.body.clone(), request.metadata(METADATA));
            Answer::new("200 OK", "").with("etag", format!("\"{}\"", object.etag))
        }
        ("DELETE", None, None) => {
            contents.objects.remove(key);
            Answer::new("204 No Content", "")
        }
        ("GET" | "HEAD", None, None) => match contents.objects.get(key) {
            None => error("404 Not Found", "NoSuchKey"),
            Some(object) => {
                let wanted = request.header("if-match").trim_matches('"');
                if !wanted.is_empty() && wanted != object.etag {
                    return error("412 Precondition Failed", "PreconditionFailed");
                }
                match request.range(object.data.len()) {
                    Ok(range) => told(object, Answer::bytes(&object.data, range)),
                    Err(()) => error("416 Requested Range Not Satisfiable", "InvalidRange"),
                }
            }
        },
        _ => error("501 Not Implemented", "NotImplemented"),
    }
}

fn list(contents: &Contents, request: &Request) -> Answer {
    let parameter = |name| request.parameter(name).unwrap_or_default();
    let (page, next) = contents.page(parameter("prefix"), parameter("continuation-token"));
    let listed: String = page
        .iter()
        .map(|(key, object)| {
            format!(
                "<Contents><Key>{}</Key><LastModified>2023-11-14T22:13:20.000Z</LastModified><ETag>\"{}\"</ETag>\
                 <Size>{}</Size></Contents>",
                escaped(key),
                object.etag,
                object.data.len()
            )
        })
        .collect();
    let more = next.map_or("<IsTruncated>false</IsTruncated>".to_owned(), |next| {
        format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>", escaped(&next))
    });
    Answer::new("200 OK", format!("<ListBucketResult><Name>{BUCKET}</Name>{more}{listed}</ListBucketResult>"))
}
