//! ② Questions to the catalog: read-only SQL on the tables of `model::catalog`, within limits.
//!
//! Reading order: [`guard`] makes a connection that can only read the contract's tables, within SQLite's own limits;
//! this file lends such connections out and watches time, rows and bytes; [`output`] writes the answer.
//!
//! Invariants: a statement reads the contract's columns and nothing else, of rows that its caller may list ([`sight`]); it ends by its deadline; no more than
//! [`Limits::connections`] run at once and nobody waits longer than [`Limits::wait`] to begin; what a statement sorts
//! or collects goes through SQLite's page cache to temporary files, so that its memory is bounded by a few megabytes
//! beside the answer.
//!
//! Deliberately absent: writing (the store's), freshness (the caller makes a linearizable read first).

mod guard;
mod output;
pub mod sight;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fluvial_model::catalog::{ColumnType, TABLES};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::Semaphore;

use self::guard::Guarded;
pub use self::sight::Sight;

/// Which file the catalog is in. An installed snapshot replaces the file, and then the generation changes.
pub trait CatalogSource: Send + Sync + 'static {
    fn path(&self) -> PathBuf;
    fn generation(&self) -> u64;
}

/// How much one question may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a statement may run.
    pub time: Duration,
    pub rows: usize,
    /// Bytes of the answer.
    pub bytes: usize,
    /// Bytes of one value, and of one row that is sorted.
    pub value_bytes: i32,
    /// How many statements run at once.
    pub connections: usize,
    /// How long a statement waits for a connection.
    pub wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(5),
            rows: 100_000,
            bytes: 64 * 1024 * 1024,
            value_bytes: 1024 * 1024,
            // Three answers of 64 MiB, and what the arrow format holds beside them, stay well under half a gigabyte.
            connections: 3,
            wait: Duration::from_secs(2),
        }
    }
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// An array with an object for each row.
    #[default]
    Json,
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// `{"columns": [{"name", "type"}], "rows": [[…]]}`, for drawing.
    Table,
}

/// Why a question has no answer.
#[derive(Debug, Error)]
pub enum QueryError {
    /// What the statement does is not allowed.
    #[error("the statement is refused: {what}; only SELECT on the catalog's tables is allowed")]
    Refused { what: String },
    /// What the statement needs is too much.
    #[error("the statement exceeds a limit: {limit}")]
    Limit { limit: String },
    /// It is no SQL, or names what does not exist.
    #[error("the statement is wrong: {message}")]
    Sql { message: String },
    #[error("{running} statements are running already; waited {waited:?} for one to end")]
    Busy { running: usize, waited: Duration },
    #[error("opening the catalog {path:?} for reading")]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("writing the answer as {format}")]
    Encode {
        format: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the statement's task ended before it answered")]
    Ended,
}

/// An answer, ready to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub bytes: Vec<u8>,
    pub media_type: &'static str,
    pub rows: usize,
}

struct Pooled {
    connection: Guarded,
    generation: u64,
}

/// Answers questions.
pub struct QueryEngine {
    source: Arc<dyn CatalogSource>,
    limits: Limits,
    turns: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Pooled>>>,
}

impl QueryEngine {
    /// An engine over the catalog of `source`. Files are opened when they are needed.
    #[must_use]
    pub fn open(source: Arc<dyn CatalogSource>, limits: Limits) -> Self {
        let turns = Arc::new(Semaphore::new(limits.connections));
        Self { source, limits, turns, idle: Arc::new(Mutex::new(Vec::new())) }
    }

    /// The tables, and the names and types of their columns.
    #[must_use]
    pub fn schema(&self) -> Value {
        let kind = |kind: ColumnType| match kind {
            ColumnType::Text => "text",
            ColumnType::Integer => "integer",
            ColumnType::Real => "real",
        };
        let tables: Vec<Value> = TABLES
            .iter()
            .map(|table| {
                let columns: Vec<Value> = table
                    .columns
                    .iter()
                    .map(|column| json!({ "name": column.name, "type": kind(column.kind) }))
                    .collect();
                json!({ "name": table.name, "columns": columns })
            })
            .collect();
        json!({ "tables": tables })
    }

    /// Runs one statement on what this replica has applied, of which `sight` is shown.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn query(&self, sql: &str, format: Format, sight: &Sight) -> Result<Answer, QueryError> {
        let turn = tokio::time::timeout(self.limits.wait, Arc::clone(&self.turns).acquire_owned()).await;
        let busy = QueryError::Busy { running: self.limits.connections, waited: self.limits.wait };
        let Ok(Ok(turn)) = turn else { return Err(busy) };
        let (source, limits, idle, sql, sight) =
            (Arc::clone(&self.source), self.limits, Arc::clone(&self.idle), sql.to_owned(), sight.clone());
        // The task ends by its deadline even if nobody waits for it any more, and only then gives its turn back.
        let task = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            if let Sight::Some(tables) = &sight {
                // Made for this caller, and used for nothing else.
                let mut connection = Guarded::open_for(&source.path(), &limits, tables)?;
                return run(&mut connection, &sql, format, &limits);
            }
            let generation = source.generation();
            let kept = lock(&idle).pop().filter(|pooled| pooled.generation == generation);
            let mut pooled = match kept {
                Some(pooled) => pooled,
                None => Pooled { connection: Guarded::open(&source.path(), &limits)?, generation },
            };
            let result = run(&mut pooled.connection, &sql, format, &limits);
            // A connection whose file may be gone or broken is not used again.
            if matches!(
                result,
                Ok(_) | Err(QueryError::Refused { .. } | QueryError::Limit { .. } | QueryError::Sql { .. })
            ) {
                lock(&idle).push(pooled);
            }
            result
        });
        task.await.map_err(|_| QueryError::Ended)?
    }
}

fn lock(idle: &Mutex<Vec<Pooled>>) -> std::sync::MutexGuard<'_, Vec<Pooled>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(connection: &mut Guarded, sql: &str, format: Format, limits: &Limits) -> Result<Answer, QueryError> {
    connection.begin(Instant::now() + limits.time);
    let result = collect(connection, sql, format, limits);
    result.map_err(|error| match error {
        Failure::Sql(error) => connection.explain(error, limits),
        Failure::Query(error) => error,
    })
}

enum Failure {
    Sql(rusqlite::Error),
    Query(QueryError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

fn collect(connection: &Guarded, sql: &str, format: Format, limits: &Limits) -> Result<Answer, Failure> {
    let over = |limit: String| Failure::Query(QueryError::Limit { limit });
    let mut statement = connection.prepare(sql)?;
    if statement.column_count() == 0 {
        return Err(Failure::Query(QueryError::Refused { what: "it is no SELECT".into() }));
    }
    if !statement.readonly() {
        return Err(Failure::Query(QueryError::Refused { what: "it writes".into() }));
    }
    let columns = output::columns(&statement);
    let width = columns.len();
    let mut sink = output::sink(format, columns).map_err(Failure::Query)?;
    let mut count = 0;
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        count += 1;
        if count > limits.rows {
            return Err(over(format!("more than {} rows; use LIMIT or an aggregate", limits.rows)));
        }
        let cells = (0..width).map(|i| row.get_ref(i)).collect::<rusqlite::Result<Vec<_>>>()?;
        sink.row(&cells).map_err(Failure::Query)?;
        if sink.size() > limits.bytes {
            return Err(over(format!("the answer has more than {} bytes; select less", limits.bytes)));
        }
    }
    let (bytes, media_type) = sink.finish().map_err(Failure::Query)?;
    Ok(Answer { bytes, media_type, rows: count })
}

#[cfg(test)]
mod tests;
