//! ② What one caller sees of the catalog: the rows of objects that he may list.
//!
//! A connection for such a caller has a view of its own for each table, under the table's name, which comes before the
//! catalog's. It reads the rows through a second view, whose name nobody can guess: SQLite tells the authorizer through which
//! view something is read, but a part of a statement may have any name, too, and would be told alike.
//!
//! Invariant: the catalog's tables are read through these views alone.

use std::collections::BTreeSet;

use fluvial_model::access::Reach;
use fluvial_model::catalog::{Rows, TABLES, Table};
use rusqlite::Connection;
use rusqlite::hooks::AuthContext;

use super::guard::{RESERVED, TABLE_FUNCTIONS};
use crate::api::{Caller, Verb};
use crate::rights::Rights;

/// What somebody sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Everything.
    All,
    /// Of each table, some rows.
    Some(Vec<Shown>),
}

/// The rows of one table that are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub table: &'static Table,
    /// For each kind of object in it, by the value of the column `kind`, or of any kind: where such objects are seen.
    pub of: Vec<(Option<&'static str>, Reach)>,
}

impl Sight {
    /// What a caller sees.
    #[must_use]
    pub fn of(rights: &Rights, caller: &Caller) -> Self {
        let Some(who) = caller.who() else { return Self::Some(Vec::new()) };
        if who.is_master() {
            return Self::All;
        }
        let policy = rights.policy();
        let reach = |group: &str, plural: &str| policy.reach(who, Verb::List.as_str(), group, plural);
        let shown = |table: &'static Table| {
            let of = match table.rows {
                Rows::Namespaced(group, plural) => vec![(None, reach(group, plural))],
                // What belongs to no namespace is seen by those who see it everywhere.
                Rows::Fleet(group, plural) => match reach(group, plural) {
                    Reach::Everywhere => vec![(None, Reach::Everywhere)],
                    Reach::Namespaces(_) => Vec::new(),
                },
                Rows::ByKind(kinds) => {
                    kinds.iter().map(|(kind, group, plural)| (Some(*kind), reach(group, plural))).collect()
                }
            };
            Shown { table, of }
        };
        Self::Some(TABLES.iter().map(shown).collect())
    }
}

/// The views of one connection.
#[derive(Debug)]
pub(super) struct Window {
    /// What its hidden names begin with.
    secret: String,
}

impl Window {
    /// Makes the views.
    pub(super) fn put(connection: &Connection, tables: &[Shown]) -> rusqlite::Result<Self> {
        let window = Self { secret: format!("fv_{}_", hex(rand::random())) };
        let seen = window.seen();
        connection.execute_batch(&format!(
            "CREATE TEMP TABLE {seen} (tab TEXT, part INTEGER, namespace TEXT, PRIMARY KEY (tab, part, namespace)) \
             WITHOUT ROWID"
        ))?;
        for Shown { table, of } in tables {
            let name = table.name;
            let columns = table.columns.iter().map(|column| column.name).collect::<Vec<_>>().join(", ");
            let first = table.columns.first().map_or("fv_key", |column| column.name);
            let mut conditions = Vec::new();
            for (part, (kind, reach)) in of.iter().enumerate() {
                let place = match reach {
                    Reach::Everywhere => format!("({first} IS NULL OR {first} IS NOT NULL)"),
                    Reach::Namespaces(namespaces) => {
                        window.fill(connection, name, part, namespaces)?;
                        format!("namespace IN (SELECT namespace FROM {seen} WHERE tab = '{name}' AND part = {part})")
                    }
                };
                conditions.push(match kind {
                    Some(kind) => format!("(kind = '{kind}' AND {place})"),
                    None => format!("({place})"),
                });
            }
            if conditions.is_empty() {
                conditions.push(format!("({first} IS NULL AND {first} IS NOT NULL)"));
            }
            let condition = conditions.join(" OR ");
            // Each condition reads a column, and none is a constant that would be left out: a count reads no column of its
            // own, and then the authorizer would be told of the table alone, not through which view.
            connection.execute_batch(&format!(
                "CREATE TEMP VIEW {hidden} AS SELECT {columns} FROM main.fv_row_{name} \
                 WHERE {condition}; \
                 CREATE TEMP VIEW {name} AS SELECT {columns} FROM {hidden}",
                hidden = window.hidden(name),
            ))?;
        }
        Ok(window)
    }

    fn fill(
        &self,
        connection: &Connection,
        table: &str,
        part: usize,
        namespaces: &BTreeSet<String>,
    ) -> rusqlite::Result<()> {
        let mut insert = connection.prepare(&format!("INSERT INTO {} VALUES (?1, ?2, ?3)", self.seen()))?;
        for namespace in namespaces {
            insert.execute((table, i64::try_from(part).unwrap_or(i64::MAX), namespace))?;
        }
        Ok(())
    }

    fn seen(&self) -> String {
        format!("{}seen", self.secret)
    }

    fn hidden(&self, table: &str) -> String {
        format!("{}{table}", self.secret)
    }

    /// Whether a column may be read, by the way on which it is.
    pub(super) fn may_read(&self, context: &AuthContext<'_>, table: &str, column: &str) -> bool {
        let contract = |name: &str| TABLES.iter().find(|contract| contract.name == name);
        let hidden = context.accessor.and_then(|accessor| accessor.strip_prefix(&self.secret)).and_then(contract);
        if let Some(hidden) = hidden {
            // The body of a hidden view: its own table, and where its rows are seen.
            return table == self.seen() || table.strip_prefix("fv_row_") == Some(hidden.name);
        }
        if table.starts_with(&self.secret) {
            return context.accessor.is_some_and(|accessor| table == self.hidden(accessor));
        }
        if TABLE_FUNCTIONS.contains(&table) {
            return true;
        }
        if RESERVED.iter().any(|prefix| table.starts_with(prefix)) {
            return false;
        }
        match contract(table) {
            Some(known) if context.database_name != Some("main") => {
                column.is_empty() || known.columns.iter().any(|one| one.name == column)
            }
            // A count over a part of the statement itself reads no column of it.
            None => column.is_empty(),
            Some(_) => false,
        }
    }
}

fn hex(random: u128) -> String {
    format!("{random:032x}")
}
