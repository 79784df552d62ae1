//! JoinService: lets a newcomer in for a token, once.
//!
//! The token's use, and what it brings about, are one transaction: for a cluster its Cluster object, for a hub its
//! number. Whoever loses the reply may ask again with the same key for ten minutes and gets the same.
//!
//! Invariants: every refusal comes after the same work (the request's signature is checked, the store is read, the
//! secret is compared), so that its time tells nothing; a hub's number is never given twice.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use fluvial_certs::token::{Refusal, Use};
use fluvial_certs::{Csr, Identity, JoinToken, Purpose, TokenRecord, Verdict, verdict};
use fluvial_model::kinds::cluster::{CLUSTER_FINALIZER, ClusterStatus};
use fluvial_model::kinds::{self, Cluster, ClusterSpec, JoinTokenStatus};
use fluvial_model::names::{NameRule, printable};
use fluvial_model::resource::Resource as _;
use fluvial_model::store::{Compare, Op, Txn, TxnOutcome};
use fluvial_proto::v1;
use fluvial_proto::v1::join_service_server::JoinService;
use fluvial_raft::{Consistency, StoreError};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::issuer::Issuer;
use super::rate::JoinRate;
use crate::audit::call::http_code;
use crate::audit::{Act, Notes, Origin};
use crate::clock::fresh_uid;
use crate::objects::{ObjectError, Objects, Stored};
use crate::peers::{Membership, split_address};
use crate::server::Peer;
use crate::vault::KEY_BYTES;

/// How often a join is tried again that lost a race: a token has one honest bearer, so one would do.
const TRIES: usize = 5;
/// Where the number of the next hub is kept, as decimal text.
pub const NEXT_HUB_KEY: &str = "/system/next-hub-id";
/// The start of the keys of the hubs that were let in: number → JSON of [`AdmittedHub`].
pub const HUBS: &str = "/system/hubs/";

/// A hub that was let in, and shall be a member of the store's group.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdmittedHub {
    pub id: u64,
    pub address: String,
    /// The token that it came with: a repeated request gets the same number.
    #[serde(default)]
    pub token: String,
    /// It shall be a member no more.
    #[serde(default)]
    pub leaving: bool,
}

/// The key of an admitted hub.
#[must_use]
pub fn hub_key(id: u64) -> String {
    format!("{HUBS}{id}")
}

/// What only hubs know.
pub struct HubSecrets {
    pub ca_key: SecretString,
    pub data_key: Zeroizing<[u8; KEY_BYTES]>,
    pub cluster_id: String,
}

impl fmt::Debug for HubSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubSecrets").field("cluster_id", &self.cluster_id).finish_non_exhaustive()
    }
}

/// The service.
pub struct Joins {
    objects: Objects,
    issuer: Issuer,
    membership: Arc<dyn Membership>,
    secrets: HubSecrets,
    rate: JoinRate,
    notes: Notes,
}

/// What a good token brought about.
enum Admitted {
    Cluster { name: String },
    Node { cluster: String, name: String },
    Hub { id: u64, address: String },
}

/// A good token that is to be used.
struct Consumption<'a> {
    token: Stored<kinds::JoinToken>,
    csr: &'a Csr,
    now: Timestamp,
    origin: &'a Origin,
}

impl Admitted {
    /// Who the newcomer becomes.
    fn identity(&self) -> Identity {
        match self {
            Self::Cluster { name } => Identity::Cluster { name: name.clone() },
            Self::Node { cluster, name } => Identity::Node { cluster: cluster.clone(), name: name.clone() },
            Self::Hub { id, .. } => Identity::Hub { id: *id },
        }
    }
}

/// The use of a token, for the audit trail.
fn act(token: &str) -> Act {
    Act::of_fleet("consume", "jointokens", token)
}

/// What a transaction came to.
enum Step {
    Done(Admitted),
    /// Somebody else was faster, or the outcome is unknown: look again.
    Again,
}

impl Joins {
    #[must_use]
    pub fn new(issuer: Issuer, membership: Arc<dyn Membership>, secrets: HubSecrets, notes: Notes) -> Self {
        Self { objects: issuer.objects.clone(), issuer, membership, secrets, rate: JoinRate::default(), notes }
    }

    async fn admit(&self, request: &v1::JoinRequest, origin: &Origin) -> Result<(Csr, Admitted), Status> {
        let token: JoinToken =
            request.token.parse().map_err(|e: fluvial_certs::token::Error| Status::invalid_argument(e.to_string()))?;
        let csr = self.issuer.read(&request.csr)?;
        let purpose = purpose(request)?;
        for _ in 0..TRIES {
            match self.try_admit(&token, &csr, purpose.as_ref(), request, origin).await? {
                Step::Done(admitted) => return Ok((csr, admitted)),
                Step::Again => {}
            }
        }
        Err(Status::aborted("the token is being used by several at once: try again"))
    }

