//! ② The audit trail in the catalog: appended by the transactions that it speaks of, chained, bounded.
//!
//! Invariants: which records there are depends on the log alone, so that every replica has the same chain; numbers have no
//! gaps; records that are let go leave a checkpoint (see `fluvial_model::audit`).

use fluvial_model::audit::{Entry, Hash, Head, MAX_AGE_SECONDS, MAX_RECORDS, PRUNE_EVERY, Record};
use fluvial_model::manifest::Digest;
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::schema::{signed, unsigned};

/// The table behind the view `audit`. It is named as those that are projected, and is not one of them.
pub const TABLE: &str = "fv_row_audit";

/// Makes the table, if it is missing.
pub fn create(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(&format!(
        r#"CREATE TABLE IF NOT EXISTS {TABLE} (
             sequence INTEGER PRIMARY KEY,
             time TEXT NOT NULL,
             "user" TEXT NOT NULL,
             "groups" TEXT NOT NULL,
             address TEXT NOT NULL,
             request TEXT NOT NULL,
             verb TEXT NOT NULL,
             api_group TEXT NOT NULL,
             resource TEXT NOT NULL,
             namespace TEXT NOT NULL,
             name TEXT NOT NULL,
             code INTEGER NOT NULL,
             revision INTEGER NOT NULL,
             count INTEGER NOT NULL,
             message TEXT NOT NULL,
             previous TEXT NOT NULL,
             hash TEXT NOT NULL);"#
    ))
}

/// A hash of a row, as text in a column.
fn hash(row: &Row<'_>, column: usize) -> rusqlite::Result<Hash> {
    let text: String = row.get(column)?;
    let digest = text.parse::<Digest>();
    let wrong = |error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error));
    digest.map(|digest| *digest.as_bytes()).map_err(wrong)
}

/// The last record.
pub fn head(db: &Connection) -> rusqlite::Result<Head> {
    let last = db
        .prepare_cached("SELECT sequence, hash FROM fv_row_audit ORDER BY sequence DESC LIMIT 1")?
        .query_row([], |row| Ok(Head { sequence: unsigned(row.get(0)?), hash: hash(row, 1)? }))
        .optional()?;
    Ok(last.unwrap_or(Head::START))
}

/// Appends `entries`, which speak of `revision`, and lets the oldest records go when it is time.
pub fn append(db: &Connection, revision: u64, entries: Vec<Entry>) -> rusqlite::Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut head = head(db)?;
    for entry in entries {
        let time = entry.time;
        head = insert(db, &Record::after(&head, revision, entry))?;
        if head.sequence.is_multiple_of(PRUNE_EVERY)
            && let Some(last) = prune(db, head.sequence, time)?
        {
            head = insert(db, &Record::after(&head, revision, Record::checkpoint(&last, time)))?;
        }
    }
    Ok(())
}

fn insert(db: &Connection, record: &Record) -> rusqlite::Result<Head> {
    let entry = &record.entry;
    // Names of groups are visible ASCII: their JSON is one text for one list.
    let groups = serde_json::to_string(&entry.groups).unwrap_or_default();
    db.prepare_cached(
        "INSERT INTO fv_row_audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
    )?
    .execute(params![
        signed(record.sequence),
        entry.time.to_string(),
        entry.user,
        groups,
        entry.address,
        entry.request,
        entry.verb,
        entry.api_group,
        entry.resource,
        entry.namespace,
        entry.name,
        entry.code,
        signed(record.revision),
        signed(entry.count),
        entry.message,
        Digest::from_bytes(record.previous).to_string(),
        Digest::from_bytes(record.hash).to_string(),
    ])?;
    Ok(record.head())
}

/// Lets go of what is too old or too much, at most twice [`PRUNE_EVERY`] records. Returns the last of them.
fn prune(db: &Connection, newest: u64, now: Timestamp) -> rusqlite::Result<Option<Head>> {
    let too_many = newest.saturating_sub(MAX_RECORDS);
    let oldest_kept = now.checked_sub(SignedDuration::from_secs(MAX_AGE_SECONDS)).unwrap_or(Timestamp::MIN);
    let mut due = None;
    {
        let mut oldest =
            db.prepare_cached("SELECT sequence, time, hash FROM fv_row_audit ORDER BY sequence LIMIT ?1")?;
        let mut rows = oldest.query([signed(PRUNE_EVERY * 2)])?;
        while let Some(row) = rows.next()? {
            let (sequence, time): (i64, String) = (row.get(0)?, row.get(1)?);
            let sequence = unsigned(sequence);
            let is_old = time.parse::<Timestamp>().is_ok_and(|time| time < oldest_kept);
            // The newest stays, whatever its age: the chain goes on from it.
            if sequence == newest || !(is_old || sequence <= too_many) {
                break;
            }
            due = Some(Head { sequence, hash: hash(row, 2)? });
        }
    }
    if let Some(last) = due {
        db.prepare_cached("DELETE FROM fv_row_audit WHERE sequence <= ?1")?.execute([signed(last.sequence)])?;
    }
    Ok(due)
}

