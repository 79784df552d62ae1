//! ② The replicated store: one ordered map with revisions, the same on every hub.
//!
//! Reading order: [`store`] says what a store promises; [`node`] is the store over Raft; a write goes through
//! [`propose`] into the log ([`log`]), over [`transport`] to the other hubs, and, once a majority has it on disk,
//! through [`machine`] into the catalog ([`schema`]) and to the watchers ([`watch`], [`wake`]). [`read`] makes reads
//! linearizable, [`snapshot`] lets the log be cut, [`membership`] changes who takes part, [`seed`] makes the first node
//! of a cluster that begins with given content, [`marker`] keeps a data directory from being used by another node, [`mark`]
//! and [`seal`] tell what was lost or damaged on the disk, [`health`] stops a node whose disk fails, [`database`] is how
//! files of SQLite are opened. [`replica`] is the same catalog for a store whose log is kept elsewhere.
//!
//! Invariants: a write is acknowledged only when a majority has synced it; every replica applies the same commands in
//! the same order; what is applied and how far is one SQLite transaction.
//!
//! Deliberately absent: certificates (the caller hands over channels), authorisation of peers (the hub's), the meaning
//! of keys and values, and wall-clock time in anything that is replicated.

mod blocking;
pub mod config;
#[cfg(any(test, feature = "testing"))]
pub mod contract;
pub mod database;
mod handover;
pub mod health;
mod log;
mod machine;
mod mark;
mod marker;
pub mod membership;
pub mod node;
mod propose;
mod query;
mod read;
pub mod replica;
mod schema;
mod seal;
mod seed;
mod server;
#[cfg(feature = "simulation")]
pub mod simulation;
mod snapshot;
pub mod store;
mod trail;
mod transport;
mod types;
mod wake;
mod watch;

pub use config::{Config, Timings};
pub use health::{Failure, FailureKind};
pub use marker::MarkerError;
pub use membership::{Member, MembershipError, Role};
pub use node::{Metrics, OpenError, RaftStore};
pub use seed::{Seed, SeedError, Seeding};
pub use server::{PeerServer, peer_service};
pub use snapshot::free_bytes;
pub use store::{Consistency, Leadership, ListRequest, Listing, Store, StoreError, Watch, WatchSource};
pub use transport::{ConnectError, PEER_METADATA_FROM, PeerConnector, never_sent};
