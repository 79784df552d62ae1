//! ② The store's words between `fluvial-model` and `log.proto`.
//!
//! Encoding cannot fail. Decoding fails only where a message lacks what it must have.

use std::fmt;

use fluvial_model::store::{Compare, KeyValue, Op, Revision, Txn, TxnOutcome};

use crate::v1;

/// A message without a field that it must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingField {
    /// The message's name.
    pub message: &'static str,
    /// The field's name.
    pub field: &'static str,
}

impl fmt::Display for MissingField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lacks its field {}", self.message, self.field)
    }
}

impl std::error::Error for MissingField {}

impl From<Txn> for v1::Txn {
    fn from(txn: Txn) -> Self {
        Self {
            compares: txn.compares.into_iter().map(Into::into).collect(),
            ops: txn.ops.into_iter().map(Into::into).collect(),
            audit: txn.audit.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<v1::Txn> for Txn {
    fn from(txn: v1::Txn) -> Self {
        Self {
            compares: txn.compares.into_iter().map(Into::into).collect(),
            ops: txn.ops.into_iter().map(Into::into).collect(),
            audit: txn.audit.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Compare> for v1::Compare {
    fn from(compare: Compare) -> Self {
        match compare {
            Compare::Absent { key } => Self { key, unchanged_since: None },
            Compare::UnchangedSince { key, revision } => Self { key, unchanged_since: Some(revision.0) },
        }
    }
}

impl From<v1::Compare> for Compare {
    fn from(compare: v1::Compare) -> Self {
        match compare.unchanged_since {
            None => Self::Absent { key: compare.key },
            Some(revision) => Self::UnchangedSince { key: compare.key, revision: Revision(revision) },
        }
    }
}

impl From<Op> for v1::Op {
    fn from(op: Op) -> Self {
        match op {
            Op::Put { key, value } => Self { key, value: Some(value.into()) },
            Op::Delete { key } => Self { key, value: None },
        }
    }
}

impl From<v1::Op> for Op {
    fn from(op: v1::Op) -> Self {
        match op.value {
            Some(value) => Self::Put { key: op.key, value: value.into() },
            None => Self::Delete { key: op.key },
        }
    }
}

impl From<KeyValue> for v1::KeyValue {
    fn from(kv: KeyValue) -> Self {
        Self {
            key: kv.key,
            value: kv.value.into(),
            create_revision: kv.create_revision.0,
            mod_revision: kv.mod_revision.0,
        }
    }
}

impl From<v1::KeyValue> for KeyValue {
    fn from(kv: v1::KeyValue) -> Self {
        Self {
            key: kv.key,
            value: kv.value.into(),
            create_revision: Revision(kv.create_revision),
            mod_revision: Revision(kv.mod_revision),
        }
    }
}

impl From<TxnOutcome> for v1::TxnOutcome {
    fn from(outcome: TxnOutcome) -> Self {
        use v1::txn_outcome::Outcome;
        Self {
            outcome: Some(match outcome {
                TxnOutcome::Committed { revision } => Outcome::Committed(revision.0),
                TxnOutcome::Conflict { key, current } => {
                    Outcome::Conflict(v1::Conflict { key, current: current.map(Into::into) })
                }
            }),
        }
    }
}

impl TryFrom<v1::TxnOutcome> for TxnOutcome {
    type Error = MissingField;

    fn try_from(outcome: v1::TxnOutcome) -> Result<Self, MissingField> {
        use v1::txn_outcome::Outcome;
        match outcome.outcome {
            Some(Outcome::Committed(revision)) => Ok(Self::Committed { revision: Revision(revision) }),
            Some(Outcome::Conflict(conflict)) => {
                Ok(Self::Conflict { key: conflict.key, current: conflict.current.map(Into::into) })
            }
            None => Err(MissingField { message: "TxnOutcome", field: "outcome" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv() -> KeyValue {
        KeyValue { key: "a/b".into(), value: vec![0, 255], create_revision: Revision(3), mod_revision: Revision(9) }
    }

    #[test]
    fn a_transaction_survives_the_wire() {
        let txn = Txn {
            compares: vec![
                Compare::Absent { key: "new".into() },
                Compare::UnchangedSince { key: "old".into(), revision: Revision(7) },
            ],
            ops: vec![Op::Put { key: "new".into(), value: Vec::new() }, Op::Delete { key: "old".into() }],
            audit: vec![fluvial_model::audit::Entry { code: 200, ..Default::default() }],
        };
        assert_eq!(Txn::from(v1::Txn::from(txn.clone())), txn);
    }

    #[test]
    fn both_outcomes_survive_the_wire() {
        for outcome in [
            TxnOutcome::Committed { revision: Revision(12) },
            TxnOutcome::Conflict { key: "a/b".into(), current: Some(kv()) },
            TxnOutcome::Conflict { key: "a/b".into(), current: None },
        ] {
            assert_eq!(TxnOutcome::try_from(v1::TxnOutcome::from(outcome.clone())), Ok(outcome));
        }
    }

    #[test]
    fn an_empty_outcome_is_refused() {
        assert_eq!(
            TxnOutcome::try_from(v1::TxnOutcome { outcome: None }),
            Err(MissingField { message: "TxnOutcome", field: "outcome" })
        );
    }
}
