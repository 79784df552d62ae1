//! Hubs under faults: killed, stopped, cut off from each other, without power. Clients write, swap and read a few
//! registers all the time, through every hub; what they saw is judged by `fluvial_tests::history`: nothing acknowledged is
//! lost, no read is stale, no watcher misses a change. Each test proves that its fault took effect. Hubs are on machines of
//! their own: who calls a dead port of loopback again and again is answered by himself one day, and keeps it from its owner.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::time::{Duration, Instant};

use fluvial_tests::clients::Clients;
use fluvial_tests::federation::{DEADLINE, Federation};
use fluvial_tests::random::{Random, number, seed};
use fluvial_tests::wait::wait_for;
use serde_json::Value;

const CLIENTS: usize = 9;
const REGISTERS: usize = 3;
/// Writes that show that a federation works.
const SOME: u64 = 60;

/// Waits for so many more acknowledged writes.
#[track_caller]
fn more(federation: &Federation, clients: &Clients, what: &str) {
    let (since, aim) = (Instant::now(), clients.acknowledged() + SOME);
    wait_for(DEADLINE, what, || {
        let now = clients.acknowledged();
        if now >= aim { Ok(()) } else { Err((now, (1..=3).map(|hub| last_said(federation, hub)).collect::<Vec<_>>())) }
    });
    eprintln!("{what}: after {:?}", since.elapsed());
}

/// The end of a hub's log.
fn last_said(federation: &Federation, hub: usize) -> Vec<String> {
    federation.log(&format!("hub-{hub}")).lines().rev().take(4).map(str::to_owned).collect()
}

/// Lets clients work before, during and after `fault`, and judges what they saw; then all hubs must have the same.
#[track_caller]
fn under(federation: &mut Federation, fault: impl FnOnce(&mut Federation, &Clients)) {
    let clients = Clients::start(federation, CLIENTS, REGISTERS);
    more(federation, &clients, "writes before the fault");
    fault(federation, &clients);
    more(federation, &clients, "writes after the fault");
    let outcome = clients.judge();
    eprintln!("{outcome:?}");
    assert!(outcome.told > 0, "watchers were told nothing");
    wait_for(DEADLINE, "the hubs to agree", || {
        let all: Vec<Result<String, String>> =
            (1..=federation.urls.len()).map(|hub| registers(federation, hub)).collect();
        if all.windows(2).all(|pair| pair[0].is_ok() && pair[0] == pair[1]) { Ok(()) } else { Err(all) }
    });
}

/// The registers as one hub has them.
fn registers(federation: &Federation, hub: usize) -> Result<String, String> {
    let list = federation.on(hub, &["get", "links", "-o", "json"])?;
    let list: Value = serde_json::from_str(&list).map_err(|error| error.to_string())?;
    let items = list["items"].as_array().into_iter().flatten();
    Ok(items.map(|item| format!("{} {}\n", item["metadata"], item["spec"])).collect())
}

/// Whether a hub answers a linearizable read within two seconds.
fn answers(federation: &Federation, hub: usize) -> bool {
    federation.on(hub, &["--request-timeout=2s", "get", "namespace", "default"]).is_ok()
}

/// The number of another hub than `old` that leads, as `witness` says.
#[track_caller]
fn another_leads(federation: &Federation, witness: usize, old: usize) -> usize {
    wait_for(DEADLINE, "another leader", || {
        let leader = federation.leader_seen_by(witness)?;
        if leader == old { Err(format!("{old} leads")) } else { Ok(leader) }
    })
}

/// Waits until a hub is one of the others again.
#[track_caller]
fn follows(federation: &Federation, hub: usize) {
    wait_for(DEADLINE, "it to follow", || if answers(federation, hub) { Ok(()) } else { Err(()) });
}

fn other_than(hub: usize) -> usize {
    hub % 3 + 1
}

#[test]
fn leaders_that_are_killed_lose_nothing() {
    let kills = number("FLUVIAL_KILLS").unwrap_or(4);
    let mut federation = Federation::start_apart(3);
    let mut outages = Vec::new();
    under(&mut federation, |federation, clients| {
        for _ in 0..kills {
            let leader = federation.leader();
            federation.kill_hub(leader);
            let since = Instant::now();
            another_leads(federation, other_than(leader), leader);
            let before = clients.acknowledged();
            wait_for(DEADLINE, "a write without it", || {
                if clients.acknowledged() > before { Ok(()) } else { Err(before) }
            });
            outages.push(since.elapsed());
            federation.run_hub(leader);
            wait_for(
                DEADLINE,
                "the killed hub to answer",
                || if answers(federation, leader) { Ok(()) } else { Err(()) },
            );
        }
    });
    outages.sort();
    eprintln!("until a write went through: {outages:?}");
}

#[test]
fn all_hubs_killed_at_once_lose_nothing() {
    let mut federation = Federation::start_apart(3);
    under(&mut federation, |federation, clients| {
        for _ in 0..3 {
            (1..=3).for_each(|hub| federation.kill_hub(hub));
            assert!(!answers(federation, 1), "nobody is there");
            (1..=3).for_each(|hub| federation.run_hub(hub));
            more(federation, clients, "writes after all were killed");
        }
    });
}

