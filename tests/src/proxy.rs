//! A proxy in front of a store that does to its answers what networks and overloaded servers do.
//!
//! One request a connection: the head is read, the request goes to the server unchanged, the answer comes back as
//! the fault of the moment has it. Only reads of objects are touched, every [`Plan::every`]th of them; how many were is
//! counted, so that a test can prove that its fault took effect.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A head that is longer is none.
const MOST_HEAD: usize = 64 << 10;
/// A store or client that is silent for longer is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// The pause between the pieces of a slow answer.
const SLOW_PAUSE: Duration = Duration::from_millis(20);

/// What is done to a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status, and nothing else.
    Status(u16),
    /// Cut off in the middle of the body.
    Truncate,
    /// One byte of the body is another one.
    WrongByte,
    /// Some 64 KiB every 20 ms.
    Slow,
    /// The connection ends without an answer.
    Drop,
}

/// The fault, and which reads meet it.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub fault: Fault,
    pub every: u64,
}

#[derive(Default)]
struct Shared {
    plan: Mutex<Option<Plan>>,
    reads: AtomicU64,
    /// Reads of objects, whether they meet a fault or not.
    requests: AtomicU64,
    hits: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    fn count(&self, read: bool, bytes: u64) {
        self.bytes.fetch_add(if read { bytes } else { 0 }, Ordering::Relaxed);
    }
}

/// The proxy; ends when dropped.
pub struct Proxy {
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts it in front of `http://HOST:PORT`.
    #[track_caller]
    pub fn start(server: &str) -> Self {
        let server: SocketAddr =
            server.strip_prefix("http://").and_then(|text| text.parse().ok()).expect("an address of a server");
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared::default());
        let given = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if given.stop.load(Ordering::Relaxed) {
                    return;
                }
                let shared = given.clone();
                // A connection that breaks is what this is for.
                std::thread::spawn(move || pass(&shared, client, server).ok());
            }
        });
        Self { endpoint: format!("http://{address}"), address, shared }
    }

    /// Begins a fault; none ends it. The count begins anew.
    pub fn set(&self, plan: Option<Plan>) {
        *self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan;
        self.shared.hits.store(0, Ordering::Relaxed);
    }

    /// How many reads of objects came to it so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Bytes of objects that were given out, from now on or since this was asked last.
    pub fn take_bytes(&self) -> u64 {
        self.shared.bytes.swap(0, Ordering::Relaxed)
    }

    /// Bytes of objects that were given out since then.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// How many reads have met the fault.
    pub fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // So that it looks.
        let _ = TcpStream::connect(self.address);
    }
}

/// Everything up to the empty line, and what came after it.
fn head(stream: &mut TcpStream) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((bytes, rest));
        }
        let read = stream.read(&mut buffer)?;
        if read == 0 || bytes.len() > MOST_HEAD {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..read]);
    }
}

/// The same head, but the connection ends after one answer.
fn once(head: &[u8]) -> Vec<u8> {
    let end = head.len() - 2;
    [&head[..end], b"Connection: close\r\n\r\n"].concat()
}

fn pass(shared: &Shared, mut client: TcpStream, server: SocketAddr) -> io::Result<()> {
    client.set_read_timeout(Some(SILENCE))?;
    let (request, rest) = head(&mut client)?;
    let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
    let path = line.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    // `/bucket/key`: a listing has no key.
    let read = line.starts_with("GET ") && path.trim_matches('/').contains('/');
    if read {
        shared.requests.fetch_add(1, Ordering::Relaxed);
    }
    let plan = *shared.plan.lock().unwrap_or_else(PoisonError::into_inner);
    let fault = plan.filter(|plan| read && shared.reads.fetch_add(1, Ordering::Relaxed).is_multiple_of(plan.every));
    let fault = fault.map(|plan| plan.fault);
    if fault.is_some() {
        shared.hits.fetch_add(1, Ordering::Relaxed);
    }
    match fault {
        Some(Fault::Drop) => return client.shutdown(Shutdown::Both),
        Some(Fault::Status(status)) => {
            let answer = format!("HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return client.write_all(answer.as_bytes());
        }
        _ => {}
    }
    let mut upstream = TcpStream::connect(server)?;
    upstream.set_read_timeout(Some(SILENCE))?;
    upstream.write_all(&once(&request))?;
    upstream.write_all(&rest)?;
    // What the client still sends; ends with the client.
    let (mut from, mut to) = (client.try_clone()?, upstream.try_clone()?);
    std::thread::spawn(move || io::copy(&mut from, &mut to));
    let (answer, first) = head(&mut upstream)?;
    client.write_all(&once(&answer))?;
    let mut body = first;
    match fault {
        Some(Fault::Truncate) => {
            upstream.read_to_end(&mut body)?;
            client.write_all(&body[..body.len() / 2])?;
        }
        Some(Fault::WrongByte) => {
            upstream.read_to_end(&mut body)?;
            let middle = body.len() / 2;
            if let Some(byte) = body.get_mut(middle) {
                *byte ^= 0x40;
            }
            client.write_all(&body)?;
        }
        Some(Fault::Slow) => {
            upstream.read_to_end(&mut body)?;
            for piece in body.chunks(64 << 10) {
                shared.count(read, piece.len() as u64);
                client.write_all(piece)?;
                std::thread::sleep(SLOW_PAUSE);
            }
        }
        _ => {
            client.write_all(&body)?;
            let rest = io::copy(&mut upstream, &mut client)?;
            shared.count(read, body.len() as u64 + rest);
        }
    }
    client.shutdown(Shutdown::Both)
}
