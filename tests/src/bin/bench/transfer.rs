//! The area `transfer`: whole trees from a path to S3, from S3 to a path and from S3 to S3, against the
//! fastest of rclone, s5cmd and juicefs sync.
//!
//! Ours is the agent's copy with everything that belongs to it: every byte has a BLAKE3 digest, the store compares
//! checksums or is read back, the manifest's root must equal the source's, and progress is durable.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use fluvial_tests::minio::Minio;
use fluvial_tests::tree;
use tempfile::TempDir;
use tokio::process::Command;

use crate::figures::{Case, Report, Unit};
use crate::measured::{self, Usage};
use crate::movers::{End, Mover, Movers};
use crate::rclone::Setting;
use crate::{Size, copy_once, programs};

const AREA: &str = "transfer";
const BUCKET: &str = "bench";
const MIB: f64 = (1 << 20) as f64;
const OURS_VERIFIES: &str = "ours has S3 compare a CRC-64/NVME of what it sends, and reads paths back with BLAKE3";

/// Files of one kind.
#[derive(Debug, Clone, Copy)]
struct Shape {
    name: &'static str,
    files: usize,
    smallest: usize,
    largest: usize,
    unit: Unit,
}

/// A shape that was made.
#[derive(Debug)]
struct Tree {
    shape: Shape,
    bytes: u64,
}

/// How much is measured.
struct Plan {
    shapes: [Shape; 2],
    rounds: usize,
}

impl Plan {
    fn of(size: Size) -> Self {
        const KIB: usize = 1 << 10;
        const MIB: usize = 1 << 20;
        let (many, few, rounds) = match size {
            Size::Small => (1000, 2, 3),
            Size::Full => (20_000, 16, 5),
        };
        let small = ("small", many, 4 * KIB, 64 * KIB, Unit::FilesPerSecond);
        let large = ("large", few, 256 * MIB, 256 * MIB, Unit::MibPerSecond);
        let shapes =
            [small, large].map(|(name, files, smallest, largest, unit)| Shape { name, files, smallest, largest, unit });
        Self { shapes, rounds }
    }
}

/// The ends of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    PathToS3,
    S3ToPath,
    S3ToS3,
}

impl Route {
    const ALL: [Self; 3] = [Self::PathToS3, Self::S3ToPath, Self::S3ToS3];

    /// The name of a case. The one that the design has a bar for has the plain name.
    fn case(self, shape: &str) -> String {
        match self {
            Self::PathToS3 => format!("path-s3-{shape}"),
            Self::S3ToPath => format!("s3-path-{shape}"),
            Self::S3ToS3 => shape.to_owned(),
        }
    }
}

/// What each side reached, round by round.
#[derive(Debug, Default)]
struct Rounds {
    ours: Vec<Usage>,
    peer: Vec<Usage>,
    /// The peer's copy followed by its own check of every byte.
    checked: Vec<Usage>,
}

/// Servers, trees and programs.
struct Bench {
    minio: Minio,
    movers: Movers,
    this: PathBuf,
    folder: TempDir,
    /// Numbers targets, so that each copy has one of its own.
    copies: usize,
}

/// Measures the area.
pub(crate) async fn run(size: Size, report: &mut Report) -> Result<()> {
    let plan = Plan::of(size);
    programs::peer("minio")?;
    let folder = tempfile::Builder::new().prefix("bench-transfer-").tempdir()?;
    let minio = Minio::start();
    minio.create_bucket(BUCKET);
    let movers = Movers::new(&minio, BUCKET, folder.path())?;
    let this = std::env::current_exe().context("finding this program")?;
    let mut bench = Bench { minio, movers, this, folder, copies: 0 };

    let mut peaks = Rounds::default();
    for shape in plan.shapes {
        let tree = bench.make(shape).await?;
        for route in Route::ALL {
            let (rounds, mover) = bench.measure(&tree, route, plan.rounds).await?;
            add_lines(report, &tree, route, &rounds, mover)?;
            peaks.ours.extend(rounds.ours);
            peaks.peer.extend(rounds.peer);
        }
    }
    let highest = |runs: &[Usage]| [runs.iter().map(|run| run.peak_mib).fold(0.0, f64::max)];
    report.add(Case {
        area: AREA,
        case: "rss".into(),
        unit: Unit::Mib,
        ours: &highest(&peaks.ours),
        peer: &highest(&peaks.peer),
        peer_name: "the peer of each case",
        bar: None,
        note: "highest resident memory of the copying process over all runs of this area".into(),
    })
}

