//! ⑦ When each cluster was last heard from, by any hub.
//!
//! Every hub notes what its own sessions hear and tells the leader, which judges silence for all (`model::liveness`).
//!
//! Invariants: an entry only ever gets younger by being heard; nothing here survives a restart, so a hub that has just
//! started knows nothing rather than something wrong.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A table from cluster name to the moment it was last heard from. Only authenticated clusters get into it.
#[derive(Debug, Default)]
pub struct Liveness {
    heard: Mutex<HashMap<String, Instant>>,
}

impl Liveness {
    /// Notes that `cluster` was heard from `age` ago. An older word never replaces a newer one.
    pub fn heard(&self, cluster: &str, age: Duration) {
        let Some(at) = Instant::now().checked_sub(age) else { return };
        let mut heard = self.table();
        match heard.get_mut(cluster) {
            Some(last) => *last = at.max(*last),
            None => {
                heard.insert(cluster.to_owned(), at);
            }
        }
    }

    /// How long ago `cluster` was last heard from; nothing if never since this hub started.
    #[must_use]
    pub fn silence(&self, cluster: &str) -> Option<Duration> {
        self.table().get(cluster).map(Instant::elapsed)
    }

    /// Every cluster heard from at most `age` ago, with how long ago.
    #[must_use]
    pub fn within(&self, age: Duration) -> Vec<(String, Duration)> {
        let entries = self.table();
        let ages = entries.iter().map(|(cluster, at)| (cluster.clone(), at.elapsed()));
        ages.filter(|(_, silence)| *silence <= age).collect()
    }

    /// Drops what is known of a cluster that is gone.
    pub fn forget(&self, cluster: &str) {
        self.table().remove(cluster);
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_word_never_replaces_a_newer_one() {
        let liveness = Liveness::default();
        assert_eq!(liveness.silence("a"), None);
        liveness.heard("a", Duration::ZERO);
        liveness.heard("a", Duration::from_secs(20));
        assert!(liveness.silence("a").unwrap() < Duration::from_secs(10));
    }

    #[test]
    fn only_those_heard_lately_are_told() {
        let liveness = Liveness::default();
        liveness.heard("near", Duration::from_secs(1));
        liveness.heard("far", Duration::from_secs(100));
        let names: Vec<_> = liveness.within(Duration::from_secs(60)).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["near"]);
    }
}
