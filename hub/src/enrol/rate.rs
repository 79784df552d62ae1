//! How often one address may try to join.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One try a second in the long run: a guesser of 256 random bits gets nowhere, an honest newcomer never waits.
const EVERY: Duration = Duration::from_secs(1);
/// So many at once: a rack of members behind one address that are set up together.
const BURST: u32 = 20;
/// The most addresses that are remembered: at about 64 bytes each, 640 KB. Beyond it, unknown addresses share one entry.
const MAX_ADDRESSES: usize = 10_000;

/// A token bucket per address.
#[derive(Debug, Default)]
pub(super) struct JoinRate {
    /// When each address will have its whole burst again.
    full_at: Mutex<HashMap<IpAddr, Instant>>,
}

impl JoinRate {
    /// Takes one try from the address, if it has any left; else says how long to wait.
    pub(super) fn take(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if full_at.len() >= MAX_ADDRESSES {
            full_at.retain(|_, at| *at > now);
        }
        let shared = full_at.len() >= MAX_ADDRESSES && !full_at.contains_key(&address);
        let address = if shared { IpAddr::from([0, 0, 0, 0]) } else { address };
        let at = full_at.get(&address).copied().unwrap_or(now).max(now) + EVERY;
        let excess = (at - now).saturating_sub(EVERY * BURST);
        if excess > Duration::ZERO {
            return Err(excess);
        }
        full_at.insert(address, at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_a_second() {
        let (rate, start) = (JoinRate::default(), Instant::now());
        let (guesser, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        for _ in 0..BURST {
            assert_eq!(rate.take(guesser, start), Ok(()));
        }
        assert_eq!(rate.take(guesser, start), Err(EVERY));
        assert_eq!(rate.take(other, start), Ok(()));
        assert_eq!(rate.take(guesser, start + EVERY), Ok(()));
        assert_eq!(rate.take(guesser, start + EVERY), Err(EVERY));
    }
}
