//! ② Answering the other hubs: the server side of `PeerService`.
//!
//! Invariants: a call that names another cluster, another node or another protocol is refused before anything is looked at.
//!
//! Deliberately absent: authorisation. The hub checks that the caller's certificate is that of the node named in
//! [`PEER_METADATA_FROM`](crate::PEER_METADATA_FROM) before a call gets here.

use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fluvial_proto::v1;
use fluvial_proto::v1::peer_service_server::{PeerService, PeerServiceServer};
use futures::{Stream, StreamExt as _};
use openraft::raft::{AppendEntriesRequest, TransferLeaderError, TransferLeaderRequest, VoteRequest, VoteResponse};
use tonic::{Request, Response, Status, Streaming};

use crate::blocking::blocking;
use crate::node::{Inner, RaftStore};
use crate::snapshot::SnapshotFile;
use crate::transport::{
    MAX_MESSAGE, PEER_METADATA_CLUSTER, PEER_METADATA_FROM, PEER_METADATA_PROTOCOL, PEER_METADATA_TO, append_result_out,
};
use crate::types::{
    Command, Raft, ShapeError, Snapshot, SnapshotMeta, TypeConfig, applied_out, entry_in, log_id_in, log_id_out,
    stored_membership_in, vote_in, vote_out,
};

/// The next part of a snapshot must come within this time.
const SNAPSHOT_PART: Duration = Duration::from_secs(30);

/// The service that other hubs call.
#[derive(Clone)]
pub struct PeerServer {
    inner: Arc<Inner>,
}

