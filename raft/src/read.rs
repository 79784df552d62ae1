//! ② Linearizable reads: asking the leader how far the log was committed when the read began.
//!
//! The leader proves that it still leads by hearing from a majority (ReadIndex; never by its clock); the reader waits
//! until it has applied that much and reads locally. All reads that wait while one proof is under way share the next.
//!
//! Invariants: a proof begins after the last of the reads that share it has asked.

use std::sync::Arc;
use std::time::Duration;

use fluvial_proto::v1;
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::blocking::known_bug;
use crate::node::Inner;
use crate::propose::leader;
use crate::store::StoreError;
use crate::types::{Raft, TypeConfig};

/// Reads that wait for a proof; when it is full, callers wait. Four times the 1,024 readers of a large fleet.
const QUEUE: usize = 4096;
/// How long to wait when the leader is known but could not prove it.
const RETRY: Duration = Duration::from_millis(10);

/// A read that waits for its proof.
pub struct Waiting {
    deadline: Instant,
    answer: oneshot::Sender<Result<u64, StoreError>>,
}

/// Where reads wait.
pub type Reads = mpsc::Sender<Waiting>;

pub fn queue() -> (Reads, mpsc::Receiver<Waiting>) {
    mpsc::channel(QUEUE)
}

/// Proves that this node leads and returns the log index that a reader must have applied; none if it does not lead.
pub async fn confirm_here(raft: &Raft) -> Result<Option<u64>, String> {
    #[cfg(feature = "simulation")]
    if known_bug!(ReadWithoutQuorum) {
        return Ok(crate::simulation::believed_index(raft));
    }
    match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Ok(Some(linearizer.read_log_id().index())),
        Err(RaftError::APIError(LinearizableReadError::<TypeConfig>::ForwardToLeader(_))) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Waits until this replica has applied everything that was acknowledged before the call.
pub async fn barrier(inner: &Inner) -> Result<(), StoreError> {
    let deadline = Instant::now() + inner.timings.request;
    let (answer, wait) = oneshot::channel();
    let closed = || StoreError::unavailable("the store is closed");
    match tokio::time::timeout_at(deadline, inner.reads.send(Waiting { deadline, answer })).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Err(closed()),
        Err(_) => return Err(StoreError::unavailable("too many reads wait for the leader")),
    }
    let index = wait.await.unwrap_or_else(|_| Err(closed()))?;
    if known_bug!(ReadWithoutWaiting) {
        return Ok(());
    }
    applied(inner, index, deadline).await
}

/// Waits until the log entry at `index` is applied here.
pub async fn applied(inner: &Inner, index: u64, deadline: Instant) -> Result<(), StoreError> {
    let mut entries = inner.shared.applied();
    match tokio::time::timeout_at(deadline, entries.wait_for(|entries| *entries > index)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(StoreError::unavailable("the store is closed")),
        Err(_) => Err(StoreError::unavailable("this replica is too far behind")),
    }
}

/// Serves waiting reads until the store closes.
pub async fn run(inner: Arc<Inner>, mut queue: mpsc::Receiver<Waiting>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, QUEUE).await > 0 {
        while !waiting.is_empty() {
            match attempt(&inner, &waiting).await {
                Ok(index) => {
                    for read in waiting.drain(..) {
                        // A reader that gave up does not mind.
                        let _ = read.answer.send(Ok(index));
                    }
                }
                Err(reason) => {
                    let now = Instant::now();
                    for read in waiting.extract_if(.., |read| read.deadline <= now + RETRY) {
                        let _ = read.answer.send(Err(StoreError::unavailable(reason.clone())));
                    }
                    tokio::time::sleep(RETRY).await;
                    // Those that came meanwhile may share the next attempt.
                    while let Ok(read) = queue.try_recv() {
                        waiting.push(read);
                    }
                }
            }
        }
    }
}

async fn attempt(inner: &Inner, waiting: &[Waiting]) -> Result<u64, String> {
    let Some(earliest) = waiting.iter().map(|read| read.deadline).min() else { return Err(String::new()) };
    // A leader that hangs is replaced within two election times: by then another one can be asked.
    let deadline = earliest.min(Instant::now() + inner.timings.election_max * 2);
    let late = || "the leader did not prove itself in time".to_owned();
    let leader = leader(inner, deadline).await.map_err(|error| error.to_string())?;
    let index = if leader == inner.peers.self_id {
        tokio::time::timeout_at(deadline, confirm_here(&inner.raft)).await.map_err(|_| late())??
    } else {
        let address = inner.address_of(leader).ok_or("the leader's address is unknown")?;
        let ask = async {
            let mut client = inner.peers.client(leader, &address).await.map_err(|error| error.to_string())?;
            let request = inner.peers.request(leader, v1::PeerReadIndexRequest {});
            let response = client.read_index(request).await.map_err(|status| {
                inner.peers.forget(leader);
                status.message().to_owned()
            })?;
            Ok::<_, String>(response.into_inner().index)
        };
        tokio::time::timeout_at(deadline, ask).await.map_err(|_| late())??
    };
    index.ok_or_else(|| "the leader changed".to_owned())
}
