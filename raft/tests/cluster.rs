//! Restarts, lost leaders, snapshots, members: three nodes over real connections.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Node, cluster, commit, leader_of, put, within};
use fluvial_model::store::Revision;
use fluvial_raft::{Config, Consistency, ListRequest, MembershipError, OpenError, RaftStore, Role, Store, StoreError};

async fn all(store: &RaftStore, consistency: Consistency) -> Vec<(String, Vec<u8>)> {
    let listing = store.list(ListRequest { consistency, ..ListRequest::default() }).await.unwrap();
    listing.items.into_iter().map(|item| (item.key, item.value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(1, dir.path(), |_| {}).await;
    let first = commit(&nodes[0].store, put("a", "1")).await.unwrap();
    for number in 0..50 {
        commit(&nodes[0].store, put(format!("b/{number}"), "2")).await.unwrap();
    }
    let before = all(&nodes[0].store, Consistency::Linearizable).await;
    let config = nodes.remove(0).stop().await;
    let node = Node::restart(config).await;
    assert_eq!(all(&node.store, Consistency::Stale).await, before);
    assert_eq!(all(&node.store, Consistency::Linearizable).await, before);
    assert_eq!(node.store.revision(), Revision(first.0 + 50));
    // The history is there too.
    let mut watch = node.store.watch("b/", first).await.unwrap();
    assert_eq!(watch.next().await.unwrap().len(), 50);
    assert_eq!(commit(&node.store, put("a", "3")).await.unwrap(), Revision(first.0 + 51));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_leader_loses_no_acknowledged_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(3, dir.path(), |_| {}).await;
    let done = Arc::new(AtomicBool::new(false));
    let leader = leader_of(&nodes[0].store).await;
    let mut writers = Vec::new();
    for node in nodes.iter().filter(|node| node.id != leader) {
        for writer in 0..4 {
            let (store, done, id) = (node.store.clone(), Arc::clone(&done), node.id);
            writers.push(tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for number in 0_u32.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("w/{id}/{writer}/{number:06}");
                    match commit(&store, put(key.clone(), number.to_string())).await {
                        Ok(_) => acknowledged.push(key),
                        Err(StoreError::UnknownOutcome { .. } | StoreError::Unavailable { .. }) => {}
                        Err(error) => panic!("unexpected {error:?}"),
                    }
                }
                acknowledged
            }));
        }
    }
    let position = nodes.iter().position(|node| node.id == leader).unwrap();
    let survivor = nodes[usize::from(position == 0)].store.clone();
    within("some writes before the fault", || async { (survivor.revision().0 > 200).then_some(()) }).await;
    let config = nodes.remove(position).stop().await;
    let at = survivor.revision();
    within("a new leader", || async { survivor.leadership().borrow().leader.filter(|now| *now != leader) }).await;
    within("some writes after the fault", || async { (survivor.revision().0 > at.0 + 200).then_some(()) }).await;
    done.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    let node = Node::restart(config).await;
    nodes.push(node);
    let expected = all(&survivor, Consistency::Linearizable).await;
    for key in &acknowledged {
        assert!(expected.binary_search_by(|(known, _)| known.cmp(key)).is_ok(), "{key} was acknowledged and is lost");
    }
    for node in &nodes {
        assert_eq!(all(&node.store, Consistency::Linearizable).await, expected, "node {}", node.id);
    }
    for node in nodes {
        node.stop().await;
    }
}

