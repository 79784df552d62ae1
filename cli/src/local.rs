//! A whole federation in this process, from one folder: hubs and host members, the same code as when each runs alone.
//!
//! ```text
//! DATA_DIR/hub-1 … hub-N      one data directory a hub; the first listens where it was told, the others where there was room
//! DATA_DIR/members/NAME       one data directory an agent
//! DATA_DIR/kubeconfig         the administrator's, for `fluvial` and `kubectl`
//! ```
//! Each start takes up what the folder holds and makes what is missing, so one that was cut off is simply repeated.
//! Newcomers join as they would over a network: by a token from the API.
//! Invariant: a folder never shrinks by itself; asking for fewer hubs than it holds is refused.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use fluvial_certs::TrustDomain;
use fluvial_hub::run::Failure;
use fluvial_hub::run::home::Home;
use fluvial_hub::run::{self, Hub, HubConfig, InitOptions, JoinOptions, RunningHub};
use fluvial_member_agent::{Agent, AgentConfig, JoinConfig, RunningAgent, UplinkState};
use fluvial_model::kinds::{Cluster, ClusterState};
use fluvial_model::names::NameRule;
use kube::Client;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{client, objects};

/// How long all hubs together may take until they answer: replay, an election and some.
const HUBS_READY: Duration = Duration::from_secs(60);
/// How long a member may take to reach a hub.
const MEMBER_READY: Duration = Duration::from_secs(30);
/// How long hubs that have joined may take to become voters.
const VOTERS_READY: Duration = Duration::from_secs(60);
/// More hubs would only make each write slower.
const MAX_HUBS: usize = 7;
/// Where the first hub of a new folder listens if nothing is said.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7461);
/// Tokens of this process are used at once.
const TOKEN_SECONDS: u64 = 60;

/// What is asked for; what is not said stays as the folder has it.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    pub data_dir: PathBuf,
    pub hubs: Option<usize>,
    pub members: Option<Vec<String>>,
    pub listen: Option<SocketAddr>,
}

/// Hubs and members that run.
pub(crate) struct Federation {
    data_dir: PathBuf,
    hubs: Vec<RunningHub>,
    members: BTreeMap<String, RunningAgent>,
    client: Client,
}

impl Federation {
    /// Starts what the folder holds, makes what is missing, and returns once every hub and every member answers.
    ///
    /// # Errors
    /// With the part that did not come up; everything else is stopped.
    pub(crate) async fn start(wish: Wish) -> Result<Self> {
        let Wish { data_dir, hubs, members, listen } = wish;
        let names = members.unwrap_or_else(|| member_names(&data_dir));
        check_names(&names)?;
        let mut federation = Self::start_hubs(data_dir, hubs, listen).await?;
        for name in names {
            if let Err(error) = federation.add_member(&name).await {
                federation.shutdown().await;
                return Err(error);
            }
        }
        Ok(federation)
    }

    /// The hubs alone.
    ///
    /// # Errors
    /// As of [`Federation::start`].
    pub(crate) async fn start_hubs(
        data_dir: PathBuf,
        count: Option<usize>,
        listen: Option<SocketAddr>,
    ) -> Result<Self> {
        let data_dir = std::path::absolute(&data_dir).with_context(|| format!("finding {}", data_dir.display()))?;
        let there = hub_count(&data_dir);
        let wanted = count.unwrap_or(there.max(1));
        ensure!((1..=MAX_HUBS).contains(&wanted), "--hubs {wanted}: must be 1 to {MAX_HUBS}, best 1 or 3");
        ensure!(
            wanted >= there,
            "--hubs {wanted}: {} holds {there} hubs, and each has a vote: ask for at least {there}",
            data_dir.display()
        );
        let mut listener = None;
        if there == 0 {
            listener = Some(make_first(&data_dir, listen.unwrap_or(DEFAULT_LISTEN)).await?);
        } else if let Some(listen) = listen {
            let record = Home::new(&hub_dir(&data_dir, 1)).record()?;
            ensure!(
                record.listen == listen,
                "--listen {listen}: the hub in {} was made for {}: ask for that",
                data_dir.display(),
                record.listen
            );
        }
        let mut hubs = Vec::new();
        for number in 1..=there.max(1) {
            let mut config = HubConfig::new(hub_dir(&data_dir, number));
            config.listener = listener.take();
            match Hub::start(config).await {
                Ok(hub) => hubs.push(hub),
                Err(error) => {
                    stop(hubs).await;
                    return Err(error).with_context(|| format!("starting hub {number}"));
                }
            }
        }
        match Self::complete(&data_dir, &mut hubs, wanted).await {
            Ok(client) => Ok(Self { data_dir, hubs, members: BTreeMap::new(), client }),
            Err(error) => {
                stop(hubs).await;
                Err(error)
            }
        }
    }

