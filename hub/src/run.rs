//! Sets up a hub, starts it and stops it: the only place where its parts are wired together.
//!
//! [`init`] makes the first hub of a fleet, [`join`] another one; both only write a data directory ([`home`]).
//! [`Hub::start`] runs what a data directory holds. [`members`] lets the leader take in hubs that joined and see off
//! those that leave; [`restart`] starts a hub anew whose disk is well again; [`renewal`] keeps this hub's own certificate fresh.
//!
//! Invariants: a data directory is one hub's for ever; several hubs may run in one process; whatever was started is
//! ended by [`RunningHub::shutdown`], in the order in which one needs the other.

mod contact;
pub mod home;
mod kubeconfig;
mod members;
mod renewal;
pub mod restart;
mod setup;
pub mod store;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fluvial_certs::authority::LEAF_LIFETIME;
use fluvial_certs::{DenyList, Reloadable, tls};
use fluvial_proto::v1::agent_service_server::AgentServiceServer;
use fluvial_proto::v1::hub_service_server::HubServiceServer;
use fluvial_proto::v1::join_service_server::JoinServiceServer;
use fluvial_proto::v1::node_service_server::NodeServiceServer;
use fluvial_raft::config::{KEEP_LOG, SNAPSHOT_AFTER};
use fluvial_raft::{Leadership, OpenError, Store, Timings, peer_service};
use secrecy::SecretString;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use contact::{JoinOptions, join};
pub use fluvial_raft::Failure;
pub use home::{HomeError, HubRecord};
pub use kubeconfig::admin_kubeconfig;
pub use setup::{InitOptions, InitReport, init};
pub use store::{EtcdOptions, HubStore};

pub(crate) use renewal::issue;
pub(crate) use setup::advertised;

use crate::api::ApiState;
use crate::api::watches::Watches;
use crate::audit::Notes;
use crate::blocks::{BlockError, Blocks};
use crate::clock::{SharedClock, SystemClock};
use crate::enrol::revocations::RevocationWatcher;
use crate::enrol::{HubSecrets, Issuer, Joins, NodeCalls};
use crate::hooks;
use crate::liveness::Liveness;
use crate::objects::Objects;
use crate::peers::{Dialler, MAX_MESSAGE, Membership, Peers};
use crate::planner::{self, PlannerContext};
use crate::recovery;
use crate::rights::Rights;
use crate::server::{self, Guard, RunningServer, Services};
use crate::sessions::hubs::{HubCalls, tell_beats};
use crate::sessions::{Rates, Registry, SecretChanges, SessionContext, Sessions};
use crate::snapshot::save::Saver;
use crate::vault::Vault;
use crate::views::{self, ViewsState};
use home::Home;

/// How long requests may go on after the hub was told to stop.
const GRACE: Duration = Duration::from_secs(5);
/// How long another hub may take to lead in place of one that ends: an election that is lost and one that is won.
const HAND_OVER: Duration = Duration::from_secs(3);

