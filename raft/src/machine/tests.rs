//! The state machine against the consensus library's own suite, and against a map of every state there ever was.

use std::collections::BTreeMap;

use fluvial_model::store::Compare;
use openraft::StorageError;
use openraft::testing::common::log_id;
use openraft::testing::log::{StoreBuilder, Suite};
use proptest::prelude::*;

use super::*;
use crate::log::LogStore;
use crate::types::Command;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStore::open(&dir.path().join("log.db"), Arc::default()).unwrap();
        let snapshots = Arc::new(Snapshots::open(dir.path(), 1000).unwrap());
        let (machine, _) = StateMachine::open(dir.path(), snapshots, Arc::default(), true).unwrap();
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_storage_suite_of_the_consensus_library_passes() {
    Suite::test_all(Builder).await.unwrap();
}

fn entry(index: u64, kind: v1::command::Kind) -> Entry {
    let command = v1::Command { kind: Some(kind) }.encode_to_vec();
    Entry { log_id: log_id::<TypeConfig>(1, 1, index), payload: EntryPayload::Normal(Command(command.into())) }
}

/// A step of the random test, over few keys so that they meet.
#[derive(Debug, Clone)]
enum Step {
    Txn(Vec<(u8, bool)>, Vec<(u8, Option<u8>)>),
    Compact(u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let compares = prop::collection::vec((0..5_u8, any::<bool>()), 0..2);
    let ops = prop::collection::btree_map(0..5_u8, prop::option::weighted(0.7, any::<u8>()), 0..4);
    prop_oneof![
        8 => (compares, ops).prop_map(|(compares, ops)| Step::Txn(compares, ops.into_iter().collect())),
        1 => (0..4_u8).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

/// The simplest store there is: every state that ever was.
#[derive(Default)]
struct Oracle {
    states: Vec<BTreeMap<String, KeyValue>>,
    compacted: u64,
}

impl Oracle {
    fn apply(&mut self, txn: &Txn) -> TxnOutcome {
        let mut state = self.states.last().unwrap().clone();
        for compare in &txn.compares {
            let current = state.get(compare.key());
            if !compare.holds(current.map(|kv| kv.mod_revision)) {
                return TxnOutcome::Conflict { key: compare.key().to_owned(), current: current.cloned() };
            }
        }
        let revision = Revision(self.states.len() as u64);
        let mut changed = false;
        for op in &txn.ops {
            match op {
                Op::Put { key, value } => {
                    let create_revision = state.get(key).map_or(revision, |kv| kv.create_revision);
                    let value = value.clone();
                    let kv = KeyValue { key: key.clone(), value, create_revision, mod_revision: revision };
                    state.insert(key.clone(), kv);
                    changed = true;
                }
                Op::Delete { key } => changed |= state.remove(key).is_some(),
            }
        }
        if changed {
            self.states.push(state);
        }
        TxnOutcome::Committed { revision: Revision(self.states.len() as u64 - 1) }
    }

    fn events(&self, revision: u64) -> Vec<Event> {
        let (old, new) = (&self.states[revision as usize - 1], &self.states[revision as usize]);
        let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        keys.into_iter()
            .filter(|key| old.get(*key) != new.get(*key))
            .map(|key| Event {
                revision: Revision(revision),
                key: key.clone(),
                value: new.get(key).cloned(),
                previous: old.get(key).cloned(),
            })
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_catalog_agrees_with_a_map_of_every_state(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let mut catalog = Catalog::open(dir.path(), true).unwrap();
        let mut oracle = Oracle { states: vec![BTreeMap::new()], compacted: 0 };
        let mut recorded = 0;
        let name = |key: u8| format!("key/{key}");
        for (index, step) in steps.into_iter().enumerate() {
            let newest = oracle.states.len() as u64 - 1;
            match step {
                Step::Txn(compares, ops) => {
                    let txn = Txn {
                        compares: compares
                            .into_iter()
                            .map(|(key, absent)| match oracle.states.last().unwrap().get(&name(key)) {
                                Some(kv) if !absent => Compare::UnchangedSince { key: name(key), revision: kv.mod_revision },
                                _ => Compare::Absent { key: name(key) },
                            })
                            .collect(),
                        ops: ops
                            .into_iter()
                            .map(|(key, value)| match value {
                                Some(value) => Op::Put { key: name(key), value: vec![value] },
                                None => Op::Delete { key: name(key) },
                            })
                            .collect(),
                        audit: vec![fluvial_model::audit::Entry::default()],
                    };
                    let expected = oracle.apply(&txn);
                    // Recorded if it happened, and only then.
                    recorded += u64::from(matches!(expected, TxnOutcome::Committed { .. }));
                    let (results, events) =
                        catalog.apply(&[entry(index as u64, v1::command::Kind::Txn(txn.into()))]).unwrap();
                    prop_assert_eq!(results, vec![Applied::Txn(expected)]);
                    prop_assert_eq!(trail::head(&catalog.db).unwrap().sequence, recorded);
                    let expected = match oracle.states.len() as u64 - 1 {
                        now if now > newest => oracle.events(now),
                        _ => Vec::new(),
                    };
                    prop_assert_eq!(events.iter().map(|event| Event::clone(event)).collect::<Vec<_>>(), expected);
                }
                Step::Compact(back) => {
                    let upto = newest.saturating_sub(u64::from(back));
                    oracle.compacted = oracle.compacted.max(upto);
                    let (results, _) = catalog.apply(&[entry(index as u64, v1::command::Kind::Compact(upto))]).unwrap();
                    prop_assert_eq!(results, vec![Applied::Compacted { oldest: Revision(oracle.compacted) }]);
                }
                Step::Reopen => {
                    catalog.seal();
                    drop(catalog);
                    catalog = Catalog::open(dir.path(), false).unwrap();
                    prop_assert_eq!(catalog.at.revision, newest);
                }
            }
        }
        for (revision, state) in oracle.states.iter().enumerate() {
            let revision = revision as u64;
            let listed = query::list(&mut catalog.db, "key/", None, None, Some(Revision(revision)));
            if revision < oracle.compacted {
                let refused = matches!(listed, Err(crate::StoreError::Compacted { .. }));
                prop_assert!(refused);
                continue;
            }
            prop_assert_eq!(&listed.unwrap().items, &state.values().cloned().collect::<Vec<_>>());
            let (events, upto) = query::events(&mut catalog.db, Revision(revision)).unwrap();
            let expected: Vec<Event> =
                (revision + 1..oracle.states.len() as u64).flat_map(|later| oracle.events(later)).collect();
            prop_assert_eq!(events.iter().map(|event| Event::clone(event)).collect::<Vec<_>>(), expected);
            prop_assert_eq!(upto.0, oracle.states.len() as u64 - 1);
        }
    }
}
