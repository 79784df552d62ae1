//! The contract suite on one node, on a leader, and on followers that forward.

mod common;

use common::{cluster, leader_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(1, dir.path(), |_| {}).await;
    fluvial_raft::contract::run(&nodes[0].store).await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_of_three_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(3, dir.path(), |_| {}).await;
    let leader = leader_of(&nodes[0].store).await;
    let store = nodes.iter().find(|node| node.id == leader).unwrap().store.clone();
    fluvial_raft::contract::run(&store).await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_of_three_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(3, dir.path(), |_| {}).await;
    let leader = leader_of(&nodes[0].store).await;
    let store = nodes.iter().find(|node| node.id != leader).unwrap().store.clone();
    fluvial_raft::contract::run(&store).await;
    for node in nodes {
        node.stop().await;
    }
}
