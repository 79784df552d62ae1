//! ② Reading the catalog: a key, a page of keys at a revision, the events of the kept history.
//!
//! Invariants: each function reads one consistent state; an older state is the current one with the later changes
//! undone (see `schema`).

use std::sync::Arc;

use fluvial_model::store::{Event, KeyValue, Revision, prefix_end};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::schema::{read_state, signed, unsigned};
use crate::store::{Listing, REMAINING_CAP, StoreError};

/// History rows read at once for a watcher that fell behind. More than the 512 writes that one revision can have, so
/// that a page always holds a whole revision.
const HISTORY_PAGE: usize = 1024;

/// What the database's error means to who reads.
pub fn failed(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            StoreError::Corrupt { what: format!("the catalog: {error}") }
        }
        _ => StoreError::storage(error),
    }
}

fn text(key: Vec<u8>) -> rusqlite::Result<String> {
    String::from_utf8(key)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, Box::new(error)))
}

fn kv(row: &Row<'_>) -> rusqlite::Result<KeyValue> {
    Ok(KeyValue {
        key: text(row.get(0)?)?,
        value: row.get(1)?,
        create_revision: Revision(unsigned(row.get(2)?)),
        mod_revision: Revision(unsigned(row.get(3)?)),
    })
}

/// What `key` holds now.
pub fn get(db: &Connection, key: &str) -> rusqlite::Result<Option<KeyValue>> {
    db.prepare_cached("SELECT key, value, create_revision, mod_revision FROM fv_objects WHERE key = ?1")?
        .query_row([key.as_bytes()], kv)
        .optional()
}

/// The same, for callers outside of a transaction.
pub fn get_now(db: &Connection, key: &str) -> Result<Option<KeyValue>, StoreError> {
    get(db, key).map_err(failed)
}

/// One page of the keys under `prefix`, at `revision` or now.
pub fn list(
    db: &mut Connection,
    prefix: &str,
    after: Option<&str>,
    limit: Option<usize>,
    revision: Option<Revision>,
) -> Result<Listing, StoreError> {
    let txn = db.transaction().map_err(failed)?;
    let state = read_state(&txn).map_err(failed)?;
    let at = revision.map_or(state.revision, |revision| revision.0);
    if at > state.revision {
        return Err(StoreError::FutureRevision { asked: Revision(at), newest: Revision(state.revision) });
    }
    if at < state.compacted {
        return Err(StoreError::Compacted { oldest: Revision(state.compacted) });
    }
    let newest = at == state.revision;
    let limit = limit.unwrap_or(usize::MAX >> 1);
    // The lower end is exclusive after a key and inclusive at the prefix.
    let after = after.filter(|after| *after >= prefix);
    let lower = after.unwrap_or(prefix);
    let upper = prefix_end(prefix);
    let from = if after.is_some() { ">" } else { ">=" };
    let to = if upper.is_some() { "key < ?2" } else { "?2 IS NULL" };
    let mut rows = read_rows(&txn, &rows_sql(newest, from, to), lower, upper.as_deref(), at, limit.saturating_add(1))
        .map_err(failed)?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let remaining = match rows.last() {
        Some(last) if more => count(&txn, newest, to, &last.key, upper.as_deref(), at).map_err(failed)?,
        _ => u64::from(more),
    };
    Ok(Listing { items: rows, revision: Revision(at), more, remaining })
}

/// Keys in `?1..?2` as they were at revision `?3`, at most `?4`, in order.
fn rows_sql(newest: bool, from: &str, to: &str) -> String {
    if newest {
        return format!(
            "SELECT key, value, create_revision, mod_revision FROM fv_objects
             WHERE key {from} ?1 AND {to} AND mod_revision <= ?3 ORDER BY key LIMIT ?4"
        );
    }
    // The first change after ?3 is the one that replaced something not newer than ?3: it says what was there.
    format!(
        "SELECT key, value, create_revision, mod_revision FROM (
           SELECT key, value, create_revision, mod_revision FROM fv_objects
           WHERE key {from} ?1 AND {to} AND mod_revision <= ?3
           UNION ALL
           SELECT key, previous, previous_create, previous_mod FROM fv_history
           WHERE key {from} ?1 AND {to} AND revision > ?3 AND previous_mod <= ?3)
         ORDER BY key LIMIT ?4"
    )
}

