//! Opening one file of a prepared dataset: complete, on its way, or, without room, straight from the source.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{RelativePath, Root};

use super::Shared;
use super::blocking;
use super::fill::{Begun, Mounted, Of, Origin, begin};
use super::index::{Missing, Object};
use super::partial::Filler;
use crate::engine::{Contents, EngineError, OpenFile, Through};

pub(super) async fn open(
    shared: &Arc<Shared>,
    uid: &str,
    root: Root,
    path: &RelativePath,
) -> Result<OpenFile, EngineError> {
    open_for_peer(shared, uid, root, path).await.map(|(_, _, open)| open)
}

/// Opens a file, and tells its object and, where that is known and needed, its version at the source.
pub(super) async fn open_for_peer(
    shared: &Arc<Shared>,
    uid: &str,
    root: Root,
    path: &RelativePath,
) -> Result<(String, Option<String>, OpenFile), EngineError> {
    // Most opens are of complete files: one visit to a blocking thread is all that they take.
    let looked = blocking("open", {
        let (shared, uid, path) = (shared.clone(), uid.to_owned(), path.to_string());
        move || look(&shared, &uid, root, &path)
    })
    .await?;
    let (dataset, file) = match looked {
        Looked::Open(object, open) => return Ok((object, None, open)),
        Looked::Missing(dataset, file) => (dataset, file),
    };
    let size = file.bytes;
    let mounts: Arc<Vec<Mounted>> = shared.mounts_of(uid)?;
    let object = file.object.clone();
    let of = Of { uid: uid.to_owned(), root };
    let mut tag = None;
    let open = match begin(shared, &dataset, of, *file, &mounts).await? {
        Begun::Complete(tier) => {
            let shared = shared.clone();
            let object = Object { id: object.clone(), tier, bytes: size };
            let gone = || EngineError::Stopped { op: "open" };
            // Gone in this moment: whoever asks again has it fetched.
            blocking("open", move || complete(&shared, &object, 0)?.ok_or_else(gone)).await?
        }
        Begun::Partial(partial) => {
            if size == 0 {
                // Nobody ever reads of it.
                partial.fill_all().await?;
            }
            shared.partials.park(&partial);
            tag = partial.tag();
            let contents = Contents::Filling(partial.file(), Arc::new(Filler(partial)));
            OpenFile { size, contents, lease: None }
        }
        Begun::NoRoom(origin) => {
            tag = origin.tag();
            let through = Direct { shared: shared.clone(), origin };
            OpenFile { size, contents: Contents::Through(Arc::new(through)), lease: None }
        }
    };
    Ok((object, tag, open))
}

/// What a look at the index tells.
enum Looked {
    Open(String, OpenFile),
    Missing(String, Box<Missing>),
}

fn look(shared: &Shared, uid: &str, root: Root, path: &str) -> Result<Looked, EngineError> {
    let openable = shared.store.lock().index.openable(uid, path)?;
    let Some(openable) = openable else { return Err(EngineError::NotPrepared { dataset: uid.to_owned() }) };
    if openable.root != root.to_string() {
        return Err(EngineError::Superseded { root, path: path.to_owned() });
    }
    match openable.file {
        None => Err(EngineError::NotFound { root, path: path.to_owned() }),
        Some((file, None)) => Ok(Looked::Missing(openable.dataset, Box::new(file))),
        Some((file, Some((tier, opened)))) => {
            let object = Object { id: file.object.clone(), tier, bytes: file.bytes };
            Ok(match complete(shared, &object, opened)? {
                Some(open) => Looked::Open(object.id, open),
                None => Looked::Missing(openable.dataset, Box::new(file)),
            })
        }
    }
}

fn complete(shared: &Shared, object: &Object, opened: i64) -> Result<Option<OpenFile>, EngineError> {
    let Some((file, lease)) = shared.store.open_object(object, opened)? else { return Ok(None) };
    let contents = Contents::Complete(Arc::new(file));
    Ok(Some(OpenFile { size: object.bytes, contents, lease: Some(Arc::new(lease)) }))
}

/// A file that has no room in the cache.
struct Direct {
    shared: Arc<Shared>,
    origin: Box<Origin>,
}

#[async_trait]
impl Through for Direct {
    async fn read(&self, offset: u64, length: u64) -> Result<Bytes, EngineError> {
        let length = length.min(self.origin.file.bytes.saturating_sub(offset));
        if length == 0 {
            return Ok(Bytes::new());
        }
        let Ok(_turn) = self.shared.ranges.acquire().await else { return Err(EngineError::Stopped { op: "read" }) };
        let data = self.origin.read(offset, length).await?;
        if data.len() as u64 == length { Ok(data) } else { Err(self.origin.differs("it is shorter")) }
    }
}