fn add_lines(report: &mut Report, tree: &Tree, route: Route, rounds: &Rounds, mover: Mover) -> Result<()> {
    let Shape { name, files, unit, .. } = tree.shape;
    let amount = if unit == Unit::FilesPerSecond { files as f64 } else { tree.bytes as f64 / MIB };
    let speed = |runs: &[Usage]| runs.iter().map(|run| amount / run.seconds).collect::<Vec<_>>();
    let ours = speed(&rounds.ours);
    let both_ends = route == Route::S3ToS3;
    let mut add = |case, unit, ours: &[f64], peer: &[f64], peer_name, bar, note| {
        report.add(Case { area: AREA, case, unit, ours, peer, peer_name, bar, note })
    };
    let note = format!("{OURS_VERIFIES}; {}", mover.note());
    let bar = both_ends.then_some(1.5);
    add(route.case(name), unit, &ours, &speed(&rounds.peer), mover.name(), bar, note)?;
    if !both_ends {
        return Ok(());
    }
    let note = "both have read every byte at the target when they end: the peer is rclone copy --checksum, then rclone \
                check --download";
    add(format!("{name}-checked"), unit, &ours, &speed(&rounds.checked), "rclone copy + check", None, note.to_owned())?;
    let cpu = |runs: &[Usage]| {
        runs.iter().map(|run| run.cpu_seconds / (tree.bytes as f64 / MIB / 1024.0)).collect::<Vec<_>>()
    };
    let note = "user and system time of the copying process; the server's is not counted".to_owned();
    let unit = Unit::CpuSecondsPerGib;
    add(format!("{name}-cpu"), unit, &cpu(&rounds.ours), &cpu(&rounds.peer), mover.name(), Some(1.0), note)
}

