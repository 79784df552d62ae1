//! ① OpenAPI v3, one document for each group and version, from the table of kinds: what `kubectl explain` shows and
//! what tells `kubectl` that the hub checks fields itself.

use fluvial_model::resource::{Kind, KindInfo, Scope};
use serde_json::{Map, Value, json};

use super::discovery::{groups, kinds_of, verbs};

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`: where the documents are. The hash lets clients keep what they have.
#[must_use]
pub fn index() -> Value {
    let paths: Map<String, Value> = std::iter::once(("", "v1"))
        .chain(groups())
        .filter_map(|(group, version)| {
            let path = path_of(group, version);
            let hash = blake3::hash(document(group, version)?.to_string().as_bytes()).to_hex();
            let url = format!("/openapi/v3/{path}?hash={hash}");
            Some((path, json!({ "serverRelativeURL": url })))
        })
        .collect();
    json!({ "paths": paths })
}

/// The document of one group and version, if there is such a version.
#[must_use]
pub fn document(group: &str, version: &str) -> Option<Value> {
    let mut schemas = Map::new();
    let mut paths = Map::new();
    for kind in kinds_of(group, version) {
        schemas.insert(schema_name(&kind.info), schema(kind));
        schemas.insert(format!("{}List", schema_name(&kind.info)), list_schema(&kind.info));
        add_paths(&kind.info, &mut paths);
    }
    if schemas.is_empty() {
        return None;
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": { "title": "Fluvial", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": { "schemas": schemas },
    }))
}

/// `/openapi/v2` for clients that ask for it: what it is, without schemas, which version 3 has.
#[must_use]
pub fn version_2() -> Value {
    json!({ "swagger": "2.0", "info": { "title": "Fluvial", "version": env!("CARGO_PKG_VERSION") }, "paths": {}, "definitions": {} })
}

/// `io.fluvial.v1alpha1.Storage`
fn schema_name(info: &KindInfo) -> String {
    if info.group.is_empty() {
        return format!("io.k8s.api.core.{}.{}", info.version, info.kind);
    }
    let reversed: Vec<&str> = info.group.split('.').rev().collect();
    format!("{}.{}.{}", reversed.join("."), info.version, info.kind)
}

fn gvk(info: &KindInfo, kind: &str) -> Value {
    json!({ "group": info.group, "version": info.version, "kind": kind })
}

fn schema(kind: &Kind) -> Value {
    let mut schema = (kind.schema)().to_value();
    tidy(&mut schema);
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("type".into(), json!("object"));
        fields.insert("x-kubernetes-group-version-kind".into(), json!([gvk(&kind.info, kind.info.kind)]));
    }
    schema
}

/// Takes away what OpenAPI 3.0 and `kubectl explain` do not understand.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            for key in ["$schema", "title", "definitions", "components"] {
                if fields.get(key).is_some_and(|value| key != "title" || value.is_string()) {
                    fields.remove(key);
                }
            }
            collapse_choice(fields);
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        // A schema of `true` allows everything.
        _ => {}
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for property in properties.values_mut().filter(|property| **property == Value::Bool(true)) {
            *property = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        }
    }
    if schema.get("items") == Some(&Value::Bool(true)) {
        schema["items"] = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    }
}

/// An enum with documented variants is written as a choice of one-word schemas: say it as the list of words that it
/// is. A choice of one is that one.
fn collapse_choice(fields: &mut Map<String, Value>) {
    let words = |choices: &Vec<Value>| -> Option<Vec<Value>> {
        let mut words = Vec::new();
        for choice in choices {
            match (choice.get("const"), choice.get("enum").and_then(Value::as_array)) {
                (Some(word @ Value::String(_)), _) => words.push(word.clone()),
                (None, Some(list)) if list.iter().all(Value::is_string) => words.extend(list.iter().cloned()),
                _ => return None,
            }
        }
        Some(words)
    };
    for key in ["oneOf", "anyOf", "allOf"] {
        let Some(Value::Array(choices)) = fields.get(key) else { continue };
        if key != "allOf"
            && let Some(words) = words(choices)
        {
            fields.remove(key);
            fields.insert("type".into(), json!("string"));
            fields.insert("enum".into(), Value::Array(words));
            return;
        }
        let nullable =
            |choice: &&Value| choice.get("enum") == Some(&json!([null])) || choice.get("type") == Some(&json!("null"));
        let real: Vec<Value> = choices.iter().filter(|choice| !nullable(choice)).cloned().collect();
        if let [Value::Object(only)] = real.as_slice() {
            let only = only.clone();
            fields.remove(key);
            for (name, value) in only {
                fields.entry(name).or_insert(value);
            }
            collapse_choice(fields);
            return;
        }
    }
}

fn list_schema(info: &KindInfo) -> Value {
    let item = json!({ "$ref": format!("#/components/schemas/{}", schema_name(info)) });
    json!({
        "description": format!("A list of {}.", info.plural),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": { "type": "string" }, "kind": { "type": "string" }, "metadata": { "type": "object" },
            "items": { "type": "array", "items": item },
        },
        "x-kubernetes-group-version-kind": [gvk(info, &format!("{}List", info.kind))],
    })
}

fn parameter(name: &str, kind: &str, description: &str) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": { "type": kind, "uniqueItems": true } })
}

fn parameters(verb: &str) -> Vec<Value> {
    let dry_run = parameter("dryRun", "string", "All: check everything, write nothing.");
    let field_manager = parameter("fieldManager", "string", "Who writes. Accepted; not kept.");
    let validation = parameter(
        "fieldValidation",
        "string",
        "Unknown fields: Strict refuses, Warn warns, Ignore drops them. Strict unless given.",
    );
    let labels = parameter("labelSelector", "string", "Only objects with these labels.");
    let fields = parameter("fieldSelector", "string", "Only objects with these fields.");
    let version = parameter("resourceVersion", "string", "How fresh the answer must be, or where a watch begins.");
    match verb {
        "create" | "update" | "patch" => vec![dry_run, field_manager, validation],
        "delete" => vec![dry_run, parameter("propagationPolicy", "string", "Background, Foreground or Orphan.")],
        "deletecollection" => vec![dry_run, labels, fields],
        "list" => vec![
            labels,
            fields,
            version,
            parameter("resourceVersionMatch", "string", "NotOlderThan or Exact."),
            parameter("limit", "integer", "At most so many objects; the answer says how to go on."),
            parameter("continue", "string", "Where the last answer said to go on."),
            parameter("watch", "boolean", "Stream changes."),
            parameter("allowWatchBookmarks", "boolean", "Tell from time to time how far the stream has come."),
            parameter("sendInitialEvents", "boolean", "Begin the stream with what is there."),
            parameter("timeoutSeconds", "integer", "End the stream then."),
        ],
        _ => vec![version],
    }
}

fn operation(info: &KindInfo, verb: &str) -> Value {
    let reference = json!({ "$ref": format!("#/components/schemas/{}", schema_name(info)) });
    let returned = match verb {
        "list" => json!({ "$ref": format!("#/components/schemas/{}List", schema_name(info)) }),
        "delete" | "deletecollection" => json!({ "type": "object" }),
        _ => reference.clone(),
    };
    // The words that Kubernetes' own documents use here.
    let action = match verb {
        "create" => "post",
        "update" => "put",
        other => other,
    };
    let mut operation = json!({
        "description": format!("{verb} {}", info.plural),
        "operationId": format!("{verb}{}{}", info.group.replace('.', "-"), info.kind),
        "parameters": parameters(verb),
        "responses": { "200": { "description": "OK", "content": { "application/json": { "schema": returned } } } },
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(info, info.kind),
    });
    let content = match verb {
        "create" | "update" => {
            json!({ "application/json": { "schema": reference }, "application/yaml": { "schema": reference } })
        }
        "patch" => json!({
            "application/merge-patch+json": { "schema": { "type": "object" } },
            "application/json-patch+json": { "schema": { "type": "array", "items": { "type": "object" } } },
        }),
        _ => return operation,
    };
    operation["requestBody"] = json!({ "required": true, "content": content });
    operation
}

fn add_paths(info: &KindInfo, paths: &mut Map<String, Value>) {
    let base = format!("/{}", path_of(info.group, info.version));
    let collection = match info.scope {
        Scope::Namespaced => format!("{base}/namespaces/{{namespace}}/{}", info.plural),
        Scope::Cluster => format!("{base}/{}", info.plural),
    };
    let path_parameter = |name: &str| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string", "uniqueItems": true } });
    let mut common = Vec::new();
    if info.scope == Scope::Namespaced {
        common.push(path_parameter("namespace"));
        paths.insert(format!("{base}/{}", info.plural), json!({ "get": operation(info, "list") }));
    }
    let mut on_collection = json!({ "get": operation(info, "list"), "parameters": common });
    common.push(path_parameter("name"));
    let mut on_object = json!({ "get": operation(info, "get"), "parameters": common });
    for (verb, method, whole) in [
        ("create", "post", true),
        ("deletecollection", "delete", true),
        ("update", "put", false),
        ("patch", "patch", false),
        ("delete", "delete", false),
    ] {
        if verbs(info).contains(&verb) {
            let at = if whole { &mut on_collection } else { &mut on_object };
            at[method] = operation(info, verb);
        }
    }
    paths.insert(collection.clone(), on_collection);
    paths.insert(format!("{collection}/{{name}}"), on_object);
    if info.status {
        let on_status = json!({
            "get": operation(info, "get"), "put": operation(info, "update"), "patch": operation(info, "patch"),
            "parameters": common,
        });
        paths.insert(format!("{collection}/{{name}}/status"), on_status);
    }
}

#[cfg(test)]
mod tests {
    use fluvial_model::kinds::KINDS;

    use super::*;

    #[test]
    fn every_kind_has_a_schema_and_checks_fields_itself() {
        for kind in KINDS {
            let info = &kind.info;
            let document = document(info.group, info.version).unwrap();
            let schema = &document["components"]["schemas"][schema_name(info)];
            assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], info.kind);
            assert!(schema["properties"]["metadata"].is_object(), "{}", info.kind);
            if !verbs(info).contains(&"patch") {
                continue;
            }
            let patch = document["paths"].as_object().unwrap().values().find_map(|path| {
                let patch = path.get("patch")?;
                (patch["x-kubernetes-group-version-kind"]["kind"] == info.kind).then_some(patch)
            });
            let names: Vec<&str> =
                patch.unwrap()["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
            assert!(names.contains(&"fieldValidation"), "{}: {names:?}", info.kind);
        }
    }

    #[test]
    fn schemas_hold_nothing_that_openapi_3_0_does_not_know() {
        let text = document("data.fluid.io", "v1alpha1").unwrap().to_string();
        for word in ["$schema", "\"const\"", "\"definitions\""] {
            assert!(!text.contains(word), "{word}");
        }
        let document = document("data.fluid.io", "v1alpha1").unwrap();
        let phase = &document["components"]["schemas"]["io.fluid.data.v1alpha1.Dataset"]["properties"]["status"]["properties"]
            ["phase"];
        assert_eq!(phase["enum"], json!(["NotBound", "Bound", "Failed", "DataMigrating"]));
        assert_eq!(super::document("nobody.io", "v1"), None);
    }
}
