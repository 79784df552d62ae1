//! Data directories that other versions wrote: older ones open, newer ones are refused by name.

use std::path::{Path, PathBuf};
use std::process::Command;

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluvial_model::causes::chain;
use fluvial_model::store::Revision;
use fluvial_raft::{Consistency, ListRequest, Store as _};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::fixture::{TestHub, user};
use crate::run::{Hub, HubConfig};

/// Made by `hub/fixtures/make-data-directory N`.
const FORMATS: &[u32] = &[1];

fn unpacked(format: u32) -> TempDir {
    let archive: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "fixtures", &format!("data-directory-{format}.tar.gz")].iter().collect();
    let directory = tempfile::tempdir().unwrap();
    let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(directory.path()).status().unwrap();
    assert!(unpacked.success(), "{archive:?}");
    directory
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_every_earlier_format_opens_with_all_that_is_in_it() {
    for format in FORMATS {
        let hub = TestHub::run(unpacked(*format), TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
        let get = async |path: &str| -> Value {
            let (status, body) = hub.rest(Some(&user()), "GET", path, Value::Null).await;
            assert_eq!(status, StatusCode::OK, "{path}: {body:?}");
            serde_json::from_slice(&body).unwrap()
        };
        let secret = get("/api/v1/namespaces/default/secrets/keys").await;
        assert_eq!(secret["data"]["password"], STANDARD.encode("fixture-secret"));
        let dataset = get("/apis/data.fluid.io/v1alpha1/namespaces/default/datasets/set").await;
        assert_eq!(
            (&dataset["metadata"]["labels"]["team"], &dataset["spec"]["mounts"][0]["mountPoint"]),
            (&"a".into(), &"file:///data".into())
        );
        let link = get("/apis/fluvial.io/v1alpha1/links/wan").await;
        assert_eq!(link["spec"]["bandwidthBytesPerSecond"], 30_000_000);
        assert_eq!(get("/apis/fluvial.io/v1alpha1/jointokens").await["items"].as_array().unwrap().len(), 1);
        // The history is there too: every value that the link ever had.
        let store = hub.hub.store();
        let mut watch = store.watch("/registry/fluvial.io/links/", Revision(0)).await.unwrap();
        let mut seen = Vec::new();
        while seen.len() < 4 {
            seen.extend(watch.next().await.unwrap().iter().map(|event| event.revision));
        }
        assert!(seen.is_sorted());
        // And it goes on.
        let before = store.revision();
        assert!(hub.put("/registry/new", b"{}".to_vec()).await > before);
        let all = store.list(ListRequest { consistency: Consistency::Linearizable, ..ListRequest::default() }).await;
        assert!(all.unwrap().items.len() > 8);
        hub.hub.shutdown().await;
    }
}

fn sql(file: &Path, statement: &str) {
    rusqlite::Connection::open(file).unwrap().execute_batch(statement).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_a_newer_format_is_refused_by_name() {
    type Change = fn(&Path);
    let newer: [(&str, Change); 2] = [
        ("the data directory", |dir| {
            let file = dir.join("hub.json");
            let mut record: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
            record["format"] = 99.into();
            record["nodeId"] = "another shape".into();
            std::fs::write(file, record.to_string()).unwrap();
        }),
        ("the log", |dir| sql(&dir.join("store/log.db"), "PRAGMA user_version = 99")),
    ];
    for (what, make_newer) in newer {
        let directory = unpacked(1);
        make_newer(directory.path());
        let mut config = HubConfig::new(directory.path());
        config.listener = Some(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let Err(error) = Hub::start(config).await else { panic!("{what} of format 99 was opened") };
        let text = chain(&error).to_string();
        assert!(text.contains(what) && text.contains("format 99"), "{text}");
    }
}
