//! The judgement at the end: whether what the clients and watchers were told can be the truth.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::watches::Told;
use crate::history::{Kind, linear, revisions, watches};
use crate::stage::Records;

/// All of it.
///
/// # Errors
/// With the first promise that was not kept.
pub fn judge(records: &Records) -> Result<(), String> {
    if let Some(violation) = &records.violation {
        return Err(violation.clone());
    }
    refused(records)?;
    watched(records)?;
    for (register, operations) in &records.operations {
        revisions::check(operations).map_err(|fault| format!("{register}: {fault}"))?;
        linear::check(operations, 0).map_err(|impossible| {
            format!("{register} is not linearizable: after {} operations, {}", impossible.fitting, impossible.stuck)
        })?;
    }
    Ok(())
}

/// What certainly did not happen was never seen.
fn refused(records: &Records) -> Result<(), String> {
    let told = records.watched.iter().flat_map(|watched| &watched.told);
    if let Some(told) = told.clone().find(|(_, _, value)| records.refused.contains(value)) {
        return Err(format!("a write of which it was said that it did not happen was watched: {told:?}"));
    }
    let read = records
        .operations
        .values()
        .flatten()
        .find(|operation| matches!(operation.kind, Kind::Read { value } if records.refused.contains(&value)));
    read.map_or(Ok(()), |read| Err(format!("a write of which it was said that it did not happen was read: {read}")))
}

/// Every watcher was told the same, in order, once and without gaps.
fn watched(records: &Records) -> Result<(), String> {
    let all: BTreeSet<&(u64, String, u64)> = records.watched.iter().flat_map(|watched| &watched.told).collect();
    let mut revisions: BTreeMap<(&str, u64), u64> = BTreeMap::new();
    for (revision, key, value) in all.iter().copied() {
        if let Some(other) = revisions.insert((key, *value), *revision).filter(|other| other != revision) {
            return Err(format!("{key} was written to {value} once, and is so at revisions {other} and {revision}"));
        }
    }
    for watched in &records.watched {
        if let Some(pair) = watched.told.windows(2).find(|pair| (pair[1].0, &pair[1].1) <= (pair[0].0, &pair[0].1)) {
            return Err(format!("{:?} was told after {:?}", pair[1], pair[0]));
        }
        let told: BTreeSet<_> = watched.told.iter().collect();
        let within = all.iter().filter(|told| watched.from < told.0 && told.0 <= watched.upto);
        if let Some(missing) = within.copied().find(|one| !told.contains(one)) {
            return Err(format!(
                "{missing:?} was told to others, and not to who watched from {} to {}",
                watched.from, watched.upto
            ));
        }
        let mut registers: BTreeMap<&str, Vec<Told>> = BTreeMap::new();
        for (revision, key, value) in &watched.told {
            let register = if key == "r/pair-a" { "r/pair" } else { key };
            registers.entry(register).or_default().push(Told { revision: *revision, value: *value });
        }
        for (register, operations) in &records.operations {
            let told = registers.get(register.as_str()).map_or(&[][..], Vec::as_slice);
            watches::check(operations, watched.from, told).map_err(|fault| format!("{register}: {fault}"))?;
            let acknowledged = operations.iter().filter(|one| {
                let wrote = matches!(one.kind, Kind::Write { .. } | Kind::Swap { done: Some(true), .. });
                wrote && one.revision.is_some_and(|at| watched.from < at && at <= watched.upto)
            });
            let told: BTreeSet<u64> = told.iter().map(|told| told.revision).collect();
            if let Some(missing) = acknowledged.clone().find(|one| one.revision.is_some_and(|at| !told.contains(&at))) {
                return Err(format!(
                    "{register}: not told to who watched from {} to {}: {missing}",
                    watched.from, watched.upto
                ));
            }
        }
    }
    Ok(())
}
