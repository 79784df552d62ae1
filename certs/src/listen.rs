//! The listener that hubs and agents share: TLS first, then who it is, then whether he may still speak.
//!
//! A connection passes, in this order: the limits on connections and on strangers ([`strangers`]), the TLS handshake
//! ([`accept`]), the reading of who it is; then its requests come to a [`Front`], which has the rules and the services.
//!
//! Invariants: a connection ends when its certificate does, and within a second after its certificate is revoked; every
//! task that a connection started ends with the server.
//!
//! Deliberately absent: rules and services, and sessions of TLS (a resumed one would skip the certificate's check).

pub mod accept;
mod connection;
pub mod reverse;
mod strangers;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::DuplexStream;
use tokio::sync::watch;

pub use self::accept::{RunningServer, serve};
use crate::identity::{TrustDomain, Verified};
use crate::reload::Reloadable;
use crate::revocation::DenyList;

/// Who is at the other end of a connection; in every request's extensions.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where it calls from.
    pub address: SocketAddr,
    /// What its certificate says, if it showed one.
    pub verified: Option<Arc<Verified>>,
    /// Set by the front once a request proved by itself who is there: the connection may then last without a certificate.
    pub known: Arc<AtomicBool>,
}

/// What every connection is judged by.
#[derive(Debug, Clone)]
pub struct Guard {
    /// What the server presents.
    pub credentials: Arc<Reloadable>,
    /// Whose certificates mean anything.
    pub trust_domain: TrustDomain,
    /// Who is not welcome any more.
    pub denied: Arc<DenyList>,
    /// Changes whenever `denied` does; 0 until it was read for the first time.
    pub denied_changed: watch::Receiver<u64>,
}

/// What one connection may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests at a time.
    pub streams: u32,
    /// Bytes that a peer may send unread on one stream.
    pub stream_window: u32,
    /// The same on all streams together.
    pub connection_window: u32,
}

/// An answer on its way.
pub type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// What stands before the services: the rules. Whatever no rule allows it refuses.
pub trait Front: Send + Sync + 'static {
    /// What a connection of this peer may take.
    fn limits(&self, peer: &Peer) -> Limits;

    /// Answers one request.
    fn answer(&self, peer: &Peer, request: Request<Incoming>) -> Answer;

    /// Takes a connection whose other end wants to be asked, for the purpose that it names ([`reverse`]): what carries its
    /// bytes. Nothing if nobody waits for it.
    fn reversed(&self, _peer: &Peer, _purpose: &str) -> Option<DuplexStream> {
        None
    }
}
