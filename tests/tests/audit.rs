//! The audit trail through the binary: every hub has the same, and whoever changes it on disk is found.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::path::PathBuf;

use fluvial_tests::federation::{DEADLINE, Federation};
use fluvial_tests::wait::wait_for;
use rusqlite::Connection;
use serde_json::Value;

/// The catalog's file of a hub that does not run.
fn catalog(federation: &Federation, hub: usize) -> PathBuf {
    let mut found = Vec::new();
    let mut folders = vec![federation.hub_dir(hub)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if name.starts_with("catalog-") && name.ends_with(".db") {
                found.push(entry.path());
            }
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Changes the trail of the one hub while it is down, and its catalog's seal with it: without one, or with a wrong one, the
/// hub would make its catalog again from what it logged.
fn forge(federation: &mut Federation, sql: &str, reseal: bool) {
    assert!(federation.stop_hub(1).success());
    let path = catalog(federation, 1);
    let db = Connection::open(&path).unwrap();
    assert!(db.execute(sql, []).unwrap() > 0, "{sql} changed nothing");
    drop(db);
    if reseal {
        let bytes = fs::read(&path).unwrap();
        let seal = serde_json::json!({ "bytes": bytes.len(), "crc32c": crc32c::crc32c(&bytes) });
        fs::write(path.with_extension("seal"), seal.to_string()).unwrap();
    }
    federation.run_hub(1);
    wait_for(DEADLINE, "the hub answers", || federation.on(1, &["get", "namespace", "default"]).map(|_| ()));
}

#[test]
fn what_happened_is_listed_and_a_forger_is_found() {
    let mut federation = Federation::start(1, &[]);
    let api = federation.api.clone();
    for name in ["one", "two", "three"] {
        api.kubectl(&["create", "namespace", name]).unwrap();
    }
    api.kubectl(&["delete", "namespace", "two"]).unwrap();
    let listed = api.fluvial(&["audit", "--since", "1h", "--user", "admin"]).unwrap();
    for words in [["create", "one", "201"], ["delete", "two", "200"]] {
        let has = |line: &str| words.iter().all(|word| line.contains(word)) && line.contains("user/admin");
        assert!(listed.lines().any(has), "{words:?}: {listed}");
    }
    assert!(!api.fluvial(&["audit", "--user", "nobody"]).unwrap().contains("create"));
    let rows: Value = serde_json::from_str(&api.fluvial(&["audit", "-o", "json"]).unwrap()).unwrap();
    let rows = rows.as_array().unwrap();
    let changed = rows.iter().find(|row| row["name"] == "three").unwrap()["sequence"].as_u64().unwrap();

    let head = api.fluvial(&["audit", "head"]).unwrap();
    let head = head.trim();
    assert!(api.fluvial(&["audit", "verify"]).unwrap().contains("are whole"));
    assert!(api.fluvial(&["audit", "verify", "--head", head]).unwrap().contains("are whole"));

    // One after the other, each on top of the last: what comes first in the trail is what is named.
    let last: u64 = head.split(':').next().unwrap().parse().unwrap();
    forge(&mut federation, "DELETE FROM fv_row_audit WHERE sequence = 2", false);
    assert!(api.fluvial(&["audit", "verify", "--head", head]).unwrap().contains("are whole"), "it is made again");
    forge(&mut federation, &format!("DELETE FROM fv_row_audit WHERE sequence = {last}"), true);
    let said = api.fluvial(&["audit", "verify", "--head", head]).unwrap_err();
    assert!(
        said.contains(&format!("record {last} is another than the one that was noted"))
            || said.contains(&format!("record {last} was there: the end was cut off")),
        "{said}"
    );
    forge(&mut federation, &format!("UPDATE fv_row_audit SET \"user\" = 'user/eve' WHERE sequence = {changed}"), true);
    let said = api.fluvial(&["audit", "verify"]).unwrap_err();
    assert!(said.contains(&format!("record {changed} was changed")), "{said}");
    forge(&mut federation, "DELETE FROM fv_row_audit WHERE sequence = 2", true);
    let said = api.fluvial(&["audit", "verify"]).unwrap_err();
    assert!(said.contains("record 3 follows record 1"), "{said}");
}

#[test]
fn every_hub_has_the_same_trail_whoever_was_called_and_whoever_led() {
    let mut federation = Federation::start(3, &["a"]);
    let names: Vec<String> = (0..12).map(|number| format!("ns-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        if number == 6 {
            let leader = federation.leader();
            federation.kill_hub(leader);
            federation.run_hub(leader);
        }
        let hub = number % 3 + 1;
        wait_for(DEADLINE, "the namespace is made", || match federation.on(hub, &["create", "namespace", name]) {
            Err(said) if !said.contains("AlreadyExists") => Err(said),
            _ => Ok(()),
        });
    }
    let said = wait_for(DEADLINE, "the trail is whole", || federation.api.fluvial(&["audit", "verify"]));
    assert!(said.contains("are whole"), "{said}");
    let head = federation.api.fluvial(&["audit", "head"]).unwrap();
    let (sequence, hash) = head.trim().split_once(':').unwrap();
    let question = federation.folder().join("question.json");
    let sql = format!("SELECT hash FROM audit WHERE sequence = {sequence}");
    fs::write(&question, serde_json::json!({ "sql": sql }).to_string()).unwrap();
    let question = question.to_str().unwrap();
    for hub in 1..=3 {
        wait_for(DEADLINE, "the hub has the same record", || {
            let said = federation.on(hub, &["create", "--raw", "/apis/fluvial.io/v1alpha1/query", "-f", question])?;
            if said.contains(hash) { Ok(()) } else { Err(said) }
        });
    }
    // The joins are in it, with what they were for.
    let rows = federation.api.query("SELECT message FROM audit WHERE verb = 'consume' ORDER BY sequence").unwrap();
    let joined: Vec<&str> = rows.as_array().unwrap().iter().map(|row| row["message"].as_str().unwrap()).collect();
    assert_eq!(joined, ["hub/2", "hub/3", "cluster/a"]);
}
