//! One connection from its handshake to its end.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use fluvial_certs::{Identity, Verified};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::debug;

use super::access::{Denial, Family, decide, precedes_deny_list};
use super::{Guard, Peer, Services};
use crate::api::Caller;

/// How often a quiet HTTP/2 connection is asked whether it is there, and how long it may take to answer: a connection
/// whose other end vanished is gone after 50 s.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A connection without a certificate is good for a join or a probe, and for no longer than these take.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(60);
/// A connection with a certificate that was revoked before is good for being told so.
const REVOKED_LIFE: Duration = Duration::from_secs(5);
/// How long a client may take to send the head of an HTTP/1 request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of all headers of one request.
const MAX_HEADERS: u32 = 16 * 1024;
/// What a peer may send unread: 256 KiB a stream (a quarter of the largest block), 1 MiB a connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// The same for a hub, whose log entries and snapshots must not wait for window updates; there are few of them.
const HUB_STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const HUB_CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// An agent needs one stream for its session and a few for blocks; hubs and users watch many things at a time.
const AGENT_STREAMS: u32 = 16;
const STREAMS: u32 = 256;
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
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) peer: Peer,
    pub(super) guard: Arc<Guard>,
    pub(super) services: Arc<Services>,
    pub(super) ending: Ending,
    pub(super) tasks: TaskTracker,
}

impl Connection {
    /// Serves requests until either side ends the connection or it may no longer exist.
    pub(super) async fn run(self) {
        let Self { stream, peer, guard, services, ending, tasks } = self;
        // Streams of this connection end with it, whoever ends it.
        let life = ending.now.child_token();
        let _end_streams = life.clone().drop_guard();
        let builder = builder(&peer, TrackedExecutor { tasks, life: life.clone() });
        let front = Arc::new(Front { peer: peer.clone(), guard: guard.clone(), services });
        let service = hyper::service::service_fn(move |request| {
            let front = front.clone();
            async move { Ok::<_, Infallible>(front.answer(request).await) }
        });
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut over = std::pin::pin!(must_end(&peer, &guard));
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
async fn must_end(peer: &Peer, guard: &Guard) -> &'static str {
    let Some(verified) = &peer.verified else {
        tokio::time::sleep(ANONYMOUS_LIFE).await;
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

fn builder(peer: &Peer, executor: TrackedExecutor) -> Builder<TrackedExecutor> {
    let (streams, window, connection_window) = match peer.verified.as_ref().map(|v| &v.identity) {
        Some(Identity::Hub { .. }) => (STREAMS, HUB_STREAM_WINDOW, HUB_CONNECTION_WINDOW),
        Some(Identity::Cluster { .. }) => (AGENT_STREAMS, STREAM_WINDOW, CONNECTION_WINDOW),
        _ => (STREAMS, STREAM_WINDOW, CONNECTION_WINDOW),
    };
    let mut builder = Builder::new(executor);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEADERS as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(window)
        .initial_connection_window_size(connection_window)
        .max_concurrent_streams(streams)
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

/// What stands before the services: identity, deny list, rules.
struct Front {
    peer: Peer,
    guard: Arc<Guard>,
    services: Arc<Services>,
}

impl Front {
    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let verified = self.peer.verified.as_deref();
        let family = match decide(request.uri().path(), request.headers(), verified) {
            Ok(family) => family,
            Err(denial) => return denied(&denial),
        };
        if let Some(Err(error)) = verified.map(|v| self.guard.denied.check(v)) {
            return refusal(family, StatusCode::FORBIDDEN, &error.to_string());
        }
        // Everyone else waits until the store could be read for the first time.
        if !precedes_deny_list(request.uri().path()) && *self.guard.denied_changed.borrow() == 0 {
            return refusal(family, StatusCode::SERVICE_UNAVAILABLE, "this hub is starting: try again");
        }
        request.extensions_mut().insert(self.peer.clone());
        let router = match family {
            Family::Grpc => &self.services.grpc,
            Family::Rest => {
                request.extensions_mut().insert(Caller(verified.map(|v| v.identity.clone())));
                &self.services.rest
            }
        };
        match router.clone().oneshot(request.map(Body::new)).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

fn denied(denial: &Denial) -> Response<Body> {
    let (family, code) = match denial {
        Denial::NoCertificate { family, .. } => (*family, StatusCode::UNAUTHORIZED),
        Denial::Forbidden { family, .. } => (*family, StatusCode::FORBIDDEN),
    };
    refusal(family, code, &denial.to_string())
}

/// A refusal in the words of the family: a gRPC status, or a Kubernetes Status.
fn refusal(family: Family, code: StatusCode, message: &str) -> Response<Body> {
    let (grpc, reason) = match code {
        StatusCode::UNAUTHORIZED => (tonic::Code::Unauthenticated, "Unauthorized"),
        StatusCode::FORBIDDEN => (tonic::Code::PermissionDenied, "Forbidden"),
        _ => (tonic::Code::Unavailable, "ServiceUnavailable"),
    };
    match family {
        Family::Grpc => tonic::Status::new(grpc, message).into_http(),
        Family::Rest => {
            let status = serde_json::json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
                "reason": reason, "code": code.as_u16(),
            });
            let mut response = Response::new(Body::from(status.to_string()));
            *response.status_mut() = code;
            response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
            if code == StatusCode::SERVICE_UNAVAILABLE {
                response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
            }
            response
        }
    }
}