    async fn try_admit(
        &self,
        token: &JoinToken,
        csr: &Csr,
        asked: Option<&Purpose>,
        request: &v1::JoinRequest,
        origin: &Origin,
    ) -> Result<Step, Status> {
        let address = request.hub_address.as_str();
        let found = self.objects.get::<kinds::JoinToken>("", token.id(), Consistency::Linearizable).await;
        let stored = found.map_err(unavailable)?;
        let now = self.issuer.clock.now();
        // An unknown token is judged like a known one with another secret, for the same time and with the same answer.
        let record = stored.as_ref().map_or_else(unknown, |stored| record(&stored.object));
        let purpose = asked.cloned().unwrap_or_else(|| named_by(&record));
        let judged = verdict(&record, token, &csr.key_hash(), &purpose, now).map_err(refused)?;
        let Some(stored) = stored else { return Err(refused(Refusal::WrongSecret)) };
        let with = Consumption { token: stored, csr, now, origin };
        match (judged, &purpose) {
            (Verdict::Consume, Purpose::Cluster(name)) if request.node.is_empty() => {
                let writes = self.cluster_writes(name, now).await?;
                self.consume(with, Admitted::Cluster { name: name.clone() }, writes).await
            }
            (Verdict::Consume, Purpose::Cluster(name)) => {
                let writes = self.node_writes(name).await?;
                self.consume(with, node(name, request), writes).await
            }
            (Verdict::Consume, Purpose::Hub) => {
                let (id, writes) = self.hub_writes(token.id(), address).await?;
                self.consume(with, Admitted::Hub { id, address: address.to_owned() }, writes).await
            }
            (Verdict::Reissue, Purpose::Cluster(name)) if !request.node.is_empty() => {
                Ok(Step::Done(node(name, request)))
            }
            (Verdict::Reissue, Purpose::Cluster(name)) => Ok(Step::Done(Admitted::Cluster { name: name.clone() })),
            (Verdict::Reissue, Purpose::Hub) => self.same_hub(token.id()).await,
        }
    }