    /// Waits for the hubs that run, and lets in those that are missing.
    async fn complete(data_dir: &Path, hubs: &mut Vec<RunningHub>, wanted: usize) -> Result<Client> {
        ready(hubs).await?;
        let url = url(hubs);
        let kubeconfig = data_dir.join("kubeconfig");
        if !kubeconfig.exists() {
            client::write_private(&kubeconfig, &run::admin_kubeconfig(&hub_dir(data_dir, 1), &url)?)?;
        }
        let client = client::connect(Some(kubeconfig)).await?;
        for number in hubs.len() + 1..=wanted {
            let listener = TcpListener::bind((hubs_ip(hubs), 0)).await.context("finding a port for a hub")?;
            let options = JoinOptions {
                hub_url: url.clone(),
                token: token(&client, &json!({ "hub": true, "ttlSeconds": TOKEN_SECONDS })).await?,
                data_dir: hub_dir(data_dir, number),
                listen: listener.local_addr().context("finding a port for a hub")?,
                advertise: None,
                etcd: None,
            };
            run::join(options).await.with_context(|| format!("letting hub {number} join"))?;
            let mut config = HubConfig::new(hub_dir(data_dir, number));
            config.listener = Some(listener);
            hubs.push(Hub::start(config).await.with_context(|| format!("starting hub {number}"))?);
        }
        ready(hubs).await?;
        voters(hubs).await?;
        Ok(client)
    }

    /// Waits until a hub has stopped because of its disk or its data.
    pub(crate) async fn failed(&self) -> Failure {
        let hubs = self.hubs.iter().map(|hub| Box::pin(hub.failed()));
        futures::future::select_all(hubs).await.0
    }

    /// Starts the member `name`, which joins first if the folder does not hold it yet.
    ///
    /// A cluster that was removed from the hub stays removed: this says so and does not run it.
    ///
    /// # Errors
    /// If it cannot join, start or reach a hub in time.
    pub(crate) async fn add_member(&mut self, name: &str) -> Result<()> {
        let data_dir = member_dir(&self.data_dir, name);
        if !data_dir.join("agent.json").exists() {
            let token = token(&self.client, &json!({ "cluster": name, "ttlSeconds": TOKEN_SECONDS })).await?;
            let join = JoinConfig {
                hub: url(&self.hubs),
                token,
                data_dir: data_dir.clone(),
                cluster: Some(name.into()),
                node: None,
            };
            fluvial_member_agent::join(join).await.with_context(|| format!("letting member \"{name}\" join"))?;
        }
        let config = AgentConfig {
            data_dir: data_dir.clone(),
            node_name: Some(name.to_owned()),
            // Members of one process reach each other, and nobody else reaches them.
            listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            mounts_end: true,
            ..AgentConfig::default()
        };
        let agent = Agent::start(config).await.with_context(|| format!("starting member \"{name}\""))?;
        let mut state = agent.state();
        let settled = |state: &UplinkState| !matches!(state, UplinkState::Connecting);
        let reached = tokio::time::timeout(MEMBER_READY, state.wait_for(settled)).await;
        let reached = reached.map(|state| state.map(|state| state.clone()));
        match reached {
            Ok(Ok(UplinkState::Connected { .. })) => {
                self.members.insert(name.to_owned(), agent);
                self.until_ready(name).await
            }
            Ok(Ok(UplinkState::Revoked { message })) => {
                agent.shutdown().await;
                eprintln!(
                    "warning: member \"{name}\" is not run: {message}; to let it back in, delete {} and start again",
                    data_dir.display()
                );
                Ok(())
            }
            Ok(Ok(UplinkState::Conflict { message })) => {
                agent.shutdown().await;
                bail!("member \"{name}\": {message}")
            }
            Ok(_) => bail!("member \"{name}\" ended while it was starting"),
            Err(_) => {
                agent.shutdown().await;
                bail!("member \"{name}\" reached no hub within {MEMBER_READY:?}")
            }
        }
    }

    /// Waits until the hub has seen the member too, so that work can be given to it.
    async fn until_ready(&self, name: &str) -> Result<()> {
        let ready = |cluster: Option<Cluster>| Ok(cluster.filter(|c| c.state() == ClusterState::Ready).map(|_| ()));
        objects::until(&self.client, ("", name), MEMBER_READY, "the hub's welcome of the member", ready).await
    }

    /// The API, as administrator.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// `https://HOST:PORT` of the first hub.
    pub(crate) fn url(&self) -> String {
        url(&self.hubs)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("kubeconfig")
    }

    pub(crate) fn hub_urls(&self) -> Vec<String> {
        self.hubs.iter().map(|hub| format!("https://{}", hub.record().advertise)).collect()
    }

    pub(crate) fn members(&self) -> Vec<&str> {
        self.members.keys().map(String::as_str).collect()
    }

