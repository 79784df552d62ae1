//! What the planner knows: typed copies of the objects, kept current by the store's events, and what they make dirty.
//!
//! Deliberately absent: decisions. An object that cannot be read is left out and logged: it must not stop the others.

use std::collections::{BTreeMap, BTreeSet};

use fluvial_model::desired::{Work, split_assignment_key};
use fluvial_model::kinds::{
    BackupRepository, CacheLocation, Cluster, DataBackup, DataLoad, DataMigrate, DataRestore, Dataset, DatasetMount,
    Link, OperationStatus, Placement, Storage,
};
use fluvial_model::placement::Decision;
use fluvial_model::report::{StoredReport, split_report_key};
use fluvial_model::resource::Resource;
use fluvial_model::store::{Event, KeyValue, Revision};
use fluvial_model::upkeep::rescan;
use fluvial_raft::{Consistency, ListRequest};
use jiff::Timestamp;
use tracing::warn;

use super::index::{self, WorkIndex};
use crate::objects::{ObjectError, Objects, Stored};

/// Namespace and name.
pub(super) type Named = (String, String);

/// A value and the revision it was read at.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) revision: Revision,
}

/// What must be looked at again.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    placements: BTreeSet<Named>,
    migrates: BTreeSet<Named>,
    loads: BTreeSet<Named>,
    datasets: BTreeSet<Named>,
    storages: BTreeSet<String>,
    clusters: BTreeSet<String>,
    backups: BTreeSet<Named>,
    restores: BTreeSet<Named>,
    repositories: BTreeSet<String>,
}

impl Dirty {
    pub(super) fn dataset(&mut self, key: Named) {
        self.datasets.insert(key);
    }
    pub(super) fn storage(&mut self, name: &str) {
        self.storages.insert(name.to_owned());
    }
    pub(super) fn cluster(&mut self, name: &str) {
        self.clusters.insert(name.to_owned());
    }
    pub(super) fn take_placements(&mut self) -> BTreeSet<Named> {
        std::mem::take(&mut self.placements)
    }
    pub(super) fn take_migrates(&mut self) -> BTreeSet<Named> {
        std::mem::take(&mut self.migrates)
    }
    pub(super) fn take_loads(&mut self) -> BTreeSet<Named> {
        std::mem::take(&mut self.loads)
    }
    pub(super) fn take_datasets(&mut self) -> BTreeSet<Named> {
        std::mem::take(&mut self.datasets)
    }
    pub(super) fn take_storages(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.storages)
    }
    pub(super) fn take_backups(&mut self) -> BTreeSet<Named> {
        std::mem::take(&mut self.backups)
    }
    pub(super) fn take_restores(&mut self) -> BTreeSet<Named> {
        std::mem::take(&mut self.restores)
    }
    pub(super) fn take_repositories(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.repositories)
    }
    pub(super) fn take_clusters(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.clusters)
    }
}

/// The planner's view of the store at `revision`.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    pub(super) revision: Revision,
    pub(super) datasets: BTreeMap<Named, At<Dataset>>,
    pub(super) migrates: BTreeMap<Named, At<DataMigrate>>,
    pub(super) backups: BTreeMap<Named, At<DataBackup>>,
    pub(super) restores: BTreeMap<Named, At<DataRestore>>,
    pub(super) repositories: BTreeMap<String, At<BackupRepository>>,
    pub(super) loads: BTreeMap<Named, At<DataLoad>>,
    pub(super) placements: BTreeMap<Named, At<Placement>>,
    pub(super) locations: BTreeMap<Named, At<CacheLocation>>,
    pub(super) mounts: BTreeMap<Named, At<DatasetMount>>,
    pub(super) storages: BTreeMap<String, Storage>,
    pub(super) storage_revisions: BTreeMap<String, Revision>,
    pub(super) clusters: BTreeMap<String, Cluster>,
    pub(super) links: BTreeMap<String, Link>,
    pub(super) cluster_revisions: BTreeMap<String, Revision>,
    /// By cluster and id.
    pub(super) assignments: BTreeMap<Named, At<Work>>,
    pub(super) reports: BTreeMap<Named, At<StoredReport>>,
    /// Both of them, by dataset.
    pub(super) work: WorkIndex,
    /// Datasets whose sources may have to be listed, now or later: the others need no look at every tick.
    waiting: BTreeSet<Named>,
    /// What each Placement chose, as last decided here.
    pub(super) decisions: BTreeMap<Named, Decision>,
    /// Homes and bytes that each dataset has in each Storage.
    pub(super) usage: BTreeMap<String, BTreeMap<Named, (u64, u64)>>,
    pub(super) dirty: Dirty,
}

