//! Three etcd members as processes, with TLS between them and to clients, and its defaults otherwise: fsync as it comes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use fluvial_tests::bed::free_port;
use fluvial_tests::federation::{DEADLINE, Process};
use fluvial_tests::wait::wait_for_async;
use http::Method;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::ClientConfig;
use serde_json::Value;
use tempfile::TempDir;

use crate::programs;
use crate::side::{Api, Side};
use fluvial_tests::connection::{Call, Connection, Protocol, client_tls};

const MEMBERS: usize = 3;

/// Three members that run. Killed, and their data removed, on drop.
pub(crate) struct Etcd {
    program: PathBuf,
    members: BTreeMap<usize, Process>,
    clients: Vec<u16>,
    peers: Vec<u16>,
    tls: Arc<ClientConfig>,
    folder: TempDir,
}

/// Writes `ca.pem`, `cert.pem` and `key.pem`: one certificate that servers, peers and the client show.
fn make_certificates(folder: &Path) -> Result<()> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let mut leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let leaf = leaf.signed_by(&key, &authority)?;
    for (name, text) in [("ca.pem", authority.pem()), ("cert.pem", leaf.pem()), ("key.pem", key.serialize_pem())] {
        std::fs::write(folder.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    Ok(())
}

impl Etcd {
    /// Starts them and waits until they have a leader.
    pub(crate) async fn start() -> Result<Self> {
        let program = programs::peer("etcd")?;
        let folder = tempfile::Builder::new().prefix("bench-etcd-").tempdir()?;
        make_certificates(folder.path())?;
        let read = |name: &str| std::fs::read(folder.path().join(name));
        let tls = Arc::new(client_tls(&read("ca.pem")?, &read("cert.pem")?, &read("key.pem")?)?);
        let ports = || (0..MEMBERS).map(|_| free_port()).collect();
        let (clients, peers) = (ports(), ports());
        let mut etcd = Self { program, members: BTreeMap::new(), clients, peers, tls, folder };
        for member in 0..MEMBERS {
            etcd.run(member);
        }
        etcd.leader().await;
        Ok(etcd)
    }

    /// Starts a member, for the first time or again.
    pub(crate) fn run(&mut self, member: usize) {
        let folder = self.folder.path();
        let url = |port: &u16| format!("https://127.0.0.1:{port}");
        let (client, peer) = (url(&self.clients[member]), url(&self.peers[member]));
        let cluster: Vec<_> = self.peers.iter().enumerate().map(|(n, port)| format!("m{n}={}", url(port))).collect();
        let mut command = Command::new(&self.program);
        command.env_clear();
        command.args(["--name", &format!("m{member}"), "--logger", "zap", "--log-level", "error"]);
        command.arg("--data-dir").arg(folder.join(format!("m{member}")));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"]);
        command.args(["--client-cert-auth", "--peer-client-cert-auth"]);
        for of in ["", "peer-"] {
            for (flag, file) in [("cert-file", "cert.pem"), ("key-file", "key.pem"), ("trusted-ca-file", "ca.pem")] {
                command.arg(format!("--{of}{flag}")).arg(folder.join(file));
            }
        }
        self.members.insert(member, Process::start(&mut command, &folder.join(format!("m{member}.log"))));
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, member: usize) {
        if let Some(process) = self.members.remove(&member) {
            process.kill();
        }
    }

    /// Who leads, once every member that runs agrees with itself and answers a linearizable read.
    pub(crate) async fn leader(&self) -> usize {
        wait_for_async(DEADLINE, "etcd to have a leader", async || {
            let mut leader = None;
            for member in self.members.keys() {
                if self.leads(*member).await.map_err(|error| format!("{error:#}"))? {
                    leader = Some(*member);
                }
            }
            leader.ok_or_else(|| "nobody leads".to_owned())
        })
        .await
    }

    async fn leads(&self, member: usize) -> Result<bool> {
        let mut connection = Connection::open(&self.address(member), &self.tls, Protocol::Http1).await?;
        let path = "/v3/maintenance/status".to_owned();
        let body = Bytes::from_static(b"{}");
        let call = Call { method: Method::POST, path, content_type: "application/json", body };
        let status: Value = serde_json::from_slice(&connection.succeed(call).await?)?;
        connection.succeed(Api::EtcdJson.read("none")).await?;
        Ok(status["leader"] == status["header"]["member_id"])
    }

    /// HOST:PORT of a member.
    pub(crate) fn address(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.clients[member])
    }

    /// The side of the comparison, by either of its protocols.
    pub(crate) async fn side(&self, api: Api) -> Side {
        let leader = self.leader().await;
        let addresses = (0..MEMBERS).map(|n| self.address((leader + n) % MEMBERS)).collect();
        Side { api, addresses, tls: self.tls.clone() }
    }

    /// The version, for the note.
    pub(crate) fn version(&self) -> Result<String> {
        let output = Command::new(&self.program).arg("--version").output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().next().unwrap_or_default().replace("etcd Version: ", ""))
    }
}
