//! ② How this crate opens SQLite's files.
//!
//! Invariant: nothing of them is mapped. SQLite maps the index of a write-ahead log that several processes share; a write to
//! a page of it for which a full disk has no block, or which a small block size puts beyond the file's end, ends the process
//! by a signal. With `unix-excl` the index is in memory, shared by the connections of this process, and no other process
//! gets in while one of them is open.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// SQLite's way to its files here. All connections to one file must use the same.
pub const DATABASE_VFS: &str = "unix-excl";

/// Opens a database for writing, with a write-ahead log, making it when it does not exist.
pub fn open(path: &Path, busy: Duration) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags_and_vfs(path, OpenFlags::default(), DATABASE_VFS)?;
    db.busy_timeout(busy)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    Ok(db)
}

/// Opens a database that exists for reading.
pub fn open_reader(path: &Path, busy: Duration) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags_and_vfs(path, flags, DATABASE_VFS)?;
    db.busy_timeout(busy)?;
    Ok(db)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Duration = Duration::from_secs(1);

    #[test]
    fn several_connections_see_each_others_writes_and_nothing_is_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let writer = open(&path, BUSY).unwrap();
        writer.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)").unwrap();
        let readers = [open_reader(&path, BUSY).unwrap(), open_reader(&path, BUSY).unwrap()];
        let count = |db: &Connection| db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(readers.each_ref().map(&count), [1, 1]);
        // A reader that is inside of a transaction keeps its state.
        readers[0].execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
        assert_eq!(count(&readers[0]), 1);
        writer.execute_batch("INSERT INTO t VALUES (2)").unwrap();
        assert_eq!(readers.each_ref().map(&count), [1, 2]);
        drop(readers);
        writer.execute_batch("INSERT INTO t VALUES (3)").unwrap();
        assert_eq!(count(&open_reader(&path, BUSY).unwrap()), 3);
        let mut files: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["db", "db-wal"]);
    }
}
