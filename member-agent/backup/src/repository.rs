//! One repository, opened: its snapshots, retention and check. Calls block.

use std::collections::BTreeMap;
use std::sync::Arc;

use fluvial_transfer::{Location, TransferError};
use jiff::Timestamp;
use rustic_core::repofile::SnapshotFile;
use rustic_core::{
    CheckOptions, ConfigOptions, Credentials, KeepOptions, KeyOptions, OpenStatus, PruneOptions, RepositoryBackends,
    RepositoryOptions, jiff as library_time,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::BackupError;
use crate::backend::Backend;
use crate::entry::{Dataset, Entry};
use crate::files::Files;
use crate::lock::Lock;
use crate::stop::Stop;
use crate::tree::Indexed;

/// The newest snapshots that are told of: what a status can hold.
const MOST_SNAPSHOTS: usize = 200;
/// Problems that a check names.
const MOST_PROBLEMS: usize = 20;
/// Packs of data begin at this size, as restic's, …
const PACK: u64 = 16 << 20;
/// … and end at this one, however large the repository becomes: each that is being written is in memory.
const LARGEST_PACK: u64 = 64 << 20;
/// zstd's level: what it saves beyond this one costs more time than the disk.
const COMPRESSION: i32 = 1;

/// Where a repository is and what opens it.
#[derive(Debug, Clone)]
pub struct Target {
    /// The directory or prefix that is the repository.
    pub location: Location,
    /// Its password.
    pub password: SecretString,
}

/// What is kept of each dataset's snapshots; nothing is forgotten if every rule is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// The newest ones.
    pub last: Option<u32>,
    /// One for each of so many hours that have any.
    pub hourly: Option<u32>,
    /// Days.
    pub daily: Option<u32>,
    /// Weeks.
    pub weekly: Option<u32>,
    /// Months.
    pub monthly: Option<u32>,
    /// Years.
    pub yearly: Option<u32>,
    /// All of the time before the newest.
    pub within: Option<jiff::SignedDuration>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// When it was begun.
    pub time: Timestamp,
    /// The dataset, if it was written here.
    pub dataset: Option<Dataset>,
    /// The manifest root of the dataset's version, if it was written here.
    pub root: Option<String>,
    /// The paths that it is of.
    pub paths: Vec<String>,
    /// The machine or federation that wrote it.
    pub host: String,
    /// Files in it, links included; 0 if it does not say.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that it added to the repository.
    pub added_bytes: u64,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// What is wrong; empty if nothing is.
    pub problems: Vec<String>,
}

/// An open repository.
pub struct Repository {
    pub(crate) inner: rustic_core::Repository<OpenStatus>,
    pub(crate) files: Arc<Files>,
    pub(crate) stop: Stop,
    backends: RepositoryBackends,
}

impl Repository {
    /// Makes a repository; one that is there already is left as it is, if the password opens it. True if it was made.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub fn create(target: &Target, handle: &Handle, cancel: CancellationToken) -> Result<bool, BackupError> {
        match Self::open(target, handle, cancel.clone()) {
            Ok(_) => return Ok(false),
            Err(BackupError::NoRepository { .. }) => {}
            Err(error) => return Err(error),
        }
        let (files, stop, backends) = backends(target, handle, cancel)?;
        let bare = rustic_core::Repository::new(&options(), &backends);
        let bare = bare.map_err(|error| BackupError::library("make", files.place(), &error))?;
        files.create()?;
        let mut config = ConfigOptions::default();
        config.set_version = Some(2);
        config.set_compression = Some(COMPRESSION);
        config.set_datapack_size = PACK.to_string().parse().ok();
        config.set_datapack_size_limit = LARGEST_PACK.to_string().parse().ok();
        // What is written is read back by `check` and compared on restore; doing it for every blob as well costs a third.
        config.set_extra_verify = Some(false);
        let mut key = KeyOptions::default();
        key.hostname = Some("fluvial".to_owned());
        key.with_created = true;
        let made = bare.init(&credentials(target), &key, &config);
        let made = made.map_err(|error| BackupError::library("make", files.place(), &error));
        stop.settle(made)?;
        Ok(true)
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// [`BackupError::NoRepository`], [`BackupError::WrongPassword`], [`BackupError::Version`], and what the place reports.
    pub fn open(target: &Target, handle: &Handle, cancel: CancellationToken) -> Result<Self, BackupError> {
        let (files, stop, backends) = backends(target, handle, cancel)?;
        let place = files.place().to_owned();
        if files.config_size()?.is_none() {
            return Err(BackupError::NoRepository { place });
        }
        let bare = rustic_core::Repository::new(&options(), &backends);
        let opened = bare
            .and_then(|bare| bare.open(&credentials(target)))
            .map_err(|error| BackupError::library("open", &place, &error));
        let inner = stop.settle(opened)?;
        let version = inner.config().version;
        if !(1..=2).contains(&version) {
            return Err(BackupError::Version { place, version });
        }
        Ok(Self { inner, files, stop, backends })
    }

