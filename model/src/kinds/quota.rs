//! ① Quota: how many objects of which kinds a namespace may have.
//!
//! Deliberately absent: bytes. What a dataset or a cache will take is known only once sources are listed, after admission.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FLUVIAL_GROUP, KINDS, VERSION};
use crate::field::{FieldErrors, Path};
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors, object};

object!(
    /// A namespace has no more objects than its quotas say.
    Quota,
    QuotaSpec,
    QuotaStatus
);

/// What there may be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct QuotaSpec {
    /// The most objects of each kind, by the kind's plural name: `datasets`, `datamigrates`, `secrets`. What is more already
    /// stays; kinds that are not named are not counted.
    pub objects: BTreeMap<String, u64>,
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct QuotaStatus {
    /// How many there were when it was last looked, which is at each creation and now and then.
    pub objects: BTreeMap<String, u64>,
}

/// The kind of a namespace's objects with this plural name. Plural names are unique among those that users write.
#[must_use]
pub fn counted(plural: &str) -> Option<&'static KindInfo> {
    let found = KINDS.iter().map(|kind| &kind.info).find(|info| info.plural == plural);
    found.filter(|info| info.scope == Scope::Namespaced && info.writers == Writers::Users)
}

impl Resource for Quota {
    const INFO: KindInfo = KindInfo {
        group: FLUVIAL_GROUP,
        version: VERSION,
        kind: "Quota",
        plural: "quotas",
        singular: "quota",
        short_names: &[],
        categories: &["fluvial"],
        scope: Scope::Namespaced,
        writers: Writers::Users,
        status: true,
        name_rule: NameRule::Dns1123Subdomain,
        columns: &[
            PrinterColumn { name: "Most", kind: "string", pointer: "/spec/objects", priority: 0 },
            PrinterColumn { name: "Used", kind: "string", pointer: "/status/objects", priority: 0 },
            PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 },
        ],
        secret: false,
    };

    metadata_accessors!();

    fn validate(&self, _old: Option<&Self>, errors: &mut FieldErrors) {
        let at = Path::root("spec").key("objects");
        if self.spec.objects.is_empty() {
            errors.required(&at, "the most objects of at least one kind, such as datasets: 100");
        }
        for plural in self.spec.objects.keys().filter(|plural| counted(plural).is_none()) {
            let known = KINDS.iter().map(|kind| kind.info.plural).filter(|plural| counted(plural).is_some());
            let problem = format!("must be one of {}", known.collect::<Vec<_>>().join(", "));
            errors.invalid(&at, plural, problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_counts_what_users_make_in_namespaces() {
        let plurals: Vec<&str> = KINDS.iter().map(|kind| kind.info.plural).collect();
        let mut unique = plurals.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), plurals.len(), "a plural name means one kind");
        let mut errors = FieldErrors::default();
        let objects = ["datasets", "secrets", "clusters", "cachelocations", "things"].map(|name| (name.to_owned(), 1));
        Quota::new("a", "q", QuotaSpec { objects: objects.into() }).validate(None, &mut errors);
        assert_eq!(errors.0.len(), 3, "{errors:?}");
        assert!(errors.0[0].message.contains("datasets"), "{errors:?}");
    }
}
