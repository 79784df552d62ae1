//! restic's locks: encrypted files in `locks/`, renewed every few minutes, so that one that is not renewed is abandoned.
//!
//! Who adds to a repository shares it with others who add; who deletes must be alone. Protocol and times are restic's
//! (`doc/design.rst`, "Locks"): look, write the own lock, wait a moment, look again. A lock is abandoned when it is older
//! than half an hour, or names a process of this machine that is gone.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aes256ctr_poly1305aes::Aes256CtrPoly1305Aes;
use aes256ctr_poly1305aes::aead::Aead;
use aes256ctr_poly1305aes::aead::generic_array::GenericArray;
use jiff::{SignedDuration, Timestamp};
use rustic_core::repofile::MasterKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::BackupError;
use crate::files::{Files, Folder, Located};
use crate::stop::Stop;

/// How often the own lock is written anew.
const RENEW: Duration = Duration::from_secs(5 * 60);
/// From which age on a lock is abandoned.
const ABANDONED: SignedDuration = SignedDuration::from_mins(30);
/// The own lock has not been renewed for so long that others will soon take it for abandoned.
const LOST: Duration = Duration::from_secs(20 * 60);
/// The moment between writing a lock and looking again.
const MOMENT: Duration = Duration::from_millis(200);

/// The locks that this process holds: another one that names this process is left from an earlier one with the same id.
static HELD: LazyLock<Mutex<BTreeSet<String>>> = LazyLock::new(Mutex::default);

/// What a lock says, in restic's words.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Content {
    time: Timestamp,
    exclusive: bool,
    hostname: String,
    #[serde(default)]
    username: String,
    pid: u32,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
}

impl Content {
    fn own(exclusive: bool) -> Self {
        let hostname = hostname();
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        let username = "fluvial".to_owned();
        Self { time: Timestamp::now(), exclusive, hostname, username, pid: std::process::id(), uid, gid }
    }

    /// Whether whoever wrote it is gone.
    fn is_abandoned(&self, name: &str, now: Timestamp) -> bool {
        if now.duration_since(self.time) > ABANDONED {
            return true;
        }
        if self.hostname != hostname() {
            return false;
        }
        if self.pid == std::process::id() {
            return !HELD.lock().unwrap_or_else(PoisonError::into_inner).contains(name);
        }
        let Ok(pid) = i32::try_from(self.pid) else { return true };
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) == Err(nix::errno::Errno::ESRCH)
    }

    fn holder(&self) -> String {
        let how = if self.exclusive { "alone" } else { "with others" };
        format!("process {} of {}, since {}, {how}", self.pid, self.hostname, self.time)
    }
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// How a lock is encrypted, as every file of the repository is.
struct Cipher(Aes256CtrPoly1305Aes);

impl Cipher {
    fn new(key: &MasterKey) -> Option<Self> {
        let bytes: [u8; 64] = [key.encrypt.as_slice(), &key.mac.k, &key.mac.r].concat().try_into().ok()?;
        Some(Self(Aes256CtrPoly1305Aes::new(&bytes.into())))
    }

    fn seal(&self, content: &Content) -> Option<Vec<u8>> {
        let nonce: [u8; 16] = rand::random();
        let plain = serde_json::to_vec(content).ok()?;
        let sealed = self.0.encrypt(GenericArray::from_slice(&nonce), plain.as_slice()).ok()?;
        Some([nonce.as_slice(), &sealed].concat())
    }

    fn open(&self, sealed: &[u8]) -> Option<Content> {
        let (nonce, sealed) = sealed.split_at_checked(16)?;
        let plain = self.0.decrypt(GenericArray::from_slice(nonce), sealed).ok()?;
        // Format 2 marks what is compressed by its first byte.
        let plain = match plain.split_first() {
            Some((2, compressed)) => zstd::decode_all(compressed).ok()?,
            _ => plain,
        };
        serde_json::from_slice(&plain).ok()
    }
}

/// A lock that is held, and renewed, until it is dropped.
pub(crate) struct Lock {
    shared: Arc<Shared>,
    renewer: Option<JoinHandle<()>>,
}

struct Shared {
    files: Arc<Files>,
    cipher: Cipher,
    exclusive: bool,
    stop: Stop,
    /// The file that stands for the lock; empty once it is given up.
    name: Mutex<String>,
    given_up: Condvar,
}

