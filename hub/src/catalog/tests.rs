//! What a question may and may not do, on a catalog of the store's own layout.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::Array as _;
use fluvial_model::kinds::cluster::CLOUD_LABEL;
use rusqlite::Connection;
use serde_json::json;

use super::*;

struct File {
    path: Mutex<PathBuf>,
    generation: AtomicU64,
}

impl CatalogSource for File {
    fn path(&self) -> PathBuf {
        self.path.lock().unwrap().clone()
    }
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }
}

/// The tables and views as `fluvial-raft` lays them out, with `clusters` filled.
fn write_catalog(path: &Path, clusters: i64) {
    let db = Connection::open(path).unwrap();
    db.pragma_update(None, "journal_mode", "WAL").unwrap();
    db.execute_batch("CREATE TABLE fv_objects (key BLOB PRIMARY KEY, value BLOB NOT NULL)").unwrap();
    db.execute_batch("INSERT INTO fv_objects VALUES (x'61', x'62')").unwrap();
    for table in TABLES {
        let typed = table.columns.iter().map(|column| {
            let kind = match column.kind {
                ColumnType::Text => "TEXT",
                ColumnType::Integer => "INTEGER",
                ColumnType::Real => "REAL",
            };
            format!("\"{}\" {kind}", column.name)
        });
        let typed = typed.collect::<Vec<_>>().join(", ");
        let names = table.columns.iter().map(|column| format!("\"{}\"", column.name)).collect::<Vec<_>>().join(", ");
        let name = table.name;
        db.execute_batch(&format!(
            "CREATE TABLE fv_row_{name} (fv_key BLOB NOT NULL, {typed}); CREATE VIEW {name} AS SELECT {names} FROM fv_row_{name};"
        ))
        .unwrap();
    }
    let labels = json!({ CLOUD_LABEL: "aws" }).to_string();
    for i in 0..clusters {
        db.execute(
            "INSERT INTO fv_row_clusters (fv_key, name, state, labels, capacity_bytes) VALUES (x'00', ?1, 'Ready', ?2, ?3)",
            rusqlite::params![format!("c{i}"), labels, i],
        )
        .unwrap();
    }
}

fn engine_with(dir: &Path, limits: Limits) -> (QueryEngine, Arc<File>) {
    let path = dir.join("catalog.db");
    write_catalog(&path, 3);
    let file = Arc::new(File { path: Mutex::new(path), generation: AtomicU64::new(0) });
    (QueryEngine::open(Arc::clone(&file) as Arc<dyn CatalogSource>, limits), file)
}

fn quick() -> Limits {
    Limits { time: Duration::from_millis(300), rows: 1000, bytes: 1024 * 1024, ..Limits::default() }
}

async fn text(engine: &QueryEngine, sql: &str, format: Format) -> String {
    String::from_utf8(engine.query(sql, format, &Sight::All).await.unwrap().bytes).unwrap()
}

#[tokio::test]
async fn every_format_shows_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = engine_with(dir.path(), quick());
    let sql = "SELECT name, capacity_bytes, platform, 1.5 AS half FROM clusters ORDER BY name LIMIT 2";
    let rows: Value = serde_json::from_str(&text(&engine, sql, Format::Json).await).unwrap();
    let expected = json!([
        { "name": "c0", "capacity_bytes": 0, "platform": null, "half": 1.5 },
        { "name": "c1", "capacity_bytes": 1, "platform": null, "half": 1.5 },
    ]);
    assert_eq!(rows, expected);
    assert_eq!(text(&engine, sql, Format::Csv).await, "name,capacity_bytes,platform,half\nc0,0,,1.5\nc1,1,,1.5\n");
    let table: Value = serde_json::from_str(&text(&engine, sql, Format::Table).await).unwrap();
    let columns = json!([
        { "name": "name", "type": "text" }, { "name": "capacity_bytes", "type": "integer" },
        { "name": "platform", "type": "text" }, { "name": "half", "type": "" },
    ]);
    assert_eq!(table, json!({ "columns": columns, "rows": [["c0", 0, null, 1.5], ["c1", 1, null, 1.5]] }));
    let arrow = engine.query(sql, Format::Arrow, &Sight::All).await.unwrap().bytes;
    let mut reader = arrow_ipc::reader::StreamReader::try_new(arrow.as_slice(), None).unwrap();
    let batch = reader.next().unwrap().unwrap();
    let types: Vec<String> = batch.schema().fields().iter().map(|field| field.data_type().to_string()).collect();
    assert_eq!(types, ["Utf8", "Int64", "Utf8", "Float64"]);
    assert_eq!((batch.num_rows(), batch.column(2).null_count()), (2, 2));
}

