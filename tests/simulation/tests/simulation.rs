//! The short form of the simulation: exact replay, some seeds, and the known bugs that they find at once. Fresh seeds and all
//! bugs are for `just simulate --minutes N` and `just simulate-bugs`: what a test finds must not depend on the day.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy.toml allows it inside test functions, not in their helpers"
)]

use std::collections::BTreeMap;
use std::path::Path;

use fluvial_raft::simulation::Bug;
use fluvial_simulation::runner::Runner;
use fluvial_simulation::world::Options;

const SECONDS: u64 = 20;

fn runner() -> Runner {
    Runner::new(Path::new(env!("CARGO_BIN_EXE_simulate")))
}

fn options(seed: u64) -> Options {
    Options { seed, seconds: SECONDS, bug: None }
}

#[test]
fn a_seed_replays_exactly() {
    let runner = runner();
    for seed in [3, 7] {
        let (first, second) = (runner.run(options(seed), true), runner.run(options(seed), true));
        assert_eq!(first.fault, None, "seed {seed}");
        assert!(first.trace.lines().count() > 1000, "seed {seed} has a story");
        if let Some((at, (one, other))) =
            first.trace.lines().zip(second.trace.lines()).enumerate().find(|(_, (one, other))| one != other)
        {
            panic!("seed {seed} differs from line {at} on:\n{one}\n{other}");
        }
        assert_eq!(first.trace.len(), second.trace.len(), "seed {seed}");
        assert_eq!(first.figures, second.figures, "seed {seed}");
    }
}

#[test]
fn some_seeds_keep_every_promise() {
    let mut seeds = 1..=8;
    let (mut done, mut failed, mut totals) = (0, Vec::new(), BTreeMap::<String, u64>::new());
    runner().run_all(
        || Some(options(seeds.next()?)),
        |options, report| {
            done += 1;
            for (name, number) in report.figures {
                *totals.entry(name).or_default() += number;
            }
            failed.extend(report.fault.map(|fault| format!("seed {}: {fault}", options.seed)));
            true
        },
    );
    println!("{done} seeds: {totals:#?}");
    assert_eq!(failed, Vec::<String>::new(), "again: just simulate SEED --seconds {SECONDS}");
    // Over all of them nearly every part of the weather had an effect; operations of a disk that fail are rarer.
    for effect in [
        "power cuts",
        "writes lost by power cuts",
        "kills",
        "messages stopped",
        "pauses",
        "slow disks",
        "streams broken",
        "calls late",
        "calls lost",
        "snapshots made",
        "snapshots installed",
        "nodes joined",
        "writes unknown",
    ] {
        assert!(totals.get(effect).is_some_and(|number| *number > 0), "{effect} never happened in {done} seeds");
    }
}

#[test]
fn known_bugs_are_found() {
    let runner = runner();
    let mut missed = Vec::new();
    for bug in [Bug::ReplyBeforeSync, Bug::VoteNotSynced] {
        let mut seeds = (1..=10).map(|seed| Options { seed, seconds: SECONDS, bug: Some(bug) });
        let (mut tried, mut found) = (0, None);
        runner.run_all(
            || seeds.next(),
            |options, report| {
                tried += 1;
                found = found.take().or(report.fault.map(|fault| (options.seed, fault)));
                found.is_none()
            },
        );
        println!("{bug:?}: {tried} tried, {found:?}");
        missed.extend(found.is_none().then_some(bug));
    }
    assert_eq!(missed, [], "bugs that no seed finds");
}
