//! The files of a repository, in a directory or a bucket, in restic's layout.
//!
//! A file appears whole or not at all, and is durable when the call returns: in a directory it is written beside its
//! name, synced and renamed. Calls block: they are made on threads of the library or of the blocking pool.

use std::fs::{self, File as FsFile, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fluvial_model::manifest::{Entry, File, RelativePath};
use fluvial_transfer::place::{Detail, Found, LISTING_QUEUE, Place};
use fluvial_transfer::{Location, TransferError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// The folders of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Folder {
    Keys,
    Snapshots,
    Index,
    Data,
    Locks,
}

impl Folder {
    pub(crate) const ALL: [Self; 5] = [Self::Keys, Self::Snapshots, Self::Index, Self::Data, Self::Locks];

    const fn name(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Snapshots => "snapshots",
            Self::Index => "index",
            Self::Data => "data",
            Self::Locks => "locks",
        }
    }

    /// Where a file lies: data are spread over 256 folders.
    fn path(self, name: &str) -> String {
        match self {
            Self::Data => format!("data/{}/{name}", name.get(..2).unwrap_or_default()),
            _ => format!("{}/{name}", self.name()),
        }
    }
}

/// The one file that is in no folder.
pub(crate) const CONFIG: &str = "config";

/// A repository's files.
pub(crate) struct Files {
    place: String,
    at: At,
}

enum At {
    Directory(PathBuf),
    Store { root: Arc<dyn Place>, folders: Vec<Arc<dyn Place>>, handle: Handle },
}

impl Files {
    /// Opens; nothing is contacted yet. `handle` is where requests to a store are made.
    pub(crate) fn open(location: &Location, handle: Handle) -> Result<Self, TransferError> {
        let root = location.open()?;
        let place = location.shown();
        let at = match location.uri.strip_prefix("file://") {
            Some(directory) => At::Directory(PathBuf::from(directory)),
            None => {
                let below = |folder: &Folder| {
                    let uri = format!("{}/{}", location.uri.trim_end_matches('/'), folder.name());
                    Location { uri, ..location.clone() }.open()
                };
                At::Store { root, folders: Folder::ALL.iter().map(below).collect::<Result<_, _>>()?, handle }
            }
        };
        Ok(Self { place, at })
    }

