//! What rules, bindings and grants mean, by tables and by properties.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> PolicyRule {
    PolicyRule {
        verbs: texts(verbs),
        api_groups: texts(groups),
        resources: texts(resources),
        resource_names: texts(names),
        non_resource_urls: Vec::new(),
    }
}

fn paths(verbs: &[&str], urls: &[&str]) -> PolicyRule {
    PolicyRule { verbs: texts(verbs), non_resource_urls: texts(urls), ..PolicyRule::default() }
}

fn subject(kind: &str, name: &str) -> Subject {
    Subject { kind: kind.into(), api_group: RBAC_GROUP.into(), name: name.into(), namespace: String::new() }
}

fn reference(kind: &str, name: &str) -> RoleRef {
    RoleRef { api_group: RBAC_GROUP.into(), kind: kind.into(), name: name.into() }
}

/// `verb resource[/subresource] [namespace[/name]]` in the group of datasets.
fn action(text: &str) -> Action<'_> {
    let mut words = text.split(' ');
    let verb = words.next().unwrap();
    let (resource, subresource) = words.next().map(|what| what.split_once('/').unwrap_or((what, ""))).unwrap();
    let (namespace, name) = words.next().map_or(("", ""), |place| place.split_once('/').unwrap_or((place, "")));
    Action { verb, on: On::Resource { group: "data.fluid.io", resource, subresource, namespace, name } }
}

const ANN: Who<'_> = Who { user: "ann", groups: &[] };

fn policy() -> Policy {
    let mut policy = Policy::default();
    policy.put_role("", "view", vec![rule(&["get", "list", "watch"], &["data.fluid.io"], &["datasets"], &[])]);
    policy.put_role("a", "one", vec![rule(&["get", "update"], &["data.fluid.io"], &["datasets/status"], &["d"])]);
    policy.put_role("a", "view", vec![rule(&["delete"], &["data.fluid.io"], &["datasets"], &[])]);
    policy
}

