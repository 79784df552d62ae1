//! The agent's side of the socket: answers a mount process from the engine.
//!
//! What may pass, a source that is away or overloaded, is tried again for [`SOURCE_PATIENCE`], so that readers pause
//! instead of failing. Files that a mount process has open are open in the engine for as long, and no longer than, its
//! connection.

use std::any::Any;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fluvial_engine::{Contents, Engine, EngineError};
use fluvial_model::causes::chain;
use fluvial_model::manifest::{RelativePath, Root};
use futures::StreamExt as _;
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_seqpacket::UnixSeqpacket;

use crate::fs::{MOST_READ, Mode};
use crate::wire::{self, Failure, FromAgent, FromMount, NumberedVersion, OpenedAs, Received};
use crate::write::spec::{HomeSpec, StagingSpec};

/// How long a reader waits for a source.
pub const SOURCE_PATIENCE: Duration = Duration::from_secs(300);
/// The first pause before a source is asked again.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// The longest.
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// Requests of one mount that are worked on at a time: more wait in the socket. Each holds at most one range of the
/// engine, which bounds what all of them together have in memory.
const REQUESTS: usize = 256;

/// Small files that are fetched ahead at a time.
const AHEAD_AT_ONCE: usize = 32;

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shows {
    /// A version of the dataset, read-only.
    Version(Root),
    /// The homes of record themselves, writable.
    Homes {
        /// The homes.
        homes: Vec<HomeSpec>,
        /// Where files are staged.
        staging: StagingSpec,
    },
}

/// What is served to one mount process after the other, for as long as the mount is wanted.
pub struct Slot {
    /// Names the mount.
    pub id: String,
    /// The dataset's uid.
    pub uid: String,
    /// Where it is mounted.
    pub directory: PathBuf,
    /// What mount tables show as its source.
    pub source: String,
    /// Where the blocks of versions are.
    pub blocks: PathBuf,
    /// Every version that was current, the last one is; none of a writable mount.
    versions: watch::Sender<Vec<NumberedVersion>>,
    /// What a writable mount shows.
    homes: Option<(Vec<HomeSpec>, StagingSpec)>,
    /// Whether it is to be taken away.
    unwanted: watch::Sender<bool>,
    /// How it stands.
    state: watch::Sender<SlotState>,
    /// What a successor of the process needs.
    estate: Mutex<Estate>,
}

/// What a mount process leaves to its successor.
#[derive(Default)]
struct Estate {
    /// The table of what is open.
    table: Option<OwnedFd>,
    /// The device, and the kernel's first request.
    device: Option<(OwnedFd, Vec<u8>)>,
}

/// How a mount stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotState {
    /// The process that serves it, connected now.
    pub process: Option<u32>,
    /// The kernel is served.
    pub serving: bool,
    /// How complete files are read.
    pub mode: Option<Mode>,
    /// Another text whenever something was written, or may have been.
    pub written: String,
    /// The mount is gone: taken away, by us or by others, or it could not be made; in words, if something went wrong.
    pub ended: Option<String>,
}

impl Slot {
    /// A mount that nobody serves yet.
    #[must_use]
    pub fn new(id: String, uid: String, directory: PathBuf, source: String, blocks: PathBuf, shows: Shows) -> Self {
        let (versions, homes) = match shows {
            Shows::Version(root) => (vec![NumberedVersion { number: 1, root }], None),
            Shows::Homes { homes, staging } => (Vec::new(), Some((homes, staging))),
        };
        Self {
            id,
            uid,
            directory,
            source,
            blocks,
            versions: watch::Sender::new(versions),
            homes,
            unwanted: watch::Sender::new(false),
            state: watch::Sender::new(SlotState::default()),
            estate: Mutex::default(),
        }
    }

