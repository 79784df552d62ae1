//! How long nothing can be written after the leader was killed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::load::fresh_name;
use crate::side::Side;

/// How often an attempt is made. A server may lose or hold what it was sent while nobody led: the next attempt, not the
/// patience of the first, shows when writing works again.
const ATTEMPT_EVERY: Duration = Duration::from_millis(50);
/// How long one waits: 100 times two of them are under way at most.
const ATTEMPT: Duration = Duration::from_secs(5);
/// What takes longer is no outage but a broken cluster.
const LIMIT: Duration = Duration::from_secs(60);

/// The time until one of the survivors, all but the first of the side's addresses, acknowledges a write.
///
/// `kill` ends the leader, which is the first.
pub(crate) async fn measure(side: &Side, kill: impl FnOnce()) -> Result<Duration> {
    kill();
    let killed = Instant::now();
    let mut attempts = JoinSet::new();
    let mut next = tokio::time::interval(ATTEMPT_EVERY);
    let written = async {
        loop {
            tokio::select! {
                Some(ended) = attempts.join_next() => {
                    if matches!(ended?, Ok(Ok(()))) {
                        return Ok(killed.elapsed());
                    }
                }
                _ = next.tick() => {
                    for survivor in 1..side.addresses.len() {
                        let side = side.clone();
                        attempts.spawn(timeout(ATTEMPT, async move { write(&side, survivor).await }));
                    }
                }
            }
        }
    };
    timeout(LIMIT, written)
        .await
        .with_context(|| format!("{} took no write within {LIMIT:?} after its leader was killed", side.api.name()))?
}

async fn write(side: &Side, survivor: usize) -> Result<()> {
    let mut connection = side.connect(survivor).await?;
    connection.succeed(side.api.write(&fresh_name())).await.map(drop)
}
