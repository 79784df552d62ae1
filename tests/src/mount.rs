//! A mounted dataset of one test, and the processes behind it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::federation::Api;
use crate::minio::Minio;
use crate::steps::{file_uri, s3_options};

/// A mount of one test; taken away at the end, however that comes.
#[derive(Debug)]
pub struct Mounted {
    pub directory: PathBuf,
}

impl Mounted {
    /// Mounts a dataset.
    #[track_caller]
    pub fn new(api: &Api, dataset: &str, directory: PathBuf) -> Self {
        Self::with(api, dataset, directory, &[])
    }

    /// Mounts a dataset where `arguments` of `fluvial mount` say.
    #[track_caller]
    pub fn with(api: &Api, dataset: &str, directory: PathBuf, arguments: &[&str]) -> Self {
        let text = directory.to_str().expect("a UTF-8 path");
        api.fluvial(&[&["mount", dataset, text, "--detach"], arguments].concat()).expect("the dataset is mounted");
        Self { directory }
    }

    /// Mounts a dataset by one member.
    #[track_caller]
    pub fn by(api: &Api, dataset: &str, member: &str, directory: PathBuf) -> Self {
        let text = directory.to_str().expect("a UTF-8 path");
        api.fluvial(&["mount", dataset, text, "--cluster", member, "--detach"]).expect("the dataset is mounted");
        Self { directory }
    }

    /// Takes it away in order.
    #[track_caller]
    pub fn end(self, api: &Api) {
        api.fluvial(&["unmount", self.directory.to_str().expect("a UTF-8 path")]).expect("it is unmounted");
        assert!(!self.is_there());
    }

    /// Whether the directory is a mount now.
    pub fn is_there(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("the kernel tells its mounts");
        table.lines().any(|line| line.split(' ').nth(4) == self.directory.to_str())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Left over only when the test has failed. By force: readers who wait for an answer would keep the test from ending.
        if self.is_there() {
            let _ = Command::new("umount").args(["-f", "-l"]).arg(&self.directory).status();
        }
    }
}

/// Processes that serve mounts for agents below a folder.
pub fn mount_processes(folder: &Path) -> Vec<u32> {
    let folder = folder.to_str().expect("a UTF-8 path");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("processes can be listed").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        if command.contains("serve-mount") && command.contains(folder) {
            found.push(pid);
        }
    }
    found
}

/// SIGKILL; a process that is gone already is no fault. No program is started for it: a child that begins closes what
/// this process has open, and that is a `close` to a file system.
pub fn kill(pid: u32) {
    let pid = i32::try_from(pid).expect("a process number");
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
}

/// The largest resident set that a process ever had, in bytes.
pub fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the kernel tells its memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number of KiB") << 10
}

/// The home of a dataset that is written through mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HomeKind {
    /// A folder.
    Folder,
    /// A prefix of a bucket.
    Bucket,
}

/// A dataset `set` of access mode `mode` with one file `first`, at a home of its own.
#[track_caller]
pub fn writable_dataset(api: &Api, kind: HomeKind, mode: &str, folder: &Path, minio: Option<&Minio>) {
    let create = ["dataset", "create", "set", "--access-mode", mode, "--wait", "--timeout", "60s", "--mount"];
    let made = match kind {
        HomeKind::Folder => {
            let home = folder.join("home");
            fs::create_dir(&home).expect("a folder can be made");
            fs::write(home.join("first"), "first").expect("a file can be written");
            api.fluvial(&[&create[..], &[&file_uri(&home)]].concat())
        }
        HomeKind::Bucket => {
            let minio = minio.expect("a bucket needs its server");
            minio.create_bucket("home");
            minio.put_object("home", "set/first", b"first");
            api.fluvial_with(&[&create[..], &["s3://home/set"]].concat(), &s3_options(minio))
        }
    };
    made.expect("the dataset is made");
}
