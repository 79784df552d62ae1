//! Room in a tier: given to one file, made by giving up others, and kept free behind the readers' backs.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fluvial_model::manifest::Digest;

use super::{Inner, Store, UNFINISHED, failed, key, now, place, rests};
use crate::engine::EngineError;
use crate::nodecache::index::{Object, Unfinished};
use crate::nodecache::partial::Provenance;

/// Objects that one look for room considers; some 200 bytes each.
const CONSIDERED: u32 = 10_000;
/// Objects that a sweep gives up before it lets others have their turn.
const SWEPT_AT_ONCE: usize = 128;

/// Room in one tier for one file. Dropped, it is given back, and the file is removed, unless it was kept or put to rest.
pub(in crate::nodecache) struct Room {
    store: Arc<Store>,
    tier: usize,
    bytes: u64,
    object: String,
    name: String,
    /// The index may say something of the file.
    noted: Arc<AtomicBool>,
    /// The file keeps its room though nobody has it open.
    rests: bool,
}

impl Store {
    /// Room for the file of an object in the first tier that has it, or else in the first where files that nobody wants
    /// beforehand make room for it; for that, files that were begun and closed are given up.
    pub(in crate::nodecache) fn room(self: &Arc<Self>, object: &str, bytes: u64) -> Result<Option<Room>, EngineError> {
        let mut inner = self.lock();
        let all = (0..self.tiers.len()).filter(|tier| !rests(&inner.trouble[*tier])).collect::<Vec<_>>();
        if !all.iter().any(|tier| bytes <= self.tiers[*tier].quota_bytes) {
            return Ok(None);
        }
        let tier = loop {
            let mut found = all.iter().copied().find(|tier| self.lacking(&inner, *tier, bytes) == 0);
            for tier in &all {
                if found.is_none() && self.make_room(&mut inner, *tier, bytes)? {
                    found = Some(*tier);
                }
            }
            match found {
                Some(tier) => break tier,
                None if inner.discard_oldest(self) => {}
                None => return Ok(None),
            }
        };
        inner.promised[tier] += bytes;
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        Ok(Some(Room {
            store: self.clone(),
            tier,
            bytes,
            object: object.to_owned(),
            name: format!("{}-{number}", self.run),
            noted: Arc::default(),
            rests: false,
        }))
    }

    /// Bytes by which a tier is too full for `bytes` more.
    fn lacking(&self, inner: &Inner, tier: usize, bytes: u64) -> u64 {
        self.taken(inner, tier).saturating_add(bytes).saturating_sub(self.tiers[tier].quota_bytes)
    }

    fn taken(&self, inner: &Inner, tier: usize) -> u64 {
        inner.used[tier].saturating_add(inner.promised[tier])
    }

    /// Gives up what may be given up until `bytes` fit; false, and nothing is given up, if that is not enough.
    fn make_room(&self, inner: &mut Inner, tier: usize, bytes: u64) -> Result<bool, EngineError> {
        let lacking = self.lacking(inner, tier, bytes);
        if bytes > self.tiers[tier].quota_bytes {
            return Ok(false);
        }
        let (chosen, sum) = self.choose(inner, tier, lacking, usize::MAX)?;
        if sum < lacking {
            return Ok(false);
        }
        inner.index.forget(&chosen)?;
        self.remove(inner, &chosen)?;
        Ok(true)
    }

    /// Objects to give up for `aim` bytes, and the bytes that they have.
    fn choose(&self, inner: &Inner, tier: usize, aim: u64, most: usize) -> Result<(Vec<Object>, u64), EngineError> {
        let (mut chosen, mut sum) = (Vec::new(), 0_u64);
        for object in inner.index.evictable(&key(&self.tiers[tier]), CONSIDERED)? {
            if sum >= aim || chosen.len() >= most {
                break;
            }
            if !inner.open.contains_key(&object.id) && !is_loaded(inner, &object.id)? {
                sum += object.bytes;
                chosen.push(object);
            }
        }
        Ok((chosen, sum))
    }

    /// Whether some tier has room for a file without anything being given up for it, below its high mark.
    pub(in crate::nodecache) fn has_room(&self, bytes: u64) -> bool {
        let inner = self.lock();
        let fits = |tier: usize| self.taken(&inner, tier).saturating_add(bytes) <= self.tiers[tier].high_bytes();
        (0..self.tiers.len()).any(|tier| !rests(&inner.trouble[tier]) && fits(tier))
    }

    /// Whether a tier is above its high mark.
    #[cfg(test)]
    pub(in crate::nodecache) fn is_high(&self) -> bool {
        let inner = self.lock();
        (0..self.tiers.len()).any(|tier| self.taken(&inner, tier) > self.tiers[tier].high_bytes())
    }

