//! ① The roles and bindings that every fleet begins with, made from the table of kinds.
//!
//! | role | meant for | what it allows |
//! |---|---|---|
//! | `cluster-admin` | a ClusterRoleBinding | everything |
//! | `admin` | a RoleBinding | `edit`, and the namespace's roles and bindings |
//! | `edit` | a RoleBinding | reading and writing the namespace's objects, its Secrets and the content of its datasets |
//! | `view` | a RoleBinding | reading the namespace's objects, Secrets and contents left out |
//! | `fluvial:fleet-admin` | a ClusterRoleBinding | clusters, storages, links, repositories, and tokens for clusters |
//! | `fluvial:fleet-view` | a ClusterRoleBinding | reading these, and the list of hubs |
//! | `system:discovery`, `system:basic-user`, `system:query` | everybody | what there is, what one may do, questions to the catalog |
//!
//! Invariant: nobody gets anything of a fleet by these but what `system:authenticated` is given here.

use super::{AUTHENTICATED, MASTERS, PolicyRule, RBAC_GROUP, RoleRef, Subject, ungranted};
use crate::kinds::{
    ClusterRole, ClusterRoleBinding, DATA_GROUP, FLUVIAL_GROUP, IdentityProvider, JoinToken, KINDS, Quota, User,
    UserToken,
};
use crate::resource::{Kind, KindInfo, Resource as _, Scope, Writers};

/// Kubernetes' annotation for a role that is completed when a hub starts; set it to `false` to keep what is taken away.
pub const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// The group of access reviews.
pub const AUTHORIZATION_GROUP: &str = "authorization.k8s.io";
/// The group of reviews of identities.
pub const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn rule(verbs: &[&str], group: &str, resources: &[&str]) -> PolicyRule {
    PolicyRule {
        verbs: texts(verbs),
        api_groups: texts(&[group]),
        resources: texts(resources),
        ..PolicyRule::default()
    }
}

/// The plural names of a group's kinds that are chosen.
fn plurals(group: &str, chosen: impl Fn(&KindInfo) -> bool) -> Vec<&'static str> {
    let of_group = KINDS.iter().filter(|Kind { info, .. }| info.group == group && chosen(info));
    of_group.map(|kind| kind.info.plural).collect()
}

/// Reading, or reading and writing, of a namespace's objects of the two groups of data.
fn of_namespaces(verbs: &[&str], writers: Option<Writers>) -> impl Iterator<Item = PolicyRule> {
    // A quota is for the namespace's users, and not theirs to change.
    let theirs = move |info: &KindInfo| {
        writers.is_none_or(|writers| info.writers == writers && info.plural != Quota::INFO.plural)
    };
    let chosen = move |info: &KindInfo| info.scope == Scope::Namespaced && theirs(info);
    let verbs = texts(verbs);
    [DATA_GROUP, FLUVIAL_GROUP].into_iter().map(move |group| {
        let verbs: Vec<&str> = verbs.iter().map(String::as_str).collect();
        rule(&verbs, group, &plurals(group, chosen))
    })
}

fn view() -> Vec<PolicyRule> {
    let mut rules: Vec<PolicyRule> = of_namespaces(READ, None).collect();
    rules.push(rule(&["get"], DATA_GROUP, &["datasets/tree", "datasets/diff"]));
    rules.push(rule(READ, "", &["events"]));
    rules.push(rule(&["get"], "", &["namespaces"]));
    rules
}

fn edit() -> Vec<PolicyRule> {
    let mut rules = view();
    rules.extend(of_namespaces(WRITE, Some(Writers::Users)));
    rules.push(rule(&["get"], DATA_GROUP, &["datasets/file"]));
    rules.push(rule(WRITE, "", &["secrets", "events"]));
    rules
}

fn admin() -> Vec<PolicyRule> {
    let mut rules = edit();
    rules.push(rule(WRITE, RBAC_GROUP, &["roles", "rolebindings"]));
    rules.push(rule(&["create"], AUTHORIZATION_GROUP, &["localsubjectaccessreviews"]));
    rules
}

/// The fleet's own kinds: those of the cluster's scope, without credentials and who vouches for them, which are as good as
/// their bearers' rights.
fn of_fleet() -> Vec<&'static str> {
    let credentials =
        [IdentityProvider::INFO.plural, JoinToken::INFO.plural, User::INFO.plural, UserToken::INFO.plural];
    plurals(FLUVIAL_GROUP, |info| info.scope == Scope::Cluster && !credentials.contains(&info.plural))
}

fn fleet_view() -> Vec<PolicyRule> {
    vec![rule(READ, FLUVIAL_GROUP, &of_fleet()), rule(&["list"], FLUVIAL_GROUP, &["hubs"])]
}

