//! The area `fleet`: thousands of members, each a session over TLS with a certificate of its own, with one hub and with
//! three, each a process. `docs/benchmarks.md` says what the cases are.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use fluvial_tests::connection::{Call, Connection, Protocol};
use fluvial_tests::members::{name, now_us};
use http::Method;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::crowds::Crowds;
use crate::figures::{Case, Report, Unit, milliseconds, percentile};
use crate::footprint::{cores, resident_kib};
use crate::hubs::Hubs;
use crate::{Size, programs};

const AREA: &str = "fleet";
const DESIGN: &str = "the design's limit";
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const CLUSTERS: &str = "/apis/fluvial.io/v1alpha1/clusters";
const DATASETS: &str = "/apis/data.fluid.io/v1alpha1/namespaces/default/datasets";
const PLACEMENTS: &str = "/apis/fluvial.io/v1alpha1/namespaces/default/placements";
/// Clients that make the Cluster objects.
const MAKERS: usize = 64;
/// What takes longer has failed.
const LIMIT: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is asked for beside the size.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How many members; 2,000 in `small`, 10,000 in `full`.
    members: Option<usize>,
    /// With one hub, with three, or, if not given, both.
    #[arg(long)]
    hubs: Option<usize>,
    /// For how many seconds a tenth flaps; 60 in `small`, 600 in `full`.
    #[arg(long)]
    flap: Option<u64>,
}

struct Plan {
    members: usize,
    changes: usize,
    /// For how long processor time is measured.
    idle: Duration,
    flapping: Duration,
}

/// Measures the area.
pub(crate) async fn run(size: Size, arguments: Arguments, report: &mut Report) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let plan = match size {
        Size::Small => {
            Plan { members: 2_000, changes: 5, idle: Duration::from_secs(10), flapping: Duration::from_secs(60) }
        }
        Size::Full => {
            Plan { members: 10_000, changes: 5, idle: Duration::from_secs(20), flapping: Duration::from_secs(600) }
        }
    };
    let plan = Plan {
        members: arguments.members.unwrap_or(plan.members),
        flapping: arguments.flap.map_or(plan.flapping, Duration::from_secs),
        ..plan
    };
    for hubs in [1, 3].into_iter().filter(|hubs| arguments.hubs.is_none_or(|asked| asked == *hubs)) {
        Fleet::start(hubs, &plan, report).await?.measure().await?;
    }
    Ok(())
}

/// A fleet that runs.
struct Fleet<'a> {
    hubs: Hubs,
    crowds: Crowds,
    plan: &'a Plan,
    report: &'a mut Report,
    /// Resident memory of each hub when there was nothing.
    empty_kib: Vec<u64>,
    changes: usize,
}

impl<'a> Fleet<'a> {
    async fn start(count: usize, plan: &'a Plan, report: &'a mut Report) -> Result<Self> {
        eprintln!("{count} hubs, {} members", plan.members);
        let hubs = Hubs::start(programs::fluvial()?, count).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let addresses: Vec<String> = (0..count).map(|hub| hubs.address(hub)).collect();
        let mut crowds = Crowds::start(&hubs.data_dir(0), &addresses, plan.members).await?;
        crowds.say("look").await?;
        let empty_kib = resident(&hubs)?;
        Ok(Self { hubs, crowds, plan, report, empty_kib, changes: 0 })
    }

    async fn measure(mut self) -> Result<()> {
        let idle = self.empty_kib.iter().max().copied().unwrap_or_default() as f64 / 1024.0;
        self.add("hub-idle-rss", Unit::Mib, idle, 40.0, "the largest hub, before it had a member")?;
        self.make_clusters().await?;
        self.connect().await?;
        self.rest().await?;
        self.place().await?;
        self.changes("change", "until the member has acknowledged what a changed Placement asks of it").await?;
        self.memory("rss-after-changes")?;
        self.kill_all().await?;
        self.changes("change-after-kill", "").await?;
        self.flap().await
    }

    fn add(&mut self, case: &str, unit: Unit, ours: f64, limit: f64, note: &str) -> Result<()> {
        let case =
            format!("{}-{case}", if self.hubs.count() == 1 { "one".into() } else { self.hubs.count().to_string() });
        let note = format!("{} members; {note}", self.plan.members);
        let (ours, peer) = ([ours], [limit]);
        let case = Case { area: AREA, case, unit, ours: &ours, peer: &peer, peer_name: DESIGN, bar: Some(1.0), note };
        self.report.add(case)
    }

    async fn api(&self) -> Result<Connection> {
        let side = self.hubs.side().await;
        Connection::open(&side.addresses[0], &side.tls, Protocol::Http1).await
    }

