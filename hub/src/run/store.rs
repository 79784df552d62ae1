//! Which store a hub has: its own, replicated by Raft among the hubs, or an etcd that is already there.
//!
//! The rest of the hub sees the `Store` trait. What differs is here: who is in the fleet, who may be added or removed,
//! and where the catalog's file is. The etcd store is there only with the cargo feature `etcd`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
#[cfg(feature = "etcd")]
use fluvial_etcd::EtcdStore;
use fluvial_model::store::{KeyValue, Revision, Txn, TxnOutcome};
use fluvial_raft::health::Failure;
use fluvial_raft::{
    Config, Consistency, Leadership, ListRequest, Listing, Member, MembershipError, RaftStore, Role, Store, StoreError,
    Timings, Watch,
};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::home::{Home, HubRecord};
use super::{LogLimits, RunError};
use crate::catalog::CatalogSource;
use crate::peers::{Dialler, Hub as HubMember, Membership};

/// Which etcd a hub keeps its state in, as whom. The password is never among it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdOptions {
    /// `https://HOST:PORT` of some or all members.
    pub endpoints: Vec<String>,
    /// Who vouches for the members: PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// This hub's certificate and key: PEM. Both or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Who the hub is to an etcd that asks for users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where the password is, if it is not given at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// What all keys of the fleet begin with.
    pub prefix: String,
}

/// A hub's store; clones share it.
#[derive(Clone)]
pub enum HubStore {
    Raft(RaftStore),
    #[cfg(feature = "etcd")]
    Etcd(EtcdStore),
}

impl HubStore {
    /// Opens what the record says, with `etcd` in place of what it says of etcd.
    pub(super) async fn open(
        home: &Home,
        record: &HubRecord,
        (etcd, password): (Option<EtcdOptions>, Option<SecretString>),
        (timings, log): (Timings, LogLimits),
        dialler: &Dialler,
    ) -> Result<Self, RunError> {
        match (etcd, &record.etcd) {
            (Some(_), None) => Err(RunError::NotOfEtcd),
            (None, None) => open_raft(home, record, (timings, log), dialler).await.map(Self::Raft),
            (given, Some(kept)) => {
                open_etcd(home, record, given.unwrap_or_else(|| kept.clone()), password, timings).await
            }
        }
    }

    fn store(&self) -> &dyn Store {
        match self {
            Self::Raft(store) => store,
            #[cfg(feature = "etcd")]
            Self::Etcd(store) => store,
        }
    }

    /// The hubs, as this one knows them.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        match self {
            Self::Raft(store) => store.members(),
            #[cfg(feature = "etcd")]
            Self::Etcd(store) => store.members(),
        }
    }

    /// Whether a hub that was let in takes its place by itself, when it starts.
    pub(super) fn admits_itself(&self) -> bool {
        !matches!(self, Self::Raft(_))
    }

    /// Ends a change of members that a former leader left half done. Whether there was one.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn settle_members(&self) -> Result<bool, MembershipError> {
        match self {
            Self::Raft(store) => store.settle_members().await,
            // One transaction makes each change.
            #[cfg(feature = "etcd")]
            Self::Etcd(_) => Ok(false),
        }
    }

    /// Takes a hub in.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn add_member(&self, id: u64, address: &str) -> Result<(), MembershipError> {
        match self {
            Self::Raft(store) => store.add_member(id, address).await,
            #[cfg(feature = "etcd")]
            Self::Etcd(_) => Ok(()),
        }
    }

    /// Sees a hub off, for good.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn remove_member(&self, id: u64) -> Result<(), MembershipError> {
        match self {
            Self::Raft(store) => store.remove_member(id).await,
            #[cfg(feature = "etcd")]
            Self::Etcd(store) => {
                let failed = |error: StoreError| MembershipError::Failed { reason: error.to_string() };
                store.remove_member(id).await.map_err(failed)
            }
        }
    }

    /// Lets another hub lead, if this one does and there is another. Whether that is so within `within`.
    pub async fn hand_over(&self, within: Duration) -> bool {
        match self {
            Self::Raft(store) => store.hand_over(within).await,
            #[cfg(feature = "etcd")]
            Self::Etcd(store) => store.hand_over(within).await,
        }
    }

    /// Why the store stops, to wait for.
    #[must_use]
    pub fn failures(&self) -> watch::Receiver<Option<Failure>> {
        match self {
            Self::Raft(store) => store.failures(),
            #[cfg(feature = "etcd")]
            Self::Etcd(store) => store.failures(),
        }
    }

    /// Whether the disk has answered everything that was asked of it.
    #[must_use]
    pub fn disk_is_idle(&self) -> bool {
        match self {
            Self::Raft(store) => store.disk_is_idle(),
            #[cfg(feature = "etcd")]
            Self::Etcd(store) => store.disk_is_idle(),
        }
    }

    /// Closes it.
    pub async fn shutdown(&self) {
        match self {
            Self::Raft(store) => store.shutdown().await,
            #[cfg(feature = "etcd")]
            Self::Etcd(store) => store.shutdown().await,
        }
    }
}

