//! A hub's API over a store of its own, in this process.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use fluvial_certs::Identity;
use fluvial_raft::{Config, ConnectError, PeerConnector, RaftStore, Store as _};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, Request};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use zeroize::Zeroizing;

use super::super::*;
use crate::catalog::Limits;
use crate::clock::SystemClock;
use crate::rights::Rights;
use crate::run::HubStore;
use crate::vault::{KEY_BYTES, Vault};

/// No condition is waited for longer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A single node has no peers.
struct NoPeers;

#[async_trait]
impl PeerConnector for NoPeers {
    async fn connect(&self, id: u64, address: &str) -> Result<tonic::transport::Channel, ConnectError> {
        Err(ConnectError { id, address: address.to_owned(), source: "there are no peers".into() })
    }
}

/// The API and what is under it.
pub struct Hub {
    pub store: RaftStore,
    pub state: ApiState,
    pub router: Router,
    pub rights: Rights,
    following: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Value,
    pub text: String,
}

impl Reply {
    /// The Status' message.
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    /// Asserts the code and hands the body on.
    #[track_caller]
    pub fn ok(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text);
        self.body
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Hub {
    /// A fresh hub with the `default` namespace.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(1, "test", dir.path(), "127.0.0.1:1");
        let store = RaftStore::open(config, Arc::new(NoPeers)).await.unwrap();
        store.initialize(BTreeMap::from([(1, "127.0.0.1:1".to_owned())])).await.unwrap();
        let mut leadership = store.leadership();
        tokio::time::timeout(PATIENCE, leadership.wait_for(|leadership| leadership.is_self)).await.unwrap().unwrap();
        let objects =
            Objects { store: Arc::new(store.clone()), vault: Arc::new(Vault::new(&Zeroizing::new([9; KEY_BYTES]))) };
        ensure_defaults(&objects, &SystemClock).await.unwrap();
        let catalog = Arc::new(QueryEngine::open(Arc::new(HubStore::Raft(store.clone())), Limits::default()));
        let state = ApiState { objects, clock: Arc::new(SystemClock), catalog, watches: Watches::default() };
        let rights = Rights::default();
        let following = tokio::spawn(rights.clone().run(Arc::new(store.clone())));
        let mut changed = rights.changed();
        tokio::time::timeout(PATIENCE, changed.wait_for(|times| *times > 0)).await.unwrap().unwrap();
        Self { store, router: router(state.clone()), state, rights, following, _dir: dir }
    }

    /// A fresh hub with the roles that every fleet begins with.
    pub async fn with_roles() -> Self {
        let hub = Self::start().await;
        ensure_roles(&hub.state.objects, &SystemClock).await.unwrap();
        hub
    }

    /// Waits until what was written is in force.
    pub async fn settled(&self, condition: impl Fn(&Rights) -> bool) {
        let mut changed = self.rights.changed();
        let met = async {
            while !condition(&self.rights) {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, met).await.expect("the rights did not come into force");
    }

    /// Sends a request as it is.
    pub async fn send(&self, mut request: Request<Body>) -> Reply {
        request.extensions_mut().insert(self.rights.clone());
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, usize::MAX)).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Reply { code: parts.status.as_u16(), headers: parts.headers, body, text }
    }

    /// Sends a request as a user.
    pub async fn call(&self, method: &str, path: &str, content_type: &str, body: impl Into<Body>) -> Reply {
        self.send(request(method, path, content_type, body)).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, "", Body::empty()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.call("POST", path, "application/json", body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Reply {
        self.call("PUT", path, "application/json", body.to_string()).await
    }

    pub async fn merge(&self, path: &str, body: &Value) -> Reply {
        self.call("PATCH", path, "application/merge-patch+json", body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.call("DELETE", path, "", Body::empty()).await
    }

    /// A cluster, a storage in it and a dataset.
    pub async fn populate(&self) {
        self.post(CLUSTERS, &json!({ "metadata": { "name": "onprem" } })).await.ok(201);
        let spec = json!({ "uri": "file:///srv/data", "cluster": "onprem" });
        self.post(STORAGES, &json!({ "metadata": { "name": "disk" }, "spec": spec })).await.ok(201);
        self.post(DATASETS, &dataset("d")).await.ok(201);
    }
}

pub const DATASETS: &str = "/apis/data.fluid.io/v1alpha1/namespaces/default/datasets";
pub const MIGRATES: &str = "/apis/data.fluid.io/v1alpha1/namespaces/default/datamigrates";
pub const CLUSTERS: &str = "/apis/fluvial.io/v1alpha1/clusters";
pub const STORAGES: &str = "/apis/fluvial.io/v1alpha1/storages";
pub const SECRETS: &str = "/api/v1/namespaces/default/secrets";
pub const NAMESPACES: &str = "/api/v1/namespaces";
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

pub fn user() -> Caller {
    Caller(Some(Identity::User { name: "ann".into(), groups: vec!["system:masters".into()] }))
}

pub fn request(method: &str, path: &str, content_type: &str, body: impl Into<Body>) -> Request<Body> {
    let mut builder = Request::builder().method(method).uri(path).extension(user());
    if !content_type.is_empty() {
        builder = builder.header(CONTENT_TYPE, content_type);
    }
    builder.body(body.into()).unwrap()
}

pub fn accepting(path: &str, accept: &str) -> Request<Body> {
    Request::builder().uri(path).extension(user()).header(ACCEPT, accept).body(Body::empty()).unwrap()
}

/// A dataset as a user writes it.
pub fn dataset(name: &str) -> Value {
    json!({
        "apiVersion": "data.fluid.io/v1alpha1", "kind": "Dataset", "metadata": { "name": name },
        "spec": { "mounts": [{ "mountPoint": "file:///srv/in", "path": "/" }] },
    })
}
