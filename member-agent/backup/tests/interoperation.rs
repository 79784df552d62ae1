//! What is written here is read by Debian's `restic`, and what it writes is read here.

mod support;

use std::fs;

use fluvial_backup::{BackupError, Retention};
use fluvial_transfer::{Location, TransferError};
use support::{Bench, describe, files_below, make_tree, noise, restic};

#[tokio::test]
async fn restic_lists_checks_and_restores_what_was_backed_up() {
    let bench = Bench::new().await;
    make_tree(&bench.path("source"));
    let saved = bench.save(&bench.path("source")).await.unwrap();
    assert_eq!(saved.snapshot.files, 13, "files and links");
    assert!(saved.snapshot.bytes > 41 << 20 && saved.bytes_read == saved.snapshot.bytes);

    let listed = bench.restic(&["snapshots", "--json"]).unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["id"], saved.snapshot.id.as_str());
    assert_eq!(listed[0]["paths"], serde_json::json!(["/team/bert"]));
    let tags = listed[0]["tags"].as_array().unwrap();
    assert!(tags.contains(&"fluvial".into()) && tags.contains(&"dataset:team/bert".into()), "{tags:?}");
    bench.restic(&["check", "--read-data"]).unwrap();

    let target = bench.path("by-restic");
    bench.restic(&["restore", "latest", "--target", target.to_str().unwrap()]).unwrap();
    assert_eq!(describe(&target.join("team/bert")), describe(&bench.path("source")));
    let entry = fs::read(target.join("team/bert.fluvial/dataset.json")).unwrap();
    let entry: serde_json::Value = serde_json::from_slice(&entry).unwrap();
    assert_eq!(entry["root"], saved.root.to_string());
    assert_eq!(entry["catalog"]["kind"], "Dataset");
    assert_eq!(fs::metadata(target.join("team/bert.fluvial/digests")).unwrap().len(), 10 * 32);
}

#[tokio::test]
async fn what_was_backed_up_is_restored_whole_or_in_part() {
    let bench = Bench::new().await;
    make_tree(&bench.path("source"));
    let saved = bench.save(&bench.path("source")).await.unwrap();
    let restored = bench.restore("whole", "latest", &[]).await.unwrap();
    assert_eq!(restored.copy.root, saved.root, "the same manifest, digests included");
    assert_eq!(describe(&bench.path("whole")), describe(&bench.path("source")));
    let entry = restored.entry.unwrap();
    assert_eq!((entry.root, entry.dataset.name.as_str()), (saved.root.to_string(), "bert"));

    let again = bench.restore("whole", "latest", &[]).await.unwrap();
    assert_eq!(again.copy, restored.copy, "a finished restore answers again");

    bench.restore("part", &saved.snapshot.id[..8], &["deep/a/b", "Grüße/日本語/ütf"]).await.unwrap();
    let names: Vec<_> = files_below(&bench.path("part"));
    let expected = [bench.path("part/Grüße/日本語/ütf"), bench.path("part/deep/a/b/c/d/large.bin")];
    assert_eq!(names, expected);
    assert_eq!(fs::read(&names[1]).unwrap(), noise(2, 9 << 20));

    let missing = bench.restore("missing", "latest", &["deep/z"]).await.unwrap_err();
    assert!(matches!(&missing, BackupError::NoPath { path, .. } if path == "deep/z"), "{missing}");
    let unknown = bench.restore("unknown", "0123456789", &[]).await.unwrap_err();
    assert!(matches!(unknown, BackupError::NoSnapshot { .. }), "{unknown}");
    assert!(!bench.path("missing").exists() && !bench.path("unknown").exists());
}

#[tokio::test]
async fn what_restic_backed_up_is_restored() {
    let bench = Bench::new().await;
    make_tree(&bench.path("source"));
    let theirs = bench.path("theirs");
    restic(&theirs, "other", &["init"]).unwrap();
    restic(&theirs, "other", &["backup", bench.path("source").to_str().unwrap()]).unwrap();
    let mut job = bench.restore_job("restored", "latest", &[]);
    job.repository.location = Location::new(format!("file://{}", theirs.display()));
    job.repository.password = "other".into();
    let context = |bench: &Bench| {
        fluvial_transfer::CopyContext::new(
            bench.journal.clone(),
            bench.blocks.clone(),
            tokio::sync::watch::Sender::new(fluvial_transfer::Progress::default()),
            tokio_util::sync::CancellationToken::new(),
        )
    };
    let restored = fluvial_backup::restore(job.clone(), context(&bench)).await.unwrap();
    assert_eq!(describe(&bench.path("restored")), describe(&bench.path("source")));
    assert!(restored.entry.is_none() && restored.snapshot.dataset.is_none());

    // A snapshot of one file, and one of several paths.
    restic(&theirs, "other", &["backup", bench.path("source/plain.txt").to_str().unwrap()]).unwrap();
    job.id = "single".to_owned();
    job.target = Location::new(format!("file://{}", bench.path("single").display()));
    fluvial_backup::restore(job.clone(), context(&bench)).await.unwrap();
    assert_eq!(fs::read(bench.path("single/plain.txt")).unwrap(), b"hello");

    // We add to what they made, and they read it.
    let mut save = bench.job(&bench.path("source"));
    save.repository = job.repository.clone();
    let meter = std::sync::Arc::default();
    fluvial_backup::save(save, &bench.blocks, meter, tokio_util::sync::CancellationToken::new()).await.unwrap();
    restic(&theirs, "other", &["check", "--read-data"]).unwrap();
}

