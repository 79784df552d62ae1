//! Closed loops: so many clients, each with its own connection, each sending its next request when it has its answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use crate::figures::{milliseconds, percentile};
use crate::side::Side;

/// Objects that reads are spread over.
const SEEDS: u64 = 1000;
/// Clients that write them.
const SEEDERS: u64 = 8;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Write,
    Read,
}

/// What one round came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// Numbers of objects, so that no name is written twice in a run.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A name that was not used before.
pub(crate) fn fresh_name() -> String {
    format!("w-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn seed(number: u64) -> String {
    format!("seed-{}", number % SEEDS)
}

/// Writes what will be read.
pub(crate) async fn prepare(side: &Side) -> Result<()> {
    let mut seeders = JoinSet::new();
    for first in 0..SEEDERS {
        let side = side.clone();
        seeders.spawn(async move {
            let mut connection = side.connect(0).await?;
            for number in (first..SEEDS).step_by(usize::try_from(SEEDERS).unwrap_or(1)) {
                connection.succeed(side.api.write(&seed(number))).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = seeders.join_next().await {
        ended??;
    }
    Ok(())
}

/// One round. A request that fails ends it: an answer that is fast because it is an error counts for nothing.
pub(crate) async fn round(side: &Side, kind: Kind, clients: usize, length: Duration) -> Result<Round> {
    let mut connections = Vec::with_capacity(clients);
    for client in 0..clients {
        connections.push(side.connect(client).await?);
    }
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for (client, mut connection) in connections.into_iter().enumerate() {
        let api = side.api;
        tasks.spawn(async move {
            let mut times = Vec::new();
            let mut number = client as u64 * 37;
            while started.elapsed() < length {
                let call = match kind {
                    Kind::Write => api.write(&fresh_name()),
                    Kind::Read => api.read(&seed(number)),
                };
                let start = Instant::now();
                let body = connection.succeed(call).await?;
                times.push(start.elapsed());
                if kind == Kind::Read {
                    api.found(&body)?;
                }
                number += 1;
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended?.with_context(|| format!("a client of {}", side.api.name()))?);
    }
    let took = started.elapsed();
    times.sort_unstable();
    Ok(Round {
        per_second: times.len() as f64 / took.as_secs_f64(),
        p50_ms: milliseconds(percentile(&times, 50)),
        p99_ms: milliseconds(percentile(&times, 99)),
    })
}
