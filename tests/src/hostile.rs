//! What the tests of hostile callers share: what a process has in memory and open, an honest caller beside the hostile ones,
//! connections on which anything can be written, and frames of HTTP/2 made by hand (RFC 9113).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::Method;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::connection::{Call, Connection, Protocol};

/// Bytes of a process in memory.
#[must_use]
pub fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a process has memory");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number of KiB");
    kib * 1024
}

/// How many files and sockets a process has open.
#[must_use]
pub fn open_files(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).expect("the process runs").count()
}

/// An address of this machine that is not the honest caller's: `number` counts from 0.
#[must_use]
pub fn source(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1 + number))
}

/// Connects to `HOST:PORT` from `source`.
///
/// # Errors
/// If the system or the hub refuses.
pub async fn connect_from(source: IpAddr, address: &str) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(source, 0))?;
    Ok(socket.connect(address.parse()?).await?)
}

/// TLS from `source`, for a protocol.
///
/// # Errors
/// If the hub refuses.
pub async fn tls_from(
    source: IpAddr,
    address: &str,
    tls: &ClientConfig,
    protocol: Protocol,
) -> Result<TlsStream<TcpStream>> {
    let tcp = connect_from(source, address).await?;
    let (host, _) = address.rsplit_once(':').context("an address has a port")?;
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![if protocol == Protocol::Http1 { b"http/1.1".to_vec() } else { b"h2".to_vec() }];
    let name = ServerName::try_from(host.to_owned())?;
    Ok(TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?)
}

/// An honest caller: connects anew and reads an object, again and again.
pub struct Neighbour {
    stop: oneshot::Sender<()>,
    running: JoinHandle<Vec<Result<Duration>>>,
}

impl Neighbour {
    /// Starts calling the hub at `HOST:PORT`.
    #[must_use]
    pub fn start(address: &str, kubeconfig: &Path) -> Self {
        const EVERY: Duration = Duration::from_millis(100);
        let tls = crate::connection::kubeconfig_tls(kubeconfig).expect("the kubeconfig can be used");
        let address = address.to_owned();
        let (stop, mut stopped) = oneshot::channel();
        let running = tokio::spawn(async move {
            let mut calls = Vec::new();
            while stopped.try_recv().is_err() {
                let began = Instant::now();
                calls.push(honest(&address, &tls).await.map(|()| began.elapsed()));
                tokio::time::sleep(EVERY).await;
            }
            calls
        });
        Self { stop, running }
    }

    /// Ends it. Every call must have succeeded, each within `limit`; returns the slowest and how many there were.
    ///
    /// # Errors
    /// The first call that failed or took longer.
    pub async fn stop(self, limit: Duration) -> Result<(Duration, usize)> {
        // It may have ended by itself, and then says why.
        let _ = self.stop.send(());
        let calls = self.running.await?;
        let (count, mut slowest) = (calls.len(), Duration::ZERO);
        for call in calls {
            slowest = slowest.max(call.context("an honest caller was refused")?);
        }
        anyhow::ensure!(slowest <= limit, "an honest caller waited {slowest:?}, {limit:?} is the limit");
        anyhow::ensure!(count > 0, "the honest caller never called");
        Ok((slowest, count))
    }
}

async fn honest(address: &str, tls: &ClientConfig) -> Result<()> {
    let mut connection = Connection::open(address, tls, Protocol::Http2).await?;
    connection.succeed(get("/api/v1/namespaces/default")).await.map(drop)
}

/// A call that reads.
#[must_use]
pub fn get(path: &str) -> Call {
    Call { method: Method::GET, path: path.to_owned(), content_type: "application/json", body: Bytes::new() }
}

/// What an HTTP/2 client says first: preface and empty settings.
pub const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Types of frames.
pub mod kind {
    pub const HEADERS: u8 = 1;
    pub const RESET: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of a HEADERS frame.
pub mod flag {
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
}

/// A frame.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The headers of `GET /version`, in HPACK without a table or Huffman codes (RFC 7541).
#[must_use]
pub fn get_version() -> Vec<u8> {
    // Indexed: GET, https. Literal names by index: :path (4) and :authority (1).
    let mut block = vec![0x82, 0x87];
    for (index, value) in [(4_u8, "/version"), (1, "hub")] {
        block.extend([index, u8::try_from(value.len()).expect("a short value")]);
        block.extend(value.as_bytes());
    }
    block
}

/// A header of so many bytes, never indexed, in HPACK.
#[must_use]
pub fn padding(bytes: usize) -> Vec<u8> {
    let mut block = vec![0x10, 1, b'x', 0x7f];
    // An integer of more than seven bits: what exceeds 127, seven bits at a time.
    let mut rest = bytes - 127;
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).expect("seven bits") | 0x80);
        rest /= 128;
    }
    block.push(u8::try_from(rest).expect("seven bits"));
    block.resize(block.len() + bytes, b'a');
    block
}
