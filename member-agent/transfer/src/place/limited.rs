//! A place whose bytes are read no faster than somebody allows: a token bucket before every reading of contents.
//!
//! Invariants: within any time the readings of one [`Limit`] begin no more bytes than its rate gives for that time, plus
//! what it saves ([`SAVED`]) and one reading; readers go on in the order in which they came; a rate that changes counts
//! within [`LOOK_AGAIN`]. Listing is free, and so is what a store copies by itself: no bytes come this way.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{Entry, File, RelativePath};
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

use super::s3::S3Place;
use super::{Detail, Found, PartLimits, Place, Tag, TargetState, Written};
use crate::TransferError;
use crate::location::Access;

/// What was not used is good for so long: small files, each of which takes a millisecond, lose nothing to timers.
const SAVED: Duration = Duration::from_millis(50);
/// How often a reader that waits looks whether the rate has changed.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Bytes per second at this moment; `None` for no limit.
pub type Rate = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// A rate that several places keep to together.
pub struct Limit {
    rate: Rate,
    /// Whoever waits holds it: the lock's queue is the readers' order.
    bucket: Mutex<Bucket>,
}

/// Bytes that may be read; fewer than none after a reading larger than what was there.
struct Bucket {
    left: f64,
    filled: Instant,
}

impl Bucket {
    /// Takes `bytes`, or tells how long until some may be taken at `rate` bytes per second.
    #[allow(clippy::cast_precision_loss, reason = "bytes below 2^53")]
    fn take(&mut self, bytes: u64, rate: u64, now: Instant) -> Result<(), Duration> {
        let rate = rate.max(1) as f64;
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.left = (self.left + passed * rate).min(SAVED.as_secs_f64() * rate);
        self.filled = now;
        if self.left < 0.0 {
            return Err(Duration::try_from_secs_f64(-self.left / rate).unwrap_or(LOOK_AGAIN));
        }
        self.left -= bytes as f64;
        Ok(())
    }
}

impl Limit {
    /// With a rate that is asked for before every reading.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, bucket: Mutex::new(Bucket { left: 0.0, filled: Instant::now() }) }
    }

    /// Waits until `bytes` may be read.
    async fn take(&self, bytes: u64) {
        let mut bucket = self.bucket.lock().await;
        loop {
            let now = Instant::now();
            let Some(rate) = (self.rate)() else {
                *bucket = Bucket { left: 0.0, filled: now };
                return;
            };
            match bucket.take(bytes, rate, now) {
                Ok(()) => return,
                Err(wait) => tokio::time::sleep(wait.clamp(Duration::from_millis(1), LOOK_AGAIN)).await,
            }
        }
    }
}

/// A place behind a limit.
pub struct Limited {
    place: Arc<dyn Place>,
    limit: Arc<Limit>,
}

impl Limited {
    /// `place`, read within `limit`.
    #[must_use]
    pub fn new(place: Arc<dyn Place>, limit: Arc<Limit>) -> Self {
        Self { place, limit }
    }
}

#[async_trait]
impl Place for Limited {
    fn name(&self) -> &str {
        self.place.name()
    }

    async fn probe(&self, access: Access) -> Result<(), TransferError> {
        self.place.probe(access).await
    }

    async fn list(&self, detail: Detail, found: mpsc::Sender<Found>) -> Result<(), TransferError> {
        self.place.list(detail, found).await
    }

    async fn stat(&self, path: &RelativePath) -> Result<Found, TransferError> {
        self.place.stat(path).await
    }

    async fn fetch(&self, path: &RelativePath, size: u64) -> Result<(Found, Bytes), TransferError> {
        self.limit.take(size).await;
        self.place.fetch(path, size).await
    }

    fn source_detail(&self) -> Detail {
        self.place.source_detail()
    }

    async fn read_listed(&self, path: &RelativePath, tag: &Tag, size: u64) -> Result<(Entry, Bytes), TransferError> {
        self.limit.take(size).await;
        self.place.read_listed(path, tag, size).await
    }

