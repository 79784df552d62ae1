//! ① What every hub has from the beginning.

use fluvial_model::kinds::Namespace;
use fluvial_model::kinds::core::{NamespaceSpec, NamespaceStatus};
use fluvial_model::resource::Resource as _;
use fluvial_model::store::Txn;

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
