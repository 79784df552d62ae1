//! ③⑧ Reconciles a dataset: its scans, caches and removals, its status, and its CacheLocations.

use std::collections::{BTreeMap, BTreeSet};

use fluvial_model::kinds::{CacheLocation, Dataset, DatasetMount, DatasetMountStatus, Placement};
use fluvial_model::placement::{Decision, chooses};
use fluvial_model::report::StoredReport;
use fluvial_model::resource::Resource;
use fluvial_model::upkeep::{self, Facts, Next};

use super::PlannerContext;
use super::apply::Change;
use super::mirror::{At, Mirror, Named};
use crate::clock::fresh_uid;
use crate::objects::ObjectError;

pub(super) async fn reconcile(context: &PlannerContext, mirror: &mut Mirror, key: &Named) -> Result<(), ObjectError> {
    let own = mirror.work.of(key);
    let Some(at) = mirror.datasets.get(key).cloned() else {
        let mut change = Change::default();
        for (cluster, id) in &own {
            change.withdraw(mirror, cluster, id);
        }
        retire_locations(&mut change, mirror, key, &BTreeSet::new());
        for at in mounts_of(mirror, key) {
            let message = format!("there is no dataset \"{}\" in namespace \"{}\"", key.1, key.0);
            let generation = at.value.metadata.generation;
            put_mount(
                context,
                &mut change,
                at,
                DatasetMountStatus { observed_generation: generation, message, ..Default::default() },
            )?;
        }
        change.commit_for(context, Dataset::INFO.key(&key.0, &key.1), None).await?;
        return Ok(());
    };
    let mut dataset = at.value;
    let next = decide(context, mirror, key, &own);
    let mut change = Change::default();
    let previous = dataset.status.clone().unwrap_or_default();
    if next.status != previous {
        dataset.status = Some(next.status.clone());
        change.put(context, &dataset, Some(at.revision))?;
    } else {
        change.rests_on(dataset.key(), Some(at.revision));
    }
    let mut wanted = BTreeSet::new();
    for (cluster, work) in &next.assignments {
        let named = (cluster.clone(), work.0.id());
        change.assign(cluster, &work.0, mirror.assignments.get(&named))?;
        wanted.insert(named);
    }
    for (cluster, id) in own.difference(&wanted) {
        change.withdraw(mirror, cluster, id);
    }
    for at in mounts_of(mirror, key) {
        if let Some(status) = next.mounts.get(&at.value.metadata.name) {
            put_mount(context, &mut change, at, status.clone())?;
        }
    }
    let mut located = BTreeSet::new();
    for location in &next.cache_locations {
        located.insert((key.0.clone(), location.metadata.name.clone()));
        put_location(context, &mut change, mirror, location)?;
    }
    retire_locations(&mut change, mirror, key, &located);
    change.commit_for(context, dataset.key(), Some(at.revision)).await?;
    Ok(())
}

fn decide(context: &PlannerContext, mirror: &Mirror, key: &Named, own: &BTreeSet<Named>) -> Next {
    let dataset = &mirror.datasets[key].value;
    let placements: Vec<(&Placement, &Decision)> = mirror
        .placements
        .range((key.0.clone(), String::new())..)
        .take_while(|(named, _)| named.0 == key.0)
        .filter(|(_, p)| chooses(&p.value.spec.datasets, dataset))
        .filter_map(|(named, p)| Some((&p.value, mirror.decisions.get(named)?)))
        .collect();
    let reports: BTreeMap<Named, StoredReport> =
        own.iter().filter_map(|named| Some((named.clone(), mirror.reports.get(named)?.value.clone()))).collect();
    let migrations: Vec<String> =
        mirror.migrations_of(key).into_iter().filter(|m| !m.spec.dry_run).map(|m| m.metadata.name.clone()).collect();
    let mounts: Vec<&DatasetMount> = mounts_of(mirror, key).map(|at| &at.value).collect();
    upkeep::plan(&Facts {
        dataset,
        storages: &mirror.storages,
        clusters: &mirror.clusters,
        placements: &placements,
        reports: &reports,
        migrations: &migrations,
        mounts: &mounts,
        now: context.clock.now(),
    })
}

fn mounts_of<'a>(mirror: &'a Mirror, key: &'a Named) -> impl Iterator<Item = &'a At<DatasetMount>> {
    let from = mirror.mounts.range((key.0.clone(), String::new())..);
    from.take_while(|(named, _)| named.0 == key.0).map(|(_, at)| at).filter(|at| at.value.spec.dataset == key.1)
}

/// Writes how a mount stands unless that is what is written already.
fn put_mount(
    context: &PlannerContext,
    change: &mut Change,
    at: &At<DatasetMount>,
    status: DatasetMountStatus,
) -> Result<(), ObjectError> {
    if at.value.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let object = DatasetMount { status: Some(status), ..at.value.clone() };
    change.put(context, &object, Some(at.revision))
}

/// Writes a location unless it says what is written already; the time of the report alone is no news.
fn put_location(
    context: &PlannerContext,
    change: &mut Change,
    mirror: &Mirror,
    location: &CacheLocation,
) -> Result<(), ObjectError> {
    let named = (location.metadata.namespace.clone(), location.metadata.name.clone());
    let known = mirror.locations.get(&named);
    let timeless = |location: &CacheLocation| {
        let mut status = location.status.clone().unwrap_or_default();
        status.reported_time = None;
        status
    };
    if known.is_some_and(|at| timeless(&at.value) == timeless(location)) {
        return Ok(());
    }
    let mut object = location.clone();
    match known {
        Some(at) => object.metadata = at.value.metadata.clone(),
        None => {
            object.metadata.uid = fresh_uid();
            object.metadata.generation = 1;
            object.metadata.creation_timestamp = Some(context.clock.now());
        }
    }
    change.put(context, &object, known.map(|at| at.revision))
}

fn retire_locations(change: &mut Change, mirror: &Mirror, key: &Named, keep: &BTreeSet<Named>) {
    let from = (key.0.clone(), format!("{}.", key.1));
    for (named, at) in
        mirror.locations.range(from.clone()..).take_while(|(k, _)| k.0 == from.0 && k.1.starts_with(&from.1))
    {
        if at.value.spec.dataset == key.1 && !keep.contains(named) {
            change.delete(CacheLocation::INFO.key(&named.0, &named.1), at.revision);
        }
    }
}
