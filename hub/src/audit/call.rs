//! What the answer to a call says of it, and whether that is to be noted.

use axum::body::Body;
use axum::http::{Method, Response, Uri};
use fluvial_model::kinds::Secret;
use fluvial_model::names::printable;
use fluvial_model::resource::Resource as _;
use jiff::Timestamp;
use tonic::Code;

use super::{Act, Entry, Origin};

/// Methods that issue a certificate, and what they do: what they refuse is noted, whatever the reason. Joins are noted
/// where the token's name is known.
const ISSUING: &[(&str, &str)] = &[
    ("/fluvial.v1.AgentService/Renew", "renew"),
    ("/fluvial.v1.NodeService/RenewNode", "renew"),
    ("/fluvial.v1.HubService/Renew", "renew"),
];

/// A call, before it is answered.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) origin: Origin,
    pub(crate) act: Act,
    is_grpc: bool,
    /// Whether it changes something, if it succeeds.
    changes: bool,
}

impl Call {
    pub(crate) fn new(origin: Origin, is_grpc: bool, method: &Method, uri: &Uri) -> Self {
        if is_grpc {
            let issues = ISSUING.iter().find(|(path, _)| *path == uri.path()).map(|(_, verb)| *verb);
            let act = match issues {
                Some(verb) => Act::of_fleet(verb, "certificates", &origin.user),
                None => Act { verb: "call".to_owned(), name: printable(uri.path()), ..Act::default() },
            };
            return Self { origin, act, is_grpc, changes: issues.is_some() };
        }
        let act = act(method, uri);
        let reads = matches!(act.verb.as_str(), "get" | "list" | "watch" | "query");
        Self { origin, act, is_grpc, changes: !reads }
    }

    /// What is to be noted of this answer: refusals, changes that failed, and readings of Secrets.
    pub(crate) fn note(&self, response: &Response<Body>, now: Timestamp) -> Option<Entry> {
        let code = if self.is_grpc { grpc_code(response)? } else { u32::from(response.status().as_u16()) };
        let refused = matches!(code, 401 | 403);
        let failed = self.changes && code >= 400;
        let secret =
            code < 400 && !self.changes && self.act.api_group.is_empty() && self.act.resource == Secret::INFO.plural;
        (refused || failed || secret).then(|| self.origin.entry(&self.act, code, now))
    }
}

/// The outcome of a gRPC call that failed before it said anything, as an HTTP status.
fn grpc_code(response: &Response<Body>) -> Option<u32> {
    let code = response.headers().get("grpc-status")?.to_str().ok()?.parse::<i32>().ok()?;
    Some(http_code(Code::from_i32(code)))
}

/// The HTTP status that says about the same.
pub(crate) fn http_code(code: Code) -> u32 {
    match code {
        Code::Ok => 200,
        Code::InvalidArgument | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => 409,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded | Code::Cancelled => 504,
        Code::Internal | Code::Unknown | Code::DataLoss => 500,
    }
}

