//! Backups, restores, and what repositories need.

use std::sync::Arc;
use std::time::Instant;

use fluvial_backup::{BackupError, Dataset, Meter, Repository, Restore, Save, Snapshot, Target, restore, save};
use fluvial_model::desired::{BackupWork, Endpoint, REPOSITORY_PASSWORD, RepositoryTask, RepositoryWork, RestoreWork};
use fluvial_model::kinds::{self, Retention, SnapshotInfo};
use fluvial_model::report::{
    BackupReport, FoundSnapshots, MigrateReport, Report, RepositoryReport, RestoreReport, WrittenSnapshot,
};
use fluvial_transfer::{CopyContext, Progress};
use secrecy::SecretString;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Works, ticker};
use crate::blocks;
use crate::ledger::Secrets;
use crate::reconciler::locate;
use crate::reconciler::report::{self, Trouble};

/// Under this name restic lists our snapshots.
const HOST: &str = "fluvial";

/// A restore that is not at its end.
pub(super) fn unfinished(copy: MigrateReport) -> Report {
    Report::Restore(RestoreReport { copy, snapshot: None, catalog: None })
}

impl Works {
    pub(super) async fn backup(
        &self,
        id: &str,
        generation: u64,
        work: &BackupWork,
        secrets: &Secrets,
        cancel: &CancellationToken,
    ) -> Result<Report, Trouble> {
        let repository = target(&work.repository, secrets)?;
        let source_root = work.root.as_deref().map(str::parse).transpose()?;
        if let Some(root) = source_root {
            blocks::pull(&self.link, &self.blocks, root).await?;
        }
        let job = Save {
            id: work.operation.clone(),
            repository: repository.clone(),
            dataset: Dataset { namespace: work.dataset.namespace.clone(), name: work.dataset.name.clone() },
            sources: locate::mounts(&work.sources, secrets)?,
            source_root,
            catalog: serde_json::from_str(&work.catalog).unwrap_or_default(),
            host: HOST.to_owned(),
            scratch: self.blocks.directory().join("backup").join(&work.operation),
        };
        let (meter, began) = (Arc::new(Meter::default()), Instant::now());
        let saving = async {
            let _turn = self.copies.acquire().await.map_err(|_| Trouble::Cancelled)?;
            save(job, &self.blocks, meter.clone(), cancel.clone()).await.map_err(Trouble::from)
        };
        let mut saving = Box::pin(saving);
        let mut tick = ticker();
        let saved = loop {
            tokio::select! {
                saved = &mut saving => break saved?,
                _ = tick.tick() => {
                    let progress = progress(&meter, began);
                    self.tell(id, generation, Report::Backup(BackupReport { progress, ..BackupReport::default() })).await?;
                }
            }
        };
        let mut written = WrittenSnapshot {
            snapshot: told(saved.snapshot),
            bytes_read: saved.bytes_read,
            ..WrittenSnapshot::default()
        };
        self.look_after(work, repository, &mut written, cancel).await?;
        let totals = report::totals(saved.totals);
        let mut progress = progress(&meter, began);
        (progress.files_done, progress.bytes_done) = (totals.files, totals.bytes);
        (progress.files_total, progress.bytes_total) = (totals.files, totals.bytes);
        Ok(Report::Backup(BackupReport { progress, written: Some(written), problem: None }))
    }

    /// Retention and check after a backup. The snapshot stands: what cannot be done now is only remarked.
    async fn look_after(
        &self,
        work: &BackupWork,
        repository: Target,
        written: &mut WrittenSnapshot,
        cancel: &CancellationToken,
    ) -> Result<(), Trouble> {
        if let Some(keep) = work.retention.clone() {
            let pruned = with_repository(repository.clone(), cancel, move |open| open.prune(&retention(&keep))).await;
            match pruned.map_err(Trouble::from) {
                Ok(forgotten) => written.forgotten = forgotten as u64,
                Err(Trouble::Cancelled) => return Err(Trouble::Cancelled),
                Err(Trouble::Problem(problem)) => {
                    written.remark = format!("retention is not applied: {}: {}", problem.reason, problem.message);
                }
            }
        }
        if work.check {
            match with_repository(repository, cancel, |open| open.check(false)).await.map_err(Trouble::from) {
                Ok(checked) => written.check_problems = Some(checked.problems),
                Err(Trouble::Cancelled) => return Err(Trouble::Cancelled),
                Err(Trouble::Problem(problem)) => {
                    written.remark.push_str(&format!("not checked: {}: {}", problem.reason, problem.message));
                }
            }
        }
        Ok(())
    }

