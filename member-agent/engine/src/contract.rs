//! What every engine must do, as one suite: call [`suite`] with a way to open the engine.
//!
//! Everything is real: files in a directory, their manifests, the engine on a directory of its own. Each promise is a
//! function of its own, named by the promise; a promise that is broken panics with what was seen.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fluvial_model::desired::DatasetKey;
use fluvial_model::manifest::{Digest, Entry, File, RelativePath, Root, TreeBuilder};
use fluvial_model::report::CacheReport;
use fluvial_transfer::{BlockStore, Location, SourceMount};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::engine::{CacheRequest, Contents, Engine, EngineError, Loaded, OpenFile, WarmRequest};

/// Opens the engine under test on a directory with room for so many bytes; opening again continues.
pub type Open = fn(directory: &Path, blocks: &BlockStore, quota_bytes: u64) -> Arc<dyn Engine>;

const WORKS: &str = "the bed's own files can be written";
/// More than any case needs.
const AMPLE: u64 = 1 << 30;

/// A source directory, blocks, and a place for the engine.
pub struct Bed {
    directory: TempDir,
    /// Blocks of the versions.
    pub blocks: BlockStore,
    open: Open,
}

impl Bed {
    /// A fresh one.
    #[must_use]
    pub fn new(open: Open) -> Self {
        let directory = tempfile::tempdir().expect(WORKS);
        fs::create_dir(directory.path().join("source")).expect(WORKS);
        let blocks = BlockStore::open(directory.path().join("blocks")).expect(WORKS);
        Self { directory, blocks, open }
    }

    /// Opens the engine.
    #[must_use]
    pub fn engine(&self, quota_bytes: u64) -> Arc<dyn Engine> {
        (self.open)(&self.engine_directory(), &self.blocks, quota_bytes)
    }

    /// Where the engine lives.
    #[must_use]
    pub fn engine_directory(&self) -> std::path::PathBuf {
        self.directory.path().join("engine")
    }

    /// Writes a source file, with a modification time in whole seconds.
    pub fn write(&self, path: &str, contents: &[u8], mtime_seconds: u64) {
        let file = self.directory.path().join("source").join(path);
        fs::create_dir_all(file.parent().expect("the path has the source above it")).expect(WORKS);
        fs::write(&file, contents).expect(WORKS);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(mtime_seconds);
        fs::File::options().write(true).open(&file).expect(WORKS).set_modified(time).expect(WORKS);
    }

    /// Removes a source file.
    pub fn remove(&self, path: &str) {
        fs::remove_file(self.directory.path().join("source").join(path)).expect(WORKS);
    }

    /// The version that consists of these source files as they are.
    #[must_use]
    pub fn version(&self, paths: &[&str], digested: bool) -> Root {
        let mut builder = TreeBuilder::new(|_, bytes: Vec<u8>| self.blocks.put(&bytes).map(drop));
        let mut paths: Vec<RelativePath> = paths.iter().map(|path| relative(path)).collect();
        paths.sort();
        for path in paths {
            let file = self.directory.path().join("source").join(path.as_str());
            let found = fs::metadata(&file).expect(WORKS);
            let contents = fs::read(&file).expect(WORKS);
            let file = File {
                size: found.len(),
                mtime_ns: found.mtime() * 1_000_000_000 + found.mtime_nsec(),
                mode: found.mode() & 0o7777,
                digest: digested.then(|| Digest::of(&contents)),
            };
            builder.push(&path, Entry::File(file)).expect("the paths are in order");
        }
        builder.finish().expect("the blocks can be stored").root
    }

    /// Asks for a version of the dataset of this name.
    #[must_use]
    pub fn request(&self, name: &str, root: Root) -> CacheRequest {
        let uri = format!("file://{}", self.directory.path().join("source").display());
        CacheRequest {
            dataset: DatasetKey { namespace: "default".into(), name: name.into(), uid: format!("uid-{name}") },
            root,
            sources: vec![SourceMount { path: RelativePath::root(), location: Location::new(uri) }],
            paths: Vec::new(),
            pinned: false,
            on_demand: false,
        }
    }
}

