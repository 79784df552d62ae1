//! ① DataLoad: brings a dataset, or parts of it, into the caches of clusters that hold it, before anybody reads.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::datamigrate::{DatasetRef, OperationPhase, Progress};
use super::operation::{self, OperationStatus};
use super::{DATA_GROUP, VERSION};
use crate::catalog::Row;
use crate::field::{FieldErrors, Path};
use crate::manifest::RelativePath;
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

/// Targets of one load.
pub const MAX_TARGETS: usize = 256;

object!(
    /// A load of one dataset.
    DataLoad,
    DataLoadSpec,
    DataLoadStatus
);

/// How near the bytes are brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LoadTier {
    /// Into the cache's tiers.
    #[default]
    Disk,
    /// Into the memory of the machine, too.
    PageCache,
}

/// Fluid's fields and ours. Ours: `cluster`, `tier`, `dryRun`, `cancel`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DataLoadSpec {
    pub dataset: DatasetRef,
    /// List the sources again before anything is loaded.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub load_metadata: bool,
    /// What to load; everything if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target: Vec<LoadTarget>,
    /// The cluster to load in; every one that holds the dataset if none is named.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    #[serde(skip_serializing_if = "is_disk")]
    pub tier: LoadTier,
    /// Say what would be loaded where, and load nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Set to stop the operation; what is loaded by then stays.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub schedule: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_after: Option<Value>,
    // What only pods need is kept as it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_metadata: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerations: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<Value>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub scheduler_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_disk(tier: &LoadTier) -> bool {
    *tier == LoadTier::Disk
}

/// A file or directory of the dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LoadTarget {
    /// From the root of the dataset: `/` is all of it.
    pub path: String,
    /// Kept as it came: a cluster's cache holds one copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
}

/// How a load stands in one cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterLoad {
    pub cluster: String,
    pub phase: OperationPhase,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub progress: Progress,
    /// Bytes that were brought into the page cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_cache_bytes: Option<u64>,
}

/// What is known of the operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DataLoadStatus {
    /// While Executing the reason is `Loading`; the progress is that of all clusters together.
    #[serde(flatten)]
    pub operation: OperationStatus,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<ClusterLoad>,
}

impl DataLoad {
    /// Namespace and name of the dataset that is loaded.
    #[must_use]
    pub fn dataset(&self) -> (&str, &str) {
        let named = &self.spec.dataset;
        let namespace = if named.namespace.is_empty() { &self.metadata.namespace } else { &named.namespace };
        (namespace, &named.name)
    }

    /// The phase, `Pending` if none was written yet.
    #[must_use]
    pub fn phase(&self) -> OperationPhase {
        self.status.as_ref().map_or(OperationPhase::Pending, |status| status.operation.phase)
    }

    /// What to load, as paths of a manifest; nothing stands for everything.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        let paths: Vec<String> =
            self.spec.target.iter().map(|target| target.path.trim_matches('/').to_owned()).collect();
        if paths.iter().any(String::is_empty) { Vec::new() } else { paths }
    }
}

impl Resource for DataLoad {
    const INFO: KindInfo = KindInfo {
        group: DATA_GROUP,
        version: VERSION,
        kind: "DataLoad",
        plural: "dataloads",
        singular: "dataload",
        short_names: &["load"],
        categories: &["fluid"],
        scope: Scope::Namespaced,
        writers: Writers::Users,
        status: true,
        name_rule: NameRule::Dns1035Label,
        columns: &[
            PrinterColumn { name: "Dataset", kind: "string", pointer: "/spec/dataset/name", priority: 0 },
            PrinterColumn { name: "Phase", kind: "string", pointer: "/status/phase", priority: 0 },
            PrinterColumn { name: "Bytes", kind: "integer", pointer: "/status/progress/bytesDone", priority: 0 },
            PrinterColumn { name: "Total", kind: "integer", pointer: "/status/progress/bytesTotal", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
            PrinterColumn { name: "Duration", kind: "string", pointer: "/status/duration", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, old: Option<&Self>, errors: &mut FieldErrors) {
        let spec = Path::root("spec");
        if self.spec.dataset.name.is_empty() {
            errors.required(&spec.key("dataset").key("name"), "the dataset to load");
        }
        let namespace = &self.spec.dataset.namespace;
        if !namespace.is_empty() && *namespace != self.metadata.namespace {
            let at = spec.key("dataset").key("namespace");
            errors.invalid(&at, namespace, "must be the operation's own namespace");
        }
        if self.spec.target.len() > MAX_TARGETS {
            let message = format!("too many: {}, at most {MAX_TARGETS}", self.spec.target.len());
            errors.push(&spec.key("target"), message);
        }
        for (number, target) in self.spec.target.iter().enumerate() {
            let at = spec.key("target").index(number);
            let path = target.path.trim_matches('/');
            if let Err(error) = RelativePath::parse(path)
                && !path.is_empty()
            {
                errors.invalid(&at.key("path"), &target.path, error.to_string());
            }
            if target.path.is_empty() {
                errors.required(&at.key("path"), "a path of the dataset: / is all of it");
            }
            if target.replicas.is_some_and(|replicas| replicas < 1) {
                errors.push(&at.key("replicas"), "must be at least 1");
            }
        }
        if !matches!(self.spec.policy.as_str(), "" | "Once") {
            errors.invalid(&spec.key("policy"), &self.spec.policy, "must be Once: others are not there yet");
        }
        if self.spec.run_after.is_some() {
            errors
                .push(&spec.key("runAfter"), "is not there yet: create the operation when the one before is complete");
        }
        if let Some(old) = old {
            let fixed = [
                ("dataset", old.spec.dataset != self.spec.dataset),
                ("target", old.spec.target != self.spec.target),
                ("cluster", old.spec.cluster != self.spec.cluster),
                ("tier", old.spec.tier != self.spec.tier),
                ("loadMetadata", old.spec.load_metadata != self.spec.load_metadata),
                ("dryRun", old.spec.dry_run != self.spec.dry_run),
            ];
            operation::check_change(&fixed, (old.spec.cancel, self.spec.cancel), errors);
        }
    }

    fn project(&self) -> Vec<Row> {
        let status = self.status.clone().unwrap_or_default();
        let clusters: Vec<&str> = status.clusters.iter().map(|load| load.cluster.as_str()).collect();
        let to = clusters.join(",");
        vec![status.operation.row(Self::INFO.kind, &self.metadata, &self.spec.dataset.name, "", &to)]
    }
}
