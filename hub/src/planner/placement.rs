//! ③ Reconciles a Placement: decides on clusters and writes the reasons to its status.

use fluvial_model::kinds::PlacementStatus;
use fluvial_model::placement::{Failover, chooses, place};

use super::PlannerContext;
use super::apply::Change;
use super::mirror::{Mirror, Named};
use crate::objects::ObjectError;

/// Reasons that are written down: at some 80 bytes each, 20 KB in an object that is written with every change.
const REASONS: usize = 256;

pub(super) async fn reconcile(context: &PlannerContext, mirror: &mut Mirror, key: &Named) -> Result<(), ObjectError> {
    let Some(at) = mirror.placements.get(key).cloned() else {
        mirror.decisions.remove(key);
        return Ok(());
    };
    let mut placement = at.value;
    let previous = placement.status.clone().unwrap_or_default();
    let failover = placement.failover_after().map(|after| Failover { after, now: context.clock.now() });
    let decision = place(&placement.spec.clusters, mirror.clusters.values(), &previous.clusters, failover);
    let chosen: Vec<Named> = mirror
        .datasets
        .range((key.0.clone(), String::new())..)
        .take_while(|((namespace, _), _)| *namespace == key.0)
        .filter(|(_, dataset)| chooses(&placement.spec.datasets, &dataset.value))
        .map(|(named, _)| named.clone())
        .collect();
    let status = PlacementStatus {
        observed_generation: placement.metadata.generation,
        clusters: decision.clusters.clone(),
        datasets: u64::try_from(chosen.len()).unwrap_or(u64::MAX),
        reasons: decision.told(REASONS),
        conditions: previous.conditions.clone(),
    };
    if mirror.decisions.get(key).is_none_or(|old| old.clusters != decision.clusters) {
        for dataset in chosen {
            mirror.dirty.dataset(dataset);
        }
    }
    mirror.decisions.insert(key.clone(), decision);
    if status != previous {
        placement.status = Some(status);
        let mut change = Change::default();
        change.put(context, &placement, Some(at.revision))?;
        change.commit(context).await?;
    }
    Ok(())
}
