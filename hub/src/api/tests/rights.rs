//! What a user without a role may do: see what there is to discover, and nothing else.

use axum::body::Body;
use fluvial_certs::Identity;
use fluvial_model::access::Who;
use fluvial_model::kinds::KINDS;
use fluvial_model::resource::{KindInfo, Scope};
use fluvial_raft::Store as _;
use http::Request;
use http::header::CONTENT_TYPE;
use serde_json::json;

use super::super::Caller;
use super::harness::*;

fn by_ann(method: &str, path: &str, body: &str) -> Request<Body> {
    let ann = Caller(Some(Identity::User { name: "ann".into(), groups: vec!["team".into()] }));
    let content_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let builder = Request::builder().method(method).uri(path).extension(ann).header(CONTENT_TYPE, content_type);
    builder.body(Body::from(body.to_owned())).unwrap()
}

/// Every call that there is for a kind: the verb, the method, the path and its query.
fn calls(info: &KindInfo) -> Vec<(&'static str, &'static str, String)> {
    let root = if info.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", info.group) };
    let space = if info.scope == Scope::Namespaced { "/namespaces/default" } else { "" };
    let all = format!("{root}/{}{space}/{}", info.version, info.plural);
    let one = format!("{all}/x");
    let mut calls = vec![
        ("list", "GET", all.clone()),
        ("list", "GET", format!("{root}/{}/{}", info.version, info.plural)),
        ("watch", "GET", format!("{all}?watch=1")),
        ("create", "POST", all.clone()),
        ("create", "POST", format!("{all}?dryRun=All")),
        ("deletecollection", "DELETE", all),
        ("get", "GET", one.clone()),
        ("get", "HEAD", one.clone()),
        ("update", "PUT", one.clone()),
        ("patch", "PATCH", one.clone()),
        ("delete", "DELETE", format!("{one}?dryRun=All")),
        ("delete", "DELETE", one.clone()),
    ];
    if info.status {
        calls.extend(
            [("get", "GET"), ("update", "PUT"), ("patch", "PATCH")].map(|(v, m)| (v, m, format!("{one}/status"))),
        );
    }
    calls
}

#[tokio::test]
async fn a_user_without_a_role_is_refused_every_verb_of_every_kind_and_changes_nothing() {
    let hub = Hub::start().await;
    hub.post(DATASETS, &dataset("x")).await.ok(201);
    let before = hub.store.revision();
    for kind in KINDS {
        for (verb, method, path) in calls(&kind.info) {
            let reply = hub.send(by_ann(method, &path, r#"{"metadata":{"name":"x"}}"#)).await;
            assert_eq!(reply.code, 403, "{method} {path}: {}", reply.text);
            if method != "HEAD" {
                let status = if path.ends_with("/status") { "/status" } else { "" };
                let what = format!(r#"User "ann" cannot {verb} resource "{}{status}" in API group"#, kind.info.plural);
                assert!(reply.message().contains(&what), "{method} {path}: {}", reply.message());
                assert_eq!(reply.body["reason"], json!("Forbidden"), "{path}");
            }
        }
    }
    assert_eq!(hub.store.revision(), before);
}

#[tokio::test]
async fn a_refusal_reads_like_that_of_kubernetes() {
    let hub = Hub::start().await;
    let rest = r#"in API group "data.fluid.io" in the namespace "default""#;
    let reply = hub.send(by_ann("DELETE", &format!("{DATASETS}/x"), "")).await;
    let expected = r#"datasets.data.fluid.io "x" is forbidden: User "ann" cannot delete resource "datasets""#;
    assert_eq!(reply.message(), format!("{expected} {rest}"));
    assert_eq!(reply.body["details"], json!({ "name": "x", "group": "data.fluid.io", "kind": "datasets" }));
    let reply = hub.send(by_ann("GET", "/api/v1/namespaces/x", "")).await;
    let expected = r#"namespaces "x" is forbidden: User "ann" cannot get resource "namespaces" in API group """#;
    assert_eq!(reply.message(), format!(r#"{expected} in the namespace "x""#));
    let reply = hub.send(by_ann("GET", "/nowhere", "")).await;
    assert_eq!((reply.code, reply.message()), (403, r#"forbidden: User "ann" cannot get path "/nowhere""#));
}

#[tokio::test]
async fn a_user_without_a_role_discovers_and_is_shown_nothing() {
    let hub = Hub::with_roles().await;
    hub.settled(|rights| rights.policy().rules(Who { user: "ann", groups: &[] }, "").count() >= 3).await;
    for path in ["/api", "/apis", "/api/v1", "/apis/data.fluid.io/v1alpha1", "/openapi/v3"] {
        assert_eq!(hub.send(by_ann("GET", path, "")).await.code, 200, "{path}");
    }
    hub.post(DATASETS, &dataset("x")).await.ok(201);
    let question = json!({ "sql": "SELECT name FROM datasets" }).to_string();
    let answer = hub.send(by_ann("POST", "/apis/fluvial.io/v1alpha1/query", &question)).await;
    assert_eq!((answer.code, answer.body), (200, json!([])));
    assert_eq!(hub.send(by_ann("GET", "/apis/fluvial.io/v1alpha1/query/schema", "")).await.code, 200);
    // Who takes the role away takes it from all.
    hub.delete("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/system:query").await.ok(200);
    hub.settled(|rights| rights.policy().rules(Who { user: "ann", groups: &[] }, "").count() == 3).await;
    let refused = hub.send(by_ann("POST", "/apis/fluvial.io/v1alpha1/query", &question)).await;
    let expected =
        r#"forbidden: User "ann" cannot query resource "query" in API group "fluvial.io" at the cluster scope"#;
    assert_eq!((refused.code, refused.message()), (403, expected));
    assert_eq!(hub.send(by_ann("GET", "/apis/fluvial.io/v1alpha1/query/schema", "")).await.code, 403);
}
