//! When the sources of a dataset are listed again: for a changed spec, on request, because it is time, or because
//! somebody noticed that something changed.
//!
//! Invariants: a scan is named by what it is for, so that an older answer is never taken for a newer one; a change that
//! is noticed while the sources are listed has them listed once more, and never stops the listing that is under way.

use jiff::{SignedDuration, Timestamp};

use crate::field::{FieldErrors, Path};
use crate::kinds::{Dataset, DatasetStatus};

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
    if !unknown && asked == status.rescan_handled && time().is_none() && !noticed(&status, now) {
        return None;
    }
    let since = status.scanned_time.map(|time| time.to_string()).unwrap_or_default();
    Some(format!("{since}/{asked}"))
}

/// Whether [`request`] may say something, now or at a later time, as long as the dataset stays as it is.
#[must_use]
pub fn may_come(dataset: &Dataset) -> bool {
    let Some(status) = &dataset.status else { return true };
    let unknown = status.observed_generation != dataset.metadata.generation || status.root.is_none();
    let noticed = status.source_changes > status.listed_changes;
    unknown || noticed || requested(dataset) != status.rescan_handled || every(dataset).is_some()
}

/// What asks for a listing now, empty if nothing ever did.
pub(crate) fn requested(dataset: &Dataset) -> String {
    dataset.metadata.annotations.get(REQUESTED).cloned().unwrap_or_default()
}

/// Whether a change was noticed that the last listing may not have seen. Many changes come together: between two listings
/// that are made for them lies [`SHORTEST`].
fn noticed(status: &DatasetStatus, now: Timestamp) -> bool {
    let rested = || {
        let rest_ends = status.scanned_time.and_then(|time| time.checked_add(SHORTEST).ok());
        rest_ends.is_none_or(|end| end <= now)
    };
    status.source_changes > status.listed_changes && (status.listing_changes.is_some() || rested())
}

/// Counts a change at the sources, noticed now. Returns whether that is news: if not, a listing will begin after this
/// anyway.
pub fn notice(status: &mut DatasetStatus) -> bool {
    let seen = status.listing_changes.unwrap_or(status.listed_changes);
    let news = status.source_changes <= seen;
    if news {
        status.source_changes = seen.saturating_add(1);
    }
    news
}

/// A listing begins, unless one is under way.
pub(super) fn begin(status: &mut DatasetStatus) {
    status.listing_changes.get_or_insert(status.source_changes);
}

/// The listing that was under way has ended.
pub(super) fn end(status: &mut DatasetStatus) {
    if let Some(changes) = status.listing_changes.take() {
        status.listed_changes = changes;
    }
}