    /// The place in messages, without secrets.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    fn failed(&self, op: &'static str, path: &str) -> impl Fn(io::Error) -> TransferError {
        move |error| TransferError::io(op, &self.place, path, error)
    }

    /// Makes what a repository in a directory has beside its files.
    pub(crate) fn create(&self) -> Result<(), TransferError> {
        if let At::Directory(root) = &self.at {
            for folder in Folder::ALL {
                let failed = self.failed("make directory", folder.name());
                fs::create_dir_all(root.join(folder.name())).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The size of the config, if there is one.
    pub(crate) fn config_size(&self) -> Result<Option<u64>, TransferError> {
        let size = match &self.at {
            At::Directory(root) => {
                fs::metadata(root.join(CONFIG)).map(|found| found.len()).map_err(self.failed("look at", CONFIG))
            }
            At::Store { root, handle, .. } => {
                handle.block_on(root.stat(&relative(CONFIG)?)).map(|found| size_of(&found.entry))
            }
        };
        match size {
            Ok(size) => Ok(Some(size)),
            Err(TransferError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Names and sizes of the files of a folder. Unfinished ones are among them.
    pub(crate) fn list(&self, folder: Folder) -> Result<Vec<(String, u64)>, TransferError> {
        let listed = match &self.at {
            At::Directory(root) => list_directory(&root.join(folder.name()), folder == Folder::Data)
                .map_err(self.failed("list", folder.name())),
            At::Store { folders, handle, .. } => list_store(&folders[folder as usize], handle),
        };
        match listed {
            Err(TransferError::NotFound { .. }) => Ok(Vec::new()),
            listed => listed,
        }
    }

    /// A whole file.
    pub(crate) fn read(&self, path: Located<'_>) -> Result<Bytes, TransferError> {
        let path = path.text();
        match &self.at {
            At::Directory(root) => fs::read(root.join(&path)).map(Bytes::from).map_err(self.failed("read", &path)),
            At::Store { root, handle, .. } => Ok(handle.block_on(root.fetch(&relative(&path)?, 1 << 20))?.1),
        }
    }

    /// `length` bytes from `offset`: all of them, or it is an error.
    pub(crate) fn read_range(&self, path: Located<'_>, offset: u64, length: u64) -> Result<Bytes, TransferError> {
        let path = path.text();
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = match &self.at {
            At::Directory(root) => {
                let failed = self.failed("read", &path);
                let file = FsFile::open(root.join(&path)).map_err(&failed)?;
                let mut buffer = vec![0; size];
                file.read_exact_at(&mut buffer, offset).map_err(failed)?;
                Bytes::from(buffer)
            }
            At::Store { root, handle, .. } => handle.block_on(root.read(&relative(&path)?, None, offset, length))?,
        };
        if bytes.len() != size {
            return Err(self.failed("read", &path)(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(bytes)
    }

    /// Writes a file, replacing one of the same name.
    pub(crate) fn write(&self, path: Located<'_>, parts: &[Bytes]) -> Result<(), TransferError> {
        let path = path.text();
        match &self.at {
            At::Directory(root) => write_file(&root.join(&path), parts).map_err(self.failed("write", &path)),
            At::Store { root, handle, .. } => {
                let data = match parts {
                    [one] => one.clone(),
                    parts => parts.concat().into(),
                };
                let file = File { size: data.len() as u64, mtime_ns: 0, mode: 0o600, digest: None };
                handle.block_on(root.put(&relative(&path)?, &file, data)).map(drop)
            }
        }
    }

    /// Removes a file; it is no error when there is none.
    pub(crate) fn remove(&self, path: Located<'_>) -> Result<(), TransferError> {
        let path = path.text();
        match &self.at {
            At::Directory(root) => match fs::remove_file(root.join(&path)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed.map_err(self.failed("remove", &path)),
            },
            At::Store { root, handle, .. } => handle.block_on(root.remove(&relative(&path)?)),
        }
    }
}

/// A file of a repository.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Located<'a> {
    Config,
    In(Folder, &'a str),
}

impl Located<'_> {
    fn text(self) -> String {
        match self {
            Self::Config => CONFIG.to_owned(),
            Self::In(folder, name) => folder.path(name),
        }
    }
}

fn relative(path: &str) -> Result<RelativePath, TransferError> {
    RelativePath::parse(path).map_err(|error| TransferError::Build { why: error.to_string() })
}

fn size_of(entry: &Entry) -> u64 {
    entry.totals().bytes
}

fn list_directory(directory: &Path, spread: bool) -> io::Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if spread && entry.file_type()?.is_dir() {
            found.extend(list_directory(&entry.path(), false)?);
        } else if entry.file_type()?.is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            found.push((name, entry.metadata()?.len()));
        }
    }
    Ok(found)
}

fn list_store(place: &Arc<dyn Place>, handle: &Handle) -> Result<Vec<(String, u64)>, TransferError> {
    let (sender, mut receiver) = mpsc::channel::<Found>(LISTING_QUEUE);
    handle.block_on(async {
        let mut found = Vec::new();
        let collect = async {
            while let Some(file) = receiver.recv().await {
                let name = file.path.name().unwrap_or_default().to_owned();
                found.push((name, size_of(&file.entry)));
            }
            Ok(())
        };
        tokio::try_join!(place.list(Detail::Tags, sender), collect)?;
        Ok(found)
    })
}

/// Writes beside the name, syncs, renames, syncs the folder.
fn write_file(file: &Path, parts: &[Bytes]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    // As restic names them: what is no id is left out of its listings.
    let unfinished = folder.join(format!("{name}-tmp-{:08x}", rand::random::<u32>()));
    let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished);
    let mut out = match create() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder)?;
            create()?
        }
        created => created?,
    };
    let written = parts.iter().try_for_each(|part| out.write_all(part)).and_then(|()| out.sync_all());
    let renamed = written.and_then(|()| fs::rename(&unfinished, file));
    if renamed.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    renamed?;
    FsFile::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_in_its_folder_and_nothing_else_stays() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let location = Location::new(format!("file://{}", directory.path().display()));
        let files = Files::open(&location, runtime.handle().clone()).unwrap();
        files.create().unwrap();
        assert_eq!(files.config_size().unwrap(), None);
        let at = Located::In(Folder::Data, "abcd");
        files.write(at, &[Bytes::from_static(b"one"), Bytes::from_static(b"two")]).unwrap();
        assert_eq!(fs::read(directory.path().join("data/ab/abcd")).unwrap(), b"onetwo");
        assert_eq!(files.list(Folder::Data).unwrap(), [("abcd".to_owned(), 6)]);
        assert_eq!(files.read_range(at, 3, 3).unwrap(), "two");
        assert!(files.read_range(at, 3, 4).is_err(), "what is cut off is an error");
        files.remove(at).unwrap();
        files.remove(at).unwrap();
        assert_eq!(files.list(Folder::Data).unwrap(), []);
        assert_eq!(fs::read_dir(directory.path().join("data/ab")).unwrap().count(), 0);
    }
}
