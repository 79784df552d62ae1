//! `bench AREA`: Fluvial beside the programs that it is measured against, in one run, on one machine.
//!
//! One JSON line per case goes to standard output ([`figures::Line`]), progress and a table to standard error. Ours and
//! the peer take turns, on the same disk, with the same payload and as many clients; a figure is the median of the
//! rounds. `docs/benchmarks.md` says what is measured and what fair means.
//!
//! Invariants: a ratio above 1 always means that we are better; everything started here is ended and everything written
//! is removed when the run ends, by Ctrl-C too. Deliberately absent: verdicts. A bar is shown, never enforced: timing
//! decides no test.
#![allow(clippy::print_stdout, reason = "the lines are what this program is for")]

mod backup;
mod catalog;
mod copy_once;
mod crowds;
mod etcd;
mod figures;
mod fill;
mod fleet;
mod footprint;
mod hub;
mod hubs;
mod load;
mod measured;
mod mount;
mod mounted;
mod movers;
mod outage;
mod postgres;
mod programs;
mod rclone;
mod side;
mod transfer;
mod watchers;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};

use figures::Report;

#[derive(Debug, Parser)]
#[command(name = "bench", about = "Measures one area of Fluvial against its peers")]
struct Arguments {
    #[command(subcommand)]
    area: Area,
    /// How much is measured: `small` takes minutes.
    #[arg(long, env = "BENCH_SIZE", value_enum, default_value_t = Size::Small, global = true)]
    size: Size,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Size {
    Small,
    Full,
}

#[derive(Debug, Subcommand)]
enum Area {
    /// Three hubs against three etcd members: writes, linearizable reads, watches, a killed leader.
    Hub,
    /// Verified copies of trees between paths and S3 against rclone.
    Transfer,
    /// Datasets of S3 as directories, warm against the disk itself, cold against rclone mount, s3fs and JuiceFS.
    Mount,
    /// Backups of files to a disk and to S3 against restic.
    Backup,
    /// Thousands of members with one hub and with three: their memory, a change to all, all hubs killed, a tenth that flaps.
    Fleet(fleet::Arguments),
    /// A hub with a million datasets, against PostgreSQL with the same tables.
    Catalog(catalog::Arguments),
    /// Fills a hub's store, in a process of its own.
    #[command(hide = true)]
    Fill(fill::Arguments),
    /// A part of the members, in a process of its own.
    #[command(hide = true)]
    Members(crowds::Arguments),
    /// One backup, in a process of its own.
    #[command(hide = true)]
    BackupOnce(backup::Arguments),
    /// One copy, in a process of its own so that its memory and its time on the processors can be seen.
    #[command(hide = true)]
    CopyOnce(copy_once::Arguments),
}

fn main() -> Result<()> {
    // As the agent does.
    fluvial_mount::bound_heaps();
    tokio::runtime::Runtime::new().context("starting the runtime")?.block_on(run())
}

async fn run() -> Result<()> {
    let Arguments { area, size } = Arguments::parse();
    let mut report = Report::default();
    let area = async {
        match area {
            Area::Hub => hub::run(size, &mut report).await,
            Area::Transfer => transfer::run(size, &mut report).await,
            Area::Mount => mount::run(size, &mut report).await,
            Area::Backup => backup::run(size, &mut report).await,
            Area::Fleet(arguments) => fleet::run(size, arguments, &mut report).await,
            Area::Catalog(arguments) => catalog::run(size, arguments, &mut report).await,
            Area::Fill(arguments) => return fill::run(arguments).await,
            Area::Members(arguments) => return crowds::serve(arguments).await,
            Area::BackupOnce(arguments) => return backup::once(arguments).await,
            Area::CopyOnce(arguments) => return copy_once::run(arguments).await,
        }?;
        eprint!("{}", report.table());
        Ok(())
    };
    tokio::select! {
        // Dropping the area ends its processes and removes its files.
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        ended = Box::pin(area) => ended,
    }
}
