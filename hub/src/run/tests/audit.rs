//! What stands in the audit trail after calls over real TLS.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use fluvial_certs::{Identity, KeyPair};
use fluvial_proto::v1;
use fluvial_proto::v1::agent_service_client::AgentServiceClient;
use fluvial_proto::v1::join_service_client::JoinServiceClient;
use serde_json::{Value, json};
use tonic::Code;

use super::fixture::*;

const FLEET: &str = "/apis/fluvial.io/v1alpha1";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn bob() -> Identity {
    Identity::User { name: "bob".to_owned(), groups: vec!["team".to_owned()] }
}

/// The rows of a question.
async fn ask(hub: &TestHub, sql: &str) -> Vec<Value> {
    let body = json!({ "sql": sql });
    let (status, bytes) = hub.rest(Some(&user()), "POST", &format!("{FLEET}/query"), body).await;
    let rows: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(status, StatusCode::OK, "{rows}");
    rows.as_array().unwrap().clone()
}

/// `USER VERB GROUP RESOURCE NAMESPACE/NAME CODE` of each record, in order.
async fn trail(hub: &TestHub) -> Vec<String> {
    let sql = "SELECT \"user\" || ' ' || verb || ' ' || api_group || ' ' || resource || ' ' || namespace || '/' || name || ' '
        || code AS line FROM audit ORDER BY sequence";
    ask(hub, sql).await.iter().map(|row| row["line"].as_str().unwrap().to_owned()).collect()
}

/// Waits until a record is there.
async fn recorded(hub: &TestHub, line: &str) {
    let found = async || trail(hub).await.contains(&line.to_owned()).then_some(());
    let waited = tokio::time::timeout(LIMIT, eventually(line, found)).await;
    assert!(waited.is_ok(), "{line} is not among {:#?}", trail(hub).await);
}

