//! What the tests of this crate stand on: a real MinIO, trees of every kind of entry, and their comparison.
#![allow(clippy::unwrap_used, clippy::panic, dead_code)]

pub mod azurite;
pub mod gcs;
pub mod hdfs;
pub mod oss;
pub mod proxy;
pub mod recorded;
pub mod sas;
pub mod web;

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fluvial_model::manifest::RelativePath;
use fluvial_transfer::{
    BlockStore, CopyContext, CopyJob, CopyReport, Journal, Location, Progress, SourceMount, TransferError, copy,
    discard, read_range, remove_tree, scan,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The bucket that every server has.
pub const BUCKET: &str = "bucket";

/// A MinIO server with one bucket, ended on drop.
pub struct Minio {
    child: Child,
    pub port: u16,
    pub data: tempfile::TempDir,
}

/// A program of the test bed, installed if it is missing.
pub fn bed(name: &str) -> PathBuf {
    let bed = std::env::var_os("FLUVIAL_BED")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/fluvial/bed"));
    let binary = bed.join("bin").join(name);
    if !binary.exists() {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "{} is missing; run `tests/bed/install {name}`",
            binary.display()
        );
        let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/bed/install");
        assert!(Command::new(install).arg(name).status().unwrap().success());
    }
    binary
}

impl Minio {
    pub fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir(data.path().join(BUCKET)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(bed("minio"))
            .args(["server", "--quiet", "--address", &format!("127.0.0.1:{port}")])
            .arg(data.path())
            .env("MINIO_ROOT_USER", "tester")
            .env("MINIO_ROOT_PASSWORD", "tester-secret")
            .env("MINIO_BROWSER", "off")
            .env("MINIO_UPDATE", "off")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, port, data };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !server.ready() {
            assert!(Instant::now() < deadline, "MinIO did not become ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Whether it answers requests of S3: that this one is not signed. Its own probe says yes while it still answers 503.
    fn ready(&self) -> bool {
        use std::io::{Read, Write};
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let request = format!("HEAD /{BUCKET} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut answer = String::new();
        stream.write_all(request.as_bytes()).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 403")
    }

    pub fn location(&self, prefix: &str) -> Location {
        self.location_at(self.port, prefix)
    }

    /// The same store at another port, where a proxy is.
    pub fn location_at(&self, port: u16, prefix: &str) -> Location {
        let mut location = Location::new(format!("s3://{BUCKET}/{prefix}"));
        location.options.insert("endpoint".into(), format!("http://127.0.0.1:{port}"));
        location.options.insert("region".into(), "us-east-1".into());
        location.secrets.insert("access_key_id".into(), "tester".into());
        location.secrets.insert("secret_access_key".into(), "tester-secret".into());
        location
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn local(path: &Path) -> Location {
    Location::new(format!("file://{}", path.display()))
}

pub fn at_root(location: Location) -> Vec<SourceMount> {
    vec![SourceMount { path: RelativePath::root(), location }]
}

/// Journal, blocks and a target's parent, in one temporary directory.
pub struct Bench {
    pub directory: tempfile::TempDir,
    journal: OnceLock<Journal>,
}

impl Bench {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), journal: OnceLock::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The journal: its file belongs to one at a time.
    pub fn journal(&self) -> Journal {
        self.journal.get_or_init(|| Journal::open(self.path("journal.sqlite")).unwrap()).clone()
    }

    pub fn blocks(&self) -> BlockStore {
        BlockStore::open(self.path("blocks")).unwrap()
    }

    pub fn context(&self) -> CopyContext {
        let (progress, _) = watch::channel(Progress::default());
        CopyContext::new(self.journal(), self.blocks(), progress, CancellationToken::new())
    }
}

/// A job with small parts, so that small trees exercise them.
pub fn job(id: &str, source: Location, target: Location) -> CopyJob {
    CopyJob { streams: 4, part_size: 1 << 20, ..CopyJob::new(id, at_root(source), target) }
}

/// Deterministic bytes.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

pub fn write(root: &Path, path: &str, data: &[u8], mode: u32, mtime_ns: u64) {
    let full = root.join(path);
    fs::create_dir_all(full.parent().unwrap()).unwrap();
    fs::write(&full, data).unwrap();
    fs::set_permissions(&full, fs::Permissions::from_mode(mode)).unwrap();
    let time: SystemTime = UNIX_EPOCH + Duration::from_nanos(mtime_ns);
    fs::File::options().read(true).open(&full).unwrap().set_modified(time).unwrap();
}

/// A tree with every kind of entry and of name.
pub fn make_tree(root: &Path) {
    fs::create_dir_all(root).unwrap();
    let time = 1_700_000_000_123_456_789;
    write(root, "plain.txt", b"hello", 0o644, time);
    write(root, "zero", b"", 0o600, time + 1);
    write(root, "bin/run", b"#!/bin/sh\n", 0o755, 1);
    write(root, "secret/key", b"k", 0o400, time + 2);
    write(root, "names/new\nline", b"1", 0o644, time);
    write(root, "names/ leading and trailing ", b"2", 0o644, time);
    write(root, "names/+%20&<>\"'#?", b"3", 0o644, time);
    write(root, "names/\u{fc}ml\u{e4}ut \u{1f600}", b"4", 0o644, time);
    write(root, "names/back\\slash", b"5", 0o644, time);
    write(root, "order-a", b"6", 0o644, time);
    write(root, "order/b", b"7", 0o644, time);
    write(root, "order.c", b"8", 0o644, time);
    write(root, "large/exact", &bytes(1, 2 << 20), 0o644, time);
    write(root, "large/odd", &bytes(2, (13 << 20) + 17), 0o640, time);
    for number in 0..40 {
        write(root, &format!("many/{number:03}"), &bytes(number, 1000 + number as usize), 0o644, time + number);
    }
    fs::create_dir_all(root.join("empty/below/it")).unwrap();
    symlink("../plain.txt", root.join("bin/link")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
}

/// Everything that must be equal in a copy.
pub fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let text = if metadata.is_dir() {
                open.push(path.clone());
                "directory".to_owned()
            } else if metadata.is_symlink() {
                format!("link to {}", fs::read_link(&path).unwrap().display())
            } else {
                let digest = blake3::hash(&fs::read(&path).unwrap());
                format!(
                    "{:o} {}.{:09} {} {digest}",
                    metadata.mode() & 0o7777,
                    metadata.mtime(),
                    metadata.mtime_nsec(),
                    metadata.len()
                )
            };
            found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
        }
    }
    found
}

/// Asserts that two trees are equal, naming what differs.
pub fn assert_same(expected: &Path, found: &Path) {
    let (expected, found) = (describe(expected), describe(found));
    assert_eq!(expected, found);
}

/// Drops the copy at thirty moments of up to `longest` milliseconds (from a fixed seed), then finishes it. Returns the
/// last report and how many runs were dropped.
pub async fn interrupted(bench: &Bench, job: &CopyJob, longest: u64) -> (CopyReport, usize) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut dropped = 0;
    for _ in 0..30 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pause = Duration::from_micros((random >> 33) % (longest * 1000));
        match tokio::time::timeout(pause, copy(job.clone(), bench.context())).await {
            Ok(report) => drop(report.unwrap()),
            Err(_) => dropped += 1,
        }
    }
    (copy(job.clone(), bench.context()).await.unwrap(), dropped)
}

