//! `fluvial op`: operations that run or have run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use fluvial_model::kinds::DataLoad;
use fluvial_model::resource::{KindInfo, Resource as _};
use http::Method;
use kube::Client;
use serde_json::json;

use super::get::{self, Which};
use super::operation;
use crate::args::{Namespace, duration};
use crate::client::{self, MERGE_PATCH};
use crate::kinds::{Kind, Kinds};
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
    /// Stop an operation; what a migration has written is removed, what a load has brought stays.
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
            let known = Kinds::discover(&client).await?;
            let kinds: Vec<&Kind> =
                operation::KINDS.iter().map(|info| known.named(info.plural)).collect::<Result<_>>()?;
            get::show(&client, &kinds, which, output).await
        }
        Command::Wait { name, namespace, timeout, output } => {
            let namespace = namespace.of(&client);
            let info = operation::find(&client, namespace, &name).await?;
            operation::wait(&client, (info, namespace, &name), timeout, output).await
        }
        Command::Cancel { name, namespace } => {
            let namespace = namespace.of(&client);
            let info = cancel(&client, namespace, &name).await?;
            let what = if info.kind == DataLoad::INFO.kind {
                "what is loaded stays"
            } else {
                "what it has written is removed"
            };
            output::print(&format!("operation \"{name}\" is being cancelled: {what}"))
        }
    }
}

/// Asks an operation to stop; returns its kind.
///
/// # Errors
/// With what the hub says.
async fn cancel(client: &Client, namespace: &str, name: &str) -> Result<&'static KindInfo> {
    let patch = json!({ "spec": { "cancel": true } });
    let info = operation::find(client, namespace, name).await?;
    client::write(client, Method::PATCH, &operation::path(info, namespace, name)?, Some((MERGE_PATCH, &patch))).await?;
    Ok(info)
}
