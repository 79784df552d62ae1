//! Three nodes in this process, over loopback, every acknowledged write synced: how many writes and reads a second?
//!
//! `cargo run --release -p fluvial-raft --example writes [DIR]`; DIR should be on a real disk.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fluvial_model::audit::Entry;
use fluvial_raft::{Consistency, RaftStore, Store};

#[path = "../tests/common/mod.rs"]
mod common;

use common::{cluster, commit, leader_of, put};

/// How long each case runs.
const CASE: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Write,
    /// With a record for the audit trail.
    Audited,
    Read,
}

/// What the API says of a change.
fn entry(number: u64) -> Entry {
    Entry {
        user: "user/admin".into(),
        groups: vec!["system:masters".into()],
        address: "10.0.0.1:50000".into(),
        request: format!("{number:016x}"),
        verb: "create".into(),
        api_group: "data.fluid.io".into(),
        resource: "datasets".into(),
        namespace: "default".into(),
        name: format!("dataset-{number}"),
        code: 201,
        count: 1,
        ..Entry::default()
    }
}

async fn measure(store: &RaftStore, kind: Kind, clients: usize) -> (f64, Duration, Duration) {
    let end = Instant::now() + CASE;
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                let mut number = 0_u64;
                while Instant::now() < end {
                    let key = format!("bench/{client}/{}", number % 1000);
                    let start = Instant::now();
                    match kind {
                        Kind::Write => drop(commit(&store, put(key, vec![b'v'; 256])).await.unwrap()),
                        Kind::Audited => {
                            let mut txn = put(key, vec![b'v'; 256]);
                            txn.audit.push(entry(number));
                            commit(&store, txn).await.unwrap();
                        }
                        Kind::Read => drop(store.get(&key, Consistency::Linearizable).await.unwrap()),
                    }
                    times.push(start.elapsed());
                    number += 1;
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    (times.len() as f64 / CASE.as_secs_f64(), at(50), at(99))
}

#[tokio::main]
async fn main() {
    let temp = tempfile::tempdir_in(std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from)).unwrap();
    let nodes = cluster(3, temp.path(), |_| {}).await;
    let leader = leader_of(&nodes[0].store).await;
    let pick = |leads: bool| nodes.iter().find(|node| (node.id == leader) == leads).unwrap().store.clone();
    for (place, store) in [("leader", pick(true)), ("follower", pick(false))] {
        for (what, kind) in [("write", Kind::Write), ("audited", Kind::Audited), ("read", Kind::Read)] {
            for clients in [1, 64, 256] {
                let (rate, median, tail) = measure(&store, kind, clients).await;
                println!("{place:8} {what:>7}-{clients:<3} {rate:8.0}/s  p50 {median:9.3?}  p99 {tail:9.3?}");
            }
        }
    }
    for node in nodes {
        node.stop().await;
    }
}
