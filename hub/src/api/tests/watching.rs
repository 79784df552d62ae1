//! Watch: order, selection, resume, bookmarks, compaction.

use axum::body::Body;
use fluvial_raft::Store as _;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::harness::*;

/// An open watch, read event by event.
struct Stream {
    body: axum::body::BodyDataStream,
    text: String,
}

impl Stream {
    async fn open(hub: &Hub, path: &str, accept: &str) -> Self {
        let response = hub.router.clone().oneshot(accepting(path, accept)).await.unwrap();
        assert_eq!(response.status().as_u16(), 200, "{path}");
        Self { body: Body::into_data_stream(response.into_body()), text: String::new() }
    }

    /// The next event, or none at the end of the stream.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let event = serde_json::from_str(line).unwrap();
                self.text = rest.to_owned();
                return Some(event);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.body.next()).await.expect("an event in time")?;
            self.text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
    }

    /// The next event's type and its object's name.
    async fn brief(&mut self) -> (String, String) {
        let event = self.next().await.expect("the stream goes on");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

fn brief(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

fn labelled(name: &str, tier: &str) -> Value {
    let mut body = dataset(name);
    body["metadata"]["labels"] = json!({ "tier": tier });
    body
}

#[tokio::test]
async fn a_watch_shows_what_is_there_and_then_what_changes() {
    let hub = Hub::start().await;
    hub.post(DATASETS, &dataset("a")).await.ok(201);
    let mut stream = Stream::open(&hub, &format!("{DATASETS}?watch=true"), "").await;
    assert_eq!(stream.brief().await, brief("ADDED", "a"));
    hub.post(DATASETS, &dataset("b")).await.ok(201);
    hub.merge(&format!("{DATASETS}/b"), &json!({ "metadata": { "labels": { "x": "y" } } })).await.ok(200);
    let before = hub.delete(&format!("{DATASETS}/b")).await.ok(200);
    assert_eq!(before["status"], "Success");
    assert_eq!(stream.brief().await, brief("ADDED", "b"));
    assert_eq!(stream.brief().await, brief("MODIFIED", "b"));
    let deleted = stream.next().await.unwrap();
    assert_eq!((&deleted["type"], &deleted["object"]["metadata"]["labels"]["x"]), (&json!("DELETED"), &json!("y")));
    assert_eq!(deleted["object"]["metadata"]["resourceVersion"], hub.store.revision().to_string());
}

#[tokio::test]
async fn a_watch_resumes_after_a_version() {
    let hub = Hub::start().await;
    let a = hub.post(DATASETS, &dataset("a")).await.ok(201);
    hub.post(DATASETS, &dataset("b")).await.ok(201);
    let version = a["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!("{DATASETS}?watch=1&resourceVersion={version}&timeoutSeconds=1&allowWatchBookmarks=true");
    let mut stream = Stream::open(&hub, &path, "").await;
    assert_eq!(stream.brief().await, brief("ADDED", "b"));
    let bookmark = stream.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], hub.store.revision().to_string());
    assert_eq!(stream.next().await, None, "the time is over");
}

#[tokio::test]
async fn entering_a_selection_is_added_and_leaving_it_is_deleted() {
    let hub = Hub::start().await;
    hub.post(DATASETS, &labelled("hot", "hot")).await.ok(201);
    hub.post(DATASETS, &labelled("cold", "cold")).await.ok(201);
    let mut stream = Stream::open(&hub, &format!("{DATASETS}?watch=true&labelSelector=tier%3Dhot"), "").await;
    assert_eq!(stream.brief().await, brief("ADDED", "hot"));
    hub.merge(&format!("{DATASETS}/cold"), &json!({ "metadata": { "labels": { "tier": "hot" } } })).await.ok(200);
    assert_eq!(stream.brief().await, brief("ADDED", "cold"));
    hub.merge(&format!("{DATASETS}/hot"), &json!({ "metadata": { "labels": { "tier": "cold" } } })).await.ok(200);
    assert_eq!(stream.brief().await, brief("DELETED", "hot"));
    hub.delete(&format!("{DATASETS}/hot")).await.ok(200);
    hub.delete(&format!("{DATASETS}/cold")).await.ok(200);
    assert_eq!(stream.brief().await, brief("DELETED", "cold"), "what was not selected goes unseen");
}

#[tokio::test]
async fn the_initial_state_ends_with_a_bookmark() {
    let hub = Hub::start().await;
    hub.post(DATASETS, &dataset("a")).await.ok(201);
    let path = format!(
        "{DATASETS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let mut stream = Stream::open(&hub, &path, "").await;
    assert_eq!(stream.brief().await, brief("ADDED", "a"));
    let end = stream.next().await.unwrap();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(hub.get(&format!("{DATASETS}?watch=true&sendInitialEvents=true")).await.code, 400);
}

#[tokio::test]
async fn a_forgotten_version_is_gone() {
    let hub = Hub::start().await;
    let a = hub.post(DATASETS, &dataset("a")).await.ok(201);
    hub.post(DATASETS, &dataset("b")).await.ok(201);
    hub.store.compact(hub.store.revision()).await.unwrap();
    let version = a["metadata"]["resourceVersion"].as_str().unwrap();
    let mut stream = Stream::open(&hub, &format!("{DATASETS}?watch=true&resourceVersion={version}"), "").await;
    let error = stream.next().await.unwrap();
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn a_watch_can_be_a_table() {
    let hub = Hub::start().await;
    hub.post(DATASETS, &dataset("a")).await.ok(201);
    let mut stream = Stream::open(&hub, &format!("{DATASETS}?watch=true"), TABLE).await;
    let event = stream.next().await.unwrap();
    assert_eq!((&event["object"]["kind"], &event["object"]["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
}
