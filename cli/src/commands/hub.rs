//! `fluvial hub`: init, join, run; the fleet of hubs, and leaving it; snapshots of it.

pub(crate) mod snapshot;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use fluvial_certs::TrustDomain;
use fluvial_hub::run::{self, HubConfig, InitOptions, JoinOptions, LogLimits, RunningHub};
use http::Method;
use kube::Client;
use secrecy::SecretString;
use serde_json::Value;
use tokio::time::Instant;

use super::hub_store::{StoreArgs, password};
use super::until_told_to_stop;
use crate::args::duration;
use crate::client::{self, Failure, JSON, write_private};
use crate::output;

const HUBS: &str = "/apis/fluvial.io/v1alpha1/hubs";
/// How often the fleet is looked at while a hub leaves.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make the first hub: its data directory, its CA, and a kubeconfig for its administrator.
    Init {
        #[arg(long)]
        data_dir: PathBuf,
        /// Where the hub will listen.
        #[arg(long)]
        listen: SocketAddr,
        /// Where to write the administrator's kubeconfig.
        #[arg(long)]
        kubeconfig: PathBuf,
        /// The host:port by which others reach it, if it is not the one it listens on.
        #[arg(long)]
        advertise: Option<String>,
        #[arg(long, default_value = "fluvial.local")]
        trust_domain: String,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Make another hub of the same federation, with a token of `fluvial token create --hub`.
    Join {
        /// A hub of the federation, https://HOST:PORT.
        #[arg(long)]
        hub: String,
        #[arg(long, env = "FLUVIAL_TOKEN", hide_env_values = true)]
        token: String,
        #[arg(long)]
        data_dir: PathBuf,
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        advertise: Option<String>,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Run a hub that was made by `init` or `join`, until SIGINT or SIGTERM.
    Run {
        #[arg(long)]
        data_dir: PathBuf,
        /// How long certificates are good for that this hub makes; each is renewed at half its life.
        #[arg(long, default_value = "24h", value_parser = certificate_lifetime)]
        certificate_lifetime: Duration,
        /// In place of what the hub was made with: another address or user of the same etcd.
        #[command(flatten)]
        store: StoreArgs,
        #[command(flatten)]
        log: Log,
    },
    /// List the hubs of the fleet.
    Members {
        #[arg(short, long, value_enum, default_value_t)]
        output: output::Form,
    },
    /// Save the hubs' state in a file, and make a hub from one when all are lost.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Take a hub out of the fleet for good, and revoke its certificates.
    #[command(alias = "leave")]
    Remove {
        /// Its id or name, as `members` shows them.
        id: String,
        /// How long to wait until it is out.
        #[arg(long, default_value = "60s", value_parser = duration)]
        timeout: Duration,
    },
}

/// How long the log may become. For hubs with little disk, and for tests; all hubs of a federation should have the same.
#[derive(Debug, Args)]
#[command(next_help_heading = "Advanced")]
pub(crate) struct Log {
    /// Log entries after which a snapshot is made and the log is cut.
    #[arg(long, default_value_t = LogLimits::default().snapshot_after, value_parser = clap::value_parser!(u64).range(1..))]
    snapshot_after: u64,
    /// Log entries that are kept behind a snapshot: a hub that was away for longer needs the snapshot.
    #[arg(long, default_value_t = LogLimits::default().keep)]
    keep_log: u64,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, command: Command) -> Result<()> {
    match command {
        Command::Init { data_dir, listen, kubeconfig, advertise, trust_domain, store } => {
            let etcd = store.etcd()?;
            let trust_domain = TrustDomain::new(&trust_domain).context("reading --trust-domain")?;
            let report = run::init(InitOptions { data_dir: data_dir.clone(), listen, advertise, trust_domain, etcd })?;
            let url = format!("https://{}", report.record.advertise);
            write_private(&kubeconfig, &run::admin_kubeconfig(&data_dir, &url)?)?;
            eprintln!(
                "hub {} is made for {url}; start it: fluvial hub run --data-dir {}",
                report.record.node_id,
                data_dir.display()
            );
            Ok(())
        }
        Command::Join { hub, token, data_dir, listen, advertise, store } => {
            let options = JoinOptions {
                hub_url: hub,
                token: SecretString::from(token),
                data_dir: data_dir.clone(),
                listen,
                advertise,
                etcd: store.etcd()?,
            };
            let record = run::join(options).await?;
            eprintln!("hub {} may join; start it: fluvial hub run --data-dir {}", record.node_id, data_dir.display());
            Ok(())
        }
        Command::Run { data_dir, certificate_lifetime, log, store } => {
            serve(data_dir, certificate_lifetime, log, store).await
        }
        Command::Members { output } => {
            let client = client::connect(kubeconfig).await?;
            let items = members(&client).await?;
            match output {
                output::Form::Table => output::print(&table(&items)),
                form => output::value(&Value::Array(items), form),
            }
        }
        Command::Snapshot(command) => snapshot::run(kubeconfig, command).await,
        Command::Remove { id, timeout } => {
            let client = client::connect(kubeconfig).await?;
            let number = id.trim_start_matches("hub-").parse::<u64>();
            let number = number.ok().with_context(|| {
                format!("ID \"{}\": must be a hub's id or name, such as 2 or hub-2", output::plain(&id))
            })?;
            remove(&client, number, timeout).await?;
            output::print(&format!("hub {number} is out of the fleet"))
        }
    }
}

async fn members(client: &Client) -> Result<Vec<Value>, Failure> {
    let mut list = client::get(client, HUBS, JSON).await?;
    match list.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => Ok(items),
        _ => Ok(Vec::new()),
    }
}

fn table(items: &[Value]) -> String {
    let fields = ["id", "name", "address", "role", "leader"];
    let row = |item: &Value| fields.iter().map(|field| item.get(field).map(output::cell).unwrap_or_default()).collect();
    output::table(&fields.map(str::to_uppercase), items.iter().map(row).collect(), &[0])
}

/// Takes a hub out of the fleet and waits until it is.
async fn remove(client: &Client, id: u64, within: Duration) -> Result<()> {
    client::write(client, Method::DELETE, &format!("{HUBS}/{id}"), None).await?;
    let deadline = Instant::now() + within;
    loop {
        match members(client).await {
            Ok(hubs) if !hubs.iter().any(|hub| hub.get("id").and_then(Value::as_u64) == Some(id)) => return Ok(()),
            Ok(_) => {}
            Err(failure) if failure.may_pass() => {}
            Err(failure) => return Err(failure.into()),
        }
        if Instant::now() >= deadline {
            bail!("hub {id} is still in the fleet after {within:?}; its removal goes on");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Long enough to be renewed in time over a slow link, short enough to be called temporary.
fn certificate_lifetime(text: &str) -> Result<Duration, String> {
    const ALLOWED: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(365 * 86_400);
    let lifetime = duration(text)?;
    if ALLOWED.contains(&lifetime) { Ok(lifetime) } else { Err(format!("\"{text}\" must be from 10s to 365d")) }
}

async fn serve(data_dir: PathBuf, certificate_lifetime: Duration, log: Log, store: StoreArgs) -> Result<()> {
    let log = LogLimits { snapshot_after: log.snapshot_after, keep: log.keep_log };
    let etcd = store.etcd()?;
    let config = || HubConfig {
        certificate_lifetime,
        log,
        etcd: etcd.clone(),
        etcd_password: password(),
        ..HubConfig::new(&data_dir)
    };
    let started = |hub: &RunningHub| eprintln!("hub {} listens on {}", hub.record().node_id, hub.address());
    Ok(run::restart::run(config, until_told_to_stop()?, started).await?)
}