    /// Marks the token used and makes the writes, or neither.
    async fn consume(&self, with: Consumption<'_>, admitted: Admitted, mut writes: Txn) -> Result<Step, Status> {
        let Consumption { token, csr, now, origin } = with;
        let mut entry = origin.entry(&act(&token.object.metadata.name), 200, now);
        entry.add(&admitted.identity().path());
        writes.audit.push(entry);
        let mut used = token.object;
        used.status = Some(JoinTokenStatus { used_by: csr.key_hash(), used_at: Some(now) });
        let key = used.key();
        let value = self.objects.encode(&used).map_err(unavailable)?;
        writes.compares.push(Compare::UnchangedSince { key: key.clone(), revision: token.revision });
        writes.ops.push(Op::Put { key, value });
        match self.objects.txn(writes).await {
            Ok(TxnOutcome::Committed { .. }) => Ok(Step::Done(admitted)),
            // If it was written after all, the next look finds our own key and reissues.
            Ok(TxnOutcome::Conflict { .. })
            | Err(ObjectError::Store { source: StoreError::UnknownOutcome { .. }, .. }) => Ok(Step::Again),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// The writes that make the Cluster object if there is none, and let it be removed only after it was left.
    async fn cluster_writes(&self, name: &str, now: Timestamp) -> Result<Txn, Status> {
        let stored = self.objects.get::<Cluster>("", name, Consistency::Linearizable).await.map_err(unavailable)?;
        let (mut cluster, known) = match stored {
            Some(Stored { object, .. }) if object.metadata.deletion_timestamp.is_some() => {
                return Err(Status::failed_precondition(format!(
                    "cluster \"{name}\" is being removed: wait until it is gone, then join again"
                )));
            }
            Some(Stored { object, revision }) => (object, Some(revision)),
            None => {
                let mut fresh = Cluster::new("", name, ClusterSpec::default());
                fresh.metadata.uid = fresh_uid();
                fresh.metadata.creation_timestamp = Some(now);
                fresh.metadata.generation = 1;
                (fresh, None)
            }
        };
        let key = cluster.key();
        let compare = match known {
            Some(revision) => Compare::UnchangedSince { key: key.clone(), revision },
            None => Compare::Absent { key: key.clone() },
        };
        if !cluster.metadata.finalizers.iter().any(|f| f == CLUSTER_FINALIZER) {
            cluster.metadata.finalizers.push(CLUSTER_FINALIZER.to_owned());
        }
        cluster
            .status
            .get_or_insert_with(|| ClusterStatus { platform: "unknown".to_owned(), ..ClusterStatus::default() });
        let value = self.objects.encode(&cluster).map_err(unavailable)?;
        Ok(Txn { compares: vec![compare], ops: vec![Op::Put { key, value }], ..Txn::default() })
    }

    /// A node joins a cluster that has an agent, and changes nothing of it.
    async fn node_writes(&self, cluster: &str) -> Result<Txn, Status> {
        let stored = self.objects.get::<Cluster>("", cluster, Consistency::Linearizable).await.map_err(unavailable)?;
        match stored {
            Some(Stored { object, revision }) if object.metadata.deletion_timestamp.is_none() => {
                let compare = Compare::UnchangedSince { key: object.key(), revision };
                Ok(Txn { compares: vec![compare], ops: Vec::new(), ..Txn::default() })
            }
            Some(_) => Err(Status::failed_precondition(format!("cluster \"{cluster}\" is being removed"))),
            None => Err(Status::failed_precondition(format!(
                "cluster \"{cluster}\" has no agent yet: let one join by `fluvial member join`, then its nodes"
            ))),
        }
    }

    /// The next hub's number, and the writes that take it.
    async fn hub_writes(&self, token: &str, address: &str) -> Result<(u64, Txn), Status> {
        let found = self.objects.store.get(NEXT_HUB_KEY, Consistency::Linearizable).await.map_err(unavailable)?;
        let counter = found.ok_or_else(|| Status::unavailable("this fleet is not set up yet: try again"))?;
        let id: u64 = std::str::from_utf8(&counter.value)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Status::internal(format!("{NEXT_HUB_KEY} holds no number")))?;
        let hub = AdmittedHub { id, address: address.to_owned(), token: token.to_owned(), leaving: false };
        let hub = serde_json::to_vec(&hub).map_err(unavailable)?;
        let mut writes = Txn::replace(NEXT_HUB_KEY, counter.mod_revision, (id + 1).to_string().into_bytes());
        writes.compares.push(Compare::Absent { key: hub_key(id) });
        writes.ops.push(Op::Put { key: hub_key(id), value: hub });
        Ok((id, writes))
    }

    /// The hub that was let in with this token.
    async fn same_hub(&self, token: &str) -> Result<Step, Status> {
        let hubs = admitted_hubs(&self.objects, Consistency::Linearizable).await.map_err(unavailable)?;
        let hub = hubs.into_iter().find(|hub| hub.token == token && !hub.leaving);
        let hub = hub
            .ok_or_else(|| Status::failed_precondition("the hub that used this token was removed: create a new one"))?;
        Ok(Step::Done(Admitted::Hub { id: hub.id, address: hub.address }))
    }

    /// Notes that a token was refused.
    fn note(&self, origin: &Origin, token: &str, status: &Status) {
        let code = http_code(status.code());
        let mut entry = origin.entry(&act(token), code, self.issuer.clock.now());
        entry.add(status.message());
        self.notes.put(entry);
    }

    async fn welcome(&self, csr: &Csr, admitted: Admitted, origin: &Origin) -> Result<v1::JoinResponse, Status> {
        let identity = admitted.identity();
        let hubs = self.membership.hubs().into_iter().map(|hub| hub.address).collect();
        let mut response = v1::JoinResponse {
            ca: self.issuer.roots(),
            trust_domain: self.issuer.authority.trust_domain().to_string(),
            hubs,
            ..v1::JoinResponse::default()
        };
        match admitted {
            Admitted::Cluster { name } => {
                response.certificate = self.issuer.issue(csr, &identity, None, origin).await?;
                response.cluster = name;
            }
            Admitted::Node { cluster, name } => {
                response.certificate = self.issuer.issue(csr, &identity, None, origin).await?;
                (response.cluster, response.node) = (cluster, name);
            }
            Admitted::Hub { id, address } => {
                response.certificate = self.issuer.issue(csr, &identity, Some(&address), origin).await?;
                response.hub = Some(v1::HubGrant {
                    node_id: id,
                    ca_key: self.secrets.ca_key.expose_secret().to_owned(),
                    data_key: bytes::Bytes::copy_from_slice(self.secrets.data_key.as_slice()),
                    cluster_id: self.secrets.cluster_id.clone(),
                });
            }
        }
        Ok(response)
    }
}

#[tonic::async_trait]
impl JoinService for Joins {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("the caller's address is not known"))?;
        let origin = request.extensions().get::<Origin>().cloned().unwrap_or_default();
        if let Err(wait) = self.rate.take(peer.address.ip(), Instant::now()) {
            let seconds = wait.as_secs() + 1;
            let message = format!("too many tries to join from {}: try again in {seconds} s", peer.address.ip());
            let status = Status::resource_exhausted(message);
            self.note(&origin, "", &status);
            return Err(status);
        }
        let request = request.into_inner();
        let (csr, admitted) = self.admit(&request, &origin).await.inspect_err(|status| {
            let token = request.token.parse::<JoinToken>().ok();
            self.note(&origin, token.as_ref().map_or("", JoinToken::id), status);
            tracing::info!(address = %peer.address, code = ?status.code(), why = status.message(), "join refused");
        })?;
        let response = self.welcome(&csr, admitted, &origin).await?;
        tracing::info!(address = %peer.address, cluster = response.cluster, hub = response.hub.as_ref().map(|h| h.node_id), "joined");
        Ok(Response::new(response))
    }
}

