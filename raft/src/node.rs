//! ② A node of the replicated store: opens its parts, keeps its background tasks, and is the [`Store`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::store::{KeyValue, Revision, Txn, TxnOutcome};
use fluvial_proto::v1;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::Fatal;
use openraft::{BasicNode, SnapshotPolicy};
use prost::Message as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::blocking::blocking;
use crate::config::{Config, Timings};
use crate::handover;
use crate::health::{self, Failure, FailureKind, Health};
use crate::log::{LogError, LogStore};
use crate::machine::{self, Catalog, MachineError, StateMachine};
use crate::marker::{self, MarkerError};
use crate::membership::{self, Change, Member, MembershipError};
use crate::propose::{self, Proposals};
use crate::query;
use crate::read::{self, Reads};
use crate::seed;
use crate::snapshot::Snapshots;
use crate::store::{Consistency, Leadership, ListRequest, Listing, Store, StoreError, Watch, check_key, check_txn};
use crate::transport::{Network, PeerConnector, Peers};
use crate::types::{Applied, Command, Raft, StoredMembership};
use crate::watch::{LocalWatch, Shared};

/// How long a snapshot may take to be sent and installed: 2 GiB at 10 MiB/s, thrice.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(600);
/// How long a stopping node waits for what it is doing.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot create the data directory {dir:?}")]
    Dir {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the data directory cannot be used")]
    Marker(#[from] MarkerError),
    #[error("the log cannot be opened")]
    Log(#[from] LogError),
    #[error("the snapshots in {dir:?} cannot be read")]
    Snapshots {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the catalog cannot be opened")]
    Machine(#[from] MachineError),
    #[error("the timings are impossible: {reason}")]
    Timings { reason: String },
    #[error("the node cannot start: {reason}")]
    Start { reason: String },
    #[error("the first members cannot be set: {reason}")]
    Initialize { reason: String },
}

/// How a node is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metrics {
    pub leadership: Leadership,
    pub last_log_index: Option<u64>,
    pub applied_index: Option<u64>,
    pub snapshot_index: Option<u64>,
    pub purged_index: Option<u64>,
    /// Why the node has stopped, if it has.
    pub failed: Option<String>,
    /// On the leader: the last log index known to be on each follower.
    pub replicated: BTreeMap<u64, Option<u64>>,
}

/// What a node's parts share.
pub(crate) struct Inner {
    pub raft: Raft,
    pub peers: Arc<Peers>,
    pub shared: Arc<Shared>,
    pub snapshots: Arc<Snapshots>,
    pub leadership: watch::Sender<Leadership>,
    pub timings: Timings,
    pub proposals: Proposals,
    pub reads: Reads,
    /// Held by the one change of members that is under way.
    pub changing: tokio::sync::Mutex<()>,
    /// Whether the state is at least as new as before the last stop.
    recovered: watch::Sender<bool>,
    history: u64,
    /// What must be closed, and the lock on the data directory, until the node is shut down.
    files: Mutex<Option<OpenFiles>>,
}

impl Inner {
    pub fn membership(&self) -> Arc<StoredMembership> {
        self.raft.metrics().borrow_watched().membership_config.clone()
    }

    pub fn address_of(&self, id: u64) -> Option<String> {
        self.membership().membership().get_node(&id).map(|node| node.addr.clone())
    }
}

struct Tasks(Mutex<Vec<JoinHandle<()>>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

/// A node of the replicated store; clones share it. Call [`RaftStore::shutdown`] before the last one goes.
#[derive(Clone)]
pub struct RaftStore {
    pub(crate) inner: Arc<Inner>,
    tasks: Arc<Tasks>,
}

fn raft_config(config: &Config) -> Result<openraft::Config, OpenError> {
    let timings = &config.timings;
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let raft = openraft::Config {
        cluster_name: config.cluster_id.clone(),
        heartbeat_interval: millis(timings.heartbeat),
        election_timeout_min: millis(timings.election_min),
        election_timeout_max: millis(timings.election_max),
        install_snapshot_timeout: millis(SNAPSHOT_LIMIT),
        enable_pre_vote: Some(true),
        // The catalog is not synced with every commit: a leader that restarts must hear from the others first.
        enable_leader_restore: Some(false),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_after),
        max_in_snapshot_log_to_keep: config.keep_log,
        // A follower further behind than this gets the snapshot instead of the log, if the log is cut.
        replication_lag_threshold: config.snapshot_after.saturating_add(config.keep_log),
        purge_batch_size: 256,
        max_payload_entries: 512,
        // Followers sync while the leader does.
        broadcast_submitted_on_append: Some(true),
        backoff: "50ms 100ms 200ms ...1000ms".into(),
        ..openraft::Config::default()
    };
    raft.validate().map_err(|error| OpenError::Timings { reason: error.to_string() })
}

impl RaftStore {
    /// Opens the node's data and starts it. A new node does nothing until it is [initialized](Self::initialize) or
    /// added by the leader.
    ///
    /// # Errors
    /// A data directory that is another node's or damaged, and what the disk says.
    pub async fn open(config: Config, connector: Arc<dyn PeerConnector>) -> Result<Self, OpenError> {
        let raft_config = Arc::new(raft_config(&config)?);
        let dir = config.data_dir.clone();
        let (id, cluster, after) = (config.node_id, config.cluster_id.clone(), config.snapshot_after);
        let health = Arc::new(Health::default());
        let opened = blocking(move || open_files(&dir, id, &cluster, after, health)).await;
        let Opened { files, machine, shared, snapshots } =
            opened.map_err(|error| OpenError::Start { reason: error.to_string() })??;
        let log = files.log.clone();
        let peers = Arc::new(Peers::new(id, config.cluster_id.clone(), connector));
        let network = Network { peers: Arc::clone(&peers) };
        let raft = Raft::new(id, raft_config, network, log, machine)
            .await
            .map_err(|error| OpenError::Start { reason: error.to_string() })?;
        let (proposals, proposal_queue) = propose::queue();
        let (reads, read_queue) = read::queue();
        let inner = Arc::new(Inner {
            raft,
            peers,
            shared,
            snapshots,
            leadership: watch::Sender::new(Leadership::default()),
            timings: config.timings,
            proposals,
            reads,
            changing: tokio::sync::Mutex::new(()),
            recovered: watch::Sender::new(false),
            history: config.history,
            files: Mutex::new(Some(files)),
        });
        let tasks = vec![
            tokio::spawn(follow_leadership(Arc::clone(&inner))),
            tokio::spawn(follow_recovery(Arc::clone(&inner))),
            tokio::spawn(propose::run(Arc::clone(&inner), proposal_queue)),
            tokio::spawn(read::run(Arc::clone(&inner), read_queue)),
            tokio::spawn(forget_history(Arc::clone(&inner))),
            tokio::spawn(health::watch_stalls(Arc::clone(&inner.shared.health), config.timings.disk)),
            tokio::spawn(stop_when_failed(Arc::clone(&inner))),
        ];
        Ok(Self { inner, tasks: Arc::new(Tasks(Mutex::new(tasks))) })
    }

    /// Makes this node, with `members` (id and address, itself among them), a new cluster. Doing it again on an
    /// initialized node changes nothing.
    pub async fn initialize(&self, members: BTreeMap<u64, String>) -> Result<(), OpenError> {
        let failed = |reason: String| OpenError::Initialize { reason };
        if self.is_initialized().await? {
            return Ok(());
        }
        let nodes: BTreeMap<u64, BasicNode> =
            members.into_iter().map(|(id, address)| (id, BasicNode::new(address))).collect();
        self.inner.raft.initialize(nodes).await.map_err(|error| failed(error.to_string()))
    }

    /// Whether this node belongs to a cluster already.
    pub async fn is_initialized(&self) -> Result<bool, OpenError> {
        let initialized = self.inner.raft.is_initialized().await;
        initialized.map_err(|error| OpenError::Initialize { reason: error.to_string() })
    }

    /// Adds a node: it learns first, then votes. Any node of the cluster can be asked. Adding a voter again succeeds.
    pub async fn add_member(&self, id: u64, address: &str) -> Result<(), MembershipError> {
        membership::change(&self.inner, Change::Add { id, address: address.to_owned() }).await
    }

    /// Removes a node, which must then be stopped; its id must never be used again.
    pub async fn remove_member(&self, id: u64) -> Result<(), MembershipError> {
        membership::change(&self.inner, Change::Remove { id }).await
    }

    /// Whether a change of members is half done, as far as this node knows.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        membership::is_joint(&self.inner.membership())
    }

    /// Ends a change that a former leader left half done, if this node leads. Whether there was one.
    ///
    /// # Errors
    /// If no majority confirms it in time.
    pub async fn settle_members(&self) -> Result<bool, MembershipError> {
        membership::settle(&self.inner).await
    }

    /// The members as this node knows them.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        membership::list(&self.inner.membership(), self.inner.leadership.borrow().leader)
    }

    /// How the node is doing.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        Metrics {
            leadership: *self.inner.leadership.borrow(),
            last_log_index: metrics.last_log_index,
            applied_index: metrics.last_applied.map(|id| id.index),
            snapshot_index: metrics.snapshot.map(|id| id.index),
            purged_index: metrics.purged.map(|id| id.index),
            failed: self.inner.shared.health.failure().map(|failure| failure.reason),
            replicated: metrics
                .replication
                .iter()
                .flatten()
                .map(|(id, matched)| (*id, matched.as_ref().map(|matched| matched.index)))
                .collect(),
        }
    }

    /// Why the node stops, to wait for.
    #[must_use]
    pub fn failures(&self) -> watch::Receiver<Option<Failure>> {
        self.inner.shared.health.failures()
    }

    /// Whether the disk has answered everything that was asked of it.
    #[must_use]
    pub fn disk_is_idle(&self) -> bool {
        self.inner.shared.health.is_idle()
    }

    /// Waits until this replica has applied everything that was acknowledged before the call.
    pub async fn barrier(&self) -> Result<(), StoreError> {
        read::barrier(&self.inner).await
    }

    /// The catalog's file, for read-only connections. It changes with [`Self::catalog_generation`].
    #[must_use]
    pub fn catalog_path(&self) -> PathBuf {
        self.inner.shared.path()
    }

    /// Grows when an installed snapshot has replaced the catalog's file: reopen what was opened before.
    #[must_use]
    pub fn catalog_generation(&self) -> u64 {
        self.inner.shared.generation()
    }

    /// Asks for a snapshot now; it is made in the background.
    pub async fn snapshot(&self) -> Result<(), StoreError> {
        self.inner.snapshots.force();
        self.inner.raft.trigger().snapshot().await.map_err(|error| StoreError::unavailable(error.to_string()))
    }

    /// Lets another voter lead, if this one does and there is another: before it ends, so that writes need not wait until
    /// its silence is noticed. Whether that is so within `within`.
    pub async fn hand_over(&self, within: Duration) -> bool {
        handover::hand_over(&self.inner, within).await
    }

    /// Stops the node. What was acknowledged is on disk already.
    pub async fn shutdown(&self) {
        let tasks = std::mem::take(&mut *self.tasks.0.lock().unwrap_or_else(PoisonError::into_inner));
        for task in &tasks {
            task.abort();
        }
        for task in tasks {
            // Aborted: nothing to learn from its end.
            let _ = task.await;
        }
        match tokio::time::timeout(SHUTDOWN, self.inner.raft.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the node's core had panicked"),
            Err(_) => tracing::warn!("the node's core did not stop in time"),
        }
        let files = self.inner.files.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(files) = files
            && let Err(error) = blocking(move || files.close()).await
        {
            tracing::error!(%error, "the node's files could not be closed");
        }
    }

    async fn fresh(&self, consistency: Consistency) -> Result<(), StoreError> {
        if let Some(failure) = self.failure() {
            return Err(StoreError::stopped(&failure));
        }
        match consistency {
            Consistency::Linearizable => self.barrier().await,
            Consistency::Stale => self.recovered().await,
        }
    }

    /// Stale is not older than before a restart: waits until the log is applied as far as it may have been.
    async fn recovered(&self) -> Result<(), StoreError> {
        let mut recovered = self.inner.recovered.subscribe();
        if *recovered.borrow() {
            return Ok(());
        }
        match tokio::time::timeout(self.inner.timings.request, recovered.wait_for(|recovered| *recovered)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(StoreError::unavailable("this replica has not recovered its state since its start")),
        }
    }

    async fn command(&self, kind: v1::command::Kind) -> Result<Applied, StoreError> {
        let command = Command(Bytes::from(v1::Command { kind: Some(kind) }.encode_to_vec()));
        propose::propose(&self.inner, command).await
    }
}

