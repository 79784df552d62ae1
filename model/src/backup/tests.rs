//! Backups, restores and the upkeep of repositories, transition by transition.

use super::*;
use crate::desired::{RepositoryTask, RestoreWork};
use crate::kinds::backuprepository::{CHECK_REQUESTED, PRUNE_REQUESTED};
use crate::kinds::{
    BackupRepositorySpec, ClusterSpec, ClusterStatus, DataBackupSpec, DataRestore, DataRestoreSpec, DatasetSpec,
    DatasetStatus, HomeState, MemberDirectory, Mount, SnapshotInfo,
};
use crate::meta::ConditionStatus;
use crate::report::{
    FoundSnapshots, MigratePhase, MigrateReport, Problem, RepositoryReport, RestoreReport, Totals, Version,
    WrittenSnapshot,
};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

struct World {
    dataset: Dataset,
    repository: BackupRepository,
    storages: BTreeMap<String, Storage>,
    clusters: BTreeMap<String, Cluster>,
}

fn world(repository: &str, cluster: &str) -> World {
    let mount = Mount { mount_point: "file:///src".into(), path: "/".into(), ..Mount::default() };
    let mut dataset = Dataset::new("team", "d", DatasetSpec { mounts: vec![mount], ..DatasetSpec::default() });
    dataset.metadata.uid = "dataset-uid".into();
    dataset.metadata.generation = 1;
    dataset.metadata.labels.insert("kind".into(), "text".into());
    dataset.status = Some(DatasetStatus {
        observed_generation: 1,
        root: Some("listed".into()),
        total_bytes: 100,
        files: 2,
        source_cluster: Some("a".into()),
        ..DatasetStatus::default()
    });
    let password_secret_ref = SecretKeySelector { name: "s".into(), key: "k".into(), namespace: String::new() };
    let spec = BackupRepositorySpec {
        uri: repository.into(),
        cluster: cluster.into(),
        password_secret_ref,
        create: true,
        ..BackupRepositorySpec::default()
    };
    let clusters = ["a", "b"].map(|name| {
        let mut cluster = Cluster::new("", name, ClusterSpec::default());
        cluster.status = Some(ClusterStatus { state: ClusterState::Ready, ..ClusterStatus::default() });
        (name.to_owned(), cluster)
    });
    let storage = StorageSpec { uri: "file:///homes".into(), cluster: "b".into(), ..StorageSpec::default() };
    World {
        dataset,
        repository: BackupRepository::new("", "r", spec),
        storages: BTreeMap::from([("st".to_owned(), Storage::new("", "st", storage))]),
        clusters: BTreeMap::from(clusters),
    }
}

fn operation() -> DataBackup {
    let spec = DataBackupSpec { dataset: "d".into(), repository: "r".into(), ..DataBackupSpec::default() };
    let mut operation = DataBackup::new("team", "b", spec);
    operation.metadata.uid = "0123456789abcdef".into();
    operation
}

impl World {
    fn backup(
        &self,
        operation: &DataBackup,
        assigned: Option<(&str, &BackupWork)>,
        report: Option<&BackupReport>,
    ) -> Next {
        step(&Facts {
            operation,
            dataset: Some(&self.dataset),
            repository: Some(&self.repository),
            storages: &self.storages,
            clusters: &self.clusters,
            placements: &[],
            assigned,
            report,
            now: NOW,
        })
    }

    fn restore(
        &self,
        operation: &DataRestore,
        dataset: Option<&Dataset>,
        assigned: Option<(&str, &RestoreWork)>,
        report: Option<&RestoreReport>,
    ) -> restore::Next {
        restore::step(&restore::Facts {
            operation,
            dataset,
            repository: Some(&self.repository),
            storages: &self.storages,
            clusters: &self.clusters,
            assigned,
            report,
            now: NOW,
        })
    }

    fn upkeep(
        &self,
        assigned: Option<(&str, &crate::desired::RepositoryWork)>,
        report: Option<&RepositoryReport>,
    ) -> repository::Next {
        repository::step(&repository::Facts {
            repository: &self.repository,
            clusters: &self.clusters,
            last_backup: None,
            assigned,
            report,
            now: NOW,
        })
    }
}