/// Why a hub was not set up, joined or started.
#[derive(Debug, Error)]
pub enum RunError {
    #[error("using the data directory")]
    Home(#[from] HomeError),
    #[error("listening on {address}")]
    Listen {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the certificates cannot be used for TLS")]
    Tls(#[source] tls::Error),
    #[error("opening the store")]
    Store(#[source] OpenError),
    #[error("the hub had to stop")]
    Stopped(#[source] Failure),
    #[cfg(feature = "etcd")]
    #[error("opening the store over etcd")]
    Etcd(#[source] Box<fluvial_etcd::OpenError>),
    #[error("this hub was made for etcd, and this build knows none: build it with the feature `etcd`")]
    NoEtcd,
    #[error("this hub was made with a store of its own: make it anew with `hub init --store etcd`, or leave etcd out")]
    NotOfEtcd,
    #[error("the certificate for etcd and its key: give both or none")]
    EtcdIdentity,
    #[error("etcd user \"{user}\": give its password by a file or by $FLUVIAL_ETCD_PASSWORD")]
    NoEtcdPassword { user: String },
    #[error("reading the password for etcd from {path:?}")]
    EtcdPassword {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("opening the blocks")]
    Blocks(#[source] BlockError),
    #[error("\"{address}\" is no address of a hub: write HOST:PORT")]
    Address { address: String },
    #[error("the join token")]
    Token(#[source] fluvial_certs::token::Error),
    #[error("reaching the hub")]
    Dial(#[source] crate::peers::DialError),
    #[error("the hub refused: {}", .0.message())]
    Refused(#[source] Box<tonic::Status>),
    #[error("the hub did not answer within {0:?}")]
    Timeout(Duration),
    #[error("the hub's reply makes no sense: {0}")]
    Reply(String),
    #[error("issuing a certificate")]
    Issue(#[source] fluvial_certs::authority::Error),
    #[error("making a key")]
    Key(#[source] fluvial_certs::keys::Error),
    #[error("writing the kubeconfig")]
    Kubeconfig(#[source] serde_yaml_ng::Error),
}

/// What a hub is started with; the rest is in its data directory.
pub struct HubConfig {
    pub data_dir: PathBuf,
    /// Already listening, in place of the address in the data directory.
    pub listener: Option<TcpListener>,
    pub timings: Timings,
    /// In place of the machine's clock.
    pub clock: Option<SharedClock>,
    /// Whether this hub plans when it leads. A fleet needs hubs that do; tests of what lies beside the planner do not.
    pub plans: bool,
    /// When the log is cut, and how much of it is kept.
    pub log: LogLimits,
    /// How long a certificate that it makes is good for, its own among them; each is renewed at half its life.
    pub certificate_lifetime: Duration,
    /// In place of what the data directory says of etcd.
    pub etcd: Option<EtcdOptions>,
    /// The password of the user there, in place of the one in its file.
    pub etcd_password: Option<SecretString>,
}

/// When a hub makes a snapshot of its catalog, so that the log can be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Log entries after which a snapshot is due; a large catalog waits longer.
    pub snapshot_after: u64,
    /// Log entries that are kept behind the snapshot, for hubs that were away shortly.
    pub keep: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { snapshot_after: SNAPSHOT_AFTER, keep: KEEP_LOG }
    }
}

impl HubConfig {
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listener: None,
            timings: Timings::default(),
            clock: None,
            plans: true,
            log: LogLimits::default(),
            certificate_lifetime: LEAF_LIFETIME,
            etcd: None,
            etcd_password: None,
        }
    }
}

/// How long a port may stay taken by a process that is ending: the kernel frees gigabytes in a second or two.
const PORT_WITHIN: Duration = Duration::from_secs(10);
/// How often it is tried.
const PORT_EVERY: Duration = Duration::from_millis(50);

/// Starts hubs.
#[derive(Debug)]
pub struct Hub;

/// A hub that runs; shut it down, or what it was doing is cut off.
pub struct RunningHub {
    record: HubRecord,
    store: HubStore,
    objects: Objects,
    liveness: Arc<Liveness>,
    rights: Rights,
    server: RunningServer,
    sessions: Sessions,
    notes: Notes,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
}

impl Hub {
    /// Runs the hub whose data directory this is. It serves from the moment this returns; a hub that has just joined
    /// answers as soon as the leader has taken it in: see [`RunningHub::ready`].
    ///
    /// # Errors
    /// A data directory that is not a hub's, and what disk and network say.
    pub async fn start(config: HubConfig) -> Result<RunningHub, RunError> {
        let clock = config.clock.unwrap_or_else(|| Arc::new(SystemClock));
        let lifetime = config.certificate_lifetime;
        let home = Home::new(&config.data_dir);
        let record = home.record()?;
        let authority = Arc::new(home.authority()?);
        let data_key = home.data_key()?;
        let bundle = renewal::usable_bundle(&home, &authority, &record, clock.now(), lifetime)?;
        let credentials = Arc::new(Reloadable::new(bundle, &[tls::ALPN_H2]).map_err(RunError::Tls)?);
        let listener = match config.listener {
            Some(listener) => listener,
            None => listen(record.listen).await?,
        };
        let trust_domain = authority.trust_domain().clone();
        let dialler = Dialler { credentials: credentials.clone(), trust_domain: trust_domain.clone() };
        let etcd = (config.etcd, config.etcd_password);
        let store = HubStore::open(&home, &record, etcd, (config.timings, config.log), &dialler).await?;

        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let objects = Objects { store: shared.clone(), vault: Arc::new(Vault::new(&data_key)) };
        let membership: Arc<dyn Membership> = Arc::new(store.clone());
        let peers = Arc::new(Peers::new(record.node_id, dialler.clone(), membership.clone()));
        let blocks = Blocks::open(&home.blocks()).map_err(RunError::Blocks)?;
        blocks.ask_peers(peers.clone());
        let issuer = Issuer { authority: authority.clone(), objects: objects.clone(), clock: clock.clone(), lifetime };
        let denied = Arc::new(DenyList::default());
        let (revocations, denied_changed) = RevocationWatcher::new(shared.clone(), denied.clone());
        let (now_recovering, recovering) = recovery::channel();
        let context = SessionContext {
            objects: objects.clone(),
            liveness: Arc::new(Liveness::default()),
            registry: Arc::new(Registry::default()),
            secrets: SecretChanges::default(),
            rates: Rates::default(),
            blocks: blocks.clone(),
            peers: peers.clone(),
            issuer: issuer.clone(),
            denied: denied.clone(),
            denied_changed: denied_changed.clone(),
            recovering,
        };
        let saver = Saver::new(
            objects.clone(),
            blocks.clone(),
            authority.clone(),
            (data_key.clone(), record.cluster_id.clone()),
            clock.clone(),
        );
        let secrets = HubSecrets { ca_key: authority.key_pem(), data_key, cluster_id: record.cluster_id.clone() };
        let sessions = Sessions::new(context.clone());
        let notes = Notes::new(shared.clone());
        let mut grpc = Routes::builder();
        match &store {
            HubStore::Raft(store) => grpc.add_service(peer_service(store)),
            #[cfg(feature = "etcd")]
            HubStore::Etcd(_) => &mut grpc,
        };
        let grpc = grpc
            .routes()
            .add_service(JoinServiceServer::new(Joins::new(issuer.clone(), membership, secrets, notes.clone())))
            .add_service(NodeServiceServer::new(NodeCalls::new(issuer.clone())))
            .add_service(
                AgentServiceServer::new(sessions.clone())
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE),
            )
            .add_service(
                HubServiceServer::new(HubCalls::new(context.clone()))
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE),
            )
            .prepare()
            .into_axum_router();
        let api = crate::api::router(api_state(&objects, &clock, &store));
        let views = ViewsState::new(
            issuer,
            blocks,
            context.registry.clone(),
            peers.clone(),
            record.advertise.clone(),
            Arc::new(saver),
        );
        let (rest, notices) = hooks::router(objects.clone(), clock.clone(), views::router(views, api));
        let services = Services { grpc, rest };
        let guard = Guard { credentials: credentials.clone(), trust_domain, denied, denied_changed };
        let rights = Rights::default();
        let server = server::serve(listener, guard, services, rights.clone(), notes.clone(), clock.clone())
            .map_err(|source| RunError::Listen { address: record.listen.to_string(), source })?;

        let cancel = CancellationToken::new();
        let mut tasks = Tasks { set: JoinSet::new(), cancel: cancel.clone() };
        tasks.spawn(revocations.run());
        tasks.spawn(rights.clone().run(shared.clone()));
        tasks.spawn(setup::keep_roles(objects.clone(), clock.clone()));
        tasks.spawn(notices);
        tasks.spawn(notes.clone().run());
        tasks.spawn(context.secrets.clone().run(shared));
        tasks.spawn(context.rates.clone().run(objects.clone()));
        tasks.spawn(recovery::follow(objects.clone(), clock.clone(), now_recovering));
        tasks.spawn(tell_beats(context.liveness.clone(), peers));
        tasks.spawn(members::keep(record.node_id, store.clone(), objects.clone(), dialler, clock.clone()));
        tasks.spawn(renewal::keep_fresh(home, authority, record.clone(), credentials, clock.clone(), lifetime));
        if record.first {
            tasks.spawn(setup::fill_store(objects.clone(), record.clone(), clock.clone()));
        }
        let planning = PlannerContext { objects: objects.clone(), clock, liveness: context.liveness.clone() };
        if config.plans {
            tasks.set.spawn(planner::run(planning, cancel.clone()));
        }
        tracing::info!(id = record.node_id, address = %server.address(), "hub started");
        let liveness = context.liveness;
        Ok(RunningHub { record, store, objects, liveness, rights, server, sessions, notes, cancel, tasks: tasks.set })
    }
}

struct Tasks {
    set: JoinSet<()>,
    cancel: CancellationToken,
}

impl Tasks {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        let cancelled = self.cancel.clone().run_until_cancelled_owned(task);
        self.set.spawn(async move {
            let _ = cancelled.await;
        });
    }
}

/// Listens. A hub that was killed a moment ago may not have let go of its port yet.
async fn listen(address: SocketAddr) -> Result<TcpListener, RunError> {
    let deadline = tokio::time::Instant::now() + PORT_WITHIN;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(PORT_EVERY).await;
            }
            bound => return bound.map_err(|source| RunError::Listen { address: address.to_string(), source }),
        }
    }
}

fn api_state(objects: &Objects, clock: &SharedClock, store: &HubStore) -> ApiState {
    let catalog =
        Arc::new(crate::catalog::QueryEngine::open(Arc::new(store.clone()), crate::catalog::Limits::default()));
    ApiState { objects: objects.clone(), clock: clock.clone(), catalog, watches: Watches::default() }
}

impl RunningHub {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What its data directory says of it.
    #[must_use]
    pub fn record(&self) -> &HubRecord {
        &self.record
    }

    /// Its objects.
    #[must_use]
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Its replica of the store.
    #[must_use]
    pub fn store(&self) -> &HubStore {
        &self.store
    }

    /// Whom it has heard from.
    #[must_use]
    pub fn liveness(&self) -> &Arc<Liveness> {
        &self.liveness
    }

    /// How many hubs have a vote, as far as this one knows.
    #[must_use]
    pub fn voters(&self) -> usize {
        self.store.members().into_iter().filter(|member| member.role == fluvial_raft::Role::Voter).count()
    }

    /// Who leads.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.store.leadership()
    }

    /// Waits until this hub answers linearizable reads, knows who may do what, and the fleet is set up; false if that takes longer than `limit`.
    pub async fn ready(&self, limit: Duration) -> bool {
        const LOOK_EVERY: Duration = Duration::from_millis(20);
        let ready = async {
            while setup::is_filled(&self.objects).await != Some(true) || !self.rights.are_known() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(limit, ready).await.is_ok()
    }

    /// Hands over the lead, sends agents elsewhere, finishes requests, stops everything and closes the store.
    pub async fn shutdown(mut self) {
        if !self.store.hand_over(HAND_OVER).await {
            tracing::warn!("no other hub took over the lead in time: the others elect one");
        }
        self.sessions.shutdown().await;
        self.server.shutdown(GRACE).await;
        self.cancel.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task of the hub failed");
            }
        }
        self.notes.finish().await;
        self.store.shutdown().await;
    }
}

/// Whether a directory holds a hub.
#[must_use]
pub fn is_hub(data_dir: &Path) -> bool {
    Home::new(data_dir).exists()
}
