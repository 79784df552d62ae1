//! A hub to test, and callers with certificates of their own.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use fluvial_certs::{Authority, Bundle, Identity, KeyPair, TrustDomain, tls};
use fluvial_model::store::{Revision, Txn, TxnOutcome};
use fluvial_raft::Store as _;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::ClientConfig;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::transport::{Channel, Endpoint};

use crate::clock::{Clock, SharedClock, SystemClock};
use crate::enrol::{TokenRequest, mint};
use crate::peers::dial;
use crate::run::home::Home;
use crate::run::{Hub, HubConfig, InitOptions, RunningHub, init};

/// Far more than anything here takes, so that only what never happens fails.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// A clock that stands.
pub(super) struct At(pub(super) Timestamp);

impl Clock for At {
    fn now(&self) -> Timestamp {
        self.0
    }
}

pub(super) struct TestHub {
    pub(super) hub: RunningHub,
    pub(super) authority: Authority,
    pub(super) directory: TempDir,
}

pub(super) fn cluster(name: &str) -> Identity {
    Identity::Cluster { name: name.to_owned() }
}

pub(super) fn user() -> Identity {
    Identity::User { name: "ann".to_owned(), groups: vec!["system:masters".to_owned()] }
}

/// Waits until `condition` gives something.
pub(super) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, condition: impl Fn() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

impl TestHub {
    pub(super) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = InitOptions {
            data_dir: directory.path().to_owned(),
            listen: listener.local_addr().unwrap(),
            advertise: None,
            etcd: None,
            trust_domain: TrustDomain::new("fluvial.test").unwrap(),
        };
        init(options).unwrap();
        Self::run(directory, listener).await
    }

    /// Starts what a directory holds.
    pub(super) async fn run(directory: TempDir, listener: TcpListener) -> Self {
        let mut config = HubConfig::new(directory.path());
        config.listener = Some(listener);
        // Assignments and datasets are made up here; the planner would put them right.
        config.plans = false;
        let hub = Hub::start(config).await.unwrap();
        assert!(hub.ready(LIMIT).await, "the hub is ready");
        let authority = Home::new(directory.path()).authority().unwrap();
        Self { hub, authority, directory }
    }

    pub(super) fn address(&self) -> String {
        self.hub.address().to_string()
    }

    /// TLS as `identity`, with a certificate that is made now.
    pub(super) fn tls(&self, identity: Option<&Identity>, alpn: &'static [u8]) -> Arc<ClientConfig> {
        self.tls_for(identity, alpn, Duration::from_secs(24 * 3600))
    }

    /// The same, with a certificate that is good for `life`.
    pub(super) fn tls_for(
        &self,
        identity: Option<&Identity>,
        alpn: &'static [u8],
        life: Duration,
    ) -> Arc<ClientConfig> {
        let roots = self.authority.cert_pem();
        let bundle = identity.map(|identity| {
            let key = KeyPair::generate().unwrap();
            let leaf = self.authority.issue_for_key(&key, identity, &[], Timestamp::now(), life).unwrap();
            Bundle::new(&leaf.cert_pem, &key, &roots).unwrap()
        });
        let trusted = fluvial_certs::bundle::parse_roots(&roots).unwrap();
        Arc::new(tls::client_config(bundle.as_ref(), &trusted, &[alpn]).unwrap())
    }

    /// A gRPC channel as `identity`.
    pub(super) fn channel(&self, identity: Option<&Identity>) -> Channel {
        channel(self.address(), self.tls(identity, tls::ALPN_H2))
    }

    /// A REST call as `identity`.
    pub(super) async fn rest(
        &self,
        identity: Option<&Identity>,
        method: &str,
        path: &str,
        body: Value,
    ) -> (StatusCode, Bytes) {
        self.rest_with(identity, method, path, body, &[]).await
    }

    /// The same, with headers beside the usual ones.
    pub(super) async fn rest_with(
        &self,
        identity: Option<&Identity>,
        method: &str,
        path: &str,
        body: Value,
        headers: &[(&str, &str)],
    ) -> (StatusCode, Bytes) {
        let stream = dial(&self.address(), self.tls(identity, tls::ALPN_HTTP1)).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address())
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_string())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        connection.abort();
        (status, bytes)
    }

    pub(super) async fn token(&self, cluster: &str) -> String {
        self.token_at(&TokenRequest { cluster: cluster.to_owned(), ..Default::default() }, Arc::new(SystemClock)).await
    }

    pub(super) async fn token_at(&self, request: &TokenRequest, clock: SharedClock) -> String {
        let minted = mint(self.hub.objects(), &clock, self.authority.spki_pin(), request).await.unwrap();
        minted.text.expose_secret().to_owned()
    }

    pub(super) async fn put(&self, key: &str, value: Vec<u8>) -> Revision {
        let txn = Txn { ops: vec![fluvial_model::store::Op::Put { key: key.to_owned(), value }], ..Txn::default() };
        self.commit(txn).await
    }

    pub(super) async fn delete(&self, key: &str) -> Revision {
        let txn = Txn { ops: vec![fluvial_model::store::Op::Delete { key: key.to_owned() }], ..Txn::default() };
        self.commit(txn).await
    }

    async fn commit(&self, txn: Txn) -> Revision {
        match self.hub.store().txn(txn).await.unwrap() {
            TxnOutcome::Committed { revision } => revision,
            conflict @ TxnOutcome::Conflict { .. } => panic!("{conflict:?}"),
        }
    }
}

pub(super) fn channel(address: String, config: Arc<ClientConfig>) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (address, config) = (address.clone(), config.clone());
        async move { dial(&address, config).await.map(TokioIo::new) }
    }))
}
