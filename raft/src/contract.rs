//! The contract suite: what every store must do, run against any of them.
//!
//! [`run`] wants an empty store. Each check uses keys of its own, so that they do not disturb each other; they run in
//! order because the last one forgets history.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use fluvial_model::store::{Compare, Event, KeyValue, Op, Revision, Txn, TxnOutcome};

use crate::store::{Consistency, ListRequest, MAX_TXN_BYTES, Store, StoreError, Watch};

/// No step of the suite waits longer.
const LIMIT: Duration = Duration::from_secs(20);

fn put(key: &str, value: &str) -> Txn {
    Txn { compares: vec![], ops: vec![Op::Put { key: key.into(), value: value.into() }], ..Txn::default() }
}

async fn commit(store: &dyn Store, txn: Txn) -> Revision {
    match store.txn(txn).await.unwrap() {
        TxnOutcome::Committed { revision } => revision,
        conflict @ TxnOutcome::Conflict { .. } => panic!("unexpected {conflict:?}"),
    }
}

async fn get(store: &dyn Store, key: &str) -> Option<KeyValue> {
    store.get(key, Consistency::Linearizable).await.unwrap()
}

fn kv(key: &str, value: &str, created: Revision, modified: Revision) -> KeyValue {
    KeyValue { key: key.into(), value: value.into(), create_revision: created, mod_revision: modified }
}

/// Pulls until at least `count` events came.
async fn pull(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while events.len() < count {
        let batch: Vec<Arc<Event>> = tokio::time::timeout(LIMIT, watch.next()).await.expect("events in time").unwrap();
        assert!(!batch.is_empty(), "a watch never delivers nothing");
        events.extend(batch.iter().map(|event| Event::clone(event)));
    }
    events
}

async fn keys(store: &dyn Store, request: ListRequest) -> Vec<String> {
    store.list(request).await.unwrap().items.into_iter().map(|item| item.key).collect()
}

/// Whose changes a store's revisions count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// This store's alone: each change is one more, and where nothing changes the revision stays.
    Own,
    /// Others' too, that write beside it: revisions grow, and gaps say nothing.
    Shared,
}

/// Runs every check on a store that counts for itself. Panics at the first that fails.
pub async fn run(store: &dyn Store) {
    run_with(store, Numbering::Own).await;
}

/// Runs every check. Panics at the first that fails.
pub async fn run_with(store: &dyn Store, numbering: Numbering) {
    a_transaction_writes_all_or_nothing(store).await;
    a_conflict_tells_what_is_there(store).await;
    revisions_grow_with_each_change(store, numbering).await;
    create_and_modify_revisions_follow_the_key(store).await;
    malformed_and_oversized_requests_are_refused(store, numbering).await;
    a_listing_is_cut_into_pages_at_one_revision(store).await;
    an_older_revision_can_be_listed(store).await;
    prefixes_do_not_leak(store).await;
    a_watch_is_ordered_whole_and_resumable(store).await;
    the_future_is_refused(store).await;
    stale_reads_catch_up(store).await;
    what_is_compacted_is_refused(store).await;
}

async fn a_transaction_writes_all_or_nothing(store: &dyn Store) {
    let both = Txn {
        compares: vec![Compare::Absent { key: "atomic/a".into() }],
        ops: vec![
            Op::Put { key: "atomic/a".into(), value: b"1".to_vec() },
            Op::Put { key: "atomic/b".into(), value: b"2".to_vec() },
        ],
        ..Txn::default()
    };
    let revision = commit(store, both.clone()).await;
    assert_eq!(get(store, "atomic/a").await, Some(kv("atomic/a", "1", revision, revision)));
    assert_eq!(get(store, "atomic/b").await, Some(kv("atomic/b", "2", revision, revision)));
    let mut again = both;
    again.ops.push(Op::Put { key: "atomic/c".into(), value: b"3".to_vec() });
    assert!(matches!(store.txn(again).await.unwrap(), TxnOutcome::Conflict { .. }));
    assert_eq!(get(store, "atomic/c").await, None);
}

async fn a_conflict_tells_what_is_there(store: &dyn Store) {
    let first = commit(store, Txn::create("conflict/a", b"1".to_vec())).await;
    let current = kv("conflict/a", "1", first, first);
    assert_eq!(
        store.txn(Txn::create("conflict/a", b"2".to_vec())).await.unwrap(),
        TxnOutcome::Conflict { key: "conflict/a".into(), current: Some(current.clone()) }
    );
    let second = commit(store, Txn::replace("conflict/a", first, b"2".to_vec())).await;
    assert_eq!(
        store.txn(Txn::replace("conflict/a", first, b"3".to_vec())).await.unwrap(),
        TxnOutcome::Conflict { key: "conflict/a".into(), current: Some(kv("conflict/a", "2", first, second)) }
    );
    assert_eq!(
        store.txn(Txn::delete("conflict/none", first)).await.unwrap(),
        TxnOutcome::Conflict { key: "conflict/none".into(), current: None }
    );
    // The first compare that fails is the one that is told.
    let two = Txn {
        compares: vec![
            Compare::UnchangedSince { key: "conflict/none".into(), revision: second },
            Compare::Absent { key: "conflict/a".into() },
        ],
        ..Txn::default()
    };
    assert_eq!(store.txn(two).await.unwrap(), TxnOutcome::Conflict { key: "conflict/none".into(), current: None });
}

