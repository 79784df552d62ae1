//! Why work on a repository must end, seen by every thread of it: the library goes on after an error of a single file.

use std::sync::{Arc, Mutex, PoisonError};

use fluvial_transfer::TransferError;
use rustic_core::{ErrorKind, RusticError};
use tokio_util::sync::CancellationToken;

use crate::BackupError;

/// Shared by the reading and the writing side of one piece of work.
#[derive(Clone)]
pub(crate) struct Stop {
    cancel: CancellationToken,
    first: Arc<Mutex<Option<BackupError>>>,
}

impl Stop {
    pub(crate) fn new(cancel: CancellationToken) -> Self {
        Self { cancel, first: Arc::default() }
    }

    /// Ends the work. The first reason is the one that is told.
    pub(crate) fn fail(&self, error: BackupError) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Whether the work must end.
    pub(crate) fn stopped(&self) -> bool {
        self.cancel.is_cancelled() || self.first.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The reason, once everything has ended.
    pub(crate) fn take(&self) -> Option<BackupError> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let cancelled =
            || self.cancel.is_cancelled().then_some(BackupError::Transfer(TransferError::Cancelled { op: "back up" }));
        first.or_else(cancelled)
    }

    /// `result`, or the reason why everything ended, which matters more than what the library makes of it.
    pub(crate) fn settle<T>(&self, result: Result<T, BackupError>) -> Result<T, BackupError> {
        match self.take() {
            Some(error) => Err(error),
            None => result,
        }
    }

    /// For the library, which wants an error of its own.
    pub(crate) fn stand_in() -> Box<RusticError> {
        RusticError::new(ErrorKind::Backend, "the work has ended; its reason is told elsewhere")
    }
}
