//! ① Role, ClusterRole and their bindings, in Kubernetes' shape: what users write to say who may do what.
//!
//! Invariant: what [`follow`] makes of the stored objects, in any order, is what [`Policy`] decides by.
//!
//! Deliberately absent: the decisions ([`crate::access`]), and aggregated roles (`aggregationRule`): their field is unknown.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::{Policy, PolicyRule, RBAC_GROUP, RoleRef, Subject};
use crate::field::{FieldErrors, Path};
use crate::meta::ObjectMeta;
use crate::names::NameRule;
use crate::resource::{KindInfo, PrinterColumn, Resource, Scope, Writers, metadata_accessors};

/// The version of the group.
const V1: &str = "v1";

const AGE: PrinterColumn =
    PrinterColumn { name: "Age", kind: "date", pointer: "/metadata/creationTimestamp", priority: 0 };

const RBAC: KindInfo = KindInfo {
    group: RBAC_GROUP,
    version: V1,
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    scope: Scope::Namespaced,
    writers: Writers::Users,
    status: false,
    name_rule: NameRule::PathSegment,
    columns: &[AGE],
    secret: false,
};

const BINDING: KindInfo = KindInfo {
    columns: &[
        PrinterColumn { name: "Role", kind: "string", pointer: "/roleRef/name", priority: 0 },
        AGE,
        PrinterColumn { name: "Subjects", kind: "string", pointer: "/subjects", priority: 1 },
    ],
    ..RBAC
};

/// A kind whose objects are rules.
macro_rules! role {
    ($(#[$doc:meta])* $name:ident, $plural:literal, $singular:literal, $scope:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            pub api_version: String,
            pub kind: String,
            pub metadata: ObjectMeta,
            pub rules: Vec<PolicyRule>,
        }

        impl $name {
            /// A new object with these rules, not yet stored. `namespace` is empty at the cluster's scope.
            #[must_use]
            pub fn new(namespace: &str, name: &str, rules: Vec<PolicyRule>) -> Self {
                let metadata =
                    ObjectMeta { namespace: namespace.to_owned(), name: name.to_owned(), ..ObjectMeta::default() };
                Self { api_version: Self::INFO.api_version(), kind: Self::INFO.kind.to_owned(), metadata, rules }
            }
        }

        impl Resource for $name {
            const INFO: KindInfo = KindInfo {
                kind: stringify!($name),
                plural: $plural,
                singular: $singular,
                scope: $scope,
                ..RBAC
            };

            metadata_accessors!();

            fn validate(&self, _old: Option<&Self>, errors: &mut FieldErrors) {
                for (i, rule) in self.rules.iter().enumerate() {
                    validate_rule(rule, &Path::root("rules").index(i), $scope, errors);
                }
            }
        }
    };
}

/// A kind whose objects give a role to somebody.
macro_rules! binding {
    ($(#[$doc:meta])* $name:ident, $plural:literal, $singular:literal, $scope:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            pub api_version: String,
            pub kind: String,
            pub metadata: ObjectMeta,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            pub subjects: Vec<Subject>,
            pub role_ref: RoleRef,
        }

        impl $name {
            /// A new binding, not yet stored. `namespace` is empty at the cluster's scope.
            #[must_use]
            pub fn new(namespace: &str, name: &str, role_ref: RoleRef, subjects: Vec<Subject>) -> Self {
                let metadata =
                    ObjectMeta { namespace: namespace.to_owned(), name: name.to_owned(), ..ObjectMeta::default() };
                let (api_version, kind) = (Self::INFO.api_version(), Self::INFO.kind.to_owned());
                Self { api_version, kind, metadata, subjects, role_ref }
            }
        }

        impl Resource for $name {
            const INFO: KindInfo = KindInfo {
                kind: stringify!($name),
                plural: $plural,
                singular: $singular,
                scope: $scope,
                ..BINDING
            };

            metadata_accessors!();

            fn validate(&self, old: Option<&Self>, errors: &mut FieldErrors) {
                validate_role_ref(&self.role_ref, $scope, errors);
                if old.is_some_and(|old| old.role_ref != self.role_ref) {
                    errors.immutable(&Path::root("roleRef"));
                }
                for (i, subject) in self.subjects.iter().enumerate() {
                    validate_subject(subject, &Path::root("subjects").index(i), errors);
                }
            }
        }
    };
}

