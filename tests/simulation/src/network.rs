//! The simulated network: byte streams between nodes, which carry the real gRPC of the peers.
//!
//! A stream behaves as TCP does. Bytes arrive in order and once or not at all: on a blocked way they wait, as they would
//! be sent again; a stream that is reset ends with an error on both sides; a node without power answers nothing, and
//! after its start knows no stream from before. Above the streams, single calls are held up at the server, so that they
//! overtake each other, and calls or their answers are lost.
//!
//! Everything moves when [`Network::deliver`] is called, in one order, so that a seed decides all of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use fluvial_raft::{ConnectError, PeerConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use crate::figures::Figures;
use crate::random::Random;

/// Bytes that a stream holds before its writer has to wait: a socket's buffers.
const BUFFERED: usize = 1 << 20;
/// A call that is lost is not answered for this long: longer than anyone waits.
const LOST: Duration = Duration::from_secs(30);

/// One direction of a stream.
#[derive(Default)]
struct Way {
    /// What is under way, with the tick at which it is due, in order.
    flying: VecDeque<(u64, Vec<u8>)>,
    arrived: VecDeque<u8>,
    bytes: usize,
    /// The writer has ended the stream; the reader is told after the last byte.
    ended: bool,
    end_arrived: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

struct Stream {
    /// Who opened it, and to whom.
    ends: [u64; 2],
    /// What each end writes.
    ways: [Way; 2],
    reset: bool,
    open_ends: usize,
}

impl Stream {
    fn wake(&mut self) {
        for way in &mut self.ways {
            way.reader.take().into_iter().chain(way.writer.take()).for_each(Waker::wake);
        }
    }
}

#[derive(Default)]
struct Listener {
    waiting: VecDeque<Socket>,
    waker: Option<Waker>,
}

/// How unkind the network is to single calls, in a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Calls {
    pub late: u64,
    pub lost: u64,
}

struct Inner {
    now: u64,
    random: Random,
    /// The slowest that a byte usually is, in ticks.
    slowest: u64,
    blocked: BTreeSet<(u64, u64)>,
    silent: BTreeSet<u64>,
    streams: Vec<Arc<Mutex<Stream>>>,
    listeners: BTreeMap<u64, Listener>,
    calls: Calls,
    figures: Figures,
}

impl Inner {
    fn break_streams(&self, node: u64) {
        for stream in &self.streams {
            let mut stream = lock(stream);
            if stream.ends.contains(&node) {
                stream.reset = true;
                stream.wake();
            }
        }
    }
}

