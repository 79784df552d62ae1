//! What copies have done so far, on disk: a SQLite file in WAL mode, synced at every commit.
//!
//! A row is written only after what it tells of is durable at the target, so that a row never promises too much; what
//! is at the target without a row is written again. One file per agent; jobs are rows.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use blake3::hazmat::ChainingValue;
use fluvial_model::manifest::{Digest, Entry, RelativePath, Root};
use rusqlite::{Connection, OptionalExtension, params};

use crate::TransferError;
use crate::database::{Durability, open_own};
use crate::listing::{columns, entry_at, path_at};
use crate::place::Tag;

/// The journal of an agent. Clones share one connection; calls block the thread, shortly.
#[derive(Clone)]
pub struct Journal {
    file: PathBuf,
    connection: Arc<Mutex<Connection>>,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    Copying,
    /// Verified; the commit was started. With the report as JSON.
    Committing(String),
    /// Committed, with its report as JSON.
    Done(String),
}

/// A file, link or directory that is at the target, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DoneFile {
    pub(crate) path: RelativePath,
    /// With digest.
    pub(crate) entry: Entry,
    pub(crate) source_tag: Tag,
    pub(crate) target_tag: Tag,
}

/// A file in parts that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upload {
    pub(crate) path: RelativePath,
    pub(crate) upload: String,
    pub(crate) part_size: u64,
    pub(crate) source_tag: Tag,
}

/// A part that is at the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DonePart {
    pub(crate) path: RelativePath,
    pub(crate) number: u32,
    pub(crate) value: ChainingValue,
    pub(crate) receipt: String,
}

