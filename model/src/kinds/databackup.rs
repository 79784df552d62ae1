//! ① DataBackup: one snapshot of a dataset in a BackupRepository.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::backuprepository::SnapshotInfo;
use super::operation::{self, OperationStatus};
use super::{DATA_GROUP, VERSION};
use crate::catalog::Row;
use crate::field::{FieldErrors, Path};
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

object!(
    /// A backup of one dataset.
    DataBackup,
    DataBackupSpec,
    DataBackupStatus
);

/// Fluid's fields and ours. Ours: `repository`, `check`, `dryRun`, `cancel`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DataBackupSpec {
    /// A dataset of the same namespace.
    pub dataset: String,
    /// The BackupRepository.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub repository: String,
    /// Check the repository's structure after the backup.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub check: bool,
    /// Plan only: who would do it, and how much there is; the operation ends Complete.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Set to stop the operation; no snapshot comes of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u32>,
    // Fluid's fields, kept as they came. A path of Fluid's is no repository.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub backup_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_after: Option<Value>,
}

/// What is known of the operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DataBackupStatus {
    #[serde(flatten)]
    pub operation: OperationStatus,
    /// Why this agent, and why not others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// The snapshot that was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotInfo>,
    /// Bytes that were read; the others were in the snapshot before.
    pub bytes_read: u64,
    /// Snapshots that retention removed afterwards.
    pub forgotten: u64,
    /// What the check afterwards found; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_problems: Option<Vec<String>>,
    /// Where the backup is, as Fluid's clients read it.
    pub infos: BackupInfos,
}

/// Fluid's words for where a backup is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BackupInfos {
    #[serde(rename = "BackupLocationPath", skip_serializing_if = "String::is_empty")]
    pub path: String,
    #[serde(rename = "BackupLocationNodeName", skip_serializing_if = "String::is_empty")]
    pub node: String,
}

impl Resource for DataBackup {
    const INFO: KindInfo = KindInfo {
        group: DATA_GROUP,
        version: VERSION,
        kind: "DataBackup",
        plural: "databackups",
        singular: "databackup",
        short_names: &["backup"],
        categories: &["fluid"],
        scope: Scope::Namespaced,
        writers: Writers::Users,
        status: true,
        name_rule: NameRule::Dns1035Label,
        columns: &[
            PrinterColumn { name: "Dataset", kind: "string", pointer: "/spec/dataset", priority: 0 },
            PrinterColumn { name: "Repository", kind: "string", pointer: "/spec/repository", priority: 0 },
            PrinterColumn { name: "Phase", kind: "string", pointer: "/status/phase", priority: 0 },
            PrinterColumn { name: "Path", kind: "string", pointer: "/status/infos/BackupLocationPath", priority: 0 },
            PrinterColumn {
                name: "NodeName",
                kind: "string",
                pointer: "/status/infos/BackupLocationNodeName",
                priority: 0,
            },
            PrinterColumn { name: "Duration", kind: "string", pointer: "/status/duration", priority: 0 },
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
        if self.spec.repository.is_empty() && self.spec.backup_path.is_empty() {
            errors.required(&spec.key("repository"), "the name of a BackupRepository");
        }
        if let Some(old) = old {
            let fixed = [
                ("dataset", old.spec.dataset != self.spec.dataset),
                ("repository", old.spec.repository != self.spec.repository),
                ("check", old.spec.check != self.spec.check),
                ("dryRun", old.spec.dry_run != self.spec.dry_run),
            ];
            operation::check_change(&fixed, (old.spec.cancel, self.spec.cancel), errors);
        }
    }

    fn project(&self) -> Vec<Row> {
        let status = self.status.clone().unwrap_or_default().operation;
        vec![status.row(Self::INFO.kind, &self.metadata, &self.spec.dataset, &status.executor, "")]
    }
}
