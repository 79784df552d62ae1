//! The migration's state machine, transition by transition.

use proptest::prelude::*;

use super::*;
use crate::desired::Work;
use crate::kinds::datamigrate::{DataEnd, DataMigrateSpec, DatasetRef, StorageRef};
use crate::kinds::link::LinkSpec;
use crate::kinds::{ClusterSpec, ClusterState, ClusterStatus, DatasetSpec, DatasetStatus, Mount, StorageSpec};
use crate::report::{Problem, Totals};

struct World {
    operation: DataMigrate,
    dataset: Dataset,
    storages: BTreeMap<String, Storage>,
    clusters: BTreeMap<String, Cluster>,
    links: BTreeMap<String, Link>,
}

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn world() -> World {
    let mut dataset = Dataset::new(
        "default",
        "d",
        DatasetSpec {
            mounts: vec![Mount { mount_point: "file:///src".into(), path: "/".into(), ..Mount::default() }],
            ..DatasetSpec::default()
        },
    );
    dataset.metadata.uid = "dataset-uid".into();
    dataset.metadata.generation = 1;
    dataset.status = Some(DatasetStatus {
        observed_generation: 1,
        root: Some("listed".into()),
        total_bytes: 100,
        files: 2,
        source_cluster: Some("a".into()),
        ..DatasetStatus::default()
    });
    let mut operation = DataMigrate::new(
        "default",
        "m",
        DataMigrateSpec {
            from: DataEnd {
                dataset: Some(DatasetRef { name: "d".into(), ..DatasetRef::default() }),
                ..DataEnd::default()
            },
            to: DataEnd { storage: Some(StorageRef { name: "st".into() }), ..DataEnd::default() },
            ..DataMigrateSpec::default()
        },
    );
    operation.metadata.uid = "0123456789abcdef".into();
    let storage = StorageSpec { uri: "s3://bucket/x".into(), cluster: "b".into(), ..StorageSpec::default() };
    let clusters = ["a", "b"].map(|name| {
        let mut cluster = Cluster::new("", name, ClusterSpec::default());
        cluster.status = Some(ClusterStatus { state: ClusterState::Ready, ..ClusterStatus::default() });
        (name.to_owned(), cluster)
    });
    World {
        operation,
        dataset,
        storages: BTreeMap::from([("st".to_owned(), Storage::new("", "st", storage))]),
        clusters: BTreeMap::from(clusters),
        links: BTreeMap::new(),
    }
}

impl World {
    fn facts<'a>(
        &'a self,
        assigned: Option<(&'a str, &'a MigrateWork)>,
        report: Option<&'a MigrateReport>,
    ) -> Facts<'a> {
        Facts {
            operation: &self.operation,
            dataset: Some(&self.dataset),
            storages: &self.storages,
            clusters: &self.clusters,
            links: &self.links,
            earlier: None,
            assigned,
            report,
            not_served: None,
            now: NOW,
        }
    }

    /// The work that the first step hands out; the operation's status is moved along.
    fn started(&mut self) -> (String, MigrateWork) {
        let next = step(&self.facts(None, None));
        self.operation.status = Some(next.status);
        next.assignment.unwrap()
    }
}

fn report(phase: MigratePhase) -> MigrateReport {
    MigrateReport { phase, progress: Progress::default(), version: None, problem: None }
}

fn done(root: &str) -> MigrateReport {
    let totals = Totals { files: 2, directories: 1, bytes: 100 };
    let version = Some(Version { root: root.to_owned(), totals, digested: true });
    MigrateReport { version, ..report(MigratePhase::Done) }
}

#[test]
fn a_plan_tells_how_long_and_how_dear_its_way_is() {
    let mut world = world();
    world.operation.spec.dry_run = true;
    let spec = LinkSpec {
        from: "a".into(),
        to: "b".into(),
        bandwidth_bytes_per_second: Some(50),
        egress_price_per_gb: Some(1e8),
    };
    world.links.insert("thin".to_owned(), Link::new("", "thin", spec));
    let plan = step(&world.facts(None, None)).status.plan.unwrap();
    assert_eq!((plan.seconds, plan.cost), (Some(2.0), Some(10.0)));
    assert!(plan.reasons.iter().any(|reason| reason.contains("link thin carries at most 50")), "{:?}", plan.reasons);
}

#[test]
fn a_migration_begins_with_the_agent_that_reaches_both_ends() {
    let mut world = world();
    let (cluster, work) = world.started();
    assert_eq!(cluster, "a");
    assert_eq!(work.target.uri.to_string(), "s3://bucket/x/default/d/01234567");
    let status = world.operation.status.unwrap();
    assert_eq!((status.phase, status.reason.as_str()), (OperationPhase::Executing, "Planning"));
    assert_eq!(status.plan.unwrap().route, "push");
}

