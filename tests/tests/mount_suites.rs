//! Other people's suites through writable mounts: `fsx`, `fio` with verification, `pjdfstest`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use fluvial_tests::bed::bed_bin;
use fluvial_tests::federation::Up;
use fluvial_tests::minio::Minio;
use fluvial_tests::mount::{HomeKind, Mounted, writable_dataset};

/// What a program said, and whether it was content.
fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

fn with_mount(kind: HomeKind, check: impl FnOnce(&Path, &Path)) {
    let minio = (kind == HomeKind::Bucket).then(Minio::start);
    let up = Up::start(1, &["a"]);
    writable_dataset(&up.api, kind, "ReadWriteMany", up.folder(), minio.as_ref());
    let mount = Mounted::new(&up.api, "set", up.folder().join("mount"));
    check(&mount.directory, up.folder());
    mount.end(&up.api);
}

/// Random reads, writes, mappings, truncations, closes and syncs of one file, each read compared with what it must be.
fn fsx(kind: HomeKind, operations: u32) {
    with_mount(kind, |mount, folder| {
        let seed = std::env::var("FLUVIAL_SEED").unwrap_or_else(|_| std::process::id().to_string());
        eprintln!("FLUVIAL_SEED={seed} repeats this run");
        let settings = folder.join("fsx.toml");
        let weights = "flen = 3000000\n[opsize]\nmax = 200000\n[weights]\nclose_open = 0.3\ninvalidate = 0.2\n\
                       mapread = 1\nmapwrite = 1\nread = 1\nwrite = 1\ntruncate = 0.5\nfsync = 0.1\nfdatasync = 0.1\n\
                       posix_fallocate = 0.1\nsendfile = 0.5\nposix_fadvise = 0.1\ncopy_file_range = 0.3\n";
        fs::write(&settings, weights).unwrap();
        let mut command = Command::new(bed_bin("fsx"));
        command.args(["-N", &operations.to_string(), "-S", &seed, "-P"]).arg(folder).arg("-f").arg(&settings);
        let (good, said) = run(command.arg(mount.join("file")));
        assert!(good, "FLUVIAL_SEED={seed}: {said}");
    });
}

#[test]
fn fsx_is_content_with_a_folder() {
    fsx(HomeKind::Folder, 4000);
}

#[test]
fn fsx_is_content_with_a_bucket() {
    fsx(HomeKind::Bucket, 600);
}

/// Four programs that write their own files, and read back what they wrote, by checksums.
fn fio(kind: HomeKind, megabytes: u32) {
    with_mount(kind, |mount, folder| {
        for (pattern, block) in [("write", "1m"), ("randwrite", "16k"), ("randrw", "64k")] {
            let (good, said) = run(Command::new("fio").current_dir(folder).args([
                "--name=job",
                "--numjobs=4",
                "--thread",
                "--ioengine=psync",
                "--verify=crc32c",
                "--do_verify=1",
                "--verify_fatal=1",
                "--fsync_on_close=1",
                &format!("--rw={pattern}"),
                &format!("--bs={block}"),
                &format!("--size={megabytes}m"),
                &format!("--directory={}", mount.display()),
            ]));
            assert!(good && !said.contains("verify:"), "{pattern}: {said}");
        }
    });
}

#[test]
fn fio_finds_what_it_wrote_in_a_folder() {
    fio(HomeKind::Folder, 32);
}

#[test]
fn fio_finds_what_it_wrote_in_a_bucket() {
    fio(HomeKind::Bucket, 8);
}

/// Tests that are expected to fail, by name or by the end of a name, with the reason.
fn expected(file: &str) -> BTreeMap<String, String> {
    let lines = file.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, reason) = line.split_once(' ').unwrap_or_else(|| panic!("{line}: without a reason"));
            (name.to_owned(), reason.trim().to_owned())
        })
        .collect()
}

#[test]
fn pjdfstest_fails_where_it_is_expected_to_and_nowhere_else() {
    let list = expected(include_str!("mount_suites/pjdfstest.txt"));
    with_mount(HomeKind::Folder, |mount, folder| {
        let (directory, settings) = (mount.join("pjdfstest"), folder.join("pjdfstest.toml"));
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        let text = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutimensat = {}\nutime_now = {}\n[settings]\n\
                    naptime = 0.01\nallow_remount = false\n[dummy_auth]\n\
                    entries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n";
        fs::write(&settings, text).unwrap();
        let (_, said) = run(Command::new(bed_bin("pjdfstest")).arg("-c").arg(&settings).arg("-p").arg(&directory));
        let (mut passed, mut failed, mut used) = (0, BTreeSet::new(), BTreeSet::new());
        let covers = |pattern: &str, name: &str| match pattern.strip_prefix('*') {
            Some(end) => name.ends_with(end),
            None => name == pattern,
        };
        let mut unexpected = Vec::new();
        for line in said.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, outcome] = words[..] else { continue };
            let reason = list.keys().find(|pattern| covers(pattern, name));
            // The words may be coloured.
            if outcome.contains("FAILED") {
                failed.insert(name.to_owned());
                match reason {
                    Some(pattern) => drop(used.insert(pattern.clone())),
                    None => unexpected.push(format!("{name} fails")),
                }
            } else if outcome.contains("ok") {
                passed += 1;
                if reason.is_some_and(|pattern| !pattern.starts_with('*')) {
                    unexpected.push(format!("{name} passes"));
                }
            }
        }
        let unused: Vec<&String> = list.keys().filter(|pattern| !used.contains(*pattern)).collect();
        assert!(unexpected.is_empty(), "{unexpected:#?}\n{said}");
        assert!(unused.is_empty(), "these never fail: {unused:?}");
        eprintln!("{passed} passed, {} failed as expected", failed.len());
        assert!(passed > 170, "{said}");
    });
}
