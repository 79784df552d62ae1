//! `fluvial query`: SQL over the catalog, in the form that is asked for.

use std::io::{IsTerminal as _, stdout};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use http::Method;
use kube::Client;
use serde_json::{Value, json};

use crate::client::{self, Call, JSON};
use crate::output;

/// Where questions are asked.
pub(crate) const QUERY: &str = "/apis/fluvial.io/v1alpha1/query";
/// Where tables and columns are listed.
const SCHEMA: &str = "/apis/fluvial.io/v1alpha1/query/schema";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Table,
    Json,
    Csv,
    /// An Arrow IPC stream.
    Arrow,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Consistency {
    Linearizable,
    Stale,
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// One SELECT.
    #[arg(required_unless_present = "schema", conflicts_with = "schema")]
    sql: Option<String>,
    /// List the tables and their columns.
    #[arg(long)]
    schema: bool,
    /// A table on a terminal and JSON elsewhere, if not given.
    #[arg(short, long, value_enum)]
    output: Option<Form>,
    #[arg(long, value_enum, default_value = "linearizable")]
    consistency: Consistency,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, arguments: Arguments) -> Result<()> {
    let terminal = stdout().is_terminal();
    let form = arguments.output.unwrap_or(if terminal { Form::Table } else { Form::Json });
    if form == Form::Arrow && terminal {
        bail!("-o arrow writes bytes that are not for a terminal: send them to a file or a program");
    }
    let client = client::connect(kubeconfig).await?;
    let Some(sql) = arguments.sql else { return schema(&client, form).await };
    let consistency = match arguments.consistency {
        Consistency::Linearizable => "linearizable",
        Consistency::Stale => "stale",
    };
    let answer = ask(&client, &sql, form, consistency).await?;
    match form {
        Form::Table => {
            let answer = serde_json::from_slice(&answer).context("reading the hub's answer")?;
            output::print(&table(&answer))
        }
        Form::Json => output::print(String::from_utf8_lossy(&answer).trim_end()),
        Form::Csv | Form::Arrow => output::write(&answer),
    }
}

/// Asks one question; the answer in the hub's form of `form`.
///
/// # Errors
/// With what the hub says of the statement.
pub(crate) async fn ask(client: &Client, sql: &str, form: Form, consistency: &str) -> Result<Vec<u8>> {
    let format = match form {
        Form::Table => "table",
        Form::Json => "json",
        Form::Csv => "csv",
        Form::Arrow => "arrow",
    };
    let body = json!({ "sql": sql, "format": format, "consistency": consistency }).to_string().into_bytes();
    let call = Call { method: Method::POST, path: QUERY, content: Some((JSON, body)), accept: "*/*" };
    Ok(client::bytes(client, call).await?)
}

/// An answer of the form `table` as aligned text: `{"columns": [{name, type}], "rows": [[…]]}`.
pub(crate) fn table(answer: &Value) -> String {
    let list = |field: &str| answer.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |column: &Value, field: &str| column.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let columns = list("columns");
    let headings: Vec<String> = columns.iter().map(|column| output::plain(&text(column, "name"))).collect();
    let rows: Vec<&[Value]> =
        list("rows").iter().map(|row| row.as_array().map(Vec::as_slice).unwrap_or_default()).collect();
    // Computed columns have no declared type: what is in them tells.
    let number = |index: usize| {
        let mut cells = rows.iter().filter_map(|row| row.get(index)).filter(|cell| !cell.is_null()).peekable();
        cells.peek().is_some() && cells.all(Value::is_number)
    };
    let right: Vec<usize> = (0..columns.len()).filter(|index| number(*index)).collect();
    output::table(&headings, rows.iter().map(|row| row.iter().map(output::cell).collect()).collect(), &right)
}

async fn schema(client: &Client, form: Form) -> Result<()> {
    let schema = client::get(client, SCHEMA, JSON).await?;
    let rows = columns(&schema);
    match form {
        Form::Json => output::value(&schema, output::Form::Json),
        Form::Table => output::print(&output::table(&["TABLE", "COLUMN", "TYPE"].map(str::to_owned), rows, &[])),
        Form::Csv => {
            // Names of tables, columns and types hold nothing that needs quotes.
            let lines: Vec<String> = rows.iter().map(|row| row.join(",") + "\n").collect();
            output::print(&format!("table,column,type\n{}", lines.concat()))
        }
        Form::Arrow => bail!("--schema has the forms table, json and csv"),
    }
}

/// Table, column and type of every column.
fn columns(schema: &Value) -> Vec<Vec<String>> {
    let list = |value: &Value, field: &str| value.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |value: &Value, field: &str| value.get(field).map(output::cell).unwrap_or_default();
    let tables = list(schema, "tables");
    let of = |table: &Value| -> Vec<Vec<String>> {
        let row = |column: &Value| vec![text(table, "name"), text(column, "name"), text(column, "type")];
        list(table, "columns").iter().map(row).collect()
    };
    tables.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_nothing_is_empty() {
        let answer = json!({
            "columns": [{ "name": "name", "type": "text" }, { "name": "n", "type": "" }, { "name": "x", "type": "text" }],
            "rows": [["a", 1, null], ["b\n", 200, "y"]],
        });
        assert_eq!(table(&answer), "name     n   x\na        1\nb\\n    200   y\n");
        assert_eq!(table(&json!({ "columns": [{ "name": "n", "type": "" }], "rows": [] })), "n\n");
    }

    #[test]
    fn a_schema_is_a_row_per_column() {
        let schema = json!({ "tables": [{ "name": "t", "columns": [
            { "name": "a", "type": "text" }, { "name": "b", "type": "real" },
        ] }] });
        assert_eq!(columns(&schema), [["t", "a", "text"], ["t", "b", "real"]]);
    }
}
