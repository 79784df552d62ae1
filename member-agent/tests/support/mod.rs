//! A small real hub: tonic over mutual TLS, with a list of wishes, and a memory of what it was told.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fluvial_certs::tls::ALPN_H2;
use fluvial_certs::{Authority, Bundle, Csr, Identity, JoinToken, KeyPair, Reloadable, SubjectAltName, TrustDomain};
use fluvial_member_agent::{AgentConfig, JoinConfig, RunningAgent};
use fluvial_model::desired::Work;
use fluvial_model::manifest::BlockHash;
use fluvial_model::report::Report;
use fluvial_proto::v1::agent_message::Message as Said;
use fluvial_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use fluvial_proto::v1::hub_message::Message as Heard;
use fluvial_proto::v1::join_service_server::{JoinService, JoinServiceServer};
use fluvial_proto::v1::*;
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

pub const CLUSTER: &str = "edge";
const DEADLINE: Duration = Duration::from_secs(30);

/// What the hub wants and what it heard.
pub struct Memory {
    pub epoch: u64,
    pub recovering: bool,
    pub revision: u64,
    /// By id: the revision of the last change, and the wish, none if withdrawn.
    pub wishes: BTreeMap<String, (u64, Option<(u64, Work)>)>,
    pub refuse: Option<Status>,
    pub store_reports: bool,
    pub leaf_lifetime: Duration,
    pub hellos: Vec<(String, Hello)>,
    pub acks: Vec<(String, u64, String)>,
    pub reports: Vec<(String, u64, Report)>,
    pub replies: Vec<AskReply>,
    pub blocks: HashMap<BlockHash, Bytes>,
    pub blocks_put: usize,
    pub renewals: u32,
    pub asks: Vec<Ask>,
}

pub struct Hub {
    pub authority: Arc<Authority>,
    pub address: SocketAddr,
    inner: Arc<Inner>,
    server: Option<JoinHandle<()>>,
}

struct Inner {
    authority: Arc<Authority>,
    address: Mutex<Option<SocketAddr>>,
    memory: Mutex<Memory>,
    changed: watch::Sender<()>,
    token: JoinToken,
}

impl Hub {
    pub async fn start() -> Self {
        let authority = Authority::generate(TrustDomain::new("test.example").unwrap(), Timestamp::now()).unwrap();
        let authority = Arc::new(authority);
        let token = JoinToken::mint(&std::array::from_fn(|at| at as u8), authority.spki_pin());
        let memory = Memory {
            epoch: 1,
            recovering: false,
            revision: 0,
            wishes: BTreeMap::new(),
            refuse: None,
            store_reports: true,
            leaf_lifetime: Duration::from_secs(24 * 3600),
            hellos: Vec::new(),
            acks: Vec::new(),
            reports: Vec::new(),
            replies: Vec::new(),
            blocks: HashMap::new(),
            blocks_put: 0,
            renewals: 0,
            asks: Vec::new(),
        };
        let inner = Arc::new(Inner {
            authority: authority.clone(),
            address: Mutex::new(None),
            memory: Mutex::new(memory),
            changed: watch::Sender::new(()),
            token,
        });
        let mut hub = Self { authority, address: ([127, 0, 0, 1], 0).into(), inner, server: None };
        hub.serve().await;
        hub
    }

    /// Starts serving, after a death on the same address.
    pub async fn serve(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        *self.inner.address.lock().unwrap() = Some(self.address);
        let key = KeyPair::generate().unwrap();
        let names = [SubjectAltName::from_host("127.0.0.1")];
        let day = Duration::from_secs(24 * 3600);
        let leaf = self.authority.issue_for_key(&key, &Identity::Hub { id: 1 }, &names, Timestamp::now(), day).unwrap();
        let bundle = Bundle::new(&leaf.cert_pem, &key, &self.authority.cert_pem()).unwrap();
        let tls = Reloadable::new(bundle, &[ALPN_H2]).unwrap().server_config();
        let acceptor = TlsAcceptor::from(tls);
        let (accepted, connections) = mpsc::channel(16);
        let service = Service(self.inner.clone());
        let server = Server::builder()
            .add_service(AgentServiceServer::new(service.clone()))
            .add_service(JoinServiceServer::new(service))
            .serve_with_incoming(ReceiverStream::new(connections));
        self.server = Some(tokio::spawn(async move {
            let accept = async {
                while let Ok((tcp, _)) = listener.accept().await {
                    if let Ok(tls) = acceptor.accept(tcp).await {
                        let _ = accepted.send(Ok::<_, io::Error>(Peer(Box::new(tls)))).await;
                    }
                }
            };
            tokio::select! { _ = server => {}, () = accept => {} }
        }));
    }

    /// Dies, with every connection.
    pub async fn die(&mut self) {
        let server = self.server.take().unwrap();
        server.abort();
        let _ = server.await;
        // Connections are tasks of their own: sessions end when they see this.
        self.with(|memory| memory.refuse = Some(Status::unavailable("dead")));
    }

