//! What can go wrong with repositories. Every variant names the repository, and says what would be right.

use std::io;

use fluvial_transfer::TransferError;
use rustic_core::RusticError;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A place could not be read or written.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// None of the repository's keys opens with the password.
    #[error("open repository {place}: the password is wrong")]
    WrongPassword {
        /// The repository.
        place: String,
    },
    /// There is nothing there.
    #[error("open repository {place}: there is none; `fluvial repository create` makes it")]
    NoRepository {
        /// The place.
        place: String,
    },
    /// A repository that this release cannot use.
    #[error("open repository {place}: its format is {version}; 1 and 2 can be used")]
    Version {
        /// The repository.
        place: String,
        /// Its format.
        version: u32,
    },
    /// Somebody else holds a lock that excludes this work.
    #[error("repository {place} is locked by {holder}")]
    Locked {
        /// The repository.
        place: String,
        /// Who, where and since when.
        holder: String,
    },
    /// The own lock is about to look abandoned to others.
    #[error("repository {place}: the lock could not be renewed for {minutes} minutes, so that nothing more is written")]
    LockLost {
        /// The repository.
        place: String,
        /// How long.
        minutes: u64,
    },
    /// What is there is not what was written.
    #[error("repository {place} is damaged: {what}")]
    Damaged {
        /// The repository.
        place: String,
        /// What was found.
        what: String,
    },
    /// No snapshot is meant.
    #[error("repository {place}: there is no snapshot {wanted}")]
    NoSnapshot {
        /// The repository.
        place: String,
        /// What was asked for.
        wanted: String,
    },
    /// More than one snapshot may be meant.
    #[error("repository {place}: more than one snapshot begins with {wanted}; write more of its id")]
    Ambiguous {
        /// The repository.
        place: String,
        /// What was asked for.
        wanted: String,
    },
    /// A path that a snapshot does not have.
    #[error("snapshot {snapshot}: there is no {path:?} in it")]
    NoPath {
        /// The snapshot.
        snapshot: String,
        /// The path.
        path: String,
    },
    /// The repository cannot be used or decoded for another reason.
    #[error("{op}: repository {place}: {message}")]
    Repository {
        /// What was being done.
        op: &'static str,
        /// The repository.
        place: String,
        /// What the library says.
        message: String,
    },
    /// A file of this machine.
    #[error("{op}: {file}")]
    File {
        /// What was being done.
        op: &'static str,
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl BackupError {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Transfer(error) => error.is_transient(),
            Self::Locked { .. } | Self::LockLost { .. } => true,
            _ => false,
        }
    }

    /// What the library reports, in one line.
    pub(crate) fn library(op: &'static str, place: &str, error: &RusticError) -> Self {
        let place = place.to_owned();
        if error.is_incorrect_password() {
            return Self::WrongPassword { place };
        }
        Self::Repository { op, place, message: error.display_log() }
    }

    pub(crate) fn file(op: &'static str, file: &std::path::Path, source: io::Error) -> Self {
        Self::File { op, file: file.display().to_string(), source }
    }
}
