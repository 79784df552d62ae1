//! The contract suite over a real etcd: plain, with TLS and client certificates, with users, and shared with others.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::time::Duration;

use common::{config, led_by, open, settings};
use fluvial_etcd::{EtcdStore, OpenError, Settings};
use fluvial_raft::StoreError;
use fluvial_raft::contract::{self, Numbering};
use fluvial_tests::etcd::{Etcd, USER};

/// The suite counts revisions: the hub's own lease must have done its writing before.
async fn keeps_the_contract(store: EtcdStore) {
    led_by(&store, 1).await;
    contract::run(&store).await;
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_over_one_member_keeps_the_contract() {
    let (etcd, dir) = (Etcd::start(1, false), tempfile::tempdir().unwrap());
    keeps_the_contract(open(&etcd, 1, dir.path()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_keeps_the_contract_over_tls_with_client_certificates() {
    let (etcd, dir) = (Etcd::start(3, true), tempfile::tempdir().unwrap());
    let nobody = Settings { identity: None, ..settings(&etcd) };
    etcd.wait();
    let refused = EtcdStore::open(common_with(nobody, dir.path(), 3)).await.err();
    assert!(matches!(refused, Some(OpenError::Store(StoreError::Unavailable { .. }))), "{refused:?}");
    keeps_the_contract(open(&etcd, 1, dir.path()).await).await;
}

fn common_with(settings: Settings, dir: &std::path::Path, seconds: u64) -> fluvial_etcd::Config {
    let mut config = config(settings, 1, dir);
    config.request = Duration::from_secs(seconds);
    config
}

/// Makes users and has etcd ask for one.
fn ask_for_users(etcd: &Etcd) {
    etcd.wait();
    for arguments in [
        "user add root:root-password",
        "user grant-role root root",
        "user add hub:hub-password",
        "user add stranger:stranger-password",
        "role add fluvial",
        "role grant-permission fluvial readwrite /fluvial/ /fluvial0",
        "user grant-role hub fluvial",
        "auth enable",
    ] {
        let arguments: Vec<_> = arguments.split(' ').collect();
        etcd.ctl(&arguments).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_keeps_the_contract_as_a_user_with_its_prefix_alone() {
    let (mut etcd, dir) = (Etcd::start(1, false), tempfile::tempdir().unwrap());
    ask_for_users(&etcd);
    let user = |name: &str, password: &str| Settings {
        user: Some((name.to_owned(), password.to_owned().into())),
        ..settings(&etcd)
    };
    for (wrong, says) in [
        (user("hub", "guessed"), "authentication failed"),
        (user("stranger", "stranger-password"), "permission denied"),
        (settings(&etcd), "user name is empty"),
    ] {
        let error = EtcdStore::open(common_with(wrong, dir.path(), 3)).await.err().unwrap();
        let text = fluvial_model::causes::chain(&error).to_string();
        assert!(text.contains(says) && !text.contains("guessed"), "{text}");
    }
    let store = EtcdStore::open(common_with(user("hub", "hub-password"), dir.path(), 20)).await.unwrap();
    led_by(&store, 1).await;
    contract::run(&store).await;
    // An etcd that starts again knows no token of before.
    etcd.kill(0);
    etcd.run(0);
    assert_eq!(common::value(&store, "after").await, None);
    common::put(&store, "after", "1").await;
    assert_eq!(common::value(&store, "after").await.as_deref(), Some("1"));
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_keeps_the_contract_as_the_user_that_its_certificate_names() {
    let (etcd, dir) = (Etcd::start(1, true), tempfile::tempdir().unwrap());
    etcd.wait();
    for arguments in ["user add root:root-password", "user grant-role root root"] {
        etcd.ctl(&arguments.split(' ').collect::<Vec<_>>()).unwrap();
    }
    etcd.ctl(&["user", "add", USER, "--no-password"]).unwrap();
    for arguments in ["role add fluvial", "role grant-permission fluvial readwrite /fluvial/ /fluvial0"] {
        etcd.ctl(&arguments.split(' ').collect::<Vec<_>>()).unwrap();
    }
    etcd.ctl(&["user", "grant-role", USER, "fluvial"]).unwrap();
    etcd.ctl(&["auth", "enable"]).unwrap();
    keeps_the_contract(open(&etcd, 1, dir.path()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_hub_keeps_the_contract_while_others_write_to_the_same_etcd() {
    let (etcd, dir) = (Etcd::start(1, false), tempfile::tempdir().unwrap());
    let first = open(&etcd, 1, dir.path()).await;
    let second = open(&etcd, 2, dir.path()).await;
    let mut other = config(Settings { prefix: "/other/".into(), ..settings(&etcd) }, 1, &dir.path().join("other"));
    other.fleet = "fleet-b".into();
    let other = EtcdStore::open(other).await.unwrap();
    let writing = other.clone();
    let noise = tokio::spawn(async move {
        for number in 0_u64.. {
            common::put(&writing, "/noise", &number.to_string()).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    contract::run_with(&second, Numbering::Shared).await;
    noise.abort();
    let _ = noise.await;
    for store in [first, second, other] {
        store.shutdown().await;
    }
}
