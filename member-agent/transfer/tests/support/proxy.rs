//! A proxy in front of a store: it writes down what was asked, and changes what a rule says.
//!
//! One request a connection; bodies are read whole, so that an answer of its own never cuts a request off.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request without its body.
pub struct Asked {
    pub method: String,
    /// With its query.
    pub target: String,
    pub head: String,
}

impl Asked {
    /// Whether it is about an object, not about the bucket.
    pub fn object(&self) -> bool {
        self.target.split('?').next().unwrap().trim_matches('/').contains('/')
    }

    pub fn has(&self, header: &str) -> bool {
        self.head.to_ascii_lowercase().lines().any(|line| line.starts_with(&format!("{header}:")))
    }

    pub fn value(&self, header: &str) -> Option<String> {
        let line = self.head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{header}:")))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    }
}

/// A line of a head, as it is passed on.
pub type Edit = Box<dyn Fn(&str) -> Option<String>>;

/// What is done with a request.
pub enum Act {
    Pass,
    /// One byte of the request's body is another one.
    DamageRequest,
    /// The first of these words in the request's body is the second, as long.
    Swap(&'static str, &'static str),
    /// The lines of the answer's head for which this is false are left out, and others are as it makes them.
    EditAnswer(Edit),
    /// The store does it, but its answer does not come.
    Lose,
    /// Answered with this, from the status on, without asking the store.
    Answer(String),
}

pub struct Proxy {
    pub port: u16,
    pub asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub fn start(store: u16, rule: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (given, rule) = (asked.clone(), Arc::new(rule));
        // Ends with the process of the test.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (asked, rule) = (given.clone(), rule.clone());
                std::thread::spawn(move || pass(client, store, &asked, &*rule));
            }
        });
        Self { port, asked }
    }

    /// How many requests of objects with this method were made.
    pub fn count(&self, method: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|line| line.starts_with(method)).count()
    }
}

fn head(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Some((String::from_utf8_lossy(&bytes).into_owned(), rest));
        }
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&buffer[..read]);
    }
}

fn pass(mut client: TcpStream, store: u16, seen: &Mutex<Vec<String>>, rule: &dyn Fn(&Asked) -> Act) -> Option<()> {
    client.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let (head_text, mut body) = head(&mut client)?;
    let mut words = head_text.split(' ').map(str::to_owned);
    let asked = Asked { method: words.next()?, target: words.next()?, head: head_text };
    let length: usize = asked.value("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut rest = vec![0; length.saturating_sub(body.len())];
    client.read_exact(&mut rest).ok()?;
    body.extend(rest);
    if asked.object() {
        seen.lock().unwrap().push(format!("{} {}", asked.method, asked.target));
    }
    let act = rule(&asked);
    match &act {
        Act::Answer(answer) => {
            let text = format!("HTTP/1.1 {answer}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            return client.write_all(text.as_bytes()).ok();
        }
        Act::DamageRequest => *body.last_mut()? ^= 1,
        Act::Swap(from, to) => {
            let at = body.windows(from.len()).position(|word| word == from.as_bytes())?;
            body[at..at + from.len()].copy_from_slice(to.as_bytes());
        }
        _ => {}
    }
    let mut upstream = TcpStream::connect(("127.0.0.1", store)).ok()?;
    let once = asked.head.replacen("\r\n\r\n", "\r\nconnection: close\r\n\r\n", 1);
    upstream.write_all(once.as_bytes()).ok()?;
    upstream.write_all(&body).ok()?;
    let (answer, first) = head(&mut upstream)?;
    if matches!(act, Act::Lose) {
        return None;
    }
    let answer = match &act {
        Act::EditAnswer(edit) => {
            let lines: Vec<_> = answer.trim_end().split("\r\n").filter_map(edit).collect();
            format!("{}\r\n\r\n", lines.join("\r\n"))
        }
        _ => answer,
    };
    client.write_all(answer.as_bytes()).ok()?;
    client.write_all(&first).ok()?;
    std::io::copy(&mut upstream, &mut client).ok().map(drop)
}
