//! `simulate [SEED]...`: the replicated store in a simulation that seeds decide ([`fluvial_simulation`]).
//!
//! Seeds that are given are run; with `--minutes`, fresh ones until then. A seed that fails is printed with what went
//! wrong and the end of what happened; `simulate SEED --trace` prints all of it, the same every time. `simulate bugs`
//! switches each known bug on and proves that it is found. Figures come at the end.
#![allow(clippy::print_stdout, reason = "the figures are what this program is for")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::{Args, Parser, Subcommand};
use fluvial_raft::simulation::Bug;
use fluvial_simulation::runner::{self, Report, Runner};
use fluvial_simulation::world::Options;

/// How much of a failed seed's story is shown.
const TAIL: usize = 60;

#[derive(Debug, Parser)]
#[command(name = "simulate", about = "Simulates the replicated store", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    seeds: Seeds,
}

#[derive(Debug, Args)]
struct Seeds {
    /// The seeds to run.
    seeds: Vec<u64>,
    /// Run fresh seeds for so long.
    #[arg(long)]
    minutes: Option<f64>,
    /// About how many virtual seconds faults last in each.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Switch this known bug on.
    #[arg(long, value_parser = runner::bug)]
    bug: Option<Bug>,
    /// Print everything that happened.
    #[arg(long)]
    trace: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Switch each known bug on, and prove that it is found.
    Bugs {
        /// How many seeds may be needed for one.
        #[arg(long, default_value_t = 60)]
        seeds: u64,
        #[arg(long, default_value_t = 30)]
        seconds: u64,
        /// Only these.
        #[arg(value_parser = runner::bug)]
        bugs: Vec<Bug>,
    },
    /// The process of one seed.
    #[command(hide = true)]
    One {
        seed: u64,
        #[arg(long)]
        seconds: u64,
        #[arg(long)]
        disk: PathBuf,
        #[arg(long, value_parser = runner::bug)]
        bug: Option<Bug>,
        #[arg(long)]
        trace: bool,
    },
}

fn main() -> ExitCode {
    let Arguments { command, seeds } = Arguments::parse();
    let runner = || Runner::new(&std::env::current_exe().expect("this program has a path"));
    let well = match command {
        Some(Command::One { seed, seconds, disk, bug, trace }) => {
            runner::serve(Options { seed, seconds, bug }, &disk, trace);
            true
        }
        Some(Command::Bugs { seeds, seconds, bugs }) => {
            let bugs = if bugs.is_empty() { Bug::ALL.to_vec() } else { bugs };
            let runner = runner();
            // All of them, even after one that is not found.
            bugs.into_iter().filter(|bug| !find(&runner, *bug, seeds, seconds)).count() == 0
        }
        None => simulate(&runner(), &seeds),
    };
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn simulate(runner: &Runner, arguments: &Seeds) -> bool {
    let options = |seed| Options { seed, seconds: arguments.seconds, bug: arguments.bug };
    let began = Instant::now();
    let end = arguments.minutes.map(|minutes| began + Duration::from_secs_f64(minutes * 60.0));
    let mut given = arguments.seeds.iter().copied();
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Seeds of two runs do not meet within a million of them a second.
    let mut fresh = clock * 1_000_000;
    if end.is_some() {
        println!("fresh seeds from {fresh}");
    }
    let next = move || {
        if let Some(seed) = given.next() {
            return Some(options(seed));
        }
        fresh += 1;
        end.filter(|end| Instant::now() < *end).map(|_| options(fresh))
    };
    let mut totals: BTreeMap<String, u64> = BTreeMap::new();
    let (mut seeds, mut failed) = (0_u64, Vec::new());
    runner.run_all(next, |options, report| {
        seeds += 1;
        for (name, number) in &report.figures {
            *totals.entry(name.clone()).or_default() += number;
        }
        if report.fault.is_some() {
            failed.push(options.seed);
            show(runner, options, &report);
        } else if arguments.trace {
            print!("{}", runner.run(options, true).trace);
        }
        true
    });
    let hours = totals.get("virtual milliseconds").copied().unwrap_or(0) as f64 / 3_600_000.0;
    println!("seeds {seeds}, failed {failed:?}, virtual hours {hours:.2}, seconds {}", began.elapsed().as_secs());
    for (name, number) in &totals {
        println!("  {name}: {number}");
    }
    if failed.is_empty() {
        println!("acknowledged writes lost: 0, stale reads: 0, gaps in watches: 0");
    }
    seeds > 0 && failed.is_empty()
}

fn show(runner: &Runner, options: Options, report: &Report) {
    println!("seed {}: {}", options.seed, report.fault.as_deref().unwrap_or("well"));
    let trace = runner.run(options, true).trace;
    let lines: Vec<&str> = trace.lines().collect();
    for line in &lines[lines.len().saturating_sub(TAIL)..] {
        println!("  {line}");
    }
    println!("again: just simulate {} --seconds {} --trace", options.seed, options.seconds);
}

/// Whether some seed finds the bug.
fn find(runner: &Runner, bug: Bug, most: u64, seconds: u64) -> bool {
    let began = Instant::now();
    let mut seeds = (1..=most).map(|seed| Options { seed, seconds, bug: Some(bug) });
    let (mut tried, mut found) = (0, None);
    runner.run_all(
        move || seeds.next(),
        |options, report| {
            tried += 1;
            if let Some(fault) = report.fault {
                found.get_or_insert((options.seed, fault));
            }
            found.is_none()
        },
    );
    let seconds = began.elapsed().as_secs();
    match &found {
        Some((seed, fault)) => println!("{bug:?}: found by seed {seed} ({tried} tried, {seconds} s): {fault}"),
        None => println!("{bug:?}: NOT FOUND in {tried} seeds, {seconds} s"),
    }
    found.is_some()
}
