//! ② The catalog's database: objects, their history, and the tables that SQL sees.
//!
//! `fv_objects` is the current state; `fv_history` says, for each change, what the key held before, so that an older
//! state is the current one with the later changes undone, and forgetting history is deleting its oldest rows.
//! `fv_row_audit` is the audit trail ([`trail`]). Every other table of `model::catalog` is `fv_row_<name>` with the object's key beside the columns, and a view `<name>`.
//!
//! Invariants: `fv_state` is written in the transaction of the data it speaks of; the projected rows are those of the
//! current objects, and are rebuilt when what is projected has changed.

use std::fmt::Write as _;
use std::path::Path;

use fluvial_model::catalog::{AUDIT, Cell, ColumnType, TABLES, Table, project};
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, OptionalExtension as _, ToSql, params};

use crate::database;

use crate::trail;

/// The format of the tables below.
const FORMAT: i64 = 1;

/// How long a connection waits for another one's lock before it reports an error.
const BUSY: std::time::Duration = std::time::Duration::from_secs(10);

/// Opens the catalog for writing, creates what is missing and rebuilds the projection if it is outdated.
pub fn open(path: &Path) -> rusqlite::Result<Connection> {
    let mut db = database::open(path, BUSY)?;
    // The log is the truth: what a power cut takes from here is applied again.
    db.pragma_update(None, "synchronous", "NORMAL")?;
    db.pragma_update(None, "wal_autocheckpoint", 4000)?;
    // 16 MiB of pages: the upper levels of a catalog of a million objects.
    db.pragma_update(None, "cache_size", -16_384)?;
    db.set_prepared_statement_cache_capacity(64);
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS fv_state (
           one INTEGER PRIMARY KEY CHECK (one = 1),
           format INTEGER NOT NULL,
           revision INTEGER NOT NULL,
           compacted INTEGER NOT NULL,
           applied BLOB,
           membership BLOB,
           projection TEXT NOT NULL);
         CREATE TABLE IF NOT EXISTS fv_objects (
           key BLOB PRIMARY KEY,
           value BLOB NOT NULL,
           create_revision INTEGER NOT NULL,
           mod_revision INTEGER NOT NULL);
         CREATE TABLE IF NOT EXISTS fv_history (
           revision INTEGER NOT NULL,
           key BLOB NOT NULL,
           deleted INTEGER NOT NULL,
           previous BLOB,
           previous_create INTEGER,
           previous_mod INTEGER,
           PRIMARY KEY (revision, key)) WITHOUT ROWID;
         CREATE INDEX IF NOT EXISTS fv_history_key ON fv_history (key, revision);",
    )?;
    trail::create(&db)?;
    db.execute(
        "INSERT OR IGNORE INTO fv_state (one, format, revision, compacted, projection) VALUES (1, ?1, 0, 0, '')",
        [FORMAT],
    )?;
    let format: i64 = db.query_row("SELECT format FROM fv_state", [], |row| row.get(0))?;
    if format != FORMAT {
        return Err(rusqlite::Error::ToSqlConversionFailure(
            format!("the catalog has format {format}, and this version of Fluvial reads formats up to {FORMAT}").into(),
        ));
    }
    let current: String = db.query_row("SELECT projection FROM fv_state", [], |row| row.get(0))?;
    if current != projection() {
        rebuild(&mut db)?;
    }
    Ok(db)
}

/// Opens the catalog for reading only.
pub fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let db = database::open_reader(path, BUSY)?;
    db.pragma_update(None, "query_only", true)?;
    db.set_prepared_statement_cache_capacity(32);
    Ok(db)
}

