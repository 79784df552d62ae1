//! Moving a dataset's tree between places, verified and resumable (⑤ on the path: what the reconciler applies).
//!
//! The seam is [`place::Place`]: something that lists, reads and writes a tree. [`scan`] names what is there without
//! reading contents; [`copy()`] makes a complete, verified copy whose manifest root equals the source's;
//! [`Journal`] remembers what is done, so that any kind of end is continued; [`BlockStore`] keeps manifest blocks.
//!
//! Deliberately absent: deciding what goes where (the hub), what a transfer may take of a link (the hub; `place::limited` holds to it), caches (engine).

pub mod blocks;
pub mod copy;
pub mod database;
mod digest;
pub mod error;
pub mod journal;
pub mod listing;
pub mod location;
pub mod place;
pub mod remove;
pub mod scan;

pub use blocks::BlockStore;
pub use copy::{CopyContext, CopyJob, CopyReport, Phase, Progress, Verify, copy, discard, source_has_manifest};
pub use error::TransferError;
pub use journal::Journal;
pub use location::{Access, Location, SourceMount, probe};
pub use remove::{read_range, remove_tree};
pub use scan::{Scan, estimate, scan};

pub use fluvial_model::manifest;
