//! Each method of the descriptors: who may call it, and what an empty message comes to then.

use axum::http::StatusCode;
use fluvial_proto::METHODS;
use tonic::Code;

use super::callers::{Callers, Heard, Who};

/// Those whom a call is open to; all others are refused.
const ANYONE: &[Who] =
    &[Who::Nobody, Who::Stranger, Who::Administrator, Who::Agent, Who::OtherAgent, Who::Node, Who::Hub];
const AGENTS: &[Who] = &[Who::Agent, Who::OtherAgent];
const NODES: &[Who] = &[Who::Node];
const HUBS: &[Who] = &[Who::Hub];
const NONE: &[Who] = &[];

/// Method, who may, and the answer of the service itself.
const LINES: &[(&str, &[Who], Code)] = &[
    ("JoinService/Join", ANYONE, Code::InvalidArgument),
    ("AgentService/Session", AGENTS, Code::InvalidArgument),
    ("AgentService/Renew", AGENTS, Code::InvalidArgument),
    ("AgentService/PutBlocks", AGENTS, Code::InvalidArgument),
    ("AgentService/GetBlock", AGENTS, Code::InvalidArgument),
    ("NodeService/RenewNode", NODES, Code::InvalidArgument),
    ("NodeService/FindMember", NODES, Code::Ok),
    ("HubService/GetBlock", HUBS, Code::InvalidArgument),
    ("HubService/AskAgent", HUBS, Code::NotFound),
    ("HubService/Beats", HUBS, Code::Ok),
    ("HubService/Renew", HUBS, Code::InvalidArgument),
    ("PeerService/AppendStream", HUBS, Code::Ok),
    ("PeerService/Append", HUBS, Code::InvalidArgument),
    ("PeerService/Vote", HUBS, Code::InvalidArgument),
    ("PeerService/PreVote", HUBS, Code::InvalidArgument),
    ("PeerService/InstallSnapshot", HUBS, Code::InvalidArgument),
    ("PeerService/TransferLeader", HUBS, Code::InvalidArgument),
    ("PeerService/Propose", HUBS, Code::Ok),
    ("PeerService/ReadIndex", HUBS, Code::Ok),
    ("PeerService/ChangeMembers", HUBS, Code::InvalidArgument),
    ("RelayService/List", NONE, Code::Unimplemented),
    ("RelayService/Stat", NONE, Code::Unimplemented),
    ("RelayService/Read", NONE, Code::Unimplemented),
    ("ShareService/ReadShared", NONE, Code::Unimplemented),
    // What nobody wrote.
    ("AgentService/Unknown", NONE, Code::Unimplemented),
    ("UnknownService/Call", NONE, Code::Unimplemented),
];

fn path(method: &str) -> String {
    format!("/fluvial.v1.{method}")
}

#[test]
fn every_method_has_a_line() {
    let lines: Vec<String> = LINES.iter().map(|(method, ..)| path(method)).collect();
    let missing: Vec<_> = METHODS.iter().filter(|method| !lines.iter().any(|line| line == *method)).collect();
    assert!(missing.is_empty(), "say who may call {missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_answers_those_who_may_call_it_and_nobody_else() {
    let callers = Callers::new().await;
    let cluster_id = callers.hub.hub.record().cluster_id.clone();
    let mut wrong = Vec::new();
    for who in Who::ALL {
        let mut connection = None;
        for (method, open_to, answer) in LINES {
            let expected = if who.is_cut() {
                Heard::Cut
            } else {
                let code = match who {
                    _ if open_to.contains(&who) => *answer,
                    Who::Nobody => Code::Unauthenticated,
                    _ => Code::PermissionDenied,
                };
                Heard::Answer { status: StatusCode::OK, grpc: Some((code as i32).to_string()) }
            };
            let from = if who == Who::RemovedHub { "9" } else { "1" };
            let headers = [
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("fluvial-cluster", cluster_id.as_str()),
                ("fluvial-from", from),
                ("fluvial-to", "1"),
            ];
            let heard = callers.call(&mut connection, who, ("POST", &path(method)), &headers, &[0; 5]).await;
            if heard != expected {
                wrong.push(format!("{method} as {who:?}: {heard:?} instead of {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    callers.hub.hub.shutdown().await;
}
