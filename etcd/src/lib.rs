//! ② The hub's store over an etcd that is already there.
//!
//! etcd keeps the history: a write is one etcd transaction, a revision is etcd's, a lease says which hubs are up and who
//! of them leads. Each hub keeps a catalog that follows (`fluvial_raft::replica`), and reads, lists, watches and
//! answers SQL from it. Reading order: [`settings`] is what a hub is told; [`link`] reaches etcd, as whom, and says
//! what an error leaves certain; [`wire`] translates; [`follow`] keeps the catalog up; [`read`] makes reads
//! linearizable; [`presence`] is the lease; [`store`] puts them together.
//!
//! Invariants: a write that etcd may have made is never tried again and never called failed; a linearizable read waits
//! for what etcd had when it was asked; the catalog is applied in etcd's order, whole revisions at a time.
//!
//! Deliberately absent: forgetting etcd's history, which is also that of others who use it (`--auto-compaction-*`),
//! and etcd's own members, users and alarms.

mod follow;
mod link;
mod presence;
mod read;
pub mod settings;
pub mod store;
mod wire;

/// etcd's protocol, from `proto/etcd.proto`.
#[allow(missing_debug_implementations, unused_qualifications, clippy::all)]
mod pb {
    tonic::include_proto!("etcdserverpb");
}

pub use settings::{Settings, SettingsError};
pub use store::{Config, EtcdStore, OpenError};
