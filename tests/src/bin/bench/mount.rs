//! The area `mount`: a dataset of S3 as a directory. Warm, everything cached, against the same files on the disk itself;
//! cold, nothing cached, against the other ways to mount a bucket.
//!
//! Warm figures are fio's, on files in the page cache on both sides. Cold ones are read by this program, after the page
//! cache was dropped, through a mount that was never read before.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use fluvial_tests::minio::Minio;
use fluvial_tests::tree;

use crate::figures::{Case, Report, Unit, median};
use crate::mounted::{Kind, Server, World};
use crate::{Size, programs};

const AREA: &str = "mount";
const BUCKET: &str = "bench";
const JUICEFS_BUCKET: &str = "juicefs";
const MIB: f64 = (1 << 20) as f64;
const SMALL_BYTES: usize = 16 << 10;
/// Readers of the cases with four of them, and the files that they read.
const READERS: usize = 4;

/// How much is measured.
struct Plan {
    large_bytes: usize,
    small_files: usize,
    rounds: usize,
    fio_seconds: u32,
}

impl Plan {
    fn of(size: Size) -> Self {
        match size {
            Size::Small => Self { large_bytes: 512 << 20, small_files: 2000, rounds: 3, fio_seconds: 3 },
            Size::Full => Self { large_bytes: 2 << 30, small_files: 2000, rounds: 5, fio_seconds: 10 },
        }
    }
}

/// What one way to mount reached cold, round by round.
#[derive(Default)]
struct Cold {
    sequential: Vec<f64>,
    four: Vec<f64>,
    small: Vec<f64>,
}

/// Measures the area.
pub(crate) async fn run(size: Size, report: &mut Report) -> Result<()> {
    let plan = Plan::of(size);
    let folder = tempfile::Builder::new().prefix("bench-mount-").tempdir()?;
    let source = folder.path().join("source");
    make(&source, &plan)?;
    programs::peer("minio")?;
    let minio = Minio::start();
    minio.create_bucket(BUCKET);
    minio.create_bucket(JUICEFS_BUCKET);
    upload(&minio, &source)?;
    let server = Server::start(folder.path())?;
    let world = World { minio: &minio, server: &server, folder: folder.path(), bucket: BUCKET };
    world.fill_juicefs(&source, JUICEFS_BUCKET)?;

    let kinds = [&[Kind::Fluvial][..], &Kind::PEERS].concat();
    let mut cold: Vec<(Kind, Cold)> = kinds.into_iter().map(|kind| (kind, Cold::default())).collect();
    for round in 0..plan.rounds {
        for (kind, reached) in &mut cold {
            eprintln!("{} cold, round {}", kind.name(), round + 1);
            let mounted = world.mount(*kind, round)?;
            read_cold(&mounted.directory, &plan, reached)?;
            world.unmount(*kind, mounted)?;
        }
    }
    cold_lines(report, &cold)?;

    let mounted = world.mount(Kind::Fluvial, plan.rounds)?;
    // All of it, so that every file is complete.
    let difference = tree::difference(&source, &mounted.directory);
    ensure!(difference.is_empty(), "the mount is not the source: {difference}");
    let peak = server.mount_peak_mib()?;
    warm(report, &plan, &mounted.directory, &source)?;
    report.add(Case {
        area: AREA,
        case: "rss".into(),
        unit: Unit::Mib,
        ours: &[peak],
        peer: &[100.0],
        peer_name: "the design's limit",
        bar: Some(1.0),
        note: "highest resident memory of the mount process after everything was read through it".into(),
    })?;
    world.unmount(Kind::Fluvial, mounted)
}

fn make(source: &Path, plan: &Plan) -> Result<()> {
    eprintln!("making the files");
    fs::create_dir_all(source.join("small"))?;
    fs::write(source.join("large"), tree::bytes(1, plan.large_bytes))?;
    for number in 0..READERS {
        let name = format!("part-{number}");
        fs::write(source.join(name), tree::bytes(2 + number as u64, plan.large_bytes / READERS))?;
    }
    for number in 0..plan.small_files {
        fs::write(source.join(format!("small/{number:05}")), tree::bytes(100 + number as u64, SMALL_BYTES))?;
    }
    Ok(())
}

fn upload(minio: &Minio, source: &Path) -> Result<()> {
    for name in ["large".to_owned()].into_iter().chain((0..READERS).map(|number| format!("part-{number}"))) {
        minio.put_object(BUCKET, &name, &fs::read(source.join(&name))?);
    }
    for entry in fs::read_dir(source.join("small"))? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("a name of ours is UTF-8")?;
        minio.put_object(BUCKET, &format!("small/{name}"), &fs::read(entry.path())?);
    }
    Ok(())
}

/// Forgets what was read, on every side.
fn drop_page_cache() -> Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the page cache needs root")
}

/// Reads a file to its end and returns its bytes.
fn read_through(path: &Path) -> Result<u64> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(bytes),
            read => bytes += read as u64,
        }
    }
}