struct OpenFiles {
    log: LogStore,
    catalog: Arc<Mutex<Catalog>>,
    health: Arc<Health>,
    /// Held for its lock.
    _lock: std::fs::File,
}

impl OpenFiles {
    /// Ends all writing; afterwards the directory can be opened again.
    fn close(self) {
        machine::close(&self.catalog, self.health.failure().is_none());
        self.log.close();
    }
}

struct Opened {
    files: OpenFiles,
    machine: StateMachine,
    shared: Arc<Shared>,
    snapshots: Arc<Snapshots>,
}

fn open_files(
    dir: &std::path::Path,
    id: u64,
    cluster: &str,
    after: u64,
    health: Arc<Health>,
) -> Result<Opened, OpenError> {
    std::fs::create_dir_all(dir).map_err(|source| OpenError::Dir { dir: dir.to_owned(), source })?;
    let lock = marker::lock(dir)?;
    let log_path = dir.join(seed::LOG);
    let new = marker::check(dir, id, cluster, &log_path)?;
    let log = LogStore::open(&log_path, Arc::clone(&health))?;
    if new {
        marker::write(dir, id, cluster)?;
    }
    let snapshots =
        Snapshots::open(dir, after).map_err(|source| OpenError::Snapshots { dir: dir.to_owned(), source })?;
    let snapshots = Arc::new(snapshots);
    let can_be_made_again = snapshots.entries() >= log.cut_before();
    let (machine, shared) = StateMachine::open(dir, Arc::clone(&snapshots), Arc::clone(&health), can_be_made_again)?;
    if snapshots.remove_damaged().map_err(|source| OpenError::Snapshots { dir: dir.to_owned(), source })? {
        // The next request for one, after the first entry, is granted.
        snapshots.force();
    }
    let files = OpenFiles { log, catalog: machine.catalog(), health, _lock: lock };
    Ok(Opened { files, machine, shared, snapshots })
}

