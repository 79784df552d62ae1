//! What is open of a mount, where a successor of this process finds it: in a file of memory that the agent holds too.
//!
//! One record of 32 bytes for each open file, and one for each file registered with the kernel for passthrough. A record is
//! written by one call within a page, so that a process that is killed leaves all of it or nothing.
//!
//! Order: an open file is noted before the kernel is answered, with the number of the request. Who takes over hears every
//! request that was not answered again: an open that is heard again was never given out, and its record is dropped. A file
//! that is closed is dropped before the kernel is answered; heard again, nothing is known of it. Between a registration and
//! its record a process may be killed, one registration at a time: the kernel numbers them in a row, so that it is the one
//! behind the last that was noted.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Bytes of a record: four numbers, in the machine's order.
const RECORD: usize = 32;
/// The first record says what the file is, and which number the kernel gave last.
const MAGIC: u64 = u64::from_be_bytes(*b"fluvopn1");
const EMPTY: u64 = 0;
const DAEMON: u64 = 1;
const PASSTHROUGH: u64 = 2;
const REGISTERED: u64 = 3;
/// A request that the kernel says again has this bit set in its number (`FUSE_UNIQUE_RESEND` of linux/fuse.h).
const SAID_AGAIN: u64 = 1 << 63;

/// An open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenFile {
    /// Its inode.
    pub inode: u64,
    /// Whether the kernel reads it by itself.
    pub passthrough: bool,
    /// The number of the request that opened it.
    pub request: u64,
}

/// What a process before this one has left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Open files by their handles.
    pub files: BTreeMap<u64, OpenFile>,
    /// Inodes by the kernel's numbers of the files registered for them.
    pub registered: BTreeMap<u32, u64>,
    /// The kernel's number of a file that may be registered without being noted.
    pub unnoted: Option<u32>,
}

/// The table. Not to be used by two processes at a time.
#[derive(Debug)]
pub(crate) struct Table {
    file: File,
    /// Records of open files by their handles, and of registered files by the kernel's numbers.
    files: BTreeMap<u64, u64>,
    registered: BTreeMap<u32, u64>,
    /// Records that are empty.
    free: Vec<u64>,
    /// Records there are.
    records: u64,
}

/// The request that one is, or says again; and whether it does.
pub(crate) fn request(number: u64) -> (u64, bool) {
    (number & !SAID_AGAIN, number & SAID_AGAIN != 0)
}

