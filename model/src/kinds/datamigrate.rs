//! ① DataMigrate: brings a dataset into a Storage, as another home (`copy`) or in place of the present one (`move`).

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::source::EncryptOption;
use super::{DATA_GROUP, VERSION, operation};
use crate::catalog::{Cell, Row};
use crate::field::{FieldErrors, Path};
use crate::meta::{Condition, ObjectMeta};
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

/// Held by an operation until what it left at the target is gone or belongs to a home.
pub const MIGRATE_FINALIZER: &str = "fluvial.io/migrate";
/// The most parallel streams of one migration.
pub const MAX_STREAMS: u32 = 64;

object!(
    /// A migration of one dataset.
    DataMigrate,
    DataMigrateSpec,
    DataMigrateStatus
);

/// Whether the home that is read stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MigrateMode {
    /// Add a home.
    #[default]
    Copy,
    /// Replace every other home.
    Move,
}

/// How the bytes at the target are compared with those that were read at the source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrateVerify {
    /// By the store, where it compares checksums and says so; by reading back elsewhere.
    #[default]
    Checksum,
    /// By reading every byte back.
    ReadBack,
}

impl MigrateVerify {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Fluid's fields and ours. Ours: `to.storage`, `mode`, `verify`, `dryRun`, `cancel`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DataMigrateSpec {
    pub from: DataEnd,
    pub to: DataEnd,
    pub mode: MigrateMode,
    #[serde(skip_serializing_if = "MigrateVerify::is_default")]
    pub verify: MigrateVerify,
    /// Plan only: the route and the bytes go to `status.plan`, and the operation ends Complete.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Set to stop the operation; what it wrote is removed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
    /// Parallel streams; 16 if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u32>,
    // Fluid's fields that the native engine does not need are kept as they came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<bool>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image_tag: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image_pull_policy: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub runtime_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Value>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub schedule: String,
}

/// One end: a dataset, a Storage, or a location outside.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DataEnd {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_storage: Option<ExternalStorage>,
}

/// A dataset by name; the operation's own namespace if none is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DatasetRef {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// A Storage by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StorageRef {
    pub name: String,
}

/// A location that is no Storage. Kept for Fluid's YAML; this release migrates between Storages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalStorage {
    pub uri: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub encrypt_options: Vec<EncryptOption>,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OperationPhase {
    #[default]
    Pending,
    Executing,
    Complete,
    Failed,
    Cancelled,
}

impl OperationPhase {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Executing => "Executing",
            Self::Complete => "Complete",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        }
    }

    /// Whether the operation will not change any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Complete | Self::Failed | Self::Cancelled)
    }
}

/// How far the work is. Bytes and seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Progress {
    pub files_done: u64,
    pub files_total: u64,
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub bytes_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
}

/// What SQL shows of an operation of any kind.
pub(super) struct Shown<'a> {
    pub kind: &'a str,
    pub dataset: Option<&'a str>,
    pub from: &'a str,
    pub to: &'a str,
    pub phase: OperationPhase,
    pub progress: &'a Progress,
    /// When it began and ended.
    pub times: (Option<Timestamp>, Option<Timestamp>),
    pub message: &'a str,
}

impl Shown<'_> {
    pub(super) fn row(&self, metadata: &ObjectMeta) -> Row {
        let progress = self.progress;
        Row {
            table: "operations",
            cells: vec![
                Cell::text(&metadata.namespace),
                Cell::text(&metadata.name),
                Cell::text(self.kind),
                Cell::optional(self.dataset),
                Cell::text(self.phase.as_str()),
                Cell::text(self.from),
                Cell::text(self.to),
                Cell::integer(progress.bytes_done),
                Cell::integer(progress.bytes_total),
                Cell::integer(progress.files_done),
                Cell::integer(progress.files_total),
                Cell::Real(progress.bytes_per_second),
                Cell::time(self.times.0),
                Cell::time(self.times.1),
                Cell::text(self.message),
            ],
        }
    }
}

/// How the bytes will travel, and why so.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MigratePlan {
    /// `pull` (the target's agent reads the source), `server-side` (source and target are one
    /// store with the same keys, which copies by itself), `push` (the source's agent writes the target), `local`, or `relay`
    /// (the target's agent reads through the source's).
    pub route: String,
    /// The cluster whose agent moves the bytes.
    pub executor: String,
    /// With `relay`: the cluster through whose agent they are read.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub through: String,
    pub from_uri: String,
    pub from_cluster: String,
    pub to_uri: String,
    pub to_cluster: String,
    pub bytes: u64,
    pub files: u64,
    /// How long the bytes take at least, by the Links on the way; absent where none has a cap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// What they cost, by the prices of the Links on the way; absent where none has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// Why this route, and why not the others.
    pub reasons: Vec<String>,
}

