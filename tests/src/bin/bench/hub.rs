//! The area `hub`: three hubs and three etcd members, each a process, on one disk, over TLS with client certificates.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use crate::Size;
use crate::etcd::Etcd;
use crate::figures::{Case, Report, Unit, milliseconds, percentile};
use crate::hubs::Hubs;
use crate::load::{self, Kind, Round};
use crate::side::{Api, Side};
use crate::{outage, programs, watchers};

const AREA: &str = "hub";

/// How much is measured.
struct Plan {
    clients: &'static [usize],
    rounds: usize,
    length: Duration,
    watchers: usize,
    watched: usize,
    kills: usize,
}

impl Plan {
    fn of(size: Size) -> Self {
        let length = Duration::from_millis(1500);
        match size {
            Size::Small => Self { clients: &[1, 16, 64], rounds: 3, length, watchers: 200, watched: 20, kills: 3 },
            Size::Full => Self {
                clients: &[1, 16, 64, 256],
                rounds: 5,
                length: Duration::from_secs(5),
                watchers: 1000,
                watched: 50,
                kills: 9,
            },
        }
    }
}

/// What the design asks for.
fn bar(kind: Kind, clients: usize) -> Option<f64> {
    match (kind, clients) {
        (Kind::Write, 1) => Some(1.2),
        (Kind::Write, 64 | 256) | (Kind::Read, 1 | 64 | 256) => Some(1.5),
        _ => None,
    }
}

/// Measures the area.
pub(crate) async fn run(size: Size, report: &mut Report) -> Result<()> {
    let folder = std::env::temp_dir();
    let tmpfs = statfs(&folder)?.filesystem_type() == TMPFS_MAGIC;
    ensure!(!tmpfs, "{} is in memory, where a sync costs nothing: set TMPDIR to a folder on a disk", folder.display());
    // A thousand watchers are a thousand open files here and as many at the servers, which inherit the limit.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;

    let plan = Plan::of(size);
    programs::peer("etcd")?;
    let program = programs::fluvial()?;
    eprintln!("starting three etcd members and three hubs");
    let mut etcd = Etcd::start().await?;
    let mut hubs = Hubs::start(program, 3).await?;
    for side in [hubs.side().await, etcd.side(Api::EtcdJson).await] {
        load::prepare(&side).await?;
    }
    let version = etcd.version()?;
    for kind in [Kind::Write, Kind::Read] {
        for clients in plan.clients {
            loads(&plan, kind, *clients, (&hubs, &etcd), &version, report).await?;
        }
    }
    watches(&plan, (&hubs, &etcd), report).await?;
    outages(&plan, (&mut hubs, &mut etcd), report).await
}

async fn loads(
    plan: &Plan,
    kind: Kind,
    clients: usize,
    (hubs, etcd): (&Hubs, &Etcd),
    version: &str,
    report: &mut Report,
) -> Result<()> {
    let (what, unit, does) = match kind {
        Kind::Write => {
            ("write", Unit::WritesPerSecond, "POST of a new Event, which also reads its namespace linearizably")
        }
        Kind::Read => ("read", Unit::ReadsPerSecond, "linearizable GET of an Event"),
    };
    let [mut ours, mut json, mut grpc]: [Vec<Round>; 3] = Default::default();
    for round in 1..=plan.rounds {
        eprintln!("{what}-{clients}: round {round} of {}", plan.rounds);
        let sides = [hubs.side().await, etcd.side(Api::EtcdJson).await, etcd.side(Api::EtcdGrpc).await];
        for (side, rounds) in sides.iter().zip([&mut ours, &mut json, &mut grpc]) {
            rounds.push(load::round(side, kind, clients, plan.length).await?);
        }
    }
    let values = |rounds: &[Round], value: fn(&Round) -> f64| rounds.iter().map(value).collect::<Vec<_>>();
    let mut add = |case: String, unit: Unit, peer: (Api, &[Round]), value: fn(&Round) -> f64, bar, note: String| {
        let (ours, theirs) = (values(&ours, value), values(peer.1, value));
        report.add(Case { area: AREA, case, unit, ours: &ours, peer: &theirs, peer_name: peer.0.name(), bar, note })
    };
    let bar = bar(kind, clients);
    let rate: fn(&Round) -> f64 = |round| round.per_second;
    let case = format!("{what}-{clients}");
    let json = (Api::EtcdJson, json.as_slice());
    add(case.clone(), unit, json, rate, bar, format!("{does}; etcd {version}: the same JSON through its gateway"))?;
    let native = format!("the same figure of ours against etcd {version}'s own protocol: gRPC, not JSON");
    add(format!("{case}-grpc"), unit, (Api::EtcdGrpc, &grpc), rate, bar, native)?;
    add(format!("{case}-p50"), Unit::Milliseconds, json, |round| round.p50_ms, None, String::new())?;
    add(format!("{case}-p99"), Unit::Milliseconds, json, |round| round.p99_ms, None, String::new())
}

async fn watches(plan: &Plan, (hubs, etcd): (&Hubs, &Etcd), report: &mut Report) -> Result<()> {
    let [mut ours, mut theirs]: [[Vec<f64>; 2]; 2] = Default::default();
    for round in 1..=plan.rounds {
        eprintln!("watch: round {round} of {}", plan.rounds);
        for (side, values) in [(hubs.side().await, &mut ours), (etcd.side(Api::EtcdJson).await, &mut theirs)] {
            let times = watchers::round(&side, plan.watchers, plan.watched).await?;
            for (values, percent) in values.iter_mut().zip([50, 99]) {
                values.push(milliseconds(percentile(&times, percent)));
            }
        }
    }
    for (at, name) in ["watch-p50", "watch-p99"].into_iter().enumerate() {
        let note = format!("from sending a write until each of {} watchers has its line", plan.watchers);
        let bar = (name == "watch-p99").then_some(1.0);
        let (ours, peer) = (&ours[at], &theirs[at]);
        let peer_name = Api::EtcdJson.name();
        report.add(Case {
            area: AREA,
            case: name.into(),
            unit: Unit::Milliseconds,
            ours,
            peer,
            peer_name,
            bar,
            note,
        })?;
    }
    Ok(())
}

async fn outages(plan: &Plan, (hubs, etcd): (&mut Hubs, &mut Etcd), report: &mut Report) -> Result<()> {
    let [mut ours, mut theirs]: [Vec<f64>; 2] = Default::default();
    let position = |side: &Side, address: &dyn Fn(usize) -> String| {
        (0..side.addresses.len()).find(|n| address(*n) == side.addresses[0]).unwrap_or_default()
    };
    for kill in 1..=plan.kills {
        eprintln!("leader-kill: {kill} of {}", plan.kills);
        let side = hubs.side().await;
        let leader = position(&side, &|n| hubs.address(n));
        ours.push(milliseconds(outage::measure(&side, || hubs.kill(leader)).await?));
        hubs.run(leader);
        hubs.leader().await;
        let side = etcd.side(Api::EtcdJson).await;
        let leader = position(&side, &|n| etcd.address(n));
        theirs.push(milliseconds(outage::measure(&side, || etcd.kill(leader)).await?));
        etcd.run(leader);
        etcd.leader().await;
    }
    let note = "median time from SIGKILL of the leader to the next acknowledged write; bar: at most 1000 ms".to_owned();
    let (case, unit, peer_name) = ("leader-kill".to_owned(), Unit::Milliseconds, Api::EtcdJson.name());
    report.add(Case { area: AREA, case, unit, ours: &ours, peer: &theirs, peer_name, bar: None, note })
}