async fn revisions_grow_with_each_change(store: &dyn Store, numbering: Numbering) {
    let first = commit(store, put("grow/a", "1")).await;
    let second = commit(store, put("grow/a", "2")).await;
    // Nothing changes: the revision stays.
    let empty = commit(store, Txn::default()).await;
    let absent = Txn { compares: vec![], ops: vec![Op::Delete { key: "grow/none".into() }], ..Txn::default() };
    let absent = commit(store, absent).await;
    let third = commit(store, put("grow/b", "1")).await;
    match numbering {
        Numbering::Own => {
            assert_eq!([second, empty, absent, third], [first.next(), first.next(), first.next(), first.next().next()])
        }
        Numbering::Shared => {
            assert!(first < second && second <= empty && empty <= absent && absent < third);
        }
    }
}

async fn create_and_modify_revisions_follow_the_key(store: &dyn Store) {
    let created = commit(store, put("life/a", "1")).await;
    let modified = commit(store, put("life/a", "2")).await;
    assert_eq!(get(store, "life/a").await, Some(kv("life/a", "2", created, modified)));
    commit(store, Txn::delete("life/a", modified)).await;
    assert_eq!(get(store, "life/a").await, None);
    let reborn = commit(store, put("life/a", "")).await;
    assert_eq!(get(store, "life/a").await, Some(kv("life/a", "", reborn, reborn)));
}

async fn malformed_and_oversized_requests_are_refused(store: &dyn Store, numbering: Numbering) {
    let before = commit(store, Txn::default()).await;
    let mut twice = put("bad/a", "1");
    twice.ops.push(Op::Delete { key: "bad/a".into() });
    assert!(matches!(store.txn(twice).await, Err(StoreError::Malformed { .. })));
    assert!(matches!(store.txn(put("", "1")).await, Err(StoreError::Malformed { .. })));
    assert!(matches!(store.txn(put(&"k".repeat(5000), "1")).await, Err(StoreError::TooLarge { .. })));
    let huge = Txn {
        compares: vec![],
        ops: vec![Op::Put { key: "bad/b".into(), value: vec![0; MAX_TXN_BYTES + 1] }],
        ..Txn::default()
    };
    assert!(matches!(store.txn(huge).await, Err(StoreError::TooLarge { limit: MAX_TXN_BYTES, .. })));
    if numbering == Numbering::Own {
        assert_eq!(commit(store, Txn::default()).await, before);
    }
    assert_eq!((get(store, "bad/a").await, get(store, "bad/b").await), (None, None));
}

async fn a_listing_is_cut_into_pages_at_one_revision(store: &dyn Store) {
    for number in 0..7 {
        commit(store, put(&format!("page/{number}"), "old")).await;
    }
    let first =
        store.list(ListRequest { prefix: "page/".into(), limit: Some(3), ..ListRequest::default() }).await.unwrap();
    let names = |items: &[KeyValue]| items.iter().map(|item| item.key.clone()).collect::<Vec<_>>();
    assert_eq!(names(&first.items), ["page/0", "page/1", "page/2"]);
    assert_eq!((first.more, first.remaining), (true, 4));
    // What happens between the pages is not in them.
    commit(store, put("page/3", "new")).await;
    commit(store, Txn { compares: vec![], ops: vec![Op::Delete { key: "page/4".into() }], ..Txn::default() }).await;
    commit(store, put("page/45", "new")).await;
    let second = store
        .list(ListRequest {
            prefix: "page/".into(),
            after: Some("page/2".into()),
            limit: Some(3),
            revision: Some(first.revision),
            ..ListRequest::default()
        })
        .await
        .unwrap();
    assert_eq!(names(&second.items), ["page/3", "page/4", "page/5"]);
    assert!(second.items.iter().all(|item| item.value == b"old"));
    assert_eq!((second.more, second.remaining, second.revision), (true, 1, first.revision));
    let third = store
        .list(ListRequest {
            prefix: "page/".into(),
            after: Some("page/5".into()),
            limit: Some(3),
            revision: Some(first.revision),
            ..ListRequest::default()
        })
        .await
        .unwrap();
    assert_eq!(names(&third.items), ["page/6"]);
    assert_eq!((third.more, third.remaining), (false, 0));
}

async fn an_older_revision_can_be_listed(store: &dyn Store) {
    let created = commit(store, put("older/a", "1")).await;
    let changed = commit(store, put("older/a", "2")).await;
    let deleted = commit(store, Txn::delete("older/a", changed)).await;
    let reborn = commit(store, put("older/a", "3")).await;
    let at = |revision| ListRequest { prefix: "older/".into(), revision: Some(revision), ..ListRequest::default() };
    assert_eq!(store.list(at(created)).await.unwrap().items, [kv("older/a", "1", created, created)]);
    assert_eq!(store.list(at(changed)).await.unwrap().items, [kv("older/a", "2", created, changed)]);
    assert_eq!(store.list(at(deleted)).await.unwrap().items, []);
    assert_eq!(store.list(at(reborn)).await.unwrap().items, [kv("older/a", "3", reborn, reborn)]);
}

