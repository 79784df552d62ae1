//! ⑤ Sharing a cache between the nodes of a cluster: which node to ask, and answering those who ask.
//!
//! Who owns a range is decided alike on every node (`model::share`) from the list of nodes that the cluster's agent tells.
//! A node that does not answer, or gave wrong bytes, is left out for a while: its ranges then have another owner, the same
//! for every node that left it out.
//!
//! Invariants: only nodes of this cluster are asked and answered, by the identities in their certificates; every wait has
//! a deadline, after which the asker goes to the source itself.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use fluvial_certs::Identity;
use fluvial_engine::{EngineError, FromPeer, NodeCache, Peers, SharedRange};
use fluvial_model::causes::chain;
use fluvial_model::manifest::RelativePath;
use fluvial_model::share::{self, Node};
use fluvial_proto::v1;
use fluvial_proto::v1::share_service_client::ShareServiceClient;
use fluvial_proto::v1::share_service_server::ShareService;
use futures::Stream;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::dial::Dialler;

/// Bytes of one answer.
const CHUNK: usize = 1 << 20;
/// How long the owner may take until the first byte: it may have to fetch 8 MiB from a slow source.
const FIRST: Duration = Duration::from_secs(15);
/// And until the next.
const NEXT: Duration = Duration::from_secs(5);
/// How long a node that does not answer is left out.
const SILENT_FOR: Duration = Duration::from_secs(10);
/// How long a node that gave wrong bytes is left out.
const DISTRUSTED_FOR: Duration = Duration::from_secs(600);
/// A node may be told of a version a moment after the one that asks.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The other nodes, to be asked.
pub struct Sharing {
    cluster: String,
    /// This node's name.
    own: String,
    dialler: Dialler,
    nodes: watch::Receiver<Vec<Node>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By name, with the address that each leads to.
    channels: HashMap<String, (String, Channel)>,
    /// Nodes that are not asked, and until when.
    left_out: HashMap<String, Instant>,
}

