//! What many members need of the hubs, tried with a few: a place that fails over and does not come back at once, and members
//! that do not read what they are sent.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use fluvial_proto::v1;
use fluvial_proto::v1::agent_message::Message as Said;
use fluvial_proto::v1::hub_message::Message as Heard;
use fluvial_tests::federation::{Api, DEADLINE, Federation};
use fluvial_tests::members::{Crowd, Issuing, Member, Opened};
use fluvial_tests::wait::wait_for;
use serde_json::{Value, json};

/// Changes that a member does not read, and how long each is in its assignment: 2.4 MB, many times what may be under way.
const CHANGES: usize = 40;
const CHANGE_BYTES: usize = 60_000;

fn placement(spec: &Value) -> String {
    let metadata = json!({ "name": "here", "namespace": "default" });
    json!({ "apiVersion": "fluvial.io/v1alpha1", "kind": "Placement", "metadata": metadata, "spec": spec }).to_string()
}

fn state_since(api: &Api, cluster: &str) -> Value {
    api.get("cluster", cluster).unwrap()["status"]["stateSince"].clone()
}

#[test]
fn a_place_goes_to_another_cluster_for_good_and_nothing_is_taken_from_the_one_that_is_silent() {
    let mut federation = Federation::start(3, &["a", "b"]);
    let source = federation.folder().join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    let api = federation.api.clone();
    api.path_dataset("set", &source);
    let spec = json!({ "datasets": { "names": ["set"] }, "clusters": { "count": 1 }, "failoverAfter": "3s" });
    api.apply(&placement(&spec)).unwrap();
    let chosen = |expected: Value| {
        api.wait_until("placement", "here", "/status/clusters", |clusters| *clusters == expected);
    };
    let cached = |name: &str| {
        api.wait_until("cachelocation", name, "/status/phase", |phase| phase == "Ready");
    };
    chosen(json!(["a"]));
    cached("set.a");
    let since = state_since(&api, "b");

    federation.kill_member("a");
    api.wait_until("cluster", "a", "/status/state", |state| state == "Suspect");
    assert_eq!(api.get("placement", "here").unwrap()["status"]["clusters"], json!(["a"]), "suspicion moves nothing");
    chosen(json!(["a", "b"]));
    cached("set.b");
    assert!(api.get("cachelocation", "set.a").is_some(), "the silent cluster may still have it");

    // Another leader has not heard of `b`, if that is connected to a third hub, and does not suspect it for that.
    let leader = federation.leader();
    federation.kill_hub(leader);
    let witness = leader % 3 + 1;
    wait_for(DEADLINE, "another leader", || match federation.leader_seen_by(witness)? {
        new if new == leader => Err(format!("{new} leads")),
        new => Ok(new),
    });
    federation.run_hub(leader);
    wait_for(DEADLINE, "the killed hub to answer", || federation.on(leader, &["get", "namespace", "default"]));

    federation.run_member("a");
    api.wait_until("cluster", "a", "/status/state", |state| state == "Ready");
    // The one that came back gives up what another one has; `b`, which never went, keeps it.
    chosen(json!(["b"]));
    wait_for(DEADLINE, "the cache of `a` to go", || match api.get("cachelocation", "set.a") {
        None => Ok(()),
        Some(location) => Err(location),
    });
    cached("set.b");
    assert_eq!(state_since(&api, "b"), since, "`b` was never suspected");
}

/// Paths that are long enough, and begin with a name to be found by.
fn paths(name: &str) -> Value {
    let filling = (0..CHANGE_BYTES / 200).map(|n| format!("{name}/{n:0190}"));
    filling.collect::<Vec<_>>().into()
}

/// Says that it lives, for ever.
async fn beat(out: tokio::sync::mpsc::Sender<v1::AgentMessage>) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    for sequence in 1.. {
        every.tick().await;
        let message = v1::AgentMessage { message: Some(Said::Heartbeat(v1::Heartbeat { sequence })) };
        if out.send(message).await.is_err() {
            return;
        }
    }
}

/// Reads until an assignment names `last`, and then until the hub says that this was all. The number of assignments.
async fn read_until(opened: &mut Opened, last: &str) -> usize {
    let (mut assignments, mut found) = (0, false);
    let reading = async {
        loop {
            match opened.heard.message().await.unwrap().unwrap().message.unwrap() {
                Heard::Assign(assign) => {
                    assignments += 1;
                    found |= String::from_utf8_lossy(&assign.work).contains(last);
                }
                Heard::Synced(_) if found => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.expect("the last change arrives");
    assignments
}

fn resident_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_read_costs_little_and_gets_the_last_word() {
    let federation = tokio::task::spawn_blocking(|| Federation::start(1, &["steady"])).await.unwrap();
    let source = federation.folder().join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    let api = federation.api.clone();
    // Listed by the one member that works.
    tokio::task::block_in_place(|| api.path_dataset("set", &source));
    let hubs = vec![federation.urls[0].trim_start_matches("https://").to_owned()];
    let issuing = Issuing::of_hub(&federation.hub_dir(1)).unwrap();
    let crowd = Arc::new(Crowd::default());
    let mut opened = Vec::new();
    for cluster in ["slow", "brisk"] {
        let object = json!({ "apiVersion": "fluvial.io/v1alpha1", "kind": "Cluster", "metadata": { "name": cluster } });
        tokio::task::block_in_place(|| api.apply(&object.to_string())).unwrap();
        let member = Member::of(cluster, &issuing, &hubs, &crowd).unwrap();
        let session = member.open(&hubs[0], 0, 0).await.unwrap();
        tokio::spawn(beat(session.out.clone()));
        opened.push((member, session));
    }
    let [(slow_member, mut slow), (_, mut brisk)] = <[_; 2]>::try_from(opened).ok().unwrap();
    let ready = |cluster: &str| {
        tokio::task::block_in_place(|| api.wait_until("cluster", cluster, "/status/state", |state| state == "Ready"));
    };
    ["slow", "brisk"].into_iter().for_each(ready);
    let spec = json!({ "datasets": { "names": ["set"] }, "clusters": { "names": ["slow", "brisk"] } });
    tokio::task::block_in_place(|| api.apply(&placement(&spec))).unwrap();

    let before = resident_kib(federation.hub_process(1));
    for change in 1..=CHANGES {
        let name = format!("change-{change}-");
        let patch = json!({ "spec": { "paths": paths(&name) } }).to_string();
        tokio::task::block_in_place(|| api.kubectl(&["patch", "placement", "here", "--type", "merge", "-p", &patch]))
            .unwrap();
        // Whoever reads has each of them, whatever another one does.
        assert!(read_until(&mut brisk, &name).await > 0);
    }
    let grown = resident_kib(federation.hub_process(1)).saturating_sub(before);
    assert!(grown < 48 * 1024, "the hub has grown by {grown} KiB");

    let last = format!("change-{CHANGES}-");
    let read = read_until(&mut slow, &last).await;
    assert!(read < CHANGES, "{read} assignments: what was overtaken is not sent");

    // It has acknowledged nothing. Whoever comes back knowing what it knew then hears it again.
    let (epoch, cursor) = (slow.welcome.epoch, 1);
    drop(slow);
    let mut again = slow_member.open(&hubs[0], epoch, cursor).await.unwrap();
    read_until(&mut again, &last).await;
}
