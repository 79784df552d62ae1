//! A file's bytes, read by an agent that reaches them and passed through.
//!
//! The hub keeps nothing: it asks for one chunk after the other and hands each on. Bytes are held against the
//! version's digest, and the last chunk goes out only if they agree.

use std::collections::{BTreeMap, HashMap};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use fluvial_model::desired::Endpoint;
use fluvial_model::kinds::{Cluster, Dataset, Storage};
use fluvial_model::manifest::{Digest, File, Item, RelativePath, Root, lookup};
use fluvial_model::report::Problem;
use fluvial_model::route::{self, Source};
use fluvial_proto::v1;
use fluvial_raft::Consistency;
use futures::TryStreamExt as _;
use serde::Deserialize;
use thiserror::Error;
use tonic::{Code, Status};

use super::{ViewsState, dataset, path, tree, version};
use crate::api::status::ApiError;
use crate::sessions::AskError;

/// Bytes asked for at a time.
const CHUNK: u32 = 1024 * 1024;
/// How long another hub's agent may take: its own limit and the way.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(35);

#[derive(Deserialize)]
pub(super) struct FileQuery {
    path: String,
    root: Option<String>,
}

/// Why a file cannot be read on.
#[derive(Debug, Error)]
enum FileError {
    #[error("no agent that is connected can read it")]
    NoAgent,
    #[error("the agent of cluster \"{cluster}\" could not read it: {}: {}", .problem.reason, .problem.message)]
    Problem { cluster: String, problem: Problem },
    #[error("asking the agent of cluster \"{cluster}\": {}", .status.message())]
    Ask { cluster: String, status: Status },
    #[error("the source is shorter than the version says: it ends after {read} of {size} bytes")]
    Short { read: u64, size: u64 },
    #[error("the agent sent more bytes than it was asked for")]
    Long,
    #[error("the source was changed: its bytes are not those of this version")]
    Changed,
}

/// A place that an agent can read, with the secrets that open it.
struct Readable {
    cluster: String,
    endpoints: Vec<u8>,
    secrets: HashMap<String, String>,
}

/// A file that is being read.
struct Reading {
    state: ViewsState,
    from: Readable,
    path: String,
    file: File,
    read: u64,
    hasher: blake3::Hasher,
}

/// `GET file`.
pub(super) async fn read(
    State(state): State<ViewsState>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<FileQuery>,
) -> Result<Response, ApiError> {
    let dataset = dataset(&state.objects, &namespace, &name).await?;
    let (root, path) = (version(&dataset, query.root.as_deref())?, path(Some(&query.path))?);
    let file = look_up(&state, root, path.clone()).await?;
    let headers = [(CONTENT_TYPE, "application/octet-stream".to_owned()), (CONTENT_LENGTH, file.size.to_string())];
    if file.size == 0 {
        return Ok((headers, Body::empty()).into_response());
    }
    let mut last = FileError::NoAgent;
    for from in readable(&state, &dataset, root).await? {
        let path = path.as_str().to_owned();
        let mut reading = Reading { state: state.clone(), from, path, file, read: 0, hasher: blake3::Hasher::new() };
        // The first chunk decides whether this source is any good, while there is still another to try.
        match reading.chunk().await {
            Ok(first) => {
                let rest = futures::stream::try_unfold(reading, |mut reading| async move {
                    if reading.read == reading.file.size {
                        return Ok(None);
                    }
                    reading.chunk().await.map(|chunk| Some((chunk, reading)))
                });
                let rest = rest.inspect_err(|error| tracing::warn!(%error, "a file breaks off"));
                let all = futures::StreamExt::chain(futures::stream::iter([Ok(first)]), rest);
                return Ok((headers, Body::from_stream(all)).into_response());
            }
            Err(error) => last = error,
        }
    }
    Err(failed(&path, &last))
}

fn failed(path: &RelativePath, error: &FileError) -> ApiError {
    ApiError::Unavailable { message: format!("file \"{}\": {error}", path.as_str()), retry_after_seconds: 5 }
}

async fn look_up(state: &ViewsState, root: Root, path: RelativePath) -> Result<File, ApiError> {
    let (get, place) = (state.blocks.getter(), path.clone());
    match tree::reading(state, move || lookup(root, &place, &get)).await? {
        Some(Item::File(file)) => Ok(file),
        Some(_) => Err(ApiError::BadRequest(format!("\"{}\" is not a file", path.as_str()))),
        None => Err(ApiError::NoSuchPath { path: path.as_str().to_owned() }),
    }
}

