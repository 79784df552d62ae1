//! ② Linearizable reads: asking etcd at which revision it is, and waiting until the catalog is there.
//!
//! All reads that wait while one question is under way share the next. Where others write to the same etcd, no event
//! of this fleet may come up to that revision: then the watch is asked how far it is.
//!
//! Invariants: the question is asked after the last of the reads that share it has begun; etcd answers it from a
//! majority.

use std::sync::Arc;
use std::time::Duration;

use fluvial_model::store::Revision;
use fluvial_raft::StoreError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::follow::{ASK_EVERY, ask, went_back};
use crate::pb;
use crate::store::Inner;
use crate::wire::{header, revision};

/// Reads that wait; when it is full, callers wait. Four times the 1,024 readers of a large fleet.
const QUEUE: usize = 4096;
/// How long events of this fleet are waited for before the watch is asked how far it is: longer than they take from
/// etcd on the same network.
const EVENTS_WITHIN: Duration = Duration::from_millis(3);

/// A read that waits for what etcd has.
pub(crate) struct Waiting {
    answer: oneshot::Sender<Result<Revision, String>>,
}

/// Where reads wait.
pub(crate) type Reads = mpsc::Sender<Waiting>;

pub(crate) fn queue() -> (Reads, mpsc::Receiver<Waiting>) {
    mpsc::channel(QUEUE)
}

/// Waits until the catalog has everything that was acknowledged before the call.
pub(crate) async fn barrier(inner: &Inner) -> Result<(), StoreError> {
    let deadline = inner.deadline();
    let (answer, wait) = oneshot::channel();
    let closed = || StoreError::unavailable("the store is closed");
    match timeout_at(deadline, inner.reads.send(Waiting { answer })).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Err(closed()),
        Err(_) => return Err(StoreError::unavailable("too many reads wait for etcd")),
    }
    let newest = match timeout_at(deadline, wait).await {
        Ok(Ok(Ok(newest))) => newest,
        Ok(Ok(Err(reason))) => return Err(StoreError::unavailable(reason)),
        Ok(Err(_)) => return Err(closed()),
        Err(_) => return Err(StoreError::unavailable("etcd did not say in time at which revision it is")),
    };
    applied(inner, newest, deadline).await
}

async fn applied(inner: &Inner, newest: Revision, deadline: Instant) -> Result<(), StoreError> {
    let mut revisions = inner.replica.revisions();
    let mut patience = EVENTS_WITHIN;
    loop {
        match timeout(patience, revisions.wait_for(|revision| *revision >= newest)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(_)) => return Err(StoreError::unavailable("the store is closed")),
            Err(_) if Instant::now() >= deadline => {
                return Err(StoreError::unavailable("this hub's catalog is too far behind etcd"));
            }
            Err(_) => {
                patience = ASK_EVERY;
                if let Some(requests) = inner.progress.borrow().as_ref() {
                    ask(requests);
                    inner.asked.send_replace(());
                }
            }
        }
    }
}

/// Serves waiting reads until the store closes.
pub(crate) async fn run(inner: Arc<Inner>, mut queue: mpsc::Receiver<Waiting>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, QUEUE).await > 0 {
        let newest = newest(&inner).await.map_err(|error| error.to_string());
        for read in waiting.drain(..) {
            // A reader that gave up does not mind.
            let _ = read.answer.send(newest.clone());
        }
    }
}

/// The revision that etcd has, as a majority of its members confirms.
pub(crate) async fn newest(inner: &Inner) -> Result<Revision, StoreError> {
    let key = inner.keys.meta("fleet");
    let answer = inner.range(pb::RangeRequest { key, keys_only: true, ..pb::RangeRequest::default() }).await?;
    let header = header(answer.header)?;
    let (newest, here) = (revision(header.revision), inner.replica.revision());
    if newest < here {
        return Err(went_back(here, newest));
    }
    let source = inner.replica.source();
    if !source.is_empty() && source != inner.source(header.cluster_id) {
        return Err(StoreError::unavailable("etcd became another one: this hub has not read it yet"));
    }
    Ok(newest)
}
