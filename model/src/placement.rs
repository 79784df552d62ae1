//! ③ Placement: which clusters a wish chooses, and why. A pure function with its reasons.
//!
//! Invariants: the same facts give the same answer; asking again with the answer as `previous` changes nothing; a
//! cluster that holds the data and is only silent keeps it, for nothing is taken away on suspicion.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use jiff::{SignedDuration, Timestamp};

use crate::kinds::cluster::{CLOUD_LABEL, REGION_LABEL, ZONE_LABEL};
use crate::kinds::placement::{ClusterChoice, DatasetChoice};
use crate::kinds::{Cluster, ClusterState, Dataset};

/// The clusters chosen, in order of name, and one reason for every cluster there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    pub clusters: Vec<String>,
    pub reasons: BTreeMap<String, String>,
    /// When to ask again although nothing changed but the time.
    pub again: Option<Timestamp>,
}

impl Decision {
    /// The reasons, at most `most` of them: those of clusters that were not chosen first, for they are asked for. Under
    /// `*` stands how many there are beside.
    #[must_use]
    pub fn told(&self, most: usize) -> BTreeMap<String, String> {
        if self.reasons.len() <= most {
            return self.reasons.clone();
        }
        let is_chosen = |name: &&String| self.clusters.binary_search(name).is_ok();
        let (chosen, other): (Vec<&String>, Vec<&String>) = self.reasons.keys().partition(is_chosen);
        let named = other.iter().chain(&chosen).take(most).map(|name| ((*name).clone(), self.reasons[*name].clone()));
        let mut told: BTreeMap<String, String> = named.collect();
        let beside = chosen.len() - most.saturating_sub(other.len()).min(chosen.len());
        let silent = other.len().saturating_sub(most);
        told.insert("*".to_owned(), format!("{beside} more clusters are chosen, {silent} more are not"));
        told
    }
}

/// When a cluster's place goes to another one.
#[derive(Debug, Clone, Copy)]
pub struct Failover {
    /// How long the cluster must be Unreachable; and how long it must be back before it may lose what it holds.
    pub after: SignedDuration,
    pub now: Timestamp,
}

impl Failover {
    /// When the cluster will have been in its state for long enough; a time that is past means that it has been.
    fn settled(&self, cluster: &Cluster) -> Timestamp {
        let since = cluster.status.as_ref().and_then(|status| status.state_since);
        since.and_then(|since| since.checked_add(self.after).ok()).unwrap_or(Timestamp::MIN)
    }
}

/// Whether a Placement's choice of datasets includes this one.
#[must_use]
pub fn chooses(choice: &DatasetChoice, dataset: &Dataset) -> bool {
    choice.names.contains(&dataset.metadata.name)
        || choice.selector.as_ref().is_some_and(|s| s.matches(&dataset.metadata.labels))
}

/// Chooses clusters. `previous` is what was chosen last time; without `failover` a silent cluster keeps its place.
///
/// With it, a cluster that has been Unreachable for long enough keeps what it holds, and another one is chosen beside it.
/// If it comes back there is one too many: it goes that was there for the shortest time, once that was long enough.
#[must_use]
pub fn place<'a>(
    choice: &ClusterChoice,
    clusters: impl IntoIterator<Item = &'a Cluster>,
    previous: &[String],
    failover: Option<Failover>,
) -> Decision {
    let mut decision = Decision::default();
    let previous: BTreeSet<&str> = previous.iter().map(String::as_str).collect();
    let mut fitting: Vec<&Cluster> = Vec::new();
    for cluster in clusters {
        match refusal(choice, cluster, &previous) {
            Some(reason) => {
                decision.reasons.insert(cluster.metadata.name.clone(), format!("not chosen: {reason}"));
            }
            None => fitting.push(cluster),
        }
    }
    let wanted = choice.count.map_or(fitting.len(), |n| usize::try_from(n).unwrap_or(usize::MAX));
    if let Some(failover) = &failover {
        fitting.retain(|cluster| {
            let is_lost = cluster.state() == ClusterState::Unreachable && failover.settled(cluster) <= failover.now;
            if is_lost {
                let reason = "keeps what it holds, but is Unreachable for long: another cluster takes its place";
                decision.keep(cluster, reason.to_owned());
            } else if cluster.state() == ClusterState::Unreachable {
                decision.ask_again(failover.settled(cluster));
            }
            !is_lost
        });
    }
    let spread_label = spread_label(&choice.spread_by);
    for (place, (cluster, domain)) in ranked(fitting, spread_label, &previous).into_iter().enumerate() {
        let holds = previous.contains(cluster.metadata.name.as_str());
        if place < wanted {
            let reason = chosen_reason(cluster, spread_label, domain, holds);
            decision.keep(cluster, reason);
            continue;
        }
        match &failover {
            Some(failover) if holds && failover.settled(cluster) > failover.now => {
                decision.ask_again(failover.settled(cluster));
                let reason = format!(
                    "keeps what it holds until it has been {} for {:#}, although {wanted} others are enough",
                    cluster.state().as_str(),
                    failover.after
                );
                decision.keep(cluster, reason);
            }
            _ => {
                let reason = format!("not chosen: fits, but {wanted} of {} are enough", wanted + 1);
                decision.reasons.insert(cluster.metadata.name.clone(), reason);
            }
        }
    }
    decision.clusters.sort();
    decision
}

