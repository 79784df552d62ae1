//! ② Whether the catalog's file is as it was left.
//!
//! SQLite has no checksums of its pages, so a catalog is used again only if it was closed in order and its bytes are those of
//! then, as its seal says. Otherwise it is made again, from the snapshot and the log, which have checksums: it holds nothing
//! that they do not.
//!
//! Invariants: a seal is removed before its catalog is opened; a catalog without one is never read.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::snapshot::copy;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seal {
    bytes: u64,
    crc32c: u32,
}

fn path_of(catalog: &Path) -> PathBuf {
    catalog.with_extension("seal")
}

fn measure(catalog: &Path) -> io::Result<Seal> {
    let (bytes, crc32c) = copy(&mut File::open(catalog)?, None)?;
    Ok(Seal { bytes, crc32c })
}

/// Seals a catalog that nobody writes to any more and that has no write-ahead log.
pub fn seal(catalog: &Path) -> io::Result<()> {
    let seal = measure(catalog)?;
    let mut temp = tempfile::NamedTempFile::new_in(catalog.parent().unwrap_or(Path::new(".")))?;
    serde_json::to_writer(&mut temp, &seal)?;
    temp.flush()?;
    temp.persist(path_of(catalog)).map_err(|error| error.error)?;
    Ok(())
}

/// Whether the catalog is as it was sealed. The seal is gone afterwards.
pub fn open(catalog: &Path) -> io::Result<bool> {
    let path = path_of(catalog);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    std::fs::remove_file(&path)?;
    let log = catalog.with_extension("db-wal");
    let closed = !log.exists() || log.metadata()?.len() == 0;
    let Ok(seal) = serde_json::from_slice::<Seal>(&text) else { return Ok(false) };
    match measure(catalog) {
        Ok(found) => Ok(closed && found == seal),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_holds_once_and_for_these_bytes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = dir.path().join("catalog-1.db");
        std::fs::write(&catalog, b"some bytes").unwrap();
        assert!(!open(&catalog).unwrap(), "it was never sealed");
        seal(&catalog).unwrap();
        assert!(open(&catalog).unwrap());
        assert!(!open(&catalog).unwrap(), "it was opened since");
        for damaged in [&b"some bytfs"[..], b"some byte", b"some bytes!", b""] {
            std::fs::write(&catalog, b"some bytes").unwrap();
            seal(&catalog).unwrap();
            std::fs::write(&catalog, damaged).unwrap();
            assert!(!open(&catalog).unwrap());
        }
        std::fs::write(&catalog, b"some bytes").unwrap();
        seal(&catalog).unwrap();
        std::fs::write(dir.path().join("catalog-1.db-wal"), b"written since").unwrap();
        assert!(!open(&catalog).unwrap());
        seal(&catalog).unwrap();
        std::fs::remove_file(&catalog).unwrap();
        assert!(!open(&catalog).unwrap());
    }
}
