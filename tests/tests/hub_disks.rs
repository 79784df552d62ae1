//! Hubs whose disks are full, hang, or fail: judged like those of `hub_faults`, by what clients saw.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::time::{Duration, Instant};

use fluvial_tests::clients::Clients;
use fluvial_tests::faults::{another_leads, answers, follows, more, next_write, other_than, ready, under};
use fluvial_tests::federation::{DEADLINE, Federation};
use fluvial_tests::wait::wait_for;

/// How long a leader whose disk hangs may lead on.
const HUNG_LEADER: Duration = Duration::from_secs(10);

/// Waits until a hub says that it is not ready, in these words, and that its process goes on.
#[track_caller]
fn stops_by_itself(federation: &mut Federation, hub: usize, words: &str) -> String {
    let said = wait_for(DEADLINE, "the hub to say why it is not ready", || {
        if let Some(status) = federation.hub_ended(hub) {
            panic!("hub {hub} ended: {status}; {:?}", federation.last_said(&format!("hub-{hub}")));
        }
        match ready(federation, hub) {
            Err(said) if said.contains(words) => Ok(said),
            other => Err(other),
        }
    });
    assert!(federation.log(&format!("hub-{hub}")).contains(words), "its log does not say so");
    said
}

/// Fills a hub's disk, by another file or by what it writes itself, and makes room again.
fn fill(federation: &mut Federation, clients: &Clients, hub: usize, by_itself: bool) {
    if by_itself {
        federation.disks[hub - 1].leave(4);
    } else {
        federation.disks[hub - 1].fill();
    }
    stops_by_itself(federation, hub, "no room");
    more(federation, clients, "writes beside the full disk");
    federation.disks[hub - 1].make_room();
    follows(federation, hub);
}

#[test]
fn a_leader_whose_disk_is_full_makes_way_and_comes_back_when_there_is_room() {
    let mut federation = Federation::start_on_disks(3);
    under(&mut federation, None, |federation, clients| {
        let leader = federation.leader();
        let process = federation.hub_process(leader);
        federation.disks[leader - 1].fill();
        stops_by_itself(federation, leader, "no room");
        another_leads(federation, other_than(leader), leader);
        more(federation, clients, "writes without the full one");
        federation.disks[leader - 1].make_room();
        follows(federation, leader);
        assert_eq!(federation.hub_process(leader), process, "it was not started again");
        "the leader said that its disk has no room, and another one led".into()
    });
}

#[test]
fn a_follower_whose_disk_is_full_takes_nothing_and_catches_up_when_there_is_room() {
    let mut federation = Federation::start_on_disks(3);
    under(&mut federation, None, |federation, clients| {
        let follower = other_than(federation.leader());
        fill(federation, clients, follower, false);
        // What it writes itself fills the rest; at any moment of any write.
        fill(federation, clients, follower, true);
        "a follower said that its disk has no room, twice".into()
    });
}

#[test]
fn a_leader_whose_disk_hangs_makes_way_and_comes_back_when_it_answers() {
    let mut federation = Federation::start_on_disks(3);
    under(&mut federation, None, |federation, clients| {
        let leader = federation.leader();
        let process = federation.hub_process(leader);
        federation.disks[leader - 1].freeze();
        let since = Instant::now();
        another_leads(federation, other_than(leader), leader);
        let within = since.elapsed();
        more(federation, clients, "writes without the one that hangs");
        stops_by_itself(federation, leader, "the disk has not answered");
        assert!(!answers(federation, leader));
        federation.disks[leader - 1].thaw();
        follows(federation, leader);
        assert_eq!(federation.hub_process(leader), process, "it was not started again");
        // Tests run beside others: twice what an idle machine needs.
        assert!(within < HUNG_LEADER * 2, "it led on for {within:?}");
        format!("another one led {within:?} after the disk of the leader hung")
    });
}

#[test]
fn a_follower_whose_disk_hangs_holds_up_nobody() {
    let mut federation = Federation::start_on_disks(3);
    under(&mut federation, None, |federation, clients| {
        let follower = other_than(federation.leader());
        federation.disks[follower - 1].freeze();
        let (since, before) = (Instant::now(), clients.acknowledged());
        stops_by_itself(federation, follower, "the disk has not answered");
        more(federation, clients, "writes beside the one that hangs");
        let rate = (clients.acknowledged() - before) as f64 / since.elapsed().as_secs_f64();
        federation.disks[follower - 1].thaw();
        follows(federation, follower);
        format!("the follower said that its disk hangs; {rate:.0} writes/s meanwhile")
    });
}

#[test]
fn a_slow_disk_of_one_hub_holds_up_nobody_for_long() {
    let mut federation = Federation::start_on_disks(3);
    under(&mut federation, None, |federation, clients| {
        // The leader's, too: what it cannot sync in time the two others can.
        let mut slow = Vec::new();
        for hub in [other_than(federation.leader()), federation.leader()] {
            let (since, before) = (Instant::now(), clients.acknowledged());
            for _ in 0..12 {
                federation.disks[hub - 1].freeze();
                std::thread::sleep(Duration::from_millis(200));
                federation.disks[hub - 1].thaw();
                std::thread::sleep(Duration::from_millis(50));
            }
            slow.push(((clients.acknowledged() - before) as f64 / since.elapsed().as_secs_f64()).round());
            more(federation, clients, "writes beside the slow disk");
            assert!(answers(federation, hub), "a disk that answers after 200 ms is no reason to stop");
        }
        format!("writes waited up to 200 ms for a disk; {slow:?} writes/s with a slow follower and a slow leader")
    });
}

#[test]
fn a_hub_whose_disk_fails_ends_and_acknowledges_nothing() {
    let mut federation = Federation::start_on_disks(3);
    under(&mut federation, None, |federation, clients| {
        let mut ended = Vec::new();
        for leads in [true, false] {
            let leader = federation.leader();
            let hub = if leads { leader } else { other_than(leader) };
            // Every sync fails from now on, and so does every write and read that is not in memory.
            federation.disks[hub - 1].cut_power();
            let status = federation.hub_ends(hub);
            assert!(!status.success() && status.code().is_some(), "it ends by itself, with an error: {status}");
            next_write(clients);
            let said = federation.last_said(&format!("hub-{hub}")).join(" ");
            assert!(said.contains("the hub had to stop") && said.contains("cannot be written"), "{said}");
            federation.disks[hub - 1].start_again();
            federation.run_hub(hub);
            follows(federation, hub);
            ended.push(status);
        }
        format!("a leader and a follower ended: {ended:?}")
    });
}