    pub(super) async fn restore(
        &self,
        id: &str,
        generation: u64,
        work: &RestoreWork,
        secrets: &Secrets,
        cancel: &CancellationToken,
    ) -> Result<Report, Trouble> {
        let place = work.copy.sources.first().ok_or(Trouble::Cancelled)?;
        let job = Restore {
            id: work.copy.operation.clone(),
            repository: target(place, secrets)?,
            snapshot: work.snapshot.clone(),
            dataset: Dataset { namespace: work.origin.0.clone(), name: work.origin.1.clone() },
            paths: work.paths.iter().map(|path| locate::path(path)).collect::<Result<_, _>>()?,
            target: locate::location(&work.copy.target, secrets)?,
            streams: usize::try_from(work.copy.streams.max(1)).unwrap_or(usize::MAX),
            memory: Some(self.peers.memory.of_a_copy()),
        };
        let progress = watch::Sender::new(Progress::default());
        let news = progress.subscribe();
        let context = CopyContext::new(self.journal.clone(), self.blocks.clone(), progress, cancel.clone());
        let copy = async {
            let _turn = self.copies.acquire().await.map_err(|_| Trouble::Cancelled)?;
            Box::pin(restore(job, context)).await.map_err(Trouble::from)
        };
        let restored = self.follow_copy((id, generation), news, copy, unfinished).await?;
        blocks::push(&self.link, &self.ledger, &self.blocks, restored.copy.root).await?;
        Ok(Report::Restore(RestoreReport {
            copy: report::copied(&restored.copy),
            snapshot: Some(told(restored.snapshot)),
            catalog: restored.entry.map(|entry| entry.catalog.to_string()),
        }))
    }

    pub(super) async fn repository(
        &self,
        work: &RepositoryWork,
        secrets: &Secrets,
        cancel: &CancellationToken,
    ) -> Result<Report, Trouble> {
        let place = target(&work.place, secrets)?;
        let task = work.task.clone();
        if let RepositoryTask::List { create: true } = task {
            let (place, handle, cancel) = (place.clone(), Handle::current(), cancel.clone());
            blocking(move || Repository::create(&place, &handle, cancel)).await?;
        }
        let done = with_repository(place, cancel, move |open| {
            let problems = match task {
                RepositoryTask::List { .. } => None,
                RepositoryTask::Check { read_data } => Some(open.check(read_data)?.problems),
                RepositoryTask::Prune { retention: keep } => {
                    open.prune(&keep.as_ref().map(retention).unwrap_or_default())?;
                    None
                }
            };
            Ok((problems, open.snapshots()))
        });
        let (problems, found) = done.await?;
        // What a check found wrong may be the reason why they cannot be listed.
        let found = match found {
            Err(_) if problems.as_ref().is_some_and(|problems| !problems.is_empty()) => (Vec::new(), 0),
            found => found?,
        };
        let newest = found.0.into_iter().map(told).collect();
        let found = Some(FoundSnapshots { newest, count: found.1 as u64 });
        Ok(Report::Repository(RepositoryReport { request: work.request.clone(), found, problems, problem: None }))
    }
}

/// A repository's place and password.
fn target(endpoint: &Endpoint, secrets: &Secrets) -> Result<Target, Trouble> {
    let mut location = locate::location(endpoint, secrets)?;
    let password = location.secrets.remove(REPOSITORY_PASSWORD).unwrap_or_else(|| SecretString::from(""));
    Ok(Target { location, password })
}

async fn with_repository<T: Send + 'static>(
    target: Target,
    cancel: &CancellationToken,
    call: impl FnOnce(&Repository) -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    // Dropped with the work, it tells the threads of the library to end.
    let cancel = cancel.child_token();
    let _guard = cancel.clone().drop_guard();
    let handle = Handle::current();
    blocking(move || call(&Repository::open(&target, &handle, cancel)?)).await
}

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    let cancelled = |_| fluvial_transfer::TransferError::Cancelled { op: "use a repository" };
    tokio::task::spawn_blocking(call).await.map_err(cancelled)?
}

fn retention(keep: &Retention) -> fluvial_backup::Retention {
    fluvial_backup::Retention {
        last: keep.keep_last,
        hourly: keep.keep_hourly,
        daily: keep.keep_daily,
        weekly: keep.keep_weekly,
        monthly: keep.keep_monthly,
        yearly: keep.keep_yearly,
        within: keep.within(),
    }
}

fn told(snapshot: Snapshot) -> SnapshotInfo {
    SnapshotInfo {
        id: snapshot.id,
        time: snapshot.time,
        dataset: snapshot.dataset.map(|it| format!("{}/{}", it.namespace, it.name)).unwrap_or_default(),
        root: snapshot.root.unwrap_or_default(),
        files: snapshot.files,
        bytes: snapshot.bytes,
        added_bytes: snapshot.added_bytes,
        host: snapshot.host,
        paths: snapshot.paths,
    }
}

#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn progress(meter: &Meter, began: Instant) -> kinds::Progress {
    let [files_done, bytes_done, files_total, bytes_total] = meter.now();
    let seconds = began.elapsed().as_secs_f64();
    let rate = if seconds > 0.0 { bytes_done as f64 / seconds } else { 0.0 };
    let rest = bytes_total.saturating_sub(bytes_done) as f64;
    let eta_seconds = (rate > 0.0 && rest > 0.0).then(|| rest / rate);
    kinds::Progress { files_done, files_total, bytes_done, bytes_total, bytes_per_second: rate, eta_seconds }
}
