//! Opening one file of a prepared dataset: complete, on its way, or, without room, straight from the source.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{RelativePath, Root};

use super::Shared;
use super::blocking;
use super::fill::{Begun, Mounted, Origin, begin, with_index};
use super::partial::Filler;
use crate::engine::{Contents, EngineError, OpenFile, Through};

pub(super) async fn open(
    shared: &Arc<Shared>,
    uid: &str,
    root: Root,
    path: &RelativePath,
) -> Result<OpenFile, EngineError> {
    let openable = with_index(shared, "open", {
        let (uid, path) = (uid.to_owned(), path.to_string());
        move |inner| inner.index.openable(&uid, &path)
    })
    .await?;
    let Some(openable) = openable else { return Err(EngineError::NotPrepared { dataset: uid.to_owned() }) };
    if openable.root != root.to_string() {
        return Err(EngineError::Superseded { root, path: path.to_string() });
    }
    let Some((file, tier)) = openable.file else {
        return Err(EngineError::NotFound { root, path: path.to_string() });
    };
    let (size, object) = (file.bytes, file.object.clone());
    if let Some(tier) = tier {
        return complete(shared, size, object, tier).await;
    }
    let mounts: Arc<Vec<Mounted>> = shared.mounts_of(uid)?;
    match begin(shared, &openable.dataset, file, &mounts).await? {
        Begun::Complete(tier) => complete(shared, size, object, tier).await,
        Begun::Partial(partial) => {
            if size == 0 {
                // Nobody ever reads of it.
                partial.fill_all().await?;
            }
            shared.partials.park(&partial);
            let contents = Contents::Filling(partial.file(), Arc::new(Filler(partial)));
            Ok(OpenFile { size, contents, lease: None })
        }
        Begun::NoRoom(origin) => {
            let through = Direct { shared: shared.clone(), origin };
            Ok(OpenFile { size, contents: Contents::Through(Arc::new(through)), lease: None })
        }
    }
}

async fn complete(shared: &Arc<Shared>, size: u64, object: String, tier: String) -> Result<OpenFile, EngineError> {
    let shared = shared.clone();
    blocking("open", move || {
        let (file, lease) = shared.store.open_object(&object, &tier)?;
        Ok(OpenFile { size, contents: Contents::Complete(Arc::new(file)), lease: Some(Arc::new(lease)) })
    })
    .await
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
