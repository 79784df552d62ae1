//! SIGKILL in mid-copy: of the agent that copies, of the leading hub, of everything. The copy goes on by itself, and what
//! arrives is compared by `diff`. Who has been removed is not let in again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fluvial_tests::federation::{Api, DEADLINE, Federation, Up};
use fluvial_tests::minio::Minio;
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;

/// A tree that takes seconds to copy, a store of each kind, and the dataset `tree`.
fn prepare(api: &Api, folder: &Path, minio: &Minio) -> PathBuf {
    minio.create_bucket("bucket");
    let source = folder.join("source");
    tree::make(&source, 17, 1500, 20_000);
    fs::write(source.join("large.bin"), tree::bytes(5, 40 << 20)).unwrap();
    // It says whose disk the source lies on.
    api.path_storage("source", "onprem", &source);
    api.path_storage("disk", "onprem", &folder.join("disk"));
    api.s3_storage("s3", "cloud", "bucket/homes", minio);
    api.path_dataset("tree", &source);
    source
}

/// Brings what lies in the bucket back to a folder, and compares.
fn compare(api: &Api, source: &Path) {
    api.begin_migration("check", "tree", "disk");
    api.complete("check");
    let home = api.home("tree", "disk");
    assert_eq!(tree::difference(source, Path::new(home.strip_prefix("file://").unwrap())), "");
}

#[test]
fn the_agents_are_killed_on_the_way_there_and_on_the_way_back() {
    let minio = Minio::start();
    let mut federation = Federation::start(1, &["onprem", "cloud"]);
    let api = federation.api.clone();
    let source = prepare(&api, federation.folder(), &minio);

    api.begin_migration("there", "tree", "s3");
    for _ in 0..2 {
        let copying = api.in_mid_copy("there");
        assert_eq!(copying, "onprem", "only it has the folder");
        federation.kill_member(&copying);
        federation.run_member(&copying);
    }
    api.complete("there");

    // The only home is in the bucket now: the source's folder does not count as one.
    fs::rename(&source, source.with_extension("away")).unwrap();
    api.begin_migration("back", "tree", "disk");
    let copying = api.in_mid_copy("back");
    federation.kill_member(&copying);
    federation.run_member(&copying);
    api.complete("back");
    let home = api.home("tree", "disk");
    let home = Path::new(home.strip_prefix("file://").unwrap());
    assert_eq!(tree::difference(&source.with_extension("away"), home), "");
}

#[test]
fn the_leading_hub_of_three_is_killed_and_nothing_is_lost() {
    let minio = Minio::start();
    let mut federation = Federation::start(3, &["onprem", "cloud"]);
    let api = federation.api.clone();
    let source = prepare(&api, federation.folder(), &minio);

    api.begin_migration("there", "tree", "s3");
    api.in_mid_copy("there");
    let leader = federation.leader();
    federation.kill_hub(leader);
    let survivor = (1..=3).find(|hub| *hub != leader).unwrap();
    wait_for(DEADLINE, "the migration to end while a hub is away", || {
        let found = federation.on(survivor, &["get", "datamigrate", "there", "-o", "jsonpath={.status.phase}"])?;
        if found == "Complete" { Ok(()) } else { Err(found) }
    });
    federation.run_hub(leader);
    // The one that was away knows as much as the others.
    wait_for(DEADLINE, "the killed hub to catch up", || {
        let found = federation.on(leader, &["get", "datamigrate", "there", "-o", "jsonpath={.status.phase}"])?;
        if found == "Complete" { Ok(()) } else { Err(found) }
    });
    compare(&api, &source);
}

#[test]
fn all_of_it_is_killed_in_mid_copy_and_goes_on() {
    let minio = Minio::start();
    let mut up = Up::start(3, &["onprem", "cloud"]);
    let api = up.api.clone();
    let folder = up.folder().to_owned();
    let source = prepare(&api, &folder, &minio);
    api.fluvial(&[
        "placement",
        "create",
        "near",
        "--dataset",
        "tree",
        "--cluster",
        "onprem",
        "--wait",
        "--timeout",
        "60s",
    ])
    .unwrap();

    api.begin_migration("there", "tree", "s3");
    api.in_mid_copy("there");
    up.kill();
    up.run();

    assert_eq!(up.ready["pid"].as_u64().map(|pid| pid > 0), Some(true), "{}", up.ready);
    api.complete("there");
    api.wait_until("placement", "near", "/status/clusters", |clusters| clusters == &serde_json::json!(["onprem"]));
    compare(&api, &source);
    let clusters = api.query("select name, state from clusters order by name").unwrap();
    assert_eq!(clusters.as_array().map(Vec::len), Some(2), "{clusters}");
}

