//! Relays where the source's agent cannot be dialled: it dials the target's, and answers on that connection.
//!
//! The target's agent waits for such a connection only while it needs one, for one operation and one cluster ([`Awaited`]);
//! any other is closed. The source's agent dials again and again for as long as the operation is assigned to it
//! ([`keep_dialling`]): it does not know whether it is dialled itself.
//!
//! Invariants: what may be asked on such a connection is what may be asked at the port; nobody takes a connection of another
//! cluster, or for another operation, than he waits for.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fluvial_certs::listen::reverse;
use fluvial_certs::tls::{ALPN_H2, ALPN_REVERSE};
use fluvial_certs::{Identity, listen};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::sync::oneshot;
use tonic::transport::Channel;

use crate::connect;
use crate::dial::{self, Dialler};
use crate::listener::AgentFront;

/// The first pause before the other agent is dialled again.
const DIAL_FIRST: Duration = Duration::from_millis(500);
/// The longest: a TLS handshake in ten seconds, where the other agent needs no connection.
const DIAL_LONGEST: Duration = Duration::from_secs(10);
/// How long one attempt to connect waits to be dialled: longer than the pauses of who dials.
const DIALLED_WITHIN: Duration = Duration::from_secs(15);

/// A cluster, and the operation for which its agent dials.
type Key = (String, String);

/// The connections that this agent waits for. Clones are one.
#[derive(Clone)]
pub struct Awaited {
    waiting: Arc<Mutex<HashMap<Key, oneshot::Sender<DuplexStream>>>>,
    /// Whether this agent has a port at which it can be dialled.
    pub(crate) port: bool,
}

impl Default for Awaited {
    fn default() -> Self {
        Self::new(true)
    }
}

/// Takes out of a map who waits no more; dropped after what it waited with.
struct NoMore<'a>(&'a Awaited);

impl Drop for NoMore<'_> {
    fn drop(&mut self) {
        self.0.all().retain(|_, sender| !sender.is_closed());
    }
}

impl Awaited {
    /// None; without a port nobody is ever waited for.
    #[must_use]
    pub fn new(port: bool) -> Self {
        Self { waiting: Arc::default(), port }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Key, oneshot::Sender<DuplexStream>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the agent of `cluster` dials for `operation`.
    async fn next(&self, cluster: &str, operation: &str) -> io::Result<DuplexStream> {
        if !self.port {
            return Err(io::Error::other("this agent has no port to be dialled at"));
        }
        let _no_more = NoMore(self);
        let (sender, receiver) = oneshot::channel();
        // Who waited before waits no more: one operation has one channel.
        self.all().insert((cluster.to_owned(), operation.to_owned()), sender);
        let dialled = tokio::time::timeout(DIALLED_WITHIN, receiver).await;
        let message = || io::Error::other(format!("the agent of {cluster} did not dial within {DIALLED_WITHIN:?}"));
        dialled.ok().and_then(Result::ok).ok_or_else(message)
    }

    /// The end of a connection, if it is waited for.
    pub(crate) fn take(&self, cluster: &str, operation: &str) -> Option<DuplexStream> {
        let sender = self.all().remove(&(cluster.to_owned(), operation.to_owned()))?;
        let (ours, theirs) = tokio::io::duplex(reverse::BUFFER);
        sender.send(ours).ok().map(|()| theirs)
    }

    /// A channel to the agent of `cluster` for one operation: it is dialled at `address`, unless that is empty; if that
    /// fails, it is waited for. It connects when it is first used, and again whenever the connection is lost.
    ///
    /// # Errors
    /// When the address is none.
    pub fn channel(
        &self,
        dialler: &Dialler,
        cluster: &str,
        address: &str,
        operation: &str,
    ) -> Result<Channel, connect::Error> {
        let address = if address.is_empty() { None } else { Some(connect::address(address)?) };
        let endpoint = dial::endpoint(address.as_deref().unwrap_or(dial::NO_HOST))?;
        let way = Way { awaited: self.clone(), dialler: dialler.clone(), cluster: cluster.to_owned(), address };
        let operation: Arc<str> = operation.into();
        let connect = move |_: http::Uri| {
            let (way, operation) = (way.clone(), operation.clone());
            async move { way.connect(&operation).await.map(TokioIo::new) }
        };
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(connect)))
    }
}

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// How another agent is reached.
#[derive(Clone)]
struct Way {
    awaited: Awaited,
    dialler: Dialler,
    cluster: String,
    address: Option<String>,
}

impl Way {
    async fn connect(&self, operation: &str) -> io::Result<Box<dyn Connection>> {
        let Some(address) = &self.address else {
            return Ok(Box::new(self.awaited.next(&self.cluster, operation).await?));
        };
        let identity = Identity::Cluster { name: self.cluster.clone() };
        match self.dialler.dial(address, &identity, ALPN_H2).await {
            Ok(dialled) => Ok(Box::new(dialled)),
            Err(error) => match self.awaited.next(&self.cluster, operation).await {
                Ok(dialled) => Ok(Box::new(dialled)),
                Err(silent) => Err(io::Error::other(format!("dial {address}: {error}; {silent}"))),
            },
        }
    }
}

/// Dials the agent of `cluster` at `address` for one operation and answers what it asks, for ever.
pub async fn keep_dialling(dialler: &Dialler, front: &AgentFront, cluster: &str, address: &str, operation: &str) {
    let identity = Identity::Cluster { name: cluster.to_owned() };
    let guard = Arc::new(front.guard.clone());
    let front: Arc<dyn listen::Front> = Arc::new(front.clone());
    let mut pause = DIAL_FIRST;
    loop {
        let answered = async {
            let stream = dialler.dial(address, &identity, ALPN_REVERSE).await?;
            reverse::answer(stream, operation, guard.clone(), front.clone()).await
        };
        match answered.await {
            Ok(true) => pause = DIAL_FIRST,
            Ok(false) => tracing::debug!(cluster, operation, "nobody waits for this connection"),
            Err(error) => tracing::debug!(cluster, operation, %error, "the agent that reads cannot be dialled"),
        }
        // Half of it is random: what failed together does not come back together.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(DIAL_LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_taken_by_who_waits_for_it_and_by_nobody_else() {
        let awaited = Awaited::default();
        assert!(awaited.take("a", "op").is_none(), "nobody waits");
        let waiting = tokio::spawn({
            let awaited = awaited.clone();
            async move { awaited.next("a", "op").await }
        });
        tokio::task::yield_now().await;
        assert!(awaited.take("b", "op").is_none(), "of another cluster");
        assert!(awaited.take("a", "other").is_none(), "for another operation");
        assert!(awaited.take("a", "op").is_some());
        waiting.await.unwrap().unwrap();
        assert!(awaited.take("a", "op").is_none(), "it was given away");

        let late = awaited.next("a", "op").await.unwrap_err();
        assert!(late.to_string().contains("the agent of a did not dial"), "{late}");
        assert!(awaited.take("a", "op").is_none(), "who gave up takes none");
        let _ = awaited.next("a", "op").await;
        assert!(awaited.all().is_empty(), "who gave up leaves nothing behind");
        let dropped = tokio::time::timeout(Duration::from_secs(1), awaited.next("a", "op")).await;
        assert!(dropped.is_err() && awaited.all().is_empty(), "nor who was dropped");
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_without_a_port_waits_for_nobody() {
        let start = tokio::time::Instant::now();
        let refused = Awaited::new(false).next("a", "op").await.unwrap_err();
        assert!(refused.to_string().contains("no port") && start.elapsed().is_zero());
    }
}
