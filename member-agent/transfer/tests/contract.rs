//! What every place must do, run over all of them.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use fluvial_model::manifest::{Entry, File, RelativePath};
use fluvial_transfer::place::limited::{Limit, Limited};
use fluvial_transfer::place::{Detail, Found, Place, TargetState};
use fluvial_transfer::{Access, Location, TransferError};
use support::azurite::Azurite;
use support::gcs::Gcs;
use support::oss::Oss;
use support::*;
use tokio::sync::mpsc;

fn path(text: &str) -> RelativePath {
    RelativePath::parse(text).unwrap()
}

fn file(size: u64) -> File {
    File { size, mtime_ns: 1_600_000_000_987_654_321, mode: 0o750, digest: None }
}

async fn listed(place: &dyn Place, detail: Detail) -> BTreeMap<RelativePath, Found> {
    let (sender, mut receiver) = mpsc::channel(10_000);
    place.list(detail, sender).await.unwrap();
    let mut all = BTreeMap::new();
    while let Some(found) = receiver.recv().await {
        all.insert(found.path.clone(), found);
    }
    all
}

/// Names that need care: one ends in a line break, where the store takes such a name.
const ODD: &str = "d/ b\n";
/// As odd as it can be where white space is taken from the ends of a path.
const LESS_ODD: &str = "d/ b\n?%20#c";
/// The same where no line breaks are taken.
const LEAST_ODD: &str = "d/ b+?%20#c&<'\\";

/// The contract. `location` is a place where nothing is, `odd` a name that it takes.
async fn holds(location: Location, odd: &str) {
    holds_behind(location, odd, |place| place).await;
}

