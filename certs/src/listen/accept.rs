//! Takes connections, within limits, for as long as the server runs.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_rustls::rustls::server::Acceptor as ClientHello;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::connection::{Connection, Ending};
use super::strangers::{Stranger, Strangers};
use super::{Front, Guard, Peer};
use crate::identity::Identity;

/// The most handshakes that are worked on at a time: each costs about a millisecond of a core, so all are done well before
/// the next heartbeat. Sixteen addresses that stall have to stall as much as each may before others wait for them.
const MAX_HANDSHAKES: usize = 256;
/// How long a client may take to answer within its turn: a round trip, on a bad line and a busy machine.
const TURN: Duration = Duration::from_secs(2);
/// How long a connection may take until it has shown who it is; waiting for a turn counts too.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the system refused a connection, for example because there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A server that takes connections until it is shut down; dropping it ends everything at once.
#[derive(Debug)]
pub struct RunningServer {
    address: SocketAddr,
    ending: Ending,
    tasks: TaskTracker,
    accept: JoinHandle<()>,
}

impl RunningServer {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, lets requests finish for `grace`, then cuts what is left. Returns when every task
    /// has ended.
    pub async fn shutdown(mut self, grace: Duration) {
        self.ending.soon.cancel();
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            self.ending.now.cancel();
            self.tasks.wait().await;
        }
        self.ending.now.cancel();
        let _ = (&mut self.accept).await;
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.ending.soon.cancel();
        self.ending.now.cancel();
        self.accept.abort();
    }
}

/// Serves what stands behind `front` on `listener`, to at most `connections` at a time.
///
/// # Errors
/// If the listener has no address.
pub fn serve(
    listener: TcpListener,
    guard: Guard,
    front: Arc<dyn Front>,
    connections: usize,
) -> io::Result<RunningServer> {
    let address = listener.local_addr()?;
    let ending = Ending { soon: CancellationToken::new(), now: CancellationToken::new() };
    let tasks = TaskTracker::new();
    let acceptor = Acceptor {
        guard: Arc::new(guard),
        front,
        connections: Arc::new(Semaphore::new(connections)),
        handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
        strangers: Arc::default(),
        ending: ending.clone(),
        tasks: tasks.clone(),
    };
    let accept = tokio::spawn(acceptor.run(listener));
    Ok(RunningServer { address, ending, tasks, accept })
}

struct Acceptor {
    guard: Arc<Guard>,
    front: Arc<dyn Front>,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    strangers: Arc<Strangers>,
    ending: Ending,
    tasks: TaskTracker,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        let soon = self.ending.soon.clone();
        // Ends with the listener closed, so that clients go elsewhere while old requests finish.
        let _ = soon.run_until_cancelled(self.accept_all(listener)).await;
    }

    async fn accept_all(&self, listener: TcpListener) {
        loop {
            // Without a permit connections wait in the system's own queue.
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, address)) => self.spawn(socket, address, permit),
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn spawn(&self, socket: TcpStream, address: SocketAddr, permit: OwnedSemaphorePermit) {
        let Some(stranger) = self.strangers.enter(address.ip()) else {
            return debug!(%address, "too many connections of this address have not shown who they are");
        };
        let (guard, front) = (self.guard.clone(), self.front.clone());
        let (handshakes, ending, tasks) = (self.handshakes.clone(), self.ending.clone(), self.tasks.clone());
        self.tasks.spawn(async move {
            let _permit = permit;
            let stream = tokio::select! {
                () = ending.soon.cancelled() => return,
                () = stranger.displaced() => return debug!(%address, "handshake made way for another"),
                done = tokio::time::timeout(HANDSHAKE_TIMEOUT, Box::pin(handshake(socket, &guard, &handshakes, &stranger))) => match done {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => return debug!(%address, %error, "handshake failed"),
                    Err(_) => return debug!(%address, "handshake took too long"),
                },
            };
            let Some(peer) = identify(&stream, address, &guard) else { return };
            let stranger = peer.verified.is_none().then_some(stranger);
            let connection = Connection { stream, peer, guard, front, ending, tasks, stranger };
            if connection.is_reverse() { Box::pin(connection.hand_over()).await } else { Box::pin(connection.run()).await }
        });
    }
}

/// On the heap: a future that hands a connection on holds every place that it was in, as large as it is.
async fn handshake(
    socket: TcpStream,
    guard: &Guard,
    handshakes: &Semaphore,
    stranger: &Stranger,
) -> io::Result<Box<TlsStream<TcpStream>>> {
    socket.set_nodelay(true)?;
    // What the client says first is awaited without a turn: nobody waits behind one that says nothing.
    let begun = LazyConfigAcceptor::new(ClientHello::default(), socket).await?;
    // Its own address first: whoever stalls keeps few from the turns of all.
    let _own = stranger.turn().await;
    let _turn = handshakes.acquire().await.map_err(io::Error::other)?;
    let stream = tokio::time::timeout(TURN, begun.into_stream(guard.credentials.server_config())).await;
    stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(|stream| Box::new(TlsStream::Server(stream)))
}

/// Who is at the other end; nothing if it showed a certificate that says nothing we know.
pub(super) fn identify(stream: &TlsStream<TcpStream>, address: SocketAddr, guard: &Guard) -> Option<Peer> {
    let Some(leaf) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) else {
        return Some(Peer { address, verified: None, known: Arc::default() });
    };
    match Identity::from_leaf(leaf, &guard.trust_domain) {
        // One that was revoked is let in to be told so, request by request.
        Ok(verified) => Some(Peer { address, verified: Some(Arc::new(verified)), known: Arc::default() }),
        Err(error) => {
            warn!(%address, %error, "connection with a certificate that this trust domain does not issue");
            None
        }
    }
}
