//! `fluvial get`: objects of any kind, as the hub shows them in a table or as they are.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use kube::Client;
use serde_json::{Value, json};

use crate::args::Namespace;
use crate::client::{self, JSON, TABLE};
use crate::kinds::{Kind, Kinds};
use crate::output;

/// Objects of one answer: the hub holds them in memory while it answers.
const PAGE: &str = "1000";

/// In which form objects are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    #[default]
    Table,
    /// A table with every column.
    Wide,
    Json,
    Yaml,
    /// KIND/NAME, one a line.
    Name,
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A kind, or several separated by commas: plural, singular or short name.
    #[arg(value_name = "KIND[,KIND]")]
    kinds: String,
    /// One object.
    name: Option<String>,
    #[command(flatten)]
    namespace: Namespace,
    /// In all namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "name"])]
    all_namespaces: bool,
    /// Only objects with these labels, such as tier=hot,region!=eu.
    #[arg(short = 'l', long, conflicts_with = "name")]
    selector: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

/// Which objects of a kind.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Which<'a> {
    pub namespace: Option<&'a str>,
    pub name: Option<&'a str>,
    pub labels: Option<&'a str>,
    pub fields: Option<&'a str>,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, arguments: Arguments) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    let known = Kinds::discover(&client).await?;
    let kinds = arguments.kinds.split(',').map(|word| known.named(word)).collect::<Result<Vec<&Kind>>>()?;
    let which = Which {
        namespace: (!arguments.all_namespaces).then(|| arguments.namespace.of(&client)),
        name: arguments.name.as_deref(),
        labels: arguments.selector.as_deref(),
        fields: None,
    };
    show(&client, &kinds, which, arguments.output).await
}

/// Prints the objects of some kinds.
///
/// # Errors
/// With what the hub says, and if an object that is named is not there.
pub(crate) async fn show(client: &Client, kinds: &[&Kind], which: Which<'_>, form: Form) -> Result<()> {
    match form {
        Form::Table | Form::Wide => {
            let mut shown = Vec::new();
            for kind in kinds {
                let table = fetch(client, kind, which, TABLE).await?;
                match text(&table, kind, which, form == Form::Wide, kinds.len() > 1) {
                    Some(text) => shown.push(text),
                    None if kinds.len() > 1 => {}
                    None => eprintln!("no {} found{}", kind.plural, place(kind, which)),
                }
            }
            output::print(&shown.join("\n"))
        }
        Form::Json | Form::Yaml => {
            let form = if form == Form::Json { output::Form::Json } else { output::Form::Yaml };
            let mut items = Vec::new();
            for kind in kinds {
                let mut found = fetch(client, kind, which, JSON).await?;
                if kind.is_secret() {
                    output::hide_secrets(&mut found);
                    each(&mut found, output::hide_secrets);
                }
                if let [_] = kinds {
                    return output::value(&found, form);
                }
                match found.get_mut("items").map(Value::take) {
                    Some(Value::Array(list)) => items.extend(list),
                    _ => items.push(found),
                }
            }
            output::value(&json!({ "apiVersion": "v1", "kind": "List", "items": items }), form)
        }
        Form::Name => {
            let mut lines = String::new();
            for kind in kinds {
                let table = fetch(client, kind, which, TABLE).await?;
                for row in rows(&table) {
                    lines.push_str(&kind.object(meta(row, "name")));
                    lines.push('\n');
                }
            }
            output::print(&lines)
        }
    }
}

fn place(kind: &Kind, which: Which<'_>) -> String {
    match which.namespace.filter(|_| kind.namespaced) {
        Some(namespace) => format!(" in namespace {namespace}"),
        None => String::new(),
    }
}

fn each(list: &mut Value, mut edit: impl FnMut(&mut Value)) {
    for item in list.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        edit(item);
    }
}

fn rows(table: &Value) -> impl Iterator<Item = &Value> {
    table.get("rows").and_then(Value::as_array).into_iter().flatten()
}

