//! Copies that a store makes by itself.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::sync::{Arc, Mutex};

use fluvial_transfer::{CopyJob, CopyReport, Verify, copy};
use support::proxy::{Act, Asked, Proxy};
use support::*;

/// What was asked of the store while a home went to another prefix of it.
struct Seen {
    report: CopyReport,
    gets: usize,
    copies: usize,
}

/// Makes a home on a store, then copies it to another prefix behind `rule`, and compares what is there.
async fn copied(
    minio: &Minio,
    rooted: bool,
    verify: Verify,
    rule: impl Fn(&Asked) -> Act + Send + Sync + 'static,
) -> Seen {
    let bench = Bench::new();
    make_tree(&bench.path("source"));
    let home = copy(job("1", local(&bench.path("source")), minio.location("home")), bench.context()).await.unwrap();
    let copies = Arc::new(Mutex::new(0));
    let count = copies.clone();
    let proxy = Proxy::start(minio.port, move |asked| {
        *count.lock().unwrap() += usize::from(asked.has("x-amz-copy-source"));
        rule(asked)
    });
    let (from, to) = (minio.location_at(proxy.port, "home"), minio.location_at(proxy.port, "other"));
    let inside = CopyJob { source_root: rooted.then_some(home.root), verify, ..job("2", from, to) };
    let report = copy(inside, bench.context()).await.unwrap();
    assert_eq!((report.root, report.totals), (home.root, home.totals));
    let gets = proxy.count("GET");
    copy(job("3", minio.location("other"), local(&bench.path("back"))), bench.context()).await.unwrap();
    assert_same(&bench.path("source"), &bench.path("back"));
    for prefix in ["home", "other"] {
        fluvial_transfer::remove_tree(&minio.location(prefix)).await.unwrap();
    }
    let copies = *copies.lock().unwrap();
    Seen { report, gets, copies }
}

/// Files of the tree, at S3's parts of 8 MiB, and its links, which are read.
const FILES: usize = 54;
const LINKS: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn a_home_goes_to_another_prefix_of_its_store_without_its_bytes() {
    let minio = Minio::start();
    let seen = copied(&minio, true, Verify::Checksum, |_| Act::Pass).await;
    assert_eq!((seen.gets, seen.copies), (LINKS, FILES));
    assert_eq!(seen.report.bytes_server_side, seen.report.totals.bytes);
    // Asked for, all of it is read back.
    let seen = copied(&minio, true, Verify::ReadBack, |_| Act::Pass).await;
    assert!(seen.gets > FILES, "{}", seen.gets);
    assert_eq!(seen.copies, FILES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_copy_or_does_not_know_its_checksums_is_no_hindrance() {
    let minio = Minio::start();
    let seen = copied(&minio, true, Verify::Checksum, |asked| {
        if asked.has("x-amz-copy-source") { Act::Answer("501 Not Implemented".into()) } else { Act::Pass }
    })
    .await;
    assert_eq!(seen.report.bytes_server_side, 0);
    assert!(seen.copies < FILES, "{} were tried", seen.copies);
    let seen = copied(&minio, true, Verify::Checksum, |asked| {
        let quiet = asked.method == "HEAD";
        if !quiet {
            return Act::Pass;
        }
        Act::EditAnswer(Box::new(|line| {
            (!line.to_ascii_lowercase().starts_with("x-amz-checksum")).then(|| line.to_owned())
        }))
    })
    .await;
    assert_eq!(seen.report.bytes_server_side, seen.report.totals.bytes);
    assert!(seen.gets > FILES, "every copy is read back: {}", seen.gets);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_digest_yet_is_read() {
    let minio = Minio::start();
    let seen = copied(&minio, false, Verify::Checksum, |_| Act::Pass).await;
    assert_eq!((seen.copies, seen.report.bytes_server_side), (0, 0));
}
