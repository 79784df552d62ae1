//! Datasets and their caches, through the command line and `kubectl`: what lies in a folder or a bucket is listed, read,
//! compared, placed and taken away again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::process::Command;

use fluvial_tests::federation::{DEADLINE, Up};
use fluvial_tests::minio::Minio;
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;

#[test]
fn a_folder_is_listed_read_and_compared() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let (one, other) = (up.folder().join("one"), up.folder().join("other"));
    tree::make(&one, 7, 120, 5000);
    fs::create_dir_all(one.join("sub")).unwrap();
    fs::write(one.join("sub/known name.txt"), "what is in it\n").unwrap();
    assert!(Command::new("cp").arg("-a").args([&one, &other]).status().unwrap().success());
    fs::write(other.join("sub/known name.txt"), "something else\n").unwrap();
    fs::write(other.join("new.bin"), [0, 159, 146, 150]).unwrap();

    let status = api.path_dataset("one", &one)["status"].clone();
    api.path_dataset("other", &other);

    let bytes: u64 = walk(&one).iter().map(|file| file.metadata().unwrap().len()).sum();
    assert_eq!(status["files"], walk(&one).len(), "{status}");
    assert_eq!(status["totalBytes"], bytes, "{status}");
    let listed = api.fluvial(&["dataset", "ls", "one:sub"]).unwrap();
    assert_eq!(listed.trim(), "known name.txt");
    assert_eq!(api.fluvial(&["dataset", "cat", "one", "sub/known name.txt"]).unwrap(), "what is in it\n");
    let differences = api.fluvial(&["dataset", "diff", "one", "other"]).unwrap();
    for path in ["sub/known name.txt", "new.bin"] {
        assert!(differences.contains(path), "{differences}");
    }
    assert!(!differences.contains(".dat"), "only what differs is shown: {differences}");
    let missing = api.fluvial(&["dataset", "cat", "one", "sub/no such"]).unwrap_err();
    assert!(missing.contains("no such"), "{missing}");
}

#[test]
fn a_bucket_written_by_another_tool_is_a_dataset_and_its_keys_stay_secret() {
    let minio = Minio::start();
    minio.create_bucket("theirs");
    for n in 0..30 {
        minio.put_object("theirs", &format!("data/part {n}/ü-{n}.bin"), &tree::bytes(n, 1000));
    }
    let up = Up::start(1, &["a"]);
    let api = &up.api;

    let dataset = api.s3_dataset("theirs", "theirs/data", &minio);

    assert_eq!(dataset["status"]["files"], 30);
    assert_eq!(dataset["status"]["totalBytes"], 30_000);
    assert_eq!(
        api.command().args(["dataset", "cat", "theirs", "part 3/ü-3.bin"]).output().unwrap().stdout,
        tree::bytes(3, 1000)
    );
    let rows = api.query("select name, files, total_bytes from datasets").unwrap();
    assert_eq!(rows[0]["files"], 30, "{rows}");
    let everything = api.kubectl(&["get", "datasets,storages,events", "-A", "-o", "yaml"]).unwrap()
        + &api.fluvial(&["query", "-o", "json", "select * from datasets"]).unwrap()
        + &api.fluvial(&["describe", "dataset", "theirs"]).unwrap()
        + &fs::read_to_string(up.folder().join("up.log")).unwrap();
    assert!(!everything.contains(&minio.secret_key), "a secret is shown");
}

