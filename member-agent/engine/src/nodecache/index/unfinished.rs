//! Which parts of files that are not complete are known to be on the disk.
//!
//! A row may lag behind its file, and is lost without harm: what it does not tell is fetched again. It never runs ahead:
//! it is written after a sync of the tier that covered what it tells. A file's name is never given again, so that a row that a
//! power cut brings back finds no file; what was there and was wrong is forgotten for good before it is fetched anew.

use rusqlite::params;

use super::super::PART_BYTES;
use super::{Index, failed, number, stored};
use crate::engine::EngineError;

/// A file that is not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Unfinished {
    /// The object that it becomes.
    pub object: String,
    pub tier: String,
    /// Its name in the tier's directory of unfinished files.
    pub file: String,
    /// Bytes of the complete file.
    pub bytes: u64,
    /// The version at the source that its parts are of, if the file has no digest.
    pub tag: Option<String>,
    /// One bit for each part, the lowest of each byte first.
    pub parts: Vec<u8>,
}

impl Unfinished {
    /// Whether a part is there.
    pub(in super::super) fn has(&self, part: usize) -> bool {
        self.parts.get(part / 8).is_some_and(|bits| bits & (1 << (part % 8)) != 0)
    }

    /// Bytes that are there.
    pub(in super::super) fn bytes_there(&self) -> u64 {
        let parts = self.bytes.div_ceil(PART_BYTES);
        let there = (0..parts).filter(|part| self.has(usize::try_from(*part).unwrap_or(usize::MAX)));
        there.map(|part| PART_BYTES.min(self.bytes - part * PART_BYTES)).sum()
    }
}

impl Index {
    /// What was noted.
    pub(in super::super) fn unfinished(&self) -> Result<Vec<Unfinished>, EngineError> {
        let read = || {
            let mut statement =
                self.connection.prepare("SELECT object, tier, file, bytes, tag, parts FROM unfinished")?;
            let rows = statement.query_map([], |row| {
                Ok(Unfinished {
                    object: row.get(0)?,
                    tier: row.get(1)?,
                    file: row.get(2)?,
                    bytes: number(row, 3)?,
                    tag: row.get(4)?,
                    parts: row.get(5)?,
                })
            })?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        read().map_err(failed("list unfinished files"))
    }

    /// Notes what is on the disk.
    pub(in super::super) fn note_unfinished(&mut self, files: &[&Unfinished]) -> Result<(), EngineError> {
        let mut note = || {
            let transaction = self.connection.transaction()?;
            {
                let mut statement = transaction.prepare_cached(
                    "INSERT OR REPLACE INTO unfinished(object, tier, file, bytes, tag, parts)
                     VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
                )?;
                for file in files {
                    let Unfinished { object, tier, file, bytes, tag, parts } = file;
                    statement.execute(params![object, tier, file, stored(*bytes), tag, parts])?;
                }
            }
            transaction.commit()
        };
        note().map_err(failed("note parts of files"))
    }

    /// Forgets a file; another file of the same object is left alone.
    pub(in super::super) fn forget_unfinished(&self, object: &str, file: &str) -> Result<(), EngineError> {
        let forgotten =
            self.connection.execute("DELETE FROM unfinished WHERE object = ?1 AND file = ?2", params![object, file]);
        forgotten.map(drop).map_err(failed("forget unfinished file"))
    }

    /// Forgets what was noted of a file whose contents were wrong, so that no power cut brings it back.
    pub(in super::super) fn disown_unfinished(&mut self, object: &str) -> Result<(), EngineError> {
        let disown = |connection: &mut rusqlite::Connection| {
            connection.execute("DELETE FROM unfinished WHERE object = ?1", [object]).map(drop)
        };
        self.for_good(disown).map_err(failed("forget wrong contents"))
    }

    /// Whether any dataset has the object in its version.
    pub(in super::super) fn is_used(&self, object: &str) -> Result<bool, EngineError> {
        let found =
            self.connection.query_row("SELECT EXISTS(SELECT 1 FROM uses WHERE object = ?1)", [object], |r| r.get(0));
        found.map_err(failed("look up uses"))
    }

    /// How many paths of a dataset are the object.
    pub(in super::super) fn uses_of(&self, uid: &str, object: &str) -> Result<u64, EngineError> {
        let counted = self.connection.query_row(
            "SELECT COUNT(*) FROM uses WHERE object = ?1 AND uid = ?2",
            params![object, uid],
            |row| number(row, 0),
        );
        counted.map_err(failed("count uses"))
    }
}
