//! The replicated store in a simulation that a seed decides: nodes of the real crate on simulated machines, with a
//! network, disks and clocks that fail as real ones do, in virtual time.
//!
//! What is real: all of `fluvial-raft` with openraft, gRPC over HTTP/2, and SQLite on files. What is simulated: the
//! byte streams between nodes ([`network`]), what a disk keeps without power ([`disk`]), time, randomness, and threads:
//! everything runs on one. `docs/decisions/0015-simulation.md` says why so.
//!
//! [`world`] runs one seed, in a process of its own that [`runner`] starts; [`invariants`] judges each step, [`judge`]
//! the history of the clients.
#![allow(clippy::expect_used, clippy::panic, reason = "a simulation that cannot go on ends with its reason")]

pub mod clients;
pub mod disk;
pub mod figures;
pub mod history;
pub mod host;
pub mod invariants;
pub mod judge;
pub mod network;
pub mod plan;
pub mod random;
pub mod runner;
pub mod stage;
pub mod world;
