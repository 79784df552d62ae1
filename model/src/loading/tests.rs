//! The load's state machine, transition by transition.

use super::*;
use crate::kinds::datamigrate::DatasetRef;
use crate::kinds::{DataLoadSpec, DatasetSpec, DatasetStatus, LoadTarget};
use crate::report::Problem;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

struct World {
    operation: DataLoad,
    dataset: Option<Dataset>,
    clusters: BTreeSet<String>,
    caches: BTreeMap<String, CacheWork>,
    reports: BTreeMap<String, LoadReport>,
    assigned: BTreeMap<String, LoadWork>,
}

fn world() -> World {
    let mut dataset = Dataset::new("default", "d", DatasetSpec::default());
    dataset.metadata.uid = "dataset-uid".into();
    dataset.metadata.generation = 1;
    let known = DatasetStatus {
        observed_generation: 1,
        root: Some("r1".into()),
        total_bytes: 100,
        files: 2,
        ..DatasetStatus::default()
    };
    dataset.status = Some(known);
    let named = DatasetRef { name: "d".into(), ..DatasetRef::default() };
    let mut operation = DataLoad::new("default", "l", DataLoadSpec { dataset: named, ..DataLoadSpec::default() });
    operation.metadata.uid = "load-uid".into();
    World {
        operation,
        dataset: Some(dataset),
        clusters: ["a", "b", "c"].map(str::to_owned).into(),
        caches: ["a", "b"].map(|name| (name.to_owned(), cache("r1"))).into(),
        reports: BTreeMap::new(),
        assigned: BTreeMap::new(),
    }
}

/// Another one, where the name is taken.
fn world_again() -> World {
    world()
}

fn cache(root: &str) -> CacheWork {
    let dataset = DatasetKey { namespace: "default".into(), name: "d".into(), uid: "dataset-uid".into() };
    CacheWork { dataset, root: root.into(), sources: Vec::new(), paths: Vec::new(), pinned: false, on_demand: true }
}

fn report(root: &str, phase: LoadPhase, done: u64) -> LoadReport {
    let progress =
        Progress { files_done: 1, files_total: 2, bytes_done: done, bytes_total: 100, ..Progress::default() };
    LoadReport { phase, root: root.into(), progress, ..LoadReport::default() }
}

impl World {
    /// Takes a step, and makes it so.
    fn step(&mut self) -> Next {
        let next = step(&Facts {
            operation: &self.operation,
            dataset: self.dataset.as_ref(),
            clusters: &self.clusters,
            caches: &self.caches.iter().map(|(name, work)| (name.clone(), work)).collect(),
            held: &BTreeMap::new(),
            assigned: &self.assigned,
            reports: &self.reports.iter().map(|(name, report)| (name.clone(), report)).collect(),
            now: NOW,
        });
        self.operation.status = Some(next.status.clone());
        self.assigned = next.assignments.clone();
        next
    }

    fn phase(&mut self) -> (OperationPhase, String) {
        let next = self.step();
        (next.status.operation.phase, next.status.operation.reason)
    }

    fn report(&mut self, cluster: &str, report: LoadReport) {
        self.reports.insert(cluster.to_owned(), report);
    }
}