#[tokio::test]
async fn an_empty_answer_is_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = engine_with(dir.path(), quick());
    assert_eq!(text(&engine, "SELECT * FROM homes", Format::Json).await, "[\n]\n");
    assert_eq!(text(&engine, "SELECT uri, bytes FROM homes", Format::Csv).await, "uri,bytes\n");
    assert!(!engine.query("SELECT * FROM homes", Format::Arrow, &Sight::All).await.unwrap().bytes.is_empty());
}

#[tokio::test]
async fn ordinary_sql_works() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = engine_with(dir.path(), quick());
    for (sql, expected) in [
        ("SELECT count(*) AS n FROM clusters", "n\n3\n"),
        ("SELECT count(*) AS n FROM clusters WHERE labels ->> '$.\"fluvial.io/cloud\"' = 'aws'", "n\n3\n"),
        ("SELECT e.key AS k FROM clusters c, json_each(c.labels) e GROUP BY 1", "k\nfluvial.io/cloud\n"),
        ("WITH a AS (SELECT name FROM clusters) SELECT group_concat(name, '+') AS n FROM a", "n\nc0+c1+c2\n"),
        (
            "SELECT a.name, b.name FROM clusters a JOIN clusters b ON a.name < b.name ORDER BY 1, 2 LIMIT 1",
            "name,name_2\nc0,c1\n",
        ),
        ("SELECT state, sum(capacity_bytes) AS s FROM clusters GROUP BY state HAVING s > 0", "state,s\nReady,3\n"),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT i FROM n", "i\n1\n2\n3\n"),
        (
            "SELECT upper(name) AS u FROM clusters WHERE name LIKE 'c%' AND name IN (SELECT name FROM clusters) LIMIT 1;",
            "u\nC0\n",
        ),
    ] {
        assert_eq!(text(&engine, sql, Format::Csv).await, expected, "{sql}");
    }
}

#[tokio::test]
async fn whatever_does_not_only_read_the_contract_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, file) = engine_with(dir.path(), quick());
    for (sql, named) in [
        ("INSERT INTO fv_row_clusters (name) VALUES ('x')", "INSERT into fv_row_clusters"),
        ("DELETE FROM fv_row_clusters", "DELETE from fv_row_clusters"),
        ("UPDATE fv_row_clusters SET name = 'x'", "UPDATE of fv_row_clusters"),
        ("DROP TABLE fv_row_clusters", "DELETE from sqlite_master"),
        ("CREATE TABLE x (a)", "INSERT into sqlite_master"),
        ("CREATE TEMP TABLE x (a)", "INSERT into sqlite_temp_master"),
        ("ATTACH '/tmp/x' AS y", "ATTACH"),
        ("PRAGMA query_only = 0", "PRAGMA query_only"),
        ("PRAGMA hard_heap_limit = 1", "PRAGMA hard_heap_limit"),
        ("SELECT * FROM pragma_database_list", "pragma_database_list"),
        ("VACUUM INTO '/tmp/x'", "no SELECT"),
        ("SELECT count(*) FROM fv_objects", "it reads fv_objects"),
        ("SELECT count(*) FROM sqlite_schema", "it reads sqlite_"),
        ("BEGIN", "a transaction"),
        ("SAVEPOINT s", "a transaction"),
        ("SELECT load_extension('x')", "load_extension()"),
        ("SELECT fts3_tokenizer('x')", "fts3_tokenizer()"),
        ("SELECT value FROM fv_objects", "fv_objects.value"),
        ("SELECT fv_key FROM fv_row_clusters", "fv_row_clusters.fv_key"),
        ("SELECT name FROM fv_row_clusters", "fv_row_clusters.name"),
        ("WITH clusters AS (SELECT fv_key FROM fv_row_clusters) SELECT * FROM clusters", "fv_row_clusters.fv_key"),
        ("SELECT sql FROM sqlite_schema", "sqlite_master.sql"),
        ("SELECT * FROM dbstat", "dbstat"),
        ("SELECT 1; SELECT 2", "more than one statement"),
        ("SELECT 1; DROP TABLE fv_row_clusters", "DELETE from sqlite_master"),
        ("SELECT name FROM clusters WHERE name = ''; DELETE FROM fv_row_clusters --'", "DELETE from fv_row_clusters"),
    ] {
        match engine.query(sql, Format::Json, &Sight::All).await {
            Err(QueryError::Refused { what }) => assert!(what.contains(named), "{sql}: {what}"),
            other => panic!("{sql}: {other:?}"),
        }
    }
    let db = Connection::open(file.path()).unwrap();
    let left: i64 =
        db.query_row("SELECT count(*) FROM fv_row_clusters WHERE name LIKE 'c%'", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 3);
    assert_eq!(text(&engine, "SELECT count(*) AS n FROM clusters", Format::Csv).await, "n\n3\n");
}

