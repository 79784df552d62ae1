//! `fluvial watch`: a line for each change, for as long as it is read.
//!
//! Invariant: no change of state is missed and none shown twice: after a break the watch goes on from the last version
//! seen, and where the hub has forgotten that, everything is listed and compared.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use http::Method;
use http_body_util::BodyExt as _;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::get::{self, Which};
use crate::args::{Namespace, duration};
use crate::client::{self, Call, Failure, JSON};
use crate::kinds::{Kind, Kinds};
use crate::output;

/// Pauses between attempts to go on, the first and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// A quiet watch hears a bookmark every 10 s: after this silence the connection is dead.
const SILENCE: Duration = Duration::from_secs(45);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    /// What happened, which object, its generation and phase.
    #[default]
    Table,
    /// One JSON object a line: {"type", "object"}.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A kind: plural, singular or short name.
    kind: String,
    /// One object.
    name: Option<String>,
    #[command(flatten)]
    namespace: Namespace,
    /// In all namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "name"])]
    all_namespaces: bool,
    /// Only objects with these labels.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
    /// End after this time; without it, when interrupted.
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, arguments: Arguments) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    let kinds = Kinds::discover(&client).await?;
    let kind = kinds.named(&arguments.kind)?;
    let fields = arguments.name.as_deref().map(|name| crate::kinds::in_path(&kind.singular, name)).transpose()?;
    let fields = fields.map(|name| format!("metadata.name={name}"));
    let which = Which {
        namespace: (!arguments.all_namespaces).then(|| arguments.namespace.of(&client)),
        name: None,
        labels: arguments.selector.as_deref(),
        fields: fields.as_deref(),
    };
    let mut watch =
        Watch { client: &client, kind, which, form: arguments.output, seen: BTreeMap::new(), version: String::new() };
    match arguments.timeout {
        // The time was the user's to choose: that it is over is no failure.
        Some(limit) => tokio::time::timeout(limit, watch.follow()).await.unwrap_or(Ok(())),
        None => watch.follow().await,
    }
}

struct Watch<'a> {
    client: &'a Client,
    kind: &'a Kind,
    which: Which<'a>,
    form: Form,
    /// The version of each object as it was shown last, by namespace and name.
    seen: BTreeMap<(String, String), Value>,
    version: String,
}

fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|meta| meta.get(field)).and_then(Value::as_str).unwrap_or_default()
}

fn key(object: &Value) -> (String, String) {
    (meta(object, "namespace").to_owned(), meta(object, "name").to_owned())
}

