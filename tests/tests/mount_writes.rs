//! Writable mounts, from outside: what programs write is at the home, in both kinds of homes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use fluvial_tests::federation::{Api, DEADLINE, Federation, Up};
use fluvial_tests::minio::Minio;
use fluvial_tests::mount::{HomeKind, Mounted, kill, mount_processes, peak, writable_dataset};
use fluvial_tests::promise::promised;
use fluvial_tests::steps::{file_uri, s3_options};
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;

#[track_caller]
fn errno<T: std::fmt::Debug>(done: std::io::Result<T>) -> i32 {
    done.unwrap_err().raw_os_error().unwrap()
}

/// What is in a home, by the home's own means.
fn at_home(kind: HomeKind, folder: &Path, minio: Option<&Minio>, path: &str) -> Option<Vec<u8>> {
    match kind {
        HomeKind::Folder => fs::read(folder.join("home").join(path)).ok(),
        HomeKind::Bucket => {
            let (minio, key) = (minio.unwrap(), format!("set/{path}"));
            minio.keys("home").contains(&key).then(|| minio.get_object("home", &key))
        }
    }
}

fn server(kind: HomeKind) -> Option<Minio> {
    (kind == HomeKind::Bucket).then(Minio::start)
}

/// Everything that a mount can do, in one go, with what is at the home after each step.
fn everything_that_is_written_is_at_the_home(kind: HomeKind) {
    let minio = server(kind);
    let up = Up::start(1, &["a", "b"]);
    let api = &up.api;
    writable_dataset(api, kind, "ReadWriteMany", up.folder(), minio.as_ref());
    let mount = Mounted::by(api, "set", "a", up.folder().join("mount"));
    let home = |path: &str| at_home(kind, up.folder(), minio.as_ref(), path);
    let at = |path: &str| mount.directory.join(path);
    assert_eq!(fs::read(at("first")).unwrap(), b"first");

    promised("When a `close` or an `fsync` has succeeded, the file is at the home as it was written");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(at("new")).unwrap();
    file.write_all(b"hello").unwrap();
    file.sync_all().unwrap();
    assert_eq!(home("new").unwrap(), b"hello");
    file.write_all(b", world").unwrap();
    assert_eq!(fs::read(at("new")).unwrap(), b"hello, world", "who opens it on the mount sees it");
    drop(file);
    assert_eq!(home("new").unwrap(), b"hello, world");
    assert_eq!(at("new").metadata().unwrap().mode() & 0o7777, 0o640);
    assert_eq!(errno(OpenOptions::new().write(true).create_new(true).open(at("new"))), 17);
    OpenOptions::new().append(true).open(at("new")).unwrap().write_all(b"!").unwrap();
    assert_eq!(home("new").unwrap(), b"hello, world!");
    OpenOptions::new().write(true).open(at("new")).unwrap().set_len(5).unwrap();
    assert_eq!(home("new").unwrap(), b"hello");
    fs::write(at("new"), "anew").unwrap();
    assert_eq!(home("new").unwrap(), b"anew", "O_TRUNC");
    File::options().write(true).open(at("new")).unwrap().write_all_at(b"X", 10).unwrap();
    assert_eq!(home("new").unwrap(), b"anew\0\0\0\0\0\0X");
    fs::write(at("empty"), "").unwrap();
    assert_eq!(home("empty").unwrap(), b"");

    fs::create_dir(at("dir")).unwrap();
    assert_eq!(errno(fs::create_dir(at("dir"))), 17);
    fs::rename(at("new"), at("dir/renamed")).unwrap();
    assert_eq!((home("new"), home("dir/renamed").unwrap().len()), (None, 11));
    fs::write(at("other"), "other").unwrap();
    fs::rename(at("other"), at("dir/renamed")).unwrap();
    assert_eq!((home("other"), home("dir/renamed").unwrap()), (None, b"other".to_vec()));
    assert_eq!(errno(fs::remove_dir(at("dir"))), 39);
    let names = |path: &str| {
        let mut names: Vec<String> =
            fs::read_dir(at(path)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["dir", "empty", "first"]);
    assert_eq!(names("dir"), ["renamed"]);

    promised("A file that is unlinked or renamed over while it is open stays what it is for who has it open");
    let mut open = File::options().read(true).write(true).open(at("dir/renamed")).unwrap();
    fs::remove_file(at("dir/renamed")).unwrap();
    assert_eq!((home("dir/renamed"), at("dir").exists()), (None, true));
    open.write_all(b"OT").unwrap();
    open.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), open.metadata().unwrap().nlink()), ("OTher", 0));
    drop(open);
    assert_eq!(home("dir/renamed"), None);
    fs::remove_dir(at("dir")).unwrap();
    assert!(!at("dir").exists());

    symlink("first", at("link")).unwrap();
    assert_eq!(fs::read_link(at("link")).unwrap(), PathBuf::from("first"));
    assert_eq!(fs::read(at("link")).unwrap(), b"first");
    promised("A link that leads out of the dataset is refused (EPERM)");
    assert_eq!(errno(symlink("/etc/passwd", at("out"))), 1);
    assert_eq!(errno(symlink("../out", at("out"))), 1);
    fs::set_permissions(at("first"), Permissions::from_mode(0o751)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_600_000_000_123_456_789);
    File::options().write(true).open(at("first")).unwrap().set_modified(then).unwrap();
    let found = at("first").metadata().unwrap();
    assert_eq!((found.mode() & 0o7777, found.modified().unwrap(), found.len()), (0o751, then, 5));
    assert_eq!(home("first").unwrap(), b"first");

    promised("Hard links (EPERM), special files (EPERM), extended attributes (EOPNOTSUPP)");
    assert_eq!(errno(fs::hard_link(at("first"), at("second"))), 1);
    let fifo = Command::new("mkfifo").arg(at("fifo")).stderr(Stdio::piped()).output().unwrap();
    assert!(String::from_utf8_lossy(&fifo.stderr).contains("not permitted"), "{fifo:?}");
    let set = "import os,sys\ntry: os.setxattr(sys.argv[1],'user.a',b'1')\nexcept OSError as e: print(e.errno)";
    let said = Command::new("python3").args(["-c", set]).arg(at("first")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "95", "{said:?}");

    promised("A few seconds after something was written, the sources are listed, and what they hold is the version");
    let reader = Mounted { directory: up.folder().join("reader") };
    let shown = reader.directory.to_str().unwrap();
    api.fluvial(&["mount", "set", shown, "--cluster", "b", "--read-only", "--detach"]).unwrap();
    fs::write(at("late"), "late").unwrap();
    wait_for(DEADLINE, "the version to follow", || {
        let read = fs::read(reader.directory.join("late")).map_err(|error| error.to_string())?;
        if read == b"late" { Ok(()) } else { Err(String::from_utf8_lossy(&read).into_owned()) }
    });
    assert_eq!(tree::difference(&mount.directory, &reader.directory), "");
    assert_eq!(errno(fs::write(reader.directory.join("x"), "x")), 30);
    assert_eq!(reader.directory.join("first").metadata().unwrap().modified().unwrap(), then);
    let modes = api.query("select mode from mounts order by mode").unwrap();
    assert_eq!(modes[1]["mode"], "read-write", "{modes}");
    reader.end(api);
    let before = api.get("dataset", "set").unwrap()["status"]["root"].clone();
    fs::remove_file(at("late")).unwrap();
    mount.end(api);
    api.wait_until("dataset", "set", "/status/root", |root| *root != before);
}

