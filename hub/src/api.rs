//! ① The Kubernetes-style REST API: discovery, create, read, update, delete and watch for every kind of the table of
//! kinds, and questions to the catalog.
//!
//! Reading order: [`path`] says what a URL means, [`access`] who may, [`body`] what was sent; [`read`], [`watch`],
//! [`write`] and [`delete`] do it; [`status`] says how it failed. [`discovery`], [`openapi`] and [`table`] describe the
//! kinds to clients.
//!
//! Invariants: nothing is answered to a caller without an identity but probes and the version; every replica serves
//! every call; every error is a `Status`.
//!
//! Deliberately absent: TLS and who the caller is (the server puts a [`Caller`] and the [`Rights`] in force into the
//! request), server-side apply.

pub mod access;
pub mod body;
pub mod continuation;
pub mod defaults;
pub mod delete;
pub mod discovery;
pub mod garbage;
pub mod grants;
pub mod impersonation;
pub mod negotiate;
pub mod openapi;
pub mod options;
pub mod patch;
pub mod path;
pub mod protobuf;
pub mod read;
pub mod reviews;
pub mod selection;
pub mod special;
pub mod status;
pub mod stored;
pub mod table;
pub mod watch;
pub mod watches;
pub mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, any};
use fluvial_model::access::On;
use fluvial_model::kinds::FLUVIAL_GROUP;
use fluvial_model::names::printable;
use http::request::Parts;
use http::{Extensions, Method, StatusCode};

pub use self::access::{Caller, Denied, Verb, authorize};
pub use self::defaults::{DEFAULT_NAMESPACE, ensure_defaults, ensure_roles};
pub use self::garbage::{Collected, collect_garbage};
use self::options::Options;
use self::path::{Part, Target};
use self::status::{ApiError, Subject, json_response};
use self::watches::Watches;
use crate::audit::{Act, Origin};
use crate::catalog::{QueryEngine, Sight};
use crate::clock::SharedClock;
use crate::objects::Objects;
use crate::rights::Rights;

/// What every call needs.
#[derive(Clone)]
pub struct ApiState {
    pub objects: Objects,
    pub clock: SharedClock,
    pub catalog: Arc<QueryEngine>,
    pub watches: Watches,
}

impl ApiState {
    /// The same for one call; what it changes is recorded as `verb` on `target`.
    fn recorded(&self, extensions: &Extensions, verb: Verb, target: &Target) -> Self {
        let origin = Origin::of(extensions);
        let part = if target.part == Part::Status { "/status" } else { "" };
        let act = Act {
            verb: verb.as_str().to_owned(),
            api_group: target.kind.info.group.to_owned(),
            resource: format!("{}{part}", target.kind.info.plural),
            namespace: target.namespace_text().to_owned(),
            name: target.name.clone().unwrap_or_default(),
        };
        let code = if verb == Verb::Create { StatusCode::CREATED } else { StatusCode::OK };
        let objects = self.objects.recorded(&origin, act, u32::from(code.as_u16()), &self.clock);
        Self { objects, ..self.clone() }
    }
}

/// The API's routes. Other routers may be merged beside it; what nobody serves ends in [`not_found`].
pub fn router(state: ApiState) -> Router {
    let router = routes().into_iter().fold(Router::new(), |router, (path, handler)| router.route(path, handler));
    router.fallback(not_found).with_state(state)
}

/// Every route, so that none is without a test of who may call it.
pub(crate) fn routes() -> Vec<(&'static str, MethodRouter<ApiState>)> {
    vec![
        ("/healthz", any(|| async { "ok" })),
        ("/livez", any(|| async { "ok" })),
        ("/readyz", any(ready)),
        ("/version", any(version)),
        (special::QUERY_PATH, any(query)),
        (special::SCHEMA_PATH, any(query_schema)),
        ("/api", any(serve)),
        ("/api/", any(serve)),
        ("/api/{*rest}", any(serve)),
        ("/apis", any(serve)),
        ("/apis/", any(serve)),
        ("/apis/{*rest}", any(serve)),
        ("/openapi/{*rest}", any(serve)),
    ]
}

