//! Whatever is sent, the answer is a Status and the state is unchanged.

use std::sync::OnceLock;

use axum::body::Body;
use fluvial_certs::Identity;
use fluvial_raft::Store as _;
use http::Request;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::Caller;
use super::harness::*;

#[tokio::test]
async fn strangers_and_agents_are_kept_out() {
    let hub = Hub::start().await;
    for path in [DATASETS, "/apis", "/openapi/v3", "/nowhere", "/apis/fluvial.io/v1alpha1/query"] {
        let anonymous = hub.send(Request::builder().uri(path).body(Body::empty()).unwrap()).await;
        assert_eq!((anonymous.code, &anonymous.body["reason"]), (401, &json!("Unauthorized")), "{path}");
        for identity in [Identity::Cluster { name: "a".into() }, Identity::Hub { id: 1 }] {
            let request = Request::builder().uri(path).extension(Caller(Some(identity))).body(Body::empty()).unwrap();
            assert_eq!(hub.send(request).await.code, 403, "{path}");
        }
    }
    for probe in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(hub.send(Request::builder().uri(probe).body(Body::empty()).unwrap()).await.code, 200, "{probe}");
    }
}

#[tokio::test]
async fn malformed_requests_are_answered_and_change_nothing() {
    let hub = Hub::start().await;
    hub.post(DATASETS, &dataset("d")).await.ok(201);
    let before = hub.store.revision();
    let long = format!("file:///{}", "x".repeat(2_000_000));
    let big = json!({ "metadata": { "name": "big" }, "spec": { "mounts": [{ "mountPoint": long }] } }).to_string();
    let deep = format!("{{\"spec\":{}1{}}}", "{\"a\":".repeat(500), "}".repeat(500));
    let named = |name: &str| dataset(name).to_string();
    let wrong_kind = json!({ "kind": "Secret", "metadata": { "name": "x" } }).to_string();
    let other_namespace = json!({ "metadata": { "name": "x", "namespace": "other" } }).to_string();
    let path = format!("{DATASETS}/d");
    let cases: Vec<(&str, &str, &str, String, u16, &str)> = vec![
        ("POST", DATASETS, "application/json", "{".into(), 400, "EOF"),
        ("POST", DATASETS, "application/json", String::new(), 400, "EOF"),
        ("POST", DATASETS, "application/json", "[]".into(), 400, "no object"),
        ("POST", DATASETS, "application/json", "\"x\"".into(), 400, "no object"),
        ("POST", DATASETS, "application/json", deep, 400, "deeper than"),
        ("POST", DATASETS, "application/json", big, 413, "1572864 bytes"),
        ("POST", DATASETS, "text/plain", named("x"), 415, "text/plain"),
        ("POST", DATASETS, "application/json", wrong_kind, 400, "does not match"),
        ("POST", DATASETS, "application/json", other_namespace, 400, "namespace"),
        ("POST", DATASETS, "application/json", "{\"metadata\":[]}".into(), 400, "metadata"),
        ("POST", DATASETS, "application/json", "{\"spec\":{\"mounts\":{}}}".into(), 400, "spec.mounts"),
        ("POST", DATASETS, "application/json", named("Upper"), 422, "DNS-1035"),
        ("POST", DATASETS, "application/json", named("a.b"), 422, "DNS-1035"),
        ("POST", DATASETS, "application/json", named(&"x".repeat(64)), 422, "at most 63"),
        ("POST", DATASETS, "application/json", named("a\u{0}b"), 422, "DNS-1035"),
        ("POST", &path, "application/json", named("d"), 405, "POST"),
        ("PUT", DATASETS, "application/json", named("d"), 405, "PUT"),
        ("BREW", DATASETS, "application/json", named("d"), 405, "BREW"),
        ("POST", "/apis/data.fluid.io/v1alpha1/datasets", "application/json", named("x"), 405, "inside a namespace"),
        ("GET", "/apis/data.fluid.io/v1alpha1/namespaces/default/elephants", "", String::new(), 404, "could not find"),
        ("GET", "/apis/data.fluid.io/v9/namespaces/default/datasets", "", String::new(), 404, "could not find"),
        ("GET", "/nowhere", "", String::new(), 404, "could not find"),
        ("GET", "/api/v1/namespaces/default/secrets/%2e%2e", "", String::new(), 400, "path segment"),
        ("GET", "/api/v1/namespaces/default/secrets/a%00", "", String::new(), 400, "path segment"),
        ("GET", "/api/v1/namespaces/default/secrets/%ff", "", String::new(), 400, "UTF-8"),
        ("GET", "/api/v1/namespaces/De_fault/secrets", "", String::new(), 400, "namespace"),
        ("GET", "/api/v1/secrets?labelSelector=a%3D%27%3Bdrop", "", String::new(), 400, "label selector"),
        ("GET", "/api/v1/secrets?fieldSelector=spec.x%3D1", "", String::new(), 400, "not supported"),
        ("GET", "/api/v1/secrets?limit=many", "", String::new(), 400, "limit"),
        ("GET", "/api/v1/secrets?continue=AAAA", "", String::new(), 400, "continue token"),
        ("GET", "/api/v1/secrets?resourceVersion=x", "", String::new(), 400, "resourceVersion"),
    ];
    for (method, path, content_type, body, code, said) in cases {
        let reply = hub.call(method, path, content_type, body).await;
        assert_eq!(reply.code, code, "{method} {path}: {}", reply.text);
        assert_eq!((&reply.body["kind"], &reply.body["code"]), (&json!("Status"), &json!(code)), "{method} {path}");
        assert!(reply.message().contains(said), "{method} {path}: {}", reply.text);
    }
    assert_eq!(hub.store.revision(), before);
}

