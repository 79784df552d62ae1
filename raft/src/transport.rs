//! ② Talking to the other hubs: the client side of `PeerService`.
//!
//! Channels come from a [`PeerConnector`]; one per peer is kept and shared by all calls. Log entries flow over one long
//! stream per follower, so that the next batch leaves before the last one is answered; heartbeats and votes are single
//! calls beside it.
//!
//! Invariants: every call names the cluster, the caller and the node it is meant for; every wait has a deadline.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_proto::v1;
use fluvial_proto::v1::peer_service_client::PeerServiceClient;
use futures::{Stream, StreamExt as _};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::blocking::blocking;
use crate::snapshot::SnapshotFile;
use crate::types::{
    ShapeError, Snapshot, TypeConfig, Vote, entry_out, log_id_in, log_id_out, stored_membership_out, vote_in, vote_out,
};

/// The metadata that names the cluster, the calling node, and the node that is called.
pub(crate) const PEER_METADATA_CLUSTER: &str = "fluvial-cluster";
/// The metadata with the calling node's id: the hub checks it against the caller's certificate.
pub const PEER_METADATA_FROM: &str = "fluvial-from";
pub(crate) const PEER_METADATA_TO: &str = "fluvial-to";
/// The metadata with the version of the protocol between hubs; who does not say speaks the first.
pub(crate) const PEER_METADATA_PROTOCOL: &str = "fluvial-protocol";
/// The version that this one speaks. It changes only when hubs could misunderstand each other: fields that are added do not
/// change it, and a command that a hub does not know is refused by all alike.
pub(crate) const PROTOCOL: u32 = 1;

/// The largest message between hubs: 1 MiB of log entries and one of 2 MiB on top, or a full batch of proposals, twice.
pub const MAX_MESSAGE: usize = 8 << 20;
/// Snapshot bytes in one message.
const SNAPSHOT_CHUNK: usize = 256 << 10;
/// Snapshot chunks read ahead of the network: 1 MiB.
const SNAPSHOT_QUEUE: usize = 4;
/// A follower that owes an answer for two of these is given up and connected to again. A sync on a busy disk takes
/// tens of milliseconds.
const STALLED: Duration = Duration::from_secs(1);

/// How often it is said that a peer cannot be understood.
const SAY_AGAIN: Duration = Duration::from_secs(60);

type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
type BoxStream<'a, T> = std::pin::Pin<Box<dyn Stream<Item = T> + Send + 'a>>;

/// A channel to a peer could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to node {id} at {address:?}")]
pub struct ConnectError {
    pub id: u64,
    pub address: String,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Makes channels to other hubs; knows certificates and names, which this crate does not.
#[async_trait]
pub trait PeerConnector: Send + Sync + 'static {
    /// A channel to node `id` at `address`, and to no other node.
    async fn connect(&self, id: u64, address: &str) -> Result<Channel, ConnectError>;
}

/// One channel per peer.
pub struct Peers {
    pub self_id: u64,
    pub cluster: String,
    connector: Arc<dyn PeerConnector>,
    channels: Mutex<HashMap<u64, (String, Channel)>>,
    /// When it was last said that a peer speaks another protocol.
    said: Mutex<Option<std::time::Instant>>,
}

impl Peers {
    pub fn new(self_id: u64, cluster: String, connector: Arc<dyn PeerConnector>) -> Self {
        Self { self_id, cluster, connector, channels: Mutex::new(HashMap::new()), said: Mutex::default() }
    }

