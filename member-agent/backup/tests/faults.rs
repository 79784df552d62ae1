//! Wrong passwords, damaged files, locks, sources that change, disks that are full: clear errors, and nothing is lost.

mod support;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use fluvial_backup::{BackupError, Repository, Retention, save};
use fluvial_transfer::TransferError;
use support::{Bench, PASSWORD, files_below, make_tree, noise};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_wrong_password_is_said_to_be_wrong() {
    let bench = Bench::new().await;
    let mut job = bench.job(&bench.path("source"));
    job.repository.password = "wrong".into();
    let error = save(job, &bench.blocks, Arc::default(), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, BackupError::WrongPassword { .. }), "{error}");
    assert!(!error.to_string().contains(PASSWORD) && !error.is_transient());
    assert!(!bench.create().await, "it is there already");
}

#[tokio::test]
async fn a_damaged_pack_is_found_by_a_check_that_reads() {
    let bench = Bench::new().await;
    make_tree(&bench.path("source"));
    bench.save(&bench.path("source")).await.unwrap();
    let sound = bench.with_repository(|repository| repository.check(true)).await.unwrap();
    assert_eq!(sound.problems, [""; 0]);
    let packs = files_below(&bench.path("repository/data"));
    let pack = packs.iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    let mut bytes = fs::read(pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(pack, bytes).unwrap();
    let structure = bench.with_repository(|repository| repository.check(false)).await.unwrap();
    assert_eq!(structure.problems, [""; 0], "only reading finds it");
    let data = bench.with_repository(|repository| repository.check(true)).await.unwrap();
    assert!(!data.problems.is_empty());
    let restored = bench.restore("restored", "latest", &[]).await;
    assert!(restored.is_err() && !bench.path("restored").exists(), "damage never becomes a file");

    fs::remove_file(pack).unwrap();
    let missing = bench.with_repository(|repository| repository.check(false)).await.unwrap();
    assert!(!missing.problems.is_empty());
}

#[tokio::test]
async fn locks_of_restic_are_kept_and_abandoned_ones_removed() {
    let bench = Bench::new().await;
    fs::write(bench.path("source/f"), noise(1, 1000)).unwrap();
    let locks = || files_below(&bench.path("repository/locks"));
    // A live restic, halted while it holds its lock.
    let mut restic = std::process::Command::new("restic")
        .args(["--no-cache", "--repo", bench.path("repository").to_str().unwrap(), "backup", "--stdin"])
        .env("RESTIC_PASSWORD", PASSWORD)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while locks().is_empty() {
        assert!(std::time::Instant::now() < deadline, "restic takes no lock");
        std::thread::sleep(Duration::from_millis(20));
    }
    let retention = Retention { last: Some(1), ..Retention::default() };
    let asked = retention.clone();
    let error = bench.with_repository(move |repository| repository.prune(&asked)).await.unwrap_err();
    assert!(matches!(&error, BackupError::Locked { .. }) && error.is_transient(), "{error}");
    assert!(error.to_string().contains(&restic.id().to_string()), "{error}");
    bench.save(&bench.path("source")).await.unwrap();
    assert_eq!(locks().len(), 1, "who adds shares it, and takes its own lock away");
    // Killed, it leaves its lock behind.
    restic.kill().unwrap();
    restic.wait().unwrap();
    bench.with_repository(move |repository| repository.prune(&retention)).await.unwrap();
    assert!(locks().is_empty());
}

#[tokio::test]
async fn a_lock_of_ours_is_kept_by_restic() {
    let bench = Bench::new().await;
    fs::write(bench.path("source/f"), noise(1, 1000)).unwrap();
    let source = bench.path("source").display().to_string();
    let (target, handle) = (bench.target(), tokio::runtime::Handle::current());
    let hold = move |alone: bool, work: Box<dyn FnOnce() + Send>| {
        Repository::open(&target, &handle, CancellationToken::new())?.locked(alone, work)
    };
    let theirs = {
        let (repository, source) = (bench.path("repository"), source.clone());
        move || support::restic(&repository, PASSWORD, &["backup", &source])
    };
    let (answer, answered) = std::sync::mpsc::channel();
    let asked = theirs.clone();
    let work = Box::new(move || answer.send(asked()).unwrap());
    tokio::task::spawn_blocking(move || hold(true, work)).await.unwrap().unwrap();
    let refused = answered.recv().unwrap().unwrap_err();
    assert!(refused.contains("locked exclusively"), "{refused}");
    theirs().unwrap();
}

#[tokio::test]
async fn a_source_that_cannot_be_read_leaves_no_snapshot() {
    let bench = Bench::new().await;
    let source = bench.path("source");
    fs::write(source.join("f"), noise(1, 1000)).unwrap();
    let special = std::process::Command::new("mkfifo").arg(source.join("fifo")).status().unwrap();
    assert!(special.success());
    let error = bench.save(&source).await.unwrap_err();
    assert!(matches!(&error, BackupError::Transfer(TransferError::BadEntry { name, .. }) if name == "fifo"), "{error}");
    assert_eq!(bench.with_repository(|repository| repository.snapshots()).await.unwrap().1, 0);
}

#[tokio::test]
async fn a_cancelled_backup_leaves_no_snapshot_and_no_lock_and_the_next_one_is_whole() {
    let bench = Bench::new().await;
    let source = bench.path("source");
    for number in 0..40 {
        fs::write(source.join(format!("f{number}")), noise(number, 4 << 20)).unwrap();
    }
    let (cancel, meter) = (CancellationToken::new(), Arc::new(fluvial_backup::Meter::default()));
    let running = tokio::spawn({
        let (job, blocks, meter, cancel) = (bench.job(&source), bench.blocks.clone(), meter.clone(), cancel.clone());
        async move { save(job, &blocks, meter, cancel).await }
    });
    while meter.now()[0] < 5 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    cancel.cancel();
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(error, BackupError::Transfer(TransferError::Cancelled { .. })), "{error}");
    assert!(files_below(&bench.path("repository/locks")).is_empty());
    assert_eq!(bench.with_repository(|repository| repository.snapshots()).await.unwrap().1, 0);
    let saved = bench.save(&source).await.unwrap();
    assert_eq!(saved.totals.files, 40);
    bench.restic(&["check", "--read-data"]).unwrap();
}