/// What comes first within a domain: who holds it, then Ready before Suspect, then who has been so for longest, then by
/// name.
type Rank<'a> = (bool, ClusterState, Option<Timestamp>, &'a str);

fn rank<'a>(cluster: &'a Cluster, previous: &BTreeSet<&str>) -> Rank<'a> {
    let name = cluster.metadata.name.as_str();
    let holds = previous.contains(name);
    let since = cluster.status.as_ref().and_then(|status| status.state_since).filter(|_| holds);
    (!holds, cluster.state(), since, name)
}

/// The clusters in the order in which they are chosen, each with its domain: the next one always comes from the domain
/// that has been chosen from least.
fn ranked<'a>(
    fitting: Vec<&'a Cluster>,
    label: Option<&str>,
    previous: &BTreeSet<&str>,
) -> Vec<(&'a Cluster, &'a str)> {
    let mut domains: BTreeMap<&str, Vec<&Cluster>> = BTreeMap::new();
    for cluster in &fitting {
        let domain = label.and_then(|label| cluster.labels().get(label)).map_or("", String::as_str);
        domains.entry(domain).or_default().push(cluster);
    }
    let mut heads = BinaryHeap::new();
    for (domain, clusters) in &mut domains {
        // The best one last, where it is taken from.
        clusters.sort_by_cached_key(|cluster| Reverse(rank(cluster, previous)));
        heads.extend(clusters.last().map(|best| Reverse((0_usize, rank(best, previous), *domain))));
    }
    let mut order = Vec::with_capacity(fitting.len());
    while let Some(Reverse((used, _, domain))) = heads.pop() {
        let clusters = domains.entry(domain).or_default();
        order.extend(clusters.pop().map(|cluster| (cluster, domain)));
        heads.extend(clusters.last().map(|best| Reverse((used + 1, rank(best, previous), domain))));
    }
    order
}

impl Decision {
    fn keep(&mut self, cluster: &Cluster, reason: String) {
        self.reasons.insert(cluster.metadata.name.clone(), reason);
        self.clusters.push(cluster.metadata.name.clone());
    }

    fn ask_again(&mut self, at: Timestamp) {
        self.again = Some(self.again.map_or(at, |again| again.min(at)));
    }
}

fn chosen_reason(cluster: &Cluster, label: Option<&str>, domain: &str, holds: bool) -> String {
    let mut reason = "chosen".to_owned();
    if let Some(label) = label {
        reason.push_str(&format!(": {label}={domain}"));
    }
    if holds {
        reason.push_str(", holds it already");
    }
    if cluster.state() != ClusterState::Ready {
        reason.push_str(&format!(", although it is {}: nothing is taken away on suspicion", cluster.state().as_str()));
    }
    reason
}

/// Why a cluster does not fit, if so.
fn refusal(choice: &ClusterChoice, cluster: &Cluster, previous: &BTreeSet<&str>) -> Option<String> {
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
        ClusterState::Suspect | ClusterState::Unreachable if previous.contains(name.as_str()) => None,
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
mod tests;
