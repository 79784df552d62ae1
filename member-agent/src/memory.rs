//! ⑤ How an agent's memory is divided among those who hold data on their way. Pure arithmetic.
//!
//! Invariant: what all of them may hold at a time, and the program itself, are no more than the limit. Backups and
//! restores are not in it (their library has bounds of its own), nor are mount processes, which are others.

use fluvial_engine::{InFlight, PART_BYTES, PIECE_BYTES, RANGE_BYTES};

use crate::relay::serve::CHUNK;

const MIB: u64 = 1 << 20;
/// The program: code, indexes, sessions, what the allocator keeps.
const PROGRAM: u64 = 96 * MIB;
/// The rest is divided into so many shares.
const SHARES: u64 = 16;
/// Copies at a time.
pub(crate) const COPIES: usize = 2;

/// Most bytes that an agent has in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimit(u64);

impl MemoryLimit {
    /// With less than that, not everybody could hold what one request takes.
    pub const LEAST: u64 = 192 * MIB;

    /// A limit of so many bytes; nothing if that is less than [`MemoryLimit::LEAST`].
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        (bytes >= Self::LEAST).then_some(Self(bytes))
    }

    fn shares(self, shares: u64) -> u64 {
        (self.0 - PROGRAM) / SHARES * shares
    }

    /// Of the cache: what is fetched from sources, asked of other nodes, and read for files that have no room.
    pub(crate) fn in_flight(self) -> InFlight {
        let two = self.shares(2);
        InFlight {
            parts: u32::try_from(two / PART_BYTES).unwrap_or(u32::MAX),
            asked: count(two / RANGE_BYTES),
            pieces: count(two / PIECE_BYTES),
        }
    }

    /// Ranges that are served to the nodes of the cluster at a time.
    pub(crate) fn served(self) -> usize {
        count(self.shares(2) / RANGE_BYTES)
    }

    /// Chunks that are read for agents of other clusters at a time.
    pub(crate) fn relayed(self) -> usize {
        count(self.shares(1) / CHUNK)
    }

    /// Bytes that each of [`COPIES`] copies may have in flight.
    pub(crate) fn of_a_copy(self) -> u64 {
        self.shares(7) / COPIES as u64
    }
}

impl Default for MemoryLimit {
    fn default() -> Self {
        Self(640 * MIB)
    }
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluvial_transfer::copy::DEFAULT_PART_SIZE;

    #[test]
    fn all_of_it_together_is_no_more_than_the_limit_and_everybody_has_room_for_one() {
        for limit in [MemoryLimit::LEAST, MemoryLimit::LEAST + 1, 250 * MIB, 640 * MIB, 3 << 30, 1 << 40] {
            let memory = MemoryLimit::new(limit).unwrap();
            let InFlight { parts, asked, pieces } = memory.in_flight();
            let (served, relayed, copy) = (memory.served(), memory.relayed(), memory.of_a_copy());
            assert!(
                u64::from(parts) * PART_BYTES >= RANGE_BYTES && asked > 0 && pieces > 0 && served > 0 && relayed > 0
            );
            assert!(copy >= DEFAULT_PART_SIZE);
            let all = u64::from(parts) * PART_BYTES
                + asked as u64 * RANGE_BYTES
                + pieces as u64 * PIECE_BYTES
                + served as u64 * RANGE_BYTES
                + relayed as u64 * CHUNK
                + COPIES as u64 * copy;
            assert!(all + PROGRAM <= limit, "{all} of {limit}");
        }
        assert_eq!(MemoryLimit::new(MemoryLimit::LEAST - 1), None);
    }
}
