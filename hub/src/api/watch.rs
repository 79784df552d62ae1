//! ① watch: changes as JSON lines, from a revision on.
//!
//! Invariants: events come in the order of their revisions and none is left out; whoever fell behind the kept history
//! gets one `ERROR` event with 410 and the end of the stream. The stream holds no task: it works while it is read, so
//! a slow reader slows nothing but itself. Whoever loses the right gets one `ERROR` event with 403.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use fluvial_model::store::{Event, Revision};
use fluvial_raft::{Consistency, Watch};
use futures::Stream;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Extensions, HeaderValue};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::access::Bearer;
use super::negotiate::{Shape, shape};
use super::options::{Options, VersionMatch};
use super::path::Target;
use super::selection::Selection;
use super::status::{ApiError, Subject};
use super::stored;
use super::table::{self, Include};
use super::watches::Place;
use super::{ApiState, Verb, allowed, caller};

/// How often a quiet watcher hears how far history has come.
const BOOKMARK_EVERY: Duration = Duration::from_secs(10);
/// How long a watch lasts when the caller does not say, and at most: half an hour, as in Kubernetes.
const LONGEST: Duration = Duration::from_secs(30 * 60);
/// Tells that the state at the beginning is complete.
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// What a stream needs to go on.
struct Stage {
    state: ApiState,
    target: Target,
    selection: Selection,
    shape: Shape,
    include: Include,
    bookmarks: bool,
    watch: Watch,
    /// The last revision that a bookmark may name.
    seen: Revision,
    next_bookmark: Instant,
    deadline: Instant,
    lasts_until: Option<Timestamp>,
    /// Whoever may not watch any more is told nothing more.
    rights_changed: tokio::sync::watch::Receiver<u64>,
    extensions: Extensions,
    waiting: VecDeque<Bytes>,
    over: bool,
    /// Counts it for as long as it lasts.
    _place: Option<Place>,
}

/// `GET` with `watch=true`.
///
/// # Errors
/// Bad options, and what the store says before the first event; later errors are events.
pub async fn watch(state: &ApiState, target: &Target, options: &Options, parts: &Parts) -> Result<Response, ApiError> {
    let shape = shape(&parts.headers)?;
    let place = match caller(&parts.extensions).0.0 {
        Some(identity) => Some(state.watches.enter(&identity.path())?),
        None => None,
    };
    let selection = Selection::read(options, &target.kind.info)?;
    let initial_events = options.flag("sendInitialEvents")?;
    let bookmarks = options.flag("allowWatchBookmarks")?;
    let version = options.resource_version()?.filter(|version| *version != Revision(0));
    if initial_events && (options.version_match()? != Some(VersionMatch::NotOlderThan) || !bookmarks) {
        let message = "sendInitialEvents needs resourceVersionMatch=NotOlderThan and allowWatchBookmarks=true";
        return Err(ApiError::BadRequest(message.into()));
    }
    let prefix = selection.prefix(target);
    let mut waiting = VecDeque::new();
    let show = |kind: &str, object: &Value| {
        line(state, target, shape, Include::parse(options.text("includeObject")), kind, object)
    };
    let from = match version {
        Some(version) if !initial_events => version,
        _ => {
            // Everything that is there now, then what changes.
            let (items, revision) = stored::list_all(&state.objects.store, &prefix, Consistency::Linearizable).await?;
            if version.is_some_and(|version| version > revision) {
                return Err(ApiError::FutureVersion { asked: version.map_or(0, |v| v.0), newest: revision.0 });
            }
            for kv in &items {
                let object = stored::decode(&state.objects, target.kind, kv, kv.mod_revision)?;
                if selection.matches(&object) {
                    waiting.push_back(show("ADDED", &object));
                }
            }
            if initial_events {
                waiting.push_back(show("BOOKMARK", &bookmark(target, revision, true)));
            }
            revision
        }
    };
    let watch = match state.objects.store.watch(&prefix, from).await {
        Ok(watch) => watch,
        // What a watcher that fell behind expects, whether it learns so at once or later.
        Err(error @ fluvial_raft::StoreError::Compacted { .. }) => {
            return Ok(stream_response(futures::stream::iter([Ok(error_line(&error.into()))])));
        }
        Err(error) => return Err(error.into()),
    };
    let now = Instant::now();
    let stage = Stage {
        state: state.clone(),
        target: target.clone(),
        selection,
        shape,
        include: Include::parse(options.text("includeObject")),
        bookmarks,
        watch,
        seen: from,
        next_bookmark: now + BOOKMARK_EVERY,
        // A token that ends ends what it opened.
        lasts_until: parts.extensions.get::<Bearer>().map(|bearer| bearer.until),
        deadline: now + options.timeout()?.map_or(LONGEST, |timeout| timeout.min(LONGEST)),
        rights_changed: caller(&parts.extensions).1.changed(),
        extensions: parts.extensions.clone(),
        waiting,
        over: false,
        _place: place,
    };
    Ok(stream_response(futures::stream::unfold(stage, next)))
}

