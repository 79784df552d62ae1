//! A hub saved over the API and made anew from the file.

use std::path::Path;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluvial_certs::{Authority, Identity, TrustDomain};
use fluvial_model::kinds::{Dataset, DatasetStatus, JoinToken};
use fluvial_model::manifest::{BlockHash, Entry, File, RelativePath, TreeBuilder};
use fluvial_model::resource::Resource as _;
use fluvial_model::store::{Op, Txn};
use fluvial_proto::v1;
use fluvial_proto::v1::hub_message::Message as ToAgent;
use fluvial_proto::v1::hub_service_client::HubServiceClient;
use fluvial_proto::v1::snapshot_record::Record;
use fluvial_raft::{Consistency, ListRequest, Store as _};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::Code;

use super::fixture::{LIMIT, TestHub, cluster, eventually, user};
use super::session::{Agent, register};
use crate::blocks::Blocks;
use crate::run::home::Home;
use crate::run::{Hub, HubConfig};
use crate::snapshot::format::{Footer, Writer, header};
use crate::snapshot::key::Derivation;
use crate::snapshot::{RestoreOptions, RestoreReport, SnapshotError, inspect, restore};

const HUBS: &str = "/apis/fluvial.io/v1alpha1/hubs";
const PASSWORD: &str = "correct horse";

/// Cheap numbers: what they cost is not what these tests are about.
fn derivation() -> Derivation {
    Derivation { memory_kib: 64, iterations: 1, ..Derivation::fresh() }
}

fn wish() -> Value {
    let derivation = derivation();
    let key = derivation.derive(&PASSWORD.into()).unwrap();
    json!({ "derivation": derivation, "key": STANDARD.encode(key.as_slice()) })
}

fn options(file: &Path, data_dir: &Path, listener: &TcpListener) -> RestoreOptions {
    RestoreOptions {
        file: file.to_owned(),
        password: SecretString::from(PASSWORD),
        data_dir: data_dir.to_owned(),
        listen: listener.local_addr().unwrap(),
        advertise: None,
        settle: Duration::from_secs(3600),
    }
}

