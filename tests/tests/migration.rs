//! Migrations between the stores of two clusters, as users start them; what arrives is compared by `diff`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::path::PathBuf;

use fluvial_tests::azurite::Azurite;
use fluvial_tests::federation::Up;
use fluvial_tests::minio::Minio;
use fluvial_tests::tree;

/// The folder that a `file://` home is.
fn folder(uri: &str) -> PathBuf {
    uri.strip_prefix("file://").unwrap_or_else(|| panic!("{uri} is no folder")).into()
}

#[test]
fn a_tree_goes_from_a_path_to_s3_to_s3_and_back_to_a_path() {
    let minio = Minio::start();
    ["first", "second"].iter().for_each(|bucket| minio.create_bucket(bucket));
    let up = Up::start(1, &["onprem", "cloud"]);
    let api = &up.api;
    let source = up.folder().join("source");
    tree::make(&source, 11, 400, 60_000);
    fs::write(source.join("large.bin"), tree::bytes(1, 30 << 20)).unwrap();
    api.path_storage("disk", "onprem", &up.folder().join("disk"));
    api.s3_storage("first", "cloud", "first/homes", &minio);
    api.s3_storage("second", "onprem", "second", &minio);
    api.path_dataset("tree", &source);

    for storage in ["first", "second", "disk"] {
        api.fluvial(&["migrate", "tree", "--to", storage, "--mode", "move", "--wait", "--timeout", "60s"]).unwrap();
        // The new home counts at once, the old one goes when what is in it is gone.
        api.wait_until("dataset", "tree", "/status/homes", |homes| homes.as_array().map(Vec::len) == Some(1));
        api.home("tree", storage);
    }

    assert_eq!(tree::difference(&source, &folder(&api.home("tree", "disk"))), "");
    assert_eq!(minio.keys("first"), Vec::<String>::new(), "what was moved on is not left behind");
    assert_eq!(minio.keys("second"), Vec::<String>::new(), "what was moved on is not left behind");
    let rows = api.query("select phase, count(*) as n from operations group by phase").unwrap();
    assert_eq!(rows, serde_json::json!([{ "phase": "Complete", "n": 3 }]));
}

#[test]
fn a_plan_alone_shows_route_and_bytes_and_copies_nothing() {
    let minio = Minio::start();
    minio.create_bucket("bucket");
    let up = Up::start(1, &["onprem", "cloud"]);
    let api = &up.api;
    let source = up.folder().join("source");
    tree::make(&source, 3, 50, 4000);
    api.path_storage("disk", "onprem", &up.folder().join("source"));
    api.s3_storage("s3", "cloud", "bucket", &minio);
    let bytes = api.path_dataset("tree", &source)["status"]["totalBytes"].clone();

    let plan = api.fluvial(&["migrate", "tree", "--to", "s3", "--dry-run", "-o", "json"]).unwrap();

    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    let text = plan.to_string();
    assert!(text.contains(&format!(":{bytes}")), "the bytes are named: {text}");
    assert!(text.contains("push") && text.contains("onprem"), "only onprem has the folder: {text}");
    assert_eq!(minio.keys("bucket"), Vec::<String>::new());
    let homes = api.get("dataset", "tree").unwrap()["status"]["homes"].clone();
    assert!(homes.as_array().is_none_or(Vec::is_empty), "{homes}");
}

#[test]
fn a_cancelled_migration_leaves_nothing_and_another_one_can_follow() {
    let minio = Minio::start();
    minio.create_bucket("bucket");
    let up = Up::start(1, &["onprem", "cloud"]);
    let api = &up.api;
    let source = up.folder().join("source");
    tree::make(&source, 5, 1500, 20_000);
    fs::write(source.join("large.bin"), tree::bytes(2, 40 << 20)).unwrap();
    api.s3_storage("s3", "cloud", "bucket/homes", &minio);
    api.path_dataset("tree", &source);

    api.begin_migration("first", "tree", "s3");
    api.in_mid_copy("first");
    api.fluvial(&["op", "cancel", "first"]).unwrap();

    assert_eq!(api.ended("first").0, "Cancelled");
    assert_eq!(minio.keys("bucket"), Vec::<String>::new());
    assert_eq!(minio.uploads(), Vec::<String>::new());
    let homes = api.get("dataset", "tree").unwrap()["status"]["homes"].clone();
    assert!(homes.as_array().is_none_or(Vec::is_empty), "{homes}");
    api.fluvial(&["migrate", "tree", "--to", "s3", "--wait", "--timeout", "60s"]).unwrap();
}

#[test]
fn of_two_migrations_of_one_dataset_at_once_the_second_is_refused() {
    let minio = Minio::start();
    ["bucket-one", "bucket-two"].iter().for_each(|bucket| minio.create_bucket(bucket));
    let up = Up::start(1, &["onprem", "cloud"]);
    let api = &up.api;
    let source = up.folder().join("source");
    tree::make(&source, 9, 800, 10_000);
    api.s3_storage("one", "cloud", "bucket-one", &minio);
    api.s3_storage("two", "cloud", "bucket-two", &minio);
    api.path_dataset("tree", &source);

    api.begin_migration("first", "tree", "one");
    let refused = api.fluvial(&["migrate", "tree", "--to", "two", "--name", "second"]).unwrap_err();

    assert!(refused.contains("\"first\"") && refused.contains("wait for it"), "{refused}");
    assert_eq!(api.get("datamigrate", "second"), None);
    api.complete("first");
    api.begin_migration("second", "tree", "two");
    api.complete("second");
    for storage in ["one", "two"] {
        api.home("tree", storage);
    }
}

