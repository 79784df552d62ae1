//! ② Reaching etcd: one member at a time, the next one when it fails, and what an error leaves certain.
//!
//! Reads and writes and the watch go to the same member, so that what the watch waits for is near. Where etcd asks for
//! a user, a token is got with each connection and again when it is refused.
//!
//! Invariants: every call has a deadline; a write is sent a second time only if it was certainly not made.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use fluvial_model::store::Revision;
use fluvial_raft::{StoreError, never_sent};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use secrecy::ExposeSecret as _;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::pb;
use crate::settings::{Settings, SettingsError, Target};

/// How long a connection may take to be made, TLS included.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a member may take to answer a read before the next one is asked: an election of etcd and some.
const READ: Duration = Duration::from_secs(3);
/// The pause before what certainly was not done is tried again.
const PAUSE: Duration = Duration::from_millis(50);
/// etcd cuts clients that ping more often than every 5 s.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer: a page of the catalog's filling is made smaller until it fits, and a watch comes in parts of
/// etcd's largest request, 1.5 MiB by default and seldom more than 10.
pub(crate) const MAX_ANSWER: usize = 16 << 20;
/// What etcd takes in one request unless it is told otherwise (`--max-request-bytes`, `--max-txn-ops`).
const REQUEST_BYTES: usize = 1536 << 10;
const REQUEST_OPS: usize = 128;
/// How long to wait before asking an etcd again that refuses: an administrator has to do something.
const REFUSED_RETRY: Duration = Duration::from_secs(5);

/// A connection to one member.
#[derive(Clone)]
pub(crate) struct Current {
    number: u64,
    pub channel: Channel,
    token: Option<AsciiMetadataValue>,
}

impl Current {
    /// A request as this hub's user.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }
}

struct State {
    /// The member that is asked.
    at: usize,
    /// Connections are numbered, so that the failure of an old one does not end its successor.
    number: u64,
    current: Option<Current>,
}

/// The way to etcd.
pub(crate) struct Link {
    settings: Settings,
    targets: Vec<Target>,
    state: Mutex<State>,
}

/// What a failed call leaves certain.
#[derive(Debug)]
enum Fault {
    /// Certainly not done, and another member may do it.
    NotDone(String),
    /// It may have been done.
    Unknown(String),
    /// Certainly not done, because the token is no longer good.
    Token(String),
    /// Certainly not done, and not to be done by asking again.
    Refused(StoreError),
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked {
    /// May be asked of as many members as it takes.
    Read,
    /// So many compares or writes, so many bytes.
    Write { ops: usize, bytes: usize },
}

impl Link {
    /// A link that begins with one of the members, another for each hub.
    pub fn new(settings: Settings, hub: u64) -> Result<Self, SettingsError> {
        let targets = settings.targets()?;
        settings.tls()?;
        let at = usize::try_from(hub).unwrap_or(0) % targets.len();
        Ok(Self { settings, targets, state: Mutex::new(State { at, number: 0, current: None }) })
    }

    /// The connection to use now; made if there is none.
    async fn current(&self, deadline: Instant) -> Result<Current, Fault> {
        let late = |_| Fault::NotDone("another call has not reached etcd yet".to_owned());
        let mut state = timeout_at(deadline, self.state.lock()).await.map_err(late)?;
        if let Some(current) = &state.current {
            return Ok(current.clone());
        }
        let target = &self.targets[state.at];
        let unusable = |error: SettingsError| Fault::Refused(StoreError::unavailable(error.to_string()));
        let channel = channel(target, self.settings.tls().map_err(unusable)?)
            .map_err(|error| Fault::NotDone(error.to_string()))?;
        let token = match self.token(&channel, deadline).await {
            Ok(token) => token,
            Err(fault) => {
                state.at = (state.at + 1) % self.targets.len();
                return Err(fault);
            }
        };
        state.number += 1;
        let current = Current { number: state.number, channel, token };
        state.current = Some(current.clone());
        Ok(current)
    }