fn relative(path: &str) -> RelativePath {
    RelativePath::parse(path).expect("the path is a relative one")
}

async fn fill(engine: &Arc<dyn Engine>, request: &CacheRequest) -> Result<Loaded, EngineError> {
    engine.prepare(request).await.expect("the blocks are at hand");
    engine.load(request).await
}

/// What is held: phase, bytes and files of total, bytes in all media.
async fn held(engine: &Arc<dyn Engine>, name: &str) -> Option<(String, [u64; 5])> {
    let report: CacheReport = engine.status(&format!("uid-{name}")).await.expect("the engine can look")?;
    let media = report.nodes.iter().flat_map(|node| &node.media).map(|medium| medium.cached_bytes).sum();
    let numbers = [report.cached_bytes, report.total_bytes, report.cached_files, report.total_files, media];
    Some((report.phase, numbers))
}

async fn used(engine: &Arc<dyn Engine>) -> u64 {
    let nodes = engine.usage().await.expect("the engine can look");
    nodes.iter().flat_map(|node| &node.media).map(|medium| medium.cached_bytes).sum()
}

fn complete(loaded: Result<Loaded, EngineError>, when: &str) {
    assert!(matches!(loaded, Ok(Loaded::Complete)), "{when}: {loaded:?}");
}

fn ready(bytes: u64, files: u64) -> Option<(String, [u64; 5])> {
    Some(("Ready".to_owned(), [bytes, bytes, files, files, bytes]))
}

/// Every promise.
///
/// # Panics
/// When one is broken.
pub async fn suite(open: Open) {
    a_dataset_is_held_and_reported_to_the_byte(open).await;
    a_restart_keeps_everything(open).await;
    a_new_version_keeps_what_did_not_change(open).await;
    only_the_wanted_paths_are_held(open).await;
    what_does_not_fit_makes_the_dataset_partial(open).await;
    shared_contents_are_held_once_and_as_long_as_anyone_uses_them(open).await;
    contents_with_another_digest_are_refused(open).await;
    a_source_that_changed_since_its_listing_is_refused(open).await;
    an_engine_does_nothing_before_it_is_prepared_and_after_it_is_stopped(open).await;
    a_file_is_opened_and_comes_as_it_is_read(open).await;
    many_readers_of_a_file_that_fills_see_the_right_bytes(open).await;
    files_that_nobody_wants_beforehand_make_room_unless_they_are_open(open).await;
    a_file_without_room_is_read_through(open).await;
    wrong_contents_are_never_complete(open).await;
    only_the_prepared_version_is_opened(open).await;
    what_was_fetched_of_a_file_survives_a_restart(open).await;
    a_new_version_gives_up_what_was_fetched_of_files_that_changed(open).await;
    what_is_complete_is_opened_and_nothing_is_fetched_for_it(open).await;
    a_load_brings_what_it_names_and_keeps_it_while_it_runs(open).await;
}

async fn a_dataset_is_held_and_reported_to_the_byte(open: Open) {
    for digested in [false, true] {
        let bed = Bed::new(open);
        bed.write("a", b"12345", 1);
        bed.write("dir/b", &vec![7; 9 << 20], 2);
        bed.write("empty", b"", 3);
        let engine = bed.engine(AMPLE);
        let request = bed.request("set", bed.version(&["a", "dir/b", "empty"], digested));
        assert_eq!(held(&engine, "set").await, None);
        engine.prepare(&request).await.expect("the blocks are at hand");
        let total = 5 + (9 << 20);
        assert_eq!(held(&engine, "set").await, Some(("Filling".to_owned(), [0, total, 0, 3, 0])));
        complete(engine.load(&request).await, "first load");
        assert_eq!(held(&engine, "set").await, ready(total, 3));
        assert_eq!(used(&engine).await, total);
        engine.evict("uid-set").await.expect("it can be evicted");
        assert_eq!((held(&engine, "set").await, used(&engine).await), (None, 0));
        engine.evict("uid-set").await.expect("evicting again is no error");
    }
}