role!(
    /// Rules that count in its own namespace.
    Role,
    "roles",
    "role",
    Scope::Namespaced
);
role!(
    /// Rules that count wherever a binding gives them.
    ClusterRole,
    "clusterroles",
    "clusterrole",
    Scope::Cluster
);
binding!(
    /// Gives a Role, or a ClusterRole, in its own namespace.
    RoleBinding,
    "rolebindings",
    "rolebinding",
    Scope::Namespaced
);
binding!(
    /// Gives a ClusterRole everywhere.
    ClusterRoleBinding,
    "clusterrolebindings",
    "clusterrolebinding",
    Scope::Cluster
);

fn validate_rule(rule: &PolicyRule, at: &Path, scope: Scope, errors: &mut FieldErrors) {
    if rule.verbs.is_empty() {
        errors.required(&at.key("verbs"), "at least one verb, such as get, or *");
    }
    if rule.non_resource_urls.is_empty() {
        if rule.api_groups.is_empty() {
            errors.required(&at.key("apiGroups"), "at least one group, such as data.fluid.io; the core group is \"\"");
        }
        if rule.resources.is_empty() {
            errors.required(&at.key("resources"), "at least one resource by its plural name, such as datasets, or *");
        }
        return;
    }
    let urls = at.key("nonResourceURLs");
    if scope == Scope::Namespaced {
        errors.push(&urls, "a namespace has no paths: they belong into a ClusterRole");
    }
    if !(rule.api_groups.is_empty() && rule.resources.is_empty() && rule.resource_names.is_empty()) {
        errors.push(&urls, "a rule is about resources or about paths, not about both");
    }
    for (i, url) in rule.non_resource_urls.iter().enumerate() {
        let star_inside = url.find('*').is_some_and(|star| star + 1 != url.len());
        if !(url == "*" || url.starts_with('/')) || star_inside {
            errors.invalid(&urls.index(i), url, "must begin with '/', and may hold '*' at its end alone");
        }
    }
}

fn validate_role_ref(role: &RoleRef, scope: Scope, errors: &mut FieldErrors) {
    let at = Path::root("roleRef");
    if role.api_group != RBAC_GROUP {
        errors.invalid(&at.key("apiGroup"), &role.api_group, format!("must be {RBAC_GROUP}"));
    }
    match (role.kind.as_str(), scope) {
        ("ClusterRole", _) | ("Role", Scope::Namespaced) => {}
        (kind, Scope::Namespaced) => errors.invalid(&at.key("kind"), kind, "must be Role or ClusterRole"),
        (kind, Scope::Cluster) => errors.invalid(&at.key("kind"), kind, "must be ClusterRole"),
    }
    if let Some(problem) = NameRule::PathSegment.problem(&role.name) {
        errors.invalid(&at.key("name"), &role.name, problem);
    }
}

fn validate_subject(subject: &Subject, at: &Path, errors: &mut FieldErrors) {
    if subject.name.is_empty() {
        errors.required(&at.key("name"), "who it is for");
    }
    let group = match subject.kind.as_str() {
        "User" | "Group" => RBAC_GROUP,
        // Nobody is one here, but manifests of Kubernetes name them.
        "ServiceAccount" => "",
        other => return errors.invalid(&at.key("kind"), other, "must be User, Group or ServiceAccount"),
    };
    if subject.api_group != group {
        errors.invalid(&at.key("apiGroup"), &subject.api_group, format!("must be \"{group}\""));
    }
    if (subject.kind == "ServiceAccount") == subject.namespace.is_empty() {
        errors.invalid(&at.key("namespace"), &subject.namespace, "is for a ServiceAccount, and needed there");
    }
}

/// Fills in the groups that clients leave out, as Kubernetes does.
pub fn complete_binding(role_ref: &mut RoleRef, subjects: &mut [Subject]) {
    if role_ref.api_group.is_empty() {
        RBAC_GROUP.clone_into(&mut role_ref.api_group);
    }
    for subject in subjects.iter_mut().filter(|subject| matches!(subject.kind.as_str(), "User" | "Group")) {
        if subject.api_group.is_empty() {
            RBAC_GROUP.clone_into(&mut subject.api_group);
        }
    }
}

/// The start of the keys of all four kinds.
#[must_use]
pub fn prefix() -> String {
    format!("/registry/{RBAC_GROUP}/")
}

