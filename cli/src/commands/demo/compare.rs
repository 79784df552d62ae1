//! Whether two folders hold the same files, byte for byte: the demo's own look, which trusts no digest of ours.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// Read at a time from each side.
const CHUNK: usize = 256 * 1024;

/// Files and bytes that were found to be the same.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Same {
    pub files: u64,
    pub bytes: u64,
}

/// Compares every file below `one` with the one of the same path below `other`, and counts that there are no more.
///
/// Links and folders without files are left out: an object store has no place for them.
///
/// # Errors
/// At the first difference, with the path.
pub(super) fn folders(one: &Path, other: &Path) -> Result<Same> {
    let (ours, theirs) = (files(one)?, files(other)?);
    let missing = ours.iter().find(|path| theirs.binary_search(path).is_err());
    if let Some(path) = missing {
        bail!("{} did not arrive", path.display());
    }
    if let Some(path) = theirs.iter().find(|path| ours.binary_search(path).is_err()) {
        bail!("{} arrived, and is not in the source", path.display());
    }
    let mut same = Same::default();
    for path in &ours {
        same.bytes += file(&one.join(path), &other.join(path))?;
        same.files += 1;
    }
    Ok(same)
}

/// Paths of all regular files below `root`, relative and sorted.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        let at = root.join(&folder);
        let shown = || format!("listing {}", at.display());
        for entry in std::fs::read_dir(&at).with_context(shown)? {
            let entry = entry.with_context(shown)?;
            let kind = entry.file_type().with_context(shown)?;
            let path = folder.join(entry.file_name());
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Bytes of two files that are the same.
fn file(one: &Path, other: &Path) -> Result<u64> {
    let open = |path: &Path| File::open(path).with_context(|| format!("opening {}", path.display()));
    let (mut left, mut right) = (BufReader::with_capacity(CHUNK, open(one)?), open(other)?);
    let (mut a, mut b) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut length = 0;
    loop {
        let read = left.read(&mut a).with_context(|| format!("reading {}", one.display()))?;
        if read == 0 {
            let more = right.read(&mut b).with_context(|| format!("reading {}", other.display()))?;
            ensure!(more == 0, "{} is longer than {}", other.display(), one.display());
            return Ok(length);
        }
        let filled = b.get_mut(..read).context("a read is never longer than its buffer")?;
        right.read_exact(filled).with_context(|| format!("reading {}", other.display()))?;
        ensure!(a.get(..read) == Some(&*filled), "{} and {} differ", one.display(), other.display());
        length += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        for root in [&one, &other] {
            std::fs::create_dir_all(root.join("sub")).unwrap();
            std::fs::write(root.join("sub/a"), vec![7; CHUNK + 1]).unwrap();
            std::fs::write(root.join("empty"), "").unwrap();
        }
        let whole = Same { files: 2, bytes: CHUNK as u64 + 1 };
        assert_eq!(folders(&one, &other).unwrap(), whole);
        let wrong = || folders(&one, &other).unwrap_err().to_string();

        std::fs::write(other.join("more"), "").unwrap();
        assert_eq!(wrong(), "more arrived, and is not in the source");
        std::fs::remove_file(other.join("more")).unwrap();
        std::fs::write(one.join("less"), "").unwrap();
        assert_eq!(wrong(), "less did not arrive");
        std::fs::remove_file(one.join("less")).unwrap();
        for (content, expected) in [(vec![7; CHUNK + 2], "is longer than"), (vec![8; CHUNK + 1], "differ")] {
            std::fs::write(other.join("sub/a"), content).unwrap();
            assert!(wrong().contains(expected), "{}", wrong());
        }
        std::fs::write(other.join("sub/a"), vec![7; CHUNK]).unwrap();
        assert!(wrong().starts_with("reading "), "{}", wrong());
    }
}
