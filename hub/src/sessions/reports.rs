//! ⑦ Writes down what an agent reports, and tells it when that is done.
//!
//! Invariants: a change of state is written at once, mere progress about once a second; of several reports on one
//! assignment the last one counts; a report is written only while its assignment exists, compared in the same
//! transaction, so that none outlives it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fluvial_model::desired::assignment_key;
use fluvial_model::report::{
    AgentReport, BackupReport, CacheReport, LoadReport, MigrateReport, Report, RestoreReport, StoredReport, report_key,
};
use fluvial_model::store::{Compare, Op, Txn, TxnOutcome};
use fluvial_proto::v1;
use fluvial_proto::v1::hub_message::Message;
use fluvial_raft::{Consistency, StoreError};
use futures::StreamExt as _;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tonic::Status;

use super::{Outgoing, SessionContext, claim};

/// How often progress alone is written.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Writes under way at a time: they share the store's group commits.
const PARALLEL: usize = 16;
/// The most assignments with an unwritten report; an agent with more work than this is told to slow down.
const MAX_WAITING: usize = 10_000;
/// Tries of one write before it waits for a second.
const TRIES: usize = 3;
/// Pause after the store did not answer.
const RETRY: Duration = Duration::from_secs(1);

/// What an agent has reported and nobody has written yet.
#[derive(Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    reports: BTreeMap<String, StoredReport>,
    agent: Option<AgentReport>,
}

impl Inbox {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a report on one assignment, in place of an earlier one.
    pub(super) fn put(&self, id: String, report: StoredReport) -> Result<(), Status> {
        let mut waiting = self.waiting();
        if waiting.reports.len() >= MAX_WAITING && !waiting.reports.contains_key(&id) {
            return Err(Status::resource_exhausted(format!("more than {MAX_WAITING} reports wait to be stored")));
        }
        waiting.reports.insert(id, report);
        drop(waiting);
        self.wake.notify_one();
        Ok(())
    }

    /// Takes what the agent says of itself.
    pub(super) fn put_agent(&self, report: AgentReport) {
        self.waiting().agent = Some(report);
        self.wake.notify_one();
    }
}

/// The report that was written last, and when.
struct Written {
    at: Instant,
    stored: StoredReport,
}

/// Writes what comes into an [`Inbox`].
pub(super) struct Writer<'a> {
    pub(super) context: &'a SessionContext,
    pub(super) cluster: &'a str,
    pub(super) inbox: &'a Inbox,
    pub(super) outbound: mpsc::Sender<Outgoing>,
}

/// What became of a report.
enum Outcome {
    Stored,
    /// Its assignment is gone, or a newer report is stored: nobody needs it.
    Needless,
    Later,
}

