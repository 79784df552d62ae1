//! Roles, bindings and access reviews in Kubernetes' protobuf, as `kubectl create rolebinding` and `kubectl auth` send them.

use fluvial_model::access::{PolicyRule, RoleRef, Subject};
use prost::Message;
use serde_json::{Value, json};

#[derive(Message)]
struct Rules {
    #[prost(message, repeated, tag = "2")]
    rules: Vec<Rule>,
}

#[derive(Message)]
struct Rule {
    #[prost(string, repeated, tag = "1")]
    verbs: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    api_groups: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    resources: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    resource_names: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    non_resource_urls: Vec<String>,
}

#[derive(Message)]
struct Given {
    #[prost(message, repeated, tag = "2")]
    subjects: Vec<Whom>,
    #[prost(message, optional, tag = "3")]
    role_ref: Option<Ref>,
}

#[derive(Message)]
struct Whom {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    api_group: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    namespace: String,
}

#[derive(Message)]
struct Ref {
    #[prost(string, tag = "1")]
    api_group: String,
    #[prost(string, tag = "2")]
    kind: String,
    #[prost(string, tag = "3")]
    name: String,
}

#[derive(Message)]
struct Asked {
    #[prost(message, optional, tag = "2")]
    spec: Option<AskedSpec>,
}

#[derive(Message)]
struct AskedSpec {
    #[prost(message, optional, tag = "1")]
    resource: Option<AskedResource>,
    #[prost(message, optional, tag = "2")]
    path: Option<AskedPath>,
    #[prost(string, tag = "3")]
    user: String,
    #[prost(string, repeated, tag = "4")]
    groups: Vec<String>,
}

#[derive(Message)]
struct AskedResource {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    verb: String,
    #[prost(string, tag = "3")]
    group: String,
    #[prost(string, tag = "5")]
    resource: String,
    #[prost(string, tag = "6")]
    subresource: String,
    #[prost(string, tag = "7")]
    name: String,
}

#[derive(Message)]
struct AskedPath {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(string, tag = "2")]
    verb: String,
}

#[derive(Message)]
struct AskedRules {
    #[prost(message, optional, tag = "2")]
    spec: Option<AskedRulesSpec>,
}

#[derive(Message)]
struct AskedRulesSpec {
    #[prost(string, tag = "1")]
    namespace: String,
}

/// The rules of a role.
pub(super) fn rules(raw: &[u8]) -> Option<Value> {
    let rule = |rule: Rule| PolicyRule {
        verbs: rule.verbs,
        api_groups: rule.api_groups,
        resources: rule.resources,
        resource_names: rule.resource_names,
        non_resource_urls: rule.non_resource_urls,
    };
    let rules: Vec<PolicyRule> = Rules::decode(raw).ok()?.rules.into_iter().map(rule).collect();
    Some(json!(rules))
}

/// The subjects and the role of a binding.
pub(super) fn given(raw: &[u8]) -> Option<(Value, Value)> {
    let Given { subjects, role_ref } = Given::decode(raw).ok()?;
    let whom = |Whom { kind, api_group, name, namespace }| Subject { kind, api_group, name, namespace };
    let subjects: Vec<Subject> = subjects.into_iter().map(whom).collect();
    let Ref { api_group, kind, name } = role_ref.unwrap_or_default();
    Some((json!(subjects), json!(RoleRef { api_group, kind, name })))
}

/// The spec of a review of this kind.
pub(super) fn review(kind: &str, raw: &[u8]) -> Option<Value> {
    if kind == "SelfSubjectRulesReview" {
        let spec = AskedRules::decode(raw).ok()?.spec.unwrap_or_default();
        return Some(json!({ "namespace": spec.namespace }));
    }
    if kind == "SelfSubjectReview" {
        return Some(json!({}));
    }
    let AskedSpec { resource, path, user, groups } = Asked::decode(raw).ok()?.spec.unwrap_or_default();
    let resource = resource.map(|of| {
        json!({
            "namespace": of.namespace, "verb": of.verb, "group": of.group, "resource": of.resource,
            "subresource": of.subresource, "name": of.name,
        })
    });
    let path = path.map(|of| json!({ "path": of.path, "verb": of.verb }));
    Some(json!({ "resourceAttributes": resource, "nonResourceAttributes": path, "user": user, "groups": groups }))
}