#[tokio::test]
async fn labels_that_look_like_sql_are_refused_before_they_are_stored() {
    let hub = Hub::start().await;
    let mut body = dataset("d");
    body["metadata"]["labels"] = json!({ "a": "'); DROP TABLE datasets; --" });
    assert_eq!(hub.post(DATASETS, &body).await.code, 422);
    body["metadata"]["labels"] = json!({});
    body["metadata"]["annotations"] = json!({ "note": "'); DROP TABLE fv_objects; --" });
    hub.post(DATASETS, &body).await.ok(201);
    let answer = hub
        .post("/apis/fluvial.io/v1alpha1/query", &json!({ "sql": "SELECT count(*) AS n FROM datasets" }))
        .await
        .ok(200);
    assert_eq!(answer, json!([{ "n": 1 }]));
}

/// JSON of every shape, often with the field names that objects have.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        ".*".prop_map(Value::from),
        prop_oneof![Just("d"), Just("default"), Just("file:///a"), Just("fluvial.io/x"), Just("2020-01-01T00:00:00Z")]
            .prop_map(Value::from),
    ];
    let key = prop_oneof![
        4 => prop::sample::select(vec![
            "metadata", "spec", "status", "name", "namespace", "labels", "annotations", "finalizers", "mounts", "data",
            "stringData", "ownerReferences", "resourceVersion", "deletionTimestamp", "generateName", "uid", "kind",
            "apiVersion", "op", "path", "from", "value", "mountPoint", "$patch", "$deleteFromPrimitiveList/finalizers",
        ]).prop_map(ToOwned::to_owned),
        1 => ".{0,8}",
    ];
    leaf.prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::hash_map(key.clone(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// One hub for all cases: starting one takes longer than a case.
fn shared() -> &'static (tokio::runtime::Runtime, Hub) {
    static SHARED: OnceLock<(tokio::runtime::Runtime, Hub)> = OnceLock::new();
    SHARED.get_or_init(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let hub = runtime.block_on(async {
            let hub = Hub::start().await;
            hub.populate().await;
            hub.post(SECRETS, &json!({ "metadata": { "name": "d" } })).await.ok(201);
            hub
        });
        (runtime, hub)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_body_makes_the_api_panic_or_fail(body in any_json()) {
        let (runtime, hub) = shared();
        let body = body.to_string();
        runtime.block_on(async {
            for (method, path, content_type) in [
                ("POST", DATASETS.to_owned(), "application/json"),
                ("POST", format!("{MIGRATES}?dryRun=All"), "application/yaml"),
                ("POST", format!("{STORAGES}?fieldValidation=Ignore"), "application/json"),
                ("PUT", format!("{DATASETS}/d?fieldValidation=Ignore"), "application/json"),
                ("PUT", format!("{DATASETS}/d/status?fieldValidation=Ignore"), "application/json"),
                ("PATCH", format!("{DATASETS}/d?fieldValidation=Ignore"), "application/merge-patch+json"),
                ("PATCH", format!("{DATASETS}/d"), "application/json-patch+json"),
                ("PATCH", format!("{SECRETS}/d?fieldValidation=Ignore"), "application/strategic-merge-patch+json"),
                ("DELETE", format!("{CLUSTERS}/none"), "application/json"),
                ("POST", "/apis/fluvial.io/v1alpha1/query".to_owned(), "application/json"),
            ] {
                let reply = hub.call(method, &path, content_type, body.clone()).await;
                assert!(reply.code < 500, "{method} {path} {body}: {}", reply.text);
            }
        });
    }

    #[test]
    fn no_path_makes_the_api_panic_or_fail(path in "(/(api|apis|v1|namespaces|default|secrets|fluvial\\.io|v1alpha1|clusters|status|%[0-9a-f]{2}|[a-z.]{0,4})){1,8}", query in "[a-zA-Z0-9=&%!,]{0,40}") {
        let (runtime, hub) = shared();
        runtime.block_on(async {
            let uri = format!("{path}?{query}");
            if uri.parse::<http::Uri>().is_ok() && !query.contains("watch") {
                let reply = hub.get(&uri).await;
                assert!(reply.code < 500, "{uri}: {}", reply.text);
            }
        });
    }
}