#[test]
fn a_finished_migration_keeps_the_average_of_its_rate() {
    let mut world = world();
    let (cluster, work) = world.started();
    let done = done("full");
    let later = NOW + SignedDuration::from_secs(4);
    let next = step(&Facts { now: later, ..world.facts(Some((&cluster, &work)), Some(&done)) });
    assert_eq!((next.status.progress.bytes_per_second, next.status.duration.as_str()), (25.0, "4s"));
}

#[test]
fn a_dry_run_plans_and_copies_nothing() {
    let mut world = world();
    world.operation.spec.dry_run = true;
    let next = step(&world.facts(None, None));
    assert_eq!((next.status.phase, next.assignment, next.cut_over), (OperationPhase::Complete, None, None));
    assert_eq!(next.status.plan.map(|p| (p.bytes, p.files)), Some((100, 2)));
}

#[test]
fn a_finished_copy_becomes_a_home_and_the_operation_ends_at_once() {
    let mut world = world();
    let (cluster, work) = world.started();
    let next = step(&world.facts(Some((&cluster, &work)), Some(&done("full"))));
    assert_eq!(
        (next.status.phase, next.status.root.as_deref(), next.assignment),
        (OperationPhase::Complete, Some("full"), None)
    );
    let homes = next.cut_over.unwrap().homes;
    assert_eq!(homes.len(), 1);
    assert_eq!((homes[0].storage.as_str(), homes[0].cluster.as_str(), homes[0].state), ("st", "b", HomeState::Ready));
}

#[test]
fn a_move_retires_every_other_home_and_a_copy_keeps_them() {
    for (mode, expected) in [(MigrateMode::Move, HomeState::Removing), (MigrateMode::Copy, HomeState::Ready)] {
        let mut world = world();
        world.operation.spec.mode = mode;
        let other = Home {
            storage: "elsewhere".into(),
            cluster: "a".into(),
            uri: "file:///home".into(),
            root: "listed".into(),
            bytes: 100,
            files: 2,
            state: HomeState::Ready,
            verified_time: NOW,
            operation: String::new(),
        };
        world.dataset.status.as_mut().unwrap().homes.push(other);
        let (cluster, work) = world.started();
        let homes = step(&world.facts(Some((&cluster, &work)), Some(&done("full")))).cut_over.unwrap().homes;
        let state = homes.iter().find(|h| h.storage == "elsewhere").map(|h| h.state);
        assert_eq!(state, Some(expected), "{mode:?}");
    }
}

#[test]
fn a_copy_of_a_home_with_another_root_is_removed_and_the_operation_fails() {
    let mut world = world();
    let (cluster, mut work) = world.started();
    work.root = Some("expected".into());
    let next = step(&world.facts(Some((&cluster, &work)), Some(&done("other"))));
    let (_, cancelled) = next.assignment.clone().unwrap();
    assert!(cancelled.cancel && next.cut_over.is_none());
    world.operation.status = Some(next.status);
    let end = step(&world.facts(Some((&cluster, &cancelled)), Some(&report(MigratePhase::Discarded))));
    assert_eq!((end.status.phase, end.status.reason.as_str()), (OperationPhase::Failed, "Corrupt"));
}

#[test]
fn a_cancelled_migration_ends_only_when_nothing_is_left_of_it() {
    let mut world = world();
    let (cluster, work) = world.started();
    world.operation.spec.cancel = true;
    let next = step(&world.facts(Some((&cluster, &work)), Some(&report(MigratePhase::Copying))));
    assert!(next.assignment.clone().is_some_and(|(_, w)| w.cancel) && !next.release);
    let end = step(&world.facts(Some((&cluster, &work)), Some(&report(MigratePhase::Discarded))));
    assert_eq!((end.status.phase, end.release), (OperationPhase::Cancelled, true));
}

#[test]
fn a_second_migration_of_a_dataset_waits_for_the_first() {
    let world = world();
    let next = step(&Facts { earlier: Some("first"), ..world.facts(None, None) });
    assert_eq!((next.status.phase, next.assignment), (OperationPhase::Pending, None));
    assert!(next.status.message.contains("first"));
}

#[test]
fn an_agents_failure_is_told_with_its_reason() {
    let mut world = world();
    let (cluster, work) = world.started();
    let problem =
        Problem { reason: "AccessDenied".into(), message: "the store refused the key".into(), retrying: false };
    let failed = MigrateReport { problem: Some(problem), ..report(MigratePhase::Failed) };
    let end = step(&world.facts(Some((&cluster, &work)), Some(&failed)));
    assert_eq!(
        (end.status.phase, end.status.reason.as_str(), end.status.message.as_str()),
        (OperationPhase::Failed, "AccessDenied", "the store refused the key")
    );
}

