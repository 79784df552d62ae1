//! The agent as a whole: opened, run, ended. Used by `up` in its own process and by `member run`.
//!
//! Everything it keeps is in its data directory: `agent.json` and the other identity files, `ledger.db`, `journal.db`,
//! `blocks/`, `cache.db`, `mounts.sock`, and, by default, `cache/`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fluvial_certs::listen::RunningServer;
use fluvial_certs::tls::ALPN_H2;
use fluvial_certs::{Reloadable, TrustDomain};
use fluvial_engine::{Engine, EngineError, NodeCache, NodeCacheConfig, Peers};
use fluvial_model::kinds::NodeUsage;
use fluvial_model::report::AgentReport;
use fluvial_model::share::Node;
use fluvial_proto::v1::agent_service_server::AgentServiceServer;
use fluvial_proto::v1::relay_service_server::RelayServiceServer;
use fluvial_proto::v1::share_service_server::ShareServiceServer;
use fluvial_transfer::{BlockStore, Journal, TransferError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::blocks::HubLink;
use crate::denied::{self, Denials};
use crate::dial::Dialler;
use crate::identity::{self, AgentFile, DataDir};
use crate::ledger::{self, Ledger};
use crate::listener::{self, AgentFront, Port, Rules};
use crate::memory::MemoryLimit;
use crate::mounts::{self, Mounts};
use crate::nodes::Nodes;
use crate::platform::host::{self, TierConfig};
use crate::rates::Rates;
use crate::reconciler;
use crate::reconciler::apply::Runner;
use crate::reconciler::work::{self, Works};
use crate::relay::{Awaited, Relays};
use crate::share::{Shares, Sharing};
use crate::uplink::{Uplink, UplinkState};

/// How long a start waits for the one before it on the same directory to let go.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How often what the agent says of itself is looked at anew.
const PROFILE_EVERY: Duration = Duration::from_secs(10);
/// Most bytes that one writable mount stages if nothing else is said: 10 GiB.
pub const STAGING_BYTES: u64 = 10 << 30;
/// How long the tasks may take to end: the reconciler's own limit and some.
const SHUTDOWN: Duration = Duration::from_secs(25);

const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";

/// What an agent is made of.
#[derive(Debug, Clone, Default)]
pub struct AgentConfig {
    /// The directory that a join has filled.
    pub data_dir: PathBuf,
    /// Most bytes that one writable mount stages; [`STAGING_BYTES`] if not given.
    pub staging_bytes: Option<u64>,
    /// Most bytes of memory.
    pub memory: MemoryLimit,
    /// Cache tiers, fastest first; if empty, one SSD tier in the data directory.
    pub tiers: Vec<TierConfig>,
    /// The node's name; if not given, the machine's.
    pub node_name: Option<String>,
    /// The node's labels, of which zone and region are reported.
    pub labels: BTreeMap<String, String>,
    /// The program that mount processes are started from; if not given, this one.
    pub program: Option<PathBuf>,
    /// Where to listen for other agents; nowhere if not given.
    pub listen: Option<SocketAddr>,
    /// How others reach it, `HOST:PORT`; the address that it listens on if not given.
    pub advertise: Option<String>,
    /// Whether an end in order takes every mount away. If not, they go on, and wait for the next agent.
    pub mounts_end: bool,
}

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("start agent: {dir} belongs to no cluster yet: join with `fluvial member join`")]
    NotJoined { dir: String },
    #[error("start agent: read identity")]
    Identity(#[source] identity::Error),
    #[error("start agent: prepare tls")]
    Tls(#[source] fluvial_certs::tls::Error),
    #[error("start agent")]
    Ledger(#[source] ledger::Error),
    #[error("start agent: prepare node")]
    Platform(#[source] host::Error),
    #[error("start agent: open stores")]
    Stores(#[source] TransferError),
    #[error("start agent: open cache")]
    Engine(#[source] EngineError),
    #[error("start agent: find this program, to start mount processes from")]
    Program(#[source] std::io::Error),
    #[error("start agent")]
    Mounts(#[source] mounts::Error),
    #[error("start agent")]
    Denied(#[source] denied::Error),
    #[error("start agent")]
    Listen(#[source] listener::Error),
    #[error("start agent: serve other agents")]
    Serve(#[source] std::io::Error),
    #[error("start agent: read identity")]
    TrustDomain(#[source] fluvial_certs::identity::Error),
    #[error("start agent: the program is ending")]
    Ending,
}

/// The agent, before it runs.
#[derive(Debug)]
pub struct Agent;

/// An agent that runs. Dropped, it ends at once, resumably; [`RunningAgent::shutdown`] ends it in order.
#[derive(Debug)]
pub struct RunningAgent {
    agent: AgentFile,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
    state: watch::Receiver<UplinkState>,
    mounts: Mounts,
    mounts_end: bool,
    nodes: Nodes,
    server: Option<RunningServer>,
}

/// What was opened.
struct Opened {
    dir: DataDir,
    agent: AgentFile,
    credentials: Arc<Reloadable>,
    denied: Denials,
    dialler: Dialler,
    ledger: Ledger,
    blocks: BlockStore,
    journal: Journal,
    node: NodeUsage,
    cache: Arc<NodeCache>,
}

impl Agent {
    /// Opens everything and starts the tasks. Needs no hub: what was asked for before goes on.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: AgentConfig) -> Result<RunningAgent, StartError> {
        let (data_dir, program, mounts_end) = (config.data_dir.clone(), config.program.clone(), config.mounts_end);
        let memory = config.memory;
        let staging_bytes = config.staging_bytes.unwrap_or(STAGING_BYTES);
        let port = match config.listen {
            Some(listen) => Some(Port::open(listen, config.advertise.clone()).await.map_err(StartError::Listen)?),
            None => None,
        };
        let sharing = watch::Sender::new(Vec::new());
        let shared = sharing.subscribe();
        let Opened { dir, agent, credentials, denied, dialler, ledger, blocks, journal, node, cache } =
            tokio::task::spawn_blocking(move || open(config, shared)).await.map_err(|_| StartError::Ending)??;
        let engine: Arc<dyn Engine> = cache.clone();
        let program = program.map_or_else(std::env::current_exe, Ok).map_err(StartError::Program)?;
        let (mounts, listener) =
            Mounts::open(&data_dir, program, engine.clone(), staging_bytes).map_err(StartError::Mounts)?;
        let cancel = CancellationToken::new();
        let (channel, follow) = (watch::Sender::new(None), watch::Sender::new(UplinkState::Connecting));
        let link = HubLink::new(channel.subscribe());
        let state = follow.subscribe();
        let process = uuid::Uuid::new_v4().to_string();
        let leads = agent.node.is_none();
        let trust_domain = TrustDomain::new(agent.trust_domain.clone()).map_err(StartError::TrustDomain)?;
        let nodes = Nodes::new(
            &agent.cluster,
            ledger.clone(),
            blocks.clone(),
            link.clone(),
            denied.clone(),
            if leads { sharing.clone() } else { watch::Sender::default() },
        );
        let rates = Rates::default();
        let relays = Relays::new(memory.relayed());
        let services = Routes::new(RelayServiceServer::new(relays.clone()))
            .add_service(AgentServiceServer::new(nodes.clone()))
            .add_service(ShareServiceServer::new(Shares::new(cache, memory.served())))
            .prepare()
            .into_axum_router();
        let front = AgentFront {
            rules: Rules { cluster: agent.cluster.clone(), leads },
            guard: listener::guard(credentials.clone(), trust_domain, &denied),
            services,
            awaited: Awaited::new(port.is_some()),
        };
        let peers = work::Peers {
            dialler: dialler.clone(),
            relays,
            front: front.clone(),
            nodes: nodes.clone(),
            node: node.node.clone(),
            leads,
            rates: rates.clone(),
            memory,
        };
        let profile = Profile {
            agent: agent.clone(),
            nodes: nodes.clone(),
            process,
            address: port.as_ref().map(|port| port.address.clone()).unwrap_or_default(),
            engine: engine.clone(),
        };
        let said = watch::Sender::new(profile.describe().await);
        let server = match port {
            Some(port) => Some(port.serve(front).map_err(StartError::Serve)?),
            None => None,
        };

        let mut tasks = JoinSet::new();
        let uplink = Uplink {
            dir,
            agent: agent.clone(),
            ledger: ledger.clone(),
            credentials,
            denied,
            dialler,
            sharing,
            rates,
            channel,
            state: follow,
            profile: said.subscribe(),
            cancel: cancel.clone(),
        };
        let works = Works::new(ledger.clone(), blocks, journal, engine.clone(), link, mounts.clone(), peers);
        let runner = Runner::new(works);
        tasks.spawn(uplink.run());
        tasks.spawn(profile.keep(said, cancel.clone()));
        tasks.spawn(mounts.clone().run(listener, cancel.clone()));
        let reconcile = cancel.clone();
        tasks.spawn(async move {
            reconciler::run(ledger, runner, reconcile).await;
            engine.stop().await;
        });
        Ok(RunningAgent { agent, cancel, tasks, state, mounts, mounts_end, nodes, server })
    }
}

/// Opens everything that is on disk.
fn open(config: AgentConfig, sharing: watch::Receiver<Vec<Node>>) -> Result<Opened, StartError> {
    let AgentConfig { data_dir, memory, tiers, node_name, labels, .. } = config;
    let dir = DataDir::open(&data_dir).map_err(StartError::Identity)?;
    let agent = dir.agent().map_err(StartError::Identity)?;
    let agent = agent.ok_or_else(|| StartError::NotJoined { dir: data_dir.display().to_string() })?;
    let ledger = open_ledger(&dir)?;
    let bundle = dir.bundle().map_err(StartError::Identity)?;
    let credentials = Arc::new(Reloadable::new(bundle, &[ALPN_H2]).map_err(StartError::Tls)?);
    let denied = Denials::open(&data_dir).map_err(StartError::Denied)?;
    let blocks = BlockStore::open(data_dir.join("blocks")).map_err(StartError::Stores)?;
    let journal = Journal::open(data_dir.join("journal.db")).map_err(StartError::Stores)?;
    let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
    let node = NodeUsage {
        node: agent.node.clone().or(node_name).map_or_else(host::node_name, Ok).map_err(StartError::Platform)?,
        zone: label(ZONE),
        region: label(REGION),
        media: Vec::new(),
    };
    let tiers = host::tiers(&tiers, &data_dir).map_err(StartError::Platform)?;
    let trust_domain = TrustDomain::new(agent.trust_domain.clone()).map_err(StartError::TrustDomain)?;
    let dialler = Dialler::new(credentials.clone(), trust_domain, denied.clone());
    let peers = Some(Arc::new(Sharing::new(&agent.cluster, &node.node, dialler.clone(), sharing)) as Arc<dyn Peers>);
    let cache = NodeCacheConfig {
        index: data_dir.join("cache.db"),
        tiers,
        node: node.clone(),
        blocks: blocks.clone(),
        peers,
        in_flight: memory.in_flight(),
    };
    let cache = Arc::new(NodeCache::open(cache).map_err(StartError::Engine)?);
    Ok(Opened { dir, agent, credentials, denied, dialler, ledger, blocks, journal, node, cache })
}

/// Opens the ledger; an agent that was dropped a moment ago holds its lock until its last call has returned.
fn open_ledger(dir: &DataDir) -> Result<Ledger, StartError> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match Ledger::open(dir.path()) {
            Err(ledger::Error::Locked { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            opened => return opened.map_err(StartError::Ledger),
        }
    }
}

/// What the agent says of itself is made of this.
struct Profile {
    agent: AgentFile,
    process: String,
    address: String,
    nodes: Nodes,
    engine: Arc<dyn Engine>,
}

impl Profile {
    async fn describe(&self) -> AgentReport {
        let mut nodes = self.engine.usage().await.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "the cache's use is not known");
            Vec::new()
        });
        let room = nodes.iter().flat_map(|node| &node.media).map(|medium| medium.capacity_bytes);
        let own = Node {
            name: nodes.first().map(|node| node.node.clone()).unwrap_or_default(),
            address: self.address.clone(),
            capacity_bytes: room.fold(0, u64::saturating_add),
            leads: true,
        };
        self.nodes.set_own((self.agent.node.is_none() && !self.address.is_empty()).then_some(own));
        nodes.extend(self.nodes.usage());
        AgentReport {
            platform: "host".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.agent.instance.clone(),
            process: self.process.clone(),
            machine: host::machine(),
            engines: vec![self.engine.name().to_owned()],
            nodes,
            address: self.address.clone(),
        }
    }

    /// Looks at it anew now and then.
    async fn keep(self, said: watch::Sender<AgentReport>, cancel: CancellationToken) {
        let mut changed = self.nodes.changed();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(PROFILE_EVERY) => {}
                Ok(()) = changed.changed() => {}
            }
            let now = self.describe().await;
            said.send_if_modified(|known| {
                let changed = *known != now;
                *known = now;
                changed
            });
        }
    }
}

impl RunningAgent {
    /// The cluster that it acts for.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.agent.cluster
    }

    /// How it stands with the hubs; changes are seen by waiting on the receiver.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<UplinkState> {
        self.state.clone()
    }

    /// Ends every task in order; what is unfinished goes on at the next start.
    pub async fn shutdown(mut self) {
        if self.mounts_end {
            self.mounts.take_all_away().await;
        }
        self.cancel.cancel();
        self.nodes.shutdown().await;
        if let Some(server) = self.server.take() {
            listener::end(server).await;
        }
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN, all).await.is_err() {
            tracing::warn!("the agent did not end in time and was dropped");
            self.tasks.shutdown().await;
        }
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        // The set of tasks aborts what is left.
        self.cancel.cancel();
    }
}
