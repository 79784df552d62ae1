//! The hub's one port: gRPC for agents and hubs, REST for users, on the same TLS listener ([`fluvial_certs::listen`]).
//!
//! Request by request, the deny list and the table of who may call what ([`access`]) stand before the services
//! ([`front`]).
//!
//! Invariants: a request without a rule is denied; one with a certificate that was revoked hears nothing but that.
//!
//! Deliberately absent: what the services do.

pub mod access;
mod front;

use std::io;
use std::sync::Arc;

use tokio::net::TcpListener;

pub use fluvial_certs::listen::{Guard, Peer, RunningServer};

use crate::audit::Notes;
use crate::clock::SharedClock;
use crate::rights::Rights;

/// The most connections at a time: 10,000 agents with one each, and a fifth more for users and hubs.
const MAX_CONNECTIONS: usize = 12_000;

/// The two families of services behind the port.
#[derive(Debug, Clone)]
pub struct Services {
    pub grpc: axum::Router,
    pub rest: axum::Router,
}

/// Serves `services` on `listener`, to those who have `rights`; what is refused, and when, is told to `notes`.
///
/// # Errors
/// If the listener has no address.
pub fn serve(
    listener: TcpListener,
    guard: Guard,
    services: Services,
    rights: Rights,
    notes: Notes,
    clock: SharedClock,
) -> io::Result<RunningServer> {
    let front = front::Front {
        guard: guard.clone(),
        services: Arc::new(services),
        rights,
        notes,
        providers: Arc::default(),
        clock,
    };
    fluvial_certs::listen::serve(listener, guard, Arc::new(front), MAX_CONNECTIONS)
}
