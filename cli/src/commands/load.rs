//! `fluvial load`: brings a dataset, or parts of it, into the caches that hold it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use fluvial_model::kinds::{DataLoad, DataLoadSpec, DataLoadStatus, DatasetRef, LoadTarget, LoadTier, OperationPhase};
use fluvial_model::resource::Resource as _;
use http::Method;

use super::operation;
use super::progress::Progress;
use crate::client::{self, JSON};
use crate::kinds::in_path;
use crate::{objects, output};

/// How long a plan without work may take: a scan may be waited for.
const PLAN_WITHIN: Duration = Duration::from_secs(60);
/// A plan that could not be deleted here goes by itself, seconds after its end.
const PLAN_KEPT: u32 = 600;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// Into the cache's tiers.
    #[default]
    Disk,
    /// Into the memory of the machine, too.
    PageCache,
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    dataset: String,
    /// A file or directory of the dataset; all of it if none is given.
    #[arg(long = "path", value_name = "PATH")]
    paths: Vec<String>,
    /// The cluster to load in; every one that holds the dataset if not given.
    #[arg(long)]
    cluster: Option<String>,
    #[arg(long, value_enum, default_value_t)]
    tier: Tier,
    /// List the dataset's sources again first.
    #[arg(long)]
    metadata: bool,
    /// Only show what would be loaded where; waits 60s for it unless --timeout says otherwise.
    #[arg(long, conflicts_with_all = ["wait", "name"])]
    dry_run: bool,
    #[command(flatten)]
    begin: operation::Begin,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, arguments: Arguments) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    let namespace = in_path("namespace", arguments.begin.namespace.of(&client))?.to_owned();
    let operation = wish(&namespace, &arguments);
    let object = serde_json::to_value(&operation).context("writing the operation as JSON")?;
    let path = objects::path(&DataLoad::INFO, &namespace, None);
    let made = client::write(&client, Method::POST, &path, Some((JSON, &object))).await?;
    let name = DataLoad::from_value(&made).context("reading the hub's answer")?.metadata.name;
    let named = (&DataLoad::INFO, namespace.as_str(), name.as_str());
    if arguments.dry_run {
        let within = arguments.begin.timeout.unwrap_or(PLAN_WITHIN);
        let planned = operation::follow(&client, named, within, &mut Progress::silent()).await;
        // The question is answered: nothing of it should stay.
        let path = operation::path(&DataLoad::INFO, &namespace, &name)?;
        let _ = client::write(&client, Method::DELETE, &path, None).await;
        let status = serde_json::from_value(planned?).context("reading the hub's answer")?;
        return show_plan(&status, arguments.begin.output);
    }
    operation::begun(&client, named, &made, &arguments.begin).await
}

fn wish(namespace: &str, arguments: &Arguments) -> DataLoad {
    let target = |path: &String| LoadTarget { path: path.clone(), replicas: None };
    let spec = DataLoadSpec {
        dataset: DatasetRef { name: arguments.dataset.clone(), ..DatasetRef::default() },
        load_metadata: arguments.metadata,
        target: arguments.paths.iter().map(target).collect(),
        cluster: arguments.cluster.clone().unwrap_or_default(),
        tier: match arguments.tier {
            Tier::Disk => LoadTier::Disk,
            Tier::PageCache => LoadTier::PageCache,
        },
        dry_run: arguments.dry_run,
        ttl_seconds_after_finished: arguments.dry_run.then_some(PLAN_KEPT),
        ..DataLoadSpec::default()
    };
    let mut operation = DataLoad::new(namespace, arguments.begin.name.as_deref().unwrap_or_default(), spec);
    if operation.metadata.name.is_empty() {
        operation.metadata.generate_name = format!("{}-", arguments.dataset);
    }
    operation
}

fn show_plan(status: &DataLoadStatus, form: output::Form) -> Result<()> {
    if status.operation.phase != OperationPhase::Complete {
        bail!("it cannot be loaded: {}: {}", status.operation.reason, status.operation.message);
    }
    if form != output::Form::Table {
        return output::value(&serde_json::to_value(&status.clusters).context("writing the plan")?, form);
    }
    let headings = ["CLUSTER", "CACHED", "TOTAL", "FILES", "NOTE"].map(str::to_owned);
    let line = |load: &fluvial_model::kinds::ClusterLoad| {
        let progress = &load.progress;
        vec![
            load.cluster.clone(),
            output::bytes(progress.bytes_done),
            output::bytes(progress.bytes_total),
            format!("{} of {}", progress.files_done, progress.files_total),
            output::plain(&load.message),
        ]
    };
    output::print(&output::table(&headings, status.clusters.iter().map(line).collect(), &[1, 2]))
}