    pub async fn revive(&mut self) {
        self.with(|memory| memory.refuse = None);
        self.serve().await;
    }

    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.inner.memory.lock().unwrap()
    }

    pub fn with(&self, change: impl FnOnce(&mut Memory)) {
        change(&mut self.memory());
        self.inner.changed.send_replace(());
    }

    pub fn assign(&self, work: Work) -> String {
        let id = work.id();
        self.with(|memory| {
            memory.revision += 1;
            memory.wishes.insert(id.clone(), (memory.revision, Some((memory.revision, work))));
        });
        id
    }

    pub fn withdraw(&self, id: &str) {
        self.with(|memory| {
            memory.revision += 1;
            memory.wishes.insert(id.to_owned(), (memory.revision, None));
        });
    }

    /// Waits until `seen` finds something.
    pub async fn until<T>(&self, what: &str, seen: impl Fn(&Memory) -> Option<T>) -> T {
        let mut changed = self.inner.changed.subscribe();
        let wait = async {
            loop {
                changed.borrow_and_update();
                if let Some(found) = seen(&self.memory()) {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(DEADLINE, wait).await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}; reports: {:#?}", self.memory().reports),
        }
    }

    pub async fn report(&self, id: &str, what: &str, wanted: impl Fn(&Report) -> bool) -> (u64, Report) {
        self.until(what, |memory| {
            let mut of_id = memory.reports.iter().filter(|(of, _, _)| of == id);
            of_id.find(|(_, _, report)| wanted(report)).map(|(_, generation, report)| (*generation, report.clone()))
        })
        .await
    }

    /// Joins a data directory.
    pub async fn join(&self, data_dir: &Path) {
        let config = JoinConfig {
            hub: format!("https://{}", self.address),
            token: self.inner.token.text(),
            data_dir: data_dir.to_owned(),
            cluster: Some(CLUSTER.to_owned()),
            node: None,
        };
        fluvial_member_agent::join(config).await.unwrap();
    }

    pub fn token(&self) -> secrecy::SecretString {
        self.inner.token.text()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

pub async fn agent(data_dir: &Path) -> RunningAgent {
    let config =
        AgentConfig { data_dir: data_dir.to_owned(), node_name: Some("node-1".to_owned()), ..AgentConfig::default() };
    fluvial_member_agent::Agent::start(config).await.unwrap()
}

/// A connection, with the serial number of the caller's certificate.
struct Peer(Box<TlsStream<TcpStream>>);

#[derive(Clone)]
struct Serial(Option<String>);

impl Connected for Peer {
    type ConnectInfo = Serial;
    fn connect_info(&self) -> Serial {
        let domain = TrustDomain::new("test.example").unwrap();
        let leaf = self.0.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        Serial(leaf.map(|leaf| Identity::from_leaf(leaf, &domain).unwrap().serial))
    }
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[derive(Clone)]
struct Service(Arc<Inner>);

impl Service {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap()
    }

    fn note(&self, change: impl FnOnce(&mut Memory)) {
        change(&mut self.memory());
        self.0.changed.send_replace(());
    }

    fn issue(&self, csr: &str) -> Result<String, Status> {
        let csr = Csr::from_pem(csr).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let identity = Identity::Cluster { name: CLUSTER.to_owned() };
        let lifetime = self.memory().leaf_lifetime;
        Ok(self.0.authority.issue(&csr, &identity, &[], Timestamp::now(), lifetime).unwrap().cert_pem)
    }

    async fn hold(
        self,
        mut said: Streaming<AgentMessage>,
        out: mpsc::Sender<Result<HubMessage, Status>>,
        hello: Hello,
    ) -> Result<(), Status> {
        let mut changed = self.0.changed.subscribe();
        let (epoch, full, recovering) = {
            let memory = self.memory();
            (memory.epoch, hello.epoch != memory.epoch, memory.recovering)
        };
        let mut sent = if full { 0 } else { hello.cursor };
        let say = |message| out.send(Ok(HubMessage { message: Some(message) }));
        let gone = |_| Status::cancelled("gone");
        say(Heard::Welcome(Welcome { epoch, full, hubs: Vec::new(), recovering })).await.map_err(gone)?;
        let mut first = true;
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        loop {
            changed.borrow_and_update();
            let (refuse, news, revision, asks) = {
                let mut memory = self.memory();
                let mut news: Vec<_> = memory
                    .wishes
                    .iter()
                    .filter(|(_, (revision, wish))| *revision > sent && (wish.is_some() || !(full && first)))
                    .map(|(id, (revision, wish))| (*revision, id.clone(), wish.clone()))
                    .collect();
                news.sort_by_key(|(revision, _, _)| *revision);
                let asks = std::mem::take(&mut memory.asks);
                (memory.refuse.clone(), news, memory.revision, asks)
            };
            if let Some(status) = refuse {
                return Err(status);
            }
            let any = first || !news.is_empty();
            for (revision, id, wish) in news {
                let message = match wish {
                    Some((generation, work)) => {
                        let work = serde_json::to_vec(&work).unwrap().into();
                        Heard::Assign(Assign { id, generation, work, secrets: HashMap::new() })
                    }
                    None => Heard::Withdraw(Withdraw { id, generation: revision }),
                };
                say(message).await.map_err(gone)?;
            }
            if any {
                say(Heard::Synced(Synced { revision })).await.map_err(gone)?;
            }
            for ask in asks {
                say(Heard::Ask(ask)).await.map_err(gone)?;
            }
            (sent, first) = (revision, false);
            tokio::select! {
                _ = changed.changed() => {}
                _ = beat.tick() => say(Heard::Heartbeat(Heartbeat { sequence: 0 })).await.map_err(gone)?,
                message = said.next() => match message {
                    None => return Ok(()),
                    Some(message) => match message?.message {
                        Some(Said::Ack(ack)) => self.note(|memory| memory.acks.push((ack.id, ack.generation, ack.refused))),
                        Some(Said::Report(report)) => {
                            let parsed = serde_json::from_slice(&report.report).unwrap();
                            let (id, generation) = (report.id, report.generation);
                            self.note(|memory| memory.reports.push((id.clone(), generation, parsed)));
                            if self.memory().store_reports {
                                say(Heard::ReportStored(Ack { id, generation, refused: String::new() })).await.map_err(gone)?;
                            }
                        }
                        Some(Said::Reply(reply)) => self.note(|memory| memory.replies.push(reply)),
                        Some(Said::Heartbeat(_) | Said::AgentReport(_)) => {}
                        Some(Said::Hello(_)) | None => return Err(Status::invalid_argument("unexpected")),
                    },
                },
            }
        }
    }
}

#[tonic::async_trait]
impl AgentService for Service {
    type SessionStream = ReceiverStream<Result<HubMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let serial = request.extensions().get::<Serial>().and_then(|serial| serial.0.clone());
        let serial = serial.ok_or_else(|| Status::unauthenticated("no certificate"))?;
        if let Some(status) = self.memory().refuse.clone() {
            return Err(status);
        }
        let mut said = request.into_inner();
        let Some(Ok(AgentMessage { message: Some(Said::Hello(hello)) })) = said.next().await else {
            return Err(Status::invalid_argument("no hello"));
        };
        self.note(|memory| memory.hellos.push((serial, hello.clone())));
        let (out, stream) = mpsc::channel(16);
        let service = self.clone();
        tokio::spawn(async move {
            if let Err(status) = service.hold(said, out.clone(), hello).await {
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        self.note(|memory| {
            memory.renewals += 1;
            memory.leaf_lifetime = Duration::from_secs(24 * 3600);
        });
        let certificate = self.issue(&request.into_inner().csr)?;
        Ok(Response::new(RenewResponse { certificate, ca: self.0.authority.cert_pem() }))
    }

    async fn put_blocks(&self, request: Request<Streaming<Block>>) -> Result<Response<PutBlocksResponse>, Status> {
        let mut blocks = request.into_inner();
        let mut stored = 0;
        while let Some(block) = blocks.next().await {
            let block = block?;
            let hash = BlockHash::of(&block.data);
            assert_eq!(hash.as_bytes()[..], block.hash[..]);
            self.note(|memory| {
                memory.blocks.insert(hash, block.data);
                memory.blocks_put += 1;
            });
            stored += 1;
        }
        Ok(Response::new(PutBlocksResponse { stored }))
    }

    async fn get_block(&self, request: Request<BlockRequest>) -> Result<Response<Block>, Status> {
        let hash = request.into_inner().hash;
        let name = BlockHash::from_bytes(hash[..].try_into().unwrap());
        let data = self.memory().blocks.get(&name).cloned().ok_or_else(|| Status::not_found("no such block"))?;
        Ok(Response::new(Block { hash, data }))
    }
}

#[tonic::async_trait]
impl JoinService for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        let token: JoinToken = request.token.parse().map_err(|_| Status::invalid_argument("no token"))?;
        if token.secret_hash() != self.0.token.secret_hash() || request.cluster != CLUSTER {
            return Err(Status::permission_denied("join token is for cluster \"edge\""));
        }
        let address = self.0.address.lock().unwrap().unwrap();
        Ok(Response::new(JoinResponse {
            certificate: self.issue(&request.csr)?,
            ca: self.0.authority.cert_pem(),
            trust_domain: "test.example".to_owned(),
            cluster: CLUSTER.to_owned(),
            hubs: vec![address.to_string()],
            hub: None,
            node: String::new(),
        }))
    }
}
