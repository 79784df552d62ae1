//! The other hubs: who they are, how they are reached, and what this hub asks of them.
//!
//! Invariants: a connection to hub N is used only if the other end shows the certificate of hub N, whatever its
//! address; every call has a deadline; a hub that does not answer is the same as one that does not have it.
//!
//! Deliberately absent: consensus (`fluvial-raft` speaks over the channels made here, but by itself).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_certs::{Identity, Reloadable, TrustDomain};
use fluvial_model::manifest::BlockHash;
use fluvial_proto::v1;
use fluvial_proto::v1::hub_service_client::HubServiceClient;
use fluvial_raft::{ConnectError, PeerConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long a connection may take to be made, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A hub that does not answer a ping within these is connected to again.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// What the other hub may send unread: as the server's limits for hubs.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Waiting for a block, or for the answer to "is it with you?".
const SHORT: Duration = Duration::from_secs(5);
/// The largest message between hubs outside consensus: a file chunk or block of 1 MiB and its frame.
pub const MAX_MESSAGE: usize = 3 * 512 * 1024;

/// A hub of this fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    pub id: u64,
    /// `host:port`.
    pub address: String,
    pub voter: bool,
    pub leader: bool,
}

/// Knows the hubs.
pub trait Membership: Send + Sync + 'static {
    /// Every hub, this one too, as far as this one knows.
    fn hubs(&self) -> Vec<Hub>;
    /// Whether a change of who votes is half done.
    fn is_changing(&self) -> bool {
        false
    }
}

/// Why a hub cannot be reached.
#[derive(Debug, Error)]
pub enum DialError {
    #[error("\"{address}\" is no address: write HOST:PORT")]
    Address { address: String },
    #[error("connecting to {address}")]
    Connect {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("connecting to {address} took longer than {CONNECT_TIMEOUT:?}")]
    Timeout { address: String },
    #[error("{address} is not hub {expected}: its certificate is that of {found}")]
    Other { address: String, expected: u64, found: String },
    #[error("{address} cannot be called")]
    Endpoint {
        address: String,
        #[source]
        source: tonic::transport::Error,
    },
}

/// Splits `host:port`; an IPv6 host may stand in brackets.
#[must_use]
pub fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some((host, port.parse().ok()?))
}

/// A TLS connection to `address`, as `config` has it, within [`CONNECT_TIMEOUT`].
pub(crate) async fn dial(address: &str, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, DialError> {
    let wrong = || DialError::Address { address: address.to_owned() };
    let failed = |source| DialError::Connect { address: address.to_owned(), source };
    let (host, port) = split_address(address).ok_or_else(wrong)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
    let connecting = async {
        let socket = TcpStream::connect((host, port)).await.map_err(failed)?;
        socket.set_nodelay(true).map_err(failed)?;
        TlsConnector::from(config).connect(name, socket).await.map_err(failed)
    };
    let timeout = || DialError::Timeout { address: address.to_owned() };
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| timeout())?
}

/// Makes connections to hubs with this hub's own certificate.
#[derive(Clone)]
pub struct Dialler {
    pub credentials: Arc<Reloadable>,
    pub trust_domain: TrustDomain,
}

impl Dialler {
    async fn dial_hub(&self, id: u64, address: &str) -> Result<TlsStream<TcpStream>, DialError> {
        let stream = dial(address, self.credentials.client_config()).await?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let identity = leaf.and_then(|leaf| Identity::from_leaf(leaf, &self.trust_domain).ok()).map(|v| v.identity);
        if identity == Some(Identity::Hub { id }) {
            return Ok(stream);
        }
        let found = identity.map_or_else(|| "a stranger".to_owned(), |identity| identity.path());
        Err(DialError::Other { address: address.to_owned(), expected: id, found })
    }

    /// Whether hub `id` answers at `address`.
    ///
    /// # Errors
    /// Why not.
    pub async fn probe(&self, id: u64, address: &str) -> Result<(), DialError> {
        self.dial_hub(id, address).await.map(|_| ())
    }

    /// A channel to hub `id` that connects when it is first used, and again, with the newest certificate, whenever the
    /// connection is lost.
    ///
    /// # Errors
    /// If the address is none.
    pub fn channel(&self, id: u64, address: &str) -> Result<Channel, DialError> {
        // The scheme is http because the connector below makes the TLS connection itself.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|source| DialError::Endpoint { address: address.to_owned(), source })?
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (dialler, address) = (self.clone(), address.to_owned());
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let (dialler, address) = (dialler.clone(), address.clone());
            async move { dialler.dial_hub(id, &address).await.map(TokioIo::new) }
        })))
    }
}

impl fmt::Debug for Dialler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialler").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

