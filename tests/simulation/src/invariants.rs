//! What must hold at every step, whatever happens: looked at as the nodes do things, not afterwards.
//!
//! - an entry at a place of the log (who led, index) is one entry, and follows one entry (log matching);
//! - what Raft was told to be on disk, entries and votes, is there after any restart;
//! - what was applied at an index is what every replica applies there, with the same outcome, the same revision and,
//!   when the catalog is opened or installed, the same position (committed never changes; replicas agree);
//! - who leads has every entry that was committed before (leader completeness);
//! - a node applies one entry after the other; votes, revisions and what is applied never go back while it runs;
//! - cut ≤ snapshot ≤ applied ≤ committed.

use std::collections::BTreeMap;

use fluvial_raft::simulation::{At, Ballot, Probe, Seen};

/// What is known of an entry, whoever has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    before: Option<At>,
    digest: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    at: At,
    revision: u64,
    digest: u32,
    /// The highest vote of the node that applied it first: who committed it has no higher one.
    under: (u64, u64),
}

#[derive(Debug, Default)]
struct Log {
    entries: BTreeMap<u64, At>,
    purged: Option<At>,
    flushed: Option<At>,
    vote: Option<Ballot>,
    applied: Option<u64>,
    revision: u64,
    led: Option<(u64, u64)>,
    /// As Raft reported it last, since the start.
    reported: Option<Probe>,
}

/// The judge of each step.
#[derive(Debug, Default)]
pub struct Invariants {
    known: BTreeMap<At, Known>,
    outcomes: BTreeMap<u64, Outcome>,
    logs: BTreeMap<u64, Log>,
    pub elections: u64,
}

type Verdict = Result<(), String>;

impl Invariants {
    /// Node `node` did something.
    ///
    /// # Errors
    /// With the invariant that does not hold.
    pub fn seen(&mut self, node: u64, seen: &Seen) -> Verdict {
        let log = self.logs.entry(node).or_default();
        match seen {
            Seen::Opened { vote, purged, entries } => return self.opened(node, *vote, *purged, entries),
            Seen::CatalogOpened { applied, revision } | Seen::Installed { at: applied, revision } => {
                return self.positioned(node, *applied, *revision);
            }
            Seen::Appended { before, at, digest } => {
                let known = Known { before: *before, digest: *digest };
                log.entries.insert(at.index, *at);
                return self.same(node, *at, known);
            }
            // What was cut meanwhile may be gone.
            Seen::Flushed { at } if log.entries.get(&at.index) != Some(at) => {}
            Seen::Flushed { at } => log.flushed = Some(*at),
            Seen::Voted { vote } => {
                if log.vote.is_some_and(|last| last > *vote) {
                    return Err(format!("votes go back: node {node} voted {:?}, then {vote:?}", log.vote));
                }
                log.vote = Some(*vote);
            }
            Seen::Truncated { from } => {
                log.entries.split_off(from);
                if log.flushed.is_some_and(|flushed| flushed.index >= *from) {
                    log.flushed = log.entries.last_key_value().map(|(_, at)| *at).or(log.purged);
                }
            }
            Seen::Purged { upto } => {
                log.entries.retain(|index, _| *index > upto.index);
                log.purged = log.purged.max(Some(*upto));
            }
            Seen::Applied { at, revision, digest } => {
                if log.applied != at.index.checked_sub(1) {
                    return Err(format!("node {node} applied {at:?} after index {:?}", log.applied));
                }
                if *revision < log.revision {
                    return Err(format!("revisions go back: node {node}, {} to {revision}", log.revision));
                }
                (log.applied, log.revision) = (Some(at.index), *revision);
                let under = log.vote.map_or((at.term, at.node), |vote| (vote.term, vote.node));
                let outcome = Outcome { at: *at, revision: *revision, digest: *digest, under };
                let first = self.outcomes.entry(at.index).or_insert(outcome);
                if first.at != outcome.at {
                    return Err(format!("committed changes: node {node} applied {at:?}, another one {:?}", first.at));
                }
                if (first.revision, first.digest) != (outcome.revision, outcome.digest) {
                    return Err(format!("replicas differ: node {node} at {at:?}: {outcome:?}, another one {first:?}"));
                }
            }
            Seen::Built { .. } => {}
        }
        Ok(())
    }

