//! A dataset's upkeep, from its first scan to its last home.

use super::*;
use crate::kinds::placement::{ClusterChoice, DatasetChoice};
use crate::kinds::{
    ClusterSpec, ClusterStatus, DatasetMountPhase, DatasetMountSpec, DatasetSpec, Mount, PlacementSpec, StorageSpec,
};
use crate::report::{MountReport, Problem, RemoveReport, Totals, Version};
use crate::resource::Resource as _;

fn dataset(uri: &str) -> Dataset {
    let mount = Mount { mount_point: uri.to_owned(), path: "/".to_owned(), ..Mount::default() };
    let mut dataset = Dataset::new("default", "d", DatasetSpec { mounts: vec![mount], ..DatasetSpec::default() });
    dataset.metadata.generation = 1;
    dataset.metadata.uid = "u".to_owned();
    dataset
}

fn ready(names: &[&str]) -> BTreeMap<String, Cluster> {
    let cluster = |name: &&str| {
        let mut cluster = Cluster::new("", name, ClusterSpec::default());
        cluster.status = Some(ClusterStatus { state: ClusterState::Ready, ..ClusterStatus::default() });
        ((*name).to_owned(), cluster)
    };
    names.iter().map(cluster).collect()
}

struct World {
    now: Timestamp,
    dataset: Dataset,
    storages: BTreeMap<String, Storage>,
    clusters: BTreeMap<String, Cluster>,
    reports: BTreeMap<(String, String), StoredReport>,
    placements: Vec<(Placement, Decision)>,
    mounts: Vec<DatasetMount>,
}

impl World {
    fn new(uri: &str, clusters: &[&str]) -> Self {
        Self {
            now: Timestamp::UNIX_EPOCH,
            dataset: dataset(uri),
            storages: BTreeMap::new(),
            clusters: ready(clusters),
            reports: BTreeMap::new(),
            placements: Vec::new(),
            mounts: Vec::new(),
        }
    }

    fn mount(&mut self, name: &str, cluster: &str, directory: &str) {
        let spec = DatasetMountSpec {
            dataset: "d".into(),
            cluster: cluster.to_owned(),
            directory: directory.to_owned(),
            ..DatasetMountSpec::default()
        };
        let mut mount = DatasetMount::new("default", name, spec);
        mount.metadata.uid = name.to_owned();
        self.mounts.push(mount);
    }

    fn plan(&self) -> Next {
        let placements: Vec<_> = self.placements.iter().map(|(p, d)| (p, d)).collect();
        let mounts: Vec<_> = self.mounts.iter().collect();
        plan(&Facts {
            dataset: &self.dataset,
            storages: &self.storages,
            clusters: &self.clusters,
            placements: &placements,
            reports: &self.reports,
            migrations: &[],
            mounts: &mounts,
            now: self.now,
        })
    }

    fn say(&mut self, cluster: &str, work: &str, report: Report) {
        let id = format!("{work}/default/d/u");
        self.reports.insert((cluster.to_owned(), id), StoredReport { generation: 1, report });
    }

    fn scanned(&mut self) {
        let version =
            Version { root: "r".into(), totals: Totals { files: 3, directories: 1, bytes: 4096 }, digested: false };
        let by = self.clusters.keys().next().cloned().unwrap();
        self.say(
            &by,
            "scan",
            Report::Scan(ScanReport { generation: 1, request: "/".into(), found: Some(version), problem: None }),
        );
        self.dataset.status = Some(self.plan().status);
    }

    fn place_in(&mut self, clusters: &[&str]) {
        let spec = PlacementSpec {
            datasets: DatasetChoice { names: vec!["d".into()], selector: None },
            clusters: ClusterChoice::default(),
            ..PlacementSpec::default()
        };
        let decision = Decision { clusters: clusters.iter().map(|c| (*c).to_owned()).collect(), ..Decision::default() };
        self.placements.push((Placement::new("default", "p", spec), decision));
    }
}

fn work_by_cluster(next: &Next) -> Vec<(&str, String)> {
    next.assignments.iter().map(|(c, w)| (c.as_str(), w.0.id())).collect()
}