/// The contract, of the place at `location` behind another one.
async fn holds_behind(location: Location, odd: &str, behind: impl Fn(Arc<dyn Place>) -> Arc<dyn Place>) {
    let place = behind(location.open_target().unwrap());
    assert_eq!(place.target_state().await.unwrap(), TargetState::Absent);
    let (sender, _receiver) = mpsc::channel(1);
    let absent = place.list(Detail::Full, sender).await;
    assert!(matches!(absent, Err(TransferError::NotFound { .. })), "{absent:?}");

    // Small files, of odd names too, with their times and modes.
    let mut tags = BTreeMap::new();
    for name in ["a", odd, "d/e/\u{fc}", "zero"] {
        let data = Bytes::from(if name == "zero" { String::new() } else { name.to_owned() });
        let tag = place.put(&path(name), &file(data.len() as u64), data).await.unwrap();
        tags.insert(path(name), tag);
    }
    // A file in parts, out of order and one of them twice, but where they come in order.
    let in_order = place.part_limits().in_order;
    let part = place.part_limits().smallest.max(64 << 10) as usize;
    let data = Bytes::from(bytes(5, 2 * part + 3));
    let large = path("large");
    let upload = place.begin(&large, &file(data.len() as u64)).await.unwrap();
    assert_eq!(place.can_continue(&large, &upload).await.unwrap(), !in_order);
    let mut receipts = vec![String::new(); 3];
    for number in if in_order { &[0, 1, 2][..] } else { &[2, 0, 1, 0] } {
        let number = *number;
        let offset = number * part;
        let slice = data.slice(offset..data.len().min(offset + part));
        receipts[number] = place.put_part(&large, &upload, number as u32, offset as u64, slice).await.unwrap();
    }
    let tag = place.complete(&large, &upload, &file(data.len() as u64), &receipts).await.unwrap();
    tags.insert(large.clone(), tag);
    // A link and an empty directory.
    tags.insert(path("d/link"), place.make_symlink(&path("d/link"), "../a").await.unwrap());
    place.make_directory(&path("empty"), true).await.unwrap();
    place.sync(&[path("a"), path("zero")]).await.unwrap();
    assert_eq!(place.target_state().await.unwrap(), TargetState::Partial);

    // The listing has exactly that.
    let all = listed(&*place, Detail::Full).await;
    let expected = |name: &str, size: u64| (path(name), Entry::File(file(size)));
    let entries: BTreeMap<_, _> = [
        expected("a", 1),
        expected(odd, odd.len() as u64),
        expected("d/e/\u{fc}", "d/e/\u{fc}".len() as u64),
        expected("zero", 0),
        expected("large", data.len() as u64),
        (path("d/link"), Entry::Symlink { target: "../a".to_owned() }),
        (path("empty"), Entry::Directory),
    ]
    .into();
    // Directories that hold something may be listed or not.
    let found: BTreeMap<_, _> = all
        .values()
        .filter(|found| ![path("d"), path("d/e")].contains(&found.path))
        .map(|found| (found.path.clone(), found.entry.clone()))
        .collect();
    assert_eq!(found, entries);
    for (path, tag) in &tags {
        assert_eq!(&all[path].tag, tag, "the tag of a write is that of the listing: {path:?}");
    }
    let only_tags = listed(&*place, Detail::Tags).await;
    assert!(all.iter().all(|(path, found)| only_tags[path].tag == found.tag));

    // One at a time, every entry is what the listing says.
    for found in all.values().filter(|found| found.entry != Entry::Directory) {
        assert_eq!(&place.stat(&found.path).await.unwrap(), found);
        if let Entry::File(file) = &found.entry {
            let (fetched, data) = place.fetch(&found.path, file.size).await.unwrap();
            assert_eq!((&fetched, data.len() as u64), (found, file.size));
        }
    }
    let missing = place.stat(&path("d/not there")).await;
    assert!(matches!(missing, Err(TransferError::NotFound { .. })), "{missing:?}");

    // Ranges, at the end and behind it.
    let tag = &tags[&large];
    let range = place.read(&large, Some(tag), part as u64 - 1, 3).await.unwrap();
    assert_eq!(range, data.slice(part - 1..part + 2));
    assert_eq!(place.read(&large, Some(tag), 2 * part as u64, 100).await.unwrap(), data.slice(2 * part..));
    assert_eq!(place.read(&large, Some(tag), data.len() as u64 + 9, 5).await.unwrap(), Bytes::new());
    assert_eq!(place.read(&path("zero"), Some(&tags[&path("zero")]), 0, 1).await.unwrap(), Bytes::new());

    // Another version has another tag, and the old tag reads nothing.
    let old = &tags[&path("a")];
    let new = place.put(&path("a"), &file(1), Bytes::from_static(b"b")).await.unwrap();
    assert_ne!(&new, old);
    let changed = place.read(&path("a"), Some(old), 0, 1).await;
    assert!(matches!(changed, Err(TransferError::Changed { .. })), "{changed:?}");
    let missing = place.read(&path("not/there"), None, 0, 1).await;
    assert!(matches!(missing, Err(TransferError::NotFound { .. })), "{missing:?}");

    // Giving up and removing, twice without harm.
    let upload = place.begin(&path("given-up"), &file(1)).await.unwrap();
    for _ in 0..2 {
        place.abort(&path("given-up"), &upload).await.unwrap();
        place.remove(&path("zero")).await.unwrap();
        place.remove(&path("empty")).await.unwrap();
    }
    assert!(!place.can_continue(&path("given-up"), &upload).await.unwrap());
    let left = listed(&*place, Detail::Tags).await;
    assert!(["zero", "empty", "given-up"].iter().all(|name| !left.contains_key(&path(name))));

    // After the commit it is there under its own name, and can be removed as a whole.
    place.commit().await.unwrap();
    let visible = behind(location.open().unwrap());
    visible.probe(Access::Read).await.unwrap();
    assert_eq!(visible.read(&path("a"), Some(&new), 0, 9).await.unwrap(), Bytes::from_static(b"b"));
    for _ in 0..2 {
        visible.remove_all().await.unwrap();
    }
    let gone = visible.probe(Access::Read).await;
    assert!(matches!(gone, Err(TransferError::NotFound { .. })), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_holds_the_contract() {
    let bench = Bench::new();
    holds(local(&bench.path("place")), ODD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_behind_a_limit_holds_the_contract() {
    let bench = Bench::new();
    let limit = Arc::new(Limit::new(Arc::new(|| Some(64 << 20))));
    holds_behind(local(&bench.path("place")), ODD, |place| Arc::new(Limited::new(place, limit.clone()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_of_a_bucket_holds_the_contract() {
    let minio = Minio::start();
    holds(minio.location("some/ place"), ODD).await;
    // A neighbour whose name starts the same is another place.
    minio.location("some/ place").open().unwrap().probe(Access::Write).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_of_a_container_holds_the_contract() {
    let azurite = Azurite::start();
    holds(azurite.location("some/ place"), LESS_ODD).await;
    azurite.location("some/ place").open().unwrap().probe(Access::Write).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_of_a_bucket_of_oss_holds_the_contract_by_both_signatures() {
    for region in [None, Some("cn-hangzhou")] {
        let oss = Oss::start(region);
        let place = oss.location_at(oss.port, "some/ place");
        holds(place.clone(), LEAST_ODD).await;
        place.open().unwrap().probe(Access::Write).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_of_a_bucket_of_gcs_holds_the_contract() {
    let gcs = Gcs::start();
    let place = gcs.location_at(gcs.port, "some/ place");
    holds(place.clone(), LEAST_ODD).await;
    place.open().unwrap().probe(Access::Write).await.unwrap();
}
