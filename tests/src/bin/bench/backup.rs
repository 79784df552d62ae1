//! The area `backup`: a first backup of a tree into an empty repository, on a disk and in a bucket, against restic.
//!
//! Ours is the agent's backup with its defaults: the source is listed before and after, every file's BLAKE3 digest is taken
//! beside restic's own hashes, and what is written is synced. Both make a repository of format 2, with compression.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Args;
use fluvial_backup::{Dataset, Meter, Repository, Save, Target, save};
use fluvial_model::manifest::RelativePath;
use fluvial_tests::minio::Minio;
use fluvial_tests::tree;
use fluvial_transfer::{BlockStore, SourceMount};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::Size;
use crate::copy_once::{self, location};
use crate::figures::{Case, Report, Unit};
use crate::measured::{self, Usage};

const AREA: &str = "backup";
const BUCKET: &str = "bench";
const PASSWORD: &str = "bench";
const MIB: usize = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// `file:///DIR` or `s3://BUCKET/PREFIX`.
    repository: String,
    /// A folder.
    source: PathBuf,
    /// Gets manifests and listings.
    state: PathBuf,
    /// Make the repository instead.
    #[arg(long)]
    create: bool,
}

/// One backup, or an empty repository.
pub(crate) async fn once(arguments: Arguments) -> Result<()> {
    let Arguments { repository, source, state, create } = arguments;
    let repository = Target { location: location(repository)?, password: PASSWORD.into() };
    if create {
        let handle = Handle::current();
        let make = move || Repository::create(&repository, &handle, CancellationToken::new());
        tokio::task::spawn_blocking(make).await??;
        return Ok(());
    }
    let blocks = BlockStore::open(state.join("blocks"))?;
    let location = location(format!("file://{}", source.display()))?;
    let job = Save {
        id: "bench".to_owned(),
        repository,
        dataset: Dataset { namespace: "bench".to_owned(), name: "tree".to_owned() },
        sources: vec![SourceMount { path: RelativePath::root(), location }],
        source_root: None,
        catalog: serde_json::Value::Null,
        host: "bench".to_owned(),
        scratch: state.join("scratch"),
    };
    let saved = save(job, &blocks, Arc::new(Meter::default()), CancellationToken::new()).await?;
    eprintln!("{}", serde_json::to_string(&saved.snapshot)?);
    Ok(())
}

/// Where a repository is.
#[derive(Debug, Clone, Copy)]
enum Place {
    Disk,
    S3,
}

struct Bench {
    minio: Minio,
    folder: TempDir,
    this: PathBuf,
    repositories: usize,
}