impl Bench {
    /// Makes a tree on disk and in the bucket.
    async fn make(&self, shape: Shape) -> Result<Tree> {
        let Shape { name, files, smallest, largest, .. } = shape;
        eprintln!("{name}: making {files} files");
        let folder = self.path(name);
        let bytes = tokio::task::spawn_blocking(move || make(&folder, files, smallest, largest)).await??;
        // By the peer, so that both read objects that the other's tool could have written.
        let setting = Setting::Checksum;
        self.movers
            .rclone
            .copy(setting, &self.path(name).display().to_string(), &format!("one:{BUCKET}/{name}"))
            .await?;
        Ok(Tree { shape, bytes })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Ours and the peer in turns. The first round tries all of them; the fastest goes on.
    async fn measure(&mut self, tree: &Tree, route: Route, rounds: usize) -> Result<(Rounds, Mover)> {
        let name = tree.shape.name;
        let case = route.case(name);
        let mut measured = Rounds::default();
        eprintln!("{case}: round 1 of {rounds}");
        measured.ours.push(self.ours(name, route).await?);
        let mut tried = Vec::new();
        let (from, to) = self.ends(name, "", route);
        for mover in Mover::all(&from, &to) {
            tried.push((self.theirs(name, route, mover, false).await?, mover));
        }
        tried.sort_by(|(one, _), (other, _)| one.seconds.total_cmp(&other.seconds));
        let (first, mover) = tried[0];
        measured.peer.push(first);
        for round in 2..=rounds {
            eprintln!("{case}: round {round} of {rounds}");
            measured.ours.push(self.ours(name, route).await?);
            measured.peer.push(self.theirs(name, route, mover, false).await?);
        }
        if route == Route::S3ToS3 {
            for round in 1..=rounds {
                eprintln!("{case}-checked: round {round} of {rounds}");
                measured.checked.push(self.theirs(name, route, Mover::Rclone(Setting::Checksum), true).await?);
            }
        }
        Ok((measured, mover))
    }

    fn ends(&self, tree: &str, target: &str, route: Route) -> (End, End) {
        let (local, remote) = (|name: &str| End::Folder(self.path(name)), |name: &str| End::Prefix(name.to_owned()));
        match route {
            Route::PathToS3 => (local(tree), remote(target)),
            Route::S3ToPath => (remote(tree), local(target)),
            Route::S3ToS3 => (remote(tree), remote(target)),
        }
    }

    fn next_target(&mut self) -> String {
        self.copies += 1;
        format!("copy-{}", self.copies)
    }

    async fn ours(&mut self, tree: &str, route: Route) -> Result<Usage> {
        let target = self.next_target();
        let local = |name: &str| format!("file://{}", self.path(name).display());
        let remote = |name: &str| format!("s3://{BUCKET}/{name}");
        let (from, to) = match route {
            Route::PathToS3 => (local(tree), remote(&target)),
            Route::S3ToPath => (remote(tree), local(&target)),
            Route::S3ToS3 => (remote(tree), remote(&target)),
        };
        let state = self.path("state");
        let mut command = Command::new(&self.this);
        command.args(["copy-once", &from, &to]).arg(&state);
        command.env(copy_once::ENDPOINT, &self.minio.endpoint).env(copy_once::REGION, Minio::REGION);
        command.env(copy_once::ACCESS_KEY, &self.minio.access_key);
        command.env(copy_once::SECRET_KEY, &self.minio.secret_key);
        let usage = measured::run(command, &self.path("ours.log")).await?;
        fs::remove_dir_all(&state).context("removing the state folder")?;
        self.clean(&target, route).await?;
        Ok(usage)
    }

    async fn theirs(&mut self, tree: &str, route: Route, mover: Mover, check: bool) -> Result<Usage> {
        let target = self.next_target();
        let (from, to) = self.ends(tree, &target, route);
        let mut usage = self.movers.copy(mover, &from, &to).await?;
        if check {
            let (from, to) = (self.movers.remote("one", &from), self.movers.remote("two", &to));
            usage = usage.and_then(self.movers.rclone.check(&from, &to).await?);
        }
        self.clean(&target, route).await?;
        Ok(usage)
    }

    /// Removes a copy, and lets the disk catch up: who comes next shall not wait for what another wrote.
    async fn clean(&self, target: &str, route: Route) -> Result<()> {
        if route == Route::S3ToPath {
            fs::remove_dir_all(self.path(target)).with_context(|| format!("removing {target}"))?;
        } else {
            // Under the server, which keeps no list of its own: asking it to delete would keep it busy for longer than
            // it takes to copy.
            let folder = self.minio.dir().join(BUCKET).join(target);
            fs::remove_dir_all(folder).with_context(|| format!("removing {target}"))?;
        }
        tokio::task::spawn_blocking(nix::unistd::sync).await?;
        Ok(())
    }
}

/// Writes files of a size between two, a hundred to a folder; returns their bytes.
fn make(folder: &Path, files: usize, smallest: usize, largest: usize) -> Result<u64> {
    let mut total = 0;
    for number in 0..files {
        let parent = folder.join(format!("d{:03}", number / 100));
        fs::create_dir_all(&parent)?;
        let data = tree::bytes(number as u64, size_of_file(number, smallest, largest));
        fs::write(parent.join(format!("f{number:05}")), &data).context("writing a file to copy")?;
        total += data.len() as u64;
    }
    Ok(total)
}

/// Spread over the range in steps that do not follow the names' order.
fn size_of_file(number: usize, smallest: usize, largest: usize) -> usize {
    smallest + number.wrapping_mul(7919) % (largest - smallest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_as_large_as_asked_for() {
        let sizes: Vec<_> = (0..2000).map(|number| size_of_file(number, 4096, 65536)).collect();
        assert!(sizes.iter().all(|size| (4096..=65536).contains(size)));
        let mean = sizes.iter().sum::<usize>() / sizes.len();
        assert!((32_000..38_000).contains(&mean), "{mean}");
        assert_eq!(size_of_file(3, 10, 10), 10);
    }

    #[test]
    fn a_tree_has_the_bytes_that_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let total = make(folder.path(), 201, 1, 50).unwrap();
        let mut found = (0, 0);
        for directory in fs::read_dir(folder.path()).unwrap() {
            for file in fs::read_dir(directory.unwrap().path()).unwrap() {
                found = (found.0 + 1, found.1 + file.unwrap().metadata().unwrap().len());
            }
        }
        assert_eq!(found, (201, total));
    }
}
