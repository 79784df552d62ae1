//! Snapshots of a whole hub in one file, and a new hub from such a file.
//!
//! Reading order: [`format`] says what the file looks like and seals it; [`key`] turns a password into a key; [`save`]
//! fills it from a hub that runs; [`restore`] makes a data directory from it. What a restored hub does until it has
//! caught up is in [`crate::recovery`].
//!
//! Invariants: a snapshot is the store at one revision; nothing in it but its [`format::Header`] can be read without the
//! password; a file that is not whole is never restored from.
//!
//! Deliberately absent: when snapshots are taken, and where they are kept.

pub mod format;
pub mod key;
pub mod restore;
pub mod save;

pub use format::{Contents, Footer, Header, inspect};
pub use restore::{RestoreOptions, RestoreReport, restore};

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::run::RunError;

/// Why a snapshot cannot be read, or a hub cannot be made from it.
#[derive(Debug, Error)]
pub enum SnapshotError {
    #[error("reading the snapshot {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("writing to {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("this is no snapshot of a Fluvial hub")]
    NotASnapshot,
    #[error(
        "the snapshot has format {found}, and this version of Fluvial reads formats up to {}: use the version that saved it, or a newer one",
        format::FORMAT
    )]
    Newer { found: u16 },
    #[error("the snapshot ends too early: it was not written or copied to its end")]
    Truncated,
    #[error("the snapshot is damaged: {what}")]
    Damaged { what: String },
    #[error("the password is not the one that this snapshot was saved with")]
    Password,
    #[error("the password is empty")]
    NoPassword,
    #[error("deriving a key from the password: {reason}")]
    Derive { reason: String },
    #[error("there is something in {path} already: a hub is restored into a directory of its own")]
    Taken { path: PathBuf },
    #[error("making the store")]
    Seed(#[from] fluvial_raft::SeedError),
    #[error("keeping the blocks of manifests")]
    Blocks(#[from] crate::blocks::BlockError),
    #[error("setting up the hub")]
    Run(#[from] RunError),
}

impl SnapshotError {
    fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }

    /// An error of a reader of ours, which may carry one of these.
    fn from_io(error: io::Error, read: impl FnOnce(io::Error) -> Self) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Truncated;
        }
        error.downcast::<Self>().unwrap_or_else(read)
    }
}
