//! ⑥ The mounts of this machine: one process for each, kept running, answered, and taken over when it dies.
//!
//! A mount process outlives the agent: it waits for the next one and says hello. What dies is started again, with the
//! device of the mount handed to it, so that readers wait instead of failing; where the device was lost too, the dead
//! mount is removed and made anew.
//!
//! Invariants: at most one process serves a mount; a directory that holds something else is never mounted over; a mount
//! that is not wanted any more is gone when [`Mounts::take_away`] returns.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fluvial_engine::Engine;
use fluvial_mount::device::{self, FS_TYPE};
use fluvial_mount::serve::{self, Shows, Slot, SlotState};
use fluvial_mount::write::spec::StagingSpec;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};
use tokio_util::sync::CancellationToken;

/// Where writable mounts stage files, in the data directory: a folder for each.
const STAGING: &str = "staging";
/// The socket, in the data directory.
const SOCKET: &str = "mounts.sock";
/// Of a process that uploads: buffers of whole parts go back to the system when they are done with, instead of staying
/// with each thread that ever had one (glibc, `mallopt(3)`).
const LARGE_BUFFERS: [(&str, &str); 2] = [("MALLOC_MMAP_THRESHOLD_", "2097152"), ("MALLOC_ARENA_MAX", "4")];
/// How long a process that lives may take to come back to an agent that was started again.
const RETURN: Duration = Duration::from_secs(2);
/// How long a process may take until it says hello.
const HELLO: Duration = Duration::from_secs(20);
/// The first pause after a process that ended badly.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// The longest.
const PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// How long taking a mount away may take.
const TAKE_AWAY: Duration = Duration::from_secs(15);

/// A mount that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountWish {
    /// Its name for ever.
    pub id: String,
    /// The dataset's uid.
    pub uid: String,
    /// What mount tables show.
    pub source: String,
    /// Where.
    pub directory: PathBuf,
    /// The version, or the homes.
    pub shows: Shows,
}

/// How a mount stands, for reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountState {
    /// How its process stands.
    pub slot: SlotState,
    /// Why it does not run.
    pub problem: Option<String>,
}

struct Entry {
    slot: Arc<Slot>,
    state: watch::Receiver<MountState>,
    cancel: CancellationToken,
}

struct Shared {
    data_dir: PathBuf,
    program: PathBuf,
    engine: Arc<dyn Engine>,
    staging_bytes: u64,
    entries: Mutex<HashMap<String, Entry>>,
    tasks: Mutex<JoinSet<()>>,
}

/// The mounts. Clones are one.
#[derive(Clone)]
pub struct Mounts {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Mounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mounts").field("mounts", &self.entries().keys().collect::<Vec<_>>()).finish()
    }
}

/// Why mounts cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen at {socket}")]
    Listen {
        socket: String,
        #[source]
        source: io::Error,
    },
    #[error("look at {directory}")]
    Directory {
        directory: String,
        #[source]
        source: io::Error,
    },
    #[error("take away the mount at {directory}: it is still there")]
    StillThere { directory: String },
}

/// A path of any length to a socket in a directory: sockets themselves take 107 bytes.
///
/// # Errors
/// When the directory cannot be opened.
pub fn socket_in(data_dir: &Path) -> io::Result<(std::fs::File, PathBuf)> {
    use std::os::fd::AsRawFd;
    let directory = std::fs::File::open(data_dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()));
    Ok((directory, path))
}