/// The answer to a path that nobody serves.
pub async fn not_found(request: Request) -> Response {
    if let Err(error) = allowed(request.extensions(), Verb::Get, On::Path(request.uri().path()), None) {
        return error.into_response();
    }
    ApiError::NoSuchPath { path: printable(request.uri().path()) }.into_response()
}

async fn ready(State(state): State<ApiState>) -> Response {
    if let Some(failure) = state.objects.store.failure() {
        let message = format!("this hub has stopped: {failure}");
        return ApiError::Unavailable { message, retry_after_seconds: 5 }.into_response();
    }
    if state.objects.store.leadership().borrow().leader.is_some() {
        return "ok".into_response();
    }
    ApiError::Unavailable { message: "no leader is known".into(), retry_after_seconds: 1 }.into_response()
}

async fn version() -> Response {
    json_response(StatusCode::OK, &discovery::version())
}

/// Who sent a request, and the rights in force: nobody and none if the server did not say.
pub(crate) fn caller(extensions: &Extensions) -> (Caller, Rights) {
    (extensions.get().cloned().unwrap_or_default(), extensions.get().cloned().unwrap_or_default())
}

/// Whether the caller of a request may do `verb` to what `on` names, which `subject` says to people.
///
/// # Errors
/// 401 without an identity, 403 for what no rule allows.
pub(crate) fn allowed(
    extensions: &Extensions,
    verb: Verb,
    on: On<'_>,
    subject: Option<Subject>,
) -> Result<(), ApiError> {
    let (caller, rights) = caller(extensions);
    authorize(&rights, &caller, verb, on).map_err(|denied| match denied {
        Denied::Anonymous => ApiError::Unauthorized,
        denied @ (Denied::NotAUser { .. } | Denied::Refused(_)) => {
            let of = subject.as_ref().map(Subject::described).unwrap_or_default();
            ApiError::Forbidden { message: format!("{of}forbidden: {denied}"), subject }
        }
    })
}

/// Who may ask the catalog anything sees the rows that they may list.
const QUESTIONS: On<'_> =
    On::Resource { group: FLUVIAL_GROUP, resource: "query", subresource: "", namespace: "", name: "" };

fn wrong_method(method: &Method, resource: &str) -> ApiError {
    let message = format!("the server does not allow {method} on {}", printable(resource));
    ApiError::MethodNotAllowed { message }
}

async fn query(State(state): State<ApiState>, request: Request) -> Response {
    let answer = async {
        allowed(request.extensions(), Verb::Query, QUESTIONS, None)?;
        if request.method() != Method::POST {
            return Err(wrong_method(request.method(), "query: send it with POST"));
        }
        let (parts, body) = request.into_parts();
        let bytes = body::read(body).await?;
        let (caller, rights) = caller(&parts.extensions);
        special::query(&state, &parts.headers, &bytes, &Sight::of(&rights, &caller)).await
    };
    answer.await.unwrap_or_else(ApiError::into_response)
}

async fn query_schema(State(state): State<ApiState>, request: Request) -> Response {
    match allowed(request.extensions(), Verb::Query, QUESTIONS, None) {
        Ok(()) => special::schema(&state),
        Err(error) => error.into_response(),
    }
}

async fn serve(State(state): State<ApiState>, request: Request) -> Response {
    answer(&state, request).await.unwrap_or_else(ApiError::into_response)
}