#[cfg(test)]
mod tests {
    use fluvial_model::audit::{Fault, Verifier};

    use super::*;

    fn catalog() -> Connection {
        let db = Connection::open_in_memory().unwrap();
        create(&db).unwrap();
        db
    }

    fn entry(seconds: i64) -> Entry {
        let time = Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        Entry { time, user: "user/ann".into(), groups: vec!["a".into(), "b\"c".into()], code: 200, ..Entry::default() }
    }

    /// Reads the trail as the command line does.
    fn read(db: &Connection) -> Vec<Record> {
        let mut rows = db.prepare("SELECT * FROM fv_row_audit ORDER BY sequence").unwrap();
        let hash = |text: String| *text.parse::<Digest>().unwrap().as_bytes();
        let records = rows.query_map([], |row| {
            let entry = Entry {
                time: row.get::<_, String>("time")?.parse().unwrap(),
                user: row.get("user")?,
                groups: serde_json::from_str(&row.get::<_, String>("groups")?).unwrap(),
                address: row.get("address")?,
                request: row.get("request")?,
                verb: row.get("verb")?,
                api_group: row.get("api_group")?,
                resource: row.get("resource")?,
                namespace: row.get("namespace")?,
                name: row.get("name")?,
                code: row.get("code")?,
                count: unsigned(row.get("count")?),
                message: row.get("message")?,
            };
            Ok(Record {
                sequence: unsigned(row.get("sequence")?),
                revision: unsigned(row.get("revision")?),
                entry,
                previous: hash(row.get("previous")?),
                hash: hash(row.get("hash")?),
            })
        });
        records.unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn verify(db: &Connection, noted: Option<Head>) -> Result<Head, Fault> {
        let mut verifier = Verifier::new(noted);
        read(db).iter().try_for_each(|record| verifier.next(record))?;
        verifier.end()
    }

    #[test]
    fn what_was_appended_is_read_back_whole_and_a_change_of_the_file_is_found() {
        let db = catalog();
        for number in 0..10 {
            append(&db, number, vec![entry(1), entry(2)]).unwrap();
        }
        let whole = head(&db).unwrap();
        assert_eq!((whole.sequence, verify(&db, None)), (20, Ok(whole)));
        db.execute_batch("SAVEPOINT before").unwrap();
        for (forgery, fault) in [
            ("UPDATE fv_row_audit SET \"user\" = 'user/bob' WHERE sequence = 7", Fault::Changed { sequence: 7 }),
            ("UPDATE fv_row_audit SET code = 403 WHERE sequence = 20", Fault::Changed { sequence: 20 }),
            ("DELETE FROM fv_row_audit WHERE sequence = 7", Fault::Gap { last: 6, found: 8 }),
            ("DELETE FROM fv_row_audit WHERE sequence < 7", Fault::NoCheckpoint { first: 7 }),
            ("DELETE FROM fv_row_audit WHERE sequence > 7", Fault::Cut { last: 7, head: 20 }),
        ] {
            db.execute_batch(forgery).unwrap();
            assert_eq!(verify(&db, Some(whole)), Err(fault), "{forgery}");
            db.execute_batch("ROLLBACK TO before").unwrap();
        }
    }

    #[test]
    fn old_records_go_and_the_chain_goes_on() {
        let db = catalog();
        let every = i64::try_from(PRUNE_EVERY).unwrap();
        append(&db, 1, (0..every / 2).map(entry).collect()).unwrap();
        let noted = head(&db).unwrap();
        // Three months later the first half is too old, and only when enough have come.
        append(&db, 2, (0..every / 2).map(|at| entry(MAX_AGE_SECONDS + every + at)).collect()).unwrap();
        let records = read(&db);
        assert_eq!(records.first().unwrap().sequence, PRUNE_EVERY / 2 + 1);
        let last = records.last().unwrap();
        assert_eq!((last.sequence, last.entry.verb.as_str()), (PRUNE_EVERY + 1, "checkpoint"));
        assert_eq!(verify(&db, Some(noted)), Ok(last.head()));
        // Somebody who takes more than was let go is found.
        db.execute("DELETE FROM fv_row_audit WHERE sequence <= ?1", [signed(PRUNE_EVERY / 2 + 1)]).unwrap();
        assert_eq!(verify(&db, None), Err(Fault::NoCheckpoint { first: PRUNE_EVERY / 2 + 2 }));
    }
}
