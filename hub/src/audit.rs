//! Who did what: how a call becomes a record of the audit trail (`model::audit`).
//!
//! A call that changes something carries its record in the transaction that does: [`Objects::recorded`] gives a store
//! that adds it, so that neither stands without the other. What changes nothing and is recorded all the same (refusals,
//! failed changes, readings of Secrets) is put into [`Notes`], which appends them within seconds, so many alike as one.
//!
//! Invariants: a record says who, from where, to what and with what outcome, never a value; what waits in [`Notes`] and
//! how fast it is written are bounded, whoever calls how often; all records of one call have one request number.
//!
//! What [`Notes`] may write: [`Rate`]s of 2 records a second for callers with a certificate and 1 every 4 seconds for those
//! without, after bursts. A flood for a whole day is then at most 194,400 records, a fifth of what the trail keeps, and a
//! hub's note costs one write a second.
//!
//! Deliberately absent: what agents report of their own work, and the hub's own housekeeping: these are no calls.

pub(crate) mod call;
mod notes;

use std::sync::Arc;

use async_trait::async_trait;
use fluvial_certs::Identity;
use fluvial_certs::listen::Peer;
use fluvial_model::audit::Entry;
use fluvial_model::kinds::kind_of_key;
use fluvial_model::store::{KeyValue, Op, Revision, Txn, TxnOutcome};
use fluvial_raft::{Consistency, Failure, Leadership, ListRequest, Listing, Store, StoreError, Watch};
use jiff::Timestamp;

pub use self::notes::Notes;
use crate::api::Caller;
use crate::clock::SharedClock;
use crate::objects::Objects;

/// Whose call it is, and from where; in every request's extensions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    pub user: String,
    pub groups: Vec<String>,
    /// As whom the caller acts, if as somebody else.
    pub acting: String,
    /// `IP:PORT`.
    pub address: String,
    /// The number of the call.
    pub request: String,
}

impl Origin {
    /// A call over the network.
    #[must_use]
    pub fn new(identity: Option<&Identity>, peer: &Peer) -> Self {
        let user = identity.map(Identity::path).unwrap_or_default();
        let groups = identity.map(|identity| identity.groups().to_vec()).unwrap_or_default();
        Self { user, groups, acting: String::new(), address: peer.address.to_string(), request: fresh_request() }
    }

    /// The origin of a request. Only the hub's own tests have requests without one.
    #[must_use]
    pub fn of(extensions: &http::Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    /// Notes that the call is made in the name of `caller`, if that is somebody else.
    pub fn acts_as(&mut self, caller: &Caller) {
        let acting =
            caller.0.as_ref().filter(|identity| identity.path() != self.user || identity.groups() != self.groups);
        let said = |other: &Identity| match other.groups() {
            [] => format!("as {}", other.path()),
            groups => format!("as {} of {}", other.path(), groups.join(", ")),
        };
        self.acting = acting.map(said).unwrap_or_default();
    }

    /// What a part of the hub does by itself.
    #[must_use]
    pub fn system(part: &str) -> Self {
        Self { user: format!("system:{part}"), request: fresh_request(), ..Self::default() }
    }

    /// The record of `act`.
    #[must_use]
    pub fn entry(&self, act: &Act, code: u32, time: Timestamp) -> Entry {
        let Self { user, groups, acting, address, request } = self.clone();
        let Act { verb, api_group, resource, namespace, name } = act.clone();
        Entry {
            time,
            user,
            groups,
            address,
            request,
            verb,
            api_group,
            resource,
            namespace,
            name,
            code,
            count: 1,
            message: acting,
        }
    }
}

/// 64 random bits in hexadecimal: two calls of a trail of a million have the same with a chance of one in 10^7.
fn fresh_request() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// What is done to what, in Kubernetes' words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Act {
    pub verb: String,
    pub api_group: String,
    /// With `/SUBRESOURCE` if there is one.
    pub resource: String,
    pub namespace: String,
    pub name: String,
}

impl Act {
    /// Something of Fluvial's own that is no object.
    #[must_use]
    pub fn of_fleet(verb: &str, resource: &str, name: &str) -> Self {
        Self {
            verb: verb.to_owned(),
            api_group: fluvial_model::kinds::FLUVIAL_GROUP.to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            ..Self::default()
        }
    }
}

impl Objects {
    /// The same objects; every change through them is recorded as `act` of `origin`. If the change is of an object, the
    /// record names that object, whatever `act` names.
    #[must_use]
    pub fn recorded(&self, origin: &Origin, act: Act, code: u32, clock: &SharedClock) -> Self {
        let (inner, origin, clock) = (self.store.clone(), origin.clone(), clock.clone());
        Self { store: Arc::new(Recorded { inner, origin, act, code, clock }), vault: self.vault.clone() }
    }
}

/// A store that records every transaction that writes.
struct Recorded {
    inner: Arc<dyn Store>,
    origin: Origin,
    act: Act,
    code: u32,
    clock: SharedClock,
}

impl Recorded {
    /// The record of a transaction: of its first object, if it has one.
    fn entry(&self, txn: &Txn) -> Entry {
        let mut act = self.act.clone();
        if let Some((kind, rest)) = txn.ops.iter().map(Op::key).find_map(|key| Some((kind_of_key(key)?, key))) {
            let info = &kind.info;
            let subresource = act.resource.split_once('/').map(|(_, part)| part.to_owned());
            info.group.clone_into(&mut act.api_group);
            act.resource = subresource.map_or(info.plural.to_owned(), |part| format!("{}/{part}", info.plural));
            let path = rest.strip_prefix(&info.prefix()).unwrap_or_default();
            let (namespace, name) = path.split_once('/').unwrap_or(("", path));
            (act.namespace, act.name) = (namespace.to_owned(), name.to_owned());
        }
        self.origin.entry(&act, self.code, self.clock.now())
    }
}

#[async_trait]
impl Store for Recorded {
    async fn get(&self, key: &str, consistency: Consistency) -> Result<Option<KeyValue>, StoreError> {
        self.inner.get(key, consistency).await
    }

    async fn list(&self, request: ListRequest) -> Result<Listing, StoreError> {
        self.inner.list(request).await
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnOutcome, StoreError> {
        if !txn.ops.is_empty() {
            txn.audit.push(self.entry(&txn));
        }
        self.inner.txn(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, after).await
    }

    async fn compact(&self, up_to: Revision) -> Result<(), StoreError> {
        self.inner.compact(up_to).await
    }

    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    fn failure(&self) -> Option<Failure> {
        self.inner.failure()
    }

    fn leadership(&self) -> tokio::sync::watch::Receiver<Leadership> {
        self.inner.leadership()
    }
}
