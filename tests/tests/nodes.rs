//! Clusters of several machines: one cache between them, and what happens when one of them dies.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use fluvial_tests::federation::{DEADLINE, Federation};
use fluvial_tests::minio::Minio;
use fluvial_tests::mount::Mounted;
use fluvial_tests::proxy::{Fault, Plan, Proxy};
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;

type Files = Arc<Vec<(String, Vec<u8>)>>;

/// Objects of a bucket: one of several ranges, some of several fetches, many small ones.
fn fill(minio: &Minio, large: usize) -> Files {
    minio.create_bucket("data");
    let mut files = vec![("large.bin".to_owned(), tree::bytes(1, large))];
    files.extend((0..3).map(|n| (format!("middle-{n}"), tree::bytes(10 + n, 9_000_001))));
    files.extend((0..40).map(|n| (format!("small/{n}"), tree::bytes(100 + n, 200_000 + 977 * n as usize))));
    for (name, contents) in &files {
        minio.put_object("data", name, contents);
    }
    Arc::new(files)
}

fn total(files: &Files) -> u64 {
    files.iter().map(|(_, contents)| contents.len() as u64).sum()
}

/// The cluster `a` with its agent and the nodes `n1` and `n2`, all of which know each other.
fn three(federation: &mut Federation) {
    federation.member_arguments = vec!["--listen".to_owned(), "127.0.0.1:0".to_owned()];
    federation.add_member("a");
    let api = federation.api.clone();
    api.wait_until("cluster", "a", "/status/address", |address| address.as_str().is_some_and(|a| !a.is_empty()));
    for node in ["n1", "n2"] {
        federation.add_node("a", node);
    }
    knows(federation, 3);
}

/// Waits until the cluster has so many nodes.
#[track_caller]
fn knows(federation: &Federation, count: usize) {
    federation.api.wait_until("cluster", "a", "/status/nodes", |nodes| nodes.as_array().map(Vec::len) == Some(count));
}

/// The dataset mounted on each of the three machines.
fn mounts(federation: &Federation) -> Vec<Mounted> {
    let place = |name: &str| federation.folder().join(format!("mount-{name}"));
    let on = |name: &str, arguments: &[&str]| Mounted::with(&federation.api, "set", place(name), arguments);
    vec![
        on("a", &["--cluster", "a"]),
        on("n1", &["--cluster", "a", "--node", "n1"]),
        on("n2", &["--cluster", "a", "--node", "n2"]),
    ]
}

/// Reads everything, beginning at another file each, and compares.
fn read(directory: &Path, files: &Files, first: usize) {
    for at in 0..files.len() {
        let (name, contents) = &files[(at + first) % files.len()];
        let found = fs::read(directory.join(name));
        let found = found.unwrap_or_else(|error| panic!("{name} in {}: {error}", directory.display()));
        assert!(found == *contents, "wrong bytes of {name} in {}", directory.display());
    }
}

fn read_all(mounted: &[Mounted], files: &Files) {
    std::thread::scope(|scope| {
        for (number, mount) in mounted.iter().enumerate() {
            scope.spawn(move || read(&mount.directory, files, number * 13));
        }
    });
}

#[test]
fn three_nodes_read_a_cold_dataset_and_the_source_gives_it_once() {
    let minio = Minio::start();
    let files = fill(&minio, 140_000_000);
    let proxy = Proxy::start(&minio.endpoint);
    let mut federation = Federation::start(1, &[]);
    three(&mut federation);
    let api = federation.api.clone();
    api.s3_dataset_at("set", "data", &minio, &proxy.endpoint);
    let mounted = mounts(&federation);
    proxy.take_bytes();

    read_all(&mounted, &files);

    let (given, once) = (proxy.bytes(), total(&files));
    assert!(given >= once, "{given} of {once}");
    assert!(given <= once + once / 10, "the source gave {given} bytes of a dataset of {once}");
    // Each holds what was opened on it, to the byte, and says so.
    wait_for(DEADLINE, "each node to say what it holds", || {
        let rows = api.query("select node, sum(cached_bytes) as held from cache_nodes group by node order by node")?;
        let held: Vec<Option<u64>> = rows.as_array().into_iter().flatten().map(|row| row["held"].as_u64()).collect();
        if held == [Some(once); 3] { Ok(()) } else { Err(rows.to_string()) }
    });
    for mount in &mounted {
        api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
    }

    // A cluster that goes takes the caches of all its machines with it.
    api.fluvial(&["dataset", "delete", "set"]).or_else(|_| api.kubectl(&["delete", "dataset", "set"])).unwrap();
    for node in ["n1", "n2"] {
        let objects = federation.node_dir(node).join("cache/objects");
        wait_for(DEADLINE, "a node to clean its cache", || {
            let left: usize = fs::read_dir(&objects)
                .map(|shelves| {
                    shelves.flatten().filter_map(|shelf| fs::read_dir(shelf.path()).ok()).map(Iterator::count).sum()
                })
                .unwrap_or_default();
            if left == 0 { Ok(()) } else { Err(format!("{left} files")) }
        });
    }
}

