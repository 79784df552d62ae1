//! The blocks of a manifest: their canonical bytes and their decoding from hostile ones.
//!
//! ```text
//! block   = version(1) kind
//! page    = kind 0, count, count × entry                     entries sorted by name, names unique
//! index   = kind 1, level(1 byte, ≥ 1), count, count × child  children sorted by first name; level 1 is above pages
//! entry   = name, 0, size, zigzag(mtime_ns), mode, has_digest(0|1), [digest 32]
//!         | name, 1, ref                                      a directory
//!         | name, 2, target                                   a symbolic link
//! child   = first name below it, ref
//! ref     = hash 32, files, dirs, bytes                       sums over what is below
//! name, target = length, UTF-8 bytes
//! ```
//! Numbers are LEB128 in their shortest form; nothing follows the last entry. One value has one encoding.

use super::hash::{BlockHash, Digest};
use super::path::{PathError, check_name};
use super::{Entry, File, Totals};

/// The version that is written.
pub const VERSION: u8 = 1;
/// No block is larger.
pub const MAX_BLOCK_BYTES: usize = 256 * 1024;
/// A block is closed when it reaches this size. The largest entry (name 255, link target 4,096, numbers) is below
/// 5 KiB, so that a closed block is far below [`MAX_BLOCK_BYTES`].
pub(super) const CLOSE_BLOCK_BYTES: usize = 192 * 1024;
/// Most index blocks above each other in one directory. Every index but the last of its level has at least two
/// children, so that 40 levels are never reached by a tree that fits in 2^40 entries.
pub const MAX_LEVEL: u8 = 40;
/// Longest target of a symbolic link in bytes.
pub const MAX_TARGET_BYTES: usize = 4096;
/// The largest mode: permission, set-id and sticky bits.
pub const MAX_MODE: u32 = 0o7777;

const PAGE: u8 = 0;
const INDEX: u8 = 1;
const FILE: u8 = 0;
const DIRECTORY: u8 = 1;
const SYMLINK: u8 = 2;

/// A decoded block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Entries of a directory, sorted by name.
    Page(Vec<PageEntry>),
    /// Blocks that together are a directory.
    Index {
        /// 1 directly above pages.
        level: u8,
        /// Sorted by first name.
        children: Vec<IndexEntry>,
    },
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageEntry {
    /// One path component.
    pub name: String,
    /// What it is.
    pub item: Item,
}

/// What an entry of a directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A regular file.
    File(File),
    /// A directory, by its topmost block.
    Directory(BlockRef),
    /// A symbolic link.
    Symlink {
        /// The target as written.
        target: String,
    },
}

/// A block below an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// The first name in it.
    pub first: String,
    /// The block.
    pub block: BlockRef,
}

/// A block and the sums over what is below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRef {
    /// The block's name.
    pub hash: BlockHash,
    /// Sums.
    pub totals: Totals,
}

