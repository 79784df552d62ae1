//! `fluvial node`: one more machine of a cluster, beside the one whose agent speaks for it: join, run.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use fluvial_member_agent::platform::host::TierConfig;
use fluvial_member_agent::{AgentConfig, JoinConfig, MemoryLimit};
use fluvial_model::kinds::Cluster;
use fluvial_model::resource::Resource as _;
use http::Method;
use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::json;

use super::member::{label, memory, serve, tier};
use crate::client::{self, MERGE_PATCH};
use crate::kinds::in_path;
use crate::{objects, output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Let this machine join a cluster that has an agent, with a token of `fluvial token create --cluster`.
    Join {
        /// A hub, https://HOST:PORT.
        #[arg(long)]
        hub: String,
        #[arg(long, env = "FLUVIAL_TOKEN", hide_env_values = true)]
        token: String,
        #[arg(long)]
        data_dir: PathBuf,
        /// The node's name, of its own in the cluster.
        #[arg(long)]
        node_name: String,
        /// The cluster, if it is to be checked against the token's.
        #[arg(long)]
        cluster: Option<String>,
    },
    /// Take a node out of its cluster: its certificates are revoked.
    Remove { cluster: String, node: String },
    /// Run the agent of a node that has joined, until SIGINT or SIGTERM.
    Run {
        #[arg(long)]
        data_dir: PathBuf,
        /// A cache tier, fastest first: MEM, SSD or HDD, its folder, and the most bytes in it. One SSD tier in the data
        /// directory if not given.
        #[arg(long = "tier", value_name = "MEDIUM=DIR[:BYTES[:HIGH-LOW]]", value_parser = tier)]
        tiers: Vec<TierConfig>,
        /// Most memory of the agent, such as 1Gi; 192Mi at least.
        #[arg(long, value_name = "BYTES", value_parser = memory, default_value = "640Mi")]
        memory: MemoryLimit,
        /// A label of the node, such as topology.kubernetes.io/zone=a.
        #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = label)]
        node_labels: Vec<(String, String)>,
        /// Listen here for the other nodes of the cluster, to share the cache with them.
        #[arg(long, value_name = "IP:PORT")]
        listen: Option<SocketAddr>,
        /// How others reach that; the address itself if not given.
        #[arg(long, value_name = "HOST:PORT", requires = "listen")]
        advertise: Option<String>,
    },
}

/// Takes a node's certificates back.
async fn remove(kubeconfig: Option<PathBuf>, cluster: &str, node: &str) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    let path = objects::path(&Cluster::INFO, "", Some(in_path("cluster", cluster)?));
    let patch = json!({ "spec": { "revokedNodes": { node: Timestamp::now() } } });
    client::write(&client, Method::PATCH, &path, Some((MERGE_PATCH, &patch))).await?;
    output::print(&format!(
        "node \"{node}\" of cluster \"{cluster}\" is removed: its certificates are revoked; with another token it may join again"
    ))
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, command: Command) -> Result<()> {
    match command {
        Command::Join { hub, token, data_dir, node_name, cluster } => {
            let shown = data_dir.display().to_string();
            let (token, node) = (SecretString::from(token), Some(node_name.clone()));
            let joined = fluvial_member_agent::join(JoinConfig { hub, token, data_dir, cluster, node }).await?;
            eprintln!(
                "node \"{node_name}\" of cluster \"{}\" has joined; start it: fluvial node run --data-dir {shown}",
                joined.cluster
            );
            Ok(())
        }
        Command::Remove { cluster, node } => remove(kubeconfig, &cluster, &node).await,
        Command::Run { data_dir, tiers, memory, node_labels, listen, advertise } => {
            let labels = node_labels.into_iter().collect();
            serve(AgentConfig { data_dir, tiers, memory, labels, listen, advertise, ..AgentConfig::default() }).await
        }
    }
}
