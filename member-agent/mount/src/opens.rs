//! Which inodes are open and how, and the files that were closed a moment ago and may be opened again.
//!
//! The kernel refuses to mix two ways of reading one inode. A complete file that is closed stays registered with the kernel
//! and leased in the cache for [`IDLE`], so that who opens it again costs nobody anything.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fuser::BackingId;

use crate::files::Opened;
use crate::raw;
use crate::table::Table;

/// How long a closed file is kept.
const IDLE: Duration = Duration::from_secs(30);
/// Most closed files that are kept, one descriptor each.
const IDLE_MOST: usize = 4096;
/// And no more than this part of the descriptors that the process may have.
const IDLE_DIVISOR: usize = 4;

/// A file registered with the kernel for passthrough, until this is dropped.
pub(crate) struct Registered {
    device: Arc<File>,
    table: Arc<Mutex<Table>>,
    /// The kernel's number of it.
    pub(crate) number: u32,
}

impl Registered {
    /// Registers a file for an inode, and notes it. One at a time.
    pub(crate) fn new(device: &Arc<File>, table: &Arc<Mutex<Table>>, inode: u64, file: &File) -> io::Result<Self> {
        let number = BackingId::create_raw(device, file)?;
        let registered = Self::known(device, table, number);
        table.lock().unwrap_or_else(PoisonError::into_inner).registered(number, inode)?;
        Ok(registered)
    }

    /// What a process before this one registered, under the number that it had there.
    pub(crate) fn known(device: &Arc<File>, table: &Arc<Mutex<Table>>, number: u32) -> Self {
        Self { device: device.clone(), table: table.clone(), number }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        raw::unregister(&self.device, self.number);
        self.table.lock().unwrap_or_else(PoisonError::into_inner).unregistered(self.number);
    }
}

/// How an inode is open.
#[derive(Default)]
pub(crate) struct InodeOpens {
    pub(crate) passthrough: usize,
    pub(crate) daemon: usize,
    /// Lives as long as any passthrough open does, and while it is kept.
    pub(crate) backing: Option<Arc<Registered>>,
    /// Has the cache keep the file that a process before this one registered.
    pub(crate) lease: Option<Box<dyn Any + Send + Sync>>,
    /// The complete file, to be opened again.
    kept: Option<Arc<Opened>>,
    /// Which of its closings is the last one.
    closed: u64,
}

/// The inodes.
pub(crate) struct Opens {
    inodes: HashMap<u64, InodeOpens>,
    /// Closed and kept, the oldest first: inode, number of the closing, when. Entries of inodes that were opened again
    /// are stale, and dropped when they come up.
    idle: VecDeque<(u64, u64, Instant)>,
    closings: u64,
    /// Most that are kept.
    most: usize,
}

impl Opens {
    /// Nothing is open; the process may have so many descriptors.
    pub(crate) fn new(descriptors: u64) -> Self {
        let share = usize::try_from(descriptors).unwrap_or(usize::MAX) / IDLE_DIVISOR;
        Self { inodes: HashMap::new(), idle: VecDeque::new(), closings: 0, most: IDLE_MOST.min(share) }
    }

    /// An inode, new if it is not open.
    pub(crate) fn inode(&mut self, inode: u64) -> &mut InodeOpens {
        self.inodes.entry(inode).or_default()
    }

    /// An inode, if it is open or kept.
    pub(crate) fn known(&mut self, inode: u64) -> Option<&mut InodeOpens> {
        self.inodes.get_mut(&inode)
    }

    /// Whether an inode is open or kept.
    #[cfg(test)]
    fn knows(&self, inode: u64) -> bool {
        self.inodes.contains_key(&inode)
    }

    /// Opens a file that is complete and registered already.
    pub(crate) fn again(&mut self, inode: u64) -> Option<(Arc<Opened>, Arc<Registered>)> {
        let opens = self.inodes.get_mut(&inode)?;
        let found = opens.kept.clone().zip(opens.backing.clone())?;
        opens.passthrough += 1;
        Some(found)
    }

    /// Closes a handle.
    pub(crate) fn close(&mut self, inode: u64, passthrough: bool, now: Instant) {
        let Some(opens) = self.inodes.get_mut(&inode) else { return };
        let count = if passthrough { &mut opens.passthrough } else { &mut opens.daemon };
        *count = count.saturating_sub(1);
        if opens.is_open() {
            return;
        }
        if opens.kept.is_none() {
            self.inodes.remove(&inode);
            return;
        }
        self.closings += 1;
        opens.closed = self.closings;
        self.idle.push_back((inode, self.closings, now));
        self.sweep(now);
    }

    /// Lets go of what was kept long enough, or is too much.
    pub(crate) fn sweep(&mut self, now: Instant) {
        while let Some((inode, closing, since)) = self.idle.front().copied() {
            let stale = self.inodes.get(&inode).is_none_or(|opens| opens.closed != closing || opens.is_open());
            if !stale && self.idle.len() <= self.most && now.duration_since(since) < IDLE {
                break;
            }
            self.idle.pop_front();
            if !stale {
                self.inodes.remove(&inode);
            }
        }
    }
}

impl InodeOpens {
    /// Whether a program has it open.
    pub(crate) fn is_open(&self) -> bool {
        self.passthrough + self.daemon > 0
    }

    /// Remembers the file for who opens it next.
    pub(crate) fn keep(&mut self, opened: &Arc<Opened>) {
        self.kept = Some(opened.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Contents;

    /// An inode, open by the kernel's own reading.
    fn open(opens: &mut Opens, inode: u64) {
        let opens = opens.inode(inode);
        opens.passthrough += 1;
        let contents = Contents::Complete(Arc::new(File::open("/dev/null").unwrap()));
        opens.keep(&Arc::new(Opened { contents, lease: None }));
    }

    #[test]
    fn a_closed_file_is_kept_for_a_while_and_not_while_it_is_open_again() {
        let (mut opens, start) = (Opens::new(u64::MAX), Instant::now());
        open(&mut opens, 7);
        opens.close(7, true, start);
        assert!(opens.knows(7));
        open(&mut opens, 7);
        opens.sweep(start + IDLE * 2);
        assert!(opens.knows(7), "it is open again");
        opens.close(7, true, start + IDLE * 2);
        assert!(opens.knows(7));
        opens.sweep(start + IDLE * 3 + Duration::from_secs(1));
        assert!(!opens.knows(7));
    }

    #[test]
    fn a_file_that_was_not_complete_or_is_not_known_is_let_go_at_its_last_closing() {
        let (mut opens, now) = (Opens::new(u64::MAX), Instant::now());
        opens.inode(1).daemon = 1;
        opens.close(1, false, now);
        assert!(!opens.knows(1));
        opens.inode(2).passthrough = 2;
        opens.close(2, true, now);
        assert!(opens.knows(2), "as in a process before this one, twice");
        opens.close(2, true, now);
        assert!(!opens.knows(2));
    }

    #[test]
    fn no_more_are_kept_than_fit() {
        let now = Instant::now();
        let mut opens = Opens::new(400);
        for inode in 0..110 {
            open(&mut opens, inode);
            opens.close(inode, true, now);
        }
        assert!((0..10).all(|inode| !opens.knows(inode)) && (10..110).all(|inode| opens.knows(inode)));
    }
}
