//! Members by the thousand in one process: the agent's connection, protocol and pauses, without its engine and its disk.
//!
//! A [`Member`] holds a session over TLS with the certificate of its cluster, says hello, beats, acknowledges assignments
//! and reports on scans and caches as if it had done them; what it knows it forgets with the process. Its certificate is
//! issued by the hub's own authority, read from the hub's folder on this machine: a join takes a token each, and hubs let
//! one address join once a second, which is three hours for ten thousand. The Cluster object is made by a user, as it may be.
//!
//! Absent on purpose: caches, mounts, a ledger. Whatever an agent does beside its session is no business of the hub's.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail};
use fluvial_certs::tls::{ALPN_H2, client_config};
use fluvial_certs::{Authority, Bundle, Identity, KeyPair};
use fluvial_hub::run::home::Home;
use fluvial_member_agent::connect::connect;
use fluvial_member_agent::uplink::pause;
use fluvial_model::desired::Work;
use fluvial_model::liveness::HEARTBEAT;
use fluvial_model::report::{AgentReport, CacheReport, Report, ScanReport, Totals, Version};
use fluvial_proto::v1;
use fluvial_proto::v1::agent_message::Message as Said;
use fluvial_proto::v1::agent_service_client::AgentServiceClient;
use fluvial_proto::v1::hub_message::Message as Heard;
use jiff::Timestamp;
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// As the agent has them: a hub that says nothing for so long is gone, and so long may it take to open a session.
const SILENCE: Duration = Duration::from_secs(15);
const OPENING: Duration = Duration::from_secs(10);
/// A session that lasted so long was a good one.
const GOOD_SESSION: Duration = Duration::from_secs(15);
/// Messages on their way out.
const OUTBOUND: usize = 64;
/// Within this time a cache that was asked for is reported as filled: not by ten thousand at once.
const FILLS_WITHIN: Duration = Duration::from_secs(5);
/// A session of a member that flaps lasts up to this long.
const FLAPS_WITHIN: Duration = Duration::from_secs(20);
/// A report that nobody stored is sent again.
const REPORT_AGAIN: Duration = Duration::from_secs(30);

/// Issues certificates as the hub of that folder would.
#[derive(Debug)]
pub struct Issuing {
    authority: Authority,
}

impl Issuing {
    /// Reads the authority of a hub on this machine.
    pub fn of_hub(folder: &Path) -> Result<Self> {
        Ok(Self { authority: Home::new(folder).authority().context("reading the hub's authority")? })
    }

    /// The TLS of the agent of `cluster`.
    pub fn tls(&self, cluster: &str) -> Result<Arc<ClientConfig>> {
        let key = KeyPair::generate()?;
        let identity = Identity::Cluster { name: cluster.to_owned() };
        let life = Duration::from_secs(24 * 3600);
        let leaf = self.authority.issue_for_key(&key, &identity, &[], Timestamp::now(), life)?;
        let bundle = Bundle::new(&leaf.cert_pem, &key, &self.authority.cert_pem())?;
        Ok(Arc::new(client_config(Some(&bundle), bundle.roots(), &[ALPN_H2])?))
    }
}

/// What the members of one process have in common, and count together.
#[derive(Debug)]
pub struct Crowd {
    /// Sessions that a hub has welcomed and that live.
    connected: AtomicUsize,
    /// Welcomes so far.
    welcomes: AtomicUsize,
    /// Reports that a hub has stored.
    stored: AtomicUsize,
    /// What an assignment must contain to be the one that is waited for.
    marker: watch::Sender<String>,
    /// When each member that does not flap acknowledged that one, in microseconds since the epoch.
    seen: Mutex<Vec<u64>>,
    /// Whether those that flap do so.
    flapping: AtomicBool,
}

impl Default for Crowd {
    fn default() -> Self {
        Self {
            connected: AtomicUsize::new(0),
            welcomes: AtomicUsize::new(0),
            stored: AtomicUsize::new(0),
            marker: watch::Sender::new(String::new()),
            seen: Mutex::default(),
            flapping: AtomicBool::new(false),
        }
    }
}

/// What a crowd has come to.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Count {
    pub connected: usize,
    pub welcomes: usize,
    pub stored: usize,
    /// When each saw what is waited for, in microseconds since the epoch.
    pub seen: Vec<u64>,
}

impl Crowd {
    /// From now on waits for assignments that contain `marker`.
    pub fn expect(&self, marker: &str) {
        self.seen().clear();
        self.marker.send_replace(marker.to_owned());
    }

    /// Has the members that may flap do so, or not.
    pub fn flap(&self, whether: bool) {
        self.flapping.store(whether, Ordering::Relaxed);
    }

