//! What mounts hold at one moment, in path order: a SQLite file, so that memory does not grow with the tree.
//!
//! It is also the table of source tags that is kept beside a manifest, for telling later what changed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fluvial_model::manifest::{BuildError, Built, Digest, Entry, File, RelativePath, Totals, TreeBuilder};
use futures::FutureExt;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::mpsc;

use crate::place::local::blocking;
use crate::place::{Detail, Found, LISTING_QUEUE, Place, Tag};
use crate::{BlockStore, TransferError};

/// Entries that are read or written together: a few hundred KiB.
const PAGE: usize = 1000;

/// A place at a path of the dataset.
#[derive(Clone)]
pub struct OpenMount {
    /// Where its tree appears.
    pub path: RelativePath,
    /// Where its data are.
    pub place: Arc<dyn Place>,
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The path in the dataset.
    pub path: RelativePath,
    /// What it is, without digest.
    pub entry: Entry,
    /// Which version.
    pub tag: Tag,
    /// Which of the mounts it comes from.
    pub mount: usize,
}

/// A listing on disk. Calls block the thread, shortly.
#[derive(Clone)]
pub struct Listing {
    file: PathBuf,
    connection: Arc<Mutex<Connection>>,
}

impl Listing {
    /// A new, empty listing in `file`, replacing what is there.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(file: &Path) -> Result<Self, TransferError> {
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(TransferError::Blocks {
                    op: "replace listing",
                    file: file.display().to_string(),
                    source: error,
                });
            }
            _ => {}
        }
        let listing = Self::open(file)?;
        listing.with("create listing", |connection| {
            // Lost in a crash, it is made again: no syncing.
            connection.execute_batch(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
                 CREATE TABLE entries (
                   key BLOB PRIMARY KEY, path TEXT NOT NULL, kind INTEGER NOT NULL, size INTEGER NOT NULL,
                   mtime INTEGER NOT NULL, mode INTEGER NOT NULL, target TEXT NOT NULL, tag TEXT NOT NULL,
                   mount INTEGER NOT NULL
                 ) WITHOUT ROWID;",
            )
        })?;
        Ok(listing)
    }

    /// A listing that was made before.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(file: &Path) -> Result<Self, TransferError> {
        let connection = Connection::open(file).map_err(|source| TransferError::Journal {
            op: "open listing",
            file: file.display().to_string(),
            source,
        })?;
        Ok(Self { file: file.to_owned(), connection: Arc::new(Mutex::new(connection)) })
    }

    /// Its file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    fn with<T>(
        &self,
        op: &'static str,
        call: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, TransferError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        call(&mut connection).map_err(|source| TransferError::Journal {
            op,
            file: self.file.display().to_string(),
            source,
        })
    }

    /// Lists all mounts into a new listing.
    ///
    /// # Errors
    /// What the places report; [`TransferError::MountConflict`].
    pub async fn of(file: &Path, mounts: &[OpenMount], detail: Detail) -> Result<Self, TransferError> {
        let path = file.to_owned();
        let listing = blocking(move || Self::create(&path)).await?;
        for (number, mount) in mounts.iter().enumerate() {
            if !mount.path.is_root() {
                let own = Found { path: RelativePath::root(), entry: Entry::Directory, tag: Tag(String::new()) };
                listing.clone().store(mount.path.clone(), number, vec![own]).await?;
            }
            let (sender, mut receiver) = mpsc::channel(LISTING_QUEUE);
            let place = mount.place.clone();
            let list = async move { place.list(detail, sender).await };
            let store = async {
                let mut batch = Vec::with_capacity(PAGE);
                while receiver.recv_many(&mut batch, PAGE).await > 0 {
                    listing.clone().store(mount.path.clone(), number, std::mem::take(&mut batch)).await?;
                }
                Ok(())
            };
            futures::try_join!(list.boxed(), store.boxed())?;
        }
        Ok(listing)
    }

    async fn store(self, mount: RelativePath, number: usize, batch: Vec<Found>) -> Result<(), TransferError> {
        blocking(move || {
            let mut rows = Vec::with_capacity(batch.len());
            for Found { path, entry, tag } in batch {
                let path = mount.join_path(&path).map_err(|error| TransferError::BadEntry {
                    place: mount.to_string(),
                    name: path.to_string(),
                    why: error.to_string(),
                })?;
                rows.push(Listed { path, entry, tag, mount: number });
            }
            let conflict = self.with("write listing", |connection| insert(connection, &rows))?;
            conflict.map_or(Ok(()), |path| Err(TransferError::MountConflict { path }))
        })
        .await
    }

    /// Up to a page of entries after `after` in path order.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn page(&self, after: Option<&RelativePath>) -> Result<Vec<Listed>, TransferError> {
        self.with("read listing", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT path, kind, size, mtime, mode, target, tag, mount FROM entries WHERE key > ?1 ORDER BY key LIMIT ?2",
            )?;
            let key = after.map(RelativePath::sort_key).unwrap_or_default();
            statement.query_map(params![key, PAGE as i64], listed)?.collect()
        })
    }

    /// One entry.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn get(&self, path: &RelativePath) -> Result<Option<Listed>, TransferError> {
        self.with("read listing", |connection| {
            connection
                .prepare_cached("SELECT path, kind, size, mtime, mode, target, tag, mount FROM entries WHERE key = ?1")?
                .query_row([path.sort_key()], listed)
                .optional()
        })
    }

    /// How many files and links are listed, and their bytes. Directories that no entry names are not counted.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn sums(&self) -> Result<Totals, TransferError> {
        self.with("read listing", |connection| {
            let sql =
                "SELECT COALESCE(SUM(kind <> 1), 0), COALESCE(SUM(kind = 1), 0), COALESCE(SUM(size), 0) FROM entries";
            let number = |row: &Row<'_>, at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            connection.query_row(sql, [], |row| {
                Ok(Totals { files: number(row, 0)?, dirs: number(row, 1)?, bytes: number(row, 2)? })
            })
        })
    }

    /// Whether something is listed below `path`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn holds_something(&self, path: &RelativePath) -> Result<bool, TransferError> {
        self.with("read listing", |connection| {
            let mut statement =
                connection.prepare_cached("SELECT path FROM entries WHERE key > ?1 ORDER BY key LIMIT 1")?;
            let next = statement.query_row([path.sort_key()], |row| path_at(row, 0)).optional()?;
            Ok(next.is_some_and(|next| next.strip_prefix(path).is_some()))
        })
    }

    /// Paths (at most `limit`) that `other` has with another tag, or that only one of the two has. Directories count by
    /// being there, not by their tags.
    ///
    /// # Errors
    /// When one of the files cannot be read.
    pub fn changed(&self, other: &Listing, limit: usize) -> Result<Vec<RelativePath>, TransferError> {
        let (mut left, mut right) = (Rows::of(self), Rows::of(other));
        let (mut a, mut b) = (left.next()?, right.next()?);
        let mut changed = Vec::new();
        while changed.len() < limit {
            let order = match (&a, &b) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(a), Some(b)) => a.path.cmp(&b.path),
            };
            match (order, &a, &b) {
                (std::cmp::Ordering::Less, Some(row), _) => {
                    changed.push(row.path.clone());
                    a = left.next()?;
                }
                (std::cmp::Ordering::Greater, _, Some(row)) => {
                    changed.push(row.path.clone());
                    b = right.next()?;
                }
                (_, Some(row), Some(other)) => {
                    let directories = (row.entry == Entry::Directory, other.entry == Entry::Directory);
                    if directories.0 != directories.1 || (!directories.0 && row.tag != other.tag) {
                        changed.push(row.path.clone());
                    }
                    a = left.next()?;
                    b = right.next()?;
                }
                _ => break,
            }
        }
        Ok(changed)
    }

    /// Builds the manifest, asking `entry` for what each listed entry is.
    ///
    /// # Errors
    /// When a block cannot be stored, or a mount has a file where another has a directory.
    pub fn build(
        &self,
        blocks: &BlockStore,
        mut entry: impl FnMut(Listed) -> Result<Entry, TransferError>,
    ) -> Result<Built, TransferError> {
        let mut builder = TreeBuilder::new(|_, bytes: Vec<u8>| blocks.put(&bytes).map(drop));
        let mut rows = Rows::of(self);
        while let Some(row) = rows.next()? {
            let path = row.path.clone();
            builder.push(&path, entry(row)?).map_err(built)?;
        }
        builder.finish().map_err(built)
    }

    /// Builds the manifest without digests.
    ///
    /// # Errors
    /// As [`Listing::build`].
    pub fn build_undigested(&self, blocks: &BlockStore) -> Result<Built, TransferError> {
        self.build(blocks, |row| Ok(row.entry))
    }
}

