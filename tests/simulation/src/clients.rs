//! The clients: they write, swap and read registers, list pairs that are written together, and watch, at any node, and
//! keep what they were answered.
//!
//! A request runs where the node runs, and dies with it: then its outcome is unknown, as over a network.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use fluvial_model::store::{Op, Revision, Txn, TxnOutcome};
use fluvial_raft::{Consistency, ListRequest, Store as _, StoreError};

use crate::history::{Kind, Operation};
use crate::stage::{Seat, Stage, Watched};

/// How many registers there are beside the pair.
const REGISTERS: u64 = 3;
/// The two keys that are always written together, as one register.
const PAIR: [&str; 2] = ["r/pair-a", "r/pair-b"];
const PAIR_NAME: &str = "r/pair";
/// A client waits no longer for an answer.
const PATIENCE: Duration = Duration::from_secs(6);

/// Runs `request` at the node; none if it died with the node, or took too long.
async fn ask<T: Send + 'static>(seat: &Seat, request: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let running = seat.runtime.spawn(request);
    tokio::time::timeout(PATIENCE, running).await.ok()?.ok()
}

fn bytes(value: u64) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn number(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}

/// One client.
pub struct Client {
    pub stage: Arc<Stage>,
    pub me: usize,
    /// What it saw last of each register: the value, and the revision that wrote it.
    known: BTreeMap<String, (u64, Revision)>,
}

impl Client {
    #[must_use]
    pub fn new(stage: Arc<Stage>, me: usize) -> Self {
        Self { stage, me, known: BTreeMap::new() }
    }

    /// Asks until the stage is cleared.
    pub async fn run(mut self) {
        let slowest = 10 + self.stage.below(80);
        while !self.stage.stopping() {
            tokio::time::sleep(Duration::from_millis(1 + self.stage.below(slowest))).await;
            let Some(seat) = self.stage.seat() else { continue };
            let key = format!("r/{}", self.stage.below(REGISTERS));
            match self.stage.below(10) {
                0..=2 => self.write(&seat, &key).await,
                3..=4 => self.swap(&seat, &key).await,
                5..=7 => drop(self.read(&seat, &key).await),
                8 if self.stage.below(2) == 0 => self.write_pair(&seat).await,
                8 => drop(self.read_pair(&seat).await),
                _ => self.look(&seat).await,
            }
        }
    }

    /// A last read of every register, at `seat`. Returns whether all were answered.
    pub async fn read_all(&mut self, seat: &Seat) -> bool {
        let mut all = self.read_pair(seat).await;
        for register in 0..REGISTERS {
            all &= self.read(seat, &format!("r/{register}")).await;
        }
        all
    }

    fn keep(&self, key: &str, kind: Kind, called: Duration, answered: bool, revision: Option<Revision>) {
        let answered = answered.then(|| self.stage.moment());
        let revision = revision.map(|revision| revision.0);
        let operation = Operation { client: self.me, kind, called, answered, revision };
        self.stage.trace.say(format_args!("{key} {operation}"));
        self.stage.figures.count("operations");
        self.stage.records().operations.entry(key.to_owned()).or_default().push(operation);
    }

    /// What a write came to: an outcome, or none if it is unknown; an error if it certainly did not happen.
    fn outcome(&self, value: u64, answer: Option<Result<TxnOutcome, StoreError>>) -> Result<Option<TxnOutcome>, ()> {
        match answer {
            Some(Ok(outcome)) => Ok(Some(outcome)),
            Some(Err(StoreError::Unavailable { .. })) => {
                self.stage.figures.count("writes refused");
                self.stage.records().refused.insert(value);
                Err(())
            }
            None | Some(Err(StoreError::UnknownOutcome { .. })) => {
                self.stage.figures.count("writes unknown");
                Ok(None)
            }
            Some(Err(error)) => {
                self.stage.violated(format!("a write was answered {error}"));
                Err(())
            }
        }
    }

