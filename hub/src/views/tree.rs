//! Directories of a dataset's versions, and what differs between two versions.

use std::convert::Infallible;
use std::ops::ControlFlow;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use fluvial_model::manifest::{
    Aspect, Change, Difference, Entry, Item, ReadError, Root, diff as diff_trees, list as list_tree,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::{TREE_TURN, ViewsState, dataset, path, version};
use crate::api::status::ApiError;

/// Entries of one answer, unless asked for fewer, and at most.
const DEFAULT_LIMIT: usize = 1000;
const MAX_LIMIT: usize = 10_000;
/// Lines of a difference that are made ahead of the reader.
const LINES_AHEAD: usize = 256;

#[derive(Deserialize)]
pub(super) struct TreeQuery {
    path: Option<String>,
    root: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct DiffQuery {
    from: String,
    to: Option<String>,
}

async fn turn(state: &ViewsState) -> Result<OwnedSemaphorePermit, ApiError> {
    let waiting = tokio::time::timeout(TREE_TURN, state.turns.clone().acquire_owned()).await;
    let busy = || ApiError::TooManyRequests { message: "too many trees are being read: try again".to_owned() };
    waiting.map_err(|_| busy())?.map_err(|_| busy())
}

pub(super) fn read_error(error: ReadError) -> ApiError {
    match error {
        ReadError::NotADirectory { .. } | ReadError::Path(_) => ApiError::BadRequest(error.to_string()),
        // It may come with the next push, or be at a hub that is away.
        ReadError::Missing { block } => ApiError::Unavailable {
            message: format!("no hub that can be reached has block {block} of this version"),
            retry_after_seconds: 5,
        },
        ReadError::Decode { .. } | ReadError::Misplaced { .. } => {
            ApiError::Internal { message: fluvial_model::causes::chain(&error) }
        }
    }
}

/// Runs work on blocks where it may wait.
pub(super) async fn reading<T: Send + 'static>(
    state: &ViewsState,
    work: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ApiError> {
    let turn = turn(state).await?;
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    let stopped = |_| ApiError::Internal { message: "reading the tree was stopped".to_owned() };
    done.await.map_err(stopped)?.map_err(read_error)
}

/// `GET tree`: the entries of one directory, and after which name the next page begins.
pub(super) async fn list(
    State(state): State<ViewsState>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<TreeQuery>,
) -> Result<Response, ApiError> {
    let dataset = dataset(&state.objects, &namespace, &name).await?;
    let (root, directory) = (version(&dataset, query.root.as_deref())?, path(query.path.as_deref())?);
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
    let (get, place, after) = (state.blocks.getter(), directory.clone(), query.after.filter(|name| !name.is_empty()));
    // One more than asked for tells whether more follow.
    let mut found = reading(&state, move || list_tree(root, &place, after.as_deref(), limit + 1, &get)).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|last| last.name.clone());
    let items: Vec<_> = found.iter().map(|listed| named(&listed.name, &listed.item)).collect();
    Ok(axum::Json(json!({ "root": root, "path": directory.as_str(), "items": items, "next": next })).into_response())
}

fn named(name: &str, item: &Item) -> Value {
    let mut shown = entry(&item.entry());
    shown["name"] = json!(name);
    if let Item::Directory(_) = item {
        let totals = item.totals();
        shown["bytes"] = json!(totals.bytes);
        shown["files"] = json!(totals.files);
    }
    shown
}

fn entry(entry: &Entry) -> Value {
    match entry {
        Entry::File(file) => json!({
            "type": "file",
            "size": file.size,
            "mtime": jiff::Timestamp::from_nanosecond(file.mtime_ns.into()).ok(),
            "mode": format!("{:04o}", file.mode),
            "digest": file.digest,
        }),
        Entry::Directory => json!({ "type": "directory" }),
        Entry::Symlink { target } => json!({ "type": "symlink", "target": target }),
    }
}

/// `GET diff`: one JSON object a line, in path order; the last line is `{"error": …}` if it broke off.
pub(super) async fn diff(
    State(state): State<ViewsState>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<DiffQuery>,
) -> Result<Response, ApiError> {
    let dataset = dataset(&state.objects, &namespace, &name).await?;
    let (from, to) = (version(&dataset, Some(&query.from))?, version(&dataset, query.to.as_deref())?);
    let turn = turn(&state).await?;
    let (lines, reader) = mpsc::channel(LINES_AHEAD);
    let get = state.blocks.getter();
    // Ends when the tree does, or when the reader goes and a line can no longer be sent.
    tokio::task::spawn_blocking(move || {
        let _turn = turn;
        compare(from, to, &get, |line| lines.blocking_send(line).is_ok());
    });
    let lines = ReceiverStream::new(reader).map(|line| {
        let mut text = line.to_string();
        text.push('\n');
        Ok::<_, Infallible>(Bytes::from(text))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

fn compare(
    from: Root,
    to: Root,
    get: &impl Fn(&fluvial_model::manifest::BlockHash) -> Option<Bytes>,
    mut send: impl FnMut(Value) -> bool,
) {
    let mut visit = |difference: Difference| {
        if send(line(&difference)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    if let Err(error) = diff_trees(from, to, get, &mut visit) {
        send(json!({ "error": error.to_string() }));
    }
}

fn line(difference: &Difference) -> Value {
    let path = difference.path.as_str();
    match &difference.change {
        Change::Added(after) => json!({ "path": path, "change": "added", "after": entry(after) }),
        Change::Removed(before) => json!({ "path": path, "change": "removed", "before": entry(before) }),
        Change::Changed { before, after, what } => json!({
            "path": path,
            "change": "changed",
            "what": what.iter().copied().map(aspect).collect::<Vec<_>>(),
            "before": entry(before),
            "after": entry(after),
        }),
    }
}

const fn aspect(aspect: Aspect) -> &'static str {
    match aspect {
        Aspect::Kind => "type",
        Aspect::Size => "size",
        Aspect::Digest => "digest",
        Aspect::Mtime => "mtime",
        Aspect::Mode => "mode",
        Aspect::Target => "target",
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use fluvial_model::manifest::{BlockHash, Digest, File, RelativePath, TreeBuilder};

    use super::*;

    fn tree(blocks: &RefCell<HashMap<BlockHash, Bytes>>, files: &[(&str, u64)]) -> Root {
        let mut builder = TreeBuilder::new(|hash: BlockHash, bytes: Vec<u8>| {
            blocks.borrow_mut().insert(hash, bytes.into());
            Ok::<_, Infallible>(())
        });
        for (path, size) in files {
            let digest = Some(Digest::of(path.as_bytes()));
            let file = File { size: *size, mtime_ns: 0, mode: 0o644, digest };
            builder.push(&RelativePath::parse(path).unwrap(), Entry::File(file)).unwrap();
        }
        builder.finish().unwrap().root
    }

    #[test]
    fn a_difference_is_one_line_per_path() {
        let blocks = RefCell::new(HashMap::new());
        let before = tree(&blocks, &[("a", 1), ("b", 2)]);
        let after = tree(&blocks, &[("b", 3), ("c", 4)]);
        let mut lines = Vec::new();
        let get = |hash: &BlockHash| blocks.borrow().get(hash).cloned();
        compare(before, after, &get, |line| {
            lines.push((line["path"].clone(), line["change"].clone(), line["what"].clone()));
            true
        });
        assert_eq!(
            lines,
            [
                (json!("a"), json!("removed"), Value::Null),
                (json!("b"), json!("changed"), json!(["size"])),
                (json!("c"), json!("added"), Value::Null),
            ]
        );
    }
}
