//! Reading a tree through a closure that knows blocks: sums, look-up, listing, walking.
//!
//! The closure answers with the bytes of a block, verified by whoever keeps them. Everything else is checked here: a
//! tree that contradicts itself (levels, first names, order, depth) is an error, never a loop or a wrong answer.

use bytes::Bytes;

use super::block::{BlockRef, DecodeError, IndexEntry, Item, Node, PageEntry, decode};
use super::hash::{BlockHash, Root};
use super::path::{MAX_DEPTH, PathError, RelativePath};
use super::{Entry, Totals};

/// Why a tree could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A block is not there.
    #[error("read manifest: block {block} is missing")]
    Missing {
        /// The block.
        block: BlockHash,
    },
    /// A block is not one.
    #[error("read manifest: block {block} is not valid")]
    Decode {
        /// The block.
        block: BlockHash,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// Blocks that are valid each but do not fit together.
    #[error("read manifest: block {block} does not fit its place: {why}")]
    Misplaced {
        /// The block.
        block: BlockHash,
        /// In which way.
        why: &'static str,
    },
    /// A path that is too long or too deep.
    #[error("read manifest: a path in the tree is not allowed")]
    Path(#[source] PathError),
    /// A listing of something that is not a directory.
    #[error("read manifest: {path:?} is not a directory of this tree")]
    NotADirectory {
        /// The path.
        path: RelativePath,
    },
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name in the directory.
    pub name: String,
    /// What it is; a directory carries its sums.
    pub item: Item,
}

pub(super) fn load<G: Fn(&BlockHash) -> Option<Bytes>>(get: &G, block: &BlockHash) -> Result<Node, ReadError> {
    let bytes = get(block).ok_or(ReadError::Missing { block: *block })?;
    decode(&bytes).map_err(|source| ReadError::Decode { block: *block, source })
}

/// What is still to come of a directory: blocks that have not been opened, then entries.
#[derive(Debug, Clone)]
pub(super) enum Pending {
    Block {
        /// The first name in it; `None` for the topmost block, which may be empty.
        first: Option<String>,
        /// The level that it must have; `None` for the topmost block.
        level: Option<u8>,
        hash: BlockHash,
        /// Sums, to see which of two blocks is the larger one.
        totals: Totals,
    },
    Entry(PageEntry),
}

/// A directory, read from front to back, opening only the blocks it must.
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    /// In reverse: the next one is the last.
    pending: Vec<Pending>,
}

impl Cursor {
    pub(super) fn new(hash: BlockHash, totals: Totals) -> Self {
        Self { pending: vec![Pending::Block { first: None, level: None, hash, totals }] }
    }

    /// A directory with nothing in it.
    pub(super) fn empty() -> Self {
        Self { pending: Vec::new() }
    }

    /// What comes next, opened or not.
    pub(super) fn peek(&self) -> Option<&Pending> {
        self.pending.last()
    }

    /// Leaves out what comes next.
    pub(super) fn skip(&mut self) {
        self.pending.pop();
    }

    /// Opens the block that comes next; does nothing when it is an entry.
    pub(super) fn open<G: Fn(&BlockHash) -> Option<Bytes>>(&mut self, get: &G) -> Result<(), ReadError> {
        let Some(Pending::Block { .. }) = self.pending.last() else { return Ok(()) };
        let Some(Pending::Block { first, level, hash, .. }) = self.pending.pop() else { return Ok(()) };
        let misplaced = |why| ReadError::Misplaced { block: hash, why };
        let fits = |found: Option<&str>| first.is_none() || first.as_deref() == found;
        match load(get, &hash)? {
            Node::Page(entries) => {
                if level.is_some_and(|level| level != 0) {
                    return Err(misplaced("a page where an index was announced"));
                }
                if !fits(entries.first().map(|entry| entry.name.as_str())) {
                    return Err(misplaced("its first name is another than announced"));
                }
                // The last name must be before the next sibling's first.
                let last = entries.last().map(|entry| entry.name.as_bytes());
                self.check_before_next(last).map_err(misplaced)?;
                self.pending.extend(entries.into_iter().rev().map(Pending::Entry));
            }
            Node::Index { level: found, children } => {
                if level.is_some_and(|level| level != found) {
                    return Err(misplaced("an index of another level than announced"));
                }
                if !fits(children.first().map(|child| child.first.as_str())) {
                    return Err(misplaced("its first name is another than announced"));
                }
                let last = children.last().map(|child| child.first.as_bytes());
                self.check_before_next(last).map_err(misplaced)?;
                self.pending.extend(children.into_iter().rev().map(|IndexEntry { first, block }| Pending::Block {
                    first: Some(first),
                    level: Some(found - 1),
                    hash: block.hash,
                    totals: block.totals,
                }));
            }
        }
        Ok(())
    }

