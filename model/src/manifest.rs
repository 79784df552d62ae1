//! A dataset version as a Merkle tree: what every copy of it must equal.
//!
//! A tree is made of blocks named by the BLAKE3 of their bytes ([`block`]). A directory is one page of sorted entries,
//! or, when it is large, pages below index blocks; where a page ends depends on the names alone, so that one added
//! file changes one page, and two versions share the rest. [`Root`] is the name of the topmost block: two trees are
//! equal exactly when their roots are.
//!
//! Used at ③ (planner: roots and totals), ⑤ (reconciler: what to fetch) and by every copy.
//!
//! Invariants: the encoding is canonical (one tree, one root, however it was built); a block is at most
//! [`block::MAX_BLOCK_BYTES`]; paths are valid [`RelativePath`]s; a decoded block is sorted and within its limits.
//!
//! Deliberately absent: source tags (etags, inodes), which differ between a copy and its source and live beside the
//! tree; ownership; reading and writing blocks, which callers pass in as closures.

pub mod block;
pub mod build;
pub mod diff;
pub mod hash;
pub mod path;
pub mod rank;
pub mod read;

pub use block::{BlockRef, DecodeError, Item, Node, PageEntry, decode};
pub use build::{BuildError, Built, TreeBuilder};
pub use diff::{Aspect, Change, Difference, diff};
pub use hash::{BlockHash, Digest, HashError, Root};
pub use path::{PathError, RelativePath};
pub use read::{Listed, ReadError, Walk, list, lookup, totals, walk};

use serde::{Deserialize, Serialize};

/// One entry of a tree, without its path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A regular file.
    File(File),
    /// A directory; needed explicitly only when nothing is in it.
    Directory,
    /// A symbolic link whose target stays inside the tree.
    Symlink {
        /// The target as written in the link, relative to the directory of the link.
        target: String,
    },
}

/// What is known of a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct File {
    /// Length in bytes.
    pub size: u64,
    /// Modification time in nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Permission bits, at most `0o7777`.
    pub mode: u32,
    /// BLAKE3 of the contents, once they have been read.
    pub digest: Option<Digest>,
}

/// Sums over a tree or a part of it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
pub struct Totals {
    /// Regular files and symbolic links.
    pub files: u64,
    /// Directories, the topmost one not counted.
    pub dirs: u64,
    /// Bytes in regular files.
    pub bytes: u64,
}

impl Totals {
    /// The sum, saturating: hostile blocks cannot make it wrap.
    #[must_use]
    pub fn plus(self, other: Totals) -> Totals {
        Totals {
            files: self.files.saturating_add(other.files),
            dirs: self.dirs.saturating_add(other.dirs),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

impl Entry {
    /// What this entry adds to the totals of its tree.
    #[must_use]
    pub fn totals(&self) -> Totals {
        match self {
            Entry::File(file) => Totals { files: 1, dirs: 0, bytes: file.size },
            Entry::Directory => Totals { files: 0, dirs: 1, bytes: 0 },
            Entry::Symlink { .. } => Totals { files: 1, dirs: 0, bytes: 0 },
        }
    }
}

#[cfg(test)]
mod tests;
