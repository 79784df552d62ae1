//! Which inodes are open and how, and the files that were closed a moment ago and may be opened again.
//!
//! The kernel refuses to mix two ways of reading one inode. A complete file that is closed stays registered with the kernel
//! and leased in the cache for [`IDLE`], so that who opens it again costs nobody anything.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::BackingId;

use crate::files::Opened;

/// How long a closed file is kept.
const IDLE: Duration = Duration::from_secs(30);
/// Most closed files that are kept, one descriptor each.
const IDLE_MOST: usize = 4096;
/// And no more than this part of the descriptors that the process may have.
const IDLE_DIVISOR: usize = 4;

/// A file registered with the kernel, and the kernel's number of it.
pub(crate) type Backing = (Arc<BackingId>, u32);

/// How an inode was open in the process before this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inherited {
    Passthrough(u32),
    Daemon,
}

/// How an inode is open.
#[derive(Default)]
pub(crate) struct InodeOpens {
    pub(crate) passthrough: usize,
    pub(crate) daemon: usize,
    /// Lives as long as any passthrough open does, and while it is kept.
    pub(crate) backing: Option<Backing>,
    /// How the process before this one had it open: that may go on, unseen.
    pub(crate) inherited: Option<Inherited>,
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

    /// Whether an inode is open or kept.
    pub(crate) fn knows(&self, inode: u64) -> bool {
        self.inodes.contains_key(&inode)
    }

    /// Opens a file that is complete and registered already.
    pub(crate) fn again(&mut self, inode: u64) -> Option<(Arc<Opened>, Backing)> {
        let opens = self.inodes.get_mut(&inode)?;
        let found = opens.kept.clone().zip(opens.backing.clone())?;
        opens.passthrough += 1;
        Some(found)
    }

    /// Closes a handle. Inodes that nobody has open or kept any more are returned.
    pub(crate) fn close(&mut self, inode: u64, passthrough: bool, now: Instant) -> Vec<u64> {
        let Some(opens) = self.inodes.get_mut(&inode) else { return Vec::new() };
        let count = if passthrough { &mut opens.passthrough } else { &mut opens.daemon };
        *count = count.saturating_sub(1);
        if opens.is_open() || opens.inherited.is_some() {
            // What the process before this one has open is not known: what was registered stays.
            return Vec::new();
        }
        if !passthrough {
            self.inodes.remove(&inode);
            return vec![inode];
        }
        self.closings += 1;
        opens.closed = self.closings;
        self.idle.push_back((inode, self.closings, now));
        self.sweep(now)
    }

    /// Lets go of what was kept long enough, or is too much.
    pub(crate) fn sweep(&mut self, now: Instant) -> Vec<u64> {
        let mut gone = Vec::new();
        while let Some((inode, closing, since)) = self.idle.front().copied() {
            let stale = self.inodes.get(&inode).is_none_or(|opens| opens.closed != closing || opens.is_open());
            if !stale && self.idle.len() <= self.most && now.duration_since(since) < IDLE {
                break;
            }
            self.idle.pop_front();
            if !stale {
                self.inodes.remove(&inode);
                gone.push(inode);
            }
        }
        gone
    }
}

impl InodeOpens {
    /// Whether this process has a handle of it.
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

    #[test]
    fn a_closed_file_is_kept_for_a_while_and_not_while_it_is_open_again() {
        let (mut opens, start) = (Opens::new(u64::MAX), Instant::now());
        opens.inode(7).passthrough = 1;
        assert!(opens.close(7, true, start).is_empty() && opens.knows(7));
        opens.inode(7).passthrough = 1;
        assert!(opens.sweep(start + IDLE * 2).is_empty() && opens.knows(7), "it is open again");
        assert!(opens.close(7, true, start + IDLE * 2).is_empty());
        assert_eq!(opens.sweep(start + IDLE * 3 + Duration::from_secs(1)), [7]);
        assert!(!opens.knows(7));
    }

    #[test]
    fn a_file_that_was_not_complete_is_let_go_at_once_and_an_inherited_one_never() {
        let (mut opens, now) = (Opens::new(u64::MAX), Instant::now());
        opens.inode(1).daemon = 1;
        assert_eq!(opens.close(1, false, now), [1]);
        let inode = opens.inode(2);
        (inode.daemon, inode.inherited) = (1, Some(Inherited::Daemon));
        assert!(opens.close(2, false, now).is_empty() && opens.knows(2));
    }

    #[test]
    fn no_more_are_kept_than_fit() {
        let now = Instant::now();
        let mut gone = Vec::new();
        let mut opens = Opens::new(400);
        for inode in 0..110 {
            opens.inode(inode).passthrough = 1;
            gone.extend(opens.close(inode, true, now));
        }
        assert_eq!(gone, (0..10).collect::<Vec<u64>>());
    }
}
