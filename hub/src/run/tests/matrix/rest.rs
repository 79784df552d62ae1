//! Each kind × verb × part, and each route beside: who may, and what an administrator hears.

use axum::http::StatusCode;
use fluvial_model::kinds::KINDS;
use fluvial_model::resource::Scope;

use super::callers::{Callers, Heard, Who};
use crate::{api, hooks, views};

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    /// Everybody: it says nothing but "here".
    Anyone,
    /// Whoever brings the token of the hook; nobody here does.
    Hook,
    /// Every user.
    Users,
    /// Users with a right to it, administrators among them.
    Righted,
}

/// Method and path, the route that it belongs to, who may, and what an administrator hears.
type Line = (&'static str, &'static str, &'static str, Open, u16);

const FLEET: &str = "/apis/fluvial.io/v1alpha1";
const DATASET: &str = "/apis/data.fluid.io/v1alpha1/namespaces/{namespace}/datasets/{name}";

const LINES: &[Line] = &[
    ("GET", "/healthz", "/healthz", Open::Anyone, 200),
    ("GET", "/livez", "/livez", Open::Anyone, 200),
    ("GET", "/readyz", "/readyz", Open::Anyone, 200),
    ("GET", "/version", "/version", Open::Anyone, 200),
    ("GET", "/api", "/api", Open::Users, 200),
    ("GET", "/api/", "/api/", Open::Users, 200),
    ("GET", "/api/v1", "/api/{*rest}", Open::Users, 200),
    ("GET", "/apis", "/apis", Open::Users, 200),
    ("GET", "/apis/", "/apis/", Open::Users, 200),
    ("GET", "/apis/fluvial.io", "/apis/{*rest}", Open::Users, 200),
    ("GET", "/apis/data.fluid.io/v1alpha1", "/apis/{*rest}", Open::Users, 200),
    ("GET", "/openapi/v2", "/openapi/{*rest}", Open::Users, 200),
    ("GET", "/openapi/v3", "/openapi/{*rest}", Open::Users, 200),
    ("GET", "/openapi/v3/api/v1", "/openapi/{*rest}", Open::Users, 200),
    ("GET", "/openapi/v3/apis/fluvial.io/v1alpha1", "/openapi/{*rest}", Open::Users, 200),
    ("POST", "/apis/fluvial.io/v1alpha1/query", "{fleet}/query", Open::Users, 400),
    ("GET", "/apis/fluvial.io/v1alpha1/query", "{fleet}/query", Open::Users, 405),
    ("GET", "/apis/fluvial.io/v1alpha1/query/schema", "{fleet}/query/schema", Open::Users, 200),
    ("POST", "/apis/fluvial.io/v1alpha1/tokens", "{fleet}/tokens", Open::Righted, 400),
    ("GET", "/apis/fluvial.io/v1alpha1/hubs", "{fleet}/hubs", Open::Righted, 200),
    ("DELETE", "/apis/fluvial.io/v1alpha1/hubs/7", "{fleet}/hubs/{id}", Open::Righted, 404),
    (
        "POST",
        "/apis/fluvial.io/v1alpha1/users/none/credentials",
        "{fleet}/users/{name}/credentials",
        Open::Righted,
        404,
    ),
    (
        "DELETE",
        "/apis/fluvial.io/v1alpha1/users/none/credentials",
        "{fleet}/users/{name}/credentials",
        Open::Righted,
        200,
    ),
    ("GET", "/apis/fluvial.io/v1alpha1/users/none/credentials", "{fleet}/users/{name}/credentials", Open::Users, 405),
    ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "/apis/{*rest}", Open::Users, 400),
    ("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "/apis/{*rest}", Open::Users, 201),
    ("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", "/apis/{*rest}", Open::Users, 201),
    ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", "/apis/{*rest}", Open::Righted, 400),
    (
        "POST",
        "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews",
        "/apis/{*rest}",
        Open::Righted,
        400,
    ),
    ("POST", "/apis/fluvial.io/v1alpha1/hubs/snapshot", "{fleet}/hubs/snapshot", Open::Righted, 400),
    ("GET", "/apis/fluvial.io/v1alpha1/hubs/recovery", "{fleet}/hubs/recovery", Open::Righted, 200),
    ("DELETE", "/apis/fluvial.io/v1alpha1/hubs/recovery", "{fleet}/hubs/recovery", Open::Righted, 200),
    ("GET", "{dataset}/tree", "{dataset}/tree", Open::Righted, 404),
    ("GET", "{dataset}/diff?from=x", "{dataset}/diff", Open::Righted, 404),
    ("GET", "{dataset}/file?path=x", "{dataset}/file", Open::Righted, 404),
    ("POST", "/apis/fluvial.io/v1alpha1/namespaces/default/sourcehooks/h/notifications", hooks::ROUTE, Open::Hook, 401),
    // What nobody serves, and what looks like something that somebody does.
    ("GET", "/", "", Open::Righted, 404),
    ("GET", "/metrics", "", Open::Righted, 404),
    ("GET", "/healthz/x", "", Open::Righted, 404),
    ("GET", "//livez", "", Open::Righted, 404),
    ("GET", "/apis/fluvial.io/v1alpha1/nothing", "/apis/{*rest}", Open::Users, 404),
];

/// A kind by its resource, who writes it, and whether users delete it.
const KIND_LINES: &[(&str, Writer)] = &[
    ("namespaces", Writer::Users),
    ("secrets", Writer::Users),
    ("events", Writer::Users),
    ("datasets.data.fluid.io", Writer::Users),
    ("datamigrates.data.fluid.io", Writer::Users),
    ("databackups.data.fluid.io", Writer::Users),
    ("datarestores.fluvial.io", Writer::Users),
    ("dataloads.data.fluid.io", Writer::Users),
    ("clusters.fluvial.io", Writer::Users),
    ("storages.fluvial.io", Writer::Users),
    ("links.fluvial.io", Writer::Users),
    ("backuprepositories.fluvial.io", Writer::Users),
    ("placements.fluvial.io", Writer::Users),
    ("cachelocations.fluvial.io", Writer::Hub),
    ("datasetmounts.fluvial.io", Writer::Users),
    ("sourcehooks.fluvial.io", Writer::Users),
    ("jointokens.fluvial.io", Writer::HubButDelete),
    ("roles.rbac.authorization.k8s.io", Writer::Users),
    ("rolebindings.rbac.authorization.k8s.io", Writer::Users),
    ("clusterroles.rbac.authorization.k8s.io", Writer::Users),
    ("clusterrolebindings.rbac.authorization.k8s.io", Writer::Users),
    ("identityproviders.fluvial.io", Writer::Users),
    ("quotas.fluvial.io", Writer::Users),
    ("users.fluvial.io", Writer::Users),
    ("usertokens.fluvial.io", Writer::HubButDelete),
];

/// Who writes the objects of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    Users,
    Hub,
    /// The hub; users may delete them.
    HubButDelete,
}

