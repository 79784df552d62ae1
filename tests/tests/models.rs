//! Model files, read by the library that reads them in practice: safetensors, mapped and loaded, while the cache fills and
//! after.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fluvial_tests::bed::bed_bin;
use fluvial_tests::federation::{DEADLINE, Federation, Up};
use fluvial_tests::minio::Minio;
use fluvial_tests::mount::Mounted;
use fluvial_tests::proxy::{Fault, Plan, Proxy};
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;

const SHARDS: u64 = 3;
const SHARD_MIB: u64 = 80;

fn python(script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(bed_bin("python-models"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(script)).args(arguments);
    command
}

/// Starts to read every tensor.
fn reader(how: &str, mounted: &Path, originals: &Path) -> Child {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut command = python("read.py", &[how, &text(mounted), &text(originals)]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for a reader, who must have seen every tensor as it is.
#[track_caller]
fn saw_all(how: &str, reader: Child) {
    let output = reader.wait_with_output().unwrap();
    assert!(output.status.success(), "{how}: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = said.split_whitespace().map(|number| number.parse::<u64>().unwrap());
    let (tensors, bytes) = (numbers.next().unwrap(), numbers.next().unwrap());
    assert_eq!(tensors, SHARDS * (SHARD_MIB / 4 + 3) + 2, "{how}");
    assert!(bytes > (SHARDS * SHARD_MIB) << 20, "{how}: {bytes} bytes");
}

#[test]
fn tensors_are_right_mapped_and_loaded_while_the_files_come_and_after() {
    let minio = Minio::start();
    minio.create_bucket("models");
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let originals = up.folder().join("originals");
    fs::create_dir(&originals).unwrap();
    let (shards, mib) = (SHARDS.to_string(), SHARD_MIB.to_string());
    let written = python("write.py", &[originals.to_str().unwrap(), &shards, &mib]).output().unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let mut sizes = Vec::new();
    for entry in fs::read_dir(&originals).unwrap().map(Result::unwrap) {
        let contents = fs::read(entry.path()).unwrap();
        let name = entry.file_name().into_string().unwrap();
        minio.put_object("models", &name, &contents);
        sizes.push((name, contents.len() as u64));
    }
    sizes.sort();
    let proxy = Proxy::start(&minio.endpoint);
    api.s3_dataset_at("set", "models", &minio, &proxy.endpoint);
    let mount = Mounted::new(api, "set", up.folder().join("mount"));

    // Opened, and not read: all of it is fetched.
    let (name, size) = &sizes[0];
    let before = proxy.bytes();
    let open = File::open(mount.directory.join(name)).unwrap();
    wait_for(DEADLINE, "the whole of an opened model file to be asked for", || {
        let read = proxy.bytes() - before;
        if read >= *size { Ok(()) } else { Err(read) }
    });
    drop(open);

    // The others come slowly, under both readers.
    proxy.set(Some(Plan { fault: Fault::Slow, every: 2 }));
    let read = |how| (how, reader(how, &mount.directory, &originals));
    for (how, reader) in ["safe_open", "load_file"].map(read) {
        saw_all(how, reader);
    }
    assert!(proxy.hits() > 0);
    let total: u64 = sizes.iter().map(|(_, size)| size).sum();
    assert_eq!(proxy.bytes() - before, total, "every byte came once");
    proxy.set(None);
    let cache = api.wait_until("cachelocation", "set.a", "/status/phase", |phase| phase == "Ready");
    assert_eq!(cache["status"]["cachedBytes"], total, "{cache}");

    // Complete, without a source.
    proxy.set(Some(Plan { fault: Fault::Status(503), every: 1 }));
    for how in ["safe_open", "load_file"] {
        saw_all(how, reader(how, &mount.directory, &originals));
    }
    assert_eq!(proxy.hits(), 0);
    api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}

#[test]
fn a_file_that_no_tier_has_room_for_is_read_ahead_of_its_reader() {
    let minio = Minio::start();
    minio.create_bucket("data");
    let contents = tree::bytes(9, (64 << 20) + 12_345);
    minio.put_object("data", "large", &contents);
    let proxy = Proxy::start(&minio.endpoint);
    let mut federation = Federation::start(1, &[]);
    let tier = format!("SSD={}:16Mi", federation.folder().join("tier").display());
    federation.member_arguments = vec!["--tier".to_owned(), tier];
    federation.add_member("m");
    federation.api.s3_dataset_at("set", "data", &minio, &proxy.endpoint);
    let mount = Mounted::new(&federation.api, "set", federation.folder().join("mount"));
    let before = (proxy.requests(), proxy.bytes());
    assert!(fs::read(mount.directory.join("large")).unwrap() == contents);
    let (requests, bytes) = (proxy.requests() - before.0, proxy.bytes() - before.1);
    eprintln!("{requests} requests for {bytes} bytes");
    // Sixteen pieces and the rest, some reads until it was clear that the reader goes on, and few that were read twice.
    assert!(requests <= 40, "{requests} requests: each read went to the source");
    assert!(bytes <= contents.len() as u64 + (16 << 20), "{bytes} bytes for {}", contents.len());
    let held = federation.api.get("cachelocation", "set.m").unwrap();
    assert_eq!(held["status"]["cachedBytes"], 0, "{held}");
    federation.api.fluvial(&["unmount", mount.directory.to_str().unwrap()]).unwrap();
}
