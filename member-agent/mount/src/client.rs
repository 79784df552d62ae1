//! The mount process' side of the socket: contents of files, asked of the agent.
//!
//! An agent that goes away and comes back (an upgrade, a crash) is a pause: requests wait for the next connection, and
//! files that were not complete are opened again by it. What is complete is read from its file, agent or not.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{RelativePath, Root};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio_seqpacket::UnixSeqpacket;

use crate::files::{Contents, Files, Opened, ReadAt, read_file};
use crate::fs::MOST_READ;
use crate::wire::{self, Failure, FromAgent, FromMount, OpenedAs, Received};

/// How long a reader waits for an agent that is gone.
const AGENT_PATIENCE: Duration = Duration::from_secs(300);
/// What is known to be there is noted in parts of this size.
const PART_BYTES: u64 = 1 << 20;
/// The first piece that is fetched ahead of a sequential reader; …
const AHEAD_FIRST: u64 = 4 << 20;
/// … each next one is so many times as large, …
const AHEAD_GROWS: u64 = 4;
/// … up to the largest: all ranges of a file at a time.
const AHEAD_MOST: u64 = 64 << 20;
/// A jump that still counts as reading on.
const AHEAD_GAP: u64 = 4 << 20;
/// Files that are read as a whole, and at once: they are fetched from the moment they are opened.
const MODEL_SUFFIXES: [&str; 8] = [".safetensors", ".gguf", ".ggml", ".bin", ".pt", ".pth", ".ckpt", ".onnx"];

/// An answer, as it arrived.
enum Answer {
    Opened { handle: u64, opened: OpenedAs, file: Option<OwnedFd> },
    Filled { complete: bool },
    Lost,
    Contents { length: u32, file: Option<OwnedFd> },
    Failed(Failure),
}

/// A connection to the agent; handles are its own.
#[derive(Clone)]
struct Link {
    socket: Arc<UnixSeqpacket>,
    number: u64,
}

impl Link {
    /// Says something that needs no answer.
    async fn tell(&self, message: &FromMount) {
        if let Err(error) = wire::send(&self.socket, message, None::<&File>).await {
            tracing::debug!(%error, "the agent was not told");
        }
    }
}

/// Asks the agent.
pub struct Client {
    runtime: Handle,
    link: watch::Sender<Option<Link>>,
    pending: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    requests: AtomicU64,
    links: AtomicU64,
    /// Complete files that this process, or one before it, has open.
    complete: Mutex<BTreeMap<u64, Weak<Complete>>>,
}

