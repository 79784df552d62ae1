//! ② Whether this node may go on: what its disk last said, and since when it has said nothing.
//!
//! After a write that failed the node stops at once, for good: what it holds in memory and what is on the disk may differ.
//! What may help afterwards is told by [`FailureKind`]. A write that never ends is noticed by [`watch_stalls`]: a leader whose
//! disk hangs would otherwise go on leading without ever answering.
//!
//! Invariants: the first failure stays; nothing is acknowledged after it.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// How often is looked whether the disk still answers.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What may help a node that has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The disk has no room. Nothing is half written: with room the node can be opened again.
    DiskFull,
    /// The disk has not answered for [`Timings::disk`](crate::Timings). When it does, the node can be opened again.
    DiskStalled,
    /// Anything else, such as an error of the disk or damaged data: opening the node again says what is still good.
    Broken,
}

/// Why a node has stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    pub kind: FailureKind,
    pub reason: String,
}

/// Says of an error of the disk what may help.
pub fn kind_of(error: &(dyn Error + 'static)) -> FailureKind {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                return FailureKind::DiskFull;
            }
            // Its own source is that of the error inside, which would be left out.
            if let Some(inner) = error.get_ref()
                && kind_of(inner) == FailureKind::DiskFull
            {
                return FailureKind::DiskFull;
            }
        }
        if let Some(error) = error.downcast_ref::<rusqlite::Error>()
            && error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
        {
            return FailureKind::DiskFull;
        }
        next = error.source();
    }
    FailureKind::Broken
}

/// Something that writes to the disk, one piece of work after the other.
#[derive(Debug, Default)]
pub struct Worker {
    /// The number of the piece that is under way; even if none is.
    turn: AtomicU64,
}

/// A piece of work under way; it ends when dropped.
pub struct Working<'a>(&'a Worker);

impl Worker {
    /// A piece of work begins.
    pub fn begin(&self) -> Working<'_> {
        self.turn.fetch_add(1, Ordering::Relaxed);
        Working(self)
    }

    fn under_way(&self) -> Option<u64> {
        Some(self.turn.load(Ordering::Relaxed)).filter(|turn| turn % 2 == 1)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.turn.fetch_add(1, Ordering::Relaxed);
    }
}

/// The health of one node; its parts share it.
#[derive(Debug)]
pub struct Health {
    failure: watch::Sender<Option<Failure>>,
    /// The writer of the log.
    pub log: Worker,
    /// The state machine.
    pub machine: Worker,
}

impl Default for Health {
    fn default() -> Self {
        Self { failure: watch::Sender::new(None), log: Worker::default(), machine: Worker::default() }
    }
}

impl Health {
    /// The node must stop. A later reason than the first changes nothing.
    pub fn fail(&self, kind: FailureKind, reason: impl Into<String>) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            if first {
                *failure = Some(Failure { kind, reason: reason.into() });
            }
            first
        });
    }

    /// The same, of an error while `what` was being done.
    pub fn fail_with(&self, what: &str, error: &(dyn Error + 'static)) {
        let mut reason = format!("{what}: {error}");
        let mut source = error.source();
        while let Some(error) = source {
            reason += &format!(": {error}");
            source = error.source();
        }
        let kind = kind_of(error);
        if kind == FailureKind::DiskFull {
            reason += "; the disk has no room: when there is some, the hub goes on by itself";
        }
        self.fail(kind, reason);
    }

    /// Why the node has stopped, if it has.
    pub fn failure(&self) -> Option<Failure> {
        self.failure.borrow().clone()
    }

    /// The same, to wait for.
    pub fn failures(&self) -> watch::Receiver<Option<Failure>> {
        self.failure.subscribe()
    }

    /// Whether nothing is being written.
    pub fn is_idle(&self) -> bool {
        self.log.under_way().is_none() && self.machine.under_way().is_none()
    }
}

/// Fails the node when one piece of work lasts longer than `limit`. A process that was stopped itself does not count: it is
/// looked often, and each look counts for [`LOOK_EVERY`] at most.
pub async fn watch_stalls(health: Arc<Health>, limit: Duration) {
    let looks = u32::try_from(limit.as_millis() / LOOK_EVERY.as_millis()).unwrap_or(u32::MAX).max(1);
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = [(None, 0_u32); 2];
    loop {
        ticks.tick().await;
        let workers = [("the log", &health.log), ("the catalog", &health.machine)];
        for ((what, worker), (turn, count)) in workers.into_iter().zip(&mut seen) {
            let now = worker.under_way();
            *count = if now.is_some() && now == *turn { *count + 1 } else { 0 };
            *turn = now;
            if *count >= looks {
                let reason = format!("the disk has not answered a write of {what} for {limit:?}");
                health.fail(FailureKind::DiskStalled, reason);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_broken_one_however_deep_it_is() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(kind_of(&full()), FailureKind::DiskFull);
        assert_eq!(kind_of(&io::Error::other(io::Error::other(full()))), FailureKind::DiskFull);
        let code = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        assert_eq!(kind_of(&code(rusqlite::ffi::SQLITE_FULL)), FailureKind::DiskFull);
        assert_eq!(kind_of(&io::Error::other(code(rusqlite::ffi::SQLITE_FULL))), FailureKind::DiskFull);
        assert_eq!(kind_of(&code(rusqlite::ffi::SQLITE_IOERR_FSYNC)), FailureKind::Broken);
        assert_eq!(kind_of(&io::Error::other("no")), FailureKind::Broken);
    }

    #[test]
    fn the_first_failure_stays() {
        let health = Health::default();
        health.fail(FailureKind::DiskFull, "first");
        health.fail(FailureKind::Broken, "second");
        assert_eq!(health.failure().unwrap().reason, "first");
    }

    #[tokio::test(start_paused = true)]
    async fn one_write_that_lasts_is_a_stall_and_many_short_ones_are_none() {
        let health = Arc::new(Health::default());
        let watching = tokio::spawn(watch_stalls(Arc::clone(&health), Duration::from_secs(5)));
        for _ in 0..100 {
            let _working = health.log.begin();
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        assert_eq!(health.failure(), None);
        assert!(health.is_idle());
        let working = health.machine.begin();
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(health.failure(), None);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(health.failure().unwrap().kind, FailureKind::DiskStalled);
        assert!(!health.is_idle());
        drop(working);
        assert!(health.is_idle());
        watching.await.unwrap();
    }
}