impl Mirror {
    /// Everything there is, at one revision that no acknowledged write is newer than.
    pub(super) async fn load(objects: &Objects) -> Result<Self, ObjectError> {
        let mut mirror = Self::default();
        let mut request = ListRequest { prefix: "/".to_owned(), limit: Some(5_000), ..ListRequest::default() };
        loop {
            let listing = objects
                .store
                .list(request.clone())
                .await
                .map_err(|source| ObjectError::Store { key: "/".to_owned(), source })?;
            mirror.revision = listing.revision;
            for kv in &listing.items {
                mirror.put(objects, kv);
            }
            match listing.items.last() {
                Some(last) if listing.more => {
                    request.after = Some(last.key.clone());
                    request.revision = Some(listing.revision);
                    request.consistency = Consistency::Stale;
                }
                _ => return Ok(mirror),
            }
        }
    }

    /// Follows one event.
    pub(super) fn apply(&mut self, objects: &Objects, event: &Event) {
        self.revision = event.revision;
        match &event.value {
            Some(kv) => self.put(objects, kv),
            None => self.remove(&event.key),
        }
    }

    /// Everything is to be looked at, as after taking the lead.
    pub(super) fn mark_all(&mut self) {
        self.dirty.placements.extend(self.placements.keys().cloned());
        self.dirty.migrates.extend(self.migrates.keys().cloned());
        self.dirty.backups.extend(self.backups.keys().cloned());
        self.dirty.restores.extend(self.restores.keys().cloned());
        self.dirty.repositories.extend(self.repositories.keys().cloned());
        self.dirty.loads.extend(self.loads.keys().cloned());
        self.dirty.datasets.extend(self.datasets.keys().cloned());
        self.dirty.storages.extend(self.storages.keys().cloned());
        self.dirty.clusters.extend(self.clusters.keys().cloned());
        // What belongs to objects that were deleted while nobody led.
        let orphans: Vec<String> =
            self.assignments.keys().chain(self.reports.keys()).map(|(_, id)| id.clone()).collect();
        for id in orphans {
            self.mark_work(&id);
        }
        let located: Vec<Named> = self
            .locations
            .values()
            .map(|l| (l.value.metadata.namespace.clone(), l.value.spec.dataset.clone()))
            .collect();
        self.dirty.datasets.extend(located);
        let mounted: Vec<Named> =
            self.mounts.iter().map(|(named, at)| (named.0.clone(), at.value.spec.dataset.clone())).collect();
        self.dirty.datasets.extend(mounted);
    }