/// The hubs that were let in.
///
/// # Errors
/// If the store does not answer.
pub async fn admitted_hubs(objects: &Objects, consistency: Consistency) -> Result<Vec<AdmittedHub>, StoreError> {
    let request = fluvial_raft::ListRequest { prefix: HUBS.to_owned(), consistency, ..Default::default() };
    let listing = objects.store.list(request).await?;
    let read = |kv: &fluvial_model::store::KeyValue| {
        serde_json::from_slice(&kv.value).map_err(|_| StoreError::Corrupt { what: format!("the hub at {}", kv.key) })
    };
    listing.items.iter().map(read).collect()
}

/// The node that the caller becomes.
fn node(cluster: &str, request: &v1::JoinRequest) -> Admitted {
    Admitted::Node { cluster: cluster.to_owned(), name: request.node.clone() }
}

/// What the caller wants to become; nothing for the cluster that the token names, or a node of it.
fn purpose(request: &v1::JoinRequest) -> Result<Option<Purpose>, Status> {
    if !request.node.is_empty() {
        let named = Identity::Node { cluster: "any".to_owned(), name: request.node.clone() };
        named.check().map_err(|error| Status::invalid_argument(error.to_string()))?;
        if !request.hub_address.is_empty() {
            return Err(Status::invalid_argument("either a node or a hub joins, not both at once"));
        }
    }
    match (request.cluster.as_str(), request.hub_address.as_str()) {
        ("", "") => Ok(None),
        ("", address) => match split_address(address) {
            Some(_) if address.len() <= 300 => Ok(Some(Purpose::Hub)),
            _ => Err(Status::invalid_argument(format!("hub address \"{}\" is not HOST:PORT", printable(address)))),
        },
        (name, "") => match NameRule::Dns1035Label.problem(name) {
            Some(problem) => Err(Status::invalid_argument(format!("cluster \"{}\": {problem}", printable(name)))),
            None => Ok(Some(Purpose::Cluster(name.to_owned()))),
        },
        _ => Err(Status::invalid_argument("either a cluster or a hub joins, not both at once")),
    }
}

/// The cluster that a token names; one that it cannot be used for if it is a hub's.
fn named_by(record: &TokenRecord) -> Purpose {
    match &record.purpose {
        Purpose::Cluster(name) => Purpose::Cluster(name.clone()),
        Purpose::Hub => Purpose::Cluster(String::new()),
    }
}

fn record(token: &kinds::JoinToken) -> TokenRecord {
    let purpose = if token.spec.hub { Purpose::Hub } else { Purpose::Cluster(token.spec.cluster.clone()) };
    let used = token.status.as_ref().and_then(|s| s.used_at.map(|at| Use { key_hash: s.used_by.clone(), at }));
    TokenRecord {
        secret_hash: token.spec.secret_hash.clone(),
        purpose,
        // A record without an end is not one that we made.
        expires_at: token.spec.expires_at.unwrap_or(Timestamp::MIN),
        used,
    }
}

/// A record that no token fits.
fn unknown() -> TokenRecord {
    let secret_hash = "0".repeat(64);
    TokenRecord { secret_hash, purpose: Purpose::Hub, expires_at: Timestamp::MIN, used: None }
}

fn refused(refusal: Refusal) -> Status {
    let message = refusal.to_string();
    match refusal {
        Refusal::WrongSecret => Status::unauthenticated(message),
        Refusal::OtherPurpose { .. } => Status::permission_denied(message),
        Refusal::Used { .. } | Refusal::Expired { .. } => Status::failed_precondition(message),
    }
}

fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Status {
    let error: Box<dyn std::error::Error + Send + Sync> = error.into();
    tracing::warn!(error = &*error as &dyn std::error::Error, "a join could not be decided");
    Status::unavailable("the store did not answer: try again")
}
