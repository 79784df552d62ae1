//! `fluvial repository`: where backups are kept.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use fluvial_model::kinds::backuprepository::{CHECK_REQUESTED, LIST_REQUESTED, PRUNE_REQUESTED};
use fluvial_model::kinds::{BackupRepository, BackupRepositorySpec, BackupRepositoryStatus, Retention};
use fluvial_model::meta::ConditionStatus;
use fluvial_model::resource::Resource as _;
use http::Method;
use kube::Client;
use serde_json::{Value, json};

use super::dataset::location_uri;
use super::get::{self, Which};
use super::options::{self, Keeper, Options};
use crate::args::duration;
use crate::client::{self, MERGE_PATCH};
use crate::kinds::in_path;
use crate::{objects, output};

/// Repositories stand in no namespace: their Secrets are kept in this one.
const SECRETS_IN: &str = "default";
/// The key of the password in the Secret.
const PASSWORD: &str = "password";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a BackupRepository, and the repository if there is none at the place.
    Create(Box<Create>),
    /// List BackupRepositories.
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: get::Form,
    },
    /// List the snapshots in a repository, the newest first.
    Snapshots {
        name: String,
        /// Have the repository listed now: others may have written to it.
        #[arg(long)]
        refresh: bool,
        /// How long to wait for that.
        #[arg(long, default_value = "10m", value_parser = duration)]
        timeout: Duration,
        #[arg(short, long, value_enum, default_value_t)]
        output: output::Form,
    },
    /// Check that all that snapshots need is there; exit 0 only if it is.
    Check {
        name: String,
        /// Read all contents, and compare them with what was written.
        #[arg(long)]
        read_data: bool,
        /// How long to wait; it goes on afterwards.
        #[arg(long, default_value = "24h", value_parser = duration)]
        timeout: Duration,
    },
    /// Forget what the repository's retention does not keep, and remove what no snapshot needs.
    Prune {
        name: String,
        /// How long to wait; it goes on afterwards.
        #[arg(long, default_value = "24h", value_parser = duration)]
        timeout: Duration,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    name: String,
    /// Where it is: s3://bucket/prefix, file:///dir or a local folder.
    #[arg(long)]
    uri: String,
    /// The cluster whose agent reaches it; needed for file://.
    #[arg(long, default_value = "")]
    cluster: String,
    /// The repository's password, kept in a Secret; @FILE or env:VARIABLE.
    #[arg(long, value_name = "VALUE")]
    password: String,
    #[command(flatten)]
    options: Options,
    /// Snapshots of each dataset to keep: the last ones, …
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,
    #[arg(long, value_name = "N")]
    keep_yearly: Option<u32>,
    /// … and all of this time before the newest, such as 30d.
    #[arg(long, value_name = "DURATION", default_value = "")]
    keep_within: String,
    /// Do not wait until it can be used.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "2m", value_parser = duration)]
    timeout: Duration,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, command: Command) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    match command {
        Command::Create(arguments) => create(&client, *arguments).await,
        Command::List { output } => get::one_kind(&client, "backuprepositories", Which::default(), output).await,
        Command::Snapshots { name, refresh, timeout, output } => {
            let status = if refresh {
                let text = request("");
                let listed = move |status: &BackupRepositoryStatus, text: &str| status.list_handled.ends_with(text);
                ask(&client, &name, (LIST_REQUESTED, &text), timeout, listed).await?
            } else {
                read(&client, &name).await?.status.unwrap_or_default()
            };
            match output {
                output::Form::Table => output::print(&table(&status)),
                form => output::value(&serde_json::to_value(&status.snapshots).context("writing the snapshots")?, form),
            }
        }
        Command::Check { name, read_data, timeout } => {
            let text = request(if read_data { "data-" } else { "" });
            let handled = |status: &BackupRepositoryStatus, text: &str| status.check_handled == text;
            let status = ask(&client, &name, (CHECK_REQUESTED, &text), timeout, handled).await?;
            let check = status.last_check.unwrap_or_default();
            if let Some(first) = check.problems.first() {
                bail!("repository \"{name}\" is damaged: {first}{}", more(&check.problems));
            }
            output::print(&format!(
                "{name}: {}, no problems",
                output::count(status.snapshot_count, "snapshot", "snapshots")
            ))
        }
        Command::Prune { name, timeout } => {
            let text = request("");
            let before = read(&client, &name).await?.status.unwrap_or_default().snapshot_count;
            let handled = |status: &BackupRepositoryStatus, text: &str| status.prune_handled == text;
            let status = ask(&client, &name, (PRUNE_REQUESTED, &text), timeout, handled).await?;
            let gone = before.saturating_sub(status.snapshot_count);
            let left = output::count(status.snapshot_count, "snapshot", "snapshots");
            output::print(&format!("{name}: {gone} forgotten, {left} left"))
        }
    }
}

