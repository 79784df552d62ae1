//! ⑥ The mount: a version of a dataset as a read-only file system, at the speed of the disk below, or its homes as a
//! writable one.
//!
//! A mount is a process of its own, so that neither an upgrade nor a crash of the agent takes files away from readers.
//! It knows the tree (manifest blocks on disk) and asks the agent, over a socket, for the contents of files:
//!
//! | module | side | what it holds |
//! |---|---|---|
//! | [`tree`] | mount | the tree of a version, by rank, through a bounded cache of blocks |
//! | [`fs`] | mount | what the kernel asks: look-ups, listings, opens, reads; passthrough |
//! | [`files`] | mount | where contents come from: the seam |
//! | `opens` | mount | which inodes are open and how, and files that may be opened again |
//! | `siblings` | mount | which small files will be opened next |
//! | [`device`] | mount | mounting, the handshake with the kernel, handing the device over |
//! | `raw` | mount | the two calls that are not safe by their types |
//! | [`process`] | mount | the process as a whole |
//! | [`client`] | mount | asks the agent for contents |
//! | [`wire`] | both | the messages between the two, and open files beside them |
//! | [`serve`] | agent | answers from the engine |
//! | [`write`] | mount | writable mounts: the homes of record instead of a version |
//!
//! Invariants: a file that is open keeps its version; kernel passthrough is used for complete, verified files only; no
//! inode is read in both ways at a time.
//! Deliberately absent: other engines' own mounts, deciding what is mounted where (the hub).

pub mod client;
pub mod device;
pub mod files;
pub mod fs;
mod opens;
pub mod process;
mod raw;
pub mod serve;
mod siblings;
mod table;
pub mod tree;
pub mod wire;
pub mod write;

pub use process::ProcessError;
pub use raw::bound_heaps;
