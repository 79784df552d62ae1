//! When the sources of a dataset are listed again: for a changed spec, on request, or because it is time.
//!
//! Invariant: a scan is named by what it is for, so that an older answer is never taken for a newer one.

use jiff::{SignedDuration, Timestamp};

use crate::field::{FieldErrors, Path};
use crate::kinds::Dataset;

/// The annotation that asks for a new listing: whenever it gets another text, whatever that is.
pub const REQUESTED: &str = "fluvial.io/rescan-requested";
/// The annotation that has the sources listed again and again, such as `10m` or `1h 30m`.
pub const EVERY: &str = "fluvial.io/rescan-every";
/// The shortest time between two listings.
pub const SHORTEST: SignedDuration = SignedDuration::from_secs(5);
/// The longest.
pub const LONGEST: SignedDuration = SignedDuration::from_hours(366 * 24);

/// Checks the annotations of a dataset.
pub(crate) fn validate(dataset: &Dataset, errors: &mut FieldErrors) {
    let Some(text) = dataset.metadata.annotations.get(EVERY) else { return };
    if every(dataset).is_none() {
        let at = Path::root("metadata").key("annotations").key(EVERY);
        errors.invalid(&at, text, "must be a duration from 5s to 366 days, such as 10m or 1h 30m");
    }
}

/// The time between two listings, if there is one.
#[must_use]
pub fn every(dataset: &Dataset) -> Option<SignedDuration> {
    let every: SignedDuration = dataset.metadata.annotations.get(EVERY)?.trim().parse().ok()?;
    (SHORTEST..=LONGEST).contains(&every).then_some(every)
}

/// Why the sources are to be listed now, as the name of that scan; `None` if they are not.
#[must_use]
pub fn request(dataset: &Dataset, now: Timestamp) -> Option<String> {
    let status = dataset.status.clone().unwrap_or_default();
    let asked = requested(dataset);
    let unknown = status.observed_generation != dataset.metadata.generation || status.root.is_none();
    let time = || {
        let next = status.scanned_time?.checked_add(every(dataset)?).ok()?;
        (next <= now).then_some(())
    };
    if !unknown && asked == status.rescan_handled && time().is_none() {
        return None;
    }
    let since = status.scanned_time.map(|time| time.to_string()).unwrap_or_default();
    Some(format!("{since}/{asked}"))
}

/// What asks for a listing now, empty if nothing ever did.
pub(super) fn requested(dataset: &Dataset) -> String {
    dataset.metadata.annotations.get(REQUESTED).cloned().unwrap_or_default()
}