/// Why bytes are not a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The block is too large.
    #[error("decode block: {bytes} bytes; at most {MAX_BLOCK_BYTES} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The bytes end in the middle of a value.
    #[error("decode block: it ends at byte {at}, in the middle of {what}")]
    Truncated {
        /// Position.
        at: usize,
        /// What was being read.
        what: &'static str,
    },
    /// Another version wrote it.
    #[error("decode block: version {found}; this program reads version {VERSION}")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// A tag, level, flag or mode that does not exist.
    #[error("decode block: {what} {found} at byte {at} is not one that exists")]
    Unknown {
        /// What the value stands for.
        what: &'static str,
        /// The value.
        found: u64,
        /// Position after it.
        at: usize,
    },
    /// A number that is too large or not in its shortest form.
    #[error("decode block: the number at byte {at} ({what}) is too large or not in its shortest form")]
    Number {
        /// What was being read.
        what: &'static str,
        /// Position.
        at: usize,
    },
    /// A text that is not UTF-8, is empty or holds NUL.
    #[error("decode block: {what} at byte {at} is not a text that is allowed there")]
    Text {
        /// What was being read.
        what: &'static str,
        /// Position.
        at: usize,
    },
    /// A name that cannot be a path component.
    #[error("decode block: a name is not allowed")]
    Name(#[source] PathError),
    /// Names out of order.
    #[error("decode block: name {name:?} is not after the one before it")]
    Unsorted {
        /// The name.
        name: String,
    },
    /// An index without children.
    #[error("decode block: an index without children")]
    EmptyIndex,
    /// Bytes after the end.
    #[error("decode block: {bytes} bytes after its end")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

impl Item {
    /// The entry without the reference to the blocks below.
    #[must_use]
    pub fn entry(&self) -> Entry {
        match self {
            Item::File(file) => Entry::File(*file),
            Item::Directory(_) => Entry::Directory,
            Item::Symlink { target } => Entry::Symlink { target: target.clone() },
        }
    }

    /// What it adds to the totals of its parent, with what is below it.
    #[must_use]
    pub fn totals(&self) -> Totals {
        match self {
            Item::Directory(block) => self.entry().totals().plus(block.totals),
            _ => self.entry().totals(),
        }
    }
}

impl Node {
    /// Sums over what is below this block.
    #[must_use]
    pub fn totals(&self) -> Totals {
        match self {
            Node::Page(entries) => entries.iter().fold(Totals::default(), |sum, entry| sum.plus(entry.item.totals())),
            Node::Index { children, .. } => {
                children.iter().fold(Totals::default(), |sum, child| sum.plus(child.block.totals))
            }
        }
    }

    /// The canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Node::Page(entries) => {
                entries.iter().for_each(|entry| put_entry(&mut body, &entry.name, &entry.item));
                seal_page(entries.len(), &body)
            }
            Node::Index { level, children } => {
                children.iter().for_each(|child| put_child(&mut body, child));
                seal_index(*level, children.len(), &body)
            }
        }
    }
}

pub(super) fn seal_page(count: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![VERSION, PAGE];
    put_number(&mut bytes, count as u64);
    bytes.extend_from_slice(body);
    bytes
}

pub(super) fn seal_index(level: u8, count: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![VERSION, INDEX, level];
    put_number(&mut bytes, count as u64);
    bytes.extend_from_slice(body);
    bytes
}

pub(super) fn put_entry(out: &mut Vec<u8>, name: &str, item: &Item) {
    put_text(out, name);
    match item {
        Item::File(file) => {
            out.push(FILE);
            put_number(out, file.size);
            // Zigzag: times before 1970 stay short too.
            put_number(out, ((file.mtime_ns << 1) ^ (file.mtime_ns >> 63)).cast_unsigned());
            put_number(out, u64::from(file.mode));
            out.push(u8::from(file.digest.is_some()));
            if let Some(digest) = &file.digest {
                out.extend_from_slice(digest.as_bytes());
            }
        }
        Item::Directory(block) => {
            out.push(DIRECTORY);
            put_ref(out, block);
        }
        Item::Symlink { target } => {
            out.push(SYMLINK);
            put_text(out, target);
        }
    }
}

pub(super) fn put_child(out: &mut Vec<u8>, child: &IndexEntry) {
    put_text(out, &child.first);
    put_ref(out, &child.block);
}

