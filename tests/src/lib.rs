//! What the tests of the whole system share: the programs of the test bed, real servers started for one test, and
//! waiting for a condition. The tests themselves are in `tests/tests`, one file per subject.
//!
//! Everything here fails by panicking, because its only callers are tests: a bed that cannot be had is a failed test,
//! and the panic message is what its reader gets. Absent on purpose: doubles of servers. A test that needs S3 starts
//! MinIO.
#![allow(clippy::panic, reason = "a helper of tests reports by panicking")]

pub use fluvial_simulation::{history, random};

pub mod azurite;
pub mod bed;
pub mod clients;
pub mod clock;
pub mod connection;
pub mod disk;
pub mod etcd;
pub mod faults;
pub mod federation;
pub mod fuzz;
pub mod hdfs;
pub mod hostile;
pub mod issuer;
pub mod members;
pub mod minio;
pub mod mount;
pub mod network;
pub mod promise;
pub mod proxy;
pub mod reference;
pub mod steps;
pub mod tree;
pub mod wait;
