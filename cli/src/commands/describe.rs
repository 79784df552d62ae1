//! `fluvial describe`: one object for people, with what happened to it.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use kube::Client;
use serde_json::{Map, Value};

use super::get::{self, Which};
use crate::args::Namespace;
use crate::client::{self, JSON, TABLE};
use crate::kinds::Kinds;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A kind: plural, singular or short name.
    kind: String,
    name: String,
    #[command(flatten)]
    namespace: Namespace,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, arguments: Arguments) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    let kinds = Kinds::discover(&client).await?;
    let kind = kinds.named(&arguments.kind)?;
    let namespace = arguments.namespace.of(&client);
    let mut object = client::get(&client, &kind.one(namespace, &arguments.name)?, JSON).await?;
    if kind.is_secret() {
        output::hide_secrets(&mut object);
    }
    let events = events(&client, &kinds, &object).await?;
    output::print(&format!("{}{}", text(&object)?, events.unwrap_or_else(|| "Events: none\n".to_owned())))
}

/// The table of events about an object, indented; none if nothing happened.
async fn events(client: &Client, kinds: &Kinds, object: &Value) -> Result<Option<String>> {
    let Ok(kind) = kinds.named("events") else { return Ok(None) };
    let meta = |field: &str| {
        object.get("metadata").and_then(|meta| meta.get(field)).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (name, uid, namespace) = (meta("name"), meta("uid"), meta("namespace"));
    let fields = format!("involvedObject.name={name},involvedObject.uid={uid}");
    // An object without a namespace may have events in any.
    let namespace = Some(namespace.as_str()).filter(|namespace| !namespace.is_empty());
    let which = Which { namespace, fields: Some(&fields), ..Which::default() };
    let table = get::fetch(client, kind, which, TABLE).await?;
    let shown = Which { namespace: Some(""), ..which };
    Ok(get::text(&table, kind, shown, false, false).map(|text| format!("Events:\n{}", indented(&text))))
}

/// Metadata, spec and status, each field where a reader looks for it.
fn text(object: &Value) -> Result<String> {
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    let metadata = fields.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let mut out = String::new();
    let mut line = |label: &str, value: Option<&Value>| {
        if let Some(value) = value.filter(|value| !value.is_null()) {
            out.push_str(&format!("{:<14}{}\n", format!("{label}:"), output::cell(value)));
        }
    };
    line("Name", metadata.get("name"));
    line("Namespace", metadata.get("namespace"));
    line("Kind", fields.get("kind"));
    line("API version", fields.get("apiVersion"));
    line("UID", metadata.get("uid"));
    line("Created", metadata.get("creationTimestamp"));
    line("Deleting", metadata.get("deletionTimestamp"));
    line("Generation", metadata.get("generation"));
    for (label, field) in [("Labels", "labels"), ("Annotations", "annotations"), ("Finalizers", "finalizers")] {
        let mut value = metadata.get(field).cloned().unwrap_or(Value::Null);
        if let Some(map) = value.as_object_mut() {
            // A copy of the spec below.
            map.remove(super::apply::LAST_APPLIED);
        }
        section(&mut out, label, &value)?;
    }
    let mut conditions = Value::Null;
    for (field, value) in fields {
        if ["apiVersion", "kind", "metadata"].contains(&field.as_str()) {
            continue;
        }
        let mut value = value.clone();
        if field == "status"
            && let Some(status) = value.as_object_mut()
        {
            conditions = status.remove("conditions").unwrap_or(Value::Null);
        }
        section(&mut out, &capitalised(field), &value)?;
    }
    if let Some(list) = conditions.as_array().filter(|list| !list.is_empty()) {
        let headings = ["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"].map(str::to_owned);
        let keys = ["type", "status", "reason", "lastTransitionTime", "message"];
        let row = |c: &Value| keys.iter().map(|key| c.get(key).map(output::cell).unwrap_or_default()).collect();
        out.push_str("Conditions:\n");
        out.push_str(&indented(&output::table(&headings, list.iter().map(row).collect(), &[])));
    }
    Ok(out)
}

fn section(out: &mut String, label: &str, value: &Value) -> Result<()> {
    let empty = match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    if !empty {
        out.push_str(&format!("{label}:\n{}", indented(&output::yaml(value)?)));
    }
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") }).collect()
}

fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_shown_from_its_name_to_its_conditions() {
        let object = json!({
            "apiVersion": "fluvial.io/v1alpha1", "kind": "Storage",
            "metadata": { "name": "s", "uid": "u", "generation": 2, "labels": { "a": "b" }, "annotations": {} },
            "spec": { "uri": "s3://bucket", "options": {} },
            "status": { "homes": 0, "conditions": [
                { "type": "Ready", "status": "False", "reason": "Away", "lastTransitionTime": "T", "message": "gone" },
            ] },
        });
        assert_eq!(
            text(&object).unwrap(),
            "Name:         s\nKind:         Storage\nAPI version:  fluvial.io/v1alpha1\nUID:          u\nGeneration:   2\n\
             Labels:\n  a: b\nSpec:\n  uri: s3://bucket\n  options: {}\nStatus:\n  homes: 0\n\
             Conditions:\n  TYPE    STATUS   REASON   SINCE   MESSAGE\n  Ready   False    Away     T       gone\n"
        );
    }
}
