//! ③⑧ Reconciles a migration: hands the work to an agent, follows its reports, and cuts over.

use fluvial_model::desired::{MigrateWork, ServeWork, Work};
use fluvial_model::kinds::core::{EventSource, ObjectReference};
use fluvial_model::kinds::{DataMigrate, Event, OperationPhase};
use fluvial_model::meta::ObjectMeta;
use fluvial_model::migration::{self, Facts, Next};
use fluvial_model::report::{MigrateReport, Problem, Report, ServeReport};
use fluvial_model::resource::Resource;

use super::PlannerContext;
use super::apply::Change;
use super::mirror::{Mirror, Named};
use crate::clock::fresh_uid;
use crate::objects::ObjectError;

pub(super) async fn reconcile(context: &PlannerContext, mirror: &mut Mirror, key: &Named) -> Result<(), ObjectError> {
    let Some(at) = mirror.migrates.get(key).cloned() else {
        return withdraw_orphans(context, mirror, key).await;
    };
    let mut operation = at.value;
    let assigned = assignment_of(mirror, &operation.metadata.uid);
    let next = decide(context, mirror, &operation, assigned.as_ref());
    let mut change = Change::default();
    let deleting = operation.metadata.deletion_timestamp.is_some();
    let before = operation.status.clone().unwrap_or_default();
    if deleting && next.release {
        operation.metadata.finalizers.retain(|f| f != fluvial_model::kinds::datamigrate::MIGRATE_FINALIZER);
    }
    if deleting && operation.metadata.finalizers.is_empty() {
        change.delete(operation.key(), at.revision);
    } else if next.status != before || (deleting && next.release) {
        operation.status = Some(next.status.clone());
        change.put(context, &operation, Some(at.revision))?;
    }
    if let (Some(cut_over), Some((namespace, name))) = (&next.cut_over, operation.dataset()) {
        let named = (namespace.to_owned(), name.to_owned());
        let Some(dataset) = mirror.datasets.get(&named).cloned() else { return Ok(()) };
        let mut object = dataset.value;
        let mut status = object.status.unwrap_or_default();
        status.homes = cut_over.homes.clone();
        status.root = Some(cut_over.version.root.clone());
        status.digested = cut_over.version.digested;
        status.files = cut_over.version.totals.files;
        status.directories = cut_over.version.totals.directories;
        status.total_bytes = cut_over.version.totals.bytes;
        object.status = Some(status);
        change.put(context, &object, Some(dataset.revision))?;
    }
    let held = assigned.as_ref().map(|(cluster, work)| (cluster.clone(), Work::Migrate(work.clone()).id()));
    match &next.assignment {
        Some((cluster, work)) => {
            let work = Work::Migrate(work.clone());
            let known = mirror.assignments.get(&(cluster.clone(), work.id()));
            change.assign(cluster, &work, known)?;
        }
        None => {
            if let Some((cluster, id)) = &held {
                change.withdraw(mirror, cluster, id);
            }
        }
    }
    serve(&mut change, mirror, &operation.metadata.uid, next.serving.as_ref())?;
    if before.phase != next.status.phase
        && let Some(event) = event(context, &operation, next.status.phase, &next.status.message)
    {
        change.put(context, &event, None)?;
    }
    change.commit(context).await?;
    Ok(())
}

/// Has the right agent, and no other, serve the operation's sources.
fn serve(
    change: &mut Change,
    mirror: &Mirror,
    operation: &str,
    wanted: Option<&(String, ServeWork)>,
) -> Result<(), ObjectError> {
    let wanted = wanted.map(|(cluster, work)| (cluster, Work::Serve(work.clone())));
    let wanted = wanted.map(|(cluster, work)| ((cluster.clone(), work.id()), work));
    for (key, _) in serving(mirror, operation).filter(|(key, _)| wanted.as_ref().is_none_or(|(named, _)| *key != named))
    {
        change.withdraw(mirror, &key.0, &key.1);
    }
    match &wanted {
        Some((key, work)) => change.assign(&key.0, work, mirror.assignments.get(key)),
        None => Ok(()),
    }
}

/// The assignments by which sources are served for an operation.
fn serving<'a>(mirror: &'a Mirror, operation: &'a str) -> impl Iterator<Item = (&'a Named, &'a ServeWork)> {
    mirror.assignments.iter().filter_map(move |(key, at)| match &at.value {
        Work::Serve(work) if work.operation == operation => Some((key, work)),
        _ => None,
    })
}

