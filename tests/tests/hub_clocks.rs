//! Hubs whose wall clocks jump an hour, to and fro: one of them, the leader, all of them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::time::{Duration, Instant, SystemTime};

use fluvial_tests::clock::Clock;
use fluvial_tests::faults::{follows, more, under};
use fluvial_tests::federation::{DEADLINE, Federation};
use fluvial_tests::wait::wait_for;

const HOUR: i64 = 3600;

/// By how many seconds the clock is wrong by which the hub judges, as a new object's time says.
#[track_caller]
fn wrong_by(federation: &Federation, hub: usize, name: &str) -> i64 {
    wait_for(DEADLINE, "a namespace to be made", || {
        match federation.on(hub, &["create", "namespace", name]) {
            // By an attempt of which no answer came.
            Err(said) if said.contains("already exists") => Ok(said),
            answer => answer,
        }
    });
    let pointer = "jsonpath={.metadata.creationTimestamp}";
    let made = wait_for(DEADLINE, "it to be read", || federation.on(hub, &["get", "namespace", name, "-o", pointer]));
    let made: jiff::Timestamp = made.parse().unwrap();
    made.as_second() - jiff::Timestamp::try_from(SystemTime::now()).unwrap().as_second()
}

#[test]
fn clocks_that_jump_an_hour_lose_nothing_and_make_nobody_unreachable() {
    let mut federation = Federation::start_apart(3);
    federation.add_member("m");
    let clocks: Vec<Clock> = (1..=3).map(|hub| Clock::new(federation.folder(), &format!("clock-{hub}"))).collect();
    for hub in 1..=3 {
        federation.hub_environment.insert(hub, clocks[hub - 1].environment());
        federation.kill_hub(hub);
        federation.run_hub(hub);
        follows(&federation, hub);
    }
    federation.api.wait_until("cluster", "m", "/status/state", |state| state == "Ready");
    let state = |federation: &Federation| {
        let found = federation.on(1, &["get", "cluster", "m", "-o", "jsonpath={.status.state}"]);
        found.unwrap_or_else(|error| format!("not known: {error}"))
    };
    under(&mut federation, None, |federation, clients| {
        let token = federation.token(&["--cluster", "late", "--ttl", "10m"]);
        let mut seen = Vec::new();
        let leader = federation.leader();
        let jumps = [(vec![leader], HOUR), (vec![1, 2, 3], HOUR), (vec![1, 2, 3], 0)];
        for (number, (hubs, seconds)) in jumps.into_iter().enumerate() {
            hubs.iter().for_each(|hub| clocks[hub - 1].shift(seconds));
            let (since, mut unreachable) = (Instant::now(), Vec::new());
            more(federation, clients, "writes after the jump");
            // A silence of ten seconds would be suspect: the hour that has passed at once must not count.
            while since.elapsed() < Duration::from_secs(4) {
                unreachable.push(state(federation));
            }
            assert!(!unreachable.iter().any(|state| state == "Unreachable" || state == "Suspect"), "{unreachable:?}");
            let wrong = wrong_by(federation, hubs[0], &format!("time-{number}"));
            assert!((wrong - seconds).abs() < 60, "the clock of hub {} is wrong by {wrong} s", hubs[0]);
            seen.push(wrong);
            if (hubs.len(), seconds) == (3, HOUR) {
                let refused = federation.join_member("late", &token).unwrap_err();
                assert!(refused.contains("expired"), "a token of ten minutes is an hour old: {refused}");
            }
        }
        // Back before the certificates were made: such a hub believes nobody, and the others go on without it.
        let behind = federation.leader();
        clocks[behind - 1].shift(-HOUR);
        more(federation, clients, "writes beside the hub that is behind");
        clocks[behind - 1].shift(0);
        follows(federation, behind);
        let token = federation.token(&["--cluster", "later"]);
        federation.join_member("later", &token).unwrap();
        federation.api.wait_until("cluster", "m", "/status/state", |state| state == "Ready");
        format!("objects were made {seen:?} s away from now; a token expired an hour later")
    });
}