#[test]
fn placements_follow_names_labels_count_and_spread_and_caches_follow_placements() {
    let minio = Minio::start();
    minio.create_bucket("data");
    for n in 0..20 {
        minio.put_object("data", &format!("f{n}"), &tree::bytes(n, 10_000));
    }
    let up = Up::start(1, &["a", "b", "c"]);
    let api = &up.api;
    for (cluster, zone, gpu) in [("a", "z1", "yes"), ("b", "z1", "yes"), ("c", "z2", "yes")] {
        let labels = [&format!("topology.kubernetes.io/zone={zone}"), &format!("gpu={gpu}")];
        api.kubectl(&["label", "cluster", cluster, labels[0], labels[1]]).unwrap();
    }
    api.s3_dataset("hot", "data", &minio);
    let clusters = |placement: &str, wanted: usize| {
        let placed = api.wait_until("placement", placement, "/status/clusters", |clusters| {
            clusters.as_array().is_some_and(|clusters| clusters.len() == wanted)
        });
        placed["status"]["clusters"].as_array().unwrap().iter().map(|c| c.as_str().unwrap().to_owned()).collect()
    };

    api.fluvial(&[
        "placement",
        "create",
        "by-name",
        "--dataset",
        "hot",
        "--cluster",
        "b",
        "--wait",
        "--timeout",
        "60s",
    ])
    .unwrap();
    assert_eq!(clusters("by-name", 1), Vec::<String>::from(["b".into()]));
    let cached = "select cluster, cached_bytes, phase from cache_locations order by cluster";
    let rows = api.query(cached).unwrap();
    assert_eq!(rows[0]["cluster"], "b", "{rows}");
    assert_eq!(rows[0]["cached_bytes"], 200_000, "{rows}");

    api.fluvial(&[
        "placement",
        "create",
        "spread",
        "--dataset",
        "hot",
        "--cluster-selector",
        "gpu=yes",
        "--count",
        "2",
        "--spread-by",
        "zone",
        "--wait",
        "--timeout",
        "60s",
    ])
    .unwrap();
    let spread: Vec<String> = clusters("spread", 2);
    assert!(spread.contains(&"c".to_owned()), "one of two zones has only c: {spread:?}");
    let reasons = api.fluvial(&["describe", "placement", "spread"]).unwrap();
    for cluster in ["a", "b", "c"] {
        assert!(reasons.lines().any(|line| line.contains(cluster)), "every cluster has its reason: {reasons}");
    }

    for placement in ["by-name", "spread"] {
        api.fluvial(&["delete", "placement", placement, "--wait"]).unwrap();
    }
    wait_for(DEADLINE, "the caches to be taken away", || {
        let rows = api.query(cached).unwrap();
        if rows.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(rows) }
    });
    let used = "select name, used_bytes from clusters";
    wait_for(DEADLINE, "the disks to be free again", || {
        let rows = api.query(used).unwrap();
        if rows.as_array().unwrap().iter().all(|row| row["used_bytes"] == 0) { Ok(()) } else { Err(rows) }
    });
}

/// All files below a folder.
#[test]
fn sources_that_change_are_listed_again_on_request_and_in_time() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let source = up.folder().join("source");
    fs::create_dir_all(source.join("kept")).unwrap();
    fs::write(source.join("kept/file"), "kept").unwrap();
    fs::write(source.join("gone"), "gone").unwrap();
    let first = api.path_dataset("set", &source)["status"]["root"].as_str().unwrap().to_owned();
    let unchanged = api.fluvial(&["dataset", "rescan", "set"]).unwrap();
    assert!(unchanged.contains("nothing changed"), "{unchanged}");

    fs::remove_file(source.join("gone")).unwrap();
    fs::write(source.join("new"), "new").unwrap();
    let changed = api.fluvial(&["dataset", "rescan", "set"]).unwrap();

    assert!(changed.contains("2 files") && changed.contains("a new version"), "{changed}");
    let differs = api.fluvial(&["dataset", "diff", "set", &first]).unwrap();
    assert!(differs.contains("gone") && differs.contains("new") && !differs.contains("kept/file"), "{differs}");
    let before = api.fluvial(&["dataset", "ls", "set", "--root", &first]).unwrap();
    assert!(before.contains("gone") && !before.contains("new"), "the version before can still be looked at: {before}");

    let every = "fluvial.io/rescan-every";
    let refused = api.kubectl(&["annotate", "dataset", "set", &format!("{every}=1s")]).unwrap_err();
    assert!(refused.contains(every) && refused.contains("5s"), "{refused}");
    api.kubectl(&["annotate", "dataset", "set", &format!("{every}=5s")]).unwrap();
    fs::write(source.join("later"), "later").unwrap();
    api.wait_until("dataset", "set", "/status/files", |files| *files == 3);
    fs::remove_dir_all(&source).unwrap();
    let scanned = |object: &serde_json::Value| {
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|condition| condition["type"] == "Scanned").unwrap_or_default()
    };
    wait_for(DEADLINE, "the loss of the source to be told", || {
        let now = scanned(&api.get("dataset", "set").unwrap_or_default());
        if now["reason"] == "SourceUnreadable" { Ok(()) } else { Err(now.to_string()) }
    });
    let status = api.get("dataset", "set").unwrap()["status"].clone();
    assert_eq!((&status["phase"], &status["files"]), (&"Bound".into(), &3.into()), "{status}");
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}
