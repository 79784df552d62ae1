//! `fluvial dataset ls|cat|diff`: what is in a version of a dataset.

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use fluvial_model::manifest::Root;
use http::Method;
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::{path, root};
use crate::args::Namespace;
use crate::client::{self, Call, Failure, JSON};
use crate::output;

/// Entries of one answer: the most that a hub gives.
const PAGE: &str = "10000";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// A dataset, and a directory in it.
    #[arg(value_name = "NAME[:PATH]")]
    place: String,
    /// With mode, size and time.
    #[arg(short, long)]
    long: bool,
    /// With everything below.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Another version than the current one.
    #[arg(long)]
    root: Option<String>,
    #[command(flatten)]
    namespace: Namespace,
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

#[derive(Debug, Args)]
pub(crate) struct Cat {
    /// A dataset, or NAME:PATH.
    name: String,
    /// A file in it.
    path: Option<String>,
    /// Another version than the current one.
    #[arg(long)]
    root: Option<String>,
    #[command(flatten)]
    namespace: Namespace,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    name: String,
    /// A version to begin with, or another dataset to compare with.
    #[arg(value_name = "ROOT|DATASET")]
    first: String,
    /// The version to end with; the dataset's current one if not given.
    #[arg(value_name = "ROOT")]
    second: Option<String>,
    #[command(flatten)]
    namespace: Namespace,
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

fn place(text: &str) -> (&str, &str) {
    text.split_once(':').unwrap_or((text, ""))
}

pub(super) async fn ls(client: &Client, arguments: Ls) -> Result<()> {
    let (name, directory) = place(&arguments.place);
    let url = format!("{}/tree", path(arguments.namespace.of(client), name)?);
    let mut version = arguments.root.clone();
    // Directories that are still to be listed, the next one last.
    let mut open = vec![String::new()];
    let mut all = Vec::new();
    while let Some(below) = open.pop() {
        let at = joined(directory.trim_matches('/'), &below);
        let mut directories = Vec::new();
        let mut after = None::<String>;
        loop {
            let mut query = vec![("path", at.as_str()), ("limit", PAGE)];
            query.extend(version.as_deref().map(|root| ("root", root)));
            query.extend(after.as_deref().map(|name| ("after", name)));
            let mut page = client::get(client, &client::with_query(&url, query), JSON).await?;
            // One version throughout, even if the dataset gets another meanwhile.
            version = version.or_else(|| page.get("root").and_then(Value::as_str).map(str::to_owned));
            let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) else {
                bail!("the hub's answer has no items");
            };
            let mut lines = String::new();
            for mut item in items {
                let relative = joined(&below, text(&item, "name"));
                if arguments.recursive && text(&item, "type") == "directory" {
                    directories.push(relative.clone());
                }
                item["path"] = json!(relative);
                match arguments.output {
                    Form::Table => lines.push_str(&line(&item, arguments.long)),
                    Form::Json => all.push(item),
                }
            }
            output::print(&lines)?;
            after = page.get("next").and_then(Value::as_str).map(str::to_owned);
            if after.is_none() {
                break;
            }
        }
        directories.reverse();
        open.extend(directories);
    }
    if arguments.output == Form::Json { output::value(&json!(all), output::Form::Json) } else { Ok(()) }
}

fn joined(directory: &str, name: &str) -> String {
    if directory.is_empty() || name.is_empty() { format!("{directory}{name}") } else { format!("{directory}/{name}") }
}

fn text<'a>(item: &'a Value, field: &str) -> &'a str {
    item.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// One entry. Names are shown without control characters; `-o json` has them as they are.
fn line(item: &Value, long: bool) -> String {
    let mark = match text(item, "type") {
        "directory" => "/".to_owned(),
        "symlink" if long => format!(" -> {}", output::plain(text(item, "target"))),
        _ => String::new(),
    };
    let name = output::plain(text(item, "path"));
    if !long {
        return format!("{name}{mark}\n");
    }
    let size = item.get("size").or_else(|| item.get("bytes")).and_then(Value::as_u64);
    let size = size.map(|size| size.to_string()).unwrap_or_default();
    let letter = match text(item, "type") {
        "directory" => 'd',
        "symlink" => 'l',
        _ => '-',
    };
    // Sources that keep no time say 1970, or nothing.
    let time: String = text(item, "mtime").chars().take(19).collect();
    format!("{letter} {:<4} {size:>14} {time:<19} {name}{mark}\n", text(item, "mode"))
}

