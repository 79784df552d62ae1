//! ③ Placement: which clusters a wish chooses, and why. A pure function with its reasons.
//!
//! Invariants: the same facts give the same answer; asking again with the answer as `previous` changes nothing; a
//! cluster that holds the data and is only silent keeps it, for nothing is taken away on suspicion.

use std::collections::BTreeMap;

use crate::kinds::cluster::{CLOUD_LABEL, REGION_LABEL, ZONE_LABEL};
use crate::kinds::placement::{ClusterChoice, DatasetChoice};
use crate::kinds::{Cluster, ClusterState, Dataset};

/// The clusters chosen, in order of name, and one reason for every cluster there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    pub clusters: Vec<String>,
    pub reasons: BTreeMap<String, String>,
}

/// Whether a Placement's choice of datasets includes this one.
#[must_use]
pub fn chooses(choice: &DatasetChoice, dataset: &Dataset) -> bool {
    choice.names.contains(&dataset.metadata.name)
        || choice.selector.as_ref().is_some_and(|s| s.matches(&dataset.metadata.labels))
}

/// Chooses clusters. `previous` is what was chosen last time.
#[must_use]
pub fn place<'a>(
    choice: &ClusterChoice,
    clusters: impl IntoIterator<Item = &'a Cluster>,
    previous: &[String],
) -> Decision {
    let mut decision = Decision::default();
    let mut fitting: Vec<&Cluster> = Vec::new();
    for cluster in clusters {
        match refusal(choice, cluster, previous) {
            Some(reason) => {
                decision.reasons.insert(cluster.metadata.name.clone(), format!("not chosen: {reason}"));
            }
            None => fitting.push(cluster),
        }
    }
    let wanted = choice.count.map_or(fitting.len(), |n| usize::try_from(n).unwrap_or(usize::MAX));
    let spread_label = spread_label(&choice.spread_by);
    let domain =
        |cluster: &Cluster| spread_label.and_then(|label| cluster.labels().get(label)).cloned().unwrap_or_default();
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    while decision.clusters.len() < wanted && !fitting.is_empty() {
        // The emptiest domain first, then who has it already, then Ready before Suspect, then by name.
        let rank = |cluster: &&Cluster| {
            (
                used.get(&domain(cluster)).copied().unwrap_or(0),
                !previous.contains(&cluster.metadata.name),
                cluster.state(),
                cluster.metadata.name.clone(),
            )
        };
        let Some(best) = (0..fitting.len()).min_by_key(|i| rank(&fitting[*i])) else { break };
        let cluster = fitting.swap_remove(best);
        let name = cluster.metadata.name.clone();
        *used.entry(domain(cluster)).or_default() += 1;
        decision.reasons.insert(name.clone(), chosen_reason(cluster, spread_label, &domain(cluster), previous));
        decision.clusters.push(name);
    }
    for cluster in fitting {
        let reason = format!("not chosen: fits, but {wanted} of {} are enough", wanted + 1);
        decision.reasons.insert(cluster.metadata.name.clone(), reason);
    }
    decision.clusters.sort();
    decision
}

fn chosen_reason(cluster: &Cluster, label: Option<&str>, domain: &str, previous: &[String]) -> String {
    let mut reason = "chosen".to_owned();
    if let Some(label) = label {
        reason.push_str(&format!(": {label}={domain}"));
    }
    if previous.contains(&cluster.metadata.name) {
        reason.push_str(", holds it already");
    }
    if cluster.state() != ClusterState::Ready {
        reason.push_str(&format!(", although it is {}: nothing is taken away on suspicion", cluster.state().as_str()));
    }
    reason
}

/// Why a cluster does not fit, if so.
fn refusal(choice: &ClusterChoice, cluster: &Cluster, previous: &[String]) -> Option<String> {
    let name = &cluster.metadata.name;
    if !choice.names.is_empty() && !choice.names.contains(name) {
        return Some("it is not among the clusters named".to_owned());
    }
    if choice.selector.as_ref().is_some_and(|s| !s.matches(cluster.labels())) {
        return Some("its labels do not match the selector".to_owned());
    }
    if cluster.spec.drain || cluster.metadata.deletion_timestamp.is_some() {
        return Some("it is being drained or removed".to_owned());
    }
    let taint = cluster.spec.taints.iter().find(|t| !choice.tolerations.contains(&t.key));
    if let Some(taint) = taint {
        return Some(format!("taint {} is not tolerated", taint.key));
    }
    match cluster.state() {
        ClusterState::Ready => None,
        ClusterState::Suspect | ClusterState::Unreachable if previous.contains(name) => None,
        state => Some(format!("it is {}", state.as_str())),
    }
}

/// The label that a spread goes over.
fn spread_label(spread_by: &str) -> Option<&str> {
    match spread_by {
        "" => None,
        "cloud" => Some(CLOUD_LABEL),
        "region" => Some(REGION_LABEL),
        "zone" => Some(ZONE_LABEL),
        label => Some(label),
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn names_labels_count_and_spread_are_kept() {
        let all = three();
        let named = ClusterChoice { names: vec!["b1".into(), "nowhere".into()], ..Default::default() };
        assert_eq!(place(&named, &all, &[]).clusters, ["b1"]);
        let labelled =
            ClusterChoice { selector: Some(LabelSelector::parse("fluvial.io/cloud=a").unwrap()), ..Default::default() };
        assert_eq!(place(&labelled, &all, &[]).clusters, ["a1", "a2"]);
        let spread = ClusterChoice { count: Some(2), spread_by: "cloud".into(), ..Default::default() };
        let decision = place(&spread, &all, &[]);
        assert_eq!(decision.clusters, ["a1", "b1"]);
        assert_eq!(decision.reasons["a2"], "not chosen: fits, but 2 of 3 are enough");
    }

    #[test]
    fn a_silent_holder_keeps_it_and_a_silent_stranger_does_not_get_it() {
        let all = [cluster("a", "x", ClusterState::Unreachable), cluster("b", "x", ClusterState::Ready)];
        assert_eq!(place(&ClusterChoice::default(), &all, &["a".to_owned()]).clusters, ["a", "b"]);
        assert_eq!(place(&ClusterChoice::default(), &all, &[]).clusters, ["b"]);
    }

    #[test]
    fn a_drained_cluster_loses_it() {
        let mut all = three();
        all[0].spec.drain = true;
        assert_eq!(place(&ClusterChoice::default(), &all, &["a1".to_owned()]).clusters, ["a2", "b1"]);
    }

    proptest! {
        #[test]
        fn placing_again_changes_nothing_and_explains_everything(
            facts in prop::collection::btree_map("[a-z]{1,3}", (0..3_u8, 0..5_u8), 0..12),
            count in prop::option::of(1..6_u32),
            spread in any::<bool>(),
        ) {
            let states = [ClusterState::Pending, ClusterState::Ready, ClusterState::Suspect, ClusterState::Unreachable, ClusterState::Leaving];
            let all: Vec<_> = facts.iter()
                .map(|(name, (cloud, state))| cluster(name, &format!("c{cloud}"), states[usize::from(*state)]))
                .collect();
            let choice = ClusterChoice { count, spread_by: if spread { "cloud".into() } else { String::new() }, ..Default::default() };
            let first = place(&choice, &all, &[]);
            let second = place(&choice, &all, &first.clusters);
            prop_assert_eq!(&first.clusters, &second.clusters);
            prop_assert_eq!(first.reasons.len(), all.len());
            prop_assert!(count.is_none_or(|n| first.clusters.len() <= n as usize));
        }
    }
}
