//! Whole copies to and from OSS and GCS, and what is said when it does not go well: against servers that answer as the
//! references of these stores say (`support/recorded.rs`), for there is no other.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use fluvial_model::manifest::{File, RelativePath};
use fluvial_transfer::place::TargetState;
use fluvial_transfer::{Access, Location, TransferError, copy, probe, remove_tree, scan};
use support::gcs::{Gcs, TOKEN};
use support::oss::{KEY_ID, KEY_SECRET, Oss};
use support::proxy::{Act, Asked, Proxy};
use support::*;
use tokio_util::sync::CancellationToken;

enum Cloud {
    Oss(Oss),
    Gcs(Gcs),
}

impl Cloud {
    /// OSS, signed by each version, and GCS.
    fn all() -> [Self; 3] {
        [Self::Oss(Oss::start(None)), Self::Oss(Oss::start(Some("cn-hangzhou"))), Self::Gcs(Gcs::start())]
    }

    fn port(&self) -> u16 {
        match self {
            Self::Oss(oss) => oss.port,
            Self::Gcs(gcs) => gcs.port,
        }
    }

    fn location_at(&self, port: u16, prefix: &str) -> Location {
        match self {
            Self::Oss(oss) => oss.location_at(port, prefix),
            Self::Gcs(gcs) => gcs.location_at(port, prefix),
        }
    }

    fn location(&self, prefix: &str) -> Location {
        self.location_at(self.port(), prefix)
    }

    fn unsigned(&self, prefix: &str) -> Location {
        match self {
            Self::Oss(oss) => oss.unsigned(oss.port, prefix),
            Self::Gcs(gcs) => gcs.unsigned(gcs.port, prefix),
        }
    }

    /// A location with wrong secrets, the secrets, and the store's word for them.
    fn wrong(&self) -> Vec<(Location, &'static str, &'static str)> {
        let with = |secrets: &[(&str, &str)]| {
            let mut location = self.unsigned("x");
            for (key, value) in secrets {
                location.secrets.insert((*key).into(), (*value).into());
            }
            location
        };
        match self {
            Self::Oss(_) => vec![
                (
                    with(&[("access_key_id", KEY_ID), ("access_key_secret", "hidden-one")]),
                    "hidden-one",
                    "SignatureDoesNotMatch",
                ),
                (
                    with(&[("access_key_id", "nobody"), ("access_key_secret", KEY_SECRET)]),
                    KEY_SECRET,
                    "InvalidAccessKeyId",
                ),
            ],
            Self::Gcs(_) => vec![(with(&[("token", "hidden-one")]), "hidden-one", "authError")],
        }
    }
}

/// The tree of every kind of entry, but for the names that these stores do not take.
fn make_source(bench: &Bench) {
    make_tree_without(bench, &[" leading and trailing ", "new\nline"]);
}

