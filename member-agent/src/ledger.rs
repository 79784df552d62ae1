//! ④ The ledger: what the hub asked for and what came of it, on disk before anything is done or said.
//!
//! One SQLite file, `ledger.db`, mode 0600 (it holds the values of secrets), WAL with `synchronous=FULL`: when a call
//! returns, what it wrote survives a power cut. The lock file beside it keeps a second agent off the same directory for
//! as long as a clone of the ledger lives.
//!
//! Invariants: a generation never goes back, except in a full synchronisation with another history (a hub restored from a
//! backup is right about what it wants, however old it is); what a full synchronisation does not mention is withdrawn only
//! once it is complete; a withdrawn assignment stays until its traces are cleaned up; a report is repeated until the hub
//! has stored exactly that one.
//! Deliberately absent: acting. [`Ledger::changes`] wakes the reconciler, [`Ledger::news`] the uplink.

mod rows;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use fluvial_model::desired::{Acceptance, Work, accept};
use fluvial_model::manifest::BlockHash;
use fluvial_model::report::{Report, StoredReport};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The name of a number in the ledger: see [`Ledger::newest_epoch`].
const NEWEST_EPOCH: &str = "newest-epoch";

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open ledger: another agent runs on {dir}")]
    Locked { dir: String },
    #[error("{op} {file}")]
    File {
        op: &'static str,
        file: String,
        #[source]
        source: io::Error,
    },
    #[error("{op}: ledger database")]
    Database {
        op: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    #[error("{op}: what the ledger holds of {id:?} cannot be understood")]
    Content {
        op: &'static str,
        id: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{op}: the agent is ending")]
    Ending { op: &'static str },
}

/// Values of secrets by [`fluvial_model::desired::Endpoint::secret_id`]; never shown.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secrets(pub BTreeMap<String, String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A piece of work, as the hub assigned it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// [`Work::id`].
    pub id: String,
    /// Grows with every change.
    pub generation: u64,
    /// What to do.
    pub work: Work,
    /// What opens the places of the work.
    pub secrets: Secrets,
    /// Taken back; its traces are still to be cleaned up.
    pub withdrawn: bool,
}

/// Up to where the hub's wishes are known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// The history; 0 if none is known.
    pub epoch: u64,
    /// The revision in it.
    pub cursor: u64,
}

/// A report that the hub has not stored yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsent {
    /// The assignment.
    pub id: String,
    /// Its generation.
    pub generation: u64,
    /// Tells this report from later ones of the same generation.
    pub sequence: u64,
    /// The report as JSON.
    pub report: Vec<u8>,
}

/// The ledger. Clones are one ledger. Calls block for an fsync: from async code use [`Ledger::call`].
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

