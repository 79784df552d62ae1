//! Places that lie, fill up, change and refuse.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{File, RelativePath};
use fluvial_transfer::copy::copy_between;
use fluvial_transfer::listing::OpenMount;
use fluvial_transfer::place::{Detail, Found, PartLimits, Place, Tag, TargetState};
use fluvial_transfer::{Access, Location, TransferError, copy, discard, probe, scan};
use support::*;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

type Hook = Box<dyn Fn(&RelativePath, u64) + Send + Sync>;

/// A place that calls a hook around what another one does.
struct Wrapped {
    inner: Arc<dyn Place>,
    before_read: Hook,
    after_write: Hook,
}

fn wrap(location: &Location, before_read: Hook, after_write: Hook) -> Arc<dyn Place> {
    Arc::new(Wrapped { inner: location.open_target().unwrap(), before_read, after_write })
}

fn nothing() -> Hook {
    Box::new(|_, _| {})
}

type Result<T> = std::result::Result<T, TransferError>;

#[async_trait]
impl Place for Wrapped {
    fn name(&self) -> &str {
        self.inner.name()
    }
    async fn probe(&self, access: Access) -> Result<()> {
        self.inner.probe(access).await
    }
    async fn list(&self, detail: Detail, found: mpsc::Sender<Found>) -> Result<()> {
        self.inner.list(detail, found).await
    }
    async fn stat(&self, path: &RelativePath) -> Result<Found> {
        self.inner.stat(path).await
    }
    async fn read(&self, path: &RelativePath, tag: Option<&Tag>, offset: u64, length: u64) -> Result<Bytes> {
        (self.before_read)(path, offset);
        self.inner.read(path, tag, offset, length).await
    }
    fn verify_detail(&self) -> Detail {
        self.inner.verify_detail()
    }
    fn part_limits(&self) -> PartLimits {
        self.inner.part_limits()
    }
    async fn put(&self, path: &RelativePath, file: &File, data: Bytes) -> Result<Tag> {
        let tag = self.inner.put(path, file, data).await?;
        (self.after_write)(path, 0);
        Ok(tag)
    }
    async fn begin(&self, path: &RelativePath, file: &File) -> Result<String> {
        self.inner.begin(path, file).await
    }
    async fn can_continue(&self, path: &RelativePath, upload: &str) -> Result<bool> {
        self.inner.can_continue(path, upload).await
    }
    async fn put_part(&self, path: &RelativePath, upload: &str, number: u32, at: u64, data: Bytes) -> Result<String> {
        let receipt = self.inner.put_part(path, upload, number, at, data).await?;
        (self.after_write)(path, at);
        Ok(receipt)
    }
    async fn complete(&self, path: &RelativePath, upload: &str, file: &File, receipts: &[String]) -> Result<Tag> {
        self.inner.complete(path, upload, file, receipts).await
    }
    async fn abort(&self, path: &RelativePath, upload: &str) -> Result<()> {
        self.inner.abort(path, upload).await
    }
    async fn make_directory(&self, path: &RelativePath, empty: bool) -> Result<()> {
        self.inner.make_directory(path, empty).await
    }
    async fn make_symlink(&self, path: &RelativePath, target: &str) -> Result<Tag> {
        self.inner.make_symlink(path, target).await
    }
    async fn sync(&self, paths: &[RelativePath]) -> Result<()> {
        self.inner.sync(paths).await
    }
    async fn remove(&self, path: &RelativePath) -> Result<()> {
        self.inner.remove(path).await
    }
    async fn remove_all(&self) -> Result<()> {
        self.inner.remove_all().await
    }
    async fn target_state(&self) -> Result<TargetState> {
        self.inner.target_state().await
    }
    async fn commit(&self) -> Result<()> {
        self.inner.commit().await
    }
}