    async fn write(&mut self, seat: &Seat, key: &str) {
        let value = self.stage.value();
        let txn =
            Txn { compares: vec![], ops: vec![Op::Put { key: key.to_owned(), value: bytes(value) }], audit: vec![] };
        self.put(seat, key, value, txn).await;
    }

    async fn write_pair(&mut self, seat: &Seat) {
        let value = self.stage.value();
        let put = |key: &str| Op::Put { key: key.to_owned(), value: bytes(value) };
        self.put(seat, PAIR_NAME, value, Txn { compares: vec![], ops: PAIR.map(put).to_vec(), audit: vec![] }).await;
    }

    async fn put(&mut self, seat: &Seat, register: &str, value: u64, txn: Txn) {
        let called = self.stage.moment();
        let store = seat.store.clone();
        let answer = ask(seat, async move { store.txn(txn).await }).await;
        let Ok(outcome) = self.outcome(value, answer) else { return };
        let kind = Kind::Write { value };
        match outcome {
            Some(TxnOutcome::Committed { revision }) => {
                self.keep(register, kind, called, true, Some(revision));
                self.known.insert(register.to_owned(), (value, revision));
            }
            Some(TxnOutcome::Conflict { .. }) => self.stage.violated("a write without a condition conflicted".into()),
            None => self.keep(register, kind, called, false, None),
        }
    }

    async fn swap(&mut self, seat: &Seat, key: &str) {
        let Some((expected, revision)) = self.known.get(key).copied() else {
            self.read(seat, key).await;
            return;
        };
        let value = self.stage.value();
        let txn = match expected {
            0 => Txn::create(key, bytes(value)),
            _ => Txn::replace(key, revision, bytes(value)),
        };
        let called = self.stage.moment();
        let store = seat.store.clone();
        let answer = ask(seat, async move { store.txn(txn).await }).await;
        let Ok(outcome) = self.outcome(value, answer) else { return };
        let kind = |done| Kind::Swap { expected, value, done };
        match outcome {
            Some(TxnOutcome::Committed { revision }) => {
                self.keep(key, kind(Some(true)), called, true, Some(revision));
                self.known.insert(key.to_owned(), (value, revision));
            }
            Some(TxnOutcome::Conflict { current, .. }) => {
                self.keep(key, kind(Some(false)), called, true, None);
                if let Some(current) = current {
                    self.known.insert(key.to_owned(), (number(&current.value), current.mod_revision));
                }
            }
            None => {
                self.keep(key, kind(None), called, false, None);
                self.known.remove(key);
            }
        }
    }

    async fn read(&mut self, seat: &Seat, key: &str) -> bool {
        let called = self.stage.moment();
        let (store, asked) = (seat.store.clone(), key.to_owned());
        let answer = ask(seat, async move { store.get(&asked, Consistency::Linearizable).await }).await;
        match answer {
            Some(Ok(found)) => {
                let value = found.as_ref().map_or(0, |kv| number(&kv.value));
                let revision = found.map(|kv| kv.mod_revision);
                self.stage.figures.count("reads");
                self.keep(key, Kind::Read { value }, called, true, revision);
                self.known.insert(key.to_owned(), (value, revision.unwrap_or_default()));
                return true;
            }
            Some(Err(StoreError::Corrupt { what })) => self.stage.violated(format!("a read found damage: {what}")),
            _ => self.stage.figures.count("reads refused"),
        }
        false
    }

    async fn read_pair(&mut self, seat: &Seat) -> bool {
        let called = self.stage.moment();
        let store = seat.store.clone();
        let request = ListRequest { prefix: PAIR_NAME.into(), ..ListRequest::default() };
        let Some(Ok(listing)) = ask(seat, async move { store.list(request).await }).await else {
            self.stage.figures.count("reads refused");
            return false;
        };
        let found: Vec<(u64, Revision)> =
            listing.items.iter().map(|item| (number(&item.value), item.mod_revision)).collect();
        let (value, revision) = match found[..] {
            [] => (0, None),
            [one, other] if one == other => (one.0, Some(one.1)),
            _ => {
                self.stage.violated(format!("what was written together is not read together: {found:?}"));
                return false;
            }
        };
        self.stage.figures.count("reads");
        self.keep(PAIR_NAME, Kind::Read { value }, called, true, revision);
        true
    }