#[tokio::test]
async fn a_second_backup_reads_and_adds_only_what_changed() {
    let bench = Bench::new().await;
    let source = bench.path("source");
    make_tree(&source);
    bench.save(&source).await.unwrap();
    let first = bench.repository_bytes();

    let unchanged = bench.save(&source).await.unwrap();
    assert_eq!(unchanged.bytes_read, 0, "nothing is read again");
    assert!(bench.repository_bytes() - first < 16_384, "{}", bench.repository_bytes() - first);

    // The same bytes under another name, and some bytes in the middle of a large file.
    fs::copy(source.join("deep/a/b/c/d/large.bin"), source.join("copy.bin")).unwrap();
    let mut large = noise(2, 9 << 20);
    large[5 << 20..(5 << 20) + 10].copy_from_slice(b"0123456789");
    let before = bench.repository_bytes();
    fs::write(source.join("edited.bin"), &large).unwrap();
    let changed = bench.save(&source).await.unwrap();
    assert_eq!(changed.bytes_read, 2 * (9 << 20));
    let added = bench.repository_bytes() - before;
    assert!((10..9 << 20).contains(&added), "{added} bytes were added: only the blob around the edit is new");
    bench.restic(&["check", "--read-data"]).unwrap();
    let restored = bench.restore("restored", "latest", &[]).await.unwrap();
    assert_eq!(restored.copy.root, changed.root);
    assert_eq!(describe(&bench.path("restored")), describe(&source));
}

#[tokio::test]
async fn other_bytes_of_the_same_size_and_time_are_told_by_the_manifest() {
    let bench = Bench::new().await;
    let home = |text: &str, name: &str| {
        let file = bench.path(name).join("f");
        fs::create_dir_all(bench.path(name)).unwrap();
        fs::write(&file, text).unwrap();
        fs::File::open(&file).unwrap().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1)).unwrap();
    };
    home("one", "a");
    home("two", "b");
    let one = bench.save(&bench.path("a")).await.unwrap();
    // What a home's manifest says: made by a backup of it into another repository's blocks.
    let elsewhere = Bench::new().await;
    let two = elsewhere.save(&bench.path("b")).await.unwrap();
    for block in files_below(elsewhere.blocks.directory()) {
        bench.blocks.put(&fs::read(block).unwrap()).unwrap();
    }
    let mut job = bench.job(&bench.path("b"));
    job.source_root = Some(two.root);
    let saved = fluvial_backup::save(job.clone(), &bench.blocks, Default::default(), Default::default()).await.unwrap();
    assert_eq!((saved.root, saved.bytes_read), (two.root, 3));
    assert_ne!(one.root, two.root);
    bench.restore("restored", "latest", &[]).await.unwrap();
    assert_eq!(fs::read(bench.path("restored/f")).unwrap(), b"two");

    // A home that is not what its manifest says is refused, and no snapshot comes of it.
    home("tow", "b");
    job.dataset.name = "other".to_owned();
    let refused = fluvial_backup::save(job, &bench.blocks, Default::default(), Default::default()).await.unwrap_err();
    let differs = matches!(&refused, BackupError::Transfer(TransferError::SourceDiffers { paths }) if paths.len() == 1);
    assert!(differs, "{refused}");
    let snapshots = bench.with_repository(|repository| repository.snapshots()).await.unwrap();
    assert_eq!(snapshots.1, 2);
}

#[tokio::test]
async fn retention_keeps_what_it_says_and_prune_gives_the_room_back() {
    let bench = Bench::new().await;
    let source = bench.path("source");
    for round in 0..4 {
        fs::write(source.join("f"), noise(10 + round, 4 << 20)).unwrap();
        bench.save(&source).await.unwrap();
    }
    bench.restic(&["backup", bench.path("blocks").to_str().unwrap()]).unwrap();
    let full = bench.repository_bytes();
    let retention = Retention { last: Some(2), ..Retention::default() };
    let forgotten = bench.with_repository(move |repository| repository.prune(&retention)).await.unwrap();
    assert_eq!(forgotten, 2);
    let (snapshots, count) = bench.with_repository(|repository| repository.snapshots()).await.unwrap();
    assert_eq!((snapshots.len(), count), (3, 3), "two of ours, and the one that is not ours");
    assert!(full - bench.repository_bytes() > 7 << 20, "{full} bytes became {}", bench.repository_bytes());
    bench.restic(&["check", "--read-data"]).unwrap();
    bench.restore("restored", "latest", &[]).await.unwrap();
    assert_eq!(fs::read(bench.path("restored/f")).unwrap(), noise(13, 4 << 20));
}