pub(super) async fn cat(client: &Client, arguments: Cat) -> Result<()> {
    let (name, file) = match &arguments.path {
        Some(path) => (arguments.name.as_str(), path.as_str()),
        None => place(&arguments.name),
    };
    if file.is_empty() {
        bail!("a file is required: fluvial dataset cat {name} PATH");
    }
    let mut query = vec![("path", file)];
    query.extend(arguments.root.as_deref().map(|root| ("root", root)));
    let url = client::with_query(&format!("{}/file", path(arguments.namespace.of(client), name)?), query);
    let mut body = open(client, &url).await?;
    while let Some(chunk) = chunk(&mut body, &url).await.with_context(|| format!("{file}: the answer breaks off"))? {
        output::write(&chunk)?;
    }
    Ok(())
}

async fn open(client: &Client, url: &str) -> Result<Body, Failure> {
    let call = Call { method: Method::GET, path: url, content: None, accept: "*/*" };
    Ok(client::open(client, call).await?.into_body())
}

/// The next bytes of a body; none at its end.
async fn chunk(body: &mut Body, url: &str) -> Result<Option<Vec<u8>>, Failure> {
    loop {
        let frame = tokio::time::timeout(client::ANSWER_WITHIN, body.frame()).await.map_err(|_| Failure::Silent)?;
        let Some(frame) = frame else { return Ok(None) };
        let frame = frame.map_err(|error| Failure::Answer { path: url.to_owned(), source: error.into() })?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data.into()));
        }
    }
}

pub(super) async fn diff(client: &Client, arguments: Diff) -> Result<()> {
    let (name, namespace) = (arguments.name.as_str(), arguments.namespace.of(client));
    let is_root = |text: &str| text.parse::<Root>().is_ok();
    let (from, to) = match &arguments.second {
        Some(to) => (arguments.first.clone(), Some(to.clone())),
        None if is_root(&arguments.first) => (arguments.first.clone(), None),
        None => (root(client, namespace, name).await?, Some(root(client, namespace, &arguments.first).await?)),
    };
    let mut query = vec![("from", from.as_str())];
    query.extend(to.as_deref().map(|to| ("to", to)));
    let url = client::with_query(&format!("{}/diff", path(namespace, name)?), query);
    let mut body = open(client, &url).await?;
    let mut held: Vec<u8> = Vec::new();
    while let Some(data) = chunk(&mut body, &url).await? {
        held.extend_from_slice(&data);
        let Some(end) = held.iter().rposition(|byte| *byte == b'\n') else { continue };
        let lines: Vec<u8> = held.drain(..=end).collect();
        let mut shown = String::new();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let change: Value = serde_json::from_slice(line).context("reading a line of the difference")?;
            if let Some(error) = change.get("error") {
                output::print(&shown)?;
                bail!("the difference breaks off: {}", output::cell(error));
            }
            shown.push_str(&match arguments.output {
                Form::Json => format!("{change}\n"),
                Form::Table => format!("{}\n", difference(&change)),
            });
        }
        output::print(&shown)?;
    }
    Ok(())
}

/// `+ path`, `- path` or `~ path (size, digest)`.
fn difference(change: &Value) -> String {
    let path = output::plain(text(change, "path"));
    match text(change, "change") {
        "added" => format!("+ {path}"),
        "removed" => format!("- {path}"),
        _ => {
            let what = change.get("what").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
            format!("~ {path} ({})", what.collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_one_line_each_whatever_their_names() {
        let file =
            json!({ "path": "a\nb", "type": "file", "size": 12, "mode": "0644", "mtime": "2024-05-06T07:08:09.5Z" });
        assert_eq!(line(&file, false), "a\\nb\n");
        assert_eq!(line(&file, true), "- 0644             12 2024-05-06T07:08:09 a\\nb\n");
        let directory = json!({ "path": "x/d", "type": "directory", "bytes": 7, "files": 1 });
        assert_eq!(line(&directory, false), "x/d/\n");
        assert_eq!(line(&directory, true), format!("d {:<4} {:>14} {:<19} x/d/\n", "", 7, ""));
        let link = json!({ "path": "l", "type": "symlink", "target": "t" });
        assert_eq!(line(&link, false), "l\n");
        assert!(line(&link, true).ends_with("l -> t\n"));
    }

    #[test]
    fn differences_begin_with_a_sign() {
        assert_eq!(difference(&json!({ "path": "a", "change": "added" })), "+ a");
        assert_eq!(difference(&json!({ "path": "a", "change": "removed" })), "- a");
        assert_eq!(
            difference(&json!({ "path": "a", "change": "changed", "what": ["size", "digest"] })),
            "~ a (size, digest)"
        );
    }

    #[test]
    fn a_place_is_a_dataset_and_a_path() {
        assert_eq!(place("d"), ("d", ""));
        assert_eq!(place("d:a:b/c"), ("d", "a:b/c"));
        assert_eq!(joined("", "a"), "a");
        assert_eq!(joined("a", "b"), "a/b");
        assert_eq!(joined("a", ""), "a");
    }
}
