//! Mounts under faults: sources that fail and lie, disks of the cache that are full, read-only or lose their power, and
//! processes killed at random. A reader may have to wait; it never sees a wrong byte.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fluvial_tests::disk::Disk;
use fluvial_tests::federation::{DEADLINE, Federation, Up};
use fluvial_tests::minio::Minio;
use fluvial_tests::mount::{Mounted, kill, mount_processes, peak};
use fluvial_tests::proxy::{Fault, Plan, Proxy};
use fluvial_tests::random::{Random, number, seed};
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;

/// Kills of one run, unless the environment says how many.
const KILLS: u64 = 10;
/// What the agents of the tests of memory are given, and must not exceed.
const AGENT_PEAK: u64 = 192 << 20;
/// Most memory of a mount process.
const MOUNT_PEAK: u64 = 128 << 20;

#[test]
fn readers_do_not_notice_a_source_that_fails_now_and_then() {
    let minio = Minio::start();
    minio.create_bucket("data");
    let faults = [
        ("e500", Plan { fault: Fault::Status(500), every: 3 }),
        ("e503", Plan { fault: Fault::Status(503), every: 2 }),
        ("e429", Plan { fault: Fault::Status(429), every: 2 }),
        ("cut", Plan { fault: Fault::Truncate, every: 3 }),
        ("dropped", Plan { fault: Fault::Drop, every: 3 }),
        ("slow", Plan { fault: Fault::Slow, every: 1 }),
    ];
    let contents = tree::bytes(21, 21_000_001);
    for (name, _) in &faults {
        minio.put_object("data", name, &contents);
    }
    let proxy = Proxy::start(&minio.endpoint);
    let up = Up::start(1, &["a"]);
    up.api.s3_dataset_at("set", "data", &minio, &proxy.endpoint);
    let mount = Mounted::new(&up.api, "set", up.folder().join("mount"));
    for (name, plan) in faults {
        proxy.set(Some(plan));
        assert!(fs::read(mount.directory.join(name)).unwrap() == contents, "wrong bytes under {name}");
        assert!(proxy.hits() > 0, "{name} took no effect");
    }
    up.api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

#[test]
fn a_source_that_forbids_is_an_error_at_once_and_not_for_ever() {
    let minio = Minio::start();
    minio.create_bucket("data");
    minio.put_object("data", "file", b"contents");
    let proxy = Proxy::start(&minio.endpoint);
    let up = Up::start(1, &["a"]);
    up.api.s3_dataset_at("set", "data", &minio, &proxy.endpoint);
    let mount = Mounted::new(&up.api, "set", up.folder().join("mount"));
    proxy.set(Some(Plan { fault: Fault::Status(403), every: 1 }));

    let refused = fs::read(mount.directory.join("file")).unwrap_err();

    assert_eq!(refused.raw_os_error(), Some(5), "{refused}");
    assert!(proxy.hits() > 0);
    proxy.set(None);
    assert_eq!(fs::read(mount.directory.join("file")).unwrap(), b"contents");
    up.api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

/// Files that are digested, one member, and the proxy between them: what was migrated has digests.
#[test]
fn wrong_bytes_of_a_source_are_found_out_by_their_digest() {
    let minio = Minio::start();
    minio.create_bucket("data");
    let proxy = Proxy::start(&minio.endpoint);
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let source = up.folder().join("source");
    fs::create_dir(&source).unwrap();
    let contents = tree::bytes(3, 700_000);
    fs::write(source.join("file"), &contents).unwrap();
    api.path_dataset("set", &source);
    api.s3_storage_at("store", "a", "data", &minio, &proxy.endpoint);
    api.fluvial(&["migrate", "set", "--to", "store", "--mode", "move", "--wait", "--timeout", "60s"]).unwrap();
    fs::remove_dir_all(&source).unwrap();
    let mount = Mounted::new(api, "set", up.folder().join("mount"));
    proxy.set(Some(Plan { fault: Fault::WrongByte, every: 1 }));

    let refused = fs::read(mount.directory.join("file"));

    assert!(proxy.hits() > 0, "it was read from elsewhere");
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(5));
    proxy.set(None);
    assert!(fs::read(mount.directory.join("file")).unwrap() == contents);
    api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

#[test]
fn a_cache_that_is_full_or_read_only_fails_no_reader() {
    let minio = Minio::start();
    minio.create_bucket("data");
    let contents = tree::bytes(31, 20_000_001);
    for name in ["full", "read-only"] {
        minio.put_object("data", name, &contents);
    }
    let small = tree::bytes(32, 50_000);
    for number in 0..300 {
        minio.put_object("data", &format!("small/{number}"), &small);
    }
    let mut federation = Federation::start(1, &[]);
    let disk = Disk::new(federation.folder().join("disk"), federation.folder().join("tier"), 64);
    // It promises more than the disk has.
    federation.member_arguments = vec!["--tier".to_owned(), format!("SSD={}/cache:1Gi", disk.text())];
    federation.add_member("m");
    federation.api.s3_dataset("set", "data", &minio);
    let mount = Mounted::new(&federation.api, "set", federation.folder().join("mount"));
    let read = |name: &str| fs::read(mount.directory.join(name)).unwrap();

    disk.set_read_only(true);
    assert!(read("read-only") == contents, "read beside a read-only disk");
    let rested = || federation.log("member-m").matches("the tier is left alone").count();
    let before = rested();
    assert!(before > 0, "nothing was written to it");
    disk.set_read_only(false);
    // Once it was left alone for a while, it is used again.
    let mut numbers = 0..300;
    wait_for(DEADLINE, "the cache to be used again", || {
        // Another one each time: the kernel does not ask twice.
        assert!(read(&format!("small/{}", numbers.next().unwrap())) == small);
        let found = federation.api.get("cachelocation", "set.m").unwrap_or_default();
        if found["status"]["cachedBytes"].as_u64() > Some(0) { Ok(()) } else { Err(found["status"].to_string()) }
    });
    disk.fill();
    assert!(read("full") == contents, "read beside a full disk");
    assert!(rested() > before, "nothing was written to it");
    federation.api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

#[test]
fn memory_keeps_to_its_limit_however_large_the_file_and_many_the_readers() {
    memory_of_64_readers("256Mi");
}

#[test]
fn memory_keeps_to_its_limit_while_a_file_with_room_fills() {
    memory_of_64_readers("200Gi");
}

/// 64 readers of one file of 100 GiB, most of it a hole, with a tier of so many bytes.
fn memory_of_64_readers(room: &str) {
    let mut federation = Federation::start(1, &[]);
    let source = federation.folder().join("source");
    fs::create_dir(&source).unwrap();
    let size = 100_u64 << 30;
    let file = File::create(source.join("large")).unwrap();
    file.set_len(size).unwrap();
    // Some of it is no hole.
    let marks: Vec<u64> = (0..64).map(|number| number * (size / 64) + 12_345).collect();
    for mark in &marks {
        file.write_all_at(&mark.to_le_bytes(), *mark).unwrap();
    }
    drop(file);
    let tier = format!("SSD={}:{room}", federation.folder().join("tier").display());
    federation.member_arguments =
        ["--tier", &tier, "--memory", &format!("{}Mi", AGENT_PEAK >> 20)].map(str::to_owned).into();
    federation.add_member("m");
    federation.api.path_dataset("set", &source);
    let mount = Mounted::new(&federation.api, "set", federation.folder().join("mount"));
    let path = mount.directory.join("large");
    assert_eq!(path.metadata().unwrap().len(), size);

    std::thread::scope(|scope| {
        for mark in &marks {
            let path = &path;
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                let mut buffer = vec![0; 1 << 20];
                for piece in 0..24 {
                    file.read_exact_at(&mut buffer, mark + (piece << 20)).unwrap();
                    let (first, rest) = if piece == 0 { buffer.split_at(8) } else { buffer.split_at(0) };
                    assert!(first.is_empty() || first == mark.to_le_bytes(), "at {mark}");
                    assert!(rest.iter().all(|byte| *byte == 0), "at {mark}, piece {piece}");
                }
            });
        }
    });

    let agent = peak(federation.member_process("m"));
    let mounts: Vec<u64> = mount_processes(federation.folder()).into_iter().map(peak).collect();
    eprintln!("peak of the agent {} MiB, of the mount {} MiB", agent >> 20, mounts[0] >> 20);
    assert!(agent < AGENT_PEAK, "the agent had {agent} bytes");
    assert!(mounts.iter().all(|bytes| *bytes < MOUNT_PEAK), "the mount process had {mounts:?} bytes");
    federation.api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

/// Reads files at random and compares; errors are waited out, wrong bytes are not.
fn verify_for_ever(directory: &Path, files: &[Vec<u8>], seed: u64, stop: &AtomicBool, right: &AtomicU64) {
    let mut random = Random::new(seed);
    let mut buffer = vec![0; 100_000];
    while !stop.load(Ordering::Relaxed) {
        let which = usize::try_from(random.below(files.len() as u64)).unwrap();
        let contents = &files[which];
        let offset = usize::try_from(random.below((contents.len() - buffer.len()) as u64)).unwrap();
        let read = File::open(directory.join(which.to_string()))
            .and_then(|file| file.read_exact_at(&mut buffer, offset as u64));
        match read {
            Ok(()) => {
                assert!(buffer == contents[offset..offset + buffer.len()], "wrong bytes in {which} at {offset}");
                right.fetch_add(1, Ordering::Relaxed);
            }
            // Both processes, or the power, are gone: until they are back.
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A mount of all of `data`, and the disk of so many MiB with everything that its agent writes, a tier of `room` too.
fn mounted_from_a_disk(minio: &Minio, mib: u64, room: &str) -> (Federation, Disk, Mounted) {
    let mut federation = Federation::start(1, &[]);
    let disk = Disk::new(federation.folder().join("disk"), federation.member_dir("m"), mib);
    federation.member_arguments = vec!["--tier".to_owned(), format!("SSD={}/tier:{room}", disk.text())];
    federation.add_member("m");
    federation.api.s3_dataset("set", "data", minio);
    let mount = Mounted::new(&federation.api, "set", federation.folder().join("mount"));
    (federation, disk, mount)
}

#[test]
fn what_a_killed_mount_process_had_open_has_room_as_long_as_a_program_has_it_open_and_no_longer() {
    let minio = Minio::start();
    minio.create_bucket("data");
    let contents = tree::bytes(31, 6_000_001);
    for number in 0..12 {
        minio.put_object("data", &number.to_string(), &contents);
    }
    let (mut federation, disk, mount) = mounted_from_a_disk(&minio, 256, "40Mi");
    let file = |number: u32| mount.directory.join(number.to_string());
    let read_all = |numbers: std::ops::Range<u32>| {
        for number in numbers {
            assert!(fs::read(file(number)).unwrap() == contents, "wrong bytes in {number}");
        }
    };
    // Read once, they are complete and opened by passthrough; twice the room, so that others go.
    read_all(0..12);
    let before = disk.nameless_mib();
    read_all(0..2);
    let open: Vec<File> = (0..2).map(|number| File::open(file(number)).unwrap()).collect();
    for round in 0..3 {
        let killed = mount_processes(federation.folder());
        killed.iter().copied().for_each(kill);
        wait_for(DEADLINE, "another mount process", || {
            let now = mount_processes(federation.folder());
            if now.iter().any(|process| !killed.contains(process)) { Ok(()) } else { Err(now) }
        });
        read_all(2..3);
        if round == 1 {
            // Not while the mount is handed over: nobody would have it.
            federation.kill_member("m");
            federation.run_member("m");
        }
        // Who has a file open reads on, and the cache gives up others.
        read_all(2..12);
        let mut some = vec![0; 4096];
        for file in &open {
            file.read_exact_at(&mut some, 5_000_000).unwrap();
            assert!(some == contents[5_000_000..5_004_096]);
        }
    }
    // What is open kept its name, but for what was given up in between, when nobody held it.
    wait_for(DEADLINE, "nothing but what is open to be kept", || {
        let kept = disk.nameless_mib().saturating_sub(before);
        if kept <= 12 { Ok(()) } else { Err((kept, disk.use_of())) }
    });
    drop(open);
    let killed = mount_processes(federation.folder());
    killed.into_iter().for_each(kill);
    read_all(0..1);
    wait_for(DEADLINE, "all room to be given back", || {
        let kept = disk.nameless_mib().saturating_sub(before);
        if kept <= 1 { Ok(()) } else { Err((kept, disk.use_of())) }
    });
    federation.api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

#[test]
fn whatever_dies_and_whenever_no_reader_sees_a_wrong_byte() {
    let kills = number("FLUVIAL_KILLS").unwrap_or(KILLS);
    let seed = seed();
    println!(
        "seed {seed}: FLUVIAL_SEED={seed} FLUVIAL_KILLS={kills} cargo nextest run --test mount_faults whatever_dies"
    );
    let mut random = Random::new(seed);
    let minio = Minio::start();
    minio.create_bucket("data");
    let files: Arc<Vec<Vec<u8>>> = Arc::new((0..24).map(|number| tree::bytes(100 + number, 6_000_001)).collect());
    for (number, contents) in files.iter().enumerate() {
        minio.put_object("data", &number.to_string(), contents);
    }
    // The disk's power can be cut; half of the files fit, and it is full at times.
    let (mut federation, disk, mount) = mounted_from_a_disk(&minio, 128, "72Mi");
    let (stop, right) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let readers: Vec<_> = (0..3)
        .map(|number| {
            let (stop, right, files) = (stop.clone(), right.clone(), files.clone());
            let directory = mount.directory.clone();
            std::thread::spawn(move || verify_for_ever(&directory, &files, seed ^ number, &stop, &right))
        })
        .collect();
    let mut counts = [0; 4];
    for round in 0..kills {
        std::thread::sleep(Duration::from_millis(random.below(700)));
        let kind = usize::try_from(random.below(4)).unwrap();
        counts[kind] += 1;
        match kind {
            0 => mount_processes(federation.folder()).into_iter().for_each(kill),
            1 => {
                federation.kill_member("m");
                federation.run_member("m");
            }
            2 => {
                minio.hang();
                std::thread::sleep(Duration::from_millis(random.below(500)));
                minio.go_on();
            }
            _ => {
                disk.cut_power();
                federation.kill_member("m");
                disk.start_again_without(|| {
                    mount_processes(federation.folder()).into_iter().for_each(kill);
                    // Which the machine's memory held, and with it files of the disk.
                    let _ = Command::new("umount").arg("-l").arg(&mount.directory).output();
                });
                federation.run_member("m");
            }
        }
        let aim = right.load(Ordering::Relaxed) + 20;
        wait_for(DEADLINE, &format!("reads to be right again after round {round}, kind {kind}"), || {
            assert!(
                !readers.iter().any(std::thread::JoinHandle::is_finished),
                "a reader saw wrong bytes (seed {seed})"
            );
            let now = right.load(Ordering::Relaxed);
            let ended = federation.ended("m");
            if now >= aim { Ok(()) } else { Err((now, ended, federation.last_said("member-m"), disk.use_of())) }
        });
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().expect("a reader saw wrong bytes");
    }
    let [mounts, agents, sources, power] = counts;
    println!("killed: mount {mounts}, agent {agents}, source {sources}, power {power}; {right:?} reads were right");
    let unmounted = federation.api.fluvial(&["unmount", mount.directory.to_str().unwrap()]);
    unmounted
        .unwrap_or_else(|error| panic!("{error}: {:?} {:?}", federation.ended("m"), federation.last_said("member-m")));
}
