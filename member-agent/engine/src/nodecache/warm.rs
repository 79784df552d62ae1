//! Loads on request: files of the prepared version that are wanted now, whoever wants them later.
//!
//! What a load has brought is held as if it had been opened: it may be given up for room later, but not for as long as the load
//! runs. Placed files stay placed. A load that begins again goes on: what is there is not fetched again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use fluvial_model::manifest::Root;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::watch;

use super::fill::{Begun, Mounted, Of, begin, with_index};
use super::index::{Missing, Object};
use super::pagecache::{self, Budget};
use super::partial::Partial;
use super::{PARALLEL_FILES, Shared, blocking, replay};
use crate::engine::{EngineError, WarmRequest, Warmed};

/// Files that are looked up at a time.
const BATCH: u32 = 256;
/// How often it is told how far a load is.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Keeps what a load wants from being given up.
struct Guard {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.store.lock().loads.retain(|(number, ..)| *number != self.number);
    }
}

/// A load as it runs.
struct Run {
    shared: Arc<Shared>,
    dataset: String,
    of: Of,
    mounts: Arc<Vec<Mounted>>,
    /// Room in the page cache, if files are to be there too.
    budget: Option<Budget>,
    /// Files on their way: what is there of them counts.
    on_their_way: Mutex<Vec<Weak<Partial>>>,
}

/// How one file ended.
enum Ended {
    There { in_memory: u64, left_out: u64 },
    NoRoom { path: String },
}

pub(super) async fn warm(
    shared: &Arc<Shared>,
    request: &WarmRequest,
    progress: &watch::Sender<Warmed>,
) -> Result<Warmed, EngineError> {
    let WarmRequest { uid, root, paths, page_cache } = request;
    let (dataset, total) = with_index(shared, "load", {
        let (uid, paths, root) = (uid.clone(), paths.clone(), *root);
        move |inner| {
            let dataset = prepared(inner, &uid, root)?;
            Ok((dataset, inner.index.sum_below(&uid, &paths)?))
        }
    })
    .await?;
    let mounts = shared.mounts_of(uid)?;
    let budget =
        if *page_cache { Some(blocking("look at memory", || Ok(Budget::of_this_machine())).await?) } else { None };
    let _guard = {
        let mut inner = shared.store.lock();
        inner.load_number += 1;
        let number = inner.load_number;
        inner.loads.push((number, uid.clone(), paths.clone()));
        Guard { shared: shared.clone(), number }
    };
    if paths.is_empty() {
        replay::everything(shared, uid);
    }
    let run = Run {
        shared: shared.clone(),
        dataset,
        of: Of { uid: uid.clone(), root: *root },
        mounts,
        budget,
        on_their_way: Mutex::default(),
    };
    let mut done = Warmed { files_total: total.0, bytes_total: total.1, ..Warmed::default() };
    let (mut first_fault, mut without_room) = (None, Vec::new());
    let (mut queue, mut after, mut all) = (VecDeque::new(), Some(String::new()), FuturesUnordered::new());
    let mut tick = tokio::time::interval(TELL_EVERY);
    loop {
        if queue.is_empty()
            && let Some(from) = after.take()
        {
            let (uid, paths, root) = (uid.clone(), paths.clone(), *root);
            let batch = with_index(shared, "load", move |inner| {
                prepared(inner, &uid, root)?;
                inner.index.files_below(&uid, &paths, &from, BATCH)
            })
            .await?;
            after = batch.last().map(|(file, _)| file.path.clone());
            queue.extend(batch);
        }
        while all.len() < PARALLEL_FILES
            && let Some((file, tier)) = queue.pop_front()
        {
            all.push(run.file(file, tier));
        }
        if all.is_empty() && queue.is_empty() && after.is_none() {
            break;
        }
        let (bytes, ended) = tokio::select! {
            biased;
            Some(ended) = all.next() => ended,
            _ = tick.tick() => {
                let bytes_done = done.bytes_done + run.bytes_on_their_way();
                progress.send_replace(Warmed { bytes_done, ..done.clone() });
                continue;
            }
        };
        match ended {
            Ok(Ended::There { in_memory, left_out }) => {
                done.files_done += 1;
                done.bytes_done += bytes;
                done.page_cache_bytes += in_memory;
                done.page_cache_left_out += left_out;
            }
            Ok(Ended::NoRoom { path }) => without_room.push((path, bytes)),
            // The other files would meet the same; whoever called comes back.
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                first_fault.get_or_insert(error);
            }
        }
    }
    drop(all);
    if let Some(error) = first_fault {
        return Err(error);
    }
    done.without_room = without_room.first().map(|(path, _)| {
        let bytes: u64 = without_room.iter().map(|(_, bytes)| bytes).sum();
        let files = without_room.len();
        format!("no room in the cache for {files} files of {bytes} bytes, {path:?} the first of them")
    });
    done.page_cache_room = run.budget.as_ref().map_or(0, Budget::room);
    progress.send_replace(done.clone());
    Ok(done)
}

/// The dataset's name, if the version is the prepared one.
fn prepared(inner: &super::store::Inner, uid: &str, root: Root) -> Result<String, EngineError> {
    match inner.index.version(uid)? {
        None => Err(EngineError::NotPrepared { dataset: uid.to_owned() }),
        Some((_, known)) if known != root.to_string() => Err(EngineError::Superseded { root, path: String::new() }),
        Some((name, _)) => Ok(name),
    }
}

impl Run {
    async fn file(&self, file: Missing, tier: Option<String>) -> (u64, Result<Ended, EngineError>) {
        let bytes = file.bytes;
        (bytes, self.bring(file, tier).await)
    }

    async fn bring(&self, file: Missing, held: Option<String>) -> Result<Ended, EngineError> {
        let mut object = Object { id: file.object.clone(), tier: String::new(), bytes: file.bytes };
        match held {
            Some(tier) => object.tier = tier,
            None => {
                let path = file.path.clone();
                match begin(&self.shared, &self.dataset, self.of.clone(), file, &self.mounts).await? {
                    Begun::Complete(tier) => object.tier = tier,
                    Begun::NoRoom(_) => return Ok(Ended::NoRoom { path }),
                    Begun::Partial(partial) => {
                        object.tier = partial.tier().to_owned();
                        self.note(&partial);
                        partial.fill_all().await?;
                    }
                }
            }
        }
        let (shared, budget) = (self.shared.clone(), self.budget.clone());
        blocking("load", move || {
            // Opening it says that it was wanted now, too.
            let opened = shared.store.open_object(&object, 0)?;
            let (Some(budget), Some((file, _lease))) = (budget, opened) else {
                return Ok(Ended::There { in_memory: 0, left_out: 0 });
            };
            let in_memory = pagecache::warm(&file, object.bytes, &budget).map_err(|source| EngineError::Io {
                op: "read cached file",
                file: object.id.clone(),
                source,
            })?;
            Ok(Ended::There { in_memory, left_out: object.bytes - in_memory })
        })
        .await
    }

    fn note(&self, partial: &Arc<Partial>) {
        let mut all = self.on_their_way.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.strong_count() > 0);
        all.push(Arc::downgrade(partial));
    }

    fn bytes_on_their_way(&self) -> u64 {
        let all = self.on_their_way.lock().unwrap_or_else(PoisonError::into_inner);
        let partials: Vec<_> = all.iter().filter_map(Weak::upgrade).collect();
        drop(all);
        partials.iter().map(|partial| partial.bytes_there()).sum()
    }
}
