//! Three etcd members as processes, with TLS between them and to clients, and its defaults otherwise: fsync as it comes.

use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use fluvial_tests::connection::{Call, Connection, Protocol, client_tls};
use fluvial_tests::federation::DEADLINE;
use fluvial_tests::wait::wait_for_async;
use http::Method;
use rustls::ClientConfig;
use serde_json::Value;

use crate::programs;
use crate::side::{Api, Side};

const MEMBERS: usize = 3;

/// Three members that run. Killed, and their data removed, on drop.
pub(crate) struct Etcd {
    members: fluvial_tests::etcd::Etcd,
    tls: Arc<ClientConfig>,
}

impl Etcd {
    /// Starts them and waits until they have a leader.
    pub(crate) async fn start() -> Result<Self> {
        programs::peer("etcd")?;
        let members = fluvial_tests::etcd::Etcd::start(MEMBERS, true);
        let read = |name: &str| std::fs::read(members.file(name));
        let tls = Arc::new(client_tls(&read("ca.pem")?, &read("cert.pem")?, &read("key.pem")?)?);
        let etcd = Self { members, tls };
        etcd.leader().await;
        Ok(etcd)
    }

    /// Starts a member again.
    pub(crate) fn run(&mut self, member: usize) {
        self.members.run(member);
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, member: usize) {
        self.members.kill(member);
    }

    /// Who leads, once every member that runs agrees with itself and answers a linearizable read.
    pub(crate) async fn leader(&self) -> usize {
        wait_for_async(DEADLINE, "etcd to have a leader", async || {
            let mut leader = None;
            for member in self.members.running() {
                if self.leads(member).await.map_err(|error| format!("{error:#}"))? {
                    leader = Some(member);
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
        self.members.address(member)
    }

    /// The side of the comparison, by either of its protocols.
    pub(crate) async fn side(&self, api: Api) -> Side {
        let leader = self.leader().await;
        let addresses = (0..MEMBERS).map(|n| self.address((leader + n) % MEMBERS)).collect();
        Side { api, addresses, tls: self.tls.clone() }
    }

    /// The version, for the note.
    pub(crate) fn version(&self) -> Result<String> {
        Ok(self.members.version())
    }
}
