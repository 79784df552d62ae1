//! What a node of the store is told at its start.

use std::path::PathBuf;
use std::time::Duration;

/// Log entries after which a snapshot is due, if nothing else is said: some seconds of the fastest writing.
pub const SNAPSHOT_AFTER: u64 = 20_000;
/// Log entries that are kept behind the snapshot, if nothing else is said.
pub const KEEP_LOG: u64 = 5_000;

/// One node's settings. All nodes of a cluster should have the same timings.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's id, never used by another node of the cluster, not even a removed one.
    pub node_id: u64,
    /// The cluster's name or id: nodes of another cluster are refused, and so is a data directory of another.
    pub cluster_id: String,
    /// Where everything is kept; created if absent.
    pub data_dir: PathBuf,
    /// Where the other nodes reach this one, as the [`PeerConnector`](crate::PeerConnector) understands it.
    pub address: String,
    pub timings: Timings,
    /// Applied log entries after which a snapshot is due. A large catalog waits longer: see `snapshot.rs`.
    pub snapshot_after: u64,
    /// Log entries that are kept behind the snapshot, for followers that were away shortly.
    pub keep_log: u64,
    /// How many revisions of history are kept at least.
    pub history: u64,
}

impl Config {
    /// The defaults for a node.
    #[must_use]
    pub fn new(
        node_id: u64,
        cluster_id: impl Into<String>,
        data_dir: impl Into<PathBuf>,
        address: impl Into<String>,
    ) -> Self {
        Self {
            node_id,
            cluster_id: cluster_id.into(),
            data_dir: data_dir.into(),
            address: address.into(),
            timings: Timings::default(),
            snapshot_after: SNAPSHOT_AFTER,
            keep_log: KEEP_LOG,
            history: 100_000,
        }
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Timings {
    /// How often the leader shows that it lives.
    pub heartbeat: Duration,
    /// A follower that hears nothing for a random time between these two calls an election.
    pub election_min: Duration,
    pub election_max: Duration,
    /// How long a call waits for a leader, a quorum or the state machine before it gives up.
    pub request: Duration,
    /// How long one write to the disk may last before the node stops: longer than the worst of a busy disk, and
    /// with an election on top short enough for who waits for a leader.
    pub disk: Duration,
}

impl Default for Timings {
    /// A dead leader is replaced within about a second; a stall of half a second on a loaded machine is endured.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(900),
            request: Duration::from_secs(10),
            disk: Duration::from_secs(5),
        }
    }
}
