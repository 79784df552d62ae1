//! ① DataRestore: a snapshot becomes a home of a dataset, or a directory of a member's machine.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::backuprepository::SnapshotInfo;
use super::datamigrate::MAX_STREAMS;
use super::operation::OperationStatus;
use super::{FLUVIAL_GROUP, VERSION};
use crate::catalog::Row;
use crate::field::{FieldErrors, Path};
use crate::manifest::RelativePath;
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

/// Held by a restore until what it left at the target is gone or belongs to a home.
pub const RESTORE_FINALIZER: &str = "fluvial.io/restore";

object!(
    /// A restoration.
    DataRestore,
    DataRestoreSpec,
    DataRestoreStatus
);

/// What is restored, from where, to where. Exactly one of `storage` and `directory` is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DataRestoreSpec {
    /// The dataset of the same namespace to fill; with `storage` it is made from the snapshot's entry if it is not there.
    pub dataset: String,
    /// The BackupRepository.
    pub repository: String,
    /// The beginning of a snapshot's id, or `latest` (also if empty): the newest of `fromDataset`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub snapshot: String,
    /// `NAMESPACE/NAME` whose newest snapshot is meant; the dataset's own name if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub from_dataset: String,
    /// Files and directories to restore; everything if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// The Storage that gets a new home.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub storage: String,
    /// A directory of a member's machine that is made; the catalog knows nothing of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<MemberDirectory>,
    /// Parallel streams; 16 if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<u32>,
    /// Set to stop the operation; what it wrote is removed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u32>,
}

/// A directory of the machine that a member's agent runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MemberDirectory {
    pub cluster: String,
    /// An absolute path, empty or not there yet.
    pub path: String,
}

/// What is known of the operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DataRestoreStatus {
    #[serde(flatten)]
    pub operation: OperationStatus,
    /// Why this agent, and why not others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// The snapshot that was restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotInfo>,
    /// The manifest root of what was restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Where it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uri: String,
}

impl DataRestoreSpec {
    /// Namespace and name of the dataset whose newest snapshot is meant.
    #[must_use]
    pub fn origin<'a>(&'a self, namespace: &'a str) -> (&'a str, &'a str) {
        self.from_dataset.split_once('/').unwrap_or((namespace, &self.dataset))
    }
}

impl Resource for DataRestore {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "DataRestore",
        plural: "datarestores",
        singular: "datarestore",
        short_names: &["restore"],
        categories: &["fluvial"],
        scope: Scope::Namespaced,
        writers: Writers::Users,
        status: true,
        name_rule: NameRule::Dns1035Label,
        columns: &[
            PrinterColumn { name: "Dataset", kind: "string", pointer: "/spec/dataset", priority: 0 },
            PrinterColumn { name: "Repository", kind: "string", pointer: "/spec/repository", priority: 0 },
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
        for (field, value, what) in [
            ("dataset", &self.spec.dataset, "the name of the dataset to fill"),
            ("repository", &self.spec.repository, "the name of a BackupRepository"),
        ] {
            if value.is_empty() {
                errors.required(&spec.key(field), what);
            }
        }
        if let Some(problem) =
            NameRule::Dns1035Label.problem(&self.spec.dataset).filter(|_| !self.spec.dataset.is_empty())
        {
            errors.invalid(&spec.key("dataset"), &self.spec.dataset, problem);
        }
        if !self.spec.from_dataset.is_empty()
            && self.spec.from_dataset.split('/').filter(|part| !part.is_empty()).count() != 2
        {
            errors.invalid(&spec.key("fromDataset"), &self.spec.from_dataset, "must be NAMESPACE/NAME");
        }
        let word = self.spec.snapshot.as_str();
        if !matches!(word, "" | "latest") && !word.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')) {
            errors.invalid(&spec.key("snapshot"), word, "must be latest, or the beginning of a snapshot's id");
        }
        for (i, path) in self.spec.paths.iter().enumerate() {
            if let Err(problem) = RelativePath::parse(path.trim_matches('/')) {
                errors.invalid(&spec.key("paths").index(i), path, problem);
            }
        }
        match (&self.spec.directory, self.spec.storage.is_empty()) {
            (None, true) => errors.required(&spec.key("storage"), "a Storage, or spec.directory"),
            (Some(_), false) => errors.push(&spec.key("directory"), "cannot be given beside spec.storage"),
            (Some(directory), true) => {
                let at = spec.key("directory");
                if directory.cluster.is_empty() {
                    errors.required(&at.key("cluster"), "the member on whose machine it is");
                }
                let path = directory.path.as_str();
                let odd = |part: &str| part == "." || part == "..";
                if !path.starts_with('/')
                    || path.trim_matches('/').is_empty()
                    || path.split('/').any(odd)
                    || path.contains('\0')
                {
                    errors.invalid(&at.key("path"), path, "must be an absolute path other than / without '.' and '..'");
                }
            }
            (None, false) => {}
        }
        if self.spec.parallelism.is_some_and(|n| n == 0 || n > MAX_STREAMS) {
            errors.push(&spec.key("parallelism"), format!("must be between 1 and {MAX_STREAMS}"));
        }
        if let Some(old) = old {
            let may_change = |spec: &DataRestoreSpec| DataRestoreSpec {
                cancel: false,
                ttl_seconds_after_finished: None,
                parallelism: None,
                ..spec.clone()
            };
            if may_change(&old.spec) != may_change(&self.spec) {
                errors.push(&spec, "cannot be changed: create another operation");
            }
            if old.spec.cancel && !self.spec.cancel {
                errors.push(&spec.key("cancel"), "cannot be taken back: create another operation");
            }
        }
    }

    fn project(&self) -> Vec<Row> {
        let status = self.status.clone().unwrap_or_default().operation;
        vec![status.row(Self::INFO.kind, &self.metadata, &self.spec.dataset, "", &status.executor)]
    }
}
