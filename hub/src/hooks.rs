//! ① Where stores tell that something changed: `POST …/namespaces/NS/sourcehooks/NAME/notifications`.
//!
//! A caller has no certificate but the bearer token of the SourceHook. What it says is counted in the status of every
//! dataset that it is about ([`rescan::notice`]), and the planner has their sources listed; the listing says what changed.
//! One task takes the notifications of all callers that wait, and looks at each namespace once for all of them: stores
//! call for every object.
//!
//! Invariants: a notification is answered after it is stored, so that a caller whose call failed may repeat it, and
//! nothing is done twice for it; nobody without a token learns which hooks there are; tokens are in no log and no answer.
//!
//! Memory: [`WAITING`] notifications of at most [`MAX_BODY`] bytes, 16 MiB.
//!
//! Deliberately absent: events of other kinds than "something changed there".

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::post;
use fluvial_model::causes::chain;
use fluvial_model::kinds::sourcehook::MIN_TOKEN_BYTES;
use fluvial_model::kinds::{Dataset, SourceHook};
use fluvial_model::names::printable;
use fluvial_model::notification::{ChangedObject, changed_objects, concerns};
use fluvial_model::resource::Resource as _;
use fluvial_model::store::{Txn, TxnOutcome};
use fluvial_model::upkeep::rescan;
use fluvial_raft::{Consistency, ListRequest, StoreError};
use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use tokio::sync::{mpsc, oneshot};

use crate::api::body::BODY_WITHIN;
use crate::api::status::{ApiError, json_response};
use crate::clock::SharedClock;
use crate::objects::{ObjectError, Objects, Stored};

/// The most bytes of one notification: what Amazon's services send at most.
pub const MAX_BODY: usize = 256 * 1024;
/// Notifications that wait for their turn.
const WAITING: usize = 64;
/// How long one may wait until it is stored.
const PATIENCE: Duration = Duration::from_secs(10);
/// Datasets that are read at a time.
const PAGE: usize = 500;
/// How often a write is computed again because others came between.
const ROUNDS: usize = 16;

/// The one route.
pub(crate) const ROUTE: &str = "/apis/fluvial.io/v1alpha1/namespaces/{namespace}/sourcehooks/{name}/notifications";

/// Whether a path is one of these, which need no certificate.
#[must_use]
pub fn is_hook(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    matches!(parts[..], ["", "apis", "fluvial.io", "v1alpha1", "namespaces", namespace, "sourcehooks", name, "notifications"]
        if !namespace.is_empty() && !name.is_empty())
}

/// A notification that is to be stored.
struct Notice {
    namespace: String,
    changed: Vec<ChangedObject>,
    /// Which datasets it was about.
    stored: oneshot::Sender<Result<Vec<String>, ApiError>>,
}

#[derive(Clone)]
struct Hooks {
    objects: Objects,
    clock: SharedClock,
    notices: mpsc::Sender<Notice>,
}

/// The route, whatever else `rest` answers, and the task that stores what comes.
pub fn router(
    objects: Objects,
    clock: SharedClock,
    rest: Router,
) -> (Router, impl Future<Output = ()> + Send + 'static) {
    let (notices, waiting) = mpsc::channel(WAITING);
    let keeping = keep(objects.clone(), waiting);
    let router =
        Router::new().route(ROUTE, post(notified)).with_state(Hooks { objects, clock, notices }).fallback_service(rest);
    (router, keeping)
}

async fn notified(
    State(hooks): State<Hooks>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let hook = hooks.known_caller(&namespace, &name, &headers).await?;
    let body = read(body).await?;
    let message = serde_json::from_slice(&body)
        .map_err(|error| ApiError::BadRequest(format!("the notification is no JSON: {error}")))?;
    let changed =
        changed_objects(&message).map_err(|error| ApiError::BadRequest(format!("the notification: {error}")))?;
    let first = changed.first().map(|object| format!("{}/{}", printable(&object.bucket), printable(&object.key)));
    let datasets = hooks.store(namespace, changed).await?;
    let about = first.unwrap_or_else(|| "no object".to_owned());
    let said = match datasets.as_slice() {
        [] => format!("about {about}: no dataset of the namespace is mounted there"),
        names => format!("about {about}: datasets {}", names.join(", ")),
    };
    hooks.note(hook, &said).await;
    Ok(json_response(StatusCode::OK, &serde_json::json!({ "datasets": datasets })))
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(BODY_WITHIN, axum::body::to_bytes(body, MAX_BODY)).await;
    let read = read.map_err(|_| ApiError::TooSlow { seconds: BODY_WITHIN.as_secs() })?;
    read.map_err(|_| ApiError::TooLarge { limit: MAX_BODY })
}

impl Hooks {
    /// The hook, if the caller has its token.
    async fn known_caller(
        &self,
        namespace: &str,
        name: &str,
        headers: &HeaderMap,
    ) -> Result<Stored<SourceHook>, ApiError> {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
        let unknown = || ApiError::BadToken;
        let given = given.ok_or_else(unknown)?;
        let hook: Option<Stored<SourceHook>> = self.objects.get(namespace, name, Consistency::Stale).await?;
        let hook = hook.ok_or_else(unknown)?;
        let reference = &hook.object.spec.token_secret_ref;
        let token = self.objects.secret_value(namespace, &reference.name, &reference.key).await?;
        let token = token.ok_or_else(unknown)?;
        if token.len() < MIN_TOKEN_BYTES {
            tracing::warn!(
                namespace,
                hook = name,
                "the hook's token is shorter than {MIN_TOKEN_BYTES} bytes: nobody may use it"
            );
            return Err(unknown());
        }
        // Digests of this kind are compared in a time that says nothing of where they differ.
        if blake3::hash(given.as_bytes()) == blake3::hash(token.as_bytes()) { Ok(hook) } else { Err(unknown()) }
    }