/// Something that is done.
#[derive(Debug)]
pub(crate) enum Done {
    File(DoneFile),
    Part(DonePart),
}

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS jobs (
  job TEXT PRIMARY KEY, target TEXT NOT NULL, source_root TEXT NOT NULL, stage TEXT NOT NULL, report TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
  job TEXT NOT NULL, key BLOB NOT NULL, path TEXT NOT NULL, kind INTEGER NOT NULL, size INTEGER NOT NULL,
  mtime INTEGER NOT NULL, mode INTEGER NOT NULL, target TEXT NOT NULL, digest BLOB NOT NULL,
  source_tag TEXT NOT NULL, target_tag TEXT NOT NULL, PRIMARY KEY (job, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads (
  job TEXT NOT NULL, key BLOB NOT NULL, path TEXT NOT NULL, upload TEXT NOT NULL, part_size INTEGER NOT NULL,
  source_tag TEXT NOT NULL, PRIMARY KEY (job, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (
  job TEXT NOT NULL, key BLOB NOT NULL, number INTEGER NOT NULL, value BLOB NOT NULL, receipt TEXT NOT NULL,
  PRIMARY KEY (job, key, number)
) WITHOUT ROWID;";

impl Journal {
    /// Opens the journal, making it when it does not exist.
    ///
    /// # Errors
    /// When the file cannot be opened or is not a journal.
    pub fn open(file: impl Into<PathBuf>) -> Result<Self, TransferError> {
        let file = file.into();
        let open = || {
            let connection = open_own(&file, Durability::Full)?;
            connection.execute_batch(SCHEMA)?;
            Ok(connection)
        };
        let connection = open().map_err(|source| TransferError::Journal {
            op: "open journal",
            file: file.display().to_string(),
            source,
        })?;
        Ok(Self { file, connection: Arc::new(Mutex::new(connection)) })
    }

    /// Its file. Listings of running jobs are kept beside it.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    fn with<T>(
        &self,
        op: &'static str,
        call: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, TransferError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        call(&mut connection).map_err(|source| TransferError::Journal {
            op,
            file: self.file.display().to_string(),
            source,
        })
    }

    /// Where and from what the job was started and how far it is; `None` for a new one.
    pub(crate) fn job(&self, job: &str) -> Result<Option<(String, Option<Root>, Stage)>, TransferError> {
        self.with("read job", |connection| {
            connection
                .query_row("SELECT target, source_root, stage, report FROM jobs WHERE job = ?1", [job], |row| {
                    let stage = match row.get::<_, String>(2)?.as_str() {
                        "committing" => Stage::Committing(row.get(3)?),
                        "done" => Stage::Done(row.get(3)?),
                        _ => Stage::Copying,
                    };
                    Ok((row.get(0)?, row.get::<_, String>(1)?.parse().ok(), stage))
                })
                .optional()
        })
    }

    pub(crate) fn start(&self, job: &str, target: &str, source_root: Option<Root>) -> Result<(), TransferError> {
        let root = source_root.map(|root| root.to_string()).unwrap_or_default();
        self.with("start job", |connection| {
            connection
                .execute("INSERT INTO jobs VALUES (?1, ?2, ?3, 'copying', '')", params![job, target, root])
                .map(drop)
        })
    }

    pub(crate) fn set_stage(&self, job: &str, stage: &Stage) -> Result<(), TransferError> {
        let (stage, report) = match stage {
            Stage::Copying => ("copying", ""),
            Stage::Committing(report) => ("committing", report.as_str()),
            Stage::Done(report) => ("done", report.as_str()),
        };
        self.with("update job", |connection| {
            let sql = "UPDATE jobs SET stage = ?2, report = ?3 WHERE job = ?1";
            connection.execute(sql, params![job, stage, report]).map(drop)
        })
    }

    /// Forgets a job, or, with `keep_job`, only what it has done.
    pub(crate) fn forget(&self, job: &str, keep_job: bool) -> Result<(), TransferError> {
        self.with("forget job", |connection| {
            let transaction = connection.transaction()?;
            for table in ["files", "uploads", "parts"] {
                transaction.execute(&format!("DELETE FROM {table} WHERE job = ?1"), [job])?;
            }
            if !keep_job {
                transaction.execute("DELETE FROM jobs WHERE job = ?1", [job])?;
            }
            transaction.commit()
        })
    }

    /// Records things that are durable at the target, in one commit.
    pub(crate) fn record(&self, job: &str, done: &[Done]) -> Result<(), TransferError> {
        self.with("record progress", |connection| {
            let transaction = connection.transaction()?;
            for done in done {
                match done {
                    Done::File(file) => {
                        let (kind, size, mtime, mode, target) = columns(&file.entry);
                        let digest = match &file.entry {
                            Entry::File(file) => file.digest.map(|digest| digest.as_bytes().to_vec()),
                            _ => None,
                        };
                        let key = file.path.sort_key();
                        transaction
                            .prepare_cached(
                                "INSERT OR REPLACE INTO files VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                            )?
                            .execute(params![
                                job,
                                key,
                                file.path.as_str(),
                                kind,
                                size,
                                mtime,
                                mode,
                                target,
                                digest.unwrap_or_default(),
                                file.source_tag.0,
                                file.target_tag.0
                            ])?;
                        for table in ["uploads", "parts"] {
                            transaction
                                .prepare_cached(&format!("DELETE FROM {table} WHERE job = ?1 AND key = ?2"))?
                                .execute(params![job, key])?;
                        }
                    }
                    Done::Part(part) => {
                        transaction
                            .prepare_cached("INSERT OR REPLACE INTO parts VALUES (?1, ?2, ?3, ?4, ?5)")?
                            .execute(params![
                                job,
                                part.path.sort_key(),
                                part.number,
                                part.value.as_slice(),
                                part.receipt
                            ])?;
                    }
                }
            }
            transaction.commit()
        })
    }

    /// A file that is done.
    pub(crate) fn done_file(&self, job: &str, path: &RelativePath) -> Result<Option<DoneFile>, TransferError> {
        self.with("read progress", |connection| {
            connection
                .prepare_cached(
                    "SELECT path, kind, size, mtime, mode, target, digest, source_tag, target_tag
                     FROM files WHERE job = ?1 AND key = ?2",
                )?
                .query_row(params![job, path.sort_key()], done_file)
                .optional()
        })
    }

    pub(crate) fn forget_file(&self, job: &str, path: &RelativePath) -> Result<(), TransferError> {
        self.with("forget file", |connection| {
            let transaction = connection.transaction()?;
            for table in ["files", "uploads", "parts"] {
                let sql = format!("DELETE FROM {table} WHERE job = ?1 AND key = ?2");
                transaction.execute(&sql, params![job, path.sort_key()])?;
            }
            transaction.commit()
        })
    }

    /// Records a file in parts that was started, forgetting the parts of an earlier start.
    pub(crate) fn begin(&self, job: &str, upload: &Upload) -> Result<(), TransferError> {
        self.with("record upload", |connection| {
            let transaction = connection.transaction()?;
            let key = upload.path.sort_key();
            transaction.execute("DELETE FROM parts WHERE job = ?1 AND key = ?2", params![job, key])?;
            transaction.execute(
                "INSERT OR REPLACE INTO uploads VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    job,
                    key,
                    upload.path.as_str(),
                    upload.upload,
                    upload.part_size.cast_signed(),
                    upload.source_tag.0
                ],
            )?;
            transaction.commit()
        })
    }

    /// Every file in parts that was started and is not complete.
    pub(crate) fn uploads(&self, job: &str) -> Result<Vec<Upload>, TransferError> {
        self.with("read uploads", |connection| {
            connection
                .prepare_cached("SELECT path, upload, part_size, source_tag FROM uploads WHERE job = ?1 ORDER BY key")?
                .query_map([job], upload)?
                .collect()
        })
    }

    /// The file in parts that was started at `path`.
    pub(crate) fn upload(&self, job: &str, path: &RelativePath) -> Result<Option<Upload>, TransferError> {
        self.with("read upload", |connection| {
            connection
                .prepare_cached("SELECT path, upload, part_size, source_tag FROM uploads WHERE job = ?1 AND key = ?2")?
                .query_row(params![job, path.sort_key()], upload)
                .optional()
        })
    }

    /// The parts of a file that are done, in order.
    pub(crate) fn parts(&self, job: &str, path: &RelativePath) -> Result<Vec<DonePart>, TransferError> {
        self.with("read parts", |connection| {
            connection
                .prepare_cached("SELECT number, value, receipt FROM parts WHERE job = ?1 AND key = ?2 ORDER BY number")?
                .query_map(params![job, path.sort_key()], |row| {
                    Ok(DonePart { path: path.clone(), number: row.get(0)?, value: row.get(1)?, receipt: row.get(2)? })
                })?
                .collect()
        })
    }
}

fn done_file(row: &rusqlite::Row<'_>) -> rusqlite::Result<DoneFile> {
    let digest = row.get::<_, Vec<u8>>(6)?;
    let digest = <[u8; 32]>::try_from(digest.as_slice()).ok().map(Digest::from_bytes);
    Ok(DoneFile {
        path: path_at(row, 0)?,
        entry: entry_at(row, 1, digest)?,
        source_tag: Tag(row.get(7)?),
        target_tag: Tag(row.get(8)?),
    })
}

fn upload(row: &rusqlite::Row<'_>) -> rusqlite::Result<Upload> {
    Ok(Upload {
        path: path_at(row, 0)?,
        upload: row.get(1)?,
        part_size: row.get::<_, i64>(2)?.cast_unsigned(),
        source_tag: Tag(row.get(3)?),
    })
}
