//! Operations of any kind: made, followed to their end, told to stop.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use fluvial_model::kinds::{DataBackup, DataLoad, DataMigrate, DataRestore, OperationPhase, Progress as Done};
use fluvial_model::resource::{KindInfo, Resource as _};
use kube::Client;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::progress::Progress;
use crate::args::{Namespace, duration};
use crate::client::{self, JSON};
use crate::kinds::in_path;
use crate::{objects, output};

/// How often an operation is looked at while it is followed.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long an operation is followed if nobody says.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The kinds of operations.
pub(crate) const KINDS: [&KindInfo; 4] = [&DataMigrate::INFO, &DataLoad::INFO, &DataBackup::INFO, &DataRestore::INFO];

/// What the statuses of all kinds have in common.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Standing {
    pub phase: OperationPhase,
    pub reason: String,
    pub message: String,
    pub progress: Done,
    pub duration: String,
}

/// What every command that begins an operation is told of it: where, under which name, and whether it is followed.
#[derive(Debug, Args)]
pub(crate) struct Begin {
    /// Follow it to its end; exit 0 only if it is complete.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait; it goes on afterwards. 24h if not given.
    #[arg(long, value_parser = duration)]
    pub timeout: Option<Duration>,
    /// The operation's name; made from the dataset's if not given.
    #[arg(long)]
    pub name: Option<String>,
    #[command(flatten)]
    pub namespace: Namespace,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: output::Form,
}

/// An operation: its kind, namespace and name.
pub(crate) type Named<'a> = (&'a KindInfo, &'a str, &'a str);

/// Says that an operation was made, and follows it if that is wished.
///
/// # Errors
/// See [`wait`].
pub(crate) async fn begun(client: &Client, named: Named<'_>, made: &Value, begin: &Begin) -> Result<()> {
    let (info, namespace, name) = named;
    let table = begin.output == output::Form::Table;
    if table {
        output::print(&format!("{}.{}/{name} created", info.singular, info.group))?;
    }
    if begin.wait {
        return wait(client, named, begin.timeout, begin.output).await;
    }
    if !table {
        return output::value(made, begin.output);
    }
    eprintln!("follow it by: fluvial op wait {name} -n {namespace}");
    Ok(())
}

/// The operation of this name.
///
/// # Errors
/// If there is none, or several of different kinds.
pub(crate) async fn find(client: &Client, namespace: &str, name: &str) -> Result<&'static KindInfo> {
    let mut found: Vec<&'static KindInfo> = Vec::new();
    for info in KINDS {
        match client::get(client, &path(info, namespace, name)?, JSON).await {
            Ok(_) => found.push(info),
            Err(failure) if failure.is_not_found() => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    match found.as_slice() {
        [one] => Ok(one),
        [] => bail!("there is no operation \"{name}\" in namespace \"{namespace}\""),
        several => {
            let kinds: Vec<&str> = several.iter().map(|info| info.kind).collect();
            bail!("\"{name}\" is the name of several operations: {}", kinds.join(", "))
        }
    }
}

/// Follows an operation on this terminal, and fails unless it is complete. Ctrl-C ends the waiting alone.
///
/// # Errors
/// As the operation ended, or that it goes on.
pub(crate) async fn wait(
    client: &Client,
    named: Named<'_>,
    timeout: Option<Duration>,
    form: output::Form,
) -> Result<()> {
    let (_, namespace, name) = named;
    let mut progress = Progress::stderr();
    let status = tokio::select! {
        status = follow(client, named, timeout.unwrap_or(DAY), &mut progress) => status?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("listening for Ctrl-C")?;
            bail!("{}", goes_on(namespace, name, "the waiting was interrupted"));
        }
    };
    match form {
        output::Form::Table => output::print(&summary(name, &standing(&status)?))?,
        form => output::value(&status, form)?,
    }
    complete(name, &standing(&status)?)
}

/// Whether an operation ended well.
///
/// # Errors
/// How else it ended, and why.
pub(crate) fn complete(name: &str, status: &Standing) -> Result<()> {
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

/// Follows an operation until it has ended, well or not, and returns its status. A hub that is away for a while is waited for.
///
/// # Errors
/// If it is deleted, or has not ended in time: then it goes on.
pub(crate) async fn follow(
    client: &Client,
    named: Named<'_>,
    within: Duration,
    progress: &mut Progress,
) -> Result<Value> {
    let (info, namespace, name) = named;
    let path = path(info, namespace, name)?;
    let deadline = Instant::now() + within;
    let ended = loop {
        match client::get(client, &path, JSON).await {
            Ok(object) => {
                let status = object.get("status").cloned().unwrap_or_default();
                let now = if status.is_null() { Standing::default() } else { standing(&status)? };
                progress.show(&now);
                if now.phase.is_final() {
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
pub(crate) fn path(info: &KindInfo, namespace: &str, name: &str) -> Result<String> {
    in_path("namespace", namespace)?;
    Ok(objects::path(info, namespace, Some(in_path("operation", name)?)))
}

/// How an operation ended, in a line.
fn summary(name: &str, status: &Standing) -> String {
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

fn standing(status: &Value) -> Result<Standing> {
    serde_json::from_value(status.clone()).context("reading the hub's answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_is_a_success() {
        let status =
            |phase| Standing { phase, reason: "NoSpace".to_owned(), message: "full".to_owned(), ..Standing::default() };
        assert!(complete("op", &status(OperationPhase::Complete)).is_ok());
        assert_eq!(
            complete("op", &status(OperationPhase::Failed)).unwrap_err().to_string(),
            "operation \"op\" is Failed: NoSpace: full"
        );
        assert!(complete("op", &status(OperationPhase::Cancelled)).is_err());
    }
}
