//! ④⑦ Sessions: what one agent is told, and what it says.
//!
//! A session is one stream of an agent: it says what it knows ([`claim`]), is told what it lacks and then every change
//! ([`feed`], with the secrets that [`secrets`] follows), learns what its transfers may take of the links ([`rates`]), and
//! reports ([`reports`]). [`drive`] holds these together;
//! [`registry`] knows the sessions of this hub, so that an agent can be asked; [`hubs`] lets other hubs ask too.
//!
//! Invariants: whose session it is, is what the certificate says; one installation of an agent at a time speaks for a
//! cluster; what waits to be sent is a set of ids, so that a slow agent costs no memory and gets the latest; a report
//! is acknowledged only when it is stored, or when nobody needs it any more.
//!
//! Deliberately absent: deciding what a cluster should do (the planner), and judging its silence (`model::liveness`).

mod claim;
mod drive;
mod feed;
pub mod hubs;
mod rates;
mod registry;
mod reports;
mod secrets;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fluvial_certs::{DenyList, Identity};
use fluvial_model::kinds::Cluster;
use fluvial_proto::v1;
use fluvial_proto::v1::agent_service_server::AgentService;
use fluvial_raft::{Consistency, StoreError};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

pub use rates::Rates;
pub use registry::{AskError, Registry};
pub use secrets::SecretChanges;

use crate::audit::Origin;
use crate::blocks::{BlockError, Blocks, block_hash};
use crate::enrol::Issuer;
use crate::liveness::Liveness;
use crate::objects::{ObjectError, Objects};
use crate::peers::Peers;
use crate::server::Peer;

/// Where the number of the store's history is kept, as decimal text. A store that is restored gets another.
pub const EPOCH_KEY: &str = "/system/epoch";
/// Messages that are ready for one agent; the rest waits as ids. An assignment may be a megabyte long, and a member that
/// does not read holds all of them.
const OUTBOUND: usize = 4;
/// The next block of a push must come within this time.
const NEXT_BLOCK: Duration = Duration::from_secs(30);

/// What an agent is sent. A channel has room for 32 from the start: boxes keep that small.
type Outgoing = Box<Result<v1::HubMessage, Status>>;
/// The stream of it.
type Messages = tokio_stream::adapters::Map<ReceiverStream<Outgoing>, fn(Outgoing) -> Result<v1::HubMessage, Status>>;

#[allow(clippy::boxed_local, reason = "it is in a box because it was in a channel")]
fn unboxed(outgoing: Outgoing) -> Result<v1::HubMessage, Status> {
    *outgoing
}

/// What all sessions of a hub share.
#[derive(Clone)]
pub struct SessionContext {
    pub objects: Objects,
    pub liveness: Arc<Liveness>,
    pub registry: Arc<Registry>,
    pub secrets: SecretChanges,
    pub rates: Rates,
    pub blocks: Blocks,
    pub peers: Arc<Peers>,
    pub issuer: Issuer,
    /// Whose certificates are not accepted; agents are told.
    pub denied: Arc<DenyList>,
    /// Changes whenever `denied` does.
    pub denied_changed: watch::Receiver<u64>,
    /// Whether this hub was restored and has not caught up: see [`crate::recovery`].
    pub recovering: watch::Receiver<bool>,
}

/// The service that agents call.
#[derive(Clone)]
pub struct Sessions {
    context: SessionContext,
    tasks: TaskTracker,
    ending: CancellationToken,
}

impl Sessions {
    #[must_use]
    pub fn new(context: SessionContext) -> Self {
        Self { context, tasks: TaskTracker::new(), ending: CancellationToken::new() }
    }