/// Restores a file and starts the hub.
async fn restored(file: &Path) -> (TestHub, RestoreReport) {
    let (directory, listener) = (tempfile::tempdir().unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let report = restore(options(file, directory.path(), &listener)).unwrap();
    (TestHub::run(directory, listener).await, report)
}

async fn saved(hub: &TestHub, file: &Path) {
    let (status, body) = hub.rest(Some(&user()), "POST", &format!("{HUBS}/snapshot"), wish()).await;
    assert_eq!(status, StatusCode::OK, "{body:?}");
    std::fs::write(file, body).unwrap();
}

/// The blocks of a version with some directories, kept by the hub in `blocks`; its root.
async fn version(blocks: &Blocks) -> (String, Vec<BlockHash>) {
    let mut made = Vec::new();
    let mut builder = TreeBuilder::new(|hash: BlockHash, data: Vec<u8>| {
        made.push((hash, data));
        Ok::<(), std::convert::Infallible>(())
    });
    for directory in 0..20 {
        for file in 0..50 {
            let path = RelativePath::parse(&format!("d{directory:02}/f{file:02}")).unwrap();
            builder
                .push(&path, Entry::File(File { size: directory * 100 + file, mtime_ns: 0, mode: 0o644, digest: None }))
                .unwrap();
        }
    }
    let root = builder.finish().unwrap().root.to_string();
    for (hash, data) in &made {
        blocks.put(*hash, data.clone().into()).await.unwrap();
    }
    (root, made.into_iter().map(|(hash, _)| hash).collect())
}

async fn get(hub: &TestHub, path: &str) -> Value {
    let (status, body) = hub.rest(Some(&user()), "GET", path, Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{path}: {body:?}");
    serde_json::from_slice(&body).unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_hub_has_all_of_the_snapshot_above_every_revision_and_under_new_names() {
    let hub = TestHub::start().await;
    let (file, secrets) = (hub.directory.path().join("snapshot"), "/api/v1/namespaces/default/secrets");
    let (root, blocks) = version(&Blocks::open(&hub.directory.path().join("blocks")).unwrap()).await;
    assert!(blocks.len() > 20);
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "stringData": { "password": "hunter2" } });
    assert_eq!(hub.rest(Some(&user()), "POST", secrets, secret).await.0, StatusCode::CREATED);
    let mut dataset = Dataset::new("default", "d", Default::default());
    dataset.metadata.uid = "uid".into();
    dataset.status = Some(DatasetStatus { root: Some(root), ..Default::default() });
    hub.put("/registry/extra", b"by another version".to_vec()).await;
    hub.put(&dataset.key(), serde_json::to_vec(&dataset).unwrap()).await;
    let put = |number| Op::Put { key: format!("/registry/many/{number}"), value: b"{}".to_vec() };
    // More than two pages of a listing.
    for some in [0..300, 300..600] {
        let txn = Txn { compares: Vec::new(), ops: some.map(put).collect(), audit: Vec::new() };
        hub.hub.store().txn(txn).await.unwrap();
    }
    hub.token("gamma").await;
    saved(&hub, &file).await;
    let contents = inspect(&file).unwrap();
    assert_eq!((contents.footer.blocks, contents.footer.missing_blocks), (blocks.len() as u64, 0));
    assert_eq!((contents.header.epoch, contents.header.trust_domain.as_str()), (1, "fluvial.test"));
    let bytes = std::fs::read(&file).unwrap();
    for hidden in [&b"hunter2"[..], b"secrets", b"PRIVATE KEY", b"many"] {
        assert!(!bytes.windows(hidden.len()).any(|window| window == hidden), "{hidden:?} can be read");
    }
    let since = hub.put("/registry/later", b"{}".to_vec()).await;
    let (old_record, before) = (hub.hub.record().clone(), hub.hub.store().revision());
    let old_authority = Home::new(hub.directory.path()).authority().unwrap();
    hub.hub.shutdown().await;

    let (new, report) = restored(&file).await;
    assert!(report.revision > before.0 && report.epoch > 1 && report.record.node_id > old_record.node_id);
    assert_ne!(report.record.cluster_id, old_record.cluster_id);
    assert_eq!(new.authority.spki_pin(), old_authority.spki_pin());
    let list = ListRequest { prefix: "/registry/".into(), ..ListRequest::default() };
    let stored = new.hub.store().list(list).await.unwrap();
    assert!(stored.items.iter().all(|kv| kv.mod_revision.0 >= report.revision), "every object is above what was");
    assert_eq!(stored.items.iter().filter(|kv| kv.key.starts_with("/registry/many/")).count(), 600);
    assert!(!stored.items.iter().any(|kv| kv.key == "/registry/later"), "it came after the snapshot");
    let opened = get(&new, &format!("{secrets}/s")).await;
    assert_eq!(opened["data"]["password"], STANDARD.encode("hunter2"));
    assert!(number(&opened["metadata"]["resourceVersion"]) > since.0);
    let again = get(&new, "/apis/data.fluid.io/v1alpha1/namespaces/default/datasets/d").await;
    let asked = &again["metadata"]["annotations"]["fluvial.io/rescan-requested"];
    assert_eq!(asked, &json!(format!("restored-{}", report.epoch)), "its sources are listed again");
    let kept = Blocks::open(&new.directory.path().join("blocks")).unwrap();
    for block in blocks {
        assert!(kept.get_local(block).await.unwrap().is_some(), "{block} is not there");
    }
    // Whoever watched is told to list.
    let watch = format!("{secrets}?watch=true&resourceVersion={}", since.0);
    let (status, body) = new.rest(Some(&user()), "GET", &watch, Value::Null).await;
    let told: Value = serde_json::from_slice(&body).unwrap();
    let code = told.pointer("/object/code").or_else(|| told.get("code"));
    assert_eq!(code, Some(&json!(410)), "{status} {told}");
    // What was good for one join before is good for none.
    assert!(new.hub.objects().list::<JoinToken>(Consistency::Stale).await.unwrap().is_empty());
    // Hubs of before are strangers, also with a certificate that they make now.
    let old_hub = Identity::Hub { id: old_record.node_id };
    let refused = HubServiceClient::new(new.channel(Some(&old_hub))).beats(v1::BeatsRequest::default()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("replaced by a restore"), "{refused}");
    let own = Identity::Hub { id: report.record.node_id };
    HubServiceClient::new(new.channel(Some(&own))).beats(v1::BeatsRequest::default()).await.unwrap();
    new.hub.shutdown().await;

    // Saved and restored once more, everything is above again.
    let (third, second) = restored(&file).await;
    assert!(second.revision > report.revision && second.epoch > report.epoch);
    third.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_hear_that_a_restored_hub_recovers_until_that_is_over_and_turn_from_the_one_before() {
    let hub = TestHub::start().await;
    let file = hub.directory.path().join("snapshot");
    register(&hub, "alpha").await;
    saved(&hub, &file).await;
    // An agent that was welcomed by the restored hub comes to the old one, which somebody left running.
    let mut strayed = Agent::connect_knowing(hub.channel(Some(&cluster("alpha"))), "i", (1, 5), u64::MAX).await;
    let refused = strayed.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("replaced by a restore"), "{refused}");
    hub.hub.shutdown().await;

    let (new, report) = restored(&file).await;
    let channel = new.channel(Some(&cluster("alpha")));
    let mut agent = Agent::connect(channel.clone(), "i", 1, 5).await;
    let welcome = agent.welcome().await;
    assert_eq!((welcome.epoch, welcome.full, welcome.recovering), (report.epoch, true, true));
    let until = eventually("the recovery begins", || async {
        let recovery = get(&new, &format!("{HUBS}/recovery")).await;
        recovery["until"].as_str().map(|until| until.parse::<Timestamp>().unwrap())
    })
    .await;
    assert!(until.duration_since(Timestamp::now()).as_secs() > 3000);
    let (status, body) = new.rest(Some(&user()), "DELETE", &format!("{HUBS}/recovery"), Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{body:?}");
    let moved = async {
        loop {
            if let ToAgent::MoveAfterMs(_) = agent.next().await.unwrap() {
                break;
            }
        }
    };
    tokio::time::timeout(LIMIT, moved).await.expect("the agent is to come back");
    let mut agent = Agent::connect(channel, "i", 1, 5).await;
    let welcome = agent.welcome().await;
    assert_eq!((welcome.full, welcome.recovering), (true, false));
    new.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_restored_is_refused_and_nothing_is_left_of_the_try() {
    let hub = TestHub::start().await;
    let (folder, listener) = (tempfile::tempdir().unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (file, place) = (folder.path().join("snapshot"), folder.path().join("hub"));
    saved(&hub, &file).await;
    let (status, _) = hub.rest(Some(&user()), "POST", &format!("{HUBS}/snapshot"), json!({ "key": "x" })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let ann = Identity::User { name: "ann".into(), groups: vec![] };
    let (status, _) = hub.rest(Some(&ann), "POST", &format!("{HUBS}/snapshot"), wish()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    hub.hub.shutdown().await;
    let whole = std::fs::read(&file).unwrap();
    let entries = || std::fs::read_dir(folder.path()).unwrap().count();
    let before = entries();
    let refused = |bytes: &[u8], password: &str| {
        std::fs::write(&file, bytes).unwrap();
        let error =
            restore(RestoreOptions { password: password.into(), ..options(&file, &place, &listener) }).unwrap_err();
        assert_eq!(entries(), before, "something is left after {error}");
        error
    };
    assert!(matches!(refused(&whole, "wrong"), SnapshotError::Password));
    assert!(matches!(refused(&whole, ""), SnapshotError::NoPassword));
    assert!(matches!(refused(&whole[..whole.len() - 1], PASSWORD), SnapshotError::Truncated));
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    assert!(matches!(refused(&damaged, PASSWORD), SnapshotError::Damaged { .. }));
    assert!(matches!(refused(b"something else", PASSWORD), SnapshotError::NotASnapshot));
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("mine"), b"").unwrap();
    std::fs::write(&file, &whole).unwrap();
    let taken = restore(options(&file, &place, &listener));
    assert!(matches!(taken, Err(SnapshotError::Taken { .. })), "{taken:?}");
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1);
}

/// `FLUVIAL_DATASETS=100000 cargo test --release -p fluvial-hub -- --nocapture many_datasets`: prints one JSON line.
#[tokio::test(flavor = "multi_thread")]
async fn many_datasets_are_restored_and_all_are_there() {
    let datasets: u64 = std::env::var("FLUVIAL_DATASETS").map_or(1_000, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot");
    let authority = Authority::generate(TrustDomain::new("fluvial.test").unwrap(), Timestamp::now()).unwrap();
    let derivation = Derivation::fresh();
    let key = derivation.derive(&PASSWORD.into()).unwrap();
    let header = header(derivation, Timestamp::now(), ("fluvial.test".into(), "old".into()), (datasets, 1));
    let mut writer = Writer::begin(std::fs::File::create(&file).unwrap(), &header, &key).unwrap();
    let keys = v1::SnapshotKeys {
        ca: authority.cert_pem(),
        ca_key: authority.key_pem().expose_secret().to_owned(),
        data_key: vec![7; 32].into(),
    };
    writer.put(Record::Keys(keys)).unwrap();
    for number in 0..datasets {
        let name = format!("dataset-{number:06}");
        let object = json!({
            "apiVersion": "data.fluid.io/v1alpha1", "kind": "Dataset",
            "metadata": { "name": name, "namespace": "default", "uid": uuid::Uuid::new_v4(), "generation": 1,
                "labels": { "team": format!("team-{}", number % 100) } },
            "spec": { "mounts": [{ "mountPoint": format!("s3://bucket-{}/data/{name}", number % 50), "path": "/" }] },
            "status": { "phase": "Bound", "root": blake3::hash(name.as_bytes()).to_hex().to_string(), "files": 1000,
                "totalBytes": 123_456_789, "scannedGeneration": 1 },
        });
        let value = serde_json::to_vec(&object).unwrap().into();
        let key = format!("/registry/data.fluid.io/datasets/default/{name}");
        writer.put(Record::Object(v1::SnapshotObject { key, value })).unwrap();
    }
    writer.finish(Footer { objects: datasets, ..Footer::default() }).unwrap();
    let (data_dir, listener) = (folder.path().join("hub"), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let began = Instant::now();
    restore(options(&file, &data_dir, &listener)).unwrap();
    let made = began.elapsed();
    let mut config = HubConfig::new(&data_dir);
    config.listener = Some(listener);
    let hub = Hub::start(config).await.unwrap();
    assert!(hub.ready(LIMIT * 10).await);
    let ready = began.elapsed();
    let count = hub.objects().list::<Dataset>(Consistency::Linearizable).await.unwrap().len();
    assert_eq!(count as u64, datasets);
    println!(
        "{}",
        json!({ "area": "hub", "case": format!("restore-{datasets}"), "unit": "s", "ours": ready.as_secs_f64(),
            "restoreSeconds": made.as_secs_f64(), "fileBytes": std::fs::metadata(&file).unwrap().len() })
    );
    hub.shutdown().await;
}
