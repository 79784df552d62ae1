//! ① Dataset: what the data is, where it came from, and where its copies of record are.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::source::{EncryptOption, Mount, validate_options, validate_uri};
use super::{DATA_GROUP, VERSION};
use crate::catalog::{Cell, Row};
use crate::field::{FieldErrors, Path};
use crate::meta::Condition;
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};
use crate::uri::{SCHEMES, Uri};

/// The most mounts of one dataset.
pub const MAX_MOUNTS: usize = 64;

object!(
    /// A dataset: a tree of files with sources, homes and caches.
    Dataset,
    DatasetSpec,
    DatasetStatus
);

/// What the user wants. Fields that only a Kubernetes member acts on are kept as they came.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetSpec {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shared_options: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_encrypt_options: Vec<EncryptOption>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access_modes: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub placement: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_restore_location: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runtimes: Vec<Value>,
}

/// The phases that Fluid's clients read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DatasetPhase {
    /// Nothing serves it yet.
    #[default]
    NotBound,
    /// Its content is known and a cache or a home serves it.
    Bound,
    /// Its sources cannot be read.
    Failed,
    /// A migration is under way.
    DataMigrating,
}

impl DatasetPhase {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotBound => "NotBound",
            Self::Bound => "Bound",
            Self::Failed => "Failed",
            Self::DataMigrating => "DataMigrating",
        }
    }
}

/// Whether a home may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HomeState {
    /// Complete and verified.
    Ready,
    /// Being removed: no longer read from.
    Removing,
}

impl HomeState {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Removing => "Removing",
        }
    }
}

/// A complete, verified copy of record in a Storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Home {
    pub storage: String,
    pub cluster: String,
    pub uri: String,
    /// The manifest root that was verified there.
    pub root: String,
    pub bytes: u64,
    pub files: u64,
    pub state: HomeState,
    #[schemars(with = "String")]
    pub verified_time: Timestamp,
    /// The uid of the operation that made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub operation: String,
}

