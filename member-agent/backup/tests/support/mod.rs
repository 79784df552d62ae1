//! Trees, repositories and `restic` for the tests of this crate.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, reason = "tests fail by panicking, and use what they need")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fluvial_backup::{BackupError, Dataset, Meter, Repository, Restore, Restored, Save, Saved, Target, restore, save};
use fluvial_model::manifest::RelativePath;
use fluvial_transfer::{BlockStore, CopyContext, Journal, Location, Progress, SourceMount};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub const PASSWORD: &str = "a password: with spaces";

/// A folder with a source tree, a repository and what an agent has.
pub struct Bench {
    pub folder: TempDir,
    pub location: Location,
    pub blocks: BlockStore,
    pub journal: Journal,
}

impl Bench {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::new(format!("file://{}", folder.path().join("repository").display()));
        let blocks = BlockStore::open(folder.path().join("blocks")).unwrap();
        let journal = Journal::open(folder.path().join("journal")).unwrap();
        fs::create_dir(folder.path().join("source")).unwrap();
        let bench = Self { folder, location, blocks, journal };
        assert!(bench.with_repository(|_| Ok(())).await.is_err(), "there is none yet");
        assert!(bench.create().await);
        bench
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    pub fn target(&self) -> Target {
        Target { location: self.location.clone(), password: PASSWORD.into() }
    }

    pub async fn create(&self) -> bool {
        let target = self.target();
        let handle = tokio::runtime::Handle::current();
        let create = move || Repository::create(&target, &handle, CancellationToken::new());
        tokio::task::spawn_blocking(create).await.unwrap().unwrap()
    }

    pub async fn with_repository<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Repository) -> Result<T, BackupError> + Send + 'static,
    ) -> Result<T, BackupError> {
        let target = self.target();
        let handle = tokio::runtime::Handle::current();
        let call = move || call(&Repository::open(&target, &handle, CancellationToken::new())?);
        tokio::task::spawn_blocking(call).await.unwrap()
    }

    pub fn job(&self, source: &Path) -> Save {
        let location = Location::new(format!("file://{}", source.display()));
        Save {
            id: format!("{:x}", rand::random::<u64>()),
            repository: self.target(),
            dataset: dataset("bert"),
            sources: vec![SourceMount { path: RelativePath::root(), location }],
            source_root: None,
            catalog: serde_json::json!({"kind": "Dataset", "spec": {"mounts": []}}),
            host: "test".to_owned(),
            scratch: self.path("scratch"),
        }
    }

    pub async fn save(&self, source: &Path) -> Result<Saved, BackupError> {
        save(self.job(source), &self.blocks, Arc::new(Meter::default()), CancellationToken::new()).await
    }

    pub fn restore_job(&self, id: &str, snapshot: &str, paths: &[&str]) -> Restore {
        Restore {
            id: id.to_owned(),
            repository: self.target(),
            snapshot: snapshot.to_owned(),
            dataset: dataset("bert"),
            paths: paths.iter().map(|path| RelativePath::parse(path).unwrap()).collect(),
            target: Location::new(format!("file://{}", self.path(id).display())),
            streams: 4,
            memory: None,
        }
    }

    pub async fn restore(&self, id: &str, snapshot: &str, paths: &[&str]) -> Result<Restored, BackupError> {
        let context = CopyContext::new(
            self.journal.clone(),
            self.blocks.clone(),
            watch::Sender::new(Progress::default()),
            CancellationToken::new(),
        );
        restore(self.restore_job(id, snapshot, paths), context).await
    }

    /// Runs restic on the repository; what it prints.
    pub fn restic(&self, arguments: &[&str]) -> Result<String, String> {
        restic(&self.path("repository"), PASSWORD, arguments)
    }

    /// Bytes of all files of the repository.
    pub fn repository_bytes(&self) -> u64 {
        files_below(&self.path("repository")).iter().map(|file| fs::metadata(file).unwrap().len()).sum()
    }
}

pub fn dataset(name: &str) -> Dataset {
    Dataset { namespace: "team".to_owned(), name: name.to_owned() }
}

pub fn restic(repository: &Path, password: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("restic")
        .args(["--no-cache", "--repo"])
        .arg(repository)
        .args(arguments)
        .env("RESTIC_PASSWORD", password)
        .output()
        .expect("restic: run tests/bed/install");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Bytes that no compressor makes smaller, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// A tree of everything that a dataset can hold.
pub fn make_tree(root: &Path) {
    let files: &[(&str, Vec<u8>, u32)] = &[
        ("plain.txt", b"hello".to_vec(), 0o644),
        ("empty", Vec::new(), 0o600),
        ("quote'\"and\nnewline", b"odd".to_vec(), 0o755),
        ("Grüße/日本語/ütf", noise(1, 70_000), 0o640),
        ("deep/a/b/c/d/large.bin", noise(2, 9 << 20), 0o444),
        ("deep/a.b/sorts", b"before a/".to_vec(), 0o644),
        ("deep/a-b", b"and before that".to_vec(), 0o4755),
        ("-rf", b"looks like an option".to_vec(), 0o644),
        ("back\\slash", b"b".to_vec(), 0o644),
    ];
    for (number, (path, bytes, mode)) in files.iter().enumerate() {
        let file = root.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, bytes).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode)).unwrap();
        let time = UNIX_EPOCH + Duration::new(1_600_000_000 + number as u64, 123_456_789);
        fs::File::open(&file).unwrap().set_modified(time).unwrap();
    }
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(32 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (32 << 20) - 3).unwrap();
    fs::create_dir_all(root.join("hollow/inside")).unwrap();
    symlink("plain.txt", root.join("link")).unwrap();
    symlink("../../plain.txt", root.join("deep/a/up")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
}

/// Everything that must survive of a tree.
pub fn describe(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let metadata = fs::symlink_metadata(&path).unwrap();
            lines.push(if metadata.is_dir() {
                open.push(path.clone());
                format!("{name:?} directory")
            } else if metadata.is_symlink() {
                format!("{name:?} -> {:?}", fs::read_link(&path).unwrap())
            } else {
                let digest = blake3::hash(&fs::read(&path).unwrap());
                let time = (metadata.mtime(), metadata.mtime_nsec());
                format!("{name:?} {:o} {time:?} {} {digest}", metadata.mode() & 0o7777, metadata.len())
            });
        }
    }
    lines.sort();
    lines
}
