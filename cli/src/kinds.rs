//! Which kinds the hub serves, and which of them the user means.

use anyhow::{Result, bail};
use fluvial_model::access::RBAC_GROUP;
use fluvial_model::names::{NameRule, printable};
use kube::Client;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::client::{self, Failure, JSON};

/// A kind as discovery describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub namespaced: bool,
}

/// Everything that the hub serves.
#[derive(Debug, Clone)]
pub(crate) struct Kinds(Vec<Kind>);

impl Kinds {
    /// Asks the hub.
    ///
    /// # Errors
    /// If it does not answer.
    pub(crate) async fn discover(client: &Client) -> Result<Self, Failure> {
        let mut lists = vec![client::get(client, "/api/v1", JSON).await?];
        let groups = client::get(client, "/apis", JSON).await?;
        for group in texts(&groups, "/groups", "/preferredVersion/groupVersion") {
            lists.push(client::get(client, &format!("/apis/{group}"), JSON).await?);
        }
        Ok(Self(lists.iter().flat_map(read).collect()))
    }

    /// The kind of a word: plural, singular, kind or short name, with its group behind a dot or without.
    ///
    /// # Errors
    /// If there is none, or several; says which there are.
    pub(crate) fn named(&self, word: &str) -> Result<&Kind> {
        let lower = word.to_ascii_lowercase();
        let (name, group) = lower.split_once('.').map_or((lower.as_str(), None), |(name, group)| (name, Some(group)));
        let is = |kind: &&Kind| {
            let names = [&kind.plural, &kind.singular, &kind.kind.to_ascii_lowercase()];
            (names.iter().any(|n| *n == name) || kind.short_names.iter().any(|n| n == name))
                && group.is_none_or(|group| group == kind.group)
        };
        let found: Vec<&Kind> = self.0.iter().filter(is).collect();
        match found.as_slice() {
            [one] => Ok(one),
            [] => {
                let mut known: Vec<&str> = self.0.iter().map(|kind| kind.plural.as_str()).collect();
                known.sort_unstable();
                bail!("there is no kind \"{}\": the hub serves {}", printable(word), known.join(", "))
            }
            many => {
                let full: Vec<String> = many.iter().map(|kind| kind.resource()).collect();
                bail!("\"{}\" may mean {}: write it in full", printable(word), full.join(" or "))
            }
        }
    }

    /// The kind of a document.
    pub(crate) fn of(&self, api_version: &str, kind: &str) -> Option<&Kind> {
        self.0.iter().find(|known| known.kind == kind && known.api_version() == api_version)
    }
}

impl Kind {
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// An object in one word: `dataset.data.fluid.io/d`.
    pub(crate) fn object(&self, name: &str) -> String {
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        format!("{}{group}/{name}", self.singular)
    }

    pub(crate) fn is_secret(&self) -> bool {
        self.group.is_empty() && self.kind == "Secret"
    }

    /// Where the objects are, in one namespace or in all.
    pub(crate) fn collection(&self, namespace: Option<&str>) -> Result<String> {
        let root = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        let space = match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("/namespaces/{}", in_path("namespace", namespace)?),
            None => String::new(),
        };
        Ok(format!("{root}/{}{space}/{}", self.version, self.plural))
    }

    /// Where one object is.
    pub(crate) fn one(&self, namespace: &str, name: &str) -> Result<String> {
        let collection = self.collection(Some(namespace))?;
        if self.group != RBAC_GROUP {
            return Ok(format!("{collection}/{}", in_path(&self.singular, name)?));
        }
        // Roles may have any name; many have colons.
        match NameRule::PathSegment.problem(name) {
            Some(problem) => bail!("{} \"{}\": {problem}", self.singular, printable(name)),
            None => Ok(format!("{collection}/{}", utf8_percent_encode(name, NON_ALPHANUMERIC))),
        }
    }
}