    async fn token(&self, channel: &Channel, deadline: Instant) -> Result<Option<AsciiMetadataValue>, Fault> {
        let Some((name, password)) = &self.settings.user else { return Ok(None) };
        let password = password.expose_secret().to_owned();
        let request = pb::AuthenticateRequest { name: name.clone(), password };
        let mut client = pb::auth_client::AuthClient::new(channel.clone());
        let late = |_| Fault::NotDone("etcd did not check the user in time".to_owned());
        let answer =
            timeout_at(deadline.min(Instant::now() + READ), client.authenticate(request)).await.map_err(late)?;
        let token = match answer {
            Ok(answer) => answer.into_inner().token,
            // An etcd that asks nobody who he is has no tokens.
            Err(status) if status.message().contains("authentication is not enabled") => return Ok(None),
            Err(status) => {
                return Err(match fault(&status, Asked::Read) {
                    Fault::Refused(error) => Fault::Refused(error),
                    Fault::Unknown(why) | Fault::Token(why) | Fault::NotDone(why) => Fault::NotDone(why),
                });
            }
        };
        let unreadable = |_| Fault::NotDone("etcd gave a token that cannot be sent back".to_owned());
        let mut token = AsciiMetadataValue::try_from(token).map_err(unreadable)?;
        token.set_sensitive(true);
        Ok(Some(token))
    }

    /// Leaves a connection; `next` says whether for the next member's.
    async fn leave(&self, number: u64, next: bool) {
        let mut state = self.state.lock().await;
        if state.current.as_ref().is_some_and(|current| current.number == number) {
            state.current = None;
            if next {
                state.at = (state.at + 1) % self.targets.len();
            }
        }
    }

    /// The connection that has failed its user, such as a watch that went silent.
    pub async fn failed(&self, current: &Current) {
        self.leave(current.number, true).await;
    }

    /// A connection, for what is longer than a call.
    pub async fn connection(&self, deadline: Instant) -> Result<Current, StoreError> {
        self.call(deadline, Asked::Read, |current| async move { Ok(current) }).await
    }

    /// Makes `call` until it is done, or until going on would be wrong or late.
    pub async fn call<T, F, Fut>(&self, deadline: Instant, asked: Asked, call: F) -> Result<T, StoreError>
    where
        F: Fn(Current) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        loop {
            let fault = match self.current(deadline).await {
                Err(fault) => fault,
                Ok(current) => {
                    let number = current.number;
                    let until = match asked {
                        Asked::Read => deadline.min(Instant::now() + READ),
                        Asked::Write { .. } => deadline,
                    };
                    let fault = match timeout_at(until, call(current)).await {
                        Ok(Ok(done)) => return Ok(done),
                        Ok(Err(status)) => fault(&status, asked),
                        Err(_) => Fault::Unknown("etcd did not answer in time".to_owned()),
                    };
                    match &fault {
                        Fault::NotDone(_) | Fault::Unknown(_) => self.leave(number, true).await,
                        Fault::Token(_) => self.leave(number, false).await,
                        Fault::Refused(_) => {}
                    }
                    fault
                }
            };
            let reason = match (fault, asked) {
                (Fault::Refused(error), _) => return Err(error),
                (Fault::Unknown(reason), Asked::Write { .. }) => return Err(StoreError::UnknownOutcome { reason }),
                (Fault::NotDone(reason) | Fault::Unknown(reason) | Fault::Token(reason), _) => reason,
            };
            if Instant::now() + PAUSE > deadline {
                return Err(StoreError::unavailable(format!("etcd: {reason}")));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A channel that connects when it is first used, and again.
fn channel(target: &Target, tls: Option<Arc<ClientConfig>>) -> Result<Channel, tonic::transport::Error> {
    let scheme = if target.tls { "https" } else { "http" };
    let authority = target.authority();
    // The connector below makes the TLS connection itself, but etcd must hear that it is one: it asks who the caller's
    // certificate names only then.
    let mut endpoint = Endpoint::from_shared(format!("http://{authority}"))?
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    if let Ok(origin) = format!("{scheme}://{authority}").parse() {
        endpoint = endpoint.origin(origin);
    }
    let (host, port) = (target.host.clone(), target.port);
    let Some(tls) = tls.filter(|_| target.tls) else {
        return Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let host = host.clone();
            async move { limited(connect(&host, port)).await.map(TokioIo::new) }
        })));
    };
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (host, tls) = (host.clone(), Arc::clone(&tls));
        async move {
            let secured = async {
                let name = ServerName::try_from(host.clone()).map_err(std::io::Error::other)?;
                TlsConnector::from(tls).connect(name, connect(&host, port).await?).await
            };
            limited(secured).await.map(TokioIo::new)
        }
    })))
}