fn fleet_admin() -> Vec<PolicyRule> {
    let mut rules = fleet_view();
    rules.push(rule(WRITE, FLUVIAL_GROUP, &of_fleet()));
    rules.push(rule(&["create"], FLUVIAL_GROUP, &["tokens"]));
    rules.push(rule(&["get", "list", "watch", "delete", "deletecollection"], FLUVIAL_GROUP, &["jointokens"]));
    rules
}

fn paths(verbs: &[&str], urls: &[&str]) -> PolicyRule {
    PolicyRule { verbs: texts(verbs), non_resource_urls: texts(urls), ..PolicyRule::default() }
}

fn role(name: &str, rules: Vec<PolicyRule>) -> ClusterRole {
    let mut role = ClusterRole::new("", name, rules);
    role.metadata.annotations.insert(AUTOUPDATE.to_owned(), "true".to_owned());
    role.metadata.labels.insert("kubernetes.io/bootstrapping".to_owned(), "rbac-defaults".to_owned());
    role
}

/// The ClusterRoles.
#[must_use]
pub fn roles() -> Vec<ClusterRole> {
    let everything = vec![rule(&["*"], "*", &["*"]), paths(&["*"], &["*"])];
    let discovery = paths(&["get"], &["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*"]);
    let basic = vec![
        rule(&["create"], AUTHORIZATION_GROUP, &["selfsubjectaccessreviews", "selfsubjectrulesreviews"]),
        rule(&["create"], AUTHENTICATION_GROUP, &["selfsubjectreviews"]),
    ];
    vec![
        role("cluster-admin", everything),
        role("admin", admin()),
        role("edit", edit()),
        role("view", view()),
        role("fluvial:fleet-admin", fleet_admin()),
        role("fluvial:fleet-view", fleet_view()),
        role("system:discovery", vec![discovery]),
        role("system:basic-user", basic),
        // What a question shows is another matter: rows that its asker may not list are not there.
        role("system:query", vec![rule(&["query"], FLUVIAL_GROUP, &["query"])]),
    ]
}

/// The ClusterRoleBindings, each named after its role.
#[must_use]
pub fn bindings() -> Vec<ClusterRoleBinding> {
    let given = [
        ("cluster-admin", MASTERS),
        ("system:discovery", AUTHENTICATED),
        ("system:basic-user", AUTHENTICATED),
        ("system:query", AUTHENTICATED),
    ];
    let binding = |(name, group): (&str, &str)| {
        let role = RoleRef { api_group: RBAC_GROUP.to_owned(), kind: "ClusterRole".to_owned(), name: name.to_owned() };
        let group = Subject {
            kind: "Group".to_owned(),
            api_group: RBAC_GROUP.to_owned(),
            name: group.to_owned(),
            ..Subject::default()
        };
        let mut binding = ClusterRoleBinding::new("", name, role, vec![group]);
        binding.metadata.labels.insert("kubernetes.io/bootstrapping".to_owned(), "rbac-defaults".to_owned());
        binding
    };
    given.into_iter().map(binding).collect()
}