    fn channels(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (String, Channel)>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client for node `id`.
    pub async fn client(&self, id: u64, address: &str) -> Result<PeerServiceClient<Channel>, ConnectError> {
        let known = self.channels().get(&id).filter(|(known, _)| known == address).map(|(_, channel)| channel.clone());
        let channel = match known {
            Some(channel) => channel,
            None => {
                let channel = self.connector.connect(id, address).await?;
                self.channels().insert(id, (address.to_owned(), channel.clone()));
                channel
            }
        };
        Ok(PeerServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }

    /// Refuses a peer that speaks another protocol, and says so now and then: peers call many times a second.
    pub fn check_protocol(&self, from: &str, found: &str) -> Result<(), tonic::Status> {
        if found.parse() == Ok(PROTOCOL) {
            return Ok(());
        }
        let message = format!(
            "node {} speaks protocol {PROTOCOL} between hubs, and node {from} protocol {found}: hubs of one federation must run versions that speak the same",
            self.self_id
        );
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() > SAY_AGAIN) {
            *said = Some(std::time::Instant::now());
            tracing::error!("{message}");
        }
        Err(tonic::Status::failed_precondition(message))
    }

    /// Forgets the channel to `id` after it failed, so that the connector is asked again.
    pub fn forget(&self, id: u64) {
        self.channels().remove(&id);
    }

    /// A request to node `to` with the metadata that says so.
    pub fn request<T>(&self, to: u64, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let metadata = request.metadata_mut();
        let mut put = |name: &'static str, value: String| {
            if let Ok(value) = value.parse() {
                metadata.insert(name, value);
            }
        };
        put(PEER_METADATA_CLUSTER, self.cluster.clone());
        put(PEER_METADATA_FROM, self.self_id.to_string());
        put(PEER_METADATA_TO, to.to_string());
        put(PEER_METADATA_PROTOCOL, PROTOCOL.to_string());
        request
    }
}

/// Whether `status` says that the request never left, because no connection could be made.
pub fn never_sent(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Makes the network to each peer.
pub struct Network {
    pub peers: Arc<Peers>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> PeerNetwork {
        PeerNetwork { peers: Arc::clone(&self.peers), id: target, address: node.addr.clone(), single_calls: false }
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &BasicNode) -> PeerNetwork {
        PeerNetwork { peers: Arc::clone(&self.peers), id: target, address: node.addr.clone(), single_calls: true }
    }
}

/// The way to one peer.
pub struct PeerNetwork {
    peers: Arc<Peers>,
    id: u64,
    address: String,
    /// Heartbeats: a stream for one message costs more than a call.
    single_calls: bool,
}

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

fn shape(error: ShapeError) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(&error))
}

impl PeerNetwork {
    async fn client(&self) -> Rpc<PeerServiceClient<Channel>> {
        self.peers.client(self.id, &self.address).await.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }

    fn failed(&self, status: &tonic::Status) -> RPCError<TypeConfig> {
        if status.code() == tonic::Code::Unavailable {
            self.peers.forget(self.id);
        }
        // Unreachable, not Network: Raft backs off before it tries again.
        RPCError::Unreachable(Unreachable::new(status))
    }

    fn late(&self, what: &str) -> RPCError<TypeConfig> {
        RPCError::Unreachable(Unreachable::from_string(format!("node {} did not answer {what} in time", self.id)))
    }

    /// Runs one call within `limit`.
    async fn call<T, F>(
        &self,
        what: &str,
        limit: Duration,
        call: impl FnOnce(PeerServiceClient<Channel>) -> F + Send,
    ) -> Rpc<T>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send,
    {
        let whole = async {
            let client = self.client().await?;
            call(client).await.map_err(|status| self.failed(&status)).map(tonic::Response::into_inner)
        };
        tokio::time::timeout(limit, whole).await.unwrap_or_else(|_| Err(self.late(what)))
    }

