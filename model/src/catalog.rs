//! ② The catalog's tables: what SQL sees of the objects, as a pure projection.
//!
//! `fluvial-raft` applies a write and, in the same SQLite transaction, replaces the rows that the written key projects
//! to. The tables can be rebuilt from the objects at any time, so nothing is kept here alone; [`AUDIT`] is another matter.
//!
//! Deliberately absent: SQL text other than names and types, and secrets (a Secret projects to nothing).

use jiff::Timestamp;
use serde::Serialize;

use crate::kinds::{DATA_GROUP, FLUVIAL_GROUP, kind_of_key};

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    Text,
    Integer,
    Real,
}

/// A column: its name is a contract with users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub kind: ColumnType,
}

/// The objects that a table's rows are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// A resource of the cluster's scope: group and plural name.
    Fleet(&'static str, &'static str),
    /// A resource of namespaces; the column `namespace` says of which.
    Namespaced(&'static str, &'static str),
    /// Several of these: the column `kind` says which, by its kind, group and plural name.
    ByKind(&'static [(&'static str, &'static str, &'static str)]),
}

/// A table that users query by `name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    pub name: &'static str,
    /// Whose rows they are: who may list the objects sees them.
    pub rows: Rows,
    pub columns: &'static [Column],
    /// Column lists, each of which gets an index.
    pub indexes: &'static [&'static [&'static str]],
}

/// A value in a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Null,
    Text(String),
    Integer(i64),
    Real(f64),
}

impl Cell {
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    #[must_use]
    pub fn optional(text: Option<&str>) -> Self {
        text.map_or(Self::Null, Self::text)
    }

    /// SQL's integers are signed: a count beyond them is shown as the largest.
    #[must_use]
    pub fn integer(n: u64) -> Self {
        Self::Integer(i64::try_from(n).unwrap_or(i64::MAX))
    }

    /// RFC 3339 text, which sorts by time.
    #[must_use]
    pub fn time(time: Option<Timestamp>) -> Self {
        time.map_or(Self::Null, |t| Self::Text(t.to_string()))
    }

    /// JSON text.
    #[must_use]
    pub fn json<T: Serialize>(value: &T) -> Self {
        serde_json::to_string(value).map_or(Self::Null, Self::Text)
    }
}

/// A row of `table`, its cells in the order of the table's columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub table: &'static str,
    pub cells: Vec<Cell>,
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: ColumnType::Text }
}
const fn integer(name: &'static str) -> Column {
    Column { name, kind: ColumnType::Integer }
}
const fn real(name: &'static str) -> Column {
    Column { name, kind: ColumnType::Real }
}

/// The audit trail, record by record ([`crate::audit`]). No object projects to it: it is appended to.
/// Who may list the resource `audit` sees it.
pub const AUDIT: Table = Table {
    name: "audit",
    rows: Rows::Fleet(FLUVIAL_GROUP, "audit"),
    columns: &[
        integer("sequence"),
        text("time"),
        text("user"),
        text("groups"),
        text("address"),
        text("request"),
        text("verb"),
        text("api_group"),
        text("resource"),
        text("namespace"),
        text("name"),
        integer("code"),
        integer("revision"),
        integer("count"),
        text("message"),
        text("previous"),
        text("hash"),
    ],
    indexes: &[],
};

