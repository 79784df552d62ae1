//! ② Getting a write into the log, wherever the leader is.
//!
//! On the leader a proposal goes straight to Raft, which appends all that wait in one go. On a follower proposals are
//! gathered and sent to the leader, many in one call.
//!
//! Invariants: a proposal that was certainly not appended is tried again until its deadline and then reported as
//! unavailable; one that may have been appended is never tried again and its outcome is reported as unknown.

use std::sync::Arc;
use std::time::Duration;

use fluvial_proto::v1;
use futures::StreamExt as _;
use openraft::errors::ClientWriteError;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::blocking::known_bug;
use crate::node::Inner;
use crate::store::StoreError;
use crate::transport::never_sent;
use crate::types::{Applied, Command, Raft, TypeConfig, applied_in};

/// Proposals that wait to be forwarded: twice the 1,024 writers of a large fleet. When it is full, callers wait.
const QUEUE: usize = 2048;
/// Proposals and bytes forwarded in one call: with one proposal of 2 MiB on top it is half of the largest message.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 2 << 20;
/// Calls to the leader at the same time: one being applied, one being synced, one on its way, and one to spare.
const CALLS: usize = 4;
/// How long to wait when the leader is known but not ready, or changes.
const RETRY: Duration = Duration::from_millis(20);

/// What became of one proposal.
pub enum Fate {
    Applied(Applied),
    /// Certainly not appended.
    NotLeader,
    /// It may have been appended.
    Unknown(String),
}

/// A proposal on its way to the leader.
pub struct Proposal {
    command: Command,
    deadline: Instant,
    answer: oneshot::Sender<Result<Applied, StoreError>>,
}

/// Where proposals of a follower are put.
pub type Proposals = mpsc::Sender<Proposal>;

pub fn queue() -> (Proposals, mpsc::Receiver<Proposal>) {
    mpsc::channel(QUEUE)
}

/// Writes on this node, if it leads.
pub async fn write_here(raft: &Raft, commands: Vec<Command>, limit: Duration) -> Vec<Fate> {
    let count = commands.len();
    let deadline = Instant::now() + limit;
    let unknown = |reason: &str| Fate::Unknown(reason.to_owned());
    let mut fates = Vec::with_capacity(count);
    let mut answers = match tokio::time::timeout_at(deadline, raft.client_write_many(commands)).await {
        Ok(Ok(answers)) => answers,
        Ok(Err(error)) => {
            let reason = format!("the node has stopped: {error}");
            fates.resize_with(count, || Fate::Unknown(reason.clone()));
            return fates;
        }
        Err(_) => {
            fates.resize_with(count, || unknown("the node did not take the write in time"));
            return fates;
        }
    };
    while fates.len() < count {
        fates.push(match tokio::time::timeout_at(deadline, answers.next()).await {
            Ok(Some(Ok(Ok(written)))) => Fate::Applied(written.response),
            Ok(Some(Ok(Err(error)))) => fate_of(error),
            Ok(Some(Err(error))) => Fate::Unknown(format!("the node has stopped: {error}")),
            Ok(None) => unknown("the node has stopped"),
            Err(_) => unknown("no majority confirmed the write in time"),
        });
    }
    fates
}

fn fate_of(error: ClientWriteError<TypeConfig>) -> Fate {
    match error {
        ClientWriteError::ForwardToLeader(_) => Fate::NotLeader,
        ClientWriteError::LogEntryDiscarded(_) => {
            Fate::Unknown("the leader changed while the write was replicated".into())
        }
        other => Fate::Unknown(other.to_string()),
    }
}

/// Carries out `command`, here or on the leader.
pub async fn propose(inner: &Inner, command: Command) -> Result<Applied, StoreError> {
    let deadline = Instant::now() + inner.timings.request;
    loop {
        let leader = leader(inner, deadline).await?;
        if leader != inner.peers.self_id {
            return forward(inner, command, deadline).await;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, inner.raft.client_write(command.clone())).await {
            Ok(Ok(written)) => return Ok(written.data),
            Ok(Err(error)) => match error.into_api_error().map(fate_of) {
                Some(Fate::NotLeader) => pause(deadline).await?,
                Some(Fate::Unknown(reason)) => return Err(StoreError::UnknownOutcome { reason }),
                Some(Fate::Applied(applied)) => return Ok(applied),
                None => return Err(StoreError::UnknownOutcome { reason: "the node has stopped".into() }),
            },
            Err(_) => {
                return Err(StoreError::UnknownOutcome { reason: "no majority confirmed the write in time".into() });
            }
        }
    }
}

async fn forward(inner: &Inner, command: Command, deadline: Instant) -> Result<Applied, StoreError> {
    let (answer, wait) = oneshot::channel();
    match tokio::time::timeout_at(deadline, inner.proposals.send(Proposal { command, deadline, answer })).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Err(closed()),
        Err(_) => return Err(StoreError::unavailable("too many writes wait for the leader")),
    }
    wait.await.unwrap_or_else(|_| Err(StoreError::UnknownOutcome { reason: "the store was closed".into() }))
}

async fn pause(deadline: Instant) -> Result<(), StoreError> {
    if Instant::now() + RETRY > deadline {
        return Err(StoreError::unavailable("no leader took the write in time"));
    }
    tokio::time::sleep(RETRY).await;
    Ok(())
}

fn closed() -> StoreError {
    StoreError::unavailable("the store is closed")
}

