//! Hubs that are ended in order, one after the other, as an upgrade does it, while clients write, read and watch.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use fluvial_tests::clients::Clients;
use fluvial_tests::federation::{Api, DEADLINE, Federation};
use fluvial_tests::wait::wait_for;

const HUBS: &str = "/apis/fluvial.io/v1alpha1/hubs";

/// Waits until so many more writes were acknowledged.
#[track_caller]
fn go_on(clients: &Clients, more: u64) {
    let aim = clients.acknowledged() + more;
    wait_for(DEADLINE, "writes to be acknowledged", || {
        let now = clients.acknowledged();
        if now >= aim { Ok(()) } else { Err(now) }
    });
}

#[test]
fn hubs_that_are_restarted_one_after_the_other_under_load_lose_nothing() {
    let mut federation = Federation::start(3, &[]);
    let clients = Clients::start(&federation, &federation.running(), 6, 4);
    go_on(&clients, 50);
    // The leader each time, and then whoever is left: every hub once, and at least one that leads.
    let mut waiting = vec![1, 2, 3];
    while !waiting.is_empty() {
        let leader = federation.leader();
        let hub = if waiting.contains(&leader) { leader } else { waiting[0] };
        waiting.retain(|other| *other != hub);
        let ended = federation.stop_hub(hub);
        assert_eq!(ended.code(), Some(0), "hub {hub}: {}", federation.last_said(&format!("hub-{hub}")).join("\n"));
        let log = federation.log(&format!("hub-{hub}"));
        assert!(!log.contains("no other hub took over"), "{log}");
        go_on(&clients, 50);
        federation.run_hub(hub);
        wait_for(DEADLINE, "the hub is back", || federation.on(hub, &["get", "namespace", "default"]));
        go_on(&clients, 50);
    }
    let outcome = clients.judge();
    assert!(outcome.writes + outcome.reads > 300, "{outcome:?}");
    eprintln!("{outcome:?}");
}

#[test]
fn a_leader_that_is_removed_hands_over_first_and_no_write_fails() {
    let mut federation = Federation::start(3, &[]);
    let leader = federation.leader();
    let others: Vec<usize> = (1..=3).filter(|hub| *hub != leader).collect();
    let link = |name: &str| {
        format!(
            "apiVersion: fluvial.io/v1alpha1\nkind: Link\nmetadata: {{name: {name}}}\nspec: {{from: '*', to: '*'}}\n"
        )
    };
    let file = federation.folder().join("link.yaml");
    let created = |number: usize, federation: &Federation| {
        std::fs::write(&file, link(&format!("l{number}"))).unwrap();
        federation.on(others[number % 2], &["create", "-f", file.to_str().unwrap()]).unwrap();
    };
    created(0, &federation);
    // Says that it is out when it is; meanwhile others write.
    let id = format!("hub-{leader}");
    // By way of a hub that stays: the one that leaves does not see it through.
    let kubeconfig = federation.folder().join("others.kubeconfig");
    let text = std::fs::read_to_string(&federation.api.kubeconfig).unwrap();
    std::fs::write(&kubeconfig, text.replace(&federation.urls[0], &federation.urls[others[0] - 1])).unwrap();
    let mut removing = Api { kubeconfig }.command().args(["hub", "remove", &id, "--timeout", "60s"]).spawn().unwrap();
    let mut number = 1;
    while removing.try_wait().unwrap().is_none() || number < 10 {
        created(number, &federation);
        number += 1;
    }
    assert!(removing.wait().unwrap().success());
    let members = federation.on(others[0], &["get", "--raw", HUBS]).unwrap();
    assert!(!members.contains(&format!("\"{id}\"")) && members.matches("\"voter\"").count() == 2, "{members}");
    assert_ne!(federation.leader_seen_by(others[0]).unwrap(), leader);
    let all = federation.on(others[1], &["get", "links", "-o", "name"]).unwrap();
    assert_eq!(all.lines().count(), number, "{all}");
    federation.kill_hub(leader);
    created(number, &federation);
}