    /// Unfinished operations are looked at every tick: their waiting may be over, or a race was lost.
    pub(super) fn mark_unfinished(&mut self) {
        let unfinished = self.migrates.iter().filter(|(_, m)| !m.value.phase().is_final()).map(|(key, _)| key.clone());
        self.dirty.migrates.extend(unfinished);
        let unfinished = self.backups.iter().filter(|(_, b)| !finished(b.value.status.as_ref().map(|s| &s.operation)));
        self.dirty.backups.extend(unfinished.map(|(key, _)| key.clone()));
        let unfinished = self.restores.iter().filter(|(_, r)| !finished(r.value.status.as_ref().map(|s| &s.operation)));
        self.dirty.restores.extend(unfinished.map(|(key, _)| key.clone()));
        self.dirty.repositories.extend(self.repositories.keys().cloned());
        let loading = self.loads.iter().filter(|(_, load)| !load.value.phase().is_final()).map(|(key, _)| key.clone());
        self.dirty.loads.extend(loading);
        let leaving = self.clusters.iter().filter(|(_, c)| c.metadata.deletion_timestamp.is_some());
        self.dirty.clusters.extend(leaving.map(|(name, _)| name.clone()));
        let unlisted = |dataset: &Dataset| {
            dataset.status.as_ref().is_none_or(|s| s.observed_generation != dataset.metadata.generation)
        };
        let waiting = self.waiting.iter().filter(|key| self.datasets.get(*key).is_some_and(|d| unlisted(&d.value)));
        self.dirty.datasets.extend(waiting.cloned());
    }

    /// Datasets whose sources are to be listed now, and Placements whose choice time alone may change.
    pub(super) fn mark_due(&mut self, now: Timestamp) {
        let is_due = |key: &&Named| self.datasets.get(*key).is_some_and(|d| rescan::request(&d.value, now).is_some());
        self.dirty.datasets.extend(self.waiting.iter().filter(is_due).cloned());
        let again = self.decisions.iter().filter(|(_, decision)| decision.again.is_some_and(|at| at <= now));
        self.dirty.placements.extend(again.map(|(key, _)| key.clone()));
    }

    /// The unfinished migrations of a dataset, the oldest first.
    pub(super) fn migrations_of(&self, dataset: &Named) -> Vec<&DataMigrate> {
        let mut found: Vec<&DataMigrate> = self
            .migrates
            .range((dataset.0.clone(), String::new())..)
            .take_while(|(key, _)| key.0 == dataset.0)
            .map(|(_, m)| &m.value)
            .filter(|m| m.dataset().is_some_and(|(_, name)| name == dataset.1) && !m.phase().is_final())
            .collect();
        found.sort_by_key(|m| (m.metadata.creation_timestamp, m.metadata.uid.clone()));
        found
    }

