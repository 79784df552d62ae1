//! Loads on request, from outside: what `fluvial load` brings, what it leaves alone, and what a kill costs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fluvial_tests::federation::{DEADLINE, Federation, Up};
use fluvial_tests::minio::Minio;
use fluvial_tests::mount::{Mounted, mount_processes};
use fluvial_tests::proxy::{Fault, Plan, Proxy};
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;
use serde_json::Value;

/// Files below a directory.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() { files.extend(files_below(&entry.path())) } else { files.push(entry.path()) }
    }
    files
}

/// Bytes of files that are in memory, as util-linux counts them.
fn in_memory(files: &[PathBuf]) -> u64 {
    let output = Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).args(files).output();
    let output = output.expect("fincore is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).split_whitespace().map(|number| number.parse::<u64>().unwrap()).sum()
}

/// Has the kernel forget the contents of files.
fn forget(files: &[PathBuf]) {
    for file in files {
        let forgotten = Command::new("dd")
            .arg(format!("of={}", file.display()))
            .args(["oflag=nocache", "conv=notrunc,fdatasync", "count=0"])
            .output();
        assert!(forgotten.expect("dd is there").status.success());
    }
}

#[test]
fn a_load_brings_what_it_names_into_the_cache_and_into_memory() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let source = up.folder().join("source");
    fs::create_dir_all(source.join("model")).unwrap();
    fs::write(source.join("model/weights"), tree::bytes(1, 20 << 20)).unwrap();
    fs::write(source.join("model/small"), "x").unwrap();
    fs::write(source.join("other"), tree::bytes(2, 5 << 20)).unwrap();
    api.path_dataset("set", &source);

    let nobody = api.fluvial(&["load", "set", "--dry-run"]).unwrap_err();
    assert!(nobody.contains("no cluster holds the dataset"), "{nobody}");
    let unknown = api.fluvial(&["load", "sett"]).unwrap_err();
    assert!(unknown.contains("spec.dataset.name") && unknown.contains("there are: set"), "{unknown}");
    let mount = Mounted::new(api, "set", up.folder().join("mount"));
    let plan = api.fluvial(&["load", "set", "--dry-run"]).unwrap();
    assert!(plan.contains("25.00 MiB") && plan.contains("0 of 3"), "{plan}");

    let done =
        api.fluvial(&["load", "set", "--path", "/model/", "--wait", "--timeout", "60s", "--name", "one"]).unwrap();
    assert!(done.contains("one: Complete, 2 files, 20.00 MiB"), "{done}");
    let held = api.wait_until("cachelocation", "set.a", "/status/cachedFiles", |files| *files == 2);
    assert_eq!(held["status"]["cachedBytes"], (20 << 20) + 1, "{held}");
    fs::remove_file(source.join("model/weights")).unwrap();
    assert!(fs::read(mount.directory.join("model/weights")).unwrap() == tree::bytes(1, 20 << 20), "no source is left");
    let rows = api.query("select kind, dataset, phase, to_cluster, bytes_done, files_done from operations").unwrap();
    let expected: Value = serde_json::json!({
        "kind": "DataLoad", "dataset": "set", "phase": "Complete", "to_cluster": "a", "bytes_done": (20 << 20) + 1, "files_done": 2
    });
    assert_eq!(rows[0], expected);

    // Into memory: what the kernel has forgotten is there again.
    let cache: Vec<PathBuf> =
        files_below(up.folder()).into_iter().filter(|file| file.to_str().unwrap().contains("/objects/")).collect();
    assert_eq!(cache.len(), 2);
    forget(&cache);
    let before = in_memory(&cache);
    assert!(before < 10 << 20, "{before} bytes are in memory still");
    let done =
        api.fluvial(&["load", "set", "--path", "model", "--tier", "page-cache", "--wait", "--timeout", "60s"]).unwrap();
    assert!(done.contains("Complete"), "{done}");
    assert!(in_memory(&cache) >= 20 << 20);
    let loads: Value = serde_json::from_str(&api.kubectl(&["get", "dataloads", "-o", "json"]).unwrap()).unwrap();
    let warmed: Vec<u64> = loads["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|load| load["status"]["clusters"][0]["pageCacheBytes"].as_u64())
        .collect();
    assert_eq!(warmed, [(20 << 20) + 1]);
    api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

#[test]
fn a_dataload_of_fluid_is_taken_as_it_is_and_what_is_not_there_yet_is_refused() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let source = up.folder().join("source");
    tree::make(&source, 5, 20, 10_000);
    api.path_dataset("set", &source);
    api.fluvial(&["placement", "create", "everywhere", "--dataset", "set", "--cluster", "a"])
        .unwrap_or_else(|error| panic!("{error}"));
    let file = up.folder().join("load.yaml");
    let text = |more: &str| {
        format!(
            "apiVersion: data.fluid.io/v1alpha1\nkind: DataLoad\nmetadata:\n  name: warm\n  namespace: default\nspec:\n  \
             dataset:\n    name: set\n    namespace: default\n  loadMetadata: true\n  target:\n    - path: /\n      \
             replicas: 1\n{more}"
        )
    };
    let apply = |more: &str| {
        fs::write(&file, text(more)).unwrap();
        api.kubectl(&["apply", "-f", file.to_str().unwrap()])
    };
    for (more, why) in [
        ("  policy: Cron\n  schedule: \"* * * * *\"\n", "spec.policy"),
        ("  runAfter:\n    kind: DataLoad\n    name: x\n", "spec.runAfter"),
    ] {
        let refused = apply(more).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    fs::write(source.join("new"), "newer than the listing").unwrap();
    apply("").unwrap();
    let done = api.wait_until("dataload", "warm", "/status/phase", |phase| phase == "Complete");
    let held = api.wait_until("cachelocation", "set.a", "/status/phase", |phase| phase == "Ready");
    assert_eq!(done["status"]["progress"]["bytesDone"], held["status"]["totalBytes"], "the new file too: {done}");
    let seen = api.get("dataset", "set").unwrap();
    assert_eq!(done["status"]["progress"]["filesDone"], seen["status"]["files"], "{done}");
    assert_eq!(done["status"]["conditions"][0]["type"], "Complete", "{done}");
}

/// The bytes of parts that the index of a member's cache knows on the disk; of a copy, for the agent lets nobody else in.
fn noted(federation: &Federation, member: &str) -> u64 {
    let count = "import sqlite3, sys; print(sum(bin(b).count('1') for row in sqlite3.connect(sys.argv[1]).execute(\
                 'SELECT parts FROM unfinished') for b in row[0]) << 20)";
    let (directory, copy) = (federation.member_dir(member), tempfile::tempdir().unwrap());
    // In this order: what goes from the log into the file meanwhile is in both.
    for file in ["cache.db-wal", "cache.db"] {
        let _ = fs::copy(directory.join(file), copy.path().join(file));
    }
    let output = Command::new("python3").args(["-c", count]).arg(copy.path().join("cache.db")).output();
    String::from_utf8_lossy(&output.unwrap().stdout).trim().parse().unwrap_or(0)
}

#[test]
fn a_killed_agent_goes_on_where_it_was_in_files_that_were_not_complete() {
    let minio = Minio::start();
    minio.create_bucket("data");
    let contents = tree::bytes(71, 96 << 20);
    minio.put_object("data", "large", &contents);
    let proxy = Proxy::start(&minio.endpoint);
    let mut federation = Federation::start(1, &["m"]);
    federation.api.s3_dataset_at("set", "data", &minio, &proxy.endpoint);
    let mount = Mounted::new(&federation.api, "set", federation.folder().join("mount"));
    proxy.set(Some(Plan { fault: Fault::Slow, every: 1 }));
    federation.api.fluvial(&["load", "set", "--name", "warm"]).unwrap();
    let before = wait_for(DEADLINE, "a good part of the file to be noted", || {
        let bytes = noted(&federation, "m");
        if bytes >= 24 << 20 { Ok(bytes) } else { Err(bytes) }
    });
    federation.kill_member("m");
    // Nothing comes from the source until it is seen what is there.
    proxy.set(Some(Plan { fault: Fault::Status(503), every: 1 }));
    federation.run_member("m");
    federation.api.wait_until("cachelocation", "set.m", "/status/cachedBytes", |bytes| bytes.as_u64() >= Some(before));
    let read = proxy.bytes();
    proxy.set(None);

    federation.api.fluvial(&["op", "wait", "warm", "--timeout", "60s"]).unwrap();

    let rest = contents.len() as u64 - before;
    let fetched = proxy.bytes() - read;
    assert!(fetched <= rest, "{fetched} bytes were fetched after the kill, {rest} were not there");
    assert!(fs::read(mount.directory.join("large")).unwrap() == contents);
    federation.api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
    wait_for(DEADLINE, "the mount process to end", || {
        let left = mount_processes(federation.folder());
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn a_cancelled_load_ends_at_once_and_keeps_what_it_has_brought() {
    let minio = Minio::start();
    minio.create_bucket("data");
    minio.put_object("data", "a", &tree::bytes(1, 1 << 20));
    minio.put_object("data", "b", &tree::bytes(2, 200 << 20));
    let proxy = Proxy::start(&minio.endpoint);
    let up = Up::start(1, &["m"]);
    let api = &up.api;
    api.s3_dataset_at("set", "data", &minio, &proxy.endpoint);
    let mount = Mounted::new(api, "set", up.folder().join("mount"));
    proxy.set(Some(Plan { fault: Fault::Slow, every: 1 }));
    api.fluvial(&["load", "set", "--name", "warm"]).unwrap();
    api.wait_until("dataload", "warm", "/status/progress/filesDone", |files| *files == 1);
    api.fluvial(&["op", "cancel", "warm"]).unwrap();
    let refused = api.fluvial(&["op", "wait", "warm", "--timeout", "30s"]).unwrap_err();
    assert!(refused.contains("is Cancelled"), "{refused}");
    wait_for(DEADLINE, "the source to be left alone", || {
        let before = proxy.bytes();
        std::thread::sleep(std::time::Duration::from_millis(500));
        if proxy.bytes() == before { Ok(()) } else { Err(proxy.bytes()) }
    });
    api.wait_until("cachelocation", "set.m", "/status/cachedFiles", |files| *files == 1);
    api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}
