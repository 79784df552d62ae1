//! ⑤ SQLite databases that one process has to itself.
//!
//! Invariant: nothing of such a database is mapped. SQLite maps the index of a shared log, and a write to a page for which a
//! full disk has no block ends the process by a signal; that of a log of one's own is in memory.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

/// How long is waited for another process to end, the one before this one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// When a transaction is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// When it has ended.
    Full,
    /// Some time later; a power cut takes the last ones, and leaves no half of one.
    Later,
}

/// Opens a database, making it when it does not exist; as long as it is open, nobody else can read it.
///
/// # Errors
/// When it cannot be opened, is no database, or is another process' for five seconds.
pub fn open_own(file: &Path, durability: Durability) -> rusqlite::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Before the log is looked at for the first time: after that it is shared.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let synchronous = match durability {
        Durability::Full => "FULL",
        Durability::Later => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_beside_the_log_is_made_and_so_nothing_is_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let connection = open_own(&folder.path().join("db"), Durability::Full).unwrap();
        connection.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)").unwrap();
        let mut files: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["db", "db-wal"]);
    }
}
