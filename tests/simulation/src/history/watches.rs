//! Whether a watcher was told what happened: in order, once, and all of it.

use super::Operation;

/// A change, as a watcher was told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    pub revision: u64,
    pub value: u64,
}

/// What was told of one register since the revision `from`, and up to the last one told, against what was acknowledged.
///
/// # Errors
/// Names what was told twice, in the wrong order, not at all, or differently.
pub fn check(operations: &[Operation], from: u64, told: &[Told]) -> Result<(), String> {
    for pair in told.windows(2) {
        if pair[1].revision <= pair[0].revision {
            return Err(format!("{:?} was told after {:?}", pair[1], pair[0]));
        }
    }
    if let Some(early) = told.first().filter(|first| first.revision <= from) {
        return Err(format!("{early:?} was told to who watches from {from} on"));
    }
    let last = told.last().map_or(from, |told| told.revision);
    for operation in operations {
        let (Some(value), Some(revision)) = (operation.wrote(), operation.revision) else { continue };
        if revision <= from || revision > last {
            continue;
        }
        match told.binary_search_by_key(&revision, |told| told.revision) {
            Err(_) => return Err(format!("not told: {operation}")),
            Ok(at) if told[at].value != value => return Err(format!("told {:?} of {operation}", told[at])),
            Ok(_) => {}
        }
    }
    Ok(())
}
