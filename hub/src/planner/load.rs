//! ③⑧ Reconciles a load: hands the work to the agents of clusters that hold the dataset, and follows their reports.

use std::collections::{BTreeMap, BTreeSet};

use fluvial_model::desired::{CacheWork, LoadWork, Work};
use fluvial_model::kinds::{CacheLocationStatus, DataLoad};
use fluvial_model::loading::{self, Facts, Next};
use fluvial_model::report::{LoadReport, Report};
use fluvial_model::upkeep::rescan;

use super::PlannerContext;
use super::apply::Change;
use super::mirror::{Mirror, Named};
use crate::objects::ObjectError;

pub(super) async fn reconcile(context: &PlannerContext, mirror: &mut Mirror, key: &Named) -> Result<(), ObjectError> {
    let Some(at) = mirror.loads.get(key).cloned() else {
        return withdraw_orphans(context, mirror, key).await;
    };
    let mut operation = at.value;
    let assigned = assignments_of(mirror, &operation);
    let next = decide(context, mirror, &operation, &assigned);
    let mut change = Change::default();
    if operation.status.as_ref() != Some(&next.status) {
        operation.status = Some(next.status.clone());
        change.put(context, &operation, Some(at.revision))?;
    }
    if let Some(request) = next.rescan {
        let (namespace, name) = operation.dataset();
        if let Some(dataset) = mirror.datasets.get(&(namespace.to_owned(), name.to_owned())) {
            let mut object = dataset.value.clone();
            object.metadata.annotations.insert(rescan::REQUESTED.to_owned(), request);
            change.put(context, &object, Some(dataset.revision))?;
        }
    }
    for (cluster, work) in &next.assignments {
        let work = Work::Load(work.clone());
        let known = mirror.assignments.get(&(cluster.clone(), work.id()));
        change.assign(cluster, &work, known)?;
    }
    for (cluster, work) in assigned.iter().filter(|(cluster, _)| !next.assignments.contains_key(*cluster)) {
        change.withdraw(mirror, cluster, &Work::Load(work.clone()).id());
    }
    change.commit(context).await?;
    Ok(())
}

/// The work of an operation, by cluster.
fn assignments_of(mirror: &Mirror, operation: &DataLoad) -> BTreeMap<String, LoadWork> {
    let of = |((cluster, _), at): (&Named, &super::mirror::At<Work>)| match &at.value {
        Work::Load(work) if work.operation == operation.metadata.uid => Some((cluster.clone(), work.clone())),
        _ => None,
    };
    mirror.assignments.iter().filter_map(of).collect()
}

fn decide(
    context: &PlannerContext,
    mirror: &Mirror,
    operation: &DataLoad,
    assigned: &BTreeMap<String, LoadWork>,
) -> Next {
    let (namespace, name) = operation.dataset();
    let dataset = mirror.datasets.get(&(namespace.to_owned(), name.to_owned())).map(|at| &at.value);
    let clusters: BTreeSet<String> = mirror.clusters.keys().cloned().collect();
    let mut caches: BTreeMap<String, &CacheWork> = BTreeMap::new();
    let mut held: BTreeMap<String, CacheLocationStatus> = BTreeMap::new();
    let mut reports: BTreeMap<String, &LoadReport> = BTreeMap::new();
    for cluster in &clusters {
        let uid = dataset.map_or("", |dataset| dataset.metadata.uid.as_str());
        let cache = (cluster.clone(), format!("cache/{namespace}/{name}/{uid}"));
        if let Some(Work::Cache(work)) = mirror.assignments.get(&cache).map(|at| &at.value) {
            caches.insert(cluster.clone(), work);
        }
        let location = mirror.locations.get(&(namespace.to_owned(), format!("{name}.{cluster}")));
        if let Some(status) = location.and_then(|at| at.value.status.clone()) {
            held.insert(cluster.clone(), status);
        }
        let report = assigned
            .get(cluster)
            .and_then(|work| mirror.reports.get(&(cluster.clone(), Work::Load(work.clone()).id())));
        if let Some(Report::Load(report)) = report.map(|at| &at.value.report) {
            reports.insert(cluster.clone(), report);
        }
    }
    let now = context.clock.now();
    loading::step(&Facts {
        operation,
        dataset,
        clusters: &clusters,
        caches: &caches,
        held: &held,
        assigned,
        reports: &reports,
        now,
    })
}

/// Work of operations that were deleted: their agents stop.
async fn withdraw_orphans(context: &PlannerContext, mirror: &Mirror, key: &Named) -> Result<(), ObjectError> {
    let mut change = Change::default();
    for ((cluster, id), at) in &mirror.assignments {
        if let Work::Load(work) = &at.value
            && work.dataset.namespace == key.0
            && !mirror.loads.values().any(|load| load.value.metadata.uid == work.operation)
        {
            change.withdraw(mirror, cluster, id);
        }
    }
    change.commit(context).await?;
    Ok(())
}