fn built(error: BuildError<TransferError>) -> TransferError {
    match error {
        BuildError::Sink(error) => error,
        BuildError::NotADirectory { path } => TransferError::MountConflict { path: path.to_string() },
        error => TransferError::Build { why: error.to_string() },
    }
}

/// The entries of a listing one by one, a page in memory.
pub(crate) struct Rows<'a> {
    listing: &'a Listing,
    page: std::vec::IntoIter<Listed>,
    last: Option<RelativePath>,
    ended: bool,
}

impl<'a> Rows<'a> {
    pub(crate) fn of(listing: &'a Listing) -> Self {
        Self { listing, page: Vec::new().into_iter(), last: None, ended: false }
    }

    pub(crate) fn next(&mut self) -> Result<Option<Listed>, TransferError> {
        if self.page.len() == 0 && !self.ended {
            let page = self.listing.page(self.last.as_ref())?;
            self.ended = page.len() < PAGE;
            self.last = page.last().map(|row| row.path.clone());
            self.page = page.into_iter();
        }
        Ok(self.page.next())
    }
}

/// Inserts rows; returns a path that is there already and is not a directory both times.
fn insert(connection: &mut Connection, rows: &[Listed]) -> rusqlite::Result<Option<String>> {
    let transaction = connection.transaction()?;
    {
        let mut statement = transaction.prepare_cached(
            "INSERT INTO entries (key, path, kind, size, mtime, mode, target, tag, mount)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING",
        )?;
        let mut kind_of = transaction.prepare_cached("SELECT kind FROM entries WHERE key = ?1")?;
        for row in rows {
            let (kind, size, mtime, mode, target) = columns(&row.entry);
            let key = row.path.sort_key();
            let path = row.path.as_str();
            let written =
                statement.execute(params![key, path, kind, size, mtime, mode, target, row.tag.0, row.mount as i64])?;
            if written == 0 {
                let there: i64 = kind_of.query_row([&key], |row| row.get(0))?;
                if (there, kind) != (DIRECTORY, DIRECTORY) {
                    return Ok(Some(row.path.to_string()));
                }
            }
        }
    }
    transaction.commit()?;
    Ok(None)
}

