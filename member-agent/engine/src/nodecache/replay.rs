//! The recorded order, replayed: whoever opens a file of it has the files behind it fetched, as they were read before.
//!
//! It stays behind demand: it has [`PARTS`] of the parts that may be in flight, a quarter at most, and takes free room only:
//! nothing is given up for it.
//! Orders are written by the upkeep, outlive their dataset's cache, and are dropped, the oldest first, when there are too many.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fluvial_model::manifest::RelativePath;
use futures::StreamExt as _;

use super::fill::{Begun, Of, begin, with_index};
use super::index::Index;
use super::order::{Access, Order};
use super::{PART_BYTES, Shared};
use crate::engine::EngineError;

/// Files that are fetched ahead of the one that is opened.
const WINDOW: usize = 32;
/// Files that are fetched at a time.
const FILES_AT_ONCE: usize = 8;
/// Parts that all replays together may have in flight, at most.
pub(super) const PARTS: u32 = 16;

/// The orders of prepared datasets, by uid.
#[derive(Default)]
pub(super) struct Orders(Mutex<HashMap<String, Order>>);

impl Orders {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Order>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A version of a dataset is prepared; its order is what is known here, or else what was written.
    pub(super) fn prepared(&self, uid: &str, index: &Index) -> Result<(), EngineError> {
        let known = self.all().remove(uid);
        let mut order = match known {
            Some(order) => order,
            None => index.order(uid)?.map(|text| Order::read(&text)).unwrap_or_default(),
        };
        order.keep(|path| index.has_path(uid, path).unwrap_or(true));
        self.all().insert(uid.to_owned(), order);
        Ok(())
    }

    /// Notes what a reader has to wait for.
    pub(super) fn note(&self, uid: &str, path: &str, range: (u64, u64), size: u64) {
        if let Some(order) = self.all().get_mut(uid) {
            order.note(path, range.0, range.1, size);
        }
    }
}

/// Writes the orders that have changed.
pub(super) fn write(shared: &Shared) -> Result<(), EngineError> {
    let of = |(uid, order): (&String, &mut Order)| Some((uid.clone(), order.write()?));
    let changed: Vec<(String, String)> = shared.orders.all().iter_mut().filter_map(of).collect();
    for (uid, text) in changed {
        shared.store.lock().index.keep_order(&uid, &text)?;
    }
    Ok(())
}

/// A dataset is not prepared any more: what is known of it is written already, or is lost.
pub(super) fn forget(shared: &Shared, uid: &str) {
    shared.orders.all().remove(uid);
}

/// A file is opened, and was `missing` or not.
pub(super) fn opened(shared: &Arc<Shared>, uid: &str, path: &str, missing: bool) {
    if missing {
        shared.misses.fetch_add(1, Ordering::Relaxed);
    }
    let next = shared.orders.all().get_mut(uid).map(|order| order.opened(path, missing, WINDOW)).unwrap_or_default();
    fetch(shared, uid, next);
}

/// All of a dataset is wanted.
pub(super) fn everything(shared: &Arc<Shared>, uid: &str) {
    let all = shared.orders.all().get_mut(uid).map(Order::everything).unwrap_or_default();
    fetch(shared, uid, all);
}

fn fetch(shared: &Arc<Shared>, uid: &str, accesses: Vec<Access>) {
    if accesses.is_empty() {
        return;
    }
    let (shared, uid) = (shared.clone(), uid.to_owned());
    let mut stopped = shared.stopped.subscribe();
    tokio::spawn(async move {
        let one = |access: Access| {
            let (shared, uid) = (&shared, &uid);
            async move {
                // Its failure is nobody's: who reads it asks again, and hears of it.
                if let Err(error) = one(shared, uid, &access).await {
                    tracing::debug!(error = &error as &dyn std::error::Error, path = access.path, "not replayed");
                }
            }
        };
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => {}
            () = futures::stream::iter(accesses).for_each_concurrent(FILES_AT_ONCE, one) => {}
        }
    });
}

async fn one(shared: &Arc<Shared>, uid: &str, access: &Access) -> Result<(), EngineError> {
    if RelativePath::parse(&access.path).is_err() {
        return Ok(());
    }
    let found = with_index(shared, "replay", {
        let (uid, path) = (uid.to_owned(), access.path.clone());
        move |inner| inner.index.openable(&uid, &path)
    })
    .await?;
    let Some((dataset, root, file)) = found.and_then(|found| Some((found.dataset, found.root, found.file?))) else {
        return Ok(());
    };
    let Ok(root) = root.parse() else { return Ok(()) };
    let (file, None) = file else { return Ok(()) };
    let size = file.bytes;
    if !shared.store.has_room(size) {
        return Ok(());
    }
    let mounts = shared.mounts_of(uid)?;
    let Begun::Partial(partial) = begin(shared, &dataset, Of { uid: uid.to_owned(), root }, file, &mounts).await?
    else {
        return Ok(());
    };
    let whole = [(0, u32::try_from(size.div_ceil(PART_BYTES)).unwrap_or(u32::MAX))];
    for (from, to) in if access.ranges.is_empty() { &whole } else { access.ranges.as_slice() } {
        // Range by range, so that little of what may be in flight is taken at a time.
        let mut at = u64::from(*from) * PART_BYTES;
        let end = (u64::from(*to) * PART_BYTES).min(size);
        while at < end {
            let length = (end - at).min(u64::from(shared.replayed / 2).max(1) * PART_BYTES);
            let parts = u32::try_from(length.div_ceil(PART_BYTES)).unwrap_or(1);
            let turn = shared.replays.acquire_many(parts).await;
            let _turn = turn.map_err(|_| EngineError::Stopped { op: "replay" })?;
            partial.fill_ahead(at, length).await?;
            at += length;
        }
    }
    Ok(())
}
