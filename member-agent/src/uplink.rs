//! ④ ⑦ The uplink: one session with some hub, for as long as the agent lives.
//!
//! It dials out, goes from hub to hub while it fails, and waits longer and longer between attempts, with full jitter, so
//! that a fleet that was cut off together does not come back together. One session is in [`session`], questions of the hub
//! are answered in [`ask`], a new certificate is fetched in [`renew`], pauses are reckoned in [`pause`].
//!
//! Invariants: the hub is sure that a thing is known only when it is in the ledger; a report is repeated until it is
//! stored; a certificate that is no longer accepted ends nothing but the uplink's zeal.
//! Deliberately absent: acting on what arrives.

mod ask;
mod home;
pub mod pause;
mod renew;
mod session;

use std::sync::Arc;
use std::time::Duration;

use fluvial_certs::Reloadable;
use fluvial_model::report::AgentReport;
use fluvial_model::share::Node;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;

use crate::connect;
use crate::denied::Denials;
use crate::dial::Dialler;
use crate::identity::{AgentFile, DataDir};
use crate::ledger::{self, Ledger};
use crate::rates::Rates;

/// Between attempts of an agent whose place is taken by another installation.
const CONFLICT_PAUSE: Duration = Duration::from_secs(30);
/// Conflicts in a row from which on it pauses so long.
const PATIENT_AFTER: u32 = 4;
/// Between attempts of an agent whose certificate is not accepted.
const REVOKED_PAUSE: Duration = Duration::from_secs(60);
/// A session that lasted so long was a good one: the next attempt comes soon.
const GOOD_SESSION: Duration = Duration::from_secs(15);

/// How the agent stands with the hubs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UplinkState {
    /// No session, trying.
    Connecting,
    /// A hub has welcomed this agent.
    Connected {
        /// Its address.
        hub: String,
    },
    /// Another installation acts for this cluster.
    Conflict {
        /// The hub's words.
        message: String,
    },
    /// The hubs do not accept this agent's certificate any more.
    Revoked {
        /// The hub's words.
        message: String,
    },
    /// The agent has ended.
    Stopped,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error("reach hub")]
    Connect(#[source] connect::Error),
    #[error("hold session: the hub refuses or is gone")]
    Refused(#[source] Box<tonic::Status>),
    #[error("hold session: the hub has been silent for {0:?}")]
    Silent(Duration),
    #[error("hold session: the hub takes no messages")]
    Stuck,
    #[error("hold session: the hub closed it")]
    Closed,
    #[error("hold session: {0}")]
    Protocol(&'static str),
    #[error("find the cluster's agent: it listens nowhere: run it with --listen and --advertise")]
    Homeless,
    #[error("hold session: use ledger")]
    Ledger(#[source] ledger::Error),
}

/// How a session ended without a fault.
pub(crate) enum Ended {
    /// The agent ends.
    Stop,
    /// The hub sends the agent elsewhere.
    Move(Duration),
    /// There is a new certificate to connect with.
    Renewed,
}

/// Everything that sessions share.
pub(crate) struct Uplink {
    pub dir: DataDir,
    pub agent: AgentFile,
    pub ledger: Ledger,
    pub credentials: Arc<Reloadable>,
    pub denied: Denials,
    pub dialler: Dialler,
    /// Of a node: the nodes that share their caches, as the cluster's agent tells.
    pub sharing: watch::Sender<Vec<Node>>,
    pub rates: Rates,
    pub channel: watch::Sender<Option<Channel>>,
    pub state: watch::Sender<UplinkState>,
    pub profile: watch::Receiver<AgentReport>,
    pub cancel: CancellationToken,
}

impl Uplink {
    /// Holds sessions until the agent ends.
    pub(crate) async fn run(mut self) {
        let mut failures: u32 = 0;
        // Agents of one fleet know the same list: each starts somewhere else in it.
        let mut hub: usize = rand::random_range(0..self.agent.hubs.len().max(1));
        while !self.cancel.is_cancelled() {
            let Some(address) = self.agent.hubs.get(hub % self.agent.hubs.len().max(1)).cloned() else {
                tracing::error!("no hub is known; join again");
                // What was asked for before goes on without a hub.
                self.cancel.cancelled().await;
                break;
            };
            let started = Instant::now();
            let ended = match self.agent.node {
                None => Box::pin(session::hold(&mut self, &address)).await,
                Some(_) => Box::pin(self.hold_as_node()).await,
            };
            self.channel.send_replace(None);
            let pause = match ended {
                Ok(Ended::Stop) => break,
                Ok(Ended::Renewed) => Duration::ZERO,
                Ok(Ended::Move(after)) => {
                    hub = hub.wrapping_add(1);
                    after
                }
                Err(lost) => {
                    hub = hub.wrapping_add(1);
                    failures = if started.elapsed() >= GOOD_SESSION { 0 } else { failures.saturating_add(1) };
                    self.after(&lost, &address, failures)
                }
            };
            tokio::select! {
                () = self.cancel.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.state.send_replace(UplinkState::Stopped);
    }

    /// A session with the agent of the cluster.
    async fn hold_as_node(&mut self) -> Result<Ended, Lost> {
        // Without a session there is nobody else to see to it.
        if matches!(renew::schedule(self, 0.5), Ok((Duration::ZERO, _))) && renew::renew(self, None).await.is_ok() {
            return Ok(Ended::Renewed);
        }
        let cancel = self.cancel.clone();
        let address = tokio::select! {
            () = cancel.cancelled() => return Ok(Ended::Stop),
            address = home::member(self) => address?,
        };
        session::hold(self, &address).await
    }

    /// Notes why a session was lost; returns how long to wait.
    fn after(&self, lost: &Lost, address: &str, failures: u32) -> Duration {
        let error = lost as &dyn std::error::Error;
        let status = if let Lost::Refused(status) = lost { Some(status) } else { None };
        match status.map(|status| (status.code(), status.message().to_owned())) {
            Some((Code::Unauthenticated | Code::PermissionDenied, message)) => {
                tracing::error!(
                    hub = address,
                    error,
                    "this agent's certificate is not accepted; the cache goes on serving. \
                    If that is not wanted: create a token with `fluvial token create` and join again"
                );
                self.state.send_replace(UplinkState::Revoked { message });
                pause::spread(REVOKED_PAUSE, rand::random())
            }
            Some((Code::AlreadyExists | Code::FailedPrecondition, message)) => {
                tracing::error!(
                    hub = address,
                    error,
                    cluster = self.agent.cluster,
                    "another agent acts for this cluster: \
                    stop it, or join this data directory to a cluster of its own"
                );
                self.state.send_replace(UplinkState::Conflict { message });
                // The other one may be about to end.
                if failures < PATIENT_AFTER {
                    pause::after(failures, rand::random())
                } else {
                    pause::spread(CONFLICT_PAUSE, rand::random())
                }
            }
            _ => {
                tracing::warn!(hub = address, error, "no session with the hub");
                self.state.send_replace(UplinkState::Connecting);
                pause::after(failures, rand::random())
            }
        }
    }
}
