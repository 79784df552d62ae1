//! Checksums that uploads carry: a store that compares them is not read back, every other one is.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::sync::atomic::{AtomicUsize, Ordering};

use fluvial_transfer::{CopyReport, TransferError, Verify, copy};
use support::proxy::{Act, Asked, Proxy};
use support::*;

const SUM: &str = "x-amz-checksum-crc64nvme";

/// Copies a tree to a store whose requests and answers are as `rule` has them; then reads it from the store itself.
/// Returns the report and the number of objects that were read back.
async fn copied(
    minio: &Minio,
    verify: Verify,
    rule: impl Fn(&Asked) -> Act + Send + Sync + 'static,
) -> Result<(CopyReport, usize), TransferError> {
    let bench = Bench::new();
    make_tree(&bench.path("source"));
    let proxy = Proxy::start(minio.port, rule);
    let mut there = job("1", local(&bench.path("source")), minio.location_at(proxy.port, "tree"));
    there.verify = verify;
    let report = copy(there, bench.context()).await?;
    let reads = proxy.count("GET");
    assert_eq!(proxy.count("HEAD"), 0);
    copy(job("2", minio.location("tree"), local(&bench.path("back"))), bench.context()).await.unwrap();
    assert_same(&bench.path("source"), &bench.path("back"));
    Ok((report, reads))
}

/// Files of the tree, and parts of those in parts, at 5 MiB, S3's smallest.
const FILES: usize = 54;
const PARTS: usize = FILES - 1 + 2;
/// Links of the tree: objects that hold their targets.
const LINKS: usize = 2;

fn leave_out(wanted: &'static str) -> Act {
    Act::EditAnswer(Box::new(move |line| (!line.to_ascii_lowercase().starts_with(wanted)).then(|| line.to_owned())))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_compares_checksums_is_not_read_back_unless_that_is_asked_for() {
    let minio = Minio::start();
    let (first, reads) = copied(&minio, Verify::Checksum, |_| Act::Pass).await.unwrap();
    assert_eq!(reads, 0);
    fluvial_transfer::remove_tree(&minio.location("tree")).await.unwrap();
    let (second, reads) = copied(&minio, Verify::ReadBack, |_| Act::Pass).await.unwrap();
    assert_eq!(reads, PARTS + LINKS);
    assert_eq!((first.root, first.totals), (second.root, second.totals));
    assert_eq!(usize::try_from(first.totals.files).unwrap(), FILES + LINKS);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_store_does_not_confirm_is_read_back() {
    let minio = Minio::start();
    // The header is absent from every third answer: each object is judged by its own.
    let count = AtomicUsize::new(0);
    let (_, reads) = copied(&minio, Verify::Checksum, move |asked| {
        let third = asked.method == "PUT" && asked.has(SUM) && count.fetch_add(1, Ordering::Relaxed).is_multiple_of(3);
        if third { leave_out(SUM) } else { Act::Pass }
    })
    .await
    .unwrap();
    assert!((PARTS / 4..PARTS).contains(&reads), "{reads} reads");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_gives_checksums_back_unread_is_found_out() {
    let minio = Minio::start();
    let (_, reads) = copied(&minio, Verify::Checksum, |asked| match asked.value(SUM) {
        // As such a store would take it.
        Some(sum) if asked.target.contains(".fluvial-probe-") => Act::Answer(format!("200 OK\r\n{SUM}: {sum}")),
        _ => Act::Pass,
    })
    .await
    .unwrap();
    assert_eq!(reads, PARTS + LINKS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_no_checksums_is_written_without_and_read_back() {
    let minio = Minio::start();
    for status in ["501 Not Implemented", "400 Bad Request"] {
        let (_, reads) = copied(&minio, Verify::Checksum, move |asked| {
            let summed = asked.has(SUM) || asked.has("x-amz-checksum-algorithm");
            if summed { Act::Answer(status.to_owned()) } else { Act::Pass }
        })
        .await
        .unwrap();
        assert_eq!(reads, PARTS + LINKS, "{status}");
        fluvial_transfer::remove_tree(&minio.location("tree")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_damaged_on_the_way_are_refused_and_sent_again() {
    let minio = Minio::start();
    let damaged = std::sync::Arc::new(AtomicUsize::new(0));
    let count = damaged.clone();
    let (_, reads) = copied(&minio, Verify::Checksum, move |asked| {
        let body = asked.method == "PUT" && asked.value("content-length").is_some_and(|length| length != "0");
        // Every fifth, but no object twice in a row: with what is sent again, that is a number without a common factor.
        let hit = body && !asked.target.contains("probe") && count.fetch_add(1, Ordering::Relaxed).is_multiple_of(5);
        if hit { Act::DamageRequest } else { Act::Pass }
    })
    .await
    .unwrap();
    assert!(damaged.load(Ordering::Relaxed) > PARTS, "nothing was sent again");
    assert_eq!(reads, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_checksum_in_the_answer_is_a_mismatch() {
    let minio = Minio::start();
    let refused = copied(&minio, Verify::Checksum, |asked| {
        if asked.method == "PUT" && asked.target.contains("plain.txt") {
            Act::EditAnswer(Box::new(|line| {
                let sum = line.to_ascii_lowercase().starts_with(SUM);
                Some(if sum { format!("{SUM}: AAAAAAAAAAE=") } else { line.to_owned() })
            }))
        } else {
            Act::Pass
        }
    })
    .await;
    let Err(TransferError::DigestMismatch { path, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(path, "plain.txt");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_damaged_on_the_way_is_no_other_link() {
    let minio = Minio::start();
    // The store refuses it, and it is sent again.
    let count = AtomicUsize::new(0);
    copied(&minio, Verify::Checksum, move |asked| {
        let first =
            asked.method == "PUT" && asked.target.contains("/link") && count.fetch_add(1, Ordering::Relaxed) == 0;
        if first { Act::DamageRequest } else { Act::Pass }
    })
    .await
    .unwrap();
    fluvial_transfer::remove_tree(&minio.location("tree")).await.unwrap();
    // The store knows of no sums: the link is read back.
    let result = copied(&minio, Verify::Checksum, move |asked| {
        let summed = asked.has(SUM) || asked.has("x-amz-checksum-algorithm");
        if summed {
            Act::Answer("501 Not Implemented".to_owned())
        } else if asked.method == "PUT" && asked.target.contains("/link") {
            Act::DamageRequest
        } else {
            Act::Pass
        }
    })
    .await;
    assert!(matches!(result, Err(TransferError::DigestMismatch { path, .. }) if path == "bin/link"));
}