#[test]
fn a_new_dataset_is_listed_by_one_cluster_after_the_other() {
    let mut world = World::new("file:///data", &["a", "b"]);
    assert_eq!(work_by_cluster(&world.plan()), [("a", "scan/default/d/u".to_owned())]);
    let problem = Problem { reason: "NotFound".into(), message: "/data does not exist".into(), retrying: false };
    world.say(
        "a",
        "scan",
        Report::Scan(ScanReport { generation: 1, request: "/".into(), found: None, problem: Some(problem) }),
    );
    assert_eq!(work_by_cluster(&world.plan()).len(), 2);
    let version =
        Version { root: "r".into(), totals: Totals { files: 3, directories: 1, bytes: 4096 }, digested: false };
    world.say(
        "b",
        "scan",
        Report::Scan(ScanReport { generation: 1, request: "/".into(), found: Some(version), problem: None }),
    );
    let next = world.plan();
    assert!(next.assignments.is_empty());
    assert_eq!(
        (next.status.phase, next.status.source_cluster.as_deref(), next.status.ufs_total.as_str()),
        (DatasetPhase::Bound, Some("b"), "4.00KiB")
    );
}

#[test]
fn a_source_that_nobody_can_read_fails_with_what_each_agent_said() {
    let mut world = World::new("file:///data", &["a"]);
    let problem = Problem { reason: "NotFound".into(), message: "/data does not exist".into(), retrying: false };
    world.say(
        "a",
        "scan",
        Report::Scan(ScanReport { generation: 1, request: "/".into(), found: None, problem: Some(problem) }),
    );
    let status = world.plan().status;
    assert_eq!(status.phase, DatasetPhase::Failed);
    assert_eq!(status.conditions[0].message, "a: NotFound: /data does not exist");
}

#[test]
fn files_in_a_storage_are_listed_by_its_cluster_alone() {
    let mut world = World::new("file:///data/set", &["a", "b", "c"]);
    let spec = StorageSpec { uri: "file:///data".into(), cluster: "b".into(), ..StorageSpec::default() };
    world.storages.insert("st".into(), Storage::new("", "st", spec));
    let scan = ("b", "scan/default/d/u".to_owned());
    assert_eq!(work_by_cluster(&world.plan()), std::slice::from_ref(&scan));
    let problem = Problem { reason: "NotFound".into(), message: "no such folder".into(), retrying: false };
    world.say(
        "b",
        "scan",
        Report::Scan(ScanReport { generation: 1, request: "/".into(), found: None, problem: Some(problem) }),
    );
    assert_eq!(work_by_cluster(&world.plan()), [scan], "nobody else is asked");
}

#[test]
fn a_report_of_an_older_spec_is_not_taken_for_the_present_one() {
    let mut world = World::new("file:///data", &["a"]);
    world.scanned();
    world.dataset.metadata.generation = 2;
    let next = world.plan();
    assert_eq!(next.status.observed_generation, 1);
    assert_eq!(work_by_cluster(&next), [("a", "scan/default/d/u".to_owned())]);
}

/// The scan that is asked for, and a report on it that found `root`.
fn list_again(world: &mut World, root: &str) -> Next {
    let asked = world.plan().assignments.into_iter().find_map(|(_, work)| match work.0 {
        Work::Scan(scan) => Some(scan.request),
        _ => None,
    });
    let version = Version { root: root.into(), totals: Totals { files: 9, directories: 1, bytes: 1 }, digested: false };
    let request = asked.expect("a scan is asked for");
    world.say("a", "scan", Report::Scan(ScanReport { generation: 1, request, found: Some(version), problem: None }));
    let next = world.plan();
    world.dataset.status = Some(next.status.clone());
    next
}

#[test]
fn sources_are_listed_again_on_request_once() {
    let mut world = World::new("s3://bucket/x", &["a"]);
    world.scanned();
    assert!(world.plan().assignments.is_empty());
    world.dataset.metadata.annotations.insert(rescan::REQUESTED.into(), "now".into());
    assert_eq!(work_by_cluster(&world.plan()), [("a", "scan/default/d/u".to_owned())], "the old report is no answer");
    assert_eq!(world.plan().status.phase, DatasetPhase::Bound);
    let next = list_again(&mut world, "other");
    assert_eq!((next.status.root.as_deref(), next.status.files), (Some("other"), 9));
    assert_eq!(next.status.rescan_handled, "now");
    assert!(world.plan().assignments.is_empty());
}

#[test]
fn sources_are_listed_again_when_it_is_time() {
    let mut world = World::new("s3://bucket/x", &["a"]);
    world.dataset.metadata.annotations.insert(rescan::EVERY.into(), "10m".into());
    world.scanned();
    world.now = Timestamp::from_second(599).unwrap();
    assert!(world.plan().assignments.is_empty());
    world.now = Timestamp::from_second(600).unwrap();
    list_again(&mut world, "r");
    assert!(world.plan().assignments.is_empty(), "the time counts from the last listing");
    world.now = Timestamp::from_second(1200).unwrap();
    assert_eq!(world.plan().assignments.len(), 1);
}