/// The tonic server for `store`'s peers. Set an HTTP/2 stream window of at least 4 MiB on the server that carries it, or
/// followers that catch up wait for window updates.
#[must_use]
pub fn peer_service(store: &RaftStore) -> PeerServiceServer<PeerServer> {
    PeerServiceServer::new(PeerServer { inner: Arc::clone(&store.inner) })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

fn malformed(error: ShapeError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this node has stopped: {error}"))
}

fn append_request_in(request: v1::PeerAppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, ShapeError> {
    Ok(AppendEntriesRequest {
        vote: vote_in(request.vote, "PeerAppendRequest")?,
        prev_log_id: request.prev_log_id.map(log_id_in),
        entries: request.entries.into_iter().map(entry_in).collect::<Result<_, _>>()?,
        leader_commit: request.leader_commit.map(log_id_in),
    })
}

fn vote_request_in(request: v1::PeerVoteRequest) -> Result<VoteRequest<TypeConfig>, ShapeError> {
    let mut vote = VoteRequest::new(vote_in(request.vote, "PeerVoteRequest")?, request.last_log_id.map(log_id_in));
    vote.leadership_transfer = request.leadership_transfer;
    Ok(vote)
}

fn vote_response_out(response: &VoteResponse<TypeConfig>) -> v1::PeerVoteResponse {
    v1::PeerVoteResponse {
        vote: Some(vote_out(&response.vote)),
        last_log_id: response.last_log_id.as_ref().map(log_id_out),
        granted: response.vote_granted,
    }
}

impl PeerServer {
    /// Refuses a call that was meant for another node.
    fn check<T>(&self, request: &Request<T>) -> Result<&Raft, Status> {
        let named = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok());
        if named(PEER_METADATA_CLUSTER) != Some(self.inner.peers.cluster.as_str()) {
            return Err(Status::permission_denied("this node belongs to another cluster"));
        }
        if named(PEER_METADATA_TO).and_then(|id| id.parse().ok()) != Some(self.inner.peers.self_id) {
            let id = self.inner.peers.self_id;
            return Err(Status::permission_denied(format!("the call is for another node: this is node {id}")));
        }
        let from = named(PEER_METADATA_FROM).unwrap_or("?");
        self.inner.peers.check_protocol(from, named(PEER_METADATA_PROTOCOL).unwrap_or("1"))?;
        Ok(&self.inner.raft)
    }

    async fn receive_snapshot(
        &self,
        mut parts: Streaming<v1::PeerSnapshotPart>,
    ) -> Result<(crate::types::Vote, Snapshot), Status> {
        use v1::peer_snapshot_part::Part;
        let header = match next_part(&mut parts).await? {
            Some(Part::Header(header)) => header,
            _ => return Err(Status::invalid_argument("the first part of a snapshot must be its header")),
        };
        let membership = header
            .membership
            .ok_or(ShapeError::Missing { message: "PeerSnapshotHeader", field: "membership" })
            .and_then(stored_membership_in)
            .map_err(malformed)?;
        let meta = SnapshotMeta { last_log_id: header.last_log_id.map(log_id_in), last_membership: membership };
        let vote = vote_in(header.vote, "PeerSnapshotHeader").map_err(malformed)?;
        // It is received, kept and installed: three files at a time.
        if !self.inner.snapshots.has_room(header.bytes.saturating_mul(3)) {
            return Err(Status::resource_exhausted("this node's disk has no room for the snapshot"));
        }
        let mut file = self.inner.snapshots.incoming().map_err(disk)?;
        let (mut bytes, mut crc32c) = (0_u64, 0);
        while let Some(part) = next_part(&mut parts).await? {
            let Part::Chunk(chunk) = part else {
                return Err(Status::invalid_argument("a snapshot has one header"));
            };
            crc32c = crc32c::crc32c_append(crc32c, &chunk);
            bytes += chunk.len() as u64;
            if bytes > header.bytes {
                return Err(Status::invalid_argument("the snapshot is longer than its header says"));
            }
            let write = move || file.write_all(&chunk).map(|()| file);
            file = blocking(write).await.map_err(stopped)?.map_err(disk)?;
        }
        if (bytes, crc32c) != (header.bytes, header.crc32c) {
            return Err(Status::data_loss("the snapshot was damaged on its way: its checksum does not fit"));
        }
        // The name goes with the temporary file; the opened one lives until it is installed.
        let opened = file.reopen().map_err(disk)?;
        Ok((vote, Snapshot { meta, snapshot: SnapshotFile { file: opened, bytes, crc32c } }))
    }
}

fn disk(error: std::io::Error) -> Status {
    Status::internal(format!("cannot store the snapshot: {error}"))
}

async fn next_part(
    parts: &mut Streaming<v1::PeerSnapshotPart>,
) -> Result<Option<v1::peer_snapshot_part::Part>, Status> {
    match tokio::time::timeout(SNAPSHOT_PART, parts.message()).await {
        Ok(Ok(Some(v1::PeerSnapshotPart { part: Some(part) }))) => Ok(Some(part)),
        Ok(Ok(Some(_))) => Err(Status::invalid_argument("a part of the snapshot is empty")),
        Ok(Ok(None)) => Ok(None),
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded("the snapshot's sender has fallen silent")),
    }
}