/// Ends Raft when the disk has failed: neither heartbeats nor votes come from here any more.
async fn stop_when_failed(inner: Arc<Inner>) {
    let mut failures = inner.shared.health.failures();
    let Ok(failure) = failures.wait_for(Option::is_some).await.map(|failure| failure.clone()) else { return };
    if let Some(failure) = failure {
        tracing::error!(reason = failure.reason, kind = ?failure.kind, "this node stops");
    }
    inner.leadership.send_modify(|leadership| *leadership = Leadership { leader: None, is_self: false, ..*leadership });
    // It may wait for the disk; then it has to wait, and nothing is sent meanwhile.
    if inner.raft.shutdown().await.is_err() {
        tracing::error!("the node's core had panicked");
    }
}

/// Whether Raft has ended; if it did so by itself, that is noted.
fn has_ended(inner: &Inner) -> bool {
    let running = inner.raft.metrics().borrow_watched().running_state.clone();
    if let Err(fatal) = &running
        && !matches!(fatal, Fatal::Stopped)
    {
        inner.shared.health.fail(FailureKind::Broken, fatal.to_string());
    }
    running.is_err()
}

async fn follow_leadership(inner: Arc<Inner>) {
    let mut metrics = inner.raft.server_metrics();
    loop {
        let now = {
            let metrics = metrics.borrow_watched();
            let stopped = has_ended(&inner) || inner.shared.health.failure().is_some();
            let leader = metrics.current_leader.filter(|_| !stopped);
            Leadership { leader, is_self: leader == Some(inner.peers.self_id), term: metrics.vote.leader_id.term }
        };
        inner.leadership.send_if_modified(|current| std::mem::replace(current, now) != now);
        if metrics.changed().await.is_err() {
            has_ended(&inner);
            inner
                .leadership
                .send_modify(|leadership| *leadership = Leadership { leader: None, is_self: false, ..*leadership });
            return;
        }
    }
}

