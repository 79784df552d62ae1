//! Connections to other agents: to an address, and to nobody but the identity that is expected there.
//!
//! A channel connects when it is first used, and again, with the newest certificate, whenever the connection is lost.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fluvial_certs::tls::{self, ALPN_H2};
use fluvial_certs::{Identity, Reloadable, TrustDomain};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::connect::{self, CONNECT_TIMEOUT};
use crate::denied::Denials;

/// HTTP/2 windows: a range of a file is on its way on each of a few streams.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// A peer that does not answer a ping for so long is gone.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Dials other agents as this one.
#[derive(Debug, Clone)]
pub struct Dialler {
    credentials: Arc<Reloadable>,
    trust_domain: TrustDomain,
    denied: Denials,
}

impl Dialler {
    /// With this agent's credentials.
    #[must_use]
    pub fn new(credentials: Arc<Reloadable>, trust_domain: TrustDomain, denied: Denials) -> Self {
        Self { credentials, trust_domain, denied }
    }

    /// A channel to `expected` at `address` (`HOST:PORT`).
    ///
    /// # Errors
    /// When the address is none.
    pub fn channel(&self, address: &str, expected: &Identity) -> Result<Channel, connect::Error> {
        let address = connect::address(address)?;
        let endpoint = endpoint(&address)?;
        let (dialler, expected) = (self.clone(), expected.clone());
        let dial = move |_: http::Uri| {
            let (dialler, expected, address) = (dialler.clone(), expected.clone(), address.clone());
            async move { dialler.dial(&address, &expected, ALPN_H2).await.map(TokioIo::new) }
        };
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(dial)))
    }

    /// A connection to `expected` at `address` (`HOST:PORT`) that speaks the protocol `alpn`, within [`CONNECT_TIMEOUT`].
    ///
    /// # Errors
    /// What the network or TLS report.
    pub async fn dial(&self, address: &str, expected: &Identity, alpn: &[u8]) -> io::Result<TlsStream<TcpStream>> {
        let bundle = self.credentials.current().bundle.clone();
        let (domain, denied) = (self.trust_domain.clone(), self.denied.list());
        let config =
            tls::peer_client_config(&bundle, domain, expected.clone(), denied, alpn).map_err(io::Error::other)?;
        let name = ServerName::try_from(NO_HOST).map_err(io::Error::other)?;
        let connect = async {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            TlsConnector::from(Arc::new(config)).connect(name, tcp).await
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connect).await?
    }
}

/// What agents are called where a host must be named. Their certificates name none: the verifier looks at the identity.
pub(crate) const NO_HOST: &str = "agent.invalid";

/// What channels to other agents have in common.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, connect::Error> {
    // The scheme says that tonic adds no TLS of its own: the connector does it.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|source| connect::Error::Connect { address: address.to_owned(), source })?
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    Ok(endpoint)
}
