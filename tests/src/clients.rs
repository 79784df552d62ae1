//! Clients of a few registers, whose every call and answer is written down.
//!
//! A register is a Link: its bandwidth is the value. A write is a merge patch, a swap one that names the
//! `resourceVersion` that it expects, a read a GET: the same calls that `kubectl` makes. Each client is one task with one
//! connection to one hub, and has one call under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::connection::{Call, Connection, Protocol};
use crate::federation::{DEADLINE, Federation};
use crate::history::watches::Told;
use crate::history::{Kind, Operation, linear, revisions, watches};

const LINKS: &str = "/apis/fluvial.io/v1alpha1/links";
const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";
/// How long a client waits for an answer: short beside a fault, so that it asks often while there is one.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts to connect.
const REST: Duration = Duration::from_millis(100);
/// Between an answer and the next call of a client.
const PAUSE: Duration = Duration::from_millis(5);
/// Between two acknowledged writes of any client, this much is more than chance: nine of them write all the time.
const OUTAGE: Duration = Duration::from_millis(300);
/// The smallest bandwidth that a Link takes: values count from there.
const LEAST: u64 = 64 << 10;

/// What all clients share.
struct Shared {
    tls: ClientConfig,
    registers: Vec<String>,
    began: Instant,
    next_value: AtomicU64,
    acknowledged: AtomicU64,
    stop: AtomicBool,
    /// The latest revision that a client was given, when all have ended: watchers go on until they were told of it.
    latest: AtomicU64,
}

/// Clients at work.
pub struct Clients {
    runtime: Runtime,
    shared: Arc<Shared>,
    tasks: JoinSet<Vec<(usize, Operation)>>,
    watchers: JoinSet<Vec<Vec<Told>>>,
    /// The value of each register before all.
    initial: Vec<u64>,
    /// The latest revision before all.
    from: u64,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Writes, and swaps that were done, that were acknowledged.
    pub writes: usize,
    /// Reads that were answered.
    pub reads: usize,
    /// Operations of which it is not known whether they happened.
    pub unknown: usize,
    /// Changes that watchers were told of.
    pub told: usize,
    /// How long nothing was acknowledged, each time that it was longer than [`OUTAGE`].
    pub outages: Vec<Duration>,
}

fn register(object: &Value) -> Result<(u64, u64)> {
    let value = object.pointer("/spec/bandwidthBytesPerSecond").and_then(Value::as_u64).context("it has a value")?;
    let revision = object.pointer("/metadata/resourceVersion").and_then(Value::as_str).context("it has a revision")?;
    Ok((value, revision.parse()?))
}

fn call(method: Method, path: String, content_type: &'static str, body: Option<&Value>) -> Call {
    let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
    Call { method, path, content_type, body }
}

impl Clients {
    /// Makes the registers and starts so many clients at these hubs, and a watcher at each.
    ///
    /// # Panics
    /// When a register cannot be made.
    #[track_caller]
    pub fn start(federation: &Federation, hubs: &[usize], clients: usize, registers: usize) -> Self {
        let runtime = Runtime::new().expect("a runtime can be started");
        let urls = hubs.iter().map(|hub| &federation.urls[hub - 1]);
        let addresses: Vec<String> = urls.map(|url| url.trim_start_matches("https://").to_owned()).collect();
        let tls = crate::connection::kubeconfig_tls(&federation.api.kubeconfig).expect("the kubeconfig has a user");
        let shared = Arc::new(Shared {
            tls,
            registers: (0..registers).map(|number| format!("register-{number}")).collect(),
            began: Instant::now(),
            next_value: AtomicU64::new(LEAST + 1),
            acknowledged: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            latest: AtomicU64::new(u64::MAX),
        });
        let made = runtime.block_on(make(&shared, &addresses[0]));
        let initial = made.unwrap_or_else(|error| panic!("the registers cannot be made: {error:#}"));
        let (mut tasks, mut watchers) = (JoinSet::new(), JoinSet::new());
        let from = initial.iter().map(|(_, revision)| *revision).max().unwrap_or_default();
        for client in 0..clients {
            let address = addresses[client % addresses.len()].clone();
            tasks.spawn_on(work(shared.clone(), client, address, initial.clone()), runtime.handle());
        }
        for address in addresses {
            watchers.spawn_on(watch(shared.clone(), address, from), runtime.handle());
        }
        let initial = initial.into_iter().map(|(value, _)| value).collect();
        Self { runtime, shared, tasks, watchers, initial, from }
    }

