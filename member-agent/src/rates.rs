//! ⑤ What this agent's transfers may take of the Links on their ways: leases of the hub, in memory.
//!
//! A lease that was not renewed in time leaves a tenth of the share (`model::bandwidth::lapsed`), for others may use the
//! rest by now. An operation that no hub has spoken of waits for [`FIRST_WORD`], then goes on without a cap: work does not
//! need a hub. What a hub does not mention any more keeps its lease, which lapses, for as long as it runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fluvial_model::bandwidth::lapsed;
use fluvial_proto::v1;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long an operation waits for the hub to tell its share. It comes with the assignment, or some milliseconds later.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// One operation's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lease {
    /// Bytes per second; `None` without a cap.
    share: Option<u64>,
    until: Instant,
}

type Told = Arc<watch::Sender<Option<Lease>>>;

/// The leases by operation; clones share them. Those that no hub mentions and nobody follows are forgotten, so there are
/// as many as there are operations.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    told: Arc<Mutex<HashMap<String, Told>>>,
}

/// What one operation may take, from moment to moment.
#[derive(Debug, Clone)]
pub(crate) struct OperationRate(Told);

impl Rates {
    /// Takes note of what a hub says.
    pub(crate) fn hear(&self, rates: v1::Rates) {
        let until = Instant::now() + Duration::from_millis(rates.lease_ms);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut heard = HashMap::new();
        for v1::Rate { operation, bytes_per_second } in rates.rates {
            let known = told.remove(&operation).unwrap_or_default();
            known.send_replace(Some(Lease { share: bytes_per_second, until }));
            heard.insert(operation, known);
        }
        heard.extend(told.drain().filter(|(_, known)| Arc::strong_count(known) > 1));
        *told = heard;
    }

    /// What `operation` may take, once a hub has told it or was silent for too long.
    pub(crate) async fn of(&self, operation: &str) -> OperationRate {
        let known = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.entry(operation.to_owned()).or_default().clone()
        };
        let mut word = known.subscribe();
        if tokio::time::timeout(FIRST_WORD, word.wait_for(Option::is_some)).await.is_err() {
            tracing::debug!(operation, "no hub has told a share of the links: none is kept to");
        }
        OperationRate(known)
    }
}

impl OperationRate {
    /// Bytes per second; `None` without a cap.
    pub(crate) fn now(&self) -> Option<u64> {
        let lease = (*self.0.borrow())?;
        let share = lease.share?;
        Some(if Instant::now() < lease.until { share } else { lapsed(share) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lease_ms: u64, rates: &[(&str, Option<u64>)]) -> v1::Rates {
        let rate = |&(operation, bytes_per_second): &(&str, Option<u64>)| v1::Rate {
            operation: operation.to_owned(),
            bytes_per_second,
        };
        v1::Rates { lease_ms, rates: rates.iter().map(rate).collect() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_that_is_not_renewed_lapses_and_is_back_with_the_next_word() {
        let rates = Rates::default();
        rates.hear(said(30_000, &[("m", Some(10 << 20)), ("free", None)]));
        let (capped, free) = (rates.of("m").await, rates.of("free").await);
        assert_eq!((capped.now(), free.now()), (Some(10 << 20), None));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!((capped.now(), free.now()), (Some(1 << 20), None));
        rates.hear(said(30_000, &[("m", Some(20 << 20))]));
        assert_eq!(capped.now(), Some(20 << 20));
        // Not mentioned: what it has goes on, and lapses.
        rates.hear(said(30_000, &[]));
        assert_eq!(capped.now(), Some(20 << 20));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(capped.now(), Some(2 << 20));
        drop(capped);
        rates.hear(said(30_000, &[]));
        assert_eq!(rates.told.lock().unwrap().keys().collect::<Vec<_>>(), ["free"], "who ended is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_waits_for_the_first_word_but_not_for_ever() {
        let rates = Rates::default();
        let start = Instant::now();
        assert_eq!(rates.of("m").await.now(), None);
        assert_eq!(start.elapsed(), FIRST_WORD);
        let word = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            rates.hear(said(30_000, &[("n", Some(5))]));
        };
        let start = Instant::now();
        let (rate, ()) = tokio::join!(rates.of("n"), word);
        assert_eq!((rate.now(), start.elapsed()), (Some(5), Duration::from_millis(300)));
    }
}