/// A name that may stand in a path as it is.
///
/// # Errors
/// If no object can have it.
pub(crate) fn in_path<'a>(what: &str, name: &'a str) -> Result<&'a str> {
    match NameRule::Dns1123Subdomain.problem(name) {
        Some(problem) => bail!("{what} \"{}\": {problem}", printable(name)),
        None => Ok(name),
    }
}

/// The texts at `pointer` in each item of a list.
fn texts<'a>(value: &'a Value, list: &str, pointer: &'a str) -> impl Iterator<Item = &'a str> {
    let items = value.pointer(list).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(move |item| item.pointer(pointer).and_then(Value::as_str))
}

fn read(list: &Value) -> Vec<Kind> {
    let group_version = list.get("groupVersion").and_then(Value::as_str).unwrap_or_default();
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    let items = list.get("resources").and_then(Value::as_array).into_iter().flatten();
    let text = |item: &Value, field: &str| item.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = |item: &Value| Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: text(item, "kind"),
        plural: text(item, "name"),
        singular: text(item, "singularName"),
        short_names: item
            .get("shortNames")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        namespaced: item.get("namespaced").and_then(Value::as_bool).unwrap_or_default(),
    };
    // `datasets/status` is a part of a kind.
    items.map(kind).filter(|kind| !kind.plural.is_empty() && !kind.plural.contains('/')).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kinds() -> Kinds {
        let core = json!({ "groupVersion": "v1", "resources": [
            { "name": "secrets", "singularName": "secret", "namespaced": true, "kind": "Secret" },
        ] });
        let resource = |name: &str, singular: &str, kind: &str, short: &str| {
            json!({
                "name": name, "singularName": singular, "namespaced": true, "kind": kind, "shortNames": [short],
            })
        };
        let fluid = json!({ "groupVersion": "data.fluid.io/v1alpha1", "resources": [
            resource("datasets", "dataset", "Dataset", "ds"),
            { "name": "datasets/status", "singularName": "", "namespaced": true, "kind": "Dataset" },
            resource("things", "thing", "Thing", "t"),
        ] });
        let other = json!({ "groupVersion": "x.io/v1", "resources": [resource("things", "thing", "Thing", "xt")] });
        Kinds([core, fluid, other].iter().flat_map(read).collect())
    }

    #[test]
    fn every_name_of_a_kind_finds_it() {
        let kinds = kinds();
        for word in ["datasets", "dataset", "Dataset", "ds", "datasets.data.fluid.io"] {
            assert_eq!(kinds.named(word).unwrap().plural, "datasets", "{word}");
        }
        assert_eq!(kinds.named("xt").unwrap().group, "x.io");
        assert_eq!(kinds.of("x.io/v1", "Thing").unwrap().group, "x.io");
        assert_eq!(kinds.of("x.io/v2", "Thing"), None);
    }

    #[test]
    fn an_unknown_or_ambiguous_word_is_refused_with_the_choices() {
        let kinds = kinds();
        assert_eq!(
            kinds.named("datasetz").unwrap_err().to_string(),
            "there is no kind \"datasetz\": the hub serves datasets, secrets, things, things"
        );
        assert_eq!(
            kinds.named("thing").unwrap_err().to_string(),
            "\"thing\" may mean things.data.fluid.io or things.x.io: write it in full"
        );
    }

    #[test]
    fn paths_hold_only_names() {
        let kinds = kinds();
        let dataset = kinds.named("ds").unwrap();
        assert_eq!(dataset.one("n", "d").unwrap(), "/apis/data.fluid.io/v1alpha1/namespaces/n/datasets/d");
        assert_eq!(kinds.named("secret").unwrap().collection(None).unwrap(), "/api/v1/secrets");
        assert!(dataset.one("n", "../x").is_err());
        assert!(dataset.one("n?x", "d").is_err());
        assert_eq!(dataset.object("d"), "dataset.data.fluid.io/d");
    }
}
