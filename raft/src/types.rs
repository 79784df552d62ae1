//! Raft's types for this store, and their shapes on the wire and on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use fluvial_model::store::{Revision, TxnOutcome};
use fluvial_proto::v1;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::{BasicNode, EntryPayload, Membership};

/// An encoded `v1::Command`: encoded once by the proposer, carried as it is by log and wire, decoded when applied.
#[derive(Clone, PartialEq, Eq)]
pub struct Command(pub Bytes);

impl fmt::Debug for Command {
    // The bytes may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

/// What a log entry came to in the state machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    Txn(TxnOutcome),
    Compacted {
        oldest: Revision,
    },
    Future {
        newest: Revision,
    },
    Malformed {
        reason: String,
    },
    /// A blank entry or a change of membership.
    Nothing,
}

openraft::declare_raft_types!(
    /// The types of this store's Raft.
    pub TypeConfig:
        D = Command,
        R = Applied,
        NodeId = u64,
        Node = BasicNode,
);

pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, crate::snapshot::SnapshotFile>;
pub type Raft = openraft::Raft<TypeConfig, crate::machine::StateMachine>;

/// A message that another version or a damaged peer sent.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    #[error("{message} lacks its field {field}")]
    Missing { message: &'static str, field: &'static str },
    #[error("a membership names a voter that is not among its nodes")]
    Membership,
}

const fn missing(message: &'static str, field: &'static str) -> ShapeError {
    ShapeError::Missing { message, field }
}

pub fn log_id_out(id: &LogId) -> v1::RaftLogId {
    v1::RaftLogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub fn log_id_in(id: v1::RaftLogId) -> LogId {
    LogId { leader_id: LeaderId { term: id.term, node_id: id.node }, index: id.index }
}

pub fn vote_out(vote: &Vote) -> v1::RaftVote {
    v1::RaftVote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub fn vote_in(vote: Option<v1::RaftVote>, message: &'static str) -> Result<Vote, ShapeError> {
    let vote = vote.ok_or(missing(message, "vote"))?;
    Ok(Vote { leader_id: LeaderId { term: vote.term, node_id: vote.node }, committed: vote.committed })
}

pub fn membership_out(membership: &Membership<u64, BasicNode>) -> v1::RaftMembership {
    v1::RaftMembership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| v1::RaftConfig { voters: voters.iter().copied().collect() })
            .collect(),
        nodes: membership.nodes().map(|(id, node)| v1::RaftNode { id: *id, address: node.addr.clone() }).collect(),
    }
}

pub fn membership_in(membership: v1::RaftMembership) -> Result<Membership<u64, BasicNode>, ShapeError> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, BasicNode> =
        membership.nodes.into_iter().map(|node| (node.id, BasicNode::new(node.address))).collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| ShapeError::Membership)
}

pub fn stored_membership_out(stored: &StoredMembership) -> v1::RaftStoredMembership {
    v1::RaftStoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_out),
        membership: Some(membership_out(stored.membership())),
    }
}

pub fn stored_membership_in(stored: v1::RaftStoredMembership) -> Result<StoredMembership, ShapeError> {
    let membership = stored.membership.ok_or(missing("RaftStoredMembership", "membership"))?;
    Ok(StoredMembership::new(stored.log_id.map(log_id_in), membership_in(membership)?))
}

pub fn entry_out(entry: &Entry) -> v1::RaftEntry {
    use v1::raft_entry::Payload;
    v1::RaftEntry {
        log_id: Some(log_id_out(&entry.log_id)),
        payload: match &entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Normal(command) => Some(Payload::Command(command.0.clone())),
            EntryPayload::Membership(membership) => Some(Payload::Membership(membership_out(membership))),
        },
    }
}

pub fn entry_in(entry: v1::RaftEntry) -> Result<Entry, ShapeError> {
    use v1::raft_entry::Payload;
    Ok(Entry {
        log_id: log_id_in(entry.log_id.ok_or(missing("RaftEntry", "log_id"))?),
        payload: match entry.payload {
            None => EntryPayload::Blank,
            Some(Payload::Command(command)) => EntryPayload::Normal(Command(command)),
            Some(Payload::Membership(membership)) => EntryPayload::Membership(membership_in(membership)?),
        },
    })
}

/// About how many bytes an entry takes, in memory and on the wire.
pub fn entry_bytes(entry: &Entry) -> usize {
    // 64: the identifiers and what surrounds them.
    64 + match &entry.payload {
        EntryPayload::Normal(command) => command.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

pub fn applied_out(applied: Applied) -> v1::Applied {
    use v1::applied::Result as Out;
    v1::Applied {
        result: match applied {
            Applied::Txn(outcome) => Some(Out::Txn(outcome.into())),
            Applied::Compacted { oldest } => Some(Out::Compacted(oldest.0)),
            Applied::Future { newest } => Some(Out::Future(newest.0)),
            Applied::Malformed { reason } => Some(Out::Malformed(reason)),
            Applied::Nothing => None,
        },
    }
}

pub fn applied_in(applied: v1::Applied) -> Result<Applied, ShapeError> {
    use v1::applied::Result as In;
    Ok(match applied.result {
        Some(In::Txn(outcome)) => Applied::Txn(outcome.try_into().map_err(|_| missing("TxnOutcome", "outcome"))?),
        Some(In::Compacted(oldest)) => Applied::Compacted { oldest: Revision(oldest) },
        Some(In::Future(newest)) => Applied::Future { newest: Revision(newest) },
        Some(In::Malformed(reason)) => Applied::Malformed { reason },
        None => Applied::Nothing,
    })
}