/// Takes into a policy what is stored at `key` now; `None` is nothing any more. Other kinds' keys mean nothing, and a value
/// that cannot be read gives nothing.
pub fn follow(policy: &mut Policy, key: &str, value: Option<&[u8]>) {
    let Some((plural, place)) = key.strip_prefix(&prefix()).and_then(|rest| rest.split_once('/')) else { return };
    let (namespace, name) = place.split_once('/').unwrap_or(("", place));
    match plural {
        "roles" => match value.and_then(|bytes| Role::from_bytes(bytes).ok()) {
            Some(role) => policy.put_role(namespace, name, role.rules),
            None => policy.remove_role(namespace, name),
        },
        "clusterroles" => match value.and_then(|bytes| ClusterRole::from_bytes(bytes).ok()) {
            Some(role) => policy.put_role(namespace, name, role.rules),
            None => policy.remove_role(namespace, name),
        },
        "rolebindings" => match value.and_then(|bytes| RoleBinding::from_bytes(bytes).ok()) {
            Some(binding) => policy.put_binding(namespace, name, binding.subjects, binding.role_ref),
            None => policy.remove_binding(namespace, name),
        },
        "clusterrolebindings" => match value.and_then(|bytes| ClusterRoleBinding::from_bytes(bytes).ok()) {
            Some(binding) => policy.put_binding(namespace, name, binding.subjects, binding.role_ref),
            None => policy.remove_binding(namespace, name),
        },
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::access::{Action, On, Who};

    fn problems<R: Resource>(object: serde_json::Value) -> Vec<String> {
        let mut errors = FieldErrors::default();
        R::from_value(&object).unwrap().validate(None, &mut errors);
        errors.0.iter().map(|error| error.field.clone()).collect()
    }

    #[test]
    fn what_makes_no_sense_is_refused_where_it_stands() {
        let rule = |rule: serde_json::Value| json!({ "rules": [rule] });
        assert_eq!(problems::<Role>(rule(json!({}))), ["rules[0].verbs", "rules[0].apiGroups", "rules[0].resources"]);
        let paths = rule(json!({ "verbs": ["get"], "nonResourceURLs": ["/a*b", "c", "/d*", "*"] }));
        assert_eq!(
            problems::<ClusterRole>(paths.clone()),
            ["rules[0].nonResourceURLs[0]", "rules[0].nonResourceURLs[1]"]
        );
        assert!(problems::<Role>(paths).contains(&"rules[0].nonResourceURLs".to_owned()));
        let binding = |kind: &str, subject: serde_json::Value| json!({ "roleRef": { "apiGroup": RBAC_GROUP, "kind": kind, "name": "r" }, "subjects": [subject] });
        let ann = json!({ "kind": "User", "apiGroup": RBAC_GROUP, "name": "ann" });
        assert_eq!(problems::<ClusterRoleBinding>(binding("Role", ann.clone())), ["roleRef.kind"]);
        assert_eq!(problems::<RoleBinding>(binding("Role", ann)), <[&str; 0]>::default());
        let robot = json!({ "kind": "Robot", "name": "" });
        assert_eq!(problems::<RoleBinding>(binding("Role", robot)), ["subjects[0].name", "subjects[0].kind"]);
        let account = json!({ "kind": "ServiceAccount", "name": "a" });
        assert_eq!(problems::<RoleBinding>(binding("Role", account)), ["subjects[0].namespace"]);
    }

    #[test]
    fn a_policy_follows_what_is_stored() {
        let role = json!({ "rules": [{ "verbs": ["get"], "apiGroups": ["g"], "resources": ["r"] }] }).to_string();
        let binding = json!({
            "roleRef": { "apiGroup": RBAC_GROUP, "kind": "Role", "name": "x:y" },
            "subjects": [{ "kind": "User", "name": "ann" }],
        })
        .to_string();
        let (role_at, binding_at) = (Role::INFO.key("n", "x:y"), RoleBinding::INFO.key("n", "b"));
        let on = On::Resource { group: "g", resource: "r", subresource: "", namespace: "n", name: "o" };
        let mut policy = Policy::default();
        let may = |policy: &Policy| policy.decide(Who { user: "ann", groups: &[] }, Action { verb: "get", on }).is_ok();
        for (key, value, expected) in [
            (&binding_at, Some(&binding), false),
            (&role_at, Some(&role), true),
            (&binding_at, None, false),
            (&binding_at, Some(&binding), true),
            (&role_at, None, false),
        ] {
            follow(&mut policy, key, value.map(String::as_bytes));
            assert_eq!(may(&policy), expected, "{key} {value:?}");
        }
        follow(&mut policy, &binding_at, None);
        assert_eq!(policy, Policy::default(), "nothing is left");
    }
}
