//! What is done behind the readers' backs: parts of unfinished files are noted once they are on the disk, orders of reading are
//! written, and tiers that are above their high mark are swept.
//!
//! Order of a note: what is there is read first, then the tier is synced, then the index is written, and only as long as nothing
//! has made it wrong meanwhile. A part that comes between the first two is noted the next time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::index::{Held, Unfinished};
use super::store::Inner;
use super::{Shared, blocking};
use crate::engine::EngineError;

/// How often it is looked whether there is anything to do. A crash costs what was fetched since the last time.
const EVERY: Duration = Duration::from_secs(2);

/// The task.
#[derive(Default)]
pub(super) struct Upkeep(pub(super) Mutex<Option<JoinHandle<()>>>);

/// Begins it, once.
pub(super) fn begin(shared: &Arc<Shared>) {
    let mut task = shared.upkeep.0.lock().unwrap_or_else(PoisonError::into_inner);
    if task.is_some() {
        return;
    }
    let (weak, mut stopped) = (Arc::downgrade(shared), shared.stopped.subscribe());
    *task = Some(tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            let Some(shared) = weak.upgrade() else { return };
            if let Err(error) = blocking("look after the cache", move || round(&shared)).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "the cache could not be looked after");
            }
        }
    }));
}

/// Waits until it has ended; it was told to.
pub(super) async fn end(shared: &Shared) {
    let task = shared.upkeep.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(task) = task
        && let Err(error) = task.await
    {
        tracing::warn!(%error, "the cache's upkeep broke down");
    }
}

fn round(shared: &Shared) -> Result<(), EngineError> {
    note(shared)?;
    super::replay::write(shared)?;
    shared.store.sweep()
}

/// Notes which parts of unfinished files are there.
pub(super) fn note(shared: &Shared) -> Result<(), EngineError> {
    let open = shared.partials.unnoted();
    let resting = shared.store.lock().dormant_unnoted();
    let files: Vec<&Unfinished> = open.iter().map(|unnoted| &unnoted.file).chain(&resting).collect();
    if files.is_empty() {
        return Ok(());
    }
    let lost = shared.store.sync_tiers_of(&files);
    {
        let mut inner = shared.store.lock();
        let synced = |file: &Unfinished| !lost.contains(&file.tier);
        let mut good: Vec<&Unfinished> = Vec::new();
        for unnoted in &open {
            if !synced(&unnoted.file) {
                unnoted.again();
            } else if unnoted.stands() {
                good.push(&unnoted.file);
            }
        }
        good.extend(resting.iter().filter(|file| synced(file) && inner.rests_as(file)));
        inner.index.note_unfinished(&good)?;
    }
    // What was open only here by now is put to rest, which takes the lock.
    drop(open);
    Ok(())
}

/// What is there of files that are no objects: object, tier and bytes.
pub(super) fn begun(
    inner: &Inner,
    open: Vec<(String, String, u64)>,
) -> Result<Vec<(String, String, u64)>, EngineError> {
    let mut begun = Vec::new();
    for file in open {
        // It may have become one meanwhile.
        if inner.index.tier_of(&file.0)?.is_none() {
            begun.push(file);
        }
    }
    begun.extend(inner.dormant_bytes());
    Ok(begun)
}

/// What is held of a dataset, files that are not complete counted in: true to within a part.
pub(super) fn held(inner: &Inner, uid: &str, open: Vec<(String, String, u64)>) -> Result<Option<Held>, EngineError> {
    let Some(mut held) = inner.index.held(uid)? else { return Ok(None) };
    for (object, tier, bytes) in begun(inner, open)? {
        let uses = inner.index.uses_of(uid, &object)?;
        if uses > 0 {
            held.cached_bytes += bytes * uses;
            held.by_tier.push((tier, bytes));
        }
    }
    Ok(Some(held))
}
