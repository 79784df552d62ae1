//! The seam between the file system and whoever has the contents of files.

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{RelativePath, Root};

/// Where the contents of files come from.
#[async_trait]
pub trait Files: Send + Sync + 'static {
    /// Opens a file of a version, of so many bytes.
    ///
    /// # Errors
    /// What the reader is to see.
    async fn open(&self, root: Root, path: &RelativePath, size: u64) -> io::Result<Opened>;

    /// Has a complete file of a version kept, as long as what is returned lives, by whoever has it from the next connection
    /// on: a program reads it that opened it in a process before this one.
    fn keep(&self, root: Root, path: RelativePath) -> Box<dyn Any + Send + Sync>;

    /// Has files fetched that will be opened soon. Nobody waits for it, and its failure is nobody's.
    async fn ahead(&self, root: Root, paths: Vec<RelativePath>);
}

/// A file of a version, held open while this lives.
pub struct Opened {
    /// Its contents.
    pub contents: Contents,
    /// What holds it open where it comes from.
    pub lease: Option<Box<dyn Any + Send + Sync>>,
}

/// Contents of an open file.
#[derive(Clone)]
pub enum Contents {
    /// All in this file, verified.
    Complete(Arc<File>),
    /// Fetched as they are read.
    Partial(Arc<dyn ReadAt>),
}

/// Reads of a file that may have to be fetched.
#[async_trait]
pub trait ReadAt: Send + Sync {
    /// `length` bytes from `offset`; fewer at the end of the file only.
    ///
    /// # Errors
    /// What the reader is to see.
    async fn read_at(&self, offset: u64, length: u32) -> io::Result<Bytes>;
}

/// Bytes of a cache file, fewer at its end.
pub(crate) fn read_file(file: &File, offset: u64, length: u32) -> io::Result<Vec<u8>> {
    let mut data = vec![0; length as usize];
    let mut filled = 0;
    while filled < data.len() {
        match file.read_at(&mut data[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    data.truncate(filled);
    Ok(data)
}
