//! The world of one seed: its machines, its time, its weather, and its end.
//!
//! One thread runs everything: each tick, a virtual millisecond, the network delivers what is due, then every machine
//! lives through the tick in turn, then the clients; then what Raft reports is looked at. Nothing else moves.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fluvial_model::store::{Op, Txn};
use fluvial_raft::simulation::{self, Bug, Probe, Seen, Simulation};
use fluvial_raft::{RaftStore, Store as _};
use tokio::runtime::{Builder, Runtime};

use crate::clients::{self, Client};
use crate::disk::{self, Disk};
use crate::figures::Figures;
use crate::host::Host;
use crate::invariants::Invariants;
use crate::judge;
use crate::network::{Calls, Network};
use crate::plan::{Fault, Plan};
use crate::random::Random;
use crate::stage::{Seat, Stage, Trace};

/// A cluster that nothing disturbs is formed within this time.
const FORMED: u64 = 20_000;
/// After the last fault everything must be well again within this time.
const SETTLED: u64 = 40_000;
/// Raft's reports are looked at every so many ticks.
const LOOK: u64 = 5;

/// What a seed is run with.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub seed: u64,
    pub seconds: u64,
    pub bug: Option<Bug>,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub fault: Option<String>,
    pub figures: BTreeMap<String, u64>,
    pub trace: String,
}

/// The part of the world that the code under test calls.
struct Within {
    stage: Arc<Stage>,
    invariants: RefCell<Invariants>,
    node: Cell<u64>,
    random: RefCell<Random>,
    /// How long work on a node's disk takes at most, in milliseconds.
    disks: RefCell<BTreeMap<u64, u64>>,
    bug: Option<Bug>,
}

impl Simulation for Within {
    fn seen(&self, seen: Seen) {
        let node = self.node.get();
        match &seen {
            Seen::Opened { vote, purged, entries } => {
                let last = entries.last();
                self.stage.trace.say(format_args!("node {node} opens: {vote:?}, {purged:?} to {last:?}"));
            }
            other => self.stage.trace.say(format_args!("node {node} {other:?}")),
        }
        match &seen {
            Seen::Built { .. } => self.stage.figures.count("snapshots made"),
            Seen::Installed { .. } => self.stage.figures.count("snapshots installed"),
            Seen::Applied { .. } => self.stage.figures.count("entries applied"),
            _ => {}
        }
        if let Err(fault) = self.invariants.borrow_mut().seen(node, &seen) {
            self.stage.violated(fault);
        }
    }

    fn disk_time(&self) -> Duration {
        let slowest = self.disks.borrow().get(&self.node.get()).copied().unwrap_or(2);
        Duration::from_millis(self.random.borrow_mut().below(slowest + 1))
    }

    fn bug(&self) -> Option<Bug> {
        self.bug
    }
}

/// What ends a fault.
#[derive(Debug, Clone, Copy)]
enum Later {
    Cut(u64),
    Start(u64),
    Heal,
    DiskFast(u64),
    DiskWell(u64),
    CallsKind,
}

/// A change of members that runs at a node.
struct Change {
    node: u64,
    joins: bool,
    running: tokio::task::JoinHandle<bool>,
}

struct World {
    plan: Plan,
    disk: Disk,
    network: Network,
    stage: Arc<Stage>,
    within: Rc<Within>,
    hosts: BTreeMap<u64, Host>,
    clients: Runtime,
    random: Random,
    now: u64,
    later: BTreeMap<(u64, u64), Later>,
    scheduled: u64,
    change: Option<Change>,
    next_id: u64,
    figures: Figures,
}

