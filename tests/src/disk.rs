//! A disk of one test: ext4 in a file, on a loop device, so that it can be filled, made read-only and lose its power.
//!
//! Power is cut by the shutdown ioctl of the file system without a flush of its log: what was not synced is lost, what was
//! stays, and every call after it fails.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::wait::wait_for;

/// Until nothing uses it any more.
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(30);
/// `FS_IOC_SHUTDOWN` with `FS_SHUTDOWN_FLAGS_NOLOGFLUSH`.
const CUT: &str =
    r#"open(my $f, "<", $ARGV[0]) or die $!; my $how = pack("L", 2); ioctl($f, 0x8004587d, $how) or die $!"#;

/// The disk, mounted; gone when dropped.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    /// Where it is mounted.
    pub directory: PathBuf,
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Disk {
    /// Makes an empty disk of so many MiB, kept in the file `image`.
    #[track_caller]
    pub fn new(image: PathBuf, directory: PathBuf, mib: u64) -> Self {
        let file = File::create(&image).expect("an image can be made");
        file.set_len(mib << 20).expect("an image can be made");
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        std::fs::create_dir_all(&directory).expect("a folder can be made");
        let disk = Self { image, directory };
        disk.mount();
        let _ = std::fs::remove_dir(disk.directory.join("lost+found"));
        disk
    }

    #[track_caller]
    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).args([&self.image, &self.directory]));
    }

    /// Leaves so many MiB of room, by one large file.
    #[track_caller]
    pub fn leave(&self, mib: u64) {
        let ballast = File::create(self.ballast()).expect("a file can be made");
        let size =
            nix::libc::off_t::try_from(self.free_mib().saturating_sub(mib) << 20).expect("a disk is not that large");
        let none = nix::fcntl::FallocateFlags::empty();
        nix::fcntl::fallocate(&ballast, none, 0, size).expect("there is as much room as the disk says");
    }

    fn ballast(&self) -> PathBuf {
        self.directory.join("ballast")
    }

    /// Takes the large file away.
    #[track_caller]
    pub fn make_room(&self) {
        std::fs::remove_file(self.ballast()).expect("the large file is there");
    }

    /// Lets every write and sync wait until [`Disk::thaw`].
    #[track_caller]
    pub fn freeze(&self) {
        run(Command::new("fsfreeze").arg("-f").arg(&self.directory));
    }

    /// Lets writes go on.
    #[track_caller]
    pub fn thaw(&self) {
        run(Command::new("fsfreeze").arg("-u").arg(&self.directory));
    }

    /// Leaves no room, by one large file.
    #[track_caller]
    pub fn fill(&self) {
        let mut ballast = File::create(self.ballast()).expect("a file can be made");
        for size in [1 << 20, 4096] {
            let piece = vec![1; size];
            while ballast.write_all(&piece).is_ok() {}
        }
    }

    /// Makes it refuse writes, or take them again.
    #[track_caller]
    pub fn set_read_only(&self, read_only: bool) {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        // Refused as long as a file is open for writing.
        wait_for(UNMOUNT_DEADLINE, "the disk to be mounted anew", || {
            let output = Command::new("mount").args(["-o", options]).arg(&self.directory).output().expect("mount runs");
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        });
    }

    /// Cuts its power.
    #[track_caller]
    pub fn cut_power(&self) {
        run(Command::new("perl").args(["-e", CUT]).arg(&self.directory));
    }

    /// Starts it again, once nobody has files of it open.
    #[track_caller]
    pub fn start_again(&self) {
        self.start_again_without(|| ());
    }

    /// The same; `end` ends who may have files open, and is called until nobody has: some may be about to begin.
    #[track_caller]
    pub fn start_again_without(&self, end: impl Fn()) {
        wait_for(UNMOUNT_DEADLINE, "nobody to use the disk", || {
            end();
            let output = Command::new("umount").arg(&self.directory).output().expect("umount runs");
            if output.status.success() {
                Ok(())
            } else {
                Err(format!("{} {}", String::from_utf8_lossy(&output.stderr), self.use_of()))
            }
        });
        self.mount();
    }

    /// What takes room on it: its folders, and files that processes have open though they have no name any more.
    pub fn use_of(&self) -> String {
        let du = Command::new("du").args(["-m", "--max-depth=2"]).arg(&self.directory).output().expect("du runs");
        let mut text = format!("{} MiB free\n{}", self.free_mib(), String::from_utf8_lossy(&du.stdout));
        for process in std::fs::read_dir("/proc").expect("processes can be listed").flatten() {
            let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
            let targets = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
            let ours: Vec<PathBuf> = targets.filter(|target| target.starts_with(&self.directory)).collect();
            let nameless = ours.iter().filter(|target| target.to_string_lossy().ends_with("(deleted)")).count();
            if !ours.is_empty() {
                let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                let number = process.file_name();
                text += &format!("{number:?} has {} open, {nameless} of them without a name: {command}\n", ours.len());
            }
        }
        text
    }

    /// MiB that can be written.
    fn free_mib(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.directory).expect("the disk is mounted");
        (found.blocks_available() * found.fragment_size()) >> 20
    }

    /// MiB that are in use and in no file with a name: the file system's own, and removed files that are still open.
    pub fn nameless_mib(&self) -> u64 {
        // The blocks of a removed file are free when that is on the disk.
        let directory = File::open(&self.directory).expect("the disk is mounted");
        nix::unistd::syncfs(directory).expect("the disk can be synced");
        let found = nix::sys::statvfs::statvfs(&self.directory).expect("the disk is mounted");
        let used = ((found.blocks() - found.blocks_free()) * found.fragment_size()) >> 20;
        let du = Command::new("du").args(["-sm"]).arg(&self.directory).output().expect("du runs");
        let named = String::from_utf8_lossy(&du.stdout).split('\t').next().and_then(|text| text.parse().ok());
        used.saturating_sub(named.expect("du tells a number"))
    }

    /// Its directory as text.
    pub fn text(&self) -> &str {
        Path::to_str(&self.directory).expect("a UTF-8 path")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that failed may have left it frozen: nothing that writes to it could end.
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.directory).stderr(std::process::Stdio::null()).status();
        let _ = Command::new("umount").arg("-l").arg(&self.directory).status();
    }
}