#[test]
fn the_agent_that_has_the_files_writes_to_a_store_that_all_reach() {
    let world = world("s3://bucket/r", "");
    let next = world.backup(&operation(), None, None);
    let (cluster, work) = next.assignment.unwrap();
    assert_eq!((cluster.as_str(), next.status.operation.phase), ("a", OperationPhase::Executing));
    let password = &work.repository.secrets[REPOSITORY_PASSWORD];
    assert_eq!((password.namespace.as_str(), password.key.as_str()), ("default", "k"));
    let entry: serde_json::Value = serde_json::from_str(&work.catalog).unwrap();
    assert_eq!(entry["metadata"]["labels"]["kind"], "text");
    let again: Dataset = serde_json::from_str(&work.catalog).unwrap();
    assert_eq!(again.spec, world.dataset.spec, "the entry can be applied");
}

#[test]
fn a_repository_on_another_machine_than_the_files_cannot_be_written_and_that_is_said() {
    let other = world("file:///r", "b");
    let storage = StorageSpec { uri: "file:///src".into(), cluster: "a".into(), ..StorageSpec::default() };
    let storages = BTreeMap::from([("own".to_owned(), Storage::new("", "own", storage))]);
    let next = World { storages, ..other }.backup(&operation(), None, None);
    assert_eq!(next.status.operation.phase, OperationPhase::Failed);
    assert!(next.status.operation.message.contains("does not reach"), "{}", next.status.operation.message);
}

#[test]
fn a_backup_ends_with_its_snapshot_or_with_the_agents_reason() {
    let world = world("s3://bucket/r", "");
    let (cluster, work) = world.backup(&operation(), None, None).assignment.unwrap();
    let assigned = Some((cluster.as_str(), &work));
    let mut begun = operation();
    begun.status = Some(world.backup(&operation(), None, None).status);

    let snapshot = SnapshotInfo { id: "f".repeat(64), ..SnapshotInfo::default() };
    let written = WrittenSnapshot { snapshot, bytes_read: 7, forgotten: 1, ..WrittenSnapshot::default() };
    let report = BackupReport { written: Some(written.clone()), ..BackupReport::default() };
    let done = world.backup(&begun, assigned, Some(&report));
    assert_eq!((done.status.operation.phase, done.assignment), (OperationPhase::Complete, None));
    assert_eq!((done.status.bytes_read, done.status.forgotten), (7, 1));

    let damaged = WrittenSnapshot { check_problems: Some(vec!["pack gone".into()]), ..written };
    let report = BackupReport { written: Some(damaged), ..BackupReport::default() };
    let done = world.backup(&begun, assigned, Some(&report));
    assert_eq!(
        (done.status.operation.phase, done.status.operation.reason.as_str()),
        (OperationPhase::Failed, "Damaged")
    );

    for (retrying, phase) in [(true, OperationPhase::Executing), (false, OperationPhase::Failed)] {
        let problem = Problem { reason: "Locked".into(), message: "by restic".into(), retrying };
        let report = BackupReport { problem: Some(problem), ..BackupReport::default() };
        let next = world.backup(&begun, assigned, Some(&report));
        assert_eq!((next.status.operation.phase, next.assignment.is_some()), (phase, retrying));
        assert!(next.status.operation.message.contains("by restic"));
    }

    begun.spec.cancel = true;
    let next = world.backup(&begun, assigned, None);
    assert_eq!((next.status.operation.phase, next.assignment), (OperationPhase::Cancelled, None));
}

#[test]
fn a_path_of_fluids_is_no_repository_as_fluid_says_it() {
    let world = world("s3://bucket/r", "");
    let mut operation = operation();
    operation.spec =
        DataBackupSpec { dataset: "d".into(), backup_path: "pvc://x/".into(), ..DataBackupSpec::default() };
    let next = world.backup(&operation, None, None);
    assert_eq!(
        (next.status.operation.phase, next.status.operation.reason.as_str()),
        (OperationPhase::Failed, "PathNotSupported")
    );
}