#[test]
fn everything_that_is_written_to_a_folder_is_there() {
    everything_that_is_written_is_at_the_home(HomeKind::Folder);
}

#[test]
fn everything_that_is_written_to_a_bucket_is_there() {
    everything_that_is_written_is_at_the_home(HomeKind::Bucket);
}

/// A writer that was interrupted at any moment leaves what was there before, or all of what it wrote.
fn two_mounts_see_what_the_other_closed(kind: HomeKind) {
    let minio = server(kind);
    let up = Up::start(1, &["a", "b"]);
    writable_dataset(&up.api, kind, "ReadWriteMany", up.folder(), minio.as_ref());
    let one = Mounted::by(&up.api, "set", "a", up.folder().join("one"));
    let two = Mounted::by(&up.api, "set", "b", up.folder().join("two"));
    promised("who opens it afterwards sees that, on any mount of the dataset");
    let mut kept = Vec::new();
    for round in 0..20_usize {
        let (writer, reader) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        // Of the same size each second time, and looked at just before.
        let text = tree::bytes(round as u64, 100_000 + round / 2 % 2);
        let before = fs::read(reader.directory.join("file")).map(|before| before.len()).ok();
        fs::write(writer.directory.join("file"), &text).unwrap();
        assert!(fs::read(reader.directory.join("file")).unwrap() == text, "round {round}, after {before:?}");
        assert_eq!(reader.directory.join("file").metadata().unwrap().len(), text.len() as u64);
        let name = format!("moved-{round}");
        fs::rename(writer.directory.join("file"), writer.directory.join(&name)).unwrap();
        assert!(fs::read(reader.directory.join("file")).is_err(), "round {round}");
        // Who has it open keeps it while the other replaces it.
        let open = File::open(reader.directory.join(&name)).unwrap();
        let mut all = vec![0; text.len()];
        open.read_exact_at(&mut all, 0).unwrap();
        fs::write(writer.directory.join("temporary"), "replaced").unwrap();
        fs::rename(writer.directory.join("temporary"), writer.directory.join(&name)).unwrap();
        assert_eq!(fs::read(reader.directory.join(&name)).unwrap(), b"replaced");
        let mut again = vec![0; text.len()];
        open.read_exact_at(&mut again, 0).unwrap();
        assert!(again == text, "round {round}: it was open");
        kept.push((open, text));
    }
    for (round, (open, text)) in kept.iter().enumerate() {
        let mut all = vec![0; text.len()];
        open.read_exact_at(&mut all, 0).unwrap();
        assert!(all == *text, "round {round}: it was open all the time");
    }
    drop(kept);
    two.end(&up.api);
    one.end(&up.api);
}

