//! Mounts, from outside: what a program sees in a mounted directory, whatever happens to the processes behind it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use fluvial_tests::federation::{Api, DEADLINE, Federation, Up};
use fluvial_tests::minio::Minio;
use fluvial_tests::mount::{Mounted, kill, mount_processes, peak};
use fluvial_tests::random::Random;
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;

/// The one mount as the hub sees it, once it stands so.
#[track_caller]
fn stands(api: &Api, what: &str, good: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    wait_for(DEADLINE, what, || {
        let all = api.kubectl(&["get", "datasetmounts", "-o", "json"])?;
        let all: serde_json::Value = serde_json::from_str(&all).map_err(|error| error.to_string())?;
        let status = all["items"][0]["status"].clone();
        if good(&status) { Ok(status) } else { Err(status.to_string()) }
    })
}

/// Reads a file again and again, at many places, through handles old and new, and stops at the first wrong byte or error.
struct Readers {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Readers {
    fn start(file: &Path, contents: &Arc<Vec<u8>>, count: u64) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = |number: u64| {
            let (stop, rounds, contents) = (stop.clone(), rounds.clone(), contents.clone());
            let file = file.to_owned();
            std::thread::spawn(move || {
                let kept = File::open(&file).unwrap_or_else(|error| panic!("reader {number} opens: {error}"));
                let mut random = Random::new(number * 2_654_435_761 + 1);
                while !stop.load(Ordering::Relaxed) {
                    let offset = random.below(contents.len() as u64 - 70_000);
                    let mut buffer = vec![0; 65_537];
                    let mut anew = None;
                    let from = if random.below(2) == 0 {
                        &kept
                    } else {
                        let opened = File::open(&file);
                        anew.insert(opened.unwrap_or_else(|error| panic!("reader {number} opens again: {error}")))
                    };
                    from.read_exact_at(&mut buffer, offset)
                        .unwrap_or_else(|error| panic!("reader {number} at {offset}: {error}"));
                    let at = usize::try_from(offset).unwrap();
                    assert!(buffer == contents[at..at + buffer.len()], "reader {number} sees wrong bytes at {offset}");
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let threads = (0..count).map(thread).collect();
        Self { stop, rounds, threads }
    }

    /// Waits until so many more reads were right.
    #[track_caller]
    fn go_on(&self, more: u64) {
        let aim = self.rounds.load(Ordering::Relaxed) + more;
        wait_for(DEADLINE, "the readers to read on", || {
            let now = self.rounds.load(Ordering::Relaxed);
            assert!(!self.threads.iter().any(std::thread::JoinHandle::is_finished), "a reader has failed");
            if now >= aim { Ok(()) } else { Err(now) }
        });
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a reader saw what it should not");
        }
    }
}

#[test]
fn a_mounted_dataset_is_the_folder_and_unmounted_it_leaves_nothing() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let source = up.folder().join("source");
    tree::make(&source, 11, 300, 40_000);
    fs::create_dir_all(source.join("deep/er/directory")).unwrap();
    fs::write(source.join("deep/er/directory/a name with spaces, ü and \n"), "x").unwrap();
    fs::write(source.join("empty"), "").unwrap();
    std::os::unix::fs::symlink("deep/er", source.join("link")).unwrap();
    api.path_dataset("set", &source);

    let mount = Mounted::new(api, "set", up.folder().join("mounts/set"));

    assert_eq!(tree::difference(&source, &mount.directory), "");
    let (before, after) = (source.join("empty").metadata().unwrap(), mount.directory.join("empty").metadata().unwrap());
    assert_eq!((before.mtime(), before.mode()), (after.mtime(), after.mode()));
    let inode = |path: &str| mount.directory.join(path).symlink_metadata().unwrap().ino();
    assert_eq!(inode("deep/er"), mount.directory.join("link").metadata().unwrap().ino());
    let refused = fs::write(mount.directory.join("new"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(30), "read-only: {refused}");
    assert!(fs::read(mount.directory.join("no such file")).is_err());
    let mode = stands(api, "how it is mounted", |status| status["phase"] == "Mounted");
    assert_eq!(mode["mode"], "passthrough", "{mode}");
    // All of it was read: the cache says so, byte for byte.
    let cache = api.wait_until("cachelocation", "set.a", "/status/phase", |phase| phase == "Ready");
    assert_eq!(cache["status"]["cachedBytes"], cache["status"]["totalBytes"], "{cache}");
    let rows = api.query("select dataset, directory, phase, mode from mounts").unwrap();
    assert_eq!(rows[0]["directory"], mount.directory.to_str().unwrap(), "{rows}");

    let open = File::open(mount.directory.join("deep/er/directory/a name with spaces, ü and \n")).unwrap();
    api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
    assert!(!mount.is_there());
    assert_eq!(fs::read_dir(&mount.directory).unwrap().count(), 0);
    let mut text = String::new();
    (&open).read_to_string(&mut text).unwrap();
    assert_eq!(text, "x", "who has a file open keeps it");
    drop(open);
    wait_for(DEADLINE, "the mount process to end", || {
        let left = mount_processes(up.folder());
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn names_that_only_look_alike_are_different_files_and_what_no_dataset_holds_is_told() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let source = up.folder().join("source");
    fs::create_dir(&source).unwrap();
    // Case, and two ways to write the same letter.
    for name in ["name", "Name", "NAME", "caf\u{e9}", "cafe\u{301}", "K", "\u{212a}", "..a", " ", "-rf"] {
        fs::write(source.join(name), name.escape_unicode().to_string()).unwrap();
    }
    api.path_dataset("set", &source);
    let mount = Mounted::new(api, "set", up.folder().join("mount"));
    assert_eq!(tree::difference(&source, &mount.directory), "");
    assert_eq!(fs::read_dir(&mount.directory).unwrap().count(), 10);
    let attributes = Command::new("python3")
        .args(["-c", "import os, sys; print(os.listxattr(sys.argv[1]))"])
        .arg(mount.directory.join("name"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&attributes.stdout).into_owned() + &String::from_utf8_lossy(&attributes.stderr);
    assert!(said.starts_with("[]") || said.contains("not supported"), "{said}");

    // Busy: a reader, and a program whose folder it is.
    let mut inside = Command::new("sleep").arg("60").current_dir(&mount.directory).spawn().unwrap();
    api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
    assert!(!mount.is_there());
    inside.kill().unwrap();
    inside.wait().unwrap();

    let odd = up.folder().join("odd");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("file"), "x").unwrap();
    assert!(Command::new("mkfifo").arg(odd.join("pipe")).status().unwrap().success());
    let refused = api
        .fluvial(&["dataset", "create", "odd", "--mount", odd.to_str().unwrap(), "--wait", "--timeout", "30s"])
        .unwrap_err();
    assert!(refused.contains("pipe"), "it names what cannot be held: {refused}");
}

#[test]
fn a_source_that_is_changed_in_mid_read_is_an_error_and_never_two_versions() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let source = up.folder().join("source");
    fs::create_dir(&source).unwrap();
    let (before, after) = (vec![b'1'; 40 << 20], vec![b'2'; 40 << 20]);
    fs::write(source.join("overwritten"), &before).unwrap();
    fs::write(source.join("truncated"), &before).unwrap();
    api.path_dataset("set", &source);
    let mount = Mounted::new(api, "set", up.folder().join("mount"));
    let mut first = vec![0; 4096];
    let open = ["overwritten", "truncated"].map(|name| {
        let file = File::open(mount.directory.join(name)).unwrap();
        file.read_exact_at(&mut first, 0).unwrap();
        assert!(first.iter().all(|byte| *byte == b'1'));
        (name, file)
    });

    fs::write(source.join("overwritten"), &after).unwrap();
    File::options().write(true).open(source.join("truncated")).unwrap().set_len(20 << 20).unwrap();

    for (name, file) in open {
        let mut failed = 0;
        for piece in 0..40 {
            let mut buffer = vec![0; 1 << 20];
            match file.read_exact_at(&mut buffer, piece << 20) {
                Ok(()) => assert!(buffer.iter().all(|byte| *byte == b'1'), "{name}: other bytes in piece {piece}"),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(5), "{error}");
                    failed += 1;
                }
            }
        }
        assert!(failed > 0, "{name}: what was not fetched before is gone");
        let again = fs::read(mount.directory.join(name)).unwrap_err();
        assert_eq!(again.raw_os_error(), Some(5), "{again}");
    }
    api.fluvial(&["dataset", "rescan", "set"]).unwrap();
    wait_for(DEADLINE, "what the source holds now", || {
        let found = tree::difference(&source, &mount.directory);
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
    api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

#[test]
fn a_mount_in_the_foreground_ends_with_its_command() {
    let up = Up::start(1, &["a"]);
    let source = up.folder().join("source");
    tree::make(&source, 3, 5, 1000);
    up.api.path_dataset("set", &source);
    let directory = up.folder().join("mount");
    let mut command = up.api.command();
    command.args(["mount", "set", directory.to_str().unwrap()]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mount = Mounted { directory };
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("is mounted at"), "{line}");
    assert_eq!(tree::difference(&source, &mount.directory), "");

    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());

    assert!(child.wait().unwrap().success());
    assert!(!mount.is_there());
}

#[test]
fn what_cannot_be_mounted_says_why_and_hides_nothing() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let (source, full) = (up.folder().join("source"), up.folder().join("full"));
    tree::make(&source, 3, 5, 1000);
    api.path_dataset("set", &source);
    fs::create_dir(&full).unwrap();
    fs::write(full.join("mine"), "x").unwrap();

    let refused = api.fluvial(&["mount", "set", full.to_str().unwrap(), "--detach", "--timeout", "3s"]).unwrap_err();
    assert!(refused.contains("is not empty"), "{refused}");
    assert_eq!(fs::read_to_string(full.join("mine")).unwrap(), "x");
    let refused = api.fluvial(&["mount", "none", "/nowhere/x", "--detach", "--timeout", "3s"]).unwrap_err();
    assert!(refused.contains("no dataset \"none\""), "{refused}");
    let refused = api
        .apply(
            "{apiVersion: fluvial.io/v1alpha1, kind: DatasetMount, metadata: {name: m}, spec: {dataset: set, cluster: a, \
             directory: relative/path}}",
        )
        .unwrap_err();
    assert!(refused.contains("spec.directory") && refused.contains("absolute path"), "{refused}");

    let mount = Mounted::new(api, "set", up.folder().join("mount"));
    let second = format!(
        "{{apiVersion: fluvial.io/v1alpha1, kind: DatasetMount, metadata: {{name: z}}, spec: {{dataset: set, cluster: a, \
         directory: {}/}}}}",
        mount.directory.display()
    );
    api.apply(&second).unwrap();
    let told = api.wait_until("datasetmount", "z", "/status/phase", |phase| phase == "Failed");
    assert!(told["status"]["message"].as_str().unwrap().contains("has this directory already"), "{told}");
    api.fluvial(&["unmount", "z"]).unwrap();
    assert_eq!(tree::difference(&source, &mount.directory), "", "the first one is not touched");
    api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
    let refused = api.fluvial(&["unmount", "/no/such/place"]).unwrap_err();
    assert!(refused.contains("nothing is mounted"), "{refused}");
}

#[test]
fn readers_do_not_notice_when_the_mount_process_is_killed() {
    let minio = Minio::start();
    minio.create_bucket("data");
    let contents = Arc::new(tree::bytes(5, 40 << 20));
    minio.put_object("data", "large", &contents);
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    api.s3_dataset("set", "data", &minio);
    let mount = Mounted::new(api, "set", up.folder().join("mount"));
    // The first kills come while the file fills, the last ones when the kernel reads it by itself.
    let readers = Readers::start(&mount.directory.join("large"), &contents, 4);
    let mut last = 0;
    for round in 0..8 {
        readers.go_on(if round < 4 { 5 } else { 300 });
        let status = stands(api, "another process", |status| {
            status["phase"] == "Mounted" && status["process"].as_u64().is_some_and(|pid| pid != last)
        });
        last = status["process"].as_u64().unwrap();
        kill(u32::try_from(last).unwrap());
    }
    readers.go_on(300);
    readers.end();
    assert!(fs::read(mount.directory.join("large")).unwrap() == *contents);
    api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

#[test]
fn readers_wait_for_an_agent_that_was_killed_and_its_successor_finds_the_mount() {
    let minio = Minio::start();
    minio.create_bucket("data");
    let contents = Arc::new(tree::bytes(6, 30 << 20));
    minio.put_object("data", "large", &contents);
    minio.put_object("data", "other", b"other");
    let mut federation = Federation::start(1, &["m"]);
    federation.api.s3_dataset("set", "data", &minio);
    let mount = Mounted::new(&federation.api, "set", federation.folder().join("mount"));
    let readers = Readers::start(&mount.directory.join("large"), &contents, 3);
    readers.go_on(3);
    let process = stands(&federation.api, "its process", |status| status["process"].is_u64())["process"].clone();

    for _ in 0..2 {
        federation.kill_member("m");
        federation.run_member("m");
        readers.go_on(50);
    }

    assert_eq!(fs::read(mount.directory.join("other")).unwrap(), b"other");
    readers.end();
    let now = stands(&federation.api, "its process", |status| status["phase"] == "Mounted")["process"].clone();
    assert_eq!(now, process, "it was not replaced");
    federation.api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
    assert!(!mount.is_there());
}

#[test]
fn readers_wait_for_a_source_that_hangs() {
    let minio = Minio::start();
    minio.create_bucket("data");
    let contents = Arc::new(tree::bytes(8, 60 << 20));
    minio.put_object("data", "large", &contents);
    let up = Up::start(1, &["a"]);
    up.api.s3_dataset("set", "data", &minio);
    let mount = Mounted::new(&up.api, "set", up.folder().join("mount"));
    let file = mount.directory.join("large");
    let mut begin = vec![0; 4096];
    File::open(&file).unwrap().read_exact_at(&mut begin, 0).unwrap();
    assert!(begin == contents[..4096]);
    minio.hang();
    let reader = std::thread::spawn(move || fs::read(file));
    wait_for(DEADLINE, "the reader to be stuck in a read", || {
        // What was fetched ahead is read; then it waits, and does not fail.
        assert!(!reader.is_finished(), "it should wait");
        let waits = fs::read_dir("/proc/self/task").unwrap().flatten().any(|task| {
            let state = fs::read_to_string(task.path().join("stack")).unwrap_or_default();
            state.contains("fuse") || state.contains("folio_wait")
        });
        if waits { Ok(()) } else { Err("it does not wait") }
    });
    minio.go_on();
    assert!(reader.join().unwrap().unwrap() == *contents);
    up.api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

#[test]
fn a_new_version_appears_as_a_whole_and_who_has_a_file_open_keeps_his() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let source = up.folder().join("source");
    fs::create_dir_all(source.join("dir")).unwrap();
    for (name, text) in [("changed", "old"), ("dir/dropped", "gone soon"), ("dir/kept", "the same")] {
        fs::write(source.join(name), text).unwrap();
    }
    api.path_dataset("set", &source);
    let mount = Mounted::new(api, "set", up.folder().join("mount"));
    assert_eq!(tree::difference(&source, &mount.directory), "");
    let mut open = File::open(mount.directory.join("changed")).unwrap();
    let kept = mount.directory.join("dir/kept").metadata().unwrap();

    fs::remove_file(source.join("dir/dropped")).unwrap();
    fs::write(source.join("changed"), "new and longer").unwrap();
    fs::write(source.join("dir/new"), "was not there").unwrap();
    // A changed spec has the sources listed again.
    let uri = format!("file://{}", source.display());
    let patch = format!(r#"{{"spec":{{"mounts":[{{"mountPoint":"{uri}","name":"again","path":"/"}}]}}}}"#);
    api.kubectl(&["patch", "dataset", "set", "--type", "merge", "-p", &patch]).unwrap();

    wait_for(DEADLINE, "the new version", || {
        let found = tree::difference(&source, &mount.directory);
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old");
    assert_eq!(kept.len(), mount.directory.join("dir/kept").metadata().unwrap().len());
    let now = stands(api, "the new root", |status| status["phase"] == "Mounted");
    assert_eq!(now["root"], api.get("dataset", "set").unwrap()["status"]["root"]);
    drop(open);
    api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

#[test]
fn a_mount_whose_process_and_agent_both_died_comes_back_at_its_place() {
    let mut federation = Federation::start(1, &["m"]);
    let source = federation.folder().join("source");
    tree::make(&source, 9, 20, 2000);
    federation.api.path_dataset("set", &source);
    let mount = Mounted::new(&federation.api, "set", federation.folder().join("mount"));
    federation.kill_member("m");
    mount_processes(federation.folder()).into_iter().for_each(kill);
    assert!(fs::read_dir(&mount.directory).is_err(), "nobody serves it");

    federation.run_member("m");

    let since = Instant::now();
    wait_for(DEADLINE, "the mount to come back", || {
        let found = tree::difference(&source, &mount.directory);
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
    eprintln!("it came back after {:?}", since.elapsed());
    federation.api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

#[test]
fn a_directory_of_a_hundred_thousand_files_is_listed() {
    let up = Up::start(1, &["a"]);
    let source = up.folder().join("source");
    fs::create_dir_all(source.join("many")).unwrap();
    for number in 0..100_000 {
        File::create(source.join(format!("many/{number:06}"))).unwrap();
    }
    up.api.path_dataset("set", &source);
    let mount = Mounted::new(&up.api, "set", up.folder().join("mount"));
    let since = Instant::now();
    let mut names: Vec<_> =
        fs::read_dir(mount.directory.join("many")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    eprintln!("listed in {:?}", since.elapsed());
    names.sort();
    assert_eq!(names.len(), 100_000);
    assert!(names.iter().enumerate().all(|(number, name)| *name == *format!("{number:06}")));
    // From the middle on, as programs do that come back.
    let mut file = File::open(mount.directory.join("many/050000")).unwrap();
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), 0);
    up.api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

/// Files of the test below, in directories of a thousand, unless `FLUVIAL_FILES` says how many: a million takes two and a
/// half minutes here.
const FILES: u32 = 200_000;
/// What a process may have in memory at its peak, however many there are.
const PEAK: u64 = 128 << 20;

#[test]
fn many_files_are_found_by_name_and_cost_no_memory() {
    let files = std::env::var("FLUVIAL_FILES").ok().and_then(|text| text.parse().ok()).unwrap_or(FILES);
    let mut federation = Federation::start(1, &[]);
    federation.add_member("m");
    // In memory: to make and remove so many is not what is tested.
    let source = tempfile::tempdir_in("/dev/shm").unwrap();
    let source = source.path();
    for number in 0..files {
        let directory = source.join(format!("{:04}", number / 1000));
        if number % 1000 == 0 {
            fs::create_dir_all(&directory).unwrap();
        }
        let file = File::create(directory.join(format!("{number:07}"))).unwrap();
        if number % 20_011 == 7 {
            file.write_all_at(&number.to_le_bytes(), 0).unwrap();
        }
    }
    let api = &federation.api;
    let uri = format!("file://{}", source.to_str().unwrap());
    let since = Instant::now();
    api.fluvial(&["dataset", "create", "set", "--mount", &uri, "--wait", "--timeout", "170s"]).unwrap();
    eprintln!("scanned in {:?}", since.elapsed());
    let since = Instant::now();
    let mount = Mounted::new(api, "set", federation.folder().join("mount"));
    eprintln!("mounted in {:?}", since.elapsed());

    let since = Instant::now();
    let listed: usize = fs::read_dir(&mount.directory)
        .unwrap()
        .map(|directory| fs::read_dir(directory.unwrap().path()).unwrap().count())
        .sum();
    eprintln!("listed in {:?}", since.elapsed());
    assert_eq!(listed, usize::try_from(files).unwrap());
    let since = Instant::now();
    for number in (7..files).step_by(20_011) {
        let file = mount.directory.join(format!("{:04}/{number:07}", number / 1000));
        assert_eq!(fs::read(file).unwrap(), number.to_le_bytes());
    }
    eprintln!("read from in {:?}", since.elapsed());
    let agent = peak(federation.member_process("m"));
    let serving: Vec<u64> = mount_processes(federation.folder()).into_iter().map(peak).collect();
    eprintln!("peak of the agent {} MiB, of the mount {} MiB", agent >> 20, serving[0] >> 20);
    assert!(agent < PEAK, "the agent had {agent} bytes");
    assert!(serving.iter().all(|bytes| *bytes < PEAK), "the mount process had {serving:?} bytes");
    api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}
