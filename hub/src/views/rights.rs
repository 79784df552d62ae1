//! Which right each of these calls needs.
//!
//! Invariant: a call without a line here is refused to everybody.

use axum::extract::Request;
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use fluvial_model::access::On;
use fluvial_model::kinds::{DATA_GROUP, FLUVIAL_GROUP};
use fluvial_model::names::printable;

use crate::api::path::segments;
use crate::api::status::ApiError;
use crate::api::{Verb, allowed};

/// Lets a request through if its caller has the right.
pub(super) async fn check(request: Request, next: Next) -> Response {
    match may(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn may(request: &Request) -> Result<(), ApiError> {
    let segments = segments(request.uri().path())?;
    let texts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (verb, on) = needed(request.method(), &texts).ok_or_else(|| {
        let message = format!("the server does not allow {} on {}", request.method(), printable(request.uri().path()));
        ApiError::MethodNotAllowed { message }
    })?;
    allowed(request.extensions(), verb, on, None)
}

/// The right that a call needs.
fn needed<'a>(method: &Method, segments: &[&'a str]) -> Option<(Verb, On<'a>)> {
    let of_fleet =
        |resource, name| On::Resource { group: FLUVIAL_GROUP, resource, subresource: "", namespace: "", name };
    let part =
        |subresource| On::Resource { group: FLUVIAL_GROUP, resource: "hubs", subresource, namespace: "", name: "" };
    match (method, segments) {
        (&Method::POST, ["apis", FLUVIAL_GROUP, _, "tokens"]) => Some((Verb::Create, of_fleet("tokens", ""))),
        (&Method::GET | &Method::HEAD, ["apis", FLUVIAL_GROUP, _, "hubs"]) => Some((Verb::List, of_fleet("hubs", ""))),
        // Whoever has it has everything.
        (&Method::POST, ["apis", FLUVIAL_GROUP, _, "hubs", "snapshot"]) => Some((Verb::Create, part("snapshot"))),
        (&Method::GET | &Method::HEAD, ["apis", FLUVIAL_GROUP, _, "hubs", "recovery"]) => {
            Some((Verb::Get, part("recovery")))
        }
        (&Method::DELETE, ["apis", FLUVIAL_GROUP, _, "hubs", "recovery"]) => Some((Verb::Delete, part("recovery"))),
        (&Method::DELETE, ["apis", FLUVIAL_GROUP, _, "hubs", id]) => Some((Verb::Delete, of_fleet("hubs", id))),
        (&Method::POST | &Method::DELETE, ["apis", FLUVIAL_GROUP, _, "users", name, subresource @ "credentials"]) => {
            let verb = if *method == Method::POST { Verb::Create } else { Verb::Delete };
            let on = On::Resource { group: FLUVIAL_GROUP, resource: "users", subresource, namespace: "", name };
            Some((verb, on))
        }
        (
            &Method::GET | &Method::HEAD,
            [
                "apis",
                DATA_GROUP,
                _,
                "namespaces",
                namespace,
                "datasets",
                name,
                subresource @ ("tree" | "diff" | "file"),
            ],
        ) => Some((Verb::Get, On::Resource { group: DATA_GROUP, resource: "datasets", subresource, namespace, name })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_needs_the_right_of_what_it_is_about_and_an_unknown_one_is_refused() {
        let right = |method: Method, path: &'static str| {
            let segments: Vec<&str> = path.split('/').collect();
            needed(&method, &segments)
                .map(|(verb, on)| fluvial_model::access::Action { verb: verb.as_str(), on }.to_string())
        };
        for (method, path, expected) in [
            (Method::POST, "apis/fluvial.io/v1alpha1/tokens", r#"create resource "tokens" in API group "fluvial.io""#),
            (Method::GET, "apis/fluvial.io/v1alpha1/hubs", r#"list resource "hubs" in API group "fluvial.io""#),
            (
                Method::POST,
                "apis/fluvial.io/v1alpha1/hubs/snapshot",
                r#"create resource "hubs/snapshot" in API group "fluvial.io""#,
            ),
            (
                Method::DELETE,
                "apis/fluvial.io/v1alpha1/hubs/recovery",
                r#"delete resource "hubs/recovery" in API group "fluvial.io""#,
            ),
            (Method::DELETE, "apis/fluvial.io/v1alpha1/hubs/2", r#"delete resource "hubs" in API group "fluvial.io""#),
            (
                Method::POST,
                "apis/fluvial.io/v1alpha1/users/ann/credentials",
                r#"create resource "users/credentials" in API group "fluvial.io""#,
            ),
            (
                Method::DELETE,
                "apis/fluvial.io/v1alpha1/users/ann/credentials",
                r#"delete resource "users/credentials" in API group "fluvial.io""#,
            ),
        ] {
            assert_eq!(right(method, path), Some(format!("{expected} at the cluster scope")), "{path}");
        }
        for part in ["tree", "diff", "file"] {
            let path = format!("apis/data.fluid.io/v1alpha1/namespaces/a/datasets/d/{part}");
            let on = format!(r#"get resource "datasets/{part}" in API group "data.fluid.io" in the namespace "a""#);
            assert_eq!(right(Method::GET, path.leak()), Some(on));
        }
        for (method, path) in [
            (Method::DELETE, "apis/data.fluid.io/v1alpha1/namespaces/a/datasets/d/file"),
            (Method::GET, "apis/data.fluid.io/v1alpha1/namespaces/a/datasets/d/other"),
            (Method::POST, "apis/fluvial.io/v1alpha1/hubs"),
        ] {
            assert_eq!(right(method, path), None, "{path}");
        }
    }
}
