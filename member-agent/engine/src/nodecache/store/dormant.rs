//! Files that were begun and that nobody has open: they keep their room, and who opens them goes on where they are.
//!
//! Some are of an earlier run of the program: what the index says of them was on the disk before it was noted.

use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;

use super::room::Room;
use super::{Inner, Store, UNFINISHED, key};
use crate::engine::EngineError;
use crate::nodecache::Tier;
use crate::nodecache::index::{Index, Unfinished};
use crate::nodecache::partial::Provenance;

/// So many are kept.
const DORMANT: usize = 64;

/// One of them.
pub(super) struct Dormant {
    pub file: Unfinished,
    pub from: Provenance,
    pub tier: usize,
    /// The index says all that is there.
    pub noted: bool,
}

/// What an earlier run has left, as far as there is room for it; the rest is forgotten.
pub(super) fn found(index: &Index, tiers: &[Tier], used: &[u64]) -> Result<VecDeque<Dormant>, EngineError> {
    let mut found = VecDeque::new();
    let mut taken = used.to_vec();
    for file in index.unfinished()? {
        let tier = tiers.iter().position(|tier| key(tier) == file.tier);
        let there = tier.filter(|tier| {
            let long = fs::metadata(tiers[*tier].dir.join(UNFINISHED).join(&file.file)).map(|found| found.len());
            long.is_ok_and(|bytes| bytes == file.bytes)
                && taken[*tier].saturating_add(file.bytes) <= tiers[*tier].quota_bytes
        });
        let wanted = index.is_used(&file.object)? && index.tier_of(&file.object)?.is_none();
        match there.filter(|_| wanted && found.len() < DORMANT) {
            Some(tier) => {
                taken[tier] += file.bytes;
                found.push_back(Dormant { file, from: Provenance::earlier(), tier, noted: true });
            }
            None => index.forget_unfinished(&file.object, &file.file)?,
        }
    }
    Ok(found)
}

impl Inner {
    /// Puts a file to rest; it keeps its room.
    pub(super) fn put_to_rest(&mut self, store: &Store, file: Unfinished, from: Provenance, tier: usize) {
        self.wake_and_discard(store, &file.object);
        self.dormant.push_back(Dormant { file, from, tier, noted: false });
        if self.dormant.len() > DORMANT {
            self.discard_oldest(store);
        }
    }

    /// Gives up the one that was put to rest first; false if there is none.
    pub(super) fn discard_oldest(&mut self, store: &Store) -> bool {
        let Some(dormant) = self.dormant.pop_front() else { return false };
        self.discard(store, &dormant);
        true
    }

    /// Gives up what was begun of an object.
    pub(super) fn wake_and_discard(&mut self, store: &Store, object: &str) {
        if let Some(dormant) = self.wake(object) {
            self.discard(store, &dormant);
        }
    }

    /// Gives up what no dataset has in its version any more.
    pub(in crate::nodecache) fn discard_unused(&mut self, store: &Store) -> Result<(), EngineError> {
        for dormant in std::mem::take(&mut self.dormant) {
            if self.index.is_used(&dormant.file.object)? {
                self.dormant.push_back(dormant);
            } else {
                self.discard(store, &dormant);
            }
        }
        Ok(())
    }

    fn wake(&mut self, object: &str) -> Option<Dormant> {
        let at = self.dormant.iter().position(|dormant| dormant.file.object == object)?;
        self.dormant.remove(at)
    }

    fn discard(&mut self, store: &Store, dormant: &Dormant) {
        let Dormant { file, tier, .. } = dormant;
        self.promised[*tier] = self.promised[*tier].saturating_sub(file.bytes);
        self.remove_unfinished(store, *tier, &file.object, &file.file, true);
    }

    /// Removes an unfinished file. One that cannot be removed now is a stranger when the cache opens again.
    pub(super) fn remove_unfinished(&mut self, store: &Store, tier: usize, object: &str, name: &str, noted: bool) {
        if noted && let Err(error) = self.index.forget_unfinished(object, name) {
            tracing::warn!(error = &error as &dyn std::error::Error, "an unfinished file is not forgotten");
        }
        let file = store.tiers[tier].dir.join(UNFINISHED).join(name);
        if let Err(error) = fs::remove_file(&file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %file.display(), %error, "unfinished file could not be removed");
        }
    }

    /// What is there of files that nobody has open: object, tier and bytes.
    pub(in crate::nodecache) fn dormant_bytes(&self) -> Vec<(String, String, u64)> {
        let of = |dormant: &Dormant| {
            let file = &dormant.file;
            (file.object.clone(), file.tier.clone(), file.bytes_there())
        };
        self.dormant.iter().map(of).collect()
    }

    /// What the index does not say yet.
    pub(in crate::nodecache) fn dormant_unnoted(&self) -> Vec<Unfinished> {
        self.dormant.iter().filter(|dormant| !dormant.noted).map(|dormant| dormant.file.clone()).collect()
    }

    /// Notes that the index says all of a file, if it still rests.
    pub(in crate::nodecache) fn rests_as(&mut self, file: &Unfinished) -> bool {
        let Some(dormant) = self.dormant.iter_mut().find(|dormant| dormant.file == *file) else { return false };
        dormant.noted = true;
        true
    }
}

impl Store {
    /// Takes up a file that was begun, if its parts are of the same version at the source.
    pub(in crate::nodecache) fn resume(
        self: &Arc<Self>,
        object: &str,
        tag: Option<&str>,
    ) -> Option<(Room, fs::File, (Unfinished, Provenance))> {
        let mut inner = self.lock();
        let Dormant { file, from, tier, .. } = inner.wake(object)?;
        drop(inner);
        // From here on it goes with its room.
        let room = Room::of(self, tier, &file);
        if file.tag.as_deref() != tag {
            return None;
        }
        match fs::File::options().read(true).write(true).open(room.path()) {
            Ok(open) => Some((room, open, (file, from))),
            Err(error) => {
                tracing::warn!(object, %error, "a file that was begun cannot be opened; it is fetched anew");
                None
            }
        }
    }

    /// Syncs the tiers that `files` are in; returns those that could not be.
    pub(in crate::nodecache) fn sync_tiers_of(&self, files: &[&Unfinished]) -> Vec<String> {
        self.sync_tiers(|tier| files.iter().any(|file| file.tier == tier))
    }
}
