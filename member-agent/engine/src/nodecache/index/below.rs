//! Files below chosen paths of a prepared version, complete or not.

use fluvial_model::manifest::RelativePath;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension as _, params_from_iter};

use super::{Index, Missing, failed, missing_of, number};
use crate::engine::EngineError;

/// The condition that a path is one of those, or below one, with its values; parameters begin behind `first`.
fn below(paths: &[RelativePath], first: usize) -> (String, Vec<Value>) {
    if paths.iter().any(|path| path.as_str().is_empty()) || paths.is_empty() {
        return ("TRUE".to_owned(), Vec::new());
    }
    let (mut conditions, mut values) = (Vec::new(), Vec::new());
    for path in paths {
        let at = first + values.len() + 1;
        // `0` comes after `/`: everything in between begins with the path and a slash.
        conditions.push(format!("u.path = ?{at} OR (u.path > ?{} AND u.path < ?{})", at + 1, at + 2));
        values.extend([path.to_string(), format!("{path}/"), format!("{path}0")].map(Value::Text));
    }
    (format!("({})", conditions.join(" OR ")), values)
}

impl Index {
    /// A prepared dataset's name and root.
    pub(in super::super) fn version(&self, uid: &str) -> Result<Option<(String, String)>, EngineError> {
        let known = self
            .connection
            .query_row("SELECT name, root FROM datasets WHERE uid = ?1", [uid], |row| Ok((row.get(0)?, row.get(1)?)));
        known.optional().map_err(failed("look up dataset"))
    }

    /// How many files are below the paths (all, if there are none), and their bytes.
    pub(in super::super) fn sum_below(&self, uid: &str, paths: &[RelativePath]) -> Result<(u64, u64), EngineError> {
        let (condition, values) = below(paths, 1);
        let sql = format!("SELECT COUNT(*), COALESCE(SUM(u.bytes), 0) FROM uses u WHERE u.uid = ?1 AND {condition}");
        let values = std::iter::once(Value::Text(uid.to_owned())).chain(values);
        let read =
            self.connection.query_row(&sql, params_from_iter(values), |row| Ok((number(row, 0)?, number(row, 1)?)));
        read.map_err(failed("sum up files"))
    }

    /// Files below the paths, in order, after the path `after`, each with the tier that has it, if one does.
    pub(in super::super) fn files_below(
        &self,
        uid: &str,
        paths: &[RelativePath],
        after: &str,
        limit: u32,
    ) -> Result<Vec<(Missing, Option<String>)>, EngineError> {
        let (condition, values) = below(paths, 3);
        let sql = format!(
            "SELECT u.path, u.object, u.bytes, u.mtime, u.digest, NULL, NULL, NULL, NULL, o.tier
             FROM uses u LEFT JOIN objects o ON o.id = u.object
             WHERE u.uid = ?1 AND u.path > ?2 AND {condition} ORDER BY u.path LIMIT ?3"
        );
        let first = [Value::Text(uid.to_owned()), Value::Text(after.to_owned()), Value::Integer(limit.into())];
        let read = || {
            let mut statement = self.connection.prepare(&sql)?;
            let rows = statement.query_map(params_from_iter(first.into_iter().chain(values)), |row| {
                Ok((missing_of(row)?, row.get(9)?))
            })?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        read().map_err(failed("list files"))
    }

    /// Whether an object is a file below one of the paths.
    pub(in super::super) fn is_below(
        &self,
        uid: &str,
        paths: &[RelativePath],
        object: &str,
    ) -> Result<bool, EngineError> {
        let (condition, values) = below(paths, 2);
        let sql = format!("SELECT EXISTS(SELECT 1 FROM uses u WHERE u.object = ?1 AND u.uid = ?2 AND {condition})");
        let first = [Value::Text(object.to_owned()), Value::Text(uid.to_owned())];
        let found =
            self.connection.query_row(&sql, params_from_iter(first.into_iter().chain(values)), |row| row.get(0));
        found.map_err(failed("look up uses"))
    }
}
