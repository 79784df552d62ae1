//! `fluvial apply`: makes objects be what documents say.
//!
//! What was applied is noted in the annotation that `kubectl apply` uses, so that both can be mixed, and a field that
//! is taken out of a document is taken out of the object. Secrets carry no such note: their data is replaced as a whole.
//!
//! Invariant: every document is tried without effect before the first is written, so that a mistake in the last one
//! leaves nothing half done.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http::Method;
use kube::Client;
use kube::core::Status;
use serde::Deserialize as _;
use serde_json::{Map, Value, json};

use crate::args::Namespace;
use crate::client::{self, Failure, JSON, MERGE_PATCH};
use crate::kinds::{Kind, Kinds};
use crate::output;

/// Where `kubectl apply` notes what it applied.
pub(crate) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The most that is read: far above what a hub takes in one object, for files of many.
const MAX_INPUT: u64 = 64 * 1024 * 1024;
/// Attempts where another writer comes in between.
const ROUNDS: usize = 4;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// YAML or JSON, one or many documents; - is stdin.
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Where objects go that name no namespace.
    #[command(flatten)]
    namespace: Namespace,
    /// Only try it: nothing is written.
    #[arg(long)]
    dry_run: bool,
}

/// What became of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Created,
    Configured,
    Unchanged,
}

impl Done {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

/// A document that names a kind of the hub and an object.
struct Document<'a> {
    /// File and number, for errors.
    at: String,
    kind: &'a Kind,
    namespace: String,
    name: String,
    body: Value,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, arguments: Arguments) -> Result<()> {
    let mut found = Vec::new();
    for file in &arguments.files {
        found.extend(documents(&file.display().to_string(), &read(file)?)?);
    }
    if found.is_empty() {
        bail!("there is no document in what was given: nothing to apply");
    }
    let client = client::connect(kubeconfig).await?;
    let kinds = Kinds::discover(&client).await?;
    let namespace = arguments.namespace.of(&client).to_owned();
    let found =
        found.into_iter().map(|(at, body)| understood(&kinds, &namespace, at, body)).collect::<Result<Vec<_>>>()?;
    let mut outcomes = Vec::new();
    for (position, document) in found.iter().enumerate() {
        outcomes.push(tried(&client, document, &found[..position]).await?);
    }
    for (document, would) in found.iter().zip(outcomes) {
        let shown = document.kind.object(&document.name);
        if arguments.dry_run {
            output::print(&format!("{shown} {} (dry run)", would.as_str()))?;
        } else {
            let done = bring(&client, document, false).await.with_context(|| format!("{}: {shown}", document.at))?;
            output::print(&format!("{shown} {}", done.as_str()))?;
        }
    }
    Ok(())
}

fn read(file: &PathBuf) -> Result<String> {
    let shown = || format!("reading {}", file.display());
    let mut text = String::new();
    let size = if file.as_os_str() == "-" {
        std::io::stdin().lock().take(MAX_INPUT + 1).read_to_string(&mut text).context("reading stdin")?
    } else {
        std::fs::File::open(file)
            .with_context(shown)?
            .take(MAX_INPUT + 1)
            .read_to_string(&mut text)
            .with_context(shown)?
    };
    if size as u64 > MAX_INPUT {
        bail!("{} has more than {MAX_INPUT} bytes", file.display());
    }
    Ok(text)
}

/// The documents of a text and where each stands; lists are taken apart, empty ones left out.
fn documents(file: &str, text: &str) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for (position, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let at = format!("{file}, document {}", position + 1);
        let value = Value::deserialize(document).with_context(|| at.clone())?;
        match value {
            Value::Null => {}
            Value::Object(mut fields) if fields.get("kind") == Some(&json!("List")) => {
                let Some(Value::Array(items)) = fields.remove("items") else { bail!("{at}: a List without items") };
                found.extend(items.into_iter().enumerate().map(|(n, item)| (format!("{at}, item {}", n + 1), item)));
            }
            value => found.push((at, value)),
        }
    }
    Ok(found)
}

