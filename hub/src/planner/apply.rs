//! Builds the planner's transactions: every write compares with the revision that its decision was made from.

use fluvial_model::desired::{Work, assignment_key};
use fluvial_model::report::report_key;
use fluvial_model::resource::Resource;
use fluvial_model::store::{Compare, Op, Revision, Txn, TxnOutcome};
use fluvial_raft::StoreError;
use tracing::debug;

use super::PlannerContext;
use super::mirror::{At, Mirror};
use crate::audit::{Act, Origin};
use crate::objects::ObjectError;

/// A transaction in the making.
#[derive(Default)]
pub(super) struct Change {
    pub(super) txn: Txn,
}

impl Change {
    pub(super) fn is_empty(&self) -> bool {
        self.txn.ops.is_empty()
    }

    /// What the audit trail is to say of it, as an act of the planner.
    pub(super) fn record(&mut self, context: &PlannerContext, act: &Act) {
        self.txn.audit.push(Origin::system("planner").entry(act, 200, context.clock.now()));
    }

    /// The decision rests on `key` at `revision` (absent: not there).
    pub(super) fn rests_on(&mut self, key: String, revision: Option<Revision>) {
        if self.txn.compares.iter().any(|c| c.key() == key) {
            return;
        }
        self.txn.compares.push(match revision {
            Some(revision) => Compare::UnchangedSince { key, revision },
            None => Compare::Absent { key },
        });
    }

    pub(super) fn put_bytes(&mut self, key: String, revision: Option<Revision>, value: Vec<u8>) {
        self.rests_on(key.clone(), revision);
        self.txn.ops.push(Op::Put { key, value });
    }

    pub(super) fn delete(&mut self, key: String, revision: Revision) {
        self.rests_on(key.clone(), Some(revision));
        self.txn.ops.push(Op::Delete { key });
    }

    pub(super) fn put<R: Resource>(
        &mut self,
        context: &PlannerContext,
        object: &R,
        revision: Option<Revision>,
    ) -> Result<(), ObjectError> {
        let bytes = context.objects.encode(object)?;
        self.put_bytes(object.key(), revision, bytes);
        Ok(())
    }

    /// The assignment becomes `work`.
    pub(super) fn assign(&mut self, cluster: &str, work: &Work, known: Option<&At<Work>>) -> Result<(), ObjectError> {
        if known.is_some_and(|at| at.value == *work) {
            return Ok(());
        }
        let key = assignment_key(cluster, &work.id());
        let bytes = serde_json::to_vec(work).map_err(|source| ObjectError::Encode { key: key.clone(), source })?;
        self.put_bytes(key, known.map(|at| at.revision), bytes);
        Ok(())
    }

    /// The assignment goes, and with it what was reported of it.
    pub(super) fn withdraw(&mut self, mirror: &Mirror, cluster: &str, id: &str) {
        let key = (cluster.to_owned(), id.to_owned());
        if let Some(at) = mirror.assignments.get(&key) {
            self.delete(assignment_key(cluster, id), at.revision);
        }
        if mirror.reports.contains_key(&key) {
            // No comparison: a report that arrives meanwhile speaks of work that is over.
            self.txn.ops.push(Op::Delete { key: report_key(cluster, id) });
        }
    }

    /// Writes; the key of what was changed by others if it does not stand for that.
    pub(super) async fn commit_or_tell(self, context: &PlannerContext) -> Result<Option<String>, ObjectError> {
        if self.is_empty() {
            return Ok(None);
        }
        match context.objects.txn(self.txn).await {
            Ok(TxnOutcome::Conflict { key, .. }) => Ok(Some(key)),
            Ok(TxnOutcome::Committed { .. })
            | Err(ObjectError::Store { source: StoreError::UnknownOutcome { .. }, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes, if there is anything to write. True if it stands; a lost race is planned again by the watch.
    pub(super) async fn commit(self, context: &PlannerContext) -> Result<bool, ObjectError> {
        if self.is_empty() {
            return Ok(true);
        }
        Ok(committed(context, self.txn).await?.is_some())
    }
}

/// The revision at which a transaction stands; nothing if it does not, or if nobody knows.
pub(super) async fn committed(context: &PlannerContext, txn: Txn) -> Result<Option<Revision>, ObjectError> {
    match context.objects.txn(txn).await {
        Ok(TxnOutcome::Committed { revision }) => Ok(Some(revision)),
        Ok(TxnOutcome::Conflict { key, .. }) => {
            debug!(key, "the plan was overtaken");
            Ok(None)
        }
        // If it stands, the watch says so; if not, the next tick plans it again.
        Err(ObjectError::Store { source: StoreError::UnknownOutcome { reason }, key }) => {
            debug!(key, reason, "the plan's fate is unknown");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