    /// Sends every agent elsewhere and waits until the sessions have ended.
    pub async fn shutdown(&self) {
        self.ending.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The number of the store's history.
///
/// # Errors
/// If the store does not answer, or was never set up.
pub async fn epoch(objects: &Objects) -> Result<u64, StoreError> {
    let found = objects.store.get(EPOCH_KEY, Consistency::Linearizable).await?;
    let text = found.ok_or_else(|| StoreError::unavailable("the store is not set up yet"))?;
    let number = std::str::from_utf8(&text.value).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| StoreError::Corrupt { what: format!("{EPOCH_KEY} holds no number") })
}

/// The cluster whose agent calls.
fn caller<T>(request: &Request<T>) -> Result<String, Status> {
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.verified.as_ref());
    match peer.map(|verified| &verified.identity) {
        Some(Identity::Cluster { name }) => Ok(name.clone()),
        _ => Err(Status::permission_denied("only the agent of a cluster may call this")),
    }
}

/// Who calls, for the audit trail.
fn origin<T>(request: &Request<T>) -> Origin {
    request.extensions().get::<Origin>().cloned().unwrap_or_default()
}

fn store_status(error: &StoreError) -> Status {
    match error {
        StoreError::Unavailable { .. } | StoreError::UnknownOutcome { .. } | StoreError::Compacted { .. } => {
            Status::unavailable(error.to_string())
        }
        _ => Status::internal(error.to_string()),
    }
}

fn object_status(error: &ObjectError) -> Status {
    tracing::warn!(error = error as &dyn std::error::Error, "a session's read or write failed");
    Status::unavailable("the store did not answer: try again")
}

fn block_status(error: &BlockError) -> Status {
    match error {
        BlockError::TooLarge { .. } | BlockError::Mismatch { .. } | BlockError::Name { .. } => {
            Status::invalid_argument(error.to_string())
        }
        _ => {
            tracing::error!(error = error as &dyn std::error::Error, "a block is not kept or found");
            Status::internal(error.to_string())
        }
    }
}

#[tonic::async_trait]
impl AgentService for Sessions {
    type SessionStream = Messages;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if self.ending.is_cancelled() {
            return Err(Status::unavailable("this hub is shutting down"));
        }
        let cluster = caller(&request)?;
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        // The reply starts at once: an agent may wait for it before it says hello.
        let session = drive::Session::new(self.context.clone(), cluster, outbound, self.ending.clone());
        self.tasks.spawn(session.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(messages).map(unboxed as fn(Outgoing) -> _)))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let name = caller(&request)?;
        let issuer = &self.context.issuer;
        let csr = issuer.read(&request.get_ref().csr)?;
        let found = self.context.objects.get::<Cluster>("", &name, Consistency::Linearizable).await;
        if found.map_err(|error| object_status(&error))?.is_none() {
            return Err(Status::permission_denied(format!("cluster \"{name}\" was removed: join again")));
        }
        let origin = origin(&request);
        let certificate = issuer.issue(&csr, &Identity::Cluster { name }, None, &origin).await?;
        Ok(Response::new(v1::RenewResponse { certificate, ca: issuer.roots() }))
    }

    async fn put_blocks(
        &self,
        request: Request<Streaming<v1::Block>>,
    ) -> Result<Response<v1::PutBlocksResponse>, Status> {
        caller(&request)?;
        let mut blocks = request.into_inner();
        let mut stored = 0;
        loop {
            let next = tokio::time::timeout(NEXT_BLOCK, blocks.message()).await;
            let next = next.map_err(|_| Status::deadline_exceeded("the next block did not come in time"))?;
            let Some(block) = next? else { return Ok(Response::new(v1::PutBlocksResponse { stored })) };
            let hash = block_hash(&block.hash).map_err(|error| block_status(&error))?;
            self.context.blocks.put(hash, block.data).await.map_err(|error| block_status(&error))?;
            stored += 1;
        }
    }

    async fn get_block(&self, request: Request<v1::BlockRequest>) -> Result<Response<v1::Block>, Status> {
        caller(&request)?;
        let hash = block_hash(&request.get_ref().hash).map_err(|error| block_status(&error))?;
        let found = self.context.blocks.get(hash).await.map_err(|error| block_status(&error))?;
        let data = found.ok_or_else(|| Status::not_found(format!("no hub has block {hash}")))?;
        Ok(Response::new(v1::Block { hash: Bytes::copy_from_slice(hash.as_bytes()), data }))
    }
}