    /// Whether it is written through.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.homes.is_some()
    }

    /// Whether it shows these homes, or no homes at all.
    #[must_use]
    pub fn shows_homes(&self, shows: &Shows) -> bool {
        match (&self.homes, shows) {
            (None, Shows::Version(_)) => true,
            (Some((known, _)), Shows::Homes { homes, .. }) => known == homes,
            _ => false,
        }
    }

    /// Makes a version current.
    pub fn show(&self, root: Root) {
        self.versions.send_if_modified(|versions| {
            let last = versions.last().copied();
            let new = last.is_none_or(|last| last.root != root);
            if new {
                versions.push(NumberedVersion { number: last.map_or(1, |last| last.number + 1), root });
            }
            new
        });
    }

    /// Has it taken away.
    pub fn take_away(&self) {
        self.unwanted.send_replace(true);
    }

    /// How it stands; changes are seen by waiting on the receiver.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<SlotState> {
        self.state.subscribe()
    }

    /// Forgets how the last process ended, before another is started.
    pub fn begin(&self) {
        self.state.send_modify(|state| {
            let (mode, written) = (state.mode.take(), std::mem::take(&mut state.written));
            *state = SlotState { mode, written, ..SlotState::default() };
        });
    }

    fn estate(&self) -> MutexGuard<'_, Estate> {
        self.estate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the device: nothing can take the mount over any more.
    pub fn drop_device(&self) {
        *self.estate() = Estate::default();
    }

    /// Whether a successor could take the mount over.
    #[must_use]
    pub fn has_device(&self) -> bool {
        let estate = self.estate();
        estate.device.is_some() && estate.table.is_some()
    }
}

/// What a mount process has open.
struct Held {
    /// Where its contents come from; nothing if they are complete: the process has the file itself then.
    contents: Option<Contents>,
    _lease: Option<Arc<dyn Any + Send + Sync>>,
}

/// One connection.
struct Connection {
    slot: Arc<Slot>,
    engine: Arc<dyn Engine>,
    socket: Arc<UnixSeqpacket>,
    files: Mutex<HashMap<u64, Arc<Held>>>,
    handles: AtomicU64,
    turns: Semaphore,
}

