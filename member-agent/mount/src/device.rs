//! The kernel's side: mounting, the first exchange, and taking a mount over from a process that is gone.
//!
//! The kernel says INIT once. Whoever takes over hears the recorded request again, from a socket that stands in for the
//! device; once the session has answered, the device takes the socket's place under the same number, so that the session
//! reads from it as if it had been there from the start. The first process does the same, and sends the answer on.
//!
//! Needs the right to mount (root, or `CAP_SYS_ADMIN`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use fuser::{Config, Filesystem, Session, SessionACL};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::time::TimeVal;

use crate::fs::MOST_READ;
use crate::raw;

const DEVICE: &str = "/dev/fuse";
/// The file system's type, as mount tables show it.
pub const FS_TYPE: &str = "fuse.fluvial";
/// The largest first request that any kernel sends, and then some.
const MOST_INIT: usize = 64 << 10;
/// Threads that answer the kernel.
const THREADS: usize = 4;
/// Readahead of the mount: what the kernel fetches before it is asked for.
const READ_AHEAD_KIB: u32 = 8192;
/// How long the session may take over its part of the exchange, which it does at once.
const EXCHANGE_SECONDS: i64 = 10;

/// A mount, as its device and the kernel's first request.
pub struct Device {
    /// The device.
    pub file: File,
    /// What the kernel said first.
    pub init: Vec<u8>,
    /// Whether the kernel still waits for the answer.
    fresh: bool,
}

impl Device {
    /// Mounts at a directory.
    ///
    /// # Errors
    /// When the directory cannot be mounted on.
    pub fn mount(directory: &Path, source: &str, writable: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
        let options = format!(
            "fd={},rootmode=40755,user_id={uid},group_id={gid},allow_other,default_permissions,max_read={MOST_READ}",
            file.as_raw_fd()
        );
        let access = if writable { MsFlags::empty() } else { MsFlags::MS_RDONLY };
        let flags = access | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
        mount(Some(source), directory, Some(FS_TYPE), flags, Some(options.as_str()))?;
        let mut init = vec![0; MOST_INIT];
        let length = match nix::unistd::read(&file, &mut init) {
            Ok(length) => length,
            Err(error) => {
                unmount(directory)?;
                return Err(error.into());
            }
        };
        init.truncate(length);
        Ok(Self { file, init, fresh: true })
    }

    /// A mount that another process has served.
    #[must_use]
    pub fn taken_over(file: OwnedFd, init: Vec<u8>) -> Self {
        Self { file: file.into(), init, fresh: false }
    }

    /// Begins to serve.
    ///
    /// # Errors
    /// When the exchange with the kernel fails.
    pub fn serve<F: Filesystem>(&self, fs: F) -> io::Result<Session<F>> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        nix::sys::socket::setsockopt(&ours, ReceiveTimeout, &TimeVal::new(EXCHANGE_SECONDS, 0))?;
        nix::unistd::write(&ours, &self.init)?;
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(THREADS);
        // Not a descriptor for each thread: the kernel gives up what was asked through one that is closed, and would not
        // ask a successor again. The agent keeps this one open.
        config.clone_fd = false;
        let session = Session::from_fd(fs, theirs, SessionACL::All, config)?;
        let mut answer = vec![0; MOST_INIT];
        let length = nix::unistd::read(&ours, &mut answer)?;
        if self.fresh {
            nix::unistd::write(&self.file, &answer[..length])?;
        }
        raw::take_place(&self.file, session.as_fd().as_raw_fd())?;
        if !self.fresh {
            self.resend();
        }
        Ok(session)
    }

    /// Asks the kernel to say again what it said to the process before this one (since Linux 6.9; older ones answer
    /// those requests with an error when the mount goes).
    fn resend(&self) {
        const HEADER_BYTES: u32 = 16;
        const NOTIFY_RESEND: i32 = 7;
        let mut message = Vec::with_capacity(HEADER_BYTES as usize);
        message.extend(HEADER_BYTES.to_ne_bytes());
        message.extend(NOTIFY_RESEND.to_ne_bytes());
        message.extend(0_u64.to_ne_bytes());
        if let Err(error) = nix::unistd::write(&self.file, &message) {
            tracing::warn!(%error, "the kernel does not repeat what it asked the process before this one");
        }
    }
}

/// Takes a mount away from its directory at once; those who have files open keep them until they close them.
///
/// # Errors
/// When the directory is no mount, or must not be touched.
pub fn unmount(directory: &Path) -> io::Result<()> {
    Ok(umount2(directory, MntFlags::MNT_DETACH)?)
}

/// A line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountLine {
    /// Number of the device.
    pub device: String,
    /// Type of the file system.
    pub fs_type: String,
    /// What it shows as its source.
    pub source: String,
}

/// The topmost mount at a directory.
///
/// # Errors
/// When the mount table cannot be read.
pub fn mounted_at(directory: &Path) -> io::Result<Option<MountLine>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().filter_map(|line| mount_line(line, directory)).next_back())
}

/// `36 35 98:0 /root /directory options - type source options`
fn mount_line(line: &str, directory: &Path) -> Option<MountLine> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    let device = front.next()?.to_owned();
    let at = unescape(front.nth(1)?);
    let mut back = back.split(' ');
    let (fs_type, source) = (back.next()?.to_owned(), unescape(back.next()?));
    (Path::new(&at) == directory).then_some(MountLine { device, fs_type, source })
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if *first == b'\\' => {
                bytes.push(code);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Lets the kernel read ahead further than it does by itself. Best effort: without it reads are slower, not wrong.
pub fn raise_read_ahead(directory: &Path) {
    let raise = || {
        let Some(line) = mounted_at(directory)? else { return Err(io::ErrorKind::NotFound.into()) };
        std::fs::write(format!("/sys/class/bdi/{}/read_ahead_kb", line.device), READ_AHEAD_KIB.to_string())
    };
    if let Err(error) = raise() {
        tracing::info!(%error, "the kernel's readahead stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_mount_table_is_read() {
        let line =
            r"141 29 0:52 / /mnt/a\040b ro,nosuid,nodev,noatime shared:77 - fuse.fluvial default/set ro,user_id=0";
        let expected = MountLine {
            device: "0:52".to_owned(),
            fs_type: "fuse.fluvial".to_owned(),
            source: "default/set".to_owned(),
        };
        assert_eq!(mount_line(line, Path::new("/mnt/a b")), Some(expected));
        assert_eq!(mount_line(line, Path::new("/mnt/a")), None);
    }
}