/// The next listing is told of a change, and then asked for.
fn notice(world: &mut World) -> bool {
    rescan::notice(world.dataset.status.as_mut().unwrap())
}

#[test]
fn a_noticed_change_has_the_sources_listed_once_however_often_it_is_noticed() {
    let mut world = World::new("s3://bucket/x", &["a"]);
    world.scanned();
    assert_eq!([notice(&mut world), notice(&mut world), notice(&mut world)], [true, false, false]);
    assert!(world.plan().assignments.is_empty(), "not so soon after the last listing");
    world.now = Timestamp::from_second(5).unwrap();
    list_again(&mut world, "other");
    assert!(world.plan().assignments.is_empty());
    world.now = Timestamp::from_second(1000).unwrap();
    assert!(world.plan().assignments.is_empty());
}

#[test]
fn a_change_that_is_noticed_while_the_sources_are_listed_does_not_stop_the_listing_and_asks_for_another() {
    let mut world = World::new("s3://bucket/x", &["a"]);
    world.scanned();
    notice(&mut world);
    world.now = Timestamp::from_second(60).unwrap();
    let begun = world.plan();
    world.dataset.status = Some(begun.status.clone());
    assert!(notice(&mut world), "the listing may have passed the place already");
    assert!(!notice(&mut world));
    assert_eq!(world.plan().assignments, begun.assignments, "the same scan goes on");
    list_again(&mut world, "other");
    assert!(world.plan().assignments.is_empty());
    world.now = Timestamp::from_second(65).unwrap();
    assert_eq!(work_by_cluster(&world.plan()), [("a", "scan/default/d/u".to_owned())]);
    list_again(&mut world, "third");
    world.now = Timestamp::from_second(1000).unwrap();
    assert!(world.plan().assignments.is_empty());
}

#[test]
fn sources_that_did_not_change_keep_the_version_and_what_is_known_of_it() {
    let mut world = World::new("s3://bucket/x", &["a"]);
    world.scanned();
    let status = world.dataset.status.as_mut().unwrap();
    (status.root, status.digested) = (Some("digested".into()), true);
    world.dataset.metadata.annotations.insert(rescan::REQUESTED.into(), "1".into());
    let next = list_again(&mut world, "r");
    assert_eq!((next.status.root.as_deref(), next.status.digested, next.status.files), (Some("digested"), true, 3));
}

#[test]
fn sources_that_cannot_be_listed_again_leave_the_version() {
    let mut world = World::new("s3://bucket/x", &["a"]);
    world.scanned();
    world.dataset.metadata.annotations.insert(rescan::REQUESTED.into(), "1".into());
    let request = "1970-01-01T00:00:00Z/1".to_owned();
    let problem = Some(Problem { reason: "Denied".into(), message: "no".into(), retrying: true });
    world.say("a", "scan", Report::Scan(ScanReport { generation: 1, request, found: None, problem }));
    let status = world.plan().status;
    assert_eq!((status.phase, status.root.as_deref()), (DatasetPhase::Bound, Some("r")));
    let told = status.conditions.iter().find(|condition| condition.kind == "Scanned").unwrap();
    assert_eq!((told.reason.as_str(), told.message.as_str()), ("SourceUnreadable", "a: Denied: no"));
}

#[test]
fn a_time_between_listings_that_is_none_is_refused() {
    for (text, good) in [("10m", true), ("1h 30m", true), ("5s", true), ("1s", false), ("-1h", false), ("often", false)]
    {
        let mut dataset = dataset("s3://bucket/x");
        dataset.metadata.annotations.insert(rescan::EVERY.into(), text.into());
        let mut errors = crate::field::FieldErrors::default();
        dataset.validate(None, &mut errors);
        assert_eq!(format!("{errors:?}").contains("rescan-every"), !good, "{text}: {errors:?}");
    }
}

#[test]
fn placed_datasets_are_cached_where_their_bytes_can_be_reached() {
    let mut world = World::new("file:///data", &["a", "b"]);
    world.scanned();
    world.place_in(&["a", "b"]);
    let cache = |cluster| (cluster, "cache/default/d/u".to_owned());
    assert_eq!(work_by_cluster(&world.plan()), [cache("a"), cache("b")], "b may see the same files");
    let spec = StorageSpec { uri: "file:///".into(), cluster: "a".into(), ..StorageSpec::default() };
    world.storages.insert("st".into(), Storage::new("", "st", spec));
    let next = world.plan();
    assert_eq!(work_by_cluster(&next), [cache("a")]);
    let phases: Vec<_> = next
        .cache_locations
        .iter()
        .map(|l| (l.metadata.name.as_str(), l.status.as_ref().unwrap().phase.as_str()))
        .collect();
    assert_eq!(phases, [("d.a", "Pending"), ("d.b", "Failed")]);
}