/// Runs one seed in this process, which must have the preloaded library and nothing else to do.
#[must_use]
pub fn run(options: Options, disk: Disk) -> Outcome {
    let mut random = Random::new(options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ options.seed);
    // The first numbers of a small seed are small.
    for _ in 0..8 {
        random.below(2);
    }
    let plan = Plan::new(&mut random, options.seconds);
    let mut fork = |salt: u64| Random::new(random.below(1 << 31) << 31 | random.below(1 << 31) ^ salt);
    let (figures, trace) = (Figures::default(), Trace::default());
    let stage = Arc::new(Stage::new(fork(1), trace.clone(), figures.clone()));
    let within = Rc::new(Within {
        stage: Arc::clone(&stage),
        invariants: RefCell::default(),
        node: Cell::new(0),
        random: RefCell::new(fork(2)),
        disks: RefCell::default(),
        bug: options.bug,
    });
    simulation::begin(Rc::clone(&within) as Rc<dyn Simulation>);
    let network = Network::new(fork(3), plan.slowest, figures.clone());
    let clients = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    trace.say(format_args!("seed {}: {plan:?}", options.seed));
    let next_id = plan.nodes + 1;
    let mut world = World {
        plan,
        disk,
        network,
        stage,
        within,
        hosts: BTreeMap::new(),
        clients,
        random: fork(4),
        now: 0,
        later: BTreeMap::new(),
        scheduled: 0,
        change: None,
        next_id,
        figures: figures.clone(),
    };
    let ended = world.live();
    let fault = ended.and_then(|()| judge::judge(&world.stage.records())).err();
    figures.add("virtual milliseconds", world.now);
    figures.add("elections", world.within.invariants.borrow().elections);
    let fault = fault.or_else(|| took_effect(&figures).err());
    Outcome { fault, figures: figures.all(), trace: trace.take() }
}

/// A run in which nothing went wrong has tested nothing.
fn took_effect(figures: &Figures) -> Result<(), String> {
    let all = figures.all();
    let number = |name: &str| all.get(name).copied().unwrap_or(0);
    if number("operations") == 0 || number("events watched") == 0 {
        return Err("no client was served".into());
    }
    let effects =
        ["power cuts", "kills", "messages stopped", "pauses", "disk operations failed", "streams broken", "calls lost"];
    if effects.iter().all(|effect| number(effect) == 0) {
        return Err("no fault took effect".into());
    }
    Ok(())
}

impl World {
    fn live(&mut self) -> Result<(), String> {
        self.form()?;
        for me in 0..self.plan.clients {
            self.clients.spawn(Client::new(Arc::clone(&self.stage), me).run());
        }
        for _ in 0..self.plan.watchers {
            self.clients.spawn(clients::watch(Arc::clone(&self.stage)));
        }
        let end = self.now + self.plan.ticks;
        let mut next_fault = self.now + 500;
        while self.now < end {
            if self.now >= next_fault {
                self.fault();
                next_fault = self.now + 1 + self.random.below(self.plan.pause * 2);
            }
            self.tick()?;
        }
        self.settle()
    }

    /// Everyone starts, and one of them makes them a cluster.
    fn form(&mut self) -> Result<(), String> {
        for id in 1..=self.plan.nodes {
            self.add_host(id);
        }
        let first = loop {
            self.tick()?;
            if self.hosts.values().all(|host| host.running.as_ref().is_some_and(|running| running.seated)) {
                break self.stage.seats().get(&1).cloned();
            }
        };
        let members = (1..=self.plan.nodes).map(|id| (id, format!("node-{id}"))).collect();
        let first = first.ok_or("the first node is gone")?;
        first.runtime.spawn(async move { first.store.initialize(members).await });
        while self.leader().is_none() {
            if self.now > FORMED {
                return Err("no cluster is formed".into());
            }
            self.tick()?;
        }
        Ok(())
    }

    fn add_host(&mut self, id: u64) {
        let clock = self.plan.clocks[usize::try_from(id).unwrap_or(0) % self.plan.clocks.len()];
        self.hosts.insert(id, Host::new(id, self.disk.root(), clock));
        self.start(id);
    }