fn small(config: &mut Config) {
    config.snapshot_after = 200;
    config.keep_log = 50;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_gets_a_snapshot_while_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(1, dir.path(), small).await;
    let store = nodes[0].store.clone();
    for number in 0..600 {
        commit(&store, put(format!("old/{number:04}"), vec![7; 500])).await.unwrap();
    }
    within("the log to be cut", || async { store.metrics().purged_index.filter(|purged| *purged > 100) }).await;
    let done = Arc::new(AtomicBool::new(false));
    let writer = {
        let (store, done) = (store.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                commit(&store, put(format!("new/{number:06}"), "x")).await.unwrap();
                number += 1;
            }
            number
        })
    };
    let node = Node::new(2, dir.path(), small).await;
    let mut watch = node.store.watch("old/", Revision(0)).await.err();
    // A node that was never in a cluster has nothing to watch or nothing yet: both are fine.
    drop(watch.take());
    assert_eq!(node.store.catalog_generation(), 1);
    store.add_member(2, &node.config.address).await.unwrap();
    done.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    assert!(written > 0, "writes went on");
    assert!(node.store.catalog_generation() > 1, "a snapshot was installed");
    assert!(node.store.catalog_path().exists());
    let expected = all(&store, Consistency::Linearizable).await;
    assert_eq!(expected.len(), 600 + written);
    assert_eq!(all(&node.store, Consistency::Linearizable).await, expected);
    // The history came with it.
    let mut watch = node.store.watch("old/", Revision(0)).await.unwrap();
    assert_eq!(watch.next().await.unwrap()[0].revision, Revision(1));
    nodes.push(node);
    // And it is still there after a restart.
    let config = nodes.pop().unwrap().stop().await;
    let node = Node::restart(config).await;
    assert_eq!(all(&node.store, Consistency::Linearizable).await, expected);
    nodes.push(node);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(1, dir.path(), |_| {}).await;
    for id in 2..=3 {
        let node = Node::new(id, dir.path(), |_| {}).await;
        // Any member can be asked; the last one asks on behalf of the next.
        nodes.last().unwrap().store.add_member(id, &node.config.address).await.unwrap();
        leader_of(&node.store).await;
        nodes.push(node);
    }
    let store = nodes[0].store.clone();
    let roles = |store: &RaftStore| store.members().iter().map(|member| (member.id, member.role)).collect::<Vec<_>>();
    assert_eq!(roles(&store), [(1, Role::Voter), (2, Role::Voter), (3, Role::Voter)]);
    assert_eq!(store.members().iter().filter(|member| member.leader).count(), 1);
    assert!(matches!(
        store.add_member(2, "127.0.0.1:1").await,
        Err(MembershipError::IdInUse { id: 2, .. } | MembershipError::Failed { .. })
    ));
    commit(&nodes[2].store, put("a", "1")).await.unwrap();
    store.remove_member(3).await.unwrap();
    assert_eq!(roles(&store), [(1, Role::Voter), (2, Role::Voter)]);
    nodes.pop().unwrap().stop().await;
    assert!(matches!(store.remove_member(3).await, Err(MembershipError::NotAMember { id: 3 })));
    commit(&nodes[1].store, put("a", "2")).await.unwrap();
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_promised() {
    let dir = tempfile::tempdir().unwrap();
    let quick = |config: &mut Config| config.timings.request = Duration::from_secs(2);
    let mut nodes = cluster(3, dir.path(), quick).await;
    commit(&nodes[0].store, put("a", "1")).await.unwrap();
    let last = nodes.pop().unwrap();
    within("the write on every node", || async { (last.store.revision().0 == 1).then_some(()) }).await;
    for node in nodes {
        node.stop().await;
    }
    assert!(matches!(
        commit(&last.store, put("a", "2")).await,
        Err(StoreError::Unavailable { .. } | StoreError::UnknownOutcome { .. })
    ));
    assert!(matches!(last.store.get("a", Consistency::Linearizable).await, Err(StoreError::Unavailable { .. })));
    let stale = last.store.get("a", Consistency::Stale).await.unwrap().unwrap();
    assert_eq!(stale.value, b"1");
    last.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_history_is_forgotten_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(3, dir.path(), |config| config.history = 100).await;
    let store = nodes[0].store.clone();
    for number in 0..300 {
        commit(&store, put("a", number.to_string())).await.unwrap();
    }
    for node in &nodes {
        let store = node.store.clone();
        within("the history to be forgotten", || async {
            match store.watch("", Revision(100)).await {
                Err(StoreError::Compacted { oldest }) if oldest >= Revision(150) => Some(()),
                _ => None,
            }
        })
        .await;
        assert!(store.watch("", Revision(200)).await.is_ok(), "the newest part is kept");
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_nodes_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(1, dir.path(), |_| {}).await;
    let mut config = nodes.remove(0).stop().await;
    config.node_id = 2;
    let refused = RaftStore::open(config, Arc::new(common::Plain)).await;
    assert!(matches!(refused, Err(OpenError::Marker(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_hands_over_and_no_write_is_refused_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    // Elections take long here: only a lead that is handed over comes in time.
    let nodes = cluster(3, dir.path(), |config| {
        (config.timings.election_min, config.timings.election_max) = (Duration::from_secs(20), Duration::from_secs(25));
        config.timings.request = Duration::from_secs(15);
    })
    .await;
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = nodes
        .iter()
        .map(|node| {
            let (store, done, id) = (node.store.clone(), Arc::clone(&done), node.id);
            tokio::spawn(async move {
                let (mut written, mut unknown) = (0, 0);
                while !done.load(Ordering::Relaxed) {
                    match commit(&store, put(format!("w/{id}/{written}"), "1")).await {
                        Ok(_) => written += 1,
                        // It was on its way when the lead went: its writer looks, and writes again.
                        Err(StoreError::UnknownOutcome { .. }) => unknown += 1,
                        Err(error) => panic!("a write was refused: {error}"),
                    }
                }
                (written, unknown)
            })
        })
        .collect();
    for _ in 0..3 {
        let leader = leader_of(&nodes[0].store).await;
        let old = nodes.iter().find(|node| node.id == leader).unwrap();
        let at = old.store.revision();
        within("some writes before", || async { (old.store.revision().0 > at.0 + 20).then_some(()) }).await;
        assert!(old.store.hand_over(Duration::from_secs(10)).await, "another one leads in time");
        let at = old.store.revision();
        within("some writes after", || async { (old.store.revision().0 > at.0 + 20).then_some(()) }).await;
        assert_ne!(leader_of(&old.store).await, leader);
        // Who does not lead has nothing to hand over.
        assert!(old.store.hand_over(Duration::ZERO).await);
    }
    done.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        let (done, unknown) = writer.await.unwrap();
        written += done;
        assert!(unknown <= 3, "at most the one write that was on its way, each time: {unknown}");
    }
    assert!(written > 100, "{written}");
    let alone = tempfile::tempdir().unwrap();
    let one = cluster(1, alone.path(), |_| {}).await;
    assert!(one[0].store.hand_over(Duration::ZERO).await, "nobody else could lead");
    assert_eq!(leader_of(&one[0].store).await, 1);
    commit(&one[0].store, put("a", "1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_another_protocol_is_told_so_and_has_no_say() {
    use fluvial_proto::v1;
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(1, dir.path(), |_| {}).await;
    let address = format!("http://{}", nodes[0].config.address);
    let mut client = v1::peer_service_client::PeerServiceClient::connect(address).await.unwrap();
    let mut ask = async |protocol: Option<&'static str>| {
        let vote = v1::RaftVote { term: 1_000_000, node: 2, committed: false };
        let mut request = tonic::Request::new(v1::PeerVoteRequest { vote: Some(vote), ..Default::default() });
        let mut put = |name: &'static str, value: &'static str| {
            request.metadata_mut().insert(name, value.parse().unwrap());
        };
        put("fluvial-cluster", "test-cluster");
        put("fluvial-from", "2");
        put("fluvial-to", "1");
        if let Some(protocol) = protocol {
            put("fluvial-protocol", protocol);
        }
        client.vote(request).await
    };
    let refused = ask(Some("2")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("node 2 protocol 2"), "{refused}");
    assert!(nodes[0].store.leadership().borrow().term < 1_000_000);
    // A hub from before protocols were numbered speaks the first.
    ask(None).await.unwrap();
}