/// Reads who is there: the first message of a connection.
///
/// # Errors
/// When it is another message, or none.
pub async fn hello(socket: &UnixSeqpacket) -> io::Result<(String, u32, bool, Vec<NumberedVersion>)> {
    match wire::receive(socket).await? {
        Some(Received { message: FromMount::Hello { mount, pid, serving, versions }, .. }) => {
            Ok((mount, pid, serving, versions))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Tells a mount process that nobody wants its mount.
///
/// # Errors
/// When it is gone.
pub async fn dismiss(socket: &UnixSeqpacket) -> io::Result<()> {
    wire::send(socket, &FromAgent::Unmount, None::<&File>).await
}

/// Serves a connection whose hello was read, until it breaks or the mount ends.
///
/// # Errors
/// When the socket fails.
pub async fn serve(
    slot: Arc<Slot>,
    engine: Arc<dyn Engine>,
    socket: UnixSeqpacket,
    (pid, serving, known): (u32, bool, Vec<NumberedVersion>),
) -> io::Result<()> {
    let connection = Arc::new(Connection {
        slot,
        engine,
        socket: Arc::new(socket),
        files: Mutex::default(),
        handles: AtomicU64::new(1),
        turns: Semaphore::new(REQUESTS),
    });
    let served = connection.clone().run(pid, serving, known).await;
    connection.slot.state.send_modify(|state| {
        if state.process == Some(pid) {
            (state.process, state.serving) = (None, false);
        }
    });
    served
}

impl Connection {
    async fn run(self: Arc<Self>, pid: u32, serving: bool, known: Vec<NumberedVersion>) -> io::Result<()> {
        let slot = self.slot.clone();
        // A process that comes back knows versions that this agent, begun anew, does not: they keep their numbers.
        slot.versions.send_if_modified(|versions| adopt(versions, &known));
        slot.state.send_modify(|state| (state.process, state.serving, state.ended) = (Some(pid), serving, None));
        let mut versions = slot.versions.subscribe();
        let mut unwanted = slot.unwanted.subscribe();
        let first = versions.borrow_and_update().clone();
        self.welcome(serving, first).await?;
        let mut requests = JoinSet::new();
        let mut told = false;
        loop {
            tokio::select! {
                Some(_) = requests.join_next() => {}
                changed = versions.changed() => {
                    let current = versions.borrow_and_update().last().copied();
                    if let (Ok(()), Some(version)) = (changed, current) {
                        self.say(&FromAgent::Version(version)).await?;
                    }
                }
                () = async { drop(unwanted.wait_for(|unwanted| *unwanted).await) }, if !told => {
                    told = true;
                    self.say(&FromAgent::Unmount).await?;
                }
                received = wire::receive::<FromMount>(&self.socket) => {
                    let Some(Received { message, file }) = received? else { return Ok(()) };
                    match message {
                        FromMount::Hello { .. } => return Err(io::ErrorKind::InvalidData.into()),
                        FromMount::OpenFiles => slot.estate().table = file,
                        FromMount::Serving { init } => {
                            slot.estate().device = file.map(|file| (file, init));
                            slot.state.send_modify(|state| state.serving = true);
                        }
                        FromMount::Mode(mode) => slot.state.send_modify(|state| state.mode = Some(mode)),
                        FromMount::Written => slot.state.send_modify(|state| state.written = moment()),
                        FromMount::Ended { problem } => {
                            slot.drop_device();
                            slot.state.send_modify(|state| (state.serving, state.ended) = (false, Some(problem)));
                        }
                        FromMount::Close { handle } => drop(self.files().remove(&handle)),
                        request => {
                            let connection = self.clone();
                            requests.spawn(async move { connection.request(request).await });
                        }
                    }
                }
            }
        }
    }

    fn files(&self) -> MutexGuard<'_, HashMap<u64, Arc<Held>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn say(&self, message: &FromAgent) -> io::Result<()> {
        wire::send(&self.socket, message, None::<&File>).await
    }

    async fn welcome(&self, serving: bool, versions: Vec<NumberedVersion>) -> io::Result<()> {
        let slot = &self.slot;
        let (device, table, init) = {
            let estate = slot.estate();
            match (&estate.device, &estate.table) {
                (Some((device, init)), Some(table)) if !serving => {
                    (Some(device.try_clone()?), Some(table.try_clone()?), init.clone())
                }
                _ => (None, None, Vec::new()),
            }
        };
        let welcome = FromAgent::Welcome {
            directory: slot.directory.clone(),
            source: slot.source.clone(),
            blocks: slot.blocks.clone(),
            versions,
            init,
            homes: slot.homes.as_ref().map(|(homes, staging)| (staging.clone(), homes.len())),
        };
        wire::send(&self.socket, &welcome, device.as_ref()).await?;
        if let Some(table) = table {
            wire::send(&self.socket, &FromAgent::OpenFiles, Some(&table)).await?;
        }
        for home in slot.homes.iter().flat_map(|(homes, _)| homes) {
            self.say(&FromAgent::Home(home.clone())).await?;
        }
        Ok(())
    }

    async fn request(&self, message: FromMount) {
        let Ok(_turn) = self.turns.acquire().await else { return };
        let (request, answered) = match message {
            FromMount::Open { request, root, path } => (request, self.open(request, root, &path).await),
            FromMount::Keep { request, root, path } => (request, self.keep(request, root, &path).await),
            FromMount::Fill { request, handle, offset, length } => {
                (request, self.fill(request, handle, offset, length).await)
            }
            FromMount::Read { request, handle, offset, length } => {
                (request, self.read(request, handle, offset, length).await)
            }
            FromMount::Ahead { root, paths } => return self.ahead(root, paths).await,
            _ => return,
        };
        if let Err(error) = answered {
            let message = chain(&error);
            let failure = Failure { errno: errno(&error), message };
            self.answer(FromAgent::Failed { request, failure }, None).await;
        }
    }

    async fn open(&self, request: u64, root: Root, path: &RelativePath) -> Result<(), EngineError> {
        let open = self.of_version(root, || self.engine.open(&self.slot.uid, root, path)).await?;
        let (opened, file) = match &open.contents {
            Contents::Complete(file) => (OpenedAs::Complete, Some(file.clone())),
            Contents::Filling(file, _) => (OpenedAs::Filling, Some(file.clone())),
            Contents::Through(_) => (OpenedAs::Through, None),
        };
        let handle = self.handles.fetch_add(1, Ordering::Relaxed);
        let contents = (opened != OpenedAs::Complete).then_some(open.contents);
        self.files().insert(handle, Arc::new(Held { contents, _lease: open.lease }));
        self.answer(FromAgent::Opened { request, handle, opened }, file.as_deref()).await;
        Ok(())
    }

    /// Has the cache keep what a mount process has of a file.
    async fn keep(&self, request: u64, root: Root, path: &RelativePath) -> Result<(), EngineError> {
        let Some(open) = self.of_version(root, || self.engine.open_complete(&self.slot.uid, root, path)).await? else {
            return self.lost(request).await;
        };
        let handle = self.handles.fetch_add(1, Ordering::Relaxed);
        self.files().insert(handle, Arc::new(Held { contents: None, _lease: open.lease }));
        self.answer(FromAgent::Opened { request, handle, opened: OpenedAs::Complete }, None).await;
        Ok(())
    }

    /// Opens a file of a version. The cache may be told of a version a moment after the mount, or before it is prepared
    /// at all: that is waited for. A version that is not shown any more is not.
    async fn of_version<T, F>(&self, root: Root, mut open: impl FnMut() -> F) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, EngineError>>,
    {
        let deadline = Instant::now() + SOURCE_PATIENCE;
        loop {
            let opened = patiently(&mut open).await;
            let current = self.slot.versions.borrow().last().is_some_and(|version| version.root == root);
            match opened {
                Err(EngineError::NotPrepared { .. } | EngineError::Superseded { .. })
                    if current && Instant::now() < deadline =>
                {
                    tokio::time::sleep(RETRY_FIRST).await;
                }
                opened => return opened,
            }
        }
    }

    /// Fetches files before they are opened. What fails is met again by who opens it.
    async fn ahead(&self, root: Root, paths: Vec<RelativePath>) {
        let fetch = |path: RelativePath| async move {
            if let Err(error) = self.engine.ahead(&self.slot.uid, root, &path).await {
                tracing::debug!(error = &error as &dyn std::error::Error, path = path.as_str(), "not fetched ahead");
            }
        };
        futures::stream::iter(paths).for_each_concurrent(AHEAD_AT_ONCE, fetch).await;
    }

    fn open_file(&self, handle: u64) -> Option<Arc<Held>> {
        self.files().get(&handle).cloned()
    }

    async fn fill(&self, request: u64, handle: u64, offset: u64, length: u64) -> Result<(), EngineError> {
        // Closed because another reader of the file was told that it is lost.
        let Some(open) = self.open_file(handle) else { return self.lost(request).await };
        let complete = match &open.contents {
            None | Some(Contents::Complete(_)) => true,
            Some(Contents::Filling(_, filling)) => match patiently(|| filling.fill(offset, length)).await {
                Ok(()) => filling.is_complete(),
                Err(error @ EngineError::TierFailed { .. }) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a reader is served from elsewhere");
                    return self.lost(request).await;
                }
                Err(error) => return Err(error),
            },
            Some(Contents::Through(_)) => return Err(local("fill", nix::libc::EINVAL)),
        };
        self.answer(FromAgent::Filled { request, complete }, None).await;
        Ok(())
    }

    async fn read(&self, request: u64, handle: u64, offset: u64, length: u32) -> Result<(), EngineError> {
        let Some(open) = self.open_file(handle) else { return self.lost(request).await };
        let Some(Contents::Through(through)) = &open.contents else { return Err(local("read", nix::libc::EINVAL)) };
        let length = u64::from(length.min(MOST_READ));
        let data = patiently(|| through.read(offset, length)).await?;
        let io = |source| EngineError::Io { op: "pass on", file: "contents".to_owned(), source };
        let memory = memfd_create("contents", MFdFlags::MFD_CLOEXEC).map_err(|error| io(error.into()))?;
        let mut file = File::from(memory);
        file.write_all(&data).map_err(io)?;
        let length = u32::try_from(data.len()).unwrap_or(MOST_READ);
        self.answer(FromAgent::Contents { request, length }, Some(&file)).await;
        Ok(())
    }

    async fn lost(&self, request: u64) -> Result<(), EngineError> {
        self.answer(FromAgent::Lost { request }, None).await;
        Ok(())
    }

    async fn answer(&self, message: FromAgent, file: Option<&File>) {
        // A connection that broke is noticed by who reads from it.
        if let Err(error) = wire::send(&self.socket, &message, file).await {
            tracing::debug!(%error, "an answer to a mount process was not sent");
        }
    }
}

/// A text for this moment, unlike that of any other.
fn moment() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}", since.as_nanos())
}

