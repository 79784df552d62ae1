//! Whether the order that the hub claims, its revisions, is one that clients can have seen.

use std::collections::BTreeMap;

use super::{Kind, Operation};

/// Every answer with a revision against the clock and the others.
///
/// # Errors
/// Names the two operations that contradict each other.
pub fn check(operations: &[Operation]) -> Result<(), String> {
    // What each revision is, by those who wrote it and those who read it.
    let mut known: BTreeMap<u64, (u64, Option<&Operation>)> = BTreeMap::new();
    for operation in operations {
        let Some(revision) = operation.revision else { continue };
        let wrote = operation.wrote();
        let Some(value) = wrote.or(match operation.kind {
            Kind::Read { value } => Some(value),
            _ => None,
        }) else {
            continue;
        };
        let entry = known.entry(revision).or_insert((value, None));
        if entry.0 != value {
            return Err(format!("revision {revision} is both {} and {value} ({operation})", entry.0));
        }
        if wrote.is_some() {
            if let Some(other) = entry.1 {
                return Err(format!("two writes have one revision: {other}; {operation}"));
            }
            entry.1 = Some(operation);
        }
    }
    let revision_of: BTreeMap<u64, u64> = known.iter().map(|(revision, (value, _))| (*value, *revision)).collect();
    for refused in operations {
        let Kind::Swap { expected, done: Some(false), .. } = refused.kind else { continue };
        let Some(seen) = revision_of.get(&expected) else { continue };
        let in_its_way = |other: &&Operation| {
            let may_write = match other.kind {
                Kind::Write { .. } => true,
                Kind::Swap { done, .. } => done != Some(false),
                Kind::Read { .. } => false,
            };
            may_write && Some(other.called) <= refused.answered && other.revision.is_none_or(|other| other > *seen)
        };
        if !operations.iter().any(|other| in_its_way(&other)) {
            return Err(format!("refused, though nobody was in its way: {refused}"));
        }
    }
    // Who is answered before another one is called has no later revision, and an earlier one if the other writes.
    let mut by_answer: Vec<&Operation> = operations.iter().filter(|one| one.answered.is_some()).collect();
    by_answer.retain(|one| one.revision.is_some());
    by_answer.sort_by_key(|one| one.answered);
    let mut by_call = by_answer.clone();
    by_call.sort_by_key(|one| one.called);
    let (mut answered, mut latest): (usize, Option<&Operation>) = (0, None);
    for later in by_call {
        while answered < by_answer.len() && by_answer[answered].answered < Some(later.called) {
            if latest.is_none_or(|latest| latest.revision < by_answer[answered].revision) {
                latest = Some(by_answer[answered]);
            }
            answered += 1;
        }
        let Some(earlier) = latest else { continue };
        let stale = earlier.revision > later.revision;
        if stale || (later.wrote().is_some() && earlier.revision == later.revision) {
            return Err(format!("an earlier answer has the later revision: {earlier}; then {later}"));
        }
    }
    Ok(())
}
