//! Datasets whose sources are neither paths nor S3: migrated, mounted and compared.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::path::Path;

use fluvial_tests::federation::Up;
use fluvial_tests::hdfs::Hdfs;
use fluvial_tests::minio::Minio;
use fluvial_tests::mount::Mounted;
use fluvial_tests::tree;

#[test]
fn a_dataset_on_hdfs_goes_to_s3_and_to_a_path_and_is_mounted() {
    let minio = Minio::start();
    minio.create_bucket("bucket");
    let up = Up::start(1, &["onprem"]);
    let api = &up.api;
    let source = up.folder().join("source");
    tree::make(&source, 21, 120, 60_000);
    fs::write(source.join("large.bin"), tree::bytes(5, 20 << 20)).unwrap();
    let hdfs = Hdfs::start(&source, "/data/set");
    let uri = format!("webhdfs://{}/data/set", hdfs.address);
    api.fluvial(&[
        "dataset",
        "create",
        "tree",
        "--mount",
        &uri,
        "--option",
        "user_name=root",
        "--wait",
        "--timeout",
        "120s",
    ])
    .unwrap();
    api.s3_storage("s3", "onprem", "bucket/homes", &minio);
    api.path_storage("disk", "onprem", &up.folder().join("disk"));
    // Straight from HDFS, before there is any home.
    let mounted = Mounted::new(api, "tree", up.folder().join("mounted"));
    assert_eq!(tree::difference(&source, &up.folder().join("mounted")), "");
    drop(mounted);

    api.fluvial(&["migrate", "tree", "--to", "s3", "--verify", "read-back", "--wait", "--timeout", "120s"]).unwrap();
    // A home is nearer than the sources: this one comes from S3.
    api.fluvial(&["migrate", "tree", "--to", "disk", "--wait", "--timeout", "120s"]).unwrap();

    let home = api.home("tree", "disk");
    assert_eq!(tree::difference(&source, Path::new(home.strip_prefix("file://").unwrap())), "");
}

#[test]
fn places_that_are_only_read_are_no_storages_and_what_is_wrong_with_them_is_said() {
    let up = Up::start(1, &["onprem"]);
    let api = &up.api;
    for uri in ["webhdfs://localhost:9870/homes", "https://mirror.example.org/homes/"] {
        let refused = api.fluvial(&["storage", "create", "st", "--uri", uri, "--cluster", "onprem"]).unwrap_err();
        assert!(refused.contains("spec.uri") && refused.contains("only read"), "{refused}");
    }
    let refused = api.fluvial(&["dataset", "create", "d", "--mount", "https://user:hunter2@host/x"]).unwrap_err();
    assert!(refused.contains("credentials") && !refused.contains("hunter2"), "{refused}");
    api.fluvial(&["dataset", "create", "away", "--mount", "webhdfs://127.0.0.1:1/data"]).unwrap();
    let scanned = api.wait_until("dataset", "away", "/status/conditions", |conditions| {
        conditions.to_string().contains("cannot be reached")
    });
    assert!(scanned.to_string().contains("webhdfs://127.0.0.1:1/data"), "{scanned}");
}