#[test]
fn a_leader_that_is_cut_off_acknowledges_nothing_and_reads_nothing() {
    let mut federation = Federation::start_apart(3);
    under(&mut federation, |federation, clients| {
        let old = federation.leader();
        federation.network.as_ref().unwrap().isolate(old);
        let new = another_leads(federation, other_than(old), old);
        assert!(!answers(federation, old), "hub {old} cannot know whether it is still so");
        more(federation, clients, "writes through the majority");
        assert!(answers(federation, new));
        federation.network.as_ref().unwrap().heal();
        follows(federation, old);
    });
}

#[test]
fn a_direction_that_is_cut_loses_nothing() {
    let mut federation = Federation::start_apart(3);
    under(&mut federation, |federation, clients| {
        // What the leader says arrives nowhere; it hears the others.
        let old = federation.leader();
        let network = federation.network.as_ref().unwrap();
        (1..=3).filter(|hub| *hub != old).for_each(|hub| network.deafen(hub, old));
        another_leads(federation, other_than(old), old);
        more(federation, clients, "writes without the one nobody hears");
        federation.network.as_ref().unwrap().heal();
        follows(federation, old);

        // It hears nobody; the others hear it.
        let old = federation.leader();
        let network = federation.network.as_ref().unwrap();
        (1..=3).filter(|hub| *hub != old).for_each(|hub| network.deafen(old, hub));
        another_leads(federation, other_than(old), old);
        assert!(!answers(federation, old), "it has no majority");
        more(federation, clients, "writes without the one that hears nobody");
        federation.network.as_ref().unwrap().heal();
        follows(federation, old);
    });
}

#[test]
fn a_network_that_flaps_and_loses_packets_loses_nothing() {
    let seed = seed();
    println!("seed {seed}: FLUVIAL_SEED={seed} cargo nextest run --test hub_faults flaps");
    let mut random = Random::new(seed);
    let mut federation = Federation::start_apart(3);
    under(&mut federation, |federation, clients| {
        let network = federation.network.as_ref().unwrap();
        let mut quiet = 0;
        for _ in 0..12 {
            network.heal();
            network.lose(u32::try_from(random.below(40)).unwrap());
            let (hub, from) = (random.below(3) + 1, random.below(3) + 1);
            let (hub, from) = (usize::try_from(hub).unwrap(), usize::try_from(from).unwrap());
            if hub == from {
                network.isolate(hub)
            } else {
                network.deafen(hub, from)
            }
            let before = clients.acknowledged();
            std::thread::sleep(Duration::from_millis(200 + random.below(1800)));
            quiet += u32::from(clients.acknowledged() == before);
        }
        eprintln!("nothing was acknowledged in {quiet} of 12 phases");
        network.heal();
    });
}

#[test]
fn a_leader_that_sleeps_wakes_up_as_a_follower_that_knows_nothing_old() {
    let mut federation = Federation::start_apart(3);
    under(&mut federation, |federation, clients| {
        for _ in 0..2 {
            let old = federation.leader();
            signal(federation, old, "-STOP");
            another_leads(federation, other_than(old), old);
            more(federation, clients, "writes while it sleeps");
            // What it was asked meanwhile it answers now: none of it may be old.
            signal(federation, old, "-CONT");
            follows(federation, old);
        }
    });
}

fn signal(federation: &Federation, hub: usize, signal: &str) {
    let process = federation.hub_process(hub).to_string();
    assert!(std::process::Command::new("kill").args([signal, &process]).status().unwrap().success());
}

#[test]
fn a_follower_on_a_slow_line_holds_up_nobody() {
    let mut federation = Federation::start_apart(3);
    under(&mut federation, |federation, clients| {
        let leader = federation.leader();
        let slow = other_than(leader);
        federation.network.as_ref().unwrap().slow(slow, 64);
        let (since, before) = (Instant::now(), clients.acknowledged());
        more(federation, clients, "writes beside the slow one");
        more(federation, clients, "more of them");
        let rate = (clients.acknowledged() - before) as f64 / since.elapsed().as_secs_f64();
        eprintln!("{rate:.0} writes/s with one slow follower");
        federation.network.as_ref().unwrap().heal();
    });
}

#[test]
fn power_cut_everywhere_loses_nothing_that_was_acknowledged() {
    let seed = seed();
    println!("seed {seed}: FLUVIAL_SEED={seed} cargo nextest run --test hub_faults power_cut");
    let mut random = Random::new(seed);
    let mut federation = Federation::start_on_disks(3);
    under(&mut federation, |federation, clients| {
        for _ in 0..number("FLUVIAL_KILLS").unwrap_or(4) {
            std::thread::sleep(Duration::from_millis(random.below(600)));
            let hubs: Vec<usize> = match random.below(3) {
                0 => vec![usize::try_from(random.below(3)).unwrap() + 1],
                1 => vec![1, 3],
                _ => vec![1, 2, 3],
            };
            hubs.iter().for_each(|hub| federation.disks[hub - 1].cut_power());
            hubs.iter().for_each(|hub| federation.kill_hub(*hub));
            hubs.iter().for_each(|hub| federation.disks[hub - 1].start_again());
            hubs.iter().for_each(|hub| federation.run_hub(*hub));
            more(federation, clients, "writes after the power came back");
        }
    });
}