async fn open_raft(
    home: &Home,
    record: &HubRecord,
    (timings, log): (Timings, LogLimits),
    dialler: &Dialler,
) -> Result<RaftStore, RunError> {
    let mut config = Config::new(record.node_id, &record.cluster_id, home.store(), &record.advertise);
    config.timings = timings;
    (config.snapshot_after, config.keep_log) = (log.snapshot_after, log.keep);
    home.check_store()?;
    let store = RaftStore::open(config, Arc::new(dialler.clone())).await.map_err(RunError::Store)?;
    home.note_store()?;
    if record.first && !store.is_initialized().await.map_err(RunError::Store)? {
        let members = [(record.node_id, record.advertise.clone())].into();
        store.initialize(members).await.map_err(RunError::Store)?;
    }
    Ok(store)
}

#[cfg(not(feature = "etcd"))]
async fn open_etcd(
    _: &Home,
    _: &HubRecord,
    _: EtcdOptions,
    _: Option<SecretString>,
    _: Timings,
) -> Result<HubStore, RunError> {
    Err(RunError::NoEtcd)
}

#[cfg(feature = "etcd")]
async fn open_etcd(
    home: &Home,
    record: &HubRecord,
    options: EtcdOptions,
    password: Option<SecretString>,
    timings: Timings,
) -> Result<HubStore, RunError> {
    let identity = match (options.certificate, options.key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(RunError::EtcdIdentity),
    };
    let user = match (options.user, password, options.password_file) {
        (None, _, _) => None,
        (Some(user), Some(password), _) => Some((user, password)),
        (Some(user), None, Some(path)) => {
            let text = std::fs::read_to_string(&path).map_err(|source| RunError::EtcdPassword { path, source })?;
            Some((user, text.trim_end_matches(['\r', '\n']).to_owned().into()))
        }
        (Some(user), None, None) => return Err(RunError::NoEtcdPassword { user }),
    };
    let (endpoints, ca, prefix) = (options.endpoints, options.ca, options.prefix);
    let config = fluvial_etcd::Config {
        settings: fluvial_etcd::Settings { endpoints, ca, identity, user, prefix },
        id: record.node_id,
        address: record.advertise.clone(),
        fleet: record.cluster_id.clone(),
        first: record.first,
        data_dir: home.replica(),
        request: timings.request,
        disk: timings.disk,
    };
    EtcdStore::open(config).await.map(HubStore::Etcd).map_err(|error| RunError::Etcd(Box::new(error)))
}

#[async_trait]
impl Store for HubStore {
    async fn get(&self, key: &str, consistency: Consistency) -> Result<Option<KeyValue>, StoreError> {
        self.store().get(key, consistency).await
    }

    async fn list(&self, request: ListRequest) -> Result<Listing, StoreError> {
        self.store().list(request).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.store().txn(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.store().watch(prefix, after).await
    }

    async fn compact(&self, up_to: Revision) -> Result<(), StoreError> {
        self.store().compact(up_to).await
    }

    fn revision(&self) -> Revision {
        self.store().revision()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.store().leadership()
    }

    fn failure(&self) -> Option<Failure> {
        self.store().failure()
    }
}

impl CatalogSource for HubStore {
    fn path(&self) -> PathBuf {
        match self {
            Self::Raft(store) => store.catalog_path(),
            #[cfg(feature = "etcd")]
            Self::Etcd(store) => store.catalog_path(),
        }
    }

    fn generation(&self) -> u64 {
        match self {
            Self::Raft(store) => store.catalog_generation(),
            #[cfg(feature = "etcd")]
            Self::Etcd(store) => store.catalog_generation(),
        }
    }
}

impl Membership for HubStore {
    fn hubs(&self) -> Vec<HubMember> {
        let hub = |member: Member| HubMember {
            id: member.id,
            address: member.address,
            voter: member.role == Role::Voter,
            leader: member.leader,
        };
        self.members().into_iter().map(hub).collect()
    }

    fn is_changing(&self) -> bool {
        match self {
            Self::Raft(store) => store.is_changing(),
            #[cfg(feature = "etcd")]
            Self::Etcd(_) => false,
        }
    }
}
