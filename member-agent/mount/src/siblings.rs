//! Who opens one small file of a directory after the other will open the next ones too.

/// Opens in a row, each not far behind the one before, until files are fetched ahead.
const ROW: u32 = 2;
/// Ranks that one open may be ahead of the one before.
const NEAR: u64 = 16;
/// Files that are asked for at a time.
pub(crate) const BATCH: usize = 64;
/// Files of at most this size are small.
pub(crate) const SMALL_BYTES: u64 = 1 << 20;

/// Where the last small file was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Siblings {
    version: u32,
    directory: u64,
    /// The rank behind the last one that was opened.
    after: u64,
    row: u32,
    /// Asked for up to this rank.
    asked: u64,
}

impl Siblings {
    /// Notes the open of a small file; says from which rank on to fetch ahead, if it is time.
    pub(crate) fn step(&mut self, version: u32, directory: u64, rank: u64) -> Option<u64> {
        let same = (self.version, self.directory) == (version, directory);
        if !(same && rank >= self.after && rank < self.after + NEAR) {
            *self = Self { version, directory, after: rank + 1, row: 1, asked: rank + 1 };
            return None;
        }
        (self.after, self.row) = (rank + 1, self.row + 1);
        // Half a batch before it is needed.
        let due = self.row >= ROW && self.asked < self.after + BATCH as u64 / 2;
        due.then(|| self.asked.max(self.after))
    }

    /// Notes up to where files were asked for.
    pub(crate) fn asked(&mut self, rank: u64) {
        self.asked = self.asked.max(rank);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_opens_one_after_the_other_is_served_ahead_once() {
        let mut siblings = Siblings::default();
        let mut from = Vec::new();
        for rank in 10..200 {
            if let Some(start) = siblings.step(1, 5, rank) {
                from.push(start);
                siblings.asked(start + BATCH as u64);
            }
        }
        assert_eq!(from, [12, 76, 140, 204]);
    }

    #[test]
    fn who_jumps_or_changes_the_directory_is_not() {
        let mut siblings = Siblings::default();
        let opens = [(1, 5, 100), (1, 5, 20), (1, 5, 90), (1, 6, 91), (2, 6, 92)];
        assert!(opens.iter().all(|(version, directory, rank)| siblings.step(*version, *directory, *rank).is_none()));
    }
}
