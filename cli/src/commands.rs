//! One file for each family of commands.

pub(crate) mod apply;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod cluster;
pub(crate) mod completion;
pub(crate) mod dataset;
pub(crate) mod delete;
pub(crate) mod demo;
pub(crate) mod describe;
pub(crate) mod get;
pub(crate) mod hook;
pub(crate) mod hub;
mod hub_store;
pub(crate) mod kubeconfig;
pub(crate) mod load;
pub(crate) mod member;
pub(crate) mod migrate;
pub(crate) mod mount;
pub(crate) mod node;
pub(crate) mod op;
pub(crate) mod operation;
pub(crate) mod options;
pub(crate) mod placement;
pub(crate) mod progress;
pub(crate) mod query;
pub(crate) mod repository;
pub(crate) mod storage;
pub(crate) mod token;
pub(crate) mod up;
pub(crate) mod user;
pub(crate) mod watch;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Becomes ready at SIGINT or SIGTERM, from the moment of this call.
///
/// # Errors
/// If the signals cannot be listened for.
pub(crate) fn until_told_to_stop() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
