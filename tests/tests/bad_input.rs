//! What must be refused, through the real binary and a stock `kubectl`: each refusal names what is wrong, and nothing has
//! changed afterwards.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fluvial_tests::federation::{Api, DEADLINE, Federation, Up};
use fluvial_tests::minio::Minio;
use fluvial_tests::steps::{file_uri, s3_options};
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;
use serde_json::{Value, json};

/// Everything that the hub knows and that a refused write could have changed.
fn state(api: &Api) -> Value {
    let names = |kind: &str| api.kubectl(&["get", kind, "-A", "-o", "name"]).unwrap();
    json!(["datasets", "storages", "placements", "datamigrates", "secrets", "cachelocations"].map(names))
}

fn dataset(metadata: &Value, spec: &Value) -> String {
    json!({ "apiVersion": "data.fluid.io/v1alpha1", "kind": "Dataset", "metadata": metadata, "spec": spec }).to_string()
}

#[test]
fn bad_objects_are_refused_with_the_field_that_is_wrong() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let before = state(api);
    let named = |name: &str| json!({ "name": name, "namespace": "default" });
    let good = json!({ "mounts": [{ "mountPoint": "file:///srv", "name": "m" }] });
    let mounting = |uri: &str, path: &str| json!({ "mounts": [{ "mountPoint": uri, "path": path, "name": "m" }] });
    let long = "a".repeat(64);
    let cases = [
        ("malformed", r#"{"apiVersion": "data.fluid.io/v1alpha1", "kind": "Dataset", "metadata": {"#.to_owned(), ""),
        ("unknown field", dataset(&named("d"), &json!({ "mounts": [], "mountz": [] })), "mountz"),
        ("upper case", dataset(&named("Data"), &good), "metadata.name"),
        ("a digit first", dataset(&named("1data"), &good), "metadata.name"),
        ("64 letters", dataset(&named(&long), &good), "metadata.name"),
        ("an empty mount", dataset(&named("d"), &mounting("", "/")), "spec.mounts[0].mountPoint"),
        ("out of the mount", dataset(&named("d"), &mounting("file:///srv/../etc", "/")), "spec.mounts[0].mountPoint"),
        ("out of the dataset", dataset(&named("d"), &mounting("file:///srv", "/a/../..")), "spec.mounts[0].path"),
        ("NUL", dataset(&named("d"), &mounting("file:///srv", "/a\0b")), "spec.mounts[0].path"),
        ("a label", dataset(&json!({ "name": "d", "labels": { "x": "'; drop table datasets; --" } }), &good), "labels"),
    ];
    for (what, body, field) in cases {
        let file = up.folder().join("object.json");
        fs::write(&file, body).unwrap();
        // The hub's own word is wanted, not that of a client which knows the schema.
        let validate = if what == "unknown field" { "--validate=strict" } else { "--validate=false" };
        let refused = api.kubectl(&["create", validate, "-f", file.to_str().unwrap()]);
        let said = refused.expect_err(what);
        assert!(said.contains(field), "{what}: {said}");
    }
    // Too deep and too large for kubectl too: as they are.
    let depth = format!("{}1{}", "{\"deeper\":".repeat(5000), "}".repeat(5000));
    let size = dataset(&named("d"), &json!({ "mounts": [], "owner": { "x": "y".repeat(4 << 20) } }));
    for (what, body) in [("deeply nested", depth), ("oversized", size)] {
        let file = up.folder().join("object.json");
        fs::write(&file, body).unwrap();
        let path = "/apis/data.fluid.io/v1alpha1/namespaces/default/datasets";
        let said = api.kubectl(&["create", "--raw", path, "-f", file.to_str().unwrap()]).expect_err(what);
        assert!(!said.contains("panick") && !said.contains("EOF"), "{what}: {said}");
    }
    assert_eq!(state(api), before);
    // A scheme that nobody here reads is taken, as Fluid takes it, and the status says that it cannot be read.
    let odd = api.fluvial(&["dataset", "create", "odd", "--mount", "gopher://x/y", "--wait", "--timeout", "60s"]);
    assert!(odd.as_ref().is_err_and(|said| said.contains("gopher")), "{odd:?}");
    // The hub is well.
    fs::create_dir_all(up.folder().join("good")).unwrap();
    api.path_dataset("good", &up.folder().join("good"));
}

