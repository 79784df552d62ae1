//! ① Placement: which datasets are cached in which clusters.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FLUVIAL_GROUP, VERSION};
use crate::catalog::{Cell, Row};
use crate::field::{FieldErrors, Path};
use crate::meta::Condition;
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};
use crate::selector::LabelSelector;

object!(
    /// A wish: these datasets in those clusters.
    Placement,
    PlacementSpec,
    PlacementStatus
);

/// Which datasets, where.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PlacementSpec {
    pub datasets: DatasetChoice,
    pub clusters: ClusterChoice,
    /// Paths of the dataset to cache; all if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// How long a cluster must be Unreachable until another one takes its place, such as `5m`; never, if not given. A
    /// cluster that came back gives its place up only after it was there for as long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_after: Option<String>,
    /// Never evict.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
}

/// Datasets of the Placement's namespace, by name or by labels. Nothing given is nothing chosen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DatasetChoice {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// Clusters by name or labels, how many of them, and over what to spread.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterChoice {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// How many of the clusters that fit; all if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// The label whose values to spread over, or `cloud`, `region` or `zone`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub spread_by: String,
    /// Taint keys that do not keep the datasets away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<String>,
}

/// What was decided, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PlacementStatus {
    pub observed_generation: i64,
    /// The clusters chosen.
    pub clusters: Vec<String>,
    /// How many datasets the Placement chooses.
    pub datasets: u64,
    /// One line for each cluster: chosen or not, and why. Of a large fleet, as many as are of use, and under `*` how many
    /// there are beside.
    pub reasons: BTreeMap<String, String>,
    pub conditions: Vec<Condition>,
}

impl Resource for Placement {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "Placement",
        plural: "placements",
        singular: "placement",
        short_names: &["pl"],
        categories: &["fluvial"],
        scope: Scope::Namespaced,
        writers: Writers::Users,
        status: true,
        name_rule: NameRule::Dns1123Subdomain,
        columns: &[
            PrinterColumn { name: "Datasets", kind: "integer", pointer: "/status/datasets", priority: 0 },
            PrinterColumn { name: "Clusters", kind: "string", pointer: "/status/clusters", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, _old: Option<&Self>, errors: &mut FieldErrors) {
        let spec = Path::root("spec");
        let datasets = spec.key("datasets");
        if self.spec.datasets.names.is_empty() && self.spec.datasets.selector.is_none() {
            errors.required(&datasets, "names or a selector");
        }
        let selectors =
            [(&self.spec.datasets.selector, datasets), (&self.spec.clusters.selector, spec.key("clusters"))];
        for (selector, at) in selectors {
            if let Some(selector) = selector {
                selector.validate(&at.key("selector"), errors);
            }
        }
        if self.spec.clusters.count == Some(0) {
            errors.push(&spec.key("clusters").key("count"), "must be at least 1; leave it out for all that fit");
        }
        if let Some(text) = &self.spec.failover_after
            && self.failover_after().is_none()
        {
            errors.invalid(
                &spec.key("failoverAfter"),
                text,
                "must be a duration from 1s to 366 days, such as 5m or 1h",
            );
        }
        for (i, path) in self.spec.paths.iter().enumerate() {
            let trimmed = path.trim_matches('/');
            let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
            if !trimmed.is_empty() && trimmed.split('/').any(bad) {
                errors.invalid(&spec.key("paths").index(i), path, "must be a path without '..' or empty parts");
            }
        }
    }

    fn project(&self) -> Vec<Row> {
        let status = self.status.clone().unwrap_or_default();
        vec![Row {
            table: "placements",
            cells: vec![
                Cell::text(&self.metadata.namespace),
                Cell::text(&self.metadata.name),
                Cell::integer(status.datasets),
                Cell::json(&status.clusters),
                self.spec.clusters.count.map_or(Cell::Null, |n| Cell::Integer(i64::from(n))),
                Cell::text(&self.spec.clusters.spread_by),
                Cell::Integer(i64::from(self.spec.pinned)),
                Cell::json(&status.reasons),
            ],
        }]
    }
}

impl Placement {
    /// After how long another cluster takes the place of one that is Unreachable, if ever.
    #[must_use]
    pub fn failover_after(&self) -> Option<SignedDuration> {
        let after: SignedDuration = self.spec.failover_after.as_ref()?.trim().parse().ok()?;
        (SignedDuration::from_secs(1)..=SignedDuration::from_hours(366 * 24)).contains(&after).then_some(after)
    }
}
