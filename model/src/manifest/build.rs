//! Entries in path order in, blocks out, the root at the end; memory is bounded by the open directories.
//!
//! Where a block ends is decided by the name that it ends with (a part of the name's BLAKE3 is zero) or by its size.
//! It never depends on how entries were handed over, and an inserted name moves the ends of its neighbourhood only.

use super::block::{
    BlockRef, CLOSE_BLOCK_BYTES, IndexEntry, Item, MAX_MODE, MAX_TARGET_BYTES, put_child, put_entry, seal_index,
    seal_page,
};
use super::hash::{BlockHash, Root};
use super::path::RelativePath;
use super::{Entry, Totals};

/// A block ends after one name in 2^9 on average: pages of about 40 KiB.
const BOUNDARY_BITS: u32 = 9;

/// Why an entry was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError<E: std::error::Error + 'static> {
    /// The root has no entry of its own.
    #[error("build manifest: the root cannot be an entry")]
    Root,
    /// Entries must come in path order, each once.
    #[error("build manifest: {path:?} is not after the entry before it")]
    Order {
        /// The entry.
        path: RelativePath,
    },
    /// Something lies below a file or a link.
    #[error("build manifest: {path:?} lies below something that is not a directory")]
    NotADirectory {
        /// The entry.
        path: RelativePath,
    },
    /// A mode with other bits than permissions.
    #[error("build manifest: mode {mode:o} of {path:?} has bits above 7777")]
    Mode {
        /// The entry.
        path: RelativePath,
        /// Its mode.
        mode: u32,
    },
    /// A link target that is empty, too long or holds NUL.
    #[error("build manifest: the link target of {path:?} must have 1 to {MAX_TARGET_BYTES} bytes and no NUL")]
    Target {
        /// The entry.
        path: RelativePath,
    },
    /// The block could not be stored.
    #[error("build manifest: store a block")]
    Sink(#[source] E),
}

/// A finished tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// Its name.
    pub root: Root,
    /// Its sums.
    pub totals: Totals,
}

/// Builds a tree from entries in path order ([`RelativePath`]'s order). Parents that are not given are made.
pub struct TreeBuilder<S> {
    sink: S,
    /// The open directories, the root first.
    open: Vec<Open>,
}

struct Open {
    name: String,
    last: Option<Last>,
    page: Level,
    /// Index levels, lowest first.
    indexes: Vec<Level>,
}

struct Last {
    name: String,
    directory: bool,
}

/// A block in the making.
#[derive(Default)]
struct Level {
    body: Vec<u8>,
    count: usize,
    first: String,
    totals: Totals,
    /// The only child so far, which stands for the level when nothing else comes.
    only: Option<BlockRef>,
}

impl Open {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), last: None, page: Level::default(), indexes: Vec::new() }
    }
}

/// Whether the block of `level` ends with the child named `name`.
fn is_boundary(name: &str, level: usize) -> bool {
    let hash = blake3::hash(name.as_bytes());
    // A different window of the hash on every level, or the boundaries of one level would all be those of the next.
    let window = (level * 2) % 28;
    let bits = u32::from_le_bytes([
        hash.as_bytes()[window],
        hash.as_bytes()[window + 1],
        hash.as_bytes()[window + 2],
        hash.as_bytes()[window + 3],
    ]);
    bits & ((1 << BOUNDARY_BITS) - 1) == 0
}

