//! What differs between two trees, in path order, without opening what they share.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::block::{Item, PageEntry};
use super::hash::{BlockHash, Root};
use super::path::RelativePath;
use super::read::{Cursor, Pending, ReadError};
use super::{Entry, Totals};

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The path.
    pub path: RelativePath,
    /// In which way.
    pub change: Change,
}

/// How a path differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Only the second tree has it.
    Added(Entry),
    /// Only the first tree has it.
    Removed(Entry),
    /// Both have it, differently. Directories never change by what is in them.
    Changed {
        /// In the first tree.
        before: Entry,
        /// In the second tree.
        after: Entry,
        /// What of it differs; never empty.
        what: Vec<Aspect>,
    },
}

/// A property of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Aspect {
    /// File, directory or link.
    Kind,
    /// The size.
    Size,
    /// The contents' digest, or whether it is known.
    Digest,
    /// The modification time.
    Mtime,
    /// The permission bits.
    Mode,
    /// The target of a link.
    Target,
}

/// What differs between two entries; empty when they are equal.
#[must_use]
pub fn aspects(before: &Entry, after: &Entry) -> Vec<Aspect> {
    match (before, after) {
        (Entry::File(before), Entry::File(after)) => [
            (before.size != after.size, Aspect::Size),
            (before.digest != after.digest, Aspect::Digest),
            (before.mtime_ns != after.mtime_ns, Aspect::Mtime),
            (before.mode != after.mode, Aspect::Mode),
        ]
        .into_iter()
        .filter_map(|(differs, aspect)| differs.then_some(aspect))
        .collect(),
        (Entry::Directory, Entry::Directory) => Vec::new(),
        (Entry::Symlink { target: before }, Entry::Symlink { target: after }) => {
            if before == after {
                Vec::new()
            } else {
                vec![Aspect::Target]
            }
        }
        _ => vec![Aspect::Kind],
    }
}

/// Calls `visit` with everything that differs from `before` to `after`, in path order, until it breaks.
///
/// # Errors
/// When a block that is needed is missing or not valid.
pub fn diff<G, V>(before: Root, after: Root, get: &G, visit: &mut V) -> Result<ControlFlow<()>, ReadError>
where
    G: Fn(&BlockHash) -> Option<Bytes>,
    V: FnMut(Difference) -> ControlFlow<()>,
{
    if before == after {
        return Ok(ControlFlow::Continue(()));
    }
    let left = Cursor::new(before.block(), Totals::default());
    let right = Cursor::new(after.block(), Totals::default());
    Walker { get, visit }.directories(&RelativePath::root(), Some(left), Some(right))
}

struct Walker<'a, G, V> {
    get: &'a G,
    visit: &'a mut V,
}

impl<G, V> Walker<'_, G, V>
where
    G: Fn(&BlockHash) -> Option<Bytes>,
    V: FnMut(Difference) -> ControlFlow<()>,
{
    /// Compares two directories of one path, of which one may not exist. Recursion is bounded by the depth of paths.
    fn directories(
        &mut self,
        path: &RelativePath,
        left: Option<Cursor>,
        right: Option<Cursor>,
    ) -> Result<ControlFlow<()>, ReadError> {
        let mut left = left.unwrap_or_else(Cursor::empty);
        let mut right = right.unwrap_or_else(Cursor::empty);
        loop {
            let (take_left, take_right) = match (left.peek(), right.peek()) {
                (None, None) => return Ok(ControlFlow::Continue(())),
                (Some(Pending::Block { .. }), None) => {
                    left.open(self.get)?;
                    continue;
                }
                (None, Some(Pending::Block { .. })) => {
                    right.open(self.get)?;
                    continue;
                }
                (Some(Pending::Entry(_)), None) => (true, false),
                (None, Some(Pending::Entry(_))) => (false, true),
                (Some(a), Some(b)) => match Self::step(a, b) {
                    Step::Skip => {
                        left.skip();
                        right.skip();
                        continue;
                    }
                    Step::Open { in_left, in_right } => {
                        if in_left {
                            left.open(self.get)?;
                        }
                        if in_right {
                            right.open(self.get)?;
                        }
                        continue;
                    }
                    Step::Take { from_left, from_right } => (from_left, from_right),
                },
            };
            let before = if take_left { left.next(self.get)? } else { None };
            let after = if take_right { right.next(self.get)? } else { None };
            if self.entries(path, before, after)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }

    fn step(a: &Pending, b: &Pending) -> Step {
        match (a, b) {
            (
                Pending::Block { first: first_a, hash: hash_a, totals: totals_a, .. },
                Pending::Block { first: first_b, hash: hash_b, totals: totals_b, .. },
            ) => {
                if hash_a == hash_b {
                    return Step::Skip;
                }
                // The one that starts earlier is opened; of two that start together, the larger one, because the
                // other may be a part of it.
                let by_name = first_a.cmp(first_b);
                let entries = |totals: &Totals| totals.files.saturating_add(totals.dirs);
                let order = by_name.then(entries(totals_b).cmp(&entries(totals_a)));
                Step::Open { in_left: order != Ordering::Greater, in_right: order != Ordering::Less }
            }
            (Pending::Block { first, .. }, Pending::Entry(entry)) => {
                if first.as_ref().is_some_and(|first| first.as_bytes() > entry.name.as_bytes()) {
                    Step::Take { from_left: false, from_right: true }
                } else {
                    Step::Open { in_left: true, in_right: false }
                }
            }
            (Pending::Entry(entry), Pending::Block { first, .. }) => {
                if first.as_ref().is_some_and(|first| first.as_bytes() > entry.name.as_bytes()) {
                    Step::Take { from_left: true, from_right: false }
                } else {
                    Step::Open { in_left: false, in_right: true }
                }
            }
            (Pending::Entry(a), Pending::Entry(b)) => {
                let order = a.name.as_bytes().cmp(b.name.as_bytes());
                Step::Take { from_left: order != Ordering::Greater, from_right: order != Ordering::Less }
            }
        }
    }

    /// Compares what two directories have under one name.
    fn entries(
        &mut self,
        directory: &RelativePath,
        before: Option<PageEntry>,
        after: Option<PageEntry>,
    ) -> Result<ControlFlow<()>, ReadError> {
        let Some(name) = before.as_ref().or(after.as_ref()).map(|entry| entry.name.clone()) else {
            return Ok(ControlFlow::Continue(()));
        };
        let path = directory.join(&name).map_err(ReadError::Path)?;
        let entry = |side: &Option<PageEntry>| side.as_ref().map(|entry| entry.item.entry());
        let change = match (entry(&before), entry(&after)) {
            (Some(before), None) => Some(Change::Removed(before)),
            (None, Some(after)) => Some(Change::Added(after)),
            (Some(before), Some(after)) => {
                let what = aspects(&before, &after);
                (!what.is_empty()).then_some(Change::Changed { before, after, what })
            }
            (None, None) => None,
        };
        if let Some(change) = change
            && (self.visit)(Difference { path: path.clone(), change }).is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        let below = |side: &Option<PageEntry>| match side {
            Some(PageEntry { item: Item::Directory(block), .. }) => Some(*block),
            _ => None,
        };
        let (left, right) = (below(&before), below(&after));
        if left.map(|block| block.hash) == right.map(|block| block.hash) {
            return Ok(ControlFlow::Continue(()));
        }
        let cursor = |block: super::BlockRef| Cursor::new(block.hash, block.totals);
        self.directories(&path, left.map(cursor), right.map(cursor))
    }
}

enum Step {
    Skip,
    Open { in_left: bool, in_right: bool },
    Take { from_left: bool, from_right: bool },
}
