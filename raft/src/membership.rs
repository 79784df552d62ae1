//! ② Who takes part: adding and removing hubs, one at a time.
//!
//! A new hub first learns (its log is filled without a vote), then votes. The change runs on the leader; elsewhere it is
//! forwarded.
//!
//! Invariants: one change at a time; a change ends with a single configuration or reports an error; an address never
//! changes under an id. The caller never gives an id a second time, not even after its node was removed.

use std::collections::BTreeSet;
use std::time::Duration;

use fluvial_proto::v1;
use openraft::{BasicNode, ChangeMembers};
use tokio::time::Instant;

use crate::node::Inner;
use crate::propose::leader;
use crate::types::StoredMembership;

/// How long a new hub may take to catch up before its addition is given up. It then stays a learner, and adding it
/// again goes on from there.
const CATCH_UP: Duration = Duration::from_secs(300);

/// What a node may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Counts for majorities and can lead.
    Voter,
    /// Receives everything, counts for nothing.
    Learner,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    pub address: String,
    pub role: Role,
    pub leader: bool,
}

/// A change of members did not come about, or not surely.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error(
        "node {id} is already a member at {address:?}: use a new id, or remove the node first and never use its id again"
    )]
    IdInUse { id: u64, address: String },
    #[error("node {id} is not a member")]
    NotAMember { id: u64 },
    #[error("node {id} is the only voter: a store without voters cannot be used any more")]
    LastVoter { id: u64 },
    #[error("node {id} did not catch up in time: it is a learner now, add it again to go on")]
    TooSlow { id: u64 },
    #[error("there is no leader to change the members")]
    NoLeader,
    #[error("the change of members did not come through: {reason}")]
    Failed { reason: String },
}

impl MembershipError {
    pub(crate) fn to_status(&self) -> tonic::Status {
        match self {
            Self::NoLeader | Self::Failed { .. } => tonic::Status::unavailable(self.to_string()),
            Self::TooSlow { .. } => tonic::Status::deadline_exceeded(self.to_string()),
            Self::IdInUse { .. } | Self::NotAMember { .. } | Self::LastVoter { .. } => {
                tonic::Status::failed_precondition(self.to_string())
            }
        }
    }
}

/// One change.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Add { id: u64, address: String },
    Remove { id: u64 },
}

/// The members of `membership`, in the order of their ids.
pub(crate) fn list(membership: &StoredMembership, leader: Option<u64>) -> Vec<Member> {
    let voters: BTreeSet<u64> = membership.membership().voter_ids().collect();
    let mut members: Vec<Member> = membership
        .membership()
        .nodes()
        .map(|(id, node)| Member {
            id: *id,
            address: node.addr.clone(),
            role: if voters.contains(id) { Role::Voter } else { Role::Learner },
            leader: leader == Some(*id),
        })
        .collect();
    members.sort_by_key(|member| member.id);
    members
}

/// Whether a change is half done: then majorities of both sets of voters are needed.
pub(crate) fn is_joint(membership: &StoredMembership) -> bool {
    membership.membership().get_joint_config().len() > 1
}

/// Ends a change that a former leader left half done; this node must lead. Whether there was one.
pub(crate) async fn settle(inner: &Inner) -> Result<bool, MembershipError> {
    if !is_joint(&inner.membership()) {
        return Ok(false);
    }
    // One that is under way here is no former leader's.
    let Ok(_one_at_a_time) = inner.changing.try_lock() else { return Ok(false) };
    finish(inner).await?;
    Ok(true)
}

/// Makes the change, here or on the leader.
pub(crate) async fn change(inner: &Inner, change: Change) -> Result<(), MembershipError> {
    let deadline = Instant::now() + inner.timings.request;
    let to = leader(inner, deadline).await.map_err(|_| MembershipError::NoLeader)?;
    if to == inner.peers.self_id {
        return change_here(inner, change).await;
    }
    let failed = |reason: String| MembershipError::Failed { reason };
    let address = inner.address_of(to).ok_or(MembershipError::NoLeader)?;
    let mut client = inner.peers.client(to, &address).await.map_err(|error| failed(error.to_string()))?;
    let message = v1::PeerChangeMembersRequest {
        change: Some(match change {
            Change::Add { id, address } => v1::peer_change_members_request::Change::Add(v1::RaftNode { id, address }),
            Change::Remove { id } => v1::peer_change_members_request::Change::Remove(id),
        }),
    };
    let call = client.change_members(inner.peers.request(to, message));
    match tokio::time::timeout(CATCH_UP + inner.timings.request, call).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(failed(status.message().to_owned())),
        Err(_) => Err(failed("the leader did not answer in time".into())),
    }
}

/// Makes the change on this node, which must lead.
pub(crate) async fn change_here(inner: &Inner, change: Change) -> Result<(), MembershipError> {
    let _one_at_a_time = inner.changing.lock().await;
    match change {
        Change::Add { id, address } => add(inner, id, address).await,
        Change::Remove { id } => remove(inner, id).await,
    }?;
    if is_joint(&inner.membership()) {
        return Err(MembershipError::Failed { reason: "the change is only half done: make it again".into() });
    }
    Ok(())
}

async fn add(inner: &Inner, id: u64, address: String) -> Result<(), MembershipError> {
    let members = list(&inner.membership(), None);
    if let Some(known) = members.iter().find(|member| member.id == id) {
        if known.address != address {
            return Err(MembershipError::IdInUse { id, address: known.address.clone() });
        }
        if known.role == Role::Voter {
            return finish(inner).await;
        }
    }
    let learn = inner.raft.add_learner(id, BasicNode::new(address), true);
    match tokio::time::timeout(CATCH_UP, learn).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(MembershipError::Failed { reason: error.to_string() }),
        Err(_) => return Err(MembershipError::TooSlow { id }),
    }
    run(inner, ChangeMembers::AddVoterIds(BTreeSet::from([id])), true).await
}

async fn remove(inner: &Inner, id: u64) -> Result<(), MembershipError> {
    let members = list(&inner.membership(), None);
    let member = members.iter().find(|member| member.id == id).ok_or(MembershipError::NotAMember { id })?;
    if member.role == Role::Learner {
        return run(inner, ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await;
    }
    if members.iter().filter(|member| member.role == Role::Voter).count() == 1 {
        return Err(MembershipError::LastVoter { id });
    }
    run(inner, ChangeMembers::RemoveVoters(BTreeSet::from([id])), false).await
}

/// Ends a change that a former leader left half done.
async fn finish(inner: &Inner) -> Result<(), MembershipError> {
    if is_joint(&inner.membership()) {
        return run(inner, ChangeMembers::AddVoterIds(BTreeSet::new()), true).await;
    }
    Ok(())
}

async fn run(inner: &Inner, change: ChangeMembers<u64, BasicNode>, retain: bool) -> Result<(), MembershipError> {
    let failed = |reason: String| MembershipError::Failed { reason };
    match tokio::time::timeout(inner.timings.request, inner.raft.change_membership(change, retain)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("no majority confirmed it in time; it may still happen".into())),
    }
}
