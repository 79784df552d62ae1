//! HubService: what the other hubs ask of this one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fluvial_certs::Identity;
use fluvial_proto::v1;
use fluvial_proto::v1::hub_service_server::HubService;
use tonic::{Request, Response, Status};

use super::claim::TAKEOVER;
use super::{AskError, SessionContext, block_status, origin};
use crate::blocks::block_hash;
use crate::liveness::Liveness;
use crate::peers::Peers;
use crate::server::Peer;

/// How often a hub tells the leader whom it has heard from: a fifth of the time after which silence is suspect.
const BEAT_EVERY: Duration = Duration::from_secs(2);
/// Silence beyond this is told no more; the leader has judged it long before.
const BEAT_WITHIN: Duration = Duration::from_secs(120);

/// The service.
#[derive(Clone)]
pub struct HubCalls {
    context: SessionContext,
}

impl HubCalls {
    #[must_use]
    pub fn new(context: SessionContext) -> Self {
        Self { context }
    }

    /// Whether this hub has, or had a moment ago, a session of `cluster`.
    fn has_session(&self, cluster: &str) -> bool {
        self.context.registry.instance(cluster).is_some()
            || self.context.liveness.silence(cluster).is_some_and(|silence| silence < TAKEOVER)
    }
}

impl From<AskError> for Status {
    fn from(error: AskError) -> Self {
        match error {
            AskError::NotHere { .. } => Self::not_found(error.to_string()),
            AskError::Gone { .. } => Self::aborted(error.to_string()),
            AskError::Timeout { .. } => Self::deadline_exceeded(error.to_string()),
        }
    }
}

#[tonic::async_trait]
impl HubService for HubCalls {
    /// From this hub's disk alone: a hub that asked its peers in turn would ask the caller.
    async fn get_block(&self, request: Request<v1::BlockRequest>) -> Result<Response<v1::Block>, Status> {
        let hash = block_hash(&request.get_ref().hash).map_err(|error| block_status(&error))?;
        let found = self.context.blocks.get_local(hash).await.map_err(|error| block_status(&error))?;
        let data = found.ok_or_else(|| Status::not_found(format!("block {hash} is not here")))?;
        Ok(Response::new(v1::Block { hash: Bytes::copy_from_slice(hash.as_bytes()), data }))
    }

    async fn ask_agent(&self, request: Request<v1::AskAgentRequest>) -> Result<Response<v1::AskReply>, Status> {
        let v1::AskAgentRequest { cluster, ask } = request.into_inner();
        let ask = ask.unwrap_or_default();
        if ask.question.is_none() {
            let here = self.has_session(&cluster);
            let reply = here.then(v1::AskReply::default);
            return reply.map(Response::new).ok_or_else(|| AskError::NotHere { cluster }.into());
        }
        Ok(Response::new(self.context.registry.ask(&cluster, ask).await?))
    }

    async fn beats(&self, request: Request<v1::BeatsRequest>) -> Result<Response<v1::BeatsResponse>, Status> {
        for beat in request.into_inner().beats {
            self.context.liveness.heard(&beat.cluster, Duration::from_millis(beat.age_ms));
        }
        Ok(Response::new(v1::BeatsResponse {}))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.verified.clone());
        let Some(Identity::Hub { id }) = peer.map(|verified| verified.identity.clone()) else {
            return Err(Status::permission_denied("only a hub may call this"));
        };
        let Some(hub) = self.context.peers.hubs().into_iter().find(|hub| hub.id == id) else {
            return Err(Status::permission_denied(format!("hub {id} is not a member")));
        };
        let issuer = &self.context.issuer;
        let csr = issuer.read(&request.get_ref().csr)?;
        let certificate = issuer.issue(&csr, &Identity::Hub { id }, Some(&hub.address), &origin(&request)).await?;
        Ok(Response::new(v1::RenewResponse { certificate, ca: issuer.roots() }))
    }
}

/// Tells the leader whom this hub has heard from, for ever.
pub async fn tell_beats(liveness: Arc<Liveness>, peers: Arc<Peers>) {
    let mut tick = tokio::time::interval(BEAT_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let age_ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let heard = liveness.within(BEAT_WITHIN);
        let beats: Vec<_> = heard.into_iter().map(|(cluster, age)| v1::Beat { cluster, age_ms: age_ms(age) }).collect();
        if beats.is_empty() {
            continue;
        }
        if let Err(status) = peers.tell_leader(beats).await {
            tracing::debug!(%status, "telling the leader whom this hub heard from");
        }
    }
}
