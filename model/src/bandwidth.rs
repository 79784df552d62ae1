//! ③ What Links mean: the share of each transfer in the bandwidth of its way, and how long it takes and what it costs.
//!
//! A transfer is on a Link if it reads in a cluster at the Link's `from` and writes in another one at its `to`. A cap is
//! divided equally among the transfers on its Link; of several caps the one that leaves least counts. What a transfer
//! cannot use, because another Link of its way leaves it less, is not given to others: shares depend on nothing that
//! changes from moment to moment, and never add up to more than a cap.
//!
//! Deliberately absent: who is told when (`hub`), and holding to it (`member-agent`).

use std::collections::BTreeMap;

use crate::kinds::link::LinkEnd;
use crate::kinds::{Cluster, DataMigrate, Link, OperationPhase};

/// What a share falls to at least when nobody renews it, in bytes per second.
pub const FLOOR: u64 = 64 << 10;

/// Bytes on the way from one cluster to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// The uid of the operation.
    pub operation: String,
    /// The cluster whose agent moves the bytes, and is told what it may.
    pub executor: String,
    /// Empty if the source belongs to no cluster.
    pub from: String,
    pub to: String,
}

impl Transfer {
    /// The transfer of a migration, while an agent has its work.
    #[must_use]
    pub fn of(operation: &DataMigrate) -> Option<Self> {
        let status = operation.status.as_ref().filter(|status| status.phase == OperationPhase::Executing)?;
        let plan = status.plan.as_ref()?;
        Some(Self {
            operation: operation.metadata.uid.clone(),
            executor: plan.executor.clone(),
            from: plan.from_cluster.clone(),
            to: plan.to_cluster.clone(),
        })
    }
}

/// The Links on the way from one cluster to another, by name. Bytes that stay in a cluster are on none.
pub fn on_way<'a>(
    links: &'a BTreeMap<String, Link>,
    clusters: &'a BTreeMap<String, Cluster>,
    from: &'a str,
    to: &'a str,
) -> impl Iterator<Item = (&'a str, &'a Link)> {
    links.iter().filter_map(move |(name, link)| {
        let here = LinkEnd::of(&link.spec.from).holds(from, clusters.get(from));
        let there = LinkEnd::of(&link.spec.to).holds(to, clusters.get(to));
        (from != to && here && there).then_some((name.as_str(), link))
    })
}

/// The most bytes per second that each transfer may move, in their order; `None` where no Link has a cap.
#[must_use]
pub fn shares(
    links: &BTreeMap<String, Link>,
    clusters: &BTreeMap<String, Cluster>,
    transfers: &[Transfer],
) -> Vec<Option<u64>> {
    let caps = |transfer: &Transfer| -> Vec<(String, u64)> {
        on_way(links, clusters, &transfer.from, &transfer.to)
            .filter_map(|(name, link)| Some((name.to_owned(), link.spec.bandwidth_bytes_per_second?)))
            .collect()
    };
    let ways: Vec<_> = transfers.iter().map(caps).collect();
    let mut users: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, _) in ways.iter().flatten() {
        *users.entry(name).or_default() += 1;
    }
    // A cap is at least 64 Ki, and fewer transfers than that run: nobody's share is nothing.
    let share = |(name, cap): &(String, u64)| (cap / users.get(name.as_str()).copied().unwrap_or(1)).max(1);
    ways.iter().map(|way| way.iter().map(share).min()).collect()
}

/// What is left of a share that was not renewed in time: a tenth, but [`FLOOR`] if the share had so much. Whoever is cut
/// off soon takes little of what others use now, and still comes to an end.
#[must_use]
pub fn lapsed(share: u64) -> u64 {
    (share / 10).max(FLOOR).min(share)
}

/// What is known beforehand of a transfer that has its way to itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Forecast {
    /// At the smallest cap; `None` without one.
    pub seconds: Option<f64>,
    /// At the highest price; `None` without one.
    pub cost: Option<f64>,
    /// Which Links say so.
    pub reasons: Vec<String>,
}

