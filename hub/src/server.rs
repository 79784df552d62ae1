//! The hub's one port: gRPC for agents and hubs, REST for users, on the same TLS listener.
//!
//! A connection passes, in this order: the limit on connections, the limit on handshakes, the TLS handshake
//! ([`accept`]), the reading of who it is, the deny list, and then, request by request, the deny list again and the
//! table of who may call what ([`access`]). Only then a service sees it.
//!
//! Invariants: a request without a rule is denied; a connection ends when its certificate does, and within a second
//! after its certificate is revoked, and a later one with it hears nothing but that; every task that a connection started ends with the server.
//!
//! Deliberately absent: what the services do, and sessions of TLS (a resumed one would skip the certificate's check).

pub mod accept;
pub mod access;
mod connection;

use std::net::SocketAddr;
use std::sync::Arc;

use fluvial_certs::{DenyList, Reloadable, TrustDomain, Verified};
use tokio::sync::watch;

pub use accept::{RunningServer, serve};

/// Who is at the other end of a connection; in every request's extensions.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// What its certificate says, if it showed one.
    pub verified: Option<Arc<Verified>>,
}

/// What every connection is judged by.
#[derive(Debug, Clone)]
pub struct Guard {
    pub credentials: Arc<Reloadable>,
    pub trust_domain: TrustDomain,
    pub denied: Arc<DenyList>,
    /// Changes whenever `denied` does; 0 until it was read for the first time.
    pub denied_changed: watch::Receiver<u64>,
}

/// The two families of services behind the port.
#[derive(Debug, Clone)]
pub struct Services {
    pub grpc: axum::Router,
    pub rest: axum::Router,
}
