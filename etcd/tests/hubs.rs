//! Several hubs over one etcd: who is up, who leads, and what they see when etcd or one of them fails.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{LIMIT, config, led_by, open, put, settings, value};
use fluvial_etcd::{EtcdStore, OpenError, Settings};
use fluvial_model::store::{Event, Op, Revision, Txn};
use fluvial_raft::{Consistency, ListRequest, Store as _, StoreError};
use fluvial_tests::etcd::Etcd;
use fluvial_tests::wait::wait_for_async;

#[tokio::test(flavor = "multi_thread")]
async fn one_of_the_hubs_leads_and_another_when_it_goes() {
    let (etcd, dir) = (Etcd::start(1, false), tempfile::tempdir().unwrap());
    let one = open(&etcd, 1, dir.path()).await;
    let term = led_by(&one, 1).await;
    assert!(one.leadership().borrow().is_self);
    let two = open(&etcd, 2, dir.path()).await;
    led_by(&two, 1).await;
    assert!(!two.leadership().borrow().is_self);
    wait_for_async(LIMIT, "both are up", async || {
        let members: Vec<_> = one.members().iter().map(|member| (member.id, member.leader)).collect();
        if members == [(1, true), (2, false)] { Ok(()) } else { Err(members) }
    })
    .await;
    // One that was removed does not come back, whatever its process does.
    one.remove_member(3).await.unwrap();
    let three = open(&etcd, 3, dir.path()).await;
    assert_eq!(value(&three, "any").await, None);
    three.shutdown().await;
    assert!(one.members().iter().all(|member| member.id != 3));
    // It hands over and stays.
    assert!(one.hand_over(Duration::from_secs(20)).await);
    let (term, before) = (led_by(&one, 2).await, term);
    assert!(term > before && !one.leadership().borrow().is_self);
    led_by(&two, 2).await;
    assert!(two.hand_over(Duration::from_secs(20)).await);
    let term = led_by(&two, 1).await.max(term);
    // Told to stop, it hands over at once; the term grows.
    let stopped = std::time::Instant::now();
    one.shutdown().await;
    assert!(led_by(&two, 2).await > term);
    assert!(stopped.elapsed() < Duration::from_secs(5), "the lease was given back: {:?}", stopped.elapsed());
    assert!(two.leadership().borrow().is_self);
    // It comes back as another hub's follower, with what it missed.
    put(&two, "missed", "1").await;
    let one = open(&etcd, 1, dir.path()).await;
    assert_eq!(value(&one, "missed").await.as_deref(), Some("1"));
    assert!(!one.leadership().borrow().is_self);
    one.shutdown().await;
    two.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_cannot_reach_etcd_stops_leading_before_its_lease_ends() {
    let (mut etcd, dir) = (Etcd::start(1, false), tempfile::tempdir().unwrap());
    let store = open(&etcd, 1, dir.path()).await;
    led_by(&store, 1).await;
    etcd.kill(0);
    let killed = std::time::Instant::now();
    let mut leadership = store.leadership();
    tokio::time::timeout(LIMIT, leadership.wait_for(|leadership| !leadership.is_self)).await.unwrap().unwrap();
    // 5 s without the second before.
    assert!(killed.elapsed() < Duration::from_secs(6), "{:?}", killed.elapsed());
    // What is here is still shown to who does not mind its age; no more than that.
    assert_eq!(store.get("a", Consistency::Stale).await.unwrap(), None);
    etcd.run(0);
    led_by(&store, 1).await;
    wait_for_async(LIMIT, "it leads again", async || {
        if store.leadership().borrow().is_self { Ok(()) } else { Err(*store.leadership().borrow()) }
    })
    .await;
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_is_unknown_and_is_not_made_twice() {
    let (mut etcd, dir) = (Etcd::start(1, false), tempfile::tempdir().unwrap());
    let store = Arc::new(
        EtcdStore::open({
            let mut config = config(settings(&etcd), 1, dir.path());
            config.request = Duration::from_secs(5);
            config
        })
        .await
        .unwrap(),
    );
    led_by(&store, 1).await;
    put(&store, "before", "1").await;
    // etcd has the request and cannot answer: stopped, then killed.
    let signal = |name: &str| {
        let id = etcd.process(0).to_string();
        assert!(std::process::Command::new("kill").args([name, &id]).status().unwrap().success());
    };
    signal("-STOP");
    let writing = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.txn(Txn::create("lost", b"1".to_vec())).await }
    });
    // Longer than it takes to send, shorter than the deadline; the outcome is the same if it was not sent by then.
    tokio::time::sleep(Duration::from_millis(500)).await;
    etcd.kill(0);
    let outcome = writing.await.unwrap();
    assert!(matches!(outcome, Err(StoreError::UnknownOutcome { .. })), "{outcome:?}");
    // Nothing can be sent to an etcd that is not there: that is certain.
    let refused = store.txn(Txn::create("unsent", b"1".to_vec())).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    etcd.run(0);
    etcd.wait();
    assert_eq!(value(&store, "before").await.as_deref(), Some("1"));
    assert_eq!(value(&store, "unsent").await, None);
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_miss_nothing_while_members_of_etcd_are_killed() {
    let (mut etcd, dir) = (Etcd::start(3, true), tempfile::tempdir().unwrap());
    etcd.wait();
    let one = open(&etcd, 1, dir.path()).await;
    let two = open(&etcd, 2, dir.path()).await;
    // The second hub's history begins when it has read what there is.
    assert_eq!(value(&two, "/start").await, None);
    let start = put(&one, "/start", "").await;
    let mut watch = two.watch("/w/", start).await.unwrap();
    let watching = tokio::spawn(async move {
        let mut events: Vec<Arc<Event>> = Vec::new();
        while events.last().is_none_or(|event| event.key != "/w/end") {
            events.extend(tokio::time::timeout(LIMIT, watch.next()).await.expect("events in time").unwrap());
        }
        events
    });
    let mut written: Vec<Revision> = Vec::new();
    let mut unknown = 0;
    for number in 0..60 {
        // Each in turn, and back before the next: two of three always run.
        match number {
            10 | 30 | 50 => etcd.kill(number / 20),
            20 | 40 => {
                etcd.run(number / 20 - 1);
                etcd.wait();
            }
            _ => {}
        }
        let put = |key: &str| Txn { ops: vec![Op::Put { key: key.into(), value: vec![] }], ..Txn::default() };
        match one.txn(put(&format!("/w/{number}"))).await {
            Ok(fluvial_model::store::TxnOutcome::Committed { revision }) => written.push(revision),
            Err(StoreError::UnknownOutcome { .. }) => unknown += 1,
            other => panic!("{other:?}"),
        }
    }
    written.push(put(&one, "/w/end", "").await);
    let events = watching.await.unwrap();
    let seen: Vec<Revision> = events.iter().map(|event| event.revision).collect();
    assert!(seen.is_sorted_by(|a, b| a < b), "in order, each once");
    assert!(written.iter().all(|revision| seen.contains(revision)), "none is missing");
    assert!(seen.len() <= written.len() + unknown);
    one.shutdown().await;
    two.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_missed_more_than_etcd_remembers_reads_all_anew() {
    let (etcd, dir) = (Etcd::start(1, false), tempfile::tempdir().unwrap());
    let one = open(&etcd, 1, dir.path()).await;
    for number in 0..30 {
        put(&one, &format!("/a/{number}"), "old").await;
    }
    let two = open(&etcd, 2, dir.path()).await;
    let before = put(&one, "/a/0", "seen").await;
    assert_eq!(value(&two, "/a/0").await.as_deref(), Some("seen"));
    two.shutdown().await;
    one.txn(Txn { ops: vec![Op::Delete { key: "/a/1".into() }], ..Txn::default() }).await.unwrap();
    let newest = put(&one, "/a/2", "new").await;
    etcd.ctl(&["compact", &newest.0.to_string()]).unwrap();
    let two = open(&etcd, 2, dir.path()).await;
    assert_eq!((value(&two, "/a/1").await, value(&two, "/a/2").await.as_deref()), (None, Some("new")));
    let listing = two.list(ListRequest { prefix: "/a/".into(), ..ListRequest::default() }).await.unwrap();
    assert_eq!(listing.items.len(), 29);
    // What it does not have it does not make up.
    let watch = two.watch("/a/", before).await.err();
    assert!(matches!(watch, Some(StoreError::Compacted { oldest }) if oldest >= newest), "{watch:?}");
    one.shutdown().await;
    two.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_went_back_is_not_followed() {
    let (mut etcd, dir) = (Etcd::start(1, false), tempfile::tempdir().unwrap());
    let store = open(&etcd, 1, dir.path()).await;
    for number in 0..10 {
        put(&store, "/a", &number.to_string()).await;
    }
    assert_eq!(value(&store, "/a").await.as_deref(), Some("9"));
    etcd.kill(0);
    etcd.wipe(0);
    etcd.run(0);
    etcd.wait();
    etcd.ctl(&["put", "/fluvial/meta/fleet", "fleet-a"]).unwrap();
    etcd.ctl(&["put", "/fluvial/data/a", "of before"]).unwrap();
    let refused = store.get("/a", Consistency::Linearizable).await;
    assert!(matches!(&refused, Err(error) if error.to_string().contains("went back")), "{refused:?}");
    let stale = store.get("/a", Consistency::Stale).await.unwrap().unwrap();
    assert_eq!(stale.value, b"9");
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fleets_share_an_etcd_and_nobody_takes_another_ones_place() {
    let (etcd, dir) = (Etcd::start(1, false), tempfile::tempdir().unwrap());
    let lost = EtcdStore::open(config(settings(&etcd), 2, dir.path())).await.err();
    assert!(matches!(lost, Some(OpenError::Missing { .. })), "{lost:?}");
    let one = open(&etcd, 1, dir.path()).await;
    put(&one, "/a", "one").await;
    let mut other = config(settings(&etcd), 1, &dir.path().join("other"));
    other.fleet = "fleet-b".into();
    let foreign = EtcdStore::open(other.clone()).await.err();
    assert!(matches!(foreign, Some(OpenError::Foreign { .. })), "{foreign:?}");
    other.settings = Settings { prefix: "/fluvial2/".into(), ..settings(&etcd) };
    let other = EtcdStore::open(other).await.unwrap();
    assert_eq!(value(&other, "/a").await, None);
    assert!(other.leadership().borrow().leader.is_none_or(|leader| leader == 1));
    led_by(&other, 1).await;
    one.shutdown().await;
    other.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_etcd_is_refused_and_not_called_unknown() {
    let (etcd, dir) = (Etcd::start(1, false), tempfile::tempdir().unwrap());
    let store = open(&etcd, 1, dir.path()).await;
    let large = Txn::create("/large", vec![0; 1800 << 10]);
    let refused = store.txn(large).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { what: "the transaction", .. })), "{refused:?}");
    let ops = (0..200).map(|number| Op::Put { key: format!("/many/{number}"), value: vec![] }).collect();
    let refused = store.txn(Txn { ops, ..Txn::default() }).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { limit: 128, .. })), "{refused:?}");
    // Pages of large values are read in several answers.
    for number in 0..20 {
        store.txn(Txn::create(format!("/large/{number}"), vec![7; 1 << 20])).await.unwrap();
    }
    let second = open(&etcd, 2, dir.path()).await;
    let listing = second.list(ListRequest { prefix: "/large/".into(), ..ListRequest::default() }).await.unwrap();
    assert_eq!(listing.items.iter().map(|kv| kv.value.len()).sum::<usize>(), 20 << 20);
    store.shutdown().await;
    second.shutdown().await;
}