    async fn make_clusters(&mut self) -> Result<()> {
        let (side, members) = (self.hubs.side().await, self.plan.members);
        let mut makers = JoinSet::new();
        for maker in 0..MAKERS {
            let side = side.clone();
            makers.spawn(async move {
                let mut connection = Connection::open(&side.addresses[maker % side.addresses.len()], &side.tls, Protocol::Http1).await?;
                for number in (maker..members).step_by(MAKERS) {
                    let body = json!({
                        "apiVersion": "fluvial.io/v1alpha1", "kind": "Cluster",
                        "metadata": { "name": name(number), "labels": { "fluvial.io/cloud": format!("cloud-{}", number % 7) } },
                        "spec": {},
                    });
                    connection.succeed(call(Method::POST, CLUSTERS, JSON, &body)).await?;
                }
                Ok::<_, anyhow::Error>(())
            });
        }
        while let Some(ended) = makers.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// All of them at once, from nothing.
    async fn connect(&mut self) -> Result<()> {
        let started = Instant::now();
        self.crowds.say("go").await?;
        self.all_connected().await?;
        let connected = started.elapsed();
        self.all_ready().await?;
        self.add("connect", Unit::Seconds, connected.as_secs_f64(), 60.0, "first connections of all, at once")?;
        self.add("connect-ready", Unit::Seconds, started.elapsed().as_secs_f64(), 60.0, "until every Cluster is Ready")
    }

    async fn all_connected(&mut self) -> Result<()> {
        let (members, started) = (self.plan.members, Instant::now());
        let mut told = Instant::now();
        loop {
            let connected = self.crowds.say("look").await?.connected;
            if connected >= members {
                return Ok(());
            }
            if told.elapsed() > Duration::from_secs(5) {
                eprintln!("{connected} of {members} connected after {:.0?}", started.elapsed());
                told = Instant::now();
            }
            if started.elapsed() > LIMIT {
                bail!("{connected} of {members} members connected within {LIMIT:?}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn all_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        let sql = json!({ "sql": "select count(*) from clusters where state = 'Ready'", "format": "csv" });
        loop {
            let said = async {
                let mut api = self.api().await?;
                api.succeed(call(Method::POST, "/apis/fluvial.io/v1alpha1/query", JSON, &sql)).await
            };
            let text = String::from_utf8_lossy(&said.await.unwrap_or_default()).into_owned();
            if text.lines().any(|line| line.trim() == self.plan.members.to_string()) {
                return Ok(());
            }
            if started.elapsed() > LIMIT {
                bail!("not all Clusters are Ready within {LIMIT:?}: {text:?}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn processes(&self) -> Vec<u32> {
        (0..self.hubs.count()).filter_map(|hub| self.hubs.process(hub)).collect()
    }

    /// What connected members cost that have nothing to do.
    async fn rest(&mut self) -> Result<()> {
        tokio::time::sleep(self.plan.idle / 2).await;
        self.memory("rss")?;
        let taken = cores(&self.processes(), self.plan.idle).await?;
        // A tenth of a core for 1,000 agents that beat every five seconds.
        let limit = self.plan.members as f64 / 10_000.0;
        self.add("idle-cpu", Unit::Cores, taken, limit, "all hubs together, with heartbeats every 5 s")
    }

    /// Memory beyond what an empty hub has, Cluster objects and all, by the members of the hub that has most.
    fn memory(&mut self, case: &str) -> Result<()> {
        let now = resident(&self.hubs)?;
        let more = now.iter().zip(&self.empty_kib).map(|(now, before)| now.saturating_sub(*before));
        let each = self.plan.members as f64 / self.hubs.count() as f64;
        let most = more.max().unwrap_or_default() as f64 / each;
        self.add(
            case,
            Unit::KibPerMember,
            most,
            50.0,
            &format!("hubs hold {now:?} KiB, empty {:?} KiB", self.empty_kib),
        )
    }

    /// A dataset in every cluster.
    async fn place(&mut self) -> Result<()> {
        let mut api = self.api().await?;
        let dataset = json!({
            "apiVersion": "data.fluid.io/v1alpha1", "kind": "Dataset",
            "metadata": { "name": "everywhere", "namespace": "default" },
            "spec": { "mounts": [{ "mountPoint": "s3://bench/everywhere", "name": "data" }] },
        });
        api.succeed(call(Method::POST, DATASETS, JSON, &dataset)).await?;
        let placement = json!({
            "apiVersion": "fluvial.io/v1alpha1", "kind": "Placement",
            "metadata": { "name": "everywhere", "namespace": "default" },
            "spec": { "datasets": { "names": ["everywhere"] }, "clusters": {}, "paths": ["change-0"] },
        });
        self.crowds.say("expect change-0").await?;
        api.succeed(call(Method::POST, PLACEMENTS, JSON, &placement)).await?;
        self.all_saw(self.plan.members).await?;
        self.settled().await
    }

    /// Waits until so many have acknowledged it; their times.
    async fn all_saw(&mut self, members: usize) -> Result<Vec<u64>> {
        let started = Instant::now();
        loop {
            let seen = self.crowds.say("look").await?.seen;
            if seen.len() >= members {
                return Ok(seen);
            }
            if started.elapsed() > LIMIT {
                bail!("{} of {members} members have heard of the change within {LIMIT:?}", seen.len());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until reports come no more.
    async fn settled(&mut self) -> Result<()> {
        let started = Instant::now();
        let mut last = (self.crowds.say("look").await?.stored, Instant::now());
        while last.1.elapsed() < Duration::from_secs(6) && started.elapsed() < LIMIT {
            tokio::time::sleep(LOOK_EVERY).await;
            let stored = self.crowds.say("look").await?.stored;
            if stored != last.0 {
                last = (stored, Instant::now());
            }
        }
        Ok(())
    }

    /// One change after another, each to all.
    async fn changes(&mut self, case: &str, note: &str) -> Result<()> {
        let mut times = Vec::new();
        for _ in 0..self.plan.changes {
            times.extend(self.change(self.plan.members).await?);
            self.settled().await?;
        }
        self.percentiles(case, times, note)
    }

    fn percentiles(&mut self, case: &str, mut times: Vec<Duration>, note: &str) -> Result<()> {
        times.sort_unstable();
        let p50 = percentile(&times, 50);
        let note =
            format!("{note}; p50 {:.0} ms, max {:.0} ms", milliseconds(p50), milliseconds(percentile(&times, 100)));
        self.add(&format!("{case}-p99"), Unit::Milliseconds, milliseconds(percentile(&times, 99)), 2000.0, &note)
    }

    async fn change(&mut self, members: usize) -> Result<Vec<Duration>> {
        self.changes += 1;
        let marker = format!("change-{}-", self.changes);
        let mut api = self.api().await?;
        self.crowds.say(&format!("expect {marker}")).await?;
        let sent = now_us();
        let patch = json!({ "spec": { "paths": [marker] } });
        api.succeed(call(Method::PATCH, &format!("{PLACEMENTS}/everywhere"), MERGE, &patch)).await?;
        let seen = self.all_saw(members).await?;
        Ok(seen.into_iter().map(|at| Duration::from_micros(at.saturating_sub(sent))).collect())
    }

    fn leads(&self) -> usize {
        (0..self.hubs.count()).map(|hub| self.hubs.log(hub).matches("planning begins").count()).sum()
    }

    async fn kill_all(&mut self) -> Result<()> {
        let leads = self.leads();
        let started = Instant::now();
        for hub in 0..self.hubs.count() {
            self.hubs.kill(hub);
        }
        // Until every member has noticed: its connections were cut.
        while self.crowds.say("look").await?.connected > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for hub in 0..self.hubs.count() {
            self.hubs.run(hub);
        }
        self.all_connected().await?;
        let connected = started.elapsed();
        self.all_ready().await?;
        let ready = started.elapsed();
        self.add(
            "kill-all-connected",
            Unit::Seconds,
            connected.as_secs_f64(),
            60.0,
            "SIGKILL of all hubs at once, started again at once, until all members have sessions",
        )?;
        self.add("kill-all-ready", Unit::Seconds, ready.as_secs_f64(), 60.0, "until every Cluster is Ready too")?;
        // Whoever lost the lead again would be seen in the seconds after.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let leads = (self.leads() - leads) as f64;
        self.add("kill-all-leaders", Unit::Leaders, leads, 1.0, "leaders after the kill; one is necessary")
    }

    /// A tenth comes and goes; the others hear of changes meanwhile.
    async fn flap(&mut self) -> Result<()> {
        let before = resident(&self.hubs)?;
        let welcomes = self.crowds.say("flap").await?.welcomes;
        let started = Instant::now();
        let (mut times, mut middle) = (Vec::new(), None);
        let steady = self.plan.members - self.plan.members.div_ceil(10);
        while started.elapsed() < self.plan.flapping {
            times.extend(self.change(steady).await?);
            tokio::time::sleep(Duration::from_secs(10)).await;
            if started.elapsed() > self.plan.flapping / 2 && middle.is_none() {
                middle = Some(resident(&self.hubs)?);
            }
        }
        let returns = self.crowds.say("calm").await?.welcomes - welcomes;
        let seconds = started.elapsed().as_secs_f64();
        let note = format!("a tenth drops and comes back: {:.0} a second; the others", returns as f64 / seconds);
        self.percentiles("flap-change", times, &note)?;
        let after = resident(&self.hubs)?;
        let middle = middle.context("flapping was too short to be measured")?;
        let growth = after.iter().zip(&middle).map(|(after, middle)| after.saturating_sub(*middle)).max();
        // A leak of one session's memory for each return would be far beyond this.
        let growth = growth.unwrap_or_default() as f64 / 1024.0;
        let limit = 0.1 * middle.iter().max().copied().unwrap_or_default() as f64 / 1024.0;
        let note =
            format!("growth in the second half; KiB before {before:?}, in the middle {middle:?}, at the end {after:?}");
        self.add("flap-growth", Unit::Mib, growth.max(0.001), limit, &note)
    }
}

fn resident(hubs: &Hubs) -> Result<Vec<u64>> {
    (0..hubs.count()).filter_map(|hub| hubs.process(hub)).map(resident_kib).collect()
}

fn call(method: Method, path: &str, content_type: &'static str, body: &Value) -> Call {
    Call { method, path: path.to_owned(), content_type, body: Bytes::from(body.to_string()) }
}