    async fn store(&self, namespace: String, changed: Vec<ChangedObject>) -> Result<Vec<String>, ApiError> {
        let busy = || ApiError::Unavailable {
            message: "many notifications wait already: try again".to_owned(),
            retry_after_seconds: 1,
        };
        let (stored, answer) = oneshot::channel();
        self.notices.try_send(Notice { namespace, changed, stored }).map_err(|_| busy())?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ApiError::Unavailable {
                message: "this hub is ending: try again".to_owned(),
                retry_after_seconds: 1,
            }),
            Err(_) => {
                let message = format!("whether the notification was stored is not known after {PATIENCE:?}: repeat it");
                Err(ApiError::Timeout { message })
            }
        }
    }

    /// Notes the call in the hook's status. A note that is overtaken is left out: the next call is noted.
    async fn note(&self, hook: Stored<SourceHook>, said: &str) {
        let Some(status) = hook.object.called(self.clock.now(), said) else { return };
        let object = SourceHook { status: Some(status), ..hook.object };
        let written = match self.objects.encode(&object) {
            Ok(value) => self.objects.txn(Txn::replace(object.key(), hook.revision, value)).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            tracing::debug!(error = %chain(&error), "a call of a hook was not noted");
        }
    }
}

/// Stores notifications, all that wait at a time, until nobody can send any more.
async fn keep(objects: Objects, mut waiting: mpsc::Receiver<Notice>) {
    let mut together = Vec::with_capacity(WAITING);
    while waiting.recv_many(&mut together, WAITING).await > 0 {
        let mut by_namespace: BTreeMap<String, Vec<Notice>> = BTreeMap::new();
        for notice in together.drain(..) {
            by_namespace.entry(notice.namespace.clone()).or_default().push(notice);
        }
        for (namespace, notices) in by_namespace {
            let outcome = count(&objects, &namespace, &notices).await;
            for (notice, index) in notices.into_iter().zip(0..) {
                let answer = match &outcome {
                    Ok(concerned) => {
                        let of_it = concerned.iter().filter(|(_, notices)| notices.contains(&index));
                        Ok(of_it.map(|(name, _)| name.clone()).collect())
                    }
                    Err(error) => Err(ApiError::Unavailable { message: chain(error), retry_after_seconds: 1 }),
                };
                // Who waited may have gone.
                let _ = notice.stored.send(answer);
            }
        }
    }
}

/// Counts a change for every dataset of a namespace that one of the notices is about. Returns those, each with the
/// numbers of its notices.
async fn count(
    objects: &Objects,
    namespace: &str,
    notices: &[Notice],
) -> Result<Vec<(String, Vec<usize>)>, ObjectError> {
    let mut concerned = Vec::new();
    let mut after = None;
    loop {
        let prefix = Dataset::INFO.namespace_prefix(namespace);
        // What is counted already must be counted for sure: a state of some time ago may count for a listing that has
        // begun meanwhile.
        let consistency = Consistency::Linearizable;
        let request =
            ListRequest { prefix: prefix.clone(), after, limit: Some(PAGE), consistency, ..ListRequest::default() };
        let page = objects.store.list(request).await.map_err(|source| ObjectError::Store { key: prefix, source })?;
        for item in &page.items {
            let dataset = objects.decode::<Dataset>(item)?;
            let about = |(_, notice): &(usize, &Notice)| concerns(&dataset.object, &notice.changed);
            let numbers: Vec<usize> = notices.iter().enumerate().filter(about).map(|(index, _)| index).collect();
            if !numbers.is_empty() {
                let name = dataset.object.metadata.name.clone();
                notice(objects, dataset).await?;
                concerned.push((name, numbers));
            }
        }
        match page.items.last() {
            Some(last) if page.more => after = Some(last.key.clone()),
            _ => return Ok(concerned),
        }
    }
}

/// Counts a change for one dataset.
async fn notice(objects: &Objects, mut dataset: Stored<Dataset>) -> Result<(), ObjectError> {
    let (namespace, name) = (dataset.object.metadata.namespace.clone(), dataset.object.metadata.name.clone());
    for _ in 0..ROUNDS {
        // A dataset that was never looked at is listed anyway.
        let Some(status) = &mut dataset.object.status else { return Ok(()) };
        if !rescan::notice(status) {
            return Ok(());
        }
        let value = objects.encode(&dataset.object)?;
        match objects.txn(Txn::replace(dataset.object.key(), dataset.revision, value)).await? {
            TxnOutcome::Committed { .. } => return Ok(()),
            TxnOutcome::Conflict { .. } => {}
        }
        match objects.get(&namespace, &name, Consistency::Linearizable).await? {
            Some(now) => dataset = now,
            None => return Ok(()),
        }
    }
    let source = StoreError::unavailable(format!("the dataset changed {ROUNDS} times while a change was counted"));
    Err(ObjectError::Store { key: dataset.object.key(), source })
}
