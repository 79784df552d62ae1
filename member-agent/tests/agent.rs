//! The agent against a small real hub: joining, sessions, work that survives restarts.

// All of this file is tests; the lints know only functions marked as such.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fluvial_member_agent::{Agent, AgentConfig, JoinConfig, RunningAgent, StartError, UplinkState, join};
use fluvial_model::desired::{CacheWork, DatasetKey, Endpoint, MigrateWork, RemoveWork, ScanWork, Work};
use fluvial_model::kinds::MigrateVerify;
use fluvial_model::report::{MigratePhase, Report, Version};
use fluvial_model::uri::Uri;
use fluvial_proto::v1::ask::Question;
use fluvial_proto::v1::{Ask, ReadFile};
use support::{CLUSTER, Hub, agent};
use tempfile::TempDir;
use tokio::sync::watch;
use tonic::Status;

struct Bed {
    hub: Hub,
    dir: TempDir,
}

impl Bed {
    /// A hub and a data directory that has joined.
    async fn new() -> Self {
        let bed = Self { hub: Hub::start().await, dir: tempfile::tempdir().unwrap() };
        fs::create_dir(bed.path("source")).unwrap();
        bed.hub.join(&bed.data()).await;
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn write(&self, name: &str, contents: &[u8]) {
        let file = self.path("source").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, contents).unwrap();
    }

    fn endpoint(&self, name: &str) -> Endpoint {
        Endpoint {
            path: String::new(),
            uri: Uri::parse(&format!("file://{}", self.path(name).display())).unwrap(),
            options: BTreeMap::new(),
            secrets: BTreeMap::new(),
        }
    }

    fn scan(&self, generation: i64) -> Work {
        Work::Scan(ScanWork {
            dataset: dataset(),
            generation,
            request: String::new(),
            sources: vec![self.endpoint("source")],
        })
    }

    fn migrate(&self) -> MigrateWork {
        MigrateWork {
            relay: None,
            dataset: dataset(),
            operation: "op-1".to_owned(),
            sources: vec![self.endpoint("source")],
            root: None,
            target: self.endpoint("target"),
            streams: 2,
            verify: MigrateVerify::Checksum,
            cancel: false,
        }
    }

    /// Scans, and returns what was found.
    async fn scanned(&self, generation: i64) -> Version {
        let id = self.hub.assign(self.scan(generation));
        let wanted = |report: &Report| matches!(report, Report::Scan(scan) if scan.generation == generation && scan.found.is_some());
        let (_, Report::Scan(scan)) = self.hub.report(&id, "a scan", wanted).await else { unreachable!() };
        scan.found.unwrap()
    }
}

fn dataset() -> DatasetKey {
    DatasetKey { namespace: "default".into(), name: "set".into(), uid: "uid-1".into() }
}

fn migrated(phase: MigratePhase) -> impl Fn(&Report) -> bool {
    move |report| matches!(report, Report::Migrate(report) if report.phase == phase)
}

async fn state(states: &mut watch::Receiver<UplinkState>, wanted: impl Fn(&UplinkState) -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), states.wait_for(wanted)).await;
    waited.expect("the agent came to this state in time").unwrap();
}

/// Waits until an assignment and its clean-up are over, looking into a copy of the ledger: the agent lets nobody else in.
async fn forgotten(data: &Path, id: &str) {
    let count = || -> Result<i64, Box<dyn std::error::Error>> {
        let copy = tempfile::tempdir()?;
        // In this order: what goes from the log into the file meanwhile is in both.
        for file in ["ledger.db-wal", "ledger.db"] {
            fs::copy(data.join(file), copy.path().join(file))?;
        }
        let ledger = rusqlite::Connection::open(copy.path().join("ledger.db"))?;
        Ok(ledger.query_row("SELECT COUNT(*) FROM assignments WHERE id = ?1", [id], |row| row.get(0))?)
    };
    let gone = async {
        // A copy that was made in the middle of a change cannot be read.
        while !matches!(count(), Ok(0)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the assignment is forgotten in time");
}

/// Name, inode and time of last change of every file: what is written again has others.
fn stamps(dir: &Path) -> Vec<(std::ffi::OsString, u64, i64, i64)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let stamp = |entry: fs::DirEntry| {
        let file = entry.metadata().ok()?;
        Some((entry.file_name(), file.ino(), file.ctime(), file.ctime_nsec()))
    };
    entries.filter_map(|entry| stamp(entry.ok()?)).collect()
}

/// Drops the agent as soon as half of the files are there; returns what was there then.
async fn crash_in_mid_copy(running: RunningAgent, dir: &Path) -> Vec<(std::ffi::OsString, u64, i64, i64)> {
    let half = async {
        while stamps(dir).len() < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), half).await.expect("half of the files are copied in time");
    drop(running);
    let written = stamps(dir);
    assert!((20..40).contains(&written.len()), "the crash came in mid-copy, not at {} files", written.len());
    written
}

fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                open.push(entry);
            } else {
                files.insert(entry.strip_prefix(dir).unwrap().to_owned(), fs::read(&entry).unwrap());
            }
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_is_scanned_then_cached_then_evicted() {
    let bed = Bed::new().await;
    bed.write("a", b"12345");
    bed.write("dir/b", &vec![1; 1 << 20]);
    let agent = agent(&bed.data()).await;
    let found = bed.scanned(1).await;
    assert_eq!((found.totals.files, found.totals.bytes, found.digested), (2, 5 + (1 << 20), false));
    assert!(bed.hub.memory().blocks.contains_key(&found.root.parse().unwrap()), "blocks come before the report");

    let sources = vec![bed.endpoint("source")];
    let cache = CacheWork {
        dataset: dataset(),
        root: found.root.clone(),
        sources,
        paths: Vec::new(),
        pinned: true,
        on_demand: false,
    };
    let id = bed.hub.assign(Work::Cache(cache));
    let ready = |report: &Report| matches!(report, Report::Cache(cache) if cache.phase == "Ready");
    let (_, Report::Cache(report)) = bed.hub.report(&id, "a filled cache", ready).await else { unreachable!() };
    let media: u64 = report.nodes.iter().flat_map(|node| &node.media).map(|medium| medium.cached_bytes).sum();
    assert_eq!((report.root, report.cached_bytes, media), (found.root, found.totals.bytes, found.totals.bytes));

    bed.hub.withdraw(&id);
    let objects = bed.data().join("cache/objects");
    let empty = async {
        while !tree(&objects).is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), empty).await.expect("the cache is given up in time");
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_answered_with_bytes_or_a_problem() {
    let bed = Bed::new().await;
    bed.write("dir/a", b"0123456789");
    let agent = agent(&bed.data()).await;
    let ask = |id, path: &str| Ask {
        id,
        question: Some(Question::ReadFile(ReadFile {
            sources: serde_json::to_vec(&[bed.endpoint("source")]).unwrap().into(),
            secrets: Default::default(),
            path: path.to_owned(),
            offset: 3,
            length: 4,
        })),
    };
    let asks = vec![ask(1, "/dir/a"), ask(2, "missing"), ask(3, "../a")];
    bed.hub.with(|memory| memory.asks = asks);
    let mut replies = bed.hub.until("three replies", |m| (m.replies.len() == 3).then(|| m.replies.clone())).await;
    replies.sort_by_key(|reply| reply.id);
    assert_eq!(replies[0].data, "3456");
    for (reply, reason) in replies[1..].iter().zip(["NotFound", "Invalid"]) {
        let problem: fluvial_model::report::Problem = serde_json::from_slice(&reply.problem).unwrap();
        assert_eq!((problem.reason.as_str(), problem.retrying), (reason, false), "{problem:?}");
    }
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_goes_on_after_a_crash_and_is_done_once() {
    let bed = Bed::new().await;
    for number in 0..40u32 {
        let contents: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(number + 1) >> 3) as u8).collect();
        bed.write(&format!("dir/{number}"), &contents);
    }
    let running = agent(&bed.data()).await;
    let id = bed.hub.assign(Work::Migrate(bed.migrate()));
    let written = crash_in_mid_copy(running, &bed.path("target.partial/dir")).await;

    let running = agent(&bed.data()).await;
    let (_, Report::Migrate(report)) = bed.hub.report(&id, "a finished copy", migrated(MigratePhase::Done)).await
    else {
        unreachable!()
    };
    assert_eq!(tree(&bed.path("target")), tree(&bed.path("source")));
    let kept = written.iter().filter(|file| stamps(&bed.path("target/dir")).contains(file)).count();
    assert!(kept > 0, "nothing of the {} files written before the crash was used", written.len());
    let version = report.version.unwrap();
    assert_eq!((version.totals.files, version.totals.bytes, version.digested), (40, 40 << 20, true));
    assert!(bed.hub.memory().blocks.contains_key(&version.root.parse().unwrap()));
    running.shutdown().await;

    // What would be done again would be seen: the target is touched by nobody.
    fs::write(bed.path("target/dir/0"), b"mark").unwrap();
    let reports = bed.hub.memory().reports.len();
    let running = agent(&bed.data()).await;
    bed.write("one more", b"x");
    bed.scanned(2).await;
    assert_eq!(fs::read(bed.path("target/dir/0")).unwrap(), b"mark");
    let memory = bed.hub.memory().reports.iter().skip(reports).filter(|(of, _, _)| *of == id).count();
    assert_eq!(memory, 0, "a report that is stored is not repeated");
    running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_migration_leaves_nothing_and_a_home_can_be_removed() {
    let bed = Bed::new().await;
    bed.write("a", b"12345");
    let agent = agent(&bed.data()).await;
    let id = bed.hub.assign(Work::Migrate(bed.migrate()));
    bed.hub.report(&id, "a finished copy", migrated(MigratePhase::Done)).await;
    bed.hub.assign(Work::Migrate(MigrateWork { cancel: true, ..bed.migrate() }));
    let (generation, _) = bed.hub.report(&id, "a discarded copy", migrated(MigratePhase::Discarded)).await;
    assert_eq!((generation, bed.path("target").exists()), (2, false));

    let other = MigrateWork { operation: "op-2".to_owned(), ..bed.migrate() };
    let id = bed.hub.assign(Work::Migrate(other));
    bed.hub.report(&id, "another copy", migrated(MigratePhase::Done)).await;
    bed.hub.withdraw(&id);
    forgotten(&bed.data(), &id).await;
    assert_eq!(tree(&bed.path("target")), tree(&bed.path("source")), "what is done is a home: it stays");
    let id = bed.hub.assign(Work::Remove(RemoveWork { dataset: dataset(), target: bed.endpoint("target") }));
    bed.hub.report(&id, "a removed home", |report| matches!(report, Report::Remove(remove) if remove.removed)).await;
    assert!(!bed.path("target").exists());
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_has_to_change_ends_the_work_with_a_reason() {
    let bed = Bed::new().await;
    let agent = agent(&bed.data()).await;
    let work =
        ScanWork { dataset: dataset(), generation: 1, request: String::new(), sources: vec![bed.endpoint("missing")] };
    let id = bed.hub.assign(Work::Scan(work));
    let failed = |report: &Report| matches!(report, Report::Scan(scan) if scan.problem.is_some());
    let (_, Report::Scan(scan)) = bed.hub.report(&id, "a failed scan", failed).await else { unreachable!() };
    let problem = scan.problem.unwrap();
    assert_eq!((problem.reason.as_str(), problem.retrying), ("NotFound", false), "{problem:?}");
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_death_of_the_hub_only_news_comes_and_after_a_restore_everything() {
    let mut bed = Bed::new().await;
    bed.write("a", b"12345");
    let agent = agent(&bed.data()).await;
    let mut states = agent.state();
    bed.scanned(1).await;
    let revision = bed.hub.memory().revision;
    bed.hub.die().await;
    state(&mut states, |state| *state == UplinkState::Connecting).await;
    bed.hub.revive().await;
    bed.scanned(2).await;
    let hello = bed.hub.memory().hellos.last().unwrap().1.clone();
    assert_eq!((hello.epoch, hello.cursor), (1, revision), "the agent goes on where it was");

    // A hub of another history that wants something else with an older generation.
    bed.hub.die().await;
    state(&mut states, |state| *state == UplinkState::Connecting).await;
    let old = bed.scan(9);
    bed.hub.with(|memory| {
        memory.epoch = 2;
        memory.revision = 1;
        memory.wishes = BTreeMap::from([(old.id(), (1, Some((1, old.clone()))))]);
        memory.reports.clear();
        memory.acks.clear();
    });
    bed.hub.revive().await;
    let wanted = |report: &Report| matches!(report, Report::Scan(scan) if scan.generation == 9);
    let (generation, _) = bed.hub.report(&old.id(), "the old wish fulfilled", wanted).await;
    assert_eq!(generation, 1);
    assert!(bed.hub.memory().acks.iter().all(|(_, _, refused)| refused.is_empty()));
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_while_the_hub_is_away_and_is_reported_until_it_is_stored() {
    let mut bed = Bed::new().await;
    bed.write("a", b"12345");
    bed.hub.with(|memory| memory.store_reports = false);
    let running = agent(&bed.data()).await;
    bed.scanned(1).await;
    bed.hub.die().await;
    running.shutdown().await;
    let running = agent(&bed.data()).await;
    bed.hub.with(|memory| {
        memory.reports.clear();
        memory.store_reports = true;
    });
    bed.hub.revive().await;
    let id = bed.scan(1).id();
    bed.hub
        .report(&id, "the report again", |report| matches!(report, Report::Scan(scan) if scan.found.is_some()))
        .await;
    running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_and_used_without_a_restart() {
    let bed = Bed { hub: Hub::start().await, dir: tempfile::tempdir().unwrap() };
    // Certificates begin a minute before they are issued: this one is past half of its life.
    bed.hub.with(|memory| memory.leaf_lifetime = Duration::from_secs(40));
    bed.hub.join(&bed.data()).await;
    let before = fs::read(bed.data().join("cert.pem")).unwrap();
    let agent = agent(&bed.data()).await;
    let serials = bed.hub.until("a second session", |memory| {
        (memory.hellos.len() >= 2).then(|| memory.hellos.iter().map(|(serial, _)| serial.clone()).collect::<Vec<_>>())
    });
    let serials = serials.await;
    assert_ne!(serials[0], serials[1], "the new session speaks with the new certificate");
    assert_eq!(bed.hub.memory().renewals, 1);
    assert_ne!(fs::read(bed.data().join("cert.pem")).unwrap(), before);
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_identity_is_told_apart_from_a_taken_one() {
    let bed = Bed::new().await;
    bed.hub.with(|memory| memory.refuse = Some(Status::permission_denied("revoked")));
    let running = agent(&bed.data()).await;
    state(&mut running.state(), |state| *state == UplinkState::Revoked { message: "revoked".to_owned() }).await;
    running.shutdown().await;
    bed.hub.with(|memory| memory.refuse = Some(Status::failed_precondition("taken")));
    let running = agent(&bed.data()).await;
    state(&mut running.state(), |state| *state == UplinkState::Conflict { message: "taken".to_owned() }).await;
    running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_again_keeps_key_and_instance_and_no_other_cluster_gets_the_directory() {
    let bed = Bed::new().await;
    let read = |name: &str| fs::read_to_string(bed.data().join(name)).unwrap();
    let (key, agent) = (read("key.pem"), read("agent.json"));
    bed.hub.join(&bed.data()).await;
    assert_eq!((read("key.pem"), read("agent.json")), (key, agent));
    let other = JoinConfig {
        hub: bed.hub.address.to_string(),
        token: bed.hub.token(),
        data_dir: bed.data(),
        cluster: Some("other".to_owned()),
        node: None,
    };
    let error = join(other).await.unwrap_err();
    assert!(matches!(&error, join::Error::OtherCluster { cluster, .. } if cluster == CLUSTER));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_to_no_hub_but_the_one_it_pins_and_the_key_is_kept_for_another_attempt() {
    let (right, wrong) = (Hub::start().await, Hub::start().await);
    let dir = tempfile::tempdir().unwrap();
    let config = |hub: &Hub| JoinConfig {
        hub: hub.address.to_string(),
        token: right.token(),
        data_dir: dir.path().to_owned(),
        cluster: Some(CLUSTER.to_owned()),
        node: None,
    };
    let error = join(config(&wrong)).await.unwrap_err();
    assert!(matches!(error, join::Error::Connect(_)), "{error:?}");
    let key = fs::read(dir.path().join("key.pem")).unwrap();
    join(config(&right)).await.unwrap();
    assert_eq!(fs::read(dir.path().join("key.pem")).unwrap(), key);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_has_not_joined_starts_no_agent() {
    let dir = tempfile::tempdir().unwrap();
    let config = AgentConfig { data_dir: dir.path().to_owned(), ..Default::default() };
    let error = Agent::start(config).await.unwrap_err();
    assert!(matches!(error, StartError::NotJoined { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_recovers_takes_nothing_away_and_one_that_was_replaced_is_not_listened_to() {
    let mut bed = Bed::new().await;
    bed.write("a", b"12345");
    let agent = agent(&bed.data()).await;
    let mut states = agent.state();
    let version = bed.scanned(1).await;
    let cache = |name: &str, root: &str| {
        Work::Cache(CacheWork {
            dataset: DatasetKey { namespace: "default".into(), name: name.into(), uid: name.into() },
            root: root.to_owned(),
            sources: vec![bed.endpoint("source")],
            paths: Vec::new(),
            pinned: false,
            on_demand: false,
        })
    };
    let held = [cache("known", &version.root.to_string()), cache("unknown", &version.root.to_string())];
    let ready = |report: &Report| matches!(report, Report::Cache(cache) if cache.phase == "Ready");
    for work in &held {
        let id = bed.hub.assign(work.clone());
        bed.hub.report(&id, "a full cache", ready).await;
    }
    let (known, unknown) = (held[0].id(), held[1].id());

    // Restored from before: one dataset is at an earlier version, the other was not there.
    let earlier = cache("known", &"0".repeat(64));
    bed.hub.die().await;
    state(&mut states, |state| *state == UplinkState::Connecting).await;
    bed.hub.with(|memory| {
        (memory.epoch, memory.recovering, memory.revision) = (5, true, 1000);
        memory.wishes = BTreeMap::from([(known.clone(), (1000, Some((1000, earlier.clone()))))]);
        memory.reports.clear();
        memory.acks.clear();
    });
    bed.hub.revive().await;
    let refused = |id: &str, memory: &support::Memory| {
        memory.acks.iter().find(|(of, ..)| of == id).map(|(_, _, refused)| refused.clone())
    };
    let kept = bed.hub.until("an answer", |memory| refused(&known, memory)).await;
    assert!(kept.contains("kept as it is"), "{kept}");
    for id in [&known, &unknown] {
        bed.hub.report(id, "what it holds, said again", ready).await;
    }
    // What is new is done meanwhile.
    let found = bed.scanned(7).await;
    assert_eq!(found.root, version.root);
    bed.hub.withdraw(&known);
    bed.hub
        .until("the withdrawal refused", |memory| {
            let mut all = memory.acks.iter().filter(|(of, ..)| *of == known);
            all.any(|(_, generation, refused)| *generation > 1000 && refused.contains("kept")).then_some(())
        })
        .await;

    // The hub of before, left running: not listened to, whatever it wants.
    bed.hub.die().await;
    state(&mut states, |state| *state == UplinkState::Connecting).await;
    let hellos = bed.hub.memory().hellos.len();
    bed.hub.with(|memory| (memory.epoch, memory.recovering) = (1, false));
    bed.hub.revive().await;
    let hello = bed.hub.until("two tries", |memory| memory.hellos.get(hellos + 1).cloned()).await.1;
    assert_eq!((hello.epoch, hello.newest_epoch), (1, 5), "what the recovering hub knew is not noted as known");
    assert!(!matches!(*states.borrow(), UplinkState::Connected { .. }));

    // Caught up: what the hub does not know goes now.
    bed.hub.die().await;
    bed.hub.with(|memory| {
        memory.epoch = 5;
        memory.revision = 2000;
        memory.wishes = BTreeMap::from([(known.clone(), (2000, Some((2000, held[0].clone()))))]);
    });
    bed.hub.revive().await;
    forgotten(&bed.data(), &unknown).await;
    let (generation, _) = bed.hub.report(&known, "the cache of the new assignment", ready).await;
    assert!(generation >= 1, "it was never given up");
    agent.shutdown().await;
}
