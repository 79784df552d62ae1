//! ② A connection that can read the contract's tables and do nothing else, within SQLite's limits.
//!
//! Invariant: what the authorizer does not know is denied.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use fluvial_model::catalog::TABLES;
use fluvial_raft::database::DATABASE_VFS;
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags, Statement};

use super::sight::{Shown, Window};
use super::{Limits, QueryError};

/// The virtual machine's steps between two looks at the clock: some tens of microseconds.
const STEPS: i32 = 1_000;
/// The page cache of a connection, KiB. It also bounds how much is sorted in memory.
const CACHE_KIB: i32 = 4096;
/// How long a statement waits for a lock of the writer.
const BUSY: std::time::Duration = std::time::Duration::from_secs(2);

/// SQLite's own limits. Each is far above what a question by hand or by a program needs.
const LIMITS: &[(Limit, i32)] = &[
    (Limit::SQLITE_LIMIT_SQL_LENGTH, 64 * 1024),
    (Limit::SQLITE_LIMIT_COLUMN, 256),
    (Limit::SQLITE_LIMIT_EXPR_DEPTH, 100),
    (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 50),
    (Limit::SQLITE_LIMIT_VDBE_OP, 50_000),
    (Limit::SQLITE_LIMIT_FUNCTION_ARG, 64),
    (Limit::SQLITE_LIMIT_ATTACHED, 0),
    (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 256),
    (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 1),
    (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 1),
    (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
];

/// Table-valued functions that read only their arguments; `labels` are JSON text.
pub(super) const TABLE_FUNCTIONS: &[&str] = &["json_each", "json_tree"];

/// SQLite's functions that compute and do nothing else.
const FUNCTIONS: &[&str] = &[
    "->",
    "->>",
    "abs",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "avg",
    "ceil",
    "ceiling",
    "char",
    "coalesce",
    "concat",
    "concat_ws",
    "cos",
    "cosh",
    "count",
    "cume_dist",
    "current_date",
    "current_time",
    "current_timestamp",
    "date",
    "datetime",
    "degrees",
    "dense_rank",
    "exp",
    "first_value",
    "floor",
    "format",
    "glob",
    "group_concat",
    "hex",
    "if",
    "ifnull",
    "iif",
    "instr",
    "json",
    "json_array",
    "json_array_length",
    "json_error_position",
    "json_extract",
    "json_group_array",
    "json_group_object",
    "json_object",
    "json_patch",
    "json_pretty",
    "json_quote",
    "json_type",
    "json_valid",
    "julianday",
    "lag",
    "last_value",
    "lead",
    "length",
    "like",
    "likelihood",
    "likely",
    "ln",
    "log",
    "log10",
    "log2",
    "lower",
    "ltrim",
    "max",
    "min",
    "mod",
    "nth_value",
    "ntile",
    "nullif",
    "octet_length",
    "percent_rank",
    "pi",
    "pow",
    "power",
    "printf",
    "quote",
    "radians",
    "random",
    "rank",
    "replace",
    "round",
    "row_number",
    "rtrim",
    "sign",
    "sin",
    "sinh",
    "soundex",
    "sqlite_version",
    "sqrt",
    "strftime",
    "string_agg",
    "substr",
    "substring",
    "subtype",
    "sum",
    "tan",
    "tanh",
    "time",
    "timediff",
    "total",
    "trim",
    "trunc",
    "typeof",
    "unhex",
    "unicode",
    "unixepoch",
    "unlikely",
    "upper",
    "zeroblob",
    "randomblob",
];

/// A guarded connection.
pub struct Guarded {
    connection: Connection,
    /// What the authorizer denied first.
    denied: Arc<Mutex<Option<String>>>,
    deadline: Arc<Mutex<Instant>>,
}

fn set<T>(cell: &Mutex<T>, value: T) {
    *cell.lock().unwrap_or_else(PoisonError::into_inner) = value;
}

impl Guarded {
    /// Opens a catalog for reading.
    ///
    /// # Errors
    /// If the file cannot be opened, or SQLite does not take a setting.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, QueryError> {
        Self::prepare_connection(path, limits, None)
            .map_err(|source| QueryError::Open { path: path.to_owned(), source })
    }

    /// Opens a catalog for reading the rows that `tables` say. Tables that are not among them cannot be read.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn open_for(path: &Path, limits: &Limits, tables: &[Shown]) -> Result<Self, QueryError> {
        Self::prepare_connection(path, limits, Some(tables))
            .map_err(|source| QueryError::Open { path: path.to_owned(), source })
    }

    fn prepare_connection(path: &Path, limits: &Limits, tables: Option<&[Shown]>) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags_and_vfs(path, flags, DATABASE_VFS)?;
        connection.busy_timeout(BUSY)?;
        // Sorting and intermediate tables go to files: memory stays bounded, and the deadline bounds the files.
        connection.pragma_update(None, "temp_store", "FILE")?;
        let window = tables.map(|tables| Window::put(&connection, tables)).transpose()?;
        connection.pragma_update(None, "query_only", true)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.pragma_update(None, "mmap_size", 0)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        for (limit, value) in LIMITS {
            connection.set_limit(*limit, *value)?;
        }
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, limits.value_bytes)?;
        // The schema is read now, before the authorizer could ask about it.
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
        let denied = Arc::new(Mutex::new(None));
        let note = Arc::clone(&denied);
        connection.authorizer(Some(move |context: AuthContext<'_>| match problem(&context, window.as_ref()) {
            None => Authorization::Allow,
            Some(what) => {
                note.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
                Authorization::Deny
            }
        }))?;
        let deadline = Arc::new(Mutex::new(Instant::now()));
        let until = Arc::clone(&deadline);
        connection.progress_handler(
            STEPS,
            Some(move || Instant::now() >= *until.lock().unwrap_or_else(PoisonError::into_inner)),
        )?;
        Ok(Self { connection, denied, deadline })
    }

    /// Begins a new question, to be over by `deadline`.
    pub fn begin(&self, deadline: Instant) {
        set(&self.denied, None);
        set(&self.deadline, deadline);
    }

    /// Compiles exactly one statement.
    ///
    /// # Errors
    /// What SQLite says; see [`Self::explain`].
    pub fn prepare(&self, sql: &str) -> rusqlite::Result<Statement<'_>> {
        self.connection.prepare(sql)
    }

    /// SQLite's error in terms of what was refused or exceeded.
    #[must_use]
    pub fn explain(&self, error: rusqlite::Error, limits: &Limits) -> QueryError {
        let limit = |limit: String| QueryError::Limit { limit };
        if let Some(what) = self.denied.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return QueryError::Refused { what };
        }
        if matches!(error, rusqlite::Error::MultipleStatement) {
            return QueryError::Refused { what: "more than one statement".into() };
        }
        let message = match &error {
            rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
            rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
            other => other.to_string(),
        };
        match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => limit(format!("it ran for {:?}", limits.time)),
            Some(ErrorCode::TooBig) => limit(format!("a value or row has more than {} bytes", limits.value_bytes)),
            Some(ErrorCode::OutOfMemory) => limit("it needs too much memory".into()),
            Some(ErrorCode::DiskFull) => limit("it needs more temporary space than there is".into()),
            Some(ErrorCode::ReadOnly | ErrorCode::AuthorizationForStatementDenied) => {
                QueryError::Refused { what: message }
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => QueryError::Busy { running: 1, waited: BUSY },
            _ if is_limit(&message) => limit(message),
            _ => QueryError::Sql { message },
        }
    }
}

