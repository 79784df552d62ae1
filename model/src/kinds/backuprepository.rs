//! ① BackupRepository: where backups are kept, as a repository that `restic` reads.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::source::{EncryptOption, SecretKeySelector, validate_options, validate_uri};
use super::{FLUVIAL_GROUP, VERSION};
use crate::catalog::Row;
use crate::field::{FieldErrors, Path};
use crate::meta::Condition;
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};
use crate::uri::Uri;

/// The annotation that asks for a check whenever it gets another text; one that begins with `data` has all contents read.
pub const CHECK_REQUESTED: &str = "fluvial.io/check-requested";
/// The annotation that asks for retention and pruning whenever it gets another text.
pub const PRUNE_REQUESTED: &str = "fluvial.io/prune-requested";
/// The annotation that asks for the snapshots to be listed again whenever it gets another text.
pub const LIST_REQUESTED: &str = "fluvial.io/list-requested";

object!(
    /// A repository of backups.
    BackupRepository,
    BackupRepositorySpec,
    BackupRepositoryStatus
);

/// Where it is and what opens it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BackupRepositorySpec {
    /// The directory or prefix that is the repository: `file:///dir` or `s3://bucket/prefix`.
    pub uri: String,
    /// The cluster whose agent reaches it: needed for `file://`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub encrypt_options: Vec<EncryptOption>,
    /// The Secret's key that holds the repository's password.
    pub password_secret_ref: SecretKeySelector,
    /// Make the repository if there is none.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub create: bool,
    /// What is kept of each dataset, applied after each backup and by pruning; everything if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// How many snapshots are kept: of each rule its share, as restic's `forget` counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Retention {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_hourly: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_daily: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_weekly: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_monthly: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_yearly: Option<u32>,
    /// Everything of this time before the newest, such as `30d`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub keep_within: String,
}

impl Retention {
    /// `keepWithin` as a time; `None` if it is none.
    #[must_use]
    pub fn within(&self) -> Option<SignedDuration> {
        let text = self.keep_within.trim();
        let days = |text: &str| text.strip_suffix('d')?.parse::<i64>().ok()?.checked_mul(86_400);
        let time = days(text).map(SignedDuration::from_secs).or_else(|| text.parse().ok())?;
        (time > SignedDuration::ZERO).then_some(time)
    }
}

/// A snapshot in the repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotInfo {
    pub id: String,
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// `NAMESPACE/NAME` of the dataset; empty if it was written by other programs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dataset: String,
    /// The manifest root of the dataset's version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub root: String,
    pub files: u64,
    pub bytes: u64,
    /// Bytes that it added to the repository.
    pub added_bytes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// What the last check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckResult {
    /// The text of the annotation that asked for it.
    pub request: String,
    /// Whether all contents were read.
    pub read_data: bool,
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// What is wrong; empty if nothing is.
    pub problems: Vec<String>,
}

/// What is known of the repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BackupRepositoryStatus {
    pub observed_generation: i64,
    /// The newest snapshots, the newest first; at most 200.
    pub snapshots: Vec<SnapshotInfo>,
    /// How many there are at all.
    pub snapshot_count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_check: Option<CheckResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub last_prune_time: Option<Timestamp>,
    /// What was asked for and is done: the texts that listing, pruning and checking were done for last.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub list_handled: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prune_handled: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub check_handled: String,
    /// `Ready`: whether it can be used, and why not.
    pub conditions: Vec<Condition>,
}

impl BackupRepository {
    /// The text of an annotation, empty if there is none.
    #[must_use]
    pub fn asked(&self, annotation: &str) -> &str {
        self.metadata.annotations.get(annotation).map_or("", String::as_str)
    }
}

impl Resource for BackupRepository {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "BackupRepository",
        plural: "backuprepositories",
        singular: "backuprepository",
        short_names: &["repository"],
        categories: &["fluvial"],
        scope: Scope::Cluster,
        writers: Writers::Users,
        status: true,
        name_rule: NameRule::Dns1123Subdomain,
        columns: &[
            PrinterColumn { name: "Uri", kind: "string", pointer: "/spec/uri", priority: 0 },
            PrinterColumn { name: "Cluster", kind: "string", pointer: "/spec/cluster", priority: 0 },
            PrinterColumn { name: "Snapshots", kind: "integer", pointer: "/status/snapshotCount", priority: 0 },
            PrinterColumn { name: "Ready", kind: "string", pointer: "/status/conditions/0/status", priority: 0 },
            PrinterColumn { name: "Checked", kind: "date", pointer: "/status/lastCheck/time", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, old: Option<&Self>, errors: &mut FieldErrors) {
        let spec = Path::root("spec");
        validate_uri(&self.spec.uri, &spec.key("uri"), errors);
        validate_options(&self.spec.options, &self.spec.encrypt_options, &spec, errors);
        let local = Uri::parse(&self.spec.uri).is_ok_and(|uri| uri.is_local());
        if local && self.spec.cluster.is_empty() {
            errors.required(&spec.key("cluster"), "the cluster whose machine the directory is on");
        }
        if !self.spec.cluster.is_empty()
            && let Some(problem) = NameRule::Dns1123Subdomain.problem(&self.spec.cluster)
        {
            errors.invalid(&spec.key("cluster"), &self.spec.cluster, problem);
        }
        let password = spec.key("passwordSecretRef");
        for (field, value) in
            [("name", &self.spec.password_secret_ref.name), ("key", &self.spec.password_secret_ref.key)]
        {
            if value.is_empty() {
                errors.required(&password.key(field), "the Secret and its key that hold the password");
            }
        }
        if let Some(retention) = &self.spec.retention {
            let at = spec.key("retention");
            if !retention.keep_within.is_empty() && retention.within().is_none() {
                let problem = "must be a duration such as 30d or 12h";
                errors.invalid(&at.key("keepWithin"), &retention.keep_within, problem);
            }
            let counts = [
                retention.keep_last,
                retention.keep_hourly,
                retention.keep_daily,
                retention.keep_weekly,
                retention.keep_monthly,
                retention.keep_yearly,
            ];
            if retention.keep_within.is_empty() && counts.iter().all(|count| count.unwrap_or(0) == 0) {
                errors.push(&at, "would keep nothing: give at least one rule, or leave it out to keep everything");
            }
        }
        if let Some(old) = old
            && old.spec.uri != self.spec.uri
        {
            errors.immutable(&spec.key("uri"));
        }
    }

    fn project(&self) -> Vec<Row> {
        Vec::new()
    }
}
