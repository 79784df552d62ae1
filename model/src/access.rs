//! ① Who may do what: roles, bindings, and the answer to one question, with Kubernetes' meaning of each field.
//!
//! Invariants: what no rule allows is refused; a binding to a role that does not exist gives nothing; a binding in a
//! namespace gives nothing outside of it, nor at the cluster's scope; nobody can hand out by a role what they do not
//! have.
//!
//! Deliberately absent: who the caller is (the TLS layer finds out), where roles are kept, aggregated roles, and service
//! accounts, which Fluvial does not have: such a subject matches nobody.

pub mod defaults;
mod grant;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::names::printable;

pub use self::grant::{Ungranted, ungranted};

/// The API group of roles and bindings.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
/// Who is in this group may do everything, whatever roles say: else nobody could mend a wrong role.
pub const MASTERS: &str = "system:masters";
/// The group of all whose identity is known.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Matches every verb, group, resource or path.
const ANY: &str = "*";

/// What a role allows: each verb on each resource of each group, or on each path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    pub verbs: Vec<String>,
    /// The core group is the empty text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// `datasets`, `datasets/status`, `*/status` or `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Which objects; empty for all. Calls that name no object (`list`, `create`) are then not allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths that are about no resource, whole or with `*` at the end. They count only through a ClusterRoleBinding.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

/// Whom a binding is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Subject {
    /// `User` or `Group`.
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// The role that a binding gives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RoleRef {
    pub api_group: String,
    /// `Role` or `ClusterRole`.
    pub kind: String,
    pub name: String,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who<'a> {
    pub user: &'a str,
    pub groups: &'a [String],
}

impl Who<'_> {
    /// Whether roles do not matter.
    #[must_use]
    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }

    fn is(&self, subject: &Subject) -> bool {
        match subject.kind.as_str() {
            "User" => subject.name == self.user,
            "Group" => subject.name == AUTHENTICATED || self.groups.contains(&subject.name),
            _ => false,
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action<'a> {
    /// In Kubernetes' words, all lower case.
    pub verb: &'a str,
    pub on: On<'a>,
}

/// What the action is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On<'a> {
    Resource {
        group: &'a str,
        /// The plural name.
        resource: &'a str,
        /// Empty for the object itself.
        subresource: &'a str,
        /// Empty at the cluster's scope, and for all namespaces.
        namespace: &'a str,
        /// Empty for a collection.
        name: &'a str,
    },
    /// A path that is about no resource.
    Path(&'a str),
}

impl fmt::Display for Action<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = printable(self.verb);
        match self.on {
            On::Path(path) => write!(f, "{verb} path \"{}\"", printable(path)),
            On::Resource { group, resource, subresource, namespace, .. } => {
                let slash = if subresource.is_empty() { "" } else { "/" };
                let (resource, subresource) = (printable(resource), printable(subresource));
                write!(f, "{verb} resource \"{resource}{slash}{subresource}\" in API group \"{}\" ", printable(group))?;
                match namespace {
                    "" => f.write_str("at the cluster scope"),
                    namespace => write!(f, "in the namespace \"{}\"", printable(namespace)),
                }
            }
        }
    }
}

/// No rule allows it. Reads as Kubernetes' refusals do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("User \"{user}\" cannot {action}")]
pub struct Refusal {
    pub user: String,
    pub action: String,
}

/// Where something is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// In all namespaces, and at the cluster's scope.
    Everywhere,
    /// In these namespaces alone.
    Namespaces(BTreeSet<String>),
}

/// Why something is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// By the group [`MASTERS`].
    Master,
    /// By a binding; its namespace is empty for a ClusterRoleBinding.
    Binding { namespace: String, name: String },
}

/// A binding, of either kind.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Binding {
    name: String,
    subjects: Vec<Subject>,
    role: RoleRef,
}

/// All roles and bindings there are, by namespace; the empty one holds those of the cluster's scope.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    roles: HashMap<String, HashMap<String, Vec<PolicyRule>>>,
    bindings: HashMap<String, Vec<Binding>>,
}

impl Policy {
    /// Adds a Role, or, without a namespace, a ClusterRole. One of the same name is replaced.
    pub fn put_role(&mut self, namespace: &str, name: &str, rules: Vec<PolicyRule>) {
        self.roles.entry(namespace.to_owned()).or_default().insert(name.to_owned(), rules);
    }

    /// Adds a RoleBinding, or, without a namespace, a ClusterRoleBinding. One of the same name is replaced.
    pub fn put_binding(&mut self, namespace: &str, name: &str, subjects: Vec<Subject>, role: RoleRef) {
        let bindings = self.bindings.entry(namespace.to_owned()).or_default();
        bindings.retain(|binding| binding.name != name);
        bindings.push(Binding { name: name.to_owned(), subjects, role });
    }

    /// Takes a Role away, or, without a namespace, a ClusterRole.
    pub fn remove_role(&mut self, namespace: &str, name: &str) {
        if let Some(roles) = self.roles.get_mut(namespace) {
            roles.remove(name);
            if roles.is_empty() {
                self.roles.remove(namespace);
            }
        }
    }

