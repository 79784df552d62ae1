//! One connection from its handshake to its end.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::strangers::Stranger;
use super::{Front, Guard, Limits, Peer};
use crate::identity::Verified;

/// How often a quiet HTTP/2 connection is asked whether it is there, and how long it may take to answer: a connection
/// whose other end vanished is gone after 50 s.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A connection without a certificate is good for a join or a probe, and for no longer than these take, unless somebody
/// shows a token on it.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(60);
/// A connection with a certificate that was revoked before is good for being told so.
const REVOKED_LIFE: Duration = Duration::from_secs(5);
/// How long a client may take to send the head of an HTTP/1 request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of all headers of one request.
const MAX_HEADERS: u32 = 16 * 1024;
/// Streams that may be opened and given up before the connection is cut (CVE-2023-44487).
const MAX_RESET_STREAMS: usize = 20;

/// The two ways in which a server ends.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    /// Finish what has begun, begin nothing.
    pub(super) soon: CancellationToken,
    /// Stop.
    pub(super) now: CancellationToken,
}

pub(super) struct Connection {
    pub(super) stream: Box<TlsStream<TcpStream>>,
    pub(super) peer: Peer,
    pub(super) guard: Arc<Guard>,
    pub(super) front: Arc<dyn Front>,
    pub(super) ending: Ending,
    pub(super) tasks: TaskTracker,
    /// It has no certificate, and makes way when others come.
    pub(super) stranger: Option<Stranger>,
}

impl Connection {
    /// Serves requests until either side ends the connection or it may no longer exist.
    pub(super) async fn run(self) {
        let Self { stream, peer, guard, front, ending, tasks, stranger } = self;
        // Streams of this connection end with it, whoever ends it.
        let life = ending.now.child_token();
        let _end_streams = life.clone().drop_guard();
        let builder = builder(front.limits(&peer), TrackedExecutor { tasks, life: life.clone() });
        let service = {
            let peer = peer.clone();
            hyper::service::service_fn(move |request| {
                let answer = front.answer(&peer, request);
                async move { Ok::<_, Infallible>(answer.await) }
            })
        };
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut over = std::pin::pin!(must_end(&peer, &guard));
        let mut displaced = std::pin::pin!(async {
            match &stranger {
                Some(stranger) => stranger.displaced().await,
                None => std::future::pending().await,
            }
            if peer.known.load(Ordering::Relaxed) {
                // A token has shown since who it is.
                std::future::pending::<()>().await;
            }
        });
        let mut finishing = false;
        loop {
            tokio::select! {
                done = connection.as_mut() => {
                    if let Err(error) = done {
                        debug!(address = %peer.address, %error, "connection ended");
                    }
                    return;
                }
                why = over.as_mut() => return debug!(address = %peer.address, why, "connection closed"),
                () = displaced.as_mut() => return debug!(address = %peer.address, "connection made way for another"),
                () = life.cancelled() => return,
                () = ending.soon.cancelled(), if !finishing => {
                    finishing = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Returns when the connection may no longer exist, with the reason.
pub(super) async fn must_end(peer: &Peer, guard: &Guard) -> &'static str {
    let Some(verified) = &peer.verified else {
        tokio::time::sleep(ANONYMOUS_LIFE).await;
        if peer.known.load(Ordering::Relaxed) {
            // Each request proves again who is there, and a peer that vanished does not answer its pings.
            std::future::pending::<()>().await;
        }
        return "without a certificate a connection is short";
    };
    if guard.denied.check(verified).is_err() {
        tokio::time::sleep(REVOKED_LIFE).await;
        return "its certificate was revoked before";
    }
    let mut changed = guard.denied_changed.clone();
    let expiry = tokio::time::sleep(time_left(verified));
    let revoked = async {
        loop {
            if guard.denied.check(verified).is_err() {
                return;
            }
            if changed.changed().await.is_err() {
                // Nobody can revoke any more: the server is ending.
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = expiry => "its certificate has expired",
        () = revoked => "its certificate was revoked",
    }
}

fn time_left(verified: &Verified) -> Duration {
    Duration::try_from(verified.not_after.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}

fn builder(limits: Limits, executor: TrackedExecutor) -> Builder<TrackedExecutor> {
    let mut builder = Builder::new(executor);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEADERS as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_concurrent_streams(limits.streams)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS);
    builder
}

/// Runs the streams of a connection so that the server can wait for them and the connection can end them.
#[derive(Clone)]
struct TrackedExecutor {
    tasks: TaskTracker,
    life: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for TrackedExecutor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.tasks.spawn(self.life.clone().run_until_cancelled_owned(future));
    }
}