    /// How far they are.
    pub fn count(&self) -> Count {
        let read = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        Count {
            connected: read(&self.connected),
            welcomes: read(&self.welcomes),
            stored: read(&self.stored),
            seen: self.seen().clone(),
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Microseconds since the epoch: one clock for all processes of this machine.
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// One member.
pub struct Member {
    pub cluster: String,
    pub tls: Arc<ClientConfig>,
    /// HOST:PORT of every hub.
    pub hubs: Vec<String>,
    /// It drops its connection and comes back, again and again, while the crowd flaps.
    pub flaps: bool,
    pub crowd: Arc<Crowd>,
}

/// A session that a hub has welcomed.
pub struct Opened {
    pub out: mpsc::Sender<v1::AgentMessage>,
    pub heard: Streaming<v1::HubMessage>,
    pub welcome: v1::Welcome,
}

/// Why a session ended.
enum End {
    Move(Duration),
    Flap,
}

/// What one member knows as long as its process lives.
#[derive(Default)]
struct Known {
    epoch: u64,
    cursor: u64,
    /// Reports that are not stored, by assignment: generation, what, and when to say it.
    reports: HashMap<String, (u64, Vec<u8>, Instant)>,
}

/// Counts a session for as long as it lives.
struct Present<'a>(&'a Crowd);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Member {
    /// The member of a cluster, which does not flap.
    pub fn of(cluster: &str, issuing: &Issuing, hubs: &[String], crowd: &Arc<Crowd>) -> Result<Self> {
        let tls = issuing.tls(cluster)?;
        Ok(Self { cluster: cluster.to_owned(), tls, hubs: hubs.to_vec(), flaps: false, crowd: crowd.clone() })
    }

    /// Holds sessions for ever, with the pauses of the agent's uplink.
    pub async fn run(self) {
        let mut known = Known::default();
        let mut failures: u32 = 0;
        let mut hub: usize = rand::random_range(0..self.hubs.len().max(1));
        loop {
            let started = Instant::now();
            let address = self.hubs[hub % self.hubs.len()].clone();
            let wait = match Box::pin(self.session(&address, &mut known)).await {
                Ok(End::Move(wait)) => wait,
                Ok(End::Flap) => pause::after(0, rand::random()),
                Err(_) => {
                    failures = if started.elapsed() >= GOOD_SESSION { 0 } else { failures.saturating_add(1) };
                    pause::after(failures, rand::random())
                }
            };
            hub = hub.wrapping_add(1);
            tokio::time::sleep(wait).await;
        }
    }

    fn profile(&self) -> AgentReport {
        AgentReport {
            platform: "host".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: format!("instance-of-{}", self.cluster),
            process: format!("process-of-{}", self.cluster),
            machine: self.cluster.clone(),
            engines: vec!["nodecache".to_owned()],
            nodes: Vec::new(),
            address: String::new(),
        }
    }

    /// Opens a session, as one that knows that much; nothing more is said or read by itself.
    pub async fn open(&self, address: &str, epoch: u64, cursor: u64) -> Result<Opened> {
        let channel = connect(address, self.tls.clone()).await?;
        let (out, queue) = mpsc::channel(OUTBOUND);
        let agent_report = serde_json::to_vec(&self.profile())?.into();
        let hello = v1::Hello { epoch, cursor, agent_report, ..Default::default() };
        out.try_send(said(Said::Hello(hello)))?;
        let mut client = AgentServiceClient::new(channel);
        let open = Box::pin(client.session(ReceiverStream::new(queue)));
        let mut heard = tokio::time::timeout(OPENING, open).await??.into_inner();
        let first = tokio::time::timeout(SILENCE, heard.message()).await??;
        let Some(Heard::Welcome(welcome)) = first.and_then(|first| first.message) else {
            bail!("the hub did not begin with a welcome")
        };
        Ok(Opened { out, heard, welcome })
    }

    async fn session(&self, address: &str, known: &mut Known) -> Result<End> {
        let Opened { out, heard, welcome } = self.open(address, known.epoch, known.cursor).await?;
        known.epoch = welcome.epoch;
        self.crowd.welcomes.fetch_add(1, Ordering::Relaxed);
        self.crowd.connected.fetch_add(1, Ordering::Relaxed);
        let _present = Present(&self.crowd);
        self.talk(heard, out, known).await
    }

    async fn talk(
        &self,
        mut heard: Streaming<v1::HubMessage>,
        out: mpsc::Sender<v1::AgentMessage>,
        known: &mut Known,
    ) -> Result<End> {
        // Agents connect at any time, so their beats are spread.
        let first = Instant::now() + HEARTBEAT.mul_f64(rand::random());
        let mut beat = tokio::time::interval_at(first, HEARTBEAT);
        let mut beats = 0;
        let silence = tokio::time::sleep(SILENCE);
        tokio::pin!(silence);
        let life = tokio::time::sleep(FLAPS_WITHIN.mul_f64(rand::random()));
        tokio::pin!(life);
        loop {
            let due = known.reports.values().map(|(.., at)| *at).min();
            tokio::select! {
                message = heard.message() => {
                    silence.as_mut().reset(Instant::now() + SILENCE);
                    let message = message?.context("the hub closed the session")?;
                    if let Some(Heard::MoveAfterMs(wait)) = message.message {
                        return Ok(End::Move(Duration::from_millis(wait)));
                    }
                    self.hear(message, &out, known).await?;
                }
                () = &mut silence => bail!("the hub is silent"),
                () = &mut life, if self.flaps => {
                    if self.crowd.flapping.load(Ordering::Relaxed) {
                        return Ok(End::Flap);
                    }
                    life.as_mut().reset(Instant::now() + FLAPS_WITHIN);
                }
                _ = beat.tick() => {
                    beats += 1;
                    say(&out, Said::Heartbeat(v1::Heartbeat { sequence: beats })).await?;
                }
                () = at(due) => {
                    let now = Instant::now();
                    for (id, (generation, report, again)) in &mut known.reports {
                        if *again <= now {
                            *again = now + REPORT_AGAIN;
                            let (id, generation, report) = (id.clone(), *generation, report.clone().into());
                            say(&out, Said::Report(v1::WorkReport { id, generation, report })).await?;
                        }
                    }
                }
            }
        }
    }

    async fn hear(
        &self,
        message: v1::HubMessage,
        out: &mpsc::Sender<v1::AgentMessage>,
        known: &mut Known,
    ) -> Result<()> {
        match message.message {
            Some(Heard::Assign(assign)) => {
                let marker = self.crowd.marker.borrow().clone();
                let awaited = !marker.is_empty() && contains(&assign.work, marker.as_bytes());
                let work: Work = serde_json::from_slice(&assign.work)?;
                if let Some(report) = done(&work) {
                    let at = Instant::now() + FILLS_WITHIN.mul_f64(rand::random());
                    known.reports.insert(assign.id.clone(), (assign.generation, serde_json::to_vec(&report)?, at));
                }
                let ack = v1::Ack { id: assign.id, generation: assign.generation, refused: String::new() };
                say(out, Said::Ack(ack)).await?;
                if awaited && !(self.flaps && self.crowd.flapping.load(Ordering::Relaxed)) {
                    self.crowd.seen().push(now_us());
                }
            }
            Some(Heard::Withdraw(withdraw)) => {
                known.reports.remove(&withdraw.id);
                let ack = v1::Ack { id: withdraw.id, generation: withdraw.generation, refused: String::new() };
                say(out, Said::Ack(ack)).await?;
            }
            Some(Heard::Synced(synced)) => known.cursor = synced.revision,
            Some(Heard::ReportStored(stored))
                if known.reports.get(&stored.id).is_some_and(|(generation, ..)| *generation == stored.generation) =>
            {
                known.reports.remove(&stored.id);
                self.crowd.stored.fetch_add(1, Ordering::Relaxed);
            }
            Some(Heard::Ask(ask)) => {
                let data = match ask.question {
                    Some(v1::ask::Question::WhichProcess(_)) => self.profile().process.into(),
                    _ => Vec::new(),
                };
                let reply = v1::AskReply { id: ask.id, data: data.into(), ..Default::default() };
                say(out, Said::Reply(reply)).await?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn said(message: Said) -> v1::AgentMessage {
    v1::AgentMessage { message: Some(message) }
}

async fn say(out: &mpsc::Sender<v1::AgentMessage>, message: Said) -> Result<()> {
    tokio::time::timeout(SILENCE, out.send(said(message)))
        .await
        .map_err(|_| anyhow!("the hub takes no messages"))??;
    Ok(())
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// What an agent would say once it has done the work.
fn done(work: &Work) -> Option<Report> {
    let totals = Totals { files: 1000, directories: 10, bytes: 1 << 30 };
    match work {
        Work::Scan(scan) => Some(Report::Scan(ScanReport {
            generation: scan.generation,
            request: scan.request.clone(),
            found: Some(Version { root: "ab".repeat(32), totals, digested: false }),
            problem: None,
        })),
        Work::Cache(cache) => Some(Report::Cache(CacheReport {
            phase: "Ready".to_owned(),
            root: cache.root.clone(),
            cached_bytes: totals.bytes,
            total_bytes: totals.bytes,
            cached_files: totals.files,
            total_files: totals.files,
            ..CacheReport::default()
        })),
        _ => None,
    }
}

/// The name of the member of that number.
pub fn name(number: usize) -> String {
    format!("m-{number:05}")
}

/// So many members, from that number on, every tenth of which may flap.
pub fn members(
    issuing: &Issuing,
    hubs: &[String],
    numbers: std::ops::Range<usize>,
    crowd: &Arc<Crowd>,
) -> Result<Vec<Member>> {
    let member = |number| {
        let member = Member::of(&name(number), issuing, hubs, crowd)?;
        Ok(Member { flaps: number % 10 == 0, ..member })
    };
    numbers.map(member).collect()
}