type AppendStream = Pin<Box<dyn Stream<Item = Result<v1::PeerAppendResponse, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for PeerServer {
    type AppendStreamStream = AppendStream;

    async fn append_stream(
        &self,
        request: Request<Streaming<v1::PeerAppendRequest>>,
    ) -> Result<Response<AppendStream>, Status> {
        let raft = self.check(&request)?;
        // A broken or malformed request ends the stream; the leader opens another one.
        let requests = request.into_inner().scan((), |(), request| {
            let request = request.ok().and_then(|request| append_request_in(request).ok());
            std::future::ready(request)
        });
        let answers = raft.stream_append(requests).map(|answer| match answer {
            Ok(result) => Ok(append_result_out(result)),
            Err(error) => Err(stopped(error)),
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn append(
        &self,
        request: Request<v1::PeerAppendRequest>,
    ) -> Result<Response<v1::PeerAppendResponse>, Status> {
        let raft = self.check(&request)?;
        let append = append_request_in(request.into_inner()).map_err(malformed)?;
        let prev = append.prev_log_id;
        let last = append.entries.last().map(|entry| entry.log_id).or(prev);
        let answer = raft.append_entries(append).await.map_err(stopped)?;
        Ok(Response::new(append_result_out(answer.into_stream_result(prev, last))))
    }

    async fn vote(&self, request: Request<v1::PeerVoteRequest>) -> Result<Response<v1::PeerVoteResponse>, Status> {
        let raft = self.check(&request)?;
        let vote = vote_request_in(request.into_inner()).map_err(malformed)?;
        Ok(Response::new(vote_response_out(&raft.vote(vote).await.map_err(stopped)?)))
    }

    async fn pre_vote(&self, request: Request<v1::PeerVoteRequest>) -> Result<Response<v1::PeerVoteResponse>, Status> {
        let raft = self.check(&request)?;
        let vote = vote_request_in(request.into_inner()).map_err(malformed)?;
        Ok(Response::new(vote_response_out(&raft.pre_vote(vote).await.map_err(stopped)?)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::PeerSnapshotPart>>,
    ) -> Result<Response<v1::PeerSnapshotResponse>, Status> {
        let raft = self.check(&request)?.clone();
        let (vote, snapshot) = self.receive_snapshot(request.into_inner()).await?;
        let answer = raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(v1::PeerSnapshotResponse { vote: Some(vote_out(&answer.vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::PeerTransferRequest>,
    ) -> Result<Response<v1::PeerTransferResponse>, Status> {
        use v1::peer_transfer_response::Refused;
        let raft = self.check(&request)?;
        let message = request.into_inner();
        let from = vote_in(message.from, "PeerTransferRequest").map_err(malformed)?;
        let transfer = TransferLeaderRequest::new(from, message.to, message.last_log_id.map(log_id_in));
        let refused = match raft.handle_transfer_leader(transfer).await.map_err(stopped)? {
            Ok(()) => None,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                Some(Refused::VoteChanged(v1::PeerVoteChanged {
                    expected: Some(vote_out(&expected)),
                    actual: Some(vote_out(&actual)),
                }))
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                Some(Refused::NotFlushed(v1::PeerNotFlushed {
                    expected: expected.as_ref().map(log_id_out),
                    actual: actual.as_ref().map(log_id_out),
                }))
            }
        };
        Ok(Response::new(v1::PeerTransferResponse { refused }))
    }

    async fn propose(
        &self,
        request: Request<v1::PeerProposeRequest>,
    ) -> Result<Response<v1::PeerProposeResponse>, Status> {
        use crate::propose::{Fate, write_here};
        use v1::peer_propose_result::Result as Out;
        let raft = self.check(&request)?;
        let commands = request.into_inner().commands.into_iter().map(Command).collect();
        let fates = write_here(raft, commands, self.inner.timings.request).await;
        let results = fates
            .into_iter()
            .map(|fate| v1::PeerProposeResult {
                result: Some(match fate {
                    Fate::Applied(applied) => Out::Applied(applied_out(applied)),
                    Fate::NotLeader => Out::NotLeader(true),
                    Fate::Unknown(reason) => Out::Unknown(reason),
                }),
            })
            .collect();
        Ok(Response::new(v1::PeerProposeResponse { results }))
    }

    async fn read_index(
        &self,
        request: Request<v1::PeerReadIndexRequest>,
    ) -> Result<Response<v1::PeerReadIndexResponse>, Status> {
        let raft = self.check(&request)?;
        let index = crate::read::confirm_here(raft).await.map_err(Status::unavailable)?;
        Ok(Response::new(v1::PeerReadIndexResponse { index }))
    }

    async fn change_members(
        &self,
        request: Request<v1::PeerChangeMembersRequest>,
    ) -> Result<Response<v1::PeerChangeMembersResponse>, Status> {
        use v1::peer_change_members_request::Change;
        self.check(&request)?;
        let change = match request.into_inner().change {
            Some(Change::Add(node)) => crate::membership::Change::Add { id: node.id, address: node.address },
            Some(Change::Remove(id)) => crate::membership::Change::Remove { id },
            None => return Err(Status::invalid_argument("a change of members must add or remove one")),
        };
        crate::membership::change_here(&self.inner, change).await.map_err(|error| error.to_status())?;
        Ok(Response::new(v1::PeerChangeMembersResponse {}))
    }
}