    /// Writes that were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the clients and judges what they saw.
    ///
    /// # Panics
    /// When no register could have answered so, a revision contradicts the clock, or a watcher was not told all.
    #[track_caller]
    pub fn judge(mut self) -> Outcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        let (histories, told) = self.runtime.block_on(async {
            let mut histories = vec![Vec::new(); self.shared.registers.len()];
            while let Some(ended) = self.tasks.join_next().await {
                for (register, operation) in ended.expect("a client does not panic") {
                    histories[register].push(operation);
                }
            }
            let latest = histories.iter().flatten().filter_map(|one: &Operation| one.revision).max();
            self.shared.latest.store(latest.unwrap_or(self.from), Ordering::Relaxed);
            let told = timeout(DEADLINE, self.watchers.join_all()).await;
            (histories, told.expect("every watcher is told of the latest change"))
        });
        let mut outcome = Outcome { writes: 0, reads: 0, unknown: 0, told: 0, outages: outages(&histories) };
        for (number, history) in histories.iter().enumerate() {
            let (name, value) = (&self.shared.registers[number], self.initial[number]);
            outcome.writes += history.iter().filter(|one| one.wrote().is_some()).count();
            outcome.reads += history.iter().filter(|one| matches!(one.kind, Kind::Read { .. })).count();
            outcome.unknown += history.iter().filter(|one| one.answered.is_none()).count();
            if let Err(wrong) = revisions::check(history) {
                panic!("{name}: {wrong}");
            }
            if let Err(wrong) = linear::check(history, value) {
                let of: Vec<String> = history.iter().map(ToString::to_string).collect();
                panic!(
                    "{name} is no register: {} of {} fit, not {}\n{}",
                    wrong.fitting,
                    of.len(),
                    wrong.stuck,
                    of.join("\n")
                );
            }
            for told in told.iter().map(|told| &told[number]) {
                outcome.told += told.len();
                if let Err(wrong) = watches::check(history, self.from, told) {
                    panic!("a watcher of {name}: {wrong}");
                }
            }
        }
        outcome
    }
}

/// The pauses between acknowledged writes that were outages.
fn outages(histories: &[Vec<Operation>]) -> Vec<Duration> {
    let written = histories.iter().flatten().filter(|one| one.wrote().is_some());
    let mut moments: Vec<Duration> = written.filter_map(|one| one.answered).collect();
    moments.sort_unstable();
    moments.windows(2).map(|pair| pair[1] - pair[0]).filter(|pause| *pause > OUTAGE).collect()
}

async fn make(shared: &Shared, address: &str) -> Result<Vec<(u64, u64)>> {
    let mut connection = Connection::open(address, &shared.tls, Protocol::Http1).await?;
    let mut initial = Vec::new();
    for name in &shared.registers {
        let object = json!({
            "apiVersion": "fluvial.io/v1alpha1", "kind": "Link", "metadata": { "name": name },
            "spec": { "from": "*", "to": "*", "bandwidthBytesPerSecond": LEAST },
        });
        let made = connection.succeed(call(Method::POST, LINKS.to_owned(), JSON, Some(&object))).await?;
        initial.push(register(&serde_json::from_slice(&made)?)?);
    }
    Ok(initial)
}

/// What an answer says.
enum Answer {
    Now(u64, u64),
    Conflict,
    /// It did not leave this client.
    NotSent,
    /// It was not done, or it is not known whether it was.
    None,
}

async fn ask(shared: &Shared, connection: &mut Option<Connection>, address: &str, asked: Call) -> Result<Answer> {
    if connection.is_none() {
        let opened = timeout(PATIENCE, Connection::open(address, &shared.tls, Protocol::Http1)).await;
        *connection = opened.ok().and_then(Result::ok);
    }
    let Some(open) = connection else {
        tokio::time::sleep(REST).await;
        return Ok(Answer::NotSent);
    };
    let reply = timeout(PATIENCE, open.call(asked)).await.context("no answer")??;
    match reply.status {
        StatusCode::OK => {
            let (value, revision) = register(&serde_json::from_slice(&reply.body)?)?;
            Ok(Answer::Now(value, revision))
        }
        StatusCode::CONFLICT => Ok(Answer::Conflict),
        status => {
            let body = String::from_utf8_lossy(&reply.body);
            let known = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            assert!(known, "a call that is right is answered with {status}: {body}");
            Ok(Answer::None)
        }
    }
}