fn restoring(storage: &str) -> DataRestore {
    let spec = DataRestoreSpec {
        dataset: "d".into(),
        repository: "r".into(),
        storage: storage.into(),
        ..DataRestoreSpec::default()
    };
    let mut operation = DataRestore::new("team", "x", spec);
    operation.metadata.uid = "0123456789abcdef".into();
    operation
}

fn restored(catalog: Option<String>) -> RestoreReport {
    let totals = Totals { files: 2, directories: 1, bytes: 100 };
    let version = Version { root: "restored".into(), totals, digested: true };
    let copy = MigrateReport {
        phase: MigratePhase::Done,
        progress: Progress::default(),
        version: Some(version),
        problem: None,
    };
    RestoreReport { copy, snapshot: Some(SnapshotInfo { id: "f".repeat(64), ..SnapshotInfo::default() }), catalog }
}

#[test]
fn a_restore_makes_the_dataset_that_nobody_knows_from_its_entry() {
    let world = world("s3://bucket/r", "");
    let entry = world.backup(&operation(), None, None).assignment.unwrap().1.catalog;
    let begun = world.restore(&restoring("st"), None, None, None);
    let (cluster, work) = begun.assignment.unwrap();
    assert_eq!(cluster, "b", "the Storage's own agent");
    assert_eq!(work.copy.target.uri.to_string(), "file:///homes/team/d/01234567");
    assert_eq!(work.origin, ("team".to_owned(), "d".to_owned()));
    let done = world.restore(&restoring("st"), None, Some((&cluster, &work)), Some(&restored(Some(entry))));
    assert_eq!((done.status.operation.phase, done.release), (OperationPhase::Complete, true));
    let made = done.dataset.unwrap();
    assert_eq!((&made.spec, &made.metadata.labels), (&world.dataset.spec, &world.dataset.metadata.labels));
    let status = made.status.clone().unwrap();
    assert_eq!((status.homes.len(), status.root.as_deref(), status.observed_generation), (1, Some("restored"), 1));
    assert_eq!(crate::upkeep::rescan::request(&made, NOW), None, "its mounts are not listed over what was restored");

    // What others wrote has no entry: files alone.
    let done = world.restore(&restoring("st"), None, Some((&cluster, &work)), Some(&restored(None)));
    assert_eq!(done.dataset.unwrap().spec, DatasetSpec::default());
}

#[test]
fn a_restore_fills_the_dataset_that_is_there_and_only_that_one() {
    let world = world("s3://bucket/r", "");
    let (cluster, work) = world.restore(&restoring("st"), Some(&world.dataset), None, None).assignment.unwrap();
    let assigned = Some((cluster.as_str(), &work));
    let done = world.restore(&restoring("st"), Some(&world.dataset), assigned, Some(&restored(None)));
    let filled = done.dataset.unwrap();
    assert_eq!(filled.metadata, world.dataset.metadata);
    let status = filled.status.unwrap();
    assert_eq!((status.root.as_deref(), status.homes[0].state), (Some("restored"), HomeState::Ready));

    // Made anew meanwhile, or gone: the copy is removed before the operation fails.
    let mut another = world.dataset.clone();
    another.metadata.uid = "another".into();
    for dataset in [Some(&another), None] {
        let next = world.restore(&restoring("st"), dataset, assigned, Some(&restored(None)));
        assert!(next.dataset.is_none() && next.assignment.as_ref().is_some_and(|(_, work)| work.copy.cancel));
        assert_eq!(next.status.operation.reason, "DatasetNotFound");
        let mut operation = restoring("st");
        operation.status = Some(next.status);
        let (_, cancelled) = next.assignment.unwrap();
        let discarded = RestoreReport {
            copy: MigrateReport { phase: MigratePhase::Discarded, ..restored(None).copy },
            ..restored(None)
        };
        let end = world.restore(&operation, dataset, Some((&cluster, &cancelled)), Some(&discarded));
        assert_eq!(
            (end.status.operation.phase, end.status.operation.reason.as_str()),
            (OperationPhase::Failed, "DatasetNotFound")
        );
    }
}