#[test]
fn what_cannot_work_fails_with_the_reason_and_what_may_yet_work_waits() {
    let mut gone = world();
    gone.storages.clear();
    assert_eq!(step(&gone.facts(None, None)).status.reason, "StorageNotFound");
    let mut unlisted = world();
    unlisted.dataset.status = None;
    assert_eq!(step(&unlisted.facts(None, None)).status.phase, OperationPhase::Pending);
    let mut full = world();
    full.storages.get_mut("st").unwrap().spec.capacity_bytes = Some(99);
    assert_eq!(step(&full.facts(None, None)).status.reason, "NoSpace");
}

proptest! {
    /// Whatever agents report in whatever order, a final phase stays, and a home appears only with `Done`.
    #[test]
    fn the_end_is_final_and_homes_come_from_verified_copies_alone(
        phases in prop::collection::vec((0..6_u8, any::<bool>()), 1..12),
    ) {
        let all = [MigratePhase::Planning, MigratePhase::Copying, MigratePhase::Verifying, MigratePhase::Done,
            MigratePhase::Failed, MigratePhase::Discarded];
        let mut world = world();
        let mut assigned = Some(world.started());
        for (phase, cancel) in phases {
            world.operation.spec.cancel |= cancel;
            let phase = all[usize::from(phase)];
            let said = if phase == MigratePhase::Done { done("full") } else { report(phase) };
            let before = world.operation.status.clone().unwrap();
            let next = {
                let held = assigned.as_ref().map(|(c, w)| (c.as_str(), w));
                step(&world.facts(held, Some(&said)))
            };
            if before.phase.is_final() {
                prop_assert_eq!(next.status.phase, before.phase);
                prop_assert!(next.cut_over.is_none());
            }
            prop_assert!(next.cut_over.is_none() || phase == MigratePhase::Done);
            world.operation.status = Some(next.status);
            assigned = next.assignment;
        }
    }
}

#[test]
fn a_relay_has_the_sources_served_until_the_copy_is_done() {
    let mut world = world();
    world.storages.get_mut("st").unwrap().spec.uri = "file:///disk".to_owned();
    world.clusters.get_mut("a").unwrap().status.as_mut().unwrap().address = "a:1".to_owned();
    let begun = step(&world.facts(None, None));
    let (executor, work) = begun.assignment.clone().unwrap();
    let (server, serve) = begun.serving.unwrap();
    assert_eq!((executor.as_str(), server.as_str(), serve.peer.as_str()), ("b", "a", "b"));
    assert_eq!((&serve.sources, &serve.operation), (&work.sources, &work.operation));
    assert_eq!(serve.peer_address, "", "the other one listens nowhere");
    let plan = begun.status.plan.clone().unwrap();
    assert_eq!((plan.route.as_str(), plan.through.as_str()), ("relay", "a"));
    let target = Work::Migrate(work.clone());
    assert_eq!(target.endpoints().count(), 1, "the secrets of the sources stay with who opens them");
    world.operation.status = Some(begun.status);

    // It comes back elsewhere: the work follows.
    world.clusters.get_mut("a").unwrap().status.as_mut().unwrap().address = "a:2".to_owned();
    let copying = report(MigratePhase::Copying);
    let next = step(&world.facts(Some((&executor, &work)), Some(&copying)));
    assert_eq!(next.assignment.unwrap().1.relay.unwrap().address, "a:2");
    assert!(next.serving.is_some());

    // It listens no more, but the other one does.
    world.clusters.get_mut("a").unwrap().status.as_mut().unwrap().address = String::new();
    world.clusters.get_mut("b").unwrap().status.as_mut().unwrap().address = "b:1".to_owned();
    let next = step(&world.facts(Some((&executor, &work)), Some(&copying)));
    assert_eq!(next.assignment.unwrap().1.relay.unwrap().address, "");
    assert_eq!(next.serving.unwrap().1.peer_address, "b:1");

    let problem = Problem { reason: "NotFound".to_owned(), message: "gone".to_owned(), retrying: true };
    let next = step(&Facts { not_served: Some(&problem), ..world.facts(Some((&executor, &work)), Some(&copying)) });
    assert_eq!(next.status.message, "NotFound: gone");

    let done = done("listed");
    let next = step(&world.facts(Some((&executor, &work)), Some(&done)));
    assert_eq!((next.status.phase, next.serving), (OperationPhase::Complete, None));

    world.operation.spec.cancel = true;
    assert_eq!(step(&world.facts(Some((&executor, &work)), Some(&copying))).serving, None);
    world.operation.spec.cancel = false;
    world.clusters.remove("a");
    let next = step(&world.facts(Some((&executor, &work)), Some(&copying)));
    assert_eq!((next.status.phase, next.status.reason.as_str()), (OperationPhase::Failed, "ClusterRemoved"));
}
