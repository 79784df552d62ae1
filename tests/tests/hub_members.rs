//! Snapshots that are sent and members that change while clients write.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use fluvial_tests::clients::Clients;
use fluvial_tests::faults::{another_leads, follows, more, other_than, under, under_at};
use fluvial_tests::federation::{DEADLINE, Federation};
use fluvial_tests::random::{Random, number, seed};
use fluvial_tests::wait::wait_for;
use serde_json::Value;

/// How long a change of members may stay half done after the leader that began it is gone.
const SETTLED: Duration = Duration::from_secs(30);

/// The files of a hub's store whose names begin so.
fn files(federation: &Federation, hub: usize, prefix: &str) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(federation.hub_dir(hub).join("store")).into_iter().flatten().flatten();
    listed.map(|file| file.path()).filter(|path| name(path).starts_with(prefix)).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// How many log entries the snapshot of a hub holds.
fn snapshot(federation: &Federation, hub: usize) -> u64 {
    let of = |path: &PathBuf| name(path).split('-').nth(1)?.parse().ok();
    files(federation, hub, "snapshot-").iter().filter_map(of).max().unwrap_or(0)
}

/// Waits until a part of a snapshot has come to a hub. Its name goes with the last part: what is seen is not all.
#[track_caller]
fn receives(federation: &Federation, hub: usize) -> u64 {
    wait_for(DEADLINE, "a part of a snapshot to come", || {
        let parts = files(federation, hub, "incoming-").into_iter().filter_map(|path| path.metadata().ok());
        parts.map(|part| part.len()).find(|bytes| *bytes > 0).ok_or(())
    })
}

#[test]
fn a_hub_that_was_away_gets_a_snapshot_while_clients_write_and_ends_are_killed() {
    let arguments = ["--snapshot-after", "200", "--keep-log", "50"];
    let mut federation = Federation::start_apart_with(3, 3, &arguments);
    under(&mut federation, None, |federation, clients| {
        let leader = federation.leader();
        let away = other_than(leader);
        federation.kill_hub(away);
        let (had, other) = (snapshot(federation, away), 6 - leader - away);
        // A snapshot made since is at least as new as its log. When one that is this much newer is there, what it misses was
        // cut: 50 entries are kept, and 256 at a time are cut.
        let since = snapshot(federation, leader).max(snapshot(federation, other));
        let made = |federation: &Federation, least: u64, clients: &Clients| {
            while snapshot(federation, leader).min(snapshot(federation, other)) < least {
                more(federation, clients, "writes that it misses");
            }
            snapshot(federation, leader).max(snapshot(federation, other))
        };
        let first = made(federation, since + 1, clients);
        made(federation, first + 310, clients);
        // So much history takes seconds.
        let network = federation.network.as_ref().unwrap();
        [leader, other].into_iter().for_each(|hub| network.slow(hub, 2048));
        federation.run_hub(away);
        let bytes = receives(federation, away);
        federation.kill_hub(away);
        assert_eq!(snapshot(federation, away), had, "a part of a snapshot is none");
        assert!(!files(federation, away, "incoming-").is_empty(), "it was killed when the transfer was over");
        federation.run_hub(away);
        receives(federation, away);
        let sender = federation.leader_seen_by(other).unwrap_or(leader);
        federation.kill_hub(sender);
        assert_eq!(snapshot(federation, away), had, "a part of a snapshot is none");
        federation.network.as_ref().unwrap().heal();
        another_leads(federation, 6 - sender - away, sender);
        more(federation, clients, "writes without the sender");
        federation.run_hub(sender);
        follows(federation, away);
        let has = wait_for(DEADLINE, "the snapshot to be there", || {
            let has = snapshot(federation, away);
            if has > had { Ok(has) } else { Err(has) }
        });
        format!(
            "the receiver was killed after {bytes} bytes and the sender while it sent; then a snapshot of {has} entries was \
             installed, where there were {had}"
        )
    });
}

/// Whether a change of who votes is half done, as a hub says.
fn changing(federation: &Federation, witness: usize) -> Result<bool, String> {
    let hubs = federation.on(witness, &["--request-timeout=2s", "get", "--raw", "/apis/fluvial.io/v1alpha1/hubs"])?;
    let hubs: Value = serde_json::from_str(&hubs).map_err(|error| error.to_string())?;
    hubs["changing"].as_bool().ok_or_else(|| hubs.to_string())
}

/// Makes hub 1 or 2 no leader, by stopping leaders for a moment.
#[track_caller]
fn a_later_one_leads(federation: &Federation) -> usize {
    wait_for(DEADLINE, "hub 3 or a later one to lead", || {
        let leader = federation.leader_seen_by(1)?;
        if leader > 2 {
            return Ok(leader);
        }
        federation.signal_hub(leader, "-STOP");
        another_leads(federation, 3 - leader, leader);
        federation.signal_hub(leader, "-CONT");
        Err(format!("{leader} leads"))
    })
}

#[test]
fn members_change_under_load_whoever_is_killed_between_the_steps() {
    let seed = seed();
    println!("seed {seed}: FLUVIAL_SEED={seed} cargo nextest run --test hub_members change");
    let mut random = Random::new(seed);
    let kills = number("FLUVIAL_KILLS").unwrap_or(2);
    let mut federation = Federation::start_apart_with(3, usize::try_from(5 + kills).unwrap(), &[]);
    under_at(&mut federation, &[1, 2], Some(seed), |federation, clients| {
        // One joins, learns and votes.
        let fourth = federation.add_hub();
        federation.until_voters(1, 4);
        more(federation, clients, "writes with four");
        // The leader leaves.
        let leader = a_later_one_leads(federation);
        federation.remove_hub(1, leader).unwrap();
        another_leads(federation, 1, leader);
        federation.until_voters(1, 3);
        federation.kill_hub(leader);
        more(federation, clients, "writes without the leader that left");
        // The last one that is neither 1 nor 2 dies and is replaced, again and again, with a kill in the middle of it.
        let mut third = if leader == fourth { 3 } else { fourth };
        let mut settled = Vec::new();
        for _ in 0..kills {
            federation.kill_hub(third);
            federation.remove_hub(1, third).unwrap();
            federation.until_voters(1, 2);
            third = federation.join_hub();
            federation.run_hub(third);
            std::thread::sleep(Duration::from_millis(random.below(1500)));
            let leader = federation.leader();
            federation.kill_hub(leader);
            std::thread::sleep(Duration::from_millis(random.below(500)));
            federation.run_hub(leader);
            let since = std::time::Instant::now();
            federation.until_voters(1, 3);
            wait_for(SETTLED, "no change to be half done", || match changing(federation, 1) {
                Ok(false) => Ok(()),
                other => Err(other),
            });
            settled.push(since.elapsed());
            follows(federation, third);
            more(federation, clients, "writes with the new one");
        }
        format!("hub {leader} left while it led; {kills} dead hubs were replaced, settled after {settled:?}")
    });
}
