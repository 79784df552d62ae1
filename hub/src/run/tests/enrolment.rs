//! Who gets in, and what they may call then.

use std::sync::Arc;

use axum::http::StatusCode;
use fluvial_certs::{Bundle, KeyPair};
use fluvial_model::kinds::cluster::CLUSTER_FINALIZER;
use fluvial_model::kinds::{Cluster, ClusterState};
use fluvial_proto::v1;
use fluvial_proto::v1::agent_service_client::AgentServiceClient;
use fluvial_proto::v1::hub_service_client::HubServiceClient;
use fluvial_proto::v1::join_service_client::JoinServiceClient;
use fluvial_proto::v1::node_service_client::NodeServiceClient;
use fluvial_proto::v1::peer_service_client::PeerServiceClient;
use fluvial_raft::Consistency;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::fixture::{At, TestHub, cluster, user};
use crate::enrol::TokenRequest;

async fn join(hub: &TestHub, token: &str, cluster: &str, key: &KeyPair) -> Result<v1::JoinResponse, Status> {
    join_node(hub, token, cluster, "", key).await
}

async fn join_node(
    hub: &TestHub,
    token: &str,
    cluster: &str,
    node: &str,
    key: &KeyPair,
) -> Result<v1::JoinResponse, Status> {
    let request = v1::JoinRequest {
        token: token.to_owned(),
        csr: key.csr().unwrap(),
        cluster: cluster.to_owned(),
        hub_address: String::new(),
        node: node.to_owned(),
    };
    JoinServiceClient::new(hub.channel(None)).join(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_a_cluster_that_has_an_agent_and_renews_for_itself_alone() {
    let hub = TestHub::start().await;
    let key = KeyPair::generate().unwrap();
    let early = join_node(&hub, &hub.token("alpha").await, "alpha", "n-1", &key).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition, "{early}");
    join(&hub, &hub.token("alpha").await, "alpha", &KeyPair::generate().unwrap()).await.unwrap();
    let bad = join_node(&hub, &hub.token("alpha").await, "alpha", "N/1", &key).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument, "{bad}");

    let joined = join_node(&hub, &hub.token("alpha").await, "alpha", "n-1", &key).await.unwrap();
    let bundle = Bundle::new(&joined.certificate, &key, &joined.ca).unwrap();
    let domain = fluvial_certs::TrustDomain::new(joined.trust_domain).unwrap();
    let node = fluvial_certs::Identity::Node { cluster: "alpha".into(), name: "n-1".into() };
    assert_eq!(bundle.verified(&domain).unwrap().identity, node);

    let mut calls = NodeServiceClient::new(hub.channel(Some(&node)));
    let renewed = calls.renew_node(v1::RenewNodeRequest { csr: key.csr().unwrap() }).await.unwrap().into_inner();
    let again = Bundle::new(&renewed.certificate, &key, &renewed.ca).unwrap();
    assert_eq!(again.verified(&domain).unwrap().identity, node);
    let found = calls.find_member(v1::FindMemberRequest {}).await.unwrap().into_inner();
    assert_eq!(found.address, "", "the agent has not said where it listens");
    let mut agent = AgentServiceClient::new(hub.channel(Some(&node)));
    let refused = agent.renew(v1::RenewRequest { csr: key.csr().unwrap() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "a node is not the agent of its cluster");
}

async fn refusal(hub: &TestHub, token: &str, cluster: &str) -> Code {
    join(hub, token, cluster, &KeyPair::generate().unwrap()).await.unwrap_err().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_makes_a_cluster_once_and_the_same_key_may_ask_again() {
    let hub = TestHub::start().await;
    let (token, key) = (hub.token("alpha").await, KeyPair::generate().unwrap());
    for _ in 0..2 {
        let joined = join(&hub, &token, "alpha", &key).await.unwrap();
        assert_eq!((joined.cluster.as_str(), joined.trust_domain.as_str()), ("alpha", "fluvial.test"));
        assert_eq!(joined.hubs, [hub.address()]);
        assert_eq!(joined.hub, None);
        let bundle = Bundle::new(&joined.certificate, &key, &joined.ca).unwrap();
        let verified = bundle.verified(hub.authority.trust_domain()).unwrap();
        assert_eq!(verified.identity, cluster("alpha"));
    }
    let stored = hub.hub.objects().get::<Cluster>("", "alpha", Consistency::Linearizable).await.unwrap().unwrap();
    assert_eq!(stored.object.metadata.finalizers, [CLUSTER_FINALIZER]);
    assert_eq!(stored.object.state(), ClusterState::Pending);
    assert_eq!(refusal(&hub, &token, "alpha").await, Code::FailedPrecondition, "another key");
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_that_names_no_cluster_becomes_the_one_of_its_token() {
    let hub = TestHub::start().await;
    let token = hub.token("alpha").await;
    assert_eq!(join(&hub, &token, "", &KeyPair::generate().unwrap()).await.unwrap().cluster, "alpha");
    let request = TokenRequest { hub: true, ..TokenRequest::default() };
    let token = hub.token_at(&request, Arc::new(crate::clock::SystemClock)).await;
    assert_eq!(refusal(&hub, &token, "").await, Code::PermissionDenied, "a hub's token");
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_expired_altered_unknown_or_anothers_is_refused() {
    let hub = TestHub::start().await;
    let an_hour_ago = Timestamp::now().checked_sub(SignedDuration::from_hours(1)).unwrap();
    let request = TokenRequest { cluster: "alpha".to_owned(), ..TokenRequest::default() };
    let expired = hub.token_at(&request, Arc::new(At(an_hour_ago))).await;
    assert_eq!(refusal(&hub, &expired, "alpha").await, Code::FailedPrecondition);

    let good = hub.token("alpha").await;
    assert_eq!(refusal(&hub, &good, "beta").await, Code::PermissionDenied);
    assert_eq!(refusal(&hub, &good[1..], "alpha").await, Code::InvalidArgument);
    // The parts are: fluvial, id, secret, pin.
    let part = |at: usize| good.split('.').nth(at).unwrap().to_owned();
    let flipped = |text: &str| text.chars().map(|c| if c == '0' { '1' } else { '0' }).collect::<String>();
    let other_id = good.replacen(&part(1), &format!("t{}", flipped(&part(1)[1..])), 1);
    assert_eq!(refusal(&hub, &other_id, "alpha").await, Code::Unauthenticated);
    let other_secret =
        good.replacen(&part(2), &part(2).chars().rev().collect::<String>().replace(['w', '8', '4', '0'], "A"), 1);
    let refused = refusal(&hub, &other_secret, "alpha").await;
    // Turned round, the last character may carry bits that no secret has.
    assert!(matches!(refused, Code::Unauthenticated | Code::InvalidArgument), "{refused:?}");

    assert!(hub.hub.objects().list::<Cluster>(Consistency::Linearizable).await.unwrap().is_empty());
    join(&hub, &good, "alpha", &KeyPair::generate().unwrap()).await.expect("the tries did not use the token");
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_mint_tokens_by_rest_and_agents_do_not() {
    let hub = TestHub::start().await;
    let path = "/apis/fluvial.io/v1alpha1/tokens";
    let ask = async |identity: Option<fluvial_certs::Identity>, body| {
        let (status, bytes) = hub.rest(identity.as_ref(), "POST", path, body).await;
        (status, serde_json::from_slice::<Value>(&bytes).unwrap())
    };
    let (status, minted) = ask(Some(user()), json!({ "cluster": "alpha", "ttlSeconds": 60 })).await;
    assert_eq!(status, StatusCode::CREATED, "{minted}");
    let token = minted["token"].as_str().unwrap();
    let command =
        format!("fluvial member join --hub https://{} --token {token} --data-dir fluvial-alpha", hub.address());
    assert_eq!(minted["command"], json!(command));
    join(&hub, token, "alpha", &KeyPair::generate().unwrap()).await.unwrap();

    let (status, error) = ask(Some(user()), json!({ "cluster": "Alpha" })).await;
    assert_eq!((status, &error["kind"]), (StatusCode::BAD_REQUEST, &json!("Status")));
    assert_eq!(ask(Some(cluster("alpha")), json!({ "cluster": "beta" })).await.0, StatusCode::FORBIDDEN);
    assert_eq!(ask(None, json!({ "cluster": "beta" })).await.0, StatusCode::UNAUTHORIZED);
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_refuses_those_it_is_not_for() {
    let hub = TestHub::start().await;
    for identity in [Some(cluster("alpha")), Some(user()), None] {
        let expected = if identity.is_some() { Code::PermissionDenied } else { Code::Unauthenticated };
        let channel = hub.channel(identity.as_ref());
        let vote = PeerServiceClient::new(channel.clone()).vote(v1::PeerVoteRequest::default()).await;
        assert_eq!(vote.unwrap_err().code(), expected, "{identity:?}");
        let beats = HubServiceClient::new(channel).beats(v1::BeatsRequest::default()).await;
        assert_eq!(beats.unwrap_err().code(), expected, "{identity:?}");
    }
    for identity in [Some(user()), None] {
        let mut agent = AgentServiceClient::new(hub.channel(identity.as_ref()));
        let session = agent.session(futures::stream::empty()).await;
        let expected = if identity.is_some() { Code::PermissionDenied } else { Code::Unauthenticated };
        assert_eq!(session.map(|_| ()).unwrap_err().code(), expected, "{identity:?}");
    }
    // A hub's certificate does not speak for another hub.
    let stranger = fluvial_certs::Identity::Hub { id: 99 };
    let mut request = tonic::Request::new(v1::PeerVoteRequest::default());
    request.metadata_mut().insert(fluvial_raft::PEER_METADATA_FROM, "1".parse().unwrap());
    let vote = PeerServiceClient::new(hub.channel(Some(&stranger))).vote(request).await;
    assert_eq!(vote.unwrap_err().code(), Code::PermissionDenied);
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_for_the_same_cluster_until_it_is_removed() {
    let hub = TestHub::start().await;
    let (token, key) = (hub.token("alpha").await, KeyPair::generate().unwrap());
    join(&hub, &token, "alpha", &key).await.unwrap();
    let mut agent = AgentServiceClient::new(hub.channel(Some(&cluster("alpha"))));
    let request = v1::RenewRequest { csr: key.csr().unwrap() };
    let renewed = agent.renew(request.clone()).await.unwrap().into_inner();
    let bundle = Bundle::new(&renewed.certificate, &key, &renewed.ca).unwrap();
    assert_eq!(bundle.verified(hub.authority.trust_domain()).unwrap().identity, cluster("alpha"));

    let mut unknown = AgentServiceClient::new(hub.channel(Some(&cluster("beta"))));
    assert_eq!(unknown.renew(request).await.unwrap_err().code(), Code::PermissionDenied);
    hub.hub.shutdown().await;
}
