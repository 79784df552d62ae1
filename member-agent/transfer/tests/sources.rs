//! What every place that is only read must do, run over real HDFS and over web servers of every manner.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use fluvial_model::manifest::{Entry, File, RelativePath};
use fluvial_transfer::place::{Detail, Found, Place, Tag};
use fluvial_transfer::{Access, Location, TransferError, copy};
use support::hdfs::Hdfs;
use support::web::{Manner, serve};
use support::*;
use tokio::sync::mpsc;

fn path(text: &str) -> RelativePath {
    RelativePath::parse(text).unwrap()
}

/// Files whose names need care in a URL, small and in parts.
fn make(root: &Path) -> BTreeMap<RelativePath, Vec<u8>> {
    let mut files = BTreeMap::new();
    for (number, name) in
        ["plain.txt", "zero", "names/a b+%20&#?.txt", "names/\u{fc}ml\u{e4}ut", "names/quote'd", "deep/er/still/x"]
            .iter()
            .enumerate()
    {
        let data = if *name == "zero" { Vec::new() } else { bytes(number as u64, 1000 + number) };
        write(root, name, &data, 0o644, 1_700_000_000_000_000_000);
        files.insert(path(name), data);
    }
    let data = bytes(9, (3 << 20) + 5);
    write(root, "large", &data, 0o644, 1_700_000_000_000_000_000);
    files.insert(path("large"), data);
    files
}

async fn listed(place: &dyn Place) -> BTreeMap<RelativePath, Found> {
    let (sender, mut receiver) = mpsc::channel(10_000);
    place.list(Detail::Full, sender).await.unwrap();
    let mut all = BTreeMap::new();
    while let Some(found) = receiver.recv().await {
        all.insert(found.path.clone(), found);
    }
    all
}

fn files_of(all: &BTreeMap<RelativePath, Found>) -> Vec<(RelativePath, u64)> {
    let size = |found: &Found| match &found.entry {
        Entry::File(file) => Some((found.path.clone(), file.size)),
        _ => None,
    };
    all.values().filter_map(size).collect()
}

/// The contract of reading; `ranges` says whether the server can give a part of a file.
async fn reads(location: &Location, missing: &Location, files: &BTreeMap<RelativePath, Vec<u8>>, ranges: bool) {
    let place = location.open().unwrap();
    place.probe(Access::Read).await.unwrap();
    let all = listed(&*place).await;
    let expected: Vec<_> = files.iter().map(|(path, data)| (path.clone(), data.len() as u64)).collect();
    assert_eq!(files_of(&all), expected);
    assert_eq!(listed(&*place).await, all, "listed again, it is the same");
    for (path, data) in files {
        let found = &all[path];
        assert_eq!(&place.stat(path).await.unwrap(), found);
        let (fetched, whole) = place.fetch(path, data.len() as u64).await.unwrap();
        assert_eq!((&fetched, &whole[..]), (found, &data[..]));
        let (entry, whole) = place.read_listed(path, &found.tag, data.len() as u64).await.unwrap();
        assert_eq!((&entry, &whole[..]), (&found.entry, &data[..]));
    }
    // Ranges, at the end and behind it.
    let (large, data) = (path("large"), &files[&path("large")]);
    let tag = Some(&all[&large].tag);
    if ranges {
        for (offset, length) in [(1 << 20, 1000), (data.len() as u64 - 3, 100), (0, 5)] {
            let from = usize::try_from(offset).unwrap();
            let to = data.len().min(from + usize::try_from(length).unwrap());
            assert_eq!(place.read(&large, tag, offset, length).await.unwrap(), data[from..to], "{offset} {length}");
        }
        assert_eq!(place.read(&large, tag, data.len() as u64 + 9, 5).await.unwrap(), Bytes::new());
    } else {
        let refused = place.read(&large, tag, 1 << 20, 1000).await;
        assert!(matches!(refused, Err(TransferError::Server { .. })), "{refused:?}");
    }
    assert_eq!(place.read(&path("zero"), None, 0, 1).await.unwrap(), Bytes::new());
    // What is not there, and what is not that version.
    let gone = place.stat(&path("not/there")).await;
    assert!(matches!(gone, Err(TransferError::NotFound { .. })), "{gone:?}");
    let gone = place.read(&path("not/there"), None, 0, 1).await;
    assert!(matches!(gone, Err(TransferError::NotFound { .. })), "{gone:?}");
    let gone = missing.open().unwrap().probe(Access::Read).await;
    assert!(matches!(gone, Err(TransferError::NotFound { .. })), "{gone:?}");
    let (sender, _receiver) = mpsc::channel(1);
    let gone = missing.open().unwrap().list(Detail::Full, sender).await;
    assert!(matches!(gone, Err(TransferError::NotFound { .. })), "{gone:?}");
    let other = place.read(&path("plain.txt"), Some(&Tag("1 1000".into())), 0, 1000).await;
    assert!(matches!(other, Err(TransferError::Changed { .. })), "{other:?}");
    // Nothing is written.
    let file = File { size: 1, mtime_ns: 1, mode: 0o644, digest: None };
    let refused = place.put(&path("new"), &file, Bytes::from_static(b"1")).await;
    assert!(matches!(refused, Err(TransferError::ReadOnly { .. })), "{refused:?}");
    let refused = place.probe(Access::Write).await;
    assert!(matches!(refused, Err(TransferError::ReadOnly { .. })), "{refused:?}");
    assert_eq!(listed(&*place).await, all);
}