/// Numbers that a process gave out stay; what this agent wants to show comes after them. True if that changed anything.
fn adopt(versions: &mut Vec<NumberedVersion>, known: &[NumberedVersion]) -> bool {
    if known.is_empty() || versions.starts_with(known) {
        return false;
    }
    let current = versions.last().copied();
    let mut adopted = known.to_vec();
    adopted.sort_by_key(|version| version.number);
    if let (Some(current), Some(last)) = (current, adopted.last().copied())
        && last.root != current.root
    {
        adopted.push(NumberedVersion { number: last.number + 1, root: current.root });
    }
    *versions = adopted;
    true
}

fn local(op: &'static str, errno: i32) -> EngineError {
    EngineError::Io { op, file: "of a mount".to_owned(), source: io::Error::from_raw_os_error(errno) }
}

/// Tries what may pass again, until the patience ends.
async fn patiently<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, EngineError>
where
    F: Future<Output = Result<T, EngineError>>,
{
    let deadline = Instant::now() + SOURCE_PATIENCE;
    let mut pause = RETRY_FIRST;
    loop {
        match attempt().await {
            // Another tier, or none, serves the reader at once.
            Err(error @ EngineError::TierFailed { .. }) => return Err(error),
            Err(error) if error.is_transient() && Instant::now() < deadline => {
                tracing::debug!(error = &error as &dyn std::error::Error, "a reader waits for its source");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_LONGEST);
            }
            ended => return ended,
        }
    }
}

/// What a reader sees of an error.
fn errno(error: &EngineError) -> i32 {
    match error {
        EngineError::NotFound { .. } => nix::libc::ENOENT,
        // The kernel looks the path up again, in the version that is current.
        EngineError::Superseded { .. } => nix::libc::ESTALE,
        EngineError::Io { source, .. } => source.raw_os_error().unwrap_or(nix::libc::EIO),
        _ => nix::libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: u32, text: &str) -> NumberedVersion {
        NumberedVersion { number, root: Root::of(text.as_bytes()) }
    }

    #[test]
    fn numbers_that_were_given_out_stay() {
        let mut versions = vec![version(1, "c")];
        assert!(!adopt(&mut versions, &[]));
        assert!(adopt(&mut versions, &[version(1, "a"), version(2, "b")]));
        assert_eq!(versions, [version(1, "a"), version(2, "b"), version(3, "c")]);
        assert!(!adopt(&mut versions, &[version(1, "a"), version(2, "b")]));
        let mut same = vec![version(1, "b")];
        assert!(adopt(&mut same, &[version(1, "a"), version(2, "b")]));
        assert_eq!(same, [version(1, "a"), version(2, "b")]);
    }
}
