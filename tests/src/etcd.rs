//! A real etcd for one test or benchmark: so many members as processes, with its defaults: fsync as it comes.
//!
//! Invariants: killed, and its data removed, on drop. With TLS, members and clients show certificates to each other,
//! and one certificate serves all of them; its name is a user of its own ([`USER`]) for an etcd that asks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;

use crate::bed::{bed_bin, free_port};
use crate::federation::{DEADLINE, Process, said};
use crate::wait::wait_for;

/// The name in the certificate of `cert.pem`.
pub const USER: &str = "bed";

/// Members that run.
#[derive(Debug)]
pub struct Etcd {
    program: PathBuf,
    members: BTreeMap<usize, Process>,
    clients: Vec<u16>,
    peers: Vec<u16>,
    tls: bool,
    folder: TempDir,
}

/// Writes `ca.pem`, `cert.pem` and `key.pem`: one certificate that servers, peers and the client show.
fn make_certificates(folder: &Path) {
    let mut authority = CertificateParams::new(Vec::new()).expect("no names");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = || KeyPair::generate().expect("a key can be made");
    let authority = CertifiedIssuer::self_signed(authority, key()).expect("an authority can be made");
    let mut leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a usual name");
    leaf.distinguished_name.push(DnType::CommonName, USER);
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let own = key();
    let leaf = leaf.signed_by(&own, &authority).expect("a certificate can be made");
    for (name, text) in [("ca.pem", authority.pem()), ("cert.pem", leaf.pem()), ("key.pem", own.serialize_pem())] {
        std::fs::write(folder.join(name), text).expect("a temporary file can be written");
    }
}

impl Etcd {
    /// Starts them; [`Etcd::wait`] waits until they answer.
    pub fn start(members: usize, tls: bool) -> Self {
        let folder = tempfile::Builder::new().prefix("etcd-").tempdir().expect("a temporary folder can be made");
        if tls {
            make_certificates(folder.path());
        }
        let ports = || (0..members).map(|_| free_port()).collect();
        let (clients, peers) = (ports(), ports());
        let mut etcd = Self { program: bed_bin("etcd"), members: BTreeMap::new(), clients, peers, tls, folder };
        for member in 0..members {
            etcd.run(member);
        }
        etcd
    }

    /// Starts a member, for the first time or again.
    pub fn run(&mut self, member: usize) {
        let folder = self.folder.path();
        let url = |port: &u16| format!("{}://127.0.0.1:{port}", if self.tls { "https" } else { "http" });
        let (client, peer) = (url(&self.clients[member]), url(&self.peers[member]));
        let cluster: Vec<_> = self.peers.iter().enumerate().map(|(n, port)| format!("m{n}={}", url(port))).collect();
        let mut command = Command::new(&self.program);
        command.env_clear();
        command.args(["--name", &format!("m{member}"), "--logger", "zap", "--log-level", "error"]);
        command.arg("--data-dir").arg(folder.join(format!("m{member}")));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"]);
        if self.tls {
            command.args(["--client-cert-auth", "--peer-client-cert-auth"]);
            for of in ["", "peer-"] {
                let files = [("cert-file", "cert.pem"), ("key-file", "key.pem"), ("trusted-ca-file", "ca.pem")];
                for (flag, file) in files {
                    command.arg(format!("--{of}{flag}")).arg(folder.join(file));
                }
            }
        }
        self.members.insert(member, Process::start(&mut command, &folder.join(format!("m{member}.log"))));
    }

    /// SIGKILL.
    pub fn kill(&mut self, member: usize) {
        if let Some(process) = self.members.remove(&member) {
            process.kill();
        }
    }

    /// Removes what a member that was killed has kept.
    pub fn wipe(&self, member: usize) {
        std::fs::remove_dir_all(self.file(&format!("m{member}"))).expect("its folder can be removed");
    }

    /// The members that run.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        self.members.keys().copied()
    }

    /// The process of a member that runs.
    pub fn process(&self, member: usize) -> u32 {
        self.members[&member].id()
    }

    /// Waits until the members that run answer linearizable reads.
    #[track_caller]
    pub fn wait(&self) {
        let (scheme, program) = (if self.tls { "https" } else { "http" }, bed_bin("etcdctl"));
        wait_for(DEADLINE, "etcd to answer", || {
            self.running().try_for_each(|member| {
                let mut command = Command::new(&program);
                command.args(["--endpoints", &format!("{scheme}://{}", self.address(member)), "endpoint", "health"]);
                said(self.secured(&mut command).output().expect("etcdctl can be started")).map(|_| ())
            })
        });
    }

    /// Runs `etcdctl` against all members.
    ///
    /// # Errors
    /// With what it says.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(bed_bin("etcdctl"));
        command.args(["--endpoints", &self.endpoints().join(",")]).args(arguments);
        said(self.secured(&mut command).output().expect("etcdctl can be started"))
    }

    fn secured<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if self.tls {
            for (flag, file) in [("--cacert", "ca.pem"), ("--cert", "cert.pem"), ("--key", "key.pem")] {
                command.arg(flag).arg(self.file(file));
            }
        }
        command
    }

    /// HOST:PORT of a member.
    pub fn address(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.clients[member])
    }

    /// The URL of each member.
    pub fn endpoints(&self) -> Vec<String> {
        let scheme = if self.tls { "https" } else { "http" };
        (0..self.clients.len()).map(|member| format!("{scheme}://{}", self.address(member))).collect()
    }

    /// A file of this etcd, such as `ca.pem`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The version, as it says.
    pub fn version(&self) -> String {
        let output = Command::new(&self.program).arg("--version").output().expect("etcd can be started");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().next().unwrap_or_default().replace("etcd Version: ", "")
    }
}
