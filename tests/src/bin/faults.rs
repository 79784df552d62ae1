//! `faults [SEED…]`: all tests of hubs under faults, once for each seed, and what they figured out.
//!
//! Each test says how its fault was seen to take effect, and one JSON line with its figures goes to standard output; a table
//! follows on standard error. A test that fails, or that says nothing, is named, and the program ends with exit code 1: a
//! history that no judge could decide on, and a fault that did nothing, are failed tests.
//!
//! Invariant: what is in the table was said by a test of this run.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the lines are what this program is for")]

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde_json::Value;

/// The tests: everything in these files.
const TESTS: &str = "package(fluvial-tests) & binary(/^hub_(clocks|damage|disks|faults|members)$/)";

#[derive(Debug, Parser)]
#[command(name = "faults", about = "Runs all tests of hubs under faults and prints their figures")]
struct Arguments {
    /// What the tests draw from; one that no run had before, if none is given.
    seeds: Vec<u64>,
}

fn nextest(what: &str) -> Command {
    let mut command = Command::new("cargo");
    command.args(["nextest", what, "--workspace", "--locked", "-E", TESTS]);
    command
}

/// The names of the tests.
fn names() -> Result<BTreeSet<String>> {
    let output = nextest("list").args(["--message-format", "json"]).output().context("starting cargo nextest")?;
    ensure!(output.status.success(), "cargo nextest list: {}", String::from_utf8_lossy(&output.stderr));
    let list: Value = serde_json::from_slice(&output.stdout).context("reading the list of tests")?;
    let suites = list["rust-suites"].as_object().into_iter().flatten();
    let cases = suites.filter_map(|(_, suite)| suite["testcases"].as_object());
    let chosen = cases.flatten().filter(|(_, case)| case["filter-match"]["status"] == "matches");
    Ok(chosen.map(|(name, _)| name.clone()).collect())
}

fn run(seed: Option<u64>, names: &BTreeSet<String>) -> Result<(Vec<Value>, bool)> {
    let file = tempfile::NamedTempFile::new().context("making a file for the figures")?;
    let mut command = nextest("run");
    command.arg("--no-fail-fast").env("FLUVIAL_FIGURES", file.path());
    if let Some(seed) = seed {
        command.env("FLUVIAL_SEED", seed.to_string());
    }
    let passed = command.status().context("starting cargo nextest")?.success();
    let text = std::fs::read_to_string(file.path()).context("reading the figures")?;
    let lines: Vec<Value> =
        text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("reading a line")?;
    let told: BTreeSet<&str> = lines.iter().filter_map(|line| line["test"].as_str()).collect();
    let silent: Vec<&String> = names.iter().filter(|name| !told.contains(name.as_str())).collect();
    silent.iter().for_each(|name| eprintln!("no figures: {name}"));
    Ok((lines, passed && silent.is_empty()))
}

fn cell(line: &Value, field: &str) -> String {
    match &line[field] {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn table(lines: &[Value]) {
    let fields =
        ["writes", "reads", "unknown", "outages", "outage_median_ms", "outage_max_ms", "lost", "stale", "seed"];
    let header = ["writes", "reads", "unknown", "outages", "median ms", "max ms", "lost", "stale", "seed"];
    eprintln!("{} test", header.map(|name| format!("{name:>9}")).join(" "));
    for line in lines {
        eprintln!("{} {}", fields.map(|field| format!("{:>9}", cell(line, field))).join(" "), cell(line, "test"));
        eprintln!("{:>11}{}", "", cell(line, "proof"));
    }
}

fn main() -> Result<ExitCode> {
    let Arguments { seeds } = Arguments::parse();
    let names = names()?;
    ensure!(!names.is_empty(), "there are no tests of hubs under faults");
    let seeds: Vec<Option<u64>> = if seeds.is_empty() { vec![None] } else { seeds.into_iter().map(Some).collect() };
    let (mut all, mut good) = (Vec::new(), true);
    for seed in seeds {
        let (lines, passed) = run(seed, &names)?;
        all.extend(lines);
        good &= passed;
    }
    all.iter().for_each(|line| println!("{line}"));
    table(&all);
    let of = |field: &str| all.iter().filter_map(|line| line[field].as_u64()).sum::<u64>();
    eprintln!(
        "{} tests, {} writes acknowledged, {} lost; {} reads, {} stale; {} outcomes unknown",
        all.len(),
        of("writes"),
        of("lost"),
        of("reads"),
        of("stale"),
        of("unknown")
    );
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
