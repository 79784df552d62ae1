//! ② Snapshots: the catalog at one moment, as a file, so that the log can be cut and a new hub can catch up.
//!
//! A snapshot is a copy by SQLite's backup, made from one read transaction while writing goes on, synced, and named by
//! what it holds and its checksum: one rename makes it current. What is sent and what is installed is checked against
//! that checksum.
//!
//! Invariants: the log is cut only below a synced snapshot; at most one is kept.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use openraft::storage::RaftSnapshotBuilder;
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use crate::blocking::{blocking, known_bug, seen};
use crate::database;
use crate::health::Health;
use crate::machine::Position;
use crate::marker::sync_dir;
use crate::schema::{open_reader, read_state};
use crate::types::{LogId, Snapshot, SnapshotMeta, TypeConfig};

/// Bytes of catalog per log entry that must have passed since the last snapshot: copying a large catalog then costs no
/// more per entry than writing the entry did.
const BYTES_PER_ENTRY: u64 = 2048;
/// What must stay free on the disk beside a snapshot, for the log and the catalog: twice what the larger one of
/// their write-ahead logs grows to.
const SPARE_BYTES: u64 = 32 << 20;
/// Nobody else has a new snapshot open.
const BUSY: std::time::Duration = std::time::Duration::from_secs(1);
/// How much is copied at a time.
const CHUNK: usize = 256 << 10;

/// A snapshot's bytes, open for reading; the file may already have been replaced by a newer one.
#[derive(Debug)]
pub struct SnapshotFile {
    pub file: File,
    pub bytes: u64,
    pub crc32c: u32,
}

/// Copies `from` into `to` and checks that the bytes are the ones that were written.
pub fn copy_checked(from: &SnapshotFile, to: &mut File) -> io::Result<()> {
    let mut source = &from.file;
    source.rewind()?;
    let (bytes, crc32c) = copy(&mut source, Some(to))?;
    if (bytes, crc32c) != (from.bytes, from.crc32c) {
        return Err(io::Error::other("the snapshot file is damaged: its checksum does not fit"));
    }
    Ok(())
}

/// Copies all bytes, or reads them only, and says how many there are and what their checksum is.
pub fn copy(from: &mut impl io::Read, mut to: Option<&mut File>) -> io::Result<(u64, u32)> {
    let mut buffer = vec![0; CHUNK];
    let (mut bytes, mut crc32c) = (0, 0);
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, crc32c));
        }
        let chunk = &buffer[..read];
        crc32c = crc32c::crc32c_append(crc32c, chunk);
        bytes += read as u64;
        if let Some(to) = to.as_mut() {
            to.write_all(chunk)?;
        }
    }
}

