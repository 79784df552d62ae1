//! ② The words of the hub's store: keys, revisions, transactions, events.
//!
//! A store is an ordered map from key to bytes with one growing revision. Every replica must reach the same map from
//! the same transactions, so what a transaction means is defined here, as data, and carried out by `fluvial-raft`.
//!
//! Invariants: a revision is given to at most one transaction and never falls; all writes of one transaction share its
//! revision; a key is written at most once in a transaction.
//!
//! Deliberately absent: the store itself (a trait in `fluvial-raft`), time, and any meaning of the bytes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::audit;

/// A point in the store's history. 0 is "before anything"; the first transaction that writes makes revision 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Revision {
    /// The revision that follows this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A stored value and where in history it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: Vec<u8>,
    /// The revision that created the key, after its last absence.
    pub create_revision: Revision,
    /// The revision that last wrote the key.
    pub mod_revision: Revision,
}

/// A condition that must hold for a transaction to write. All are checked where the transaction is applied, so that
/// every replica agrees on the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent { key: String },
    /// The key exists and was last written at exactly this revision.
    UnchangedSince { key: String, revision: Revision },
}

impl Compare {
    /// The key that the condition speaks of.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Absent { key } | Self::UnchangedSince { key, .. } => key,
        }
    }

    /// Whether the condition holds, given the revision at which its key was last written, if the key exists.
    #[must_use]
    pub fn holds(&self, mod_revision: Option<Revision>) -> bool {
        match self {
            Self::Absent { .. } => mod_revision.is_none(),
            Self::UnchangedSince { revision, .. } => mod_revision == Some(*revision),
        }
    }
}

/// One write of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put {
        key: String,
        value: Vec<u8>,
    },
    /// Deleting an absent key does nothing.
    Delete {
        key: String,
    },
}

impl Op {
    /// The key that is written.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// All compares hold, then all writes happen at one revision; or one fails, and nothing happens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
    /// What the audit trail is to say of it, if it happens.
    pub audit: Vec<audit::Entry>,
}

impl Txn {
    /// Creates `key`, which must be absent.
    #[must_use]
    pub fn create(key: impl Into<String>, value: Vec<u8>) -> Self {
        let key = key.into();
        Self {
            compares: vec![Compare::Absent { key: key.clone() }],
            ops: vec![Op::Put { key, value }],
            ..Self::default()
        }
    }

    /// Replaces `key`, last written at `revision`.
    #[must_use]
    pub fn replace(key: impl Into<String>, revision: Revision, value: Vec<u8>) -> Self {
        let key = key.into();
        Self {
            compares: vec![Compare::UnchangedSince { key: key.clone(), revision }],
            ops: vec![Op::Put { key, value }],
            ..Self::default()
        }
    }

    /// Deletes `key`, last written at `revision`.
    #[must_use]
    pub fn delete(key: impl Into<String>, revision: Revision) -> Self {
        let key = key.into();
        Self {
            compares: vec![Compare::UnchangedSince { key: key.clone(), revision }],
            ops: vec![Op::Delete { key }],
            ..Self::default()
        }
    }

    /// The first key that is written twice, if any: such a transaction is malformed.
    #[must_use]
    pub fn written_twice(&self) -> Option<&str> {
        let mut seen = std::collections::BTreeSet::new();
        self.ops.iter().map(Op::key).find(|key| !seen.insert(*key))
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOutcome {
    /// The writes stand. A transaction that changed nothing (no ops, or deletes of absent keys) is committed at the
    /// revision that the store already had.
    Committed { revision: Revision },
    /// A compare did not hold: the first one that failed, with what its key holds now.
    Conflict { key: String, current: Option<KeyValue> },
}

/// One change, as watchers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub revision: Revision,
    pub key: String,
    /// The value written, or none if the key was deleted.
    pub value: Option<KeyValue>,
    /// What the key held before, if it existed: selectors need it to tell "left the selection" from "never in it".
    pub previous: Option<KeyValue>,
}

/// The exclusive upper end of the keys that begin with `prefix`, or none if there is no such end.
#[must_use]
pub fn prefix_end(prefix: &str) -> Option<Vec<u8>> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}