    fn check_before_next(&self, last: Option<&[u8]>) -> Result<(), &'static str> {
        let next = match self.pending.last() {
            Some(Pending::Block { first, .. }) => first.as_deref(),
            Some(Pending::Entry(entry)) => Some(entry.name.as_str()),
            None => None,
        };
        match (last, next) {
            (Some(last), Some(next)) if last >= next.as_bytes() => Err("it overlaps the block after it"),
            _ => Ok(()),
        }
    }

    /// The next entry, opening blocks down to it.
    pub(super) fn next<G: Fn(&BlockHash) -> Option<Bytes>>(&mut self, get: &G) -> Result<Option<PageEntry>, ReadError> {
        while let Some(Pending::Block { .. }) = self.pending.last() {
            self.open(get)?;
        }
        match self.pending.pop() {
            Some(Pending::Entry(entry)) => Ok(Some(entry)),
            _ => Ok(None),
        }
    }

    /// Moves to the first entry whose name is at least `name`, opening only the blocks on the way.
    pub(super) fn seek<G: Fn(&BlockHash) -> Option<Bytes>>(&mut self, name: &str, get: &G) -> Result<(), ReadError> {
        loop {
            // A block can be left out when the one after it starts at or before the name.
            let after = self.pending.len().checked_sub(2).and_then(|at| self.pending.get(at));
            let after_first = match after {
                Some(Pending::Block { first: Some(first), .. }) => Some(first.as_bytes()),
                Some(Pending::Entry(entry)) => Some(entry.name.as_bytes()),
                _ => None,
            };
            match self.pending.last() {
                Some(Pending::Entry(entry)) if entry.name.as_bytes() < name.as_bytes() => self.skip(),
                Some(Pending::Block { first: Some(first), .. }) if first.as_bytes() >= name.as_bytes() => return Ok(()),
                Some(Pending::Block { .. }) if after_first.is_some_and(|first| first <= name.as_bytes()) => self.skip(),
                Some(Pending::Block { .. }) => self.open(get)?,
                _ => return Ok(()),
            }
        }
    }
}

/// The sums of a tree.
///
/// # Errors
/// When the topmost block is missing or not valid.
pub fn totals<G: Fn(&BlockHash) -> Option<Bytes>>(root: Root, get: &G) -> Result<Totals, ReadError> {
    load(get, &root.block()).map(|node| node.totals())
}

/// What is at `path`; the root itself is a directory. `None` when nothing is there.
///
/// # Errors
/// When a block on the way is missing or not valid.
pub fn lookup<G: Fn(&BlockHash) -> Option<Bytes>>(
    root: Root,
    path: &RelativePath,
    get: &G,
) -> Result<Option<Item>, ReadError> {
    let mut item = Item::Directory(BlockRef { hash: root.block(), totals: totals(root, get)? });
    for name in path.components() {
        let Item::Directory(block) = item else { return Ok(None) };
        let mut cursor = Cursor::new(block.hash, block.totals);
        cursor.seek(name, get)?;
        match cursor.next(get)? {
            Some(entry) if entry.name == name => item = entry.item,
            _ => return Ok(None),
        }
    }
    Ok(Some(item))
}

/// Up to `limit` entries of the directory `dir`, those after the name `after`.
///
/// # Errors
/// When `dir` is not a directory, or a block is missing or not valid.
pub fn list<G: Fn(&BlockHash) -> Option<Bytes>>(
    root: Root,
    dir: &RelativePath,
    after: Option<&str>,
    limit: usize,
    get: &G,
) -> Result<Vec<Listed>, ReadError> {
    let Some(Item::Directory(block)) = lookup(root, dir, get)? else {
        return Err(ReadError::NotADirectory { path: dir.clone() });
    };
    let mut cursor = Cursor::new(block.hash, block.totals);
    if let Some(after) = after {
        cursor.seek(after, get)?;
    }
    let mut listed = Vec::new();
    while listed.len() < limit {
        let Some(PageEntry { name, item }) = cursor.next(get)? else { break };
        if after != Some(name.as_str()) {
            listed.push(Listed { name, item });
        }
    }
    Ok(listed)
}

/// Every entry of a tree in path order, directories before what is in them.
pub fn walk<G: Fn(&BlockHash) -> Option<Bytes>>(root: Root, get: G) -> Walk<G> {
    Walk { get, open: vec![(RelativePath::root(), Cursor::new(root.block(), Totals::default()))], failed: false }
}

/// The iterator of [`walk`]; after an error it ends.
pub struct Walk<G> {
    get: G,
    open: Vec<(RelativePath, Cursor)>,
    failed: bool,
}

impl<G: Fn(&BlockHash) -> Option<Bytes>> Walk<G> {
    fn step(&mut self) -> Result<Option<(RelativePath, Entry)>, ReadError> {
        loop {
            let Some((directory, cursor)) = self.open.last_mut() else { return Ok(None) };
            let Some(PageEntry { name, item }) = cursor.next(&self.get)? else {
                self.open.pop();
                continue;
            };
            let path = directory.join(&name).map_err(ReadError::Path)?;
            if let Item::Directory(block) = &item {
                // `join` bounds the depth of paths, and with it this stack, even when blocks form a cycle.
                debug_assert!(self.open.len() <= MAX_DEPTH);
                self.open.push((path.clone(), Cursor::new(block.hash, block.totals)));
            }
            return Ok(Some((path, item.entry())));
        }
    }
}

impl<G: Fn(&BlockHash) -> Option<Bytes>> Iterator for Walk<G> {
    type Item = Result<(RelativePath, Entry), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
}