impl Client {
    /// Asks nobody yet; `runtime` tells what is told later.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            link: watch::Sender::new(None),
            pending: Mutex::default(),
            requests: AtomicU64::new(1),
            links: AtomicU64::new(1),
            complete: Mutex::default(),
        }
    }

    /// A connection is there.
    pub fn connected(self: &Arc<Self>, socket: Arc<UnixSeqpacket>) {
        let number = self.links.fetch_add(1, Ordering::Relaxed);
        let link = Link { socket, number };
        self.link.send_replace(Some(link.clone()));
        let client = self.clone();
        self.runtime.spawn(async move { client.keep_complete(&link).await });
    }

    fn complete(&self) -> MutexGuard<'_, BTreeMap<u64, Weak<Complete>>> {
        self.complete.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the agent of a new connection keep the complete files that are open.
    async fn keep_complete(&self, link: &Link) {
        let open: Vec<Arc<Complete>> = self.complete().values().filter_map(Weak::upgrade).collect();
        for complete in open {
            if complete.handle().is_none_or(|(number, _)| number != link.number) {
                complete.keep_by(link).await;
            }
        }
    }

    /// A complete file that is open, and the handle by which the agent keeps it.
    fn note_complete(self: &Arc<Self>, root: Root, path: RelativePath, handle: Option<(u64, u64)>) -> Arc<Complete> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let complete = Arc::new(Complete { client: self.clone(), number, root, path, handle: Mutex::new(handle) });
        self.complete().insert(number, Arc::downgrade(&complete));
        complete
    }

    /// Tells the agent that a file is closed, on the connection that the handle is of: one that broke closes everything by
    /// itself.
    fn close(&self, (number, handle): (u64, u64)) {
        let link = self.link.borrow().clone().filter(|link| link.number == number);
        if let Some(link) = link {
            self.runtime.spawn(async move { link.tell(&FromMount::Close { handle }).await });
        }
    }

    /// The connection is gone: whoever waits for an answer asks the next one.
    pub fn disconnected(&self) {
        self.link.send_replace(None);
        self.pending().clear();
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a message that is an answer to who waits for it; others come back.
    pub fn answered(&self, received: Received<FromAgent>) -> Option<FromAgent> {
        let Received { message, file } = received;
        let (request, answer) = match message {
            FromAgent::Opened { request, handle, opened } => (request, Answer::Opened { handle, opened, file }),
            FromAgent::Filled { request, complete } => (request, Answer::Filled { complete }),
            FromAgent::Lost { request } => (request, Answer::Lost),
            FromAgent::Contents { request, length } => (request, Answer::Contents { length, file }),
            FromAgent::Failed { request, failure } => (request, Answer::Failed(failure)),
            other => return Some(other),
        };
        if let Some(waiting) = self.pending().remove(&request) {
            // Who waited may have given up.
            let _ = waiting.send(answer);
        }
        None
    }

    /// Tells the agent something that needs no answer, if there is one.
    async fn tell(&self, message: FromMount) {
        let link = self.link.borrow().clone();
        if let Some(link) = link {
            link.tell(&message).await;
        }
    }

    /// The connection, as soon as there is one.
    async fn link(&self) -> io::Result<Link> {
        let mut link = self.link.subscribe();
        let found = tokio::time::timeout(AGENT_PATIENCE, link.wait_for(Option::is_some)).await;
        match found {
            Ok(Ok(link)) => link.clone().ok_or_else(|| io::ErrorKind::NotConnected.into()),
            _ => Err(io::Error::from_raw_os_error(nix::libc::EIO)),
        }
    }

    /// Sends a request and waits for its answer; `None` if the connection broke before it came.
    async fn ask(&self, link: &Link, message: impl FnOnce(u64) -> FromMount) -> io::Result<Option<Answer>> {
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.pending().insert(request, sender);
        if let Err(error) = wire::send(&link.socket, &message(request), None::<&File>).await {
            self.pending().remove(&request);
            // Too long a path can never be sent; all else is a connection that broke.
            return if error.kind() == io::ErrorKind::InvalidInput { Err(error) } else { Ok(None) };
        }
        // It may have broken between the look at the link and the note of the request.
        if self.link.borrow().as_ref().is_none_or(|current| current.number != link.number) {
            self.pending().remove(&request);
            return Ok(None);
        }
        match answer.await {
            Ok(Answer::Failed(failure)) => {
                tracing::warn!(errno = failure.errno, "{}", failure.message);
                Err(io::Error::from_raw_os_error(failure.errno))
            }
            Ok(answer) => Ok(Some(answer)),
            Err(_) => Ok(None),
        }
    }

    async fn open(&self, root: Root, path: &RelativePath) -> io::Result<Held> {
        loop {
            let link = self.link().await?;
            let path = path.clone();
            match self.ask(&link, |request| FromMount::Open { request, root, path }).await? {
                Some(Answer::Opened { handle, opened, file }) => {
                    let file = file.map(|file| Arc::new(File::from(file)));
                    let (link, complete) = (link.number, opened == OpenedAs::Complete);
                    return Ok(Held { link, handle, opened, file, there: Vec::new(), complete });
                }
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                // A moment, until the end of the connection is noticed everywhere.
                None => tokio::task::yield_now().await,
            }
        }
    }
}

/// A file that the agent has open.
struct Held {
    link: u64,
    handle: u64,
    opened: OpenedAs,
    file: Option<Arc<File>>,
    /// Which parts are known to be in the file.
    there: Vec<u64>,
    complete: bool,
}

impl Held {
    fn has(&self, offset: u64, end: u64) -> bool {
        let there = |part: u64| {
            let word = usize::try_from(part / 64).unwrap_or(usize::MAX);
            self.there.get(word).is_some_and(|bits| bits & (1 << (part % 64)) != 0)
        };
        self.complete || (offset / PART_BYTES..end.div_ceil(PART_BYTES)).all(there)
    }

    fn note(&mut self, offset: u64, end: u64) {
        for part in offset / PART_BYTES..end.div_ceil(PART_BYTES) {
            let word = usize::try_from(part / 64).unwrap_or(usize::MAX);
            if self.there.len() <= word {
                self.there.resize(word + 1, 0);
            }
            self.there[word] |= 1 << (part % 64);
        }
    }
}

/// How far ahead of a reader is fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ahead {
    /// Where the reader is if it reads on.
    expected: u64,
    /// What was asked for up to here.
    asked: u64,
    /// How much the next piece is; nothing as long as the reader jumps.
    piece: u64,
}

impl Ahead {
    /// What to fetch ahead now that the reader reads a range of a file of `size` bytes.
    fn step(&mut self, offset: u64, end: u64, size: u64) -> Option<(u64, u64)> {
        let on = offset <= self.expected.saturating_add(AHEAD_GAP) && end >= self.expected.saturating_sub(AHEAD_GAP);
        self.expected = end;
        if !on {
            (self.asked, self.piece) = (end, 0);
            return None;
        }
        if self.piece == 0 {
            self.piece = AHEAD_FIRST;
        }
        let from = self.asked.max(end);
        // Half a piece before it is needed.
        if from >= size || from > end.saturating_add(self.piece / 2) {
            return None;
        }
        let to = from.saturating_add(self.piece).min(size);
        self.asked = to;
        self.piece = (self.piece * AHEAD_GROWS).min(AHEAD_MOST);
        Some((from, to))
    }
}