async fn create(client: &Client, arguments: Create) -> Result<()> {
    let retention = Retention {
        keep_last: arguments.keep_last,
        keep_hourly: arguments.keep_hourly,
        keep_daily: arguments.keep_daily,
        keep_weekly: arguments.keep_weekly,
        keep_monthly: arguments.keep_monthly,
        keep_yearly: arguments.keep_yearly,
        keep_within: arguments.keep_within,
    };
    let options = arguments.options.sorted()?;
    let password = options::sort(BTreeMap::new(), BTreeMap::from([(PASSWORD.to_owned(), arguments.password)]))?;
    let mut secret = options.secret;
    secret.extend(password.secret);
    let name = &arguments.name;
    let keeper = Keeper::new(SECRETS_IN, format!("{name}-repository-options"), format!("repository.{name}"), secret);
    let (password, encrypt_options): (Vec<_>, Vec<_>) =
        keeper.references(true).into_iter().partition(|option| option.name == PASSWORD);
    let password = password.into_iter().next().context("the repository needs a password")?;
    let spec = BackupRepositorySpec {
        uri: location_uri(&arguments.uri).context("--uri")?,
        cluster: arguments.cluster,
        options: options.plain,
        encrypt_options,
        password_secret_ref: password.value_from.secret_key_ref,
        create: true,
        retention: (retention != Retention::default()).then_some(retention),
    };
    let object =
        serde_json::to_value(BackupRepository::new("", name, spec)).context("writing the repository as JSON")?;
    options::create_with(client, &objects::path(&BackupRepository::INFO, "", None), &object, &keeper).await?;
    if arguments.no_wait {
        return output::print(&format!("backuprepository.fluvial.io/{name} created"));
    }
    let judge = |found: Option<BackupRepository>| {
        let status = found.with_context(|| format!("repository \"{name}\" was deleted"))?.status.unwrap_or_default();
        let ready = status.conditions.iter().find(|condition| condition.kind == "Ready");
        match ready.map(|ready| (ready.status, ready.message.clone())) {
            Some((ConditionStatus::True, _)) => Ok(Some(status)),
            Some((ConditionStatus::False, message)) if !status.list_handled.is_empty() => {
                bail!("repository \"{name}\" is created but cannot be used: {message}")
            }
            _ => Ok(None),
        }
    };
    let status = objects::until(client, ("", name), arguments.timeout, "opening the repository", judge).await?;
    let holds = output::count(status.snapshot_count, "snapshot", "snapshots");
    output::print(&format!("backuprepository.fluvial.io/{name} created: {holds}"))
}

/// A text that was never asked for before.
fn request(prefix: &str) -> String {
    format!("{prefix}{}", jiff::Timestamp::now())
}

async fn read(client: &Client, name: &str) -> Result<BackupRepository> {
    let found = objects::get(client, "", in_path("repository", name)?).await?;
    found.with_context(|| format!("there is no BackupRepository \"{name}\""))
}

/// Sets an annotation, and waits until what it asks for was done.
async fn ask(
    client: &Client,
    name: &str,
    (annotation, text): (&str, &str),
    within: Duration,
    handled: impl Fn(&BackupRepositoryStatus, &str) -> bool,
) -> Result<BackupRepositoryStatus> {
    let path = objects::path(&BackupRepository::INFO, "", Some(in_path("repository", name)?));
    let patch: Value = json!({ "metadata": { "annotations": { annotation: text } } });
    client::write(client, Method::PATCH, &path, Some((MERGE_PATCH, &patch))).await?;
    let judge = |found: Option<BackupRepository>| {
        let status = found.with_context(|| format!("repository \"{name}\" was deleted"))?.status.unwrap_or_default();
        Ok(handled(&status, text).then_some(status))
    };
    let status = objects::until(client, ("", name), within, "it", judge).await?;
    let ready = status.conditions.iter().find(|condition| condition.kind == "Ready");
    // A check says itself what it found.
    if let Some(ready) = ready.filter(|ready| ready.status == ConditionStatus::False && ready.reason != "Damaged") {
        bail!("repository \"{name}\": {}", ready.message);
    }
    Ok(status)
}

fn more(problems: &[String]) -> String {
    match problems.len() {
        0 | 1 => String::new(),
        n => format!(" (and {} more; see `fluvial describe backuprepository`)", n - 1),
    }
}

fn table(status: &BackupRepositoryStatus) -> String {
    let headings = ["ID", "Time", "Dataset", "Files", "Bytes", "Added", "Root"].map(str::to_owned);
    let short = |text: &str| text.chars().take(8).collect::<String>();
    let row = |snapshot: &fluvial_model::kinds::SnapshotInfo| {
        let what = if snapshot.dataset.is_empty() { snapshot.paths.join(", ") } else { snapshot.dataset.clone() };
        vec![
            short(&snapshot.id),
            snapshot.time.to_string(),
            output::plain(&what),
            snapshot.files.to_string(),
            output::bytes(snapshot.bytes),
            output::bytes(snapshot.added_bytes),
            short(&snapshot.root),
        ]
    };
    output::table(&headings, status.snapshots.iter().map(row).collect(), &[3, 4, 5])
}
