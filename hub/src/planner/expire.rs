//! ③ Deletes operations that finished longer ago than their time to live, whatever their kind.

use fluvial_model::resource::Resource;
use fluvial_model::store::Revision;
use jiff::Timestamp;

use super::PlannerContext;
use super::apply::Change;
use super::mirror::{At, Mirror};
use crate::objects::ObjectError;

/// What decides about an operation: where it is stored, its time to live in seconds, and when it finished.
type Candidate = (String, Revision, Option<u32>, Option<Timestamp>);

/// Deletes those that are over.
pub(super) async fn expire(context: &PlannerContext, mirror: &Mirror) -> Result<(), ObjectError> {
    fn candidate<R: Resource>(at: &At<R>, ttl: Option<u32>, finished: Option<Timestamp>) -> Candidate {
        (at.value.key(), at.revision, ttl, finished)
    }
    let now = context.clock.now();
    let migrates = mirror.migrates.values().map(|at| {
        let finished = at.value.status.as_ref().and_then(|status| status.finished_time);
        candidate(at, at.value.spec.ttl_seconds_after_finished, finished)
    });
    let loads = mirror.loads.values().map(|at| {
        let finished = at.value.status.as_ref().and_then(|status| status.operation.finished_time);
        candidate(at, at.value.spec.ttl_seconds_after_finished, finished)
    });
    let backups = mirror.backups.values().map(|at| {
        let finished = at.value.status.as_ref().and_then(|status| status.operation.finished_time);
        candidate(at, at.value.spec.ttl_seconds_after_finished, finished)
    });
    let restores = mirror.restores.values().map(|at| {
        let finished = at.value.status.as_ref().and_then(|status| status.operation.finished_time);
        candidate(at, at.value.spec.ttl_seconds_after_finished, finished)
    });
    for (key, revision, ttl, finished) in migrates.chain(loads).chain(backups).chain(restores) {
        if is_over(ttl, finished, now) {
            let mut change = Change::default();
            change.delete(key, revision);
            change.commit(context).await?;
        }
    }
    Ok(())
}

/// Whether an operation finished longer ago than its time to live.
fn is_over(ttl: Option<u32>, finished: Option<Timestamp>, now: Timestamp) -> bool {
    ttl.zip(finished).is_some_and(|(ttl, finished)| now.duration_since(finished).as_secs() >= i64::from(ttl))
}
