//! `fluvial audit`: who did what, and whether the trail that says so is whole.
//!
//! The records are checked here, not by the hub: what it would say of itself proves nothing.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use fluvial_model::audit::{Entry, Hash, Head, Record, Verifier};
use fluvial_model::manifest::Digest;
use jiff::Timestamp;
use kube::Client;
use serde::Deserialize;

use super::query::{self, ask, table};
use crate::{args, client, output};

/// Records that are asked for at once: some 8 MB of the 64 MiB that an answer may have.
const PAGE: u64 = 10_000;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// Only what happened within this time, such as 90m or 7d.
    #[arg(long, value_parser = args::duration)]
    since: Option<Duration>,
    /// Only what this user did; `cluster/NAME`, `hub/ID` and `system:PART` are users too.
    #[arg(long)]
    user: Option<String>,
    /// At most so many records, the newest.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print the number and the hash of the last record: keep it where the hubs cannot reach.
    Head,
    /// Look for records that were changed, removed, put in or put in another order.
    Verify {
        /// What `fluvial audit head` printed at another time: nothing up to it may be missing or different.
        #[arg(long)]
        head: Option<Head>,
    },
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, arguments: Arguments) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    match arguments.what {
        None => list(&client, &arguments).await,
        Some(What::Head) => {
            let last = records(&client, "SELECT * FROM audit ORDER BY sequence DESC LIMIT 1", "linearizable").await?;
            output::print(&last.first().map_or(Head::START, Record::head).to_string())
        }
        Some(What::Verify { head }) => verify(&client, head).await,
    }
}

async fn list(client: &Client, arguments: &Arguments) -> Result<()> {
    let after = arguments.since.map(|since| Timestamp::now().checked_sub(since)).transpose().context("--since")?;
    let sql = selection(after, arguments.user.as_deref(), arguments.limit);
    match arguments.output {
        Form::Json => {
            let answer = ask(client, &sql, query::Form::Json, "linearizable").await?;
            output::print(String::from_utf8_lossy(&answer).trim_end())
        }
        Form::Table => {
            let short = "sequence, time, user, address, verb, resource, namespace, name, code, count, message";
            let answer =
                ask(client, &format!("SELECT {short} FROM ({sql})"), query::Form::Table, "linearizable").await?;
            output::print(&table(&serde_json::from_slice(&answer).context("reading the hub's answer")?))
        }
    }
}

/// The newest records of a user since a time, oldest first.
fn selection(after: Option<Timestamp>, user: Option<&str>, limit: u32) -> String {
    let mut conditions = vec!["TRUE".to_owned()];
    conditions.extend(after.map(|after| format!("time >= {}", quoted(&after.to_string()))));
    conditions.extend(user.map(|user| format!("user IN ({}, {})", quoted(user), quoted(&format!("user/{user}")))));
    let conditions = conditions.join(" AND ");
    format!(
        "SELECT * FROM (SELECT * FROM audit WHERE {conditions} ORDER BY sequence DESC LIMIT {limit}) ORDER BY sequence"
    )
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

async fn verify(client: &Client, head: Option<Head>) -> Result<()> {
    let mut verifier = Verifier::new(head);
    let (mut count, mut last) = (0, 0);
    loop {
        // The first page waits for all that was acknowledged; the others are of the same hub.
        let sql = format!("SELECT * FROM audit WHERE sequence > {last} ORDER BY sequence LIMIT {PAGE}");
        let page = records(client, &sql, if count == 0 { "linearizable" } else { "stale" }).await?;
        for record in &page {
            verifier.next(record)?;
            last = record.sequence;
            count += 1;
        }
        if (page.len() as u64) < PAGE {
            break;
        }
    }
    let head = verifier.end()?;
    output::print(&format!("{count} records are whole, up to {head}"))
}

/// A row of the view `audit`.
#[derive(Debug, Deserialize)]
struct Row {
    sequence: u64,
    time: Timestamp,
    user: String,
    groups: String,
    address: String,
    request: String,
    verb: String,
    api_group: String,
    resource: String,
    namespace: String,
    name: String,
    code: u32,
    revision: u64,
    count: u64,
    message: String,
    previous: String,
    hash: String,
}

impl TryFrom<Row> for Record {
    type Error = anyhow::Error;

    fn try_from(row: Row) -> Result<Self> {
        let sequence = row.sequence;
        let hash = |text: &str| -> Result<Hash> {
            let digest: Digest = text.parse().with_context(|| format!("record {sequence} was changed: no hash"))?;
            Ok(*digest.as_bytes())
        };
        let groups = serde_json::from_str(&row.groups);
        let entry = Entry {
            time: row.time,
            user: row.user,
            groups: groups.with_context(|| format!("record {sequence} was changed: its groups are no list"))?,
            address: row.address,
            request: row.request,
            verb: row.verb,
            api_group: row.api_group,
            resource: row.resource,
            namespace: row.namespace,
            name: row.name,
            code: row.code,
            count: row.count,
            message: row.message,
        };
        let (previous, hash) = (hash(&row.previous)?, hash(&row.hash)?);
        Ok(Self { sequence, revision: row.revision, entry, previous, hash })
    }
}

async fn records(client: &Client, sql: &str, consistency: &str) -> Result<Vec<Record>> {
    let answer = ask(client, sql, query::Form::Json, consistency).await?;
    let rows: Vec<Row> = serde_json::from_slice(&answer).context("reading the records")?;
    rows.into_iter().map(Record::try_from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_quoted() {
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        let sql = selection(Some(at), Some("o'neil"), 5);
        assert!(sql.contains("time >= '2027-01-15T08:00:00Z' AND user IN ('o''neil', 'user/o''neil')"), "{sql}");
        assert!(sql.contains("LIMIT 5"), "{sql}");
    }
}
