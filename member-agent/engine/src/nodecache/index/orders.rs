//! The order in which datasets were read first, as text.

use rusqlite::{OptionalExtension as _, params};

use super::{Index, failed};
use crate::engine::EngineError;

/// So many are kept; a large one has some 500 KiB.
const ORDERS: i64 = 256;

impl Index {
    /// What was kept of a dataset.
    pub(in super::super) fn order(&self, uid: &str) -> Result<Option<String>, EngineError> {
        let found = self.connection.query_row("SELECT body FROM orders WHERE uid = ?1", [uid], |row| row.get(0));
        found.optional().map_err(failed("look up order"))
    }

    /// Whether a version has a file at a path.
    pub(in super::super) fn has_path(&self, uid: &str, path: &str) -> Result<bool, EngineError> {
        let find = || {
            let mut find =
                self.connection.prepare_cached("SELECT EXISTS(SELECT 1 FROM uses WHERE uid = ?1 AND path = ?2)")?;
            find.query_row([uid, path], |row| row.get(0))
        };
        find().map_err(failed("look up file"))
    }

    /// Keeps an order; the ones that changed the longest ago go if there are too many.
    pub(in super::super) fn keep_order(&self, uid: &str, body: &str) -> Result<(), EngineError> {
        let keep = || {
            self.connection.execute("INSERT OR REPLACE INTO orders(uid, body) VALUES(?1, ?2)", params![uid, body])?;
            self.connection
                .execute("DELETE FROM orders WHERE number <= (SELECT MAX(number) FROM orders) - ?1", [ORDERS])
        };
        keep().map(drop).map_err(failed("keep order"))
    }
}
