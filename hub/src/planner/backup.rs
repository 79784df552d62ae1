//! ③⑧ Reconciles backups, restores and their repositories: hands the work to agents and follows their reports.

use fluvial_model::backup::{self, repository, restore};
use fluvial_model::desired::{BackupWork, RepositoryWork, RestoreWork, Work};
use fluvial_model::kinds::datarestore::RESTORE_FINALIZER;
use fluvial_model::kinds::{OperationPhase, Placement};
use fluvial_model::report::Report;
use fluvial_model::resource::Resource;

use super::PlannerContext;
use super::apply::Change;
use super::migrate::event;
use super::mirror::{Mirror, Named};
use crate::clock::fresh_uid;
use crate::objects::ObjectError;

pub(super) async fn reconcile(context: &PlannerContext, mirror: &mut Mirror, key: &Named) -> Result<(), ObjectError> {
    let Some(at) = mirror.backups.get(key).cloned() else {
        return withdraw_orphans(context, mirror, key).await;
    };
    let mut operation = at.value;
    let assigned = assigned(mirror, |work| match work {
        Work::Backup(work) if work.operation == operation.metadata.uid => Some(work.clone()),
        _ => None,
    });
    let dataset = (key.0.clone(), operation.spec.dataset.clone());
    let names_it = |p: &&Placement| p.metadata.namespace == key.0 && p.spec.datasets.names.contains(&dataset.1);
    let placements: Vec<&Placement> = mirror.placements.values().map(|at| &at.value).filter(names_it).collect();
    let report = assigned.as_ref().and_then(|(cluster, id, _)| match report(mirror, cluster, id)? {
        Report::Backup(report) => Some(report),
        _ => None,
    });
    let next = backup::step(&backup::Facts {
        operation: &operation,
        dataset: mirror.datasets.get(&dataset).map(|at| &at.value),
        repository: mirror.repositories.get(&operation.spec.repository).map(|at| &at.value),
        storages: &mirror.storages,
        clusters: &mirror.clusters,
        placements: &placements,
        assigned: assigned.as_ref().map(|(cluster, _, work)| (cluster.as_str(), work)),
        report,
        now: context.clock.now(),
    });
    let mut change = Change::default();
    let before = operation.status.clone().unwrap_or_default();
    if operation.metadata.deletion_timestamp.is_some() && operation.metadata.finalizers.is_empty() {
        change.delete(operation.key(), at.revision);
    } else if next.status != before {
        operation.status = Some(next.status.clone());
        change.put(context, &operation, Some(at.revision))?;
    }
    let held = assigned.as_ref().map(|(cluster, id, _)| (cluster.as_str(), id.as_str()));
    assign(&mut change, mirror, held, next.assignment.map(|(cluster, work)| (cluster, Work::Backup(work))))?;
    let (phase, message) = (next.status.operation.phase, &next.status.operation.message);
    tell(context, &mut change, &operation, before.operation.phase, phase, message)?;
    change.commit(context).await?;
    Ok(())
}

pub(super) async fn reconcile_restore(
    context: &PlannerContext,
    mirror: &mut Mirror,
    key: &Named,
) -> Result<(), ObjectError> {
    let Some(at) = mirror.restores.get(key).cloned() else {
        return withdraw_orphans(context, mirror, key).await;
    };
    let mut operation = at.value;
    let assigned = assigned(mirror, |work| match work {
        Work::Restore(work) if work.copy.operation == operation.metadata.uid => Some(work.clone()),
        _ => None,
    });
    let report = assigned.as_ref().and_then(|(cluster, id, _)| match report(mirror, cluster, id)? {
        Report::Restore(report) => Some(report),
        _ => None,
    });
    let dataset = mirror.datasets.get(&(key.0.clone(), operation.spec.dataset.clone()));
    let next = restore::step(&restore::Facts {
        operation: &operation,
        dataset: dataset.map(|at| &at.value),
        repository: mirror.repositories.get(&operation.spec.repository).map(|at| &at.value),
        storages: &mirror.storages,
        clusters: &mirror.clusters,
        assigned: assigned.as_ref().map(|(cluster, _, work)| (cluster.as_str(), work)),
        report,
        now: context.clock.now(),
    });
    let mut change = Change::default();
    let deleting = operation.metadata.deletion_timestamp.is_some();
    let before = operation.status.clone().unwrap_or_default();
    if deleting && next.release {
        operation.metadata.finalizers.retain(|finalizer| finalizer != RESTORE_FINALIZER);
    }
    if deleting && operation.metadata.finalizers.is_empty() {
        change.delete(operation.key(), at.revision);
    } else if next.status != before || (deleting && next.release) {
        operation.status = Some(next.status.clone());
        change.put(context, &operation, Some(at.revision))?;
    }
    if let Some(mut filled) = next.dataset {
        if dataset.is_none() {
            filled.metadata.uid = fresh_uid();
        }
        change.put(context, &filled, dataset.map(|at| at.revision))?;
    }
    let held = assigned.as_ref().map(|(cluster, id, _)| (cluster.as_str(), id.as_str()));
    assign(&mut change, mirror, held, next.assignment.map(|(cluster, work)| (cluster, Work::Restore(work))))?;
    let (phase, message) = (next.status.operation.phase, &next.status.operation.message);
    tell(context, &mut change, &operation, before.operation.phase, phase, message)?;
    change.commit(context).await?;
    Ok(())
}