    fn start(&mut self, id: u64) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        if host.running.is_some() || host.gone {
            return;
        }
        self.stage.trace.say(format_args!("node {id} starts"));
        host.start(self.plan.config(id, &host.dir), &self.network);
    }

    /// One virtual millisecond.
    fn tick(&mut self) -> Result<(), String> {
        self.now += 1;
        self.stage.set_tick(self.now);
        while let Some(entry) = self.later.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let what = entry.remove();
            self.end(what);
        }
        self.network.deliver(self.now);
        for host in self.hosts.values_mut() {
            self.within.node.set(host.id);
            host.live(self.now);
        }
        self.within.node.set(0);
        self.clients.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
        self.look()?;
        match &self.stage.records().violation {
            Some(violation) => Err(violation.clone()),
            None => Ok(()),
        }
    }

    /// Looks at every node: who is there now, and what Raft reports.
    fn look(&mut self) -> Result<(), String> {
        self.look_at_change();
        let mut fallen = Vec::new();
        for host in self.hosts.values_mut() {
            let id = host.id;
            let store = host.store();
            let (Some(running), Some(started)) = (&mut host.running, store) else { continue };
            let store = match started {
                Ok(store) => store,
                Err(_) if host.hurt => {
                    fallen.push(id);
                    continue;
                }
                Err(error) => return Err(format!("node {id} does not start: {error}")),
            };
            if !running.seated {
                running.seated = true;
                let runtime = host.handle().ok_or("a running node has no runtime")?;
                self.stage.seats().insert(id, Seat { node: id, runtime, store: store.clone() });
            }
            if self.now.is_multiple_of(LOOK) {
                let probe = store.probe();
                self.within.invariants.borrow_mut().probed(id, &probe)?;
                match &probe.failed {
                    Some(_) if host.hurt => fallen.push(id),
                    Some(reason) if !host.gone => return Err(format!("node {id} stopped by itself: {reason}")),
                    _ => {}
                }
            }
        }
        for id in fallen {
            self.figures.count("nodes that stopped with their disk");
            self.off(id, true);
            let back = 1 + self.random.below(2000);
            self.after(back, Later::Start(id));
        }
        Ok(())
    }

    fn after(&mut self, ticks: u64, what: Later) {
        self.scheduled += 1;
        self.later.insert((self.now + ticks, self.scheduled), what);
    }

    /// The node is gone from one moment to the next; with its power, if `power`, and what was not synced.
    fn off(&mut self, id: u64, power: bool) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        if host.running.is_none() {
            return;
        }
        self.stage.seats().remove(&id);
        let new = host.next_dir(self.disk.root());
        if power {
            self.network.power_off(id);
            let lost = self.disk.power_cut(&host.dir, &new, self.random.below(1 << 31));
            self.figures.count("power cuts");
            self.figures.add("writes lost by power cuts", lost.writes);
            self.figures.add("names lost by power cuts", lost.names);
            self.stage.trace.say(format_args!("node {id} loses power: {lost:?}"));
        } else {
            self.network.killed(id);
            self.disk.kill(&host.dir, &new);
            self.figures.count("kills");
            self.stage.trace.say(format_args!("node {id} is killed"));
        }
        // What ends with the runtime may still write: into the old directory, which nobody reads again.
        self.disk.fail(&host.dir, disk::BROKEN, disk::BROKEN);
        self.within.node.set(id);
        host.running = None;
        self.within.node.set(0);
        self.within.invariants.borrow_mut().stopped(id);
        let _ = std::fs::remove_dir_all(&host.dir);
        (host.dir, host.asleep_until) = (new, 0);
    }

    fn leader(&self) -> Option<u64> {
        let seats = self.stage.seats();
        let leads: Vec<(Probe, u64)> = seats.values().map(|seat| (seat.store.probe(), seat.node)).collect();
        leads.into_iter().filter(|(probe, _)| probe.leads).max_by_key(|(probe, _)| probe.vote).map(|(_, node)| node)
    }

    /// The nodes that have power, in order.
    fn up(&self) -> Vec<u64> {
        self.hosts.values().filter(|host| host.running.is_some() && !host.gone).map(|host| host.id).collect()
    }

    fn any_up(&mut self) -> Option<u64> {
        let up = self.up();
        let skip = usize::try_from(self.random.below((up.len() as u64).max(1))).unwrap_or(0);
        up.get(skip).copied()
    }

    /// One fault of this run's weather begins.
    fn fault(&mut self) {
        let kind = self.plan.faults[usize::try_from(self.random.below(self.plan.faults.len() as u64)).unwrap_or(0)];
        let Some(node) = self.any_up() else { return };
        let long = 100 + self.random.below(6000);
        self.stage.trace.say(format_args!("fault {kind:?}, node {node}, {long} ms"));
        match kind {
            Fault::PowerCut => self.cut_power(node, long),
            Fault::PowerCutOfAll => self.up().into_iter().for_each(|node| self.cut_power(node, long)),
            Fault::Kill => {
                self.off(node, false);
                let back = 1 + self.random.below(long);
                self.after(back, Later::Start(node));
            }
            Fault::Partition => {
                let all: Vec<u64> = self.hosts.keys().copied().collect();
                let side: Vec<bool> = all.iter().map(|_| self.random.below(2) == 0).collect();
                for (one, left) in all.iter().zip(&side) {
                    for (other, right) in all.iter().zip(&side) {
                        if left != right {
                            self.network.block(*one, *other);
                        }
                    }
                }
                self.after(long, Later::Heal);
            }
            Fault::OneWay => {
                if let Some(other) = self.any_up().filter(|other| *other != node) {
                    self.network.block(node, other);
                    self.after(long, Later::Heal);
                }
            }
            Fault::LeaderCutOff => {
                let Some(leader) = self.leader() else { return };
                let ways = self.random.below(3);
                for other in self.hosts.keys().copied().filter(|other| *other != leader) {
                    if ways != 0 {
                        self.network.block(leader, other);
                    }
                    if ways != 1 {
                        self.network.block(other, leader);
                    }
                }
                self.after(long, Later::Heal);
            }
            Fault::Pause => {
                // Whoever leads is the one whose sleep is dangerous.
                let node = self.leader().filter(|_| self.random.below(2) == 0).unwrap_or(node);
                if let Some(host) = self.hosts.get_mut(&node) {
                    host.asleep_until = self.now + long;
                    self.figures.count("pauses");
                }
            }
            Fault::SlowDisk => {
                let slowest = 10 + self.random.below(400);
                self.within.disks.borrow_mut().insert(node, slowest);
                self.figures.count("slow disks");
                self.after(long, Later::DiskFast(node));
            }
            Fault::FailingDisk => {
                if let Some(host) = self.hosts.get_mut(&node) {
                    host.hurt = true;
                    let (write, sync) =
                        if self.random.below(2) == 0 { (disk::FULL, disk::WELL) } else { (disk::WELL, disk::BROKEN) };
                    self.disk.fail(&host.dir, write, sync);
                    self.after(long, Later::DiskWell(node));
                }
            }
            Fault::Reset => {
                if let Some(other) = self.any_up().filter(|other| *other != node) {
                    self.network.reset(node, other);
                }
            }
            Fault::UnkindCalls => {
                self.network.set_calls(Calls { late: self.random.below(400), lost: self.random.below(80) });
                self.after(long, Later::CallsKind);
            }
            Fault::Membership => self.change_members(),
            Fault::Snapshot => {
                if let Some(seat) = self.stage.seats().get(&node).cloned() {
                    seat.runtime.spawn(async move { seat.store.snapshot().await });
                }
            }
        }
    }

    /// The power goes in the middle of whatever the disk does next.
    fn cut_power(&mut self, node: u64, long: u64) {
        let Some(host) = self.hosts.get_mut(&node) else { return };
        host.hurt = true;
        self.disk.arm(&host.dir, self.random.below(40));
        let soon = self.random.below(30);
        self.after(soon, Later::Cut(node));
        let back = soon + 1 + self.random.below(long);
        self.after(back, Later::Start(node));
    }

    fn end(&mut self, what: Later) {
        self.stage.trace.say(format_args!("then {what:?}"));
        match what {
            Later::Cut(node) => self.off(node, true),
            Later::Start(node) => self.start(node),
            Later::Heal => self.network.heal(),
            Later::CallsKind => self.network.set_calls(Calls::default()),
            Later::DiskFast(node) => {
                self.within.disks.borrow_mut().remove(&node);
            }
            Later::DiskWell(node) => {
                if let Some(host) = self.hosts.get(&node) {
                    let failed = self.disk.fail(&host.dir, disk::WELL, disk::WELL);
                    self.figures.add("disk operations failed", failed);
                }
            }
        }
    }

    /// A node joins or leaves, if no other change is under way.
    fn change_members(&mut self) {
        let Some(asked) = self.stage.seat().filter(|_| self.change.is_none()) else { return };
        let voters = asked.store.probe().voters;
        let joins = voters.len() <= 3 || (voters.len() < 7 && self.random.below(2) == 0);
        let known = |world: &Self, id: &u64| world.hosts.get(id).is_some_and(|host| !host.gone);
        let waiting = self.hosts.keys().copied().find(|id| !voters.contains(id) && known(self, id));
        let node = match waiting {
            _ if !joins => {
                let skip = usize::try_from(self.random.below(voters.len() as u64)).unwrap_or(0);
                voters[skip]
            }
            Some(waiting) => waiting,
            None if self.next_id < 14 => {
                let id = self.next_id;
                self.next_id += 1;
                self.add_host(id);
                id
            }
            None => return,
        };
        self.stage.trace.say(format_args!("node {node} {}", if joins { "joins" } else { "leaves" }));
        let store = asked.store.clone();
        let running = asked.runtime.spawn(async move {
            let change = async {
                if joins {
                    store.add_member(node, &format!("node-{node}")).await
                } else {
                    store.remove_member(node).await
                }
            };
            matches!(tokio::time::timeout(Duration::from_secs(8), change).await, Ok(Ok(())))
        });
        self.change = Some(Change { node, joins, running });
    }

    fn look_at_change(&mut self) {
        let Some(change) = self.change.take_if(|change| change.running.is_finished()) else { return };
        let Change { node, joins, running } = change;
        // Finished: this waits for nothing. A node that went off took its change along.
        let done = self.clients.block_on(running).unwrap_or(false);
        self.stage.trace.say(format_args!("the change of node {node} is done: {done}"));
        match (done, joins) {
            (true, true) => self.figures.count("nodes joined"),
            (true, false) => {
                self.figures.count("nodes left");
                if let Some(host) = self.hosts.get_mut(&node) {
                    host.gone = true;
                }
                self.off(node, true);
            }
            (false, _) => self.figures.count("changes of members that failed"),
        }
    }

    /// The weather ends. Everything must be well, soon: one leader, every member serves, all have the same state.
    fn settle(&mut self) -> Result<(), String> {
        self.stage.trace.say(format_args!("the faults end"));
        self.later.clear();
        self.network.heal();
        self.network.set_calls(Calls::default());
        self.within.disks.borrow_mut().clear();
        let hurt: Vec<u64> = self.hosts.values().filter(|host| host.hurt).map(|host| host.id).collect();
        for id in hurt {
            self.off(id, true);
        }
        for id in self.hosts.keys().copied().collect::<Vec<_>>() {
            self.start(id);
            if let Some(host) = self.hosts.get_mut(&id) {
                host.asleep_until = 0;
            }
        }
        let deadline = self.now + SETTLED;
        let began = self.now;
        for _ in 0..2000 {
            self.tick()?;
        }
        self.stage.stopping.store(true, Ordering::Relaxed);
        let members = loop {
            for _ in 0..200 {
                self.tick()?;
            }
            if self.now > deadline {
                return Err(format!("no leader and no service {SETTLED} ms after the last fault"));
            }
            if let Some(members) = self.serves()? {
                break members;
            }
        };
        loop {
            let states: Result<Vec<_>, _> = members.iter().map(|(_, store)| store.state_digest()).collect();
            let states = states.map_err(|error| format!("the state cannot be read: {error}"))?;
            if states.windows(2).all(|pair| pair[0].0 == pair[1].0) {
                if states.windows(2).any(|pair| pair[0].1 != pair[1].1) {
                    return Err(format!("replicas differ at the same index: {states:?}"));
                }
                break;
            }
            if self.now > deadline {
                return Err(format!("replicas do not catch up: {states:?}"));
            }
            for _ in 0..50 {
                self.tick()?;
            }
        }
        self.figures.add("milliseconds until well", self.now - began);
        self.stage.trace.say(format_args!("all is well"));
        Ok(())
    }

    /// The members, if each of them takes a write and every register can be read.
    fn serves(&mut self) -> Result<Option<Vec<(u64, RaftStore)>>, String> {
        let Some(leader) = self.leader().and_then(|leader| self.stage.seats().get(&leader).cloned()) else {
            return Ok(None);
        };
        let members: Vec<u64> = leader.store.members().iter().map(|member| member.id).collect();
        let seats: Vec<Seat> = members.iter().filter_map(|id| self.stage.seats().get(id).cloned()).collect();
        if seats.len() < members.len() {
            return Ok(None);
        }
        let mut running: Vec<tokio::task::JoinHandle<bool>> = Vec::new();
        for seat in &seats {
            let (store, node) = (seat.store.clone(), seat.node);
            running.push(seat.runtime.spawn(async move {
                let put = Op::Put { key: format!("end/{node}"), value: b"here".to_vec() };
                store.txn(Txn { compares: vec![], ops: vec![put], audit: vec![] }).await.is_ok()
            }));
            let mut last = Client::new(Arc::clone(&self.stage), 1000 + usize::try_from(node).unwrap_or(0));
            let seat = seat.clone();
            running.push(self.clients.spawn(async move { last.read_all(&seat).await }));
        }
        while running.iter().any(|one| !one.is_finished()) {
            self.tick()?;
        }
        let all = running.into_iter().all(|one| self.clients.block_on(one).unwrap_or(false));
        Ok(all.then(|| seats.into_iter().map(|seat| (seat.node, seat.store)).collect()))
    }
}