/// What is known of the dataset. Numbers are numbers; the texts that Fluid's clients read stand beside them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DatasetStatus {
    pub phase: DatasetPhase,
    pub observed_generation: i64,
    /// The manifest root of the current version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Whether every file's digest is part of `root`, or only sizes and times as listed.
    pub digested: bool,
    pub total_bytes: u64,
    pub files: u64,
    pub directories: u64,
    /// The cluster that reads `spec.mounts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub scanned_time: Option<Timestamp>,
    /// The manifest root that the last listing of the sources gave: as long as it stays, `root` does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scanned_root: Option<String>,
    /// The request for a listing (annotation `fluvial.io/rescan-requested`) that was answered last.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rescan_handled: String,
    /// Counts notices that something changed at the sources. Many of them between two listings may count as one.
    #[serde(skip_serializing_if = "is_zero")]
    pub source_changes: u64,
    /// The changes that had been counted when the listing began that is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listing_changes: Option<u64>,
    /// The changes that had been counted when the last listing began: whatever came later may not be in it.
    #[serde(skip_serializing_if = "is_zero")]
    pub listed_changes: u64,
    /// What writable mounts had said of their writes when those were counted among the changes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub writes_noticed: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub homes: Vec<Home>,
    /// Running operations by kind, names joined by commas.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub operation_ref: BTreeMap<String, String>,
    /// `totalBytes` for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ufs_total: String,
    /// `files` as text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub file_num: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cache_states: BTreeMap<String, String>,
    pub conditions: Vec<Condition>,
    // Written by Fluid's controllers on clusters that have them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runtimes: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dataset_ref: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hcfs: Option<Value>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub data_load_ref: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub data_backup_ref: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Resource for Dataset {
    const INFO: KindInfo = KindInfo {
        group: DATA_GROUP,
        version: VERSION,
        kind: "Dataset",
        plural: "datasets",
        singular: "dataset",
        short_names: &["dataset"],
        categories: &["fluid"],
        scope: Scope::Namespaced,
        writers: Writers::Users,
        status: true,
        name_rule: NameRule::Dns1035Label,
        columns: &[
            PrinterColumn { name: "Ufs Total Size", kind: "string", pointer: "/status/ufsTotal", priority: 0 },
            PrinterColumn { name: "Cached", kind: "string", pointer: "/status/cacheStates/cached", priority: 0 },
            PrinterColumn {
                name: "Cache Capacity",
                kind: "string",
                pointer: "/status/cacheStates/cacheCapacity",
                priority: 0,
            },
            PrinterColumn {
                name: "Cached Percentage",
                kind: "string",
                pointer: "/status/cacheStates/cachedPercentage",
                priority: 0,
            },
            PrinterColumn { name: "Phase", kind: "string", pointer: "/status/phase", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
            PrinterColumn { name: "Total Files", kind: "string", pointer: "/status/fileNum", priority: 11 },
            PrinterColumn { name: "Root", kind: "string", pointer: "/status/root", priority: 11 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, _old: Option<&Self>, errors: &mut FieldErrors) {
        crate::upkeep::rescan::validate(self, errors);
        let spec = Path::root("spec");
        let mounts = spec.key("mounts");
        if self.spec.mounts.len() > MAX_MOUNTS {
            errors.push(&mounts, format!("too many: {}, at most {MAX_MOUNTS}", self.spec.mounts.len()));
        }
        if !matches!(self.spec.placement.as_str(), "" | "Exclusive" | "Shared") {
            errors.invalid(&spec.key("placement"), &self.spec.placement, "must be Exclusive or Shared");
        }
        validate_options(&self.spec.shared_options, &[], &spec, errors);
        for (i, mount) in self.spec.mounts.iter().enumerate() {
            validate_mount(mount, &mounts.index(i), errors);
        }
        for (i, mount) in self.spec.mounts.iter().enumerate() {
            let nested =
                self.spec.mounts.iter().take(i).any(|other| paths_collide(mount.tree_path(), other.tree_path()));
            if nested {
                errors.invalid(
                    &mounts.index(i).key("path"),
                    mount.tree_path(),
                    "lies at or inside another mount's path",
                );
            }
        }
    }

    fn project(&self) -> Vec<Row> {
        let status = self.status.clone().unwrap_or_default();
        let mut rows = vec![Row {
            table: "datasets",
            cells: vec![
                Cell::text(&self.metadata.namespace),
                Cell::text(&self.metadata.name),
                Cell::text(status.phase.as_str()),
                Cell::integer(status.total_bytes),
                Cell::integer(status.files),
                Cell::optional(status.root.as_deref()),
                Cell::text("nodecache"),
                Cell::json(&self.metadata.labels),
                Cell::time(self.metadata.creation_timestamp),
            ],
        }];
        rows.extend(status.homes.iter().map(|home| Row {
            table: "homes",
            cells: vec![
                Cell::text(&self.metadata.namespace),
                Cell::text(&self.metadata.name),
                Cell::text(&home.storage),
                Cell::text(&home.cluster),
                Cell::text(&home.uri),
                Cell::text(&home.root),
                Cell::integer(home.bytes),
                Cell::text(home.state.as_str()),
                Cell::time(Some(home.verified_time)),
            ],
        }));
        rows
    }
}

fn validate_mount(mount: &Mount, at: &Path, errors: &mut FieldErrors) {
    let point = at.key("mountPoint");
    match mount.mount_point.split_once("://") {
        // Fluid's own schemes and those of foreign engines are theirs to check.
        Some((scheme, _)) if !SCHEMES.contains(&scheme) && !scheme.is_empty() && mount.mount_point.len() >= 5 => {}
        _ => validate_uri(&mount.mount_point, &point, errors),
    }
    let tree_path = mount.tree_path();
    let part_ok = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && part.len() <= 255 && !part.chars().any(char::is_control)
    };
    if !tree_path.is_empty() && !tree_path.split('/').all(part_ok) {
        errors.invalid(&at.key("path"), tree_path, "must be a path without '..', empty parts or control characters");
    }
    validate_options(&mount.options, &mount.encrypt_options, at, errors);
}

fn paths_collide(a: &str, b: &str) -> bool {
    let inside = |outer: &str, inner: &str| {
        outer.is_empty() || inner == outer || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
    };
    inside(a, b) || inside(b, a)
}

impl DatasetSpec {
    /// The mounts whose locations this release reads, with the shared options filled in.
    #[must_use]
    pub fn readable_mounts(&self) -> Vec<(Mount, Uri)> {
        let with_shared = |mount: &Mount| {
            let mut mount = mount.clone();
            for (key, value) in &self.shared_options {
                mount.options.entry(key.clone()).or_insert_with(|| value.clone());
            }
            for option in &self.shared_encrypt_options {
                if !mount.encrypt_options.iter().any(|own| own.name == option.name) {
                    mount.encrypt_options.push(option.clone());
                }
            }
            mount
        };
        self.mounts
            .iter()
            .filter_map(|mount| Uri::parse(&mount.mount_point).ok().map(|uri| (with_shared(mount), uri)))
            .collect()
    }
}