fn understood<'a>(kinds: &'a Kinds, namespace: &str, at: String, mut body: Value) -> Result<Document<'a>> {
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
    for (field, value) in [("apiVersion", &api_version), ("kind", &kind), ("metadata.name", &name)] {
        if value.is_empty() {
            bail!("{at}: {field}: required value: a text");
        }
    }
    let found = kinds.of(&api_version, &kind);
    let kind = found.with_context(|| {
        format!(
            "{at}: apiVersion \"{}\", kind \"{}\": the hub serves no such kind",
            output::plain(&api_version),
            output::plain(&kind)
        )
    })?;
    let own = text("/metadata/namespace");
    let namespace = if own.is_empty() { namespace.to_owned() } else { own };
    let metadata = body.pointer_mut("/metadata").and_then(Value::as_object_mut);
    let metadata = metadata.with_context(|| format!("{at}: metadata: must be an object"))?;
    if kind.namespaced {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    // What the hub says of an object, not what a user asks for.
    for field in ["resourceVersion", "uid", "creationTimestamp", "generation", "managedFields"] {
        metadata.remove(field);
    }
    if !kind.is_secret() {
        let mut noted = body.clone();
        if let Some(annotations) = noted.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
        let metadata = body.pointer_mut("/metadata").and_then(Value::as_object_mut).context("metadata")?;
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if annotations.is_null() {
            *annotations = json!({});
        }
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(LAST_APPLIED.to_owned(), json!(format!("{noted}\n")));
        }
    }
    Ok(Document { at, kind, namespace, name, body })
}

/// Applies a document without effect. What it refers to may be an earlier document's to make.
async fn tried(client: &Client, document: &Document<'_>, earlier: &[Document<'_>]) -> Result<Done> {
    match bring(client, document, true).await {
        Ok(done) => Ok(done),
        Err(error) => {
            let status = error.downcast_ref::<Failure>().and_then(|failure| match failure {
                Failure::Refused(status) => Some(status.as_ref()),
                _ => None,
            });
            if status.is_some_and(|status| waits_for(status, document, earlier)) {
                return Ok(Done::Created);
            }
            let shown = document.kind.object(&document.name);
            Err(error.context(format!("{}: {shown}", document.at)).context("nothing was changed"))
        }
    }
}

/// Whether all that a refusal misses is made by documents before this one.
fn waits_for(status: &Status, document: &Document<'_>, earlier: &[Document<'_>]) -> bool {
    let made =
        |kind: &str, name: &str| earlier.iter().any(|e| e.kind.kind.eq_ignore_ascii_case(kind) && e.name == name);
    let Some(details) = &status.details else { return false };
    if status.code == 404 {
        return details.kind == "namespaces" && made("Namespace", &document.namespace);
    }
    let promised =
        |text: &str| earlier.iter().any(|e| text.starts_with(&format!("no {} named {};", e.kind.kind, e.name)));
    !details.causes.is_empty()
        && details.causes.iter().all(|cause| cause.reason == "FieldValueNotFound" && promised(&cause.message))
}

