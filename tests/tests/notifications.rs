//! A store that tells of its changes: MinIO calls the hub, and the dataset has a new version.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use fluvial_tests::federation::Up;
use fluvial_tests::minio::{Minio, Webhook};
use serde_json::Value;

#[test]
fn what_is_put_into_a_bucket_is_a_new_version_soon_and_nobody_asked_for_it() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let ca_file = up.folder().join("ca.crt");
    let made = api.fluvial(&["hook", "create", "minio", "--ca-file", ca_file.to_str().unwrap()]).unwrap();
    let made: Value = serde_json::from_str(&made).unwrap();
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    let minio = Minio::start_with(Some(&Webhook { url: text("url"), token: text("token"), ca_file }));
    minio.create_bucket("data");
    minio.create_bucket("other");
    minio.put_object("data", "set/first", b"1");
    minio.put_object("data", "set2/first", b"1");
    let before = api.s3_dataset("set", "data/set", &minio)["status"].clone();
    let unconcerned = api.s3_dataset("outside", "data/set2", &minio)["status"]["scannedTime"].clone();
    minio.notify("data");
    minio.notify("other");

    minio.put_object("other", "set/not ours", b"x");
    for n in 0..50 {
        minio.put_object("data", &format!("set/später {n}"), b"22");
    }
    let after = api.wait_until("dataset", "set", "/status/files", |files| *files == 51);

    assert_ne!(after["status"]["root"], before["root"]);
    let root = before["root"].as_str().unwrap();
    let differs = api.fluvial(&["dataset", "diff", "set", root]).unwrap();
    assert!(differs.contains("set/später 7") || differs.contains("später 7"), "{differs}");
    let still = api.get("dataset", "outside").unwrap()["status"]["scannedTime"].clone();
    assert_eq!(still, unconcerned, "nothing changed there");
    let hook = api.get("sourcehook", "minio").unwrap();
    assert!(hook["status"]["message"].as_str().unwrap().contains("about "), "{hook}");
    let everything = api.kubectl(&["get", "sourcehooks,datasets,events", "-A", "-o", "yaml"]).unwrap()
        + &std::fs::read_to_string(up.folder().join("up.log")).unwrap();
    assert!(!everything.contains(&text("token")), "the token is shown");
}