#[test]
fn a_source_that_changes_in_mid_copy_is_noticed() {
    let minio = Minio::start();
    minio.create_bucket("bucket");
    let up = Up::start(1, &["onprem", "cloud"]);
    let api = &up.api;
    let source = up.folder().join("source");
    tree::make(&source, 13, 1200, 20_000);
    let changing = source.join("zz-last.bin");
    fs::write(&changing, tree::bytes(3, 20 << 20)).unwrap();
    api.s3_storage("s3", "cloud", "bucket", &minio);
    api.path_storage("disk", "onprem", &up.folder().join("disk"));
    api.path_dataset("tree", &source);

    api.begin_migration("out", "tree", "s3");
    api.in_mid_copy("out");
    fs::write(&changing, tree::bytes(4, 21 << 20)).unwrap();

    api.complete("out");
    api.fluvial(&["migrate", "tree", "--to", "disk", "--mode", "move", "--wait", "--timeout", "60s"]).unwrap();
    assert_eq!(tree::difference(&source, &folder(&api.home("tree", "disk"))), "", "the last version arrived, whole");
}

#[test]
fn a_home_goes_to_another_bucket_of_its_store_without_its_bytes_passing() {
    let minio = Minio::start();
    ["one", "two"].map(|bucket| format!("bucket-{bucket}")).iter().for_each(|bucket| minio.create_bucket(bucket));
    let up = Up::start(1, &["onprem"]);
    let api = &up.api;
    let source = up.folder().join("source");
    tree::make(&source, 31, 60, 20_000);
    fs::write(source.join("large.bin"), tree::bytes(8, 20 << 20)).unwrap();
    api.s3_storage("one", "onprem", "bucket-one", &minio);
    // The same keys in the same Secret: as the hub sees it, too.
    let mut storage = api.get("storage", "one").unwrap();
    storage["metadata"] = serde_json::json!({ "name": "two" });
    storage["spec"]["uri"] = "s3://bucket-two".into();
    storage.as_object_mut().unwrap().remove("status");
    api.apply(&storage.to_string()).unwrap();
    api.path_storage("disk", "onprem", &up.folder().join("disk"));
    api.path_dataset("tree", &source);
    api.fluvial(&["migrate", "tree", "--to", "one", "--mode", "move", "--wait", "--timeout", "60s"]).unwrap();

    let plan = api.fluvial(&["migrate", "tree", "--to", "two", "--dry-run", "-o", "json"]).unwrap();
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["route"], "server-side", "{plan}");
    api.fluvial(&["migrate", "tree", "--to", "two", "--mode", "move", "--wait", "--timeout", "60s"]).unwrap();
    api.wait_until("dataset", "tree", "/status/homes", |homes| homes.as_array().map(Vec::len) == Some(1));
    api.fluvial(&["migrate", "tree", "--to", "disk", "--wait", "--timeout", "60s"]).unwrap();
    assert_eq!(tree::difference(&source, &folder(&api.home("tree", "disk"))), "");
}

#[test]
fn a_tree_goes_to_azure_and_back_and_a_wrong_key_is_told_and_not_shown() {
    let azurite = Azurite::start();
    let up = Up::start(1, &["onprem", "cloud"]);
    let api = &up.api;
    let source = up.folder().join("source");
    tree::make(&source, 17, 120, 60_000);
    fs::write(source.join("large.bin"), tree::bytes(6, 20 << 20)).unwrap();
    let storage = |name: &str, uri: &str, key: &str| {
        let arguments = ["storage", "create", name, "--uri", uri, "--cluster", "cloud"];
        api.fluvial_with(&arguments, &azurite.options(key)).unwrap();
    };
    storage("azure", "azblob://container/homes", Azurite::KEY);
    storage("refuses", "azblob://container/refused", "d3Jvbmctc2VjcmV0");
    api.path_storage("disk", "onprem", &up.folder().join("disk"));
    api.path_dataset("tree", &source);

    api.begin_migration("refused", "tree", "refuses");
    let found = api.wait_until("datamigrate", "refused", "/status/message", |message| {
        message.as_str().is_some_and(|message| message.contains("refused") && message.contains("AuthorizationFailure"))
    });
    assert!(!found.to_string().contains("d3Jvbmctc2VjcmV0"), "a secret is shown: {found}");
    if found["status"]["phase"] != "Failed" {
        api.fluvial(&["op", "cancel", "refused"]).unwrap();
    }
    assert_ne!(api.ended("refused").0, "Complete");
    assert_eq!(azurite.names(), Vec::<String>::new());

    for storage in ["azure", "disk"] {
        api.fluvial(&["migrate", "tree", "--to", storage, "--mode", "move", "--wait", "--timeout", "120s"]).unwrap();
        // The new home counts at once, the old one goes when what is in it is gone.
        api.wait_until("dataset", "tree", "/status/homes", |homes| homes.as_array().map(Vec::len) == Some(1));
        let home = api.home("tree", storage);
        let inside = azurite.names();
        if storage == "azure" {
            let below = home.strip_prefix("azblob://container/").unwrap();
            assert!(inside.contains(&format!("{below}/large.bin")), "plain blobs below {below}: {inside:?}");
        } else {
            assert_eq!(inside, Vec::<String>::new(), "what was moved on is not left behind");
        }
    }
    assert_eq!(tree::difference(&source, &folder(&api.home("tree", "disk"))), "");
}
