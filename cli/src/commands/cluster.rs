//! `fluvial cluster`: the member clusters, and seeing one off.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use fluvial_model::kinds::{CacheLocation, Cluster, Storage};
use fluvial_model::resource::Resource;
use http::Method;
use kube::Client;
use serde_json::{Value, json};

use super::delete::{gone, remove as delete};
use super::get::{self, Form, Which};
use crate::args::duration;
use crate::client::{self, JSON, MERGE_PATCH};
use crate::kinds::in_path;
use crate::{objects, output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the clusters.
    List {
        /// Only clusters with these labels.
        #[arg(short = 'l', long)]
        selector: Option<String>,
        #[arg(short, long, value_enum, default_value_t)]
        output: Form,
    },
    /// Show one cluster.
    Get {
        name: String,
        #[arg(short, long, value_enum, default_value_t)]
        output: Form,
    },
    /// Give a cluster no new work, and let its caches go elsewhere.
    Drain {
        name: String,
        /// Use it again.
        #[arg(long)]
        undo: bool,
    },
    /// Remove a cluster: its caches are taken away and its certificates revoked.
    Remove(Remove),
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    name: String,
    /// Return at once; the removal goes on.
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
    /// Wait until it is gone; this is the default.
    #[arg(long)]
    wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, command: Command) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    match command {
        Command::List { selector, output } => {
            let which = Which { labels: selector.as_deref(), ..Which::default() };
            get::one_kind(&client, "clusters", which, output).await
        }
        Command::Get { name, output } => {
            get::one_kind(&client, "clusters", Which { name: Some(&name), ..Which::default() }, output).await
        }
        Command::Drain { name, undo } => {
            let patch = json!({ "spec": { "drain": !undo } });
            client::write(&client, Method::PATCH, &path(&name)?, Some((MERGE_PATCH, &patch))).await?;
            if undo {
                return output::print(&format!("cluster \"{name}\" takes work again"));
            }
            output::print(&format!(
                "cluster \"{name}\" takes no new work and its caches move elsewhere; homes in its storages stay. \
                 To use it again: fluvial cluster drain {name} --undo"
            ))
        }
        Command::Remove(arguments) => {
            let within = (!arguments.no_wait).then_some(arguments.timeout);
            remove(&client, &arguments.name, within, &mut |line| eprintln!("{line}")).await?;
            let done = if arguments.no_wait { "is being removed" } else { "is removed: its certificates are revoked" };
            output::print(&format!("cluster \"{}\" {done}", arguments.name))
        }
    }
}

fn path(name: &str) -> Result<String> {
    Ok(objects::path(&Cluster::INFO, "", Some(in_path("cluster", name)?)))
}

async fn list<R: Resource>(client: &Client, path: &str) -> Result<Vec<R>> {
    let all = client::get(client, path, JSON).await?;
    let items = all.get("items").and_then(Value::as_array).into_iter().flatten();
    items.map(R::from_value).collect::<Result<Vec<_>, _>>().context("reading the hub's answer")
}

/// Removes a cluster, and waits until it is gone if a time is given. Tells what is cleaned up and what is left.
///
/// # Errors
/// With what the hub says; if it takes too long: the removal goes on.
pub(crate) async fn remove(
    client: &Client,
    name: &str,
    within: Option<Duration>,
    tell: &mut impl FnMut(&str),
) -> Result<()> {
    let path = path(name)?;
    let all =
        format!("/apis/{}/{}/{}", CacheLocation::INFO.group, CacheLocation::INFO.version, CacheLocation::INFO.plural);
    let caches: Vec<CacheLocation> = list(client, &all).await?;
    let caches: Vec<_> = caches.into_iter().filter(|location| location.spec.cluster == name).collect();
    let storages: Vec<Storage> = list(client, &objects::path(&Storage::INFO, "", None)).await?;
    let storages: Vec<String> =
        storages.into_iter().filter(|s| s.spec.cluster == name).map(|s| s.metadata.name).collect();
    let left = delete(client, &path).await?;
    if !caches.is_empty() {
        let bytes = caches.iter().filter_map(|cache| cache.status.as_ref()).map(|status| status.cached_bytes).sum();
        let many = output::count(caches.len() as u64, "cache", "caches");
        tell(&format!("taking away {many} in \"{name}\" ({})", output::bytes(bytes)));
    }
    if !storages.is_empty() {
        tell(&format!(
            "warning: storages that belong to \"{name}\" stay, with what is in them: {}",
            storages.join(", ")
        ));
    }
    let (Some(left), Some(within)) = (left, within) else { return Ok(()) };
    gone(client, &path, &left, within).await.with_context(|| format!("cluster \"{name}\""))
}