async fn a_restart_keeps_everything(open: Open) {
    let bed = Bed::new(open);
    bed.write("a", b"12345", 1);
    let request = bed.request("set", bed.version(&["a"], false));
    let engine = bed.engine(AMPLE);
    complete(fill(&engine, &request).await, "first load");
    engine.stop().await;
    drop(engine);
    // Nothing is left to read: what is there now was there before.
    bed.remove("a");
    let engine = bed.engine(AMPLE);
    assert_eq!((held(&engine, "set").await, used(&engine).await), (ready(5, 1), 5));
    complete(fill(&engine, &request).await, "load after a restart");
}

async fn a_new_version_keeps_what_did_not_change(open: Open) {
    for digested in [false, true] {
        let bed = Bed::new(open);
        bed.write("changed", b"old", 1);
        bed.write("dropped", b"to be dropped", 1);
        bed.write("kept", b"12345", 1);
        let engine = bed.engine(AMPLE);
        let first = bed.request("set", bed.version(&["changed", "dropped", "kept"], digested));
        complete(fill(&engine, &first).await, "first version");
        bed.write("changed", b"newer", 2);
        bed.write("new", b"1234567", 2);
        let second = bed.request("set", bed.version(&["changed", "kept", "new"], digested));
        // The kept file cannot be read any more: it has to be the one that is there.
        bed.remove("kept");
        complete(fill(&engine, &second).await, "second version");
        assert_eq!((held(&engine, "set").await, used(&engine).await), (ready(5 + 5 + 7, 3), 17));
    }
}

async fn only_the_wanted_paths_are_held(open: Open) {
    let bed = Bed::new(open);
    bed.write("dir/a", b"12345", 1);
    bed.write("directory", b"other", 1);
    bed.write("other/b", b"123", 1);
    let engine = bed.engine(AMPLE);
    let root = bed.version(&["dir/a", "directory", "other/b"], false);
    let request = CacheRequest { paths: vec![relative("dir")], ..bed.request("set", root) };
    complete(fill(&engine, &request).await, "one directory");
    assert_eq!((held(&engine, "set").await, used(&engine).await), (ready(5, 1), 5));
}

async fn what_does_not_fit_makes_the_dataset_partial(open: Open) {
    let bed = Bed::new(open);
    bed.write("a", &[1; 60], 1);
    bed.write("b", &[2; 60], 1);
    bed.write("c", &[3; 40], 1);
    let engine = bed.engine(100);
    let request = bed.request("set", bed.version(&["a", "b", "c"], false));
    let loaded = fill(&engine, &request).await;
    assert!(matches!(loaded, Ok(Loaded::Partial(_))), "{loaded:?}");
    let (phase, [cached, total, files, all, media]) = held(&engine, "set").await.expect("it was prepared");
    assert_eq!((phase.as_str(), total, all), ("Partial", 160, 3));
    assert!(cached <= 100 && cached == media && files < all, "{cached} bytes, {media} on media, {files} files");
    assert_eq!(used(&engine).await, cached);
    // With room again the rest follows.
    bed.write("small", b"1", 1);
    let smaller = bed.request("set", bed.version(&["c", "small"], false));
    complete(fill(&engine, &smaller).await, "a version that fits");
    assert_eq!(held(&engine, "set").await, ready(41, 2));
}

