//! ② How far the log has come, told beside the log.
//!
//! SQLite drops a write-ahead log from its first damaged frame on. That is right for what was being written when the power went,
//! and would be a silent loss for what was synced: a node that forgets a vote or an entry that it confirmed can split the
//! cluster. So commits are counted: in each of them, and, after its sync, here. A log that opens with fewer than this file
//! says has lost some.
//!
//! Invariants: this file is never ahead of what is synced. It is not synced itself: it is as it was left when the process
//! ends, however it ends; a power cut may take its last numbers, and then it accuses nobody.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::marker::sync_dir;

/// Magic, number of commits (little endian), CRC-32C of both. One sector: written whole or not.
const BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"FVLM";

/// The file, open.
#[derive(Debug)]
pub struct Mark(File);

/// The file holds no number that was written to it.
#[derive(Debug)]
pub struct Damaged;

impl Mark {
    /// Opens it, or makes it; for the number that it holds ask [`Mark::read`].
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() == 0 {
            file.write_all_at(&[0; BYTES], 0)?;
            file.sync_all()?;
            sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        }
        Ok(Self(file))
    }

    /// How many commits were synced at least.
    pub fn read(&self) -> io::Result<Result<u64, Damaged>> {
        let mut bytes = [0; BYTES];
        if self.0.metadata()?.len() != BYTES as u64 {
            return Ok(Err(Damaged));
        }
        self.0.read_exact_at(&mut bytes, 0)?;
        if bytes == [0; BYTES] {
            return Ok(Ok(0));
        }
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[4..12]);
        let commits = u64::from_le_bytes(number);
        Ok(if bytes == encode(commits) { Ok(commits) } else { Err(Damaged) })
    }

    /// So many commits are synced.
    pub fn set(&self, commits: u64) -> io::Result<()> {
        self.0.write_all_at(&encode(commits), 0)
    }
}

fn encode(commits: u64) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..12].copy_from_slice(&commits.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..12]);
    bytes[12..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_there_again_and_no_flipped_bit_passes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.mark");
        let mark = Mark::open(&path).unwrap();
        assert_eq!(mark.read().unwrap().unwrap(), 0);
        mark.set(7).unwrap();
        mark.set(300).unwrap();
        assert_eq!(Mark::open(&path).unwrap().read().unwrap().unwrap(), 300);
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &damaged).unwrap();
            assert!(Mark::open(&path).unwrap().read().unwrap().is_err(), "bit {bit}");
        }
        std::fs::write(&path, &whole[..9]).unwrap();
        assert!(Mark::open(&path).unwrap().read().unwrap().is_err());
    }
}