impl<E, S> TreeBuilder<S>
where
    E: std::error::Error + 'static,
    S: FnMut(BlockHash, Vec<u8>) -> Result<(), E>,
{
    /// `sink` receives every block once it is complete, children before parents.
    pub fn new(sink: S) -> Self {
        Self { sink, open: vec![Open::new("")] }
    }

    /// Adds the next entry.
    ///
    /// # Errors
    /// When it is out of order, below a file, or not encodable; or when the sink fails.
    pub fn push(&mut self, path: &RelativePath, entry: Entry) -> Result<(), BuildError<E>> {
        match &entry {
            Entry::File(file) if file.mode > MAX_MODE => {
                return Err(BuildError::Mode { path: path.clone(), mode: file.mode });
            }
            Entry::Symlink { target }
                if target.is_empty() || target.len() > MAX_TARGET_BYTES || target.contains('\0') =>
            {
                return Err(BuildError::Target { path: path.clone() });
            }
            _ => {}
        }
        let name = path.name().ok_or(BuildError::Root)?;
        let parents = path.depth() - 1;
        let shared = self.open[1..]
            .iter()
            .zip(path.components().take(parents))
            .take_while(|(open, component)| open.name == *component)
            .count();
        // A directory that is open already, because something in it came first or because it was given before.
        if entry == Entry::Directory && shared == parents && self.open.get(shared + 1).is_some_and(|o| o.name == name) {
            return if self.open.len() == shared + 2 { Ok(()) } else { Err(BuildError::Order { path: path.clone() }) };
        }
        self.close_to(shared + 1)?;
        for component in path.components().skip(shared).take(parents - shared) {
            self.enter(path, component, true)?;
            self.open.push(Open::new(component));
        }
        let item = match entry {
            Entry::Directory => {
                self.enter(path, name, true)?;
                self.open.push(Open::new(name));
                return Ok(());
            }
            Entry::File(file) => Item::File(file),
            Entry::Symlink { target } => Item::Symlink { target },
        };
        self.enter(path, name, false)?;
        let depth = self.open.len() - 1;
        self.add(depth, name, &item)
    }

    /// Completes the tree.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn finish(mut self) -> Result<Built, BuildError<E>> {
        self.close_to(1)?;
        let block = self.seal(0)?;
        Ok(Built { root: block.hash.into(), totals: block.totals })
    }

    /// Notes that `name` comes next in the innermost open directory.
    fn enter(&mut self, path: &RelativePath, name: &str, directory: bool) -> Result<(), BuildError<E>> {
        let innermost = self.open.len() - 1;
        let open = &mut self.open[innermost];
        if let Some(last) = &open.last {
            let is_parent = innermost + 1 < path.depth();
            if last.name == name && !last.directory && is_parent {
                return Err(BuildError::NotADirectory { path: path.clone() });
            }
            if name.as_bytes() <= last.name.as_bytes() {
                return Err(BuildError::Order { path: path.clone() });
            }
        }
        open.last = Some(Last { name: name.to_owned(), directory });
        Ok(())
    }

    /// Closes open directories until `count` are left.
    fn close_to(&mut self, count: usize) -> Result<(), BuildError<E>> {
        while self.open.len() > count {
            let depth = self.open.len() - 1;
            let block = self.seal(depth)?;
            let name = std::mem::take(&mut self.open[depth].name);
            self.open.truncate(depth);
            self.add(depth - 1, &name, &Item::Directory(block))?;
        }
        Ok(())
    }

    fn add(&mut self, depth: usize, name: &str, item: &Item) -> Result<(), BuildError<E>> {
        let page = &mut self.open[depth].page;
        if page.count == 0 {
            name.clone_into(&mut page.first);
        }
        put_entry(&mut page.body, name, item);
        page.count += 1;
        page.totals = page.totals.plus(item.totals());
        if page.body.len() >= CLOSE_BLOCK_BYTES || is_boundary(name, 0) {
            self.close_page(depth)?;
        }
        Ok(())
    }

    fn close_page(&mut self, depth: usize) -> Result<(), BuildError<E>> {
        let page = std::mem::take(&mut self.open[depth].page);
        let block = self.emit(seal_page(page.count, &page.body), page.totals)?;
        self.add_child(depth, 0, IndexEntry { first: page.first, block })
    }

    /// Adds a child to index `index` (0 is directly above pages), closing it when it is full.
    fn add_child(&mut self, depth: usize, index: usize, child: IndexEntry) -> Result<(), BuildError<E>> {
        let indexes = &mut self.open[depth].indexes;
        if indexes.len() == index {
            indexes.push(Level::default());
        }
        let level = &mut indexes[index];
        level.only = (level.count == 0).then_some(child.block);
        if level.count == 0 {
            level.first.clone_from(&child.first);
        }
        put_child(&mut level.body, &child);
        level.count += 1;
        level.totals = level.totals.plus(child.block.totals);
        // At least two children, or a chain of single ones could grow without end.
        if level.count >= 2 && (level.body.len() >= CLOSE_BLOCK_BYTES || is_boundary(&child.first, index + 1)) {
            self.close_index(depth, index)?;
        }
        Ok(())
    }

    fn close_index(&mut self, depth: usize, index: usize) -> Result<(), BuildError<E>> {
        let level = std::mem::take(&mut self.open[depth].indexes[index]);
        let number = u8::try_from(index + 1).expect("each level halves the count below it, so levels stay below 64");
        let block = self.emit(seal_index(number, level.count, &level.body), level.totals)?;
        self.add_child(depth, index + 1, IndexEntry { first: level.first, block })
    }

    /// Closes what is open of a directory and returns its topmost block.
    fn seal(&mut self, depth: usize) -> Result<BlockRef, BuildError<E>> {
        let open = &self.open[depth];
        if open.indexes.is_empty() {
            let page = std::mem::take(&mut self.open[depth].page);
            return self.emit(seal_page(page.count, &page.body), page.totals);
        }
        if open.page.count > 0 {
            self.close_page(depth)?;
        }
        let mut index = 0;
        loop {
            let last = index + 1 == self.open[depth].indexes.len();
            let level = &self.open[depth].indexes[index];
            if let (true, Some(only)) = (last, level.only) {
                return Ok(only);
            }
            if level.count > 0 {
                self.close_index(depth, index)?;
            }
            index += 1;
        }
    }

    fn emit(&mut self, bytes: Vec<u8>, totals: Totals) -> Result<BlockRef, BuildError<E>> {
        let hash = BlockHash::of(&bytes);
        (self.sink)(hash, bytes).map_err(BuildError::Sink)?;
        Ok(BlockRef { hash, totals })
    }
}