fn stream_response<S>(stream: S) -> Response
where
    S: Stream<Item = Result<Bytes, Infallible>> + Send + 'static,
{
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn next(mut stage: Stage) -> Option<(Result<Bytes, Infallible>, Stage)> {
    loop {
        if let Some(line) = stage.waiting.pop_front() {
            return Some((Ok(line), stage));
        }
        if stage.over {
            return None;
        }
        tokio::select! {
            biased;
            Ok(()) = stage.rights_changed.changed() => {
                if let Err(error) = stage.may_go_on() {
                    stage.waiting.clear();
                    stage.waiting.push_back(error_line(&error));
                    stage.over = true;
                }
            }
            () = tokio::time::sleep_until(stage.deadline) => {
                stage.push_bookmark();
                stage.over = true;
            }
            events = stage.watch.next() => match events {
                Ok(events) => {
                    if let Err(error) = stage.push_events(&events) {
                        stage.waiting.push_back(error_line(&error));
                        stage.over = true;
                    }
                }
                Err(error) => {
                    stage.waiting.push_back(error_line(&error.into()));
                    stage.over = true;
                }
            },
            () = tokio::time::sleep_until(stage.next_bookmark) => {
                if stage.lasts_until.is_some_and(|until| until <= stage.state.clock.now()) {
                    stage.over = true;
                    continue;
                }
                stage.push_bookmark();
                stage.next_bookmark = Instant::now() + BOOKMARK_EVERY;
            }
        }
    }
}

impl Stage {
    /// Whether the caller is still who it was, and may still watch.
    fn may_go_on(&self) -> Result<(), ApiError> {
        if let Some(bearer) = self.extensions.get::<Bearer>() {
            bearer.check(&caller(&self.extensions).1, self.state.clock.now())?;
        }
        let subject = Subject::new(&self.target.kind.info, self.target.name.as_deref().unwrap_or_default());
        allowed(&self.extensions, Verb::Watch, self.target.on(), Some(subject))
    }

    fn push_bookmark(&mut self) {
        if self.bookmarks {
            self.seen = self.seen.max(self.watch.revision());
            let object = bookmark(&self.target, self.seen, false);
            self.waiting.push_back(line(&self.state, &self.target, self.shape, self.include, "BOOKMARK", &object));
        }
    }

    fn push_events(&mut self, events: &[std::sync::Arc<Event>]) -> Result<(), ApiError> {
        for event in events {
            self.seen = self.seen.max(event.revision);
            let decode = |kv: &Option<fluvial_model::store::KeyValue>| {
                let object =
                    kv.as_ref().map(|kv| stored::decode(&self.state.objects, self.target.kind, kv, event.revision));
                object.transpose().map(|object| object.map(|object| (self.selection.matches(&object), object)))
            };
            // What left the selection was deleted as far as this watcher can tell, and what entered it was added.
            let shown = match (decode(&event.previous)?, decode(&event.value)?) {
                (Some((true, _)), Some((true, new))) => Some(("MODIFIED", new)),
                (_, Some((true, new))) => Some(("ADDED", new)),
                (Some((true, _)), Some((false, new))) => Some(("DELETED", new)),
                (Some((true, old)), None) => Some(("DELETED", old)),
                _ => None,
            };
            if let Some((kind, object)) = shown {
                self.waiting.push_back(line(&self.state, &self.target, self.shape, self.include, kind, &object));
            }
        }
        Ok(())
    }
}

fn bookmark(target: &Target, revision: Revision, initial_end: bool) -> Value {
    let info = &target.kind.info;
    let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
    if initial_end {
        metadata["annotations"] = json!({ INITIAL_END: "true" });
    }
    json!({ "kind": info.kind, "apiVersion": info.api_version(), "metadata": metadata })
}

fn line(state: &ApiState, target: &Target, shape: Shape, include: Include, kind: &str, object: &Value) -> Bytes {
    let object = match shape {
        Shape::Object => object.clone(),
        Shape::Metadata => table::metadata(object),
        Shape::Table => {
            let list = json!({ "resourceVersion": stored::meta(object, "resourceVersion") });
            let rows = if kind == "BOOKMARK" { &[][..] } else { std::slice::from_ref(object) };
            table::table(&target.kind.info, rows, &list, include, state.clock.now())
        }
    };
    json_line(&json!({ "type": kind, "object": object }))
}

fn error_line(error: &ApiError) -> Bytes {
    json_line(&json!({ "type": "ERROR", "object": error.status() }))
}

fn json_line(value: &Value) -> Bytes {
    let mut text = value.to_string();
    text.push('\n');
    Bytes::from(text)
}