#[test]
fn what_the_cache_reports_becomes_the_location_and_the_totals() {
    let mut world = World::new("s3://bucket/x", &["a"]);
    world.scanned();
    world.place_in(&["a"]);
    let said = CacheReport {
        phase: "Filling".into(),
        root: "r".into(),
        cached_bytes: 1024,
        total_bytes: 4096,
        ..Default::default()
    };
    world.say("a", "cache", Report::Cache(said));
    let next = world.plan();
    let status = next.cache_locations[0].status.clone().unwrap();
    assert_eq!((status.cached_fraction, status.root.as_deref()), (0.25, Some("r")));
    assert_eq!(next.status.cache_states["cachedPercentage"], "25.0%");
}

#[test]
fn a_retired_home_is_forgotten_only_after_it_was_removed() {
    let mut world = World::new("s3://bucket/x", &["a"]);
    world.scanned();
    let spec = StorageSpec { uri: "file:///homes".into(), cluster: "a".into(), ..StorageSpec::default() };
    world.storages.insert("st".into(), Storage::new("", "st", spec));
    let home = Home {
        storage: "st".into(),
        cluster: "a".into(),
        uri: "file:///homes/default/d/12345678".into(),
        root: "r".into(),
        bytes: 1,
        files: 1,
        state: HomeState::Removing,
        verified_time: Timestamp::UNIX_EPOCH,
        operation: String::new(),
    };
    world.dataset.status.as_mut().unwrap().homes.push(home);
    let next = world.plan();
    assert_eq!(next.status.homes.len(), 1);
    let (cluster, work) = next.assignments.iter().next().unwrap();
    let report = Report::Remove(RemoveReport { removed: true, problem: None });
    world.reports.insert((cluster.clone(), work.0.id()), StoredReport { generation: 1, report });
    let after = world.plan();
    assert_eq!((after.status.homes.len(), after.assignments.len()), (0, 0));
}

#[test]
fn planning_twice_gives_the_same() {
    let mut world = World::new("s3://bucket/x", &["a", "b"]);
    world.scanned();
    world.place_in(&["a", "b"]);
    let first = world.plan();
    world.dataset.status = Some(first.status.clone());
    assert_eq!(world.plan(), first);
}

#[test]
fn a_mount_brings_a_cache_that_fills_on_demand_and_a_placement_fills_it_beforehand() {
    let mut world = World::new("s3://bucket/data", &["a", "b"]);
    world.mount("m", "b", "/data");
    let next = world.plan();
    assert_eq!(next.mounts["m"].phase, DatasetMountPhase::Pending);
    world.scanned();
    let next = world.plan();
    let ids = [("b", "cache/default/d/u".to_owned()), ("b", "mount/default/d/m".to_owned())];
    assert_eq!(work_by_cluster(&next), ids);
    let on_demand = |next: &Next| {
        next.assignments.iter().find_map(|(_, work)| match &work.0 {
            Work::Cache(cache) => Some(cache.on_demand),
            _ => None,
        })
    };
    assert_eq!((on_demand(&next), next.mounts["m"].phase), (Some(true), DatasetMountPhase::Mounting));

    world.place_in(&["b"]);
    assert_eq!(on_demand(&world.plan()), Some(false));
    let said = MountReport { mounted: true, root: "r".into(), passthrough: true, ..MountReport::default() };
    let id = ("b".to_owned(), "mount/default/d/m".to_owned());
    world.reports.insert(id, StoredReport { generation: 1, report: Report::Mount(said) });
    let status = &world.plan().mounts["m"];
    assert_eq!(
        (status.phase, status.mode.as_str(), status.root.as_deref()),
        (DatasetMountPhase::Mounted, "passthrough", Some("r"))
    );
}

#[test]
fn a_mount_that_cannot_be_says_why() {
    let mut world = World::new("s3://bucket/data", &["a"]);
    world.scanned();
    world.mount("first", "a", "/data");
    world.mount("second", "a", "/data/");
    world.mount("nowhere", "c", "/data");
    let next = world.plan();
    assert!(next.mounts["second"].message.contains("\"first\" has this directory"), "{:?}", next.mounts["second"]);
    assert_eq!(next.mounts["second"].phase, DatasetMountPhase::Failed);
    assert!(next.mounts["nowhere"].message.contains("\"c\" is not registered"), "{:?}", next.mounts["nowhere"]);
    assert_eq!(next.mounts["first"].phase, DatasetMountPhase::Mounting);
}

