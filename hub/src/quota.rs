//! ① Quotas: a namespace has no more objects than it may.
//!
//! A creation that a quota counts writes the quota's status in its own transaction, and compares with the quota that it read:
//! of two creations at once the second looks again, so that together they never pass the limit.
//!
//! Deliberately absent: deletions (the leader counts anew from time to time), and bytes.

use std::collections::BTreeMap;

use fluvial_model::kinds::quota::counted;
use fluvial_model::kinds::{Quota, QuotaStatus};
use fluvial_model::resource::{KindInfo, Resource as _};
use fluvial_model::store::{Compare, Op, Txn};
use fluvial_raft::{Consistency, ListRequest};

use crate::api::status::{ApiError, Subject};
use crate::objects::{ObjectError, Objects, Stored};

/// The most quotas of one namespace that are looked at.
const MOST: usize = 100;

/// What joins the transaction of a creation that stays within every quota of its namespace.
///
/// # Errors
/// 403 with the quota that is full; or whatever the store says.
pub async fn admit(
    objects: &Objects,
    info: &KindInfo,
    namespace: &str,
    name: &str,
) -> Result<(Vec<Compare>, Vec<Op>), ApiError> {
    let (mut compares, mut ops) = (Vec::new(), Vec::new());
    if counted(info.plural).is_none_or(|known| known.group != info.group) {
        return Ok((compares, ops));
    }
    for Stored { object: mut quota, revision } in in_namespace(objects, namespace).await? {
        let Some(most) = quota.spec.objects.get(info.plural).copied() else { continue };
        let there = count(objects, info, namespace).await?;
        if there >= most {
            let subject = Subject::new(info, name);
            let message = format!(
                "{}forbidden: quota \"{}\" of namespace \"{namespace}\" allows {most} {}, and {there} are there",
                subject.described(),
                quota.metadata.name,
                info.plural
            );
            return Err(ApiError::Forbidden { subject: Some(subject), message });
        }
        let status = quota.status.get_or_insert_default();
        status.objects.insert(info.plural.to_owned(), there + 1);
        let key = quota.key();
        compares.push(Compare::UnchangedSince { key: key.clone(), revision });
        ops.push(Op::Put { key, value: objects.encode(&quota)? });
    }
    Ok((compares, ops))
}

/// Counts anew what all quotas count, and says so in their status.
///
/// # Errors
/// If the store does not answer.
pub async fn refresh(objects: &Objects) -> Result<(), ObjectError> {
    for Stored { object: mut quota, revision } in objects.list::<Quota>(Consistency::Linearizable).await? {
        let mut there = BTreeMap::new();
        for plural in quota.spec.objects.keys() {
            if let Some(info) = counted(plural) {
                there.insert(plural.clone(), count(objects, info, &quota.metadata.namespace).await?);
            }
        }
        let status = Some(QuotaStatus { objects: there });
        if quota.status != status {
            quota.status = status;
            // A conflict means that it was written just now: the next round looks again.
            objects.txn(Txn::replace(quota.key(), revision, objects.encode(&quota)?)).await?;
        }
    }
    Ok(())
}

async fn in_namespace(objects: &Objects, namespace: &str) -> Result<Vec<Stored<Quota>>, ApiError> {
    let prefix = Quota::INFO.namespace_prefix(namespace);
    let listing = objects.store.list(ListRequest { prefix, limit: Some(MOST), ..ListRequest::default() }).await?;
    Ok(listing.items.iter().map(|kv| objects.decode(kv)).collect::<Result<_, _>>()?)
}

/// How many objects of a kind a namespace has; the store counts up to some 10,000, and no further.
async fn count(objects: &Objects, info: &KindInfo, namespace: &str) -> Result<u64, ObjectError> {
    let prefix = info.namespace_prefix(namespace);
    let request = ListRequest { prefix: prefix.clone(), limit: Some(1), ..ListRequest::default() };
    let listing = objects.store.list(request).await.map_err(|source| ObjectError::Store { key: prefix, source })?;
    Ok(listing.items.len() as u64 + listing.remaining)
}