    /// Brings every tier that is above its high mark down to its low one, as far as there is something that may be given
    /// up. Readers have their turn in between.
    pub(in crate::nodecache) fn sweep(&self) -> Result<(), EngineError> {
        for (tier, made) in self.tiers.iter().enumerate() {
            let mut sweeping = self.taken(&self.lock(), tier) > made.high_bytes();
            while sweeping {
                let mut inner = self.lock();
                let aim = self.taken(&inner, tier).saturating_sub(made.low_bytes());
                let (chosen, _) = self.choose(&inner, tier, aim, SWEPT_AT_ONCE)?;
                sweeping = aim > 0 && !chosen.is_empty();
                if sweeping {
                    inner.index.forget(&chosen)?;
                    self.remove(&mut inner, &chosen)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a load that runs wants an object.
fn is_loaded(inner: &Inner, object: &str) -> Result<bool, EngineError> {
    for (_, uid, paths) in &inner.loads {
        if inner.index.is_below(uid, paths, object)? {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Room {
    /// The room of a file that rested.
    pub(super) fn of(store: &Arc<Store>, tier: usize, file: &Unfinished) -> Self {
        Self {
            store: store.clone(),
            tier,
            bytes: file.bytes,
            object: file.object.clone(),
            name: file.file.clone(),
            noted: Arc::new(AtomicBool::new(true)),
            rests: false,
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.store.tiers[self.tier].dir.join(UNFINISHED).join(&self.name)
    }

    /// The tier, by its key, and the file's name there.
    pub(in crate::nodecache) fn place(&self) -> (String, String) {
        (key(&self.store.tiers[self.tier]), self.name.clone())
    }

    /// To be set before the index says anything of the file.
    pub(in crate::nodecache) fn noted(&self) -> Arc<AtomicBool> {
        self.noted.clone()
    }

    /// Makes the unfinished file, all of it a hole.
    pub(in crate::nodecache) fn create(&self) -> Result<fs::File, EngineError> {
        let create = || {
            let file = fs::File::options().read(true).write(true).create_new(true).open(self.path())?;
            file.set_len(self.bytes)?;
            Ok(file)
        };
        create().map_err(|error| self.troubled("make cached file", &error))
    }

    /// Has the tier left alone, because of what its file system says of this file.
    pub(in crate::nodecache) fn troubled(&self, op: &'static str, error: &io::Error) -> EngineError {
        self.store.troubled(self.tier, op, error)
    }

    /// Makes the finished file the object, to which the room goes over. Nothing happens if the object is there or nobody
    /// wants it now.
    pub(in crate::nodecache) fn keep(&mut self, digest: &Digest) -> Result<(), EngineError> {
        let (tier, id) = (&self.store.tiers[self.tier], &self.object);
        let mut inner = self.store.lock();
        if inner.index.tier_of(id)?.is_some() {
            return Ok(());
        }
        let file = place(tier, id);
        let directory = file.parent().unwrap_or(&tier.dir);
        let write = || {
            fs::create_dir_all(directory)?;
            fs::rename(self.path(), &file)
        };
        if let Err(error) = write() {
            drop(inner);
            return Err(self.troubled("keep cached file", &error));
        }
        let object = Object { id: id.clone(), tier: key(tier), bytes: self.bytes };
        if inner.index.add(&object, digest, now())? {
            inner.used[self.tier] += self.bytes;
            inner.promised[self.tier] = inner.promised[self.tier].saturating_sub(self.bytes);
            self.bytes = 0;
            inner.unsynced.push(object);
        } else {
            fs::remove_file(&file).map_err(failed("remove", &file))?;
        }
        inner.wake_and_discard(&self.store, id);
        drop(inner);
        self.store.sync(false)
    }

    /// Forgets for good what was noted of the file: its contents are wrong.
    pub(in crate::nodecache) fn disown(&self) -> Result<(), EngineError> {
        if self.noted.load(Ordering::Relaxed) {
            self.store.lock().index.disown_unfinished(&self.object)
        } else {
            Ok(())
        }
    }

    /// Puts the file to rest with what is there of it, unless it is of no use any more.
    pub(in crate::nodecache) fn rest(mut self, file: Unfinished, from: Provenance) {
        let mut inner = self.store.lock();
        let useful =
            inner.index.is_used(&self.object).and_then(|used| Ok(used && inner.index.tier_of(&self.object)?.is_none()));
        // What cannot be looked up is removed: it can be fetched again.
        if useful.unwrap_or(false) {
            inner.put_to_rest(&self.store, file, from, self.tier);
            drop(inner);
            self.rests = true;
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.rests {
            return;
        }
        let store = self.store.clone();
        let mut inner = store.lock();
        inner.promised[self.tier] = inner.promised[self.tier].saturating_sub(self.bytes);
        // Gone already when it was kept.
        inner.remove_unfinished(&store, self.tier, &self.object, &self.name, self.noted.load(Ordering::Relaxed));
    }
}