struct Inner {
    connection: Mutex<Connection>,
    changes: watch::Sender<()>,
    news: watch::Sender<()>,
    /// Held for its lock.
    _lock: File,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

impl Ledger {
    /// Opens the ledger of a data directory, making it if there is none.
    ///
    /// # Errors
    /// [`Error::Locked`] if another agent has it open.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let private = |name: &str, op: &'static str| {
            let file = dir.join(name);
            OpenOptions::new()
                .create(true)
                .read(true)
                .write(true)
                .truncate(false)
                .mode(0o600)
                .open(&file)
                .map_err(|source| Error::File { op, file: file.display().to_string(), source })
        };
        let lock = private("agent.lock", "open lock")?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { dir: dir.display().to_string() }),
            Err(TryLockError::Error(source)) => {
                let file = dir.join("agent.lock").display().to_string();
                return Err(Error::File { op: "lock", file, source });
            }
        }
        // Made before SQLite opens it: the files beside it take its mode.
        drop(private("ledger.db", "make")?);
        let connection = rows::open(&dir.join("ledger.db"))?;
        let inner = Inner {
            connection: Mutex::new(connection),
            changes: watch::Sender::new(()),
            news: watch::Sender::new(()),
            _lock: lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Runs a call on a blocking thread.
    ///
    /// # Errors
    /// The call's.
    pub async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let ledger = self.clone();
        match tokio::task::spawn_blocking(move || call(&ledger)).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Error::Ending { op: "use ledger" }),
        }
    }

    /// Changes whenever assignments do.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.inner.changes.subscribe()
    }

    /// Changes whenever there is a report to send.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<()> {
        self.inner.news.subscribe()
    }

    fn with<T>(
        &self,
        op: &'static str,
        call: impl FnOnce(&mut Connection) -> Result<T, rows::Fault>,
    ) -> Result<T, Error> {
        // A panic in the middle of a transaction rolls it back: the connection stays good.
        let mut connection = self.inner.connection.lock().unwrap_or_else(PoisonError::into_inner);
        call(&mut connection).map_err(|fault| fault.during(op))
    }

    /// Up to where the hub's wishes are known.
    ///
    /// # Errors
    /// The database's, as for every call below.
    pub fn position(&self) -> Result<Position, Error> {
        self.with("read position", |connection| {
            Ok(Position { epoch: rows::state(connection, "epoch")?, cursor: rows::state(connection, "cursor")? })
        })
    }

    /// The newest history of hubs that was ever met; 0 before the first.
    ///
    /// # Errors
    /// The database's.
    pub fn newest_epoch(&self) -> Result<u64, Error> {
        self.with("read newest epoch", |connection| rows::state(connection, NEWEST_EPOCH))
    }

    /// Notes that hubs of this history were met, and says which is the newest.
    ///
    /// # Errors
    /// The database's.
    pub fn met(&self, epoch: u64) -> Result<u64, Error> {
        self.with("note epoch", |connection| {
            let newest = rows::state(connection, NEWEST_EPOCH)?;
            if epoch > newest {
                rows::set_state(connection, NEWEST_EPOCH, epoch)?;
            }
            Ok(newest.max(epoch))
        })
    }

    /// Offers an assignment. `same_history` is false in a full synchronisation with another history than the known one,
    /// where an older generation is no late message.
    ///
    /// # Errors
    /// The database's.
    pub fn assign(&self, offered: &Assignment, same_history: bool) -> Result<Acceptance, Error> {
        let decided = self.with("assign", |connection| {
            let transaction = connection.transaction()?;
            let known = rows::assignment(&transaction, &offered.id)?;
            // Taking back is content too: the generation that was withdrawn does not come back.
            let content = known.as_ref().map(|known| (known.generation, (&known.work, known.withdrawn)));
            let content = content.as_ref().map(|(generation, content)| (*generation, content));
            let decision = if same_history {
                accept(content, (offered.generation, &(&offered.work, false)))
            } else {
                let same = known.as_ref().is_some_and(|known| {
                    known.generation == offered.generation && known.work == offered.work && !known.withdrawn
                });
                if same { Acceptance::Duplicate } else { Acceptance::Accept }
            };
            let new_secrets = known.is_some_and(|known| known.secrets != offered.secrets);
            match decision {
                Acceptance::Accept => rows::put_assignment(&transaction, offered)?,
                // A secret may change without its assignment.
                Acceptance::Duplicate if new_secrets => rows::put_assignment(&transaction, offered)?,
                Acceptance::Duplicate | Acceptance::Stale | Acceptance::Contradiction => {}
            }
            transaction.commit()?;
            Ok(decision)
        })?;
        if decided == Acceptance::Accept {
            self.inner.changes.send_replace(());
        }
        Ok(decided)
    }

    /// Takes an assignment back, unless it is known at a later generation.
    ///
    /// # Errors
    /// The database's.
    pub fn withdraw(&self, id: &str, generation: u64) -> Result<(), Error> {
        let generation = rows::stored(generation);
        self.with("withdraw", |connection| {
            connection.execute(
                "UPDATE assignments SET withdrawn = 1, generation = MAX(generation, ?2) WHERE id = ?1 AND generation <= ?2",
                params![id, generation],
            )?;
            Ok(())
        })?;
        self.inner.changes.send_replace(());
        Ok(())
    }

    /// Notes that everything up to `position` is known. With `mentioned`, a full synchronisation is complete, and what it
    /// did not mention is withdrawn.
    ///
    /// # Errors
    /// The database's.
    pub fn synced(&self, position: Position, mentioned: Option<&HashSet<String>>) -> Result<(), Error> {
        // Hubs say it again every few seconds: an idle agent leaves its disk alone.
        if mentioned.is_none() && self.position()? == position {
            return Ok(());
        }
        let withdrawn = self.with("note position", |connection| {
            let transaction = connection.transaction()?;
            let mut withdrawn = 0;
            if let Some(mentioned) = mentioned {
                for id in rows::ids(&transaction)?.iter().filter(|id| !mentioned.contains(*id)) {
                    withdrawn += transaction.execute("UPDATE assignments SET withdrawn = 1 WHERE id = ?1", [id])?;
                }
            }
            rows::set_state(&transaction, "epoch", position.epoch)?;
            rows::set_state(&transaction, "cursor", position.cursor)?;
            transaction.commit()?;
            Ok(withdrawn)
        })?;
        if withdrawn > 0 {
            self.inner.changes.send_replace(());
        }
        Ok(())
    }

    /// Every assignment, withdrawn ones too.
    ///
    /// # Errors
    /// The database's.
    pub fn assignments(&self) -> Result<Vec<Assignment>, Error> {
        self.with("list assignments", |connection| {
            let ids = rows::ids(connection)?;
            ids.iter().filter_map(|id| rows::assignment(connection, id).transpose()).collect()
        })
    }

    /// One assignment.
    ///
    /// # Errors
    /// The database's.
    pub fn assignment(&self, id: &str) -> Result<Option<Assignment>, Error> {
        self.with("read assignment", |connection| rows::assignment(connection, id))
    }

    /// Forgets a withdrawn assignment whose traces are gone; one that was assigned again stays.
    ///
    /// # Errors
    /// The database's.
    pub fn forget(&self, id: &str, generation: u64) -> Result<(), Error> {
        self.with("forget", |connection| {
            let transaction = connection.transaction()?;
            let forgotten = transaction.execute(
                "DELETE FROM assignments WHERE id = ?1 AND generation = ?2 AND withdrawn = 1",
                params![id, rows::stored(generation)],
            )?;
            if forgotten > 0 {
                transaction.execute("DELETE FROM reports WHERE id = ?1", [id])?;
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// Makes `report` what is said of an assignment, if it is still at this generation.
    ///
    /// # Errors
    /// The database's.
    pub fn report(&self, id: &str, generation: u64, report: &Report) -> Result<(), Error> {
        let json = serde_json::to_string(report).map_err(|source| Error::Content {
            op: "report",
            id: id.to_owned(),
            source,
        })?;
        let changed = self.with("report", |connection| {
            let changed = connection.execute(
                "INSERT INTO reports(id, generation, sequence, report, stored)
                 SELECT id, generation, 1, ?3, 0 FROM assignments WHERE id = ?1 AND generation = ?2 AND withdrawn = 0
                 ON CONFLICT(id) DO UPDATE SET generation = excluded.generation, report = excluded.report,
                   sequence = sequence + 1, stored = 0
                 WHERE generation <> excluded.generation OR report <> excluded.report",
                params![id, rows::stored(generation), json],
            )?;
            Ok(changed > 0)
        })?;
        if changed {
            self.inner.news.send_replace(());
        }
        Ok(())
    }

    /// The last report of an assignment, whatever its generation.
    ///
    /// # Errors
    /// The database's.
    pub fn last_report(&self, id: &str) -> Result<Option<StoredReport>, Error> {
        self.with("read report", |connection| {
            let found: Option<(i64, String)> = connection
                .query_row("SELECT generation, report FROM reports WHERE id = ?1", [id], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()?;
            let Some((generation, json)) = found else { return Ok(None) };
            let report = serde_json::from_str(&json).map_err(|source| rows::Fault::Content(id.to_owned(), source))?;
            Ok(Some(StoredReport { generation: rows::read(generation), report }))
        })
    }

    /// Reports that the hub has not stored, oldest assignment first, at most `limit`, without those of `busy`.
    ///
    /// # Errors
    /// The database's.
    pub fn unsent(&self, limit: usize, busy: &HashSet<String>) -> Result<Vec<Unsent>, Error> {
        self.with("list unsent reports", |connection| rows::unsent(connection, limit, busy))
    }

    /// Notes that the hub has stored a report; a later one stays to be sent.
    ///
    /// # Errors
    /// The database's.
    pub fn stored(&self, id: &str, generation: u64, sequence: u64) -> Result<(), Error> {
        self.with("note stored report", |connection| {
            connection.execute(
                "UPDATE reports SET stored = 1 WHERE id = ?1 AND generation = ?2 AND sequence = ?3",
                params![id, rows::stored(generation), rows::stored(sequence)],
            )?;
            Ok(())
        })
    }

    /// Has everything said again, to a hub that may have lost it: all reports, and the blocks that were pushed.
    ///
    /// # Errors
    /// The database's.
    pub fn say_again(&self) -> Result<(), Error> {
        self.with("repeat reports", |connection| {
            Ok(connection.execute_batch("BEGIN; UPDATE reports SET stored = 0; DELETE FROM pushed; COMMIT")?)
        })?;
        self.inner.news.send_replace(());
        Ok(())
    }

    /// Whether a block, and with it everything below it, is at the hub.
    ///
    /// # Errors
    /// The database's.
    pub fn pushed(&self, block: &BlockHash) -> Result<bool, Error> {
        self.with("look up pushed block", |connection| {
            let found = connection.query_row("SELECT 1 FROM pushed WHERE block = ?1", [block.as_bytes()], |_| Ok(()));
            Ok(found.optional()?.is_some())
        })
    }

    /// Notes that blocks are at the hub, and everything below them.
    ///
    /// # Errors
    /// The database's.
    pub fn note_pushed(&self, blocks: &[BlockHash]) -> Result<(), Error> {
        self.with("note pushed blocks", |connection| {
            let transaction = connection.transaction()?;
            for block in blocks {
                transaction.execute("INSERT OR IGNORE INTO pushed(block) VALUES(?1)", [block.as_bytes()])?;
            }
            Ok(transaction.commit()?)
        })
    }
}

#[cfg(test)]
mod tests;