/// What a REST call is about, by its method and path alone: it may have been refused before anybody looked closer.
fn act(method: &Method, uri: &Uri) -> Act {
    let path = uri.path();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (api_group, rest) = match parts.as_slice() {
        ["api", _, rest @ ..] if !rest.is_empty() => ("", rest),
        ["apis", group, _, rest @ ..] if !rest.is_empty() => (*group, rest),
        _ => {
            let verb = method.as_str().to_ascii_lowercase();
            let verb = if verb == "head" { "get".to_owned() } else { verb };
            return Act { verb: printable(&verb), name: printable(path), ..Act::default() };
        }
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() && *rest != ["status"] => (*namespace, rest),
        rest => ("", rest),
    };
    let (resource, name, part) = match rest {
        [resource] => (*resource, "", ""),
        [resource, name] => (*resource, *name, ""),
        [resource, name, part, ..] => (*resource, *name, *part),
        [] => ("", "", ""),
    };
    let watches =
        uri.query().is_some_and(|query| query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1")));
    let verb = match (method.as_str(), name.is_empty()) {
        ("POST", _) if resource == "query" => "query",
        ("GET" | "HEAD", true) if watches => "watch",
        ("GET" | "HEAD", true) => "list",
        ("GET" | "HEAD", false) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "deletecollection",
        ("DELETE", false) => "delete",
        _ => "other",
    };
    Act {
        verb: verb.to_owned(),
        api_group: printable(api_group),
        resource: printable(&if part.is_empty() { resource.to_owned() } else { format!("{resource}/{part}") }),
        namespace: printable(namespace),
        name: printable(name),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    fn call(method: &str, uri: &str) -> Call {
        Call::new(Origin::default(), false, &method.parse().unwrap(), &uri.parse().unwrap())
    }

    #[test]
    fn a_path_says_what_a_call_is_about() {
        for (method, uri, expected) in [
            ("GET", "/api/v1/namespaces/a/secrets?watch=true", "watch .secrets a/"),
            ("GET", "/api/v1/namespaces/a", "get .namespaces /a"),
            ("PUT", "/api/v1/namespaces/a/status", "update .namespaces/status /a"),
            ("POST", "/apis/data.fluid.io/v1alpha1/namespaces/a/datasets", "create data.fluid.io.datasets a/"),
            ("PATCH", "/apis/fluvial.io/v1alpha1/clusters/c/status", "patch fluvial.io.clusters/status /c"),
            ("DELETE", "/apis/fluvial.io/v1alpha1/clusters", "deletecollection fluvial.io.clusters /"),
            ("DELETE", "/apis/fluvial.io/v1alpha1/hubs/2", "delete fluvial.io.hubs /2"),
            ("POST", "/apis/fluvial.io/v1alpha1/query", "query fluvial.io.query /"),
            ("HEAD", "/metrics", "get . //metrics"),
            ("POST", "/apis", "post . //apis"),
        ] {
            let Act { verb, api_group, resource, namespace, name } = call(method, uri).act;
            assert_eq!(format!("{verb} {api_group}.{resource} {namespace}/{name}"), expected, "{method} {uri}");
        }
    }

    #[test]
    fn refusals_failed_changes_and_readings_of_secrets_are_noted() {
        let datasets = "/apis/data.fluid.io/v1alpha1/namespaces/a/datasets";
        for (method, uri, code, expected) in [
            ("GET", datasets, 200, false),
            ("GET", datasets, 404, false),
            ("GET", datasets, 403, true),
            ("GET", "/apis", 401, true),
            ("POST", datasets, 201, false),
            ("POST", datasets, 422, true),
            ("POST", "/apis/fluvial.io/v1alpha1/query", 400, false),
            ("GET", "/api/v1/namespaces/a/secrets/s", 200, true),
            ("GET", "/api/v1/secrets", 200, true),
            ("GET", "/api/v1/namespaces/a/secrets/s", 404, false),
            ("POST", "/api/v1/namespaces/a/secrets", 201, false),
        ] {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            let noted = call(method, uri).note(&response, Timestamp::UNIX_EPOCH);
            assert_eq!(noted.is_some(), expected, "{method} {uri} {code}");
            assert!(noted.is_none_or(|entry| entry.code == u32::from(code)));
        }
    }

    #[test]
    fn a_call_of_grpc_is_noted_if_it_is_refused_and_a_renewal_if_it_fails() {
        let noted = |path: &str, code: Code| {
            let response = tonic::Status::new(code, "no").into_http::<Body>();
            let call = Call::new(Origin::default(), true, &Method::POST, &path.parse().unwrap());
            call.note(&response, Timestamp::UNIX_EPOCH).map(|entry| (entry.verb, entry.code))
        };
        assert_eq!(noted("/fluvial.v1.PeerService/Vote", Code::PermissionDenied), Some(("call".to_owned(), 403)));
        assert_eq!(noted("/fluvial.v1.AgentService/Session", Code::InvalidArgument), None);
        assert_eq!(noted("/fluvial.v1.AgentService/Renew", Code::InvalidArgument), Some(("renew".to_owned(), 400)));
    }
}
