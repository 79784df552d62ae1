//! The hub: knows every dataset, decides where it should be, and tells the agents.
//!
//! The path through this crate: ① [`api`] and [`admission`] take objects in, ② the store (`fluvial-raft`) keeps them
//! and [`catalog`] answers SQL, ③ [`planner`] decides, ④ [`sessions`] tells agents and ⑦ hears them, ⑧ [`planner`]
//! folds what was heard into status. [`audit`] makes the record of each call. [`run`] is the
//! only wiring.
//!
//! Deliberately absent: bytes of datasets (agents move those) and anything that only one hub could know: every replica
//! serves every call.

pub mod admission;
pub mod api;
pub mod audit;
pub mod blocks;
pub mod catalog;
pub mod clock;
pub mod enrol;
pub mod hooks;
pub mod liveness;
pub mod objects;
pub mod oidc;
pub mod peers;
pub mod planner;
pub mod quota;
pub mod recovery;
pub mod rights;
pub mod run;
pub mod server;
pub mod sessions;
pub mod snapshot;
pub mod vault;
pub mod views;
