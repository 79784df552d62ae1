//! What the demo shows: numbered steps with their times, on standard output.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::output;

pub(super) struct Show {
    steps: usize,
    current: usize,
    started: Instant,
    step: Instant,
}

impl Show {
    pub(super) fn new(steps: usize) -> Self {
        let now = Instant::now();
        Self { steps, current: 0, started: now, step: now }
    }

    /// The next step begins.
    pub(super) fn step(&mut self, what: &str) -> Result<()> {
        self.current += 1;
        self.step = Instant::now();
        output::print(&format!("[{}/{}] {what}", self.current, self.steps))
    }

    /// Something to know of the step.
    pub(super) fn note(&self, what: &str) -> Result<()> {
        what.lines().try_for_each(|line| output::print(&format!("      {line}")))
    }

    /// The step is done.
    pub(super) fn done(&self, result: &str) -> Result<()> {
        self.note(&format!("{result} ({:.1} s)", self.step.elapsed().as_secs_f64()))
    }

    pub(super) fn total(&self) -> Duration {
        self.started.elapsed()
    }
}