/// How SQLite words that a statement is too big, which has no code of its own.
fn is_limit(message: &str) -> bool {
    let lower = message.to_ascii_lowercase();
    lower.starts_with("too many")
        || lower.contains("too large")
        || lower.contains("too big")
        || lower.contains("too complex")
        || lower.contains("stack overflow")
        || lower.contains("too many arguments")
}

/// Why an action is not allowed, if so.
fn problem(context: &AuthContext<'_>, window: Option<&Window>) -> Option<String> {
    match context.action {
        AuthAction::Select | AuthAction::Recursive => None,
        AuthAction::Read { table_name, column_name } => {
            let may = match window {
                None => may_read(context.accessor, table_name, column_name),
                Some(window) => window.may_read(context, table_name, column_name),
            };
            (!may).then(|| format!("it reads {table_name}.{column_name}"))
        }
        AuthAction::Function { function_name } => {
            let known = FUNCTIONS.iter().any(|known| known.eq_ignore_ascii_case(function_name));
            (!known).then(|| format!("it calls {function_name}()"))
        }
        AuthAction::Pragma { pragma_name, .. } => Some(format!("PRAGMA {pragma_name}")),
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => Some("ATTACH or DETACH".into()),
        AuthAction::Insert { table_name } => Some(format!("INSERT into {table_name}")),
        AuthAction::Update { table_name, .. } => Some(format!("UPDATE of {table_name}")),
        AuthAction::Delete { table_name } => Some(format!("DELETE from {table_name}")),
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => Some("a transaction".into()),
        // Definitions, maintenance, and whatever SQLite learns later.
        _ => Some("it changes the database or its definitions".into()),
    }
}

/// The columns of a view may be read, and, where the view itself reads them, those of the table behind it.
fn may_read(accessor: Option<&str>, table: &str, column: &str) -> bool {
    if TABLE_FUNCTIONS.contains(&table) {
        return true;
    }
    let behind = table.strip_prefix("fv_row_");
    if column.is_empty() {
        // A count reads no column, and names whatever it counts: a view, the table behind it, or a part of the
        // statement itself under a name of the user's choice.
        let contract = |name: &str| TABLES.iter().any(|contract| contract.name == name);
        return behind.is_some_and(contract) || !RESERVED.iter().any(|prefix| table.starts_with(prefix));
    }
    let name = behind.filter(|name| accessor == Some(name)).unwrap_or(table);
    let Some(contract) = TABLES.iter().find(|contract| contract.name == name) else { return false };
    contract.columns.iter().any(|known| known.name == column)
}

/// How the names of tables begin that are not the contract's.
pub(super) const RESERVED: &[&str] = &["fv_", "sqlite_", "pragma_", "dbstat"];