/// What is known of the operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DataMigrateStatus {
    pub phase: OperationPhase,
    /// While Executing: `Planning`, `Copying`, `Verifying` or `CuttingOver`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub observed_generation: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<MigratePlan>,
    pub progress: Progress,
    /// The manifest root that stands at the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub started_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub finished_time: Option<Timestamp>,
    /// `Unfinished`, or how long it took, as Fluid's clients read it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub duration: String,
    pub conditions: Vec<Condition>,
}

impl DataMigrate {
    /// Namespace and name of the dataset that moves.
    #[must_use]
    pub fn dataset(&self) -> Option<(&str, &str)> {
        let from = self.spec.from.dataset.as_ref()?;
        let namespace = if from.namespace.is_empty() { &self.metadata.namespace } else { &from.namespace };
        Some((namespace, &from.name))
    }

    /// The Storage that the dataset moves to.
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        self.spec.to.storage.as_ref().map(|s| s.name.as_str())
    }

    /// The phase, `Pending` if none was written yet.
    #[must_use]
    pub fn phase(&self) -> OperationPhase {
        self.status.as_ref().map_or(OperationPhase::Pending, |s| s.phase)
    }
}

impl Resource for DataMigrate {
    const INFO: KindInfo = KindInfo {
        group: DATA_GROUP,
        version: VERSION,
        kind: "DataMigrate",
        plural: "datamigrates",
        singular: "datamigrate",
        short_names: &["migrate"],
        categories: &["fluid"],
        scope: Scope::Namespaced,
        writers: Writers::Users,
        status: true,
        name_rule: NameRule::Dns1035Label,
        columns: &[
            PrinterColumn { name: "Dataset", kind: "string", pointer: "/spec/from/dataset/name", priority: 0 },
            PrinterColumn { name: "To", kind: "string", pointer: "/spec/to/storage/name", priority: 0 },
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
        match &self.spec.from.dataset {
            Some(dataset) if !dataset.name.is_empty() => {
                if !dataset.path.is_empty() {
                    errors.invalid(
                        &spec.key("from").key("dataset").key("path"),
                        &dataset.path,
                        "migrating a part is not supported: leave it out",
                    );
                }
                if !dataset.namespace.is_empty() && dataset.namespace != self.metadata.namespace {
                    errors.invalid(
                        &spec.key("from").key("dataset").key("namespace"),
                        &dataset.namespace,
                        "must be the operation's own namespace",
                    );
                }
            }
            _ => errors.required(&spec.key("from").key("dataset").key("name"), "the dataset to migrate"),
        }
        if self.target().is_none_or(str::is_empty) {
            errors.required(&spec.key("to").key("storage").key("name"), "the Storage to migrate to");
        }
        if self.spec.parallelism.is_some_and(|n| n == 0 || n > MAX_STREAMS) {
            errors.push(&spec.key("parallelism"), format!("must be between 1 and {MAX_STREAMS}"));
        }
        if !matches!(self.spec.policy.as_str(), "" | "Once") {
            errors.invalid(&spec.key("policy"), &self.spec.policy, "must be Once");
        }
        if let Some(old) = old {
            let fixed = [
                ("from", old.spec.from != self.spec.from),
                ("to", old.spec.to != self.spec.to),
                ("mode", old.spec.mode != self.spec.mode),
                ("verify", old.spec.verify != self.spec.verify),
                ("dryRun", old.spec.dry_run != self.spec.dry_run),
            ];
            operation::check_change(&fixed, (old.spec.cancel, self.spec.cancel), errors);
        }
    }

    fn project(&self) -> Vec<Row> {
        let status = self.status.clone().unwrap_or_default();
        let plan = status.plan.clone().unwrap_or_default();
        let shown = Shown {
            kind: Self::INFO.kind,
            dataset: self.dataset().map(|(_, name)| name),
            from: &plan.from_cluster,
            to: &plan.to_cluster,
            phase: status.phase,
            progress: &status.progress,
            times: (status.started_time, status.finished_time),
            message: &status.message,
        };
        vec![shown.row(&self.metadata)]
    }
}