/// The tree of every kind of entry, but for names that a store does not take.
pub fn make_tree_without(bench: &Bench, names: &[&str]) {
    make_tree(&bench.path("source"));
    for name in names {
        fs::remove_file(bench.path("source/names").join(name)).unwrap();
    }
}

/// Copies the folder `source` to `first`, from there to `second`, and back; looks at it, reads of it and removes it.
pub async fn there_across_and_back(bench: &Bench, first: Location, second: Location) {
    let source = bench.path("source");
    let there = copy(job("1", local(&source), first.clone()), bench.context()).await.unwrap();
    let mut across = job("2", first.clone(), second.clone());
    across.source_root = Some(there.root);
    let across = copy(across, bench.context()).await.unwrap();
    let back = copy(job("3", second.clone(), local(&bench.path("back"))), bench.context()).await.unwrap();
    assert_same(&source, &bench.path("back"));
    assert_eq!((there.root, there.totals), (across.root, across.totals));
    assert_eq!(there.root, back.root);
    assert_eq!(there.bytes_copied, there.totals.bytes);
    // Undigested scans of both ends are equal too.
    let other = Bench::new();
    let a = scan(&at_root(local(&source)), &other.blocks(), CancellationToken::new()).await.unwrap();
    let b = scan(&at_root(second.clone()), &other.blocks(), CancellationToken::new()).await.unwrap();
    assert_eq!((a.root, a.totals, a.digested), (b.root, b.totals, false));
    // A finished job answers again; a range can be read; the tree can be removed, and only it.
    assert_eq!(copy(job("3", second.clone(), local(&bench.path("back"))), bench.context()).await.unwrap(), back);
    let path = RelativePath::parse("large/odd").unwrap();
    let range = read_range(&at_root(first.clone()), &path, 5 << 20, 1000).await.unwrap();
    assert_eq!(range, bytes(2, (13 << 20) + 17)[5 << 20..][..1000]);
    remove_tree(&second).await.unwrap();
    let gone = scan(&at_root(second), &bench.blocks(), CancellationToken::new()).await;
    assert!(matches!(gone, Err(TransferError::NotFound { .. })), "{gone:?}");
    scan(&at_root(first.clone()), &bench.blocks(), CancellationToken::new()).await.unwrap();
    // What is there already is not written over.
    let refused = copy(job("4", local(&source), first), bench.context()).await;
    assert!(matches!(refused, Err(TransferError::TargetExists { .. })), "{refused:?}");
}

/// Copies the folder `source` to `target` with thirty drops of up to `longest` milliseconds, and back.
pub async fn dropped_and_back(bench: &Bench, target: Location, longest: u64) {
    let (report, dropped) = interrupted(bench, &job("1", local(&bench.path("source")), target.clone()), longest).await;
    assert!(dropped > 0, "no run was dropped");
    let back = copy(job("2", target.clone(), local(&bench.path("back"))), bench.context()).await.unwrap();
    assert_eq!(report.root, back.root);
    assert_same(&bench.path("source"), &bench.path("back"));
    discard("1", &target, &bench.journal()).await.unwrap();
}