async fn join(hub: &TestHub, token: &str) -> Result<v1::JoinResponse, tonic::Status> {
    let csr = KeyPair::generate().unwrap().csr().unwrap();
    let request = v1::JoinRequest { token: token.to_owned(), csr, ..Default::default() };
    JoinServiceClient::new(hub.channel(None)).join(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_each_refusal_and_each_reading_of_a_secret_is_recorded_without_its_value() {
    let hub = TestHub::start().await;
    let ann = user();
    let secret = json!({ "metadata": { "name": "s" }, "stringData": { "password": "hunter2" } });
    let call = async |identity: Option<&Identity>, method: &str, path: &str, body: Value| {
        hub.rest(identity, method, path, body).await.0.as_u16()
    };
    assert_eq!(call(Some(&ann), "POST", SECRETS, secret.clone()).await, 201);
    assert_eq!(call(Some(&ann), "POST", SECRETS, secret).await, 409);
    assert_eq!(call(Some(&ann), "GET", &format!("{SECRETS}/s"), Value::Null).await, 200);
    assert_eq!(call(Some(&bob()), "GET", &format!("{SECRETS}/s"), Value::Null).await, 403);
    assert_eq!(call(None, "DELETE", &format!("{SECRETS}/s"), json!({})).await, 401);
    assert_eq!(call(Some(&cluster("alpha")), "GET", SECRETS, Value::Null).await, 403);
    assert_eq!(call(Some(&ann), "DELETE", &format!("{SECRETS}/s"), json!({})).await, 200);
    // What changes nothing is no change.
    let namespace = json!({ "metadata": { "name": "n" } });
    assert_eq!(call(Some(&ann), "POST", "/api/v1/namespaces?dryRun=All", namespace).await, 201);
    assert_eq!(call(Some(&ann), "GET", "/api/v1/namespaces", Value::Null).await, 200);
    let as_bob = [("impersonate-user", "bob")];
    let (status, _) = hub.rest_with(Some(&ann), "GET", SECRETS, Value::Null, &as_bob).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    for line in [
        "user/ann list  secrets default/ 403",
        "user/ann create  secrets default/s 201",
        "user/ann create  secrets default/ 409",
        "user/ann get  secrets default/s 200",
        "user/bob get  secrets default/s 403",
        " delete  secrets default/s 401",
        "cluster/alpha list  secrets default/ 403",
        "user/ann delete  secrets default/s 200",
    ] {
        recorded(&hub, line).await;
    }
    let lines = trail(&hub).await;
    assert_eq!(lines.len(), 8, "{lines:#?}");
    let rows = ask(&hub, "SELECT message FROM audit WHERE verb = 'list' AND \"user\" = 'user/ann'").await;
    assert_eq!(rows[0]["message"], "as user/bob");
    // The change's record has the revision of the change, and who it was.
    let rows = ask(&hub, "SELECT * FROM audit WHERE verb = 'delete' AND code = 200").await;
    assert_eq!((&rows[0]["groups"], &rows[0]["count"]), (&json!("[\"system:masters\"]"), &json!(1)));
    assert!(rows[0]["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{rows:?}");
    assert_eq!(rows[0]["request"].as_str().unwrap().len(), 16);
    let whole = json!(ask(&hub, "SELECT * FROM audit").await).to_string();
    for value in ["hunter2", "aHVudGVyMg"] {
        assert!(!whole.contains(value), "{value}");
    }
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_certificates_are_recorded_and_no_secret_of_them() {
    let hub = TestHub::start().await;
    let (status, bytes) =
        hub.rest(Some(&user()), "POST", &format!("{FLEET}/tokens"), json!({ "cluster": "alpha" })).await;
    assert_eq!(status, StatusCode::CREATED);
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    let token = answer["token"].as_str().unwrap();
    join(&hub, token).await.unwrap();
    assert_eq!(join(&hub, token).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(join(&hub, "no token").await.unwrap_err().code(), Code::InvalidArgument);
    let mut agent = AgentServiceClient::new(hub.channel(Some(&cluster("alpha"))));
    let csr = KeyPair::generate().unwrap().csr().unwrap();
    agent.renew(v1::RenewRequest { csr }).await.unwrap();
    agent.renew(v1::RenewRequest { csr: "none".to_owned() }).await.unwrap_err();
    let id = token.split('.').nth(1).unwrap();
    for line in [
        format!("user/ann create fluvial.io jointokens /{id} 201"),
        format!(" consume fluvial.io jointokens /{id} 200"),
        " issue fluvial.io certificates /cluster/alpha 201".to_owned(),
        format!(" consume fluvial.io jointokens /{id} 409"),
        " consume fluvial.io jointokens / 400".to_owned(),
        "cluster/alpha issue fluvial.io certificates /cluster/alpha 201".to_owned(),
        "cluster/alpha renew fluvial.io certificates /cluster/alpha 400".to_owned(),
    ] {
        recorded(&hub, &line).await;
    }
    // The use of the token, what it brought about and its record are one: they have one revision.
    let rows = ask(&hub, "SELECT message, revision FROM audit WHERE verb = 'consume' AND code = 200").await;
    assert_eq!(rows[0]["message"], "cluster/alpha");
    let whole = json!(ask(&hub, "SELECT * FROM audit").await).to_string();
    let secret = token.split('.').nth(2).unwrap();
    assert!(!whole.contains(secret), "the token's secret is in the trail");
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refusals_is_counted_and_hardly_written() {
    const CALLS: usize = 2000;
    let hub = TestHub::start().await;
    let stream = crate::peers::dial(&hub.address(), hub.tls(None, fluvial_certs::tls::ALPN_H2)).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let before = ask(&hub, "SELECT * FROM audit").await.len();
    let revision = fluvial_raft::Store::revision(hub.hub.store());
    for number in 0..CALLS {
        let uri = format!("https://{}/apis/x/v1/things/{number}", hub.address());
        let request = Request::builder().uri(uri).body(Body::empty()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    }
    let counted = async || {
        let rows =
            ask(&hub, "SELECT coalesce(sum(count), 0) AS calls, count(*) AS records FROM audit WHERE code = 401").await;
        (rows[0]["calls"] == CALLS).then(|| rows[0]["records"].as_u64().unwrap())
    };
    let records = eventually("all refusals are counted", counted).await;
    assert!(records <= 32, "{records} records");
    assert_eq!(ask(&hub, "SELECT * FROM audit").await.len() - before, usize::try_from(records).unwrap());
    // Nobody who watches is told.
    assert_eq!(fluvial_raft::Store::revision(hub.hub.store()), revision);
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_just_before_the_end_is_written() {
    let hub = TestHub::start().await;
    hub.rest(Some(&bob()), "GET", SECRETS, Value::Null).await;
    let TestHub { hub, directory, .. } = hub;
    hub.shutdown().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hub = TestHub::run(directory, listener).await;
    let found = async || trail(&hub).await.iter().any(|line| line.contains("user/bob list  secrets")).then_some(());
    tokio::time::timeout(Duration::from_secs(20), eventually("the refusal is there", found)).await.unwrap();
    hub.hub.shutdown().await;
}
