//! Rights over real TLS, at every door that users come in by.

use axum::http::StatusCode;
use fluvial_certs::Identity;
use serde_json::{Value, json};

use super::fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_alone_opens_no_door_but_discovery() {
    let hub = TestHub::start().await;
    let ann = Identity::User { name: "ann".to_owned(), groups: vec!["team".to_owned()] };
    let fleet = "/apis/fluvial.io/v1alpha1";
    let dataset = "/apis/data.fluid.io/v1alpha1/namespaces/default/datasets/d";
    for (method, path, body) in [
        ("POST", format!("{fleet}/tokens"), json!({ "cluster": "alpha" })),
        ("GET", format!("{fleet}/hubs"), Value::Null),
        ("DELETE", format!("{fleet}/hubs/1"), Value::Null),
        ("GET", format!("{dataset}/tree"), Value::Null),
        ("GET", format!("{dataset}/diff?from=x"), Value::Null),
        ("GET", format!("{dataset}/file?path=x"), Value::Null),
        ("GET", dataset.to_owned(), Value::Null),
        ("GET", format!("{fleet}/jointokens"), Value::Null),
        ("POST", format!("{fleet}/users/bob/credentials"), json!({ "token": true })),
        ("DELETE", format!("{fleet}/users/bob/credentials"), Value::Null),
    ] {
        let (status, bytes) = hub.rest(Some(&ann), method, &path, body.clone()).await;
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((status, &answer["reason"]), (StatusCode::FORBIDDEN, &json!("Forbidden")), "{path}: {answer}");
        let (status, _) = hub.rest(Some(&user()), method, &path, body).await;
        assert_ne!(status, StatusCode::FORBIDDEN, "{path}");
    }
    // What everybody may is in force as soon as this hub has read it.
    eventually("discovery", || async {
        let (status, _) = hub.rest(Some(&ann), "GET", "/apis", Value::Null).await;
        (status == StatusCode::OK).then_some(())
    })
    .await;
    hub.hub.shutdown().await;
}
