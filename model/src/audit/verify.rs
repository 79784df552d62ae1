//! Whether a trail is whole.

use std::fmt;
use std::str::FromStr;

use super::{CHECKPOINT, GENESIS, Hash, Record};
use crate::manifest::Digest;

/// How far a trail is: number and hash of its last record. Its text is `SEQUENCE:HASH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub sequence: u64,
    pub hash: Hash,
}

impl Head {
    /// Before the first record.
    pub const START: Self = Self { sequence: 0, hash: GENESIS };
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, Digest::from_bytes(self.hash))
    }
}

impl FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{}\" is no head of a trail: expected SEQUENCE:HASH", crate::names::printable(text));
        let (sequence, hash) = text.trim().split_once(':').ok_or_else(wrong)?;
        let hash: Digest = hash.parse().map_err(|_| wrong())?;
        Ok(Self { sequence: sequence.parse().map_err(|_| wrong())?, hash: *hash.as_bytes() })
    }
}

/// What is wrong with a trail, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("record {found} follows record {last}: {} missing, or the order was changed", missing(*last, *found))]
    Gap { last: u64, found: u64 },
    #[error("record {sequence} was changed: its hash is not that of what it says")]
    Changed { sequence: u64 },
    #[error("record {sequence} does not follow the record before it: one of the two was changed, removed or put in")]
    Broken { sequence: u64 },
    #[error("the trail begins at record {first}, and no checkpoint says that the records before it were let go")]
    NoCheckpoint { first: u64 },
    #[error("the trail ends at record {last}, and record {head} was there: the end was cut off")]
    Cut { last: u64, head: u64 },
    #[error("record {head} is another than the one that was noted: the trail was written anew")]
    OtherHead { head: u64 },
    #[error("record {head} was let go, and records are kept from {first} on only: note a newer head")]
    HeadTooOld { head: u64, first: u64 },
}

fn missing(last: u64, found: u64) -> String {
    if found > last + 1 { format!("{} to {} are", last + 1, found - 1) } else { "some are".to_owned() }
}

/// Looks at a trail record by record, oldest first.
#[derive(Debug, Default)]
pub struct Verifier {
    /// What should be found, noted at another time.
    noted: Vec<Head>,
    /// The one that was let go last, until a checkpoint confirms it.
    before: Option<Head>,
    first: Option<u64>,
    last: Option<Head>,
}

impl Verifier {
    /// One that also looks for a head that was noted.
    #[must_use]
    pub fn new(noted: Option<Head>) -> Self {
        Self { noted: noted.into_iter().collect(), ..Self::default() }
    }

    /// The last record seen.
    #[must_use]
    pub fn last(&self) -> Head {
        self.last.unwrap_or(Head::START)
    }

    /// Looks at the next record.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn next(&mut self, record: &Record) -> Result<(), Fault> {
        let sequence = record.sequence;
        match self.last {
            Some(last) if sequence != last.sequence + 1 => {
                return Err(Fault::Gap { last: last.sequence, found: sequence });
            }
            Some(last) if record.previous != last.hash => return Err(Fault::Broken { sequence }),
            Some(_) => {}
            None if sequence <= 1 && record.previous != GENESIS => return Err(Fault::Broken { sequence }),
            None if sequence == 0 => return Err(Fault::Gap { last: 0, found: 0 }),
            None => {
                self.first = Some(sequence);
                self.before = (sequence > 1).then(|| Head { sequence: sequence - 1, hash: record.previous });
            }
        }
        if record.computed() != record.hash {
            return Err(Fault::Changed { sequence });
        }
        if record.entry.verb == CHECKPOINT
            && self.before.is_some_and(|before| Record::checkpoint(&before, record.entry.time) == record.entry_alone())
        {
            self.before = None;
        }
        let head = record.head();
        if self.noted.iter().any(|noted| noted.sequence == sequence && noted.hash != head.hash) {
            return Err(Fault::OtherHead { head: sequence });
        }
        self.last = Some(head);
        Ok(())
    }

    /// Judges the trail as a whole, after its last record.
    ///
    /// # Errors
    /// What only the end shows.
    pub fn end(&self) -> Result<Head, Fault> {
        let last = self.last();
        let first = self.first.unwrap_or(1);
        if self.before.is_some() {
            return Err(Fault::NoCheckpoint { first });
        }
        for noted in &self.noted {
            if noted.sequence > last.sequence {
                return Err(Fault::Cut { last: last.sequence, head: noted.sequence });
            }
            if noted.sequence + 1 < first {
                return Err(Fault::HeadTooOld { head: noted.sequence, first });
            }
        }
        Ok(last)
    }
}

impl Record {
    fn entry_alone(&self) -> super::Entry {
        super::Entry { count: 0, ..self.entry.clone() }
    }
}
