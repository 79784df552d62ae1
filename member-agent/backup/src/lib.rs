//! Backups of datasets in repositories that `restic` reads, and their restoration (⑤ on the path: what the reconciler
//! applies).
//!
//! A repository is a restic repository of format 2, kept by `rustic_core` over [`files`]. [`save`] writes one snapshot of a
//! dataset, read from its places without a mount; [`restore`] shows a snapshot as a [`fluvial_transfer::place::Place`]
//! and copies from it, so that a restored tree is resumed, verified and committed as any other copy is.
//!
//! Invariants: a snapshot is written only when every file of it was read as the version that was listed; what a snapshot
//! refers to is durable before it is; whoever writes holds a restic lock, and whoever deletes holds it alone.
//!
//! Deliberately absent: which dataset goes where and when (the hub), and caches of repositories on this machine.

mod backend;
mod digests;
mod entry;
mod error;
mod files;
mod lock;
mod place;
mod repository;
mod restore;
mod save;
mod source;
mod stop;
mod tree;

pub use entry::{Dataset, Entry, FORMAT};
pub use error::BackupError;
pub use repository::{Checked, Repository, Retention, Snapshot, Target};
pub use restore::{Restore, Restored, restore};
pub use save::{Meter, Save, Saved, save};
