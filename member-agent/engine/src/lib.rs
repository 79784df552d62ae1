//! ⑤ Cache engines: they hold versions of datasets near those who read them.
//!
//! | module | what it holds |
//! |---|---|
//! | [`engine`] | the [`Engine`] trait, what it is asked for, its errors |
//! | [`nodecache`] | the native engine: content-addressed files in tiers of this machine |
//! | `contract` | what every engine must do, as a suite (feature `testing`) |
//!
//! Invariants: an engine does what it is told and decides nothing; what it calls complete was verified.
//! Deliberately absent: retries and schedules (the reconciler), mounts, talking to the hub.

#[cfg(feature = "testing")]
pub mod contract;
pub mod engine;
pub mod nodecache;

pub use engine::{
    CacheRequest, Contents, Engine, EngineError, Filling, Loaded, OpenFile, Through, WarmRequest, Warmed,
};
pub use nodecache::share::{FromPeer, Peers, SharedRange};
pub use nodecache::{InFlight, Marks, NodeCache, NodeCacheConfig, PART_BYTES, PIECE_BYTES, RANGE_BYTES, Tier};
