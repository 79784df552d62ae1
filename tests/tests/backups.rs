//! Backups and restores as users make them: repositories on a path and on S3, read and written by Debian's restic too, in
//! federations that know the dataset and in one that does not, with agents killed in the middle. What arrives is compared
//! by `diff`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fluvial_tests::federation::{Api, DEADLINE, Federation, Up, said};
use fluvial_tests::minio::Minio;
use fluvial_tests::steps::{file_uri, s3_options};
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;
use serde_json::Value;

const PASSWORD: &str = "correct horse";

/// A repository in a folder of a cluster.
fn path_repository(api: &Api, name: &str, cluster: &str, folder: &Path, more: &[&str]) {
    let uri = file_uri(folder);
    let arguments = ["repository", "create", name, "--uri", &uri, "--cluster", cluster, "--password", PASSWORD];
    api.fluvial(&[&arguments, more].concat()).unwrap();
}

fn s3_repository(api: &Api, name: &str, place: &str, minio: &Minio) {
    let uri = format!("s3://{place}");
    let arguments = ["repository", "create", name, "--uri", &uri, "--password", PASSWORD];
    api.fluvial_with(&arguments, &s3_options(minio)).unwrap();
}

fn backup(api: &Api, dataset: &str, repository: &str, name: &str) -> Value {
    let arguments = ["backup", dataset, "--repository", repository, "--name", name, "--wait", "--timeout", "120s"];
    api.fluvial(&arguments).unwrap();
    api.get("databackup", name).unwrap()
}

fn restic(repository: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("restic");
    command.args(["--no-cache", "--repo"]).arg(repository).args(arguments).env("RESTIC_PASSWORD", PASSWORD);
    said(command.output().expect("restic: run tests/bed/install"))
}

/// The folder that a `file://` home is.
fn folder(uri: &str) -> PathBuf {
    uri.strip_prefix("file://").unwrap_or_else(|| panic!("{uri} is no folder")).into()
}

#[test]
fn a_backup_on_s3_comes_back_in_another_cluster_and_in_a_federation_that_never_saw_the_dataset() {
    let minio = Minio::start();
    minio.create_bucket("backups");
    let up = Up::start(1, &["onprem", "cloud"]);
    let api = &up.api;
    let source = up.folder().join("source");
    tree::make(&source, 21, 300, 60_000);
    fs::write(source.join("quote'\"and\nnewline"), "odd").unwrap();
    fs::create_dir(source.join("hollow")).unwrap();
    // It says whose disk the source lies on.
    api.path_storage("source", "onprem", &source);
    api.path_dataset("tree", &source);
    api.kubectl(&["label", "dataset", "tree", "team=vision"]).unwrap();
    s3_repository(api, "vault", "backups/fluvial", &minio);

    let done = backup(api, "tree", "vault", "first");
    assert_eq!(done["status"]["executor"], "onprem", "only it has the files");
    let root = done["status"]["snapshot"]["root"].clone();
    let listed = api.fluvial(&["repository", "snapshots", "vault", "--refresh", "-o", "json"]).unwrap();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed[0]["dataset"], &listed[0]["root"]), (&"default/tree".into(), &root));

    // To a disk of the other cluster, as a home of the same dataset.
    api.path_storage("far", "cloud", &up.folder().join("far"));
    let arguments = ["restore", "tree", "--repository", "vault", "--to", "far", "--wait", "--timeout", "120s"];
    api.fluvial(&arguments).unwrap();
    assert_eq!(tree::difference(&source, &folder(&api.home("tree", "far"))), "");
    assert_eq!(api.get("dataset", "tree").unwrap()["status"]["root"], root);
    let operations = api.query("select kind, phase, bytes_done from operations order by kind").unwrap();
    assert_eq!(operations[0]["kind"], "DataBackup");
    assert_eq!((&operations[1]["kind"], &operations[1]["phase"]), (&"DataRestore".into(), &"Complete".into()));

    let other = Up::start(1, &["elsewhere"]);
    s3_repository(&other.api, "vault", "backups/fluvial", &minio);
    other.api.path_storage("disk", "elsewhere", &other.folder().join("disk"));
    let arguments = ["restore", "tree", "--repository", "vault", "--to", "disk", "--wait", "--timeout", "120s"];
    other.api.fluvial(&arguments).unwrap();
    let made = other.api.get("dataset", "tree").unwrap();
    assert_eq!(made["metadata"]["labels"]["team"], "vision", "the catalog entry came with the data");
    assert_eq!(made["spec"]["mounts"][0]["mountPoint"], file_uri(&source));
    assert_eq!((&made["status"]["root"], &made["status"]["phase"]), (&root, &"Bound".into()));
    assert_eq!(tree::difference(&source, &folder(&other.api.home("tree", "disk"))), "");
}