/// Measures the area.
pub(crate) async fn run(size: Size, report: &mut Report) -> Result<()> {
    // Model weights do not compress; logs and tables do.
    let (large, small, rounds) = match size {
        Size::Small => (2, 1000, 3),
        Size::Full => (16, 20_000, 5),
    };
    let folder = tempfile::Builder::new().prefix("bench-backup-").tempdir()?;
    let minio = Minio::start();
    minio.create_bucket(BUCKET);
    let this = std::env::current_exe().context("finding this program")?;
    let source = folder.path().join("source");
    let bytes = tokio::task::spawn_blocking(move || make(&source, large, small)).await??;
    let mut bench = Bench { minio, folder, this, repositories: 0 };
    let mut peaks = (Vec::new(), Vec::new());
    for (place, case) in [(Place::Disk, "disk"), (Place::S3, "s3")] {
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            eprintln!("{case}: round {round} of {rounds}");
            ours.push(bench.ours(place).await?);
            peer.push(bench.restic(place).await?);
        }
        let speed = |runs: &[Usage]| runs.iter().map(|run| bytes as f64 / MIB as f64 / run.seconds).collect::<Vec<_>>();
        let cpu = |runs: &[Usage]| {
            let gib = bytes as f64 / (1024 * MIB) as f64;
            runs.iter().map(|run| run.cpu_seconds / gib).collect::<Vec<_>>()
        };
        let version = "restic, its defaults: format 2, automatic compression";
        report.add(Case {
            area: AREA,
            case: case.to_owned(),
            unit: Unit::MibPerSecond,
            ours: &speed(&ours),
            peer: &speed(&peer),
            peer_name: "restic",
            bar: Some(2.0),
            note: format!("{version}; ours also takes BLAKE3 digests and lists the source again at the end"),
        })?;
        report.add(Case {
            area: AREA,
            case: format!("{case}-cpu"),
            unit: Unit::CpuSecondsPerGib,
            ours: &cpu(&ours),
            peer: &cpu(&peer),
            peer_name: "restic",
            bar: None,
            note: "user and system time of the process; the server's is not counted".to_owned(),
        })?;
        peaks.0.extend(ours);
        peaks.1.extend(peer);
    }
    let highest = |runs: &[Usage]| [runs.iter().map(|run| run.peak_mib).fold(0.0, f64::max)];
    report.add(Case {
        area: AREA,
        case: "rss".to_owned(),
        unit: Unit::Mib,
        ours: &highest(&peaks.0),
        peer: &highest(&peaks.1),
        peer_name: "restic",
        bar: None,
        note: "highest resident memory over all runs of this area".to_owned(),
    })
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A name that no repository had.
    fn next(&mut self) -> String {
        self.repositories += 1;
        format!("repository-{}", self.repositories)
    }

    async fn ours(&mut self, place: Place) -> Result<Usage> {
        let (name, state) = (self.next(), self.path("state"));
        let uri = match place {
            Place::Disk => format!("file://{}", self.path(&name).display()),
            Place::S3 => format!("s3://{BUCKET}/{name}"),
        };
        let command = |create: bool| {
            let mut command = Command::new(&self.this);
            command.arg("backup-once").arg(&uri).arg(self.path("source")).arg(&state);
            command.args(create.then_some("--create"));
            command.env(copy_once::ENDPOINT, &self.minio.endpoint).env(copy_once::REGION, Minio::REGION);
            command.env(copy_once::ACCESS_KEY, &self.minio.access_key);
            command.env(copy_once::SECRET_KEY, &self.minio.secret_key);
            command
        };
        measured::run(command(true), &self.path("ours.log")).await?;
        let usage = measured::run(command(false), &self.path("ours.log")).await?;
        std::fs::remove_dir_all(&state).context("removing the state folder")?;
        self.clean(&name, place).await?;
        Ok(usage)
    }

    async fn restic(&mut self, place: Place) -> Result<Usage> {
        let name = self.next();
        let uri = match place {
            Place::Disk => self.path(&name).display().to_string(),
            Place::S3 => format!("s3:{}/{BUCKET}/{name}", self.minio.endpoint),
        };
        let command = |arguments: &[&str]| {
            let mut command = Command::new("restic");
            command.args(["--no-cache", "--repo", &uri]).args(arguments).env("RESTIC_PASSWORD", PASSWORD);
            command.env("AWS_ACCESS_KEY_ID", &self.minio.access_key).env("AWS_DEFAULT_REGION", Minio::REGION);
            command.env("AWS_SECRET_ACCESS_KEY", &self.minio.secret_key);
            command
        };
        let source = self.path("source").display().to_string();
        let log = self.path("restic.log");
        measured::run(command(&["init", "--repository-version", "2"]), &log)
            .await
            .context("restic: run `tests/bed/install benches`")?;
        let usage = measured::run(command(&["backup", &source]), &log).await?;
        self.clean(&name, place).await?;
        Ok(usage)
    }

    /// Removes a repository, and lets the disk catch up: who comes next shall not wait for what another wrote.
    async fn clean(&self, name: &str, place: Place) -> Result<()> {
        let folder = match place {
            Place::Disk => self.path(name),
            Place::S3 => self.minio.dir().join(BUCKET).join(name),
        };
        std::fs::remove_dir_all(folder).with_context(|| format!("removing {name}"))?;
        tokio::task::spawn_blocking(nix::unistd::sync).await?;
        Ok(())
    }
}

/// Large files of noise, small ones of text; returns their bytes.
fn make(folder: &Path, large: usize, small: usize) -> Result<u64> {
    let mut total = 0;
    std::fs::create_dir_all(folder.join("large"))?;
    for number in 0..large {
        let data = tree::bytes(number as u64, 256 * MIB);
        std::fs::write(folder.join("large").join(format!("f{number}")), &data)?;
        total += data.len() as u64;
    }
    for number in 0..small {
        let parent = folder.join(format!("small/d{:03}", number / 100));
        std::fs::create_dir_all(&parent)?;
        let line = format!("{number} {}\n", number.wrapping_mul(7919));
        let data = line.repeat(200 + number % 3000);
        std::fs::write(parent.join(format!("f{number:05}")), &data)?;
        total += data.len() as u64;
    }
    Ok(total)
}
