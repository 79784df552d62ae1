//! ① What users ask beside objects: join tokens, the fleet of hubs, and what is in a dataset.
//!
//! | call | answer |
//! |---|---|
//! | `POST /apis/fluvial.io/v1alpha1/tokens` | a join token ([`tokens`]) |
//! | `GET /apis/fluvial.io/v1alpha1/hubs` | the hubs ([`hubs`]) |
//! | `DELETE /apis/fluvial.io/v1alpha1/hubs/ID` | the hub leaves the fleet ([`hubs`]) |
//! | `POST /apis/fluvial.io/v1alpha1/users/NAME/credentials` | a certificate or a token ([`credentials`]) |
//! | `DELETE /apis/fluvial.io/v1alpha1/users/NAME/credentials` | what the user has is good for nothing any more |
//! | `POST /apis/fluvial.io/v1alpha1/hubs/snapshot` | a snapshot of the hub ([`snapshot`]) |
//! | `GET`, `DELETE /apis/fluvial.io/v1alpha1/hubs/recovery` | the recovery after a restore, and its end ([`snapshot`]) |
//! | `GET …/namespaces/NS/datasets/NAME/tree?path=&root=&limit=&after=` | a directory of a version ([`tree`]) |
//! | `GET …/namespaces/NS/datasets/NAME/diff?from=&to=` | what differs between versions ([`tree`]) |
//! | `GET …/namespaces/NS/datasets/NAME/file?path=&root=` | a file's bytes ([`file`]) |
//!
//! Invariants: each call needs the right that [`rights`] says; a file's bytes are those of the version that was asked for,
//! or the answer breaks off.
//!
//! Deliberately absent: objects (the API's), and bytes kept on the hub: files pass through.

mod credentials;
mod file;
mod hubs;
mod rights;
mod snapshot;
mod tokens;
mod tree;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{MethodRouter, delete, get, post};
use fluvial_model::kinds::Dataset;
use fluvial_model::manifest::{RelativePath, Root};
use fluvial_model::names::printable;
use fluvial_model::resource::Resource as _;
use fluvial_raft::Consistency;
use tokio::sync::Semaphore;

use crate::api::status::{ApiError, Subject};
use crate::blocks::Blocks;
use crate::enrol::Issuer;
use crate::objects::Objects;
use crate::peers::Peers;
use crate::sessions::Registry;
use crate::snapshot::save::Saver;

/// Trees that are read at a time: each holds a thread of the blocking pool (512), and disks gain nothing from more.
const MAX_TREES: usize = 16;
/// How long a reader waits for its turn.
const TREE_TURN: Duration = Duration::from_secs(10);

/// What these calls work with.
#[derive(Clone)]
pub struct ViewsState {
    pub objects: Objects,
    pub issuer: Issuer,
    pub blocks: Blocks,
    pub registry: Arc<Registry>,
    pub peers: Arc<Peers>,
    /// Where this hub is reached, `host:port`.
    pub advertise: String,
    pub saver: Arc<Saver>,
    turns: Arc<Semaphore>,
}

impl ViewsState {
    #[must_use]
    pub fn new(
        issuer: Issuer,
        blocks: Blocks,
        registry: Arc<Registry>,
        peers: Arc<Peers>,
        advertise: String,
        saver: Arc<Saver>,
    ) -> Self {
        let objects = issuer.objects.clone();
        Self { objects, issuer, blocks, registry, peers, advertise, saver, turns: Arc::new(Semaphore::new(MAX_TREES)) }
    }
}

/// These calls, and whatever else `rest` answers.
pub fn router(state: ViewsState, rest: Router) -> Router {
    let routed = routes().into_iter().fold(Router::new(), |router, (path, handler)| router.route(path, handler));
    routed.route_layer(axum::middleware::from_fn(rights::check)).with_state(state).fallback_service(rest)
}

/// Every route, so that none is without a test of who may call it.
pub(crate) fn routes() -> Vec<(&'static str, MethodRouter<ViewsState>)> {
    vec![
        ("/apis/fluvial.io/v1alpha1/tokens", post(tokens::create)),
        ("/apis/fluvial.io/v1alpha1/hubs", get(hubs::list)),
        ("/apis/fluvial.io/v1alpha1/hubs/{id}", delete(hubs::leave)),
        ("/apis/fluvial.io/v1alpha1/users/{name}/credentials", post(credentials::create).delete(credentials::revoke)),
        ("/apis/fluvial.io/v1alpha1/hubs/snapshot", post(snapshot::save)),
        ("/apis/fluvial.io/v1alpha1/hubs/recovery", get(snapshot::recovery).delete(snapshot::settle)),
        ("/apis/data.fluid.io/v1alpha1/namespaces/{namespace}/datasets/{name}/tree", get(tree::list)),
        ("/apis/data.fluid.io/v1alpha1/namespaces/{namespace}/datasets/{name}/diff", get(tree::diff)),
        ("/apis/data.fluid.io/v1alpha1/namespaces/{namespace}/datasets/{name}/file", get(file::read)),
    ]
}

fn subject(name: &str) -> Subject {
    Subject::new(&Dataset::INFO, name)
}

async fn dataset(objects: &Objects, namespace: &str, name: &str) -> Result<Dataset, ApiError> {
    let found = objects.get::<Dataset>(namespace, name, Consistency::Linearizable).await?;
    found.map(|stored| stored.object).ok_or_else(|| ApiError::NotFound(subject(name)))
}

/// The version that was asked for, or the dataset's current one.
fn version(dataset: &Dataset, asked: Option<&str>) -> Result<Root, ApiError> {
    let current = || dataset.status.as_ref().and_then(|status| status.root.as_deref());
    match asked.filter(|text| !text.is_empty()).or_else(current) {
        Some(text) => {
            text.parse().map_err(|error| ApiError::BadRequest(format!("root \"{}\": {error}", printable(text))))
        }
        None => Err(ApiError::Unavailable {
            message: format!("dataset \"{}\" was not scanned yet: its content is not known", dataset.metadata.name),
            retry_after_seconds: 1,
        }),
    }
}

/// A path of a dataset; slashes at its ends do not matter, and empty is the dataset itself.
fn path(text: Option<&str>) -> Result<RelativePath, ApiError> {
    match text.unwrap_or_default().trim_matches('/') {
        "" => Ok(RelativePath::root()),
        text => RelativePath::parse(text).map_err(|error| ApiError::BadRequest(format!("path: {error}"))),
    }
}
