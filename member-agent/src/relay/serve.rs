//! The serving side of a relay.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fluvial_certs::Identity;
use fluvial_certs::listen::Peer;
use fluvial_model::causes::chain;
use fluvial_model::manifest::RelativePath;
use fluvial_proto::v1;
use fluvial_proto::v1::relay_service_server::RelayService;
use fluvial_transfer::TransferError;
use fluvial_transfer::place::{Detail, LISTING_QUEUE, Place, Tag};
use futures::Stream;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

use super::to_wire;
use crate::memory::MemoryLimit;

/// Bytes of one answer of a read.
pub(crate) const CHUNK: u64 = 1 << 20;
/// Entries of one answer of a listing, of some 200 bytes each.
const PAGE: usize = 1000;

/// What is served for one migration.
struct Serving {
    peer: String,
    sources: Vec<Arc<dyn Place>>,
    over: CancellationToken,
}

/// Everything that is served. Clones are one.
#[derive(Clone)]
pub struct Relays {
    serving: Arc<Mutex<HashMap<String, Arc<Serving>>>>,
    reads: Arc<Semaphore>,
}

impl Default for Relays {
    fn default() -> Self {
        Self::new(MemoryLimit::default().relayed())
    }
}

/// Serves until it is dropped.
pub struct Served {
    relays: Relays,
    operation: String,
    serving: Arc<Serving>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.over.cancel();
        let mut all = self.relays.all();
        if all.get(&self.operation).is_some_and(|known| Arc::ptr_eq(known, &self.serving)) {
            all.remove(&self.operation);
        }
    }
}

impl Relays {
    /// With so many chunks that are read from disk or store at a time, for all peers together.
    #[must_use]
    pub fn new(chunks: usize) -> Self {
        Self { serving: Arc::default(), reads: Arc::new(Semaphore::new(chunks)) }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Serving>>> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the sources of a migration to the agent of the cluster `peer`, until what is returned is dropped.
    #[must_use]
    pub fn serve(&self, operation: &str, peer: &str, sources: Vec<Arc<dyn Place>>) -> Served {
        let serving = Arc::new(Serving { peer: peer.to_owned(), sources, over: CancellationToken::new() });
        let before = self.all().insert(operation.to_owned(), serving.clone());
        if let Some(before) = before {
            before.over.cancel();
        }
        Served { relays: self.clone(), operation: operation.to_owned(), serving }
    }

    /// The source that a call is about, if the caller may read it.
    fn source<T>(&self, request: &Request<T>, operation: &str, source: u32) -> Result<Source, Status> {
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.verified.as_ref());
        let caller = peer.map(|verified| &verified.identity);
        let serving = self.all().get(operation).cloned();
        // Also said to who may not know: that it is not served to him.
        let none = || Status::unavailable(format!("operation {operation} is not served to this caller (yet)"));
        let serving = serving.ok_or_else(none)?;
        if !matches!(caller, Some(Identity::Cluster { name }) if *name == serving.peer) {
            return Err(none());
        }
        let place = usize::try_from(source).ok().and_then(|at| serving.sources.get(at)).cloned();
        let place = place.ok_or_else(|| Status::invalid_argument(format!("there is no source {source}")))?;
        Ok(Source { place, over: serving.over.clone(), reads: self.reads.clone() })
    }
}

/// One source that the caller may read.
struct Source {
    place: Arc<dyn Place>,
    over: CancellationToken,
    reads: Arc<Semaphore>,
}

impl Source {
    /// Runs a call on the place for as long as it is served.
    async fn during<T>(&self, call: impl Future<Output = Result<T, TransferError>>) -> Result<T, Status> {
        tokio::select! {
            biased;
            () = self.over.cancelled() => Err(Status::unavailable("the operation is not served any more")),
            done = call => done.map_err(|error| status(&error)),
        }
    }

    async fn read(&self, path: &RelativePath, tag: Option<&Tag>, offset: u64, length: u64) -> Result<Bytes, Status> {
        let Ok(_turn) = self.reads.acquire().await else { return Err(Status::unavailable("the agent is ending")) };
        self.during(self.place.read(path, tag, offset, length)).await
    }
}