/// What can be written on the disk of `dir`, if it says so.
pub fn free_bytes(dir: &Path) -> Option<u64> {
    let found = nix::sys::statvfs::statvfs(dir).ok()?;
    Some(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// A kept snapshot: its name says what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    entries: u64,
    crc32c: u32,
}

impl Kept {
    fn name(&self) -> String {
        format!("snapshot-{}-{:08x}.db", self.entries, self.crc32c)
    }

    fn parse(name: &str) -> Option<Self> {
        let (entries, crc32c) = name.strip_prefix("snapshot-")?.strip_suffix(".db")?.split_once('-')?;
        Some(Self { entries: entries.parse().ok()?, crc32c: u32::from_str_radix(crc32c, 16).ok()? })
    }
}

/// The snapshot directory of one node.
pub struct Snapshots {
    dir: PathBuf,
    after: u64,
    current: Mutex<Option<Kept>>,
    /// Someone asked for a snapshot now.
    forced: AtomicBool,
    /// It was said that there is no room.
    told: AtomicBool,
    /// Snapshots whose checksums do not fit their names.
    damaged: Vec<PathBuf>,
}

impl Snapshots {
    /// Finds the newest whole snapshot in `dir` and removes what a crash left behind.
    pub fn open(dir: &Path, after: u64) -> io::Result<Self> {
        let mut kept: Vec<(Kept, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("incoming-") {
                std::fs::remove_file(entry.path())?;
            } else if let Some(found) = Kept::parse(&name) {
                kept.push((found, entry.path()));
            }
        }
        kept.sort_by_key(|(found, _)| found.entries);
        let (mut current, mut damaged) = (None, Vec::new());
        for (found, path) in kept.into_iter().rev() {
            if current.is_some() {
                std::fs::remove_file(path)?;
            } else if copy(&mut File::open(&path)?, None)?.1 == found.crc32c {
                current = Some(found);
            } else {
                tracing::error!(path = %path.display(), "this snapshot is damaged: its checksum does not fit");
                damaged.push(path);
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            after,
            current: Mutex::new(current),
            forced: AtomicBool::new(false),
            told: AtomicBool::new(false),
            damaged,
        })
    }

    /// How many log entries the snapshot holds; none without one.
    pub fn entries(&self) -> u64 {
        self.lock().as_ref().map_or(0, |kept| kept.entries)
    }

    /// Removes damaged snapshots, once nothing needs them. Whether there were any.
    pub fn remove_damaged(&self) -> io::Result<bool> {
        for path in &self.damaged {
            std::fs::remove_file(path)?;
        }
        Ok(!self.damaged.is_empty())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the next request for a snapshot succeed whatever the policy says.
    pub fn force(&self) {
        self.forced.store(true, Ordering::Release);
    }

    /// Whether a catalog of `bytes`, applied up to `entries`, is worth a snapshot.
    pub fn due(&self, entries: u64, bytes: u64) -> bool {
        if self.forced.swap(false, Ordering::AcqRel) {
            return true;
        }
        let last = self.lock().as_ref().map_or(0, |kept| kept.entries);
        entries.saturating_sub(last) >= self.after.max(bytes / BYTES_PER_ENTRY)
    }

    /// Whether the disk has room for `bytes` more, and for what is written meanwhile. Without it the log is not cut, and
    /// goes on.
    pub fn has_room(&self, bytes: u64) -> bool {
        let Some(free) = free_bytes(&self.dir) else { return true };
        let enough = free >= bytes.saturating_add(SPARE_BYTES);
        if !enough && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(dir = %self.dir.display(), free, bytes, "there is no room for a snapshot: the log grows until there is");
        }
        if enough {
            self.told.store(false, Ordering::Relaxed);
        }
        enough
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Kept>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new file in the directory for bytes to come; it goes when dropped.
    pub fn incoming(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().prefix("incoming-").tempfile_in(&self.dir)
    }

    /// Keeps a copy of `snapshot`, which holds what `meta` says, as the current one.
    pub fn keep(&self, meta: &SnapshotMeta, snapshot: &SnapshotFile) -> io::Result<()> {
        let kept = Kept { entries: meta.last_log_id.map_or(0, |id| id.index + 1), crc32c: snapshot.crc32c };
        if self.lock().as_ref() == Some(&kept) {
            return Ok(());
        }
        let mut file = self.incoming()?;
        copy_checked(snapshot, file.as_file_mut())?;
        self.make_current(file, kept)
    }

    fn make_current(&self, file: tempfile::NamedTempFile, kept: Kept) -> io::Result<()> {
        if !known_bug!(SnapshotNotSynced) {
            file.as_file().sync_all()?;
        }
        let mut current = self.lock();
        if current.as_ref().is_some_and(|current| current.entries > kept.entries) {
            return Ok(());
        }
        file.persist(self.dir.join(kept.name())).map_err(|error| error.error)?;
        sync_dir(&self.dir)?;
        if let Some(old) = current.replace(kept.clone())
            && old != kept
        {
            std::fs::remove_file(self.dir.join(old.name()))?;
        }
        Ok(())
    }

    /// The current snapshot, opened.
    pub fn current(&self) -> io::Result<Option<Snapshot>> {
        // The lock keeps the file from being replaced between its name and its opening.
        let current = self.lock();
        let Some(kept) = current.as_ref() else { return Ok(None) };
        let path = self.dir.join(kept.name());
        let file = File::open(&path)?;
        let bytes = file.metadata()?.len();
        let meta = meta_of(&open_reader(&path).map_err(io::Error::other)?)?;
        Ok(Some(Snapshot { meta, snapshot: SnapshotFile { file, bytes, crc32c: kept.crc32c } }))
    }
}

fn meta_of(db: &Connection) -> io::Result<SnapshotMeta> {
    let at = Position::decode(read_state(db).map_err(io::Error::other)?).map_err(io::Error::other)?;
    let last_log_id: Option<LogId> = at.applied;
    Ok(SnapshotMeta { last_log_id, last_membership: at.membership })
}

/// Copies the catalog as it was when the builder was made.
pub struct SnapshotBuilder {
    /// A connection inside of a read transaction; Raft calls from one task at a time.
    source: Mutex<Option<rusqlite::Result<Connection>>>,
    snapshots: Arc<Snapshots>,
    health: Arc<Health>,
}

impl SnapshotBuilder {
    /// Pins the state of the catalog at `path`.
    pub fn new(path: &Path, snapshots: Arc<Snapshots>, health: Arc<Health>) -> Self {
        let source = (|| {
            let db = open_reader(path)?;
            db.execute_batch("BEGIN")?;
            read_state(&db)?;
            Ok(db)
        })();
        Self { source: Mutex::new(Some(source)), snapshots, health }
    }
}

/// Copies the state that `source` sees, which becomes the current snapshot.
pub fn build(source: &Connection, snapshots: &Snapshots) -> io::Result<Snapshot> {
    let meta = meta_of(source)?;
    let mut file = snapshots.incoming()?;
    {
        let mut copy = database::open(file.path(), BUSY).map_err(io::Error::other)?;
        copy.pragma_update(None, "synchronous", "OFF").map_err(io::Error::other)?;
        let step = Backup::new(source, &mut copy).and_then(|backup| backup.step(-1)).map_err(io::Error::other)?;
        if step != StepResult::Done {
            return Err(io::Error::other("the catalog could not be copied: it stayed locked"));
        }
        // A file without a write-ahead log can be opened for reading alone.
        copy.pragma_update(None, "journal_mode", "DELETE").map_err(io::Error::other)?;
    }
    file.rewind()?;
    let (bytes, crc32c) = copy(file.as_file_mut(), None)?;
    let kept = Kept { entries: meta.last_log_id.map_or(0, |id| id.index + 1), crc32c };
    let open = file.reopen()?;
    snapshots.make_current(file, kept)?;
    seen!(Built { at: meta.last_log_id.map(Into::into) });
    Ok(Snapshot { meta, snapshot: SnapshotFile { file: open, bytes, crc32c } })
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner).take();
        let source =
            source.ok_or_else(|| io::Error::other("the snapshot was already built"))?.map_err(io::Error::other)?;
        let snapshots = Arc::clone(&self.snapshots);
        let built = blocking(move || build(&source, &snapshots)).await.flatten();
        built.inspect_err(|error| self.health.fail_with("a snapshot cannot be made", error))
    }
}
