//! Hubs whose data was damaged while they were away: refused, with what is to be done, and replaced.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fluvial_tests::faults::{answers, follows, more, under, under_at};
use fluvial_tests::federation::{DEADLINE, Federation};
use fluvial_tests::random::{Random, seed};
use fluvial_tests::wait::wait_for;

/// What every record of a register has in it.
const NEEDLE: &[u8] = b"register-";

/// One way to damage a replica, which lies in `store`.
type Damage = (&'static str, fn(&Path));

/// Each of these must be noticed: none of them hits what nobody needs.
const DAMAGE: [Damage; 7] = [
    ("a bit of every record is flipped", |store| {
        for file in ["log.db", "log.db-wal"] {
            let path = store.join(file);
            let Ok(mut bytes) = std::fs::read(&path) else { continue };
            let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(NEEDLE)).collect();
            places.into_iter().for_each(|at| bytes[at] ^= 1);
            std::fs::write(path, bytes).unwrap();
        }
    }),
    ("the log is empty", |store| {
        std::fs::write(store.join("log.db"), b"").unwrap();
        let _ = std::fs::remove_file(store.join("log.db-wal"));
    }),
    ("the log is cut in half", |store| {
        let log = std::fs::File::options().write(true).open(store.join("log.db")).unwrap();
        log.set_len(log.metadata().unwrap().len() / 2).unwrap();
        let _ = std::fs::remove_file(store.join("log.db-wal"));
    }),
    ("the log is gone", |store| std::fs::remove_file(store.join("log.db")).unwrap()),
    ("the mark has a flipped bit", |store| {
        let mut mark = std::fs::read(store.join("log.mark")).unwrap();
        mark[5] ^= 1;
        std::fs::write(store.join("log.mark"), mark).unwrap();
    }),
    ("the marker is no JSON", |store| std::fs::write(store.join("node.json"), b"{\"node\":").unwrap()),
    ("the replica is gone", |store| std::fs::remove_dir_all(store).unwrap()),
];

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Starts a hub that must refuse to run, and say what is to be done.
#[track_caller]
fn is_refused(federation: &mut Federation, hub: usize, how: &str) {
    let before = federation.log(&format!("hub-{hub}")).len();
    federation.run_hub(hub);
    let status = federation.hub_ends(hub);
    let said = federation.log(&format!("hub-{hub}"))[before..].to_owned();
    assert_eq!(status.code(), Some(1), "{how}: {said}");
    assert!(said.contains("new one join") || said.contains("new id"), "{how}: {said}");
    assert!(!said.contains("panicked"), "{how}: {said}");
}

#[test]
fn a_damaged_hub_is_refused_and_replaced_by_a_new_one() {
    let seed = seed();
    println!("seed {seed}: FLUVIAL_SEED={seed} cargo nextest run --test hub_damage replaced");
    let mut random = Random::new(seed);
    let mut federation = Federation::start_apart_with(3, 4, &[]);
    let hub = usize::try_from(2 + random.below(2)).unwrap();
    under_at(&mut federation, &[1, 5 - hub], Some(seed), |federation, clients| {
        federation.kill_hub(hub);
        let (store, saved) = (federation.hub_dir(hub).join("store"), federation.folder().join("saved"));
        copy(&store, &saved);
        for (how, damage) in DAMAGE {
            copy(&saved, &store);
            damage(&store);
            is_refused(federation, hub, how);
        }
        more(federation, clients, "writes beside the damaged hub");
        federation.remove_hub(1, hub).unwrap();
        let new = federation.add_hub();
        federation.until_voters(1, 3);
        follows(federation, new);
        // Its own data, as good as before, is of no use any more: nobody knows it.
        copy(&saved, &store);
        federation.run_hub(hub);
        let ids = (federation.hub_id(hub), federation.hub_id(new));
        wait_for(DEADLINE, "the removed hub not to answer", || if answers(federation, hub) { Err(()) } else { Ok(()) });
        federation.kill_hub(hub);
        assert!(ids.1 > ids.0, "an id is never given twice");
        format!("{} kinds of damage were refused; hub {} took the place of hub {}", DAMAGE.len(), ids.1, ids.0)
    });
}

#[test]
fn a_majority_that_is_damaged_stops_the_federation_and_serves_nothing() {
    let mut federation = Federation::start_apart(3);
    under(&mut federation, None, |federation, clients| {
        for hub in [2, 3] {
            federation.kill_hub(hub);
            let store = federation.hub_dir(hub).join("store");
            copy(&store, &federation.folder().join(format!("saved-{hub}")));
            DAMAGE[0].1(&store);
        }
        for hub in [2, 3] {
            is_refused(federation, hub, DAMAGE[0].0);
        }
        wait_for(DEADLINE, "the last hub to answer nothing", || if answers(federation, 1) { Err(()) } else { Ok(()) });
        // Clients ask all the time.
        let (since, before) = (Instant::now(), clients.acknowledged());
        while since.elapsed() < Duration::from_secs(3) {
            assert!(!answers(federation, 1), "one of three cannot know whether it is still so");
        }
        assert_eq!(clients.acknowledged(), before);
        for hub in [2, 3] {
            copy(&federation.folder().join(format!("saved-{hub}")), &federation.hub_dir(hub).join("store"));
            federation.run_hub(hub);
        }
        "two of three were refused, and the third answered nothing".to_owned()
    });
}