    fn put(&mut self, objects: &Objects, kv: &KeyValue) {
        let key = kv.key.as_str();
        if let Some((cluster, id)) = split_assignment_key(key) {
            if let Some(value) = json(kv) {
                let (cluster, id) = (cluster.to_owned(), id.to_owned());
                self.mark_work(&id);
                self.work.note(&cluster, &id);
                self.dirty.cluster(&cluster);
                self.assignments.insert((cluster, id), At { value, revision: kv.mod_revision });
            }
        } else if let Some((cluster, id)) = split_report_key(key) {
            if let Some(value) = json(kv) {
                self.mark_work(id);
                self.work.note(cluster, id);
                self.reports.insert((cluster.to_owned(), id.to_owned()), At { value, revision: kv.mod_revision });
            }
        } else if key.starts_with(&Dataset::INFO.prefix()) {
            if let Some(at) = read::<Dataset>(objects, kv) {
                self.put_dataset(at);
            }
        } else if key.starts_with(&DataMigrate::INFO.prefix()) {
            if let Some(at) = read::<DataMigrate>(objects, kv) {
                let named = named(&at.value);
                self.mark_dataset_of(&at.value);
                self.dirty.migrates.insert(named.clone());
                self.migrates.insert(named, at);
            }
        } else if key.starts_with(&DataBackup::INFO.prefix()) {
            if let Some(at) = read::<DataBackup>(objects, kv) {
                let named = named(&at.value);
                self.dirty.repositories.insert(at.value.spec.repository.clone());
                self.dirty.backups.insert(named.clone());
                self.backups.insert(named, at);
            }
        } else if key.starts_with(&DataRestore::INFO.prefix()) {
            if let Some(at) = read::<DataRestore>(objects, kv) {
                let named = named(&at.value);
                self.dirty.restores.insert(named.clone());
                self.restores.insert(named, at);
            }
        } else if key.starts_with(&BackupRepository::INFO.prefix()) {
            if let Some(at) = read::<BackupRepository>(objects, kv) {
                let name = at.value.metadata.name.clone();
                self.dirty.repositories.insert(name.clone());
                self.repositories.insert(name, at);
            }
        } else if key.starts_with(&DataLoad::INFO.prefix()) {
            if let Some(at) = read::<DataLoad>(objects, kv) {
                let named = named(&at.value);
                self.dirty.loads.insert(named.clone());
                self.loads.insert(named, at);
            }
        } else if key.starts_with(&DatasetMount::INFO.prefix()) {
            if let Some(at) = read::<DatasetMount>(objects, kv) {
                let named = named(&at.value);
                self.dirty.dataset((named.0.clone(), at.value.spec.dataset.clone()));
                self.mounts.insert(named, at);
            }
        } else if key.starts_with(&Placement::INFO.prefix()) {
            if let Some(at) = read::<Placement>(objects, kv) {
                let named = named(&at.value);
                let wish_changed = self.placements.get(&named).is_none_or(|old| old.value.spec != at.value.spec);
                if wish_changed {
                    self.dirty.placements.insert(named.clone());
                    self.mark_namespace(&named.0);
                }
                self.placements.insert(named, at);
            }
        } else if key.starts_with(&Cluster::INFO.prefix()) {
            if let Some(at) = read::<Cluster>(objects, kv) {
                self.put_cluster(at);
            }
        } else if key.starts_with(&Storage::INFO.prefix()) {
            if let Some(at) = read::<Storage>(objects, kv) {
                let name = at.value.metadata.name.clone();
                if self.storages.get(&name).is_none_or(|old| old.spec != at.value.spec) {
                    self.mark_everything_placed();
                }
                self.dirty.storage(&name);
                self.storage_revisions.insert(name.clone(), at.revision);
                self.storages.insert(name, at.value);
            }
        } else if key.starts_with(&Link::INFO.prefix()) {
            if let Some(at) = read::<Link>(objects, kv) {
                self.links.insert(at.value.metadata.name.clone(), at.value);
            }
        } else if key.starts_with(&CacheLocation::INFO.prefix())
            && let Some(at) = read::<CacheLocation>(objects, kv)
        {
            self.locations.insert(named(&at.value), at);
        }
    }

    fn put_dataset(&mut self, at: At<Dataset>) {
        let named = named(&at.value);
        for (storage, uses) in &mut self.usage {
            if uses.remove(&named).is_some() {
                self.dirty.storages.insert(storage.clone());
            }
        }
        for home in at.value.status.iter().flat_map(|s| &s.homes) {
            let (homes, bytes) = self.usage.entry(home.storage.clone()).or_default().entry(named.clone()).or_default();
            *homes += 1;
            *bytes += home.bytes;
            self.dirty.storages.insert(home.storage.clone());
        }
        let waiting: Vec<Named> = self.migrations_of(&named).into_iter().map(self::named).collect();
        self.dirty.migrates.extend(waiting);
        self.dirty.dataset(named.clone());
        if self.datasets.get(&named).is_none_or(|old| old.value.metadata.labels != at.value.metadata.labels) {
            let placements = self.placements.keys().filter(|(ns, _)| *ns == named.0).cloned();
            self.dirty.placements.extend(placements);
        }
        if rescan::may_come(&at.value) {
            self.waiting.insert(named.clone());
        } else {
            self.waiting.remove(&named);
        }
        self.datasets.insert(named, at);
    }

