//! ⑦ What came of the work, in the words of the model.
//!
//! [`Trouble`] is the one place where errors become reasons, and where it is decided whether the agent goes on trying by
//! itself: what may pass by waiting is tried again, what somebody has to change ends the work.

use std::error::Error as StdError;

use fluvial_backup::BackupError;
use fluvial_engine::EngineError;
use fluvial_model::causes::chain;
use fluvial_model::kinds;
use fluvial_model::manifest::ReadError;
use fluvial_model::report::{MigratePhase, MigrateReport, MountReport, Problem, Totals, Version};
use fluvial_mount::fs::Mode;
use fluvial_transfer::{CopyReport, Phase, Progress, TransferError};

use super::locate;
use crate::mounts::{self, MountState};
use crate::{blocks, ledger};

/// Why a piece of work did not come to its end this time.
#[derive(Debug)]
pub enum Trouble {
    /// It was told to stop.
    Cancelled,
    /// Something is in the way.
    Problem(Problem),
}

impl Trouble {
    fn new(reason: &str, error: &dyn StdError, retrying: bool) -> Self {
        Self::Problem(Problem { reason: reason.to_owned(), message: chain(error), retrying })
    }
}

/// The reason for an error of the transfer crate.
fn reason(error: &TransferError) -> &'static str {
    match error {
        TransferError::NotFound { .. } | TransferError::NoSuchBucket { .. } => "NotFound",
        TransferError::CredentialsRefused { .. } | TransferError::Denied { .. } => "AccessDenied",
        TransferError::ReadOnly { .. } => "ReadOnly",
        TransferError::NoSpace { .. } => "NoSpace",
        TransferError::Unreachable { .. } | TransferError::Damaged { .. } | TransferError::Server { .. } => {
            "Unreachable"
        }
        TransferError::Changed { .. } | TransferError::SourceChanged { .. } | TransferError::SourceDiffers { .. } => {
            "SourceChanged"
        }
        TransferError::DigestMismatch { .. }
        | TransferError::TargetMismatch { .. }
        | TransferError::RootMismatch { .. } => "Corrupt",
        TransferError::UnsupportedScheme { .. } => "Unsupported",
        TransferError::BadLocation { .. }
        | TransferError::BadEntry { .. }
        | TransferError::MountConflict { .. }
        | TransferError::TargetExists { .. }
        | TransferError::JobDiffers { .. }
        | TransferError::BadJob { .. } => "Invalid",
        TransferError::Io { .. }
        | TransferError::Cancelled { .. }
        | TransferError::Journal { .. }
        | TransferError::Blocks { .. }
        | TransferError::Manifest { .. }
        | TransferError::Build { .. } => "Internal",
    }
}

impl From<TransferError> for Trouble {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Cancelled { .. } => Self::Cancelled,
            error => Self::new(reason(&error), &error, error.is_transient()),
        }
    }
}

impl From<BackupError> for Trouble {
    fn from(error: BackupError) -> Self {
        let word = match error {
            BackupError::Transfer(error) => return error.into(),
            BackupError::WrongPassword { .. } => "WrongPassword",
            BackupError::NoRepository { .. } | BackupError::NoSnapshot { .. } | BackupError::NoPath { .. } => {
                "NotFound"
            }
            BackupError::Version { .. } => "Unsupported",
            BackupError::Locked { .. } | BackupError::LockLost { .. } => "Locked",
            BackupError::Damaged { .. } => "Corrupt",
            BackupError::Ambiguous { .. } => "Invalid",
            BackupError::Repository { .. } | BackupError::File { .. } => "Internal",
        };
        Self::new(word, &error, error.is_transient())
    }
}

impl From<EngineError> for Trouble {
    fn from(error: EngineError) -> Self {
        let word = match &error {
            EngineError::Stopped { .. } => return Self::Cancelled,
            EngineError::Source { source, .. } => match source.as_ref() {
                TransferError::Cancelled { .. } => return Self::Cancelled,
                source => reason(source),
            },
            EngineError::DigestMismatch { .. } => "Corrupt",
            EngineError::SourceDiffers { .. } => "SourceChanged",
            EngineError::NoSource { .. } => "Invalid",
            EngineError::NotFound { .. } => "NotFound",
            EngineError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => "NoSpace",
            EngineError::Manifest { .. }
            | EngineError::NotPrepared { .. }
            | EngineError::Superseded { .. }
            | EngineError::Io { .. }
            | EngineError::Index { .. } => "Internal",
            EngineError::TierFailed { .. } => "CacheFailed",
        };
        Self::new(word, &error, error.is_transient())
    }
}

