//! Whole copies to and from Azure Blob Storage, and what is said when it does not go well.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use fluvial_model::manifest::{File, RelativePath};
use fluvial_transfer::place::TargetState;
use fluvial_transfer::{Access, Location, TransferError, copy, probe, remove_tree, scan};
use support::azurite::{ACCOUNT, Azurite, KEY};
use support::proxy::{Act, Proxy};
use support::sas::account_token;
use support::*;
use tokio_util::sync::CancellationToken;

/// The tree of every kind of entry, but for the names that this store does not take.
fn make_source(bench: &Bench) {
    make_tree_without(bench, &[" leading and trailing ", "back\\slash"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_goes_to_azure_to_azure_and_back_without_a_difference() {
    let azurite = Azurite::start();
    let bench = Bench::new();
    make_source(&bench);
    there_across_and_back(&bench, azurite.location("first"), azurite.location("deep/second")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_to_azure_dropped_thirty_times_is_finished_and_equal() {
    let azurite = Azurite::start();
    let bench = Bench::new();
    make_source(&bench);
    dropped_and_back(&bench, azurite.location("x"), 700).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_of_several_pages_are_whole() {
    let azurite = Azurite::start();
    let bench = Bench::new();
    // A page has at most 5,000 blobs.
    for number in 0..5_100u64 {
        write(&bench.path("source"), &format!("d/{number}"), &number.to_le_bytes(), 0o644, number);
    }
    let mut job = job("1", local(&bench.path("source")), azurite.location("x"));
    job.streams = 16;
    let there = copy(job, bench.context()).await.unwrap();
    let scanned = scan(&at_root(azurite.location("x")), &bench.blocks(), CancellationToken::new()).await.unwrap();
    assert_eq!((scanned.totals, there.totals.files), (there.totals, 5_100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_cannot_be_ended_is_no_shorter_tree() {
    let azurite = Azurite::start();
    let bench = Bench::new();
    make_source(&bench);
    copy(job("1", local(&bench.path("source")), azurite.location("x")), bench.context()).await.unwrap();
    for (answer, passing) in [("503 Server Busy", true), ("403 Forbidden", false)] {
        let proxy = Proxy::start(azurite.port, move |asked| {
            if asked.target.contains("comp=list&") { Act::Answer(answer.to_owned()) } else { Act::Pass }
        });
        let there = azurite.location_at(proxy.port, "x");
        let scanned = scan(&at_root(there.clone()), &bench.blocks(), CancellationToken::new()).await;
        assert_eq!(scanned.unwrap_err().is_transient(), passing);
        assert!(!matches!(there.open().unwrap().target_state().await, Ok(TargetState::Absent)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_request_is_tried_again() {
    let azurite = Azurite::start();
    let bench = Bench::new();
    make_source(&bench);
    let seen = Mutex::new(BTreeSet::new());
    // The first request of each kind about each blob fails, and every other one for a page of a listing.
    let pages = AtomicUsize::new(0);
    let proxy = Proxy::start(azurite.port, move |asked| {
        let fails = if asked.target.contains("comp=list&") {
            pages.fetch_add(1, Ordering::SeqCst).is_multiple_of(2)
        } else {
            let what = asked.target.split("&blockid").next().unwrap();
            seen.lock().unwrap().insert(format!("{} {what}", asked.method))
        };
        if fails { Act::Answer("503 Server Busy".to_owned()) } else { Act::Pass }
    });
    let there = azurite.location_at(proxy.port, "x");
    copy(job("1", local(&bench.path("source")), there.clone()), bench.context()).await.unwrap();
    copy(job("2", there.clone(), local(&bench.path("back"))), bench.context()).await.unwrap();
    assert_same(&bench.path("source"), &bench.path("back"));
    remove_tree(&there).await.unwrap();
    let asked = proxy.asked.lock().unwrap();
    for kind in ["comp=blocklist", "comp=block&", "comp=list&"] {
        assert!(asked.iter().any(|line| line.contains(kind)), "{kind} was never asked: {asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_on_its_way_is_not_taken_for_a_copy() {
    for damaged in ["comp=block&", "plain.txt", "bin/link"] {
        let azurite = Azurite::start();
        let bench = Bench::new();
        make_source(&bench);
        let once = Mutex::new(true);
        let proxy = Proxy::start(azurite.port, move |asked| {
            let hit = asked.method == "PUT" && asked.target.contains(damaged);
            if hit && std::mem::take(&mut *once.lock().unwrap()) { Act::DamageRequest } else { Act::Pass }
        });
        let job = job("1", local(&bench.path("source")), azurite.location_at(proxy.port, "x"));
        let refused = copy(job.clone(), bench.context()).await;
        assert!(matches!(refused, Err(TransferError::DigestMismatch { .. })), "{damaged}: {refused:?}");
        copy(job, bench.context()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_says_what_is_wrong_and_no_secret() {
    let azurite = Azurite::start();
    probe(&azurite.location("x"), Access::Write).await.unwrap();
    probe(&azurite.location(""), Access::Read).await.unwrap();
    let absent = probe(&azurite.location("x"), Access::Read).await;
    assert!(matches!(absent, Err(TransferError::NotFound { .. })), "{absent:?}");
    let mut elsewhere = azurite.location("x");
    elsewhere.uri = "azblob://no-such-container/x".into();
    let elsewhere = probe(&elsewhere, Access::Read).await;
    assert!(
        matches!(&elsewhere, Err(TransferError::NoSuchBucket { bucket, .. }) if bucket == "no-such-container"),
        "{elsewhere:?}"
    );

    // A token instead of the key, and wrong ones.
    let token = account_token(ACCOUNT, KEY);
    let with = |key: &str, value: &str| {
        let mut location = azurite.unsigned(azurite.port, "x");
        location.secrets.insert(key.into(), value.to_owned().into());
        location
    };
    probe(&with("sas_token", &token), Access::Write).await.unwrap();
    probe(&with("sas_token", &format!("?{token}")), Access::Write).await.unwrap();
    let wrong_key = "d3Jvbmctc2VjcmV0";
    let wrong_token = token.replace("sp=rwdlac", "sp=r");
    for (key, value) in [("account_key", wrong_key), ("sas_token", &wrong_token)] {
        let refused = probe(&with(key, value), Access::Read).await;
        assert!(matches!(refused, Err(TransferError::CredentialsRefused { .. })), "{refused:?}");
        let shown = format!("{refused:?}");
        assert!(!shown.contains(value) && !shown.contains("sig="), "{shown}");
    }
    let unsigned = probe(&azurite.unsigned(azurite.port, "x"), Access::Read).await;
    assert!(unsigned.is_err(), "{unsigned:?}");
    let mut nowhere = with("sas_token", &token);
    nowhere.options.insert("endpoint".into(), format!("http://127.0.0.1:1/{ACCOUNT}"));
    let nowhere = probe(&nowhere, Access::Read).await;
    assert!(matches!(nowhere, Err(TransferError::Unreachable { .. })), "{nowhere:?}");
    assert!(!format!("{nowhere:?}").contains("sig="), "{nowhere:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_would_become_others_are_refused() {
    let azurite = Azurite::start();
    let place = azurite.location("x").open().unwrap();
    let file = File { size: 1, mtime_ns: 1, mode: 0o644, digest: None };
    for name in ["d/ends in space ", "back\\slash", "dot./a", "d/dot."] {
        let path = RelativePath::parse(name).unwrap();
        let refused = place.put(&path, &file, Bytes::from_static(b"1")).await;
        assert!(matches!(refused, Err(TransferError::BadEntry { .. })), "{name:?} {refused:?}");
    }
    // A part that does not follow the one before it is no part of the file.
    let path = RelativePath::parse("large").unwrap();
    let upload = place.begin(&path, &file).await.unwrap();
    let refused = place.put_part(&path, &upload, 1, 1 << 20, Bytes::from_static(b"1")).await;
    assert!(matches!(refused, Err(TransferError::BadJob { .. })), "{refused:?}");
}

#[test]
fn options_that_cannot_be_used_are_named() {
    let cases: [(&[&str], &str); 5] = [
        (&[], "option `account_name` or `endpoint` is needed"),
        (
            &["account_name", "region"],
            "option `region` is not known; known are endpoint, account_name, account_key, sas_token",
        ),
        (&["account_name", "account_key", "sas_token"], "`account_key` and `sas_token` are both given: give one"),
        (&["endpoint", "account_key"], "`account_key` is given without `account_name`"),
        (&["account_name", "account_key"], "invalid account_key: cannot decode as base64"),
    ];
    for (keys, message) in cases {
        let mut location = Location::new("azblob://container/x");
        for key in keys {
            location.options.insert((*key).into(), "secret!".into());
        }
        let error = location.open().err().unwrap().to_string();
        assert!(error.contains(message), "{error}");
        assert!(!error.contains("secret!"), "{error}");
    }
}
