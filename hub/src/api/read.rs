//! ① get and list.
//!
//! Invariants: all pages of a list show one revision; an answer without a `resourceVersion` asked for sees every write
//! that was acknowledged before.

use axum::response::Response;
use fluvial_model::store::Revision;
use fluvial_raft::{Consistency, ListRequest, StoreError};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::ApiState;
use super::continuation::Continuation;
use super::negotiate::{Shape, shape};
use super::options::{Options, VersionMatch};
use super::path::Target;
use super::selection::Selection;
use super::status::{ApiError, Subject, json_response};
use super::stored::{self, PAGE};
use super::table::{self, Include};

/// One object in the shape asked for.
///
/// # Errors
/// 406 if the shape cannot be served.
pub fn answer(
    state: &ApiState,
    target: &Target,
    headers: &HeaderMap,
    options: &Options,
    code: StatusCode,
    object: &Value,
) -> Result<Response, ApiError> {
    Ok(match shape(headers)? {
        Shape::Object => json_response(code, object),
        Shape::Metadata => json_response(code, &table::metadata(object)),
        Shape::Table => {
            let list = json!({ "resourceVersion": stored::meta(object, "resourceVersion") });
            let include = Include::parse(options.text("includeObject"));
            let objects = std::slice::from_ref(object);
            json_response(code, &table::table(&target.kind.info, objects, &list, include, state.clock.now()))
        }
    })
}

/// Makes sure that this replica has seen `wanted`.
async fn at_least(state: &ApiState, wanted: Revision) -> Result<(), ApiError> {
    let store = &state.objects.store;
    if store.revision() < wanted {
        // A linearizable read brings this replica up to everything acknowledged.
        store.get("/registry", Consistency::Linearizable).await?;
    }
    let newest = store.revision();
    if newest < wanted {
        return Err(StoreError::FutureRevision { asked: wanted, newest }.into());
    }
    Ok(())
}

/// The freshness that a `resourceVersion` asks for.
async fn consistency(state: &ApiState, version: Option<Revision>) -> Result<Consistency, ApiError> {
    match version {
        None => Ok(Consistency::Linearizable),
        Some(version) => {
            at_least(state, version).await?;
            Ok(Consistency::Stale)
        }
    }
}

/// `GET` of one object.
///
/// # Errors
/// 404, or whatever the store says.
pub async fn get(
    state: &ApiState,
    target: &Target,
    name: &str,
    options: &Options,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let key = target.kind.info.key(target.namespace_text(), name);
    let consistency = consistency(state, options.resource_version()?).await?;
    let held = stored::get(&state.objects, target.kind, &key, consistency).await?;
    let held = held.ok_or_else(|| ApiError::NotFound(Subject::new(&target.kind.info, name)))?;
    answer(state, target, headers, options, StatusCode::OK, &held.object)
}

/// What a list came to.
pub struct Listed {
    pub objects: Vec<Value>,
    pub revision: Revision,
    /// The token of the next page, empty at the end.
    pub next: String,
    pub remaining: Option<u64>,
}

/// `GET` of a collection.
///
/// # Errors
/// 400 for options that make no sense, 410 for a state that is forgotten, or whatever the store says.
pub async fn list(
    state: &ApiState,
    target: &Target,
    options: &Options,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let shape = shape(headers)?;
    let listed = collect(state, target, options).await?;
    let mut metadata = json!({ "resourceVersion": listed.revision.to_string() });
    if !listed.next.is_empty() {
        metadata["continue"] = json!(listed.next);
        if let Some(remaining) = listed.remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
    }
    let info = &target.kind.info;
    let body = match shape {
        Shape::Object => json!({
            "kind": format!("{}List", info.kind), "apiVersion": info.api_version(),
            "metadata": metadata, "items": listed.objects,
        }),
        Shape::Metadata => table::metadata_list(&listed.objects, &metadata),
        Shape::Table => {
            let include = Include::parse(options.text("includeObject"));
            table::table(info, &listed.objects, &metadata, include, state.clock.now())
        }
    };
    Ok(json_response(StatusCode::OK, &body))
}

