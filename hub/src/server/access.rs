//! Who may call what: one table from method to rule, and no way around it.
//!
//! Invariants: a gRPC method that is not in the table is denied to all, and one of our own protocol that is not in it
//! fails the build; everything that is not gRPC is REST, and REST is for users, probes and the notifications of stores
//! excepted. The rules look at who the caller was proved to be, never at what a request says of itself.

use axum::http::{HeaderMap, header};
use fluvial_certs::Identity;
use fluvial_model::names::printable;
use fluvial_proto::METHODS;
use fluvial_proto::v1::peer_service_server::SERVICE_NAME as PEER;
use fluvial_raft::PEER_METADATA_FROM;
use thiserror::Error;

use crate::hooks::is_hook;

/// Who may call a method.
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
    /// Nobody: it is not served here.
    Nobody,
}

/// The rule of every method.
///
/// That a hub is still a member is not asked here: a hub that was away may not know yet who joined, and would refuse
/// the very leader that could tell it. A hub that was removed is refused by the deny list.
const RULES: &[(&str, Rule)] = &[
    ("/fluvial.v1.JoinService/Join", Rule::Anyone),
    ("/fluvial.v1.AgentService/Session", Rule::Clusters),
    ("/fluvial.v1.AgentService/Renew", Rule::Clusters),
    ("/fluvial.v1.AgentService/PutBlocks", Rule::Clusters),
    ("/fluvial.v1.AgentService/GetBlock", Rule::Clusters),
    ("/fluvial.v1.NodeService/RenewNode", Rule::Nodes),
    ("/fluvial.v1.NodeService/FindMember", Rule::Nodes),
    ("/fluvial.v1.HubService/GetBlock", Rule::Hubs),
    ("/fluvial.v1.HubService/AskAgent", Rule::Hubs),
    ("/fluvial.v1.HubService/Beats", Rule::Hubs),
    ("/fluvial.v1.HubService/Renew", Rule::Hubs),
    ("/fluvial.v1.PeerService/AppendStream", Rule::HubsAsThemselves),
    ("/fluvial.v1.PeerService/Append", Rule::HubsAsThemselves),
    ("/fluvial.v1.PeerService/Vote", Rule::HubsAsThemselves),
    ("/fluvial.v1.PeerService/PreVote", Rule::HubsAsThemselves),
    ("/fluvial.v1.PeerService/InstallSnapshot", Rule::HubsAsThemselves),
    ("/fluvial.v1.PeerService/TransferLeader", Rule::HubsAsThemselves),
    ("/fluvial.v1.PeerService/Propose", Rule::HubsAsThemselves),
    ("/fluvial.v1.PeerService/ReadIndex", Rule::HubsAsThemselves),
    ("/fluvial.v1.PeerService/ChangeMembers", Rule::HubsAsThemselves),
    // Agents and nodes serve these to each other; a hub does not.
    ("/fluvial.v1.RelayService/List", Rule::Nobody),
    ("/fluvial.v1.RelayService/Stat", Rule::Nobody),
    ("/fluvial.v1.RelayService/Read", Rule::Nobody),
    ("/fluvial.v1.ShareService/ReadShared", Rule::Nobody),
];

/// Fails the build for a method of the protocol without a rule, and for a rule that is of no method.
const _: () = {
    let mut at = 0;
    while at < METHODS.len() {
        assert!(is_ruled(METHODS[at]), "a method of the protocol has no rule: RULES says who may call it");
        at += 1;
    }
    assert!(RULES.len() == METHODS.len(), "a rule is of no method of the protocol");
};

const fn is_ruled(method: &str) -> bool {
    let mut at = 0;
    while at < RULES.len() {
        if is_same(RULES[at].0.as_bytes(), method.as_bytes()) {
            return true;
        }
        at += 1;
    }
    false
}

/// `==`, for constants.
const fn is_same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

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
    let (family, allowed) = if is_grpc(path, headers) {
        let rule = RULES.iter().find(|(method, _)| *method == path).map(|(_, rule)| *rule);
        (Family::Grpc, rule.is_some_and(|rule| rule.allows(identity, headers)))
    } else {
        // A hook's notification carries its own credential.
        let open = PROBES.contains(&path) || is_hook(path);
        (Family::Rest, open || matches!(identity, Some(Identity::User { .. })))
    };
    match identity {
        _ if allowed => Ok(family),
        None => Err(Denial::NoCertificate { family, target: printable(path) }),
        Some(identity) => Err(Denial::Forbidden { family, identity: identity.path(), target: printable(path) }),
    }
}

/// Whether a request may carry the token of a user: where it carries another credential, or none is asked for, a token is
/// not looked at.
pub(super) fn takes_token(path: &str, headers: &HeaderMap) -> bool {
    !is_grpc(path, headers) && !PROBES.contains(&path) && !is_hook(path)
}

/// Whether a request is answered before it is known who is denied: hubs need each other to find that out, and probes
/// say nothing.
pub(super) fn precedes_deny_list(path: &str) -> bool {
    PROBES.contains(&path) || first_segment(path) == PEER
}

/// Whether a request is gRPC. One of the two signs is enough, so that leaving the other out does not turn one family
/// into the other.
pub(super) fn is_grpc(path: &str, headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    content_type.starts_with(b"application/grpc") || first_segment(path).starts_with("fluvial.v1.")
}

fn first_segment(path: &str) -> &str {
    path.strip_prefix('/').and_then(|rest| rest.split('/').next()).unwrap_or_default()
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
    fn every_method_is_open_to_its_own_callers_alone() {
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
            ("/fluvial.v1.AgentService/Other", [false, false, false, false, false]),
            ("/fluvial.v1.AgentService/Session/", [false, false, false, false, false]),
            ("/fluvial.v1.AgentService", [false, false, false, false, false]),
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
