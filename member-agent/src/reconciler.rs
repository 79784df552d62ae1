//! ⑤ The reconciler: level by level it compares what the ledger asks for with what runs, and closes the gap.
//!
//! [`gather`] reads, [`plan`] decides and can do nothing, [`apply`] starts and stops tasks, [`work`] is what the tasks do,
//! [`report`] puts what came of it into words. Every change of the ledger, every task that ends, and a slow tick start a
//! round; a round with nothing to do does nothing.
//!
//! Deliberately absent: the hub. Work goes on while it is away; what needs it (blocks) waits for the link.

pub mod apply;
pub mod gather;
mod load;
pub mod locate;
pub mod plan;
pub mod report;
pub mod work;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::ledger::Ledger;
use apply::Runner;

/// A round without a reason, in case a ledger call failed in the last one.
const TICK: Duration = Duration::from_secs(30);

/// Runs until `cancel`, then stops every task, resumably.
pub async fn run(ledger: Ledger, mut runner: Runner, cancel: CancellationToken) {
    let mut changes = ledger.changes();
    while !cancel.is_cancelled() {
        changes.borrow_and_update();
        match gather::gather(&ledger, runner.ended()).await {
            Ok(assigned) => runner.apply(plan::plan(&assigned, &runner.running())).await,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the ledger cannot be read; trying again");
            }
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = runner.one_ended() => {}
            _ = changes.changed() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
    runner.stop().await;
}
