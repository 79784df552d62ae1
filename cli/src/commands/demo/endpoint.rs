//! A real S3 endpoint over loopback, in this process, for the demo: the protocol and its signatures are a library's, the
//! objects are files in a folder ([`Bucket`]).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::bucket::Bucket;

/// After a failed accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An endpoint that serves until it is stopped.
pub(super) struct Endpoint {
    root: PathBuf,
    address: SocketAddr,
    access_key: String,
    secret_key: String,
    stop: CancellationToken,
    serving: JoinSet<()>,
}

impl Endpoint {
    /// Serves `root`, which it makes, with one bucket.
    pub(super) async fn start(root: &Path, bucket: &str) -> Result<Self> {
        let bucket = Bucket::new(root, bucket).with_context(|| format!("making {}", root.display()))?;
        let (access_key, secret_key) = (random_text(), random_text());
        let mut service = S3ServiceBuilder::new(bucket);
        service.set_auth(SimpleAuth::from_single(access_key.as_str(), secret_key.as_str()));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.context("finding a port for the S3 endpoint")?;
        let address = listener.local_addr().context("finding a port for the S3 endpoint")?;
        let stop = CancellationToken::new();
        let mut serving = JoinSet::new();
        let ended = stop.clone();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    () = ended.cancelled() => break,
                    accepted = listener.accept() => match accepted {
                        Ok((socket, _)) => {
                            let service = service.clone();
                            connections.spawn(async move {
                                let server = Builder::new(TokioExecutor::new());
                                // How a connection ends is its client's to say.
                                let _ = server.serve_connection(TokioIo::new(socket), service).await;
                            });
                        }
                        Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
            connections.shutdown().await;
        });
        Ok(Self { root: root.to_owned(), address, access_key, secret_key, stop, serving })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The access key and the secret key that it wants.
    pub(super) fn keys(&self) -> (&str, &str) {
        (&self.access_key, &self.secret_key)
    }

    /// The folder that holds the objects under `s3://BUCKET/PREFIX`.
    pub(super) fn folder(&self, uri: &str) -> Result<PathBuf> {
        let key = uri.strip_prefix("s3://").with_context(|| format!("{uri} is no S3 address"))?;
        Ok(self.root.join(key))
    }

    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        while self.serving.join_next().await.is_some() {}
    }
}

fn random_text() -> String {
    format!("{:032x}", rand::random::<u128>())
}
