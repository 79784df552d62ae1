//! Ends of every kind in mid-copy, and going on afterwards.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use fluvial_transfer::{CopyReport, Journal, Location, TransferError, copy, discard};
use support::*;

/// A tree of large and small files: 24 MiB in parts of 1 MiB (5 MiB on S3) and 200 files.
fn make_source(bench: &Bench) -> Location {
    let root = bench.path("source");
    make_tree(&root);
    write(&root, "large/third", &bytes(3, 9 << 20), 0o644, 7);
    for number in 0..160 {
        write(&root, &format!("more/{number}"), &bytes(number, 3000), 0o644, number);
    }
    local(&root)
}

/// The program that makes one copy; whole runs of the tests have built it.
fn example() -> PathBuf {
    let target = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    let example = target.join("examples/copy");
    if !example.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built =
            Command::new(cargo).args(["build", "-p", "fluvial-transfer", "--example", "copy"]).status().unwrap();
        assert!(built.success());
    }
    example
}

/// Files and links of the source.
fn files(bench: &Bench) -> u64 {
    describe(&bench.path("source")).values().filter(|text| *text != "directory").count() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_copy_dropped_thirty_times_is_finished_and_equal() {
    let bench = Bench::new();
    let source = make_source(&bench);
    let job = job("1", source, local(&bench.path("target")));
    let (report, dropped) = interrupted(&bench, &job, 40).await;
    assert!(dropped >= 3, "only {dropped} runs were dropped");
    assert_same(&bench.path("source"), &bench.path("target"));
    assert!(!bench.path("target.partial").exists());
    assert_eq!(report.totals.files, files(&bench));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_to_s3_dropped_thirty_times_is_finished_and_equal() {
    let minio = Minio::start();
    let bench = Bench::new();
    let source = make_source(&bench);
    let job = job("1", source, minio.location("x"));
    let (report, dropped) = interrupted(&bench, &job, 80).await;
    assert!(dropped >= 3, "only {dropped} runs were dropped");
    assert_eq!(report.totals.files, files(&bench));
    copy(support::job("2", minio.location("x"), local(&bench.path("back"))), bench.context()).await.unwrap();
    assert_same(&bench.path("source"), &bench.path("back"));
}

#[tokio::test(flavor = "multi_thread")]
async fn going_on_copies_only_what_was_not_done() {
    for to_s3 in [false, true] {
        let minio = to_s3.then(Minio::start);
        let bench = Bench::new();
        let source = make_source(&bench);
        let target = minio.as_ref().map_or_else(|| local(&bench.path("target")), |minio| minio.location("x"));
        let job = job("1", source, target);
        let part = if to_s3 { 8 << 20 } else { 1 << 20 };
        let ctx = bench.context();
        let mut progress = ctx.progress.subscribe();
        let run = tokio::spawn(copy(job.clone(), ctx.clone()));
        progress.wait_for(|progress| progress.bytes_done > 12 << 20).await.unwrap();
        run.abort();
        let _ = run.await;
        let done = progress.borrow().bytes_done;
        let report = copy(job.clone(), bench.context()).await.unwrap();
        // A part for each stream, and eight small files.
        let in_flight = job.streams as u64 * (part + 8 * 4096);
        assert!(
            report.bytes_copied <= report.totals.bytes - done + in_flight,
            "s3 {to_s3}: {} copied again after {done} of {}",
            report.bytes_copied,
            report.totals.bytes
        );
        assert_eq!(report.bytes_copied + report.bytes_reused, report.totals.bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_five_times_is_continued_by_the_next() {
    let minio = Minio::start();
    let bench = Bench::new();
    make_source(&bench);
    let example = example();
    for (name, target) in [("s3", minio.location("x").uri), ("local", local(&bench.path("target")).uri)] {
        let start = || {
            Command::new(&example)
                .args([name, &local(&bench.path("source")).uri, &target])
                .arg(bench.path("state"))
                .arg((1 << 20).to_string())
                .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", minio.port))
                .env("AWS_ACCESS_KEY_ID", "tester")
                .env("AWS_SECRET_ACCESS_KEY", "tester-secret")
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        for moment in [30, 80, 140, 210, 290] {
            let mut child = start();
            tokio::time::sleep(Duration::from_millis(moment)).await;
            child.kill().unwrap();
            child.wait().unwrap();
            // Never half visible.
            if name == "local" && bench.path("target").exists() {
                assert_same(&bench.path("source"), &bench.path("target"));
            }
        }
        let output = start().wait_with_output().unwrap();
        assert!(output.status.success());
        let report: CopyReport = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report.totals.files, files(&bench));
    }
    assert_same(&bench.path("source"), &bench.path("target"));
    copy(job("back", minio.location("x"), local(&bench.path("back"))), bench.context()).await.unwrap();
    assert_same(&bench.path("source"), &bench.path("back"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_copy_stops_soon_and_is_discarded_without_a_trace() {
    let minio = Minio::start();
    for to_s3 in [false, true] {
        let bench = Bench::new();
        let source = make_source(&bench);
        let target = if to_s3 { minio.location("x") } else { local(&bench.path("target")) };
        let ctx = bench.context();
        let mut progress = ctx.progress.subscribe();
        let run = tokio::spawn(copy(job("1", source.clone(), target.clone()), ctx.clone()));
        progress.wait_for(|progress| progress.bytes_done > 6 << 20).await.unwrap();
        ctx.cancel.cancel();
        let stopped = tokio::time::timeout(Duration::from_secs(2), run).await.unwrap().unwrap();
        assert!(matches!(stopped, Err(TransferError::Cancelled { .. })), "{stopped:?}");
        let journal: Journal = bench.journal();
        discard("1", &target, &journal).await.unwrap();
        discard("1", &target, &journal).await.unwrap();
        assert!(!bench.path("target").exists() && !bench.path("target.partial").exists());
        assert_eq!(fs::read_dir(minio.data.path().join(BUCKET)).unwrap().count(), 0);
        // Another job may go there now.
        copy(job("2", source, target), bench.context()).await.unwrap();
        if to_s3 {
            fluvial_transfer::remove_tree(&minio.location("x")).await.unwrap();
        }
    }
}