/// Every pair of a source that holds the version and an agent that reaches it, the nearest first.
async fn readable(state: &ViewsState, dataset: &Dataset, root: Root) -> Result<Vec<Readable>, ApiError> {
    let storages = state.objects.list::<Storage>(Consistency::Stale).await?;
    let storages: BTreeMap<_, _> = storages.into_iter().map(|s| (s.object.metadata.name.clone(), s.object)).collect();
    let clusters = state.objects.list::<Cluster>(Consistency::Stale).await?;
    let clusters: Vec<_> = clusters.into_iter().map(|cluster| cluster.object.metadata.name).collect();
    let mut found = Vec::new();
    for source in holding(dataset, &storages, root) {
        let endpoints =
            serde_json::to_vec(&source.endpoints).map_err(|error| ApiError::Internal { message: error.to_string() })?;
        let secrets = secrets(state, &source.endpoints).await?;
        // Its own cluster first, then, for an object store, whoever is there.
        let mut near: Vec<_> = clusters.iter().filter(|cluster| source.reached_by(cluster)).collect();
        near.sort_by_key(|cluster| source.cluster.as_ref() != Some(*cluster));
        for cluster in near {
            found.push(Readable { cluster: cluster.clone(), endpoints: endpoints.clone(), secrets: secrets.clone() });
        }
    }
    Ok(found)
}

/// The sources that hold a version. The mounts hold the current one, as far as we know.
fn holding(dataset: &Dataset, storages: &BTreeMap<String, Storage>, root: Root) -> Vec<Source> {
    let root = root.to_string();
    let mut as_of = dataset.clone();
    let status = as_of.status.get_or_insert_default();
    let current = status.root.as_deref() == Some(&root);
    status.root = Some(root);
    let mut sources = route::sources(&as_of, storages);
    sources.retain(|source| current || source.root.is_some());
    sources
}

async fn secrets(state: &ViewsState, endpoints: &[Endpoint]) -> Result<HashMap<String, String>, ApiError> {
    let mut values = HashMap::new();
    for reference in endpoints.iter().flat_map(|endpoint| endpoint.secrets.values()) {
        let value = state.objects.secret_value(&reference.namespace, &reference.name, &reference.key).await?;
        if let Some(value) = value {
            values.insert(Endpoint::secret_id(reference), value);
        }
    }
    Ok(values)
}

impl Reading {
    /// The next bytes; at least one.
    async fn chunk(&mut self) -> Result<Bytes, FileError> {
        let left = self.file.size - self.read;
        let length = u32::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let data = self.ask(length).await?;
        if data.is_empty() {
            return Err(FileError::Short { read: self.read, size: self.file.size });
        }
        if data.len() > length as usize {
            return Err(FileError::Long);
        }
        self.read += data.len() as u64;
        self.hasher.update(&data);
        let expected = self.file.digest.filter(|_| self.read == self.file.size);
        if expected.is_some_and(|digest| digest != Digest::from_bytes(*self.hasher.finalize().as_bytes())) {
            return Err(FileError::Changed);
        }
        Ok(data)
    }

    async fn ask(&self, length: u32) -> Result<Bytes, FileError> {
        let cluster = || self.from.cluster.clone();
        let question = v1::ask::Question::ReadFile(v1::ReadFile {
            sources: self.from.endpoints.clone().into(),
            secrets: self.from.secrets.clone(),
            path: self.path.clone(),
            offset: self.read,
            length,
        });
        let ask = v1::Ask { id: 0, question: Some(question) };
        let reply = match self.state.registry.ask(&self.from.cluster, ask.clone()).await {
            Ok(reply) => reply,
            Err(AskError::NotHere { .. }) => match self.state.peers.ask_agent(&self.from.cluster, &ask, PATIENCE).await
            {
                Ok(Some(reply)) => reply,
                Ok(None) => return Err(FileError::NoAgent),
                Err(status) => return Err(FileError::Ask { cluster: cluster(), status }),
            },
            Err(error) => return Err(FileError::Ask { cluster: cluster(), status: error.into() }),
        };
        if reply.problem.is_empty() {
            return Ok(reply.data);
        }
        let unreadable = |error: serde_json::Error| FileError::Ask {
            cluster: cluster(),
            status: Status::new(Code::Internal, format!("its problem cannot be read: {error}")),
        };
        let problem = serde_json::from_slice(&reply.problem).map_err(unreadable)?;
        Err(FileError::Problem { cluster: cluster(), problem })
    }
}
