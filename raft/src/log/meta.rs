//! What the log keeps beside its records: a few named values, each with a checksum, and how far it has come.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Job, LogError, read_error};

fn meta_checksum(name: &str, value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(name.as_bytes()), value)
}

pub(super) fn read_meta<M: prost::Message + Default>(
    db: &Connection,
    name: &'static str,
) -> Result<Option<M>, LogError> {
    let Some(value) = read_value(db, name)? else { return Ok(None) };
    M::decode(Bytes::from(value)).map(Some).map_err(|_| LogError::DamagedMeta { name })
}

pub(super) fn read_value(db: &Connection, name: &'static str) -> Result<Option<Vec<u8>>, LogError> {
    let row: Option<(Vec<u8>, u32)> = db
        .query_row("SELECT value, checksum FROM meta WHERE name = ?1", [name], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
        .map_err(read_error)?;
    match row {
        Some((value, checksum)) if meta_checksum(name, &value) == checksum => Ok(Some(value)),
        Some(_) => Err(LogError::DamagedMeta { name }),
        None => Ok(None),
    }
}

pub(super) fn write_meta(db: &Connection, name: &'static str, message: &impl prost::Message) -> rusqlite::Result<()> {
    write_value(db, name, &message.encode_to_vec())
}

pub(super) fn write_value(db: &Connection, name: &'static str, value: &[u8]) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO meta (name, value, checksum) VALUES (?1, ?2, ?3)")?.execute(params![
        name,
        value,
        meta_checksum(name, value)
    ])?;
    Ok(())
}

pub(super) const VOTE: &str = "vote";
pub(super) const COMMITTED: &str = "committed";
pub(super) const PURGED: &str = "purged";
pub(super) const EXTENT: &str = "extent";

/// How far the log has come: written with every commit, so that what is missing is missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) commits: u64,
    /// The index after the last record.
    pub(super) next: u64,
}

impl Extent {
    pub(super) fn encode(self) -> [u8; 16] {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&self.commits.to_le_bytes());
        value[8..].copy_from_slice(&self.next.to_le_bytes());
        value
    }

    /// The one that was written last; none in a log of an older version, and in a new one.
    pub(super) fn read(db: &Connection) -> Result<Option<Self>, LogError> {
        let Some(value) = read_value(db, EXTENT)? else { return Ok(None) };
        let number = |at: usize| value.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        match (number(0), number(8)) {
            (Some(commits), Some(next)) => Ok(Some(Self { commits, next })),
            _ => Err(LogError::DamagedMeta { name: EXTENT }),
        }
    }

    /// What it is after `job`.
    pub(super) fn after(self, job: &Job) -> u64 {
        match job {
            Job::Append { entries, .. } => entries.last().map_or(self.next, |last| last.log_id.index + 1),
            Job::Vote { .. } => self.next,
            Job::Truncate { from, .. } => self.next.min(*from),
            Job::Purge { upto, .. } => self.next.max(upto.index + 1),
        }
    }
}
