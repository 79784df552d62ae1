//! The mount process as a whole: hello to the agent, mount or take over, serve, and end without leaving anything behind.
//!
//! It ends when its mount is gone: told by the agent, unmounted by somebody else, or, with no file open, when no agent
//! has come back for [`ALONE`].

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fluvial_model::causes::chain;
use fluvial_model::manifest::Item;
use fluvial_transfer::BlockStore;
use fuser::{Filesystem, INodeNo, Notifier};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_seqpacket::UnixSeqpacket;

use crate::client::{Client, RemoteFiles};
use crate::device::{self, Device};
use crate::fs::{DatasetFs, Kernel, Mode, Probe, Versions};
use crate::table::{Found, Table};
use crate::tree::{Nodes, Tree};
use crate::wire::{self, FromAgent, FromMount, NumberedVersion, Received};
use crate::write::fs::{HomeFs, HomeProbe};
use crate::write::homes::Homes;
use crate::write::news::News;
use crate::write::spec::{self, HomeSpec, StagingSpec};

/// How long a mount without an agent and without open files stays.
pub const ALONE: Duration = Duration::from_secs(60);
/// How long the first connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How often closed files are let go of.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Between attempts to connect.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a mount process ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The agent cannot be reached.
    #[error("connect to the agent at {socket}")]
    Agent {
        /// The socket.
        socket: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The agent said something else than it should.
    #[error("the agent did not say what to mount")]
    NoWelcome,
    /// The blocks cannot be read.
    #[error("open blocks")]
    Blocks(#[source] fluvial_transfer::TransferError),
    /// A home cannot be written.
    #[error("open homes")]
    Homes(#[source] spec::OpenError),
    /// The mount cannot be made.
    #[error("mount {directory}")]
    Mount {
        /// Where.
        directory: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A process that serves a mount.
struct Process {
    socket_path: PathBuf,
    mount: String,
    directory: PathBuf,
    nodes: Nodes,
    versions: Arc<Versions>,
    numbered: Vec<NumberedVersion>,
    client: Arc<Client>,
    device: Arc<Device>,
    notifier: Notifier,
    served: Served,
}

/// What is served, to look at it while it runs.
#[derive(Clone)]
enum Served {
    Versions(Probe),
    Homes(HomeProbe, Arc<News>),
}

impl Served {
    fn mode(&self) -> Mode {
        match self {
            Self::Versions(probe) => probe.mode(),
            Self::Homes(..) => Mode::ReadWrite,
        }
    }

    fn open_files(&self) -> usize {
        match self {
            Self::Versions(probe) => probe.open_files(),
            Self::Homes(probe, _) => probe.open_files(),
        }
    }
}

/// A session that has begun.
struct Begun {
    device: Device,
    notifier: Notifier,
    end: oneshot::Receiver<io::Result<()>>,
    serving: std::thread::JoinHandle<()>,
}

/// Runs the mount process of the mount `mount` of the agent that listens at `socket`, until its mount is gone.
///
/// # Errors
/// See [`ProcessError`].
pub async fn run(socket: PathBuf, mount: String) -> Result<(), ProcessError> {
    let connected = connect(&socket, &mount, false, &[]).await;
    let connection =
        connected.map_err(|source| ProcessError::Agent { socket: socket.display().to_string(), source })?;
    let welcome = wire::receive(&connection).await.ok().flatten().ok_or(ProcessError::NoWelcome)?;
    let Received { message, file } = welcome;
    let FromAgent::Welcome { directory, source, blocks, versions: numbered, init, homes } = message else {
        return Err(ProcessError::NoWelcome);
    };
    let table = match file {
        None => None,
        Some(_) => match wire::receive(&connection).await {
            Ok(Some(Received { message: FromAgent::OpenFiles, file: Some(table) })) => Some(table),
            _ => return Err(ProcessError::NoWelcome),
        },
    };
    let nodes = Nodes::new(BlockStore::open(blocks).map_err(ProcessError::Blocks)?);
    let versions = Arc::new(Versions::default());
    for version in &numbered {
        versions.add(version.number, Arc::new(Tree::new(version.root, nodes.clone())));
    }
    let runtime = tokio::runtime::Handle::current();
    let client = Arc::new(Client::new(runtime.clone()));
    let at = Where { directory: directory.clone(), source, writable: homes.is_some() };
    let begun = if let Some((staging, count)) = homes {
        let homes = match open_homes(&connection, count, &staging).await {
            Ok(homes) => homes,
            Err(error) => {
                ended_at_once(&connection, chain(&error)).await;
                return Err(error);
            }
        };
        let serve = move |_: &Device| {
            let news = Arc::new(News::default());
            let fs = HomeFs::new(homes, news.clone(), runtime);
            let served = Served::Homes(fs.probe(), news);
            Ok((fs, served))
        };
        begin(at, None, serve).await
    } else {
        let owner = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        let (versions, files) = (versions.clone(), Arc::new(RemoteFiles(client.clone())));
        let serve = move |device: &Device| {
            let (table, found) = match table {
                Some(table) => Table::taken_over(table)?,
                None => (Table::new()?, Found::default()),
            };
            let kernel =
                Kernel { device: Arc::new(device.file.try_clone()?), table: Arc::new(Mutex::new(table)), found };
            let fs = DatasetFs::new(versions, files, runtime, owner, kernel);
            let served = Served::Versions(fs.probe());
            Ok((fs, served))
        };
        begin(at, file.map(|file| (file, init)), serve).await
    };
    let (Begun { device, notifier, end, serving }, served) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            ended_at_once(&connection, format!("mount {}: {error}", directory.display())).await;
            return Err(ProcessError::Mount { directory: directory.display().to_string(), source: error });
        }
    };
    if let Served::Homes(probe, _) = &served {
        probe.notify_by(notifier.clone());
    }
    let process = Process {
        socket_path: socket,
        mount,
        directory: directory.clone(),
        nodes,
        versions,
        numbered,
        client,
        device: Arc::new(device),
        notifier,
        served,
    };
    tokio::task::spawn_blocking(move || device::raise_read_ahead(&directory));
    let served = process.serve(connection, end).await;
    // It has ended: that is what was waited for.
    let _ = serving.join();
    served
}

/// Says why there will be no mount, to whoever is still there; the exit says it too.
async fn ended_at_once(connection: &UnixSeqpacket, problem: String) {
    let _ = wire::send(connection, &FromMount::Ended { problem }, None::<&File>).await;
}

/// Hears which homes there are, and opens them.
async fn open_homes(connection: &UnixSeqpacket, count: usize, staging: &StagingSpec) -> Result<Homes, ProcessError> {
    let mut specs: Vec<HomeSpec> = Vec::new();
    while specs.len() < count {
        match wire::receive(connection).await {
            Ok(Some(Received { message: FromAgent::Home(spec), .. })) => specs.push(spec),
            _ => return Err(ProcessError::NoWelcome),
        }
    }
    spec::open(&specs, staging).await.map_err(ProcessError::Homes)
}

/// Where to mount, as what.
struct Where {
    directory: PathBuf,
    source: String,
    writable: bool,
}

/// Mounts, or takes over, and serves.
async fn begin<F: Filesystem + 'static>(
    at: Where,
    taken_over: Option<(std::os::fd::OwnedFd, Vec<u8>)>,
    serve: impl FnOnce(&Device) -> io::Result<(F, Served)> + Send + 'static,
) -> io::Result<(Begun, Served)> {
    let begun = tokio::task::spawn_blocking(move || begin_session(&at, taken_over, serve)).await;
    let (device, session, served) = begun.unwrap_or_else(|_| Err(io::Error::other("the program is ending")))?;
    let notifier = session.notifier();
    let (ended, end) = oneshot::channel();
    let serving = std::thread::Builder::new().name("session".to_owned()).spawn(move || {
        let _ = ended.send(session.run());
    })?;
    Ok((Begun { device, notifier, end, serving }, served))
}

fn begin_session<F: Filesystem>(
    at: &Where,
    taken_over: Option<(std::os::fd::OwnedFd, Vec<u8>)>,
    serve: impl FnOnce(&Device) -> io::Result<(F, Served)>,
) -> io::Result<(Device, fuser::Session<F>, Served)> {
    let fresh = taken_over.is_none();
    let device = match taken_over {
        Some((file, init)) => Device::taken_over(file, init),
        None => Device::mount(&at.directory, &at.source, at.writable)?,
    };
    let session = serve(&device).and_then(|(fs, served)| Ok((device.serve(fs)?, served)));
    match session {
        Ok((session, served)) => Ok((device, session, served)),
        Err(error) => {
            if fresh {
                device::unmount(&at.directory)?;
            }
            Err(error)
        }
    }
}

async fn connect(
    socket: &Path,
    mount: &str,
    serving: bool,
    versions: &[NumberedVersion],
) -> io::Result<Arc<UnixSeqpacket>> {
    let deadline = Instant::now() + CONNECT;
    loop {
        match UnixSeqpacket::connect(socket).await {
            Ok(connection) => {
                let (mount, pid) = (mount.to_owned(), std::process::id());
                let hello = FromMount::Hello { mount, pid, serving, versions: versions.to_vec() };
                wire::send(&connection, &hello, None::<&File>).await?;
                return Ok(Arc::new(connection));
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

impl Process {
    async fn serve(
        mut self,
        first: Arc<UnixSeqpacket>,
        mut end: oneshot::Receiver<io::Result<()>>,
    ) -> Result<(), ProcessError> {
        let mut connection = Some(first);
        let mut alone_since = Instant::now();
        let mut sweeping = JoinSet::new();
        let written = Arc::new(Notify::new());
        match self.served.clone() {
            Served::Versions(probe) => sweeping.spawn(sweep(probe)),
            // What a process before this one wrote and could not tell: the first news are that this one began.
            Served::Homes(_, news) => sweeping.spawn(gather(news, written.clone())),
        };
        loop {
            if let Some(socket) = connection.take() {
                self.announce(&socket).await;
                self.client.connected(socket.clone());
                tokio::select! {
                    ended = &mut end => return self.ended(Some(&socket), ended).await,
                    () = self.listen(&socket) => {}
                    () = tell(&written, &socket) => {}
                }
                self.client.disconnected();
                alone_since = Instant::now();
            }
            let reconnect = connect(&self.socket_path, &self.mount, true, &self.numbered);
            tokio::select! {
                ended = &mut end => return self.ended(None, ended).await,
                connected = reconnect => connection = connected.ok(),
            }
            if connection.is_none() && alone_since.elapsed() > ALONE && self.served.open_files() == 0 {
                tracing::warn!(directory = %self.directory.display(), "no agent came back; the mount is taken away");
                self.take_away().await;
                alone_since = Instant::now();
            }
        }
    }

    /// Says that the mount is served, and how.
    async fn announce(&self, socket: &UnixSeqpacket) {
        // A connection that broke is noticed by who reads from it.
        let _ = wire::send(socket, &FromMount::Mode(self.served.mode()), None::<&File>).await;
        let init = self.device.init.clone();
        if let Served::Versions(probe) = &self.served {
            match probe.table() {
                Ok(table) => drop(wire::send(socket, &FromMount::OpenFiles, Some(&table)).await),
                Err(error) => tracing::warn!(%error, "no other process can take the mount over"),
            }
        }
        // What is written through a mount is this process' own, and nobody could go on with it.
        let device = matches!(self.served, Served::Versions(_)).then_some(&self.device.file);
        let _ = wire::send(socket, &FromMount::Serving { init }, device).await;
    }

    /// Handles what the agent says until the connection breaks.
    async fn listen(&mut self, socket: &UnixSeqpacket) {
        loop {
            let received = match wire::receive::<FromAgent>(socket).await {
                Ok(Some(received)) => received,
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "the agent's connection broke");
                    return;
                }
            };
            match self.client.answered(received) {
                Some(FromAgent::Version(version)) => self.show(version),
                Some(FromAgent::Welcome { versions, .. }) => {
                    versions.into_iter().for_each(|version| self.show(version))
                }
                Some(FromAgent::Unmount) => self.take_away().await,
                _ => {}
            }
        }
    }

    /// Makes a version current, and takes back what the kernel knows of the root of the one before.
    fn show(&mut self, version: NumberedVersion) {
        if self.numbered.iter().any(|known| known.number == version.number) {
            return;
        }
        let before = self.versions.current();
        self.numbered.push(version);
        self.versions.add(version.number, Arc::new(Tree::new(version.root, self.nodes.clone())));
        let notifier = self.notifier.clone();
        // The kernel may wait for answers of this process while it does as it is told.
        tokio::task::spawn_blocking(move || {
            if let Some((_, tree)) = before {
                forget_names(&notifier, &tree);
            }
        });
    }

    async fn take_away(&self) {
        let directory = self.directory.clone();
        let unmounted = tokio::task::spawn_blocking(move || device::unmount(&directory)).await;
        if let Ok(Err(error)) = unmounted {
            tracing::warn!(%error, directory = %self.directory.display(), "the mount could not be taken away");
        }
    }

    async fn ended(
        &self,
        socket: Option<&UnixSeqpacket>,
        ended: Result<io::Result<()>, oneshot::error::RecvError>,
    ) -> Result<(), ProcessError> {
        let failure = match ended {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(io::Error::other("the session broke down")),
        };
        if let Some(socket) = socket {
            let problem = failure.as_ref().map_or_else(String::new, ToString::to_string);
            let _ = wire::send(socket, &FromMount::Ended { problem }, None::<&File>).await;
        }
        match failure {
            None => Ok(()),
            Some(source) => Err(ProcessError::Mount { directory: self.directory.display().to_string(), source }),
        }
    }
}

/// Lets go of closed files now and then; ends with the set that it was spawned in.
async fn sweep(probe: Probe) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        probe.sweep();
    }
}

/// Gathers what was written; ends with the set that it was spawned in.
async fn gather(news: Arc<News>, written: Arc<Notify>) {
    loop {
        written.notify_one();
        news.next().await;
    }
}

/// Tells the agent whenever something was written, until it cannot be told.
async fn tell(written: &Notify, socket: &UnixSeqpacket) {
    loop {
        written.notified().await;
        if let Err(error) = wire::send(socket, &FromMount::Written, None::<&File>).await {
            tracing::debug!(%error, "the next agent is told of what was written");
            written.notify_one();
            return;
        }
    }
}

/// Takes back what the kernel knows of the names in a root.
fn forget_names(notifier: &Notifier, tree: &Tree) {
    let root = INodeNo(1);
    let forgotten = notifier.inval_inode(root, 0, 0);
    let Ok(Some(place)) = tree.place(0) else { return };
    let Item::Directory(block) = place.item else { return };
    let mut failed = forgotten.err();
    let listed = tree.entries(&block, 0, 1, &mut |_, entry| {
        if let Err(error) = notifier.inval_entry(root, OsStr::new(&entry.name)) {
            failed = Some(error);
        }
        ControlFlow::Continue(())
    });
    if let Err(error) = listed {
        tracing::warn!(error = &error as &dyn std::error::Error, "names of the version before could not be taken back");
    }
    if let Some(error) = failed {
        tracing::debug!(%error, "the kernel did not know a name of the version before");
    }
}