impl Watch<'_> {
    async fn follow(&mut self) -> Result<()> {
        self.list().await?;
        let mut pause = PAUSES.0;
        loop {
            let begun = Instant::now();
            let ended = self.stream().await;
            if begun.elapsed() > PAUSES.1 {
                pause = PAUSES.0;
            }
            match ended {
                // A watch ends after half an hour: the next one goes on from there.
                Ok(()) => {}
                Err(error) => match error.downcast_ref::<Failure>() {
                    Some(failure) if failure.code() == Some(410) => self.version.clear(),
                    Some(failure) if failure.may_pass() => {}
                    Some(Failure::Answer { .. }) => {}
                    _ => return Err(error),
                },
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
            if self.version.is_empty()
                && let Err(error) = self.list().await
                && !error.downcast_ref::<Failure>().is_some_and(Failure::may_pass)
            {
                return Err(error);
            }
        }
    }

    /// Shows how what is there now differs from what was shown.
    async fn list(&mut self) -> Result<()> {
        let mut list = get::fetch(self.client, self.kind, self.which, JSON).await?;
        meta(&list, "resourceVersion").clone_into(&mut self.version);
        let items = list.get_mut("items").map(Value::take);
        let Some(Value::Array(items)) = items else { return Ok(()) };
        let mut gone = std::mem::take(&mut self.seen);
        for mut object in items {
            // Items of a list do not repeat their kind.
            if let Some(fields) = object.as_object_mut() {
                fields.entry("apiVersion").or_insert_with(|| json!(self.kind.api_version()));
                fields.entry("kind").or_insert_with(|| json!(self.kind.kind));
            }
            let known = gone.remove(&key(&object));
            match known {
                Some(known) if meta(&known, "resourceVersion") == meta(&object, "resourceVersion") => {
                    self.seen.insert(key(&object), known);
                }
                Some(_) => self.show("MODIFIED", object)?,
                None => self.show("ADDED", object)?,
            }
        }
        for object in gone.into_values() {
            self.show("DELETED", object)?;
        }
        Ok(())
    }

    async fn stream(&mut self) -> Result<()> {
        let path = self.kind.collection(self.which.namespace)?;
        let mut query =
            vec![("watch", "true"), ("allowWatchBookmarks", "true"), ("resourceVersion", self.version.as_str())];
        query.extend(self.which.labels.map(|labels| ("labelSelector", labels)));
        query.extend(self.which.fields.map(|fields| ("fieldSelector", fields)));
        let path = client::with_query(&path, query);
        let call = Call { method: Method::GET, path: &path, content: None, accept: JSON };
        let mut body = client::open(self.client, call).await?.into_body();
        let broken = |source| Failure::Answer { path: path.clone(), source };
        let mut held: Vec<u8> = Vec::new();
        loop {
            let frame = tokio::time::timeout(SILENCE, body.frame()).await.map_err(|_| Failure::Silent)?;
            let Some(frame) = frame else { return Ok(()) };
            let frame = frame.map_err(|error| broken(error.into()))?;
            let Ok(data) = frame.into_data() else { continue };
            held.extend_from_slice(&data);
            while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = held.drain(..=end).collect();
                let event = serde_json::from_slice(&line).map_err(|error| broken(error.into()))?;
                self.event(event)?;
            }
        }
    }

    fn event(&mut self, mut event: Value) -> Result<()> {
        let object = event.get_mut("object").map(Value::take).unwrap_or_default();
        let kind = event.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if kind == "ERROR" {
            let status = serde_json::from_value(object).context("reading why the watch ended")?;
            return Err(Failure::Refused(Box::new(status)).into());
        }
        meta(&object, "resourceVersion").clone_into(&mut self.version);
        if kind == "BOOKMARK" { Ok(()) } else { self.show(&kind, object) }
    }

    fn show(&mut self, what: &str, mut object: Value) -> Result<()> {
        if self.kind.is_secret() {
            output::hide_secrets(&mut object);
        }
        match self.form {
            Form::Json => output::print(&json!({ "type": what, "object": object }).to_string())?,
            Form::Table => output::print(&line(what, self.kind, self.which.namespace.is_none(), &object))?,
        }
        if what == "DELETED" {
            self.seen.remove(&key(&object));
        } else {
            // What is compared and what is shown of an object that is gone; the rest need not be kept.
            let mut short = json!({ "metadata": object.get("metadata") });
            if let Some(fields) = object.get_mut("status").filter(|_| self.form == Form::Table) {
                short["status"] = fields.take();
            }
            let kept = if self.form == Form::Json { object } else { short };
            self.seen.insert(key(&kept), kept);
        }
        Ok(())
    }
}

/// `MODIFIED   dataset.data.fluid.io/d   generation=2 phase=Bound`
fn line(what: &str, kind: &Kind, everywhere: bool, object: &Value) -> String {
    let name = kind.object(&output::plain(meta(object, "name")));
    let place = if everywhere && kind.namespaced {
        format!("{}/", output::plain(meta(object, "namespace")))
    } else {
        String::new()
    };
    let facts = [
        ("generation", "/metadata/generation"),
        ("state", "/status/state"),
        ("phase", "/status/phase"),
        ("reason", "/status/reason"),
        ("message", "/message"),
    ];
    let facts = facts.iter().filter_map(|(label, pointer)| {
        let value = object.pointer(pointer).map(output::cell).filter(|text| !text.is_empty())?;
        Some(format!("{label}={value}"))
    });
    let deleting = (!meta(object, "deletionTimestamp").is_empty()).then(|| "deleting".to_owned());
    let facts: Vec<String> = facts.chain(deleting).collect();
    format!("{what:<8}   {place}{name}   {}", facts.join(" ")).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_line() {
        let kind = Kind {
            group: "fluvial.io".into(),
            version: "v1alpha1".into(),
            kind: "Cluster".into(),
            plural: "clusters".into(),
            singular: "cluster".into(),
            short_names: vec![],
            namespaced: false,
        };
        let object = json!({
            "metadata": { "name": "a", "generation": 2, "deletionTimestamp": "T" }, "status": { "state": "Leaving" },
        });
        assert_eq!(
            line("MODIFIED", &kind, true, &object),
            "MODIFIED   cluster.fluvial.io/a   generation=2 state=Leaving deleting"
        );
        assert_eq!(
            line("ADDED", &kind, false, &json!({ "metadata": { "name": "b" } })),
            "ADDED      cluster.fluvial.io/b"
        );
    }
}
