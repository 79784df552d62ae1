//! ⑥ Writable mounts: a dataset's own sources (its homes of record) as a live file system.
//!
//! Beside the manifest's file system, which shows one version and never changes, this one shows what the home holds now,
//! and every change goes to the home itself:
//!
//! | module | what it holds |
//! |---|---|
//! | [`home`] | the seam: what a tree must be able to do to be written through a mount |
//! | [`directory`] | a home that is a directory: every call is a call of the file system below |
//! | [`s3`], [`staged`], [`staging`] | a home that is a prefix of a bucket: files are staged, and uploaded whole when closed |
//! | [`homes`] | several homes, each at its path |
//! | [`nodes`] | which inode is where, for as long as the kernel remembers it |
//! | [`fs`], `answers` | what the kernel asks, and what it is told |
//! | [`news`] | that something was written, told in time and not too often |
//! | [`spec`] | which homes to open, and the checks that come before |
//!
//! Invariants: what was closed without an error is at the home; nothing outside a home is reached; what a dataset could
//! not hold is refused when it is made, not when it is listed.
//! Deliberately absent: hard links, special files, extended attributes, locks across machines, handing the device over
//! (what is open belongs to the process, and ends with it).

mod answers;
pub mod directory;
pub mod fs;
pub mod home;
pub mod homes;
pub mod news;
pub mod nodes;
pub mod s3;
pub mod spec;
pub mod staged;
pub mod staging;