#[test]
fn names_that_a_dataset_cannot_hold_and_links_out_of_the_mount_are_refused() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let (latin, links) = (up.folder().join("latin"), up.folder().join("links"));
    fs::create_dir_all(&latin).unwrap();
    fs::create_dir_all(&links).unwrap();
    fs::write(latin.join(std::ffi::OsStr::from_bytes(b"caf\xe9.txt")), "x").unwrap();
    fs::write(up.folder().join("secret"), "not in the mount").unwrap();
    std::os::unix::fs::symlink("../secret", links.join("out")).unwrap();

    let said = api
        .fluvial(&["dataset", "create", "latin", "--mount", &file_uri(&latin), "--wait", "--timeout", "30s"])
        .unwrap_err();
    assert!(said.contains("caf\\xe9.txt") || said.contains("caf\\\\xe9.txt"), "{said}");

    // A link is kept as a link and never followed: what it points to is not part of the dataset.
    let linked =
        api.fluvial(&["dataset", "create", "links", "--mount", &file_uri(&links), "--wait", "--timeout", "30s"]);
    match linked {
        Err(said) => assert!(said.contains("out"), "{said}"),
        Ok(_) => {
            let read = api.fluvial(&["dataset", "cat", "links", "out"]);
            assert!(!read.unwrap_or_default().contains("not in the mount"), "a link led out of the mount");
        }
    }
}

#[test]
fn a_token_is_good_once_for_its_cluster_and_its_time() {
    let federation = Federation::start(1, &["a"]);
    let join = |name: &str, token: &str| {
        let folder = federation.folder().join(name);
        let folder = folder.to_str().unwrap();
        federation.api.fluvial(&[
            "member",
            "join",
            "--hub",
            &federation.urls[0],
            "--token",
            token,
            "--data-dir",
            folder,
        ])
    };
    let token = federation.token(&["--cluster", "once"]);
    let mut altered = token.clone().into_bytes();
    let last = altered.last_mut().unwrap();
    *last = if *last == b'a' { b'b' } else { b'a' };
    let altered = String::from_utf8(altered).unwrap();

    assert!(join("altered", &altered).is_err());
    join("first", &token).unwrap();
    let reused = join("second", &token).unwrap_err();
    assert!(reused.contains("used"), "{reused}");
    assert!(join("nonsense", "no-token").is_err());
    let made = Instant::now();
    let short = federation.token(&["--cluster", "late", "--ttl", "1s"]);
    wait_for(DEADLINE, "the token's second to be over", || {
        let age = made.elapsed();
        if age > Duration::from_millis(2500) { Ok(()) } else { Err(age) }
    });
    let expired = join("late", &short).unwrap_err();
    assert!(expired.contains("expired"), "{expired}");
    let clusters = federation.api.query("select name from clusters order by name").unwrap();
    assert!(clusters.as_array().unwrap().iter().all(|row| row["name"] != "late"), "{clusters}");
}

#[test]
fn a_second_agent_with_the_same_identity_is_refused_and_the_first_goes_on() {
    let mut federation = Federation::start(1, &["a"]);
    let twin = federation.member_dir("twin");
    let copied = Command::new("cp").arg("-a").arg(federation.member_dir("a")).arg(&twin).status().unwrap();
    assert!(copied.success());

    federation.run_member("twin");

    wait_for(DEADLINE, "the twin to be told", || {
        let log = federation.log("member-twin");
        if log.contains("another agent") || log.contains("already") { Ok(()) } else { Err(log) }
    });
    let folder = federation.folder().join("data");
    tree::make(&folder, 1, 5, 10);
    assert_eq!(federation.api.path_dataset("still", &folder)["status"]["files"], 5);
    assert_eq!(federation.api.get("cluster", "a").unwrap()["status"]["state"], "Ready");
}

