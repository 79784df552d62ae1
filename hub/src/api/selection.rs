//! ① Label and field selectors of a list, a watch or a collection's deletion.

use fluvial_model::kinds::Event;
use fluvial_model::names::printable;
use fluvial_model::resource::{KindInfo, Resource as _};
use fluvial_model::selector::{LabelSelector, Labels};
use serde_json::Value;

use super::options::Options;
use super::path::Target;
use super::status::ApiError;

/// The fields that every kind can be selected by.
const FIELDS: &[&str] = &["metadata.name", "metadata.namespace"];
/// Those of Events besides.
const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "type",
];

/// One condition on a field.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldTerm {
    pointer: String,
    equal: bool,
    value: String,
}

/// Which objects of a collection are meant.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    labels: Option<LabelSelector>,
    fields: Vec<FieldTerm>,
}

impl Selection {
    /// Reads `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// Names the part that is malformed or the field that cannot be selected by.
    pub fn read(options: &Options, info: &KindInfo) -> Result<Self, ApiError> {
        let labels = options
            .text("labelSelector")
            .map(LabelSelector::parse)
            .transpose()
            .map_err(|problem| ApiError::BadRequest(format!("unable to parse: {problem}")))?
            .filter(|selector| *selector != LabelSelector::default());
        let fields = match options.text("fieldSelector") {
            Some(text) => parse_fields(text, info)?,
            None => Vec::new(),
        };
        Ok(Self { labels, fields })
    }

    /// Whether everything is meant.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.labels.is_none() && self.fields.is_empty()
    }

    /// Whether an object is meant.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        let field = |term: &FieldTerm| {
            let value = object.pointer(&term.pointer).and_then(Value::as_str).unwrap_or_default();
            (value == term.value) == term.equal
        };
        self.fields.iter().all(field) && self.labels.as_ref().is_none_or(|selector| selector.matches(&labels(object)))
    }

    /// The start of the keys that can match: a selection by name need not read the collection.
    #[must_use]
    pub fn prefix(&self, target: &Target) -> String {
        let equal =
            |pointer: &str| self.fields.iter().find(|t| t.equal && t.pointer == pointer).map(|t| t.value.as_str());
        let namespaced = target.kind.info.scope == fluvial_model::resource::Scope::Namespaced;
        let namespace = target.namespace.as_deref().or_else(|| equal("/metadata/namespace").filter(|_| namespaced));
        match (namespace, equal("/metadata/name")) {
            (None, Some(name)) if !namespaced => target.kind.info.key("", name),
            (Some(namespace), Some(name)) => target.kind.info.key(namespace, name),
            (Some(namespace), None) if !namespace.is_empty() => target.kind.info.namespace_prefix(namespace),
            _ => target.prefix(),
        }
    }
}

fn labels(object: &Value) -> Labels {
    let entries = object.pointer("/metadata/labels").and_then(Value::as_object);
    let pair = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    entries.map(|map| map.iter().filter_map(pair).collect()).unwrap_or_default()
}

fn parse_fields(text: &str, info: &KindInfo) -> Result<Vec<FieldTerm>, ApiError> {
    let is_event = info.plural == Event::INFO.plural && info.group == Event::INFO.group;
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (field, value, equal) = if let Some((field, value)) = part.split_once("!=") {
                (field, value, false)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, value, true)
            } else {
                let message = format!("field selector \"{}\": write FIELD=VALUE or FIELD!=VALUE", printable(part));
                return Err(ApiError::BadRequest(message));
            };
            let field = field.trim();
            if !(FIELDS.contains(&field) || is_event && EVENT_FIELDS.contains(&field)) {
                let known: Vec<&str> = FIELDS.iter().chain(EVENT_FIELDS.iter().filter(|_| is_event)).copied().collect();
                return Err(ApiError::BadRequest(format!(
                    "field label not supported: \"{}\"; {} can be selected by {}",
                    printable(field),
                    info.plural,
                    known.join(", ")
                )));
            }
            let pointer = format!("/{}", field.replace('.', "/"));
            Ok(FieldTerm { pointer, equal, value: unescaped(value.trim()) })
        })
        .collect()
}

/// Takes the escapes of a value away.
fn unescaped(value: &str) -> String {
    let mut out = String::new();
    let mut rest = value.chars();
    while let Some(c) = rest.next() {
        out.push(if c == '\\' { rest.next().unwrap_or(c) } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use fluvial_model::kinds::{Cluster, Dataset};
    use serde_json::json;

    use super::*;

    fn selection(query: &str, info: &KindInfo) -> Result<Selection, ApiError> {
        Selection::read(&Options::parse(Some(query)).unwrap(), info)
    }

    #[test]
    fn labels_and_fields_must_both_match() {
        let object = json!({ "metadata": { "name": "a", "namespace": "n", "labels": { "tier": "hot" } } });
        for (query, expected) in [
            ("", true),
            ("labelSelector=tier%3Dhot", true),
            ("labelSelector=tier!%3Dhot", false),
            ("fieldSelector=metadata.name%3Da", true),
            ("fieldSelector=metadata.name!%3Da", false),
            ("labelSelector=tier&fieldSelector=metadata.name%3Db", false),
            ("fieldSelector=metadata.name%3Da,metadata.namespace%3D%3Dn", true),
        ] {
            assert_eq!(selection(query, &Dataset::INFO).unwrap().matches(&object), expected, "{query}");
        }
    }

    #[test]
    fn events_are_found_by_their_object_and_others_are_not() {
        let event = json!({ "metadata": {}, "involvedObject": { "name": "d", "uid": "u" } });
        let query = "fieldSelector=involvedObject.name%3Dd,involvedObject.uid%3Du";
        assert!(selection(query, &Event::INFO).unwrap().matches(&event));
        assert_eq!(selection(query, &Dataset::INFO).unwrap_err().code().as_u16(), 400);
        assert_eq!(selection("fieldSelector=metadata.name", &Dataset::INFO).unwrap_err().code().as_u16(), 400);
        assert_eq!(selection("labelSelector=a+in+b", &Dataset::INFO).unwrap_err().code().as_u16(), 400);
    }

    #[test]
    fn a_name_narrows_what_is_read() {
        let kind = fluvial_model::kinds::find("fluvial.io", "clusters").unwrap();
        let target = Target { kind, namespace: None, name: None, part: super::super::path::Part::Whole };
        let by_name = selection("fieldSelector=metadata.name%3Da", &Cluster::INFO).unwrap();
        assert_eq!(by_name.prefix(&target), "/registry/fluvial.io/clusters/a");
        assert_eq!(Selection::default().prefix(&target), "/registry/fluvial.io/clusters/");
    }
}
