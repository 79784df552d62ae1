//! What commands print: tables, JSON, YAML, and bytes for people.
//!
//! Invariants: a reader that goes away (`| head`) ends the command without an error; text of others reaches a terminal
//! without control characters; the values of a Secret are never printed.

use std::io::{ErrorKind, Write as _};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

/// In which form an answer is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    #[default]
    Table,
    Json,
    Yaml,
}

/// Writes to stdout as it is.
///
/// # Errors
/// If that fails, other than because nobody reads any more.
pub(crate) fn write(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.context("writing to stdout"),
    }
}

/// Prints text and ends its last line.
///
/// # Errors
/// See [`write`].
pub(crate) fn print(text: &str) -> Result<()> {
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    write(format!("{text}{end}").as_bytes())
}

/// Prints a value as JSON or YAML.
///
/// # Errors
/// See [`write`].
pub(crate) fn value(value: &Value, form: Form) -> Result<()> {
    match form {
        Form::Yaml => print(&yaml(value)?),
        Form::Json | Form::Table => print(&serde_json::to_string_pretty(value).context("writing the answer as JSON")?),
    }
}

/// A value as YAML.
///
/// # Errors
/// If YAML cannot say it.
pub(crate) fn yaml(value: &Value) -> Result<String> {
    serde_yaml_ng::to_string(value).context("writing the answer as YAML")
}

/// Text on one line and without control characters, which could move a terminal's cursor.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let (kept, escaped) = if c.is_control() { (None, Some(c.escape_default())) } else { (Some(c), None) };
            kept.into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

/// A cell of any type as text.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

/// Rows under headings, in columns without lines. Columns whose index is in `right` are numbers.
pub(crate) fn table(headings: &[String], rows: Vec<Vec<String>>, right: &[usize]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    for index in right {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Replaces the values of a Secret, and copies of them that other clients leave in annotations. What is left is no
/// base64, so that the hub refuses it if it is written back.
pub(crate) fn hide_secrets(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    for data in ["data", "stringData"] {
        for value in fields.get_mut(data).and_then(Value::as_object_mut).into_iter().flat_map(|map| map.values_mut()) {
            *value = json!("<hidden>");
        }
    }
    if let Some(Value::Object(annotations)) = fields.get_mut("metadata").and_then(|meta| meta.get_mut("annotations")) {
        annotations.remove(crate::commands::apply::LAST_APPLIED);
    }
}

/// Bytes for people: `1.50 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// A count with the right form of its noun: `1 file`, `2 files`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_end_without_spaces() {
        let headings = ["NAME".to_owned(), "N".to_owned(), "LAST".to_owned()];
        let rows = vec![vec!["a".into(), "1".into(), "x".into()], vec!["long name".into(), "22".into(), String::new()]];
        assert_eq!(
            table(&headings, rows, &[1]),
            "NAME         N    LAST\na            1    x\nlong name   22\n"
                .replace("N    LAST", "N   LAST")
                .replace("1    x", "1   x")
        );
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(plain("a\nb\u{1b}[2Jü"), "a\\nb\\u{1b}[2Jü");
        assert_eq!(cell(&json!({ "a": 1 })), "{\"a\":1}");
    }

    #[test]
    fn a_secrets_values_and_their_copies_are_hidden() {
        let mut secret = json!({
            "metadata": { "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "hunter2", "a": "b" } },
            "data": { "key": "aHVudGVyMg==" },
        });
        hide_secrets(&mut secret);
        assert_eq!(secret, json!({ "metadata": { "annotations": { "a": "b" } }, "data": { "key": "<hidden>" } }));
    }

    #[test]
    fn counts_agree_with_their_nouns() {
        assert_eq!(count(1, "file", "files"), "1 file");
        assert_eq!(count(0, "file", "files"), "0 files");
    }
}
