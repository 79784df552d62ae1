//! What the clients of one register saw, and whether a register could have answered so.
//!
//! Two judges that do not know of each other: [`linear`] searches for an order of the operations in which one register
//! gives these answers, and never looks at a revision; [`revisions`] takes the order that the hub itself claims, its
//! revisions, and holds it against the clock. [`watches`] compares what a watcher was told with what was acknowledged.
//!
//! Every value is written once in a run, so that a value says which write it is of.

pub mod linear;
pub mod revisions;
pub mod watches;

use std::fmt;
use std::time::Duration;

/// What a client asked of the register, and was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The value becomes this one, whatever it was.
    Write { value: u64 },
    /// The value becomes `value` if it is `expected`. `done`: whether it did, if that is known.
    Swap { expected: u64, value: u64, done: Option<bool> },
    /// The value was this one.
    Read { value: u64 },
}

/// One operation, from the call until the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    pub client: usize,
    pub kind: Kind,
    /// Since the beginning of the run.
    pub called: Duration,
    /// `None` if no answer came, or one that leaves it open whether the operation took effect: from its call on it may,
    /// at any time. A read without an answer is no operation.
    pub answered: Option<Duration>,
    /// The revision that the answer gave to the value, if it gave one.
    pub revision: Option<u64>,
}

impl Operation {
    /// The value that it gave the register, if it is known to have done so.
    pub fn wrote(&self) -> Option<u64> {
        match (self.kind, self.answered) {
            (Kind::Write { value } | Kind::Swap { value, done: Some(true), .. }, Some(_)) => Some(value),
            _ => None,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, kind, called, answered, revision } = self;
        write!(out, "client {client}, {called:?} to ")?;
        match answered {
            Some(answered) => write!(out, "{answered:?}")?,
            None => write!(out, "?")?,
        }
        match kind {
            Kind::Write { value } => write!(out, ": write {value}")?,
            Kind::Swap { expected, value, done } => write!(out, ": swap {expected} for {value}, done: {done:?}")?,
            Kind::Read { value } => write!(out, ": read {value}")?,
        }
        revision.map_or(Ok(()), |revision| write!(out, " at revision {revision}"))
    }
}

#[cfg(test)]
mod tests;