impl Mounts {
    /// Listens for mount processes. `program` is what they are started from, with the arguments `serve-mount --data-dir
    /// DIR --mount ID`. A writable mount stages at most `staging_bytes`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open(
        data_dir: &Path,
        program: PathBuf,
        engine: Arc<dyn Engine>,
        staging_bytes: u64,
    ) -> Result<(Self, UnixSeqpacketListener), Error> {
        let failed = |source| Error::Listen { socket: data_dir.join(SOCKET).display().to_string(), source };
        match std::fs::remove_file(data_dir.join(SOCKET)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let (_directory, path) = socket_in(data_dir).map_err(failed)?;
        let listener = UnixSeqpacketListener::bind(path).map_err(failed)?;
        let shared = Shared {
            data_dir: data_dir.to_owned(),
            program,
            engine,
            staging_bytes,
            entries: Mutex::default(),
            tasks: Mutex::default(),
        };
        Ok((Self { shared: Arc::new(shared) }, listener))
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers mount processes until cancelled; they live on.
    pub async fn run(self, mut listener: UnixSeqpacketListener, cancel: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok(socket) => {
                        let mounts = self.clone();
                        connections.spawn(async move { mounts.connection(socket).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a mount process could not connect");
                        tokio::time::sleep(PAUSE_FIRST).await;
                    }
                },
            }
        }
        connections.shutdown().await;
        let mut keepers = std::mem::take(&mut *self.tasks());
        keepers.shutdown().await;
    }

    async fn connection(&self, socket: UnixSeqpacket) {
        let hello = tokio::time::timeout(HELLO, serve::hello(&socket)).await;
        let Ok(Ok((id, pid, serving, versions))) = hello else { return };
        let slot = self.entries().get(&id).map(|entry| entry.slot.clone());
        let Some(slot) = slot else {
            // Its assignment may come any moment: a process that serves comes again.
            tokio::time::sleep(RETURN).await;
            if !self.entries().contains_key(&id) {
                tracing::info!(mount = id, pid, "a mount that nobody wants is sent away");
                let _ = serve::dismiss(&socket).await;
                // Until it has gone, or says something.
                let _ = tokio::time::timeout(HELLO, serve::hello(&socket)).await;
            }
            return;
        };
        if let Err(error) = serve::serve(slot, self.shared.engine.clone(), socket, (pid, serving, versions)).await {
            tracing::warn!(%error, mount = id, pid, "a mount process' connection broke");
        }
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a writable mount stages files, and how much.
    #[must_use]
    pub fn staging(&self, id: &str) -> StagingSpec {
        StagingSpec { directory: self.shared.data_dir.join(STAGING).join(id), most_bytes: self.shared.staging_bytes }
    }

    /// Makes a mount be there, or show another version, and tells how it stands from then on.
    #[must_use]
    pub fn want(&self, wish: &MountWish) -> watch::Receiver<MountState> {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(&wish.id) {
            if entry.slot.shows_homes(&wish.shows) {
                if let Shows::Version(root) = wish.shows {
                    entry.slot.show(root);
                }
                return entry.state.clone();
            }
            // Other homes, or none any more: another mount at the same place.
            entry.slot.take_away();
            entry.cancel.cancel();
        }
        let blocks = self.shared.data_dir.join("blocks");
        let MountWish { id, uid, source, directory, shows } = wish.clone();
        let slot = Arc::new(Slot::new(id, uid, directory, source, blocks, shows));
        let (sender, state) = watch::channel(MountState::default());
        let cancel = CancellationToken::new();
        let keeper = Keeper { shared: self.shared.clone(), slot: slot.clone(), state: sender };
        entries.insert(wish.id.clone(), Entry { slot, state: state.clone(), cancel: cancel.clone() });
        let mut tasks = self.tasks();
        // Those that ended are of mounts that were taken away.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = keeper.keep() => {}
            }
        });
        state
    }

    /// Takes a mount away; returns when its directory is free. Who has files open there keeps them.
    ///
    /// # Errors
    /// When it does not go in time.
    pub async fn take_away(&self, id: &str, directory: &Path, source: &str) -> Result<(), Error> {
        let entry = self.entries().remove(id);
        if let Some(entry) = entry {
            entry.slot.take_away();
            entry.cancel.cancel();
        }
        let deadline = tokio::time::Instant::now() + TAKE_AWAY;
        let half = tokio::time::Instant::now() + TAKE_AWAY / 3;
        while is_at(directory, source) {
            if tokio::time::Instant::now() > deadline {
                return Err(Error::StillThere { directory: directory.display().to_string() });
            }
            // Its process is dead, or does not answer.
            if tokio::time::Instant::now() > half {
                let owned = directory.to_owned();
                let _ = tokio::task::spawn_blocking(move || device::unmount(&owned)).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What is in it is a note of an upload that a process which was killed began: the next one gives that up.
        let _ = std::fs::remove_dir(self.staging(id).directory);
        // The directory of a mount is left as it was found: if it was made for it, it is empty.
        Ok(())
    }

    /// Takes every mount away, for an end that is meant to leave nothing.
    pub async fn take_all_away(&self) {
        let all: Vec<Arc<Slot>> = self.entries().values().map(|entry| entry.slot.clone()).collect();
        for slot in all {
            if let Err(error) = self.take_away(&slot.id, &slot.directory, &slot.source).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "a mount is left behind");
            }
        }
    }
}

