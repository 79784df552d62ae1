//! Hubs as processes, made as their users make them: `hub init`, `hub join`, `hub run`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use fluvial_tests::bed::free_port;
use fluvial_tests::connection::{Call, Connection, Protocol, kubeconfig_tls};
use fluvial_tests::federation::{DEADLINE, Process, said};
use fluvial_tests::wait::wait_for_async;
use http::Method;
use rustls::ClientConfig;
use serde_json::Value;
use tempfile::TempDir;

use crate::side::{Api, Side};

/// Hubs that run. Killed, and their data removed, on drop.
pub(crate) struct Hubs {
    program: PathBuf,
    hubs: BTreeMap<usize, Process>,
    addresses: Vec<String>,
    tls: Arc<ClientConfig>,
    folder: TempDir,
}

impl Hubs {
    /// Makes and starts so many, and waits until all of them vote.
    pub(crate) async fn start(program: PathBuf, count: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bench-hubs-").tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig");
        let addresses: Vec<_> = (0..count).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let fluvial = |arguments: &[&str], dir: Option<usize>| {
            let mut command = Command::new(&program);
            command.arg("--kubeconfig").arg(&kubeconfig).args(arguments);
            if let Some(hub) = dir {
                command.args(["--listen", &addresses[hub], "--data-dir"]).arg(folder.path().join(format!("hub-{hub}")));
            }
            let said = said(command.output().context("starting fluvial")?);
            said.map_err(|error| anyhow::anyhow!("`fluvial {}` failed: {error}", arguments[..2].join(" ")))
        };
        let mut init = Command::new(&program);
        init.args(["hub", "init", "--listen", &addresses[0], "--data-dir"]).arg(folder.path().join("hub-0"));
        let made = said(init.arg("--kubeconfig").arg(&kubeconfig).output().context("starting fluvial")?);
        made.map_err(|error| anyhow::anyhow!("`fluvial hub init` failed: {error}"))?;
        let tls = Arc::new(kubeconfig_tls(&kubeconfig)?);
        let mut processes = BTreeMap::from([(0, start_hub(&program, folder.path(), 0))]);
        let url = format!("https://{}", addresses[0]);
        hubs(&addresses[0], &tls, 1).await;
        for hub in 1..count {
            let line = fluvial(&["token", "create", "--hub"], None)?;
            let token = line.split_whitespace().skip_while(|word| *word != "--token").nth(1);
            let token = token.with_context(|| format!("no token in {line:?}"))?;
            fluvial(&["hub", "join", "--hub", &url, "--token", token], Some(hub))?;
            processes.insert(hub, start_hub(&program, folder.path(), hub));
            hubs(&addresses[0], &tls, hub + 1).await;
        }
        let hubs = Self { program, hubs: processes, addresses, tls, folder };
        hubs.leader().await;
        Ok(hubs)
    }

    /// Starts a hub again.
    pub(crate) fn run(&mut self, hub: usize) {
        self.hubs.insert(hub, start_hub(&self.program, self.folder.path(), hub));
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, hub: usize) {
        if let Some(process) = self.hubs.remove(&hub) {
            process.kill();
        }
    }

    /// Who leads, once every hub that runs answers.
    pub(crate) async fn leader(&self) -> usize {
        let mut leader = String::new();
        for hub in self.hubs.keys() {
            leader = hubs(&self.addresses[*hub], &self.tls, self.addresses.len()).await;
        }
        self.addresses.iter().position(|address| *address == leader).unwrap_or_default()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.addresses.len()
    }

    /// The number of a hub's process, if it runs.
    pub(crate) fn process(&self, hub: usize) -> Option<u32> {
        self.hubs.get(&hub).map(Process::id)
    }

    /// Where a hub keeps everything.
    pub(crate) fn data_dir(&self, hub: usize) -> PathBuf {
        self.folder.path().join(format!("hub-{hub}"))
    }

    /// What a hub has logged.
    pub(crate) fn log(&self, hub: usize) -> String {
        std::fs::read_to_string(self.folder.path().join(format!("hub-{hub}.log"))).unwrap_or_default()
    }

    /// HOST:PORT of a hub.
    pub(crate) fn address(&self, hub: usize) -> String {
        self.addresses[hub].clone()
    }

    /// The side of the comparison.
    pub(crate) async fn side(&self) -> Side {
        let leader = self.leader().await;
        let addresses = (0..self.count()).map(|n| self.address((leader + n) % self.count())).collect();
        Side { api: Api::Fluvial, addresses, tls: self.tls.clone() }
    }
}

fn start_hub(program: &Path, folder: &Path, hub: usize) -> Process {
    let mut command = Command::new(program);
    command.args(["hub", "run", "--data-dir"]).arg(folder.join(format!("hub-{hub}")));
    // Who leads is counted in the log.
    command.env("RUST_LOG", "warn,fluvial_hub::planner=info");
    Process::start(&mut command, &folder.join(format!("hub-{hub}.log")))
}

/// The leader's address, once this hub answers linearizable reads and so many vote.
async fn hubs(address: &str, tls: &ClientConfig, voters: usize) -> String {
    let ask = async || {
        let mut connection = Connection::open(address, tls, Protocol::Http1).await?;
        let mut get = async |path: &str| {
            let call = Call { method: Method::GET, path: path.into(), content_type: "", body: Bytes::new() };
            connection.succeed(call).await
        };
        get("/api/v1/namespaces/default").await?;
        let list: Value = serde_json::from_slice(&get("/apis/fluvial.io/v1alpha1/hubs").await?)?;
        let hubs = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let voting = hubs.iter().filter(|hub| hub["role"] == "voter").count();
        anyhow::ensure!(voting == voters, "{voting} of {voters} vote");
        let leader = hubs.iter().find(|hub| hub["leader"] == true).context("nobody leads")?;
        Ok(leader["address"].as_str().unwrap_or_default().to_owned())
    };
    wait_for_async(DEADLINE, &format!("{voters} hubs to vote"), async || {
        ask().await.map_err(|error: anyhow::Error| format!("{error:#}"))
    })
    .await
}
