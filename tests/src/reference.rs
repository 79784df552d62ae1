//! A file system as simple as can be, in memory: what a mount is compared with.
//!
//! Paths are names below one directory; files are `a`, `b` and `c`, links `l` and `m`, so that no path leads through a link.
//! What programs see of an operation, its error included, is what POSIX and Linux's own checks give; what a home cannot
//! do ([`Limits`]) is in the model too.

use std::collections::BTreeMap;

/// Programs that keep a file open.
pub const SLOTS: usize = 3;

const ENOENT: i32 = 2;
const EXDEV: i32 = 18;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const ENOTEMPTY: i32 = 39;
const EBADF: i32 = 9;

/// A path: names, none of them empty.
pub type Path = Vec<String>;

/// What a program does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Makes a file, which must not be there, and closes it.
    Create(Path),
    /// Opens a file, writes so many bytes of this value there, and closes it.
    Write(Path, u64, usize, u8),
    /// Appends.
    Append(Path, usize, u8),
    /// Replaces the contents.
    Replace(Path, usize, u8),
    /// Sets the size.
    Truncate(Path, u64),
    /// Sets the permission bits of a file.
    Chmod(Path, u32),
    Unlink(Path),
    MakeDirectory(Path),
    RemoveDirectory(Path),
    Rename(Path, Path),
    /// A link to a name beside it.
    Link(Path),
    /// Opens a file and keeps it open, in place of what the slot had open.
    Open(usize, Path),
    /// Writes to what a slot has open.
    WriteOpen(usize, u64, usize, u8),
    /// Sets the size of what a slot has open.
    TruncateOpen(usize, u64),
    /// Reads all of what a slot has open.
    ReadOpen(usize),
    Close(usize),
}

/// What an operation gives: bytes that were read, or nothing; or the number of the error.
pub type Outcome = Result<Vec<u8>, i32>;

/// What a home cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Directories that hold something are renamed.
    pub directories_move: bool,
}

/// What a path is, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    File { contents: Vec<u8>, mode: u32 },
    Directory,
    Link(String),
}

#[derive(Debug, Clone)]
enum Entry {
    File(usize),
    Directory,
    Link(String),
}

#[derive(Debug, Clone)]
struct File {
    contents: Vec<u8>,
    mode: u32,
}

/// The file system.
#[derive(Debug, Clone)]
pub struct Reference {
    limits: Limits,
    entries: BTreeMap<Path, Entry>,
    files: Vec<File>,
    slots: [Option<usize>; SLOTS],
}