fn read_rows(
    db: &Connection,
    sql: &str,
    lower: &str,
    upper: Option<&[u8]>,
    at: u64,
    limit: usize,
) -> rusqlite::Result<Vec<KeyValue>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    db.prepare_cached(sql)?.query_map(params![lower.as_bytes(), upper, signed(at), limit], kv)?.collect()
}

fn count(db: &Connection, newest: bool, to: &str, last: &str, upper: Option<&[u8]>, at: u64) -> rusqlite::Result<u64> {
    let sql = if newest {
        // Without the revision the count is answered by the key's index alone.
        format!("SELECT count(*) FROM (SELECT 1 FROM fv_objects WHERE key > ?1 AND {to} LIMIT ?3)")
    } else {
        format!("SELECT count(*) FROM ({})", rows_sql(false, ">", to))
    };
    let cap = signed(REMAINING_CAP);
    let mut statement = db.prepare_cached(&sql)?;
    let counted: i64 = if newest {
        statement.query_row(params![last.as_bytes(), upper, cap], |row| row.get(0))?
    } else {
        statement.query_row(params![last.as_bytes(), upper, signed(at), cap], |row| row.get(0))?
    };
    Ok(unsigned(counted))
}

/// The oldest revision that can be listed and watched from.
pub fn oldest(db: &Connection) -> Result<Revision, StoreError> {
    read_state(db).map(|state| Revision(state.compacted)).map_err(failed)
}

/// Whole revisions of events after `after`, oldest first, and the revision up to which they are complete.
pub fn events(db: &mut Connection, after: Revision) -> Result<(Vec<Arc<Event>>, Revision), StoreError> {
    let txn = db.transaction().map_err(failed)?;
    let state = read_state(&txn).map_err(failed)?;
    if after.0 < state.compacted {
        return Err(StoreError::Compacted { oldest: Revision(state.compacted) });
    }
    let mut events = read_events(&txn, after).map_err(failed)?;
    let upto = match events.last() {
        // The page is full: its last revision may be cut, so it waits for the next page.
        Some(last) if events.len() >= HISTORY_PAGE => {
            let cut = last.revision;
            events.retain(|event| event.revision < cut);
            Revision(cut.0 - 1)
        }
        _ => Revision(state.revision),
    };
    Ok((events.into_iter().map(Arc::new).collect(), upto))
}

fn read_events(db: &Connection, after: Revision) -> rusqlite::Result<Vec<Event>> {
    let mut history = db.prepare_cached(
        "SELECT revision, key, deleted, previous, previous_create, previous_mod FROM fv_history
         WHERE revision > ?1 ORDER BY revision, key LIMIT ?2",
    )?;
    let mut later = db.prepare_cached(
        "SELECT previous, previous_create FROM fv_history WHERE key = ?1 AND revision > ?2 ORDER BY revision LIMIT 1",
    )?;
    let mut current = db.prepare_cached("SELECT value, create_revision FROM fv_objects WHERE key = ?1")?;
    let mut rows = history.query(params![signed(after.0), i64::try_from(HISTORY_PAGE).unwrap_or(i64::MAX)])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let revision: i64 = row.get(0)?;
        let raw: Vec<u8> = row.get(1)?;
        let deleted: bool = row.get(2)?;
        let key = text(raw.clone())?;
        let previous_value: Option<Vec<u8>> = row.get(3)?;
        let previous = match previous_value {
            None => None,
            Some(value) => Some(KeyValue {
                key: key.clone(),
                value,
                create_revision: Revision(unsigned(row.get(4)?)),
                mod_revision: Revision(unsigned(row.get(5)?)),
            }),
        };
        let value = if deleted {
            None
        } else {
            // What was written is what the next change found, or what is there now.
            let pair = |row: &Row<'_>| -> rusqlite::Result<(Vec<u8>, i64)> { Ok((row.get(0)?, row.get(1)?)) };
            let written = match later.query_row(params![raw, revision], pair).optional()? {
                Some(written) => written,
                None => current.query_row(params![raw], pair)?,
            };
            Some(KeyValue {
                key: key.clone(),
                value: written.0,
                create_revision: Revision(unsigned(written.1)),
                mod_revision: Revision(unsigned(revision)),
            })
        };
        events.push(Event { revision: Revision(unsigned(revision)), key, value, previous });
    }
    Ok(events)
}