impl Writer<'_> {
    /// Writes until the agent is gone, or must be.
    pub(super) async fn run(self) -> Status {
        let mut written: HashMap<String, Written> = HashMap::new();
        let mut again_at: Option<Instant> = None;
        loop {
            tokio::select! {
                () = self.inbox.wake.notified() => {}
                () = sleep_until(again_at) => {}
            }
            let agent = self.inbox.waiting().agent.take();
            if let Some(report) = agent
                && let Err(status) = Box::pin(claim::update(self.context, self.cluster, &report)).await
            {
                if matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Aborted) {
                    self.inbox.waiting().agent.get_or_insert(report);
                    again_at = Some(Instant::now() + RETRY);
                    continue;
                }
                return status;
            }
            let (due, next) = self.due(&written);
            again_at = next;
            if due.is_empty() {
                continue;
            }
            // On the heap for as long as it is needed: most sessions report nothing most of the time.
            match Box::pin(self.write_all(due, &mut written)).await {
                Ok(retry) => again_at = again_at.into_iter().chain(retry).min(),
                Err(status) => return status,
            }
        }
    }

    /// Writes these, and says when those are to be tried again that could not be written.
    async fn write_all(
        &self,
        due: Vec<(String, StoredReport)>,
        written: &mut HashMap<String, Written>,
    ) -> Result<Option<Instant>, Status> {
        let mut again_at = None;
        let mut writes = futures::stream::iter(due)
            .map(|(id, stored)| async move {
                let outcome = self.write(&id, &stored).await;
                (id, stored, outcome)
            })
            .buffer_unordered(PARALLEL);
        while let Some((id, stored, outcome)) = writes.next().await {
            match outcome {
                Outcome::Later => {
                    self.inbox.waiting().reports.entry(id).or_insert(stored);
                    again_at = Some(Instant::now() + RETRY);
                    continue;
                }
                Outcome::Needless => {
                    written.remove(&id);
                }
                Outcome::Stored => {
                    written.insert(id.clone(), Written { at: Instant::now(), stored: stored.clone() });
                }
            }
            let ack = v1::Ack { id, generation: stored.generation, refused: String::new() };
            let message = v1::HubMessage { message: Some(Message::ReportStored(ack)) };
            if self.outbound.send(Box::new(Ok(message))).await.is_err() {
                return Err(Status::cancelled("the agent is gone"));
            }
        }
        Ok(again_at)
    }

    /// Takes out what may be written now, and says when to look again for the rest.
    fn due(&self, written: &HashMap<String, Written>) -> (Vec<(String, StoredReport)>, Option<Instant>) {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let mut due = Vec::new();
        let mut waiting = self.inbox.waiting();
        for (id, report) in std::mem::take(&mut waiting.reports) {
            match written.get(&id) {
                Some(last) if !is_news(&last.stored, &report) && now < last.at + PROGRESS_EVERY => {
                    let at = last.at + PROGRESS_EVERY;
                    next = Some(next.map_or(at, |next| next.min(at)));
                    waiting.reports.insert(id, report);
                }
                _ => due.push((id, report)),
            }
        }
        (due, next)
    }

    async fn write(&self, id: &str, report: &StoredReport) -> Outcome {
        // This replica may be behind the one that gave out the assignment: only the newest state can say it is gone.
        let mut consistency = Consistency::Stale;
        for _ in 0..TRIES {
            match self.try_write(id, report, consistency).await {
                Ok(Some(outcome)) => return outcome,
                Ok(None) => consistency = Consistency::Linearizable,
                Err(error) => {
                    tracing::debug!(cluster = self.cluster, id, %error, "a report waits");
                    return Outcome::Later;
                }
            }
        }
        Outcome::Later
    }

    /// Nothing if it must be tried again with a fresher reading.
    async fn try_write(
        &self,
        id: &str,
        report: &StoredReport,
        consistency: Consistency,
    ) -> Result<Option<Outcome>, StoreError> {
        let store = &self.context.objects.store;
        let (assignment, key) = (assignment_key(self.cluster, id), report_key(self.cluster, id));
        let Some(assigned) = store.get(&assignment, consistency).await? else {
            return Ok((consistency == Consistency::Linearizable).then_some(Outcome::Needless));
        };
        let current = store.get(&key, consistency).await?;
        let known = current.as_ref().and_then(|kv| serde_json::from_slice::<StoredReport>(&kv.value).ok());
        match known {
            Some(known) if known == *report => return Ok(Some(Outcome::Stored)),
            Some(known) if known.generation > report.generation => return Ok(Some(Outcome::Needless)),
            _ => {}
        }
        let value = serde_json::to_vec(report).map_err(|error| StoreError::Malformed { reason: error.to_string() })?;
        let unchanged = match current {
            Some(kv) => Compare::UnchangedSince { key: key.clone(), revision: kv.mod_revision },
            None => Compare::Absent { key: key.clone() },
        };
        let exists = Compare::UnchangedSince { key: assignment, revision: assigned.mod_revision };
        let txn = Txn { compares: vec![exists, unchanged], ops: vec![Op::Put { key, value }], ..Txn::default() };
        match store.txn(txn).await? {
            TxnOutcome::Committed { .. } => Ok(Some(Outcome::Stored)),
            TxnOutcome::Conflict { .. } => Ok(None),
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Whether a report says more than that the work goes on.
fn is_news(old: &StoredReport, new: &StoredReport) -> bool {
    old.generation != new.generation || without_progress(&old.report) != without_progress(&new.report)
}

fn without_progress(report: &Report) -> Report {
    match report {
        Report::Cache(cache) => {
            Report::Cache(CacheReport { cached_bytes: 0, cached_files: 0, nodes: Vec::new(), ..cache.clone() })
        }
        Report::Migrate(migrate) => Report::Migrate(MigrateReport { progress: Default::default(), ..migrate.clone() }),
        Report::Load(load) => {
            Report::Load(LoadReport { progress: Default::default(), page_cache_bytes: None, ..load.clone() })
        }
        Report::Backup(backup) => Report::Backup(BackupReport { progress: Default::default(), ..backup.clone() }),
        Report::Restore(restore) => {
            let copy = MigrateReport { progress: Default::default(), ..restore.copy.clone() };
            Report::Restore(RestoreReport { copy, ..restore.clone() })
        }
        Report::Scan(_) | Report::Remove(_) | Report::Mount(_) | Report::Serve(_) | Report::Repository(_) => {
            report.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filling(cached_bytes: u64, phase: &str) -> StoredReport {
        let report = CacheReport { phase: phase.to_owned(), cached_bytes, ..CacheReport::default() };
        StoredReport { generation: 1, report: Report::Cache(report) }
    }

    #[test]
    fn progress_can_wait_and_a_change_of_state_cannot() {
        assert!(!is_news(&filling(1, "Filling"), &filling(2, "Filling")));
        assert!(is_news(&filling(2, "Filling"), &filling(2, "Ready")));
        assert!(is_news(&filling(2, "Filling"), &StoredReport { generation: 2, ..filling(2, "Filling") }));
    }
}
