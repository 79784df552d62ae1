//! Whole copies between real places.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use fluvial_model::manifest::RelativePath;
use fluvial_transfer::{TransferError, copy, discard, read_range};
use support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_goes_to_s3_to_s3_and_back_without_a_difference() {
    let minio = Minio::start();
    let bench = Bench::new();
    make_tree(&bench.path("source"));
    there_across_and_back(&bench, minio.location("first"), minio.location("deep/second")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_without_entries_is_copied_too() {
    let minio = Minio::start();
    let bench = Bench::new();
    fs::create_dir(bench.path("source")).unwrap();
    let there = copy(job("1", local(&bench.path("source")), minio.location("x")), bench.context()).await.unwrap();
    let back = copy(job("2", minio.location("x"), local(&bench.path("back"))), bench.context()).await.unwrap();
    assert_eq!(there.root, back.root);
    assert_same(&bench.path("source"), &bench.path("back"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_files_in_one_folder_are_copied() {
    let minio = Minio::start();
    let bench = Bench::new();
    for number in 0..10_000u64 {
        write(&bench.path("source"), &format!("d/{number}"), &number.to_le_bytes(), 0o644, number);
    }
    let there = copy(job("1", local(&bench.path("source")), minio.location("x")), bench.context()).await.unwrap();
    assert_eq!((there.totals.files, there.totals.bytes), (10_000, 80_000));
    copy(job("2", minio.location("x"), local(&bench.path("back"))), bench.context()).await.unwrap();
    assert_same(&bench.path("source"), &bench.path("back"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_file_stays_sparse() {
    let bench = Bench::new();
    fs::create_dir(bench.path("source")).unwrap();
    let file = fs::File::create(bench.path("source").join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 3 << 30).unwrap();
    file.set_len(5 << 30).unwrap();
    let mut job = job("1", local(&bench.path("source")), local(&bench.path("target")));
    job.part_size = 8 << 20;
    let report = copy(job, bench.context()).await.unwrap();
    assert_eq!(report.totals.bytes, 5 << 30);
    let copied = fs::metadata(bench.path("target").join("sparse")).unwrap();
    assert_eq!(copied.len(), 5 << 30);
    assert!(copied.blocks() * 512 < 1 << 20, "{} bytes on disk", copied.blocks() * 512);
    let path = RelativePath::parse("sparse").unwrap();
    let range = read_range(&at_root(local(&bench.path("target"))), &path, 3 << 30, 6).await.unwrap();
    assert_eq!(range, &b"middle"[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_mounts_become_one_tree() {
    let bench = Bench::new();
    write(&bench.path("a"), "x", b"1", 0o644, 1);
    write(&bench.path("b"), "y", b"2", 0o644, 1);
    let mut job = job("1", local(&bench.path("a")), local(&bench.path("target")));
    let mount = RelativePath::parse("sub/b").unwrap();
    job.sources.push(fluvial_transfer::SourceMount { path: mount.clone(), location: local(&bench.path("b")) });
    copy(job.clone(), bench.context()).await.unwrap();
    let paths: Vec<_> = describe(&bench.path("target")).into_keys().map(|path| path.display().to_string()).collect();
    assert_eq!(paths, ["sub", "sub/b", "sub/b/y", "x"]);
    job.id = "2".into();
    job.target = local(&bench.path("other"));
    job.sources[1].path = RelativePath::parse("x").unwrap();
    assert!(matches!(copy(job, bench.context()).await, Err(TransferError::MountConflict { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_exists_is_refused_and_stays() {
    let minio = Minio::start();
    let bench = Bench::new();
    make_tree(&bench.path("source"));
    write(&bench.path("target"), "mine", b"1", 0o644, 1);
    let refused = copy(job("1", local(&bench.path("source")), local(&bench.path("target"))), bench.context()).await;
    assert!(matches!(refused, Err(TransferError::TargetExists { .. })), "{refused:?}");
    discard("1", &local(&bench.path("target")), &bench.journal()).await.unwrap();
    assert_eq!(fs::read(bench.path("target").join("mine")).unwrap(), b"1");
    copy(job("2", local(&bench.path("target")), minio.location("x")), bench.context()).await.unwrap();
    let refused = copy(job("3", local(&bench.path("source")), minio.location("x")), bench.context()).await;
    assert!(matches!(refused, Err(TransferError::TargetExists { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_is_not_what_its_manifest_says_is_refused() {
    let bench = Bench::new();
    make_tree(&bench.path("source"));
    let root =
        copy(job("1", local(&bench.path("source")), local(&bench.path("home"))), bench.context()).await.unwrap().root;
    // Same size, same time, other bytes: only the digest tells.
    let path = bench.path("home").join("plain.txt");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, b"jello").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    let mut from_home = job("2", local(&bench.path("home")), local(&bench.path("target")));
    from_home.source_root = Some(root);
    let refused = copy(from_home, bench.context()).await;
    let Err(TransferError::SourceDiffers { paths }) = refused else { panic!("{refused:?}") };
    assert_eq!(paths, [RelativePath::parse("plain.txt").unwrap()]);
    assert!(!bench.path("target").exists());
}