/// A file that is not complete, read through the agent.
struct Remote {
    client: Arc<Client>,
    root: Root,
    path: RelativePath,
    size: u64,
    held: Mutex<Held>,
    /// One opens it again, the others wait for that.
    opening: tokio::sync::Mutex<()>,
    ahead: Mutex<Ahead>,
}

/// A handle of a connection, and the file that came with it.
struct RemoteHandle {
    link: Link,
    number: u64,
    file: Option<Arc<File>>,
}

impl Remote {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, if the range is in it: with or without an agent.
    fn there(&self, offset: u64, end: u64) -> Option<Arc<File>> {
        let held = self.held();
        if held.has(offset, end) { held.file.clone() } else { None }
    }

    /// The file as the present connection has it. Opened again if the connection is another one, or if the agent has told
    /// that the handle `lost` is of no use any more.
    async fn handle(&self, lost: Option<(u64, u64)>) -> io::Result<RemoteHandle> {
        let _turn = self.opening.lock().await;
        loop {
            let link = self.client.link().await?;
            let (number, handle, file) = {
                let held = self.held();
                (held.link, held.handle, held.file.clone())
            };
            if number == link.number && lost != Some((number, handle)) {
                return Ok(RemoteHandle { link, number: handle, file });
            }
            let opened = self.client.open(self.root, &self.path).await?;
            self.client.close((number, handle));
            *self.held() = opened;
        }
    }

    /// Has a range put into the file; `None` if there is no file, and it is to be asked for.
    async fn fill(&self, offset: u64, end: u64) -> io::Result<Option<Arc<File>>> {
        let mut lost = None;
        loop {
            if let Some(file) = self.there(offset, end) {
                return Ok(Some(file));
            }
            let handle = self.handle(lost).await?;
            let Some(file) = handle.file else { return Ok(None) };
            // Opened again, it may be complete.
            if let Some(file) = self.there(offset, end) {
                return Ok(Some(file));
            }
            let (number, length) = (handle.number, end - offset);
            let fill = |request| FromMount::Fill { request, handle: number, offset, length };
            match self.client.ask(&handle.link, fill).await? {
                Some(Answer::Filled { complete }) => {
                    let mut current = self.held();
                    if (current.link, current.handle) == (handle.link.number, number) {
                        current.note(offset, end);
                        current.complete |= complete;
                    }
                    return Ok(Some(file));
                }
                Some(Answer::Lost) => lost = Some((handle.link.number, number)),
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                None => {}
            }
        }
    }

    /// Asks for a range; `None` if there is a file to put it into now.
    async fn through(&self, offset: u64, length: u32) -> io::Result<Option<Bytes>> {
        let mut lost = None;
        loop {
            let handle = self.handle(lost).await?;
            if handle.file.is_some() {
                return Ok(None);
            }
            let number = handle.number;
            let read = |request| FromMount::Read { request, handle: number, offset, length };
            match self.client.ask(&handle.link, read).await? {
                Some(Answer::Contents { length, file: Some(file) }) => {
                    return Ok(Some(read_file(&File::from(file), 0, length)?.into()));
                }
                Some(Answer::Lost) => lost = Some((handle.link.number, number)),
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                None => {}
            }
        }
    }
}

#[async_trait]
impl ReadAt for Arc<Remote> {
    async fn read_at(&self, offset: u64, length: u32) -> io::Result<Bytes> {
        let end = offset.saturating_add(u64::from(length.min(MOST_READ))).min(self.size);
        if end <= offset {
            return Ok(Bytes::new());
        }
        let length = u32::try_from(end - offset).unwrap_or(MOST_READ);
        if self.held().opened == OpenedAs::Filling {
            let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).step(offset, end, self.size);
            if let Some((from, to)) = ahead {
                self.clone().fetch_ahead(from, to);
            }
        }
        loop {
            if let Some(file) = self.fill(offset, end).await? {
                // From the page cache, where it was written a moment ago.
                return Ok(read_file(&file, offset, length)?.into());
            }
            if let Some(contents) = self.through(offset, length).await? {
                return Ok(contents);
            }
        }
    }
}

impl Remote {
    /// Fetches what will be wanted. Its failure is nobody's: who reads it asks again, and hears of it.
    fn fetch_ahead(self: Arc<Self>, from: u64, to: u64) {
        tokio::spawn(async move {
            if let Err(error) = self.fill(from, to).await {
                tracing::debug!(%error, "not fetched ahead");
            }
        });
    }
}