#[async_trait]
impl PeerConnector for Dialler {
    async fn connect(&self, id: u64, address: &str) -> Result<Channel, ConnectError> {
        self.channel(id, address).map_err(|source| ConnectError {
            id,
            address: address.to_owned(),
            source: source.into(),
        })
    }
}

/// What this hub asks of the others.
pub struct Peers {
    own: u64,
    dialler: Dialler,
    membership: Arc<dyn Membership>,
    channels: Mutex<HashMap<(u64, String), Channel>>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Peers {
    #[must_use]
    pub fn new(own: u64, dialler: Dialler, membership: Arc<dyn Membership>) -> Self {
        Self { own, dialler, membership, channels: Mutex::default() }
    }

    /// Every hub, this one too.
    #[must_use]
    pub fn hubs(&self) -> Vec<Hub> {
        self.membership.hubs()
    }

    /// Whether a change of who votes is half done.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        self.membership.is_changing()
    }

    fn others(&self) -> Vec<Hub> {
        self.hubs().into_iter().filter(|hub| hub.id != self.own).collect()
    }

    fn client(&self, hub: &Hub) -> Result<HubServiceClient<Channel>, DialError> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (hub.id, hub.address.clone());
        let channel = match channels.get(&key) {
            Some(channel) => channel.clone(),
            None => {
                // One channel per hub: an address that a hub has left is not kept.
                channels.retain(|(id, _), _| *id != hub.id);
                let channel = self.dialler.channel(hub.id, &hub.address)?;
                channels.insert(key, channel.clone());
                channel
            }
        };
        Ok(HubServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
    }

    /// The bytes of a block, from the first hub that has it. They are checked by the caller.
    pub async fn block(&self, hash: &BlockHash) -> Option<Bytes> {
        for hub in self.others() {
            let Ok(mut client) = self.client(&hub) else { continue };
            let request = v1::BlockRequest { hash: Bytes::copy_from_slice(hash.as_bytes()) };
            match tokio::time::timeout(SHORT, client.get_block(request)).await {
                Ok(Ok(block)) => return Some(block.into_inner().data),
                Ok(Err(status)) if status.code() == Code::NotFound => {}
                Ok(Err(status)) => tracing::debug!(hub = hub.id, %status, "asking for a block"),
                Err(_) => tracing::debug!(hub = hub.id, "asking for a block took too long"),
            }
        }
        None
    }

    /// The answer of the agent of `cluster`, from the hub that it is connected to; nothing if no hub has it.
    ///
    /// # Errors
    /// If the hub that has it could not get an answer.
    pub async fn ask_agent(
        &self,
        cluster: &str,
        ask: &v1::Ask,
        patience: Duration,
    ) -> Result<Option<v1::AskReply>, Status> {
        for hub in self.others() {
            let Ok(mut client) = self.client(&hub) else { continue };
            let request = v1::AskAgentRequest { cluster: cluster.to_owned(), ask: Some(ask.clone()) };
            match tokio::time::timeout(patience, client.ask_agent(request)).await {
                Ok(Ok(reply)) => return Ok(Some(reply.into_inner())),
                Ok(Err(status)) if matches!(status.code(), Code::NotFound | Code::Unavailable) => {}
                Ok(Err(status)) => return Err(status),
                Err(_) => tracing::debug!(hub = hub.id, cluster, "asking for an agent took too long"),
            }
        }
        Ok(None)
    }

    /// Whether another hub has, or had a moment ago, a session of `cluster`.
    pub async fn session_elsewhere(&self, cluster: &str) -> bool {
        // A question without content is answered by the hub itself.
        matches!(self.ask_agent(cluster, &v1::Ask::default(), SHORT).await, Ok(Some(_)))
    }

    /// Tells the leader which clusters this hub has heard from. Does nothing on the leader.
    ///
    /// # Errors
    /// If the leader does not answer.
    pub async fn tell_leader(&self, beats: Vec<v1::Beat>) -> Result<(), Status> {
        let Some(leader) = self.others().into_iter().find(|hub| hub.leader) else { return Ok(()) };
        let mut client = self.client(&leader).map_err(|error| Status::unavailable(error.to_string()))?;
        let told = tokio::time::timeout(SHORT, client.beats(v1::BeatsRequest { beats })).await;
        told.map_err(|_| Status::deadline_exceeded("telling the leader took too long"))?.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_host_and_a_port() {
        assert_eq!(split_address("hub.example:7443"), Some(("hub.example", 7443)));
        assert_eq!(split_address("[::1]:7443"), Some(("::1", 7443)));
        for wrong in ["", "hub", ":1", "hub:", "hub:port", "hub:70000"] {
            assert_eq!(split_address(wrong), None, "{wrong}");
        }
    }
}
