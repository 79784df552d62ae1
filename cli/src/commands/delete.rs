//! `fluvial delete`: removes an object, and waits until it is gone if asked to.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use http::Method;
use kube::Client;
use serde_json::Value;
use tokio::time::Instant;

use crate::args::{Namespace, duration};
use crate::client::{self, JSON};
use crate::kinds::Kinds;
use crate::output;

/// How often an object that is going is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A kind: plural, singular or short name.
    kind: String,
    name: String,
    #[command(flatten)]
    namespace: Namespace,
    /// Wait until it is gone.
    #[arg(long)]
    wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, arguments: Arguments) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    let kinds = Kinds::discover(&client).await?;
    let kind = kinds.named(&arguments.kind)?;
    let shown = kind.object(&arguments.name);
    let path = kind.one(arguments.namespace.of(&client), &arguments.name)?;
    match remove(&client, &path).await? {
        None => output::print(&format!("{shown} deleted")),
        Some(left) if arguments.wait => {
            gone(&client, &path, &left, arguments.timeout).await?;
            output::print(&format!("{shown} deleted"))
        }
        Some(left) => output::print(&format!("{shown} is being deleted: waits for {}", finalizers(&left))),
    }
}

/// Deletes what is at a path. The object as it is now, if it stays until its finalizers are done.
///
/// # Errors
/// With what the hub says.
pub(crate) async fn remove(client: &Client, path: &str) -> Result<Option<Value>> {
    let answer = client::write(client, Method::DELETE, path, None).await?;
    let done = answer.get("kind").and_then(Value::as_str) == Some("Status");
    Ok((!done).then_some(answer))
}

fn finalizers(object: &Value) -> String {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

fn uid(object: &Value) -> Option<&str> {
    object.pointer("/metadata/uid").and_then(Value::as_str)
}

/// Waits until an object is gone, or another has taken its name. A hub that is away for a moment is waited for.
///
/// # Errors
/// If it takes too long: the deletion goes on.
pub(crate) async fn gone(client: &Client, path: &str, object: &Value, within: Duration) -> Result<()> {
    let deadline = Instant::now() + within;
    let mut last = object.clone();
    loop {
        match client::get(client, path, JSON).await {
            Ok(now) if uid(&now) != uid(object) => return Ok(()),
            Ok(now) => last = now,
            Err(failure) if failure.is_not_found() => return Ok(()),
            Err(failure) if failure.may_pass() && Instant::now() < deadline => {}
            Err(failure) => return Err(failure.into()),
        }
        if Instant::now() >= deadline {
            bail!("it is still there after {within:?} and waits for {}; its deletion goes on", finalizers(&last));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
