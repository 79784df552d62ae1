//! The simulated disk, from the side of the simulation: `preload.c` keeps what was synced apart from what was only
//! written, and takes its orders here.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The disk of a process that simulates one seed.
pub struct Disk {
    root: PathBuf,
}

/// What a power cut took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Writes, whole or in part.
    pub writes: u64,
    /// Names of a directory.
    pub names: u64,
}

/// `ENOSPC`, `EIO`, and none.
pub const FULL: i32 = 28;
pub const BROKEN: i32 = 5;
pub const WELL: i32 = 0;

impl Disk {
    /// The disk below `root`, which the preloaded library was told at the start of this process.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn ask(&self, order: &str) -> Vec<u64> {
        let control = self.root.join("control");
        let mut file = fs::OpenOptions::new().write(true).open(&control).expect("the disk takes orders");
        file.write_all(order.as_bytes()).expect("the disk takes an order");
        let answer = fs::read_to_string(&control).expect("the disk answers");
        let numbers = answer.strip_prefix("ok").unwrap_or_else(|| panic!("the disk did not obey {order}: {answer:?}"));
        numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect()
    }

    /// After `operations` more writes and syncs below `dir` nothing reaches the disk.
    pub fn arm(&self, dir: &Path, operations: u64) {
        self.ask(&format!("arm {} {operations}", dir.display()));
    }

    /// From now on writes and syncs below `dir` fail with these errors. Returns how many failed under the last order.
    pub fn fail(&self, dir: &Path, write: i32, sync: i32) -> u64 {
        self.ask(&format!("fail {} {write} {sync}", dir.display())).first().copied().unwrap_or(0)
    }

    /// What a power cut leaves of `dir` is put into `new`.
    pub fn power_cut(&self, dir: &Path, new: &Path, seed: u64) -> Lost {
        fs::create_dir_all(new).expect("a directory for what is left");
        let lost = self.ask(&format!("power {} {} {}", dir.display(), new.display(), seed >> 1));
        Lost { writes: lost.first().copied().unwrap_or(0), names: lost.get(1).copied().unwrap_or(0) }
    }

    /// What a killed process leaves of `dir` is put into `new`.
    pub fn kill(&self, dir: &Path, new: &Path) {
        fs::create_dir_all(new).expect("a directory for what is left");
        self.ask(&format!("kill {} {}", dir.display(), new.display()));
    }
}
