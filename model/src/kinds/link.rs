//! ① Link: what the way from some clusters to others may carry, and what a byte on it costs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cluster::{CLOUD_LABEL, Cluster};
use super::{FLUVIAL_GROUP, VERSION};
use crate::catalog::{Cell, Row};
use crate::field::{FieldErrors, Path};
use crate::names::{NameRule, label_value_problem};
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

/// The smallest cap: with less, one part of a file (some MiB) would take minutes and nothing would seem to move.
pub const MIN_BANDWIDTH: u64 = 64 << 10;
/// The largest number of bytes per second that JSON's numbers and SQL's integers both carry exactly.
pub const MAX_BANDWIDTH: u64 = 1 << 53;

object!(
    /// The way from some clusters to others. One that names the same ends in reverse is another Link.
    Link,
    LinkSpec,
    LinkStatus
);

/// Its ends, its cap and its price.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LinkSpec {
    /// Where the bytes come from: a cluster's name, `cloud:NAME` for every cluster with the label
    /// `fluvial.io/cloud=NAME`, or `*` for every one.
    pub from: String,
    /// Where they go to, in the same words.
    pub to: String,
    /// The most bytes per second of all transfers over it together; no cap if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_second: Option<u64>,
    /// What a GB (10⁹ bytes) costs that goes over it.
    #[serde(rename = "egressPricePerGB", skip_serializing_if = "Option::is_none")]
    pub egress_price_per_gb: Option<f64>,
}

/// Nothing is kept of a Link: what runs over it is told by the operations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LinkStatus {}

/// One end of a Link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkEnd<'a> {
    /// `*`
    Any,
    /// `cloud:NAME`
    Cloud(&'a str),
    /// A cluster's name.
    Cluster(&'a str),
}

impl<'a> LinkEnd<'a> {
    /// The end that a text of a [`LinkSpec`] names.
    #[must_use]
    pub fn of(text: &'a str) -> Self {
        match (text, text.strip_prefix("cloud:")) {
            ("*", _) => Self::Any,
            (_, Some(cloud)) => Self::Cloud(cloud),
            (name, None) => Self::Cluster(name),
        }
    }

    /// Whether `cluster` lies at this end. One that is not known any more has its name, and no cloud.
    #[must_use]
    pub fn holds(self, name: &str, cluster: Option<&Cluster>) -> bool {
        match self {
            Self::Any => true,
            Self::Cluster(own) => own == name,
            Self::Cloud(own) => cluster.and_then(|c| c.metadata.labels.get(CLOUD_LABEL)).is_some_and(|c| c == own),
        }
    }

    fn problem(self) -> Option<String> {
        match self {
            Self::Any => None,
            Self::Cloud("") => Some("name the cloud: cloud:NAME".to_owned()),
            Self::Cloud(cloud) => label_value_problem(cloud).map(|problem| problem.to_string()),
            Self::Cluster(name) => NameRule::Dns1123Subdomain.problem(name).map(|problem| {
                format!("must be a cluster's name, cloud:NAME, or * for every cluster; of a cluster's name: {problem}")
            }),
        }
    }
}

impl Resource for Link {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "Link",
        plural: "links",
        singular: "link",
        short_names: &[],
        categories: &["fluvial"],
        scope: Scope::Cluster,
        writers: Writers::Users,
        status: false,
        name_rule: NameRule::Dns1123Subdomain,
        columns: &[
            PrinterColumn { name: "From", kind: "string", pointer: "/spec/from", priority: 0 },
            PrinterColumn { name: "To", kind: "string", pointer: "/spec/to", priority: 0 },
            PrinterColumn { name: "Bandwidth", kind: "integer", pointer: "/spec/bandwidthBytesPerSecond", priority: 0 },
            PrinterColumn { name: "Price", kind: "number", pointer: "/spec/egressPricePerGB", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, _old: Option<&Self>, errors: &mut FieldErrors) {
        let spec = Path::root("spec");
        for (field, text) in [("from", &self.spec.from), ("to", &self.spec.to)] {
            if text.is_empty() {
                errors.required(&spec.key(field), "a cluster's name, cloud:NAME, or * for every cluster");
            } else if let Some(problem) = LinkEnd::of(text).problem() {
                errors.invalid(&spec.key(field), text, problem);
            }
        }
        if let (LinkEnd::Cluster(from), LinkEnd::Cluster(to)) =
            (LinkEnd::of(&self.spec.from), LinkEnd::of(&self.spec.to))
            && from == to
            && !from.is_empty()
        {
            errors.invalid(
                &spec.key("to"),
                to,
                "must be another cluster than from: bytes inside a cluster use no link",
            );
        }
        let bandwidth = self.spec.bandwidth_bytes_per_second;
        if let Some(bandwidth) = bandwidth.filter(|cap| !(MIN_BANDWIDTH..=MAX_BANDWIDTH).contains(cap)) {
            let why = format!(
                "must be at least {MIN_BANDWIDTH} (64 KiB per second) and at most {MAX_BANDWIDTH}; leave it out for no cap"
            );
            errors.invalid(&spec.key("bandwidthBytesPerSecond"), &bandwidth.to_string(), why);
        }
        if let Some(price) = self.spec.egress_price_per_gb.filter(|price| !price.is_finite() || *price < 0.0) {
            errors.invalid(&spec.key("egressPricePerGB"), &price.to_string(), "must be a number of at least 0");
        }
    }

    fn project(&self) -> Vec<Row> {
        vec![Row {
            table: "links",
            cells: vec![
                Cell::text(&self.metadata.name),
                Cell::text(&self.spec.from),
                Cell::text(&self.spec.to),
                self.spec.bandwidth_bytes_per_second.map_or(Cell::Null, Cell::integer),
                self.spec.egress_price_per_gb.map_or(Cell::Null, Cell::Real),
            ],
        }]
    }
}
