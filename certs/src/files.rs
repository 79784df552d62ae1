//! Keys and certificates on disk.
//!
//! Invariant: a reader sees the old file or the new one, whole, also after a power cut: the text goes to a temporary
//! file in the same directory, is synced, renamed over the target, and the directory is synced. Secret files are
//! readable by their owner alone from the moment they exist.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

/// Owner may read and write, nobody else anything.
const SECRET_MODE: u32 = 0o600;
/// Everybody may read.
const PUBLIC_MODE: u32 = 0o644;

/// Why a file could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("read {path}: mode {mode:o} lets others read the secret, expected 600")]
    Exposed { path: PathBuf, mode: u32 },
}

/// Writes a secret file, mode 0600, atomically and durably.
///
/// # Errors
/// [`Error::Write`].
pub fn write_secret(path: &Path, text: &SecretString) -> Result<(), Error> {
    write(path, text.expose_secret().as_bytes(), SECRET_MODE)
        .map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Writes a public file, mode 0644, atomically and durably.
///
/// # Errors
/// [`Error::Write`].
pub fn write_public(path: &Path, text: &str) -> Result<(), Error> {
    write(path, text.as_bytes(), PUBLIC_MODE).map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Reads a secret file.
///
/// # Errors
/// [`Error::Read`], or [`Error::Exposed`] if group or others may read or write it.
pub fn read_secret(path: &Path) -> Result<SecretString, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode });
    }
    io::read_to_string(file).map(SecretString::from).map_err(failed)
}

/// Reads a public file.
///
/// # Errors
/// [`Error::Read`].
pub fn read_public(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Created with mode 0600, removed again on any error.
    let mut temporary = tempfile::Builder::new().prefix(".writing-").tempfile_in(directory)?;
    temporary.write_all(bytes)?;
    temporary.as_file().set_permissions(Permissions::from_mode(mode))?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_secret_is_replaced_whole_and_stays_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        write_secret(&path, &"first, and longer".into()).unwrap();
        write_secret(&path, &"second".into()).unwrap();
        assert_eq!(read_secret(&path).unwrap().expose_secret(), "second");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_public_file_may_be_read_by_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        write_public(&path, "text").unwrap();
        assert_eq!((read_public(&path).unwrap().as_str(), mode(&path)), ("text", 0o644));
    }

    #[test]
    fn a_secret_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        write_public(&path, "text").unwrap();
        let error = read_secret(&path).unwrap_err();
        assert!(matches!(error, Error::Exposed { mode: 0o644, .. }), "{error}");
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("taken");
        fs::create_dir(&target).unwrap();
        assert!(matches!(write_secret(&target, &"text".into()), Err(Error::Write { .. })));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