    /// Ends members, then hubs, in order; everything goes on at the next start.
    pub(crate) async fn shutdown(self) {
        let mut ending: tokio::task::JoinSet<()> = self.members.into_values().map(RunningAgent::shutdown).collect();
        while ending.join_next().await.is_some() {}
        stop(self.hubs).await;
    }
}

async fn stop(hubs: Vec<RunningHub>) {
    for hub in hubs {
        hub.shutdown().await;
    }
}

fn hub_dir(data_dir: &Path, number: usize) -> PathBuf {
    data_dir.join(format!("hub-{number}"))
}

fn member_dir(data_dir: &Path, name: &str) -> PathBuf {
    data_dir.join("members").join(name)
}

/// How many hubs the folder holds; they are numbered without gaps.
fn hub_count(data_dir: &Path) -> usize {
    (1..=MAX_HUBS).take_while(|number| run::is_hub(&hub_dir(data_dir, *number))).count()
}

/// The members that the folder holds, sorted; none if there is no such folder.
fn member_names(data_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(data_dir.join("members")).into_iter().flatten().flatten();
    let joined = entries.filter(|entry| entry.path().join("agent.json").exists());
    let mut names: Vec<String> = joined.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Before anything is made: names that the hub would refuse, or that would be one member twice.
fn check_names(names: &[String]) -> Result<()> {
    for (at, name) in names.iter().enumerate() {
        if let Some(problem) = NameRule::Dns1035Label.problem(name) {
            bail!("--members: \"{}\": {problem}", fluvial_model::names::printable(name));
        }
        ensure!(!names[..at].contains(name), "--members: \"{name}\" is named twice");
    }
    Ok(())
}

async fn make_first(data_dir: &Path, listen: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    let listen = listener.local_addr().with_context(|| format!("listening on {listen}"))?;
    let trust_domain = TrustDomain::new("fluvial.local").context("naming the trust domain")?;
    run::init(InitOptions { data_dir: hub_dir(data_dir, 1), listen, advertise: None, trust_domain, etcd: None })?;
    Ok(listener)
}

fn url(hubs: &[RunningHub]) -> String {
    hubs.first().map(|hub| format!("https://{}", hub.record().advertise)).unwrap_or_default()
}

fn hubs_ip(hubs: &[RunningHub]) -> IpAddr {
    hubs.first().map_or(DEFAULT_LISTEN.ip(), |hub| hub.record().listen.ip())
}

async fn ready(hubs: &[RunningHub]) -> Result<()> {
    for hub in hubs {
        ensure!(hub.ready(HUBS_READY).await, "hub {} did not answer within {HUBS_READY:?}", hub.record().node_id);
    }
    Ok(())
}

/// Waits until every hub has a vote: only then does the fleet survive the loss of one.
async fn voters(hubs: &[RunningHub]) -> Result<()> {
    const LOOK_EVERY: Duration = Duration::from_millis(20);
    let Some(first) = hubs.first() else { return Ok(()) };
    let all = async {
        while first.voters() < hubs.len() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(VOTERS_READY, all)
        .await
        .map_err(|_| anyhow!("only {} of {} hubs got a vote within {VOTERS_READY:?}", first.voters(), hubs.len()))
}

async fn token(client: &Client, wish: &Value) -> Result<SecretString> {
    let answer = client::post(client, "/apis/fluvial.io/v1alpha1/tokens", wish).await?;
    let answer: Value = serde_json::from_str(&answer).context("reading the hub's answer")?;
    let token = answer.get("token").and_then(Value::as_str).context("the hub's answer has no token")?;
    Ok(SecretString::from(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_named_once_and_well() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert!(check_names(&names(&["a", "b-1"])).is_ok());
        assert_eq!(check_names(&names(&["a", "a"])).unwrap_err().to_string(), "--members: \"a\" is named twice");
        for bad in ["", "A", "1a", "a/b", "..", "a\n"] {
            assert!(check_names(&names(&[bad])).unwrap_err().to_string().starts_with("--members: "), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_folder_that_does_not_fit_what_is_asked_is_refused_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let start = async |hubs, listen| {
            Federation::start_hubs(folder.path().into(), hubs, listen).await.map(|_| ()).unwrap_err().to_string()
        };
        assert!(start(Some(0), None).await.starts_with("--hubs 0: must be 1 to 7"));
        assert!(start(Some(8), None).await.starts_with("--hubs 8: must be 1 to 7"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

        let listen = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let trust_domain = TrustDomain::new("fluvial.local").unwrap();
        for number in [1, 2] {
            let options = InitOptions {
                data_dir: hub_dir(folder.path(), number),
                listen: listen(7001),
                advertise: None,
                etcd: None,
                trust_domain: trust_domain.clone(),
            };
            run::init(options).unwrap();
        }
        assert!(start(Some(1), None).await.contains("holds 2 hubs"));
        assert!(start(None, Some(listen(7002))).await.contains("was made for 127.0.0.1:7001"));
    }
}
