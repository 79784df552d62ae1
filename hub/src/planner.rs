//! ③⑧ The planner: turns what users want and what agents report into assignments and status.
//!
//! One task on every hub; only the leader's acts. It mirrors the store by a watch ([`mirror`]) and reconciles what
//! changed: gather from the mirror, decide with `fluvial-model`, apply in one transaction that compares with the
//! revisions that were read. A transaction that lost a race is simply planned again when its cause comes by the watch.
//!
//! Invariants: decisions are the model's, none are made here; losing the lead at any point loses nothing, for all
//! state is in the store; a planner that lost the lead without knowing it can only write what its comparisons allow.

mod apply;
mod backup;
mod cluster;
mod dataset;
mod expire;
mod index;
mod load;
mod migrate;
mod mirror;
mod parts;
mod placement;
mod storage;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fluvial_model::causes::chain;
use fluvial_raft::{Consistency, StoreError};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::SharedClock;
use crate::liveness::Liveness;
use crate::objects::{ObjectError, Objects};
use mirror::Mirror;

/// How often silence is judged, deadlines are looked at and what failed is tried again.
const TICK: Duration = Duration::from_secs(1);
/// Batches of some thousand events that are taken in before something is planned: then the ticks have their turn.
const BATCHES: usize = 32;
/// How long more of them are waited for.
const CATCH_UP: Duration = Duration::from_millis(200);
/// How often dependents without owners are looked for.
const GARBAGE_TICKS: u64 = 10;
/// The pause after the store failed the planner.
const PAUSE: Duration = Duration::from_millis(500);

/// What the planner works with.
#[derive(Clone)]
pub struct PlannerContext {
    pub objects: Objects,
    pub clock: SharedClock,
    pub liveness: Arc<Liveness>,
}

/// Plans whenever this hub leads, until cancelled.
pub async fn run(context: PlannerContext, cancel: CancellationToken) {
    let mut leadership = context.objects.store.leadership();
    loop {
        if leadership.borrow_and_update().is_self {
            let term = leadership.borrow().term;
            info!(term, "planning begins");
            let outcome = tokio::select! {
                () = cancel.cancelled() => return,
                outcome = lead(&context) => outcome,
                () = lost(leadership.clone(), term) => { info!(term, "planning ends: another hub leads"); continue },
            };
            if let Err(error) = outcome {
                warn!(error = %chain(&error), "planning is interrupted");
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        } else {
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = leadership.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// Returns when this hub no longer leads in `term`.
async fn lost(mut leadership: tokio::sync::watch::Receiver<fluvial_raft::Leadership>, term: u64) {
    // A closed channel means that the store is gone, and the lead with it.
    let _ = leadership.wait_for(|l| !l.is_self || l.term != term).await;
}

/// Mirrors the store and reconciles, until the store fails.
async fn lead(context: &PlannerContext) -> Result<(), ObjectError> {
    let mut mirror = Mirror::load(&context.objects).await?;
    let watching = |source| ObjectError::Store { key: "/".to_owned(), source };
    let mut watch = context.objects.store.watch("/", mirror.revision).await.map_err(watching)?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut ticks, mut garbage_at) = (0_u64, GARBAGE_TICKS);
    mirror.mark_all();
    let leading = Instant::now();
    loop {
        reconcile(context, &mut mirror).await?;
        tokio::select! {
            events = watch.next() => {
                let mut events = events.map_err(watching)?;
                for _ in 0..BATCHES {
                    for event in &events {
                        mirror.apply(&context.objects, event);
                    }
                    // What came meanwhile is planned together: a dataset in many clusters hears from all of them at once,
                    // and a plan from less than there is would be overtaken by its own last one.
                    if watch.revision() >= context.objects.store.revision() {
                        break;
                    }
                    match tokio::time::timeout(CATCH_UP, watch.next()).await {
                        Ok(more) => events = more.map_err(watching)?,
                        Err(_) => break,
                    }
                }
            }
            _ = tick.tick() => {
                ticks += 1;
                cluster::judge(context, &mirror, leading.elapsed()).await?;
                mirror.mark_unfinished();
                mirror.mark_due(context.clock.now());
                if ticks >= garbage_at {
                    let started = Instant::now();
                    garbage(context, &mirror).await?;
                    // A hundredth of the time, however much there is to look through.
                    garbage_at = ticks + GARBAGE_TICKS.max(started.elapsed().as_secs() * 100);
                }
                // The next one comes a second after this one has ended: a tick that takes long must not keep the events out.
                tick.reset();
            }
        }
    }
}

/// Works off everything that changed, in the order in which one depends on the other.
async fn reconcile(context: &PlannerContext, mirror: &mut Mirror) -> Result<(), ObjectError> {
    for key in mirror.dirty.take_placements() {
        placement::reconcile(context, mirror, &key).await?;
    }
    for key in mirror.dirty.take_migrates() {
        migrate::reconcile(context, mirror, &key).await?;
    }
    for key in mirror.dirty.take_backups() {
        backup::reconcile(context, mirror, &key).await?;
    }
    for key in mirror.dirty.take_restores() {
        backup::reconcile_restore(context, mirror, &key).await?;
    }
    for name in mirror.dirty.take_repositories() {
        backup::reconcile_repository(context, mirror, &name).await?;
    }
    for key in mirror.dirty.take_loads() {
        load::reconcile(context, mirror, &key).await?;
    }
    for key in mirror.dirty.take_datasets() {
        dataset::reconcile(context, mirror, &key).await?;
    }
    for name in mirror.dirty.take_storages() {
        storage::reconcile(context, mirror, &name).await?;
    }
    for name in mirror.dirty.take_clusters() {
        cluster::reconcile(context, mirror, &name).await?;
    }
    Ok(())
}

/// Removes what is over: operations past their time to live, tokens past theirs, dependents without owners.
async fn garbage(context: &PlannerContext, mirror: &Mirror) -> Result<(), ObjectError> {
    expire::expire(context, mirror).await?;
    if let Err(error) = crate::api::collect_garbage(&context.objects, context.clock.as_ref()).await {
        warn!(error = %chain(&error), "collecting dependents without owners");
    }
    crate::quota::refresh(&context.objects).await?;
    Ok(())
}

/// A read that proves that this hub still leads, before something that cannot be taken back.
async fn still_leading(context: &PlannerContext) -> Result<(), StoreError> {
    context.objects.store.get("/system/epoch", Consistency::Linearizable).await.map(|_| ())
}
