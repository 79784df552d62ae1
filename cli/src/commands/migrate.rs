//! `fluvial migrate`: brings a dataset into a Storage.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use fluvial_model::kinds::{
    DataEnd, DataMigrate, DataMigrateSpec, DataMigrateStatus, DatasetRef, MigrateMode, MigrateVerify, OperationPhase,
    StorageRef,
};
use fluvial_model::resource::Resource as _;
use http::Method;
use kube::Client;

use super::operation;
use super::progress::Progress;
use crate::client::{self, JSON};
use crate::kinds::in_path;
use crate::{objects, output};

/// How long a plan without work may take: an agent or a scan may be waited for.
const PLAN_WITHIN: Duration = Duration::from_secs(60);
/// A plan that could not be deleted here goes by itself, seconds after its end.
const PLAN_KEPT: u32 = 600;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Add a home.
    #[default]
    Copy,
    /// Replace every other home.
    Move,
}

impl From<Mode> for MigrateMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Copy => Self::Copy,
            Mode::Move => Self::Move,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Verify {
    /// By the store, where it compares checksums; by reading back elsewhere.
    #[default]
    Checksum,
    /// By reading every byte back.
    ReadBack,
}

impl From<Verify> for MigrateVerify {
    fn from(verify: Verify) -> Self {
        match verify {
            Verify::Checksum => Self::Checksum,
            Verify::ReadBack => Self::ReadBack,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    dataset: String,
    /// The Storage to bring it into.
    #[arg(long, value_name = "STORAGE")]
    to: String,
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// How the bytes at the target are compared with the source's.
    #[arg(long, value_enum, default_value_t)]
    verify: Verify,
    /// Parallel streams; 16 if not given.
    #[arg(long)]
    parallelism: Option<u32>,
    /// Only show the route, the bytes and what else was considered; waits 60s for it unless --timeout says otherwise.
    #[arg(long, conflicts_with_all = ["wait", "name"])]
    dry_run: bool,
    #[command(flatten)]
    begin: operation::Begin,
}

/// A migration to be made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    pub dataset: String,
    pub to: String,
    pub mode: MigrateMode,
    pub verify: MigrateVerify,
    pub parallelism: Option<u32>,
    pub dry_run: bool,
    /// Made from the dataset's if empty.
    pub name: String,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, arguments: Arguments) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    let namespace = in_path("namespace", arguments.begin.namespace.of(&client))?.to_owned();
    let wish = Wish {
        dataset: arguments.dataset,
        to: arguments.to,
        mode: arguments.mode.into(),
        verify: arguments.verify.into(),
        parallelism: arguments.parallelism,
        dry_run: arguments.dry_run,
        name: arguments.begin.name.clone().unwrap_or_default(),
    };
    let made = create(&client, &namespace, &wish).await?;
    let name = made.metadata.name.clone();
    if arguments.dry_run {
        let within = arguments.begin.timeout.unwrap_or(PLAN_WITHIN);
        let planned = follow(&client, &namespace, &name, within, &mut Progress::silent()).await;
        // The question is answered: nothing of it should stay.
        let _ = client::write(&client, Method::DELETE, &operation::path(&DataMigrate::INFO, &namespace, &name)?, None)
            .await;
        return show_plan(&planned?, arguments.begin.output);
    }
    let made = serde_json::to_value(&made).context("writing the operation")?;
    operation::begun(&client, (&DataMigrate::INFO, &namespace, &name), &made, &arguments.begin).await
}

/// Creates a DataMigrate.
///
/// # Errors
/// With what the hub says.
pub(crate) async fn create(client: &Client, namespace: &str, wish: &Wish) -> Result<DataMigrate> {
    let dataset = Some(DatasetRef { name: wish.dataset.clone(), ..DatasetRef::default() });
    let spec = DataMigrateSpec {
        from: DataEnd { dataset, ..DataEnd::default() },
        to: DataEnd { storage: Some(StorageRef { name: wish.to.clone() }), ..DataEnd::default() },
        mode: wish.mode,
        verify: wish.verify,
        parallelism: wish.parallelism,
        dry_run: wish.dry_run,
        ttl_seconds_after_finished: wish.dry_run.then_some(PLAN_KEPT),
        ..DataMigrateSpec::default()
    };
    let mut operation = DataMigrate::new(namespace, &wish.name, spec);
    if wish.name.is_empty() {
        operation.metadata.generate_name = format!("{}-", wish.dataset);
    }
    let object = serde_json::to_value(&operation).context("writing the operation as JSON")?;
    let path = objects::path(&DataMigrate::INFO, namespace, None);
    let made = client::write(client, Method::POST, &path, Some((JSON, &object))).await?;
    DataMigrate::from_value(&made).context("reading the hub's answer")
}

/// Follows a migration until it has ended, well or not.
///
/// # Errors
/// See [`operation::follow`].
pub(crate) async fn follow(
    client: &Client,
    namespace: &str,
    name: &str,
    within: Duration,
    progress: &mut Progress,
) -> Result<DataMigrateStatus> {
    let ended = operation::follow(client, (&DataMigrate::INFO, namespace, name), within, progress).await?;
    serde_json::from_value(ended).context("reading the hub's answer")
}

/// Whether a migration ended well.
///
/// # Errors
/// How else it ended, and why.
pub(crate) fn complete(name: &str, status: &DataMigrateStatus) -> Result<()> {
    let DataMigrateStatus { phase, reason, message, .. } = status.clone();
    operation::complete(name, &operation::Standing { phase, reason, message, ..operation::Standing::default() })
}

fn show_plan(status: &DataMigrateStatus, form: output::Form) -> Result<()> {
    let Some(plan) = status.plan.as_ref().filter(|_| status.phase == OperationPhase::Complete) else {
        bail!("it cannot be migrated: {}: {}", status.reason, status.message);
    };
    if form != output::Form::Table {
        return output::value(&serde_json::to_value(plan).context("writing the plan")?, form);
    }
    let mut text = format!(
        "Route:      {} by {}{}\nFrom:       {} ({})\nTo:         {} ({})\nBytes:      {} ({})\nFiles:      {}\n",
        plan.route,
        plan.executor,
        if plan.through.is_empty() { String::new() } else { format!(" through {}", plan.through) },
        output::plain(&plan.from_uri),
        if plan.from_cluster.is_empty() { "any cluster" } else { &plan.from_cluster },
        output::plain(&plan.to_uri),
        plan.to_cluster,
        plan.bytes,
        output::bytes(plan.bytes),
        plan.files,
    );
    if let Some(seconds) = plan.seconds {
        text.push_str(&format!("At least:   {seconds:.0} s\n"));
    }
    if let Some(cost) = plan.cost {
        text.push_str(&format!("Costs:      {cost:.2}\n"));
    }
    text.push_str("Considered:\n");
    for reason in &plan.reasons {
        text.push_str(&format!("  {}\n", output::plain(reason)));
    }
    output::print(&text)
}