    async fn stream<'s, S>(&'s self, input: S) -> Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let owed = Arc::new(AtomicUsize::new(0));
        let sent = Arc::clone(&owed);
        let requests = input.map(move |request| {
            sent.fetch_add(1, Ordering::Relaxed);
            append_out(request)
        });
        let opened = self.call("the opening of a log stream", STALLED, |mut client| {
            let request = self.peers.request(self.id, requests);
            async move { client.append_stream(request).await }
        });
        let responses = opened.await?;
        // The second field: how long an answer has been owed; the stream ends after an error.
        Ok(Box::pin(futures::stream::unfold(Some(responses), move |state| {
            let owed = Arc::clone(&owed);
            async move {
                let mut responses = state?;
                let mut late = false;
                loop {
                    match tokio::time::timeout(STALLED, responses.message()).await {
                        Ok(Ok(Some(response))) => {
                            owed.fetch_sub(1, Ordering::Relaxed);
                            return match append_in(response) {
                                Ok(result) => {
                                    let next = result.is_ok().then_some(responses);
                                    Some((Ok(result), next))
                                }
                                Err(error) => Some((Err(shape(error)), None)),
                            };
                        }
                        Ok(Ok(None)) => return None,
                        Ok(Err(status)) => return Some((Err(self.failed(&status)), None)),
                        Err(_) if owed.load(Ordering::Relaxed) == 0 => late = false,
                        Err(_) if !late => late = true,
                        Err(_) => {
                            self.peers.forget(self.id);
                            return Some((Err(self.late("log entries")), None));
                        }
                    }
                }
            }
        })))
    }
}

pub fn append_out(request: AppendEntriesRequest<TypeConfig>) -> v1::PeerAppendRequest {
    v1::PeerAppendRequest {
        vote: Some(vote_out(&request.vote)),
        prev_log_id: request.prev_log_id.as_ref().map(log_id_out),
        entries: request.entries.iter().map(entry_out).collect(),
        leader_commit: request.leader_commit.as_ref().map(log_id_out),
    }
}

fn append_in(response: v1::PeerAppendResponse) -> Result<StreamAppendResult<TypeConfig>, ShapeError> {
    use v1::peer_append_response::Result as In;
    Ok(match response.result {
        Some(In::Matched(matched)) => Ok(matched.log_id.map(log_id_in)),
        Some(In::Conflict(id)) => Err(StreamAppendError::Conflict(log_id_in(id))),
        Some(In::HigherVote(vote)) => Err(StreamAppendError::HigherVote(vote_in(Some(vote), "PeerAppendResponse")?)),
        None => return Err(ShapeError::Missing { message: "PeerAppendResponse", field: "result" }),
    })
}

pub fn append_result_out(result: StreamAppendResult<TypeConfig>) -> v1::PeerAppendResponse {
    use v1::peer_append_response::Result as Out;
    v1::PeerAppendResponse {
        result: Some(match result {
            Ok(matched) => Out::Matched(v1::PeerMatched { log_id: matched.as_ref().map(log_id_out) }),
            Err(StreamAppendError::Conflict(id)) => Out::Conflict(log_id_out(&id)),
            Err(StreamAppendError::HigherVote(vote)) => Out::HigherVote(vote_out(&vote)),
        }),
    }
}

