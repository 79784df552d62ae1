//! ② A hub's store over etcd: opens its parts, keeps its tasks, and is the [`Store`].

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fluvial_model::store::{KeyValue, Revision, Txn, TxnOutcome};
use fluvial_raft::health::Failure;
use fluvial_raft::replica::{Replica, ReplicaError};
use fluvial_raft::store::{check_key, check_txn};
use fluvial_raft::{Consistency, Leadership, ListRequest, Listing, Member, Role, Store, StoreError, Watch};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::follow::{self, Meta, number};
use crate::link::Link;
use crate::pb;
use crate::presence;
use crate::read::{self, Reads};
use crate::settings::{Settings, SettingsError};
use crate::wire::{Keys, absent, delete, first_failed, header, key_value, put, revision, unchanged};

/// How many changes of history a hub keeps in its catalog: as many revisions as a hub over Raft keeps.
const HISTORY: usize = 100_000;

/// What a hub is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    pub settings: Settings,
    /// This hub's id, never given to another.
    pub id: u64,
    /// Where the others reach it, `HOST:PORT`.
    pub address: String,
    /// The fleet's id: a prefix that holds another fleet is refused.
    pub fleet: String,
    /// Whether this hub begins the fleet, and may take a prefix that holds none.
    pub first: bool,
    /// Where the catalog is kept; created if absent.
    pub data_dir: PathBuf,
    /// How long a call waits for etcd before it gives up.
    pub request: Duration,
    /// How long the disk may take to answer one write of the catalog.
    pub disk: Duration,
}

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the settings for etcd")]
    Settings(#[from] SettingsError),
    #[error("the catalog cannot be opened")]
    Replica(#[from] ReplicaError),
    #[error("etcd cannot be used")]
    Store(#[from] StoreError),
    #[error("etcd holds fleet {found} at {prefix:?}, not {own}: use another prefix")]
    Foreign { prefix: String, own: String, found: String },
    #[error("etcd holds no fleet at {prefix:?}: is it the right etcd and prefix? Only the first hub begins a fleet")]
    Missing { prefix: String },
}

/// What the parts share.
pub(crate) struct Inner {
    pub link: Link,
    pub keys: Keys,
    pub replica: Replica,
    pub id: u64,
    pub address: String,
    pub fleet: String,
    pub meta: watch::Sender<Meta>,
    pub leadership: watch::Sender<Leadership>,
    /// Whether the catalog is at least as new as before the last stop.
    pub caught_up: watch::Sender<bool>,
    /// The running watch, to ask it how far it is.
    pub progress: watch::Sender<Option<mpsc::Sender<pb::WatchRequest>>>,
    /// Changes when the watch is asked how far it is.
    pub asked: watch::Sender<()>,
    /// Until when this hub leaves the lead to others.
    pub yields_until: watch::Sender<Option<Instant>>,
    pub reads: Reads,
    request: Duration,
}

impl Inner {
    /// When a call that begins now is given up.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.request
    }

    /// Names the history of this fleet in the etcd whose id this is.
    pub fn source(&self, cluster: u64) -> String {
        format!("etcd {cluster:x} {}", self.keys.prefix())
    }
}

/// A hub's store over etcd; clones share it. Call [`EtcdStore::shutdown`] before the last one goes.
#[derive(Clone)]
pub struct EtcdStore {
    inner: Arc<Inner>,
    cancel: CancellationToken,
    tasks: Arc<Mutex<JoinSet<()>>>,
    presence: Arc<Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl EtcdStore {
    /// Opens the catalog, reaches etcd, checks whose prefix it is, and begins to follow.
    ///
    /// # Errors
    /// Settings that make no sense, a catalog in use or damaged, an etcd that does not answer, refuses, or holds
    /// another fleet.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let link = Link::new(config.settings.clone(), config.id)?;
        let dir = config.data_dir.clone();
        let replica = tokio::task::spawn_blocking(move || Replica::open(&dir, HISTORY)).await;
        let replica = replica.map_err(StoreError::storage)??;
        let (reads, queue) = read::queue();
        let inner = Arc::new(Inner {
            link,
            keys: Keys::new(&config.settings.prefix),
            replica,
            id: config.id,
            address: config.address,
            fleet: config.fleet,
            meta: watch::Sender::new(Meta::default()),
            leadership: watch::Sender::new(Leadership::default()),
            caught_up: watch::Sender::new(false),
            progress: watch::Sender::new(None),
            asked: watch::Sender::new(()),
            yields_until: watch::Sender::new(None),
            reads,
            request: config.request,
        });
        claim(&inner, config.first).await?;
        let cancel = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(follow::run(Arc::clone(&inner)));
        let stalls = inner.replica.clone();
        tasks.spawn(async move { stalls.watch_stalls(config.disk).await });
        tasks.spawn(read::run(Arc::clone(&inner), queue));
        let presence = tokio::spawn(presence::run(Arc::clone(&inner), cancel.clone()));
        Ok(Self { inner, cancel, tasks: Arc::new(Mutex::new(tasks)), presence: Arc::new(Mutex::new(Some(presence))) })
    }

    /// The hubs that are up, as this one knows. None has a vote of its own, for etcd votes: each counts as a voter.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let meta = self.inner.meta.borrow();
        let leader = meta.leader.map(|leader| leader.id);
        let member = |hub: &follow::HubEntry| Member {
            id: hub.id,
            address: hub.address.clone(),
            role: Role::Voter,
            leader: leader == Some(hub.id),
        };
        meta.hubs.values().map(member).collect()
    }

    /// Removes a hub for good: it takes no place again, and if it leads it no longer does.
    ///
    /// # Errors
    /// If etcd does not answer.
    pub async fn remove_member(&self, id: u64) -> Result<(), StoreError> {
        let (keys, leader) = (&self.inner.keys, self.inner.meta.borrow().leader);
        let success = vec![put(keys.removed(id), "", 0), delete(keys.hub(id))];
        let request = pb::TxnRequest { success, ..pb::TxnRequest::default() };
        self.inner.write(request, self.inner.deadline()).await?;
        let Some(leader) = leader.filter(|leader| leader.id == id) else { return Ok(()) };
        let request = pb::TxnRequest {
            compare: vec![unchanged(keys.meta("leader"), leader.created)],
            success: vec![delete(keys.meta("leader"))],
            failure: Vec::new(),
        };
        self.inner.write(request, self.inner.deadline()).await.map(|_| ())
    }

    /// Waits until this hub's catalog has everything that was acknowledged before the call.
    ///
    /// # Errors
    /// If etcd does not answer, or the catalog does not get there in time.
    pub async fn barrier(&self) -> Result<(), StoreError> {
        read::barrier(&self.inner).await
    }

    /// The catalog's file, for read-only connections. It changes with [`Self::catalog_generation`].
    #[must_use]
    pub fn catalog_path(&self) -> PathBuf {
        self.inner.replica.path()
    }

    /// Grows when the catalog's file was replaced: reopen what was opened before.
    #[must_use]
    pub fn catalog_generation(&self) -> u64 {
        self.inner.replica.generation()
    }

    /// Why this hub can follow no more, to wait for.
    #[must_use]
    pub fn failures(&self) -> watch::Receiver<Option<Failure>> {
        self.inner.replica.failures()
    }

    /// Whether the disk has answered everything that was asked of it.
    #[must_use]
    pub fn disk_is_idle(&self) -> bool {
        self.inner.replica.disk_is_idle()
    }

    /// Lets another hub lead, if this one does and there is another. Whether that is so within `within`.
    pub async fn hand_over(&self, within: Duration) -> bool {
        let inner = &self.inner;
        let alone = inner.meta.borrow().hubs.keys().all(|id| *id == inner.id);
        let Some(own) = inner.meta.borrow().leader.filter(|leader| leader.id == inner.id && !alone) else {
            return true;
        };
        // The others see the key go; this one waits for them.
        let until = Instant::now() + within;
        inner.yields_until.send_replace(Some(until));
        let key = inner.keys.meta("leader");
        let request = pb::TxnRequest {
            compare: vec![unchanged(key.clone(), own.created)],
            success: vec![delete(key)],
            failure: Vec::new(),
        };
        let mut meta = inner.meta.subscribe();
        let other = meta.wait_for(|meta| meta.leader.is_some_and(|leader| leader.id != inner.id));
        let taken = match inner.write(request, until).await {
            Ok(_) => matches!(tokio::time::timeout_at(until, other).await, Ok(Ok(_))),
            Err(_) => false,
        };
        inner.yields_until.send_replace(None);
        taken
    }

    /// Gives back the lease and stops.
    pub async fn shutdown(&self) {
        self.cancel.cancel();
        let presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(presence) = presence
            && let Err(error) = presence.await
        {
            tracing::error!(%error, "the task of the lease failed");
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        self.inner.replica.close();
    }

    /// Stale is not older than before a restart: waits until the catalog is where etcd was at the start.
    async fn caught_up(&self) -> Result<(), StoreError> {
        let mut caught_up = self.inner.caught_up.subscribe();
        if *caught_up.borrow() {
            return Ok(());
        }
        match tokio::time::timeout(self.inner.request, caught_up.wait_for(|caught_up| *caught_up)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(StoreError::unavailable("this hub has not caught up with etcd since its start")),
        }
    }
}

/// Checks whose prefix it is, and takes it for a new fleet.
async fn claim(inner: &Inner, first: bool) -> Result<(), OpenError> {
    let key = inner.keys.meta("fleet");
    let prefix = inner.keys.prefix().to_owned();
    loop {
        let found = inner.range(pb::RangeRequest { key: key.clone(), ..pb::RangeRequest::default() }).await?;
        match found.kvs.first() {
            Some(kv) if kv.value == inner.fleet.as_bytes() => return Ok(()),
            Some(kv) => {
                let found = String::from_utf8_lossy(&kv.value).into_owned();
                return Err(OpenError::Foreign { prefix, own: inner.fleet.clone(), found });
            }
            None if !first => return Err(OpenError::Missing { prefix }),
            None => {}
        }
        let request = pb::TxnRequest {
            compare: vec![absent(key.clone())],
            success: vec![put(key.clone(), inner.fleet.clone(), 0)],
            failure: Vec::new(),
        };
        match inner.write(request, inner.deadline()).await {
            // Looking again tells what became of it, and of another's that came first.
            Ok(_) | Err(StoreError::UnknownOutcome { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl EtcdStore {
    async fn conflict(&self, txn: &Txn, answer: &pb::TxnResponse, at: i64) -> Result<TxnOutcome, StoreError> {
        let Some(failed) = first_failed(&txn.compares, &answer.responses) else {
            return Err(StoreError::unavailable("etcd refused a transaction whose compares hold"));
        };
        let key = failed.key().to_owned();
        let request = pb::RangeRequest { key: self.inner.keys.data(&key), revision: at, ..pb::RangeRequest::default() };
        let found = match self.inner.range(request.clone()).await {
            // Forgotten meanwhile: what is there now.
            Err(StoreError::Compacted { .. }) => self.inner.range(pb::RangeRequest { revision: 0, ..request }).await?,
            found => found?,
        };
        let current = found.kvs.first().map(|kv| key_value(&key, kv));
        Ok(TxnOutcome::Conflict { key, current })
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str, consistency: Consistency) -> Result<Option<KeyValue>, StoreError> {
        check_key(key)?;
        match consistency {
            Consistency::Linearizable => self.barrier().await?,
            Consistency::Stale => self.caught_up().await?,
        }
        self.inner.replica.get(key)
    }

    async fn list(&self, request: ListRequest) -> Result<Listing, StoreError> {
        match request.consistency {
            Consistency::Linearizable => self.barrier().await?,
            Consistency::Stale => self.caught_up().await?,
        }
        if request.revision.is_some_and(|revision| revision > self.revision()) {
            // This hub may only be behind.
            self.barrier().await?;
        }
        self.inner.replica.list(request).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        check_txn(&txn)?;
        let answer = self.inner.write(self.inner.keys.txn(&txn, rand::random()), self.inner.deadline()).await?;
        let at = match &answer.header {
            Some(header) => header.revision,
            None if answer.succeeded => {
                return Err(StoreError::UnknownOutcome { reason: "etcd's answer has no revision".into() });
            }
            None => 0,
        };
        if answer.succeeded {
            return Ok(TxnOutcome::Committed { revision: revision(at) });
        }
        self.conflict(&txn, &answer, at).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.caught_up().await?;
        if after > self.revision() {
            self.barrier().await?;
            let newest = self.revision();
            if after > newest {
                return Err(StoreError::FutureRevision { asked: after, newest });
            }
        }
        self.inner.replica.watch(prefix, after).await
    }

    /// Has every hub forget the history before `up_to`. etcd's own is not touched: others may need it.
    async fn compact(&self, up_to: Revision) -> Result<(), StoreError> {
        let key = self.inner.keys.meta("compacted");
        loop {
            let found = self.inner.range(pb::RangeRequest { key: key.clone(), ..pb::RangeRequest::default() }).await?;
            let newest = revision(header(found.header)?.revision);
            if up_to > newest {
                return Err(StoreError::FutureRevision { asked: up_to, newest });
            }
            let old = found.kvs.first();
            if old.and_then(|kv| number(&kv.value)).is_some_and(|old| old >= up_to.0) {
                return Ok(());
            }
            let written = old.map_or(Revision(0), |kv| revision(kv.mod_revision));
            let request = pb::TxnRequest {
                compare: vec![unchanged(key.clone(), written)],
                success: vec![put(key.clone(), up_to.0.to_string(), 0)],
                failure: Vec::new(),
            };
            if self.inner.write(request, self.inner.deadline()).await?.succeeded {
                return Ok(());
            }
        }
    }

    fn revision(&self) -> Revision {
        self.inner.replica.revision()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    fn failure(&self) -> Option<Failure> {
        self.inner.replica.failure()
    }
}