fn put_ref(out: &mut Vec<u8>, block: &BlockRef) {
    out.extend_from_slice(block.hash.as_bytes());
    put_number(out, block.totals.files);
    put_number(out, block.totals.dirs);
    put_number(out, block.totals.bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Decodes a block that may come from anywhere.
///
/// # Errors
/// Whatever is not exactly what [`Node::encode`] writes for some valid node.
pub fn decode(bytes: &[u8]) -> Result<Node, DecodeError> {
    if bytes.len() > MAX_BLOCK_BYTES {
        return Err(DecodeError::TooLarge { bytes: bytes.len() });
    }
    let mut reader = Reader { bytes, at: 0 };
    let version = reader.byte("version")?;
    if version != VERSION {
        return Err(DecodeError::Version { found: version });
    }
    let node = match reader.byte("kind")? {
        PAGE => Node::Page(reader.page()?),
        INDEX => {
            let level = reader.byte("level")?;
            if level == 0 || level > MAX_LEVEL {
                return Err(reader.unknown("level", u64::from(level)));
            }
            Node::Index { level, children: reader.children()? }
        }
        kind => return Err(reader.unknown("kind", u64::from(kind))),
    };
    match bytes.len() - reader.at {
        0 => Ok(node),
        left => Err(DecodeError::Trailing { bytes: left }),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn unknown(&self, what: &'static str, found: u64) -> DecodeError {
        DecodeError::Unknown { what, found, at: self.at }
    }

    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(DecodeError::Truncated { at: self.bytes.len(), what })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.take(1, what)?[0])
    }

    fn number(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let at = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit; a last byte of zero means that a shorter form exists.
            if (shift == 63 && bits > 1) || (byte == 0 && shift > 0) {
                return Err(DecodeError::Number { what, at });
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Number { what, at })
    }

    fn text(&mut self, what: &'static str, limit: usize) -> Result<&'a str, DecodeError> {
        let at = self.at;
        let length = usize::try_from(self.number(what)?).ok().filter(|length| *length <= limit);
        let bytes = self.take(length.ok_or(DecodeError::Text { what, at })?, what)?;
        std::str::from_utf8(bytes).map_err(|_| DecodeError::Text { what, at })
    }

    fn hash(&mut self, what: &'static str) -> Result<[u8; 32], DecodeError> {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.take(32, what)?);
        Ok(hash)
    }

    fn block_ref(&mut self) -> Result<BlockRef, DecodeError> {
        let hash = BlockHash::from_bytes(self.hash("block hash")?);
        let files = self.number("file count")?;
        let dirs = self.number("directory count")?;
        let bytes = self.number("byte count")?;
        Ok(BlockRef { hash, totals: Totals { files, dirs, bytes } })
    }

    /// A name that must sort after `previous`.
    fn name(&mut self, previous: Option<&str>) -> Result<String, DecodeError> {
        let name = self.text("name", super::path::MAX_COMPONENT_BYTES)?;
        check_name(name).map_err(DecodeError::Name)?;
        if previous.is_some_and(|previous| name.as_bytes() <= previous.as_bytes()) {
            return Err(DecodeError::Unsorted { name: name.to_owned() });
        }
        Ok(name.to_owned())
    }

    fn page(&mut self) -> Result<Vec<PageEntry>, DecodeError> {
        let count = self.number("entry count")?;
        // Nothing is reserved from a number that the sender chose: the block's size bounds what is read.
        let mut entries: Vec<PageEntry> = Vec::new();
        for _ in 0..count {
            let name = self.name(entries.last().map(|entry| entry.name.as_str()))?;
            let item = self.item()?;
            entries.push(PageEntry { name, item });
        }
        Ok(entries)
    }

    fn item(&mut self) -> Result<Item, DecodeError> {
        match self.byte("entry kind")? {
            FILE => {
                let size = self.number("size")?;
                let zigzag = self.number("mtime")?;
                let mtime_ns = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
                let mode = self.number("mode")?;
                let mode = u32::try_from(mode)
                    .ok()
                    .filter(|mode| *mode <= MAX_MODE)
                    .ok_or_else(|| self.unknown("mode", mode))?;
                let digest = match self.byte("digest flag")? {
                    0 => None,
                    1 => Some(Digest::from_bytes(self.hash("digest")?)),
                    flag => return Err(self.unknown("digest flag", u64::from(flag))),
                };
                Ok(Item::File(File { size, mtime_ns, mode, digest }))
            }
            DIRECTORY => Ok(Item::Directory(self.block_ref()?)),
            SYMLINK => {
                let at = self.at;
                let target = self.text("link target", MAX_TARGET_BYTES)?;
                if target.is_empty() || target.contains('\0') {
                    return Err(DecodeError::Text { what: "link target", at });
                }
                Ok(Item::Symlink { target: target.to_owned() })
            }
            kind => Err(self.unknown("entry kind", u64::from(kind))),
        }
    }

    fn children(&mut self) -> Result<Vec<IndexEntry>, DecodeError> {
        let count = self.number("child count")?;
        let mut children: Vec<IndexEntry> = Vec::new();
        for _ in 0..count {
            let first = self.name(children.last().map(|child| child.first.as_str()))?;
            let block = self.block_ref()?;
            children.push(IndexEntry { first, block });
        }
        if children.is_empty() { Err(DecodeError::EmptyIndex) } else { Ok(children) }
    }
}
