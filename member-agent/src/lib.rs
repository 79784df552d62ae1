//! The member agent: it holds one cluster's desired state and makes it so (④ ⑤ ⑦ on the path).
//!
//! ```text
//! hub ⇄ uplink → ledger → reconciler(gather → plan → apply → report) → ledger → uplink ⇄ hub
//!                                          └→ engine, transfer
//! ```
//! | module | what it does | task |
//! |---|---|---|
//! | [`join`] | turns a join token into an identity on disk | |
//! | [`identity`] | the identity's files | |
//! | [`connect`] | one TLS connection to one hub | |
//! | [`listener`] | where other agents reach this one | 1 for each connection |
//! | [`dial`] | connections to other agents |  |
//! | [`denied`] | whose certificates are not accepted any more | |
//! | [`nodes`] | the other machines of the cluster: their orders, their reports | 1 for each node |
//! | [`share`] | ranges of cached files asked of, and served to, the other nodes | |
//! | [`relay`] | sources served to, and read through, other agents | |
//! | [`uplink`] | keeps a session with some hub: desired state into the ledger, reports out of it | 1 |
//! | [`ledger`] | what was asked for and what came of it, on disk before anything else happens | |
//! | [`blocks`] | moves manifest blocks to and from the hub | |
//! | [`rates`] | what the transfers may take of links, as leases of the hub | |
//! | `memory` | divides the memory limit | |
//! | [`mounts`] | keeps the mount processes running, and answers them | 1 and one for each mount |
//! | [`reconciler`] | compares the ledger with what runs and starts, stops, cleans up | 1 and one for each work |
//! | [`platform`] | the machine: node name, cache tiers, room | |
//! | [`run`] | puts all of it together, for `up` and for `member run` | 1 (what the agent says of itself) |
//!
//! Invariants: nothing is acted on before it is in the ledger, nothing is reported that is not; the hub's absence stops
//! nothing that was already asked for; all state is in the data directory, so that several agents in one process do not
//! know of each other.
//! Deliberately absent: deciding what should be where (the hub).

pub mod blocks;
pub mod connect;
pub mod denied;
pub mod dial;
pub mod identity;
pub mod join;
pub mod ledger;
pub mod listener;
mod memory;
pub mod mounts;
pub mod nodes;
pub mod platform;
pub mod rates;
pub mod reconciler;
pub mod relay;
pub mod run;
pub mod share;
pub mod uplink;

pub use join::{JoinConfig, Joined, join};

pub use memory::MemoryLimit;
pub use run::{Agent, AgentConfig, RunningAgent, StartError};
pub use uplink::UplinkState;