#[test]
fn two_mounts_of_a_folder_see_what_the_other_closed() {
    two_mounts_see_what_the_other_closed(HomeKind::Folder);
}

#[test]
fn two_mounts_of_a_bucket_see_what_the_other_closed() {
    two_mounts_see_what_the_other_closed(HomeKind::Bucket);
}

#[test]
fn each_path_belongs_to_its_source() {
    let minio = Minio::start();
    minio.create_bucket("home");
    minio.put_object("home", "x/there", b"there");
    let up = Up::start(1, &["a"]);
    let (folder, kept) = (up.folder().join("folder"), up.folder().join("kept"));
    for directory in [&folder, &kept] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("there"), "there").unwrap();
    }
    let options = s3_options(&minio);
    let create = ["dataset", "create", "set", "--access-mode", "ReadWriteMany", "--wait", "--mount"];
    let (one, two, three) =
        ("s3://home/x=/in/bucket".to_owned(), file_uri(&folder) + "=/in/folder", file_uri(&kept) + "=/kept");
    up.api
        .fluvial_with(&[&create[..], &[one.as_str(), "--mount", &two, "--mount", &three]].concat(), &options)
        .unwrap();
    let mut dataset = up.api.get("dataset", "set").unwrap();
    let mounts = dataset["spec"]["mounts"].as_array_mut().unwrap();
    let kept_mount = mounts.iter_mut().find(|mount| mount["path"].as_str().unwrap().contains("kept")).unwrap();
    kept_mount["readOnly"] = true.into();
    let patch = serde_json::json!({ "spec": { "mounts": mounts } }).to_string();
    up.api.kubectl(&["patch", "dataset", "set", "--type", "merge", "-p", &patch]).unwrap();
    let mount = Mounted::new(&up.api, "set", up.folder().join("mount"));
    let at = |path: &str| mount.directory.join(path);

    promised("each path to its own source");
    fs::write(at("in/bucket/new"), "in the bucket").unwrap();
    fs::write(at("in/folder/new"), "in the folder").unwrap();
    assert_eq!(minio.get_object("home", "x/new"), b"in the bucket");
    assert_eq!(fs::read(folder.join("new")).unwrap(), b"in the folder");
    assert_eq!(fs::read(at("kept/there")).unwrap(), b"there");
    assert_eq!(errno(fs::write(at("kept/new"), "x")), 30);
    assert_eq!(errno(fs::remove_file(at("kept/there"))), 30);
    assert_eq!(errno(fs::write(at("in/new"), "x")), 30, "there is nobody to keep it");
    assert_eq!(errno(fs::rename(at("in/bucket/new"), at("in/folder/moved"))), 18);
    assert_eq!(errno(fs::remove_dir(at("in/folder"))), 16);
    let mut names: Vec<_> = fs::read_dir(at("in")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["bucket", "folder"]);
    mount.end(&up.api);
}