async fn answer(state: &ApiState, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    // Before the path is looked at: a stranger learns nothing of what there is.
    if caller(&parts.extensions).0.0.is_none() {
        return Err(ApiError::Unauthorized);
    }
    let may_discover = || allowed(&parts.extensions, Verb::Get, On::Path(&path), None);
    let segments = path::segments(&path)?;
    let texts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, skip) = match texts.as_slice() {
        ["api", version, _, ..] => ("", *version, 2),
        ["apis", group, version, _, ..] => (*group, *version, 3),
        other => {
            may_discover()?;
            return describe(&parts.method, &path, other);
        }
    };
    let rest = segments.get(skip..).unwrap_or_default();
    if let Some(review) = reviews::asked(group, version, &texts[skip..]) {
        return reviews::answer(review, &parts, body).await;
    }
    let target = path::target(group, version, rest, &path).or_else(|error| may_discover().and(Err(error)))?;
    let options = Options::parse(parts.uri.query())?;
    let verb = verb(&parts.method, &target, &options)?;
    let name = target.name.as_deref().unwrap_or_default();
    allowed(&parts.extensions, verb, target.on(), Some(Subject::new(&target.kind.info, name)))?;
    tracing::debug!(verb = verb.as_str(), kind = target.kind.info.kind, name = ?target.name, "API call");
    let recorded = verb.changes().then(|| state.recorded(&parts.extensions, verb, &target));
    act(recorded.as_ref().unwrap_or(state), &target, verb, &options, &parts, body).await
}

/// What a method means on a target.
fn verb(method: &Method, target: &Target, options: &Options) -> Result<Verb, ApiError> {
    let whole = target.part == Part::Whole;
    Ok(match (method, target.name.is_some()) {
        (&Method::GET, false) if options.flag("watch")? => Verb::Watch,
        (&Method::GET | &Method::HEAD, false) => Verb::List,
        (&Method::GET | &Method::HEAD, true) => Verb::Get,
        (&Method::POST, false) => Verb::Create,
        (&Method::PUT, true) => Verb::Update,
        (&Method::PATCH, true) => Verb::Patch,
        (&Method::DELETE, true) if whole => Verb::Delete,
        (&Method::DELETE, false) => Verb::DeleteCollection,
        _ => return Err(wrong_method(method, target.kind.info.plural)),
    })
}

async fn act(
    state: &ApiState,
    target: &Target,
    verb: Verb,
    options: &Options,
    parts: &Parts,
    body: axum::body::Body,
) -> Result<Response, ApiError> {
    let headers = &parts.headers;
    let name = target.name.as_deref().unwrap_or_default();
    match verb {
        Verb::Get => read::get(state, target, name, options, headers).await,
        Verb::List => read::list(state, target, options, headers).await,
        Verb::Watch => watch::watch(state, target, options, parts).await,
        Verb::Create => write::create(state, target, options, parts, &body::read(body).await?).await,
        Verb::Update => write::update(state, target, name, options, parts, &body::read(body).await?).await,
        Verb::Patch => write::patch(state, target, name, options, parts, &body::read(body).await?).await,
        Verb::Delete => delete::delete(state, target, name, options, headers, &body::read(body).await?).await,
        Verb::DeleteCollection => {
            delete::delete_collection(state, target, options, headers, &body::read(body).await?).await
        }
        Verb::Query | Verb::Bind | Verb::Escalate | Verb::Impersonate => {
            Err(wrong_method(&Method::POST, target.kind.info.plural))
        }
    }
}

/// Discovery and OpenAPI.
fn describe(method: &Method, path: &str, segments: &[&str]) -> Result<Response, ApiError> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(wrong_method(method, path));
    }
    let found = match segments {
        ["api"] => Some(discovery::core_versions()),
        ["apis"] => Some(discovery::group_list()),
        ["api", version] => discovery::resource_list("", version),
        ["apis", group] => discovery::group(group),
        ["apis", group, version] => discovery::resource_list(group, version),
        ["openapi", "v2"] => Some(openapi::version_2()),
        ["openapi", "v3"] => Some(openapi::index()),
        ["openapi", "v3", "api", version] => openapi::document("", version),
        ["openapi", "v3", "apis", group, version] => openapi::document(group, version),
        _ => None,
    };
    let found = found.ok_or_else(|| ApiError::NoSuchPath { path: printable(path) })?;
    Ok(json_response(StatusCode::OK, &found))
}
