//! A node that begins with given content: it leads itself, goes on from its revision, and others can join it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Node, commit, leader_of, put, within};
use fluvial_model::store::Revision;
use fluvial_raft::{Config, Consistency, ListRequest, RaftStore, Role, Seed, SeedError, Seeding, Store, StoreError};

const NODE: u64 = 41;
const AT: Revision = Revision(1_800_000_000_000_000);

fn seed(dir: &Path) -> Seed {
    let (dir, cluster_id) = (dir.join(format!("node-{NODE}")), "test-cluster".to_owned());
    Seed { dir, node_id: NODE, cluster_id, address: String::new(), revision: AT }
}

async fn all(store: &RaftStore, consistency: Consistency) -> BTreeMap<String, Vec<u8>> {
    let listing = store.list(ListRequest { consistency, ..ListRequest::default() }).await.unwrap();
    listing.items.into_iter().map(|item| (item.key, item.value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeded_node_leads_with_its_content_and_others_get_it_when_they_join() {
    let dir = tempfile::tempdir().unwrap();
    // More than one transaction of rows.
    let content: BTreeMap<String, Vec<u8>> =
        (0..12_000).map(|number| (format!("/k/{number:05}"), format!("value {number}").into_bytes())).collect();
    // The address that the node has is known once it listens; nobody looks at it before there are others.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut seeding = Seeding::begin(Seed { address: address.clone(), ..seed(dir.path()) }).unwrap();
    for (key, value) in &content {
        seeding.put(key, value).unwrap();
    }
    assert!(seeding.put("/k/00000", b"again").is_err(), "a key is there once");
    seeding.finish().unwrap();

    let config = Config::new(NODE, "test-cluster", dir.path().join(format!("node-{NODE}")), address);
    let node = Node::restart(config).await;
    assert_eq!(leader_of(&node.store).await, NODE);
    assert_eq!(all(&node.store, Consistency::Linearizable).await, content);
    assert_eq!(node.store.revision(), AT);
    let one = node.store.get("/k/00007", Consistency::Linearizable).await.unwrap().unwrap();
    assert_eq!((one.create_revision, one.mod_revision), (AT, AT));
    // Whoever knew an earlier revision lists again.
    for before in [Revision(1), Revision(AT.0 - 1)] {
        let refused = node.store.watch("/", before).await.err();
        assert!(matches!(refused, Some(StoreError::Compacted { oldest: AT })), "{refused:?}");
        let refused = node.store.list(ListRequest { revision: Some(before), ..ListRequest::default() }).await;
        assert!(matches!(refused, Err(StoreError::Compacted { oldest: AT })), "{refused:?}");
    }
    let mut watch = node.store.watch("/", AT).await.unwrap();
    assert_eq!(commit(&node.store, put("/k/00007", "new")).await.unwrap(), Revision(AT.0 + 1));
    assert_eq!(watch.next().await.unwrap()[0].revision, Revision(AT.0 + 1));

    // No log leads to the content: who joins gets it as a snapshot.
    let other = Node::new(NODE + 1, dir.path(), |_| {}).await;
    node.store.add_member(NODE + 1, &other.config.address).await.unwrap();
    let mut expected = content;
    expected.insert("/k/00007".into(), b"new".to_vec());
    within("the other node has all", || async {
        (all(&other.store, Consistency::Stale).await == expected).then_some(())
    })
    .await;
    assert!(other.store.members().iter().all(|member| member.role == Role::Voter));

    // Both are ordinary nodes from now on.
    let (first, second) = (node.stop().await, other.stop().await);
    let (node, other) = (Node::restart(first).await, Node::restart(second).await);
    assert_eq!(all(&other.store, Consistency::Linearizable).await, expected);
    assert_eq!(commit(&other.store, put("/k/00008", "new")).await.unwrap(), Revision(AT.0 + 2));
    node.stop().await;
    other.stop().await;
}

#[test]
fn a_directory_that_holds_something_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let seed = seed(dir.path());
    std::fs::create_dir(&seed.dir).unwrap();
    std::fs::write(seed.dir.join("file"), b"mine").unwrap();
    assert!(matches!(Seeding::begin(seed.clone()), Err(SeedError::NotEmpty { .. })));
    assert_eq!(std::fs::read_dir(&seed.dir).unwrap().count(), 1);
}
