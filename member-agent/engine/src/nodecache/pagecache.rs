//! The page cache: complete files are read once, so that the kernel has them in memory when they are mapped.
//!
//! At most [`SHARE`] of the memory that the machine could give, or of the room that the process' control group leaves, is used: the
//! smaller one. Pages that are read by this process are charged to its group: beyond its limit they would only push each other
//! out. [`READERS`] files are read at a time, by pieces of [`PIECE`], with what the kernel reads ahead in flight beside them.
//!
//! A group of version 1 is not looked at: what the machine has is the bound then.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// The part of the available memory that may be filled: one in so many.
const SHARE: u64 = 2;
/// Files that are read at a time, by all loads of one request together.
const READERS: u32 = 4;
/// Bytes that one of them reads at a time.
const PIECE: usize = 1 << 20;

/// Room in the page cache for one load. Clones share it.
#[derive(Clone)]
pub(super) struct Budget(Arc<Shared>);

struct Shared {
    room: u64,
    state: Mutex<State>,
    turn: Condvar,
}

struct State {
    left: u64,
    reading: u32,
}

impl Budget {
    /// What may be used now.
    pub(super) fn of_this_machine() -> Self {
        let text = |file: &Path| fs::read_to_string(file).ok();
        let machine = text(Path::new("/proc/meminfo")).and_then(|text| kib(&text, "MemAvailable:")).unwrap_or(0);
        let group = text(Path::new("/proc/self/cgroup")).and_then(|groups| group_room(&groups, &text));
        Self::new(machine.min(group.unwrap_or(u64::MAX)) / SHARE)
    }

    pub(super) fn new(room: u64) -> Self {
        let state = Mutex::new(State { left: room, reading: 0 });
        Self(Arc::new(Shared { room, state, turn: Condvar::new() }))
    }

    /// Bytes that there was room for.
    pub(super) fn room(&self) -> u64 {
        self.0.room
    }

    /// Takes room for a file of so many bytes, all of it or nothing, and waits for a turn to read it.
    fn take(&self, bytes: u64) -> Option<Turn<'_>> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left = state.left.checked_sub(bytes)?;
        while state.reading >= READERS {
            state = self.0.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.reading += 1;
        Some(Turn(&self.0))
    }
}

struct Turn<'a>(&'a Shared);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).reading -= 1;
        self.0.turn.notify_one();
    }
}

/// Has a file in the page cache if there is room for all of it; returns how many bytes are there. Half a file would not spare
/// its reader the wait. Blocks for as long as its disk takes.
pub(super) fn warm(file: &File, bytes: u64, budget: &Budget) -> io::Result<u64> {
    let Some(_turn) = budget.take(bytes) else { return Ok(0) };
    // A larger window of the kernel's own reading ahead; a file system that knows none is read all the same.
    let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
    let mut piece = vec![0; PIECE.min(usize::try_from(bytes).unwrap_or(PIECE)).max(1)];
    let mut at = 0;
    while at < bytes {
        match file.read_at(&mut piece, at) {
            Ok(0) => break,
            Ok(read) => at += read as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

/// A line of `/proc/meminfo`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// The least that the process' control group, or one above it, leaves: its limit, less what it uses for other things than
/// the cache of files. None if there is no limit.
fn group_room(groups: &str, text: &impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let top = Path::new("/sys/fs/cgroup");
    let mut group: PathBuf = top.join(path.trim_start_matches('/'));
    let mut least = None;
    while group.starts_with(top) {
        let number = |file: &str| text(&group.join(file))?.trim().parse::<u64>().ok();
        if let (Some(limit), Some(used)) = (number("memory.max"), number("memory.current")) {
            let stat = text(&group.join("memory.stat")).unwrap_or_default();
            let files = stat.lines().find_map(|line| line.strip_prefix("file ")?.trim().parse::<u64>().ok());
            let room = limit.saturating_sub(used.saturating_sub(files.unwrap_or(0)));
            least = Some(least.unwrap_or(u64::MAX).min(room));
        }
        if !group.pop() {
            break;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_tightest_group_counts_and_the_cache_of_files_does_not() {
        let files = HashMap::from([
            ("/sys/fs/cgroup/a/memory.max", "1000\n"),
            ("/sys/fs/cgroup/a/memory.current", "700\n"),
            ("/sys/fs/cgroup/a/memory.stat", "anon 300\nfile 400\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/b/memory.current", "600\n"),
        ]);
        let text = |file: &Path| files.get(file.to_str()?).map(|text| (*text).to_owned());
        assert_eq!(group_room("1:name=systemd:/x\n0::/a/b\n", &text), Some(700));
        assert_eq!(group_room("0::/c\n", &text), None);
        assert_eq!(group_room("4:memory:/a\n", &text), None);
        assert_eq!(kib("MemTotal: 9 kB\nMemAvailable:    12 kB\n", "MemAvailable:"), Some(12 << 10));
    }

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; 3 << 20]).unwrap();
        let budget = Budget::new(4 << 20);
        assert_eq!(warm(&file, 3 << 20, &budget).unwrap(), 3 << 20);
        assert_eq!(warm(&file, 3 << 20, &budget).unwrap(), 0, "there is room for one");
        assert_eq!(budget.0.state.lock().unwrap().reading, 0);
    }
}
