//! The HTTP client of benchmarks and of clients that are watched: a connection over TLS that is kept, HTTP/1.1 for JSON and
//! HTTP/2 for gRPC.
//!
//! A simulated client is one connection with one request at a time, so "64 clients" is the same thing on both sides.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, TE};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longer than any election: what takes longer has failed.
pub const CALL_LIMIT: Duration = Duration::from_secs(20);

/// Which HTTP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// A request to either side.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub content_type: &'static str,
    pub body: Bytes,
}

/// What it answered.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub body: Bytes,
    /// The `grpc-status` of a gRPC call.
    pub grpc: Option<String>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// One kept connection.
pub struct Connection {
    sender: Sender,
    address: String,
    /// Drives the connection; aborted on drop.
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A client's TLS: trusts these authorities, shows this certificate.
pub fn client_tls(roots: &[u8], chain: &[u8], key: &[u8]) -> Result<ClientConfig> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots) {
        store.add(root.context("reading the authority")?)?;
    }
    let chain =
        CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().context("reading the certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key).context("reading the key")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(store).with_client_auth_cert(chain, key)?)
}

/// The TLS of a kubeconfig's user.
pub fn kubeconfig_tls(kubeconfig: &Path) -> Result<ClientConfig> {
    let config: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(kubeconfig)?)?;
    let data = |pointer: &str| {
        let text = config.pointer(pointer).and_then(Value::as_str);
        Ok::<_, anyhow::Error>(STANDARD.decode(text.with_context(|| format!("a kubeconfig without {pointer}"))?)?)
    };
    client_tls(
        &data("/clusters/0/cluster/certificate-authority-data")?,
        &data("/users/0/user/client-certificate-data")?,
        &data("/users/0/user/client-key-data")?,
    )
}

impl Connection {
    /// Opens one to `IP:PORT`.
    pub async fn open(address: &str, tls: &ClientConfig, protocol: Protocol) -> Result<Self> {
        timeout(CALL_LIMIT, Self::open_now(address, tls, protocol))
            .await
            .with_context(|| format!("{address} accepted no connection within {CALL_LIMIT:?}"))?
            .with_context(|| format!("connecting to {address}"))
    }

    async fn open_now(address: &str, tls: &ClientConfig, protocol: Protocol) -> Result<Self> {
        let (host, _) = address.rsplit_once(':').context("an address has a port")?;
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let mut tls = tls.clone();
        let alpn: &[u8] = if protocol == Protocol::Http1 { b"http/1.1" } else { b"h2" };
        tls.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::try_from(host.to_owned())?;
        let io = TokioIo::new(TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?);
        // How a connection ends is seen by the call that is under way.
        let (sender, driver) = match protocol {
            Protocol::Http1 => {
                let (sender, driver) = http1::handshake(io).await?;
                (Sender::Http1(sender), tokio::spawn(async move { drop(driver.await) }))
            }
            Protocol::Http2 => {
                let (sender, driver) = http2::handshake(TokioExecutor::new(), io).await?;
                (Sender::Http2(sender), tokio::spawn(async move { drop(driver.await) }))
            }
        };
        Ok(Self { sender, address: address.to_owned(), driver })
    }

    /// Sends a call and returns the answer's head; the body can be read bit by bit.
    pub async fn begin(&mut self, call: Call) -> Result<http::Response<Incoming>> {
        let request = Request::builder().method(call.method).header(CONTENT_TYPE, call.content_type);
        let sent = match &mut self.sender {
            Sender::Http1(sender) => {
                let request = request.uri(call.path).header(HOST, &self.address).body(Full::new(call.body))?;
                sender.ready().await?;
                timeout(CALL_LIMIT, sender.send_request(request)).await
            }
            Sender::Http2(sender) => {
                let uri = format!("https://{}{}", self.address, call.path);
                let request = request.uri(uri).header(TE, "trailers").body(Full::new(call.body))?;
                sender.ready().await?;
                timeout(CALL_LIMIT, sender.send_request(request)).await
            }
        };
        Ok(sent.with_context(|| format!("{} did not answer within {CALL_LIMIT:?}", self.address))??)
    }

    /// Sends a call and reads the whole answer.
    pub async fn call(&mut self, call: Call) -> Result<Reply> {
        let (head, body) = self.begin(call).await?.into_parts();
        let body = timeout(CALL_LIMIT, body.collect()).await.context("the answer did not end")??;
        let trailers = body.trailers().unwrap_or(&head.headers);
        let grpc = trailers.get("grpc-status").and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(Reply { status: head.status, body: body.to_bytes(), grpc })
    }

    /// The same, if it succeeds.
    pub async fn succeed(&mut self, call: Call) -> Result<Bytes> {
        let what = format!("{} {}", call.method, call.path);
        let reply = self.call(call).await?;
        let body = String::from_utf8_lossy(&reply.body[..reply.body.len().min(400)]);
        ensure!(reply.status.is_success(), "{what} was answered with {}: {body}", reply.status);
        ensure!(reply.grpc.as_deref().is_none_or(|code| code == "0"), "{what} was answered with gRPC {:?}", reply.grpc);
        Ok(reply.body)
    }
}
