//! One connection to one hub: TCP, TLS by a configuration of ours, HTTP/2.
//!
//! A channel made here dials again by itself when the connection breaks; its owner replaces it as a whole when
//! credentials or hub change.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// How long TCP and TLS may take together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 windows: an agent receives little; what it has not read must not fill its memory.
const WINDOW_BYTES: u32 = 256 * 1024;

/// Why a hub cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connect to hub \"{address}\": expected HOST:PORT")]
    Address { address: String },
    #[error("connect to hub {address}")]
    Connect {
        address: String,
        #[source]
        source: tonic::transport::Error,
    },
}

/// HOST:PORT of an address as people write it, with or without `https://` and a slash at the end.
///
/// # Errors
/// [`Error::Address`].
pub fn address(text: &str) -> Result<String, Error> {
    let wrong = || Error::Address { address: text.to_owned() };
    let bare = text.strip_prefix("https://").unwrap_or(text);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    let (host, port) = bare.rsplit_once(':').ok_or_else(wrong)?;
    let bad_host = host.is_empty() || host.contains(['/', '@', '?', '#']);
    if bad_host || port.parse::<u16>().is_err() { Err(wrong()) } else { Ok(bare.to_owned()) }
}

/// Connects, and returns once TLS is done.
///
/// # Errors
/// What the network or TLS report.
pub async fn connect(address: &str, tls: Arc<ClientConfig>) -> Result<Channel, Error> {
    let wrong = || Error::Address { address: address.to_owned() };
    let (host, _) = address.rsplit_once(':').ok_or_else(wrong)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(bare).map_err(|_| wrong())?;
    let dial = {
        let address = address.to_owned();
        move |_: http::Uri| {
            let (address, name, tls) = (address.clone(), name.clone(), tls.clone());
            async move {
                let connect = async {
                    let tcp = TcpStream::connect(&address).await?;
                    tcp.set_nodelay(true)?;
                    TlsConnector::from(tls).connect(name, tcp).await
                };
                let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect).await;
                connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(TokioIo::new)
            }
        }
    };
    // The scheme says that tonic adds no TLS of its own: the connector does it.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|source| Error::Connect { address: address.to_owned(), source })?
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(4 * WINDOW_BYTES);
    endpoint
        .connect_with_connector(tower::service_fn(dial))
        .await
        .map_err(|source| Error::Connect { address: address.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port_however_it_is_written() {
        for text in ["https://hub.example:7443/", "hub.example:7443", "https://hub.example:7443"] {
            assert_eq!(address(text).unwrap(), "hub.example:7443", "{text}");
        }
        assert_eq!(address("[::1]:7443").unwrap(), "[::1]:7443");
        for text in ["", "hub", "hub:", ":1", "http://hub:1/", "user@hub:1", "hub:70000", "https://hub:1/path"] {
            assert!(address(text).is_err(), "{text}");
        }
    }
}
