//! Admission: what an object refers to must be there.

use fluvial_model::kinds::{CacheLocation, JoinToken};
use fluvial_model::resource::Resource as _;
use fluvial_model::store::Txn;
use serde_json::json;

use super::harness::*;

fn migrate(name: &str, dataset: &str, storage: &str) -> serde_json::Value {
    json!({ "metadata": { "name": name }, "spec": { "from": { "dataset": { "name": dataset } }, "to": { "storage": { "name": storage } } } })
}

#[tokio::test]
async fn a_storage_needs_its_cluster() {
    let hub = Hub::start().await;
    let storage = json!({ "metadata": { "name": "s" }, "spec": { "uri": "file:///a", "cluster": "moon" } });
    let refused = hub.post(STORAGES, &storage).await;
    assert_eq!((refused.code, &refused.body["details"]["causes"][0]["field"]), (422, &json!("spec.cluster")));
    assert!(refused.message().contains("no Cluster named moon; there are none"), "{}", refused.text);
    let cluster = hub.post(CLUSTERS, &json!({ "metadata": { "name": "moon" } })).await.ok(201);
    assert_eq!(cluster["metadata"]["finalizers"], json!(["fluvial.io/leave"]));
    hub.post(STORAGES, &storage).await.ok(201);
    hub.delete(&format!("{CLUSTERS}/moon")).await.ok(200);
    let mut second = storage;
    second["metadata"]["name"] = json!("s2");
    let refused = hub.post(STORAGES, &second).await;
    assert!(refused.message().contains("is being deleted"), "{}", refused.text);
}

#[tokio::test]
async fn a_migration_needs_its_dataset_and_its_storage() {
    let hub = Hub::start().await;
    hub.populate().await;
    let refused = hub.post(MIGRATES, &migrate("m", "nope", "nowhere")).await;
    assert_eq!(refused.code, 422);
    let causes: Vec<(&str, &str)> = refused.body["details"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| (cause["field"].as_str().unwrap(), cause["message"].as_str().unwrap()))
        .collect();
    let expected = [
        ("spec.from.dataset.name", "no Dataset named nope; there are: d"),
        ("spec.to.storage.name", "no Storage named nowhere; there are: disk"),
    ];
    assert_eq!(causes, expected);
    let created = hub.post(MIGRATES, &migrate("m", "d", "disk")).await.ok(201);
    assert_eq!(created["metadata"]["finalizers"], json!(["fluvial.io/migrate"]));
    let replaced = hub.put(&format!("{MIGRATES}/m"), &migrate("m", "d", "disk")).await.ok(200);
    assert_eq!(replaced["metadata"]["finalizers"], json!(["fluvial.io/migrate"]), "a replacement does not drop it");
}

#[tokio::test]
async fn one_dataset_is_migrated_once_at_a_time() {
    let hub = Hub::start().await;
    hub.populate().await;
    let creations = (0..4).map(|i| {
        let hub = &hub;
        async move { hub.post(MIGRATES, &migrate(&format!("m{i}"), "d", "disk")).await }
    });
    let replies = futures::future::join_all(creations).await;
    let mut codes: Vec<u16> = replies.iter().map(|reply| reply.code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [201, 409, 409, 409]);
    let winner = replies.iter().find(|reply| reply.code == 201).unwrap().body["metadata"]["name"].as_str().unwrap();
    for loser in replies.iter().filter(|reply| reply.code == 409) {
        assert!(loser.message().contains(&format!("DataMigrate \"{winner}\"")), "{}", loser.text);
    }
    hub.merge(&format!("{MIGRATES}/{winner}/status"), &json!({ "status": { "phase": "Complete" } })).await.ok(200);
    hub.post(MIGRATES, &migrate("next", "d", "disk")).await.ok(201);
}

#[tokio::test]
async fn what_the_hub_writes_is_read_only_to_users() {
    let hub = Hub::start().await;
    let caches = "/apis/fluvial.io/v1alpha1/namespaces/default/cachelocations";
    let tokens = "/apis/fluvial.io/v1alpha1/jointokens";
    let objects = &hub.state.objects;
    let cache =
        CacheLocation::new("default", "d.onprem", fluvial_model::kinds::cachelocation::CacheLocationSpec::default());
    let token = JoinToken::new("", "abc", fluvial_model::kinds::JoinTokenSpec::default());
    objects.txn(Txn::create(cache.key(), objects.encode(&cache).unwrap())).await.unwrap();
    objects.txn(Txn::create(token.key(), objects.encode(&token).unwrap())).await.unwrap();
    for (base, name) in [(caches, "d.onprem"), (tokens, "abc")] {
        let path = format!("{base}/{name}");
        hub.get(&path).await.ok(200);
        assert_eq!(hub.post(base, &json!({ "metadata": { "name": "x" } })).await.code, 405);
        assert_eq!(hub.put(&path, &json!({ "metadata": { "name": name } })).await.code, 405);
        assert_eq!(hub.merge(&path, &json!({ "metadata": { "labels": { "a": "b" } } })).await.code, 405);
    }
    assert_eq!(hub.delete(&format!("{caches}/d.onprem")).await.code, 405);
    hub.delete(&format!("{tokens}/abc")).await.ok(200);
}