fn meta<'a>(row: &'a Value, field: &str) -> &'a str {
    row.pointer("/object/metadata").and_then(|meta| meta.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// One object, or all pages of a list in one.
///
/// # Errors
/// With what the hub says.
pub(crate) async fn fetch(client: &Client, kind: &Kind, which: Which<'_>, accept: &'static str) -> Result<Value> {
    if let Some(name) = which.name {
        let namespace = which.namespace.unwrap_or_else(|| client.default_namespace());
        return Ok(client::get(client, &kind.one(namespace, name)?, accept).await?);
    }
    let path = kind.collection(which.namespace)?;
    let mut query = vec![("limit", PAGE)];
    query.extend(which.labels.map(|labels| ("labelSelector", labels)));
    query.extend(which.fields.map(|fields| ("fieldSelector", fields)));
    let mut all = client::get(client, &client::with_query(&path, query.clone()), accept).await?;
    let field = if accept == TABLE { "rows" } else { "items" };
    while let Some(next) = all.pointer("/metadata/continue").and_then(Value::as_str).map(str::to_owned) {
        let pairs = query.iter().copied().chain([("continue", next.as_str())]);
        let mut page = client::get(client, &client::with_query(&path, pairs), accept).await?;
        let more = page.get_mut(field).map(Value::take);
        if let (Some(Value::Array(held)), Some(Value::Array(more))) = (all.get_mut(field), more) {
            held.extend(more);
        }
        // The token of the next page, or its absence.
        if let (Some(fields), Some(metadata)) = (all.as_object_mut(), page.get_mut("metadata")) {
            fields.insert("metadata".to_owned(), metadata.take());
        }
    }
    Ok(all)
}

/// The hub's table for people; none if it has no rows. `full` writes names with their kind.
pub(crate) fn text(table: &Value, kind: &Kind, which: Which<'_>, wide: bool, full: bool) -> Option<String> {
    let columns: Vec<(usize, &str, bool)> = columns(table, wide);
    let everywhere = kind.namespaced && which.namespace.is_none();
    let mut lines = Vec::new();
    for row in rows(table) {
        let cells = row.get("cells").and_then(Value::as_array);
        let mut line: Vec<String> = everywhere.then(|| output::plain(meta(row, "namespace"))).into_iter().collect();
        line.extend(columns.iter().map(|(index, ..)| {
            let text = cells.and_then(|cells| cells.get(*index)).map(output::cell).unwrap_or_default();
            if full && *index == 0 { kind.object(&text) } else { text }
        }));
        lines.push(line);
    }
    if lines.is_empty() {
        return None;
    }
    let shift = usize::from(everywhere);
    let right: Vec<usize> = columns
        .iter()
        .enumerate()
        .filter(|(_, (_, _, number))| *number)
        .map(|(position, _)| position + shift)
        .collect();
    let names = everywhere.then_some("NAMESPACE").into_iter().map(str::to_owned);
    let headings: Vec<String> = names.chain(columns.iter().map(|(_, name, _)| name.to_uppercase())).collect();
    Some(output::table(&headings, lines, &right))
}

/// Position and name of each column that is shown, and whether it holds numbers.
fn columns(table: &Value, wide: bool) -> Vec<(usize, &str, bool)> {
    let definitions = table.get("columnDefinitions").and_then(Value::as_array).into_iter().flatten().enumerate();
    definitions
        .filter(|(_, column)| wide || column.get("priority").and_then(Value::as_i64).unwrap_or(0) == 0)
        .filter_map(|(index, column)| {
            let number = matches!(column.get("type").and_then(Value::as_str), Some("integer" | "number"));
            Some((index, column.get("name")?.as_str()?, number))
        })
        .collect()
}

/// Prints one kind by its name, for commands that are about it.
///
/// # Errors
/// See [`show`]; a word that names no kind.
pub(crate) async fn one_kind(client: &Client, word: &str, which: Which<'_>, form: Form) -> Result<()> {
    let kinds = Kinds::discover(client).await?;
    let kind = kinds.named(word).context("finding the kind on the hub")?;
    show(client, &[kind], which, form).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind() -> Kind {
        Kind {
            group: "fluvial.io".into(),
            version: "v1alpha1".into(),
            kind: "Placement".into(),
            plural: "placements".into(),
            singular: "placement".into(),
            short_names: vec![],
            namespaced: true,
        }
    }

    #[test]
    fn a_table_shows_the_hubs_columns() {
        let table = json!({
            "columnDefinitions": [
                { "name": "Name", "type": "string", "priority": 0 },
                { "name": "Datasets", "type": "integer", "priority": 0 },
                { "name": "Root", "type": "string", "priority": 11 },
            ],
            "rows": [{ "cells": ["p", 12, "abc"], "object": { "metadata": { "name": "p", "namespace": "n" } } }],
        });
        let here = Which { namespace: Some("n"), ..Which::default() };
        assert_eq!(text(&table, &kind(), here, false, false).unwrap(), "NAME   DATASETS\np            12\n");
        assert_eq!(
            text(&table, &kind(), Which::default(), true, true).unwrap(),
            "NAMESPACE   NAME                     DATASETS   ROOT\nn           placement.fluvial.io/p         12   abc\n"
        );
        assert_eq!(text(&json!({ "rows": [] }), &kind(), here, false, false), None);
    }
}