    async fn read(
        &self,
        path: &RelativePath,
        tag: Option<&Tag>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, TransferError> {
        self.limit.take(length).await;
        self.place.read(path, tag, offset, length).await
    }

    fn verify_detail(&self) -> Detail {
        self.place.verify_detail()
    }

    fn part_limits(&self) -> PartLimits {
        self.place.part_limits()
    }

    async fn put(&self, path: &RelativePath, file: &File, data: Bytes) -> Result<Tag, TransferError> {
        self.place.put(path, file, data).await
    }

    async fn put_checked(&self, path: &RelativePath, file: &File, data: Bytes) -> Result<Written, TransferError> {
        self.place.put_checked(path, file, data).await
    }

    fn as_s3(&self) -> Option<&S3Place> {
        self.place.as_s3()
    }

    async fn copy_inside(
        &self,
        path: &RelativePath,
        file: &File,
        from: &dyn Place,
        below: &RelativePath,
        tag: &Tag,
    ) -> Result<Option<Written>, TransferError> {
        self.place.copy_inside(path, file, from, below, tag).await
    }

    async fn begin(&self, path: &RelativePath, file: &File) -> Result<String, TransferError> {
        self.place.begin(path, file).await
    }

    async fn can_continue(&self, path: &RelativePath, upload: &str) -> Result<bool, TransferError> {
        self.place.can_continue(path, upload).await
    }

    async fn put_part(
        &self,
        path: &RelativePath,
        upload: &str,
        number: u32,
        offset: u64,
        data: Bytes,
    ) -> Result<String, TransferError> {
        self.place.put_part(path, upload, number, offset, data).await
    }

    async fn complete(
        &self,
        path: &RelativePath,
        upload: &str,
        file: &File,
        receipts: &[String],
    ) -> Result<Tag, TransferError> {
        self.place.complete(path, upload, file, receipts).await
    }

    async fn complete_checked(
        &self,
        path: &RelativePath,
        upload: &str,
        file: &File,
        receipts: &[String],
    ) -> Result<Written, TransferError> {
        self.place.complete_checked(path, upload, file, receipts).await
    }

    async fn abort(&self, path: &RelativePath, upload: &str) -> Result<(), TransferError> {
        self.place.abort(path, upload).await
    }

    async fn make_directory(&self, path: &RelativePath, empty: bool) -> Result<(), TransferError> {
        self.place.make_directory(path, empty).await
    }

    async fn make_symlink(&self, path: &RelativePath, target: &str) -> Result<Tag, TransferError> {
        self.place.make_symlink(path, target).await
    }

    async fn make_symlink_checked(&self, path: &RelativePath, target: &str) -> Result<Written, TransferError> {
        self.place.make_symlink_checked(path, target).await
    }

    async fn sync(&self, paths: &[RelativePath]) -> Result<(), TransferError> {
        self.place.sync(paths).await
    }

    async fn remove(&self, path: &RelativePath) -> Result<(), TransferError> {
        self.place.remove(path).await
    }

    async fn remove_all(&self) -> Result<(), TransferError> {
        self.place.remove_all().await
    }

    async fn target_state(&self) -> Result<TargetState, TransferError> {
        self.place.target_state().await
    }

    async fn commit(&self) -> Result<(), TransferError> {
        self.place.commit().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// A rate that a test sets; 0 for no limit.
    fn limit(rate: &Arc<AtomicU64>) -> Limit {
        let rate = rate.clone();
        Limit::new(Arc::new(move || Some(rate.load(Ordering::SeqCst)).filter(|rate| *rate > 0)))
    }

    #[tokio::test(start_paused = true)]
    async fn readers_together_keep_to_the_rate_and_a_change_counts_at_once() {
        let rate = Arc::new(AtomicU64::new(1000));
        let limit = limit(&rate);
        let start = Instant::now();
        let reader = async || {
            for _ in 0..5 {
                limit.take(500).await;
            }
        };
        tokio::join!(reader(), reader());
        // The first reading is free, the nine after it wait for the one before.
        let took = start.elapsed().as_secs_f64();
        assert!((4.4..4.7).contains(&took), "{took}");

        limit.take(1_000_000).await;
        let (start, faster) = (Instant::now(), async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            rate.store(1_000_000, Ordering::SeqCst);
        });
        tokio::join!(limit.take(1), faster);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());

        limit.take(10_000_000).await;
        rate.store(0, Ordering::SeqCst);
        let start = Instant::now();
        limit.take(u64::MAX >> 1).await;
        limit.take(1).await;
        assert!(start.elapsed() <= LOOK_AGAIN, "{:?}", start.elapsed());
    }

    proptest! {
        #[test]
        fn a_bucket_gives_no_more_than_rate_savings_and_one_reading(
            rate in 1_u64..1 << 40,
            readings in prop::collection::vec((0_u64..1 << 24, 0_u64..5_000), 1..200),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket { left: 0.0, filled: start };
            let (mut now, mut taken, mut largest) = (start, 0_u64, 0_u64);
            for (bytes, wait_ms) in readings {
                now += Duration::from_millis(wait_ms);
                if bucket.take(bytes, rate, now).is_ok() {
                    taken += bytes;
                    largest = largest.max(bytes);
                }
                #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
                let most = (now - start + SAVED).as_secs_f64() * rate as f64 * (1.0 + 1e-9) + largest as f64 + 1.0;
                #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
                let got = taken as f64;
                prop_assert!(got <= most, "{got} of {most}");
            }
        }
    }
}