/// The current leader's id; waits until there is one.
pub async fn leader(inner: &Inner, deadline: Instant) -> Result<u64, StoreError> {
    let (mut leadership, mut failures) = (inner.leadership.subscribe(), inner.shared.health.failures());
    let known = leadership.wait_for(|leadership| leadership.leader.is_some());
    let known = async {
        tokio::select! {
            biased;
            Ok(failure) = failures.wait_for(Option::is_some) => Err(failure.clone()),
            known = known => Ok(known),
        }
    };
    let known = match tokio::time::timeout_at(deadline, known).await {
        Ok(Err(failure)) => return Err(failure.as_ref().map_or_else(closed, StoreError::stopped)),
        Ok(Ok(known)) => Ok(known),
        Err(late) => Err(late),
    };
    match known {
        Ok(Ok(leadership)) => Ok(leadership.leader.unwrap_or(inner.peers.self_id)),
        Ok(Err(_)) => Err(closed()),
        Err(_) => Err(StoreError::unavailable("there is no leader")),
    }
}

/// Gathers proposals and forwards them until the store closes.
pub async fn run(inner: Arc<Inner>, mut queue: mpsc::Receiver<Proposal>) {
    let calls = Arc::new(Semaphore::new(CALLS));
    let mut running = JoinSet::new();
    while let Some(first) = queue.recv().await {
        // Waiting for a free call is what lets proposals gather.
        let Ok(permit) = Arc::clone(&calls).acquire_owned().await else { return };
        let mut bytes = first.command.0.len();
        let mut batch = vec![first];
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let Ok(next) = queue.try_recv() else { break };
            bytes += next.command.0.len();
            batch.push(next);
        }
        while running.try_join_next().is_some() {}
        let inner = Arc::clone(&inner);
        running.spawn(async move {
            deliver(&inner, batch).await;
            drop(permit);
        });
    }
}

/// Sends `batch` to the leader, again and again while it is certain that nothing was appended.
async fn deliver(inner: &Inner, mut batch: Vec<Proposal>) {
    let Some(deadline) = batch.iter().map(|proposal| proposal.deadline).max() else { return };
    loop {
        let leader = match leader(inner, deadline).await {
            Ok(leader) => leader,
            Err(_) => return fail(batch, "there is no leader"),
        };
        let commands: Vec<Command> = batch.iter().map(|proposal| proposal.command.clone()).collect();
        let fates = if leader == inner.peers.self_id {
            write_here(&inner.raft, commands, inner.timings.request).await
        } else {
            send(inner, leader, commands, deadline).await
        };
        let mut again = Vec::new();
        for (proposal, fate) in batch.into_iter().zip(fates) {
            let answer = match fate {
                Fate::Applied(applied) => Ok(applied),
                Fate::Unknown(_) if known_bug!(RetryUnknown) => {
                    again.push(proposal);
                    continue;
                }
                Fate::Unknown(reason) => Err(StoreError::UnknownOutcome { reason }),
                Fate::NotLeader => {
                    again.push(proposal);
                    continue;
                }
            };
            // A caller that no longer waits has lost interest, not the write.
            let _ = proposal.answer.send(answer);
        }
        if again.is_empty() {
            return;
        }
        if pause(deadline).await.is_err() {
            return fail(again, "no leader took the write in time");
        }
        batch = again;
    }
}

fn fail(batch: Vec<Proposal>, reason: &str) {
    for proposal in batch {
        let _ = proposal.answer.send(Err(StoreError::unavailable(reason)));
    }
}

async fn send(inner: &Inner, leader: u64, commands: Vec<Command>, deadline: Instant) -> Vec<Fate> {
    use v1::peer_propose_result::Result as In;
    let count = commands.len();
    let all = |fate: &dyn Fn() -> Fate| (0..count).map(|_| fate()).collect::<Vec<Fate>>();
    let Some(address) = inner.address_of(leader) else { return all(&|| Fate::NotLeader) };
    let Ok(Ok(mut client)) = tokio::time::timeout_at(deadline, inner.peers.client(leader, &address)).await else {
        return all(&|| Fate::NotLeader);
    };
    let message = v1::PeerProposeRequest { commands: commands.into_iter().map(|command| command.0).collect() };
    let call = client.propose(inner.peers.request(leader, message));
    match tokio::time::timeout_at(deadline, call).await {
        Ok(Ok(response)) => {
            let results = response.into_inner().results;
            let mut fates: Vec<Fate> = results
                .into_iter()
                .map(|result| match result.result {
                    Some(In::Applied(applied)) => match applied_in(applied) {
                        Ok(applied) => Fate::Applied(applied),
                        Err(error) => Fate::Unknown(error.to_string()),
                    },
                    Some(In::NotLeader(_)) => Fate::NotLeader,
                    Some(In::Unknown(reason)) => Fate::Unknown(reason),
                    None => Fate::Unknown("the leader's answer is empty".into()),
                })
                .collect();
            fates.resize_with(count, || Fate::Unknown("the leader's answer is too short".into()));
            fates
        }
        Ok(Err(status)) => {
            inner.peers.forget(leader);
            if never_sent(&status) {
                return all(&|| Fate::NotLeader);
            }
            all(&|| Fate::Unknown(format!("the leader was lost: {}", status.message())))
        }
        Err(_) => all(&|| Fate::Unknown("the leader did not answer in time".into())),
    }
}