async fn shared_contents_are_held_once_and_as_long_as_anyone_uses_them(open: Open) {
    let bed = Bed::new(open);
    bed.write("a", b"shared", 1);
    bed.write("b", b"own", 1);
    let engine = bed.engine(AMPLE);
    let one = bed.request("one", bed.version(&["a"], true));
    let two = bed.request("two", bed.version(&["a", "b"], true));
    engine.prepare(&one).await.expect("the blocks are at hand");
    engine.prepare(&two).await.expect("the blocks are at hand");
    let (first, second) = tokio::join!(engine.load(&one), engine.load(&two));
    complete(first, "one");
    complete(second, "two");
    assert_eq!((held(&engine, "one").await, held(&engine, "two").await), (ready(6, 1), ready(9, 2)));
    assert_eq!(used(&engine).await, 9);
    engine.evict("uid-one").await.expect("it can be evicted");
    assert_eq!((held(&engine, "two").await, used(&engine).await), (ready(9, 2), 9));
    engine.evict("uid-two").await.expect("it can be evicted");
    assert_eq!(used(&engine).await, 0);
}

async fn contents_with_another_digest_are_refused(open: Open) {
    let bed = Bed::new(open);
    bed.write("bad", b"12345", 1);
    bed.write("good", b"123", 1);
    let request = bed.request("set", bed.version(&["bad", "good"], true));
    bed.write("bad", b"54321", 1);
    let engine = bed.engine(AMPLE);
    let loaded = fill(&engine, &request).await;
    assert!(matches!(&loaded, Err(EngineError::DigestMismatch { path, .. }) if path == "bad"), "{loaded:?}");
    assert_eq!(held(&engine, "set").await, Some(("Filling".to_owned(), [3, 8, 1, 2, 3])), "the good file is held");
    bed.write("bad", b"12345", 1);
    complete(engine.load(&request).await, "the right contents");
}

async fn a_source_that_changed_since_its_listing_is_refused(open: Open) {
    let bed = Bed::new(open);
    bed.write("a", b"12345", 1);
    let request = bed.request("set", bed.version(&["a"], false));
    bed.write("a", b"54321", 2);
    let engine = bed.engine(AMPLE);
    let loaded = fill(&engine, &request).await;
    assert!(matches!(&loaded, Err(EngineError::SourceDiffers { path, .. }) if path == "a"), "{loaded:?}");
    assert_eq!(used(&engine).await, 0);
}

async fn what_is_complete_is_opened_and_nothing_is_fetched_for_it(open: Open) {
    let bed = Bed::new(open);
    bed.write("a", b"12345", 1);
    let engine = bed.engine(AMPLE);
    let request = on_demand(bed.request("set", bed.version(&["a"], false)));
    let path = relative("a");
    let complete = || engine.open_complete("uid-set", request.root, &path);
    assert!(matches!(complete().await, Err(EngineError::NotPrepared { .. })));
    engine.prepare(&request).await.expect("the blocks are at hand");
    assert!(complete().await.expect("it can be looked for").is_none());
    let file = engine.open("uid-set", request.root, &path).await.expect("it can be opened");
    assert!(complete().await.expect("it can be looked for").is_none(), "it is on its way");
    read(&file, 0, 5).await.expect("it can be read");
    let file = complete().await.expect("it can be looked for").expect("it is complete");
    assert!(matches!(file.contents, Contents::Complete(_)));
    assert_eq!(read(&file, 0, 5).await.expect("it can be read"), b"12345");
}

async fn an_engine_does_nothing_before_it_is_prepared_and_after_it_is_stopped(open: Open) {
    let bed = Bed::new(open);
    bed.write("a", b"12345", 1);
    let request = bed.request("set", bed.version(&["a"], false));
    let engine = bed.engine(AMPLE);
    let loaded = engine.load(&request).await;
    assert!(matches!(loaded, Err(EngineError::NotPrepared { .. })), "{loaded:?}");
    engine.stop().await;
    let loaded = fill(&engine, &request).await;
    assert!(matches!(loaded, Err(EngineError::Stopped { .. })), "{loaded:?}");
}

