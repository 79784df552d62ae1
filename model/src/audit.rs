//! ② Who did what: the words of the audit trail, and the chain that makes a change of it show.
//!
//! A store appends [`Entry`]s in the transaction that they speak of, as [`Record`]s: numbered from 1 without gaps, each
//! with a BLAKE3 over the one before and everything it says itself. Whoever keeps the number and the hash of one record
//! can tell later whether anything up to it was changed, left out or put in ([`Verifier`]).
//!
//! The hash is over [`Record::canonical`]: a version, then the fields in the order of the struct, integers as 8 bytes in
//! network order, texts with their length before them, so that no two records have the same bytes.
//!
//! Records that are let go by age or number leave a [`CHECKPOINT`] in the chain, which names the last of them.
//!
//! Deliberately absent: values of secrets and of anything else that was written; who may read the trail.

mod verify;

pub use self::verify::{Fault, Head, Verifier};

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::manifest::Digest;

/// The verb of the record that stands for records that were let go: its name is the number of the last of them, its
/// message that one's hash.
pub const CHECKPOINT: &str = "checkpoint";
/// What a checkpoint is about.
pub const TRAIL: &str = "audit";

/// The most bytes of each text, so that a caller's choice of words cannot fill the store: names have at most 253.
pub const MAX_TEXT: usize = 256;
/// The most groups of a record: what one certificate holds.
pub const MAX_GROUPS: usize = 32;

/// The most records that are kept: at about 400 bytes each, 400 MB.
pub const MAX_RECORDS: u64 = 1_000_000;
/// How long records are kept, in seconds: 90 days.
pub const MAX_AGE_SECONDS: i64 = 90 * 24 * 3600;
/// After so many records it is looked whether the oldest are due, and at most twice as many go at a time: the trail
/// shrinks faster than it grows, and no write waits for more than this.
pub const PRUNE_EVERY: u64 = 1000;

/// What whoever carried out or refused a call says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// When it was carried out or refused, by the clock of the hub that did.
    pub time: Timestamp,
    /// Who called, as `certs::Identity::path` has it; `system:…` for the hub's own parts, empty for a caller without a
    /// certificate.
    pub user: String,
    pub groups: Vec<String>,
    /// Where the call came from, `IP:PORT`.
    pub address: String,
    /// The number of the call: all records of one call have the same.
    pub request: String,
    pub verb: String,
    pub api_group: String,
    /// The kind in the plural, or what else the call was about; with `/SUBRESOURCE` if there is one.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    /// The outcome as an HTTP status.
    pub code: u32,
    /// How many calls this stands for: refusals that are alike are counted, not listed.
    pub count: u64,
    /// What else there is to say; why it was refused.
    pub message: String,
}

/// A record's hash, and what stands before the first record.
pub type Hash = [u8; 32];

/// What comes before the first record.
pub const GENESIS: Hash = [0; 32];

/// An entry at its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// From 1.
    pub sequence: u64,
    /// The store's revision after the change that it speaks of, or when it was appended.
    pub revision: u64,
    pub entry: Entry,
    /// The hash of the record before.
    pub previous: Hash,
    pub hash: Hash,
}

impl Entry {
    /// The same with every text cut to its limit. What is stored is always this.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        for text in [
            &mut self.user,
            &mut self.address,
            &mut self.request,
            &mut self.verb,
            &mut self.api_group,
            &mut self.resource,
            &mut self.namespace,
            &mut self.name,
            &mut self.message,
        ]
        .into_iter()
        .chain(&mut self.groups)
        {
            cut(text);
        }
        self.groups.truncate(MAX_GROUPS);
        self.count = self.count.max(1);
        self
    }
}

impl Entry {
    /// Says one thing more of it.
    pub fn add(&mut self, said: &str) {
        if !self.message.is_empty() {
            self.message.push_str("; ");
        }
        self.message.push_str(said);
    }

    /// What is left of an entry that is counted with others.
    fn of_several(&self) -> Self {
        let message = "calls of more kinds or callers than are listed".to_owned();
        Self { time: self.time, verb: "several".to_owned(), count: self.count, message, ..Self::default() }
    }
}

/// Cuts a text to [`MAX_TEXT`] bytes, at the end of a character.
fn cut(text: &mut String) {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
    }
}

impl Record {
    /// The record that follows the one with `previous`.
    #[must_use]
    pub fn after(previous: &Head, revision: u64, entry: Entry) -> Self {
        let mut record = Self {
            sequence: previous.sequence + 1,
            revision,
            entry: entry.bounded(),
            previous: previous.hash,
            hash: GENESIS,
        };
        record.hash = record.computed();
        record
    }