/// Copies to a directory and compares the contents.
async fn arrives(location: Location, files: &BTreeMap<RelativePath, Vec<u8>>) {
    let bench = Bench::new();
    let report = copy(job("1", location, local(&bench.path("target"))), bench.context()).await.unwrap();
    assert_eq!(report.totals.files, files.len() as u64);
    for (path, data) in files {
        assert!(fs::read(bench.path("target").join(path.as_str())).unwrap() == *data, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_hdfs_is_read_and_copied() {
    let bench = Bench::new();
    let source = bench.path("source");
    let files = make(&source);
    let hdfs = Hdfs::start(&source);
    let location = hdfs.location("data/set");
    reads(&location, &hdfs.location("data/none"), &files, true).await;
    arrives(location.clone(), &files).await;
    let file = hdfs.location("data/set/plain.txt").open().unwrap().probe(Access::Read).await;
    assert!(matches!(file, Err(TransferError::NotFound { .. })), "a file is no directory: {file:?}");

    // Written again, it is another version, for a reader in its middle too.
    let place = location.open().unwrap();
    let old = place.stat(&path("large")).await.unwrap();
    let url =
        format!("http://127.0.0.1:{}/webhdfs/v1/data/set/large?op=CREATE&overwrite=true&user.name=root", hdfs.port);
    let answer = reqwest::Client::new().put(url).body(vec![7; (3 << 20) + 5]).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    let changed = place.read(&path("large"), Some(&old.tag), 1 << 20, 1000).await;
    assert!(matches!(changed, Err(TransferError::Changed { .. })), "{changed:?}");
    let now = place.stat(&path("large")).await.unwrap();
    assert_eq!(place.read(&path("large"), Some(&now.tag), 5, 3).await.unwrap(), [7; 3][..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tree_of_a_web_servers_index_pages_is_read_and_copied() {
    let bench = Bench::new();
    let source = bench.path("source");
    let files = make(&source);
    for (etags, ranges) in [(true, true), (false, true), (false, false)] {
        let url = serve(&source, Manner { etags, ranges });
        let missing = Location::new(format!("{url}none/"));
        reads(&Location::new(url.clone()), &missing, &files, ranges).await;
        if ranges {
            arrives(Location::new(url.clone()), &files).await;
        }
        let one = BTreeMap::from([(path("x"), files[&path("deep/er/still/x")].clone())]);
        let missing = Location::new(format!("{url}none"));
        let single = Location::new(format!("{url}deep/er/still/x"));
        let place = single.open().unwrap();
        assert_eq!(files_of(&listed(&*place).await), [(path("x"), 1005)]);
        arrives(single, &one).await;
        assert!(matches!(missing.open().unwrap().probe(Access::Read).await, Err(TransferError::NotFound { .. })));
        // A page that is none, and a file that is one only by its name.
        let page = Location::new(format!("{url}plain.txt/")).open().unwrap().probe(Access::Read).await;
        assert!(page.is_err(), "{page:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_a_web_server_that_changes_is_another_version() {
    for (etags, ranges) in [(true, true), (false, true)] {
        let bench = Bench::new();
        let source = bench.path("source");
        write(&source, "file", &bytes(1, 5000), 0o644, 1_700_000_000_000_000_000);
        let place = Location::new(serve(&source, Manner { etags, ranges })).open().unwrap();
        let old = place.stat(&path("file")).await.unwrap();
        write(&source, "file", &bytes(2, 5000), 0o644, 1_700_000_001_000_000_001);
        for range in [(0, 5000), (100, 100), (9000, 1)] {
            let changed = place.read(&path("file"), Some(&old.tag), range.0, range.1).await;
            assert!(matches!(changed, Err(TransferError::Changed { .. })), "{range:?} {changed:?}");
        }
    }
}
