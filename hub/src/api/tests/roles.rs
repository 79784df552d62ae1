//! What roles, bindings and quotas that users write come to.

use axum::body::Body;
use fluvial_certs::Identity;
use fluvial_model::access::{Action, On, Who};
use http::Request;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::super::Caller;
use super::harness::*;
use crate::rights::Rights;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const QUERY: &str = "/apis/fluvial.io/v1alpha1/query";

fn by(user: &str, method: &str, path: &str, body: &Value) -> Request<Body> {
    let caller = Caller(Some(Identity::User { name: user.into(), groups: vec!["team".into()] }));
    let content_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let builder = Request::builder().method(method).uri(path).extension(caller).header(CONTENT_TYPE, content_type);
    builder.body(if body.is_null() { Body::empty() } else { Body::from(body.to_string()) }).unwrap()
}

fn may(rights: &Rights, user: &str, verb: &str, resource: &str, namespace: &str) -> bool {
    let on = On::Resource { group: "data.fluid.io", resource, subresource: "", namespace, name: "" };
    rights.policy().decide(Who { user, groups: &[] }, Action { verb, on }).is_ok()
}

fn binding(name: &str, role: &str, user: &str) -> Value {
    json!({
        "metadata": { "name": name }, "roleRef": { "kind": "ClusterRole", "name": role },
        "subjects": [{ "kind": "User", "name": user }],
    })
}

/// Gives `user` a ClusterRole in a namespace, and waits until it is in force.
async fn give(hub: &Hub, namespace: &str, role: &str, user: &str) {
    let path = format!("{RBAC}/namespaces/{namespace}/rolebindings");
    hub.post(&path, &binding(&format!("{user}-{role}"), role, user)).await.ok(201);
    hub.settled(|rights| may(rights, user, "list", "datasets", namespace)).await;
}

#[tokio::test]
async fn a_binding_opens_its_own_namespace_and_closes_it_when_it_goes() {
    let hub = Hub::with_roles().await;
    hub.post(NAMESPACES, &json!({ "metadata": { "name": "other" } })).await.ok(201);
    hub.post(DATASETS, &dataset("d")).await.ok(201);
    give(&hub, "default", "view", "ann").await;

    let stored = hub.get(&format!("{RBAC}/namespaces/default/rolebindings/ann-view")).await.ok(200);
    assert_eq!(stored["roleRef"]["apiGroup"], "rbac.authorization.k8s.io");
    assert_eq!(stored["subjects"][0]["apiGroup"], "rbac.authorization.k8s.io");

    assert_eq!(hub.send(by("ann", "GET", &format!("{DATASETS}/d"), &Value::Null)).await.code, 200);
    assert_eq!(hub.send(by("ann", "GET", SECRETS, &Value::Null)).await.code, 403);
    assert_eq!(hub.send(by("ann", "POST", DATASETS, &dataset("e"))).await.code, 403);
    assert_eq!(hub.send(by("bob", "GET", DATASETS, &Value::Null)).await.code, 403);
    let everywhere = "/apis/data.fluid.io/v1alpha1/datasets";
    assert_eq!(hub.send(by("ann", "GET", everywhere, &Value::Null)).await.code, 403);
    let other = "/apis/data.fluid.io/v1alpha1/namespaces/other/datasets";
    assert_eq!(hub.send(by("ann", "GET", other, &Value::Null)).await.code, 403);

    // A watch that is open hears of it, and nothing else any more.
    let mut request = by("ann", "GET", &format!("{DATASETS}?watch=1&resourceVersion=1"), &Value::Null);
    request.extensions_mut().insert(hub.rights.clone());
    let response = hub.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut lines = response.into_body();
    let mut told = String::new();
    while !told.contains("ADDED") {
        told += std::str::from_utf8(&lines.frame().await.unwrap().unwrap().into_data().unwrap()).unwrap();
    }
    hub.delete(&format!("{RBAC}/namespaces/default/rolebindings/ann-view")).await.ok(200);
    let rest = tokio::time::timeout(PATIENCE, lines.collect()).await.expect("the watch ends").unwrap().to_bytes();
    let last: Value = serde_json::from_slice(rest.split(|b| *b == b'\n').rfind(|l| !l.is_empty()).unwrap()).unwrap();
    assert_eq!((&last["type"], &last["object"]["code"]), (&json!("ERROR"), &json!(403)), "{last}");
    assert_eq!(hub.send(by("ann", "GET", DATASETS, &Value::Null)).await.code, 403);
}

