//! That something was written, told in time and not too often.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// Told once nothing more was written for so long.
const QUIET: Duration = Duration::from_secs(2);
/// Told after so long although more is written all the time.
const LATEST: Duration = Duration::from_secs(10);

/// What was written and not told yet.
#[derive(Debug, Default)]
pub struct News {
    wrote: Notify,
}

impl News {
    /// Something was written.
    pub fn wrote(&self) {
        self.wrote.notify_one();
    }

    /// Waits until there is something to tell.
    pub async fn next(&self) {
        self.wrote.notified().await;
        let latest = Instant::now() + LATEST;
        while Instant::now() < latest {
            let quiet = QUIET.min(latest.saturating_duration_since(Instant::now()));
            if timeout(quiet, self.wrote.notified()).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_told_once_and_a_stream_now_and_then() {
        let news = Arc::new(News::default());
        let begun = Instant::now();
        news.wrote();
        news.next().await;
        assert_eq!(begun.elapsed(), QUIET);
        assert!(timeout(LATEST * 2, news.next()).await.is_err(), "nothing more to tell");

        let writer = tokio::spawn({
            let news = news.clone();
            async move {
                loop {
                    news.wrote();
                    tokio::time::sleep(QUIET / 2).await;
                }
            }
        });
        let begun = Instant::now();
        for _ in 0..3 {
            news.next().await;
        }
        assert!((LATEST * 3..LATEST * 3 + QUIET).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        writer.abort();
    }
}
