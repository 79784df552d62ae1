//! A small file server over HTTP/1.1 with index pages, as good or as bad as asked for.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// What the server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// Tells strong ETags; else only times.
    pub etags: bool,
    /// Heeds `Range` and `If-Match`.
    pub ranges: bool,
}

/// Serves a folder for as long as the process lives; returns its URL.
pub fn serve(folder: &Path, manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let folder = folder.clone();
            std::thread::spawn(move || answer(stream, &folder, manner));
        }
    });
    url
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex = [rest.next().unwrap(), rest.next().unwrap()];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).into() } else { format!("%{byte:02x}") })
        .collect()
}

fn answer(mut stream: TcpStream, folder: &Path, manner: Manner) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let line = headers.iter().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}: ")))?;
        Some(line.split_once(": ")?.1.to_owned())
    };
    let mut words = first.split(' ');
    let (method, target) = (words.next()?, decoded(words.next()?));
    let path: PathBuf = folder.join(target.trim_start_matches('/'));
    let mut status = "200 OK".to_owned();
    let mut head = Vec::new();
    let mut body = Vec::new();
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() && target.ends_with('/') => {
            head.push("content-type: text/html; charset=utf-8".to_owned());
            body.extend(b"<html><a href=\"../\">up</a> <a href=\"?C=N;O=D\">Name</a>\n");
            for entry in fs::read_dir(&path).ok()?.flatten() {
                let slash = if entry.file_type().ok()?.is_dir() { "/" } else { "" };
                let name = encoded(entry.file_name().to_str()?);
                body.extend(format!("<a href=\"{name}{slash}\">entry</a>\n").as_bytes());
            }
        }
        Ok(metadata) if metadata.is_file() => {
            let data = fs::read(&path).ok()?;
            let etag = format!("\"{}-{}\"", metadata.ino(), metadata.mtime_nsec());
            let time = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs();
            let time = jiff::Timestamp::from_second(i64::try_from(time).ok()?).ok()?;
            head.push(format!("last-modified: {}", time.strftime("%a, %d %b %Y %H:%M:%S GMT")));
            if manner.etags {
                head.push(format!("etag: {etag}"));
            }
            let range = header("range").filter(|_| manner.ranges);
            let range = range.and_then(|range| {
                range.strip_prefix("bytes=")?.split_once('-').map(|(a, b)| (a.to_owned(), b.to_owned()))
            });
            if manner.ranges && header("if-match").is_some_and(|wanted| wanted != etag) {
                status = "412 Precondition Failed".to_owned();
            } else if let Some((from, to)) = range {
                let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
                if from >= data.len() {
                    status = "416 Range Not Satisfiable".to_owned();
                } else {
                    let to = to.min(data.len() - 1);
                    status = "206 Partial Content".to_owned();
                    head.push(format!("content-range: bytes {from}-{to}/{}", data.len()));
                    body.extend(&data[from..=to]);
                }
            } else {
                body = data;
            }
        }
        _ => status = "404 Not Found".to_owned(),
    }
    let head = head.iter().map(|line| format!("{line}\r\n")).collect::<String>();
    let text = format!("HTTP/1.1 {status}\r\n{head}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(text.as_bytes()).ok()?;
    if method != "HEAD" {
        stream.write_all(&body).ok()?;
    }
    Some(())
}
