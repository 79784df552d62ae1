//! The contract, and what is the node cache's own: tiers, and what a crash leaves behind.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::share::{FromPeer, SharedRange};
use super::*;
use crate::contract::{self, Bed};
use crate::engine::Contents;

fn open_tiers(directory: &Path, blocks: &BlockStore, tiers: &[(&str, u64)]) -> Arc<dyn Engine> {
    Arc::new(open_cache(directory, blocks, tiers))
}

fn open_cache(directory: &Path, blocks: &BlockStore, tiers: &[(&str, u64)]) -> NodeCache {
    open_among(directory, blocks, tiers, None)
}

fn open_among(
    directory: &Path,
    blocks: &BlockStore,
    tiers: &[(&str, u64)],
    peers: Option<Arc<dyn Peers>>,
) -> NodeCache {
    let tier = |(medium, quota_bytes): &(&str, u64)| Tier {
        medium: (*medium).to_owned(),
        dir: directory.join(medium),
        quota_bytes: *quota_bytes,
        marks: Marks::default(),
    };
    let config = NodeCacheConfig {
        index: directory.join("index.db"),
        tiers: tiers.iter().map(tier).collect(),
        node: NodeUsage { node: "node-1".to_owned(), ..NodeUsage::default() },
        blocks: blocks.clone(),
        peers,
        in_flight: InFlight::default(),
    };
    NodeCache::open(config).unwrap()
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
async fn a_dropped_load_keeps_no_more_room_than_its_file() {
    let bed = Bed::new(open);
    bed.write("a", &vec![1; 32 << 20], 1);
    let request = bed.request("set", bed.version(&["a"], false));
    let engine = bed.engine(40 << 20);
    engine.prepare(&request).await.unwrap();
    for _ in 0..3 {
        let _ = tokio::time::timeout(Duration::from_millis(15), engine.load(&request)).await;
    }
    // Had two of the three kept a promise of room, this would not fit.
    assert_eq!(engine.load(&request).await.unwrap(), Loaded::Complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_takes_its_room_once() {
    let names: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for _ in 0..20 {
        let bed = Bed::new(open);
        names.iter().for_each(|name| bed.write(name, &[7; 10], 1));
        let request = bed.request("set", bed.version(&names, false));
        let engine = bed.engine(400);
        engine.prepare(&request).await.unwrap();
        assert_eq!(engine.load(&request).await.unwrap(), Loaded::Complete);
    }
}

/// Another node, which gives wrong bytes for as long as it is believed.
#[derive(Default)]
struct Liar {
    distrusted: AtomicBool,
}

#[async_trait]
impl Peers for Liar {
    fn any(&self) -> bool {
        true
    }

    async fn read(&self, range: &SharedRange) -> Option<FromPeer> {
        let believed = !self.distrusted.load(Ordering::SeqCst);
        let data = vec![7; usize::try_from(range.length).unwrap()];
        believed.then(|| FromPeer { node: "liar".to_owned(), data: data.into() })
    }

    fn distrust(&self, node: &str) {
        assert_eq!(node, "liar");
        self.distrusted.store(true, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_late_to_finish_a_file_does_not_judge_the_next_attempt() {
    // One part more than four ranges, fetched side by side: each of their holders may find itself the last.
    let contents: Vec<u8> = (0..33 << 20 >> 4).flat_map(|number: u64| u128::from(number).to_le_bytes()).collect();
    for _ in 0..20 {
        let bed = Bed::new(open);
        bed.write("large", &contents, 1);
        let liar: Arc<dyn Peers> = Arc::new(Liar::default());
        let engine = open_among(&bed.engine_directory(), &bed.blocks, &[("SSD", 1 << 30)], Some(liar));
        let request = bed.request("set", bed.version(&["large"], true));
        engine.prepare(&request).await.unwrap();
        assert_eq!(engine.load(&request).await.unwrap(), Loaded::Complete);
    }
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

/// Ends what an engine does by itself from time to time: these tests do it when they say so.
fn without_upkeep(engine: &NodeCache) {
    engine.shared.upkeep.0.lock().unwrap().take().unwrap().abort();
}

/// An engine with a file of eight parts, three of which were read and noted, and two more that were read and not.
async fn begun(bed: &Bed, engine: &NodeCache, contents: &[u8], digested: bool) -> CacheRequest {
    bed.write("large", contents, 1);
    let request = CacheRequest { on_demand: true, ..bed.request("set", bed.version(&["large"], digested)) };
    engine.prepare(&request).await.unwrap();
    without_upkeep(engine);
    let open = engine.open("uid-set", request.root, &RelativePath::parse("large").unwrap()).await.unwrap();
    let Contents::Filling(_, filling) = &open.contents else { panic!("it is not complete") };
    filling.fill(0, 3 << 20).await.unwrap();
    let shared = engine.shared.clone();
    tokio::task::spawn_blocking(move || upkeep::note(&shared)).await.unwrap().unwrap();
    filling.fill(4 << 20, 2 << 20).await.unwrap();
    request
}

#[tokio::test]
async fn a_power_cut_costs_what_was_not_noted_and_never_a_wrong_byte() {
    for digested in [false, true] {
        let bed = Bed::new(open);
        let contents: Vec<u8> = (0..8_u8 << 4).flat_map(|number| vec![number + 1; 1 << 16]).collect();
        let engine = open_cache(&bed.engine_directory(), &bed.blocks, &[("SSD", 1 << 30)]);
        let request = begun(&bed, &engine, &contents, digested).await;
        drop(engine);
        // What no sync has covered is not on the disk.
        let left = files_below(&bed.engine_directory().join("SSD/unfinished"));
        assert_eq!(left.len(), 1);
        let file = fs::File::options().write(true).open(&left[0]).unwrap();
        file.write_all_at(&vec![0; 5 << 20], 3 << 20).unwrap();

        let engine = bed.engine(1 << 30);
        let usage = engine.usage().await.unwrap();
        assert_eq!(usage[0].media[0].cached_bytes, 3 << 20);
        engine.prepare(&request).await.unwrap();
        let open = engine.open("uid-set", request.root, &RelativePath::parse("large").unwrap()).await.unwrap();
        let Contents::Filling(file, filling) = &open.contents else { panic!("it is not complete") };
        filling.fill(0, 8 << 20).await.unwrap();
        let mut found = vec![0; contents.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == contents);
    }
}

#[tokio::test]
async fn what_was_begun_of_another_version_at_the_source_is_not_gone_on_with() {
    let bed = Bed::new(open);
    let engine = open_cache(&bed.engine_directory(), &bed.blocks, &[("SSD", 1 << 30)]);
    let request = begun(&bed, &engine, &[1; 8 << 20], false).await;
    drop(engine);
    // The same size and time; only its tag tells.
    bed.remove("large");
    bed.write("large", &[2; 8 << 20], 1);

    let engine = bed.engine(1 << 30);
    engine.prepare(&request).await.unwrap();
    let open = engine.open("uid-set", request.root, &RelativePath::parse("large").unwrap()).await.unwrap();
    let Contents::Filling(file, filling) = &open.contents else { panic!("it is not complete") };
    filling.fill(0, 8 << 20).await.unwrap();
    let mut found = vec![0; 8 << 20];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found.iter().all(|byte| *byte == 2), "of one version");
}

#[tokio::test]
async fn a_tier_above_its_high_mark_is_swept_down_to_its_low_one() {
    let bed = Bed::new(open);
    let names: Vec<String> = (10..29).map(|number| number.to_string()).collect();
    for name in &names {
        bed.write(name, name.repeat(25).as_bytes(), 1);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let engine = open_cache(&bed.engine_directory(), &bed.blocks, &[("SSD", 1000)]);
    let request = CacheRequest { on_demand: true, ..bed.request("set", bed.version(&names, true)) };
    engine.prepare(&request).await.unwrap();
    without_upkeep(&engine);
    let read = async |name: &str| {
        let open = engine.open("uid-set", request.root, &RelativePath::parse(name).unwrap()).await.unwrap();
        if let Contents::Filling(_, filling) = &open.contents {
            filling.fill(0, open.size).await.unwrap();
        }
        open
    };
    let kept = read("10").await;
    for name in &names[1..] {
        drop(read(name).await);
    }
    let used = async || engine.usage().await.unwrap()[0].media[0].cached_bytes;
    assert_eq!(used().await, 950, "the mark itself is not above the mark");
    assert!(!engine.shared.store.is_high());
    let shared = engine.shared.clone();
    bed.write("29", &[b'x'; 40], 1);
    let more: Vec<&str> = names.iter().copied().chain(["29"]).collect();
    let request = CacheRequest { on_demand: true, ..bed.request("more", bed.version(&more, true)) };
    engine.prepare(&request).await.unwrap();
    without_upkeep(&engine);
    let open = engine.open("uid-more", request.root, &RelativePath::parse("29").unwrap()).await.unwrap();
    let Contents::Filling(_, filling) = &open.contents else { panic!("it is not complete") };
    filling.fill(0, open.size).await.unwrap();
    assert!(shared.store.is_high());
    tokio::task::spawn_blocking(move || shared.store.sweep()).await.unwrap().unwrap();
    assert_eq!(used().await, 890, "two files of 50 bytes had to go");
    assert!(matches!(read("10").await.contents, Contents::Complete(_)), "an open file stays");
    drop(kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_cold_reader_of_the_same_order_waits_for_fewer_files() {
    let bed = Bed::new(open);
    // An order that no listing gives.
    let names: Vec<String> = (0..150).map(|number| format!("{:03}", number * 67 % 150)).collect();
    for name in &names {
        bed.write(name, name.repeat(20_000).as_bytes(), 1);
    }
    let sorted: Vec<&str> = names.iter().map(String::as_str).collect();
    let request = CacheRequest { on_demand: true, ..bed.request("set", bed.version(&sorted, true)) };
    let mut engine = open_cache(&bed.engine_directory(), &bed.blocks, &[("SSD", 1 << 30)]);
    let mut misses = Vec::new();
    for round in 0..2 {
        engine.prepare(&request).await.unwrap();
        let before = engine.misses();
        for name in &names {
            let open = engine.open("uid-set", request.root, &RelativePath::parse(name).unwrap()).await.unwrap();
            if let Contents::Filling(_, filling) = &open.contents {
                filling.fill(0, open.size).await.unwrap();
            }
        }
        misses.push(engine.misses() - before);
        engine.evict("uid-set").await.unwrap();
        // A file that was on its way is gone when whoever brings it lets go of it.
        let gone = async {
            while engine.usage().await.unwrap()[0].media[0].cached_bytes > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap_or_else(|_| panic!("round {round}"));
        // It outlives the cache and the program.
        engine.stop().await;
        drop(engine);
        engine = open_cache(&bed.engine_directory(), &bed.blocks, &[("SSD", 1 << 30)]);
    }
    assert_eq!(misses[0], 150, "nothing was known before");
    assert!(misses[1] <= 40, "{} files had to be waited for from their beginning", misses[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_files_make_way_for_the_index_on_a_full_disk() {
    let bed = Bed::new(open);
    let names: Vec<String> = (0..8).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.iter().for_each(|name| bed.write(name, &vec![7; 1 << 20], 1));
    let request = bed.request("set", bed.version(&names, false));
    let disk = tempfile::tempdir().unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), disk.path(), Some("tmpfs"), flags, Some("size=12m")).expect("root can mount");
    let unmount = Unmount(disk.path().to_owned());
    let engine = open_cache(disk.path(), &bed.blocks, &[("SSD", 1 << 30)]);
    engine.prepare(&request).await.unwrap();
    assert_eq!(engine.load(&request).await.unwrap(), Loaded::Complete);
    // As after SIGKILL: nothing is noted as synced.
    without_upkeep(&engine);
    drop(engine);
    let mut ballast = fs::File::create(disk.path().join("ballast")).unwrap();
    while std::io::Write::write_all(&mut ballast, &[1; 4096]).is_ok() {}

    let engine = open_cache(disk.path(), &bed.blocks, &[("SSD", 1 << 30)]);
    let held = engine.status("uid-set").await.unwrap().unwrap().cached_files;
    assert!(held < 8, "{held} files are left, and the index was written");
    engine.prepare(&request).await.unwrap();
    let file = engine.open("uid-set", request.root, &RelativePath::parse("3").unwrap()).await.unwrap();
    drop((file, engine, unmount));
}

/// Takes a disk away, whatever is still open on it.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