/// Creates or patches the object.
async fn bring(client: &Client, document: &Document<'_>, dry_run: bool) -> Result<Done> {
    let query = dry_run.then_some(("dryRun", "All"));
    let one = document.kind.one(&document.namespace, &document.name)?;
    for _ in 0..ROUNDS {
        let live = match client::get(client, &one, JSON).await {
            Ok(live) => live,
            Err(failure) if failure.is_not_found() => {
                let path = client::with_query(&document.kind.collection(Some(&document.namespace))?, query);
                match client::write(client, Method::POST, &path, Some((JSON, &document.body))).await {
                    Ok(_) => return Ok(Done::Created),
                    // Somebody was faster: it is to be changed now.
                    Err(Failure::Refused(status)) if status.reason == "AlreadyExists" => continue,
                    Err(failure) => return Err(failure.into()),
                }
            }
            Err(failure) => return Err(failure.into()),
        };
        let patch = patch(document.kind, &live, &document.body);
        if patch.as_object().is_some_and(Map::is_empty) {
            return Ok(Done::Unchanged);
        }
        let path = client::with_query(&one, query);
        match client::write(client, Method::PATCH, &path, Some((MERGE_PATCH, &patch))).await {
            Ok(_) => return Ok(Done::Configured),
            Err(failure) if failure.is_not_found() => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    bail!("it is created and deleted again and again by somebody else: try again")
}

/// The merge patch that makes `live` what `wanted` says: what differs, and what was applied before and is not wanted
/// any more.
fn patch(kind: &Kind, live: &Value, wanted: &Value) -> Value {
    let mut wanted = wanted.clone();
    let before = if kind.is_secret() {
        plain_into_data(&mut wanted);
        json!({ "data": live.get("data") })
    } else {
        let noted = live.pointer("/metadata/annotations").and_then(|a| a.get(LAST_APPLIED)).and_then(Value::as_str);
        noted.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null)
    };
    let mut patch = Map::new();
    differences(&before, live, &wanted, &mut patch);
    Value::Object(patch)
}

/// Plain text of a Secret, encoded as the hub keeps it, so that it compares.
fn plain_into_data(secret: &mut Value) {
    use base64::Engine as _;
    let Some(fields) = secret.as_object_mut() else { return };
    let Some(Value::Object(plain)) = fields.remove("stringData") else { return };
    let data = fields.entry("data").or_insert_with(|| json!({}));
    for (key, value) in plain {
        if let (Some(text), Some(data)) = (value.as_str(), data.as_object_mut()) {
            data.insert(key, json!(base64::engine::general_purpose::STANDARD.encode(text)));
        }
    }
}

fn differences(before: &Value, live: &Value, wanted: &Value, patch: &mut Map<String, Value>) {
    let Some(wanted) = wanted.as_object() else { return };
    for (key, value) in wanted {
        let held = live.get(key);
        let was = before.get(key).unwrap_or(&Value::Null);
        match (held, value) {
            (None, Value::Null) => {}
            (Some(held @ Value::Object(_)), Value::Object(_)) => {
                let mut inner = Map::new();
                differences(was, held, value, &mut inner);
                if !inner.is_empty() {
                    patch.insert(key.clone(), Value::Object(inner));
                }
            }
            // The hub leaves out what is empty.
            (None, Value::Object(map)) if map.is_empty() => {}
            (None, Value::Array(items)) if items.is_empty() => {}
            (Some(held), value) if held == value => {}
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in before.as_object().into_iter().flat_map(Map::keys) {
        if !wanted.contains_key(key) && live.get(key).is_some() {
            patch.insert(key.clone(), Value::Null);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> Kind {
        Kind {
            group: String::new(),
            version: "v1".into(),
            kind: name.into(),
            plural: format!("{}s", name.to_lowercase()),
            singular: name.to_lowercase(),
            short_names: vec![],
            namespaced: true,
        }
    }

    #[test]
    fn documents_are_split_numbered_and_lists_taken_apart() {
        let text = "---\na: 1\n---\n# nothing\n---\nkind: List\nitems: [{b: 2}, {c: 3}]\n";
        let found = documents("f", text).unwrap();
        let shown: Vec<(&str, Value)> = found.iter().map(|(at, value)| (at.as_str(), value.clone())).collect();
        assert_eq!(
            shown,
            [
                ("f, document 1", json!({ "a": 1 })),
                ("f, document 3, item 1", json!({ "b": 2 })),
                ("f, document 3, item 2", json!({ "c": 3 })),
            ]
        );
        assert_eq!(documents("f", "{\"a\": [1, null]}").unwrap()[0].1, json!({ "a": [1, null] }));
        assert!(format!("{:#}", documents("f", "a: 1\n---\n: : [").unwrap_err()).starts_with("f, document 2: "));
    }

    #[test]
    fn a_patch_sets_what_differs_and_removes_what_was_applied_before() {
        let noted = json!({ "spec": { "old": 1, "same": 2, "kept": { "x": 1 } } }).to_string();
        let live = json!({
            "metadata": { "annotations": { LAST_APPLIED: noted } },
            "spec": { "old": 1, "same": 2, "of the hub": 3, "kept": { "x": 1, "y": 2 } },
        });
        let wanted = json!({ "spec": { "same": 2, "new": [1], "kept": {}, "empty": {}, "none": [] } });
        assert_eq!(
            patch(&kind("Thing"), &live, &wanted),
            json!({ "spec": { "new": [1], "kept": { "x": null }, "old": null } })
        );
        assert_eq!(patch(&kind("Thing"), &json!({ "spec": { "a": 1 } }), &json!({ "spec": { "a": 1 } })), json!({}));
    }

    #[test]
    fn a_secrets_data_is_replaced_as_a_whole() {
        let live = json!({ "data": { "a": "YQ==", "b": "Yg==" } });
        let wanted = json!({ "stringData": { "a": "a", "c": "c" } });
        assert_eq!(patch(&kind("Secret"), &live, &wanted), json!({ "data": { "c": "Yw==", "b": null } }));
        assert_eq!(patch(&kind("Secret"), &live, &json!({ "stringData": { "a": "a", "b": "b" } })), json!({}));
    }
}
