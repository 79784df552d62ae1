//! `fluvial dataset`: creates datasets and looks into them.

mod mounts;
mod tree;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use fluvial_model::kinds::{Dataset, DatasetSpec, DatasetStatus, Mount};
use fluvial_model::meta::ConditionStatus;
use fluvial_model::resource::Resource as _;
use fluvial_model::upkeep::rescan;
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

pub(crate) use self::mounts::location_uri;
use super::options::{self, Keeper, Options, Sorted};
use crate::args::{Namespace, duration, pair};
use crate::client::{self, JSON, MERGE_PATCH};
use crate::kinds::in_path;
use crate::{objects, output};

/// How often a dataset is looked at while it is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long sources may be unreadable before that is taken for the answer: an agent tries again meanwhile.
const UNREADABLE_FOR: Duration = Duration::from_secs(5);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a dataset from one or more sources.
    Create(Create),
    /// List a directory of a dataset.
    Ls(tree::Ls),
    /// Write a file of a dataset to stdout.
    Cat(tree::Cat),
    /// Show what differs between two versions, or between two datasets.
    Diff(tree::Diff),
    /// List the sources of a dataset again, and make what they hold now its version.
    Rescan(Rescan),
}

#[derive(Debug, Args)]
pub(crate) struct Rescan {
    name: String,
    #[command(flatten)]
    namespace: Namespace,
    /// Do not wait for the listing.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "10m", value_parser = duration)]
    timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    name: String,
    /// A source: s3://, oss:// or gs://bucket/prefix, azblob://container/prefix, file:///dir or a local folder, and where it
    /// appears, /… after a '='. One source without a path is the dataset's root; of several, each appears under its last part.
    #[arg(long = "mount", value_name = "URI[=PATH]", required = true)]
    mounts: Vec<String>,
    #[command(flatten)]
    options: Options,
    /// What its mounts may do: ReadOnlyMany (the default), ReadWriteOnce or ReadWriteMany.
    #[arg(long = "access-mode", value_name = "MODE", value_parser = ["ReadOnlyMany", "ReadWriteOnce", "ReadWriteMany"])]
    access_modes: Vec<String>,
    /// A label of the dataset.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// List the sources again and again, this long after the last time, such as 10m.
    #[arg(long, value_name = "DURATION")]
    rescan_every: Option<String>,
    #[command(flatten)]
    namespace: Namespace,
    /// Wait until its content is known, and print the totals.
    #[arg(long)]
    wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "10m", value_parser = duration)]
    timeout: Duration,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, command: Command) -> Result<()> {
    match command {
        Command::Create(arguments) => {
            let mounts = mounts::read(&arguments.mounts)?;
            let wish = Wish {
                name: arguments.name,
                mounts,
                labels: arguments.labels.into_iter().collect(),
                rescan_every: arguments.rescan_every,
                access_modes: arguments.access_modes,
                options: arguments.options.sorted()?,
            };
            let client = client::connect(kubeconfig).await?;
            let namespace = arguments.namespace.of(&client);
            let made = create(&client, namespace, wish).await?;
            output::print(&format!("dataset.data.fluid.io/{} created", made.metadata.name))?;
            if !arguments.wait {
                return Ok(());
            }
            let scanned = scanned(&client, namespace, &made.metadata.name, arguments.timeout, "").await?;
            output::print(&totals(&made.metadata.name, &scanned))
        }
        Command::Ls(arguments) => tree::ls(&client::connect(kubeconfig).await?, arguments).await,
        Command::Cat(arguments) => tree::cat(&client::connect(kubeconfig).await?, arguments).await,
        Command::Diff(arguments) => tree::diff(&client::connect(kubeconfig).await?, arguments).await,
        Command::Rescan(arguments) => rescan(&client::connect(kubeconfig).await?, arguments).await,
    }
}

/// Asks for a listing, and, unless told not to, waits for it.
async fn rescan(client: &Client, arguments: Rescan) -> Result<()> {
    let Rescan { name, namespace, no_wait, timeout } = arguments;
    let namespace = namespace.of(client);
    let request = jiff::Timestamp::now().to_string();
    let patch = json!({ "metadata": { "annotations": { rescan::REQUESTED: request } } });
    let before = client::write(client, Method::PATCH, &path(namespace, &name)?, Some((MERGE_PATCH, &patch))).await?;
    if no_wait {
        return output::print(&format!("dataset.data.fluid.io/{name} is listed again"));
    }
    let before = Dataset::from_value(&before).context("reading the hub's answer")?.status.unwrap_or_default();
    let after = scanned(client, namespace, &name, timeout, &request).await?;
    let changed = if before.root == after.root { "; nothing changed" } else { "; a new version" };
    output::print(&format!("{}{changed}", totals(&name, &after)))
}

/// A dataset to be made.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    pub name: String,
    /// Where the bytes are and where they appear.
    pub mounts: Vec<Mount>,
    pub labels: BTreeMap<String, String>,
    /// The time between two listings of the sources.
    pub rescan_every: Option<String>,
    /// What its mounts may do.
    pub access_modes: Vec<String>,
    /// Of every mount that is no local folder; of all mounts if all are.
    pub options: Sorted,
}