/// What a role must become to allow what it should, or nothing if it does, or says that it is left alone. What was added to
/// it stays.
#[must_use]
pub fn completed(held: &ClusterRole, wanted: &ClusterRole) -> Option<ClusterRole> {
    if held.metadata.annotations.get(AUTOUPDATE).is_none_or(|value| value != "true") {
        return None;
    }
    let owned: Vec<&PolicyRule> = held.rules.iter().collect();
    ungranted(&owned, &wanted.rules)?;
    let missing = wanted.rules.iter().filter(|rule| ungranted(&owned, std::slice::from_ref(rule)).is_some());
    let rules = held.rules.iter().chain(missing).cloned().collect();
    Some(ClusterRole { rules, ..held.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Action, On, Policy, Who};
    use crate::field::FieldErrors;

    fn policy() -> Policy {
        let mut policy = Policy::default();
        for role in roles() {
            policy.put_role("", &role.metadata.name, role.rules);
        }
        for binding in bindings() {
            policy.put_binding("", &binding.metadata.name, binding.subjects, binding.role_ref);
        }
        policy
    }

    /// Whether the holder of a role in namespace `n` may do it there, or, with `namespace` empty, of one everywhere.
    fn may(role: &str, verb: &str, group: &str, resource: &str, namespace: &str) -> bool {
        let mut policy = policy();
        let ann = Subject { kind: "User".into(), name: "ann".into(), ..Subject::default() };
        let role = RoleRef { api_group: RBAC_GROUP.into(), kind: "ClusterRole".into(), name: role.into() };
        policy.put_binding(if namespace.is_empty() { "" } else { "n" }, "b", vec![ann], role);
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let on = On::Resource { group, resource, subresource, namespace, name: "" };
        policy.decide(Who { user: "ann", groups: &[] }, Action { verb, on }).is_ok()
    }

    #[test]
    fn each_role_allows_what_its_users_expect_and_no_more() {
        for (role, verb, group, resource, namespace, expected) in [
            ("view", "watch", DATA_GROUP, "datasets", "n", true),
            ("view", "list", FLUVIAL_GROUP, "placements", "n", true),
            ("view", "get", "", "secrets", "n", false),
            ("view", "create", DATA_GROUP, "datasets", "n", false),
            ("view", "get", DATA_GROUP, "datasets/file", "n", false),
            ("view", "get", DATA_GROUP, "datasets/tree", "n", true),
            ("view", "list", FLUVIAL_GROUP, "clusters", "", false),
            ("edit", "create", DATA_GROUP, "datamigrates", "n", true),
            ("edit", "get", "", "secrets", "n", true),
            ("edit", "get", DATA_GROUP, "datasets/file", "n", true),
            ("edit", "create", DATA_GROUP, "datasets", "m", false),
            ("edit", "update", DATA_GROUP, "datasets/status", "n", false),
            ("view", "get", FLUVIAL_GROUP, "quotas", "n", true),
            ("admin", "update", FLUVIAL_GROUP, "quotas", "n", false),
            ("edit", "create", RBAC_GROUP, "rolebindings", "n", false),
            ("admin", "create", RBAC_GROUP, "rolebindings", "n", true),
            ("admin", "create", RBAC_GROUP, "clusterrolebindings", "", false),
            ("admin", "create", FLUVIAL_GROUP, "tokens", "", false),
            ("fluvial:fleet-view", "list", FLUVIAL_GROUP, "clusters", "", true),
            ("fluvial:fleet-view", "list", FLUVIAL_GROUP, "users", "", false),
            ("fluvial:fleet-view", "delete", FLUVIAL_GROUP, "clusters", "", false),
            ("fluvial:fleet-admin", "delete", FLUVIAL_GROUP, "clusters", "", true),
            ("fluvial:fleet-admin", "create", FLUVIAL_GROUP, "tokens", "", true),
            // A hub has the fleet's key, and a credential all that its user may do.
            ("fluvial:fleet-admin", "create", FLUVIAL_GROUP, "tokens/hub", "", false),
            ("fluvial:fleet-admin", "create", FLUVIAL_GROUP, "users", "", false),
            ("fluvial:fleet-admin", "delete", FLUVIAL_GROUP, "hubs", "", false),
            ("cluster-admin", "create", FLUVIAL_GROUP, "tokens/hub", "", true),
            ("nothing", "query", FLUVIAL_GROUP, "query", "", true),
            ("nothing", "create", AUTHORIZATION_GROUP, "selfsubjectaccessreviews", "", true),
            ("nothing", "create", AUTHORIZATION_GROUP, "subjectaccessreviews", "", false),
            ("nothing", "get", DATA_GROUP, "datasets", "n", false),
        ] {
            assert_eq!(
                may(role, verb, group, resource, namespace),
                expected,
                "{role}: {verb} {resource} in {namespace:?}"
            );
        }
    }

    #[test]
    fn they_are_valid_and_small_enough_to_be_handed_out() {
        for role in roles() {
            let mut errors = FieldErrors::default();
            role.validate(None, &mut errors);
            assert!(errors.is_empty(), "{}: {errors:?}", role.metadata.name);
            let all = roles().remove(0);
            assert_eq!(ungranted(&all.rules.iter().collect::<Vec<_>>(), &role.rules), None);
        }
        for binding in bindings() {
            let mut errors = FieldErrors::default();
            binding.validate(None, &mut errors);
            assert!(errors.is_empty(), "{errors:?}");
            assert!(roles().iter().any(|role| role.metadata.name == binding.role_ref.name));
        }
    }

    #[test]
    fn a_role_is_completed_and_keeps_what_was_added() {
        let wanted = roles().into_iter().find(|role| role.metadata.name == "view").unwrap();
        assert_eq!(completed(&wanted, &wanted), None);
        let mut held = wanted.clone();
        let taken = held.rules.remove(0);
        held.rules.push(rule(&["get"], "other", &["things"]));
        let full = completed(&held, &wanted).unwrap();
        assert!(full.rules.contains(&taken) && full.rules.contains(&rule(&["get"], "other", &["things"])));
        assert_eq!(completed(&full, &wanted), None);
        held.metadata.annotations.insert(AUTOUPDATE.into(), "false".into());
        assert_eq!(completed(&held, &wanted), None);
    }
}
