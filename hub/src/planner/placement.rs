//! ③ Reconciles a Placement: decides on clusters and writes the reasons to its status.

use fluvial_model::kinds::PlacementStatus;
use fluvial_model::placement::{chooses, place};

use super::PlannerContext;
use super::apply::Change;
use super::mirror::{Mirror, Named};
use crate::objects::ObjectError;

pub(super) async fn reconcile(context: &PlannerContext, mirror: &mut Mirror, key: &Named) -> Result<(), ObjectError> {
    let Some(at) = mirror.placements.get(key).cloned() else {
        mirror.decisions.remove(key);
        return Ok(());
    };
    let mut placement = at.value;
    let previous = placement.status.clone().unwrap_or_default();
    let decision = place(&placement.spec.clusters, mirror.clusters.values(), &previous.clusters);
    let chosen: Vec<Named> = mirror
        .datasets
        .iter()
        .filter(|((namespace, _), dataset)| *namespace == key.0 && chooses(&placement.spec.datasets, &dataset.value))
        .map(|(named, _)| named.clone())
        .collect();
    let status = PlacementStatus {
        observed_generation: placement.metadata.generation,
        clusters: decision.clusters.clone(),
        datasets: u64::try_from(chosen.len()).unwrap_or(u64::MAX),
        reasons: decision.reasons.clone(),
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
