//! `fluvial placement`: which datasets are cached in which clusters.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use fluvial_model::kinds::{
    CacheLocation, ClusterChoice, Dataset, DatasetChoice, Placement, PlacementSpec, PlacementStatus,
};
use fluvial_model::resource::Resource as _;
use fluvial_model::selector::LabelSelector;
use http::Method;
use kube::Client;
use tokio::time::Instant;

use crate::args::{Namespace, duration};
use crate::client::{self, Failure, JSON};
use crate::kinds::in_path;
use crate::{objects, output};

/// How often caches are looked at while they fill.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a Placement.
    Create(Create),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    name: String,
    /// A dataset of the namespace.
    #[arg(long = "dataset", value_name = "NAME", required_unless_present = "dataset_selector")]
    datasets: Vec<String>,
    /// Datasets with these labels, such as tier=hot,team!=a.
    #[arg(long, value_name = "LABELS", value_parser = LabelSelector::parse)]
    dataset_selector: Option<LabelSelector>,
    /// A cluster; every cluster that fits, if neither clusters nor a selector are given.
    #[arg(long = "cluster", value_name = "NAME")]
    clusters: Vec<String>,
    /// Clusters with these labels, such as fluvial.io/cloud=aws.
    #[arg(long, value_name = "LABELS", value_parser = LabelSelector::parse)]
    cluster_selector: Option<LabelSelector>,
    /// How many of the clusters that fit; all if not given.
    #[arg(long)]
    count: Option<u32>,
    /// Spread over cloud, region, zone or the values of a label.
    #[arg(long, value_name = "LABEL")]
    spread_by: Option<String>,
    /// A taint that does not keep the datasets away.
    #[arg(long = "tolerate", value_name = "TAINT")]
    tolerations: Vec<String>,
    /// Only this path of each dataset.
    #[arg(long = "path")]
    paths: Vec<String>,
    /// How long a cluster must be Unreachable until another one takes its place, such as 5m; never, if not given.
    #[arg(long, value_name = "DURATION")]
    failover_after: Option<String>,
    /// Never evict.
    #[arg(long)]
    pinned: bool,
    #[command(flatten)]
    namespace: Namespace,
    /// Wait until every cache that was decided on is filled.
    #[arg(long)]
    wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "1h", value_parser = duration)]
    timeout: Duration,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, command: Command) -> Result<()> {
    let Command::Create(arguments) = command;
    let client = client::connect(kubeconfig).await?;
    let namespace = in_path("namespace", arguments.namespace.of(&client))?.to_owned();
    let spec = PlacementSpec {
        datasets: DatasetChoice { names: arguments.datasets, selector: arguments.dataset_selector },
        clusters: ClusterChoice {
            names: arguments.clusters,
            selector: arguments.cluster_selector,
            count: arguments.count,
            spread_by: arguments.spread_by.unwrap_or_default(),
            tolerations: arguments.tolerations,
        },
        paths: arguments.paths,
        failover_after: arguments.failover_after,
        pinned: arguments.pinned,
    };
    let made = create(&client, &namespace, &arguments.name, spec).await?;
    output::print(&format!("placement.fluvial.io/{} created", made.metadata.name))?;
    if !arguments.wait {
        return Ok(());
    }
    let (status, locations) = filled(&client, &namespace, &arguments.name, arguments.timeout).await?;
    for (cluster, reason) in &status.reasons {
        output::print(&format!("  {cluster}: {reason}"))?;
    }
    for location in locations {
        let status = location.status.unwrap_or_default();
        let (dataset, cluster) = (location.spec.dataset, location.spec.cluster);
        let files = output::count(status.cached_files, "file", "files");
        output::print(&format!(
            "{dataset} in {cluster}: {}, {}, {files}",
            status.phase,
            output::bytes(status.cached_bytes)
        ))?;
    }
    Ok(())
}

