//! The ledger's tables and how values become rows.

use std::collections::HashSet;
use std::path::Path;

use fluvial_transfer::database::{Durability, open_own};
use rusqlite::{Connection, OptionalExtension, params};

use super::{Assignment, Error, Unsent};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS state(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS assignments(
  id TEXT PRIMARY KEY, generation INTEGER NOT NULL, work TEXT NOT NULL, secrets TEXT NOT NULL,
  withdrawn INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reports(
  id TEXT PRIMARY KEY, generation INTEGER NOT NULL, sequence INTEGER NOT NULL, report TEXT NOT NULL,
  stored INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pushed(block BLOB PRIMARY KEY) WITHOUT ROWID;
";

/// What went wrong, before it is known in which operation.
pub(super) enum Fault {
    Database(rusqlite::Error),
    Content(String, serde_json::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl Fault {
    pub(super) fn during(self, op: &'static str) -> Error {
        match self {
            Self::Database(source) => Error::Database { op, source },
            Self::Content(id, source) => Error::Content { op, id, source },
        }
    }
}

/// SQLite counts in i64, the wire in u64: the bits are kept, so that every number comes back as it was. Generations and
/// revisions count changes and stay far below the sign.
pub(super) fn stored(number: u64) -> i64 {
    number.cast_signed()
}

/// The inverse of [`stored`].
pub(super) fn read(number: i64) -> u64 {
    number.cast_unsigned()
}

pub(super) fn open(file: &Path) -> Result<Connection, Error> {
    let open = || {
        let connection = open_own(file, Durability::Full)?;
        connection.execute_batch(SCHEMA)?;
        Ok(connection)
    };
    open().map_err(|source| Error::Database { op: "open", source })
}

pub(super) fn state(connection: &Connection, name: &str) -> Result<u64, Fault> {
    let value: Option<i64> =
        connection.query_row("SELECT value FROM state WHERE name = ?1", [name], |row| row.get(0)).optional()?;
    Ok(value.map_or(0, read))
}

pub(super) fn set_state(connection: &Connection, name: &str, value: u64) -> Result<(), Fault> {
    connection.execute("INSERT OR REPLACE INTO state(name, value) VALUES(?1, ?2)", params![name, stored(value)])?;
    Ok(())
}

pub(super) fn ids(connection: &Connection) -> Result<Vec<String>, Fault> {
    let mut statement = connection.prepare_cached("SELECT id FROM assignments ORDER BY id")?;
    let ids = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<_>, _>>()?;
    Ok(ids)
}

pub(super) fn assignment(connection: &Connection, id: &str) -> Result<Option<Assignment>, Fault> {
    let mut statement =
        connection.prepare_cached("SELECT generation, work, secrets, withdrawn FROM assignments WHERE id = ?1")?;
    let row: Option<(i64, String, String, bool)> =
        statement.query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).optional()?;
    let Some((generation, work, secrets, withdrawn)) = row else { return Ok(None) };
    let content = |source| Fault::Content(id.to_owned(), source);
    Ok(Some(Assignment {
        id: id.to_owned(),
        generation: read(generation),
        work: serde_json::from_str(&work).map_err(content)?,
        secrets: serde_json::from_str(&secrets).map_err(content)?,
        withdrawn,
    }))
}

pub(super) fn put_assignment(connection: &Connection, assignment: &Assignment) -> Result<(), Fault> {
    let Assignment { id, generation, work, secrets, withdrawn } = assignment;
    let content = |source| Fault::Content(id.clone(), source);
    let work = serde_json::to_string(work).map_err(content)?;
    let secrets = serde_json::to_string(secrets).map_err(content)?;
    connection.execute(
        "INSERT OR REPLACE INTO assignments(id, generation, work, secrets, withdrawn) VALUES(?1, ?2, ?3, ?4, ?5)",
        params![id, stored(*generation), work, secrets, withdrawn],
    )?;
    Ok(())
}

pub(super) fn unsent(connection: &Connection, limit: usize, busy: &HashSet<String>) -> Result<Vec<Unsent>, Fault> {
    let mut statement =
        connection.prepare_cached("SELECT id, generation, sequence, report FROM reports WHERE stored = 0")?;
    let rows = statement.query_map([], |row| {
        let report: String = row.get(3)?;
        Ok(Unsent {
            id: row.get(0)?,
            generation: read(row.get(1)?),
            sequence: read(row.get(2)?),
            report: report.into_bytes(),
        })
    })?;
    let mut unsent = Vec::new();
    for row in rows {
        let row = row?;
        if unsent.len() >= limit {
            break;
        }
        if !busy.contains(&row.id) {
            unsent.push(row);
        }
    }
    Ok(unsent)
}
