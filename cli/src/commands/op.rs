//! `fluvial op`: operations that run or have run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use http::Method;
use kube::Client;
use serde_json::json;

use super::get::{self, Which};
use super::{backup, migrate};
use crate::args::{Namespace, duration};
use crate::client::{self, MERGE_PATCH};
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List operations.
    List {
        #[command(flatten)]
        namespace: Namespace,
        /// In all namespaces.
        #[arg(short = 'A', long, conflicts_with = "namespace")]
        all_namespaces: bool,
        #[arg(short, long, value_enum, default_value_t)]
        output: get::Form,
    },
    /// Follow an operation to its end; exit 0 only if it is complete.
    Wait {
        name: String,
        #[command(flatten)]
        namespace: Namespace,
        /// How long to wait; the operation goes on afterwards. 24h if not given.
        #[arg(long, value_parser = duration)]
        timeout: Option<Duration>,
        #[arg(short, long, value_enum, default_value_t)]
        output: output::Form,
    },
    /// Stop an operation; what it has written is removed.
    Cancel {
        name: String,
        #[command(flatten)]
        namespace: Namespace,
    },
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, command: Command) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    match command {
        Command::List { namespace, all_namespaces, output } => {
            let which = Which { namespace: (!all_namespaces).then(|| namespace.of(&client)), ..Which::default() };
            get::one_kind(&client, "datamigrates", which, output).await
        }
        Command::Wait { name, namespace, timeout, output } => {
            migrate::wait(&client, namespace.of(&client), &name, timeout, output).await
        }
        Command::Cancel { name, namespace } => {
            let namespace = namespace.of(&client);
            cancel(&client, namespace, &name).await?;
            output::print(&format!("operation \"{name}\" is being cancelled: what it has written is removed"))
        }
    }
}

/// Asks an operation to stop.
///
/// # Errors
/// With what the hub says.
pub(crate) async fn cancel(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let patch = json!({ "spec": { "cancel": true } });
    let path = backup::path_of(client, namespace, name).await?;
    client::write(client, Method::PATCH, &path, Some((MERGE_PATCH, &patch))).await?;
    Ok(())
}
