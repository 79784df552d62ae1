//! Hubs' stores in one process, over real connections on loopback.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fluvial_model::store::{Op, Revision, Txn, TxnOutcome};
use fluvial_raft::{Config, ConnectError, PeerConnector, RaftStore, Store, StoreError, peer_service};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

/// No condition is waited for longer: a loaded machine with two cores needs a few seconds at most.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Plain TCP, as no user ever runs it.
pub struct Plain;

#[async_trait]
impl PeerConnector for Plain {
    async fn connect(&self, id: u64, address: &str) -> Result<Channel, ConnectError> {
        let failed = |source| ConnectError { id, address: address.to_owned(), source };
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| failed(error.into()))?;
        Ok(endpoint
            .connect_timeout(Duration::from_secs(1))
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .tcp_nodelay(true)
            .connect_lazy())
    }
}

/// A store and the server that its peers reach.
pub struct Node {
    pub id: u64,
    pub store: RaftStore,
    pub config: Config,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
}

impl Node {
    /// A new node in `dir`.
    pub async fn new(id: u64, dir: &std::path::Path, adjust: impl Fn(&mut Config)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut config = Config::new(id, "test-cluster", dir.join(format!("node-{id}")), address);
        adjust(&mut config);
        Self::open(config, listener).await
    }

    async fn open(config: Config, listener: TcpListener) -> Self {
        let store = RaftStore::open(config.clone(), Arc::new(Plain)).await.unwrap();
        let service = peer_service(&store);
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(async move {
            let serving = Server::builder()
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(8 << 20)
                .add_service(service)
                // Without it small answers wait for the other side's delayed acknowledgement: 40 ms.
                .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
            // Connections are cut, not drained: a crash does not drain either.
            tokio::select! {
                result = serving => result.unwrap(),
                _ = stopped => {}
            }
        });
        Self { id: config.node_id, store, config, stop: Some(stop), server }
    }

    /// Ends the node and its server.
    pub async fn stop(mut self) -> Config {
        drop(self.stop.take());
        self.server.await.unwrap();
        self.store.shutdown().await;
        self.config
    }

    /// Starts a stopped node again at its old address.
    pub async fn restart(config: Config) -> Self {
        let listener =
            within("the old address to be free", || async { TcpListener::bind(&config.address).await.ok() }).await;
        Self::open(config, listener).await
    }
}

/// Asks until there is an answer.
pub async fn within<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let wait = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// A running cluster of `count` nodes.
pub async fn cluster(count: u64, dir: &std::path::Path, adjust: impl Fn(&mut Config)) -> Vec<Node> {
    let mut nodes = Vec::new();
    for id in 1..=count {
        nodes.push(Node::new(id, dir, &adjust).await);
    }
    let members: BTreeMap<u64, String> = nodes.iter().map(|node| (node.id, node.config.address.clone())).collect();
    nodes[0].store.initialize(members).await.unwrap();
    for node in &nodes {
        leader_of(&node.store).await;
    }
    nodes
}

/// The leader that `store` knows of, once there is one.
pub async fn leader_of(store: &RaftStore) -> u64 {
    let mut leadership = store.leadership();
    let known = leadership.wait_for(|leadership| leadership.leader.is_some());
    tokio::time::timeout(LIMIT, known).await.expect("a leader in time").unwrap().leader.unwrap()
}

pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Txn {
    Txn { compares: vec![], ops: vec![Op::Put { key: key.into(), value: value.into() }], ..Txn::default() }
}

pub async fn commit(store: &RaftStore, txn: Txn) -> Result<Revision, StoreError> {
    match store.txn(txn).await? {
        TxnOutcome::Committed { revision } => Ok(revision),
        TxnOutcome::Conflict { key, .. } => panic!("unexpected conflict at {key}"),
    }
}