/// Names what is projected and by which version of the code.
fn projection() -> String {
    let digest = crc32c::crc32c(format!("{TABLES:?}").as_bytes());
    format!("{}-{}-{digest:08x}", env!("CARGO_PKG_VERSION"), TABLES.len())
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn row_table(name: &str) -> String {
    quoted(&format!("fv_row_{name}"))
}

fn create_projection(db: &Connection) -> rusqlite::Result<()> {
    for table in TABLES {
        // The trail has a table of its own, which is no projection.
        let mut sql = if *table == AUDIT { String::new() } else { table_sql(table) };
        let columns: Vec<String> = table.columns.iter().map(|column| quoted(column.name)).collect();
        let (view, columns, rows) = (quoted(table.name), columns.join(", "), row_table(table.name));
        // Writing to a String cannot fail.
        let _ = write!(sql, "CREATE VIEW {view} AS SELECT {columns} FROM {rows};");
        db.execute_batch(&sql)?;
    }
    Ok(())
}

/// The statements that make a projected table and its indexes.
fn table_sql(table: &Table) -> String {
    let rows = row_table(table.name);
    let mut sql = format!("CREATE TABLE {rows} (fv_key BLOB NOT NULL");
    for column in table.columns {
        let kind = match column.kind {
            ColumnType::Text => "TEXT",
            ColumnType::Integer => "INTEGER",
            ColumnType::Real => "REAL",
        };
        let _ = write!(sql, ", {} {kind}", quoted(column.name));
    }
    sql.push_str(");");
    let _ = write!(sql, "CREATE INDEX {} ON {rows} (fv_key);", quoted(&format!("fv_row_{}_key", table.name)));
    for (number, index) in table.indexes.iter().enumerate() {
        let columns: Vec<String> = index.iter().map(|column| quoted(column)).collect();
        let name = quoted(&format!("fv_row_{}_{number}", table.name));
        let _ = write!(sql, "CREATE INDEX {name} ON {rows} ({});", columns.join(", "));
    }
    sql
}

/// Drops every projected table and view and makes them anew from the objects.
fn rebuild(db: &mut Connection) -> rusqlite::Result<()> {
    let txn = db.transaction()?;
    let old: Vec<(String, String)> = txn
        .prepare(
            "SELECT type, name FROM sqlite_schema WHERE type = 'view' OR (type = 'table' AND name GLOB 'fv_row_*' AND name <> ?1)",
        )?
        .query_map([trail::TABLE], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (kind, name) in old {
        txn.execute_batch(&format!("DROP {kind} {}", quoted(&name)))?;
    }
    create_projection(&txn)?;
    {
        let mut objects = txn.prepare("SELECT key, value FROM fv_objects")?;
        let mut rows = objects.query([])?;
        while let Some(row) = rows.next()? {
            let key: Vec<u8> = row.get(0)?;
            let value: Vec<u8> = row.get(1)?;
            insert_rows(&txn, &String::from_utf8_lossy(&key), &value)?;
        }
    }
    txn.execute("UPDATE fv_state SET projection = ?1", [projection()])?;
    txn.commit()
}

struct Sql<'a>(&'a Cell);

impl ToSql for Sql<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        use rusqlite::types::Value;
        match self.0 {
            Cell::Null => Ok(ToSqlOutput::Owned(Value::Null)),
            Cell::Text(text) => text.to_sql(),
            Cell::Integer(number) => number.to_sql(),
            Cell::Real(number) => number.to_sql(),
        }
    }
}

fn insert_rows(db: &Connection, key: &str, value: &[u8]) -> rusqlite::Result<()> {
    for row in project(key, value) {
        let marks = ", ?".repeat(row.cells.len());
        let sql = format!("INSERT INTO {} VALUES (?{marks})", row_table(row.table));
        let mut insert = db.prepare_cached(&sql)?;
        insert.raw_bind_parameter(1, key.as_bytes())?;
        for (position, cell) in row.cells.iter().enumerate() {
            insert.raw_bind_parameter(position + 2, Sql(cell))?;
        }
        insert.raw_execute()?;
    }
    Ok(())
}

/// Replaces the rows that `key` shows: those of `old` go, those of `new` come.
pub fn replace_rows(db: &Connection, key: &str, old: Option<&[u8]>, new: Option<&[u8]>) -> rusqlite::Result<()> {
    if let Some(old) = old {
        let mut tables: Vec<&str> = project(key, old).iter().map(|row| row.table).collect();
        tables.sort_unstable();
        tables.dedup();
        for table in tables {
            db.prepare_cached(&format!("DELETE FROM {} WHERE fv_key = ?1", row_table(table)))?
                .execute([key.as_bytes()])?;
        }
    }
    if let Some(new) = new {
        insert_rows(db, key, new)?;
    }
    Ok(())
}

/// The row of `fv_state`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateRow {
    pub revision: u64,
    pub compacted: u64,
    pub applied: Option<Vec<u8>>,
    pub membership: Option<Vec<u8>>,
}

pub fn read_state(db: &Connection) -> rusqlite::Result<StateRow> {
    db.prepare_cached("SELECT revision, compacted, applied, membership FROM fv_state")?
        .query_row([], |row| {
            Ok(StateRow {
                revision: unsigned(row.get(0)?),
                compacted: unsigned(row.get(1)?),
                applied: row.get(2)?,
                membership: row.get(3)?,
            })
        })
        .optional()
        .map(Option::unwrap_or_default)
}

pub fn write_state(db: &Connection, state: &StateRow) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE fv_state SET revision = ?1, compacted = ?2, applied = ?3, membership = ?4")?
        .execute(params![signed(state.revision), signed(state.compacted), state.applied, state.membership])?;
    Ok(())
}

/// SQLite's integers are signed; revisions count transactions and do not reach 2^63.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