    /// Takes a RoleBinding away, or, without a namespace, a ClusterRoleBinding.
    pub fn remove_binding(&mut self, namespace: &str, name: &str) {
        if let Some(bindings) = self.bindings.get_mut(namespace) {
            bindings.retain(|binding| binding.name != name);
            if bindings.is_empty() {
                self.bindings.remove(namespace);
            }
        }
    }

    /// The rules of the role that a binding in `place` would give, if there is such a role. `place` is empty for a
    /// ClusterRoleBinding.
    #[must_use]
    pub fn rules_of(&self, place: &str, role: &RoleRef) -> Option<&[PolicyRule]> {
        self.role(place, role)
    }

    /// Where `who` may do `verb` to a resource, whole.
    #[must_use]
    pub fn reach(&self, who: Who<'_>, verb: &str, group: &str, resource: &str) -> Reach {
        let may = |namespace: &str| {
            let on = On::Resource { group, resource, subresource: "", namespace, name: "" };
            self.decide(who, Action { verb, on }).is_ok()
        };
        if may("") {
            return Reach::Everywhere;
        }
        let places = self.bindings.keys().filter(|place| !place.is_empty() && may(place));
        Reach::Namespaces(places.cloned().collect())
    }

    /// Whether `who` may do it, and why.
    ///
    /// # Errors
    /// If no rule allows it.
    pub fn decide(&self, who: Who<'_>, action: Action<'_>) -> Result<Allowed, Refusal> {
        if who.is_master() {
            return Ok(Allowed::Master);
        }
        let inside = match action.on {
            On::Resource { namespace, .. } => namespace,
            On::Path(_) => "",
        };
        let allowing = self.given(who, inside).find(|(_, _, rules)| rules.iter().any(|rule| rule.allows(action)));
        match allowing {
            Some((namespace, binding, _)) => {
                Ok(Allowed::Binding { namespace: namespace.to_owned(), name: binding.name.clone() })
            }
            None => Err(Refusal { user: printable(who.user), action: action.to_string() }),
        }
    }

    /// Every rule that holds for `who` in a namespace, or, with an empty one, at the cluster's scope.
    pub fn rules<'a>(&'a self, who: Who<'a>, namespace: &'a str) -> impl Iterator<Item = &'a PolicyRule> {
        self.given(who, namespace).flat_map(|(_, _, rules)| rules)
    }

    /// The bindings that `who` has in a namespace: those of the cluster, then its own.
    fn given<'a>(
        &'a self,
        who: Who<'a>,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Binding, &'a [PolicyRule])> {
        let own = (!namespace.is_empty()).then_some(namespace);
        std::iter::once("").chain(own).flat_map(move |place| {
            let bindings = self.bindings.get(place).into_iter().flatten();
            bindings
                .filter(move |binding| binding.subjects.iter().any(|subject| who.is(subject)))
                .filter_map(move |binding| Some((place, binding, self.role(place, &binding.role)?)))
        })
    }

    /// The rules that a binding in `place` means: a RoleBinding may name a ClusterRole, a ClusterRoleBinding no Role.
    fn role(&self, place: &str, role: &RoleRef) -> Option<&[PolicyRule]> {
        let home = match role.kind.as_str() {
            "ClusterRole" => "",
            "Role" if !place.is_empty() => place,
            _ => return None,
        };
        self.roles.get(home)?.get(&role.name).map(Vec::as_slice)
    }
}

impl PolicyRule {
    /// Whether the rule alone allows it.
    #[must_use]
    pub fn allows(&self, action: Action<'_>) -> bool {
        has(&self.verbs, action.verb)
            && match action.on {
                On::Path(path) => self.non_resource_urls.iter().any(|known| path_matches(known, path)),
                On::Resource { group, resource, subresource, name, .. } => {
                    has(&self.api_groups, group)
                        && self.resources.iter().any(|known| resource_matches(known, resource, subresource))
                        && (self.resource_names.is_empty() || self.resource_names.iter().any(|known| known == name))
                }
            }
    }
}

/// Whether the list has the word, or [`ANY`].
fn has(list: &[String], word: &str) -> bool {
    list.iter().any(|known| known == ANY || known == word)
}

/// Whether a rule's resource means this one: `*` means all and their subresources, `*/status` that subresource of all.
fn resource_matches(known: &str, resource: &str, subresource: &str) -> bool {
    match known.split_once('/') {
        None => known == ANY || (known == resource && subresource.is_empty()),
        Some((of, sub)) => (of == ANY || of == resource) && sub == subresource && !subresource.is_empty(),
    }
}

/// Whether a rule's path means this one: whole, or all that begin so if it ends in `*`.
fn path_matches(known: &str, path: &str) -> bool {
    known == path || known.strip_suffix(ANY).is_some_and(|start| path.starts_with(start))
}
