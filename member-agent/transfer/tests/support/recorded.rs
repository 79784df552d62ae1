//! An object store in memory behind HTTP/1.1, for stores that no program stands in for.
//!
//! It is no such store: it answers as their references say that they answer, and refuses what they say that they refuse.
//! What it does not know is a 501, so that no request passes unseen.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The bucket that there is.
pub const BUCKET: &str = "bucket-1";
/// The most that a page of a listing has: few, so that every tree has several pages.
const PAGE: usize = 20;

/// A request, read whole.
pub struct Request {
    pub method: String,
    /// As it stands in the request, without the query.
    pub raw_path: String,
    /// Of the query, decoded, in its order; what has no `=` has no value.
    pub query: Vec<(String, Option<String>)>,
    /// By their names in small letters.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The value of a parameter; empty without one.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, _)| key == name)?;
        Some(found.1.as_deref().unwrap_or_default())
    }

    pub fn path(&self) -> String {
        decoded(&self.raw_path)
    }

    /// Metadata, by what stands before their names.
    pub fn metadata(&self, before: &str) -> BTreeMap<String, String> {
        let named = self.headers.iter().filter_map(|(name, value)| Some((name.strip_prefix(before)?, value)));
        named.map(|(name, value)| (name.to_owned(), value.clone())).collect()
    }

    /// What is asked for of so many bytes; the error is that there is nothing of it.
    pub fn range(&self, length: usize) -> Result<Option<Range<usize>>, ()> {
        let Some(range) = self.header("range").strip_prefix("bytes=") else { return Ok(None) };
        let (from, to) = range.split_once('-').unwrap();
        let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
        if from >= length { Err(()) } else { Ok(Some(from..(to + 1).min(length))) }
    }
}

pub struct Answer {
    /// With its reason.
    pub status: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn new(status: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status: status.to_owned(), headers: Vec::new(), body: body.into() }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Some of the bytes, or all.
    pub fn bytes(data: &[u8], range: Option<Range<usize>>) -> Self {
        match range {
            None => Self::new("200 OK", data),
            Some(range) => {
                let said = format!("bytes {}-{}/{}", range.start, range.end - 1, data.len());
                Self::new("206 Partial Content", &data[range]).with("content-range", said)
            }
        }
    }
}

#[derive(Clone)]
pub struct Object {
    pub data: Vec<u8>,
    pub metadata: BTreeMap<String, String>,
    /// Of the contents alone.
    pub etag: String,
    pub generation: u64,
}

/// A file in parts that is under way.
struct Upload {
    key: String,
    metadata: BTreeMap<String, String>,
    parts: BTreeMap<u32, Vec<u8>>,
}

#[derive(Default)]
pub struct Contents {
    pub objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    /// Counts what is written.
    written: u64,
}

/// Why an upload cannot be completed.
enum Incomplete {
    NoSuchUpload,
    /// A part is missing, or another one than is named.
    InvalidPart,
    /// A part that is not the last one is smaller than parts must be.
    EntityTooSmall,
}

/// How OSS and GCS differ in files in parts, which both have in the XML of S3.
pub struct InParts {
    /// What stands before the names of metadata.
    pub metadata: &'static str,
    /// The fewest bytes of a part that is not the last one.
    pub smallest: usize,
    pub error: fn(&str, &str) -> Answer,
    /// What is said of an object that is complete.
    pub completed: fn(&Object) -> Answer,
}

/// A text as XML has it.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&apos;")
}

pub fn etag(data: &[u8]) -> String {
    blake3::hash(data).to_hex()[..32].to_uppercase()
}

impl Contents {
    pub fn put(&mut self, key: &str, data: Vec<u8>, metadata: BTreeMap<String, String>) -> &Object {
        let etag = etag(&data);
        self.store(key, data, metadata, etag)
    }

    fn store(&mut self, key: &str, data: Vec<u8>, metadata: BTreeMap<String, String>, etag: String) -> &Object {
        self.written += 1;
        let object = Object { data, metadata, etag, generation: 1_700_000_000_000_000 + self.written };
        self.objects.insert(key.to_owned(), object);
        &self.objects[key]
    }

    /// Begins a file in parts; returns its id.
    fn begin(&mut self, key: &str, metadata: BTreeMap<String, String>) -> String {
        self.written += 1;
        let id = format!("upload+{}/=", self.written);
        self.uploads.insert(id.clone(), Upload { key: key.to_owned(), metadata, parts: BTreeMap::new() });
        id
    }

    /// Takes a part; returns its ETag, or nothing without such an upload.
    fn part(&mut self, id: &str, key: &str, number: u32, data: Vec<u8>) -> Option<String> {
        let upload = self.uploads.get_mut(id).filter(|upload| upload.key == key)?;
        let etag = etag(&data);
        upload.parts.insert(number, data);
        Some(etag)
    }