impl Lock {
    /// Takes a lock.
    ///
    /// # Errors
    /// [`BackupError::Locked`], and what the repository reports.
    pub(crate) fn take(files: Arc<Files>, key: &MasterKey, exclusive: bool, stop: Stop) -> Result<Self, BackupError> {
        let damaged = || BackupError::Damaged { place: files.place().to_owned(), what: "its key".to_owned() };
        let cipher = Cipher::new(key).ok_or_else(damaged)?;
        let shared =
            Arc::new(Shared { files, cipher, exclusive, stop, name: Mutex::default(), given_up: Condvar::new() });
        shared.look("")?;
        let name = shared.write()?;
        name.clone_into(&mut shared.name.lock().unwrap_or_else(PoisonError::into_inner));
        let mut lock = Self { shared: shared.clone(), renewer: None };
        std::thread::sleep(MOMENT);
        shared.look(&name)?;
        let renew = std::thread::Builder::new().name("repository-lock".to_owned()).spawn(move || shared.renew());
        lock.renewer = renew.ok();
        Ok(lock)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let name = std::mem::take(&mut *self.shared.name.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.given_up.notify_all();
        if let Some(renewer) = self.renewer.take() {
            // It panics nowhere; if it did, the lock goes all the same.
            let _ = renewer.join();
        }
        self.shared.remove(&name);
    }
}

impl Shared {
    /// Fails if somebody holds a lock beside which this one cannot be. Abandoned ones are removed.
    fn look(&self, own: &str) -> Result<(), BackupError> {
        let now = Timestamp::now();
        for (name, _) in self.files.list(Folder::Locks)? {
            if name == own || hex::decode(&name).is_err() {
                continue;
            }
            let sealed = match self.files.read(Located::In(Folder::Locks, &name)) {
                Ok(sealed) => sealed,
                // Given up since it was listed.
                Err(fluvial_transfer::TransferError::NotFound { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let Some(content) = self.cipher.open(&sealed) else {
                let what = format!("lock {name} cannot be read");
                return Err(BackupError::Damaged { place: self.files.place().to_owned(), what });
            };
            if content.is_abandoned(&name, now) {
                self.files.remove(Located::In(Folder::Locks, &name))?;
            } else if self.exclusive || content.exclusive {
                return Err(BackupError::Locked { place: self.files.place().to_owned(), holder: content.holder() });
            }
        }
        Ok(())
    }

    fn write(&self) -> Result<String, BackupError> {
        let damaged = || BackupError::Damaged { place: self.files.place().to_owned(), what: "its key".to_owned() };
        let sealed = self.cipher.seal(&Content::own(self.exclusive)).ok_or_else(damaged)?;
        let name = hex::encode(Sha256::digest(&sealed));
        // Known before it can be seen: another task of this process must not take it for one of an earlier process.
        HELD.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        match self.files.write(Located::In(Folder::Locks, &name), &[sealed.into()]) {
            Ok(()) => Ok(name),
            Err(error) => {
                HELD.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
                Err(error.into())
            }
        }
    }

    fn remove(&self, name: &str) {
        if name.is_empty() {
            return;
        }
        if let Err(error) = self.files.remove(Located::In(Folder::Locks, name)) {
            // It is abandoned with the end of this process, or in half an hour.
            tracing::warn!(lock = name, error = &error as &dyn std::error::Error, "a lock could not be removed");
        }
        HELD.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn renew(&self) {
        let mut renewed = Instant::now();
        let mut name = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        while !name.is_empty() {
            let waited = self.given_up.wait_timeout(name, RENEW).unwrap_or_else(PoisonError::into_inner);
            name = waited.0;
            if name.is_empty() || !waited.1.timed_out() {
                continue;
            }
            match self.write() {
                Ok(next) => {
                    let old = std::mem::replace(&mut *name, next);
                    self.remove(&old);
                    renewed = Instant::now();
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a lock could not be renewed");
                    if renewed.elapsed() > LOST {
                        let minutes = renewed.elapsed().as_secs() / 60;
                        self.stop.fail(BackupError::LockLost { place: self.files.place().to_owned(), minutes });
                    }
                }
            }
        }
    }
}
