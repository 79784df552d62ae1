//! What a seed decides before anything runs: how many nodes, how they are set, which weather awaits them.

use fluvial_raft::Config;
use std::path::Path;
use std::time::Duration;

use crate::random::Random;

/// What can go wrong. Which of them do in a run is decided by its seed: a run without pauses finds what pauses hide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A node loses its power, and what it had not synced.
    PowerCut,
    /// All nodes lose their power within a few milliseconds.
    PowerCutOfAll,
    /// A process is killed; what it had written stays.
    Kill,
    /// The nodes are cut into two parts.
    Partition,
    /// Nothing goes from one node to another one, but everything back.
    OneWay,
    /// The leader is cut off, in one direction or both.
    LeaderCutOff,
    /// A process sleeps, and does not know it.
    Pause,
    /// A disk takes its time.
    SlowDisk,
    /// A disk refuses syncs, or is full.
    FailingDisk,
    /// Streams between two nodes break.
    Reset,
    /// Calls are late and overtake each other, or are lost, or their answers are.
    UnkindCalls,
    /// A node joins, or leaves.
    Membership,
    /// A snapshot is made now.
    Snapshot,
}

impl Fault {
    pub const ALL: [Self; 13] = [
        Self::PowerCut,
        Self::PowerCutOfAll,
        Self::Kill,
        Self::Partition,
        Self::OneWay,
        Self::LeaderCutOff,
        Self::Pause,
        Self::SlowDisk,
        Self::FailingDisk,
        Self::Reset,
        Self::UnkindCalls,
        Self::Membership,
        Self::Snapshot,
    ];
}

/// One run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub nodes: u64,
    pub clients: usize,
    pub watchers: usize,
    /// How long faults last, in virtual milliseconds.
    pub ticks: u64,
    /// The mean time between two faults.
    pub pause: u64,
    pub faults: Vec<Fault>,
    /// The slowest that the network usually is, in milliseconds.
    pub slowest: u64,
    /// How fast the clocks of nodes run, in thousandths, by node id.
    pub clocks: [u64; 16],
    pub snapshot_after: u64,
    pub keep_log: u64,
    pub history: u64,
    pub request: Duration,
}

impl Plan {
    /// What this seed decides, for a run of about `seconds` virtual seconds.
    #[must_use]
    pub fn new(random: &mut Random, seconds: u64) -> Self {
        let mut faults: Vec<Fault> = Fault::ALL.into_iter().filter(|_| random.below(10) < 6).collect();
        // Without any of these a run would test nothing.
        if !faults.iter().any(|fault| *fault <= Fault::Pause) {
            faults.push(Fault::ALL[usize::try_from(random.below(7)).unwrap_or(0)]);
        }
        let clocks = std::array::from_fn(|_| 1000);
        let mut plan = Self {
            nodes: if random.below(3) == 0 { 5 } else { 3 },
            clients: usize::try_from(3 + random.below(4)).unwrap_or(3),
            watchers: 2,
            ticks: seconds * 1000 / 2 + random.below(seconds * 1000),
            pause: 300 + random.below(2000),
            faults,
            slowest: 1 + random.below(8),
            clocks,
            snapshot_after: 20 + random.below(200),
            keep_log: random.below(60),
            history: 50 + random.below(500),
            request: Duration::from_millis(1500 + random.below(2500)),
        };
        if random.below(2) == 0 {
            plan.clocks = std::array::from_fn(|_| 900 + random.below(200));
        }
        plan
    }

    /// The settings of one node.
    #[must_use]
    pub fn config(&self, node: u64, dir: &Path) -> Config {
        let mut config = Config::new(node, "simulated", dir, format!("node-{node}"));
        config.snapshot_after = self.snapshot_after;
        config.keep_log = self.keep_log;
        config.history = self.history;
        config.timings.request = self.request;
        config
    }
}
