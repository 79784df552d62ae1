//! ⑧ CacheLocation: where a dataset is cached, as its cluster reports it. Named `DATASET.CLUSTER`.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FLUVIAL_GROUP, VERSION};
use crate::catalog::{Cell, Row};
use crate::field::FieldErrors;
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

object!(
    /// One dataset in one cluster's cache.
    CacheLocation,
    CacheLocationSpec,
    CacheLocationStatus
);

/// Which dataset, in which cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheLocationSpec {
    pub dataset: String,
    pub cluster: String,
}

/// Bytes of one storage medium (`MEM`, `SSD` or `HDD`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MediumUsage {
    pub medium: String,
    pub cached_bytes: u64,
    pub capacity_bytes: u64,
}

/// The media of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeUsage {
    pub node: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    #[serde(default)]
    pub media: Vec<MediumUsage>,
}

/// What the cluster holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CacheLocationStatus {
    pub engine: String,
    /// `Pending`, `Filling`, `Ready`, `Partial` (no more room) or `Failed`.
    pub phase: String,
    pub cached_bytes: u64,
    pub total_bytes: u64,
    pub cached_files: u64,
    pub total_files: u64,
    pub cached_fraction: f64,
    pub nodes: Vec<NodeUsage>,
    /// The manifest root held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub reported_time: Option<Timestamp>,
}

impl Resource for CacheLocation {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "CacheLocation",
        plural: "cachelocations",
        singular: "cachelocation",
        short_names: &["cache"],
        categories: &["fluvial"],
        scope: Scope::Namespaced,
        writers: Writers::Hub,
        status: false,
        name_rule: NameRule::Dns1123Subdomain,
        columns: &[
            PrinterColumn { name: "Dataset", kind: "string", pointer: "/spec/dataset", priority: 0 },
            PrinterColumn { name: "Cluster", kind: "string", pointer: "/spec/cluster", priority: 0 },
            PrinterColumn { name: "Phase", kind: "string", pointer: "/status/phase", priority: 0 },
            PrinterColumn { name: "Cached", kind: "integer", pointer: "/status/cachedBytes", priority: 0 },
            PrinterColumn { name: "Total", kind: "integer", pointer: "/status/totalBytes", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, _old: Option<&Self>, _errors: &mut FieldErrors) {}

    fn project(&self) -> Vec<Row> {
        let Some(status) = &self.status else { return Vec::new() };
        let namespace = Cell::text(&self.metadata.namespace);
        let dataset = Cell::text(&self.spec.dataset);
        let cluster = Cell::text(&self.spec.cluster);
        let mut rows = vec![Row {
            table: "cache_locations",
            cells: vec![
                namespace.clone(),
                dataset.clone(),
                cluster.clone(),
                Cell::text(&status.engine),
                Cell::text(&status.phase),
                Cell::integer(status.cached_bytes),
                Cell::integer(status.total_bytes),
                Cell::Real(status.cached_fraction),
                Cell::optional(status.root.as_deref()),
                Cell::time(status.reported_time),
            ],
        }];
        for node in &status.nodes {
            rows.extend(node.media.iter().map(|medium| Row {
                table: "cache_nodes",
                cells: vec![
                    namespace.clone(),
                    dataset.clone(),
                    cluster.clone(),
                    Cell::text(&node.node),
                    Cell::text(&medium.medium),
                    Cell::text(&node.zone),
                    Cell::text(&node.region),
                    Cell::integer(medium.cached_bytes),
                    Cell::integer(medium.capacity_bytes),
                ],
            }));
        }
        rows
    }
}
