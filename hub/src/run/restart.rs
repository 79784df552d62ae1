//! Runs a hub until it is told to stop, and past what a disk does that gets well again.
//!
//! A hub whose disk is full or does not answer stops: it sends its agents elsewhere, answers nothing, and says why on `/readyz`.
//! When there is room again, or the disk has answered, it starts anew from what the disk holds. After anything else its process
//! ends, and says what is to be done.
//!
//! Invariants: nothing that was in memory when the disk failed is used afterwards.

use std::error::Error as _;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use fluvial_raft::health::{Failure, FailureKind, kind_of};
use fluvial_raft::{Store as _, free_bytes};
use tokio::time::Instant;

use super::{Hub, HubConfig, RunError, RunningHub};

/// Room that a hub needs to start anew after its disk was full: what the larger of its write-ahead logs grows to.
const ROOM: u64 = 16 << 20;
/// How often is looked whether the disk is well again.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a hub that has stopped waits at least: doubled each time, so that a disk that stays small is not written full
/// again and again.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A hub that has run for so long begins with the shortest pause.
const SETTLED: Duration = Duration::from_secs(300);
/// How long a hub that must end may take to end in order.
const ENDING: Duration = Duration::from_secs(10);

/// Runs the hub of `config` until `stop`; calls `started` each time it serves.
///
/// # Errors
/// Why it cannot start, or had to end.
pub async fn run(
    config: impl Fn() -> HubConfig,
    stop: impl Future<Output = ()>,
    started: impl Fn(&RunningHub),
) -> Result<(), RunError> {
    let mut stop = pin!(stop);
    let data_dir = config().data_dir;
    let mut pause = PAUSES.0;
    let mut hub = Hub::start(config()).await?;
    loop {
        started(&hub);
        let began = Instant::now();
        let failure = tokio::select! {
            () = &mut stop => {
                hub.shutdown().await;
                return Ok(());
            }
            failure = hub.failed() => failure,
        };
        pause = if began.elapsed() > SETTLED { PAUSES.0 } else { pause };
        hub.sessions.shutdown().await;
        if failure.kind == FailureKind::Broken {
            let _ = tokio::time::timeout(ENDING, hub.shutdown()).await;
            return Err(RunError::Stopped(failure));
        }
        tokio::select! {
            () = &mut stop => {
                hub.shutdown().await;
                return Ok(());
            }
            () = well_again(&hub, &data_dir, failure.kind, pause) => {}
        }
        hub.shutdown().await;
        tracing::info!(after = failure.reason, "the hub starts anew");
        hub = loop {
            match Hub::start(config()).await {
                Ok(hub) => break hub,
                Err(error) if kind_of(&error) == FailureKind::DiskFull => {
                    pause = (pause * 2).min(PAUSES.1);
                    tracing::warn!(error = error.source(), ?pause, "the hub cannot start: its disk has no room");
                    tokio::select! {
                        () = &mut stop => return Ok(()),
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                Err(error) => return Err(error),
            }
        };
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Waits until a stopped hub may start anew.
async fn well_again(hub: &RunningHub, data_dir: &Path, kind: FailureKind, pause: Duration) {
    tokio::time::sleep(pause).await;
    loop {
        let well = match kind {
            FailureKind::DiskFull => free_bytes(data_dir).is_none_or(|free| free >= ROOM),
            FailureKind::DiskStalled | FailureKind::Broken => hub.store.disk_is_idle(),
        };
        if well {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl RunningHub {
    /// Waits until this hub has stopped because of its disk or its data.
    pub async fn failed(&self) -> Failure {
        let mut failures = self.store.failures();
        loop {
            if let Some(failure) = self.store.failure() {
                return failure;
            }
            if failures.changed().await.is_err() {
                // The store was shut down: it does not fail any more.
                std::future::pending::<()>().await;
            }
        }
    }
}
