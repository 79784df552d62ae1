//! `fluvial hub`: init, join, run.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use fluvial_certs::TrustDomain;
use fluvial_hub::run::{self, Hub, HubConfig, InitOptions, JoinOptions};
use secrecy::SecretString;

use super::until_told_to_stop;
use crate::client::write_private;

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
    },
    /// Run a hub that was made by `init` or `join`, until SIGINT or SIGTERM.
    Run {
        #[arg(long)]
        data_dir: PathBuf,
    },
}

pub(crate) async fn run(command: Command) -> Result<()> {
    match command {
        Command::Init { data_dir, listen, kubeconfig, advertise, trust_domain } => {
            let trust_domain = TrustDomain::new(&trust_domain).context("reading --trust-domain")?;
            let report = run::init(InitOptions { data_dir: data_dir.clone(), listen, advertise, trust_domain })?;
            let url = format!("https://{}", report.record.advertise);
            write_private(&kubeconfig, &run::admin_kubeconfig(&data_dir, &url)?)?;
            eprintln!(
                "hub {} is made for {url}; start it: fluvial hub run --data-dir {}",
                report.record.node_id,
                data_dir.display()
            );
            Ok(())
        }
        Command::Join { hub, token, data_dir, listen, advertise } => {
            let options = JoinOptions {
                hub_url: hub,
                token: SecretString::from(token),
                data_dir: data_dir.clone(),
                listen,
                advertise,
            };
            let record = run::join(options).await?;
            eprintln!("hub {} may join; start it: fluvial hub run --data-dir {}", record.node_id, data_dir.display());
            Ok(())
        }
        Command::Run { data_dir } => serve(data_dir).await,
    }
}

async fn serve(data_dir: PathBuf) -> Result<()> {
    let stop = until_told_to_stop()?;
    let hub = Hub::start(HubConfig::new(data_dir)).await?;
    eprintln!("hub {} listens on {}", hub.record().node_id, hub.address());
    stop.await;
    hub.shutdown().await;
    Ok(())
}
