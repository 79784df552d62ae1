//! ①⑥ DatasetMount: a dataset as a directory of a member's machine.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FLUVIAL_GROUP, VERSION};
use crate::catalog::{Cell, Row};
use crate::field::{FieldErrors, Path};
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

object!(
    /// A wish: this dataset, as this directory, on the machine of that member.
    DatasetMount,
    DatasetMountSpec,
    DatasetMountStatus
);

/// Which dataset, where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DatasetMountSpec {
    /// A dataset of the same namespace.
    pub dataset: String,
    /// The member cluster, of platform `host`.
    pub cluster: String,
    /// An absolute path on its machine, empty or not there yet.
    pub directory: String,
    /// The node of the cluster on whose machine it is; if not given, the machine of the cluster's agent.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Only read, whatever the dataset's access modes allow. Otherwise a dataset of mode `ReadWriteMany` or
    /// `ReadWriteOnce` is mounted to be written, at its sources.
    #[serde(rename = "readOnly", skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// How a mount stands, in one word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DatasetMountPhase {
    /// Waits for the dataset or the cluster.
    #[default]
    Pending,
    /// The member was told.
    Mounting,
    /// Readers are served.
    Mounted,
    /// It cannot be mounted; the message says why.
    Failed,
}

impl DatasetMountPhase {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Mounting => "Mounting",
            Self::Mounted => "Mounted",
            Self::Failed => "Failed",
        }
    }
}

/// How it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DatasetMountStatus {
    pub observed_generation: i64,
    pub phase: DatasetMountPhase,
    /// The version that is shown; none if it is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// How complete files are read: `passthrough` (by the kernel, from the cache file) or `daemon`; or `read-write`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mode: String,
    /// The process that serves it, on the member's machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    /// What it waits for, why it failed, or why it is not read by passthrough.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The longest path that Linux takes, without the byte that ends it.
const MOST_DIRECTORY_BYTES: usize = 4095;

impl Resource for DatasetMount {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "DatasetMount",
        plural: "datasetmounts",
        singular: "datasetmount",
        short_names: &["dm"],
        categories: &["fluvial"],
        scope: Scope::Namespaced,
        writers: Writers::Users,
        status: true,
        name_rule: NameRule::Dns1123Subdomain,
        columns: &[
            PrinterColumn { name: "Dataset", kind: "string", pointer: "/spec/dataset", priority: 0 },
            PrinterColumn { name: "Cluster", kind: "string", pointer: "/spec/cluster", priority: 0 },
            PrinterColumn { name: "Directory", kind: "string", pointer: "/spec/directory", priority: 0 },
            PrinterColumn { name: "Phase", kind: "string", pointer: "/status/phase", priority: 0 },
            PrinterColumn { name: "Mode", kind: "string", pointer: "/status/mode", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, old: Option<&Self>, errors: &mut FieldErrors) {
        let spec = Path::root("spec");
        if self.spec.dataset.is_empty() {
            errors.required(&spec.key("dataset"), "the name of a dataset in the same namespace");
        }
        if self.spec.cluster.is_empty() {
            errors.required(&spec.key("cluster"), "the name of a member cluster");
        }
        let directory = &self.spec.directory;
        let at = spec.key("directory");
        let bad = |part: &str| part == "." || part == "..";
        if directory.is_empty() {
            errors.required(&at, "an absolute path on the member's machine");
        } else if !directory.starts_with('/')
            || directory.trim_matches('/').is_empty()
            || directory.len() > MOST_DIRECTORY_BYTES
            || directory.contains('\0')
            || directory.split('/').any(bad)
        {
            errors.invalid(&at, directory, "must be an absolute path other than / without '.' and '..'");
        }
        if let Some(problem) = Some(&self.spec.node)
            .filter(|node| !node.is_empty())
            .and_then(|node| NameRule::Dns1123Subdomain.problem(node))
        {
            errors.invalid(&spec.key("node"), &self.spec.node, &problem);
        }
        if let Some(old) = old
            && old.spec != self.spec
        {
            errors.push(&spec, "cannot be changed: delete the mount and make another");
        }
    }

    fn project(&self) -> Vec<Row> {
        let status = self.status.clone().unwrap_or_default();
        vec![Row {
            table: "mounts",
            cells: vec![
                Cell::text(&self.metadata.namespace),
                Cell::text(&self.metadata.name),
                Cell::text(&self.spec.dataset),
                Cell::text(&self.spec.cluster),
                Cell::text(&self.spec.directory),
                Cell::text(status.phase.as_str()),
                Cell::text(&status.mode),
                Cell::optional(status.root.as_deref()),
                Cell::text(&status.message),
            ],
        }]
    }
}
