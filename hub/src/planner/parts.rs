//! A change that is too large for one transaction, in several.
//!
//! A dataset in ten thousand clusters has as many assignments. Whoever plans looks at all of them again whenever one of
//! them changed, so it does no harm when only some parts stand: the next plan finds what is missing.
//!
//! Invariants: every part rests on what the decision was made from; the owner's own write is in the first part, and the
//! others rest on it, so that a newer decision of anybody ends what is left of this one.

use std::collections::{HashMap, HashSet};

use fluvial_model::store::{Compare, Op, Revision, Txn};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::PlannerContext;
use super::apply::{Change, committed};
use crate::objects::ObjectError;

/// Writes of one part: under the store's 512, with room for what they rest on.
const PART_OPS: usize = 250;
/// Bytes of one part: a transaction may have 2 MiB, and four parts of half of it are under way.
const PART_BYTES: usize = 512 * 1024;
/// Parts under way at a time: they share the store's group commits.
const AT_ONCE: usize = 4;

/// The parts of `txn`; the first one writes `owner`, if any does. The rest comes without what stands for the owner.
fn split(txn: Txn, owner: &str) -> (Txn, Vec<Txn>, Vec<Compare>) {
    let written: HashSet<String> = txn.ops.iter().map(|op| op.key().to_owned()).collect();
    let (own, mut base): (Vec<_>, Vec<_>) =
        txn.compares.into_iter().partition(|compare| written.contains(compare.key()));
    let mut own: HashMap<String, Compare> =
        own.into_iter().map(|compare| (compare.key().to_owned(), compare)).collect();
    let mut first = Txn { compares: base.clone(), ops: Vec::new(), audit: txn.audit };
    base.retain(|compare| compare.key() != owner);
    let mut parts: Vec<Txn> = Vec::new();
    let (mut part, mut bytes) = (Txn::default(), 0);
    for op in txn.ops {
        let compare = own.remove(op.key());
        if op.key() == owner {
            first.compares.extend(compare);
            first.ops.push(op);
            continue;
        }
        let size = op.key().len() + if let Op::Put { value, .. } = &op { value.len() } else { 0 };
        if part.ops.len() >= PART_OPS || (bytes + size > PART_BYTES && !part.ops.is_empty()) {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += size;
        part.compares.extend(compare);
        part.ops.push(op);
    }
    if !part.ops.is_empty() {
        parts.push(part);
    }
    (first, parts, base)
}

impl Change {
    /// Writes, in as many transactions as it takes, what was decided for `owner`, which was read at `revision`. True if
    /// all of it stands; what does not is planned again.
    ///
    /// # Errors
    /// As [`Change::commit`].
    pub(super) async fn commit_for(
        self,
        context: &PlannerContext,
        owner: String,
        revision: Option<Revision>,
    ) -> Result<bool, ObjectError> {
        let bytes: usize =
            self.txn.ops.iter().map(|op| if let Op::Put { value, .. } = op { value.len() } else { 0 }).sum();
        if self.txn.ops.len() <= PART_OPS && bytes <= PART_BYTES {
            return self.commit(context).await;
        }
        let (first, parts, base) = split(self.txn, &owner);
        let mut stands = Some(revision);
        if !first.ops.is_empty() {
            stands = committed(context, first).await?.map(Some);
        }
        let Some(revision) = stands else { return Ok(false) };
        let rests = match revision {
            Some(revision) => Compare::UnchangedSince { key: owner, revision },
            None => Compare::Absent { key: owner },
        };
        let commits = parts.into_iter().map(|mut part| {
            part.compares.push(rests.clone());
            part.compares.extend(base.iter().cloned());
            committed(context, part)
        });
        let done: Vec<Option<Revision>> =
            futures::stream::iter(commits).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(done.iter().all(Option::is_some))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: String, bytes: usize) -> (Compare, Op) {
        (Compare::Absent { key: key.clone() }, Op::Put { key, value: vec![0; bytes] })
    }

    #[test]
    fn every_write_is_in_one_part_with_its_comparison_and_the_owners_is_first() {
        let mut txn = Txn::default();
        txn.compares.push(Compare::UnchangedSince { key: "basis".into(), revision: Revision(3) });
        for n in 0..1000 {
            let (compare, op) = put(format!("k{n}"), 10);
            txn.compares.push(compare);
            txn.ops.push(op);
        }
        txn.compares.push(Compare::UnchangedSince { key: "owner".into(), revision: Revision(4) });
        txn.ops.push(Op::Put { key: "owner".into(), value: Vec::new() });
        // Reports are deleted without a comparison.
        txn.ops.push(Op::Delete { key: "report".into() });
        let (first, parts, base) = split(txn, "owner");
        assert_eq!(first.ops.iter().map(Op::key).collect::<Vec<_>>(), ["owner"]);
        assert_eq!(first.compares.len(), 2);
        assert_eq!(base.iter().map(Compare::key).collect::<Vec<_>>(), ["basis"]);
        assert_eq!(parts.iter().map(|part| part.ops.len()).collect::<Vec<_>>(), [250, 250, 250, 250, 1]);
        let keys = |part: &Txn| part.ops.iter().map(|op| op.key().to_owned()).collect::<Vec<_>>();
        let compared = |part: &Txn| part.compares.iter().map(|c| c.key().to_owned()).collect::<Vec<_>>();
        assert!(parts[..4].iter().all(|part| keys(part) == compared(part)));
        assert_eq!(keys(&parts[4]), ["report"]);
    }

    #[test]
    fn a_part_ends_before_it_is_too_large() {
        let mut txn = Txn::default();
        for n in 0..4 {
            let (compare, op) = put(format!("k{n}"), PART_BYTES / 2);
            txn.compares.push(compare);
            txn.ops.push(op);
        }
        let (first, parts, _) = split(txn, "owner");
        assert!(first.ops.is_empty());
        assert_eq!(parts.len(), 4, "two halves and their keys are more than one part");
    }
}