impl Table {
    /// An empty table.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("open files", MFdFlags::MFD_CLOEXEC)?);
        let table = Self::of(file);
        table.write(0, [MAGIC, 0, 0, 0])?;
        Ok(table)
    }

    /// The table of the process before this one.
    ///
    /// # Errors
    /// When it is none that this program understands.
    pub(crate) fn taken_over(file: OwnedFd) -> io::Result<(Self, Found)> {
        let file = File::from(file);
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, 0)?;
        let mut records = bytes.chunks_exact(RECORD).map(numbers);
        let Some([MAGIC, last, ..]) = records.next() else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the table of open files is of another version"));
        };
        let mut table = Self::of(file);
        let mut found = Found::default();
        for [kind, inode, number, request] in records {
            let at = table.records;
            table.records += 1;
            match (kind, u32::try_from(number)) {
                (DAEMON | PASSTHROUGH, _) => {
                    let passthrough = kind == PASSTHROUGH;
                    table.files.insert(number, at);
                    found.files.insert(number, OpenFile { inode, passthrough, request });
                }
                (REGISTERED, Ok(number)) => {
                    table.registered.insert(number, at);
                    found.registered.insert(number, inode);
                }
                _ => table.free.push(at),
            }
        }
        // Numbers begin with 1.
        let next = u32::try_from(last).ok().and_then(|last| last.checked_add(1));
        found.unnoted = next.filter(|next| !found.registered.contains_key(next));
        Ok((table, found))
    }

    fn of(file: File) -> Self {
        Self { file, files: BTreeMap::new(), registered: BTreeMap::new(), free: Vec::new(), records: 1 }
    }

    /// The file, for whoever takes over.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Notes an open file, before the kernel hears of its handle.
    ///
    /// # Errors
    /// When there is no memory: nothing is noted.
    pub(crate) fn opened(&mut self, handle: u64, open: OpenFile) -> io::Result<()> {
        let kind = if open.passthrough { PASSTHROUGH } else { DAEMON };
        let at = self.add([kind, open.inode, handle, open.request])?;
        self.files.insert(handle, at);
        Ok(())
    }

    /// Drops an open file.
    pub(crate) fn closed(&mut self, handle: u64) {
        if let Some(at) = self.files.remove(&handle) {
            self.clear(at);
        }
    }

    /// Notes that a file was registered for an inode.
    ///
    /// # Errors
    /// When there is no memory: nothing is noted.
    pub(crate) fn registered(&mut self, number: u32, inode: u64) -> io::Result<()> {
        let at = self.add([REGISTERED, inode, number.into(), 0])?;
        self.registered.insert(number, at);
        self.write(0, [MAGIC, number.into(), 0, 0])
    }

    /// Drops a registered file: after the kernel has.
    pub(crate) fn unregistered(&mut self, number: u32) {
        if let Some(at) = self.registered.remove(&number) {
            self.clear(at);
        }
    }

    fn add(&mut self, record: [u64; 4]) -> io::Result<u64> {
        let at = self.free.last().copied().unwrap_or(self.records);
        self.write(at, record)?;
        if self.free.pop().is_none() {
            self.records += 1;
        }
        Ok(at)
    }

    fn clear(&mut self, at: u64) {
        match self.write(at, [EMPTY; 4]) {
            Ok(()) => self.free.push(at),
            // It is memory that was written before: a successor would keep a file for nobody.
            Err(error) => tracing::warn!(%error, "a closed file stays noted"),
        }
    }

    fn write(&self, at: u64, record: [u64; 4]) -> io::Result<()> {
        let mut bytes = [0; RECORD];
        for (place, number) in bytes.chunks_exact_mut(8).zip(record) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        self.file.write_all_at(&bytes, at * RECORD as u64)
    }
}

fn numbers(record: &[u8]) -> [u64; 4] {
    let mut numbers = [0; 4];
    for (number, bytes) in numbers.iter_mut().zip(record.chunks_exact(8)) {
        *number = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(inode: u64, request: u64) -> OpenFile {
        OpenFile { inode, passthrough: inode.is_multiple_of(2), request }
    }

    fn successor(table: &Table) -> (Table, Found) {
        Table::taken_over(table.file().try_clone().unwrap().into()).unwrap()
    }

    #[test]
    fn a_successor_finds_what_is_open_and_registered_and_nothing_else() {
        let mut table = Table::new().unwrap();
        assert_eq!(successor(&table).1, Found { unnoted: Some(1), ..Found::default() });
        for handle in 0..300 {
            table.opened(handle, open(handle + 1000, handle * 2)).unwrap();
        }
        table.registered(7, 1000).unwrap();
        table.registered(8, 1002).unwrap();
        table.unregistered(8);
        for handle in 10..300 {
            table.closed(handle);
        }
        let (mut next, found) = successor(&table);
        assert_eq!(found.files, (0..10).map(|handle| (handle, open(handle + 1000, handle * 2))).collect());
        assert_eq!((found.registered, found.unnoted), ([(7, 1000)].into(), Some(9)));
        // And its own successor what it did, in the room that became free.
        next.closed(3);
        next.opened(1 << 40, open(5, 6)).unwrap();
        let (last, found) = successor(&next);
        assert!(!found.files.contains_key(&3) && found.files[&(1 << 40)] == open(5, 6));
        assert_eq!(last.file().metadata().unwrap().len(), table.file().metadata().unwrap().len());
    }

    #[test]
    fn a_file_that_is_no_table_is_refused() {
        let file = File::from(memfd_create("other", MFdFlags::empty()).unwrap());
        file.write_all_at(&[1; 64], 0).unwrap();
        assert_eq!(Table::taken_over(file.into()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_request_that_is_said_again_has_the_number_that_it_had() {
        assert_eq!(request(12), (12, false));
        assert_eq!(request(SAID_AGAIN | 12), (12, true));
    }
}
