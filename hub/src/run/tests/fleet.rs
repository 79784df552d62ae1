//! Several hubs in one process.

use axum::http::StatusCode;
use fluvial_certs::Identity;
use fluvial_model::store::Revision;
use fluvial_raft::{Consistency, Role, Store as _};
use serde_json::Value;
use tokio::net::TcpListener;
use tonic::Code;

use super::fixture::{LIMIT, TestHub, cluster, eventually, user};
use super::session::{Agent, assign, register};
use crate::enrol::TokenRequest;
use crate::run::{JoinOptions, RunError, admin_kubeconfig, join};

async fn another(first: &TestHub, id: u64) -> TestHub {
    let request = TokenRequest { hub: true, ..TokenRequest::default() };
    let token = first.token_at(&request, std::sync::Arc::new(crate::clock::SystemClock)).await;
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = JoinOptions {
        hub_url: format!("https://{}", first.address()),
        token: token.into(),
        data_dir: directory.path().to_owned(),
        listen: listener.local_addr().unwrap(),
        advertise: None,
        etcd: None,
    };
    let record = join(options).await.unwrap();
    assert_eq!((record.node_id, record.first), (id, false));
    TestHub::run(directory, listener).await
}

/// Waits until so many hubs vote.
async fn voters(hub: &TestHub, expected: usize) {
    let count = || hub.hub.store().members().into_iter().filter(|m| m.role == Role::Voter).count();
    eventually("the hubs vote", || async { (count() == expected).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_joins_by_token_and_what_one_writes_the_other_watches() {
    let one = TestHub::start().await;
    let two = another(&one, 2).await;
    voters(&one, 2).await;

    let mut watch = two.hub.store().watch("/test/", Revision(0)).await.unwrap();
    one.put("/test/a", b"1".to_vec()).await;
    let events = tokio::time::timeout(LIMIT, watch.next()).await.unwrap().unwrap();
    assert_eq!((events.len(), events[0].key.as_str()), (1, "/test/a"));
    two.put("/test/b", b"2".to_vec()).await;
    let found = one.hub.store().get("/test/b", Consistency::Linearizable).await.unwrap();
    assert_eq!(found.map(|kv| kv.value), Some(b"2".to_vec()));

    let (status, bytes) = two.rest(Some(&user()), "GET", "/apis/fluvial.io/v1alpha1/hubs", Value::Null).await;
    let hubs: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((status, hubs["items"].as_array().map(Vec::len)), (StatusCode::OK, Some(2)));

    let (status, _) = two.rest(Some(&user()), "DELETE", "/apis/fluvial.io/v1alpha1/hubs/2", Value::Null).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let alone = || async { (one.hub.store().members().len() == 1).then_some(()) };
    eventually("the second hub has left", alone).await;
    let revoked = crate::enrol::revocation_key(&Identity::Hub { id: 2 });
    let written = || async { one.hub.store().get(&revoked, Consistency::Linearizable).await.unwrap().map(|_| ()) };
    eventually("its certificates are revoked", written).await;
    two.hub.shutdown().await;
    one.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_served_by_any_hub_and_by_one_at_a_time() {
    let one = TestHub::start().await;
    let two = another(&one, 2).await;
    register(&one, "alpha").await;
    let mut agent = Agent::connect(two.channel(Some(&cluster("alpha"))), "i", 0, 0).await;
    agent.welcome().await;
    let assigned = assign(&one, "alpha", "one", None).await;
    let told = agent.assign().await;
    assert_eq!((told.id, told.generation), assigned);

    let mut other = Agent::connect(one.channel(Some(&cluster("alpha"))), "other", 0, 0).await;
    assert_eq!(other.next().await.unwrap_err().code(), Code::AlreadyExists);

    let heard = || async { one.hub.liveness().silence("alpha") };
    eventually("the leader hears of it", heard).await;
    two.hub.shutdown().await;
    one.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_is_not_joined_with_a_clusters_token_or_by_another_fleets() {
    let (one, foreign) = (TestHub::start().await, TestHub::start().await);
    let options = |hub: &TestHub, token: String, directory: &tempfile::TempDir| JoinOptions {
        hub_url: hub.address(),
        token: token.into(),
        data_dir: directory.path().to_owned(),
        listen: "127.0.0.1:7443".parse().unwrap(),
        advertise: None,
        etcd: None,
    };
    let directory = tempfile::tempdir().unwrap();
    let refused = join(options(&one, one.token("alpha").await, &directory)).await.unwrap_err();
    assert!(matches!(&refused, RunError::Refused(status) if status.code() == Code::PermissionDenied), "{refused:?}");
    let refused = join(options(&foreign, one.token("alpha").await, &directory)).await.unwrap_err();
    assert!(matches!(refused, RunError::Dial(_)), "the token is not shown to a hub that it does not pin: {refused:?}");
    foreign.hub.shutdown().await;
    one.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_goes_on_from_its_data_directory() {
    let hub = TestHub::start().await;
    hub.put("/test/a", b"1".to_vec()).await;
    let address = hub.hub.address();
    let TestHub { hub, directory, .. } = hub;
    hub.shutdown().await;
    let hub = TestHub::run(directory, TcpListener::bind(address).await.unwrap()).await;
    let found = hub.hub.store().get("/test/a", Consistency::Linearizable).await.unwrap();
    assert_eq!(found.map(|kv| kv.value), Some(b"1".to_vec()));
    let kubeconfig = admin_kubeconfig(hub.directory.path(), "https://hub.example:7443").unwrap();
    let parsed: Value = serde_yaml_ng::from_str(&kubeconfig).unwrap();
    assert_eq!(parsed["clusters"][0]["cluster"]["server"], "https://hub.example:7443");
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_served_after_the_first_of_three_hubs_is_gone() {
    let one = TestHub::start().await;
    let two = another(&one, 2).await;
    let three = another(&one, 3).await;
    voters(&one, 3).await;
    register(&one, "alpha").await;
    let mut agent = Agent::connect(three.channel(Some(&cluster("alpha"))), "i", 0, 0).await;
    agent.welcome().await;
    one.hub.shutdown().await;
    assert!(two.hub.ready(LIMIT).await);
    let assigned = assign(&two, "alpha", "one", None).await;
    let told = agent.assign().await;
    assert_eq!((told.id, told.generation), assigned);
    three.hub.shutdown().await;
    two.hub.shutdown().await;
}
