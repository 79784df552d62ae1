//! What the world and its clients share: which nodes can be asked, the time, the history of what was asked and answered.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fluvial_raft::RaftStore;
use tokio::runtime::Handle;

use crate::figures::Figures;
use crate::history::Operation;
use crate::random::Random;

/// Everything that happened, one line each, with the tick.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<(u64, String)>>);

impl Trace {
    pub fn at(&self, tick: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = tick;
    }

    pub fn say(&self, what: std::fmt::Arguments<'_>) {
        let (tick, text) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:>8.3} {what}", *tick as f64 / 1000.0);
    }

    #[must_use]
    pub fn take(&self) -> String {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).1)
    }
}

/// A node that can be asked.
#[derive(Clone)]
pub struct Seat {
    pub node: u64,
    pub runtime: Handle,
    pub store: RaftStore,
}

/// What one watcher was told between two breaks.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Watched for what is after this revision.
    pub from: u64,
    /// Complete up to here, as the watch says.
    pub upto: u64,
    /// Revision, key and value.
    pub told: Vec<(u64, String, u64)>,
}

/// What the clients know at the end.
#[derive(Debug, Default)]
pub struct Records {
    /// By register.
    pub operations: BTreeMap<String, Vec<Operation>>,
    pub watched: Vec<Watched>,
    /// Values of writes of which it was said that they certainly did not happen.
    pub refused: BTreeSet<u64>,
    /// The newest revision that each node has shown.
    pub shown: BTreeMap<u64, u64>,
    /// The first thing that must not be.
    pub violation: Option<String>,
}

/// Shared by all that run on the one thread.
pub struct Stage {
    pub seats: Mutex<BTreeMap<u64, Seat>>,
    pub records: Mutex<Records>,
    pub random: Mutex<Random>,
    pub trace: Trace,
    pub figures: Figures,
    pub stopping: AtomicBool,
    tick: AtomicU64,
    moment: AtomicU64,
    values: AtomicU64,
}

impl Stage {
    #[must_use]
    pub fn new(random: Random, trace: Trace, figures: Figures) -> Self {
        Self {
            seats: Mutex::default(),
            records: Mutex::default(),
            random: Mutex::new(random),
            trace,
            figures,
            stopping: AtomicBool::new(false),
            tick: AtomicU64::new(0),
            moment: AtomicU64::new(0),
            values: AtomicU64::new(0),
        }
    }

    pub fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn seats(&self) -> MutexGuard<'_, BTreeMap<u64, Seat>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn below(&self, limit: u64) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).below(limit)
    }

    pub fn set_tick(&self, tick: u64) {
        self.tick.store(tick, Ordering::Relaxed);
        self.trace.at(tick);
    }

    /// The time, growing with every look at it: on one thread the order of calls and answers is known exactly.
    pub fn moment(&self) -> Duration {
        let now = (self.tick.load(Ordering::Relaxed) * 1_000_000).max(self.moment.load(Ordering::Relaxed) + 1);
        self.moment.store(now, Ordering::Relaxed);
        Duration::from_nanos(now)
    }

    /// A value that no other write has.
    pub fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Any node that can be asked.
    pub fn seat(&self) -> Option<Seat> {
        let seats = self.seats();
        let skip = usize::try_from(self.below((seats.len() as u64).max(1))).unwrap_or(0);
        seats.values().nth(skip).cloned()
    }

    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Something happened that must not.
    pub fn violated(&self, what: String) {
        self.trace.say(format_args!("VIOLATED {what}"));
        self.records().violation.get_or_insert(what);
    }
}