fn vote_request_out(request: &VoteRequest<TypeConfig>) -> v1::PeerVoteRequest {
    v1::PeerVoteRequest {
        vote: Some(vote_out(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(log_id_out),
        leadership_transfer: request.leadership_transfer,
    }
}

fn vote_response_in(response: v1::PeerVoteResponse) -> Rpc<VoteResponse<TypeConfig>> {
    let vote = vote_in(response.vote, "PeerVoteResponse").map_err(shape)?;
    Ok(VoteResponse::new(vote, response.last_log_id.map(log_id_in), response.granted))
}

impl RaftNetworkV2<TypeConfig> for PeerNetwork {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let request = self.peers.request(self.id, append_out(request));
        let response = self
            .call("a heartbeat", option.hard_ttl(), |mut client| async move { client.append(request).await })
            .await?;
        Ok(match append_in(response).map_err(shape)? {
            Ok(matched) if matched == last => AppendEntriesResponse::Success,
            Ok(matched) => AppendEntriesResponse::PartialSuccess(matched),
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.single_calls {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move { self.stream(input).await })
    }

    async fn vote(&mut self, request: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let request = self.peers.request(self.id, vote_request_out(&request));
        let call = |mut client: PeerServiceClient<Channel>| async move { client.vote(request).await };
        vote_response_in(self.call("a vote", option.soft_ttl(), call).await?)
    }

    async fn pre_vote(&mut self, request: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let request = self.peers.request(self.id, vote_request_out(&request));
        let call = |mut client: PeerServiceClient<Channel>| async move { client.pre_vote(request).await };
        vote_response_in(self.call("a pre-vote", option.soft_ttl(), call).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let header = v1::PeerSnapshotHeader {
            vote: Some(vote_out(&vote)),
            last_log_id: snapshot.meta.last_log_id.as_ref().map(log_id_out),
            membership: Some(stored_membership_out(&snapshot.meta.last_membership)),
            bytes: snapshot.snapshot.bytes,
            crc32c: snapshot.snapshot.crc32c,
        };
        let (parts, stream) = mpsc::channel(SNAPSHOT_QUEUE);
        // The task ends with the file, with an error, or when the receiving end is dropped.
        let reading = tokio::spawn(read_parts(header, snapshot.snapshot, parts));
        let request = self.peers.request(self.id, ReceiverStream::new(stream));
        let sending = self
            .call("a snapshot", option.soft_ttl(), |mut client| async move { client.install_snapshot(request).await });
        let response = tokio::select! {
            response = sending => response.map_err(StreamingError::from)?,
            closed = cancel => return Err(closed.into()),
        };
        match reading.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(StreamingError::Unreachable(Unreachable::new(&error))),
            Err(error) => return Err(StreamingError::Unreachable(Unreachable::new(&error))),
        }
        let vote =
            vote_in(response.vote, "PeerSnapshotResponse").map_err(|error| StreamingError::from(shape(error)))?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        use v1::peer_transfer_response::Refused;
        let message = v1::PeerTransferRequest {
            from: Some(vote_out(request.from_leader())),
            to: *request.to_node_id(),
            last_log_id: request.last_log_id().map(log_id_out),
        };
        let request = self.peers.request(self.id, message);
        let call = |mut client: PeerServiceClient<Channel>| async move { client.transfer_leader(request).await };
        let response = self.call("a transfer of the lead", option.soft_ttl(), call).await?;
        Ok(match response.refused {
            None => Ok(()),
            Some(Refused::VoteChanged(changed)) => Err(TransferLeaderError::VoteChanged {
                expected: vote_in(changed.expected, "PeerVoteChanged").map_err(shape)?,
                actual: vote_in(changed.actual, "PeerVoteChanged").map_err(shape)?,
            }),
            Some(Refused::NotFlushed(flushed)) => Err(TransferLeaderError::LogNotFlushed {
                expected: flushed.expected.map(log_id_in),
                actual: flushed.actual.map(log_id_in),
            }),
        })
    }
}

async fn read_parts(
    header: v1::PeerSnapshotHeader,
    snapshot: SnapshotFile,
    parts: mpsc::Sender<v1::PeerSnapshotPart>,
) -> std::io::Result<()> {
    use std::io::{Read as _, Seek as _};
    use v1::peer_snapshot_part::Part;
    let part = |part| v1::PeerSnapshotPart { part: Some(part) };
    if parts.send(part(Part::Header(header))).await.is_err() {
        return Ok(());
    }
    let mut file = snapshot.file;
    let mut at_start = true;
    loop {
        let read = move || {
            if at_start {
                file.rewind()?;
            }
            let mut chunk = vec![0; SNAPSHOT_CHUNK];
            let read = file.read(&mut chunk)?;
            chunk.truncate(read);
            Ok::<_, std::io::Error>((file, chunk))
        };
        let chunk;
        (file, chunk) = blocking(read).await??;
        at_start = false;
        if chunk.is_empty() || parts.send(part(Part::Chunk(Bytes::from(chunk)))).await.is_err() {
            return Ok(());
        }
    }
}
