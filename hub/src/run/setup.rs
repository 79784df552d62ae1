//! The first hub of a fleet, and what the fleet's store holds from the beginning.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use fluvial_certs::authority::LEAF_LIFETIME;
use fluvial_certs::{Authority, SpkiPin, TrustDomain};
use fluvial_model::store::Txn;
use fluvial_raft::{Consistency, StoreError};
use thiserror::Error;
use zeroize::Zeroizing;

use super::home::{Home, HubRecord};
use super::store::EtcdOptions;
use super::{RunError, renewal};
use crate::api::defaults::{ensure_defaults, ensure_roles};
use crate::api::status::ApiError;
use crate::clock::{Clock as _, SharedClock, SystemClock, fresh_uid};
use crate::enrol::join::{AdmittedHub, NEXT_HUB_KEY, hub_key};
use crate::objects::Objects;
use crate::peers::split_address;
use crate::sessions::EPOCH_KEY;
use crate::vault::KEY_BYTES;

/// The number of the first hub.
const FIRST_HUB: u64 = 1;
/// Pause before what failed is tried again: about an election.
const RETRY: Duration = Duration::from_millis(200);

/// How to set up the first hub.
#[derive(Debug, Clone)]
pub struct InitOptions {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    /// Where others reach it, `host:port`; the address that it listens on if not said.
    pub advertise: Option<String>,
    pub trust_domain: TrustDomain,
    /// The etcd that keeps the fleet's state, if the hubs shall not do so themselves.
    pub etcd: Option<EtcdOptions>,
}

/// What was set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitReport {
    pub record: HubRecord,
    /// What join tokens pin.
    pub pin: SpkiPin,
}

/// Sets up the first hub of a new fleet: authority, data key, identity.
///
/// # Errors
/// A directory that holds a hub already, an address that is none, and what the disk says.
pub fn init(options: InitOptions) -> Result<InitReport, RunError> {
    let advertise = advertised(options.advertise, options.listen)?;
    let now = SystemClock.now();
    let home = Home::new(&options.data_dir);
    home.prepare()?;
    let authority = Authority::generate(options.trust_domain, now).map_err(RunError::Issue)?;
    home.write_authority(&authority)?;
    home.write_data_key(&Zeroizing::new(rand::random::<[u8; KEY_BYTES]>()))?;
    let record = HubRecord {
        node_id: FIRST_HUB,
        cluster_id: fresh_uid(),
        listen: options.listen,
        advertise,
        first: true,
        etcd: options.etcd,
    };
    renewal::issue(&home, &authority, &record, now, LEAF_LIFETIME)?;
    home.write_record(&record)?;
    Ok(InitReport { record, pin: authority.spki_pin() })
}

/// Where a hub is reached. "Everywhere" is no such place.
pub(crate) fn advertised(advertise: Option<String>, listen: SocketAddr) -> Result<String, RunError> {
    let address = advertise.unwrap_or_else(|| listen.to_string());
    let usable = split_address(&address).is_some_and(|(host, port)| {
        port != 0 && host.parse::<std::net::IpAddr>().map_or(true, |ip| !ip.is_unspecified())
    });
    if usable { Ok(address) } else { Err(RunError::Address { address }) }
}

/// Why the store does not hold yet what it should.
#[derive(Debug, Error)]
enum FillError {
    #[error("writing the first keys")]
    Store(#[source] StoreError),
    #[error("writing the first objects")]
    Defaults(#[source] ApiError),
    #[error("the first hub's record is no JSON")]
    Encode(#[source] serde_json::Error),
}

/// Puts into the store what every fleet has, once it answers. Doing it again changes nothing.
pub(super) async fn fill_store(objects: Objects, record: HubRecord, clock: SharedClock) {
    while let Err(error) = try_fill(&objects, &record, &clock).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "the store is not set up yet");
        tokio::time::sleep(RETRY).await;
    }
}

async fn try_fill(objects: &Objects, record: &HubRecord, clock: &SharedClock) -> Result<(), FillError> {
    let own =
        AdmittedHub { id: record.node_id, address: record.advertise.clone(), token: String::new(), leaving: false };
    let own = serde_json::to_vec(&own).map_err(FillError::Encode)?;
    ensure_defaults(objects, &**clock).await.map_err(FillError::Defaults)?;
    ensure_roles(objects, &**clock).await.map_err(FillError::Defaults)?;
    // One transaction: a fleet whose counter exists has had its first hub, which may have left since.
    let mut first = Txn::create(NEXT_HUB_KEY, (FIRST_HUB + 1).to_string().into_bytes());
    first.ops.extend(Txn::create(hub_key(record.node_id), own).ops);
    objects.store.txn(first).await.map_err(FillError::Store)?;
    // Last: whoever finds the epoch finds the rest.
    objects.store.txn(Txn::create(EPOCH_KEY, b"1".to_vec())).await.map_err(FillError::Store)?;
    Ok(())
}

/// Puts into the store the roles that every fleet has, once it answers. Each hub does so: one may be newer than the first.
pub(super) async fn keep_roles(objects: Objects, clock: SharedClock) {
    while let Err(error) = ensure_roles(&objects, &*clock).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "the roles are not there yet");
        tokio::time::sleep(RETRY).await;
    }
}

/// Whether the store is set up, if it answers.
pub(super) async fn is_filled(objects: &Objects) -> Option<bool> {
    let found = objects.store.get(EPOCH_KEY, Consistency::Linearizable).await;
    found.ok().map(|epoch| epoch.is_some())
}