/// Reads a range of an open file, whatever it takes.
async fn read(file: &OpenFile, offset: u64, length: usize) -> Result<Vec<u8>, EngineError> {
    let length = length.min(usize::try_from(file.size.saturating_sub(offset)).unwrap_or(usize::MAX));
    let from = |held: &fs::File| {
        let mut buffer = vec![0; length];
        held.read_exact_at(&mut buffer, offset).expect("a file of the cache can be read");
        buffer
    };
    match &file.contents {
        Contents::Complete(held) => Ok(from(held)),
        Contents::Filling(held, filling) => filling.fill(offset, length as u64).await.map(|()| from(held)),
        Contents::Through(through) => through.read(offset, length as u64).await.map(|bytes| bytes.to_vec()),
    }
}

/// Bytes that tell where they are from.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at / 4096 * 31 + at) % 251).expect("less than 251")).collect()
}

fn on_demand(request: CacheRequest) -> CacheRequest {
    CacheRequest { on_demand: true, ..request }
}

async fn a_file_is_opened_and_comes_as_it_is_read(open: Open) {
    for digested in [false, true] {
        let bed = Bed::new(open);
        let contents = pattern((11 << 20) + 77);
        bed.write("dir/large", &contents, 1);
        bed.write("empty", b"", 1);
        bed.write("other", b"123", 1);
        let engine = bed.engine(AMPLE);
        let request = on_demand(bed.request("set", bed.version(&["dir/large", "empty", "other"], digested)));
        complete(fill(&engine, &request).await, "nothing is wanted beforehand");
        let total = contents.len() as u64 + 3;
        assert_eq!(held(&engine, "set").await, Some(("OnDemand".to_owned(), [0, total, 0, 3, 0])));

        let file = engine.open("uid-set", request.root, &relative("dir/large")).await.expect("it is in the version");
        assert_eq!(file.size, contents.len() as u64);
        for offset in [5 << 20, 0, (11 << 20) + 70, (11 << 20) + 77] {
            let expected = &contents[offset..contents.len().min(offset + 100_000)];
            assert!(read(&file, offset as u64, 100_000).await.expect("the source is there") == expected, "{offset}");
        }
        let again = engine.open("uid-set", request.root, &relative("dir/large")).await.expect("it is in the version");
        assert!(read(&again, 0, contents.len()).await.expect("the source is there") == contents);
        let empty = engine.open("uid-set", request.root, &relative("empty")).await.expect("it is in the version");
        assert_eq!((empty.size, read(&empty, 0, 9).await.expect("nothing to read")), (0, Vec::new()));
        drop((file, again, empty));
        let (phase, [cached, _, files, ..]) = held(&engine, "set").await.expect("it is held");
        assert_eq!((phase.as_str(), cached, files), ("OnDemand", contents.len() as u64, 2));

        // Complete now, also for an engine that begins anew and has no source left.
        bed.remove("dir/large");
        engine.stop().await;
        drop(engine);
        let engine = bed.engine(AMPLE);
        let file = engine.open("uid-set", request.root, &relative("dir/large")).await.expect("it is complete");
        assert!(matches!(file.contents, Contents::Complete(_)));
        assert!(read(&file, 0, contents.len()).await.expect("it is there") == contents);
    }
}