/// The network that all nodes share.
#[derive(Clone)]
pub struct Network(Arc<Mutex<Inner>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The node at an address of the simulation.
fn node_at(address: &str) -> Option<u64> {
    address.strip_prefix("node-")?.parse().ok()
}

impl Network {
    #[must_use]
    pub fn new(random: Random, slowest: u64, figures: Figures) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            now: 0,
            random,
            slowest,
            blocked: BTreeSet::new(),
            silent: BTreeSet::new(),
            streams: Vec::new(),
            listeners: BTreeMap::new(),
            calls: Calls::default(),
            figures,
        })))
    }

    /// Nothing goes from one node to the other any more.
    pub fn block(&self, from: u64, to: u64) {
        lock(&self.0).blocked.insert((from, to));
    }

    /// Everything flows again.
    pub fn heal(&self) {
        lock(&self.0).blocked.clear();
    }

    pub fn set_calls(&self, calls: Calls) {
        lock(&self.0).calls = calls;
    }

    /// The node has no power: its streams are silent, it accepts nothing.
    pub fn power_off(&self, node: u64) {
        let mut inner = lock(&self.0);
        inner.silent.insert(node);
        inner.listeners.remove(&node);
    }

    /// The node's process is gone: its streams break, and its address refuses.
    pub fn killed(&self, node: u64) {
        let mut inner = lock(&self.0);
        inner.listeners.remove(&node);
        inner.break_streams(node);
    }

    /// The node runs again and knows none of its former streams.
    pub fn power_on(&self, node: u64) {
        let mut inner = lock(&self.0);
        inner.silent.remove(&node);
        inner.listeners.insert(node, Listener::default());
        inner.break_streams(node);
    }

    /// Every stream between the two nodes breaks.
    pub fn reset(&self, one: u64, other: u64) {
        let inner = lock(&self.0);
        for stream in &inner.streams {
            let mut stream = lock(stream);
            if !stream.reset && (stream.ends == [one, other] || stream.ends == [other, one]) {
                inner.figures.count("streams broken");
                stream.reset = true;
                stream.wake();
            }
        }
    }

    /// The time is `now`: what is due arrives.
    pub fn deliver(&self, now: u64) {
        let mut inner = lock(&self.0);
        let inner = &mut *inner;
        inner.now = now;
        for stream in &inner.streams {
            let mut stream = lock(stream);
            let ends = stream.ends;
            for (from, way) in stream.ways.iter_mut().enumerate() {
                let (from, to) = (ends[from], ends[1 - from]);
                if inner.blocked.contains(&(from, to)) || inner.silent.contains(&from) || inner.silent.contains(&to) {
                    if way.flying.front().is_some_and(|(due, _)| *due == now) {
                        inner.figures.count("messages stopped");
                    }
                    continue;
                }
                let mut some = false;
                while way.flying.front().is_some_and(|(due, _)| *due <= now) {
                    if let Some((_, bytes)) = way.flying.pop_front() {
                        way.arrived.extend(bytes);
                        some = true;
                    }
                }
                if way.ended && way.flying.is_empty() && !way.end_arrived {
                    way.end_arrived = true;
                    some = true;
                }
                if some {
                    way.reader.take().into_iter().for_each(Waker::wake);
                }
            }
        }
        inner.streams.retain(|stream| lock(stream).open_ends > 0);
    }

    /// The sockets that are opened to `node`, from now on.
    #[must_use]
    pub fn accept(&self, node: u64) -> Incoming {
        Incoming { network: self.clone(), node }
    }

    async fn connect(&self, from: u64, to: u64) -> io::Result<Socket> {
        loop {
            let wait = {
                let mut inner = lock(&self.0);
                1 + inner.random.below(3)
            };
            tokio::time::sleep(Duration::from_millis(wait)).await;
            let mut inner = lock(&self.0);
            let inner = &mut *inner;
            let stopped = |one, other| inner.blocked.contains(&(one, other));
            if stopped(from, to) || stopped(to, from) || inner.silent.contains(&to) {
                inner.figures.count("messages stopped");
                continue;
            }
            let Some(listener) = inner.listeners.get_mut(&to) else {
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            let stream = Arc::new(Mutex::new(Stream {
                ends: [from, to],
                ways: [Way::default(), Way::default()],
                reset: false,
                open_ends: 2,
            }));
            inner.streams.push(Arc::clone(&stream));
            let socket = |end| Socket { stream: Arc::clone(&stream), network: self.clone(), end };
            listener.waiting.push_back(socket(1));
            listener.waker.take().into_iter().for_each(Waker::wake);
            return Ok(socket(0));
        }
    }
}

/// One end of a stream.
pub struct Socket {
    stream: Arc<Mutex<Stream>>,
    network: Network,
    end: usize,
}

impl tonic::transport::server::Connected for Socket {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut stream = lock(&self.stream);
        if stream.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let way = &mut stream.ways[1 - self.end];
        if way.arrived.is_empty() {
            if way.end_arrived {
                return Poll::Ready(Ok(()));
            }
            way.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let take = buffer.remaining().min(way.arrived.len());
        let bytes: Vec<u8> = way.arrived.drain(..take).collect();
        buffer.put_slice(&bytes);
        way.bytes -= take;
        way.writer.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.network.0);
        let inner = &mut *inner;
        let mut stream = lock(&self.stream);
        if stream.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let way = &mut stream.ways[self.end];
        if way.bytes >= BUFFERED {
            way.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut due = inner.now + 1 + inner.random.below(inner.slowest);
        // Now and then a segment is lost and sent again.
        if inner.random.below(400) == 0 {
            due += 50 + inner.random.below(300);
            inner.figures.count("segments sent again");
        }
        let due = way.flying.back().map_or(due, |(last, _)| due.max(*last));
        way.bytes += bytes.len();
        way.flying.push_back((due, bytes.to_vec()));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.stream).ways[self.end].ended = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut stream = lock(&self.stream);
        stream.ways[self.end].ended = true;
        stream.open_ends -= 1;
    }
}