#[test]
fn every_cluster_that_holds_it_loads_it_and_the_load_is_complete_when_all_are() {
    let mut world = world();
    world.operation.spec.target = vec![LoadTarget { path: "/models/x/".into(), replicas: Some(2) }];
    let begun = world.step();
    assert_eq!(begun.assignments.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(begun.assignments["a"].paths, ["models/x"]);
    world.report("a", report("r1", LoadPhase::Done, 100));
    world.report("b", report("r1", LoadPhase::Loading, 40));
    let half = world.step();
    assert_eq!(
        (half.status.operation.phase, half.status.operation.progress.bytes_done),
        (OperationPhase::Executing, 140)
    );
    assert_eq!(half.assignments.len(), 2, "what is done stays assigned, or its report would go");
    world.report("b", report("r1", LoadPhase::Done, 100));
    let done = world.step();
    assert_eq!(
        (done.status.operation.phase, done.status.operation.progress.bytes_done),
        (OperationPhase::Complete, 200)
    );
    assert!(done.assignments.is_empty());
    assert_eq!(done.status.operation.conditions[0].kind, "Complete");
    assert_eq!(world.step().status, done.status, "a final phase never changes");
}

#[test]
fn the_root_is_everything() {
    let mut world = world();
    world.operation.spec.target = ["/", "/x"].map(|path| LoadTarget { path: path.into(), replicas: None }).into();
    assert!(world.step().assignments["a"].paths.is_empty());
}

#[test]
fn a_named_cluster_is_the_only_one_and_must_be_there() {
    let mut world = world();
    world.operation.spec.cluster = "b".into();
    assert_eq!(world.step().assignments.keys().collect::<Vec<_>>(), ["b"]);
    for (cluster, phase, reason) in
        [("c", OperationPhase::Pending, ""), ("x", OperationPhase::Failed, "ClusterNotFound")]
    {
        let mut world = world_again();
        world.operation.spec.cluster = cluster.into();
        assert_eq!(world.phase(), (phase, reason.to_owned()), "{cluster}");
    }
}

#[test]
fn a_new_version_is_loaded_in_place_of_the_old_one_whose_report_does_not_count() {
    let mut world = world();
    world.step();
    world.caches.insert("a".into(), cache("r2"));
    world.report("a", report("r1", LoadPhase::Done, 100));
    world.report("b", report("r1", LoadPhase::Done, 100));
    let next = world.step();
    assert_eq!((next.assignments["a"].root.as_str(), next.status.operation.phase), ("r2", OperationPhase::Executing));
    assert_eq!(world.phase().0, OperationPhase::Executing, "the old report");
    world.report("a", report("r2", LoadPhase::Done, 100));
    assert_eq!(world.phase().0, OperationPhase::Complete);
}

#[test]
fn what_fails_in_one_cluster_fails_the_load_once_the_others_are_done() {
    let mut world = world();
    world.step();
    let problem = Problem { reason: "NoSpace".into(), message: "full".into(), retrying: false };
    world.report("a", LoadReport { problem: Some(problem), ..report("r1", LoadPhase::Failed, 10) });
    assert_eq!(world.phase().0, OperationPhase::Executing);
    world.caches.remove("b");
    let next = world.step();
    assert_eq!(
        (next.status.operation.phase, next.status.operation.reason.as_str()),
        (OperationPhase::Failed, "NoSpace")
    );
    assert_eq!(next.status.operation.message, "a: full; b: the cluster does not hold the dataset any more");
}

#[test]
fn cancelling_withdraws_the_work() {
    let mut world = world();
    world.step();
    world.operation.spec.cancel = true;
    let next = world.step();
    assert_eq!((next.status.operation.phase, next.assignments.len()), (OperationPhase::Cancelled, 0));
}

#[test]
fn sources_are_listed_again_first_if_that_is_asked_for() {
    let mut world = world();
    world.operation.spec.load_metadata = true;
    let asked = world.step().rescan.unwrap();
    let annotations = |world: &mut World| {
        let dataset = world.dataset.as_mut().unwrap();
        dataset.metadata.annotations.insert(rescan::REQUESTED.to_owned(), asked.clone());
    };
    annotations(&mut world);
    let waiting = world.step();
    assert_eq!((waiting.rescan, waiting.assignments.len()), (None, 0), "asked for once");
    world.dataset.as_mut().unwrap().status.as_mut().unwrap().rescan_handled = asked.clone();
    assert_eq!(world.step().assignments.len(), 2);
}

#[test]
fn a_dry_run_assigns_nothing_and_says_where() {
    let mut world = world();
    world.operation.spec.dry_run = true;
    let next = world.step();
    assert!(next.assignments.is_empty());
    assert_eq!(
        (next.status.operation.phase, next.status.operation.reason.as_str()),
        (OperationPhase::Complete, "DryRun")
    );
    assert_eq!(next.status.clusters.iter().map(|load| load.cluster.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let mut nowhere = world_again();
    nowhere.operation.spec.dry_run = true;
    nowhere.caches.clear();
    assert_eq!(nowhere.phase(), (OperationPhase::Failed, "NotHeld".to_owned()));
    nowhere.operation.status = None;
    nowhere.dataset = None;
    assert_eq!(nowhere.phase(), (OperationPhase::Failed, "DatasetNotFound".to_owned()));
}