async fn many_readers_of_a_file_that_fills_see_the_right_bytes(open: Open) {
    let bed = Bed::new(open);
    let contents = Arc::new(pattern(20 << 20));
    bed.write("large", &contents, 1);
    let engine = bed.engine(AMPLE);
    let request = on_demand(bed.request("set", bed.version(&["large"], true)));
    engine.prepare(&request).await.expect("the blocks are at hand");
    let readers = (0..16_usize).map(|reader| {
        let (engine, contents, root) = (engine.clone(), contents.clone(), request.root);
        tokio::spawn(async move {
            let file = engine.open("uid-set", root, &relative("large")).await.expect("it is in the version");
            for step in 0..40 {
                let offset = (reader * 7 + step * 13) % 40 * (512 << 10);
                let found = read(&file, offset as u64, 600_000).await.expect("the source is there");
                assert!(found == contents[offset..contents.len().min(offset + 600_000)], "reader {reader} at {offset}");
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.expect("the reader saw what it should");
    }
    let file = engine.open("uid-set", request.root, &relative("large")).await.expect("it is in the version");
    assert!(read(&file, 0, contents.len()).await.expect("it is there") == *contents);
    assert_eq!(used(&engine).await, contents.len() as u64);
}

async fn files_that_nobody_wants_beforehand_make_room_unless_they_are_open(open: Open) {
    let bed = Bed::new(open);
    let names = ["a", "b", "c", "d"];
    for name in names {
        bed.write(name, &[name.as_bytes()[0]; 30], 1);
    }
    bed.write("kept", &[9; 30], 1);
    let engine = bed.engine(100);
    let wanted = bed.request("wanted", bed.version(&["kept"], true));
    complete(fill(&engine, &wanted).await, "what is wanted");
    let request = on_demand(bed.request("set", bed.version(&names, true)));
    engine.prepare(&request).await.expect("the blocks are at hand");
    let open_one = |name: &'static str| {
        let (engine, root) = (engine.clone(), request.root);
        async move {
            let file = engine.open("uid-set", root, &relative(name)).await.expect("it is in the version");
            assert_eq!(read(&file, 0, 30).await.expect("the source is there"), [name.as_bytes()[0]; 30]);
            file
        }
    };
    let first = open_one("a").await;
    drop(open_one("b").await);
    // 90 of 100 bytes are used: one has to go, and it is not the one that is open, nor the one that is wanted.
    drop(open_one("c").await);
    assert!(used(&engine).await <= 100);
    assert_eq!(held(&engine, "wanted").await, ready(30, 1));
    bed.remove("a");
    assert!(matches!(engine.open("uid-set", request.root, &relative("a")).await, Ok(OpenFile { .. })));
    assert_eq!(read(&first, 0, 30).await.expect("it is open"), [b'a'; 30]);
    drop(first);
    for name in ["d", "b", "c", "d"] {
        drop(open_one(name).await);
        assert!(used(&engine).await <= 100);
    }
    assert_eq!(held(&engine, "wanted").await, ready(30, 1));
}

async fn a_file_without_room_is_read_through(open: Open) {
    let bed = Bed::new(open);
    let contents = pattern(3 << 20);
    bed.write("large", &contents, 1);
    let engine = bed.engine(1 << 20);
    let request = on_demand(bed.request("set", bed.version(&["large"], false)));
    engine.prepare(&request).await.expect("the blocks are at hand");
    let file = engine.open("uid-set", request.root, &relative("large")).await.expect("it is in the version");
    assert!(matches!(file.contents, Contents::Through(_)));
    assert!(read(&file, 0, contents.len()).await.expect("the source is there") == contents);
    assert!(read(&file, (3 << 20) - 5, 100).await.expect("the source is there") == contents[(3 << 20) - 5..]);
    assert_eq!(used(&engine).await, 0);
    bed.write("large", &contents, 2);
    let again = engine.open("uid-set", request.root, &relative("large")).await;
    let read_again = match &again {
        Ok(again) => read(again, 0, 10).await.map(drop),
        Err(_) => Err(EngineError::Stopped { op: "open" }),
    };
    assert!(read_again.is_err(), "another version is not read for this one");
}

async fn wrong_contents_are_never_complete(open: Open) {
    let bed = Bed::new(open);
    bed.write("small", b"12345", 1);
    let request = on_demand(bed.request("set", bed.version(&["small"], true)));
    bed.write("small", b"54321", 1);
    let engine = bed.engine(AMPLE);
    engine.prepare(&request).await.expect("the blocks are at hand");
    let file = engine.open("uid-set", request.root, &relative("small")).await.expect("it is in the version");
    let found = read(&file, 0, 5).await;
    assert!(
        matches!(found, Err(EngineError::DigestMismatch { .. })),
        "a file of one part is verified before it is read"
    );
    assert_eq!(used(&engine).await, 0);
    bed.write("small", b"12345", 1);
    assert_eq!(read(&file, 0, 5).await.expect("the right contents"), b"12345");
}

async fn only_the_prepared_version_is_opened(open: Open) {
    let bed = Bed::new(open);
    bed.write("a", b"12345", 1);
    let first = on_demand(bed.request("set", bed.version(&["a"], true)));
    let engine = bed.engine(AMPLE);
    let opened = engine.open("uid-set", first.root, &relative("a")).await.map(drop);
    assert!(matches!(opened, Err(EngineError::NotPrepared { .. })), "{opened:?}");
    engine.prepare(&first).await.expect("the blocks are at hand");
    let old = engine.open("uid-set", first.root, &relative("a")).await.expect("it is in the version");
    assert_eq!(read(&old, 0, 5).await.expect("the source is there"), b"12345");
    let opened = engine.open("uid-set", first.root, &relative("b")).await.map(drop);
    assert!(matches!(opened, Err(EngineError::NotFound { .. })), "{opened:?}");
    bed.write("a", b"other", 2);
    let second = on_demand(bed.request("set", bed.version(&["a"], true)));
    engine.prepare(&second).await.expect("the blocks are at hand");
    let opened = engine.open("uid-set", first.root, &relative("a")).await.map(drop);
    assert!(matches!(opened, Err(EngineError::Superseded { .. })), "{opened:?}");
    let new = engine.open("uid-set", second.root, &relative("a")).await.expect("it is in the version");
    assert_eq!(read(&new, 0, 5).await.expect("the source is there"), b"other");
    assert_eq!(read(&old, 0, 5).await.expect("it is open"), b"12345", "who has it open keeps it");
}

async fn what_was_fetched_of_a_file_survives_a_restart(open: Open) {
    const MIB: usize = 1 << 20;
    for digested in [false, true] {
        let bed = Bed::new(open);
        let contents = pattern(11 * MIB + 77);
        bed.write("large", &contents, 1);
        let engine = bed.engine(AMPLE);
        let request = on_demand(bed.request("set", bed.version(&["large"], digested)));
        engine.prepare(&request).await.expect("the blocks are at hand");
        let file = engine.open("uid-set", request.root, &relative("large")).await.expect("it is in the version");
        read(&file, 2 * MIB as u64, 3 * MIB).await.expect("the source is there");
        let half = Some(("OnDemand".to_owned(), [3 << 20, contents.len() as u64, 0, 1, 3 << 20]));
        assert_eq!((held(&engine, "set").await, used(&engine).await), (half.clone(), 3 << 20), "while it is open");
        drop(file);
        assert_eq!(held(&engine, "set").await, half, "closed");
        engine.stop().await;
        drop(engine);

        let engine = bed.engine(AMPLE);
        assert_eq!((held(&engine, "set").await, used(&engine).await), (half, 3 << 20), "after a restart");
        if digested {
            // Whoever fetched these again would be found out.
            let mut other = contents.clone();
            other[2 * MIB..5 * MIB].fill(0);
            bed.write("large", &other, 1);
        }
        engine.prepare(&request).await.expect("the blocks are at hand");
        let file = engine.open("uid-set", request.root, &relative("large")).await.expect("it is in the version");
        assert!(read(&file, 2 * MIB as u64, 3 * MIB).await.expect("it is there") == contents[2 * MIB..5 * MIB]);
        assert!(read(&file, 0, contents.len()).await.expect("the rest is at the source") == contents);
        assert_eq!(held(&engine, "set").await.expect("it is held").1[2], 1, "it is complete");
    }
}

async fn a_new_version_gives_up_what_was_fetched_of_files_that_changed(open: Open) {
    let bed = Bed::new(open);
    bed.write("large", &pattern(5 << 20), 1);
    let engine = bed.engine(AMPLE);
    let first = on_demand(bed.request("set", bed.version(&["large"], false)));
    engine.prepare(&first).await.expect("the blocks are at hand");
    let file = engine.open("uid-set", first.root, &relative("large")).await.expect("it is in the version");
    read(&file, 0, 1 << 20).await.expect("the source is there");
    drop(file);
    assert_eq!(used(&engine).await, 1 << 20);
    let changed = vec![7; 5 << 20];
    bed.write("large", &changed, 2);
    let second = on_demand(bed.request("set", bed.version(&["large"], false)));
    engine.prepare(&second).await.expect("the blocks are at hand");
    assert_eq!(used(&engine).await, 0);
    let file = engine.open("uid-set", second.root, &relative("large")).await.expect("it is in the version");
    assert!(read(&file, 0, changed.len()).await.expect("the source is there") == changed);
}

async fn a_load_brings_what_it_names_and_keeps_it_while_it_runs(open: Open) {
    let bed = Bed::new(open);
    bed.write("dir/a", &[1; 30], 1);
    bed.write("dir/b", &pattern(2 << 20), 1);
    bed.write("dir0", b"not in it", 1);
    bed.write("one", &[2; 10], 1);
    let names = ["dir/a", "dir/b", "dir0", "one"];
    let engine = bed.engine(AMPLE);
    let request = on_demand(bed.request("set", bed.version(&names, false)));
    let warm = |root, paths: &[&str]| WarmRequest {
        uid: "uid-set".to_owned(),
        root,
        paths: paths.iter().map(|path| relative(path)).collect(),
        page_cache: false,
    };
    let progress = watch::Sender::default();
    let early = engine.warm(&warm(request.root, &[]), &progress).await;
    assert!(matches!(early, Err(EngineError::NotPrepared { .. })), "{early:?}");
    engine.prepare(&request).await.expect("the blocks are at hand");
    let some = engine.warm(&warm(request.root, &["dir", "one"]), &progress).await.expect("the source is there");
    let bytes = (2 << 20) + 40;
    assert_eq!((some.files_done, some.files_total, some.bytes_done, some.bytes_total), (3, 3, bytes, bytes));
    assert_eq!((some.without_room, progress.borrow().bytes_done), (None, bytes));
    assert_eq!(held(&engine, "set").await.map(|(_, held)| held[2]), Some(3), "and no others");
    // All of it is there: no source is needed any more.
    bed.remove("dir/b");
    engine.warm(&warm(request.root, &["dir"]), &progress).await.expect("it is there");
    let faulty = engine.warm(&warm(request.root, &[]), &progress).await.expect("the rest is at the source");
    assert_eq!(faulty.files_done, 4);
    bed.write("one", b"new", 2);
    bed.write("dir/b", &pattern(2 << 20), 1);
    let newer = on_demand(bed.request("set", bed.version(&names, false)));
    engine.prepare(&newer).await.expect("the blocks are at hand");
    let late = engine.warm(&warm(request.root, &[]), &progress).await;
    assert!(matches!(late, Err(EngineError::Superseded { .. })), "{late:?}");

    // Others may push it out afterwards, but it does not push itself out.
    let bed = Bed::new(open);
    for name in ["a", "b", "c", "d"] {
        bed.write(name, &[3; 30], 1);
    }
    let engine = bed.engine(100);
    let request = on_demand(bed.request("set", bed.version(&["a", "b", "c", "d"], false)));
    engine.prepare(&request).await.expect("the blocks are at hand");
    let most = engine.warm(&warm(request.root, &[]), &progress).await.expect("the source is there");
    assert!(most.files_done == 3 && most.without_room.is_some(), "{most:?}");
    engine.warm(&warm(request.root, &["d"]), &progress).await.expect("one of the others makes room");
    assert_eq!(held(&engine, "set").await.map(|(_, held)| held[2]), Some(3));
}
