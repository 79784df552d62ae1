//! How far a copy is: counters that streams add to, and the rate.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fluvial_model::manifest::Totals;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>;

/// The rate is looked at this often.
const SAMPLE_SECONDS: f64 = 0.2;
/// The rate forgets with this time constant.
const RATE_SECONDS: f64 = 5.0;

/// What a copy is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Listing the source.
    #[default]
    Listing,
    /// Copying, with reading back where the target does not compare checksums itself.
    Copying,
    /// Comparing the target's tree with the source's.
    Verifying,
    /// Making the copy durable and visible.
    Finishing,
}

/// How far a copy is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Files and links that are done, also by earlier runs.
    pub files_done: u64,
    /// Files and links of the source.
    pub files_total: u64,
    /// Bytes that are done, also by earlier runs.
    pub bytes_done: u64,
    /// Bytes of the source.
    pub bytes_total: u64,
    /// Recent rate of this run, in bytes per second.
    pub bytes_per_second: f64,
    /// Seconds until all bytes are done, when the rate tells.
    pub eta_seconds: Option<f64>,
}

/// The counters of one copy.
pub(super) struct Meter {
    sender: watch::Sender<Progress>,
    clock: Clock,
    /// Bytes read from the source by this run.
    pub(super) copied: AtomicU64,
    pub(super) reused: AtomicU64,
    pub(super) parts_reused: AtomicU64,
    /// Bytes that a store copied by itself, by this run.
    pub(super) server_side: AtomicU64,
    sample: Mutex<Option<(jiff::Timestamp, u64)>>,
}

impl Meter {
    pub(super) fn new(sender: watch::Sender<Progress>, clock: Clock) -> Self {
        sender.send_replace(Progress::default());
        Self {
            sender,
            clock,
            copied: AtomicU64::new(0),
            reused: AtomicU64::new(0),
            parts_reused: AtomicU64::new(0),
            server_side: AtomicU64::new(0),
            sample: Mutex::new(None),
        }
    }

    pub(super) fn phase(&self, phase: Phase) {
        self.sender.send_modify(|progress| progress.phase = phase);
    }

    /// A round starts: everything is still to be done or found done.
    pub(super) fn start(&self, totals: Totals) {
        self.sender.send_modify(|progress| {
            progress.phase = Phase::Copying;
            (progress.files_done, progress.files_total) = (0, totals.files);
            (progress.bytes_done, progress.bytes_total) = (0, totals.bytes);
        });
    }

    pub(super) fn reused(&self, files: u64, bytes: u64) {
        self.reused.fetch_add(bytes, Ordering::Relaxed);
        self.add(files, bytes);
    }

    pub(super) fn copied(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
        self.add(0, bytes);
    }

    pub(super) fn file_done(&self) {
        self.add(1, 0);
    }

    /// What was listed as a file of `bytes` bytes is a link.
    pub(super) fn less(&self, bytes: u64) {
        self.sender.send_modify(|progress| progress.bytes_total = progress.bytes_total.saturating_sub(bytes));
    }

    fn add(&self, files: u64, bytes: u64) {
        let rate = self.rate();
        self.sender.send_modify(|progress| {
            progress.files_done += files;
            progress.bytes_done += bytes;
            if let Some((rate, weight)) = rate {
                let old = progress.bytes_per_second;
                progress.bytes_per_second = if old > 0.0 { old + (rate - old) * weight } else { rate };
                let left = progress.bytes_total.saturating_sub(progress.bytes_done) as f64;
                progress.eta_seconds = (progress.bytes_per_second > 1.0).then(|| left / progress.bytes_per_second);
            }
        });
    }

    /// The rate since the last sample and its weight, when enough time has passed.
    fn rate(&self) -> Option<(f64, f64)> {
        let now = (self.clock)();
        let copied = self.copied.load(Ordering::Relaxed);
        let mut sample = self.sample.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((then, before)) = *sample else {
            *sample = Some((now, copied));
            return None;
        };
        let seconds = now.duration_since(then).as_secs_f64();
        if seconds < SAMPLE_SECONDS {
            return None;
        }
        *sample = Some((now, copied));
        Some((copied.saturating_sub(before) as f64 / seconds, 1.0 - (-seconds / RATE_SECONDS).exp()))
    }
}