impl From<mounts::Error> for Trouble {
    fn from(error: mounts::Error) -> Self {
        Self::new("Internal", &error, true)
    }
}

impl From<blocks::Error> for Trouble {
    fn from(error: blocks::Error) -> Self {
        match &error {
            blocks::Error::Ending { .. } => Self::Cancelled,
            // Whatever the hub says, the blocks must get there, or the work has no end: it is asked again.
            blocks::Error::Hub { .. } | blocks::Error::OtherBytes { .. } => Self::new("Unreachable", &error, true),
            blocks::Error::Missing { .. }
            | blocks::Error::Decode { .. }
            | blocks::Error::Store(_)
            | blocks::Error::Ledger(_) => Self::new("Internal", &error, false),
        }
    }
}

impl From<locate::Error> for Trouble {
    fn from(error: locate::Error) -> Self {
        Self::new("Invalid", &error, false)
    }
}

impl From<ledger::Error> for Trouble {
    fn from(error: ledger::Error) -> Self {
        match &error {
            ledger::Error::Ending { .. } => Self::Cancelled,
            // A full disk may have room again; nothing was lost.
            _ => Self::new("Internal", &error, true),
        }
    }
}

impl From<fluvial_model::manifest::HashError> for Trouble {
    fn from(error: fluvial_model::manifest::HashError) -> Self {
        Self::new("Invalid", &error, false)
    }
}

impl From<fluvial_model::manifest::PathError> for Trouble {
    fn from(error: fluvial_model::manifest::PathError) -> Self {
        Self::new("Invalid", &error, false)
    }
}

/// Whether an engine only lacks blocks of the version, which the hub has.
#[must_use]
pub fn lacks_blocks(error: &EngineError) -> bool {
    matches!(error, EngineError::Manifest { source, .. } if matches!(**source, ReadError::Missing { .. }))
}

/// Sums, as reports have them.
#[must_use]
pub fn totals(totals: fluvial_model::manifest::Totals) -> Totals {
    Totals { files: totals.files, directories: totals.dirs, bytes: totals.bytes }
}

/// The phase of a copy, as reports have it.
#[must_use]
pub fn phase(phase: Phase) -> MigratePhase {
    match phase {
        Phase::Listing => MigratePhase::Planning,
        Phase::Copying => MigratePhase::Copying,
        Phase::Verifying | Phase::Finishing => MigratePhase::Verifying,
    }
}

/// A copy that is complete, as reports have it.
#[must_use]
pub fn copied(copied: &CopyReport) -> MigrateReport {
    let totals = totals(copied.totals);
    let progress = kinds::Progress {
        files_done: totals.files,
        files_total: totals.files,
        bytes_done: totals.bytes,
        bytes_total: totals.bytes,
        ..kinds::Progress::default()
    };
    let version = Some(Version { root: copied.root.to_string(), totals, digested: true });
    MigrateReport { phase: MigratePhase::Done, progress, version, problem: None }
}

/// How far a copy is, as reports have it.
#[must_use]
pub fn progress(progress: &Progress) -> kinds::Progress {
    kinds::Progress {
        files_done: progress.files_done,
        files_total: progress.files_total,
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        bytes_per_second: progress.bytes_per_second,
        eta_seconds: progress.eta_seconds,
    }
}
/// How a mount stands.
pub(super) fn mount(root: &str, state: &MountState) -> MountReport {
    let problem = state.problem.clone().map(|message| Problem { reason: "Mount".to_owned(), message, retrying: true });
    let (passthrough, without_passthrough) = match &state.slot.mode {
        Some(Mode::Passthrough) => (true, String::new()),
        Some(Mode::Daemon(why)) => (false, why.clone()),
        Some(Mode::ReadWrite) => (false, String::new()),
        None => (false, String::new()),
    };
    MountReport {
        mounted: state.slot.serving,
        root: root.to_owned(),
        process: state.slot.process,
        passthrough,
        without_passthrough,
        writable: state.slot.mode == Some(Mode::ReadWrite),
        written: state.slot.written.clone(),
        problem,
    }
}