#[tokio::test]
async fn wrong_sql_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = engine_with(dir.path(), quick());
    for (sql, named) in [
        ("SELEC 1", "syntax error"),
        ("SELECT nope FROM clusters", "no such column"),
        ("SELECT 1 FROM nowhere", "no such table"),
        ("", "empty"),
        ("-- a remark", "comment only"),
        ("SELECT '\0'", "unrecognized token"),
    ] {
        match engine.query(sql, Format::Json, &Sight::All).await {
            Err(QueryError::Sql { message }) => assert!(message.contains(named), "{sql}: {message}"),
            other => panic!("{sql}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_needs_too_much_ends_with_the_limit_that_it_hit() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = engine_with(dir.path(), quick());
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)";
    let deep = format!("SELECT {}1{}", "(1+".repeat(200), ")".repeat(200));
    let wide = format!("SELECT {}", vec!["1"; 300].join(","));
    let compound = vec!["SELECT 1"; 60].join(" UNION ALL ");
    let long = format!("SELECT '{}'", "x".repeat(70_000));
    let cross = "SELECT count(*) FROM clusters a, clusters b, clusters c, clusters d, clusters e, clusters f, clusters g, \
                 clusters h, clusters i, clusters j, clusters k, clusters l, clusters m, clusters n, clusters o, clusters p";
    for (sql, named) in [
        (format!("{endless} SELECT count(*) FROM n"), "ran for"),
        (format!("{endless} SELECT i FROM n"), "more than 1000 rows"),
        (
            format!("{endless} SELECT group_concat(x) FROM (SELECT printf('%1000d', i) AS x FROM n LIMIT 5000)"),
            "a value or row",
        ),
        (format!("{endless} SELECT i, zeroblob(1000) FROM n ORDER BY random()"), "ran for"),
        (
            format!("{endless}, m AS MATERIALIZED (SELECT hex(zeroblob(100000)) AS x FROM n) SELECT count(*) FROM m"),
            "ran for",
        ),
        ("SELECT length(zeroblob(2000000000))".to_owned(), "a value or row"),
        ("SELECT printf('%2000000d', 1)".to_owned(), "a value or row"),
        (format!("{endless} SELECT hex(zeroblob(10000)) FROM n LIMIT 900"), "the answer has more than"),
        (cross.to_owned(), "ran for"),
        (deep, "too large"),
        (wide, "too many columns"),
        (compound, "too many terms"),
        (long, "a value or row"),
    ] {
        let started = Instant::now();
        match engine.query(&sql, Format::Json, &Sight::All).await {
            Err(QueryError::Limit { limit }) => assert!(limit.contains(named), "{sql}: {limit}"),
            other => panic!("{sql}: {other:?}"),
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{sql}");
    }
    assert_eq!(text(&engine, "SELECT 1 AS one", Format::Csv).await, "one\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_waits_for_its_turn_only_so_long() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { connections: 1, wait: Duration::from_millis(50), time: Duration::from_secs(2), ..quick() };
    let (engine, _) = engine_with(dir.path(), limits);
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let (first, second) = tokio::join!(engine.query(endless, Format::Json, &Sight::All), async {
        // The other one has the only turn once no turn is left.
        while engine.turns.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        engine.query("SELECT 1", Format::Json, &Sight::All).await
    });
    assert!(matches!(first, Err(QueryError::Limit { .. })), "{first:?}");
    assert!(matches!(second, Err(QueryError::Busy { running: 1, .. })), "{second:?}");
}

#[tokio::test]
async fn a_replaced_file_is_opened_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, file) = engine_with(dir.path(), quick());
    let sql = "SELECT count(*) AS n FROM clusters";
    assert_eq!(text(&engine, sql, Format::Csv).await, "n\n3\n");
    let other = dir.path().join("other.db");
    write_catalog(&other, 5);
    *file.path.lock().unwrap() = other;
    file.generation.fetch_add(1, Ordering::SeqCst);
    assert_eq!(text(&engine, sql, Format::Csv).await, "n\n5\n");
}

#[tokio::test]
async fn the_schema_lists_every_table() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = engine_with(dir.path(), quick());
    let schema = engine.schema();
    for (shown, table) in schema["tables"].as_array().unwrap().iter().zip(TABLES) {
        assert_eq!(shown["name"], table.name);
        let names: Vec<&str> =
            shown["columns"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        let sql = format!("SELECT {} FROM {}", names.join(", "), table.name);
        assert_eq!(
            engine.query(&sql, Format::Json, &Sight::All).await.unwrap().rows,
            if table.name == "clusters" { 3 } else { 0 }
        );
    }
}
