//! A new certificate before the old one ends: same key, same identity, put in force at once.

use std::time::Duration;

use fluvial_certs::{Due, due};
use fluvial_proto::v1::RenewRequest;
use fluvial_proto::v1::agent_service_client::AgentServiceClient;
use jiff::Timestamp;
use tonic::transport::Channel;

use super::Uplink;
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
pub(super) async fn renew(uplink: &Uplink, channel: Channel) -> Result<(), Error> {
    let dir = uplink.dir.clone();
    let csr = {
        let dir = dir.clone();
        blocking(move || dir.key()?.csr().map_err(identity::Error::Key)).await?
    };
    let mut client = AgentServiceClient::new(channel);
    let call = Box::pin(client.renew(RenewRequest { csr }));
    let answer = tokio::time::timeout(REPLY_TIMEOUT, call).await;
    let answer = answer.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer in time")));
    let answer = answer.map_err(|status| Error::Hub(Box::new(status)))?.into_inner();

    let cluster = uplink.agent.cluster.clone();
    let trust_domain = uplink.agent.trust_domain.clone();
    let bundle = blocking(move || {
        let offered = fluvial_certs::Bundle::new(&answer.certificate, &dir.key()?, &answer.ca);
        let leaf = identity::verified(&offered.map_err(identity::Error::Bundle)?, &trust_domain)?;
        if leaf.identity != (fluvial_certs::Identity::Cluster { name: cluster }) {
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
