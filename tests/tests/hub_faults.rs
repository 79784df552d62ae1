//! Hubs under faults: killed, stopped, cut off from each other, without power. Clients write, swap and read a few
//! registers all the time, through every hub; what they saw is judged by `fluvial_tests::history`: nothing acknowledged is
//! lost, no read is stale, no watcher misses a change. Each test proves that its fault took effect. Hubs are on machines of
//! their own: who calls a dead port of loopback again and again is answered by himself one day, and keeps it from its owner.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::time::{Duration, Instant};

use fluvial_tests::faults::{another_leads, answers, follows, more, next_write, other_than, under};
use fluvial_tests::federation::Federation;
use fluvial_tests::random::{Random, number, seed};

#[test]
fn leaders_that_are_killed_lose_nothing() {
    let kills = number("FLUVIAL_KILLS").unwrap_or(4);
    let mut federation = Federation::start_apart(3);
    under(&mut federation, None, |federation, clients| {
        for _ in 0..kills {
            let leader = federation.leader();
            federation.kill_hub(leader);
            another_leads(federation, other_than(leader), leader);
            next_write(clients);
            federation.run_hub(leader);
            follows(federation, leader);
        }
        format!("{kills} leaders were killed, and another one led each time")
    });
}

#[test]
fn all_hubs_killed_at_once_lose_nothing() {
    let mut federation = Federation::start_apart(3);
    under(&mut federation, None, |federation, clients| {
        for _ in 0..3 {
            (1..=3).for_each(|hub| federation.kill_hub(hub));
            assert!(!answers(federation, 1), "nobody is there");
            (1..=3).for_each(|hub| federation.run_hub(hub));
            more(federation, clients, "writes after all were killed");
        }
        "three times nobody answered".into()
    });
}

#[test]
fn a_leader_that_is_cut_off_acknowledges_nothing_and_reads_nothing() {
    let mut federation = Federation::start_apart(3);
    under(&mut federation, None, |federation, clients| {
        let old = federation.leader();
        federation.network.as_ref().unwrap().isolate(old);
        let new = another_leads(federation, other_than(old), old);
        assert!(!answers(federation, old), "hub {old} cannot know whether it is still so");
        more(federation, clients, "writes through the majority");
        assert!(answers(federation, new));
        federation.network.as_ref().unwrap().heal();
        follows(federation, old);
        "another one led, and the old leader did not answer".into()
    });
}

#[test]
fn a_direction_that_is_cut_loses_nothing() {
    let mut federation = Federation::start_apart(3);
    under(&mut federation, None, |federation, clients| {
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
        "another one led after each cut".into()
    });
}

#[test]
fn a_network_that_flaps_and_loses_packets_loses_nothing() {
    let seed = seed();
    println!("seed {seed}: FLUVIAL_SEED={seed} cargo nextest run --test hub_faults flaps");
    let mut random = Random::new(seed);
    let mut federation = Federation::start_apart(3);
    under(&mut federation, Some(seed), |federation, clients| {
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
        network.heal();
        let cut = network.dropped();
        assert!(cut > 0, "no packet was dropped");
        format!("{cut} packets were dropped; nothing was acknowledged in {quiet} of 12 phases")
    });
}

#[test]
fn a_leader_that_sleeps_wakes_up_as_a_follower_that_knows_nothing_old() {
    let mut federation = Federation::start_apart(3);
    under(&mut federation, None, |federation, clients| {
        for _ in 0..2 {
            let old = federation.leader();
            federation.signal_hub(old, "-STOP");
            another_leads(federation, other_than(old), old);
            more(federation, clients, "writes while it sleeps");
            // What it was asked meanwhile it answers now: none of it may be old.
            federation.signal_hub(old, "-CONT");
            follows(federation, old);
        }
        "another one led while the leader slept, twice".into()
    });
}

#[test]
fn a_follower_on_a_slow_line_holds_up_nobody() {
    let mut federation = Federation::start_apart(3);
    under(&mut federation, None, |federation, clients| {
        let leader = federation.leader();
        let slow = other_than(leader);
        federation.network.as_ref().unwrap().slow(slow, 64);
        let (since, before) = (Instant::now(), clients.acknowledged());
        more(federation, clients, "writes beside the slow one");
        more(federation, clients, "more of them");
        let rate = (clients.acknowledged() - before) as f64 / since.elapsed().as_secs_f64();
        let late = federation.network.as_ref().unwrap().overlimits(slow);
        assert!(late > 0, "nothing waited for the line");
        federation.network.as_ref().unwrap().heal();
        format!("{late} packets waited for the line; {rate:.0} writes/s meanwhile")
    });
}

#[test]
fn power_cut_everywhere_loses_nothing_that_was_acknowledged() {
    let seed = seed();
    println!("seed {seed}: FLUVIAL_SEED={seed} cargo nextest run --test hub_faults power_cut");
    let mut random = Random::new(seed);
    let mut federation = Federation::start_on_disks(3);
    let cuts = number("FLUVIAL_KILLS").unwrap_or(4);
    under(&mut federation, Some(seed), |federation, clients| {
        for _ in 0..cuts {
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
        format!("{cuts} times the power went, and the file system came back from its log")
    });
}
