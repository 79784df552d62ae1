//! ① Cluster: a registered member. Made when its agent joins, or before, by a user.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cachelocation::NodeUsage;
use super::{FLUVIAL_GROUP, VERSION};
use crate::catalog::{Cell, Row};
use crate::field::{FieldErrors, Path};
use crate::meta::Condition;
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

/// The label that names a cluster's cloud.
pub const CLOUD_LABEL: &str = "fluvial.io/cloud";
/// The label that names a cluster's region.
pub const REGION_LABEL: &str = "topology.kubernetes.io/region";
/// The label that names a cluster's zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Held by every cluster until what it was given has been taken back.
pub const CLUSTER_FINALIZER: &str = "fluvial.io/leave";

/// Nodes that one object can name as revoked: each is a look at the store when the cluster changes.
const MOST_REVOKED_NODES: usize = 256;

object!(
    /// A member cluster.
    Cluster,
    ClusterSpec,
    ClusterStatus
);

/// What the user wants of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterSpec {
    /// Take no new work and move caches elsewhere.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub drain: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
    /// Nodes whose certificates of up to a time are not accepted any more; with a later one a node is welcome again.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, String>")]
    pub revoked_nodes: BTreeMap<String, Timestamp>,
}

/// Keeps away placements that do not tolerate it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Taint {
    pub key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
}

/// How sure the hub is of the cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ClusterState {
    /// Its agent has not connected yet.
    #[default]
    Pending,
    Ready,
    /// No word for 10 s. Nothing changes.
    Suspect,
    /// No word for 30 s. Placements may choose another cluster; nothing is deleted.
    Unreachable,
    /// Being removed.
    Leaving,
}

impl ClusterState {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Ready => "Ready",
            Self::Suspect => "Suspect",
            Self::Unreachable => "Unreachable",
            Self::Leaving => "Leaving",
        }
    }
}

/// What the cluster's agent reports.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterStatus {
    pub state: ClusterState,
    /// Since when it is in that state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub state_since: Option<Timestamp>,
    pub observed_generation: i64,
    /// When the hub last heard from the agent; kept to within a minute while the cluster is Ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub last_seen: Option<Timestamp>,
    pub platform: String,
    pub agent_version: String,
    pub engines: Vec<String>,
    pub nodes: Vec<NodeUsage>,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// Serial numbers and the like are not shown; this tells one installation of the agent from another.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// Tells the agent's machine and its view of mounts from others.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub machine: String,
    /// Where the agents of other clusters, and the nodes of this one, reach the agent: `HOST:PORT`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    pub conditions: Vec<Condition>,
}

impl Resource for Cluster {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "Cluster",
        plural: "clusters",
        singular: "cluster",
        short_names: &["cl"],
        categories: &["fluvial"],
        scope: Scope::Cluster,
        writers: Writers::Users,
        status: true,
        name_rule: NameRule::Dns1035Label,
        columns: &[
            PrinterColumn { name: "State", kind: "string", pointer: "/status/state", priority: 0 },
            PrinterColumn { name: "Platform", kind: "string", pointer: "/status/platform", priority: 0 },
            PrinterColumn { name: "Version", kind: "string", pointer: "/status/agentVersion", priority: 0 },
            PrinterColumn { name: "Capacity", kind: "integer", pointer: "/status/capacityBytes", priority: 0 },
            PrinterColumn { name: "Used", kind: "integer", pointer: "/status/usedBytes", priority: 0 },
            PrinterColumn { name: "Address", kind: "string", pointer: "/status/address", priority: 1 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, _old: Option<&Self>, errors: &mut FieldErrors) {
        let field = Path::root("spec").key("revokedNodes");
        if self.spec.revoked_nodes.len() > MOST_REVOKED_NODES {
            errors.push(&field, format!("at most {MOST_REVOKED_NODES}: leave out those of long ago"));
        }
        for node in self.spec.revoked_nodes.keys() {
            if let Some(problem) = NameRule::Dns1123Subdomain.problem(node) {
                errors.invalid(&field, node, &problem);
            }
        }
    }

    fn project(&self) -> Vec<Row> {
        let status = self.status.clone().unwrap_or_default();
        let label = |key: &str| Cell::optional(self.metadata.labels.get(key).map(String::as_str));
        vec![Row {
            table: "clusters",
            cells: vec![
                Cell::text(&self.metadata.name),
                label(CLOUD_LABEL),
                label(REGION_LABEL),
                label(ZONE_LABEL),
                Cell::text(&status.platform),
                Cell::text(status.state.as_str()),
                Cell::time(status.last_seen),
                Cell::json(&self.metadata.labels),
                Cell::integer(status.capacity_bytes),
                Cell::integer(status.used_bytes),
                Cell::text(&status.agent_version),
            ],
        }]
    }
}

impl Cluster {
    /// The labels, for selectors.
    #[must_use]
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.metadata.labels
    }

    /// The state, `Pending` if never reported.
    #[must_use]
    pub fn state(&self) -> ClusterState {
        self.status.as_ref().map_or(ClusterState::Pending, |s| s.state)
    }
}