fn resource(kind: &fluvial_model::resource::Kind) -> String {
    let info = &kind.info;
    if info.group.is_empty() { info.plural.to_owned() } else { format!("{}.{}", info.plural, info.group) }
}

fn filled(template: &str) -> String {
    template.replace("{fleet}", FLEET).replace("{dataset}", DATASET)
}

#[test]
fn every_kind_and_every_route_has_a_line() {
    let missing: Vec<String> =
        KINDS.iter().map(resource).filter(|resource| !KIND_LINES.iter().any(|(line, _)| line == resource)).collect();
    assert!(missing.is_empty(), "say who writes {missing:?}");
    assert_eq!(KIND_LINES.len(), KINDS.len(), "a line is of no kind");
    let api = api::routes().into_iter().map(|(path, _)| path);
    let views = views::routes().into_iter().map(|(path, _)| path);
    let has_line = |path: &str| LINES.iter().any(|(_, _, route, ..)| filled(route) == path);
    let missing: Vec<&str> = api.chain(views).chain([hooks::ROUTE]).filter(|path| !has_line(path)).collect();
    assert!(missing.is_empty(), "say who may call {missing:?}");
}

/// Method, path and what an administrator hears, for every verb on every part of a kind. Nothing is there, and nothing
/// is made: an empty object has no name. Which methods and parts there are is something that every user may find out.
fn calls(kind: &fluvial_model::resource::Kind, writer: Writer) -> Vec<(&'static str, String, Open, u16)> {
    let info = &kind.info;
    let base = if info.group.is_empty() {
        format!("/api/{}", info.version)
    } else {
        format!("/apis/{}/{}", info.group, info.version)
    };
    let namespaced = info.scope == Scope::Namespaced;
    let collection = if namespaced {
        format!("{base}/namespaces/default/{}", info.plural)
    } else {
        format!("{base}/{}", info.plural)
    };
    let object = format!("{collection}/none");
    let users = writer == Writer::Users;
    let written = |code| if users { code } else { 405 };
    let deleted = |code| if writer == Writer::Hub { 405 } else { code };
    let none = "labelSelector=none%3Dnone";
    let mut calls = vec![
        ("GET", collection.clone(), Open::Righted, 200),
        ("GET", format!("{collection}?watch=true&timeoutSeconds=1"), Open::Righted, 200),
        ("POST", collection.clone(), Open::Righted, written(422)),
        ("DELETE", format!("{collection}?{none}"), Open::Righted, deleted(200)),
        ("PUT", collection.clone(), Open::Users, 405),
        ("PATCH", collection.clone(), Open::Users, 405),
        ("GET", object.clone(), Open::Righted, 404),
        ("HEAD", object.clone(), Open::Righted, 404),
        ("PUT", object.clone(), Open::Righted, written(404)),
        ("PATCH", object.clone(), Open::Righted, written(404)),
        ("DELETE", object.clone(), Open::Righted, deleted(404)),
        ("POST", object.clone(), Open::Users, 405),
        ("OPTIONS", object.clone(), Open::Users, 405),
    ];
    if namespaced {
        calls.push(("GET", format!("{base}/{}", info.plural), Open::Righted, 200));
        calls.push(("GET", format!("{base}/{}?watch=true&timeoutSeconds=1", info.plural), Open::Righted, 200));
        calls.push(("DELETE", format!("{base}/{}?{none}", info.plural), Open::Righted, deleted(200)));
    }
    if info.status {
        calls.push(("GET", format!("{object}/status"), Open::Righted, 404));
        calls.push(("PUT", format!("{object}/status"), Open::Righted, written(404)));
        calls.push(("PATCH", format!("{object}/status"), Open::Righted, written(404)));
        calls.push(("DELETE", format!("{object}/status"), Open::Users, 405));
    }
    calls.push(("GET", format!("{object}/scale"), Open::Users, 404));
    calls
}

