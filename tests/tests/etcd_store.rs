//! Hubs over an etcd with three members, TLS and client certificates: they do what hubs do, while members of etcd and
//! the hub that leads are killed under them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::path::Path;
use std::process::Command;

use fluvial_tests::bed::fluvial_bin;
use fluvial_tests::etcd::Etcd;
use fluvial_tests::federation::{Api, DEADLINE, Federation, said};
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;
use serde_json::Value;

/// How hubs are told of this etcd.
fn arguments(etcd: &Etcd) -> Vec<String> {
    let file = |name: &str| etcd.file(name).display().to_string();
    let mut all: Vec<String> = ["--store", "etcd", "--etcd-endpoints"].map(str::to_owned).into();
    all.push(etcd.endpoints().join(","));
    for (flag, name) in [("--etcd-ca", "ca.pem"), ("--etcd-cert", "cert.pem"), ("--etcd-key", "key.pem")] {
        all.extend([flag.to_owned(), file(name)]);
    }
    all
}

/// The administrator at one hub alone.
fn at(federation: &Federation, hub: usize) -> Api {
    let text = std::fs::read_to_string(&federation.api.kubeconfig).unwrap();
    let kubeconfig = federation.folder().join(format!("kubeconfig-{hub}"));
    std::fs::write(&kubeconfig, text.replace(&federation.urls[0], &federation.urls[hub - 1])).unwrap();
    Api { kubeconfig }
}

/// A folder that becomes a dataset, which the planner has scanned by the member; its files and bytes are the folder's.
fn scanned(api: &Api, name: &str, folder: &Path) {
    let place = folder.join(name);
    tree::make(&place, 7, 20, 2000);
    let status = api.path_dataset(name, &place)["status"].clone();
    assert_eq!(status["files"], 20, "{status}");
}

#[test]
fn hubs_over_etcd_plan_on_when_a_hub_and_members_of_etcd_are_killed() {
    let mut etcd = Etcd::start(3, true);
    etcd.wait();
    let made_with = arguments(&etcd);
    let made_with: Vec<_> = made_with.iter().map(String::as_str).collect();
    let mut federation = Federation::start_made_with(2, &["a"], &made_with);
    let one = at(&federation, 1);
    let folder = federation.folder().to_owned();
    scanned(&one, "first", &folder);

    // Every hub answers, from what etcd has.
    let two = at(&federation, 2);
    let rows = two.query("select name, files from datasets").unwrap();
    assert_eq!(rows[0]["files"], 20, "{rows}");
    let members: Value = serde_json::from_str(&two.fluvial(&["hub", "members", "-o", "json"]).unwrap()).unwrap();
    assert_eq!(members.as_array().map(Vec::len), Some(2), "{members}");
    assert!(etcd.ctl(&["get", "--prefix", "--keys-only", "/fluvial/"]).unwrap().contains("/fluvial/data/registry"));
    assert!(!federation.hub_dir(1).join("store").exists(), "a hub over etcd keeps no log");

    // A member of etcd at a time goes and comes back.
    for member in 0..3 {
        etcd.kill(member);
        scanned(&one, &format!("without-{member}"), &folder);
        etcd.run(member);
        etcd.wait();
    }

    // The hub that leads goes.
    let leader = federation.leader();
    let other = 3 - leader;
    let survivor = at(&federation, other);
    federation.kill_hub(leader);
    scanned(&survivor, "later", &folder);
    assert_eq!(federation.leader(), other);
    wait_for(DEADLINE, "the dead hub is not listed", || {
        let members = survivor.fluvial(&["hub", "members"])?;
        if members.matches("voter").count() == 1 { Ok(()) } else { Err(members) }
    });

    // It comes back and knows what it missed.
    federation.run_hub(leader);
    let back = at(&federation, leader);
    wait_for(DEADLINE, "the hub is back", || {
        let rows = back.query("select name from datasets order by name")?;
        if rows.as_array().is_some_and(|rows| rows.len() == 5) { Ok(()) } else { Err(rows.to_string()) }
    });

    // All members at once: nothing is lost, and nothing has to be started again.
    for member in 0..3 {
        etcd.kill(member);
    }
    let refused = survivor.kubectl(&["--request-timeout=3s", "create", "namespace", "meanwhile"]);
    assert!(refused.is_err(), "nobody keeps it: {refused:?}");
    for member in 0..3 {
        etcd.run(member);
    }
    wait_for(DEADLINE, "the hubs answer again", || survivor.kubectl(&["get", "namespace", "default"]).map(|_| ()));
    scanned(&survivor, "last", &folder);

    // Every hub has the same audit trail, also the one that was away, and one that reads everything anew.
    let trail = |api: &Api| api.query("select sequence, hash from audit order by sequence").unwrap();
    wait_for(DEADLINE, "the same trail", || {
        let (ours, theirs) = (trail(&survivor), trail(&back));
        let long = ours.as_array().is_some_and(|rows| rows.len() > 5);
        if long && ours == theirs { Ok(()) } else { Err(format!("{ours} {theirs}")) }
    });
    federation.kill_hub(leader);
    std::fs::remove_dir_all(federation.hub_dir(leader).join("replica")).unwrap();
    federation.run_hub(leader);
    wait_for(DEADLINE, "the same trail, read anew", || {
        let (ours, theirs) = (trail(&survivor), back.query("select sequence, hash from audit order by sequence")?);
        if ours == theirs { Ok(()) } else { Err(format!("{ours} {theirs}")) }
    });

    // A hub leaves for good.
    survivor.fluvial(&["hub", "remove", &format!("hub-{leader}")]).unwrap();
    assert_eq!(survivor.fluvial(&["hub", "members"]).unwrap().matches("voter").count(), 1);
}

#[test]
fn a_hub_says_what_is_wrong_with_its_etcd() {
    let etcd = Etcd::start(1, false);
    etcd.wait();
    let folder = tempfile::tempdir().unwrap();
    let fluvial = |arguments: &[&str]| said(Command::new(fluvial_bin()).args(arguments).output().unwrap());
    let make = |name: &str, endpoint: &str| {
        let (data_dir, kubeconfig) = (folder.path().join(name), folder.path().join("kubeconfig"));
        let (data_dir, kubeconfig) = (data_dir.to_str().unwrap(), kubeconfig.to_str().unwrap());
        let common = ["hub", "init", "--listen", "127.0.0.1:7461", "--data-dir", data_dir, "--kubeconfig", kubeconfig];
        fluvial(&[&common[..], &["--store", "etcd", "--etcd-endpoints", endpoint]].concat()).unwrap();
        data_dir.to_owned()
    };
    let endpoint = &etcd.endpoints()[0];
    let wrong = make("wrong", "127.0.0.1:2379");
    let error = fluvial(&["hub", "run", "--data-dir", &wrong]).unwrap_err();
    assert!(error.contains("must be http://HOST:PORT or https://HOST:PORT"), "{error}");
    // Another fleet's place.
    etcd.ctl(&["put", "/fluvial/meta/fleet", "theirs"]).unwrap();
    let taken = make("taken", endpoint);
    let error = fluvial(&["hub", "run", "--data-dir", &taken]).unwrap_err();
    assert!(error.contains("etcd holds fleet theirs"), "{error}");
    let error = fluvial(&["hub", "run", "--data-dir", &taken, "--store", "etcd"]).unwrap_err();
    assert!(error.contains("--etcd-endpoints"), "{error}");
}