    /// The entry that stands for all records up to `last`.
    #[must_use]
    pub fn checkpoint(last: &Head, time: Timestamp) -> Entry {
        Entry {
            time,
            user: "system:audit".to_owned(),
            verb: CHECKPOINT.to_owned(),
            resource: TRAIL.to_owned(),
            name: last.sequence.to_string(),
            message: Digest::from_bytes(last.hash).to_string(),
            code: 200,
            ..Entry::default()
        }
    }

    /// Number and hash.
    #[must_use]
    pub fn head(&self) -> Head {
        Head { sequence: self.sequence, hash: self.hash }
    }

    /// The hash that the record should have.
    #[must_use]
    pub fn computed(&self) -> Hash {
        *blake3::hash(&self.canonical()).as_bytes()
    }

    /// The bytes that are hashed.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        let Self { sequence, revision, entry, previous, hash: _ } = self;
        let Entry {
            time,
            user,
            groups,
            address,
            request,
            verb,
            api_group,
            resource,
            namespace,
            name,
            code,
            count,
            message,
        } = entry;
        let mut bytes = b"fluvial audit record 1".to_vec();
        bytes.extend(previous);
        // A time of ours is within 64 bits of nanoseconds until the year 2262.
        let time = i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX);
        bytes.extend(sequence.to_be_bytes());
        bytes.extend(revision.to_be_bytes());
        bytes.extend(time.to_be_bytes());
        let mut text = |text: &str| {
            bytes.extend((text.len() as u64).to_be_bytes());
            bytes.extend(text.as_bytes());
        };
        text(user);
        text(&groups.len().to_string());
        groups.iter().for_each(|group| text(group));
        for part in [address, request, verb, api_group, resource, namespace, name, message] {
            text(part);
        }
        bytes.extend(u64::from(*code).to_be_bytes());
        bytes.extend(count.to_be_bytes());
        bytes
    }
}

/// Entries that wait to be appended, so many alike counted as one: what a flood of refusals costs.
///
/// Callers with a certificate are told apart by all that they did, up to [`KNOWN`] of it, then by who they are, up to as many
/// again; callers without one by their address, up to [`STRANGERS`] twice. What is more is counted as one.
#[derive(Debug, Default)]
pub struct Waiting {
    known: BTreeMap<String, Entry>,
    strangers: BTreeMap<String, Entry>,
}

/// Half of the entries that may wait for callers with a certificate. With [`STRANGERS`], at 3 KB at the very most, 1.2 MB.
pub const KNOWN: usize = 128;
/// Half of those that may wait for callers without one.
pub const STRANGERS: usize = 64;

impl Waiting {
    /// Takes an entry.
    pub fn put(&mut self, entry: Entry) {
        let entry = entry.bounded();
        let Entry { user, verb, api_group, resource, namespace, name, code, .. } = &entry;
        let (waiting, most, exact, caller) = if user.is_empty() {
            let host = entry.address.rsplit_once(':').map_or(entry.address.as_str(), |(host, _)| host);
            let exact = format!("{host} {code} {verb}");
            (&mut self.strangers, STRANGERS, exact.clone(), exact)
        } else {
            let exact = format!("{user} {code} {verb} {api_group} {resource} {namespace} {name}");
            (&mut self.known, KNOWN, exact, format!("{user} {code}"))
        };
        let has_room = |key: &String, most: usize| waiting.contains_key(key) || waiting.len() < most;
        let (key, entry) = if has_room(&exact, most) {
            (exact, entry)
        } else if has_room(&caller, most * 2) {
            let user = entry.user.clone();
            (caller, Entry { user, code: entry.code, ..entry.of_several() })
        } else {
            (String::new(), entry.of_several())
        };
        match waiting.get_mut(&key) {
            Some(like) => {
                like.count = like.count.saturating_add(entry.count);
                like.time = like.time.max(entry.time);
            }
            None => _ = waiting.insert(key, entry),
        }
    }

    /// Takes out at most so many of both, the earliest names first.
    pub fn take(&mut self, known: usize, strangers: usize) -> Vec<Entry> {
        let mut taken = Vec::new();
        for (waiting, most) in [(&mut self.known, known), (&mut self.strangers, strangers)] {
            for _ in 0..most {
                let Some((_, entry)) = waiting.pop_first() else { break };
                taken.push(entry);
            }
        }
        taken
    }

    /// How many wait: of callers with a certificate, and without.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.known.len(), self.strangers.len())
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }
}

#[cfg(test)]
mod tests;
