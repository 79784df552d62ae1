//! Data directories that were damaged while the node was away: what is damaged is noticed, or does no harm.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::{Node, cluster, commit, leader_of, put, within};
use fluvial_model::store::Revision;
use fluvial_raft::{Config, Consistency, ListRequest, RaftStore, Store};

/// Writes until the log has surely been cut: that takes 256 entries more than are kept.
const KEYS: usize = 500;

fn quick(config: &mut Config) {
    (config.snapshot_after, config.keep_log) = (100, 20);
    config.timings.heartbeat = Duration::from_millis(50);
    (config.timings.election_min, config.timings.election_max) =
        (Duration::from_millis(150), Duration::from_millis(300));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// The value of every key, and every event of the history.
async fn all(store: &RaftStore) -> Vec<String> {
    let request = ListRequest { consistency: Consistency::Linearizable, ..ListRequest::default() };
    let listing = store.list(request).await.unwrap();
    let mut all: Vec<String> = listing.items.iter().map(|item| format!("{item:?}")).collect();
    let mut watch = store.watch("", Revision(0)).await.unwrap();
    while watch.revision() < listing.revision {
        all.extend(watch.next().await.unwrap().iter().map(|event| format!("{event:?}")));
    }
    all
}

/// Knuth's generator, as in the tests of the whole.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// Damages a file and says how.
fn damage(file: &Path, random: &mut Random) -> String {
    let mut bytes = std::fs::read(file).unwrap();
    if bytes.is_empty() {
        return String::new();
    }
    let at = random.below(bytes.len());
    let how = match random.below(6) {
        0 | 1 => {
            bytes[at] ^= 1 << random.below(8);
            format!("a flipped bit in byte {at}")
        }
        2 => {
            let page = at / 4096 * 4096;
            let end = (page + 4096).min(bytes.len());
            bytes[page..end].fill(0);
            format!("a page of zeros at {page}")
        }
        3 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        4 => {
            bytes.clear();
            "nothing left".into()
        }
        _ => {
            std::fs::remove_file(file).unwrap();
            return "removed".into();
        }
    };
    std::fs::write(file, bytes).unwrap();
    how
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_noticed_or_does_no_harm() {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = number("FLUVIAL_SEED").unwrap_or_else(|| clock.into());
    println!("seed {seed}: FLUVIAL_SEED={seed} cargo nextest run -p fluvial-raft --test damage");
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(1, dir.path(), quick).await;
    let store = nodes[0].store.clone();
    for number in 0..KEYS {
        commit(&store, put(format!("key/{}", number % 50), vec![b'v'; 300 + number])).await.unwrap();
    }
    within("the log to be cut", || async { store.metrics().purged_index }).await;
    for number in 0..30 {
        commit(&store, put(format!("key/{number}"), format!("after the snapshot {number}"))).await.unwrap();
    }
    let expected = all(&store).await;
    // One as a kill leaves it, while nothing is written, and one that was closed in order.
    let images = [dir.path().join("killed"), dir.path().join("stopped")];
    copy(&nodes[0].config.data_dir, &images[0]);
    drop(store);
    let config = nodes.remove(0).stop().await;
    copy(&config.data_dir, &images[1]);

    let (mut noticed, mut harmless) = (0, 0);
    let cases = number("FLUVIAL_CASES").unwrap_or(60);
    for case in 0..cases {
        let image = &images[random.below(2)];
        let copied = dir.path().join(format!("case-{case}"));
        copy(image, &copied);
        let mut files: Vec<PathBuf> = std::fs::read_dir(&copied).unwrap().map(|file| file.unwrap().path()).collect();
        files.retain(|file| !file.ends_with("lock"));
        files.sort();
        let file = &files[random.below(files.len())];
        let how = damage(file, &mut random);
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let what = format!("{} of {}: {how}", name, image.file_name().unwrap().to_string_lossy());
        let config = Config { data_dir: copied.clone(), ..config.clone() };
        match RaftStore::open(config, std::sync::Arc::new(common::Plain)).await {
            Ok(store) => {
                assert_eq!(leader_of(&store).await, 1, "{what}");
                assert_eq!(all(&store).await, expected, "{what}");
                store.shutdown().await;
                harmless += 1;
            }
            Err(error) => {
                let mut said = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(error) = source {
                    said += &format!(": {error}");
                    source = error.source();
                }
                assert!(name != "lock" && !name.starts_with("catalog"), "{what} can be made again, and is not: {said}");
                println!("{what}: {said}");
                noticed += 1;
            }
        }
        std::fs::remove_dir_all(copied).unwrap();
    }
    println!("{noticed} were noticed, {harmless} did no harm");
    assert!(noticed > 0 && harmless > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_was_not_closed_is_made_again_from_the_log_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(1, dir.path(), |_| {}).await;
    for number in 0..30 {
        commit(&nodes[0].store, put(format!("key/{number}"), "value")).await.unwrap();
    }
    let expected = all(&nodes[0].store).await;
    let killed = dir.path().join("killed");
    copy(&nodes[0].config.data_dir, &killed);
    let config = nodes.remove(0).stop().await;
    let node = Node::restart(Config { data_dir: killed, ..config.clone() }).await;
    assert_eq!(node.store.catalog_generation(), 2);
    assert_eq!(all(&node.store).await, expected);
    node.stop().await;
    // One that was closed in order is the same one.
    let node = Node::restart(config).await;
    assert_eq!(node.store.catalog_generation(), 1);
    assert_eq!(all(&node.store).await, expected);
    node.stop().await;
}
