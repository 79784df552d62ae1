//! One file for each family of commands.

pub(crate) mod hub;
pub(crate) mod member;
pub(crate) mod query;
pub(crate) mod token;
pub(crate) mod up;

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
