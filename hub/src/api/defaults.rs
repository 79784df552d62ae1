//! ① What every fleet has from the beginning.

use fluvial_model::access::defaults;
use fluvial_model::kinds::core::{NamespaceSpec, NamespaceStatus};
use fluvial_model::kinds::{ClusterRole, Namespace};
use fluvial_model::resource::Resource;
use fluvial_model::store::Txn;
use fluvial_raft::Consistency;

use super::status::ApiError;
use crate::admission::NAMESPACE_FINALIZER;
use crate::clock::{Clock, fresh_uid};
use crate::objects::Objects;

/// The namespace that always exists.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Makes the `default` namespace if it is absent. Doing it again, or on two hubs at once, changes nothing.
///
/// # Errors
/// If the store does not answer.
pub async fn ensure_defaults(objects: &Objects, clock: &dyn Clock) -> Result<(), ApiError> {
    let mut namespace = Namespace::new("", DEFAULT_NAMESPACE, NamespaceSpec::default());
    namespace.metadata.uid = fresh_uid();
    namespace.metadata.generation = 1;
    namespace.metadata.creation_timestamp = jiff::Timestamp::from_second(clock.now().as_second()).ok();
    namespace.metadata.finalizers = vec![NAMESPACE_FINALIZER.to_owned()];
    namespace.status = Some(NamespaceStatus { phase: "Active".to_owned() });
    let value = objects.encode(&namespace)?;
    // A conflict means that it is there.
    objects.store.txn(Txn::create(namespace.key(), value)).await?;
    Ok(())
}

/// Makes the roles and bindings that are absent, and completes those roles that a newer hub knows more of. Doing it again,
/// or on two hubs at once, changes nothing: a conflict means that the other did it.
///
/// # Errors
/// If the store does not answer.
pub async fn ensure_roles(objects: &Objects, clock: &dyn Clock) -> Result<(), ApiError> {
    for role in defaults::roles() {
        match objects.get::<ClusterRole>("", &role.metadata.name, Consistency::Linearizable).await? {
            None => create(objects, clock, role).await?,
            Some(held) => {
                if let Some(full) = defaults::completed(&held.object, &role) {
                    objects.store.txn(Txn::replace(full.key(), held.revision, objects.encode(&full)?)).await?;
                }
            }
        }
    }
    for binding in defaults::bindings() {
        create(objects, clock, binding).await?;
    }
    Ok(())
}

async fn create<R: Resource>(objects: &Objects, clock: &dyn Clock, mut object: R) -> Result<(), ApiError> {
    let meta = object.meta_mut();
    meta.uid = fresh_uid();
    meta.creation_timestamp = jiff::Timestamp::from_second(clock.now().as_second()).ok();
    objects.store.txn(Txn::create(object.key(), objects.encode(&object)?)).await?;
    Ok(())
}