/// Creates a dataset, and the Secret with its secret options.
///
/// # Errors
/// With what the hub says; then neither exists.
pub(crate) async fn create(client: &Client, namespace: &str, wish: Wish) -> Result<Dataset> {
    let Wish { name, mut mounts, labels, rescan_every, access_modes, options } = wish;
    let owner = format!("dataset.{name}");
    let keeper = Keeper::new(namespace, format!("{name}-options"), owner, options.secret);
    let local = |mount: &Mount| mount.mount_point.starts_with("file://");
    let all = mounts.iter().all(local);
    for mount in mounts.iter_mut().filter(|mount| all || !local(mount)) {
        mount.options.clone_from(&options.plain);
        mount.encrypt_options = keeper.references(false);
    }
    let mut dataset = Dataset::new(namespace, &name, DatasetSpec { mounts, access_modes, ..DatasetSpec::default() });
    dataset.metadata.labels = labels;
    dataset.metadata.annotations.extend(rescan_every.map(|every| (rescan::EVERY.to_owned(), every)));
    let object = serde_json::to_value(&dataset).context("writing the dataset as JSON")?;
    in_path("namespace", namespace)?;
    let path = objects::path(&Dataset::INFO, namespace, None);
    let made = options::create_with(client, &path, &object, &keeper).await?;
    Dataset::from_value(&made).context("reading the hub's answer")
}

/// Waits until the content of a dataset is known, as asked for by `request` if it is not empty. A hub that is away for a
/// moment is waited for.
///
/// # Errors
/// If its sources cannot be read, or it takes too long: the scan goes on.
pub(crate) async fn scanned(
    client: &Client,
    namespace: &str,
    name: &str,
    within: Duration,
    request: &str,
) -> Result<DatasetStatus> {
    let path = path(namespace, name)?;
    let deadline = Instant::now() + within;
    let mut unreadable_since = None;
    let mut last = "nothing is known of it yet".to_owned();
    loop {
        match client::get(client, &path, JSON).await {
            Ok(object) => {
                let dataset = Dataset::from_value(&object).context("reading the hub's answer")?;
                let status = dataset.status.unwrap_or_default();
                let condition = status.conditions.iter().find(|condition| condition.kind == "Scanned");
                let reason = condition.map_or("", |condition| condition.reason.as_str());
                let current = status.observed_generation == dataset.metadata.generation;
                if current && status.root.is_some() && (request.is_empty() || status.rescan_handled == request) {
                    return Ok(status);
                }
                if let Some(condition) = condition.filter(|condition| condition.status == ConditionStatus::False) {
                    last.clone_from(&condition.message);
                }
                let never = ["Unsupported", "NoMounts"].contains(&reason);
                let since = (reason == "SourceUnreadable").then(Instant::now);
                unreadable_since = since.and(unreadable_since).or(since);
                if never || unreadable_since.is_some_and(|since| since.elapsed() > UNREADABLE_FOR) {
                    bail!("dataset \"{name}\": {last}");
                }
            }
            Err(failure) if failure.may_pass() => last = failure.to_string(),
            Err(failure) => return Err(failure.into()),
        }
        if Instant::now() >= deadline {
            bail!(
                "dataset \"{name}\" was not scanned within {within:?}: {last}; the scan goes on: look at it by \
                 `fluvial describe dataset {name} -n {namespace}`"
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What a dataset holds, in a line.
pub(crate) fn totals(name: &str, status: &DatasetStatus) -> String {
    let by = status.source_cluster.as_deref().map(|cluster| format!(", listed by {cluster}")).unwrap_or_default();
    format!(
        "{name}: {}, {}, {} ({}){by}",
        output::count(status.files, "file", "files"),
        output::count(status.directories, "directory", "directories"),
        output::bytes(status.total_bytes),
        output::count(status.total_bytes, "byte", "bytes"),
    )
}

/// The API path of a dataset.
///
/// # Errors
/// If no dataset can have that name.
pub(crate) fn path(namespace: &str, name: &str) -> Result<String> {
    in_path("namespace", namespace)?;
    Ok(objects::path(&Dataset::INFO, namespace, Some(in_path("dataset", name)?)))
}

/// The manifest root of the current version of a dataset.
async fn root(client: &Client, namespace: &str, name: &str) -> Result<String> {
    let object = client::get(client, &path(namespace, name)?, JSON).await?;
    let root = object.pointer("/status/root").and_then(Value::as_str).map(str::to_owned);
    root.with_context(|| format!("dataset \"{name}\" was not scanned yet: its content is not known"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_one_line() {
        let status = DatasetStatus {
            files: 2,
            directories: 1,
            total_bytes: 3 << 20,
            source_cluster: Some("a".to_owned()),
            ..DatasetStatus::default()
        };
        assert_eq!(totals("d", &status), "d: 2 files, 1 directory, 3.00 MiB (3145728 bytes), listed by a");
    }
}