fn read_cold(directory: &Path, plan: &Plan, reached: &mut Cold) -> Result<()> {
    drop_page_cache()?;
    let started = Instant::now();
    let bytes = read_through(&directory.join("large"))?;
    ensure!(bytes == plan.large_bytes as u64, "{bytes} bytes of the large file");
    reached.sequential.push(bytes as f64 / MIB / started.elapsed().as_secs_f64());

    drop_page_cache()?;
    let started = Instant::now();
    let readers: Vec<_> = (0..READERS)
        .map(|number| directory.join(format!("part-{number}")))
        .map(|path| std::thread::spawn(move || read_through(&path)))
        .collect();
    let mut bytes = 0;
    for reader in readers {
        bytes += reader.join().map_err(|_| anyhow::anyhow!("a reader broke down"))??;
    }
    reached.four.push(bytes as f64 / MIB / started.elapsed().as_secs_f64());

    drop_page_cache()?;
    reached.small.push(small(directory, plan)?);
    Ok(())
}

/// Reads every small file, one after the other; files per second.
fn small(directory: &Path, plan: &Plan) -> Result<f64> {
    let paths: Vec<PathBuf> =
        (0..plan.small_files).map(|number| directory.join(format!("small/{number:05}"))).collect();
    let started = Instant::now();
    for path in &paths {
        ensure!(read_through(path)? == SMALL_BYTES as u64, "{} is not as long as it should be", path.display());
    }
    Ok(paths.len() as f64 / started.elapsed().as_secs_f64())
}

fn cold_lines(report: &mut Report, cold: &[(Kind, Cold)]) -> Result<()> {
    type Of = fn(&Cold) -> &Vec<f64>;
    let cases: [(&str, Unit, f64, Of); 3] = [
        ("cold-seq", Unit::MibPerSecond, 1.0, |cold| &cold.sequential),
        ("cold-4t", Unit::MibPerSecond, 1.0, |cold| &cold.four),
        ("small-first", Unit::FilesPerSecond, 4.0, |cold| &cold.small),
    ];
    let (ours, peers) = cold.split_first().context("ours is measured first")?;
    for (case, unit, bar, of) in cases {
        let (best, reached) = peers
            .iter()
            .max_by(|one, other| median(of(&one.1)).total_cmp(&median(of(&other.1))))
            .context("there are peers")?;
        let others: Vec<String> =
            peers.iter().map(|(kind, cold)| format!("{} {:.0}", kind.name(), median(of(cold)))).collect();
        report.add(Case {
            area: AREA,
            case: case.into(),
            unit,
            ours: of(&ours.1),
            peer: of(reached),
            peer_name: best.name(),
            bar: Some(bar),
            note: format!("nothing cached anywhere; the best of {}", others.join(", ")),
        })?;
    }
    Ok(())
}

/// Ours and the disk itself in turns.
fn warm(report: &mut Report, plan: &Plan, mount: &Path, source: &Path) -> Result<()> {
    let jobs: [(&str, &[&str]); 5] = [
        ("warm-seq", &["--rw=read", "--bs=1M", "--ioengine=sync"]),
        ("warm-4t", &["--rw=read", "--bs=1M", "--ioengine=sync", "--numjobs=4", "--thread"]),
        ("warm-rand4k", &["--rw=randread", "--bs=4k", "--ioengine=sync"]),
        ("warm-rand256k", &["--rw=randread", "--bs=256k", "--ioengine=sync"]),
        ("warm-mmap", &["--rw=read", "--bs=1M", "--ioengine=mmap"]),
    ];
    for (case, arguments) in jobs {
        eprintln!("{case}");
        let (mut ours, mut native) = (Vec::new(), Vec::new());
        for directory in [mount, source] {
            read_through(&directory.join("large"))?;
        }
        for _ in 0..plan.rounds {
            ours.push(fio(&mount.join("large"), arguments, plan.fio_seconds)?);
            native.push(fio(&source.join("large"), arguments, plan.fio_seconds)?);
        }
        report.add(Case {
            area: AREA,
            case: case.into(),
            unit: Unit::MibPerSecond,
            ours: &ours,
            peer: &native,
            peer_name: "the disk",
            bar: Some(0.95),
            note: format!("fio {}, in the page cache on both sides", arguments.join(" ")),
        })?;
    }
    let (mut ours, mut native) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        ours.push(small(mount, plan)?);
        native.push(small(source, plan)?);
    }
    report.add(Case {
        area: AREA,
        case: "small-cached".into(),
        unit: Unit::FilesPerSecond,
        ours: &ours,
        peer: &native,
        peer_name: "the disk",
        bar: Some(0.8),
        note: "opened, read and closed one after the other, in the page cache on both sides".into(),
    })
}

/// MiB/s of one fio job on one file that is in the page cache.
fn fio(file: &Path, arguments: &[&str], seconds: u32) -> Result<f64> {
    let output = Command::new("fio")
        .args(["--name=warm", "--readonly", "--invalidate=0", "--time_based", "--group_reporting", "--minimal"])
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--filename={}", file.display()))
        .args(arguments)
        .output()
        .context("starting fio: `tests/bed/install benches` installs it")?;
    ensure!(output.status.success(), "fio ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    // The seventh field of its terse output: KiB/s of all reads.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let kib: f64 = text.split(';').nth(6).and_then(|field| field.parse().ok()).context("reading fio's output")?;
    Ok(kib / 1024.0)
}