/// Where a list begins: its revision, if one is fixed, its freshness and the key to begin after.
async fn start(state: &ApiState, prefix: &str, options: &Options, limited: bool) -> Result<ListRequest, ApiError> {
    let version = options.resource_version()?;
    let how = options.version_match()?;
    let mut request = ListRequest { prefix: prefix.to_owned(), ..ListRequest::default() };
    let bad = |message: &str| Err(ApiError::BadRequest(message.to_owned()));
    if let Some(token) = options.text("continue") {
        if how.is_some() {
            return bad("resourceVersionMatch is forbidden when continue is provided");
        }
        if version.is_some_and(|version| version != Revision(0)) {
            return bad("specifying resourceVersion is not allowed when using continue");
        }
        let place = Continuation::open(token, &state.objects.vault, prefix)?;
        at_least(state, place.revision).await?;
        request.after = Some(place.after);
        request.revision = Some(place.revision);
        request.consistency = Consistency::Stale;
        return Ok(request);
    }
    match (version, how) {
        (None, Some(_)) => return bad("resourceVersionMatch is forbidden unless resourceVersion is provided"),
        (Some(Revision(0)), Some(VersionMatch::Exact)) => {
            return bad("resourceVersionMatch Exact is forbidden for resourceVersion 0");
        }
        (Some(exact), how)
            if exact != Revision(0) && (how == Some(VersionMatch::Exact) || (how.is_none() && limited)) =>
        {
            at_least(state, exact).await?;
            request.revision = Some(exact);
            request.consistency = Consistency::Stale;
        }
        (version, _) => request.consistency = consistency(state, version).await?,
    }
    Ok(request)
}

/// The objects of a collection that are selected, one page of them if a limit was given.
///
/// # Errors
/// See [`list`].
pub async fn collect(state: &ApiState, target: &Target, options: &Options) -> Result<Listed, ApiError> {
    let selection = Selection::read(options, &target.kind.info)?;
    let prefix = selection.prefix(target);
    let limit = options.limit()?;
    let mut request = start(state, &prefix, options, limit.is_some()).await?;
    let mut objects = Vec::new();
    loop {
        // Without a selector, no more is read than is shown.
        let wanted = limit.map_or(PAGE, |limit| limit - objects.len());
        request.limit = Some(if selection.is_everything() { wanted.min(PAGE) } else { PAGE });
        let page = state.objects.store.list(request.clone()).await.map_err(|error| expired(error, options))?;
        let count = page.items.len();
        request.revision = Some(page.revision);
        request.consistency = Consistency::Stale;
        for (position, kv) in page.items.iter().enumerate() {
            let object = stored::decode(&state.objects, target.kind, kv, kv.mod_revision)?;
            if selection.matches(&object) {
                objects.push(object);
            }
            let unread = position + 1 < count || page.more;
            if limit.is_some_and(|limit| objects.len() >= limit) && unread {
                let place = Continuation { revision: page.revision, after: kv.key.clone() };
                let next = place.seal(&state.objects.vault, &prefix)?;
                let remaining = selection.is_everything().then_some(page.remaining);
                return Ok(Listed { objects, revision: page.revision, next, remaining });
            }
        }
        if !page.more {
            return Ok(Listed { objects, revision: page.revision, next: String::new(), remaining: None });
        }
        request.after = page.items.last().map(|kv| kv.key.clone());
    }
}

/// A forgotten state has its own advice in a paged list.
fn expired(error: StoreError, options: &Options) -> ApiError {
    match error {
        StoreError::Compacted { .. } if options.text("continue").is_some() => ApiError::Expired {
            message: "the provided continue token is too old: begin the list again without it".into(),
        },
        other => other.into(),
    }
}
