//! Who may call what: one table from service to rule, and no way around it.
//!
//! Invariants: a gRPC service that is not in the table is denied to all; everything that is not gRPC is REST, and REST
//! is for users, probes and the notifications of stores excepted. The rules look at who the caller was proved to be, never at what a
//! request says of itself.

use axum::http::{HeaderMap, header};
use fluvial_certs::Identity;
use fluvial_proto::v1::agent_service_server::SERVICE_NAME as AGENT;
use fluvial_proto::v1::hub_service_server::SERVICE_NAME as HUB;
use fluvial_proto::v1::join_service_server::SERVICE_NAME as JOIN;
use fluvial_proto::v1::node_service_server::SERVICE_NAME as NODE;
use fluvial_proto::v1::peer_service_server::SERVICE_NAME as PEER;
use fluvial_raft::PEER_METADATA_FROM;
use thiserror::Error;

use crate::hooks::is_hook;

/// Who may call a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Anyone: the request carries its own credential.
    Anyone,
    /// The member agents, each for its own cluster.
    Clusters,
    /// The nodes of clusters beside their agents.
    Nodes,
    /// The hubs.
    Hubs,
    /// The hubs, and each only under its own number.
    HubsAsThemselves,
}

/// The rule of every service.
///
/// That a hub is still a member is not asked here: a hub that was away may not know yet who joined, and would refuse
/// the very leader that could tell it. A hub that was removed is refused by the deny list.
const RULES: &[(&str, Rule)] = &[
    (JOIN, Rule::Anyone),
    (AGENT, Rule::Clusters),
    (NODE, Rule::Nodes),
    (HUB, Rule::Hubs),
    (PEER, Rule::HubsAsThemselves),
];

/// What a load balancer may ask without a certificate; these say nothing but "here".
const PROBES: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];

/// Where an allowed request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Grpc,
    Rest,
}

/// Why a request goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Denial {
    #[error("a client certificate or a user's token is needed to call {target}")]
    NoCertificate { family: Family, target: String },
    #[error("{identity} may not call {target}")]
    Forbidden { family: Family, identity: String, target: String },
}

/// Decides where a request goes.
///
/// # Errors
/// Why it may not.
pub fn decide(path: &str, headers: &HeaderMap, identity: Option<&Identity>) -> Result<Family, Denial> {
    let (family, target, allowed) = match service(path, headers) {
        Some(service) => {
            let rule = RULES.iter().find(|(name, _)| *name == service).map(|(_, rule)| *rule);
            (Family::Grpc, service, rule.is_some_and(|rule| rule.allows(identity, headers)))
        }
        None if PROBES.contains(&path) => (Family::Rest, path, true),
        // The request carries its own credential.
        None if is_hook(path) => (Family::Rest, path, true),
        None => (Family::Rest, path, matches!(identity, Some(Identity::User { .. }))),
    };
    match identity {
        _ if allowed => Ok(family),
        None => Err(Denial::NoCertificate { family, target: target.to_owned() }),
        Some(identity) => Err(Denial::Forbidden { family, identity: identity.path(), target: target.to_owned() }),
    }
}

/// Whether a request may carry the token of a user: where it carries another credential, or none is asked for, a token is
/// not looked at.
pub(super) fn takes_token(path: &str, headers: &HeaderMap) -> bool {
    service(path, headers).is_none() && !PROBES.contains(&path) && !is_hook(path)
}

/// Whether a request is answered before it is known who is denied: hubs need each other to find that out, and probes
/// say nothing.
pub(super) fn precedes_deny_list(path: &str) -> bool {
    PROBES.contains(&path) || path.strip_prefix('/').and_then(|rest| rest.split('/').next()) == Some(PEER)
}

/// The gRPC service that a request is for, if it is gRPC. One of the two signs is enough, so that leaving the other
/// out does not turn one family into the other.
fn service<'a>(path: &'a str, headers: &HeaderMap) -> Option<&'a str> {
    let first = path.strip_prefix('/').and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    (content_type.starts_with(b"application/grpc") || first.starts_with("fluvial.v1.")).then_some(first)
}

