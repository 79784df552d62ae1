//! ① Storage: a place where data of record can live.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::source::{EncryptOption, validate_options, validate_uri};
use super::{FLUVIAL_GROUP, VERSION};
use crate::catalog::{Cell, Row};
use crate::field::{FieldErrors, Path};
use crate::meta::Condition;
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};
use crate::uri::Uri;

object!(
    /// A place where homes can be made.
    Storage,
    StorageSpec,
    StorageStatus
);

/// Where the place is and what opens it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// The location; a home of dataset `NS/NAME` is made at `URI/NS/NAME/VERSION`.
    pub uri: String,
    /// The cluster that the place belongs to: the only one that reaches it, for `file://`.
    pub cluster: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub encrypt_options: Vec<EncryptOption>,
    /// Price of keeping a GB for a month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_per_gb_month: Option<f64>,
    /// The most bytes that homes may take here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
}

/// What is known of the place.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StorageStatus {
    pub observed_generation: i64,
    /// Bytes of all homes here.
    pub used_bytes: u64,
    pub homes: u64,
    pub conditions: Vec<Condition>,
}

impl Resource for Storage {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "Storage",
        plural: "storages",
        singular: "storage",
        short_names: &["st"],
        categories: &["fluvial"],
        scope: Scope::Cluster,
        writers: Writers::Users,
        status: true,
        name_rule: NameRule::Dns1123Subdomain,
        columns: &[
            PrinterColumn { name: "Cluster", kind: "string", pointer: "/spec/cluster", priority: 0 },
            PrinterColumn { name: "Uri", kind: "string", pointer: "/spec/uri", priority: 0 },
            PrinterColumn { name: "Homes", kind: "integer", pointer: "/status/homes", priority: 0 },
            PrinterColumn { name: "Used", kind: "integer", pointer: "/status/usedBytes", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, old: Option<&Self>, errors: &mut FieldErrors) {
        let spec = Path::root("spec");
        validate_uri(&self.spec.uri, &spec.key("uri"), errors);
        if let Some(uri) = Uri::parse(&self.spec.uri).ok().filter(Uri::is_read_only) {
            let why = format!("{} is only read from: use file, s3, oss, gs or azblob for data of record", uri.scheme());
            errors.invalid(&spec.key("uri"), &self.spec.uri, why);
        }
        validate_options(&self.spec.options, &self.spec.encrypt_options, &spec, errors);
        match NameRule::Dns1123Subdomain.problem(&self.spec.cluster) {
            _ if self.spec.cluster.is_empty() => {
                errors.required(&spec.key("cluster"), "the cluster that the place belongs to")
            }
            Some(problem) => errors.invalid(&spec.key("cluster"), &self.spec.cluster, problem),
            None => {}
        }
        if self.spec.price_per_gb_month.is_some_and(|price| !price.is_finite() || price < 0.0) {
            errors.push(&spec.key("pricePerGbMonth"), "must be a number of at least 0");
        }
        if let Some(old) = old {
            for (field, changed) in
                [("uri", old.spec.uri != self.spec.uri), ("cluster", old.spec.cluster != self.spec.cluster)]
            {
                if changed {
                    errors.immutable(&spec.key(field));
                }
            }
        }
    }

    fn project(&self) -> Vec<Row> {
        let status = self.status.clone().unwrap_or_default();
        vec![Row {
            table: "storages",
            cells: vec![
                Cell::text(&self.metadata.name),
                Cell::text(&self.spec.cluster),
                Cell::text(&self.spec.uri),
                Cell::integer(status.homes),
                Cell::integer(status.used_bytes),
                self.spec.price_per_gb_month.map_or(Cell::Null, Cell::Real),
                Cell::json(&self.metadata.labels),
                Cell::time(self.metadata.creation_timestamp),
            ],
        }]
    }
}
