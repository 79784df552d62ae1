//! Opening one file of a prepared dataset: complete, on its way, or, without room, straight from the source.

use std::sync::Arc;

use fluvial_model::manifest::{RelativePath, Root};

use super::fill::{Begun, Mounted, Of, begin};
use super::index::{Missing, Object};
use super::partial::Filler;
use super::through::Direct;
use super::{Shared, blocking, replay};
use crate::engine::{Contents, EngineError, OpenFile};

pub(super) async fn open(
    shared: &Arc<Shared>,
    uid: &str,
    root: Root,
    path: &RelativePath,
) -> Result<OpenFile, EngineError> {
    open_as(shared, uid, root, path, true).await.map(|(_, _, open)| open)
}

/// Opens a file for another node, and tells its object and, where that is known and needed, its version at the source.
pub(super) async fn open_for_peer(
    shared: &Arc<Shared>,
    uid: &str,
    root: Root,
    path: &RelativePath,
) -> Result<(String, Option<String>, OpenFile), EngineError> {
    open_as(shared, uid, root, path, false).await
}

/// Opens a file; `reads` if it is a reader's, whose way through the files is recorded.
async fn open_as(
    shared: &Arc<Shared>,
    uid: &str,
    root: Root,
    path: &RelativePath,
    reads: bool,
) -> Result<(String, Option<String>, OpenFile), EngineError> {
    // Most opens are of complete files: one visit to a blocking thread is all that they take.
    let (dataset, file) = match look_at(shared, uid, root, path).await? {
        Looked::Open(object, open) => {
            if reads {
                replay::opened(shared, uid, path.as_str(), false);
            }
            return Ok((object, None, open));
        }
        Looked::Missing(dataset, file) => (dataset, file),
    };
    let size = file.bytes;
    let mounts: Arc<Vec<Mounted>> = shared.mounts_of(uid)?;
    let object = file.object.clone();
    if reads {
        replay::opened(shared, uid, path.as_str(), !shared.partials.has(&object));
    }
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
            tag = partial.tag();
            let filler = Filler { partial: partial.clone(), uid: uid.to_owned() };
            OpenFile { size, contents: Contents::Filling(partial.file(), Arc::new(filler)), lease: None }
        }
        Begun::NoRoom(origin) => {
            tag = origin.tag();
            let through = Direct::new(shared.clone(), origin);
            OpenFile { size, contents: Contents::Through(Arc::new(through)), lease: None }
        }
    };
    Ok((object, tag, open))
}

/// Opens a file if it is complete.
pub(super) async fn open_complete(
    shared: &Arc<Shared>,
    uid: &str,
    root: Root,
    path: &RelativePath,
) -> Result<Option<OpenFile>, EngineError> {
    Ok(match look_at(shared, uid, root, path).await? {
        Looked::Open(_, open) => Some(open),
        Looked::Missing(..) => None,
    })
}

/// Fetches a file that nobody has opened yet; one without room is left to who opens it.
pub(super) async fn ahead(shared: &Arc<Shared>, uid: &str, root: Root, path: &RelativePath) -> Result<(), EngineError> {
    let Looked::Missing(dataset, file) = look_at(shared, uid, root, path).await? else { return Ok(()) };
    let mounts = shared.mounts_of(uid)?;
    let of = Of { uid: uid.to_owned(), root };
    match begin(shared, &dataset, of, *file, &mounts).await? {
        Begun::Partial(partial) => partial.fill_all().await,
        Begun::Complete(_) | Begun::NoRoom(_) => Ok(()),
    }
}

/// What a look at the index tells.
enum Looked {
    Open(String, OpenFile),
    Missing(String, Box<Missing>),
}

async fn look_at(shared: &Arc<Shared>, uid: &str, root: Root, path: &RelativePath) -> Result<Looked, EngineError> {
    let (shared, uid, path) = (shared.clone(), uid.to_owned(), path.to_string());
    blocking("open", move || look(&shared, &uid, root, &path)).await
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