/// What `who` hears.
fn expected(who: Who, open: Open, administrator: u16) -> Heard {
    let code = match (who, open) {
        (Who::Foreign | Who::Expired, _) => return Heard::Cut,
        // Hearing that it was revoked is all that is left to it.
        (Who::Revoked | Who::RemovedHub, _) => 403,
        (_, Open::Anyone | Open::Hook) | (Who::Administrator, _) | (Who::Stranger, Open::Users) => administrator,
        (Who::Nobody, _) => 401,
        _ => 403,
    };
    Heard::Answer { status: StatusCode::from_u16(code).unwrap(), grpc: None }
}

async fn check(callers: &Callers, who: Who, calls: &[(&str, String, Open, u16)], wrong: &mut Vec<String>) {
    let mut connection = None;
    for (method, path, open, administrator) in calls {
        let media_type = if *method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body: &[u8] = if matches!(*method, "POST" | "PUT" | "PATCH") { b"{}" } else { b"" };
        let headers = [("content-type", media_type)];
        let heard = callers.call(&mut connection, who, (method, path), &headers, body).await;
        let expected = expected(who, *open, *administrator);
        if heard != expected {
            wrong.push(format!("{method} {path} as {who:?}: {heard:?} instead of {expected:?}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_and_every_route_answers_those_who_may_and_nobody_else() {
    let callers = Callers::new().await;
    let concrete = |path: &str| filled(path).replace("{namespace}", "default").replace("{name}", "none");
    let mut all: Vec<(&str, String, Open, u16)> =
        LINES.iter().map(|(method, path, _, open, code)| (*method, concrete(path), *open, *code)).collect();
    for kind in KINDS {
        let (_, writer) = KIND_LINES.iter().find(|(line, _)| *line == resource(kind)).unwrap();
        all.extend(calls(kind, *writer));
    }
    let mut wrong = Vec::new();
    for who in Who::ALL {
        // The two that are cut are cut before they could name a path.
        let calls = if who.is_cut() { &all[..1] } else { &all[..] };
        check(&callers, who, calls, &mut wrong).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    callers.hub.hub.shutdown().await;
}
