//! ④ The time after a restore: agents keep what they hold until the restored hub has caught up.
//!
//! A snapshot is older than what agents do: a dataset made since is unknown, another is at an earlier version. What
//! an agent holds must not go for that. So, while `/system/recovery` is in the store, agents of an earlier history are
//! welcomed with the word that they keep their caches and mounts as they are and take nothing away; meanwhile sources
//! are listed again, reports come in, and whoever made objects since the snapshot makes them again. It begins when the
//! restored hub leads for the first time, and ends after the time that the restore was given, or when an administrator
//! says so; then agents come back for what holds from then on, and drop what is not in it.
//!
//! Invariant: it never comes back by itself: only a restore begins it.

use std::time::Duration;

use fluvial_model::store::{Txn, TxnOutcome};
use fluvial_raft::{Consistency, StoreError};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::clock::SharedClock;
use crate::objects::Objects;

/// Where it is written that a hub recovers, as JSON of [`Recovery`].
pub const RECOVERY_KEY: &str = "/system/recovery";
/// How often it is looked whether it is over.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A recovery that is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    /// How long it takes.
    pub settle_seconds: u64,
    /// When it ends; not known before the restored hub has led.
    #[serde(default)]
    pub until: Option<Timestamp>,
}

/// What is to be done about a recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Begin(Recovery),
    Wait,
    End,
}

fn step(recovery: &Recovery, now: Timestamp) -> Step {
    match recovery.until {
        Some(until) if until <= now => Step::End,
        Some(_) => Step::Wait,
        None => {
            let settle = i64::try_from(recovery.settle_seconds).unwrap_or(i64::MAX);
            // Beyond the calendar: until somebody ends it.
            let until = now.checked_add(SignedDuration::from_secs(settle)).unwrap_or(Timestamp::MAX);
            Step::Begin(Recovery { until: Some(until), ..recovery.clone() })
        }
    }
}

/// The recovery that is under way, and the revision it is written at.
///
/// # Errors
/// If the store does not answer or holds something else.
pub async fn under_way(objects: &Objects) -> Result<Option<(Recovery, fluvial_model::store::Revision)>, StoreError> {
    let Some(stored) = objects.store.get(RECOVERY_KEY, Consistency::Linearizable).await? else { return Ok(None) };
    let recovery = serde_json::from_slice(&stored.value)
        .map_err(|_| StoreError::Corrupt { what: format!("{RECOVERY_KEY} holds no recovery") })?;
    Ok(Some((recovery, stored.mod_revision)))
}

/// Ends the recovery, if there is one; whether there was.
///
/// # Errors
/// If the store does not answer.
pub async fn end(objects: &Objects) -> Result<bool, StoreError> {
    while let Some((_, revision)) = under_way(objects).await? {
        if let TxnOutcome::Committed { .. } = objects.store.txn(Txn::delete(RECOVERY_KEY, revision)).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether this hub recovers, for its sessions: true until it is known that it does not.
#[must_use]
pub fn channel() -> (watch::Sender<bool>, watch::Receiver<bool>) {
    watch::channel(true)
}

/// Follows a recovery to its end, and lets it begin and end if this hub leads.
pub async fn follow(objects: Objects, clock: SharedClock, recovering: watch::Sender<bool>) {
    loop {
        match once(&objects, &clock).await {
            Ok(true) => {}
            Ok(false) => {
                recovering.send_replace(false);
                return;
            }
            Err(error) => tracing::debug!(%error, "looking whether the recovery is over"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether a recovery is under way.
async fn once(objects: &Objects, clock: &SharedClock) -> Result<bool, StoreError> {
    let Some((recovery, revision)) = under_way(objects).await? else { return Ok(false) };
    if !objects.store.leadership().borrow().is_self {
        return Ok(true);
    }
    match step(&recovery, clock.now()) {
        Step::Wait => {}
        Step::Begin(begun) => {
            let value =
                serde_json::to_vec(&begun).map_err(|error| StoreError::Malformed { reason: error.to_string() })?;
            objects.store.txn(Txn::replace(RECOVERY_KEY, revision, value)).await?;
            tracing::warn!(until = ?begun.until, "restored from a snapshot: agents keep what they hold");
        }
        Step::End => {
            objects.store.txn(Txn::delete(RECOVERY_KEY, revision)).await?;
            tracing::warn!("the recovery is over: agents drop what is not known here");
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_when_a_hub_leads_and_lasts_as_long_as_was_said() {
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        let restored = Recovery { settle_seconds: 60, until: None };
        let begun = Recovery { until: Some(at(60)), ..restored.clone() };
        assert_eq!(step(&restored, at(0)), Step::Begin(begun.clone()));
        assert_eq!(step(&begun, at(59)), Step::Wait);
        assert_eq!(step(&begun, at(60)), Step::End);
        let endless = Recovery { settle_seconds: u64::MAX, until: None };
        let until_ended = Recovery { until: Some(Timestamp::MAX), ..endless.clone() };
        assert_eq!(step(&endless, at(0)), Step::Begin(until_ended));
    }
}
