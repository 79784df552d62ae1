//! ② Handing over the lead, so that a leader that ends costs its clients no election timeout.
//!
//! The voter that is known to have most of the log is told to call an election at once. From then on this node takes no
//! writes, which wait for the new leader; a node that does not take over is replaced by an ordinary election, because
//! this one has stopped its heartbeats.
//!
//! Invariant: it is only ever a hint: losing or repeating it loses nothing.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;

use crate::node::Inner;

/// Lets another voter lead if this node does. Whether another one leads, or nobody else could, within `within`.
pub async fn hand_over(inner: &Inner, within: Duration) -> bool {
    let own = inner.peers.self_id;
    if !inner.leadership.borrow().is_self {
        return true;
    }
    let target = {
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replicated = metrics.replication.as_ref();
        let known = |id: &u64| replicated.and_then(|all| all.get(id)).and_then(|matched| matched.map(|log| log.index));
        metrics.membership_config.membership().voter_ids().filter(|id| *id != own).max_by_key(known)
    };
    let Some(target) = target else { return true };
    if inner.raft.trigger().transfer_leader(target).await.is_err() {
        return false;
    }
    let mut leadership = inner.leadership.subscribe();
    let other = leadership.wait_for(|leadership| leadership.leader.is_some_and(|leader| leader != own));
    matches!(tokio::time::timeout(within, other).await, Ok(Ok(_)))
}
