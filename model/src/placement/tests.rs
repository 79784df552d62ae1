//! Tables and properties of choosing clusters.

use proptest::prelude::*;

use super::*;
use crate::kinds::{ClusterSpec, ClusterStatus};
use crate::selector::LabelSelector;

fn cluster(name: &str, cloud: &str, state: ClusterState) -> Cluster {
    let mut cluster = Cluster::new("", name, ClusterSpec::default());
    cluster.metadata.labels.insert(CLOUD_LABEL.to_owned(), cloud.to_owned());
    cluster.status = Some(ClusterStatus { state, ..ClusterStatus::default() });
    cluster
}

fn three() -> Vec<Cluster> {
    vec![
        cluster("a1", "a", ClusterState::Ready),
        cluster("a2", "a", ClusterState::Ready),
        cluster("b1", "b", ClusterState::Ready),
    ]
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn names_labels_count_and_spread_are_kept() {
    let all = three();
    let named = ClusterChoice { names: vec!["b1".into(), "nowhere".into()], ..Default::default() };
    assert_eq!(place(&named, &all, &[], None).clusters, ["b1"]);
    let labelled =
        ClusterChoice { selector: Some(LabelSelector::parse("fluvial.io/cloud=a").unwrap()), ..Default::default() };
    assert_eq!(place(&labelled, &all, &[], None).clusters, ["a1", "a2"]);
    let spread = ClusterChoice { count: Some(2), spread_by: "cloud".into(), ..Default::default() };
    let decision = place(&spread, &all, &[], None);
    assert_eq!(decision.clusters, ["a1", "b1"]);
    assert_eq!(decision.reasons["a2"], "not chosen: fits, but 2 of 3 are enough");
}

#[test]
fn a_silent_holder_keeps_it_and_a_silent_stranger_does_not_get_it() {
    let all = [cluster("a", "x", ClusterState::Unreachable), cluster("b", "x", ClusterState::Ready)];
    assert_eq!(place(&ClusterChoice::default(), &all, &names(&["a"]), None).clusters, ["a", "b"]);
    assert_eq!(place(&ClusterChoice::default(), &all, &[], None).clusters, ["b"]);
}

#[test]
fn a_drained_cluster_loses_it() {
    let mut all = three();
    all[0].spec.drain = true;
    assert_eq!(place(&ClusterChoice::default(), &all, &names(&["a1"]), None).clusters, ["a2", "b1"]);
}

/// One cluster's story: its state, for how many seconds.
fn stands(name: &str, state: ClusterState, seconds: i64) -> Cluster {
    let mut cluster = cluster(name, "x", state);
    let since = now().checked_sub(SignedDuration::from_secs(seconds)).unwrap();
    cluster.status.as_mut().unwrap().state_since = Some(since);
    cluster
}

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

#[test]
fn a_place_goes_to_another_cluster_after_a_time_and_nothing_is_taken_away_meanwhile() {
    use ClusterState::{Ready, Suspect, Unreachable};
    let after = SignedDuration::from_secs(60);
    let two = ClusterChoice { count: Some(2), ..Default::default() };
    // What `a`, `b` and `c` are, for how long; who was chosen; who is; and in how many seconds it is to be asked again.
    #[rustfmt::skip]
    let table = [
        ("all is well",                [(Ready, 900), (Ready, 900), (Ready, 900)],           "ab",  "ab",  None),
        ("suspicion moves nothing",    [(Ready, 900), (Suspect, 900), (Ready, 900)],         "ab",  "ab",  None),
        ("not long enough",            [(Ready, 900), (Unreachable, 59), (Ready, 900)],      "ab",  "ab",  Some(1)),
        ("long enough",                [(Ready, 900), (Unreachable, 60), (Ready, 900)],      "ab",  "abc", None),
        ("and again",                  [(Ready, 900), (Unreachable, 999), (Ready, 900)],     "abc", "abc", None),
        ("it is back",                 [(Ready, 900), (Ready, 1), (Ready, 900)],             "abc", "abc", Some(59)),
        ("it flaps",                   [(Ready, 900), (Unreachable, 3), (Ready, 900)],       "abc", "abc", Some(57)),
        ("it is back for good",        [(Ready, 900), (Ready, 60), (Ready, 900)],            "abc", "ac",  None),
        ("and is chosen no more",      [(Ready, 900), (Ready, 600), (Ready, 900)],           "ac",  "ac",  None),
        ("now the other one is gone",  [(Ready, 900), (Ready, 600), (Unreachable, 70)],      "ac",  "abc", None),
        ("nobody is left to take it",  [(Ready, 900), (Unreachable, 70), (Unreachable, 70)], "ab",  "ab",  None),
        ("all are gone: all are kept", [(Unreachable, 70), (Unreachable, 70), (Ready, 1)],   "ab",  "abc", None),
    ];
    for (what, states, previous, expected, again) in table {
        let all: Vec<Cluster> =
            ["a", "b", "c"].iter().zip(states).map(|(name, (state, for_))| stands(name, state, for_)).collect();
        let previous: Vec<String> = previous.chars().map(String::from).collect();
        let decision = place(&two, &all, &previous, Some(Failover { after, now: now() }));
        assert_eq!(decision.clusters.concat(), expected, "{what}: {:?}", decision.reasons);
        let again = again.map(|seconds| now().checked_add(SignedDuration::from_secs(seconds)).unwrap());
        assert_eq!(decision.again, again, "{what}");
        assert_eq!(decision.reasons.len(), 3, "{what}");
    }
}

#[test]
fn of_many_reasons_those_are_told_that_are_asked_for() {
    let mut all: Vec<Cluster> = (0..500).map(|n| cluster(&format!("c{n:03}"), "x", ClusterState::Ready)).collect();
    all[7].spec.drain = true;
    let decision = place(&ClusterChoice::default(), &all, &[], None);
    assert_eq!(decision.told(500), decision.reasons);
    let told = decision.told(10);
    assert_eq!(told["c007"], "not chosen: it is being drained or removed");
    assert_eq!(told["*"], "490 more clusters are chosen, 0 more are not");
    assert_eq!(told.len(), 11);
}

proptest! {
    #[test]
    fn placing_again_changes_nothing_and_explains_everything(
        facts in prop::collection::btree_map("[a-z]{1,3}", (0..3_u8, 0..5_u8, 0..200_i64), 0..12),
        count in prop::option::of(1..6_u32),
        spread in any::<bool>(),
        failover in any::<bool>(),
    ) {
        let states = [ClusterState::Pending, ClusterState::Ready, ClusterState::Suspect, ClusterState::Unreachable, ClusterState::Leaving];
        let all: Vec<_> = facts.iter()
            .map(|(name, (cloud, state, since))| {
                let mut cluster = stands(name, states[usize::from(*state)], *since);
                cluster.metadata.labels.insert(CLOUD_LABEL.to_owned(), format!("c{cloud}"));
                cluster
            })
            .collect();
        let choice = ClusterChoice { count, spread_by: if spread { "cloud".into() } else { String::new() }, ..Default::default() };
        let failover = failover.then(|| Failover { after: SignedDuration::from_secs(100), now: now() });
        let first = place(&choice, &all, &[], failover);
        let second = place(&choice, &all, &first.clusters, failover);
        prop_assert_eq!(&first.clusters, &second.clusters);
        prop_assert_eq!(first.reasons.len(), all.len());
        prop_assert!(count.is_none_or(|n| first.clusters.len() <= n as usize));
    }

    #[test]
    fn who_holds_it_loses_it_only_to_somebody_who_is_there(
        states in prop::collection::vec((1..4_usize, 0..200_i64, any::<bool>()), 1..10),
        count in 1..5_u32,
    ) {
        let of = [ClusterState::Pending, ClusterState::Ready, ClusterState::Suspect, ClusterState::Unreachable];
        let all: Vec<_> = states.iter().enumerate()
            .map(|(n, (state, since, _))| stands(&format!("c{n}"), of[*state], *since))
            .collect();
        let previous: Vec<String> = states.iter().enumerate()
            .filter(|(_, (.., held))| *held)
            .map(|(n, _)| format!("c{n}"))
            .collect();
        let choice = ClusterChoice { count: Some(count), ..Default::default() };
        let failover = Failover { after: SignedDuration::from_secs(100), now: now() };
        let decision = place(&choice, &all, &previous, Some(failover));
        let lost = previous.iter().filter(|name| !decision.clusters.contains(name)).count();
        let there = all.iter()
            .filter(|c| decision.clusters.contains(&c.metadata.name) && c.state() != ClusterState::Unreachable)
            .count();
        prop_assert!(lost == 0 || there >= count as usize, "{:?}", decision.reasons);
    }
}