async fn connect(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let socket = TcpStream::connect((host, port)).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

async fn limited<T>(connecting: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    tokio::time::timeout(CONNECT, connecting).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// What etcd's answer leaves certain. Its errors are told apart by their texts, as its own client does.
fn fault(status: &Status, asked: Asked) -> Fault {
    let message = status.message();
    let says = |text: &str| message.contains(text);
    if never_sent(status) {
        return Fault::NotDone(fluvial_model::causes::chain(status).to_string());
    }
    if status.code() == Code::Unauthenticated || says("user name is empty") || says("revision of auth store is old") {
        return Fault::Token(message.to_owned());
    }
    if says("required revision has been compacted") {
        return Fault::Refused(StoreError::Compacted { oldest: Revision(0) });
    }
    if says("decoded message length too large") {
        return Fault::Refused(StoreError::TooLarge { what: "etcd's answer", size: MAX_ANSWER + 1, limit: MAX_ANSWER });
    }
    if let Asked::Write { ops, bytes } = asked {
        if says("request is too large") || says("message larger than max") {
            let what = "the transaction";
            return Fault::Refused(StoreError::TooLarge { what, size: bytes, limit: REQUEST_BYTES });
        }
        if says("too many operations") {
            let what = "the number of compares or writes";
            return Fault::Refused(StoreError::TooLarge { what, size: ops, limit: REQUEST_OPS });
        }
    }
    if says("too many requests") {
        return Fault::NotDone(message.to_owned());
    }
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::PermissionDenied | Code::Unimplemented => {
            let reason = format!("etcd refuses: {message}");
            Fault::Refused(StoreError::Unavailable { reason, retry_after: REFUSED_RETRY })
        }
        // Among them "database space exceeded": etcd may say so of a write that it has made.
        _ => Fault::Unknown(message.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Asked = Asked::Write { ops: 200, bytes: 2_000_000 };

    #[test]
    fn only_what_was_certainly_not_done_is_called_so() {
        let fault = |code, message: &str| fault(&Status::new(code, message), WRITE);
        for (code, message) in [
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unknown, "transport error"),
            (Code::Cancelled, "operation was canceled"),
            (Code::DeadlineExceeded, "context deadline exceeded"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        ] {
            assert!(matches!(fault(code, message), Fault::Unknown(_)), "{message}");
        }
        let token = fault(Code::Unauthenticated, "etcdserver: invalid auth token");
        assert!(matches!(token, Fault::Token(_)));
        let denied = fault(Code::PermissionDenied, "etcdserver: permission denied");
        assert!(matches!(denied, Fault::Refused(StoreError::Unavailable { .. })));
        let large = fault(Code::InvalidArgument, "etcdserver: request is too large");
        assert!(matches!(large, Fault::Refused(StoreError::TooLarge { size: 2_000_000, .. })));
        let many = fault(Code::InvalidArgument, "etcdserver: too many operations in txn request");
        assert!(matches!(many, Fault::Refused(StoreError::TooLarge { size: 200, .. })));
    }
}