#[test]
fn either_side_is_restarted_in_any_order_and_work_is_done_once() {
    let minio = Minio::start();
    minio.create_bucket("bucket");
    let mut federation = Federation::start(1, &["a"]);
    let api = federation.api.clone();
    let source = federation.folder().join("source");
    tree::make(&source, 19, 100, 5000);
    api.s3_storage("s3", "a", "bucket", &minio);
    api.path_dataset("tree", &source);

    // The agent is away when the work is made, and the hub when the agent comes back.
    federation.kill_member("a");
    api.begin_migration("out", "tree", "s3");
    federation.kill_hub(1);
    federation.run_member("a");
    federation.run_hub(1);
    wait_for(DEADLINE, "the hub to answer again", || api.kubectl(&["get", "datamigrate", "out"]));
    api.complete("out");
    let home = api.home("tree", "s3");
    let written = minio.keys("bucket");

    // Both again, the other way round: what is done stays done.
    federation.kill_hub(1);
    federation.kill_member("a");
    federation.run_hub(1);
    federation.run_member("a");
    wait_for(DEADLINE, "the hub to answer again", || api.kubectl(&["get", "clusters"]));
    api.wait_until("cluster", "a", "/status/state", |state| state == "Ready");
    api.fluvial(&["migrate", "tree", "--to", "s3", "--wait", "--timeout", "60s"]).unwrap();
    assert_eq!(api.home("tree", "s3"), home);
    assert_eq!(minio.keys("bucket"), written, "the same version in the same store is there already");
}

#[test]
fn certificates_are_renewed_at_half_life_and_what_goes_on_does_not_notice() {
    let mut federation = Federation::start_with(1, &["a"], &["--certificate-lifetime", "16s"]);
    let api = federation.api.clone();
    let source = federation.folder().join("source");
    tree::make(&source, 29, 20, 1000);
    let now = |federation: &Federation| {
        [federation.hub_dir(1), federation.member_dir("a")].map(|folder| fs::read(folder.join("cert.pem")).unwrap())
    };
    let mut last = now(&federation);
    let began = Instant::now();
    // Two renewals of both take longer than one life.
    for round in 0..2 {
        let [hub, agent] = wait_for(DEADLINE, "new certificates", || {
            let found = now(&federation);
            if found[0] != last[0] && found[1] != last[1] { Ok(found) } else { Err(round) }
        });
        last = [hub, agent];
        let dataset = format!("made-in-round-{round}");
        assert_eq!(api.path_dataset(&dataset, &source)["status"]["files"], 20);
        assert_eq!(api.get("cluster", "a").unwrap()["status"]["state"], "Ready");
    }
    assert!(began.elapsed() > Duration::from_secs(8), "a certificate is not renewed long before half its life");
    // What was renewed is what it starts with again.
    federation.kill_member("a");
    federation.run_member("a");
    assert_eq!(api.path_dataset("made-after-a-start", &source)["status"]["files"], 20);
}

#[test]
fn a_removed_cluster_is_not_let_in_again() {
    let mut federation = Federation::start(1, &["a", "b"]);
    let api = federation.api.clone();

    api.fluvial(&["cluster", "remove", "a", "--wait"]).unwrap();
    assert_eq!(api.get("cluster", "a"), None);
    federation.kill_member("a");
    federation.run_member("a");

    wait_for(DEADLINE, "the agent to say that it is not let in", || {
        let log = federation.log("member-a");
        if log.contains("revoked") || log.contains("removed") { Ok(()) } else { Err(log) }
    });
    assert_eq!(api.get("cluster", "a"), None, "it does not come back by itself");
    assert_eq!(api.get("cluster", "b").unwrap()["status"]["state"], "Ready");
    // With a new token it may.
    let token = federation.token(&["--cluster", "a"]);
    federation.kill_member("a");
    fs::remove_dir_all(federation.member_dir("a")).unwrap();
    federation.join_member("a", &token).unwrap();
    federation.run_member("a");
    api.wait_until("cluster", "a", "/status/state", |state| state == "Ready");
}