impl Sharing {
    /// With the list of nodes as it is kept.
    #[must_use]
    pub fn new(cluster: &str, own: &str, dialler: Dialler, nodes: watch::Receiver<Vec<Node>>) -> Self {
        let (cluster, own) = (cluster.to_owned(), own.to_owned());
        Self { cluster, own, dialler, nodes, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For no less time than it is left out already.
    fn leave_out(&self, node: &str, time: Duration) {
        let until = Instant::now() + time;
        let mut known = self.known();
        let left_out = known.left_out.entry(node.to_owned()).or_insert(until);
        *left_out = until.max(*left_out);
    }

    /// The node that owns a range among those that answer; nothing if it is this one.
    fn owner(&self, range: &SharedRange) -> Option<Node> {
        let now = Instant::now();
        let asked: Vec<Node> = {
            let mut known = self.known();
            known.left_out.retain(|_, until| *until > now);
            self.nodes.borrow().iter().filter(|node| !known.left_out.contains_key(&node.name)).cloned().collect()
        };
        let digest = range.digest.as_ref().map(|digest| digest.as_bytes());
        let file = share::file_key(digest, &range.uid, &range.root.to_string(), range.path.as_str());
        share::owner(&asked, &file, range.offset).filter(|node| node.name != self.own).cloned()
    }

    fn channel(&self, node: &Node) -> Option<Channel> {
        let mut known = self.known();
        if let Some((address, channel)) = known.channels.get(&node.name)
            && *address == node.address
        {
            return Some(channel.clone());
        }
        let cluster = self.cluster.clone();
        let identity = match node.leads {
            true => Identity::Cluster { name: cluster },
            false => Identity::Node { cluster, name: node.name.clone() },
        };
        let channel = self.dialler.channel(&node.address, &identity).ok()?;
        known.channels.insert(node.name.clone(), (node.address.clone(), channel.clone()));
        Some(channel)
    }

    async fn ask(channel: Channel, range: &SharedRange) -> Result<Bytes, Status> {
        let late = |within: Duration| Status::deadline_exceeded(format!("no answer within {within:?}"));
        let request = v1::ReadSharedRequest {
            uid: range.uid.clone(),
            root: range.root.to_string(),
            path: range.path.to_string(),
            tag: range.tag.clone().unwrap_or_default(),
            offset: range.offset,
            length: range.length,
        };
        let mut client = ShareServiceClient::new(channel);
        let asked = tokio::time::timeout(FIRST, Box::pin(client.read_shared(request)));
        let mut chunks = asked.await.map_err(|_| late(FIRST))??.into_inner();
        let length = usize::try_from(range.length).unwrap_or(usize::MAX);
        let mut data = BytesMut::with_capacity(length);
        let mut within = FIRST;
        while let Some(chunk) = tokio::time::timeout(within, chunks.message()).await.map_err(|_| late(within))?? {
            if data.len() + chunk.data.len() > length {
                return Err(Status::data_loss("more bytes than were asked for"));
            }
            data.extend_from_slice(&chunk.data);
            within = NEXT;
        }
        Ok(data.freeze())
    }
}

#[async_trait]
impl Peers for Sharing {
    fn any(&self) -> bool {
        self.nodes.borrow().iter().any(|node| node.name != self.own)
    }

    async fn read(&self, range: &SharedRange) -> Option<FromPeer> {
        let node = self.owner(range)?;
        let channel = self.channel(&node)?;
        match Self::ask(channel, range).await {
            Ok(data) => Some(FromPeer { node: node.name, data }),
            Err(status) => {
                tracing::debug!(node = node.name, why = status.message(), "a node does not give what it owns");
                let silent = [Code::Unavailable, Code::Unknown, Code::DeadlineExceeded, Code::PermissionDenied];
                if silent.contains(&status.code()) {
                    self.leave_out(&node.name, SILENT_FOR);
                }
                None
            }
        }
    }

    fn distrust(&self, node: &str) {
        self.leave_out(node, DISTRUSTED_FOR);
    }
}

/// Answers other nodes. Clones are one.
#[derive(Clone)]
pub struct Shares {
    cache: Arc<NodeCache>,
    turns: Arc<Semaphore>,
}

impl Shares {
    /// From this node's cache, with so many ranges in memory: one whose node takes nothing any more is gone after the
    /// listener's pings.
    #[must_use]
    pub fn new(cache: Arc<NodeCache>, ranges: usize) -> Self {
        Self { cache, turns: Arc::new(Semaphore::new(ranges)) }
    }

    /// Serves a range of a version that this node may be about to be told of.
    async fn serve(&self, range: SharedRange) -> Result<Bytes, EngineError> {
        let deadline = Instant::now() + TOLD_WITHIN;
        loop {
            match self.cache.serve(range.clone()).await {
                Err(EngineError::NotPrepared { .. } | EngineError::Superseded { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                served => return served,
            }
        }
    }
}

fn status(error: &EngineError) -> Status {
    let message = chain(error);
    match error {
        EngineError::Stopped { .. } => Status::unavailable(message),
        EngineError::NotFound { .. } => Status::not_found(message),
        _ => Status::failed_precondition(message),
    }
}

#[tonic::async_trait]
impl ShareService for Shares {
    type ReadSharedStream = Pin<Box<dyn Stream<Item = Result<v1::SharedChunk, Status>> + Send>>;

    async fn read_shared(
        &self,
        request: Request<v1::ReadSharedRequest>,
    ) -> Result<Response<Self::ReadSharedStream>, Status> {
        let asked = request.into_inner();
        let path = RelativePath::parse(&asked.path).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let root = asked.root.parse().map_err(|_| Status::invalid_argument("the root is none"))?;
        let tag = Some(asked.tag).filter(|tag| !tag.is_empty());
        let (uid, offset, length) = (asked.uid, asked.offset, asked.length);
        let range = SharedRange { uid, root, path, digest: None, tag, offset, length };
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| Status::unavailable("the agent is ending"))?;
        let data = self.serve(range).await.map_err(|error| status(&error))?;
        let chunks = futures::stream::unfold((data, turn), |(mut data, turn)| async move {
            if data.is_empty() {
                return None;
            }
            let chunk = data.split_to(data.len().min(CHUNK));
            Some((Ok(v1::SharedChunk { data: chunk }), (data, turn)))
        });
        Ok(Response::new(Box::pin(chunks)))
    }
}
