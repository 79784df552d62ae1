//! The leader's care for the fleet of hubs: whoever was let in becomes a member, whoever leaves stops being one.
//!
//! A hub that joined is only written down (`/system/hubs/ID`). The leader calls it until it answers, as itself, and
//! then adds it: it learns first, then votes (over etcd a hub takes its place by itself). A hub that shall leave is
//! removed, and then its certificates are revoked and it is forgotten, in one transaction; in this order, because a store of two hubs needs both to remove one. A leader
//! that leaves hands over first: the next one sees it off.

use std::collections::HashMap;
use std::time::Duration;

use fluvial_certs::Identity;
use fluvial_model::store::{Op, Txn};
use fluvial_raft::{Consistency, MembershipError, Role, Store as _, StoreError};
use thiserror::Error;

use super::HubStore;
use crate::audit::{Act, Origin};
use crate::clock::SharedClock;
use crate::enrol::join::{AdmittedHub, admitted_hubs, hub_key};
use crate::enrol::revocations::{Revocation, revocation_key};
use crate::objects::Objects;
use crate::peers::{DialError, Dialler};

/// How often the leader compares who should be a member with who is.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long another hub may take to lead; it is tried again.
const HAND_OVER: Duration = Duration::from_secs(3);

/// Why a hub is not, or still, a member.
#[derive(Debug, Error)]
enum MemberError {
    #[error("reading who should be a member")]
    Store(#[from] StoreError),
    #[error("calling hub {id}")]
    Call {
        id: u64,
        #[source]
        source: DialError,
    },
    #[error("completing a change of members that a former leader left half done")]
    Settle(#[source] MembershipError),
    #[error("changing the membership of hub {id}")]
    Change {
        id: u64,
        #[source]
        source: MembershipError,
    },
}

/// Takes hubs in and sees them off while this hub leads, for ever.
pub(super) async fn keep(own: u64, store: HubStore, objects: Objects, dialler: Dialler, clock: SharedClock) {
    let mut leadership = store.leadership();
    loop {
        if leadership.wait_for(|l| l.is_self).await.is_err() {
            return;
        }
        if let Err(error) = once(own, &store, &objects, &dialler, &clock).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "the members are not yet as they should be");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn once(
    own: u64,
    store: &HubStore,
    objects: &Objects,
    dialler: &Dialler,
    clock: &SharedClock,
) -> Result<(), MemberError> {
    if store.settle_members().await.map_err(MemberError::Settle)? {
        tracing::info!("a change of members that a former leader left half done is complete");
    }
    let members: HashMap<_, _> = store.members().into_iter().map(|m| (m.id, m.role)).collect();
    let hubs = admitted_hubs(objects, Consistency::Stale).await?;
    let mut first_error = None;
    let leaves = hubs.iter().any(|hub| hub.id == own && hub.leaving);
    for hub in hubs {
        let change = match (hub.leaving, members.get(&hub.id)) {
            (false, Some(Role::Voter)) => Ok(()),
            (false, _) if store.admits_itself() => Ok(()),
            (false, _) => add(store, dialler, &hub).await,
            (true, _) if hub.id == own => Ok(()),
            (true, member) => remove(store, objects, clock, &hub, member.is_some()).await,
        };
        // One hub that is away does not keep out the next.
        if let Err(error) = change {
            first_error.get_or_insert(error);
        }
    }
    if leaves {
        // Last: who joins must have a vote before this one can go. Without another voter it is tried again.
        store.hand_over(HAND_OVER).await;
    }
    first_error.map_or(Ok(()), Err)
}

async fn add(store: &HubStore, dialler: &Dialler, hub: &AdmittedHub) -> Result<(), MemberError> {
    let id = hub.id;
    dialler.probe(id, &hub.address).await.map_err(|source| MemberError::Call { id, source })?;
    store.add_member(id, &hub.address).await.map_err(|source| MemberError::Change { id, source })?;
    tracing::info!(id, address = hub.address, "a hub became a member");
    Ok(())
}

async fn remove(
    store: &HubStore,
    objects: &Objects,
    clock: &SharedClock,
    hub: &AdmittedHub,
    member: bool,
) -> Result<(), MemberError> {
    let id = hub.id;
    // Over etcd a hub that is not up is no member, and must not become one again.
    if member || store.admits_itself() {
        store.remove_member(id).await.map_err(|source| MemberError::Change { id, source })?;
    }
    let Some(stored) = objects.store.get(&hub_key(id), Consistency::Linearizable).await? else { return Ok(()) };
    let mut txn = Txn::delete(hub_key(id), stored.mod_revision);
    let key = revocation_key(&Identity::Hub { id });
    txn.ops.push(Op::Put { key, value: Revocation { before: clock.now() }.to_bytes() });
    for (verb, resource, name) in
        [("delete", "hubs", id.to_string()), ("revoke", "certificates", Identity::Hub { id }.path())]
    {
        let act = Act::of_fleet(verb, resource, &name);
        txn.audit.push(Origin::system("members").entry(&act, 200, clock.now()));
    }
    // A conflict is looked at again in the next round.
    objects.store.txn(txn).await?;
    tracing::info!(id, "a hub left");
    Ok(())
}