/// A complete file that is open: its agent, and every one after it, is to keep it.
struct Complete {
    client: Arc<Client>,
    number: u64,
    root: Root,
    path: RelativePath,
    /// Link and handle by which it is kept.
    handle: Mutex<Option<(u64, u64)>>,
}

impl Complete {
    fn handle(&self) -> Option<(u64, u64)> {
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep_by(&self, link: &Link) {
        let keep = |request| FromMount::Keep { request, root: self.root, path: self.path.clone() };
        match self.client.ask(link, keep).await {
            Ok(Some(Answer::Opened { handle, .. })) => {
                *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some((link.number, handle));
            }
            // Given up already, or of a version that is past: its bytes stay until it is closed. A link that broke is
            // followed by another.
            other => tracing::debug!(path = self.path.as_str(), kept = other.is_ok(), "the cache does not keep it"),
        }
    }
}

impl Drop for Complete {
    fn drop(&mut self) {
        self.client.complete().remove(&self.number);
        if let Some(handle) = self.handle() {
            self.client.close(handle);
        }
    }
}

/// Tells the agent that a file that was not complete is closed.
struct Lease(Arc<Remote>);

impl Drop for Lease {
    fn drop(&mut self) {
        let handle = {
            let held = self.0.held();
            (held.link, held.handle)
        };
        self.0.client.close(handle);
    }
}

/// The client as a source of files; their sizes are known from the tree.
pub struct RemoteFiles(pub Arc<Client>);

#[async_trait]
impl Files for RemoteFiles {
    async fn ahead(&self, root: Root, paths: Vec<RelativePath>) {
        self.0.tell(FromMount::Ahead { root, paths }).await;
    }

    fn keep(&self, root: Root, path: RelativePath) -> Box<dyn Any + Send + Sync> {
        Box::new(self.0.note_complete(root, path, None))
    }

    async fn open(&self, root: Root, path: &RelativePath, size: u64) -> io::Result<Opened> {
        let client = self.0.clone();
        let held = client.open(root, path).await?;
        if let (OpenedAs::Complete, Some(file)) = (held.opened, &held.file) {
            let complete = client.note_complete(root, path.clone(), Some((held.link, held.handle)));
            return Ok(Opened { contents: Contents::Complete(file.clone()), lease: Some(Box::new(complete)) });
        }
        let whole = held.opened == OpenedAs::Filling && MODEL_SUFFIXES.iter().any(|end| path.as_str().ends_with(end));
        let remote = Arc::new(Remote {
            client: client.clone(),
            root,
            path: path.clone(),
            size,
            held: Mutex::new(held),
            opening: tokio::sync::Mutex::default(),
            ahead: Mutex::default(),
        });
        if whole {
            remote.clone().fetch_ahead(0, size);
        }
        let lease = Lease(remote.clone());
        Ok(Opened { contents: Contents::Partial(Arc::new(remote)), lease: Some(Box::new(lease)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn who_reads_on_is_served_ahead_in_growing_pieces() {
        let (mut ahead, size) = (Ahead::default(), 1000 * MIB);
        let mut asked = Vec::new();
        for at in 0..100 {
            asked.extend(ahead.step(at * MIB, (at + 1) * MIB, size));
        }
        assert_eq!(asked[..3], [(MIB, 5 * MIB), (5 * MIB, 21 * MIB), (21 * MIB, 85 * MIB)]);
        assert!(asked.windows(2).all(|pair| pair[0].1 == pair[1].0), "without gaps: {asked:?}");
        assert!(asked.iter().all(|(from, to)| to - from <= AHEAD_MOST));
    }

    #[test]
    fn who_jumps_is_not_served_ahead_and_nobody_is_beyond_the_end() {
        let (mut ahead, size) = (Ahead::default(), 1000 * MIB);
        for at in [500, 20, 900, 300] {
            assert_eq!(ahead.step(at * MIB, at * MIB + 4096, size), None);
        }
        let mut ahead = Ahead::default();
        assert_eq!(ahead.step(0, MIB, 2 * MIB), Some((MIB, 2 * MIB)));
        assert_eq!(ahead.step(MIB, 2 * MIB, 2 * MIB), None);
    }

    #[test]
    fn parts_are_noted_and_found() {
        let mut held =
            Held { link: 1, handle: 1, opened: OpenedAs::Filling, file: None, there: Vec::new(), complete: false };
        held.note(70 * MIB, 72 * MIB);
        assert!(held.has(70 * MIB, 72 * MIB) && held.has(71 * MIB + 5, 71 * MIB + 6));
        assert!(!held.has(69 * MIB, 71 * MIB) && !held.has(71 * MIB, 72 * MIB + 1));
    }
}