#[test]
fn a_storage_that_cannot_take_it_fails_the_migration_with_the_reason() {
    let minio = Minio::start();
    minio.create_bucket("bucket");
    let up = Up::start(1, &["onprem", "cloud"]);
    let api = &up.api;
    let source = up.folder().join("source");
    tree::make(&source, 23, 40, 400_000);
    api.path_dataset("tree", &source);
    let small = Tmpfs::mount(&up.folder().join("small"), "size=2m");
    let frozen = Tmpfs::mount(&up.folder().join("frozen"), "ro,size=1m");
    let mut wrong = s3_options(&minio);
    wrong.last_mut().unwrap().push_str("-wrong");
    api.fluvial_with(&["storage", "create", "refuses", "--uri", "s3://bucket", "--cluster", "cloud"], &wrong).unwrap();
    api.path_storage("small", "cloud", &small.0);
    api.path_storage("frozen", "cloud", &frozen.0);

    let missing = api.fluvial(&["migrate", "tree", "--to", "nowhere", "--name", "m-nowhere"]).unwrap_err();
    assert!(missing.contains("nowhere"), "{missing}");
    for (storage, words) in [
        ("refuses", &["403", "SignatureDoesNotMatch", "credentials", "refused"][..]),
        ("small", &["space", "full", "room"]),
        ("frozen", &["read-only", "Read-only"]),
    ] {
        let name = format!("m-{storage}");
        let begun = api.fluvial(&["migrate", "tree", "--to", storage, "--name", &name]);
        let said = match begun {
            Err(said) => said,
            // It may wait for room or for better credentials, but says so; then it is cancelled.
            Ok(_) => {
                let found = api.wait_until("datamigrate", &name, "/status/message", |message| {
                    words.iter().any(|word| message.as_str().is_some_and(|message| message.contains(word)))
                });
                let status = found["status"].clone();
                if status["phase"] != "Failed" {
                    api.fluvial(&["op", "cancel", &name]).unwrap();
                }
                assert_ne!(api.ended(&name).0, "Complete");
                status["message"].as_str().unwrap().to_owned()
            }
        };
        assert!(words.iter().any(|word| said.contains(word)), "{storage}: {said}");
        assert!(!said.contains(&minio.secret_key), "{storage}: a secret is shown");
    }
    let homes = api.get("dataset", "tree").unwrap()["status"]["homes"].clone();
    assert!(homes.as_array().is_none_or(Vec::is_empty), "{homes}");
    let left = fs::read_dir(&small.0).unwrap().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let left: Vec<_> = left.iter().filter(|path| files(path) > 0).collect();
    assert!(left.is_empty(), "what did not fit is removed: {left:?}");
}

#[test]
fn statements_that_write_never_end_or_eat_memory_are_refused_and_the_hub_does_not_notice() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    api.apply(&dataset(
        &json!({ "name": "d", "labels": { "team": "a" } }),
        &json!({ "mounts": [{ "mountPoint": "file:///nowhere", "name": "m" }] }),
    ))
    .unwrap();
    for sql in [
        "delete from datasets",
        "update clusters set name = 'x'",
        "drop table datasets",
        "attach '/etc/passwd' as p",
        "pragma journal_mode = delete",
        "select load_extension('x')",
        "select 1; delete from datasets",
        "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n",
        "select hex(randomblob(2000000000))",
        "select group_concat(hex(zeroblob(100000000))) from datasets, clusters",
        "select * from no_such_table",
        "",
    ] {
        let said = api.query(sql).expect_err(sql);
        assert!(said.starts_with("error: ") && said.trim().lines().count() <= 3, "{sql}: {said}");
    }
    let label = "select count(*) as n from datasets where name = 'd'' or ''1''=''1'";
    assert_eq!(api.query(label).unwrap()[0]["n"], 0);
    assert_eq!(api.query("select name from datasets").unwrap(), json!([{ "name": "d" }]));
    let quick = Instant::now();
    api.kubectl(&["get", "clusters"]).unwrap();
    assert!(quick.elapsed() < DEADLINE);
}

/// How many files lie below a path.
fn files(path: &Path) -> usize {
    if !path.is_dir() {
        return 1;
    }
    fs::read_dir(path).unwrap().flatten().map(|entry| files(&entry.path())).sum()
}

/// A small file system, unmounted on drop.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(folder: &Path, options: &str) -> Self {
        fs::create_dir_all(folder).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder).status().unwrap();
        assert!(mounted.success(), "this test mounts a tmpfs and must run as root");
        Self(folder.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