impl Reference {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        Self { limits, entries: BTreeMap::new(), files: Vec::new(), slots: [None; SLOTS] }
    }

    /// Everything in it.
    pub fn shown(&self) -> BTreeMap<Path, Shown> {
        let shown = |entry: &Entry| match entry {
            Entry::File(file) => {
                let File { contents, mode } = self.files[*file].clone();
                Shown::File { contents, mode }
            }
            Entry::Directory => Shown::Directory,
            Entry::Link(target) => Shown::Link(target.clone()),
        };
        self.entries.iter().map(|(path, entry)| (path.clone(), shown(entry))).collect()
    }

    /// Does an operation.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Create(path) => {
                self.parent(path)?;
                if self.entries.contains_key(path) {
                    return Err(EEXIST);
                }
                self.make(path);
            }
            Op::Write(path, offset, length, byte) => {
                let file = self.file(path)?;
                self.write(file, *offset, *length, *byte);
            }
            Op::Append(path, length, byte) => {
                let file = self.file(path)?;
                let end = self.files[file].contents.len() as u64;
                self.write(file, end, *length, *byte);
            }
            Op::Replace(path, length, byte) => {
                self.parent(path)?;
                let file = match self.entries.get(path) {
                    None => self.make(path),
                    Some(_) => self.file(path)?,
                };
                self.files[file].contents = vec![*byte; *length];
            }
            Op::Truncate(path, size) => {
                let file = self.file(path)?;
                self.resize(file, *size);
            }
            Op::Chmod(path, mode) => {
                let file = self.file(path)?;
                self.files[file].mode = *mode;
            }
            Op::Unlink(path) => {
                self.parent(path)?;
                match self.entries.get(path) {
                    None => return Err(ENOENT),
                    Some(Entry::Directory) => return Err(EISDIR),
                    Some(_) => drop(self.entries.remove(path)),
                }
            }
            Op::MakeDirectory(path) => {
                self.parent(path)?;
                if self.entries.contains_key(path) {
                    return Err(EEXIST);
                }
                self.entries.insert(path.clone(), Entry::Directory);
            }
            Op::RemoveDirectory(path) => {
                self.parent(path)?;
                match self.entries.get(path) {
                    None => return Err(ENOENT),
                    Some(Entry::Directory) if self.is_empty(path) => drop(self.entries.remove(path)),
                    Some(Entry::Directory) => return Err(ENOTEMPTY),
                    Some(_) => return Err(ENOTDIR),
                }
            }
            Op::Rename(from, to) => self.rename(from, to)?,
            Op::Link(path) => {
                self.parent(path)?;
                if self.entries.contains_key(path) {
                    return Err(EEXIST);
                }
                self.entries.insert(path.clone(), Entry::Link("a".to_owned()));
            }
            Op::Open(slot, path) => {
                self.slots[*slot] = None;
                self.slots[*slot] = Some(self.file(path)?);
            }
            Op::WriteOpen(slot, offset, length, byte) => {
                let file = self.slots[*slot].ok_or(EBADF)?;
                self.write(file, *offset, *length, *byte);
            }
            Op::TruncateOpen(slot, size) => {
                let file = self.slots[*slot].ok_or(EBADF)?;
                self.resize(file, *size);
            }
            Op::ReadOpen(slot) => return Ok(self.files[self.slots[*slot].ok_or(EBADF)?].contents.clone()),
            Op::Close(slot) => drop(self.slots[*slot].take().ok_or(EBADF)?),
        }
        Ok(Vec::new())
    }

    /// Whether the directory of a path is one.
    fn parent(&self, path: &[String]) -> Result<(), i32> {
        for length in 1..path.len() {
            match self.entries.get(&path[..length]) {
                None => return Err(ENOENT),
                Some(Entry::Directory) => {}
                Some(_) => return Err(ENOTDIR),
            }
        }
        Ok(())
    }

    fn file(&self, path: &Path) -> Result<usize, i32> {
        self.parent(path)?;
        match self.entries.get(path) {
            None => Err(ENOENT),
            Some(Entry::Directory) => Err(EISDIR),
            Some(Entry::File(file)) => Ok(*file),
            Some(Entry::Link(_)) => Err(EINVAL),
        }
    }

    fn make(&mut self, path: &Path) -> usize {
        self.files.push(File { contents: Vec::new(), mode: 0o644 });
        let file = self.files.len() - 1;
        self.entries.insert(path.clone(), Entry::File(file));
        file
    }

    fn write(&mut self, file: usize, offset: u64, length: usize, byte: u8) {
        let offset = usize::try_from(offset).expect("small");
        let contents = &mut self.files[file].contents;
        if length > 0 && contents.len() < offset + length {
            contents.resize(offset + length, 0);
        }
        if length > 0 {
            contents[offset..offset + length].fill(byte);
        }
    }

    fn resize(&mut self, file: usize, size: u64) {
        self.files[file].contents.resize(usize::try_from(size).expect("small"), 0);
    }

    fn is_empty(&self, directory: &Path) -> bool {
        !self.entries.keys().any(|path| path.len() > directory.len() && path.starts_with(directory))
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), i32> {
        self.parent(from)?;
        self.parent(to)?;
        let directory = |entry: Option<&Entry>| matches!(entry, Some(Entry::Directory));
        let source = self.entries.get(from);
        if source.is_none() {
            return Err(ENOENT);
        }
        if directory(source) && to.len() > from.len() && to.starts_with(from) {
            return Err(EINVAL);
        }
        // The other way round, what is in the way is an ancestor, which is not empty.
        if from.len() > to.len() && from.starts_with(to) {
            return Err(ENOTEMPTY);
        }
        if from == to {
            return Ok(());
        }
        match (directory(source), self.entries.get(to)) {
            (true, Some(Entry::Directory)) | (_, None) => {}
            (true, Some(_)) => return Err(ENOTDIR),
            (false, Some(Entry::Directory)) => return Err(EISDIR),
            (false, Some(_)) => {}
        }
        if directory(source) && !self.limits.directories_move && !self.is_empty(from) {
            return Err(EXDEV);
        }
        if directory(self.entries.get(to)) && !self.is_empty(to) {
            return Err(ENOTEMPTY);
        }
        let moved: Vec<Path> = self.entries.keys().filter(|path| path.starts_with(from)).cloned().collect();
        for path in moved {
            if let Some(entry) = self.entries.remove(&path) {
                let target = [&to[..], &path[from.len()..]].concat();
                self.entries.insert(target, entry);
            }
        }
        Ok(())
    }
}
