//! What is held, in one small SQLite database: objects, datasets, and which path uses which object.
//!
//! A use says that a path is that object, and whether it is wanted before anybody reads it; an object is a fact. What is
//! missing is what is wanted and is no object; what nobody wants beforehand may be given up for room. References are counted by
//! counting uses, so no counter can go wrong. `synchronous=NORMAL`: a power cut may forget the last objects, whose files
//! are then removed as strangers when the cache opens, and fetched again. Files are synced many at a time: those that were
//! not are noted, and verified anew when the cache opens.
//!
//! Invariant: what is forgotten is forgotten for good, power cut or not, before its file goes. Else the index could come
//! back with an object as synced whose file was fetched a second time, and had not reached the disk.

use std::path::Path;

use bytes::Bytes;
use fluvial_model::manifest::{BlockHash, Digest, Entry, File, RelativePath, walk};
use fluvial_transfer::database::{Durability, open_own};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::engine::{CacheRequest, EngineError};

mod below;
mod orders;
mod unfinished;

pub(super) use unfinished::Unfinished;

/// The shape of the tables. A cache of another shape is begun anew: everything in it can be fetched again.
const SHAPE: i64 = 4;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS objects(
  id TEXT PRIMARY KEY, tier TEXT NOT NULL, bytes INTEGER NOT NULL, digest TEXT NOT NULL,
  opened INTEGER NOT NULL, synced INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS objects_by_opened ON objects(tier, opened);
CREATE TABLE IF NOT EXISTS datasets(
  uid TEXT PRIMARY KEY, name TEXT NOT NULL, root TEXT NOT NULL, paths TEXT NOT NULL, pinned INTEGER NOT NULL,
  on_demand INTEGER NOT NULL, links INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uses(
  uid TEXT NOT NULL, path TEXT NOT NULL, object TEXT NOT NULL, bytes INTEGER NOT NULL, mtime INTEGER NOT NULL,
  digest TEXT, wanted INTEGER NOT NULL, PRIMARY KEY(uid, path)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS uses_by_object ON uses(object);
CREATE TABLE IF NOT EXISTS unfinished(
  object TEXT PRIMARY KEY, tier TEXT NOT NULL, file TEXT NOT NULL, bytes INTEGER NOT NULL, tag TEXT,
  parts BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orders(number INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TEMP TABLE previous(
  path TEXT PRIMARY KEY, object TEXT NOT NULL, bytes INTEGER NOT NULL, mtime INTEGER NOT NULL) WITHOUT ROWID;
CREATE TEMP TABLE listed(
  uid TEXT NOT NULL, path TEXT NOT NULL, bytes INTEGER NOT NULL, mtime INTEGER NOT NULL, tag TEXT NOT NULL,
  PRIMARY KEY(uid, path)) WITHOUT ROWID;
";

/// The database.
pub(super) struct Index {
    connection: Connection,
}

/// A complete file of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub id: String,
    pub tier: String,
    pub bytes: u64,
}

/// A file that is wanted and not there.
#[derive(Debug, Clone)]
pub(super) struct Missing {
    pub path: String,
    pub object: String,
    pub bytes: u64,
    pub mtime_ns: i64,
    pub digest: Option<Digest>,
    /// The version at the source, as listed; looked up for files without a digest only.
    pub listed: Option<ListedFile>,
}

/// A file as the source lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedFile {
    pub path: String,
    pub bytes: u64,
    pub mtime_ns: i64,
    pub tag: String,
}

/// A file of a prepared version, as it is opened.
#[derive(Debug, Clone)]
pub(super) struct Openable {
    pub dataset: String,
    /// The version that is prepared.
    pub root: String,
    /// The file, if the version has it, and the tier that holds it and when it was opened last, if one does.
    pub file: Option<(Missing, Option<(String, i64)>)>,
}

/// Sums over one dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub root: String,
    pub on_demand: bool,
    pub cached_bytes: u64,
    pub total_bytes: u64,
    pub cached_files: u64,
    pub total_files: u64,
    /// Bytes on disk by tier; an object that two paths use counts once.
    pub by_tier: Vec<(String, u64)>,
}

fn failed(op: &'static str) -> impl Fn(rusqlite::Error) -> EngineError {
    move |source| EngineError::Index { op, source }
}

/// What [`stored`] wrote.
fn number(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.max(0).cast_unsigned())
}

/// SQLite counts in i64: larger sizes than 8 EiB do not exist.
fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Index {
    pub(super) fn open(file: &Path) -> Result<Self, EngineError> {
        let open = || {
            let connection = open_own(file, Durability::Later)?;
            let shape: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if shape != SHAPE {
                for table in ["objects", "datasets", "uses", "unfinished", "orders"] {
                    connection.execute_batch(&format!("DROP TABLE IF EXISTS {table}"))?;
                }
                connection.pragma_update(None, "user_version", SHAPE)?;
            }
            connection.execute_batch(SCHEMA)?;
            Ok(connection)
        };
        Ok(Self { connection: open().map_err(failed("open"))? })
    }

    pub(super) fn objects(&self) -> Result<Vec<Object>, EngineError> {
        self.rows("list objects", "SELECT id, tier, bytes FROM objects")
    }

    fn rows(&self, op: &'static str, sql: &str) -> Result<Vec<Object>, EngineError> {
        let read = || {
            let mut statement = self.connection.prepare(sql)?;
            statement.query_map([], object_of)?.collect::<Result<Vec<_>, _>>()
        };
        read().map_err(failed(op))
    }

    /// Forgets objects whose files are gone, or will be.
    pub(super) fn forget(&mut self, objects: &[Object]) -> Result<(), EngineError> {
        let forget = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            {
                let mut statement = transaction.prepare_cached("DELETE FROM objects WHERE id = ?1")?;
                for object in objects {
                    statement.execute([&object.id])?;
                }
            }
            transaction.commit()
        };
        if objects.is_empty() { Ok(()) } else { self.for_good(forget).map_err(failed("forget objects")) }
    }

    /// Runs a transaction that no power cut undoes.
    fn for_good<T>(&mut self, transact: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        self.synchronous("FULL")?;
        let done = transact(&mut self.connection);
        self.synchronous("NORMAL")?;
        done
    }

    fn synchronous(&self, how: &str) -> rusqlite::Result<()> {
        self.connection.pragma_update(None, "synchronous", how)
    }

    /// The tier that holds an object.
    pub(super) fn tier_of(&self, id: &str) -> Result<Option<String>, EngineError> {
        let found = self.connection.query_row("SELECT tier FROM objects WHERE id = ?1", [id], |row| row.get(0));
        found.optional().map_err(failed("look up object"))
    }

    /// Records an object; false (and nothing recorded) if nobody uses it any more or it is there already.
    pub(super) fn add(&self, object: &Object, digest: &Digest, now: i64) -> Result<bool, EngineError> {
        let added = self.connection.execute(
            "INSERT OR IGNORE INTO objects(id, tier, bytes, digest, opened, synced)
             SELECT ?1, ?2, ?3, ?4, ?5, 0 WHERE EXISTS(SELECT 1 FROM uses WHERE object = ?1)",
            params![object.id, object.tier, stored(object.bytes), digest.to_string(), now],
        );
        added.map(|rows| rows == 1).map_err(failed("record object"))
    }

    /// What opening a path needs; `None` if the dataset was not prepared.
    pub(super) fn openable(&self, uid: &str, path: &str) -> Result<Option<Openable>, EngineError> {
        let read = || {
            let dataset = "SELECT name, root FROM datasets WHERE uid = ?1";
            let known: Option<(String, String)> = self
                .connection
                .prepare_cached(dataset)?
                .query_row([uid], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((dataset, root)) = known else { return Ok(None) };
            let file = self
                .connection
                .prepare_cached(
                    "SELECT u.path, u.object, u.bytes, u.mtime, u.digest, NULL, NULL, NULL, NULL, o.tier, o.opened
                     FROM uses u LEFT JOIN objects o ON o.id = u.object WHERE u.uid = ?1 AND u.path = ?2",
                )?
                .query_row([uid, path], |row| {
                    let tier: Option<String> = row.get(9)?;
                    let held = match tier {
                        Some(tier) => Some((tier, row.get(10)?)),
                        None => None,
                    };
                    Ok((missing_of(row)?, held))
                })
                .optional()?;
            Ok(Some(Openable { dataset, root, file }))
        };
        read().map_err(failed("look up file"))
    }

    /// Objects whose files may not be on the disk yet, with their digests.
    pub(super) fn unsynced(&self) -> Result<Vec<(Object, Digest)>, EngineError> {
        let read = || {
            let mut statement =
                self.connection.prepare("SELECT id, tier, bytes, digest FROM objects WHERE NOT synced")?;
            let rows = statement.query_map([], |row| Ok((object_of(row)?, row.get::<_, String>(3)?)))?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        let rows = read().map_err(failed("list objects that are not synced"))?;
        // A digest that cannot be read matches nothing.
        let digest = |text: String| text.parse().unwrap_or_else(|_| Digest::of(text.as_bytes()));
        Ok(rows.into_iter().map(|(object, text)| (object, digest(text))).collect())
    }

    /// The digest that an object had when it came.
    pub(super) fn digest_of(&self, id: &str) -> Result<Option<Digest>, EngineError> {
        let found: Option<Option<String>> = self
            .connection
            .query_row("SELECT digest FROM objects WHERE id = ?1", [id], |row| row.get(0))
            .optional()
            .map_err(failed("look up digest"))?;
        Ok(found.flatten().and_then(|text| text.parse().ok()))
    }

    /// Notes that files are on the disk.
    pub(super) fn synced(&mut self, objects: &[Object]) -> Result<(), EngineError> {
        let mut note = || {
            let transaction = self.connection.transaction()?;
            {
                let mut statement = transaction.prepare_cached("UPDATE objects SET synced = 1 WHERE id = ?1")?;
                for object in objects {
                    statement.execute([&object.id])?;
                }
            }
            transaction.commit()
        };
        note().map_err(failed("note what is synced"))
    }

    /// Notes that an object was opened.
    pub(super) fn opened(&self, id: &str, now: i64) -> Result<(), EngineError> {
        let noted = self
            .connection
            .prepare_cached("UPDATE objects SET opened = ?2 WHERE id = ?1 AND opened < ?2")
            .and_then(|mut statement| statement.execute(params![id, now]));
        noted.map(drop).map_err(failed("note opening"))
    }

    /// Objects of a tier that nobody wants beforehand, the longest unopened first.
    pub(super) fn evictable(&self, tier: &str, limit: u32) -> Result<Vec<Object>, EngineError> {
        let read = || {
            let mut statement = self.connection.prepare_cached(
                "SELECT id, tier, bytes FROM objects o WHERE tier = ?1
                 AND NOT EXISTS(SELECT 1 FROM uses u WHERE u.object = o.id AND u.wanted)
                 ORDER BY opened LIMIT ?2",
            )?;
            statement.query_map(params![tier, limit], object_of)?.collect::<Result<Vec<_>, _>>()
        };
        read().map_err(failed("look for room"))
    }

    /// Makes the request the dataset's wish; returns the objects that nobody uses any more, already forgotten.
    pub(super) fn prepare<G>(&mut self, request: &CacheRequest, get: &G) -> Result<Vec<Object>, EngineError>
    where
        G: Fn(&BlockHash) -> Option<Bytes>,
    {
        self.synchronous("FULL").map_err(failed("prepare"))?;
        let prepared = self.prepare_for_good(request, get);
        self.synchronous("NORMAL").map_err(failed("prepare"))?;
        prepared
    }

    fn prepare_for_good<G>(&mut self, request: &CacheRequest, get: &G) -> Result<Vec<Object>, EngineError>
    where
        G: Fn(&BlockHash) -> Option<Bytes>,
    {
        const OP: &str = "prepare";
        let uid = &request.dataset.uid;
        let root = request.root.to_string();
        let paths = serde_json::Value::from_iter(request.paths.iter().map(|path| path.as_str())).to_string();
        let transaction = self.connection.transaction().map_err(failed(OP))?;
        let known: Option<(String, String, bool)> = transaction
            .query_row("SELECT root, paths, on_demand FROM datasets WHERE uid = ?1", [uid], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()
            .map_err(failed(OP))?;
        if known.is_some_and(|known| known == (root.clone(), paths.clone(), request.on_demand)) {
            transaction
                .execute("UPDATE datasets SET pinned = ?2 WHERE uid = ?1", params![uid, request.pinned])
                .map_err(failed(OP))?;
            transaction.commit().map_err(failed(OP))?;
            return Ok(Vec::new());
        }
        set_aside(&transaction, uid).map_err(failed(OP))?;
        let mut links = 0u64;
        for step in walk(request.root, get) {
            let (path, entry) = step.map_err(|error| EngineError::Manifest {
                dataset: request.dataset.name.clone(),
                root: request.root,
                source: Box::new(error),
            })?;
            let chosen =
                request.paths.is_empty() || request.paths.iter().any(|wanted| path.strip_prefix(wanted).is_some());
            match entry {
                Entry::File(file) => {
                    let wanted = chosen && !request.on_demand;
                    add_use(&transaction, uid, &root, &path, &file, wanted).map_err(failed(OP))?;
                }
                Entry::Symlink { .. } if chosen => links += 1,
                Entry::Symlink { .. } | Entry::Directory => {}
            }
        }
        transaction
            .execute(
                "INSERT OR REPLACE INTO datasets(uid, name, root, paths, pinned, on_demand, links)
                 VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![uid, request.dataset.name, root, paths, request.pinned, request.on_demand, stored(links)],
            )
            .map_err(failed(OP))?;
        let dropped = drop_unused(&transaction).map_err(failed(OP))?;
        transaction.commit().map_err(failed(OP))?;
        Ok(dropped)
    }

    /// Forgets a dataset; returns the objects that nobody uses any more, already forgotten.
    pub(super) fn evict(&mut self, uid: &str) -> Result<Vec<Object>, EngineError> {
        let evict = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            set_aside(&transaction, uid)?;
            transaction.execute("DELETE FROM datasets WHERE uid = ?1", [uid])?;
            transaction.execute("DELETE FROM listed WHERE uid = ?1", [uid])?;
            let dropped = drop_unused(&transaction)?;
            transaction.commit()?;
            Ok(dropped)
        };
        self.for_good(evict).map_err(failed("evict"))
    }

    /// What is wanted and not there, in the order of the paths, after the path `after`.
    pub(super) fn missing(&self, uid: &str, after: &str, limit: u32) -> Result<Vec<Missing>, EngineError> {
        let read = || {
            let mut statement = self.connection.prepare_cached(
                "SELECT u.path, u.object, u.bytes, u.mtime, u.digest, l.path, l.bytes, l.mtime, l.tag
                 FROM uses u LEFT JOIN listed l ON l.uid = u.uid AND l.path = u.path
                 WHERE u.uid = ?1 AND u.path > ?2 AND u.wanted
                 AND NOT EXISTS(SELECT 1 FROM objects o WHERE o.id = u.object)
                 ORDER BY u.path LIMIT ?3",
            )?;
            let rows = statement.query_map(params![uid, after, limit], missing_of)?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        read().map_err(failed("list missing files"))
    }

    /// Whether a missing file has no digest, so that its version at the source must be known before it is read.
    pub(super) fn needs_listing(&self, uid: &str) -> Result<bool, EngineError> {
        let found = self.connection.query_row(
            "SELECT 1 FROM uses u WHERE u.uid = ?1 AND u.digest IS NULL AND u.wanted
             AND NOT EXISTS(SELECT 1 FROM objects o WHERE o.id = u.object) LIMIT 1",
            [uid],
            |_| Ok(()),
        );
        found.optional().map(|found| found.is_some()).map_err(failed("look for files without digest"))
    }

    /// Starts a listing of the dataset's sources.
    pub(super) fn clear_listed(&self, uid: &str) -> Result<(), EngineError> {
        self.connection.execute("DELETE FROM listed WHERE uid = ?1", [uid]).map(drop).map_err(failed("clear listing"))
    }

    /// Adds to the listing.
    pub(super) fn add_listed(&mut self, uid: &str, files: &[ListedFile]) -> Result<(), EngineError> {
        let mut add = || {
            let transaction = self.connection.transaction()?;
            {
                let mut statement = transaction.prepare_cached(
                    "INSERT OR REPLACE INTO listed(uid, path, bytes, mtime, tag) VALUES(?1, ?2, ?3, ?4, ?5)",
                )?;
                for file in files {
                    statement.execute(params![uid, file.path, stored(file.bytes), file.mtime_ns, file.tag])?;
                }
            }
            transaction.commit()
        };
        add().map_err(failed("record listing"))
    }

    /// Sums over a dataset; `None` if it is not known.
    pub(super) fn held(&self, uid: &str) -> Result<Option<Held>, EngineError> {
        let read = || {
            let known: Option<(String, u64, bool)> = self
                .connection
                .query_row("SELECT root, links, on_demand FROM datasets WHERE uid = ?1", [uid], |row| {
                    Ok((row.get(0)?, number(row, 1)?, row.get(2)?))
                })
                .optional()?;
            let Some((root, links, on_demand)) = known else { return Ok(None) };
            let sums = self.connection.query_row(
                "SELECT COUNT(*), COALESCE(SUM(u.bytes), 0), COUNT(o.id),
                        COALESCE(SUM(CASE WHEN o.id IS NULL THEN 0 ELSE u.bytes END), 0)
                 FROM uses u LEFT JOIN objects o ON o.id = u.object
                 WHERE u.uid = ?1 AND (u.wanted OR ?2 OR o.id IS NOT NULL)",
                params![uid, on_demand],
                |row| Ok((number(row, 0)?, number(row, 1)?, number(row, 2)?, number(row, 3)?)),
            )?;
            let mut statement = self.connection.prepare_cached(
                "SELECT tier, SUM(bytes) FROM objects WHERE id IN (SELECT object FROM uses WHERE uid = ?1) GROUP BY tier",
            )?;
            let by_tier =
                statement.query_map([uid], |row| Ok((row.get(0)?, number(row, 1)?)))?.collect::<Result<_, _>>()?;
            Ok(Some(Held {
                root,
                on_demand,
                total_files: sums.0 + links,
                total_bytes: sums.1,
                cached_files: sums.2 + links,
                cached_bytes: sums.3,
                by_tier,
            }))
        };
        read().map_err(failed("sum up dataset"))
    }
}

/// The columns that a look at missing files selects.
fn missing_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Missing> {
    let digest: Option<String> = row.get(4)?;
    let listed: Option<String> = row.get(5)?;
    Ok(Missing {
        path: row.get(0)?,
        object: row.get(1)?,
        bytes: number(row, 2)?,
        mtime_ns: row.get(3)?,
        digest: digest.and_then(|text| text.parse().ok()),
        listed: match listed {
            Some(path) => Some(ListedFile { path, bytes: number(row, 6)?, mtime_ns: row.get(7)?, tag: row.get(8)? }),
            None => None,
        },
    })
}

fn object_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Object> {
    Ok(Object { id: row.get(0)?, tier: row.get(1)?, bytes: number(row, 2)? })
}

/// Moves a dataset's uses to the table `previous`.
fn set_aside(transaction: &Transaction<'_>, uid: &str) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM previous", [])?;
    transaction.execute(
        "INSERT INTO previous(path, object, bytes, mtime) SELECT path, object, bytes, mtime FROM uses WHERE uid = ?1",
        [uid],
    )?;
    transaction.execute("DELETE FROM uses WHERE uid = ?1", [uid]).map(drop)
}

/// Adds one path. A file that the previous version had under this path keeps its object when it is the same file: by its
/// digest, which every object knows once it was read, or, if the version gives none, by size and time.
fn add_use(
    transaction: &Transaction<'_>,
    uid: &str,
    root: &str,
    path: &RelativePath,
    file: &File,
    wanted: bool,
) -> rusqlite::Result<()> {
    let digest = file.digest.map(|digest| digest.to_string());
    let kept: Option<String> = transaction
        .prepare_cached(
            "SELECT p.object FROM previous p JOIN objects o ON o.id = p.object
             WHERE p.path = ?1 AND p.bytes = ?2 AND CASE WHEN ?4 IS NULL THEN p.mtime = ?3 ELSE o.digest = ?4 END",
        )?
        .query_row(params![path.as_str(), stored(file.size), file.mtime_ns, digest], |row| row.get(0))
        .optional()?;
    let object = kept.or_else(|| digest.clone()).unwrap_or_else(|| {
        let name = format!("{uid}\0{root}\0{path}");
        Digest::of(name.as_bytes()).to_string()
    });
    transaction
        .prepare_cached(
            "INSERT INTO uses(uid, path, object, bytes, mtime, digest, wanted) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![uid, path.as_str(), object, stored(file.size), file.mtime_ns, digest, wanted])
        .map(drop)
}

/// Forgets the objects of `previous` that nobody uses any more.
fn drop_unused(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<Object>> {
    const UNUSED: &str = "id IN (SELECT object FROM previous) AND NOT EXISTS(SELECT 1 FROM uses u WHERE u.object = id)";
    let mut statement =
        transaction.prepare(&format!("DELETE FROM objects WHERE {UNUSED} RETURNING id, tier, bytes"))?;
    statement.query_map([], object_of)?.collect()
}