#[tokio::test]
async fn nobody_hands_out_what_they_do_not_have() {
    let hub = Hub::with_roles().await;
    give(&hub, "default", "admin", "ann").await;
    let roles = format!("{RBAC}/namespaces/default/roles");
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let role = |name: &str, group: &str, resource: &str| {
        let rule = json!({ "verbs": ["get"], "apiGroups": [group], "resources": [resource] });
        json!({ "metadata": { "name": name }, "rules": [rule] })
    };
    // Within her rights, and beyond them.
    hub.send(by("ann", "POST", &roles, &role("team:read", "data.fluid.io", "datasets"))).await.ok(201);
    let refused = hub.send(by("ann", "POST", &roles, &role("more", "fluvial.io", "clusters"))).await;
    assert_eq!(refused.code, 403, "{}", refused.text);
    assert!(refused.message().contains("attempting to grant") && refused.message().contains("clusters"));
    let wider = json!({ "rules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }] });
    assert_eq!(hub.send(by("ann", "PATCH", &format!("{roles}/team:read"), &wider)).await.code, 403);
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    hub.send(by("ann", "PATCH", &format!("{roles}/team:read"), &label)).await.ok(200);
    // Bindings alike; a role that is not there is no role of hers.
    hub.send(by("ann", "POST", &bindings, &binding("bob-edit", "edit", "bob"))).await.ok(201);
    let beyond = hub.send(by("ann", "POST", &bindings, &binding("bob", "cluster-admin", "bob"))).await;
    assert_eq!(beyond.code, 403, "{}", beyond.text);
    assert_eq!(hub.send(by("ann", "POST", &bindings, &binding("bob", "nothing", "bob"))).await.code, 404);
    let cluster_wide = format!("{RBAC}/clusterrolebindings");
    assert_eq!(hub.send(by("ann", "POST", &cluster_wide, &binding("ann", "view", "ann"))).await.code, 403);
    // `bind` lifts it for the role that it names, `escalate` for the roles that it names.
    let rules = json!([
        { "verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"],
          "resourceNames": ["cluster-admin"] },
        { "verbs": ["escalate"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"] },
    ]);
    hub.post(&format!("{RBAC}/clusterroles"), &json!({ "metadata": { "name": "giver" }, "rules": rules }))
        .await
        .ok(201);
    hub.post(&bindings, &binding("ann-giver", "giver", "ann")).await.ok(201);
    let bind = Action {
        verb: "bind",
        on: On::Resource {
            group: "rbac.authorization.k8s.io",
            resource: "clusterroles",
            subresource: "",
            namespace: "default",
            name: "cluster-admin",
        },
    };
    hub.settled(|rights| rights.policy().decide(Who { user: "ann", groups: &[] }, bind).is_ok()).await;
    hub.send(by("ann", "POST", &bindings, &binding("bob", "cluster-admin", "bob"))).await.ok(201);
    hub.send(by("ann", "POST", &roles, &role("more", "fluvial.io", "clusters"))).await.ok(201);
    // What a binding gives cannot be exchanged.
    let exchanged =
        json!({ "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" } });
    assert_eq!(hub.merge(&format!("{bindings}/bob"), &exchanged).await.code, 422);
}

#[tokio::test]
async fn a_question_shows_the_rows_that_its_asker_may_list() {
    let hub = Hub::with_roles().await;
    hub.populate().await;
    for namespace in ["red", "blue"] {
        hub.post(NAMESPACES, &json!({ "metadata": { "name": namespace } })).await.ok(201);
        let path = format!("/apis/data.fluid.io/v1alpha1/namespaces/{namespace}/datasets");
        hub.post(&path, &dataset(&format!("{namespace}-1"))).await.ok(201);
    }
    give(&hub, "red", "view", "ann").await;
    let ask = async |user: &str, sql: &str| {
        let reply = hub.send(by(user, "POST", QUERY, &json!({ "sql": sql }))).await;
        (reply.code, reply.body)
    };
    let names = "SELECT name FROM datasets ORDER BY name";
    assert_eq!(ask("ann", names).await, (200, json!([{ "name": "red-1" }])));
    assert_eq!(ask("bob", names).await, (200, json!([])));
    for (sql, count) in [
        ("SELECT count(*) AS n FROM datasets", 1),
        ("SELECT count(*) AS n FROM clusters", 0),
        ("SELECT count(*) AS n FROM storages", 0),
        ("WITH datasets AS (SELECT * FROM temp.datasets) SELECT count(*) AS n FROM datasets", 1),
        ("WITH d AS (SELECT * FROM datasets) SELECT count(*) AS n FROM d", 1),
        ("SELECT count(*) AS n FROM datasets a JOIN datasets b USING (name)", 1),
        ("SELECT count(*) AS n FROM (SELECT * FROM datasets)", 1),
        ("SELECT sum(1) AS n FROM datasets WHERE name LIKE '%1'", 1),
    ] {
        assert_eq!(ask("ann", sql).await, (200, json!([{ "n": count }])), "{sql}");
    }
    // Every way round the views.
    for sql in [
        "SELECT name FROM main.datasets",
        "SELECT count(*) FROM main.datasets",
        "SELECT name FROM fv_row_datasets",
        "SELECT count(*) FROM fv_row_datasets",
        "WITH datasets AS (SELECT name FROM main.datasets) SELECT name FROM datasets",
        "WITH datasets AS (SELECT name FROM fv_row_datasets) SELECT name FROM datasets",
        "WITH datasets AS (SELECT name FROM main.fv_row_datasets) SELECT count(*) FROM datasets",
        "SELECT * FROM temp.sqlite_schema",
        "SELECT * FROM sqlite_temp_schema",
        "SELECT value FROM fv_objects",
    ] {
        let (code, body) = ask("ann", sql).await;
        assert_eq!(code, 400, "{sql}: {body}");
        assert!(body["message"].as_str().unwrap().contains("refused"), "{sql}: {body}");
    }
    // The administrator sees all, as does whoever may list everywhere.
    let all = hub.post(QUERY, &json!({ "sql": names })).await.ok(200);
    assert_eq!(all.as_array().unwrap().len(), 3);
    let fleet = format!("{RBAC}/clusterrolebindings");
    for role in ["view", "fluvial:fleet-view"] {
        hub.post(&fleet, &binding(&format!("cid-{role}"), role, "cid")).await.ok(201);
    }
    let clusters = Action {
        verb: "list",
        on: On::Resource { group: "fluvial.io", resource: "clusters", subresource: "", namespace: "", name: "" },
    };
    hub.settled(|rights| {
        may(rights, "cid", "list", "datasets", "")
            && rights.policy().decide(Who { user: "cid", groups: &[] }, clusters).is_ok()
    })
    .await;
    assert_eq!(ask("cid", names).await, (200, all));
    assert_eq!(ask("cid", "SELECT count(*) AS n FROM clusters").await, (200, json!([{ "n": 1 }])));
}

#[tokio::test]
async fn reviews_say_what_the_rules_say() {
    let hub = Hub::with_roles().await;
    give(&hub, "default", "view", "ann").await;
    let review = |kind: &str| format!("/apis/authorization.k8s.io/v1/{kind}");
    let attributes = |verb: &str, namespace: &str| json!({ "verb": verb, "group": "data.fluid.io", "resource": "datasets", "namespace": namespace });
    for (verb, namespace, expected) in [("list", "default", true), ("list", "", false), ("delete", "default", false)] {
        let body = json!({ "spec": { "resourceAttributes": attributes(verb, namespace) } });
        let own = hub.send(by("ann", "POST", &review("selfsubjectaccessreviews"), &body)).await.ok(201);
        assert_eq!(own["status"]["allowed"], expected, "{own}");
        let body = json!({ "spec": { "user": "ann", "resourceAttributes": attributes(verb, namespace) } });
        let theirs = hub.post(&review("subjectaccessreviews"), &body).await.ok(201);
        assert_eq!(theirs["status"], own["status"]);
        assert_eq!(hub.send(by("ann", "POST", &review("subjectaccessreviews"), &body)).await.code, 403);
    }
    let body = json!({ "spec": { "namespace": "default" } });
    let rules = hub.send(by("ann", "POST", &review("selfsubjectrulesreviews"), &body)).await.ok(201);
    assert!(rules["status"]["resourceRules"].to_string().contains("datasets"), "{rules}");
    let me = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let who = hub.send(by("ann", "POST", me, &json!({}))).await.ok(201);
    assert_eq!(who["status"]["userInfo"], json!({ "username": "ann", "groups": ["team", "system:authenticated"] }));
    for (path, body) in [
        (review("selfsubjectaccessreviews"), json!({ "spec": {} })),
        (review("subjectaccessreviews"), json!({ "spec": { "resourceAttributes": attributes("get", "") } })),
    ] {
        assert_eq!(hub.post(&path, &body).await.code, 400, "{path}");
    }
}

#[tokio::test]
async fn a_user_of_the_hub_has_no_more_groups_than_its_maker_may_act_as() {
    let hub = Hub::with_roles().await;
    let users = "/apis/fluvial.io/v1alpha1/users";
    let user = |name: &str, groups: Value| json!({ "metadata": { "name": name }, "spec": { "groups": groups } });
    let rules = json!([
        { "verbs": ["create", "update", "patch", "get"], "apiGroups": ["fluvial.io"], "resources": ["users"] },
        { "verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"] },
        { "verbs": ["impersonate"], "apiGroups": [""], "resources": ["groups"], "resourceNames": ["team"] },
        { "verbs": ["list"], "apiGroups": ["data.fluid.io"], "resources": ["datasets"] },
    ]);
    hub.post(&format!("{RBAC}/clusterroles"), &json!({ "metadata": { "name": "hirer" }, "rules": rules }))
        .await
        .ok(201);
    hub.post(&format!("{RBAC}/clusterrolebindings"), &binding("ann", "hirer", "ann")).await.ok(201);
    hub.settled(|rights| may(rights, "ann", "list", "datasets", "")).await;
    hub.send(by("ann", "POST", users, &user("bob", json!(["team"])))).await.ok(201);
    for groups in [json!(["system:masters"]), json!(["team", "others"])] {
        let refused = hub.send(by("ann", "POST", users, &user("cid", groups.clone()))).await;
        assert_eq!(refused.code, 403, "{}", refused.text);
        let patch = json!({ "spec": { "groups": groups } });
        assert_eq!(hub.send(by("ann", "PATCH", &format!("{users}/bob"), &patch)).await.code, 403);
    }
    hub.send(by("ann", "PATCH", &format!("{users}/bob"), &json!({ "metadata": { "labels": { "a": "b" } } })))
        .await
        .ok(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_has_no_more_than_its_quota_however_many_ask_at_once() {
    let hub = Hub::start().await;
    let quotas = "/apis/fluvial.io/v1alpha1/namespaces/default/quotas";
    let quota = json!({ "metadata": { "name": "q" }, "spec": { "objects": { "datasets": 3 } } });
    hub.post(DATASETS, &dataset("first")).await.ok(201);
    hub.post(quotas, &quota).await.ok(201);
    let names: Vec<Value> = (0..12).map(|n| dataset(&format!("d{n}"))).collect();
    let replies = futures::future::join_all(names.iter().map(|one| hub.post(DATASETS, one))).await;
    let made = replies.iter().filter(|reply| reply.code == 201).count();
    let refused: Vec<&Reply> = replies.iter().filter(|reply| reply.code == 403).collect();
    assert!(made <= 2 && !refused.is_empty(), "{made} made");
    assert!(replies.iter().all(|reply| [201, 403, 409].contains(&reply.code)), "{replies:?}");
    let message = r#"is forbidden: quota "q" of namespace "default" allows 3 datasets, and 3 are there"#;
    assert!(refused[0].message().contains(message), "{}", refused[0].message());
    let all = hub.get(DATASETS).await.ok(200);
    assert_eq!(all["items"].as_array().unwrap().len(), 1 + made);
    assert_eq!(hub.get(&format!("{quotas}/q")).await.ok(200)["status"]["objects"]["datasets"], 1 + made);
    // A dry run is refused alike; another namespace, and another kind, are not counted.
    assert_eq!(hub.post(&format!("{DATASETS}?dryRun=All"), &dataset("x")).await.code, 403);
    hub.post(SECRETS, &json!({ "metadata": { "name": "s" } })).await.ok(201);
    // What is deleted makes room; the status follows.
    hub.delete(&format!("{DATASETS}/first")).await.ok(200);
    crate::quota::refresh(&hub.state.objects).await.unwrap();
    assert_eq!(hub.get(&format!("{quotas}/q")).await.ok(200)["status"]["objects"]["datasets"], made);
    hub.post(DATASETS, &dataset("second")).await.ok(201);
}