async fn work(
    shared: Arc<Shared>,
    client: usize,
    address: String,
    initial: Vec<(u64, u64)>,
) -> Vec<(usize, Operation)> {
    let mut operations = Vec::new();
    let mut connection = None;
    // What this client saw last of each register: what it expects when it swaps.
    let mut seen = initial;
    let mut turn = client;
    // The last write to these may have happened: they are looked at before anything else.
    let mut unsure = vec![false; shared.registers.len()];
    while !shared.stop.load(Ordering::Relaxed) {
        turn += 1;
        let register = (turn / 3) % shared.registers.len();
        let path = format!("{LINKS}/{}", shared.registers[register]);
        let (expected, revision) = seen[register];
        let value = shared.next_value.fetch_add(1, Ordering::Relaxed);
        let mut patch = json!({ "spec": { "bandwidthBytesPerSecond": value } });
        let (kind, asked) = match if unsure[register] { 1 } else { turn % 3 } {
            0 => (Kind::Write { value }, call(Method::PATCH, path, MERGE_PATCH, Some(&patch))),
            1 => (Kind::Read { value }, call(Method::GET, path, JSON, None)),
            _ => {
                patch["metadata"]["resourceVersion"] = revision.to_string().into();
                let kind = Kind::Swap { expected, value, done: None };
                (kind, call(Method::PATCH, path, MERGE_PATCH, Some(&patch)))
            }
        };
        let called = shared.began.elapsed();
        let answer = ask(&shared, &mut connection, &address, asked).await;
        let answered = shared.began.elapsed();
        let operation = |kind, answered, revision| Operation { client, kind, called, answered, revision };
        match (answer, kind) {
            (Ok(Answer::Now(now, revision)), Kind::Read { .. }) => {
                unsure[register] = false;
                seen[register] = (now, revision);
                operations.push((register, operation(Kind::Read { value: now }, Some(answered), Some(revision))));
            }
            (Ok(Answer::Now(now, revision)), kind) => {
                assert_eq!(now, value, "a write is answered with what was written");
                seen[register] = (now, revision);
                let kind = match kind {
                    Kind::Swap { expected, value, .. } => Kind::Swap { expected, value, done: Some(true) },
                    kind => kind,
                };
                operations.push((register, operation(kind, Some(answered), Some(revision))));
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            (Ok(Answer::Conflict), Kind::Swap { expected, value, .. }) => {
                let kind = Kind::Swap { expected, value, done: Some(false) };
                operations.push((register, operation(kind, Some(answered), None)));
            }
            (Ok(Answer::NotSent), _) => {}
            (_, Kind::Read { .. }) => connection = None,
            (_, kind) => {
                (connection, unsure[register]) = (None, true);
                operations.push((register, operation(kind, None, None)));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    operations
}

/// Watches every register from a revision on, at one hub, and goes on where it was when the connection ends.
async fn watch(shared: Arc<Shared>, address: String, from: u64) -> Vec<Vec<Told>> {
    let mut told = vec![Vec::new(); shared.registers.len()];
    let mut last = from;
    while last < shared.latest.load(Ordering::Relaxed) {
        // Its end is not an error: whatever it is, the next one goes on.
        let _ = watch_once(&shared, &address, &mut last, &mut told).await;
        tokio::time::sleep(REST).await;
    }
    told
}

async fn watch_once(shared: &Shared, address: &str, last: &mut u64, told: &mut [Vec<Told>]) -> Result<()> {
    use http_body_util::BodyExt as _;
    let path = format!("{LINKS}?watch=true&resourceVersion={last}");
    let mut connection = timeout(PATIENCE, Connection::open(address, &shared.tls, Protocol::Http1)).await??;
    let answer = timeout(PATIENCE, connection.begin(call(Method::GET, path, JSON, None))).await??;
    ensure!(answer.status() == StatusCode::OK, "a watch is answered with {}", answer.status());
    let mut body = answer.into_body();
    let mut rest = Vec::new();
    while *last < shared.latest.load(Ordering::Relaxed) {
        let Ok(frame) = timeout(PAUSE * 20, body.frame()).await else { continue };
        let Some(frame) = frame else { break };
        let Ok(data) = frame?.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line)?;
            ensure!(event["type"] != "ERROR", "the watch ends: {event}");
            if event["type"] == "BOOKMARK" {
                continue;
            }
            let (value, revision) = register(&event["object"])?;
            let name = event.pointer("/object/metadata/name").and_then(Value::as_str).unwrap_or_default();
            let at = shared.registers.iter().position(|known| known == name).context("an unknown register")?;
            told[at].push(Told { revision, value });
            *last = revision;
        }
    }
    Ok(())
}