pub(crate) const FILE: i64 = 0;
pub(crate) const DIRECTORY: i64 = 1;
pub(crate) const SYMLINK: i64 = 2;

/// An entry as columns: kind, size, mtime, mode, target. SQLite's integers are signed: a size keeps its bits.
pub(crate) fn columns(entry: &Entry) -> (i64, i64, i64, u32, &str) {
    match entry {
        Entry::File(file) => (FILE, file.size.cast_signed(), file.mtime_ns, file.mode, ""),
        Entry::Directory => (DIRECTORY, 0, 0, 0, ""),
        Entry::Symlink { target } => (SYMLINK, 0, 0, 0, target),
    }
}

/// The entry of five columns from `at` on.
pub(crate) fn entry_at(row: &Row<'_>, at: usize, digest: Option<Digest>) -> rusqlite::Result<Entry> {
    Ok(match row.get::<_, i64>(at)? {
        FILE => Entry::File(File {
            size: row.get::<_, i64>(at + 1)?.cast_unsigned(),
            mtime_ns: row.get(at + 2)?,
            mode: row.get(at + 3)?,
            digest,
        }),
        SYMLINK => Entry::Symlink { target: row.get(at + 4)? },
        _ => Entry::Directory,
    })
}

/// The path of a column: it was one when it was written.
pub(crate) fn path_at(row: &Row<'_>, at: usize) -> rusqlite::Result<RelativePath> {
    RelativePath::try_from(row.get::<_, String>(at)?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Text, Box::new(error)))
}

fn listed(row: &Row<'_>) -> rusqlite::Result<Listed> {
    Ok(Listed {
        path: path_at(row, 0)?,
        entry: entry_at(row, 1, None)?,
        tag: Tag(row.get(6)?),
        mount: row.get::<_, i64>(7)? as usize,
    })
}