    fn same(&mut self, node: u64, at: At, known: Known) -> Verdict {
        let first = *self.known.entry(at).or_insert(known);
        if first == known {
            return Ok(());
        }
        Err(format!("logs do not match: node {node} has at {at:?} {known:?}, another one {first:?}"))
    }

    fn opened(&mut self, node: u64, vote: Option<Ballot>, purged: Option<At>, entries: &[(At, u32)]) -> Verdict {
        let log = self.logs.entry(node).or_default();
        if log.vote > vote {
            return Err(format!("a vote was lost: node {node} had voted {:?} and knows {vote:?}", log.vote));
        }
        let last = entries.last().map(|(at, _)| *at).or(purged);
        if let Some(flushed) = log.flushed
            && purged.is_none_or(|purged| purged.index < flushed.index)
            && !entries.iter().any(|(at, _)| *at == flushed)
        {
            return Err(format!("a log entry was lost: node {node} had {flushed:?} on disk, now it ends at {last:?}"));
        }
        *log = Log { vote, purged, flushed: last, ..Log::default() };
        log.entries = entries.iter().map(|(at, _)| (at.index, *at)).collect();
        let mut before = purged;
        for (at, digest) in entries {
            // What stands before the first one is known only if the log was cut right there.
            let known = self.known.get(at).copied();
            let here = Known { before: before.or(known.and_then(|known| known.before)), digest: *digest };
            self.same(node, *at, here)?;
            before = Some(*at);
        }
        Ok(())
    }

    fn positioned(&mut self, node: u64, applied: Option<At>, revision: u64) -> Verdict {
        let log = self.logs.entry(node).or_default();
        (log.applied, log.revision) = (applied.map(|at| at.index), revision);
        let Some(at) = applied else { return Ok(()) };
        match self.outcomes.get(&at.index) {
            None => Err(format!("the catalog of node {node} is at {at:?}, which nobody applied")),
            Some(first) if first.at != at => Err(format!(
                "committed changes: the catalog of node {node} is at {at:?}, another one at {:?}",
                first.at
            )),
            Some(first) if first.revision != revision => Err(format!(
                "replicas differ: the catalog of node {node} is at {at:?} and revision {revision}, another one at {}",
                first.revision
            )),
            Some(_) => Ok(()),
        }
    }

    /// Raft reports of node `node`.
    ///
    /// # Errors
    /// With the invariant that does not hold.
    pub fn probed(&mut self, node: u64, probe: &Probe) -> Verdict {
        let log = self.logs.entry(node).or_default();
        let index = |at: Option<At>| at.map(|at| at.index);
        let order =
            [index(probe.purged), index(probe.snapshot), index(probe.applied), index(probe.committed), probe.last];
        if !order.is_sorted() {
            return Err(format!("cut ≤ snapshot ≤ applied ≤ committed ≤ last does not hold on node {node}: {order:?}"));
        }
        if let Some(before) = &log.reported
            && (before.vote > probe.vote || before.applied > probe.applied || before.committed > probe.committed)
        {
            return Err(format!("node {node} goes back: from {before:?} to {probe:?}"));
        }
        log.reported = Some(probe.clone());
        let vote = (probe.vote.term, probe.vote.node);
        if !probe.leads || log.led == Some(vote) {
            return Ok(());
        }
        log.led = Some(vote);
        self.elections += 1;
        let cut = log.purged.map_or(0, |purged| purged.index + 1);
        for (index, outcome) in self.outcomes.range(cut..) {
            if outcome.under < vote && log.entries.get(index) != Some(&outcome.at) {
                return Err(format!(
                    "who leads lacks what was committed: node {node} leads in {vote:?} and has at {index} {:?}, \
                     committed was {:?}",
                    log.entries.get(index),
                    outcome.at
                ));
            }
        }
        Ok(())
    }

    /// The node is off: what Raft reported of it counts no more.
    pub fn stopped(&mut self, node: u64) {
        if let Some(log) = self.logs.get_mut(&node) {
            log.reported = None;
        }
    }
}