/// Whether a page of a listing is asked for.
fn is_listing(asked: &Asked) -> bool {
    asked.method == "GET" && (asked.target.contains("list-type=2") || asked.target.contains("/o?prefix="))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_goes_there_across_and_back_without_a_difference() {
    for cloud in Cloud::all() {
        let bench = Bench::new();
        make_source(&bench);
        there_across_and_back(&bench, cloud.location("first"), cloud.location("deep/second")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_goes_from_one_store_to_the_other_with_its_root() {
    let bench = Bench::new();
    make_source(&bench);
    let [oss, _, gcs] = Cloud::all();
    let first = copy(job("1", local(&bench.path("source")), oss.location("x")), bench.context()).await.unwrap();
    let second = copy(job("2", oss.location("x"), gcs.location("")), bench.context()).await.unwrap();
    copy(job("3", gcs.location(""), local(&bench.path("back"))), bench.context()).await.unwrap();
    assert_eq!((first.root, first.totals), (second.root, second.totals));
    assert_same(&bench.path("source"), &bench.path("back"));
    // A bucket is not emptied.
    let refused = remove_tree(&gcs.location("")).await;
    assert!(matches!(refused, Err(TransferError::BadLocation { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_dropped_thirty_times_is_finished_and_equal() {
    for cloud in Cloud::all() {
        let bench = Bench::new();
        make_source(&bench);
        dropped_and_back(&bench, cloud.location("x"), 300).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_cannot_be_ended_is_no_shorter_tree() {
    // Which signature it is makes no difference here.
    for cloud in Cloud::all().into_iter().skip(1) {
        let bench = Bench::new();
        make_source(&bench);
        copy(job("1", local(&bench.path("source")), cloud.location("x")), bench.context()).await.unwrap();
        for (answer, passing) in [("503 Service Unavailable", true), ("403 Forbidden", false)] {
            let pages = AtomicUsize::new(0);
            // The first page comes.
            let proxy = Proxy::start(cloud.port(), move |asked| {
                let fails = is_listing(asked) && pages.fetch_add(1, Ordering::SeqCst) > 0;
                if fails { Act::Answer(answer.to_owned()) } else { Act::Pass }
            });
            let there = cloud.location_at(proxy.port, "x");
            let scanned = scan(&at_root(there), &bench.blocks(), CancellationToken::new()).await;
            assert_eq!(scanned.unwrap_err().is_transient(), passing);
            let proxy = Proxy::start(cloud.port(), move |_| Act::Answer(answer.to_owned()));
            let there = cloud.location_at(proxy.port, "x").open().unwrap();
            assert!(!matches!(there.target_state().await, Ok(TargetState::Absent)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_request_is_tried_again() {
    // Which signature it is makes no difference here.
    for cloud in Cloud::all().into_iter().skip(1) {
        let bench = Bench::new();
        make_source(&bench);
        let seen = Mutex::new(BTreeSet::new());
        // The first request of each kind about each object fails, and every other one for a page of a listing.
        let pages = AtomicUsize::new(0);
        let proxy = Proxy::start(cloud.port(), move |asked| {
            let fails = if is_listing(asked) {
                pages.fetch_add(1, Ordering::SeqCst).is_multiple_of(2)
            } else {
                seen.lock().unwrap().insert(format!("{} {}", asked.method, asked.target))
            };
            let answer = if asked.target.len().is_multiple_of(2) { "503 Busy" } else { "429 Too Many Requests" };
            if fails { Act::Answer(answer.to_owned()) } else { Act::Pass }
        });
        let there = cloud.location_at(proxy.port, "x");
        copy(job("1", local(&bench.path("source")), there.clone()), bench.context()).await.unwrap();
        copy(job("2", there.clone(), local(&bench.path("back"))), bench.context()).await.unwrap();
        assert_same(&bench.path("source"), &bench.path("back"));
        remove_tree(&there).await.unwrap();
        let asked = proxy.asked.lock().unwrap();
        for kind in ["?uploads", "partNumber=", "uploadId=", "DELETE "] {
            assert!(asked.iter().any(|line| line.contains(kind)), "{kind} was never asked: {asked:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_without_an_answer_is_not_done_wrong() {
    for cloud in Cloud::all().into_iter().skip(1) {
        let bench = Bench::new();
        make_source(&bench);
        let seen = Mutex::new(BTreeSet::new());
        // The first answer of each kind about each object is lost, but to what is only looked at.
        let proxy = Proxy::start(cloud.port(), move |asked| {
            let looks = ["GET", "HEAD"].contains(&asked.method.as_str());
            let first = seen.lock().unwrap().insert(format!("{} {}", asked.method, asked.target));
            if first && !looks { Act::Lose } else { Act::Pass }
        });
        let there = cloud.location_at(proxy.port, "x");
        copy(job("1", local(&bench.path("source")), there.clone()), bench.context()).await.unwrap();
        copy(job("2", there.clone(), local(&bench.path("back"))), bench.context()).await.unwrap();
        assert_same(&bench.path("source"), &bench.path("back"));
        remove_tree(&there).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_on_its_way_is_not_taken_for_a_copy() {
    for cloud in Cloud::all() {
        // A part, a file and a link.
        for (prefix, damaged, from, to) in [
            ("a", "partNumber=", "", ""),
            ("b", "plain.txt", "hello", "jello"),
            ("c", "link", "../plain.txt", "../plane.txt"),
        ] {
            let bench = Bench::new();
            make_source(&bench);
            let once = Mutex::new(true);
            let proxy = Proxy::start(cloud.port(), move |asked| {
                let hit = ["PUT", "POST"].contains(&asked.method.as_str()) && asked.target.contains(damaged);
                match hit && std::mem::take(&mut *once.lock().unwrap()) {
                    true if from.is_empty() => Act::DamageRequest,
                    true => Act::Swap(from, to),
                    false => Act::Pass,
                }
            });
            let job = job("1", local(&bench.path("source")), cloud.location_at(proxy.port, prefix));
            let refused = copy(job.clone(), bench.context()).await;
            assert!(matches!(refused, Err(TransferError::DigestMismatch { .. })), "{damaged}: {refused:?}");
            copy(job, bench.context()).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_says_what_is_wrong_and_no_secret() {
    for cloud in Cloud::all() {
        probe(&cloud.location("x"), Access::Write).await.unwrap();
        probe(&cloud.location(""), Access::Read).await.unwrap();
        let absent = probe(&cloud.location("x"), Access::Read).await;
        assert!(matches!(absent, Err(TransferError::NotFound { .. })), "{absent:?}");
        let mut elsewhere = cloud.location("x");
        elsewhere.uri = elsewhere.uri.replace("bucket-1", "no-such-bucket");
        let elsewhere = probe(&elsewhere, Access::Read).await;
        let named = matches!(&elsewhere, Err(TransferError::NoSuchBucket { bucket, .. }) if bucket == "no-such-bucket");
        assert!(named, "{elsewhere:?}");
        for (location, secret, word) in cloud.wrong() {
            for access in [Access::Read, Access::Write] {
                let refused = probe(&location, access).await;
                let named = matches!(&refused, Err(TransferError::CredentialsRefused { code, .. }) if code == word);
                assert!(named, "{refused:?}");
                let shown = format!("{refused:?} {}", refused.as_ref().unwrap_err());
                assert!(!shown.contains(secret), "{shown}");
            }
        }
        let unsigned = probe(&cloud.unsigned("x"), Access::Read).await;
        let wanted = TransferError::CredentialsRefused { op: "", place: String::new(), code: String::new() };
        let denied = TransferError::Denied { op: "", place: String::new(), path: String::new() };
        let unsigned = std::mem::discriminant(&unsigned.unwrap_err());
        assert!([wanted, denied].iter().any(|kind| std::mem::discriminant(kind) == unsigned));
        let nowhere = probe(&cloud.location_at(1, "x"), Access::Read).await;
        assert!(matches!(nowhere, Err(TransferError::Unreachable { .. })), "{nowhere:?}");
        let shown = format!("{nowhere:?}");
        assert!(![TOKEN, KEY_SECRET].iter().any(|secret| shown.contains(secret)), "{shown}");
    }
}

/// The exchange for a token is OpenDAL's, with Google itself; a key that cannot sign never gets so far.
#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_service_account_that_cannot_sign_is_refused_and_not_shown() {
    let gcs = Gcs::start();
    let mut location = gcs.unsigned(gcs.port, "x");
    for key in ["hiddenKey", "-----BEGIN PRIVATE KEY-----\\nhiddenKeyAAA\\n-----END PRIVATE KEY-----\\n"] {
        let json = format!(r#"{{"type":"service_account","private_key":"{key}","client_email":"a@example.org"}}"#);
        location.secrets.insert("credential".into(), json.into());
        let refused = probe(&location, Access::Read).await.unwrap_err();
        let shown = format!("{refused:?} {refused}");
        assert!(!shown.contains("hiddenKey"), "{shown}");
        assert_eq!(matches!(refused, TransferError::BadLocation { .. }), key == "hiddenKey", "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_could_not_be_kept_are_refused() {
    for cloud in Cloud::all() {
        let place = cloud.location("").open().unwrap();
        let file = File { size: 1, mtime_ns: 1, mode: 0o644, digest: None };
        let long = [&*"d".repeat(204); 4].join("/") + "/" + &"e".repeat(203);
        for name in ["d/ends in space ", "line\nbreak", "d/bell\u{7}", "\\first", &long] {
            let path = RelativePath::parse(name).unwrap();
            let refused = place.put(&path, &file, Bytes::from_static(b"1")).await;
            assert!(matches!(refused, Err(TransferError::BadEntry { .. })), "{name:?} {refused:?}");
        }
        // The longest one, and an empty directory of that name.
        let path = RelativePath::parse(&long[1..]).unwrap();
        place.put(&path, &file, Bytes::from_static(b"1")).await.unwrap();
        place.remove(&path).await.unwrap();
        place.make_directory(&path, true).await.unwrap();
    }
}

#[test]
fn options_that_cannot_be_used_are_named() {
    let cases: [(&str, &[&str], &str); 11] = [
        ("oss://bucket/x", &[], "option `region` or `endpoint` is needed"),
        (
            "oss://bucket/x",
            &["region", "role_arn"],
            "option `role_arn` is not known; known are endpoint, region, addressing_style, access_key_id, \
             access_key_secret, security_token",
        ),
        ("oss://bucket/x", &["endpoint", "addressing_style"], "option `addressing_style` must be `virtual` or `path`"),
        ("oss://bucket/x", &["endpoint", "access_key_id"], "one is given without the other"),
        ("oss://bucket/x", &["endpoint", "access_key_secret"], "one is given without the other"),
        ("oss://bucket/x", &["endpoint", "security_token"], "`security_token` is given without keys"),
        ("oss://", &["endpoint"], "it must be `oss://bucket/prefix`"),
        (
            "gs://bucket/x",
            &["credential_path"],
            "option `credential_path` is not known; known are endpoint, credential, token",
        ),
        ("gs://bucket/x", &["credential", "token"], "`credential` and `token` are both given: give one"),
        ("gs://bucket/x", &["credential"], "`credential` must be the JSON key of a service account"),
        ("gs:///x", &[], "it must be `gs://bucket/prefix`"),
    ];
    for (uri, keys, message) in cases {
        let mut location = Location::new(uri);
        for key in keys {
            location.options.insert((*key).into(), "secret.example".into());
        }
        let error = location.open().err().unwrap().to_string();
        assert!(error.contains(message), "{error}");
        assert!(!error.contains("secret.example"), "{error}");
    }
}
