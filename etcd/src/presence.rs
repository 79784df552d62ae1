//! ② The lease of a hub: that it is up, and that it leads.
//!
//! A hub keeps one lease alive and hangs its entry on it, and, if nobody leads, the leader's key. A hub that dies is
//! gone, and its lead with it, when the lease runs out; one that is told to stop gives it back. The term is the
//! revision at which the leader's key was made, so that it grows with every election.
//!
//! Invariants: a hub calls itself leader only while its own clock says that the lease cannot have run out. That is no
//! proof (a process may be stopped between looking and acting): what a leader writes compares, as with any store.

use std::sync::Arc;
use std::time::Duration;

use fluvial_model::store::Revision;
use fluvial_raft::{Leadership, StoreError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::follow::{HubEntry, Leader};
use crate::link::{Asked, Current};
use crate::pb;
use crate::store::Inner;
use crate::wire::{absent, delete, put, unchanged};

/// How long a hub is up without a sign of life: an election of etcd (1 to 2 s) and some.
const LEASE: Duration = Duration::from_secs(5);
/// How often it gives one.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// How long one may take to be confirmed.
const KEEP_WITHIN: Duration = Duration::from_millis(1500);
/// A hub stops leading so long before its lease may run out.
const MARGIN: Duration = Duration::from_secs(1);
/// The pause before a lease is asked for again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long giving back may take when the hub stops.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// Keeps this hub's lease until told to stop.
pub(crate) async fn run(inner: Arc<Inner>, cancel: CancellationToken) {
    while !cancel.is_cancelled() {
        if let Err(error) = hold(&inner, &cancel).await {
            tracing::warn!(error = %fluvial_model::causes::chain(&error), "this hub's lease of etcd was lost");
        }
        publish(&inner, None);
        let _ = cancel.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
    }
}

/// Gets a lease and keeps it. Ends with an error when it is lost.
async fn hold(inner: &Inner, cancel: &CancellationToken) -> Result<(), StoreError> {
    let asked_at = Instant::now();
    let lease = grant(inner).await?;
    let mut good_until = asked_at + LEASE - MARGIN;
    let held = keep(inner, lease, &mut good_until, cancel).await;
    publish(inner, None);
    if held.is_ok() {
        let request = pb::LeaseRevokeRequest { id: lease };
        let call = |current: Current| async move {
            let mut client = pb::lease_client::LeaseClient::new(current.channel.clone());
            client.lease_revoke(current.request(request)).await
        };
        // If it is not given back it runs out.
        let _ = inner.link.call(Instant::now() + GIVE_BACK, Asked::Read, call).await;
    }
    held
}

async fn keep(
    inner: &Inner,
    lease: i64,
    good_until: &mut Instant,
    cancel: &CancellationToken,
) -> Result<(), StoreError> {
    register(inner, lease, *good_until).await?;
    let mut tick = tokio::time::interval(KEEP_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut meta = inner.meta.subscribe();
    loop {
        publish(inner, (Instant::now() < *good_until).then_some(lease));
        let leader = meta.borrow_and_update().leader;
        // An unknown outcome is learned from the watch.
        match campaign(inner, leader, lease, *good_until).await {
            Ok(()) | Err(StoreError::UnknownOutcome { .. }) => {}
            Err(error) => tracing::debug!(%error, "the lead could not be taken"),
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = meta.changed() => if changed.is_err() { return Ok(()) },
            _ = tick.tick() => {
                let asked_at = Instant::now();
                // Waiting beyond the lease would be leading beyond it.
                match keep_alive(inner, lease, (asked_at + KEEP_WITHIN).min(*good_until)).await {
                    Ok(true) => *good_until = asked_at + LEASE - MARGIN,
                    Ok(false) => return Err(StoreError::unavailable("etcd has ended the lease")),
                    Err(error) if Instant::now() >= *good_until => return Err(error),
                    Err(error) => tracing::debug!(%error, "a sign of life was not confirmed"),
                }
            }
        }
    }
}

async fn grant(inner: &Inner) -> Result<i64, StoreError> {
    let request = pb::LeaseGrantRequest { ttl: i64::try_from(LEASE.as_secs()).unwrap_or(5), id: 0 };
    let call = |current: Current| async move {
        let mut client = pb::lease_client::LeaseClient::new(current.channel.clone());
        client.lease_grant(current.request(request)).await
    };
    // A lease that was granted without this hub hearing of it runs out: asking again does no harm.
    Ok(inner.link.call(inner.deadline(), Asked::Read, call).await?.into_inner().id)
}

/// Whether the lease is still good.
async fn keep_alive(inner: &Inner, lease: i64, deadline: Instant) -> Result<bool, StoreError> {
    let call = |current: Current| async move {
        let mut client = pb::lease_client::LeaseClient::new(current.channel.clone());
        let one = tokio_stream::once(pb::LeaseKeepAliveRequest { id: lease });
        client.lease_keep_alive(current.request(one)).await?.into_inner().message().await
    };
    let answer = inner.link.call(deadline, Asked::Read, call).await?;
    Ok(answer.is_some_and(|answer| answer.ttl > 0))
}

/// Says that this hub is up.
async fn register(inner: &Inner, lease: i64, deadline: Instant) -> Result<(), StoreError> {
    let entry = HubEntry { id: inner.id, address: inner.address.clone() };
    let value = serde_json::to_vec(&entry).map_err(StoreError::storage)?;
    let success = vec![put(inner.keys.hub(inner.id), value, lease)];
    let compare = vec![absent(inner.keys.removed(inner.id))];
    let request = pb::TxnRequest { compare, success, failure: Vec::new() };
    if inner.write(request, deadline).await?.succeeded {
        return Ok(());
    }
    Err(StoreError::unavailable("this hub was removed from the fleet"))
}

/// Takes the lead if nobody has it, or if a former process of this hub has it.
async fn campaign(inner: &Inner, leader: Option<Leader>, lease: i64, deadline: Instant) -> Result<(), StoreError> {
    let key = inner.keys.meta("leader");
    let (compare, success) = match leader {
        // Only one process at a time has this hub's folder: that other one is dead.
        Some(old) if old.id == inner.id && old.lease != lease => (unchanged(key.clone(), old.created), delete(key)),
        Some(_) => return Ok(()),
        // The watch has not said yet that somebody, or nobody, leads.
        None if !*inner.caught_up.borrow() => return Ok(()),
        None if inner.yields_until.borrow().is_some_and(|until| Instant::now() < until) => return Ok(()),
        None => (absent(key.clone()), put(key, inner.id.to_string(), lease)),
    };
    let request = pb::TxnRequest {
        compare: vec![compare, absent(inner.keys.removed(inner.id))],
        success: vec![success],
        failure: Vec::new(),
    };
    inner.write(request, deadline).await.map(|_| ())
}

/// Tells this hub who leads; itself only while it holds `lease`.
fn publish(inner: &Inner, lease: Option<i64>) {
    let leader = inner.meta.borrow().leader;
    let now = Leadership {
        leader: leader.map(|leader| leader.id),
        is_self: leader.is_some_and(|leader| leader.id == inner.id && Some(leader.lease) == lease),
        term: leader.map_or(Revision(0), |leader| leader.created).0,
    };
    inner.leadership.send_if_modified(|current| {
        // Without a leader the term stays what it was.
        let now = Leadership { term: now.term.max(current.term), ..now };
        std::mem::replace(current, now) != now
    });
}