/// Why sources are not served, if their agent says so.
fn not_served<'a>(mirror: &'a Mirror, operation: &'a str) -> Option<&'a Problem> {
    serving(mirror, operation).find_map(|(key, _)| match &mirror.reports.get(key)?.value.report {
        Report::Serve(ServeReport { problem }) => problem.as_ref(),
        _ => None,
    })
}

/// The cluster and the work of an operation, if any agent has it.
fn assignment_of(mirror: &Mirror, operation: &str) -> Option<(String, MigrateWork)> {
    mirror.assignments.iter().find_map(|((cluster, _), at)| match &at.value {
        Work::Migrate(work) if work.operation == operation => Some((cluster.clone(), work.clone())),
        _ => None,
    })
}

fn decide(
    context: &PlannerContext,
    mirror: &Mirror,
    operation: &DataMigrate,
    assigned: Option<&(String, MigrateWork)>,
) -> Next {
    let dataset = operation.dataset().map(|(ns, name)| (ns.to_owned(), name.to_owned()));
    let earlier = dataset.as_ref().and_then(|dataset| {
        let first = mirror.migrations_of(dataset).into_iter().find(|m| !m.spec.dry_run)?;
        (first.metadata.uid != operation.metadata.uid && !operation.spec.dry_run).then(|| first.metadata.name.clone())
    });
    let report: Option<&MigrateReport> = assigned.and_then(|(cluster, work)| {
        let id = Work::Migrate(work.clone()).id();
        match &mirror.reports.get(&(cluster.clone(), id))?.value.report {
            Report::Migrate(report) => Some(report),
            _ => None,
        }
    });
    migration::step(&Facts {
        operation,
        dataset: dataset.and_then(|named| mirror.datasets.get(&named)).map(|at| &at.value),
        storages: &mirror.storages,
        clusters: &mirror.clusters,
        links: &mirror.links,
        earlier: earlier.as_deref(),
        assigned: assigned.map(|(cluster, work)| (cluster.as_str(), work)),
        report,
        not_served: not_served(mirror, &operation.metadata.uid),
        now: context.clock.now(),
    })
}

/// Work of operations that were deleted by force: their agents stop and clean up.
async fn withdraw_orphans(context: &PlannerContext, mirror: &Mirror, key: &Named) -> Result<(), ObjectError> {
    let mut change = Change::default();
    for ((cluster, id), at) in &mirror.assignments {
        let operation = match &at.value {
            Work::Migrate(work) => Some(&work.operation),
            Work::Serve(work) => Some(&work.operation),
            _ => None,
        };
        if let Some(operation) = operation
            && at.value.dataset().namespace == key.0
            && !mirror.migrates.values().any(|m| m.value.metadata.uid == *operation)
        {
            change.withdraw(mirror, cluster, id);
        }
    }
    change.commit(context).await?;
    Ok(())
}

/// What `describe` shows of a change of phase.
pub(super) fn event<R: Resource>(
    context: &PlannerContext,
    operation: &R,
    phase: OperationPhase,
    message: &str,
) -> Option<Event> {
    let bad = matches!(phase, OperationPhase::Failed);
    let operation = operation.meta();
    let now = context.clock.now();
    let short: String = operation.uid.chars().take(8).collect();
    let name = format!("{}.{short}.{}", operation.name, phase.as_str().to_ascii_lowercase());
    (phase != OperationPhase::Pending).then(|| Event {
        api_version: Event::INFO.api_version(),
        kind: Event::INFO.kind.to_owned(),
        metadata: ObjectMeta {
            name,
            namespace: operation.namespace.clone(),
            uid: fresh_uid(),
            creation_timestamp: Some(now),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: R::INFO.api_version(),
            kind: R::INFO.kind.to_owned(),
            namespace: operation.namespace.clone(),
            name: operation.name.clone(),
            uid: operation.uid.clone(),
            ..ObjectReference::default()
        },
        reason: phase.as_str().to_owned(),
        message: message.to_owned(),
        event_type: if bad { "Warning" } else { "Normal" }.to_owned(),
        count: 1,
        first_timestamp: Some(now),
        last_timestamp: Some(now),
        source: EventSource { component: "fluvial-hub".to_owned(), host: String::new() },
        ..Event::default()
    })
}