    /// Completes a file of parts, which `body` names in its XML.
    fn complete(&mut self, id: &str, key: &str, body: &[u8], smallest: usize) -> Result<&Object, Incomplete> {
        let upload = self.uploads.get(id).filter(|upload| upload.key == key).ok_or(Incomplete::NoSuchUpload)?;
        let body = String::from_utf8_lossy(body);
        let named: Vec<(u32, String)> = body
            .split("<Part>")
            .skip(1)
            .map(|part| {
                let of = |tag: &str| part.split_once(&format!("<{tag}>")).unwrap().1.split('<').next().unwrap();
                (of("PartNumber").parse().unwrap(), of("ETag").replace("&quot;", "").replace('"', ""))
            })
            .collect();
        let mut data = Vec::new();
        for (at, (number, tag)) in named.iter().enumerate() {
            let part = upload.parts.get(number).filter(|part| etag(part) == *tag).ok_or(Incomplete::InvalidPart)?;
            if named.get(at + 1).is_some_and(|next| next.0 <= *number) {
                return Err(Incomplete::InvalidPart);
            }
            if at + 1 < named.len() && part.len() < smallest {
                return Err(Incomplete::EntityTooSmall);
            }
            data.extend_from_slice(part);
        }
        let upload = self.uploads.remove(id).ok_or(Incomplete::NoSuchUpload)?;
        let tag = format!("{}-{}", etag(&data), named.len());
        Ok(self.store(key, data, upload.metadata, tag))
    }

    /// Answers what is asked about a file in parts; nothing if it is about something else.
    pub fn in_parts(&mut self, store: &InParts, key: &str, request: &Request) -> Option<Answer> {
        let no_upload = || (store.error)("404 Not Found", "NoSuchUpload");
        let (upload, number) = (request.parameter("uploadId"), request.parameter("partNumber"));
        let answer = match (request.method.as_str(), upload, number) {
            ("POST", None, None) if request.parameter("uploads").is_some() => {
                let id = self.begin(key, request.metadata(store.metadata));
                let body = format!(
                    "<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{}</Key><UploadId>{id}</UploadId>\
                     </InitiateMultipartUploadResult>",
                    escaped(key)
                );
                Answer::new("200 OK", body)
            }
            ("PUT", Some(id), Some(number)) => {
                match self.part(id, key, number.parse().unwrap(), request.body.clone()) {
                    Some(etag) => Answer::new("200 OK", "").with("etag", format!("\"{etag}\"")),
                    None => no_upload(),
                }
            }
            ("POST", Some(id), None) => match self.complete(id, key, &request.body, store.smallest) {
                Ok(object) => (store.completed)(object),
                Err(Incomplete::NoSuchUpload) => no_upload(),
                Err(Incomplete::InvalidPart) => (store.error)("400 Bad Request", "InvalidPart"),
                Err(Incomplete::EntityTooSmall) => (store.error)("400 Bad Request", "EntityTooSmall"),
            },
            ("DELETE", Some(id), None) => match self.uploads.remove(id) {
                Some(_) => Answer::new("204 No Content", ""),
                None => no_upload(),
            },
            _ => return None,
        };
        Some(answer)
    }

    /// A page of what begins with `prefix`, and what the next one begins behind.
    pub fn page(&self, prefix: &str, behind: &str) -> (Vec<(&String, &Object)>, Option<String>) {
        let mut all = self.objects.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > behind);
        let page: Vec<_> = all.by_ref().take(PAGE).collect();
        let next = all.next().and(page.last()).map(|(key, _)| (*key).clone());
        (page, next)
    }
}

/// Serves for as long as the process lives; returns the port.
pub fn serve<S: Send + Sync + 'static>(store: S, answer: fn(&S, &Request) -> Answer) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let store = std::sync::Arc::new(store);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let store = store.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while let Some(request) = read(&mut reader) {
                    let said = answer(&store, &request);
                    if write(&stream, &request, said).is_none() || request.header("connection") == "close" {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// What is behind a lock, whatever became of others who held it.
pub fn lock(contents: &Mutex<Contents>) -> std::sync::MutexGuard<'_, Contents> {
    contents.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    let (raw_path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| match pair.split_once('=') {
        Some((key, value)) => (decoded(key), Some(decoded(value))),
        None => (decoded(pair), None),
    });
    Some(Request { method, raw_path: raw_path.to_owned(), query: query.collect(), headers, body })
}

fn write(mut stream: &TcpStream, request: &Request, answer: Answer) -> Option<()> {
    let head: String = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = answer.body.len();
    let head = format!("HTTP/1.1 {}\r\n{head}content-length: {length}\r\n\r\n", answer.status);
    stream.write_all(head.as_bytes()).ok()?;
    if request.method != "HEAD" {
        stream.write_all(&answer.body).ok()?;
    }
    Some(())
}

pub fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned()
}