    fn place(&self) -> &str {
        self.files.place()
    }

    fn told<T>(&self, op: &'static str, result: rustic_core::RusticResult<T>) -> Result<T, BackupError> {
        self.stop.settle(result.map_err(|error| BackupError::library(op, self.place(), &error)))
    }

    pub(crate) fn lock(&self, alone: bool) -> Result<Lock, BackupError> {
        Lock::take(self.files.clone(), &self.inner.key(), alone, self.stop.clone())
    }

    /// Does something while others may not delete, or, `alone`, may not even add.
    ///
    /// # Errors
    /// [`BackupError::Locked`].
    pub fn locked<T>(&self, alone: bool, work: impl FnOnce() -> T) -> Result<T, BackupError> {
        let lock = self.lock(alone)?;
        let done = work();
        drop(lock);
        Ok(done)
    }

    /// With the index, for reading contents.
    pub(crate) fn indexed(&self) -> Result<Arc<Indexed>, BackupError> {
        let again = rustic_core::Repository::new(&options(), &self.backends);
        let again = again.and_then(|bare| bare.open(&Credentials::Masterkey(self.inner.key())));
        self.told("read the index", again.and_then(|open| open.to_indexed())).map(Arc::new)
    }

    /// The newest snapshots, the newest first, and how many there are at all.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn snapshots(&self) -> Result<(Vec<Snapshot>, usize), BackupError> {
        let mut all = self.all()?;
        all.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.id.cmp(&b.id)));
        let count = all.len();
        all.truncate(MOST_SNAPSHOTS);
        let ours = all.iter().any(|snapshot| Dataset::of_tags(&snapshot.tags).is_some());
        let indexed = if ours { Some(self.indexed()?) } else { None };
        let tell = |snapshot: &SnapshotFile| {
            let mut told = tell(snapshot);
            if let (Some(indexed), Some(dataset)) = (&indexed, &told.dataset) {
                // One that cannot be read is shown without its root: `check` says what is wrong with it.
                if let Ok(Some(entry)) = entry(indexed, snapshot, dataset, self.place()) {
                    (told.files, told.bytes) = (entry.totals.files, entry.totals.bytes);
                    told.root = Some(entry.root);
                }
            }
            told
        };
        Ok((all.iter().map(tell).collect(), count))
    }

    pub(crate) fn all(&self) -> Result<Vec<SnapshotFile>, BackupError> {
        self.told("list snapshots", self.inner.get_all_snapshots())
    }

    /// The snapshot that is meant: the beginning of an id, or `latest`, which is the newest of the dataset, and the newest
    /// at all if none is of it.
    ///
    /// # Errors
    /// [`BackupError::NoSnapshot`], [`BackupError::Ambiguous`].
    pub(crate) fn find(&self, wanted: &str, dataset: &Dataset) -> Result<SnapshotFile, BackupError> {
        let (place, told) = (self.place().to_owned(), wanted.to_owned());
        let mut all = self.all()?;
        if wanted == "latest" {
            let own = |snapshot: &SnapshotFile| Dataset::of_tags(&snapshot.tags).as_ref() == Some(dataset);
            let has_own = all.iter().any(own);
            // Another dataset's snapshot is never what somebody means who names none.
            all.retain(|snapshot| if has_own { own(snapshot) } else { Dataset::of_tags(&snapshot.tags).is_none() });
            let wanted = format!("of {}/{}", dataset.namespace, dataset.name);
            return all.into_iter().max_by(|a, b| a.time.cmp(&b.time)).ok_or(BackupError::NoSnapshot { place, wanted });
        }
        all.retain(|snapshot| !wanted.is_empty() && snapshot.id.to_hex().as_str().starts_with(wanted));
        match all.len() {
            0 => Err(BackupError::NoSnapshot { place, wanted: told }),
            1 => Ok(all.remove(0)),
            _ => Err(BackupError::Ambiguous { place, wanted: told }),
        }
    }

    /// Forgets what retention does not keep, of each dataset for itself, and removes what no snapshot needs any more.
    /// Snapshots that were not written here stay. Returns how many were forgotten.
    ///
    /// # Errors
    /// [`BackupError::Locked`] when anybody else uses the repository.
    pub fn prune(&self, retention: &Retention) -> Result<usize, BackupError> {
        let _alone = self.lock(true)?;
        let mut forgotten = Vec::new();
        if let Some(keep) = keep(retention) {
            let mut datasets: BTreeMap<Dataset, Vec<SnapshotFile>> = BTreeMap::new();
            for snapshot in self.all()? {
                if let Some(dataset) = Dataset::of_tags(&snapshot.tags) {
                    datasets.entry(dataset).or_default().push(snapshot);
                }
            }
            let now = library_time::Zoned::now();
            for snapshots in datasets.into_values() {
                let judged = self.told("apply retention", keep.apply(snapshots, &now))?;
                forgotten.extend(judged.into_iter().filter(|judged| !judged.keep).map(|judged| judged.snapshot.id));
            }
            if !forgotten.is_empty() {
                self.told("forget snapshots", self.inner.delete_snapshots(&forgotten))?;
            }
        }
        // Nobody else is there: what is unused need not be kept for others first.
        let mut options = PruneOptions::default();
        options.instant_delete = true;
        let plan = self.told("plan pruning", self.inner.prune_plan(&options))?;
        self.told("prune", self.inner.prune(&options, plan))?;
        Ok(forgotten.len())
    }

    /// Checks that everything that snapshots refer to is there; with `read_data`, that it is what was written.
    ///
    /// # Errors
    /// When it cannot be checked; what is wrong with the repository is no error but the answer.
    pub fn check(&self, read_data: bool) -> Result<Checked, BackupError> {
        let _shared = self.lock(false)?;
        let mut options = CheckOptions::default();
        options.read_data = read_data;
        let results = match self.inner.check(options) {
            Ok(results) => results,
            Err(error) => {
                // A file that is damaged beyond being looked at; a place that is away is told by the place.
                let what = error.display_log();
                return self.stop.settle(Ok(Checked { problems: vec![what] }));
            }
        };
        let wrong = results.0.iter().filter(|(level, _)| format!("{level:?}") == "Error");
        let mut problems: Vec<String> = wrong.map(|(_, problem)| problem.to_string()).collect();
        match self.stop.take() {
            // What is missing is a finding, not a failure of the check.
            Some(BackupError::Transfer(TransferError::NotFound { path, .. })) => {
                problems.push(format!("{path} is missing"))
            }
            Some(error) => return Err(error),
            None => {}
        }
        let more = problems.len().saturating_sub(MOST_PROBLEMS);
        problems.truncate(MOST_PROBLEMS);
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        Ok(Checked { problems })
    }
}