async fn follow_recovery(inner: Arc<Inner>) {
    if inner.raft.wait_for_recovery(None).await.is_ok() {
        inner.recovered.send_replace(true);
    }
}

/// Keeps the history bounded: the leader asks for its oldest part to be forgotten, so that all replicas forget alike.
async fn forget_history(inner: Arc<Inner>) {
    // Small steps: a hundredth of the history at a time keeps the deleting transaction short.
    let slack = (inner.history / 100).max(1);
    let mut revisions = inner.shared.revisions();
    let mut done = 0;
    loop {
        let revision = revisions.borrow_and_update().0;
        let keep_from = revision.saturating_sub(inner.history);
        let leads = inner.leadership.borrow().is_self;
        if leads && keep_from >= done + slack {
            let kind = v1::command::Kind::Compact(keep_from);
            let command = Command(Bytes::from(v1::Command { kind: Some(kind) }.encode_to_vec()));
            match propose::propose(&inner, command).await {
                Ok(_) => done = keep_from,
                Err(error) => tracing::warn!(%error, "the old history could not be forgotten; it is tried again"),
            }
        }
        if revisions.changed().await.is_err() {
            return;
        }
    }
}

#[async_trait]
impl Store for RaftStore {
    async fn get(&self, key: &str, consistency: Consistency) -> Result<Option<KeyValue>, StoreError> {
        check_key(key)?;
        self.fresh(consistency).await?;
        // A point read of a cached page takes microseconds, less than the way to another thread.
        self.inner.shared.read(|db| query::get_now(db, key))
    }

