//! ① Discovery: which groups, versions and kinds there are, from the table of kinds alone.

use fluvial_model::kinds::KINDS;
use fluvial_model::resource::{Kind, KindInfo, Scope, Writers};
use serde_json::{Value, json};

/// Each group and its version, in the order of the table, the core group left out.
#[must_use]
pub fn groups() -> Vec<(&'static str, &'static str)> {
    let mut groups: Vec<(&str, &str)> = Vec::new();
    for kind in KINDS.iter().filter(|kind| !kind.info.group.is_empty()) {
        let pair = (kind.info.group, kind.info.version);
        if !groups.contains(&pair) {
            groups.push(pair);
        }
    }
    groups
}

/// The kinds of one group and version.
pub fn kinds_of<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Kind> + 'a {
    KINDS.iter().filter(move |kind| kind.info.group == group && kind.info.version == version)
}

/// What can be done to a kind.
#[must_use]
pub fn verbs(info: &KindInfo) -> &'static [&'static str] {
    match info.writers {
        Writers::Users => &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        Writers::HubUntilDeleted => &["delete", "deletecollection", "get", "list", "watch"],
        Writers::Hub => &["get", "list", "watch"],
    }
}

/// `/version`
#[must_use]
pub fn version() -> Value {
    // What API behaviour a Kubernetes client may expect, and which Fluvial this is.
    json!({
        "major": "1", "minor": "34",
        "gitVersion": format!("v1.34.0+fluvial.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

/// `/api`
#[must_use]
pub fn core_versions() -> Value {
    json!({ "kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
}

fn group_value(group: &str, version: &str) -> Value {
    let entry = json!({ "groupVersion": format!("{group}/{version}"), "version": version });
    json!({ "name": group, "versions": [entry], "preferredVersion": entry })
}

/// `/apis`
#[must_use]
pub fn group_list() -> Value {
    let groups: Vec<Value> = groups().iter().map(|(group, version)| group_value(group, version)).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/apis/GROUP`, if there is such a group.
#[must_use]
pub fn group(name: &str) -> Option<Value> {
    let (group, version) = groups().into_iter().find(|(group, _)| *group == name)?;
    let mut value = group_value(group, version);
    value["kind"] = json!("APIGroup");
    value["apiVersion"] = json!("v1");
    Some(value)
}

/// `/api/v1` or `/apis/GROUP/VERSION`, if there is such a version.
#[must_use]
pub fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    let mut group_version = None;
    for Kind { info, .. } in kinds_of(group, version) {
        group_version = Some(info.api_version());
        let namespaced = info.scope == Scope::Namespaced;
        resources.push(json!({
            "name": info.plural, "singularName": info.singular, "namespaced": namespaced, "kind": info.kind,
            "verbs": verbs(info), "shortNames": info.short_names, "categories": info.categories,
        }));
        if info.status {
            resources.push(json!({
                "name": format!("{}/status", info.plural), "singularName": "", "namespaced": namespaced,
                "kind": info.kind, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    let group_version = group_version?;
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_discovered() {
        let mut found = Vec::new();
        for (group, version) in std::iter::once(("", "v1")).chain(groups()) {
            let list = resource_list(group, version).unwrap();
            found.extend(list["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()));
        }
        for kind in KINDS {
            assert!(found.iter().any(|name| name == kind.info.plural), "{}", kind.info.plural);
        }
        assert!(found.contains(&"datasets/status".to_owned()));
        assert!(!found.contains(&"secrets/status".to_owned()));
        assert_eq!(resource_list("fluvial.io", "v2"), None);
        assert_eq!(group("nobody.io"), None);
    }
}
