//! Delete: finalizers, preconditions, owners, namespaces.

use serde_json::json;

use super::super::{Collected, collect_garbage};
use super::harness::*;
use crate::clock::SystemClock;

#[tokio::test]
async fn an_object_without_finalizers_goes_at_once() {
    let hub = Hub::start().await;
    let created = hub.post(DATASETS, &dataset("d")).await.ok(201);
    let gone = hub.delete(&format!("{DATASETS}/d")).await.ok(200);
    assert_eq!((&gone["status"], &gone["details"]["uid"]), (&json!("Success"), &created["metadata"]["uid"]));
    assert_eq!(hub.delete(&format!("{DATASETS}/d")).await.code, 404);
}

#[tokio::test]
async fn an_object_with_finalizers_waits_for_them() {
    let hub = Hub::start().await;
    let mut body = dataset("d");
    body["metadata"]["finalizers"] = json!(["a.io/x", "b.io/y"]);
    hub.post(DATASETS, &body).await.ok(201);
    let path = format!("{DATASETS}/d");
    let marked = hub.delete(&path).await.ok(200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(marked["metadata"]["generation"], 2);
    assert_eq!(hub.delete(&path).await.ok(200), marked, "asking twice changes nothing");
    let added = hub.merge(&path, &json!({ "metadata": { "finalizers": ["a.io/x", "b.io/y", "c.io/z"] } })).await;
    assert_eq!((added.code, &added.body["details"]["causes"][0]["field"]), (422, &json!("metadata.finalizers")));
    let kept =
        hub.merge(&path, &json!({ "metadata": { "deletionTimestamp": null, "finalizers": ["a.io/x"] } })).await.ok(200);
    assert!(kept["metadata"]["deletionTimestamp"].is_string());
    hub.merge(&path, &json!({ "metadata": { "finalizers": [] } })).await.ok(200);
    assert_eq!(hub.get(&path).await.code, 404);
}

#[tokio::test]
async fn preconditions_are_kept() {
    let hub = Hub::start().await;
    let uid = hub.post(DATASETS, &dataset("d")).await.ok(201)["metadata"]["uid"].clone();
    let path = format!("{DATASETS}/d");
    let send = |body: serde_json::Value| hub.call("DELETE", &path, "application/json", body.to_string());
    assert_eq!(send(json!({ "preconditions": { "uid": "other" } })).await.code, 409);
    assert_eq!(send(json!({ "preconditions": { "resourceVersion": "1" } })).await.code, 409);
    assert_eq!(send(json!({ "propagationPolicy": "Sideways" })).await.code, 400);
    assert_eq!(send(json!({ "kind": "Dataset" })).await.code, 400);
    assert_eq!(send(json!([])).await.code, 400);
    send(json!({ "kind": "DeleteOptions", "apiVersion": "v1", "preconditions": { "uid": uid }, "propagationPolicy": "Background" })).await.ok(200);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let hub = Hub::start().await;
    for (name, tier) in [("a", "hot"), ("b", "cold"), ("c", "hot")] {
        let mut body = dataset(name);
        body["metadata"]["labels"] = json!({ "tier": tier });
        hub.post(DATASETS, &body).await.ok(201);
    }
    let deleted = hub.delete(&format!("{DATASETS}?labelSelector=tier%3Dhot")).await.ok(200);
    assert_eq!(deleted["items"].as_array().unwrap().len(), 2);
    let left = hub.get(DATASETS).await.ok(200);
    assert_eq!(left["items"][0]["metadata"]["name"], "b");
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn dependents_go_when_their_owners_have_gone() {
    let hub = Hub::start().await;
    let owner = hub.post(DATASETS, &dataset("owner")).await.ok(201);
    let reference = |uid: &serde_json::Value, kind: &str| json!([{ "apiVersion": "data.fluid.io/v1alpha1", "kind": kind, "name": "owner", "uid": uid }]);
    for (name, references) in [
        ("mine", reference(&owner["metadata"]["uid"], "Dataset")),
        ("foreign", reference(&json!("u-1"), "Elephant")),
        ("former", reference(&json!("u-2"), "Dataset")),
    ] {
        let mut body = json!({ "metadata": { "name": name }, "stringData": { "k": "v" } });
        body["metadata"]["ownerReferences"] = references;
        hub.post(SECRETS, &body).await.ok(201);
    }
    let collect = || collect_garbage(&hub.state.objects, &SystemClock);
    assert_eq!(collect().await.unwrap(), Collected { dependents: 1, namespaces: 0 });
    assert_eq!(hub.get(&format!("{SECRETS}/former")).await.code, 404);
    hub.delete(&format!("{DATASETS}/owner")).await.ok(200);
    assert_eq!(collect().await.unwrap(), Collected { dependents: 1, namespaces: 0 });
    assert_eq!(hub.get(&format!("{SECRETS}/mine")).await.code, 404);
    hub.get(&format!("{SECRETS}/foreign")).await.ok(200);
    assert_eq!(collect().await.unwrap(), Collected::default());
}

#[tokio::test]
async fn orphans_are_let_go() {
    let hub = Hub::start().await;
    let owner = hub.post(DATASETS, &dataset("owner")).await.ok(201);
    let mut body = json!({ "metadata": { "name": "mine" } });
    body["metadata"]["ownerReferences"] = json!([
        { "apiVersion": "data.fluid.io/v1alpha1", "kind": "Dataset", "name": "owner", "uid": owner["metadata"]["uid"] },
    ]);
    hub.post(SECRETS, &body).await.ok(201);
    hub.delete(&format!("{DATASETS}/owner?propagationPolicy=Orphan")).await.ok(200);
    collect_garbage(&hub.state.objects, &SystemClock).await.unwrap();
    assert_eq!(hub.get(&format!("{DATASETS}/owner")).await.code, 404);
    collect_garbage(&hub.state.objects, &SystemClock).await.unwrap();
    let kept = hub.get(&format!("{SECRETS}/mine")).await.ok(200);
    assert_eq!(kept.pointer("/metadata/ownerReferences"), None);
}

#[tokio::test]
async fn a_namespace_takes_its_contents_along() {
    let hub = Hub::start().await;
    let created = hub.post(NAMESPACES, &json!({ "metadata": { "name": "team" } })).await.ok(201);
    assert_eq!(created["status"]["phase"], "Active");
    let inside = "/apis/data.fluid.io/v1alpha1/namespaces/team/datasets";
    hub.post(inside, &dataset("plain")).await.ok(201);
    let mut held = dataset("held");
    held["metadata"]["finalizers"] = json!(["a.io/x"]);
    hub.post(inside, &held).await.ok(201);
    let marked = hub.delete(&format!("{NAMESPACES}/team")).await.ok(200);
    assert_eq!(marked["status"]["phase"], "Terminating");
    assert_eq!(hub.get(&format!("{inside}/plain")).await.code, 404);
    let refused = hub.post(inside, &dataset("late")).await;
    assert_eq!(refused.code, 403);
    assert!(refused.message().contains("is being terminated"), "{}", refused.text);
    hub.merge(&format!("{NAMESPACES}/team"), &json!({ "metadata": { "finalizers": [] } })).await.ok(200);
    hub.get(&format!("{NAMESPACES}/team")).await.ok(200);
    hub.merge(&format!("{inside}/held"), &json!({ "metadata": { "finalizers": [] } })).await.ok(200);
    let collected = collect_garbage(&hub.state.objects, &SystemClock).await.unwrap();
    assert_eq!(collected, Collected { dependents: 0, namespaces: 1 });
    assert_eq!(hub.get(&format!("{NAMESPACES}/team")).await.code, 404);
}

#[tokio::test]
async fn an_empty_namespace_goes_at_once_and_default_never() {
    let hub = Hub::start().await;
    hub.post(NAMESPACES, &json!({ "metadata": { "name": "team" } })).await.ok(201);
    hub.delete(&format!("{NAMESPACES}/team")).await.ok(200);
    assert_eq!(hub.get(&format!("{NAMESPACES}/team")).await.code, 404);
    assert_eq!(hub.delete(&format!("{NAMESPACES}/default")).await.code, 403);
    let missing = hub.post("/apis/data.fluid.io/v1alpha1/namespaces/team/datasets", &dataset("d")).await;
    assert_eq!((missing.code, missing.message()), (404, "namespaces \"team\" not found"));
}