    async fn list(&self, request: ListRequest) -> Result<Listing, StoreError> {
        self.fresh(request.consistency).await?;
        if let Some(revision) = request.revision
            && revision > self.revision()
        {
            // This replica may only be behind.
            self.barrier().await?;
        }
        self.inner
            .shared
            .read_blocking(move |db| {
                query::list(db, &request.prefix, request.after.as_deref(), request.limit, request.revision)
            })
            .await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        check_txn(&txn)?;
        match self.command(v1::command::Kind::Txn(txn.into())).await? {
            Applied::Txn(outcome) => Ok(outcome),
            Applied::Malformed { reason } => Err(StoreError::Malformed { reason }),
            other => Err(StoreError::UnknownOutcome { reason: format!("an answer that does not fit: {other:?}") }),
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.recovered().await?;
        if after > self.revision() {
            self.barrier().await?;
            let newest = self.revision();
            if after > newest {
                return Err(StoreError::FutureRevision { asked: after, newest });
            }
        }
        Ok(Watch::new(Box::new(LocalWatch::start(&self.inner.shared, prefix, after).await?)))
    }

    async fn compact(&self, up_to: Revision) -> Result<(), StoreError> {
        match self.command(v1::command::Kind::Compact(up_to.0)).await? {
            Applied::Compacted { .. } => Ok(()),
            Applied::Future { newest } => Err(StoreError::FutureRevision { asked: up_to, newest }),
            Applied::Malformed { reason } => Err(StoreError::Malformed { reason }),
            other => Err(StoreError::UnknownOutcome { reason: format!("an answer that does not fit: {other:?}") }),
        }
    }

    fn revision(&self) -> Revision {
        self.inner.shared.revision()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    fn failure(&self) -> Option<Failure> {
        self.inner.shared.health.failure()
    }
}