impl Rule {
    fn allows(self, identity: Option<&Identity>, headers: &HeaderMap) -> bool {
        match (self, identity) {
            (Self::Anyone, _)
            | (Self::Clusters, Some(Identity::Cluster { .. }))
            | (Self::Nodes, Some(Identity::Node { .. }))
            | (Self::Hubs, Some(Identity::Hub { .. })) => true,
            (Self::HubsAsThemselves, Some(Identity::Hub { id })) => {
                let from = headers.get(PEER_METADATA_FROM).and_then(|value| value.to_str().ok());
                from.and_then(|text| text.parse().ok()) == Some(*id)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn grpc(from: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Some(from) = from {
            headers.insert(PEER_METADATA_FROM, from.parse().unwrap());
        }
        headers
    }

    #[test]
    fn every_service_is_open_to_its_own_callers_alone() {
        let cluster = Identity::Cluster { name: "a".into() };
        let hub = Identity::Hub { id: 1 };
        let user = Identity::User { name: "ann".into(), groups: vec![] };
        let node = Identity::Node { cluster: "a".into(), name: "n".into() };
        let callers = [None, Some(&cluster), Some(&hub), Some(&user), Some(&node)];
        for (path, expected) in [
            ("/fluvial.v1.JoinService/Join", [true, true, true, true, true]),
            ("/fluvial.v1.AgentService/Session", [false, true, false, false, false]),
            ("/fluvial.v1.HubService/Beats", [false, false, true, false, false]),
            ("/fluvial.v1.PeerService/Vote", [false, false, true, false, false]),
            ("/fluvial.v1.UnknownService/Call", [false, false, false, false, false]),
            ("/grpc.health.v1.Health/Check", [false, false, false, false, false]),
            ("/", [false, false, false, false, false]),
            ("/fluvial.v1.NodeService/RenewNode", [false, false, false, false, true]),
            ("/fluvial.v1.RelayService/Read", [false, false, false, false, false]),
        ] {
            let found = callers.map(|caller| decide(path, &grpc(Some("1")), caller) == Ok(Family::Grpc));
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn rest_is_for_users_and_probes_are_for_all() {
        let cluster = Identity::Cluster { name: "a".into() };
        let user = Identity::User { name: "ann".into(), groups: vec![] };
        let plain = HeaderMap::new();
        assert_eq!(decide("/apis", &plain, Some(&user)), Ok(Family::Rest));
        assert_eq!(decide("/livez", &plain, None), Ok(Family::Rest));
        assert!(matches!(decide("/apis", &plain, None), Err(Denial::NoCertificate { .. })));
        assert!(matches!(decide("/apis", &plain, Some(&cluster)), Err(Denial::Forbidden { .. })));
        let hooks = "/apis/fluvial.io/v1alpha1/namespaces/default/sourcehooks";
        assert_eq!(decide(&format!("{hooks}/h/notifications"), &plain, None), Ok(Family::Rest));
        for path in [
            hooks.to_owned(),
            format!("{hooks}/h"),
            format!("{hooks}//notifications"),
            format!("{hooks}/h/notifications/x"),
        ] {
            assert!(matches!(decide(&path, &plain, None), Err(Denial::NoCertificate { .. })), "{path}");
        }
    }

    #[test]
    fn a_service_is_not_reached_by_leaving_out_the_content_type() {
        let user = Identity::User { name: "ann".into(), groups: vec![] };
        let denied = decide("/fluvial.v1.PeerService/Vote", &HeaderMap::new(), Some(&user));
        assert!(matches!(denied, Err(Denial::Forbidden { family: Family::Grpc, .. })));
    }

    #[test]
    fn a_hub_cannot_speak_for_another_hub() {
        let hub = Identity::Hub { id: 2 };
        let call = |from| decide("/fluvial.v1.PeerService/Vote", &grpc(from), Some(&hub)).is_ok();
        assert_eq!([call(Some("2")), call(Some("1")), call(None)], [true, false, false]);
    }
}