fn open(location: &Location) -> Vec<OpenMount> {
    vec![OpenMount { path: RelativePath::root(), place: location.open().unwrap() }]
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_the_target_changed_are_noticed_and_copied_again() {
    for damaged in ["plain.txt", "large/odd"] {
        let bench = Bench::new();
        make_tree(&bench.path("source"));
        let (source, target) = (local(&bench.path("source")), local(&bench.path("target")));
        let file = bench.path("target.partial").join(damaged);
        let damage: Hook = Box::new(move |path, _| {
            if path.as_str() == damaged {
                // As a bad disk would: the file keeps its times.
                let out = fs::File::options().write(true).open(&file).unwrap();
                let time = out.metadata().unwrap().modified().unwrap();
                std::os::unix::fs::FileExt::write_all_at(&out, b"X", 2).unwrap();
                out.set_modified(time).unwrap();
            }
        });
        let job = job("1", source.clone(), target.clone());
        let refused = copy_between(job.clone(), bench.context(), open(&source), wrap(&target, nothing(), damage)).await;
        let error = refused.unwrap_err();
        // A small file is read back by its tag, which the change of the file has already made another one.
        let noticed = matches!(&error, TransferError::DigestMismatch { path, .. } | TransferError::Changed { path, .. } if path == damaged);
        assert!(noticed, "{error:?}");
        assert!(!bench.path("target").exists());
        copy(job, bench.context()).await.unwrap();
        assert_same(&bench.path("source"), &bench.path("target"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_puts_into_the_target_is_refused() {
    let bench = Bench::new();
    make_tree(&bench.path("source"));
    let (source, target) = (local(&bench.path("source")), local(&bench.path("target")));
    let partial = bench.path("target.partial");
    let intrude: Hook = Box::new(move |_, _| fs::write(partial.join("extra"), b"1").unwrap());
    let job = job("1", source.clone(), target.clone());
    let refused = copy_between(job.clone(), bench.context(), open(&source), wrap(&target, nothing(), intrude)).await;
    let Err(TransferError::TargetMismatch { extra, missing, different, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!((extra, missing, different), (vec![RelativePath::parse("extra").unwrap()], vec![], vec![]));
    // The next run clears it away.
    copy(job, bench.context()).await.unwrap();
    assert_same(&bench.path("source"), &bench.path("target"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_once_is_copied_in_its_last_version() {
    let bench = Bench::new();
    make_tree(&bench.path("source"));
    let (source, target) = (local(&bench.path("source")), local(&bench.path("target")));
    let root = bench.path("source");
    let times = AtomicUsize::new(0);
    let change: Hook = Box::new(move |path, offset| {
        if path.as_str() == "large/odd" && offset == 4 << 20 && times.fetch_add(1, Ordering::SeqCst) == 0 {
            write(&root, "large/odd", &bytes(9, (13 << 20) + 17), 0o644, 99);
            write(&root, "added", b"new", 0o644, 99);
            fs::remove_file(root.join("order.c")).unwrap();
        }
    });
    let place = Arc::new(Wrapped { inner: source.open().unwrap(), before_read: change, after_write: nothing() });
    let mounts = vec![OpenMount { path: RelativePath::root(), place }];
    let job = job("1", source, target.clone());
    copy_between(job, bench.context(), mounts, target.open_target().unwrap()).await.unwrap();
    assert_same(&bench.path("source"), &bench.path("target"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_never_rests_is_given_up_by_name() {
    let minio = Minio::start();
    let bench = Bench::new();
    make_tree(&bench.path("source"));
    let (source, target) = (local(&bench.path("source")), minio.location("x"));
    let root = bench.path("source");
    let change: Hook = Box::new(move |path, _| {
        if path.as_str() == "plain.txt" {
            let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
            write(&root, "plain.txt", b"hello", 0o644, time as u64);
        }
    });
    let place = Arc::new(Wrapped { inner: source.open().unwrap(), before_read: change, after_write: nothing() });
    let mounts = vec![OpenMount { path: RelativePath::root(), place }];
    let refused =
        copy_between(job("1", source, target.clone()), bench.context(), mounts, target.open_target().unwrap()).await;
    let Err(TransferError::SourceChanged { paths }) = refused else { panic!("{refused:?}") };
    assert_eq!(paths, [RelativePath::parse("plain.txt").unwrap()]);
    discard("1", &target, &bench.journal()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_target_is_named_and_the_copy_goes_on_when_there_is_room() {
    let bench = Bench::new();
    make_tree(&bench.path("source"));
    let disk = bench.path("disk");
    fs::create_dir(&disk).unwrap();
    let mount = |arguments: &[&str]| {
        let done = Command::new("mount").args(arguments).arg("tmpfs").arg(&disk).status().unwrap();
        assert!(done.success(), "this test mounts a tmpfs and needs root");
    };
    mount(&["-t", "tmpfs", "-o", "size=8m"]);
    let job = job("1", local(&bench.path("source")), local(&disk.join("target")));
    let full = copy(job.clone(), bench.context()).await;
    mount(&["-o", "remount,size=64m"]);
    let finished = copy(job, bench.context()).await;
    let same = finished.is_ok().then(|| describe(&disk.join("target")));
    mount(&["-o", "remount,ro"]);
    let read_only = probe(&local(&disk.join("target")), Access::Write).await;
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    assert!(matches!(&full, Err(TransferError::NoSpace { .. })), "{full:?}");
    assert!(finished.unwrap().bytes_reused > 0);
    assert_eq!(same.unwrap(), describe(&bench.path("source")));
    assert!(matches!(read_only, Err(TransferError::ReadOnly { .. })), "{read_only:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::type_complexity)]
async fn what_a_dataset_cannot_hold_is_refused_by_its_escaped_name() {
    let cases: [(&str, &dyn Fn(&std::path::Path), &str); 5] = [
        (
            "latin",
            &|root| fs::write(root.join(std::ffi::OsStr::from_bytes(b"caf\xe9")), b"").unwrap(),
            "\"caf\\\\xe9\" cannot be part of a dataset: its name is not UTF-8",
        ),
        (
            "fifo",
            &|root| nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap(),
            "\"pipe\" cannot be part of a dataset: it is a fifo",
        ),
        (
            "socket",
            &|root| drop(std::os::unix::net::UnixListener::bind(root.join("s")).unwrap()),
            "\"s\" cannot be part of a dataset: it is a socket",
        ),
        (
            "absolute",
            &|root| symlink("/etc/passwd", root.join("l")).unwrap(),
            "\"l\" cannot be part of a dataset: the link points outside the tree, to \"/etc/passwd\"",
        ),
        (
            "up",
            &|root| symlink("../../x", root.join("l")).unwrap(),
            "\"l\" cannot be part of a dataset: the link points outside the tree, to \"../../x\"",
        ),
    ];
    for (name, make, message) in cases {
        let bench = Bench::new();
        fs::create_dir(bench.path(name)).unwrap();
        make(&bench.path(name));
        let refused = scan(&at_root(local(&bench.path(name))), &bench.blocks(), CancellationToken::new()).await;
        let shown = refused.unwrap_err().to_string();
        assert_eq!(shown, format!("list {}: {message}", bench.path(name).display()));
    }
}

async fn put(minio: &Minio, key: &str, body: &'static [u8]) {
    let url = format!("http://127.0.0.1:{}", minio.port).parse().unwrap();
    let bucket = rusty_s3::Bucket::new(url, rusty_s3::UrlStyle::Path, BUCKET, "us-east-1").unwrap();
    let credentials = rusty_s3::Credentials::new("tester", "tester-secret");
    let put = rusty_s3::S3Action::sign(&bucket.put_object(Some(&credentials), key), std::time::Duration::from_secs(60));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let answer = reqwest::Client::new().put(put).body(body).header("content-length", body.len()).send().await.unwrap();
    assert!(answer.status().is_success(), "{key}: {}", answer.status());
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_another_tool_are_plain_files() {
    let minio = Minio::start();
    let bench = Bench::new();
    put(&minio, "x/a b/c", b"1").await;
    put(&minio, "x/d+e%20", b"22").await;
    let report = copy(job("1", minio.location("x"), local(&bench.path("t"))), bench.context()).await.unwrap();
    assert_eq!((report.totals.files, report.totals.dirs, report.totals.bytes), (2, 1, 3));
    assert_eq!(fs::read(bench.path("t").join("a b/c")).unwrap(), b"1");
    assert_eq!(fs::read(bench.path("t").join("d+e%20")).unwrap(), b"22");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_says_what_is_wrong() {
    let minio = Minio::start();
    let bench = Bench::new();
    probe(&minio.location("x"), Access::Write).await.unwrap();
    probe(&minio.location(""), Access::Read).await.unwrap();
    assert_eq!(fs::read_dir(minio.data.path().join(BUCKET)).unwrap().count(), 0);
    let absent = probe(&minio.location("x"), Access::Read).await;
    assert!(matches!(absent, Err(TransferError::NotFound { .. })), "{absent:?}");
    let mut no_bucket = minio.location("x");
    no_bucket.uri = "s3://no-such-bucket/x".into();
    let no_bucket = probe(&no_bucket, Access::Read).await;
    assert!(matches!(no_bucket, Err(TransferError::NoSuchBucket { .. })), "{no_bucket:?}");
    for (key, value) in [("secret_access_key", "wrong-secret"), ("access_key_id", "nobody")] {
        let mut refused = minio.location("x");
        refused.secrets.insert(key.into(), value.into());
        let refused = probe(&refused, Access::Read).await;
        assert!(matches!(refused, Err(TransferError::CredentialsRefused { .. })), "{refused:?}");
        assert!(!format!("{refused:?}").contains(value));
    }
    let mut unsigned = minio.location("x");
    unsigned.secrets.clear();
    let unsigned = probe(&unsigned, Access::Read).await;
    assert!(matches!(unsigned, Err(TransferError::Denied { .. })), "{unsigned:?}");
    let mut nowhere = minio.location("x");
    nowhere.options.insert("endpoint".into(), "http://127.0.0.1:1".into());
    let nowhere = probe(&nowhere, Access::Read).await;
    assert!(matches!(nowhere, Err(TransferError::Unreachable { .. })), "{nowhere:?}");
    let gone = probe(&local(&bench.path("gone")), Access::Read).await;
    assert!(matches!(gone, Err(TransferError::NotFound { .. })), "{gone:?}");
    probe(&local(&bench.path("gone/deeper")), Access::Write).await.unwrap();
}