fn backends(
    target: &Target,
    handle: &Handle,
    cancel: CancellationToken,
) -> Result<(Arc<Files>, Stop, RepositoryBackends), BackupError> {
    let files = Arc::new(Files::open(&target.location, handle.clone())?);
    let stop = Stop::new(cancel);
    let backend = Backend::new(files.clone(), stop.clone(), handle.clone());
    Ok((files, stop, RepositoryBackends::new(Arc::new(backend), None)))
}

fn options() -> RepositoryOptions {
    RepositoryOptions::default().no_cache(true)
}

fn credentials(target: &Target) -> Credentials {
    Credentials::password(target.password.expose_secret())
}

/// A snapshot as it is told of; its root is in its entry.
pub(crate) fn tell(snapshot: &SnapshotFile) -> Snapshot {
    let summary = snapshot.summary.clone().unwrap_or_default();
    let dataset = Dataset::of_tags(&snapshot.tags);
    // The entry and the digests are no files of the dataset.
    let own = if dataset.is_some() { 2 } else { 0 };
    Snapshot {
        id: snapshot.id.to_hex().as_str().to_owned(),
        time: Timestamp::from_nanosecond(snapshot.time.timestamp().as_nanosecond()).unwrap_or_default(),
        dataset,
        root: None,
        paths: snapshot.paths.iter().cloned().collect(),
        host: snapshot.hostname.clone(),
        files: summary.total_files_processed.saturating_sub(own),
        bytes: summary.total_bytes_processed,
        added_bytes: summary.data_added_packed,
    }
}

/// The entry of a snapshot, if it has one.
pub(crate) fn entry(
    indexed: &Indexed,
    snapshot: &SnapshotFile,
    dataset: &Dataset,
    place: &str,
) -> Result<Option<Entry>, BackupError> {
    let Ok(node) = indexed.node_from_path(snapshot.tree, &dataset.catalog().join("dataset.json")) else {
        return Ok(None);
    };
    let mut text = Vec::new();
    let read = indexed.dump(&node, &mut text);
    read.map_err(|error| BackupError::library("read the entry of a snapshot", place, &error))?;
    let what = |error: serde_json::Error| BackupError::Damaged {
        place: place.to_owned(),
        what: format!("the entry of snapshot {}: {error}", snapshot.id),
    };
    serde_json::from_slice(&text).map(Some).map_err(what)
}

/// The library's words for what is kept; `None` if nothing is to be forgotten.
fn keep(retention: &Retention) -> Option<KeepOptions> {
    if *retention == Retention::default() {
        return None;
    }
    let number = |n: Option<u32>| n.map(|n| i32::try_from(n).unwrap_or(i32::MAX));
    let mut keep = KeepOptions::default();
    keep.keep_last = number(retention.last);
    keep.keep_hourly = number(retention.hourly);
    keep.keep_daily = number(retention.daily);
    keep.keep_weekly = number(retention.weekly);
    keep.keep_monthly = number(retention.monthly);
    keep.keep_yearly = number(retention.yearly);
    keep.keep_within = retention.within.and_then(|within| library_time::Span::new().try_seconds(within.as_secs()).ok());
    Some(keep)
}