/// Creates a Placement.
///
/// # Errors
/// With what the hub says.
pub(crate) async fn create(client: &Client, namespace: &str, name: &str, spec: PlacementSpec) -> Result<Placement> {
    let object = serde_json::to_value(Placement::new(namespace, name, spec)).context("writing it as JSON")?;
    let path = objects::path(&Placement::INFO, namespace, None);
    let made = client::write(client, Method::POST, &path, Some((JSON, &object))).await?;
    Placement::from_value(&made).context("reading the hub's answer")
}

/// Waits until the Placement was decided and every cache of the datasets that it names, in the clusters chosen, is
/// Ready.
///
/// # Errors
/// If no cluster or dataset is chosen, or it takes too long: caches go on filling.
pub(crate) async fn filled(
    client: &Client,
    namespace: &str,
    name: &str,
    within: Duration,
) -> Result<(PlacementStatus, Vec<CacheLocation>)> {
    let path = objects::path(&Placement::INFO, namespace, Some(in_path("placement", name)?));
    let deadline = Instant::now() + within;
    loop {
        let last = match look(client, namespace, &path).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(why)) => why,
            Err(error) if error.downcast_ref::<Failure>().is_some_and(Failure::may_pass) => error.to_string(),
            Err(error) => return Err(error),
        };
        if Instant::now() >= deadline {
            bail!(
                "placement \"{name}\" is not complete after {within:?}: {last}; it goes on: look at it by \
                 `fluvial describe placement {name} -n {namespace}`"
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The caches when all are filled, or what is missing.
async fn look(
    client: &Client,
    namespace: &str,
    path: &str,
) -> Result<Result<(PlacementStatus, Vec<CacheLocation>), String>> {
    let placement = Placement::from_value(&client::get(client, path, JSON).await?).context("reading the placement")?;
    let status = placement.status.unwrap_or_default();
    if status.observed_generation != placement.metadata.generation {
        return Ok(Err("it was not decided yet".to_owned()));
    }
    if status.clusters.is_empty() || status.datasets == 0 {
        let reasons: Vec<String> = status.reasons.iter().map(|(cluster, why)| format!("{cluster}: {why}")).collect();
        let what = if status.datasets == 0 { "no dataset is chosen" } else { "no cluster is chosen" };
        return Ok(Err([vec![what.to_owned()], reasons].concat().join("; ")));
    }
    let all = objects::list::<CacheLocation>(client, namespace).await?;
    let chosen = chosen(client, namespace, &placement.spec.datasets).await?;
    let mut wanted: BTreeMap<(String, String), Option<CacheLocation>> = BTreeMap::new();
    for dataset in &chosen {
        wanted.extend(status.clusters.iter().map(|cluster| ((dataset.clone(), cluster.clone()), None)));
    }
    for location in all {
        if let Some(slot) = wanted.get_mut(&(location.spec.dataset.clone(), location.spec.cluster.clone())) {
            *slot = Some(location);
        }
    }
    let mut ready = Vec::new();
    for ((dataset, cluster), location) in wanted {
        let status = location.as_ref().and_then(|location| location.status.clone()).unwrap_or_default();
        match location {
            Some(location) if status.phase == "Ready" => ready.push(location),
            _ => {
                let phase = if status.phase.is_empty() { "not begun" } else { status.phase.as_str() };
                let why = if status.message.is_empty() { String::new() } else { format!(": {}", status.message) };
                return Ok(Err(format!("{dataset} in {cluster} is {phase}{why}")));
            }
        }
    }
    Ok(Ok((status, ready)))
}

/// The names of the datasets that are chosen.
async fn chosen(client: &Client, namespace: &str, choice: &DatasetChoice) -> Result<Vec<String>> {
    let all = objects::list::<Dataset>(client, namespace).await?;
    let chosen = all.into_iter().filter(|dataset| fluvial_model::placement::chooses(choice, dataset));
    Ok(chosen.map(|dataset| dataset.metadata.name).collect())
}