    fn put_cluster(&mut self, at: At<Cluster>) {
        let name = at.value.metadata.name.clone();
        let steers = |c: &Cluster| {
            let address = c.status.as_ref().map(|status| status.address.clone());
            (c.state(), address, c.metadata.labels.clone(), c.spec.clone(), c.metadata.deletion_timestamp.is_some())
        };
        if self.clusters.get(&name).is_none_or(|old| steers(old) != steers(&at.value)) {
            self.mark_steered_by(&name);
        }
        self.dirty.cluster(&name);
        self.cluster_revisions.insert(name.clone(), at.revision);
        self.clusters.insert(name, at.value);
    }

    /// A cluster changed: every choice of clusters may, and what it has to do itself. Datasets follow where a choice is
    /// another one than before.
    fn mark_steered_by(&mut self, cluster: &str) {
        self.dirty.placements.extend(self.placements.keys().cloned());
        self.dirty.datasets.extend(self.waiting.iter().cloned());
        let mounted = self.mounts.iter().map(|(named, at)| (named.0.clone(), at.value.spec.dataset.clone()));
        self.dirty.datasets.extend(mounted);
        let from = (cluster.to_owned(), String::new());
        let work = self.assignments.range(from..).map(|(key, _)| key).take_while(|(of, _)| of == cluster);
        self.dirty.datasets.extend(work.filter_map(|(_, id)| index::owner(id)));
        self.mark_unfinished();
    }

    /// A Storage changed: every choice may.
    fn mark_everything_placed(&mut self) {
        self.dirty.placements.extend(self.placements.keys().cloned());
        self.dirty.datasets.extend(self.datasets.keys().cloned());
        self.mark_unfinished();
    }

    fn mark_namespace(&mut self, namespace: &str) {
        self.dirty.datasets.extend(self.datasets.keys().filter(|(ns, _)| ns == namespace).cloned());
    }

    fn mark_dataset_of(&mut self, operation: &DataMigrate) {
        if let Some((namespace, name)) = operation.dataset() {
            self.dirty.dataset((namespace.to_owned(), name.to_owned()));
        }
    }

    /// The owner of a piece of work is to be looked at. Ids begin with the kind of work and the dataset.
    fn mark_work(&mut self, id: &str) {
        let mut parts = id.split('/');
        let (Some(kind), Some(namespace), Some(name)) = (parts.next(), parts.next(), parts.next()) else { return };
        let dataset = (namespace.to_owned(), name.to_owned());
        match kind {
            "repository" => {
                self.dirty.repositories.insert(name.to_owned());
                return;
            }
            "backup" => self.dirty.backups.extend(
                self.backups
                    .iter()
                    .filter(|(_, b)| b.value.metadata.namespace == namespace && b.value.spec.dataset == name)
                    .map(|(key, _)| key.clone()),
            ),
            "restore" => self.dirty.restores.extend(
                self.restores
                    .iter()
                    .filter(|(_, r)| r.value.metadata.namespace == namespace && r.value.spec.dataset == name)
                    .map(|(key, _)| key.clone()),
            ),
            _ => {}
        }
        if kind == "migrate" || kind == "serve" {
            let operations = self.migrates.iter().filter(|(_, m)| m.value.dataset() == Some((namespace, name)));
            self.dirty.migrates.extend(operations.map(|(key, _)| key.clone()));
        }
        if kind == "load" {
            let operations = self.loads.iter().filter(|(_, load)| load.value.dataset() == (namespace, name));
            self.dirty.loads.extend(operations.map(|(key, _)| key.clone()));
            // It may be nobody's any more.
            self.dirty.loads.insert((namespace.to_owned(), String::new()));
            return;
        }
        self.dirty.dataset(dataset);
    }

