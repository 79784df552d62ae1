//! Connections whose ends have changed roles: who dials answers, who was dialled asks.
//!
//! A server that nobody can dial dials its client. TLS is as ever, both ends show who they are, and the protocol that they
//! agree on is [`ALPN_REVERSE`]. Then the dialler says in one word what for: a byte with the length, and so many bytes. If
//! somebody waits for that, HTTP/2 follows, whose client is who was dialled; else the connection is closed.
//!
//! Invariants: the dialler answers by the same rules, limits and ends as on connections that it accepts; who was dialled ends
//! the connection when the dialler's certificate ends or is revoked.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::accept::identify;
use super::connection::{Connection, Ending, must_end};
use super::{Answer, Front, Guard, Limits, Peer};
use crate::tls::ALPN_REVERSE;

/// How long who dialled may take to say what for.
const PURPOSE_WITHIN: Duration = Duration::from_secs(10);
/// How long who was dialled may take to ask: it does so at once, or closes the connection.
const ASKED_WITHIN: Duration = Duration::from_secs(10);
/// Bytes that wait on each side of each direction.
pub const BUFFER: usize = 64 << 10;

impl Connection {
    /// Whether the other end wants to be asked.
    pub(super) fn is_reverse(&self) -> bool {
        self.stream.get_ref().1.alpn_protocol() == Some(ALPN_REVERSE)
    }

    /// Carries the bytes between the connection and who waits for it, until one of them ends or it may no longer exist.
    pub(super) async fn hand_over(mut self) {
        let address = self.peer.address;
        let carried = async {
            let purpose = tokio::time::timeout(PURPOSE_WITHIN, purpose(&mut self.stream)).await;
            let Ok(Ok(purpose)) = purpose else { return "it did not say in time what for" };
            if self.peer.verified.as_ref().is_none_or(|verified| self.guard.denied.check(verified).is_err()) {
                return "its certificate is none, or was revoked";
            }
            match self.front.reversed(&self.peer, &purpose) {
                Some(inside) => carry(self.stream, inside).await,
                None => "nobody waits for it",
            }
        };
        let why = tokio::select! {
            why = carried => why,
            why = must_end(&self.peer, &self.guard) => why,
            () = self.ending.soon.cancelled() => "the server ends",
        };
        debug!(%address, why, "reverse connection closed");
    }
}

async fn purpose(stream: &mut TlsStream<TcpStream>) -> io::Result<String> {
    let mut purpose = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut purpose).await?;
    String::from_utf8(purpose).map_err(io::Error::other)
}

async fn carry(stream: Box<TlsStream<TcpStream>>, inside: DuplexStream) -> &'static str {
    let (from_peer, mut to_peer) = tokio::io::split(stream);
    let (from_inside, mut to_inside) = tokio::io::split(inside);
    let (mut from_peer, mut from_inside) =
        (BufReader::with_capacity(BUFFER, from_peer), BufReader::with_capacity(BUFFER, from_inside));
    tokio::select! {
        _ = tokio::io::copy_buf(&mut from_peer, &mut to_inside) => "the other end closed it",
        _ = tokio::io::copy_buf(&mut from_inside, &mut to_peer) => "it is not needed any more",
    }
}

/// Answers the requests that come from the other end of a connection which this side dialled for `purpose`, by the rules of
/// `front`, until either side ends it; dropping the future ends it too. Returns whether anything was asked: else nobody
/// waited for it.
///
/// # Errors
/// When the purpose is longer than 255 bytes, or cannot be said.
pub async fn answer(
    stream: tokio_rustls::client::TlsStream<TcpStream>,
    purpose: &str,
    guard: Arc<Guard>,
    front: Arc<dyn Front>,
) -> io::Result<bool> {
    let mut stream = Box::new(TlsStream::Client(stream));
    let address: SocketAddr = stream.get_ref().0.peer_addr()?;
    let Some(peer) = identify(&stream, address, &guard) else { return Ok(false) };
    let mut word = vec![u8::try_from(purpose.len()).map_err(io::Error::other)?];
    word.extend_from_slice(purpose.as_bytes());
    let said = async {
        stream.write_all(&word).await?;
        stream.flush().await
    };
    tokio::time::timeout(PURPOSE_WITHIN, said).await??;
    let asked = Arc::new(AtomicBool::new(false));
    let ending = Ending { soon: CancellationToken::new(), now: CancellationToken::new() };
    let front = Arc::new(Noticing { front, asked: asked.clone() });
    let connection = Connection { stream, peer, guard, front, ending, tasks: TaskTracker::new(), stranger: None };
    let never_asked = async {
        tokio::time::sleep(ASKED_WITHIN).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = connection.run() => {}
        () = never_asked => {}
    }
    Ok(asked.load(Ordering::Relaxed))
}

/// Notices the first request.
struct Noticing {
    front: Arc<dyn Front>,
    asked: Arc<AtomicBool>,
}

impl Front for Noticing {
    fn limits(&self, peer: &Peer) -> Limits {
        self.front.limits(peer)
    }

    fn answer(&self, peer: &Peer, request: axum::http::Request<hyper::body::Incoming>) -> Answer {
        self.asked.store(true, Ordering::Relaxed);
        self.front.answer(peer, request)
    }
}
