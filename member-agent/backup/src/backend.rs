//! The library's backend over [`Files`].
//!
//! Packs are written by a few tasks behind the library's back, so that hashing does not wait for disk or store; every other
//! file waits until all of them are durable. A snapshot is not written once anything has failed: the library would leave
//! out a file that it cannot read and go on.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::Bytes;
use fluvial_transfer::TransferError;
use rustic_core::{BytesList, FileType, Id, ReadBackend, RusticResult, WriteBackend};
use tokio::runtime::Handle;

use crate::files::{Files, Folder, Located};
use crate::stop::Stop;

/// Packs that are written at once: with packs of at most 64 MiB, 256 MiB at the very most, 64 MiB as a rule.
const WRITES: usize = 4;

pub(crate) struct Backend {
    files: Arc<Files>,
    stop: Stop,
    handle: Handle,
    writes: Arc<Writes>,
}

#[derive(Default)]
struct Writes {
    under_way: Mutex<usize>,
    one_ended: Condvar,
}

impl Writes {
    /// Waits until fewer than `most` are under way, then counts one more if `begin`.
    fn wait(&self, most: usize, begin: bool) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        while *under_way >= most {
            under_way = self.one_ended.wait(under_way).unwrap_or_else(PoisonError::into_inner);
        }
        *under_way += usize::from(begin);
    }
}

/// One pack that is being written. Dropped undone, as a runtime that ends drops what it has not begun, it is a failure.
struct Turn {
    writes: Arc<Writes>,
    stop: Stop,
    done: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.done {
            self.stop.fail(TransferError::Cancelled { op: "write a pack" }.into());
        }
        *self.writes.under_way.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.writes.one_ended.notify_all();
    }
}

impl Backend {
    pub(crate) fn new(files: Arc<Files>, stop: Stop, handle: Handle) -> Self {
        Self { files, stop, handle, writes: Arc::default() }
    }

    fn tell<T>(&self, result: Result<T, TransferError>) -> RusticResult<T> {
        result.map_err(|error| {
            self.stop.fail(error.into());
            Stop::stand_in()
        })
    }

    fn behind(&self, id: &Id, parts: Vec<Bytes>) {
        self.writes.wait(WRITES, true);
        let mut turn = Turn { writes: self.writes.clone(), stop: self.stop.clone(), done: false };
        let (files, name) = (self.files.clone(), name_of(id));
        let write = move || {
            if !turn.stop.stopped()
                && let Err(error) = files.write(Located::In(Folder::Data, &name), &parts)
            {
                turn.stop.fail(error.into());
            }
            turn.done = true;
        };
        self.handle.spawn_blocking(write);
    }
}

fn name_of(id: &Id) -> String {
    id.to_hex().as_str().to_owned()
}

const fn folder(kind: FileType) -> Option<Folder> {
    match kind {
        FileType::Config => None,
        FileType::Key => Some(Folder::Keys),
        FileType::Snapshot => Some(Folder::Snapshots),
        FileType::Index => Some(Folder::Index),
        FileType::Pack => Some(Folder::Data),
    }
}

fn located(kind: FileType, name: &str) -> Located<'_> {
    folder(kind).map_or(Located::Config, |folder| Located::In(folder, name))
}

impl ReadBackend for Backend {
    fn location(&self) -> String {
        self.files.place().to_owned()
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let small = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
        let Some(folder) = folder(kind) else {
            let size = self.tell(self.files.config_size())?;
            return Ok(size.map(|size| (Id::default(), small(size))).into_iter().collect());
        };
        let listed = self.tell(self.files.list(folder))?;
        Ok(listed.into_iter().filter_map(|(name, size)| Some((name.parse().ok()?, small(size)))).collect())
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        self.tell(self.files.read(located(kind, &name_of(id))))
    }

    fn read_partial(&self, kind: FileType, id: &Id, _: bool, offset: u32, length: u32) -> RusticResult<Bytes> {
        self.tell(self.files.read_range(located(kind, &name_of(id)), offset.into(), length.into()))
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        format!("{}/{}", kind.dirname(), name_of(id))
    }
}

impl WriteBackend for Backend {
    fn create(&self) -> RusticResult<()> {
        self.tell(self.files.create())
    }

    fn write_bytes(&self, kind: FileType, id: &Id, _: bool, content: BytesList) -> RusticResult<()> {
        if kind == FileType::Pack && !self.stop.stopped() {
            self.behind(id, content.into_vec());
            return Ok(());
        }
        self.writes.wait(1, false);
        if self.stop.stopped() {
            return Err(Stop::stand_in());
        }
        self.tell(self.files.write(located(kind, &name_of(id)), content.slice()))
    }

    fn remove(&self, kind: FileType, id: &Id, _: bool) -> RusticResult<()> {
        self.writes.wait(1, false);
        if self.stop.stopped() {
            return Err(Stop::stand_in());
        }
        self.tell(self.files.remove(located(kind, &name_of(id))))
    }
}