#[test]
fn restic_reads_our_repository_and_its_snapshots_become_datasets_and_directories() {
    let up = Up::start(1, &["onprem"]);
    let api = &up.api;
    let (source, repository) = (up.folder().join("source"), up.folder().join("repository"));
    tree::make(&source, 23, 100, 30_000);
    fs::create_dir(&repository).unwrap();
    api.path_dataset("tree", &source);
    path_repository(api, "disk", "onprem", &repository, &[]);
    backup(api, "tree", "disk", "ours");

    restic(&repository, &["check", "--read-data"]).unwrap();
    let target = up.folder().join("by-restic");
    restic(&repository, &["restore", "latest", "--target", target.to_str().unwrap()]).unwrap();
    assert_eq!(tree::difference(&source, &target.join("default/tree")), "");

    let theirs = up.folder().join("theirs");
    tree::make(&theirs, 29, 40, 5000);
    restic(&repository, &["backup", theirs.to_str().unwrap()]).unwrap();
    api.path_storage("homes", "onprem", &up.folder().join("homes"));
    let arguments = ["restore", "theirs", "--repository", "disk", "--to", "homes", "--wait", "--timeout", "60s"];
    api.fluvial(&arguments).unwrap();
    assert_eq!(tree::difference(&theirs, &folder(&api.home("theirs", "homes"))), "");

    // One file of ours, to a directory.
    let files = fs::read_dir(&source).unwrap().map(|entry| entry.unwrap());
    let one = files.filter(|entry| entry.file_type().unwrap().is_file()).map(|entry| entry.file_name()).next().unwrap();
    let directory = up.folder().join("one");
    let words = [one.to_str().unwrap(), directory.to_str().unwrap()];
    let place = ["--cluster", "onprem", "--directory", words[1], "--path", words[0]];
    let arguments = ["restore", "tree", "--repository", "disk", "--wait", "--timeout", "60s"];
    api.fluvial(&[arguments.as_slice(), &place].concat()).unwrap();
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    assert_eq!(fs::read(directory.join(&one)).unwrap(), fs::read(source.join(&one)).unwrap());
}