async fn prefixes_do_not_leak(store: &dyn Store) {
    for key in ["leak/a", "leak/a/1", "leak/a0", "leak/b", "leak/ü"] {
        commit(store, put(key, "1")).await;
    }
    let under = |prefix: &str| ListRequest { prefix: prefix.into(), ..ListRequest::default() };
    assert_eq!(keys(store, under("leak/a/")).await, ["leak/a/1"]);
    assert_eq!(keys(store, under("leak/a")).await, ["leak/a", "leak/a/1", "leak/a0"]);
    assert_eq!(keys(store, under("leak/ü")).await, ["leak/ü"]);
    let after = store.revision();
    let mut watch = store.watch("leak/a/", after).await.unwrap();
    commit(store, put("leak/a0", "2")).await;
    commit(store, put("leak/b", "2")).await;
    commit(store, put("leak/a/1", "2")).await;
    let events = pull(&mut watch, 1).await;
    assert_eq!(events.iter().map(|event| event.key.as_str()).collect::<Vec<_>>(), ["leak/a/1"]);
}

async fn a_watch_is_ordered_whole_and_resumable(store: &dyn Store) {
    let start = commit(store, Txn::default()).await;
    let mut early = store.watch("watch/", start).await.unwrap();
    let mut expected = Vec::new();
    for number in 0..5 {
        let (a, b) = (format!("watch/a{number}"), format!("watch/b{number}"));
        let revision = commit(
            store,
            Txn {
                compares: vec![],
                ops: vec![
                    Op::Put { key: b.clone(), value: vec![number] },
                    Op::Put { key: a.clone(), value: vec![number] },
                ],
                ..Txn::default()
            },
        )
        .await;
        for key in [a, b] {
            let value =
                KeyValue { key: key.clone(), value: vec![number], create_revision: revision, mod_revision: revision };
            expected.push(Event { revision, key, value: Some(value), previous: None });
        }
    }
    let first = expected[0].clone();
    let deleted = commit(store, Txn::delete(first.key.clone(), first.revision)).await;
    expected.push(Event { revision: deleted, key: first.key, value: None, previous: first.value });
    assert_eq!(pull(&mut early, expected.len()).await, expected);
    assert!(early.revision() >= deleted);
    // From the past, and from the middle.
    let mut late = store.watch("watch/", start).await.unwrap();
    assert_eq!(pull(&mut late, expected.len()).await, expected);
    let middle = expected[3].revision;
    let mut resumed = store.watch("watch/", middle).await.unwrap();
    assert_eq!(pull(&mut resumed, expected.len() - 4).await, expected[4..]);
}

async fn the_future_is_refused(store: &dyn Store) {
    let future = Revision(commit(store, Txn::default()).await.0 + 1000);
    assert!(matches!(store.watch("", future).await, Err(StoreError::FutureRevision { .. })));
    let request = ListRequest { revision: Some(future), ..ListRequest::default() };
    assert!(matches!(store.list(request).await, Err(StoreError::FutureRevision { .. })));
    assert!(matches!(store.compact(future).await, Err(StoreError::FutureRevision { .. })));
}

async fn stale_reads_catch_up(store: &dyn Store) {
    let revision = commit(store, put("stale/a", "1")).await;
    let caught_up = async {
        while store.get("stale/a", Consistency::Stale).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, caught_up).await.expect("a stale read catches up");
    let request = ListRequest { prefix: "stale/".into(), consistency: Consistency::Stale, ..ListRequest::default() };
    let listing = store.list(request).await.unwrap();
    assert_eq!(listing.items, [kv("stale/a", "1", revision, revision)]);
    assert!(listing.revision >= revision);
}

async fn what_is_compacted_is_refused(store: &dyn Store) {
    let first = commit(store, put("compact/a", "1")).await;
    let second = commit(store, put("compact/a", "2")).await;
    let third = commit(store, put("compact/b", "1")).await;
    store.compact(second).await.unwrap();
    // Doing it again, or less of it, is fine.
    store.compact(first).await.unwrap();
    let at = |revision| ListRequest { prefix: "compact/".into(), revision: Some(revision), ..ListRequest::default() };
    // Reads at a revision see the compaction that was acknowledged before them.
    assert!(matches!(store.list(at(first)).await, Err(StoreError::Compacted { oldest }) if oldest == second));
    assert_eq!(store.list(at(second)).await.unwrap().items, [kv("compact/a", "2", first, second)]);
    assert!(matches!(store.watch("compact/", first).await, Err(StoreError::Compacted { oldest }) if oldest == second));
    let mut watch = store.watch("compact/", second).await.unwrap();
    assert_eq!(pull(&mut watch, 1).await[0].revision, third);
    let all = ListRequest { prefix: "compact/".into(), ..ListRequest::default() };
    assert_eq!(keys(store, all).await, ["compact/a", "compact/b"]);
}
