//! `fluvial migrate`: brings a dataset into a Storage, and follows an operation to its end.

mod progress;

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
use tokio::time::Instant;

pub(crate) use self::progress::Progress;
use crate::args::{Namespace, duration};
use crate::client::{self, JSON};
use crate::kinds::in_path;
use crate::{objects, output};

/// How often an operation is looked at while it is followed.
const LOOK_EVERY: Duration = Duration::from_millis(250);
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
    /// Parallel streams; 8 if not given.
    #[arg(long)]
    parallelism: Option<u32>,
    /// Only show the route, the bytes and what else was considered.
    #[arg(long, conflicts_with_all = ["wait", "name"])]
    dry_run: bool,
    /// Follow it to its end; exit 0 only if it is complete.
    #[arg(long)]
    wait: bool,
    /// How long to wait; it goes on afterwards. 24h if not given, 60s with --dry-run.
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// The operation's name; made from the dataset's if not given.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    namespace: Namespace,
    #[arg(short, long, value_enum, default_value_t)]
    output: output::Form,
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
    let namespace = in_path("namespace", arguments.namespace.of(&client))?.to_owned();
    let wish = Wish {
        dataset: arguments.dataset,
        to: arguments.to,
        mode: arguments.mode.into(),
        verify: arguments.verify.into(),
        parallelism: arguments.parallelism,
        dry_run: arguments.dry_run,
        name: arguments.name.unwrap_or_default(),
    };
    let made = create(&client, &namespace, &wish).await?;
    let name = made.metadata.name.clone();
    if arguments.dry_run {
        let within = arguments.timeout.unwrap_or(PLAN_WITHIN);
        let planned = follow(&client, &namespace, &name, within, &mut Progress::silent()).await;
        // The question is answered: nothing of it should stay.
        let _ = client::write(&client, Method::DELETE, &path(&namespace, &name)?, None).await;
        return show_plan(&planned?, arguments.output);
    }
    if arguments.output == output::Form::Table {
        output::print(&format!("datamigrate.data.fluid.io/{name} created"))?;
    }
    if !arguments.wait {
        if arguments.output != output::Form::Table {
            return output::value(&serde_json::to_value(&made).context("writing the operation")?, arguments.output);
        }
        eprintln!("follow it by: fluvial op wait {name} -n {namespace}");
        return Ok(());
    }
    wait(&client, &namespace, &name, arguments.timeout, arguments.output).await
}

/// Follows an operation on this terminal, and fails unless it is complete. Ctrl-C ends the waiting alone.
///
/// # Errors
/// As the operation ended, or that it goes on.
pub(crate) async fn wait(
    client: &Client,
    namespace: &str,
    name: &str,
    timeout: Option<Duration>,
    form: output::Form,
) -> Result<()> {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let mut progress = Progress::stderr();
    let path = super::backup::path_of(client, namespace, name).await?;
    let status = tokio::select! {
        status = follow_at(client, &path, (namespace, name), timeout.unwrap_or(DAY), &mut progress) => status?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("listening for Ctrl-C")?;
            bail!("{}", goes_on(namespace, name, "the waiting was interrupted"));
        }
    };
    match form {
        output::Form::Table => output::print(&summary(name, &status))?,
        form => output::value(&serde_json::to_value(&status).context("writing the status")?, form)?,
    }
    complete(name, &status)
}

/// Whether an operation ended well.
///
/// # Errors
/// How else it ended, and why.
pub(crate) fn complete(name: &str, status: &DataMigrateStatus) -> Result<()> {
    if status.phase == OperationPhase::Complete {
        return Ok(());
    }
    bail!("operation \"{name}\" is {}: {}: {}", status.phase.as_str(), status.reason, status.message)
}

fn goes_on(namespace: &str, name: &str, why: &str) -> String {
    format!(
        "operation \"{name}\": {why}; it goes on: follow it by `fluvial op wait {name} -n {namespace}`, or stop it by \
         `fluvial op cancel {name} -n {namespace}`"
    )
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

/// Follows an operation until it has ended, well or not. A hub that is away for a while is waited for.
///
/// # Errors
/// If it is deleted, or has not ended in time: then it goes on.
pub(crate) async fn follow(
    client: &Client,
    namespace: &str,
    name: &str,
    within: Duration,
    progress: &mut Progress,
) -> Result<DataMigrateStatus> {
    follow_at(client, &path(namespace, name)?, (namespace, name), within, progress).await
}

/// [`follow`] for an operation of any kind, by its API path: what is read of its status is alike in all.
async fn follow_at(
    client: &Client,
    path: &str,
    (namespace, name): (&str, &str),
    within: Duration,
    progress: &mut Progress,
) -> Result<DataMigrateStatus> {
    let deadline = Instant::now() + within;
    let ended = loop {
        match client::get(client, path, JSON).await {
            Ok(mut object) => {
                let status = object.get_mut("status").map(serde_json::Value::take).unwrap_or_default();
                let status: Option<DataMigrateStatus> =
                    serde_json::from_value(status).context("reading the hub's answer")?;
                let status = status.unwrap_or_default();
                progress.show(&status);
                if status.phase.is_final() {
                    break Ok(status);
                }
            }
            Err(failure) if failure.may_pass() => progress.trouble(&failure.to_string()),
            Err(failure) if failure.is_not_found() => {
                break Err(anyhow::anyhow!("operation \"{name}\" was deleted before its end"));
            }
            Err(failure) => break Err(failure.into()),
        }
        if Instant::now() >= deadline {
            break Err(anyhow::anyhow!(goes_on(namespace, name, &format!("it has not ended within {within:?}"))));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    progress.end();
    ended
}

/// The API path of an operation.
///
/// # Errors
/// If no operation can have that name.
pub(crate) fn path(namespace: &str, name: &str) -> Result<String> {
    in_path("namespace", namespace)?;
    Ok(objects::path(&DataMigrate::INFO, namespace, Some(in_path("operation", name)?)))
}

/// How an operation ended, in a line.
fn summary(name: &str, status: &DataMigrateStatus) -> String {
    let done = &status.progress;
    let took = if status.duration.is_empty() { String::new() } else { format!(" in {}", status.duration) };
    format!(
        "{name}: {}, {}, {}{took}: {}",
        status.phase.as_str(),
        output::count(done.files_done, "file", "files"),
        output::bytes(done.bytes_done),
        status.message
    )
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
    text.push_str("Considered:\n");
    for reason in &plan.reasons {
        text.push_str(&format!("  {}\n", output::plain(reason)));
    }
    output::print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_is_a_success() {
        let status = |phase| DataMigrateStatus {
            phase,
            reason: "NoSpace".to_owned(),
            message: "full".to_owned(),
            ..DataMigrateStatus::default()
        };
        assert!(complete("op", &status(OperationPhase::Complete)).is_ok());
        assert_eq!(
            complete("op", &status(OperationPhase::Failed)).unwrap_err().to_string(),
            "operation \"op\" is Failed: NoSpace: full"
        );
        assert!(complete("op", &status(OperationPhase::Cancelled)).is_err());
    }
}
