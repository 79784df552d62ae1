//! Stores of hubs over a real etcd.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use fluvial_etcd::{Config, EtcdStore, Settings};
use fluvial_model::store::{Op, Revision, Txn, TxnOutcome};
use fluvial_raft::{Consistency, Store as _};
use fluvial_tests::etcd::Etcd;
use fluvial_tests::wait::wait_for_async;

/// No condition is waited for longer: a loaded machine with two cores needs a few seconds at most.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How a hub reaches this etcd.
pub fn settings(etcd: &Etcd) -> Settings {
    let endpoints = etcd.endpoints();
    let tls = endpoints[0].starts_with("https");
    Settings {
        endpoints,
        ca: tls.then(|| etcd.file("ca.pem")),
        identity: tls.then(|| (etcd.file("cert.pem"), etcd.file("key.pem"))),
        user: None,
        prefix: "/fluvial/".into(),
    }
}

/// Hub `id` of the fleet, which the first one begins.
pub fn config(settings: Settings, id: u64, dir: &Path) -> Config {
    Config {
        settings,
        id,
        address: format!("127.0.0.1:{}", 7000 + id),
        fleet: "fleet-a".into(),
        first: id == 1,
        data_dir: dir.join(format!("hub-{id}")),
        request: Duration::from_secs(20),
        disk: Duration::from_secs(20),
    }
}

pub async fn open(etcd: &Etcd, id: u64, dir: &Path) -> EtcdStore {
    EtcdStore::open(config(settings(etcd), id, dir)).await.unwrap()
}

pub async fn put(store: &EtcdStore, key: &str, value: &str) -> Revision {
    let txn = Txn { ops: vec![Op::Put { key: key.into(), value: value.into() }], ..Txn::default() };
    match store.txn(txn).await.unwrap() {
        TxnOutcome::Committed { revision } => revision,
        conflict @ TxnOutcome::Conflict { .. } => panic!("unexpected {conflict:?}"),
    }
}

pub async fn value(store: &EtcdStore, key: &str) -> Option<String> {
    let found = store.get(key, Consistency::Linearizable).await.unwrap();
    found.map(|kv| String::from_utf8(kv.value).unwrap())
}

/// Waits until `store` says that `leader` leads, and returns the term.
pub async fn led_by(store: &EtcdStore, leader: u64) -> u64 {
    let leadership = store.leadership();
    wait_for_async(LIMIT, "the leader", async || {
        let now = *leadership.borrow();
        if now.leader == Some(leader) { Ok(now.term) } else { Err(now) }
    })
    .await
}