/// A directory as the mount table names it: without links on the way. What is above it is made.
///
/// # Errors
/// When it cannot be looked at.
pub fn resolve(directory: &Path) -> io::Result<PathBuf> {
    let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the directory has no name of its own"));
    };
    std::fs::create_dir_all(parent)?;
    let resolved = parent.canonicalize()?.join(name);
    // A dead mount cannot be looked at, and is no link.
    if std::fs::symlink_metadata(&resolved).is_ok_and(|found| found.is_symlink()) {
        return resolved.canonicalize();
    }
    Ok(resolved)
}

/// Whether a mount is at its directory. A table that cannot be read has none.
fn is_at(directory: &Path, source: &str) -> bool {
    let line = device::mounted_at(directory).ok().flatten();
    line.is_some_and(|line| line.fs_type == FS_TYPE && line.source == source)
}

/// Keeps one mount's process running.
struct Keeper {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    state: watch::Sender<MountState>,
}

impl Keeper {
    async fn keep(self) {
        let mut slot = self.slot.state();
        let mut pause = PAUSE_FIRST;
        if is_at(&self.slot.directory, &self.slot.source) {
            // An agent before this one left it: its process comes back by itself, unless it is dead.
            let _ = tokio::time::timeout(RETURN, slot.wait_for(|state| state.process.is_some())).await;
        }
        loop {
            let now = slot.borrow_and_update().clone();
            if now.process.is_some() {
                pause = PAUSE_FIRST;
                self.tell(now, None);
                if slot.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let mut connected = false;
            let ended = self.attempt(&mut slot, &mut connected).await;
            if connected {
                // It ran: what ended it is not what keeps it from running.
                pause = PAUSE_FIRST;
            }
            let problem = ended.err().map(|error| error.to_string());
            self.tell(slot.borrow().clone(), problem);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_LONGEST);
        }
    }

    fn tell(&self, slot: SlotState, problem: Option<String>) {
        self.state.send_if_modified(|state| {
            let new = MountState { slot, problem };
            let changed = *state != new;
            *state = new;
            changed
        });
    }

    /// Starts a process and follows it to its end.
    async fn attempt(&self, slot: &mut watch::Receiver<SlotState>, connected: &mut bool) -> io::Result<()> {
        let prepared = self.slot.clone();
        tokio::task::spawn_blocking(move || prepare(&prepared))
            .await
            .map_err(|_| io::Error::other("the program is ending"))??;
        self.slot.begin();
        let mut command = Command::new(&self.shared.program);
        if self.slot.is_writable() {
            command.envs(LARGE_BUFFERS);
        }
        let mut child = command
            .arg("serve-mount")
            .arg("--data-dir")
            .arg(&self.shared.data_dir)
            .arg("--mount")
            .arg(&self.slot.id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A signal to the agent's group is not for those whose work goes on.
            .process_group(0)
            .spawn()?;
        let hello = tokio::time::sleep(HELLO);
        tokio::pin!(hello);
        loop {
            let now = slot.borrow_and_update().clone();
            *connected |= now.process.is_some();
            let problem = now.ended.clone().filter(|problem| !problem.is_empty());
            self.tell(now, problem);
            tokio::select! {
                exited = child.wait() => {
                    let status = exited?;
                    let said = slot.borrow_and_update().ended.clone().filter(|problem| !problem.is_empty());
                    return match said {
                        Some(problem) => Err(io::Error::other(problem)),
                        None if status.success() => Ok(()),
                        None => Err(io::Error::other(format!("the mount process ended: {status}"))),
                    };
                }
                changed = slot.changed() => if changed.is_err() { return Ok(()) },
                () = &mut hello, if !*connected => {
                    child.start_kill()?;
                    child.wait().await?;
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the mount process did not say hello"));
                }
            }
        }
    }
}

/// Makes the directory ready to be mounted on.
fn prepare(slot: &Slot) -> io::Result<()> {
    let directory = &slot.directory;
    let shown = directory.display();
    match device::mounted_at(directory)? {
        Some(line) if line.fs_type == FS_TYPE && line.source == slot.source => {
            // Its process died. With its device here, the next process takes it over.
            if slot.has_device() {
                return Ok(());
            }
            device::unmount(directory)?;
        }
        Some(line) => {
            let message = format!("{shown} is a mount of {} ({}) already", line.source, line.fs_type);
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        None => slot.drop_device(),
    }
    std::fs::create_dir_all(directory)
        .map_err(|error| io::Error::new(error.kind(), format!("make directory {shown}: {error}")))?;
    if std::fs::read_dir(directory)?.next().is_some() {
        let message = format!("{shown} is not empty: what is in it would be hidden");
        return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, message));
    }
    Ok(())
}