/// How long `bytes` take and what they cost at least, if the Links tell. Of several prices the highest counts.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "figures for people")]
pub fn forecast(
    links: &BTreeMap<String, Link>,
    clusters: &BTreeMap<String, Cluster>,
    from: &str,
    to: &str,
    bytes: u64,
) -> Forecast {
    let way = || on_way(links, clusters, from, to);
    let caps = way().filter_map(|(name, link)| Some((link.spec.bandwidth_bytes_per_second?, name)));
    let prices = way().filter_map(|(name, link)| Some((link.spec.egress_price_per_gb?, name)));
    let mut forecast = Forecast::default();
    if let Some((cap, name)) = caps.min() {
        forecast.seconds = Some(bytes as f64 / cap as f64);
        forecast
            .reasons
            .push(format!("link {name} carries at most {cap} bytes per second, for all transfers together"));
    }
    if let Some((price, name)) = prices.max_by(|a, b| a.0.total_cmp(&b.0)) {
        forecast.cost = Some(bytes as f64 / 1e9 * price);
        forecast.reasons.push(format!("link {name} costs {price} per GB"));
    }
    forecast
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::cluster::CLOUD_LABEL;
    use crate::kinds::link::{LinkSpec, MIN_BANDWIDTH};
    use crate::kinds::{ClusterSpec, DataMigrateSpec};

    /// From, to, cap and price.
    type Drawn = (&'static str, &'static str, Option<u64>, Option<f64>);

    fn links(all: &[Drawn]) -> BTreeMap<String, Link> {
        let link = |(number, drawn): (usize, &Drawn)| {
            let spec = LinkSpec {
                from: drawn.0.to_owned(),
                to: drawn.1.to_owned(),
                bandwidth_bytes_per_second: drawn.2,
                egress_price_per_gb: drawn.3,
            };
            let name = format!("link-{number}");
            (name.clone(), Link::new("", &name, spec))
        };
        all.iter().enumerate().map(link).collect()
    }

    /// `a1` and `a2` are in cloud `a`, `b1` in cloud `b`, `c1` in none.
    fn clusters() -> BTreeMap<String, Cluster> {
        let cluster = |(name, cloud): (&str, Option<&str>)| {
            let mut cluster = Cluster::new("", name, ClusterSpec::default());
            cluster.metadata.labels.extend(cloud.map(|cloud| (CLOUD_LABEL.to_owned(), cloud.to_owned())));
            (name.to_owned(), cluster)
        };
        [("a1", Some("a")), ("a2", Some("a")), ("b1", Some("b")), ("c1", None)].into_iter().map(cluster).collect()
    }

    fn transfer(from: &str, to: &str) -> Transfer {
        Transfer { operation: String::new(), executor: to.to_owned(), from: from.to_owned(), to: to.to_owned() }
    }

    #[test]
    fn the_smallest_share_of_all_links_on_the_way_counts() {
        let links = links(&[
            ("cloud:a", "*", Some(10 << 20), None),
            ("a1", "b1", Some(8 << 20), None),
            ("b1", "a1", Some(1 << 20), None),
            ("*", "c1", None, None),
        ]);
        let transfers = [transfer("a1", "b1"), transfer("a2", "c1"), transfer("b1", "c1"), transfer("", "b1")];
        let shares = shares(&links, &clusters(), &transfers);
        assert_eq!(shares, [Some(5 << 20), Some(5 << 20), None, None]);
    }

    #[test]
    fn bytes_that_stay_in_a_cluster_are_on_no_link() {
        let links = links(&[("*", "*", Some(MIN_BANDWIDTH), None)]);
        let transfers = [transfer("a1", "a1"), transfer("", "a1"), transfer("gone", "a1")];
        assert_eq!(shares(&links, &clusters(), &transfers), [None, Some(MIN_BANDWIDTH / 2), Some(MIN_BANDWIDTH / 2)]);
    }

    #[test]
    fn a_forecast_names_the_links_that_it_comes_from() {
        let links = links(&[
            ("a1", "*", Some(1000), Some(0.02)),
            ("*", "b1", Some(500), Some(0.09)),
            ("b1", "a1", Some(1), Some(9.0)),
        ]);
        let known = forecast(&links, &clusters(), "a1", "b1", 2_000_000_000);
        assert_eq!((known.seconds, known.cost), (Some(4_000_000.0), Some(0.18)));
        assert!(known.reasons.iter().all(|reason| reason.contains("link-1")), "{:?}", known.reasons);
        assert_eq!(forecast(&links, &clusters(), "c1", "a2", 5), Forecast::default());
    }

    #[test]
    fn a_transfer_is_what_an_agent_works_on() {
        let mut operation = DataMigrate::new("default", "m", DataMigrateSpec::default());
        assert_eq!(Transfer::of(&operation), None);
        let mut status = crate::kinds::DataMigrateStatus { phase: OperationPhase::Executing, ..Default::default() };
        status.plan = Some(crate::kinds::datamigrate::MigratePlan {
            executor: "b1".to_owned(),
            from_cluster: "a1".to_owned(),
            to_cluster: "b1".to_owned(),
            ..Default::default()
        });
        operation.status = Some(status.clone());
        assert_eq!(Transfer::of(&operation), Some(transfer("a1", "b1")));
        operation.status = Some(crate::kinds::DataMigrateStatus { phase: OperationPhase::Complete, ..status });
        assert_eq!(Transfer::of(&operation), None);
    }

    fn end() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["*", "cloud:a", "cloud:b", "a1", "a2", "b1", "c1"])
    }

    fn cluster() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", "a1", "a2", "b1", "c1"])
    }

    proptest! {
        #[test]
        fn shares_never_add_up_to_more_than_a_cap_and_are_equal_on_one_way(
            links_drawn in prop::collection::vec((end(), end(), prop::option::of(MIN_BANDWIDTH..1 << 40)), 0..6),
            ways in prop::collection::vec((cluster(), cluster()), 0..40),
        ) {
            let drawn: Vec<_> = links_drawn.iter().map(|&(from, to, cap)| (from, to, cap, None)).collect();
            let (links, clusters) = (links(&drawn), clusters());
            let transfers: Vec<_> = ways.iter().map(|(from, to)| transfer(from, to)).collect();
            let shares = shares(&links, &clusters, &transfers);
            prop_assert_eq!(shares.len(), transfers.len());
            let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
            for (transfer, share) in transfers.iter().zip(&shares) {
                let capped = on_way(&links, &clusters, &transfer.from, &transfer.to)
                    .filter(|(_, link)| link.spec.bandwidth_bytes_per_second.is_some());
                let capped: Vec<_> = capped.map(|(name, _)| name).collect();
                prop_assert_eq!(share.is_some(), !capped.is_empty());
                prop_assert!(*share != Some(0));
                for name in capped {
                    *sums.entry(name).or_default() += share.unwrap_or(0);
                }
                for (other, its) in transfers.iter().zip(&shares) {
                    prop_assert!((&other.from, &other.to) != (&transfer.from, &transfer.to) || its == share);
                }
            }
            for (name, sum) in sums {
                prop_assert!(Some(sum) <= links[name].spec.bandwidth_bytes_per_second, "{name}: {sum}");
            }
        }

        #[test]
        fn a_share_that_lapsed_is_smaller_but_something(share in 1..=u64::MAX) {
            let left = lapsed(share);
            prop_assert!(left >= 1 && left <= share);
            prop_assert!(share <= FLOOR * 10 || left == share / 10);
        }
    }
}
