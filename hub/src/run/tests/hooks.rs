//! Notifications of stores: who may send them, and what comes of them.

use axum::http::StatusCode;
use base64::Engine as _;
use fluvial_model::kinds::{
    Dataset, DatasetSpec, DatasetStatus, Mount, Secret, SecretKeySelector, SourceHook, SourceHookSpec,
};
use fluvial_model::resource::Resource as _;
use fluvial_raft::Consistency;
use serde_json::{Value, json};

use super::fixture::{TestHub, cluster, user};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const PATH: &str = "/apis/fluvial.io/v1alpha1/namespaces/default/sourcehooks/hook/notifications";

async fn hub_with_hook(token: &str) -> TestHub {
    let hub = TestHub::start().await;
    let mut secret = Secret::default();
    (secret.metadata.namespace, secret.metadata.name) = ("default".to_owned(), "hook-token".to_owned());
    secret.data.insert("token".to_owned(), base64::engine::general_purpose::STANDARD.encode(token));
    let reference = SecretKeySelector { name: "hook-token".into(), key: "token".into(), namespace: String::new() };
    let hook = SourceHook::new("default", "hook", SourceHookSpec { token_secret_ref: reference });
    let objects = hub.hub.objects();
    hub.put(&secret.key(), objects.encode(&secret).unwrap()).await;
    hub.put(&hook.key(), objects.encode(&hook).unwrap()).await;
    for (name, uri) in [("one", "s3://bucket/one"), ("other", "s3://bucket/other"), ("both", "s3://bucket")] {
        let mounts = vec![Mount { mount_point: uri.into(), ..Mount::default() }];
        let mut dataset = Dataset::new("default", name, DatasetSpec { mounts, ..DatasetSpec::default() });
        dataset.status = Some(DatasetStatus::default());
        hub.put(&dataset.key(), objects.encode(&dataset).unwrap()).await;
    }
    hub
}

fn put(key: &str) -> Value {
    json!({ "Records": [{ "s3": { "bucket": { "name": "bucket" }, "object": { "key": key } } }] })
}

async fn tell(hub: &TestHub, path: &str, token: &str, body: Value) -> (StatusCode, Value) {
    let bearer = format!("Bearer {token}");
    let (status, bytes) = hub.rest_with(None, "POST", path, body, &[("authorization", &bearer)]).await;
    (status, serde_json::from_slice(&bytes).unwrap())
}

async fn changes(hub: &TestHub, name: &str) -> u64 {
    let found = hub.hub.objects().get::<Dataset>("default", name, Consistency::Linearizable).await.unwrap();
    found.unwrap().object.status.unwrap().source_changes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_counts_for_the_datasets_that_it_is_about() {
    let hub = hub_with_hook(TOKEN).await;
    let (status, said) = tell(&hub, PATH, TOKEN, put("one/file")).await;
    assert_eq!((status, &said["datasets"]), (StatusCode::OK, &json!(["both", "one"])));
    assert_eq!([changes(&hub, "one").await, changes(&hub, "other").await, changes(&hub, "both").await], [1, 0, 1]);
    // Until a listing has begun, more of them are no news.
    tell(&hub, PATH, TOKEN, put("one/file")).await;
    assert_eq!(changes(&hub, "one").await, 1);
    let (status, said) = tell(&hub, PATH, TOKEN, json!({ "Records": [] })).await;
    assert_eq!((status, &said["datasets"]), (StatusCode::OK, &json!([])));
    let hook = hub.hub.objects().get::<SourceHook>("default", "hook", Consistency::Linearizable).await.unwrap();
    let noted = hook.unwrap().object.status.unwrap();
    assert_eq!(noted.message, "about bucket/one/file: datasets both, one");
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_notifications_at_once_are_all_answered() {
    let hub = hub_with_hook(TOKEN).await;
    let keys: Vec<String> = (0..40).map(|n| format!("{}/{n}", if n % 2 == 0 { "one" } else { "other" })).collect();
    let all = futures::future::join_all(keys.iter().map(|key| tell(&hub, PATH, TOKEN, put(key)))).await;
    for (key, (status, said)) in keys.iter().zip(all) {
        let own = key.split('/').next().unwrap();
        assert_eq!((status, said), (StatusCode::OK, json!({ "datasets": ["both", own] })), "{key}");
    }
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_the_token_is_heard_or_learns_anything() {
    let hub = hub_with_hook(TOKEN).await;
    let (status, refusal) = tell(&hub, PATH, "wrong", put("one/file")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(!refusal.to_string().contains(TOKEN));
    let unknown = PATH.replace("/hook/", "/none/");
    assert_eq!(tell(&hub, &unknown, TOKEN, put("one/file")).await, (status, refusal.clone()));
    for identity in [None, Some(user()), Some(cluster("a"))] {
        let (status, _) = hub.rest(identity.as_ref(), "POST", PATH, put("one/file")).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{identity:?}");
    }
    assert_eq!(changes(&hub, "one").await, 0);
    hub.hub.shutdown().await;
    let hub = hub_with_hook("short").await;
    assert_eq!(tell(&hub, PATH, "short", put("one/file")).await, (status, refusal));
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_notification_is_refused_and_says_what_would_be_right() {
    let hub = hub_with_hook(TOKEN).await;
    let (status, said) = tell(&hub, PATH, TOKEN, json!({ "Records": [{ "s3": { "bucket": { "name": 1 } } }] })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(said["message"], "the notification: Records[0].s3.bucket.name must be a text");
    let (status, _) = tell(&hub, PATH, TOKEN, json!({ "Records": "x".repeat(crate::hooks::MAX_BODY) })).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let (status, _) = hub.rest_with(None, "GET", PATH, json!({}), &[]).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    hub.hub.shutdown().await;
}
