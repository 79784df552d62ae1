//! How other agents reach this one, at its port or by a connection that it dialled for them: mTLS, a rule for every
//! service, and nothing without a rule.
//!
//! | service | who may call it |
//! |---|---|
//! | relay | the agents of clusters; what each may read its own assignment says ([`crate::relay`]) |
//! | share | the agent and the nodes of this cluster |
//! | agent | the nodes of this cluster, at the agent that speaks for it |
//!
//! Invariants: the rules look at the certificate alone; a certificate that was revoked ends its connections and opens no
//! new ones; connections and requests are bounded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use fluvial_certs::listen::{self, Answer, Front, Guard, Limits, Peer, RunningServer};
use fluvial_certs::{Identity, Reloadable, TrustDomain};
use fluvial_proto::v1::agent_service_server::SERVICE_NAME as AGENT;
use fluvial_proto::v1::relay_service_server::SERVICE_NAME as RELAY;
use fluvial_proto::v1::share_service_server::SERVICE_NAME as SHARE;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tower::ServiceExt as _;

use crate::denied::Denials;
use crate::relay::Awaited;

/// Connections at a time: the nodes of a cluster, twice while one reconnects, and some peers.
const MAX_CONNECTIONS: usize = 1024;
/// Requests of one connection at a time; each has at most two chunks of 1 MiB in memory.
const STREAMS: u32 = 64;
/// What a peer may send unread: requests are small, blocks are at most 256 KiB.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How long requests may take to finish when the agent ends.
const GRACE: Duration = Duration::from_secs(2);

/// Why an agent cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("listen on {address}: say by --advertise HOST:PORT how others reach this machine")]
    Advertise { address: SocketAddr },
}

/// A port that is open, before anything is served on it.
#[derive(Debug)]
pub struct Port {
    listener: TcpListener,
    /// How others reach it, `HOST:PORT`.
    pub address: String,
}

impl Port {
    /// Opens the port.
    ///
    /// # Errors
    /// When it is taken, or nobody could know how to reach it.
    pub async fn open(address: SocketAddr, advertise: Option<String>) -> Result<Self, Error> {
        let failed = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let address = match advertise {
            Some(advertise) => advertise,
            None if bound.ip().is_unspecified() => return Err(Error::Advertise { address }),
            None => bound.to_string(),
        };
        Ok(Self { listener, address })
    }

    /// Serves on it.
    ///
    /// # Errors
    /// If the port has no address any more.
    pub fn serve(self, front: AgentFront) -> std::io::Result<RunningServer> {
        listen::serve(self.listener, front.guard.clone(), Arc::new(front), MAX_CONNECTIONS)
    }
}

/// What a listener's connections are judged by.
#[must_use]
pub fn guard(credentials: Arc<Reloadable>, trust_domain: TrustDomain, denied: &Denials) -> Guard {
    Guard { credentials, trust_domain, denied: denied.list(), denied_changed: denied.changed() }
}

/// Ends a server in order.
pub async fn end(server: RunningServer) {
    server.shutdown(GRACE).await;
}

/// Who may call what.
#[derive(Debug, Clone)]
pub struct Rules {
    /// This agent's cluster.
    pub cluster: String,
    /// Whether this agent speaks for it, and tells its nodes what to do.
    pub leads: bool,
}

impl Rules {
    /// Whether a caller may call a gRPC service.
    #[must_use]
    pub fn allow(&self, service: &str, identity: Option<&Identity>) -> bool {
        match (service, identity) {
            (RELAY, Some(Identity::Cluster { .. })) => self.leads,
            (SHARE, Some(Identity::Cluster { name })) => *name == self.cluster,
            (SHARE, Some(Identity::Node { cluster, .. })) => *cluster == self.cluster,
            (AGENT, Some(Identity::Node { cluster, .. })) => self.leads && *cluster == self.cluster,
            _ => false,
        }
    }
}

/// What stands before the services of an agent, whoever dialled.
#[derive(Clone)]
pub struct AgentFront {
    pub rules: Rules,
    pub guard: Guard,
    pub services: axum::Router,
    /// The connections of other agents that this one waits for.
    pub awaited: Awaited,
}

impl AgentFront {
    fn refusal(&self, peer: &Peer, path: &str) -> Option<tonic::Status> {
        let service = path.strip_prefix('/').and_then(|rest| rest.split('/').next()).unwrap_or_default();
        let Some(verified) = peer.verified.as_deref() else {
            return Some(tonic::Status::unauthenticated(format!("a client certificate is needed to call {service}")));
        };
        if let Err(revoked) = self.guard.denied.check(verified) {
            return Some(tonic::Status::permission_denied(revoked.to_string()));
        }
        let identity = &verified.identity;
        (!self.rules.allow(service, Some(identity)))
            .then(|| tonic::Status::permission_denied(format!("{} may not call {service}", identity.path())))
    }
}

impl Front for AgentFront {
    fn limits(&self, _: &Peer) -> Limits {
        Limits { streams: STREAMS, stream_window: STREAM_WINDOW, connection_window: CONNECTION_WINDOW }
    }

    fn answer(&self, peer: &Peer, mut request: Request<Incoming>) -> Answer {
        if let Some(status) = self.refusal(peer, request.uri().path()) {
            let refusal: Response<Body> = status.into_http();
            return Box::pin(std::future::ready(refusal));
        }
        request.extensions_mut().insert(peer.clone());
        let services = self.services.clone();
        Box::pin(async move {
            match services.oneshot(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        })
    }

    fn reversed(&self, peer: &Peer, purpose: &str) -> Option<DuplexStream> {
        match &peer.verified.as_ref()?.identity {
            Identity::Cluster { name } => self.awaited.take(name, purpose),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_is_open_to_its_own_callers_alone() {
        let cluster = |name: &str| Some(Identity::Cluster { name: name.to_owned() });
        let node = |cluster: &str| Some(Identity::Node { cluster: cluster.to_owned(), name: "n".to_owned() });
        let user = Some(Identity::User { name: "ann".to_owned(), groups: Vec::new() });
        let callers = [None, cluster("a"), cluster("b"), node("a"), node("b"), user, Some(Identity::Hub { id: 1 })];
        let (yes, no) = (true, false);
        for (service, leads, expected) in [
            (RELAY, true, [no, yes, yes, no, no, no, no]),
            (RELAY, false, [no, no, no, no, no, no, no]),
            (SHARE, true, [no, yes, no, yes, no, no, no]),
            (SHARE, false, [no, yes, no, yes, no, no, no]),
            (AGENT, true, [no, no, no, yes, no, no, no]),
            (AGENT, false, [no, no, no, no, no, no, no]),
            ("fluvial.v1.HubService", true, [no, no, no, no, no, no, no]),
            ("", true, [no, no, no, no, no, no, no]),
        ] {
            let rules = Rules { cluster: "a".to_owned(), leads };
            let allowed = callers.clone().map(|caller| rules.allow(service, caller.as_ref()));
            assert_eq!(allowed, expected, "{service}");
        }
    }
}
