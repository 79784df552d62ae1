//! Objects of the model's kinds, typed, over the hub's API.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fluvial_model::resource::{KindInfo, Resource, Scope};
use kube::Client;
use serde_json::Value;
use tokio::time::Instant;

use crate::client::{self, JSON};

/// How often an object is looked at while waiting for it.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The API path of all objects of a kind in a namespace, or of one.
pub(crate) fn path(info: &KindInfo, namespace: &str, name: Option<&str>) -> String {
    let root = if info.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", info.group) };
    let space = match info.scope {
        Scope::Namespaced => format!("/namespaces/{namespace}"),
        Scope::Cluster => String::new(),
    };
    let name = name.map(|name| format!("/{name}")).unwrap_or_default();
    format!("{root}/{}{space}/{}{name}", info.version, info.plural)
}

/// Reads an object; none if there is no such one.
///
/// # Errors
/// With what the hub says of it.
pub(crate) async fn get<R: Resource>(client: &Client, namespace: &str, name: &str) -> Result<Option<R>> {
    match client::get(client, &path(&R::INFO, namespace, Some(name)), JSON).await {
        Ok(object) => serde_json::from_value(object).map(Some).context("reading the hub's answer"),
        Err(failure) if failure.is_not_found() => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

/// Every object of a kind in a namespace.
///
/// # Errors
/// With what the hub says.
pub(crate) async fn list<R: Resource>(client: &Client, namespace: &str) -> Result<Vec<R>> {
    let all = client::get(client, &path(&R::INFO, namespace, None), JSON).await?;
    let items = all.get("items").and_then(Value::as_array).into_iter().flatten();
    items.map(R::from_value).collect::<Result<_, _>>().with_context(|| format!("reading the {}", R::INFO.plural))
}

/// Looks at an object until `judge` gives something, at most for `limit`.
///
/// # Errors
/// What `judge` says, or that `what` took too long.
pub(crate) async fn until<R: Resource, T>(
    client: &Client,
    (namespace, name): (&str, &str),
    limit: Duration,
    what: &str,
    mut judge: impl FnMut(Option<R>) -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = judge(get(client, namespace, name).await?)? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!(
                "{what} is not done after {limit:?}; it goes on: look at it with `fluvial get {} {name}`",
                R::INFO.singular
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