    /// Lists what the node has, as old as it may be, but not older than what the node has shown.
    async fn look(&mut self, seat: &Seat) {
        let shown = self.stage.records().shown.get(&seat.node).copied().unwrap_or(0);
        let store = seat.store.clone();
        let request = ListRequest { prefix: "r/".into(), consistency: Consistency::Stale, ..ListRequest::default() };
        if let Some(Ok(listing)) = ask(seat, async move { store.list(request).await }).await {
            let revision = listing.revision.0;
            if revision < shown {
                let node = seat.node;
                return self.stage.violated(format!("node {node} showed revision {shown}, then {revision}"));
            }
            self.stage.figures.count("stale reads");
            let mut records = self.stage.records();
            let newest = records.shown.entry(seat.node).or_default();
            *newest = revision.max(*newest);
        }
    }
}

/// Watches all registers, at one node after the other, from where the last one ended.
pub async fn watch(stage: Arc<Stage>) {
    let mut at = 0;
    while !stage.stopping() {
        tokio::time::sleep(Duration::from_millis(1 + stage.below(300))).await;
        let Some(seat) = stage.seat() else { continue };
        let watched = {
            let mut records = stage.records();
            records.watched.push(Watched { from: at, upto: at, told: Vec::new() });
            records.watched.len() - 1
        };
        let (telling, store) = (Arc::clone(&stage), seat.store.clone());
        // It dies with the node, or is given up to go on elsewhere.
        let limit = Duration::from_millis(200 + stage.below(8000));
        let running = seat.runtime.spawn(tokio::time::timeout(limit, follow(telling, store, watched)));
        let end = running.await;
        at = stage.records().watched[watched].upto;
        if let Ok(Ok(Some(oldest))) = end {
            // What was before is forgotten: what is there now is listed, and watched from there.
            stage.figures.count("watches compacted");
            let store = seat.store.clone();
            let Some(Ok(listing)) = ask(&seat, async move { store.list(ListRequest::default()).await }).await else {
                continue;
            };
            if listing.revision < oldest {
                stage.violated(format!("history begins at {oldest}, the listing is at {}", listing.revision));
            }
            at = at.max(listing.revision.0);
        }
    }
}

/// Keeps what a watch tells until it ends; returns where history begins if it no longer goes back far enough.
async fn follow(stage: Arc<Stage>, store: fluvial_raft::RaftStore, watched: usize) -> Option<Revision> {
    let from = stage.records().watched[watched].from;
    let mut watch = match store.watch("r/", Revision(from)).await {
        Ok(watch) => watch,
        Err(StoreError::Compacted { oldest }) => return Some(oldest),
        Err(_) => return None,
    };
    loop {
        let events = match watch.next().await {
            Ok(events) => events,
            Err(StoreError::Compacted { oldest }) => return Some(oldest),
            Err(_) => return None,
        };
        let mut records = stage.records();
        let watched = &mut records.watched[watched];
        let told = events.iter().map(|event| {
            let value = event.value.as_ref().map_or(0, |kv| number(&kv.value));
            (event.revision.0, event.key.clone(), value)
        });
        let before = watched.told.len();
        watched.told.extend(told);
        stage.figures.add("events watched", (watched.told.len() - before) as u64);
        let early = watched.told[before..].iter().find(|told| told.0 <= watched.upto).cloned();
        let upto = watch.revision().0;
        let fault = match early {
            Some(early) => Some(format!("{early:?} was told to who had everything up to {}", watched.upto)),
            None if upto < watched.upto => Some(format!("a watch went back from {} to {upto}", watched.upto)),
            None => None,
        };
        watched.upto = upto;
        drop(records);
        if let Some(fault) = fault {
            stage.violated(fault);
        }
    }
}