pub(super) async fn reconcile_repository(
    context: &PlannerContext,
    mirror: &mut Mirror,
    name: &str,
) -> Result<(), ObjectError> {
    let own = |work: &Work| match work {
        Work::Repository(work) if work.repository.name == name => Some(work.clone()),
        _ => None,
    };
    let held: Option<(String, String, RepositoryWork)> = assigned(mirror, own);
    let Some(at) = mirror.repositories.get(name).cloned() else {
        let mut change = Change::default();
        if let Some((cluster, id, _)) = &held {
            change.withdraw(mirror, cluster, id);
        }
        change.commit(context).await?;
        return Ok(());
    };
    let mut repository = at.value;
    let report = held.as_ref().and_then(|(cluster, id, _)| match report(mirror, cluster, id)? {
        Report::Repository(report) => Some(report),
        _ => None,
    });
    let ended = mirror.backups.values().filter(|backup| backup.value.spec.repository == name);
    let next = repository::step(&repository::Facts {
        repository: &repository,
        clusters: &mirror.clusters,
        last_backup: ended.filter_map(|backup| backup.value.status.as_ref()?.operation.finished_time).max(),
        assigned: held.as_ref().map(|(cluster, _, work)| (cluster.as_str(), work)),
        report,
        now: context.clock.now(),
    });
    let mut change = Change::default();
    if next.status != repository.status.clone().unwrap_or_default() {
        repository.status = Some(next.status);
        change.put(context, &repository, Some(at.revision))?;
    }
    let held = held.as_ref().map(|(cluster, id, _)| (cluster.as_str(), id.as_str()));
    assign(&mut change, mirror, held, next.assignment.map(|(cluster, work)| (cluster, Work::Repository(work))))?;
    change.commit(context).await?;
    Ok(())
}

/// The assignment that `own` knows: its cluster, its id, and the work.
fn assigned<T>(mirror: &Mirror, own: impl Fn(&Work) -> Option<T>) -> Option<(String, String, T)> {
    mirror.assignments.iter().find_map(|((cluster, id), at)| Some((cluster.clone(), id.clone(), own(&at.value)?)))
}

fn report<'a>(mirror: &'a Mirror, cluster: &str, id: &str) -> Option<&'a Report> {
    mirror.reports.get(&(cluster.to_owned(), id.to_owned())).map(|at| &at.value.report)
}

/// What is held becomes what is wanted.
fn assign(
    change: &mut Change,
    mirror: &Mirror,
    held: Option<(&str, &str)>,
    wanted: Option<(String, Work)>,
) -> Result<(), ObjectError> {
    if let Some((cluster, id)) = held
        && wanted.as_ref().is_none_or(|(to, work)| to != cluster || work.id() != id)
    {
        change.withdraw(mirror, cluster, id);
    }
    if let Some((cluster, work)) = wanted {
        let known = mirror.assignments.get(&(cluster.clone(), work.id()));
        change.assign(&cluster, &work, known)?;
    }
    Ok(())
}

fn tell<R: Resource>(
    context: &PlannerContext,
    change: &mut Change,
    operation: &R,
    before: OperationPhase,
    phase: OperationPhase,
    message: &str,
) -> Result<(), ObjectError> {
    if before != phase
        && let Some(event) = event(context, operation, phase, message)
    {
        change.put(context, &event, None)?;
    }
    Ok(())
}

/// Work of operations that were deleted by force: their agents stop and clean up.
async fn withdraw_orphans(context: &PlannerContext, mirror: &Mirror, key: &Named) -> Result<(), ObjectError> {
    let mut change = Change::default();
    for ((cluster, id), at) in &mirror.assignments {
        let orphaned = match &at.value {
            Work::Backup(BackupWork { dataset, operation, .. }) => {
                dataset.namespace == key.0 && !mirror.backups.values().any(|b| b.value.metadata.uid == *operation)
            }
            Work::Restore(RestoreWork { copy, .. }) => {
                let lives = mirror.restores.values().any(|r| r.value.metadata.uid == copy.operation);
                copy.dataset.namespace == key.0 && !lives
            }
            _ => false,
        };
        if orphaned {
            change.withdraw(mirror, cluster, id);
        }
    }
    change.commit(context).await?;
    Ok(())
}
