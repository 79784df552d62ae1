//! Migrations between two machines that share nothing: one agent reads through the other.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fluvial_tests::federation::{DEADLINE, Federation, Up};
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;

/// The folder that a `file://` home is.
fn folder(uri: &str) -> PathBuf {
    uri.strip_prefix("file://").unwrap_or_else(|| panic!("{uri} is no folder")).into()
}

/// Two members with a disk each, the dataset `tree` on that of `a`, the Storage `there` on that of `b`.
fn two_disks(federation: &mut Federation, arguments: &[&str]) -> PathBuf {
    two_disks_of(federation, [arguments, arguments])
}

/// The same, whose members have arguments of their own.
fn two_disks_of(federation: &mut Federation, arguments: [&[&str]; 2]) -> PathBuf {
    for (name, arguments) in ["a", "b"].into_iter().zip(arguments) {
        federation.member_arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        federation.add_member(name);
        federation.api.wait_until("cluster", name, "/status/state", |state| state == "Ready");
    }
    let source = federation.folder().join("source");
    tree::make(&source, 23, 1500, 20_000);
    fs::write(source.join("large.bin"), tree::bytes(7, 80 << 20)).unwrap();
    let api = &federation.api;
    api.path_storage("here", "a", &source);
    api.path_storage("there", "b", &federation.folder().join("there"));
    api.path_dataset("tree", &source);
    source
}

/// Slow enough to be killed three times in mid-copy, however fast the machine is.
fn slow(federation: &Federation) {
    let link = "apiVersion: fluvial.io/v1alpha1\nkind: Link\nmetadata: { name: slow }\n\
                spec: { from: a, to: b, bandwidthBytesPerSecond: 8388608 }\n";
    federation.api.apply(link).unwrap();
}

fn same(federation: &Federation, source: &Path) {
    assert_eq!(tree::difference(source, &folder(&federation.api.home("tree", "there"))), "");
}

#[test]
fn either_agent_is_killed_in_mid_copy_and_the_copy_goes_on() {
    let mut federation = Federation::start(1, &[]);
    let source = two_disks(&mut federation, &["--listen", "127.0.0.1:0"]);
    let api = federation.api.clone();
    let plan = api.fluvial(&["migrate", "tree", "--to", "there", "--dry-run"]).unwrap();
    assert!(plan.contains("relay by b through a"), "{plan}");

    slow(&federation);
    api.begin_migration("over", "tree", "there");
    for killed in ["a", "b", "a"] {
        assert_eq!(api.in_mid_copy("over"), "b", "the target's agent copies");
        federation.kill_member(killed);
        // The one that was killed comes back at another port.
        federation.run_member(killed);
    }
    api.complete("over");
    same(&federation, &source);

    // What was served for the operation is not served after it.
    let left = api.query("select count(*) as n from operations where phase <> 'Complete'").unwrap();
    assert_eq!(left, serde_json::json!([{ "n": 0 }]));
    let log = federation.log("member-a");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn an_agent_that_nobody_can_dial_dials_the_one_that_reads() {
    let listen = ["--listen", "127.0.0.1:0"];
    let mut federation = Federation::start(1, &[]);
    let source = two_disks_of(&mut federation, [&[], &listen]);
    let api = federation.api.clone();
    api.wait_until("cluster", "b", "/status/address", |address| address.as_str().is_some_and(|a| !a.is_empty()));
    let plan = api.fluvial(&["migrate", "tree", "--to", "there", "--dry-run"]).unwrap();
    assert!(plan.contains("relay by b through a") && plan.contains("through a, which dials it"), "{plan}");

    slow(&federation);
    api.begin_migration("over", "tree", "there");
    for killed in ["b", "a", "b"] {
        assert_eq!(api.in_mid_copy("over"), "b", "the target's agent copies");
        federation.kill_member(killed);
        let arguments: &[&str] = if killed == "b" { &listen } else { &[] };
        federation.member_arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        federation.run_member(killed);
    }
    api.complete("over");
    same(&federation, &source);
}

#[test]
fn an_agent_whose_address_nobody_reaches_dials_too_and_a_cancelled_copy_leaves_nothing() {
    let mut federation = Federation::start(1, &[]);
    // As behind a NAT: it listens for the nodes of its own cluster, at an address that is good for nobody else.
    let inside: &[&str] = &["--listen", "127.0.0.1:0", "--advertise", "127.0.0.1:9"];
    let source = two_disks_of(&mut federation, [inside, &["--listen", "127.0.0.1:0"]]);
    let api = federation.api.clone();
    api.wait_until("cluster", "b", "/status/address", |address| address.as_str().is_some_and(|a| !a.is_empty()));
    slow(&federation);
    api.begin_migration("first", "tree", "there");
    assert_eq!(api.in_mid_copy("first"), "b");
    api.fluvial(&["op", "cancel", "first"]).unwrap();
    assert_eq!(api.ended("first").0, "Cancelled");
    wait_for(DEADLINE, "an empty target", || {
        let found = Command::new("find").arg(federation.folder().join("there")).args(["-type", "f"]).output().unwrap();
        if found.stdout.is_empty() { Ok(()) } else { Err(String::from_utf8_lossy(&found.stdout).into_owned()) }
    });

    api.fluvial(&["delete", "link", "slow"]).unwrap();
    api.begin_migration("second", "tree", "there");
    api.complete("second");
    same(&federation, &source);
}

#[test]
fn agents_that_listen_nowhere_are_no_route_and_the_plan_says_what_to_do() {
    let mut federation = Federation::start(1, &[]);
    two_disks(&mut federation, &[]);
    let api = federation.api.clone();
    let refused = api.fluvial(&["migrate", "tree", "--to", "there", "--dry-run"]).unwrap_err();
    assert!(refused.contains("relay from") && refused.contains("--listen"), "{refused}");

    // Once it listens, the same migration has a route.
    federation.kill_member("a");
    federation.member_arguments = vec!["--listen".to_owned(), "127.0.0.1:0".to_owned()];
    federation.run_member("a");
    api.wait_until("cluster", "a", "/status/address", |address| address.as_str().is_some_and(|a| !a.is_empty()));
    api.begin_migration("over", "tree", "there");
    api.complete("over");
}

#[test]
fn members_of_one_process_move_data_between_their_disks() {
    let up = Up::start(1, &["a", "b"]);
    let source = up.folder().join("source");
    tree::make(&source, 29, 200, 20_000);
    up.api.path_storage("here", "a", &source);
    up.api.path_storage("there", "b", &up.folder().join("there"));
    up.api.path_dataset("tree", &source);
    up.api.fluvial(&["migrate", "tree", "--to", "there", "--mode", "move", "--wait", "--timeout", "60s"]).unwrap();
    assert_eq!(tree::difference(&source, &folder(&up.api.home("tree", "there"))), "");
}