#[test]
fn an_owner_is_killed_in_mid_read_and_no_reader_notices() {
    let minio = Minio::start();
    let files = fill(&minio, 90_000_000);
    let proxy = Proxy::start(&minio.endpoint);
    let mut federation = Federation::start(1, &[]);
    three(&mut federation);
    let api = federation.api.clone();
    api.s3_dataset_at("set", "data", &minio, &proxy.endpoint);
    let mut mounted = mounts(&federation);
    // Nobody reads where the killing is done.
    let gone = mounted.pop().unwrap();
    proxy.set(Some(Plan { fault: Fault::Slow, every: 2 }));
    proxy.take_bytes();

    std::thread::scope(|scope| {
        for (number, mount) in mounted.iter().enumerate() {
            let files = &files;
            scope.spawn(move || read(&mount.directory, files, number * 13));
        }
        wait_for(DEADLINE, "some bytes to be read", || {
            if proxy.bytes() > 10_000_000 { Ok(()) } else { Err(proxy.bytes().to_string()) }
        });
        federation.kill_node("n2");
    });

    proxy.set(None);
    knows(&federation, 2);
    // It comes back, and takes its part again.
    federation.run_node("n2");
    knows(&federation, 3);
    // Without the agent that tells it what to do a node reads on, from other nodes and from the source.
    federation.kill_member("a");
    read(&gone.directory, &files, 0);
    federation.run_member("a");
    knows(&federation, 3);
    for mount in mounted.iter().chain([&gone]) {
        api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
    }
}

#[test]
fn a_node_has_a_name_of_its_own_and_is_refused_when_it_or_its_cluster_was_removed() {
    let mut federation = Federation::start(1, &[]);
    let token = {
        federation.member_arguments = vec!["--listen".to_owned(), "127.0.0.1:0".to_owned()];
        federation.add_member("a");
        federation.token(&["--cluster", "a"])
    };
    let api = federation.api.clone();
    federation.add_node("a", "n1");
    knows(&federation, 2);

    // Another machine of the same name.
    let other = federation.folder().join("other");
    let join = ["node", "join", "--hub", &federation.urls[0], "--token", &token, "--node-name", "n1", "--data-dir"];
    api.fluvial(&[&join[..], &[other.to_str().unwrap()]].concat()).unwrap();
    let mut command = api.command();
    command.args(["node", "run", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&other);
    let log = federation.folder().join("other.log");
    let process = fluvial_tests::federation::Process::start(&mut command, &log);
    wait_for(DEADLINE, "the second one to be refused", || {
        let log = fs::read_to_string(&log).unwrap_or_default();
        if log.contains("another machine is node \"n1\"") { Ok(()) } else { Err(log) }
    });
    process.kill();

    // One that was removed is cut off, and welcome again with another token.
    api.fluvial(&["node", "remove", "a", "n1"]).unwrap();
    wait_for(DEADLINE, "the node to be cut off", || {
        let log = federation.log("node-n1");
        if log.contains("was revoked") { Ok(()) } else { Err(log) }
    });
    knows(&federation, 1);
    federation.kill_node("n1");
    federation.add_node("a", "n1");
    knows(&federation, 2);

    // A mount on a machine that is not there says so.
    let missing = federation.folder().join("mount");
    let source = federation.folder().join("source");
    tree::make(&source, 3, 5, 1000);
    api.path_dataset("set", &source);
    let refused =
        api.fluvial(&["mount", "set", missing.to_str().unwrap(), "--cluster", "a", "--node", "n9", "--timeout", "5s"]);
    let refused = refused.unwrap_err();
    assert!(refused.contains("n9") && refused.contains("no session"), "{refused}");
    api.kubectl(&["delete", "dataset", "set"]).unwrap();

    api.fluvial(&["cluster", "remove", "a", "--timeout", "60s"]).unwrap();
    wait_for(DEADLINE, "the node to be refused", || {
        let log = federation.log("node-n1");
        if log.contains("join again") { Ok(()) } else { Err(log) }
    });
}