#[test]
fn retention_check_and_what_is_wrong_are_told() {
    let up = Up::start(1, &["onprem"]);
    let api = &up.api;
    let (source, repository) = (up.folder().join("source"), up.folder().join("repository"));
    fs::create_dir_all(&source).unwrap();
    fs::create_dir(&repository).unwrap();
    fs::write(source.join("f"), tree::bytes(1, 3 << 20)).unwrap();
    api.path_dataset("tree", &source);
    path_repository(api, "disk", "onprem", &repository, &["--keep-last", "2"]);
    for round in 0..3 {
        fs::write(source.join("f"), tree::bytes(10 + round, 3 << 20)).unwrap();
        api.fluvial(&["dataset", "rescan", "tree"]).unwrap();
        let done = backup(api, "tree", "disk", &format!("round-{round}"));
        let forgotten = done["status"]["forgotten"].as_u64().unwrap_or_default();
        assert_eq!(forgotten, u64::from(round == 2), "{}", done["status"]);
    }
    api.wait_until("backuprepository", "disk", "/status/snapshotCount", |count| *count == 2);
    assert!(api.fluvial(&["repository", "check", "disk", "--read-data"]).unwrap().contains("no problems"));
    assert!(api.fluvial(&["repository", "prune", "disk"]).unwrap().contains("0 forgotten, 2 snapshots left"));

    // The same repository with another password, and one that is not there.
    let uri = file_uri(&repository);
    let wrong = ["repository", "create", "wrong", "--uri", &uri, "--cluster", "onprem", "--password", "guess"];
    let refused = api.fluvial(&wrong).unwrap_err();
    assert!(refused.contains("the password is wrong"), "{refused}");
    let failed = api.fluvial(&["backup", "tree", "--repository", "wrong", "--wait", "--timeout", "60s"]).unwrap_err();
    assert!(failed.contains("WrongPassword") && failed.contains("the password is wrong"), "{failed}");
    let unknown = api.fluvial(&["backup", "tree", "--repository", "nowhere"]).unwrap_err();
    assert!(unknown.contains("nowhere"), "{unknown}");

    let packs =
        Command::new("find").arg(repository.join("data")).args(["-type", "f", "-size", "+1M"]).output().unwrap();
    let packs = String::from_utf8(packs.stdout).unwrap();
    let pack = packs.lines().next().unwrap();
    let mut bytes = fs::read(pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(pack, bytes).unwrap();
    let damaged = api.fluvial(&["repository", "check", "disk", "--read-data"]).unwrap_err();
    assert!(damaged.contains("is damaged"), "{damaged}");
    let condition = api.get("backuprepository", "disk").unwrap()["status"]["conditions"][0].clone();
    assert_eq!((&condition["status"], &condition["reason"]), (&"False".into(), &"Damaged".into()));
}

/// Waits until an operation has moved some bytes and has not ended.
#[track_caller]
fn in_the_middle(api: &Api, kind: &str, name: &str) {
    wait_for(DEADLINE, "some bytes to be moved", || {
        let status = api.get(kind, name).ok_or("gone")?["status"].clone();
        let ended = ["Complete", "Failed", "Cancelled"].iter().any(|phase| status["phase"] == *phase);
        assert!(!ended, "{name} ended too soon to be disturbed: {status}");
        if status["progress"]["bytesDone"].as_u64() > Some(0) { Ok(()) } else { Err(status.to_string()) }
    });
}

#[test]
fn agents_are_killed_in_mid_backup_and_in_mid_restore_and_both_go_on() {
    let mut federation = Federation::start(1, &["onprem"]);
    let api = federation.api.clone();
    let (source, repository) = (federation.folder().join("source"), federation.folder().join("repository"));
    tree::make(&source, 31, 1500, 20_000);
    for number in 0..8 {
        fs::write(source.join(format!("large-{number}")), tree::bytes(40 + number, 48 << 20)).unwrap();
    }
    fs::create_dir(&repository).unwrap();
    api.path_dataset("tree", &source);
    path_repository(&api, "disk", "onprem", &repository, &[]);

    api.fluvial(&["backup", "tree", "--repository", "disk", "--name", "killed"]).unwrap();
    in_the_middle(&api, "databackup", "killed");
    federation.kill_member("onprem");
    assert_eq!(restic(&repository, &["snapshots", "--json", "--no-lock"]).unwrap().trim(), "[]", "whole or not there");
    federation.run_member("onprem");
    api.fluvial(&["op", "wait", "killed", "--timeout", "180s"]).unwrap();
    restic(&repository, &["check", "--read-data"]).unwrap();

    api.path_storage("homes", "onprem", &federation.folder().join("homes"));
    let arguments =
        ["restore", "again", "--from", "default/tree", "--repository", "disk", "--to", "homes", "--name", "back"];
    api.fluvial(&arguments).unwrap();
    in_the_middle(&api, "datarestore", "back");
    federation.kill_member("onprem");
    assert_eq!(api.get("dataset", "again"), None, "it counts when it is whole");
    federation.run_member("onprem");
    api.fluvial(&["op", "wait", "back", "--timeout", "180s"]).unwrap();
    assert_eq!(tree::difference(&source, &folder(&api.home("again", "homes"))), "");
}
