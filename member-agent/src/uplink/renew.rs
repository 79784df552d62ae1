//! A new certificate before the old one ends: same key, same identity, put in force at once.

use std::time::Duration;

use fluvial_certs::{Due, due};
use fluvial_proto::v1::RenewRequest;
use fluvial_proto::v1::agent_service_client::AgentServiceClient;
use jiff::Timestamp;
use tonic::transport::Channel;

use super::{Uplink, home};
use crate::identity;

/// How long the hub may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no new certificate yet.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("renew certificate: use identity files")]
    Identity(#[source] identity::Error),
    #[error("renew certificate: the hub does not answer or refuses")]
    Hub(#[source] Box<tonic::Status>),
    #[error("renew certificate: the answer is for somebody else")]
    Somebody,
    #[error("renew certificate: put it in force")]
    Tls(#[source] fluvial_certs::tls::Error),
    #[error("renew certificate: the agent is ending")]
    Ending,
}

/// When the certificate in force is due, and how long to wait after a failure: a twentieth of what is left to it, so that
/// there are many attempts, but seconds at least.
pub(super) fn schedule(uplink: &Uplink, jitter: f64) -> Result<(Duration, Duration), Error> {
    let current = uplink.credentials.current();
    let leaf = identity::verified(&current.bundle, &uplink.agent.trust_domain).map_err(Error::Identity)?;
    let now = Timestamp::now();
    let left = Duration::try_from(leaf.not_after.duration_since(now)).unwrap_or_default();
    let again = (left / 20).clamp(Duration::from_secs(2), Duration::from_secs(600));
    Ok(match due(leaf.issued_at, leaf.not_after, now, jitter) {
        Due::Now => (Duration::ZERO, again),
        Due::In(wait) => (wait, again),
    })
}

/// Fetches a certificate, writes it down and puts it in force.
///
/// `channel` is the hub's, for the agent that speaks for a cluster; a node asks the hubs itself.
pub(super) async fn renew(uplink: &Uplink, channel: Option<Channel>) -> Result<(), Error> {
    let dir = uplink.dir.clone();
    let csr = {
        let dir = dir.clone();
        blocking(move || dir.key()?.csr().map_err(identity::Error::Key)).await?
    };
    let answer = match channel {
        Some(channel) => {
            let mut client = AgentServiceClient::new(channel);
            let call = async { Ok(client.renew(RenewRequest { csr }).await?.into_inner()) };
            let answer = tokio::time::timeout(REPLY_TIMEOUT, Box::pin(call)).await;
            answer.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer in time")))
        }
        None => Box::pin(home::renew(uplink, csr)).await,
    };
    let answer = answer.map_err(|status| Error::Hub(Box::new(status)))?;

    let ours = uplink.agent.identity();
    let trust_domain = uplink.agent.trust_domain.clone();
    let bundle = blocking(move || {
        let offered = fluvial_certs::Bundle::new(&answer.certificate, &dir.key()?, &answer.ca);
        let leaf = identity::verified(&offered.map_err(identity::Error::Bundle)?, &trust_domain)?;
        if leaf.identity != ours {
            return Ok(None);
        }
        dir.set_certificate(&answer.certificate, &answer.ca).map(Some)
    })
    .await?
    .ok_or(Error::Somebody)?;
    let generation = uplink.credentials.replace(bundle).map_err(Error::Tls)?;
    tracing::info!(generation, "certificate renewed");
    Ok(())
}

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, identity::Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(call).await.map_err(|_| Error::Ending)?.map_err(Error::Identity)
}