/// The process that serves the one mount, once there is one other than `last`.
#[track_caller]
fn process(folder: &Path, last: Option<u32>) -> u32 {
    wait_for(DEADLINE, "a mount process", || {
        mount_processes(folder).into_iter().find(|pid| Some(*pid) != last).ok_or("none")
    })
}

fn a_killed_process_costs_only_what_was_not_closed(kind: HomeKind) {
    let minio = server(kind);
    let up = Up::start(1, &["a"]);
    writable_dataset(&up.api, kind, "ReadWriteMany", up.folder(), minio.as_ref());
    let mount = Mounted::new(&up.api, "set", up.folder().join("mount"));
    let at = |path: &str| mount.directory.join(path);
    let closed = tree::bytes(3, 20 << 20);
    promised("When the mount process dies, what was closed stays, and so does what was written to a folder");
    let mut last = None;
    for round in 0..3 {
        fs::write(at("closed"), &closed).unwrap();
        let open = File::options().write(true).create(true).truncate(true).open(at(&format!("open-{round}"))).unwrap();
        open.write_all_at(b"not closed", 0).unwrap();
        // One whose upload, or write, is under way.
        let under_way = at("under-way");
        let writer = std::thread::spawn(move || {
            for number in 0_u8.. {
                if let Err(error) = fs::write(&under_way, vec![number; 30 << 20]) {
                    return error;
                }
            }
            unreachable!("it writes until it fails")
        });
        wait_for(DEADLINE, "the writer to be under way", || {
            let size = fs::metadata(at("under-way")).map_or(0, |found| found.len());
            if size > 1 << 20 { Ok(()) } else { Err(size) }
        });
        let pid = process(up.folder(), last);
        kill(pid);
        last = Some(pid);

        let since = Instant::now();
        promised("its writer sees an error (ECONNABORTED or ENOTCONN) with the next call");
        promised("the mount comes back at its path within 5 s");
        assert!([103, 107].contains(&errno(open.write_all_at(b"more", 4))));
        drop(open);
        let failed = writer.join().unwrap().raw_os_error().unwrap();
        assert!([107, 103, 5, 2].contains(&failed), "the writer saw {failed}");
        let back = wait_for(DEADLINE, "the mount to come back", || {
            fs::read(at("first")).map_err(|error| error.to_string()).map(|_| since.elapsed())
        });
        eprintln!("round {round}: the mount came back after {back:?}");
        assert!(back < Duration::from_secs(5), "it took {back:?}");
        assert!(fs::read(at("closed")).unwrap() == closed);
        let size = home_size(kind, up.folder(), minio.as_ref(), &format!("open-{round}"));
        assert_eq!(size, (kind == HomeKind::Folder).then_some(10), "what was written, and not closed");
        if kind == HomeKind::Bucket {
            promised("At an S3 prefix a file appears as a whole, when it is closed or synced, and never half written");
            let whole = home_size(kind, up.folder(), minio.as_ref(), "under-way");
            assert!(whole.is_none_or(|size| size == 30 << 20), "{whole:?}");
        }
    }
    if let Some(minio) = &minio {
        wait_for(DEADLINE, "unfinished uploads to be given up", || {
            let left = minio.uploads();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }
    mount.end(&up.api);
}

fn home_size(kind: HomeKind, folder: &Path, minio: Option<&Minio>, path: &str) -> Option<usize> {
    at_home(kind, folder, minio, path).map(|contents| contents.len())
}

#[test]
fn a_killed_process_loses_nothing_that_was_written_to_a_folder() {
    a_killed_process_costs_only_what_was_not_closed(HomeKind::Folder);
}

#[test]
fn a_killed_process_leaves_a_bucket_without_halves() {
    a_killed_process_costs_only_what_was_not_closed(HomeKind::Bucket);
}

#[test]
fn writers_do_not_notice_that_the_agent_dies_and_staging_has_a_bound() {
    let minio = Minio::start();
    let mut federation = Federation::start(1, &[]);
    federation.member_arguments = vec!["--staging".to_owned(), "64Mi".to_owned()];
    federation.add_member("m");
    federation.api.wait_until("cluster", "m", "/status/state", |state| state == "Ready");
    writable_dataset(&federation.api, HomeKind::Bucket, "ReadWriteMany", federation.folder(), Some(&minio));
    let mount = Mounted::new(&federation.api, "set", federation.folder().join("mount"));
    let at = |path: &str| mount.directory.join(path);
    promised("When the agent dies, writers do not notice");
    let open = File::options().write(true).create_new(true).open(at("over")).unwrap();
    open.write_all_at(b"before", 0).unwrap();
    let pid = process(federation.folder(), None);
    federation.kill_member("m");
    open.write_all_at(b", after", 6).unwrap();
    drop(open);
    assert_eq!(minio.get_object("home", "set/over"), b"before, after");
    federation.run_member("m");

    promised("a write for which there is no room is ENOSPC");
    let block = vec![7; 1 << 20];
    let mut file = File::create(at("too-large")).unwrap();
    let failed = (0..200).find_map(|_| file.write_all(&block).err()).expect("there is no room for it");
    assert_eq!(failed.raw_os_error(), Some(28));
    drop(file);
    fs::remove_file(at("too-large")).unwrap();
    // What fits goes through, again and again, and what is read does not stay for ever.
    let contents = tree::bytes(9, 48 << 20);
    for round in 0..4 {
        fs::write(at("fits"), &contents).unwrap();
        assert!(fs::read(at("fits")).unwrap() == contents, "round {round}");
    }
    // Holes take no room; and none of it is in memory.
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    sparse.write_all_at(b"end", (1 << 30) - 3).unwrap();
    sparse.sync_all().unwrap();
    assert_eq!(process(federation.folder(), None), pid, "the process lives on");
    let peak = peak(pid) >> 20;
    assert!(peak < 160, "the mount process took {peak} MiB at its peak");
    drop(sparse);
    mount.end(&federation.api);
}

#[test]
fn what_cannot_be_written_says_what_would_be_right() {
    let mut federation = Federation::start(1, &["a"]);
    let api = federation.api.clone();
    writable_dataset(&api, HomeKind::Folder, "ReadWriteOnce", federation.folder(), None);
    let first = Mounted::by(&api, "set", "a", federation.folder().join("one"));
    promised("With `ReadWriteOnce` one mount writes: the next one fails and names the first");
    let refused = |api: &Api, dataset: &str, member: &str, directory: &str| {
        let directory = federation.folder().join(directory);
        let shown = directory.to_str().unwrap().to_owned();
        api.fluvial(&["mount", dataset, &shown, "--cluster", member, "--detach", "--timeout", "20s"]).unwrap_err()
    };
    let said = refused(&api, "set", "a", "two");
    assert!(said.contains("writes to the dataset already") && said.contains("ReadWriteOnce"), "{said}");
    assert!(said.contains("--read-only"), "{said}");
    let reader = Mounted { directory: federation.folder().join("two") };
    api.fluvial(&["mount", "set", reader.directory.to_str().unwrap(), "--read-only", "--detach"]).unwrap();
    reader.end(&api);
    first.end(&api);
    let again = Mounted::by(&api, "set", "a", federation.folder().join("two"));
    again.end(&api);

    let (storage, home) = (federation.folder().join("storage"), federation.folder().join("storage/default"));
    api.path_storage("store", "a", &storage);
    api.begin_migration("copy", "set", "store");
    api.complete("copy");
    let uri = api.home("set", "store");
    assert!(home.is_dir());
    let patch = serde_json::json!({ "spec": { "mounts": [{ "mountPoint": uri, "name": "set", "path": "/" }] } });
    api.kubectl(&["patch", "dataset", "set", "--type", "merge", "-p", &patch.to_string()]).unwrap();
    let said = refused(&api, "set", "a", "three");
    assert!(said.contains("homes are never written") && said.contains("\"store\""), "{said}");
    let yaml = "{apiVersion: data.fluid.io/v1alpha1, kind: Dataset, metadata: {name: web}, spec: {accessModes:                 [ReadWriteMany], mounts: [{mountPoint: 'https://example.com/x', name: x}]}}";
    api.apply(yaml).unwrap();
    let said = refused(&api, "web", "a", "four");
    assert!(said.contains("https://example.com/x cannot be written"), "{said}");
    federation.member_arguments.clear();
}
