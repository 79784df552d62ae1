//! Records of what changed nothing: gathered, counted, and appended a few at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fluvial_model::audit::{Entry, Waiting};
use fluvial_model::store::Txn;
use fluvial_raft::Store;
use tokio::time::Instant;

/// How often what waits is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How long the last writing may take when the hub ends.
const LAST: Duration = Duration::from_secs(2);
/// Callers with a certificate: a burst, then two records a second.
const KNOWN: Rate = Rate { burst: 64, every: Duration::from_millis(500) };
/// Callers without: a burst, then one in four seconds.
const STRANGERS: Rate = Rate { burst: 16, every: Duration::from_secs(4) };

/// How much may be written.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: u32,
    every: Duration,
}

/// What is left of a rate.
#[derive(Debug)]
struct Budget {
    rate: Rate,
    /// When the whole burst will be there again.
    full_at: Instant,
}

impl Budget {
    fn new(rate: Rate) -> Self {
        Self { rate, full_at: Instant::now() }
    }

    /// How many records may be written now.
    fn left(&self, now: Instant) -> u32 {
        let owed = self.full_at.saturating_duration_since(now);
        let owed = owed.as_millis().div_ceil(self.rate.every.as_millis());
        self.rate.burst.saturating_sub(u32::try_from(owed).unwrap_or(u32::MAX))
    }

    fn spend(&mut self, records: u32, now: Instant) {
        self.full_at = self.full_at.max(now) + self.rate.every * records;
    }
}

#[derive(Debug)]
struct State {
    waiting: Waiting,
    known: Budget,
    strangers: Budget,
}

/// Where refusals, failures and readings of Secrets are noted; clones share it.
#[derive(Clone)]
pub struct Notes {
    store: Arc<dyn Store>,
    state: Arc<Mutex<State>>,
}

impl Notes {
    /// Notes for the trail of `store`. Nothing is written before [`Notes::run`].
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        let state = State { waiting: Waiting::default(), known: Budget::new(KNOWN), strangers: Budget::new(STRANGERS) };
        Self { store, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes one call. It is written within seconds, unless this hub is killed before.
    pub fn put(&self, entry: Entry) {
        self.state().waiting.put(entry);
    }

    /// Writes what waits, for ever.
    pub async fn run(self) {
        loop {
            tokio::time::sleep(EVERY).await;
            let due = self.due();
            self.write(due).await;
        }
    }

    /// Writes what waits, all of it: the hub ends.
    pub async fn finish(&self) {
        let rest = self.state().waiting.take(usize::MAX, usize::MAX);
        if tokio::time::timeout(LAST, self.write(rest)).await.is_err() {
            tracing::warn!("the last notes for the audit trail were not written in time");
        }
    }

    fn due(&self) -> Vec<Entry> {
        let now = Instant::now();
        let mut state = self.state();
        let (known, strangers) = (state.known.left(now), state.strangers.left(now));
        let due = state.waiting.take(known as usize, strangers as usize);
        let without = due.iter().filter(|entry| entry.user.is_empty()).count();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        state.strangers.spend(count(without), now);
        state.known.spend(count(due.len() - without), now);
        due
    }

    async fn write(&self, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let txn = Txn { audit: entries.clone(), ..Txn::default() };
        if let Err(error) = self.store.txn(txn).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "notes for the audit trail wait");
            // One whose outcome is unknown may then stand there twice, which is better than not at all.
            let mut state = self.state();
            entries.into_iter().for_each(|entry| state.waiting.put(entry));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_so_many_in_their_time() {
        let mut budget = Budget::new(STRANGERS);
        let start = Instant::now();
        assert_eq!(budget.left(start), 16);
        budget.spend(16, start);
        assert_eq!(budget.left(start), 0);
        assert_eq!(budget.left(start + Duration::from_secs(4)), 1);
        assert_eq!(budget.left(start + Duration::from_secs(64)), 16);
        // A flood for a day, taken as fast as it is let.
        let (mut written, mut now) = (0, start);
        for _ in 0..24 * 3600 {
            now += EVERY;
            let left = budget.left(now);
            budget.spend(left, now);
            written += left;
        }
        assert!((21_000..=21_700).contains(&written), "{written}");
    }
}