/// Every table of the catalog.
pub const TABLES: &[Table] = &[
    Table {
        name: "clusters",
        rows: Rows::Fleet(FLUVIAL_GROUP, "clusters"),
        columns: &[
            text("name"),
            text("cloud"),
            text("region"),
            text("zone"),
            text("platform"),
            text("state"),
            text("last_seen"),
            text("labels"),
            integer("capacity_bytes"),
            integer("used_bytes"),
            text("agent_version"),
        ],
        indexes: &[&["name"]],
    },
    Table {
        name: "datasets",
        rows: Rows::Namespaced(DATA_GROUP, "datasets"),
        columns: &[
            text("namespace"),
            text("name"),
            text("phase"),
            integer("total_bytes"),
            integer("files"),
            text("root"),
            text("engine"),
            text("labels"),
            text("created_at"),
        ],
        indexes: &[&["namespace", "name"], &["name"], &["phase"]],
    },
    Table {
        name: "homes",
        rows: Rows::Namespaced(DATA_GROUP, "datasets"),
        columns: &[
            text("namespace"),
            text("dataset"),
            text("storage"),
            text("cluster"),
            text("uri"),
            text("root"),
            integer("bytes"),
            text("state"),
            text("verified_at"),
        ],
        indexes: &[&["namespace", "dataset"], &["storage"], &["cluster"]],
    },
    Table {
        name: "storages",
        rows: Rows::Fleet(FLUVIAL_GROUP, "storages"),
        columns: &[
            text("name"),
            text("cluster"),
            text("uri"),
            integer("homes"),
            integer("used_bytes"),
            real("price_per_gb_month"),
            text("labels"),
            text("created_at"),
        ],
        indexes: &[&["name"]],
    },
    Table {
        name: "links",
        rows: Rows::Fleet(FLUVIAL_GROUP, "links"),
        columns: &[
            text("name"),
            text("from_place"),
            text("to_place"),
            integer("bandwidth_bytes_per_second"),
            real("egress_price_per_gb"),
        ],
        indexes: &[&["name"]],
    },
    Table {
        name: "placements",
        rows: Rows::Namespaced(FLUVIAL_GROUP, "placements"),
        columns: &[
            text("namespace"),
            text("name"),
            integer("datasets"),
            text("clusters"),
            integer("count"),
            text("spread_by"),
            integer("pinned"),
            text("reasons"),
        ],
        indexes: &[&["namespace", "name"]],
    },
    Table {
        name: "mounts",
        rows: Rows::Namespaced(FLUVIAL_GROUP, "datasetmounts"),
        columns: &[
            text("namespace"),
            text("name"),
            text("dataset"),
            text("cluster"),
            text("directory"),
            text("phase"),
            text("mode"),
            text("root"),
            text("message"),
        ],
        indexes: &[&["namespace", "name"]],
    },
    Table {
        name: "cache_locations",
        rows: Rows::Namespaced(FLUVIAL_GROUP, "cachelocations"),
        columns: &[
            text("namespace"),
            text("dataset"),
            text("cluster"),
            text("engine"),
            text("phase"),
            integer("cached_bytes"),
            integer("total_bytes"),
            real("cached_fraction"),
            text("root"),
            text("reported_at"),
        ],
        indexes: &[&["namespace", "dataset"], &["cluster"]],
    },
    Table {
        name: "cache_nodes",
        rows: Rows::Namespaced(FLUVIAL_GROUP, "cachelocations"),
        columns: &[
            text("namespace"),
            text("dataset"),
            text("cluster"),
            text("node"),
            text("medium"),
            text("zone"),
            text("region"),
            integer("cached_bytes"),
            integer("capacity_bytes"),
        ],
        indexes: &[&["namespace", "dataset"], &["cluster", "node"]],
    },
    Table {
        name: "operations",
        rows: Rows::ByKind(&[
            ("DataLoad", DATA_GROUP, "dataloads"),
            ("DataMigrate", DATA_GROUP, "datamigrates"),
            ("DataBackup", DATA_GROUP, "databackups"),
            ("DataRestore", FLUVIAL_GROUP, "datarestores"),
        ]),
        columns: &[
            text("namespace"),
            text("name"),
            text("kind"),
            text("dataset"),
            text("phase"),
            text("from_cluster"),
            text("to_cluster"),
            integer("bytes_done"),
            integer("bytes_total"),
            integer("files_done"),
            integer("files_total"),
            real("bytes_per_second"),
            text("started_at"),
            text("finished_at"),
            text("message"),
        ],
        indexes: &[&["namespace", "name"], &["namespace", "dataset"], &["phase"]],
    },
    Table {
        name: "events",
        rows: Rows::Namespaced("", "events"),
        columns: &[
            text("namespace"),
            text("kind"),
            text("name"),
            text("type"),
            text("reason"),
            text("message"),
            integer("count"),
            text("last_seen"),
        ],
        indexes: &[&["namespace", "name"]],
    },
    AUDIT,
];

/// The rows that the object stored at `key` shows in the catalog. Unknown keys and values that are not objects project
/// to nothing.
#[must_use]
pub fn project(key: &str, value: &[u8]) -> Vec<Row> {
    match kind_of_key(key) {
        Some(kind) if !kind.info.secret => (kind.project)(value),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{KINDS, find};
    use crate::resource::Scope;

    #[test]
    fn every_table_is_about_kinds_that_there_are() {
        // The trail is nobody's object.
        for table in TABLES.iter().filter(|table| table.name != "audit") {
            let first = table.columns[0].name;
            let (about, scope): (Vec<_>, _) = match table.rows {
                Rows::Fleet(group, plural) => (vec![(group, plural)], Scope::Cluster),
                Rows::Namespaced(group, plural) => (vec![(group, plural)], Scope::Namespaced),
                Rows::ByKind(kinds) => {
                    assert!(table.columns.iter().any(|column| column.name == "kind"), "{}", table.name);
                    for (kind, group, plural) in kinds {
                        assert_eq!(find(group, plural).map(|found| found.info.kind), Some(*kind));
                    }
                    (kinds.iter().map(|(_, group, plural)| (*group, *plural)).collect(), Scope::Namespaced)
                }
            };
            assert_eq!(first == "namespace", scope == Scope::Namespaced, "{}", table.name);
            for (group, plural) in about {
                assert_eq!(find(group, plural).map(|kind| kind.info.scope), Some(scope), "{}: {plural}", table.name);
            }
        }
        // Every kind of an operation has its rows shown to somebody.
        let operations = TABLES.iter().find(|table| table.name == "operations").map(|table| table.rows);
        let Some(Rows::ByKind(kinds)) = operations else { panic!("{operations:?}") };
        let is_operation = |kind: &str| kind.starts_with("Data") && !kind.starts_with("Dataset");
        for kind in KINDS.iter().filter(|kind| is_operation(kind.info.kind)) {
            assert!(kinds.iter().any(|(known, ..)| *known == kind.info.kind), "{}", kind.info.kind);
        }
    }
}