fn writable(world: &mut World, mode: &str) {
    world.dataset.spec.access_modes = vec![mode.to_owned()];
}

fn mount_messages(world: &World) -> Vec<(DatasetMountPhase, String)> {
    world.plan().mounts.into_values().map(|status| (status.phase, status.message)).collect()
}

#[test]
fn a_dataset_that_may_be_written_is_mounted_at_its_sources_and_needs_no_cache() {
    let mut world = World::new("s3://bucket/x", &["a"]);
    world.scanned();
    world.mount("m", "a", "/mnt");
    writable(&mut world, "ReadWriteMany");
    let works: Vec<Work> = world.plan().assignments.into_iter().map(|(_, work)| work.0).collect();
    let [Work::Mount(work)] = &works[..] else { panic!("{works:?}") };
    assert_eq!((work.homes.len(), work.root.as_str()), (1, ""), "a new version is no other work");
    world.mounts[0].spec.read_only = true;
    let kinds: Vec<String> = world.plan().assignments.into_iter().map(|(_, work)| work.0.id()).collect();
    assert_eq!(kinds, ["cache/default/d/u", "mount/default/d/m"]);
    writable(&mut world, "ReadOnlyMany");
    world.mounts[0].spec.read_only = false;
    assert_eq!(world.plan().assignments.len(), 2);
}

#[test]
fn one_mount_writes_to_what_may_be_written_once() {
    let mut world = World::new("s3://bucket/x", &["a", "b"]);
    world.scanned();
    world.mount("first", "a", "/one");
    world.mount("second", "b", "/two");
    writable(&mut world, "ReadWriteOnce");
    let messages = mount_messages(&world);
    assert_eq!((messages[0].0, messages[1].0), (DatasetMountPhase::Mounting, DatasetMountPhase::Failed));
    assert!(messages[1].1.contains("mount \"first\" on cluster \"a\" writes to the dataset already"), "{messages:?}");
    world.mounts[1].spec.read_only = true;
    assert_eq!(mount_messages(&world)[1].0, DatasetMountPhase::Mounting);
    world.mounts[1].spec.read_only = false;
    writable(&mut world, "ReadWriteMany");
    assert_eq!(mount_messages(&world)[1].0, DatasetMountPhase::Mounting);
}

#[test]
fn a_folder_is_written_where_it_is() {
    let mut world = World::new("file:///data", &["a", "b"]);
    world.mount("m", "b", "/mnt");
    writable(&mut world, "ReadWriteMany");
    assert_eq!(mount_messages(&world)[0].0, DatasetMountPhase::Pending, "nobody has listed it");
    world.scanned();
    let (phase, message) = mount_messages(&world).remove(0);
    assert_eq!(phase, DatasetMountPhase::Failed);
    assert!(message.contains("cluster \"b\" does not reach file:///data, which is on cluster \"a\""), "{message}");
    for name in ["a", "b"] {
        world.clusters.get_mut(name).unwrap().status.as_mut().unwrap().machine = "one".into();
    }
    assert_eq!(mount_messages(&world)[0].0, DatasetMountPhase::Mounting, "one machine");
}

#[test]
fn what_was_written_has_the_sources_listed_once() {
    let mut world = World::new("s3://bucket/x", &["a"]);
    world.scanned();
    world.mount("m", "a", "/mnt");
    writable(&mut world, "ReadWriteMany");
    world.now = Timestamp::from_second(1000).unwrap();
    let said = |written: &str| MountReport { written: written.into(), writable: true, ..MountReport::default() };
    let settle = |world: &mut World| {
        world.dataset.status = Some(world.plan().status);
        world.plan().assignments.into_iter().filter(|(_, work)| matches!(work.0, Work::Scan(_))).count()
    };
    assert_eq!(settle(&mut world), 0);
    world.say("a", "mount", Report::Mount(said("1")));
    assert_eq!(settle(&mut world), 1);
    list_again(&mut world, "other");
    assert_eq!(settle(&mut world), 0, "it was told once");
    world.now = Timestamp::from_second(2000).unwrap();
    world.say("a", "mount", Report::Mount(said("2")));
    assert_eq!(settle(&mut world), 1);
    list_again(&mut world, "third");
    world.now = Timestamp::from_second(3000).unwrap();
    world.reports.clear();
    assert_eq!(settle(&mut world), 1, "the last writes of a mount that is gone");
}