    /// An assignment or a report is gone.
    fn forget_work(&mut self, cluster: &str, id: &str) {
        let key = (cluster.to_owned(), id.to_owned());
        if !self.assignments.contains_key(&key) && !self.reports.contains_key(&key) {
            self.work.forget(cluster, id);
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some((cluster, id)) = split_assignment_key(key) {
            self.assignments.remove(&(cluster.to_owned(), id.to_owned()));
            self.forget_work(cluster, id);
            self.dirty.cluster(cluster);
            self.mark_work(id);
            return;
        }
        if let Some((cluster, id)) = split_report_key(key) {
            self.reports.remove(&(cluster.to_owned(), id.to_owned()));
            self.forget_work(cluster, id);
            return;
        }
        let in_namespace = |prefix: String| {
            key.strip_prefix(&prefix)?.split_once('/').map(|(ns, name)| (ns.to_owned(), name.to_owned()))
        };
        if let Some(named) = in_namespace(Dataset::INFO.prefix()) {
            self.datasets.remove(&named);
            self.waiting.remove(&named);
            for (storage, uses) in &mut self.usage {
                if uses.remove(&named).is_some() {
                    self.dirty.storages.insert(storage.clone());
                }
            }
            self.dirty.dataset(named);
        } else if let Some(named) = in_namespace(DataMigrate::INFO.prefix()) {
            if let Some(gone) = self.migrates.remove(&named) {
                self.mark_dataset_of(&gone.value);
            }
            self.dirty.migrates.insert(named);
        } else if let Some(named) = in_namespace(DataBackup::INFO.prefix()) {
            self.backups.remove(&named);
            self.dirty.backups.insert(named);
        } else if let Some(named) = in_namespace(DataRestore::INFO.prefix()) {
            self.restores.remove(&named);
            self.dirty.restores.insert(named);
        } else if let Some(name) = key.strip_prefix(&BackupRepository::INFO.prefix()) {
            self.repositories.remove(name);
            self.dirty.repositories.insert(name.to_owned());
        } else if let Some(named) = in_namespace(DataLoad::INFO.prefix()) {
            self.loads.remove(&named);
            self.dirty.loads.insert(named);
        } else if let Some(named) = in_namespace(DatasetMount::INFO.prefix()) {
            if let Some(gone) = self.mounts.remove(&named) {
                self.dirty.dataset((named.0, gone.value.spec.dataset));
            }
        } else if let Some(named) = in_namespace(Placement::INFO.prefix()) {
            self.placements.remove(&named);
            self.decisions.remove(&named);
            self.mark_namespace(&named.0);
        } else if let Some(named) = in_namespace(CacheLocation::INFO.prefix()) {
            if let Some(gone) = self.locations.remove(&named) {
                self.dirty.dataset((named.0, gone.value.spec.dataset));
            }
        } else if let Some(name) = key.strip_prefix(&Cluster::INFO.prefix()) {
            self.clusters.remove(name);
            self.cluster_revisions.remove(name);
            self.mark_steered_by(name);
        } else if let Some(name) = key.strip_prefix(&Link::INFO.prefix()) {
            self.links.remove(name);
        } else if let Some(name) = key.strip_prefix(&Storage::INFO.prefix()) {
            self.storages.remove(name);
            self.storage_revisions.remove(name);
            self.mark_everything_placed();
        }
    }
}

/// Whether an operation has ended.
fn finished(status: Option<&OperationStatus>) -> bool {
    status.is_some_and(|status| status.phase.is_final())
}

fn named<R: Resource>(object: &R) -> Named {
    (object.meta().namespace.clone(), object.meta().name.clone())
}

fn read<R: Resource>(objects: &Objects, kv: &KeyValue) -> Option<At<R>> {
    match objects.decode::<R>(kv) {
        Ok(Stored { object, revision }) => Some(At { value: object, revision }),
        Err(error) => {
            warn!(key = kv.key, error = %fluvial_model::causes::chain(&error), "left out of planning");
            None
        }
    }
}

fn json<T: serde::de::DeserializeOwned>(kv: &KeyValue) -> Option<T> {
    match serde_json::from_slice(&kv.value) {
        Ok(value) => Some(value),
        Err(error) => {
            warn!(key = kv.key, %error, "left out of planning");
            None
        }
    }
}