#[test]
fn a_part_of_a_snapshot_never_replaces_a_version() {
    let world = world("s3://bucket/r", "");
    let mut part = restoring("st");
    part.spec.paths = vec!["a".into()];
    let refused = world.restore(&part, Some(&world.dataset), None, None);
    assert_eq!(refused.status.operation.reason, "PartOfVersion");
    assert!(world.restore(&part, None, None, None).assignment.is_some(), "a new dataset may be a part");
    part.spec.storage = String::new();
    part.spec.directory = Some(MemberDirectory { cluster: "a".into(), path: "/out".into() });
    let (cluster, work) = world.restore(&part, Some(&world.dataset), None, None).assignment.unwrap();
    assert_eq!((cluster.as_str(), work.copy.target.uri.to_string().as_str()), ("a", "file:///out"));
    let done = world.restore(&part, Some(&world.dataset), Some((&cluster, &work)), Some(&restored(None)));
    assert_eq!((done.status.operation.phase, done.dataset), (OperationPhase::Complete, None));
}

#[test]
fn a_repository_is_listed_then_pruned_then_checked_each_once_for_each_request() {
    let mut world = world("s3://bucket/r", "");
    world.repository.metadata.generation = 1;
    world.repository.metadata.annotations.insert(PRUNE_REQUESTED.into(), "p1".into());
    world.repository.metadata.annotations.insert(CHECK_REQUESTED.into(), "data-c1".into());
    let mut held: Option<(String, crate::desired::RepositoryWork)> = None;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let report = held.as_ref().map(|(_, work)| RepositoryReport {
            request: work.request.clone(),
            found: Some(FoundSnapshots::default()),
            problems: matches!(work.task, RepositoryTask::Check { .. }).then(|| vec!["gone".to_owned()]),
            problem: None,
        });
        let next = world.upkeep(held.as_ref().map(|(cluster, work)| (cluster.as_str(), work)), report.as_ref());
        world.repository.status = Some(next.status);
        seen.extend(next.assignment.as_ref().map(|(_, work)| work.task.clone()));
        held = next.assignment;
    }
    let expected = [
        RepositoryTask::List { create: true },
        RepositoryTask::Prune { retention: None },
        RepositoryTask::Check { read_data: true },
    ];
    assert_eq!((seen.as_slice(), held), (expected.as_slice(), None));
    let status = world.repository.status.unwrap();
    let check = status.last_check.unwrap();
    assert_eq!((check.problems, check.read_data, check.request.as_str()), (vec!["gone".to_owned()], true, "data-c1"));
    assert_eq!(
        (status.conditions[0].status, status.conditions[0].reason.as_str()),
        (ConditionStatus::False, "Damaged")
    );
}

#[test]
fn an_answer_to_another_request_changes_nothing_and_a_failure_is_told() {
    let mut world = world("file:///r", "b");
    let (cluster, work) = world.upkeep(None, None).assignment.unwrap();
    assert_eq!(cluster, "b");
    let late =
        RepositoryReport { request: "older".into(), found: Some(FoundSnapshots::default()), ..Default::default() };
    let next = world.upkeep(Some(("b", &work)), Some(&late));
    assert_eq!((next.status.list_handled.as_str(), next.assignment.is_some()), ("", true));
    let problem = Problem { reason: "WrongPassword".into(), message: "wrong".into(), retrying: false };
    let failed = RepositoryReport { request: work.request.clone(), problem: Some(problem), ..Default::default() };
    let next = world.upkeep(Some(("b", &work)), Some(&failed));
    assert_eq!(next.assignment, None, "until somebody asks again");
    assert_eq!(next.status.conditions[0].reason, "WrongPassword");
    world.repository.spec.cluster = "gone".into();
    assert_eq!(world.upkeep(None, None).status.conditions[0].reason, "NoCluster");
}
