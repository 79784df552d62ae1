//! The contract, and what is the node cache's own: tiers, and what a crash leaves behind.

use std::fs;
use std::path::Path;

use super::*;
use crate::contract::{self, Bed};

fn open_tiers(directory: &Path, blocks: &BlockStore, tiers: &[(&str, u64)]) -> Arc<dyn Engine> {
    let tier = |(medium, quota_bytes): &(&str, u64)| Tier {
        medium: (*medium).to_owned(),
        dir: directory.join(medium),
        quota_bytes: *quota_bytes,
    };
    let config = NodeCacheConfig {
        index: directory.join("index.db"),
        tiers: tiers.iter().map(tier).collect(),
        node: NodeUsage { node: "node-1".to_owned(), ..NodeUsage::default() },
        blocks: blocks.clone(),
        peers: None,
    };
    Arc::new(NodeCache::open(config).unwrap())
}

fn open(directory: &Path, blocks: &BlockStore, quota: u64) -> Arc<dyn Engine> {
    open_tiers(directory, blocks, &[("SSD", quota)])
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() { files.extend(files_below(&entry.path())) } else { files.push(entry.path()) }
    }
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_cache_keeps_the_contract() {
    contract::suite(open).await;
}

#[tokio::test]
async fn a_file_goes_to_the_first_tier_with_room() {
    let bed = Bed::new(open);
    bed.write("a", &[1; 60], 1);
    bed.write("b", &[2; 60], 1);
    let request = bed.request("set", bed.version(&["a", "b"], false));
    let engine = open_tiers(&bed.engine_directory(), &bed.blocks, &[("MEM", 100), ("SSD", 1000)]);
    engine.prepare(&request).await.unwrap();
    assert_eq!(engine.load(&request).await.unwrap(), Loaded::Complete);
    let report = engine.status("uid-set").await.unwrap().unwrap();
    let media: Vec<_> =
        report.nodes[0].media.iter().map(|m| (m.medium.as_str(), m.cached_bytes, m.capacity_bytes)).collect();
    assert_eq!(media, [("MEM", 60, 100), ("SSD", 60, 1000)]);
    assert_eq!(report.nodes[0].node, "node-1");
}

#[tokio::test]
async fn what_a_crash_leaves_behind_is_removed_and_what_is_damaged_is_fetched_again() {
    let bed = Bed::new(open);
    bed.write("a", b"12345", 1);
    bed.write("b", b"123", 1);
    let request = bed.request("set", bed.version(&["a", "b"], true));
    let engine = bed.engine(1000);
    engine.prepare(&request).await.unwrap();
    engine.load(&request).await.unwrap();
    drop(engine);

    let tier = bed.engine_directory().join("SSD");
    let kept = files_below(&tier.join("objects"));
    assert_eq!(kept.len(), 2);
    fs::create_dir_all(tier.join("objects/ff")).unwrap();
    fs::write(tier.join("objects/ff/stranger"), b"left over").unwrap();
    fs::write(tier.join("unfinished/7"), b"half").unwrap();
    fs::write(&kept[0], b"").unwrap();

    let engine = bed.engine(1000);
    let report = engine.status("uid-set").await.unwrap().unwrap();
    assert_eq!((report.phase.as_str(), report.cached_files), ("Filling", 1));
    assert_eq!(files_below(&tier), [kept[1].clone()]);
    assert_eq!(engine.load(&request).await.unwrap(), Loaded::Complete);
    assert_eq!(files_below(&tier), kept);
}

#[tokio::test]
async fn a_dropped_load_leaves_no_promise_and_no_file() {
    let bed = Bed::new(open);
    bed.write("a", &vec![1; 32 << 20], 1);
    let request = bed.request("set", bed.version(&["a"], false));
    let engine = bed.engine(40 << 20);
    engine.prepare(&request).await.unwrap();
    for _ in 0..3 {
        let _ = tokio::time::timeout(std::time::Duration::from_millis(15), engine.load(&request)).await;
    }
    // Had one of the three kept its promise of room, this would not fit.
    assert_eq!(engine.load(&request).await.unwrap(), Loaded::Complete);
}

#[tokio::test]
async fn a_file_that_did_not_reach_the_disk_is_found_out_by_its_digest() {
    let bed = Bed::new(open);
    bed.write("a", b"12345", 1);
    bed.write("b", b"67890", 1);
    let request = bed.request("set", bed.version(&["a", "b"], false));
    let engine = bed.engine(1000);
    engine.prepare(&request).await.unwrap();
    engine.load(&request).await.unwrap();
    // No end in order: as the machine leaves it when its power goes.
    drop(engine);
    let kept = files_below(&bed.engine_directory().join("SSD/objects"));
    fs::write(&kept[0], [0; 5]).unwrap();

    let engine = bed.engine(1000);
    let report = engine.status("uid-set").await.unwrap().unwrap();
    assert_eq!((report.cached_files, report.cached_bytes), (1, 5));
    assert_eq!(engine.load(&request).await.unwrap(), Loaded::Complete);
    assert_ne!(fs::read(&kept[0]).unwrap(), [0; 5]);
}
