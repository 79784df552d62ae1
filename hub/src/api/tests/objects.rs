//! Create, read, update, patch, list.

use serde_json::{Value, json};

use super::harness::*;

#[tokio::test]
async fn a_created_object_gets_its_identity_and_can_be_read() {
    let hub = Hub::start().await;
    let created = hub.post(DATASETS, &dataset("d")).await.ok(201);
    let metadata = &created["metadata"];
    assert_eq!(
        (&metadata["name"], &metadata["namespace"], &metadata["generation"]),
        (&json!("d"), &json!("default"), &json!(1))
    );
    assert_eq!(metadata["uid"].as_str().unwrap().len(), 36);
    assert!(metadata["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(hub.get(&format!("{DATASETS}/d")).await.ok(200), created);
    let again = hub.post(DATASETS, &dataset("d")).await;
    assert_eq!((again.code, &again.body["reason"]), (409, &json!("AlreadyExists")));
}

#[tokio::test]
async fn what_the_hub_owns_cannot_be_set_from_outside() {
    let hub = Hub::start().await;
    let mut body = dataset("d");
    body["metadata"]["uid"] = json!("mine");
    body["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
    body["metadata"]["generation"] = json!(77);
    body["metadata"]["managedFields"] = json!([{ "manager": "kubectl" }]);
    body["status"] = json!({ "phase": "Bound" });
    let created = hub.post(DATASETS, &body).await.ok(201);
    assert_ne!(created["metadata"]["uid"], "mine");
    assert_eq!(created["metadata"]["generation"], 1);
    for gone in ["/metadata/deletionTimestamp", "/metadata/managedFields", "/status"] {
        assert_eq!(created.pointer(gone), None, "{gone}");
    }
    body["metadata"]["resourceVersion"] = json!("1");
    assert_eq!(hub.post(DATASETS, &body).await.code, 400);
}

#[tokio::test]
async fn a_generated_name_is_unique_and_none_at_all_is_refused() {
    let hub = Hub::start().await;
    let mut body = dataset("");
    let refused = hub.post(DATASETS, &body).await;
    assert_eq!((refused.code, &refused.body["details"]["causes"][0]["field"]), (422, &json!("metadata.name")));
    body["metadata"]["generateName"] = json!("data-");
    let first = hub.post(DATASETS, &body).await.ok(201);
    let second = hub.post(DATASETS, &body).await.ok(201);
    assert!(first["metadata"]["name"].as_str().unwrap().starts_with("data-"));
    assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
}

#[tokio::test]
async fn dry_run_checks_everything_and_writes_nothing() {
    let hub = Hub::start().await;
    hub.post(&format!("{DATASETS}?dryRun=All"), &dataset("d")).await.ok(201);
    assert_eq!(hub.get(&format!("{DATASETS}/d")).await.code, 404);
    assert_eq!(hub.post(&format!("{DATASETS}?dryRun=All"), &dataset("BAD")).await.code, 422);
    hub.post(DATASETS, &dataset("d")).await.ok(201);
    assert_eq!(hub.post(&format!("{DATASETS}?dryRun=All"), &dataset("d")).await.code, 409);
    let before = hub.get(&format!("{DATASETS}/d")).await.ok(200);
    let patched = hub
        .merge(&format!("{DATASETS}/d?dryRun=All"), &json!({ "metadata": { "labels": { "a": "b" } } }))
        .await
        .ok(200);
    assert_eq!(patched["metadata"]["labels"]["a"], "b");
    hub.delete(&format!("{DATASETS}/d?dryRun=All")).await.ok(200);
    assert_eq!(hub.get(&format!("{DATASETS}/d")).await.ok(200), before);
}

#[tokio::test]
async fn a_stale_update_is_a_conflict_and_an_unconditional_one_is_not() {
    let hub = Hub::start().await;
    let old = hub.post(DATASETS, &dataset("d")).await.ok(201);
    let path = format!("{DATASETS}/d");
    let mut new = old.clone();
    new["metadata"]["labels"] = json!({ "n": "1" });
    let updated = hub.put(&path, &new).await.ok(200);
    assert_eq!(updated["metadata"]["generation"], 1, "labels are no spec");
    let stale = hub.put(&path, &new).await;
    assert_eq!((stale.code, &stale.body["reason"]), (409, &json!("Conflict")));
    assert!(stale.message().contains("the object has been modified"), "{}", stale.text);
    let mut unconditional = dataset("d");
    unconditional["spec"]["placement"] = json!("Shared");
    let updated = hub.put(&path, &unconditional).await.ok(200);
    assert_eq!(updated["metadata"]["generation"], 2, "the spec changed");
    assert_eq!(updated["metadata"]["uid"], old["metadata"]["uid"]);
    let same = hub.put(&path, &unconditional).await.ok(200);
    assert_eq!(same, updated, "nothing changed, nothing was written");
    unconditional["metadata"]["uid"] = json!("another");
    assert_eq!(hub.put(&path, &unconditional).await.code, 409);
    assert_eq!(hub.put(&format!("{DATASETS}/x"), &dataset("x")).await.code, 404);
    assert_eq!(hub.put(&path, &dataset("other")).await.code, 400);
}

#[tokio::test]
async fn status_is_written_through_its_own_door_only() {
    let hub = Hub::start().await;
    hub.post(DATASETS, &dataset("d")).await.ok(201);
    let path = format!("{DATASETS}/d");
    let mut both = dataset("d");
    both["spec"]["placement"] = json!("Shared");
    both["status"] = json!({ "phase": "Bound", "files": 3 });
    assert_eq!(hub.put(&path, &both).await.ok(200).pointer("/status"), None);
    both["spec"]["placement"] = json!("Exclusive");
    let updated = hub.put(&format!("{path}/status"), &both).await.ok(200);
    assert_eq!((&updated["spec"]["placement"], &updated["status"]["files"]), (&json!("Shared"), &json!(3)));
    assert_eq!(updated["metadata"]["generation"], 2);
    let patched = hub
        .merge(&format!("{path}/status"), &json!({ "status": { "files": 4 }, "spec": { "mounts": [] } }))
        .await
        .ok(200);
    assert_eq!(patched["status"]["files"], 4);
    assert_eq!(patched["spec"]["mounts"].as_array().unwrap().len(), 1);
    let spec_only = hub.merge(&path, &json!({ "status": { "files": 9 } })).await.ok(200);
    assert_eq!(spec_only["status"]["files"], 4);
    assert_eq!(hub.get(&format!("{path}/status")).await.ok(200)["status"]["files"], 4);
}

#[tokio::test]
async fn patches_of_each_kind_apply() {
    let hub = Hub::start().await;
    hub.post(DATASETS, &dataset("d")).await.ok(201);
    let path = format!("{DATASETS}/d");
    let json_patch = json!([{ "op": "add", "path": "/metadata/labels", "value": { "a": "1" } }]).to_string();
    let patched = hub.call("PATCH", &path, "application/json-patch+json", json_patch).await.ok(200);
    assert_eq!(patched["metadata"]["labels"], json!({ "a": "1" }));
    let failing = json!([{ "op": "test", "path": "/metadata/labels/a", "value": "2" }]).to_string();
    assert_eq!(hub.call("PATCH", &path, "application/json-patch+json", failing).await.code, 422);
    assert_eq!(hub.call("PATCH", &path, "application/json-patch+json", "{}").await.code, 400);
    assert_eq!(hub.merge(&path, &json!({ "metadata": { "resourceVersion": "1" } })).await.code, 409);
    assert_eq!(hub.merge(&path, &json!({ "metadata": { "name": "e" } })).await.code, 400);
    assert_eq!(hub.merge(&path, &json!({ "metadata": { "namespace": "e" } })).await.code, 400);
    let unknown = hub.merge(&path, &json!({ "spec": { "bogus": 1 } })).await;
    assert_eq!(unknown.code, 400);
    assert!(unknown.message().contains("unknown field \"spec.bogus\""), "{}", unknown.text);
    let apply = hub.call("PATCH", &path, "application/apply-patch+yaml", "{}").await;
    assert_eq!(apply.code, 415);
    assert!(apply.message().contains("server-side apply is not supported"), "{}", apply.text);
    assert_eq!(hub.call("PATCH", &path, "application/strategic-merge-patch+json", "{}").await.code, 415);
    hub.post(SECRETS, &json!({ "metadata": { "name": "s" }, "stringData": { "k": "v" } })).await.ok(201);
    let strategic = json!({ "stringData": { "l": "w" } }).to_string();
    let secret =
        hub.call("PATCH", &format!("{SECRETS}/s"), "application/strategic-merge-patch+json", strategic).await.ok(200);
    assert_eq!(secret["data"], json!({ "k": "dg==", "l": "dw==" }));
}

#[tokio::test]
async fn concurrent_patches_all_land() {
    let hub = Hub::start().await;
    hub.post(DATASETS, &dataset("d")).await.ok(201);
    let path = format!("{DATASETS}/d");
    let patches = (0..6).map(|i| {
        let (hub, path) = (&hub, path.clone());
        async move { hub.merge(&path, &json!({ "metadata": { "labels": { format!("l{i}"): "x" } } })).await.ok(200) }
    });
    futures::future::join_all(patches).await;
    let labels = hub.get(&path).await.ok(200)["metadata"]["labels"].clone();
    assert_eq!(labels.as_object().unwrap().len(), 6);
}

#[tokio::test]
async fn yaml_is_read_like_json() {
    let hub = Hub::start().await;
    let yaml = "metadata:\n  name: y\nspec:\n  mounts:\n  - mountPoint: file:///a\n";
    let created = hub.call("POST", DATASETS, "application/yaml", yaml).await.ok(201);
    assert_eq!(created["spec"]["mounts"][0]["mountPoint"], "file:///a");
    for bad in ["a: [", "a: 1\n---\nb: 2\n", "- 1", "? [a]\n: b\n"] {
        assert_eq!(hub.call("POST", DATASETS, "application/yaml", bad).await.code, 400, "{bad}");
    }
}

#[tokio::test]
async fn unknown_fields_are_refused_warned_of_or_dropped() {
    let hub = Hub::start().await;
    let mut body = dataset("d");
    body["spec"]["bogus"] = json!(1);
    body["other"] = json!(2);
    let strict = hub.post(DATASETS, &body).await;
    assert_eq!(strict.code, 400);
    assert!(strict.message().contains("unknown field \"other\", unknown field \"spec.bogus\""), "{}", strict.text);
    let warned = hub.post(&format!("{DATASETS}?fieldValidation=Warn"), &body).await;
    let warnings: Vec<&str> = warned.headers.get_all("warning").iter().map(|v| v.to_str().unwrap()).collect();
    assert_eq!(warnings, ["299 - \"unknown field \\\"other\\\"\"", "299 - \"unknown field \\\"spec.bogus\\\"\""]);
    assert_eq!(warned.ok(201).pointer("/spec/bogus"), None);
    body["metadata"]["name"] = json!("e");
    let ignored = hub.post(&format!("{DATASETS}?fieldValidation=Ignore"), &body).await;
    assert!(ignored.headers.get("warning").is_none());
    ignored.ok(201);
}

#[tokio::test]
async fn a_secret_is_encrypted_at_rest_and_shown_to_users() {
    use fluvial_raft::{Consistency, Store as _};
    let hub = Hub::start().await;
    let body = json!({ "metadata": { "name": "s" }, "stringData": { "password": "hunter2" } });
    let created = hub.post(SECRETS, &body).await.ok(201);
    assert_eq!((&created["data"]["password"], &created["type"]), (&json!("aHVudGVyMg=="), &json!("Opaque")));
    let stored = hub.store.get("/registry/core/secrets/default/s", Consistency::Linearizable).await.unwrap().unwrap();
    let stored = String::from_utf8_lossy(&stored.value).into_owned();
    assert!(!stored.contains("hunter2") && !stored.contains("aHVudGVyMg"), "{stored}");
    let list = hub.get(SECRETS).await.ok(200);
    assert_eq!(list["items"][0]["data"]["password"], "aHVudGVyMg==");
    let revision = created["metadata"]["resourceVersion"].clone();
    let same = hub.merge(&format!("{SECRETS}/s"), &json!({ "stringData": { "password": "hunter2" } })).await.ok(200);
    assert_eq!(same["metadata"]["resourceVersion"], revision, "the same secret again is no change");
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_list_is_cut_into_pages_of_one_state() {
    let hub = Hub::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        let mut body = dataset(name);
        body["metadata"]["labels"] = json!({ "odd": if ["a", "c", "e"].contains(&name) { "yes" } else { "no" } });
        hub.post(DATASETS, &body).await.ok(201);
    }
    let first = hub.get(&format!("{DATASETS}?limit=2")).await.ok(200);
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["a", "b"], &json!(3)));
    hub.post(DATASETS, &dataset("bb")).await.ok(201);
    hub.delete(&format!("{DATASETS}/c")).await.ok(200);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = hub.get(&format!("{DATASETS}?limit=2&continue={token}")).await.ok(200);
    assert_eq!(names(&second), ["c", "d"], "the state of the first page");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let last = hub.get(&format!("{DATASETS}?limit=2&continue={token}")).await.ok(200);
    assert_eq!((names(&last), last["metadata"].get("continue")), (vec!["e"], None));
    let odd = hub.get(&format!("{DATASETS}?limit=1&labelSelector=odd%3Dyes")).await.ok(200);
    let token = odd["metadata"]["continue"].as_str().unwrap();
    let rest = hub.get(&format!("{DATASETS}?limit=5&labelSelector=odd%3Dyes&continue={token}")).await.ok(200);
    assert_eq!((names(&odd), names(&rest)), (vec!["a"], vec!["e"]));
    let all: Value = hub.get("/apis/data.fluid.io/v1alpha1/datasets?fieldSelector=metadata.name%3De").await.ok(200);
    assert_eq!((names(&all), &all["kind"]), (vec!["e"], &json!("DatasetList")));
    let altered = format!("{}x", token);
    assert_eq!(hub.get(&format!("{DATASETS}?continue={altered}")).await.code, 400);
    assert_eq!(hub.get(&format!("{SECRETS}?continue={token}")).await.code, 400);
    assert_eq!(hub.get(&format!("{DATASETS}?continue={token}&resourceVersion=3")).await.code, 400);
}

#[tokio::test]
async fn versions_say_how_fresh_or_how_old_a_list_is() {
    use fluvial_raft::Store as _;
    let hub = Hub::start().await;
    let first =
        hub.post(DATASETS, &dataset("a")).await.ok(201)["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    hub.post(DATASETS, &dataset("b")).await.ok(201);
    let exact = format!("{DATASETS}?resourceVersion={first}&resourceVersionMatch=Exact");
    assert_eq!(names(&hub.get(&exact).await.ok(200)), ["a"]);
    let fresh = hub.get(&format!("{DATASETS}?resourceVersion={first}&resourceVersionMatch=NotOlderThan")).await.ok(200);
    assert_eq!(names(&fresh), ["a", "b"]);
    assert_eq!(names(&hub.get(&format!("{DATASETS}?resourceVersion=0")).await.ok(200)), ["a", "b"]);
    let page = hub.get(&format!("{DATASETS}?limit=1")).await.ok(200);
    let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
    let future = hub.get(&format!("{DATASETS}?resourceVersion=999999")).await;
    assert_eq!((future.code, &future.body["reason"]), (504, &json!("Timeout")));
    assert_eq!(hub.get(&format!("{DATASETS}?resourceVersionMatch=Exact")).await.code, 400);
    hub.post(DATASETS, &dataset("c")).await.ok(201);
    hub.store.compact(hub.store.revision()).await.unwrap();
    for old in [exact, format!("{DATASETS}?limit=1&continue={token}")] {
        let gone = hub.get(&old).await;
        assert_eq!((gone.code, &gone.body["reason"]), (410, &json!("Expired")), "{old}");
    }
}

#[tokio::test]
async fn tables_and_bare_metadata_are_served_on_request() {
    let hub = Hub::start().await;
    hub.post(DATASETS, &dataset("d")).await.ok(201);
    let table = hub.send(accepting(DATASETS, TABLE)).await.ok(200);
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("d")));
    let one = hub.send(accepting(&format!("{DATASETS}/d"), TABLE)).await.ok(200);
    assert_eq!(one["rows"].as_array().unwrap().len(), 1);
    let bare =
        hub.send(accepting(DATASETS, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")).await.ok(200);
    assert_eq!((&bare["kind"], bare["items"][0].get("spec")), (&json!("PartialObjectMetadataList"), None));
    assert_eq!(hub.send(accepting(DATASETS, "text/html")).await.code, 406);
}

#[tokio::test]
async fn the_catalog_answers_what_was_written_before() {
    let hub = Hub::start().await;
    hub.populate().await;
    let path = "/apis/fluvial.io/v1alpha1/query";
    let answer = hub.post(path, &json!({ "sql": "SELECT name, phase FROM datasets" })).await.ok(200);
    assert_eq!(answer, json!([{ "name": "d", "phase": "NotBound" }]));
    let csv =
        hub.post(path, &json!({ "sql": "SELECT name FROM storages", "format": "csv", "consistency": "stale" })).await;
    assert_eq!((csv.code, csv.text.as_str()), (200, "name\ndisk\n"));
    for (body, code) in [
        (json!({ "sql": "DELETE FROM datasets" }), 400),
        (json!({ "sql": "SELECT value FROM fv_objects" }), 400),
        (json!({ "sql": "SELEC" }), 400),
        (json!({ "sql": "SELECT zeroblob(100000000)" }), 422),
        (json!({ "sql": 1 }), 400),
        (json!({ "sql": "SELECT 1", "format": "xml" }), 400),
        (json!({ "query": "SELECT 1" }), 400),
    ] {
        assert_eq!(hub.post(path, &body).await.code, code, "{body}");
    }
    assert_eq!(hub.get(path).await.code, 405);
    let schema = hub.get(&format!("{path}/schema")).await.ok(200);
    assert_eq!(schema["tables"][0]["name"], "clusters");
}