#[test]
fn without_a_binding_nothing_is_allowed_and_the_refusal_reads_like_kubernetes() {
    let policy = policy();
    for (text, expected) in [
        ("list datasets a", r#"list resource "datasets" in API group "data.fluid.io" in the namespace "a""#),
        (
            "get datasets/status a/d",
            r#"get resource "datasets/status" in API group "data.fluid.io" in the namespace "a""#,
        ),
        ("list datasets", r#"list resource "datasets" in API group "data.fluid.io" at the cluster scope"#),
    ] {
        let refused = policy.decide(ANN, action(text)).unwrap_err();
        assert_eq!(refused.to_string(), format!(r#"User "ann" cannot {expected}"#));
    }
    let path = policy.decide(ANN, Action { verb: "get", on: On::Path("/metrics") }).unwrap_err();
    assert_eq!(path.to_string(), r#"User "ann" cannot get path "/metrics""#);
}

#[test]
fn a_binding_gives_its_role_to_its_subjects_in_its_place_alone() {
    let groups = texts(&["team"]);
    let callers = [ANN, Who { user: "bob", groups: &groups }, Who { user: "team", groups: &[] }];
    for (place, subject, role, text, expected) in [
        ("a", subject("User", "ann"), reference("ClusterRole", "view"), "list datasets a", [true, false, false]),
        ("a", subject("User", "ann"), reference("ClusterRole", "view"), "list datasets b", [false; 3]),
        ("a", subject("User", "ann"), reference("ClusterRole", "view"), "list datasets", [false; 3]),
        ("", subject("User", "ann"), reference("ClusterRole", "view"), "list datasets", [true, false, false]),
        ("", subject("User", "ann"), reference("ClusterRole", "view"), "list datasets b", [true, false, false]),
        ("", subject("Group", "team"), reference("ClusterRole", "view"), "watch datasets b", [false, true, false]),
        ("", subject("Group", AUTHENTICATED), reference("ClusterRole", "view"), "get datasets b/d", [true; 3]),
        ("", subject("ServiceAccount", "ann"), reference("ClusterRole", "view"), "get datasets b/d", [false; 3]),
        // The ClusterRole and the Role of one name are two roles.
        ("a", subject("User", "ann"), reference("ClusterRole", "view"), "delete datasets a/d", [false; 3]),
        ("a", subject("User", "ann"), reference("Role", "view"), "delete datasets a/d", [true, false, false]),
        ("a", subject("User", "ann"), reference("Role", "view"), "list datasets a", [false; 3]),
        // A Role of another namespace, of none, and a role that does not exist.
        ("b", subject("User", "ann"), reference("Role", "view"), "delete datasets b/d", [false; 3]),
        ("", subject("User", "ann"), reference("Role", "view"), "list datasets a", [false; 3]),
        ("a", subject("User", "ann"), reference("ClusterRole", "gone"), "list datasets a", [false; 3]),
        // One object, one part of it.
        ("a", subject("User", "ann"), reference("Role", "one"), "update datasets/status a/d", [true, false, false]),
        ("a", subject("User", "ann"), reference("Role", "one"), "update datasets/status a/e", [false; 3]),
        ("a", subject("User", "ann"), reference("Role", "one"), "get datasets a/d", [false; 3]),
    ] {
        let mut policy = policy();
        policy.put_binding(place, "b", vec![subject.clone()], role.clone());
        let found = callers.map(|who| policy.decide(who, action(text)).is_ok());
        assert_eq!(found, expected, "{place:?} {subject:?} {role:?} {text}");
        let by = Allowed::Binding { namespace: place.to_owned(), name: "b".to_owned() };
        let why = callers.map(|who| policy.decide(who, action(text)).ok());
        assert!(why.into_iter().flatten().all(|why| why == by));
    }
}

#[test]
fn a_binding_that_is_written_again_takes_back_what_it_gave() {
    let mut policy = policy();
    policy.put_binding("", "b", vec![subject("User", "ann")], reference("ClusterRole", "view"));
    assert!(policy.decide(ANN, action("list datasets a")).is_ok());
    policy.put_binding("", "b", vec![subject("User", "bob")], reference("ClusterRole", "view"));
    assert!(policy.decide(ANN, action("list datasets a")).is_err());
}

#[test]
fn masters_need_no_role_and_nobody_is_one_by_name() {
    let groups = texts(&[MASTERS]);
    assert_eq!(
        Policy::default().decide(Who { user: "x", groups: &groups }, action("delete datasets a/d")),
        Ok(Allowed::Master)
    );
    let named = Who { user: MASTERS, groups: &[] };
    assert!(Policy::default().decide(named, action("get datasets a/d")).is_err());
}

#[test]
fn what_a_rule_means() {
    for (rule, text, expected) in [
        (rule(&["*"], &["*"], &["*"], &[]), "patch datasets/status a/d", true),
        (rule(&["get"], &["data.fluid.io"], &["datasets"], &[]), "get datasets/status a/d", false),
        (rule(&["get"], &["data.fluid.io"], &["*/status"], &[]), "get datasets/status a/d", true),
        (rule(&["get"], &["data.fluid.io"], &["*/status"], &[]), "get datasets a/d", false),
        (rule(&["get"], &["data.fluid.io"], &["datasets/*"], &[]), "get datasets/status a/d", false),
        (rule(&["get"], &[""], &["datasets"], &[]), "get datasets a/d", false),
        (rule(&["GET"], &["*"], &["*"], &[]), "get datasets a/d", false),
        (rule(&["list"], &["*"], &["*"], &["d"]), "list datasets a", false),
        (rule(&[], &["*"], &["*"], &[]), "get datasets a/d", false),
        (paths(&["*"], &["*"]), "get datasets a/d", false),
    ] {
        assert_eq!(rule.allows(action(text)), expected, "{rule:?} {text}");
    }
    for (urls, path, expected) in [
        ("/healthz", "/healthz", true),
        ("/healthz", "/healthz/x", false),
        ("/openapi/*", "/openapi/v3", true),
        ("/openapi/*", "/openapi", false),
        ("*", "/any", true),
    ] {
        let found = paths(&["get"], &[urls]).allows(Action { verb: "get", on: On::Path(path) });
        assert_eq!(found, expected, "{urls} {path}");
    }
}

#[test]
fn nobody_hands_out_what_they_do_not_have() {
    let get_list = rule(&["get", "list"], &["data.fluid.io"], &["datasets"], &[]);
    let all = rule(&["*"], &["*"], &["*"], &[]);
    let one = rule(&["get"], &["data.fluid.io"], &["datasets"], &["d"]);
    assert_eq!(ungranted(&[&get_list], std::slice::from_ref(&one)), None);
    assert_eq!(ungranted(&[&all], &[get_list.clone(), one.clone()]), None);
    // All of the objects are more than one, all verbs more than two, and all paths are none of it.
    let only_get = rule(&["get"], &["data.fluid.io"], &["datasets"], &[]);
    assert_eq!(ungranted(&[&one], std::slice::from_ref(&only_get)), Some(Ungranted::Parts(vec![only_get.clone()])));
    assert!(ungranted(&[&get_list], std::slice::from_ref(&all)).is_some());
    assert!(ungranted(&[&all], &[paths(&["get"], &["/metrics"])]).is_some());
    // A part of every kind is that part of each, and no other part of any.
    let part = |resource: &str| rule(&["get"], &["*"], &[resource], &[]);
    assert_eq!(ungranted(&[&part("*/status")], &[part("datasets/status")]), None);
    for wanted in [part("datasets/scale"), part("*/scale"), part("datasets"), part("*")] {
        assert!(ungranted(&[&part("*/status")], std::slice::from_ref(&wanted)).is_some(), "{wanted:?}");
    }
    assert!(ungranted(&[&part("datasets/status")], &[part("*/status")]).is_some());
    // What is missing is named, and what is there is not.
    let wanted = rule(&["get", "delete"], &["data.fluid.io"], &["datasets"], &[]);
    let missing = rule(&["delete"], &["data.fluid.io"], &["datasets"], &[]);
    assert_eq!(ungranted(&[&get_list], &[wanted]), Some(Ungranted::Parts(vec![missing])));
}

#[test]
fn a_role_too_large_to_compare_is_refused() {
    let many: Vec<String> = (0..101).map(|n| format!("r{n}")).collect();
    let large = PolicyRule { verbs: many.clone(), api_groups: texts(&["*"]), resources: many, ..PolicyRule::default() };
    let all = rule(&["*"], &["*"], &["*"], &[]);
    assert_eq!(ungranted(&[&all], &[large]), Some(Ungranted::TooLarge { parts: 101 * 101 }));
}

fn any_rule() -> impl Strategy<Value = PolicyRule> {
    let list = |words: &[&str], least: usize| subsequence(texts(words), least..=words.len().min(2));
    (
        list(&["get", "list", "*"], 1),
        list(&["", "g", "*"], 0),
        list(&["a", "b", "a/s", "b/s", "a/t", "*/s", "*/t", "*"], 0),
        list(&["x", "y"], 0),
        list(&["/p", "/p*", "/p/q", "*"], 0),
    )
        .prop_map(|(verbs, api_groups, resources, resource_names, non_resource_urls)| PolicyRule {
            verbs,
            api_groups,
            resources,
            resource_names,
            non_resource_urls,
        })
}

fn any_action() -> impl Strategy<Value = Action<'static>> {
    let resource = (
        select(vec!["", "g", "h"]),
        select(vec!["a", "b", "c"]),
        select(vec!["", "s", "t"]),
        select(vec!["", "x", "z"]),
    )
        .prop_map(|(group, resource, subresource, name)| On::Resource {
            group,
            resource,
            subresource,
            namespace: "n",
            name,
        });
    let path = select(vec!["/p", "/p/q", "/pp", "/z"]).prop_map(On::Path);
    (select(vec!["get", "list", "put"]), prop_oneof![3 => resource, 1 => path])
        .prop_map(|(verb, on)| Action { verb, on })
}

proptest! {
    #[test]
    fn who_grants_within_their_own_rights_gives_nothing_more(
        owned in prop::collection::vec(any_rule(), 0..4),
        wanted in prop::collection::vec(any_rule(), 1..3),
        actions in prop::collection::vec(any_action(), 1..40),
    ) {
        let owned: Vec<&PolicyRule> = owned.iter().collect();
        let missing = match ungranted(&owned, &wanted) {
            None => Vec::new(),
            Some(Ungranted::Parts(parts)) => parts,
            Some(too_large @ Ungranted::TooLarge { .. }) => panic!("{too_large:?}"),
        };
        for action in actions {
            // What the new role allows its maker may do, or it is said to be missing.
            if wanted.iter().any(|rule| rule.allows(action)) {
                let known = owned.iter().copied().chain(&missing).any(|rule| rule.allows(action));
                prop_assert!(known, "{action:?} is allowed by {wanted:?}, not by {owned:?}");
            }
        }
    }

    #[test]
    fn everybody_may_grant_what_they_have(owned in prop::collection::vec(any_rule(), 1..4)) {
        let references: Vec<&PolicyRule> = owned.iter().collect();
        prop_assert_eq!(ungranted(&references, &owned), None);
    }
}
