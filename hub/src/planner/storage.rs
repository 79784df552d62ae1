//! ⑧ Reconciles a Storage: how many homes and bytes it holds.

use fluvial_model::kinds::StorageStatus;

use super::PlannerContext;
use super::apply::Change;
use super::mirror::Mirror;
use crate::objects::ObjectError;

pub(super) async fn reconcile(context: &PlannerContext, mirror: &mut Mirror, name: &str) -> Result<(), ObjectError> {
    let (Some(storage), Some(revision)) = (mirror.storages.get(name), mirror.storage_revisions.get(name)) else {
        return Ok(());
    };
    let previous = storage.status.clone().unwrap_or_default();
    let (homes, used_bytes) = mirror
        .usage
        .get(name)
        .into_iter()
        .flat_map(|uses| uses.values())
        .fold((0, 0), |(homes, bytes), (h, b)| (homes + h, bytes + b));
    let status =
        StorageStatus { observed_generation: storage.metadata.generation, used_bytes, homes, ..previous.clone() };
    if status != previous {
        let mut object = storage.clone();
        object.status = Some(status);
        let mut change = Change::default();
        change.put(context, &object, Some(*revision))?;
        change.commit(context).await?;
    }
    Ok(())
}