/// The sockets that are opened to a node, as they come.
pub struct Incoming {
    network: Network,
    node: u64,
}

impl tokio_stream::Stream for Incoming {
    type Item = io::Result<Socket>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut inner = lock(&self.network.0);
        let Some(listener) = inner.listeners.get_mut(&self.node) else { return Poll::Ready(None) };
        match listener.waiting.pop_front() {
            Some(socket) => Poll::Ready(Some(Ok(socket))),
            None => {
                listener.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// How one node reaches the others.
pub struct Connector {
    pub network: Network,
    pub from: u64,
}

#[async_trait]
impl PeerConnector for Connector {
    async fn connect(&self, id: u64, address: &str) -> Result<Channel, ConnectError> {
        let failed = |source: &str| ConnectError { id, address: address.to_owned(), source: source.into() };
        let to = node_at(address).ok_or_else(|| failed("no address of the simulation"))?;
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| failed("no URI"))?;
        let (network, from) = (self.network.clone(), self.from);
        let dial = Dial(Arc::new(move || {
            let network = network.clone();
            Box::pin(async move { network.connect(from, to).await.map(TokioIo::new) })
        }));
        Ok(endpoint
            .connect_timeout(Duration::from_secs(1))
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .connect_with_connector_lazy(dial))
    }
}

type Dialling = Pin<Box<dyn Future<Output = io::Result<TokioIo<Socket>>> + Send>>;

#[derive(Clone)]
struct Dial(Arc<dyn Fn() -> Dialling + Send + Sync>);

impl Service<http::Uri> for Dial {
    type Response = TokioIo<Socket>;
    type Error = io::Error;
    type Future = Dialling;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Dialling {
        (self.0)()
    }
}

/// A service whose calls are late, or lost, or whose answers are.
#[derive(Clone)]
pub struct Unkind<S> {
    pub service: S,
    pub network: Network,
}

impl<S: NamedService> NamedService for Unkind<S> {
    const NAME: &'static str = S::NAME;
}

/// What happens to one call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Lost,
    AnswerLost,
}

impl Network {
    fn fate(&self) -> (Fate, Duration, Duration) {
        let mut inner = lock(&self.0);
        let inner = &mut *inner;
        let mut late = || {
            if inner.random.below(1000) < inner.calls.late {
                inner.figures.count("calls late");
                Duration::from_millis(1 + inner.random.below(700))
            } else {
                Duration::ZERO
            }
        };
        let (before, after) = (late(), late());
        let fate = match inner.random.below(1000) {
            roll if roll >= inner.calls.lost => Fate::Kept,
            roll if roll % 2 == 0 => Fate::Lost,
            _ => Fate::AnswerLost,
        };
        if fate != Fate::Kept {
            inner.figures.count("calls lost");
        }
        (fate, before, after)
    }
}

impl<S> Service<http::Request<Body>> for Unkind<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut service = self.service.clone();
        let (fate, before, after) = self.network.fate();
        Box::pin(async move {
            tokio::time::sleep(before).await;
            let lost = || tonic::Status::unavailable("lost by the simulated network").into_http();
            if fate == Fate::Lost {
                tokio::time::sleep(LOST).await;
                return Ok(lost());
            }
            let answer = service.call(request).await;
            tokio::time::sleep(after).await;
            if fate == Fate::AnswerLost {
                tokio::time::sleep(LOST).await;
                return Ok(lost());
            }
            answer
        })
    }
}