/// What an error of the place is on the wire; the other side makes the same error of it.
fn status(error: &TransferError) -> Status {
    let message = chain(error);
    match error {
        TransferError::NotFound { .. } => Status::not_found(message),
        TransferError::Changed { .. } => Status::aborted(message),
        TransferError::Denied { .. } | TransferError::CredentialsRefused { .. } => Status::permission_denied(message),
        error if error.is_transient() => Status::unavailable(message),
        _ => Status::failed_precondition(message),
    }
}

fn path(text: &str) -> Result<RelativePath, Status> {
    if text.is_empty() {
        return Ok(RelativePath::root());
    }
    RelativePath::parse(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A read on its way.
struct Reading {
    source: Source,
    path: RelativePath,
    tag: Option<Tag>,
    found: Option<v1::RelayEntry>,
    at: u64,
    left: u64,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(v1::RelayChunk, Self)>, Status> {
        let found = self.found.take();
        if self.left == 0 {
            return Ok(found.map(|found| (v1::RelayChunk { data: Bytes::new(), found: Some(found) }, self)));
        }
        let wanted = self.left.min(CHUNK);
        let data = self.source.read(&self.path, self.tag.as_ref(), self.at, wanted).await?;
        let read = data.len() as u64;
        self.at += read;
        // The end of the file.
        self.left = if read < wanted { 0 } else { self.left - read };
        if data.is_empty() && found.is_none() {
            return Ok(None);
        }
        Ok(Some((v1::RelayChunk { data, found }, self)))
    }
}

#[tonic::async_trait]
impl RelayService for Relays {
    type ListStream = Answers<v1::RelayEntries>;
    type ReadStream = Answers<v1::RelayChunk>;

    async fn list(&self, request: Request<v1::RelayListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let asked = request.get_ref();
        let source = self.source(&request, &asked.operation, asked.source)?;
        let detail = if asked.tags_only { Detail::Tags } else { Detail::Full };
        let (sender, receiver) = mpsc::channel(LISTING_QUEUE);
        let place = source.place.clone();
        let listing = AbortOnDropHandle::new(tokio::spawn(async move { place.list(detail, sender).await }));
        let pages = futures::stream::try_unfold(Some((source, receiver, listing)), |state| async move {
            let Some((source, mut receiver, listing)) = state else { return Ok(None) };
            let mut page = Vec::with_capacity(PAGE);
            let received = source.during(async { Ok(receiver.recv_many(&mut page, PAGE).await) }).await?;
            if received > 0 {
                let entries = page.into_iter().map(to_wire).collect();
                return Ok(Some((v1::RelayEntries { entries }, Some((source, receiver, listing)))));
            }
            match listing.await {
                Ok(Ok(())) => Ok(None),
                Ok(Err(error)) => Err(status(&error)),
                Err(_) => Err(Status::unavailable("the agent is ending")),
            }
        });
        Ok(Response::new(Box::pin(pages)))
    }

    async fn stat(&self, request: Request<v1::RelayStatRequest>) -> Result<Response<v1::RelayEntry>, Status> {
        let asked = request.get_ref();
        let source = self.source(&request, &asked.operation, asked.source)?;
        let path = path(&asked.path)?;
        let found = source.during(source.place.stat(&path)).await?;
        Ok(Response::new(to_wire(found)))
    }

    async fn read(&self, request: Request<v1::RelayReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let asked = request.get_ref();
        let source = self.source(&request, &asked.operation, asked.source)?;
        let path = path(&asked.path)?;
        let mut tag = Some(Tag(asked.tag.clone())).filter(|tag| !tag.0.is_empty());
        let mut found = None;
        if asked.look {
            let seen = source.during(source.place.stat(&path)).await?;
            tag = Some(seen.tag.clone());
            found = Some(to_wire(seen));
        }
        let (at, left) = (asked.offset, asked.length);
        let reading = Reading { source, path, tag, found, at, left };
        Ok(Response::new(Box::pin(futures::stream::try_unfold(reading, Reading::next))))
    }
}
