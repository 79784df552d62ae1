//! Where a node's session goes, and how it gets its certificate: both from a hub.
//!
//! A node knows where the agent of its cluster listened last, so that it finds it again while no hub is reached.

use std::time::Duration;

use fluvial_proto::v1;
use fluvial_proto::v1::node_service_client::NodeServiceClient;
use tonic::Status;

use super::{Lost, Uplink};
use crate::connect;

/// How long one hub may take.
const ANSWER: Duration = Duration::from_secs(5);

/// What a node asks a hub.
enum Question {
    FindMember,
    Renew(String),
}

/// What it is answered.
enum Answer {
    Member(String),
    Certificate(v1::RenewResponse),
}

/// Asks the hubs, one after another, until one answers.
async fn ask(uplink: &Uplink, question: &Question) -> Result<Answer, Status> {
    let mut last = Status::unavailable("no hub is known: join again");
    for hub in &uplink.agent.hubs {
        match tokio::time::timeout(ANSWER, Box::pin(ask_hub(uplink, hub, question))).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => last = status,
            Err(_) => last = Status::deadline_exceeded(format!("hub {hub} did not answer within {ANSWER:?}")),
        }
    }
    Err(last)
}

async fn ask_hub(uplink: &Uplink, hub: &str, question: &Question) -> Result<Answer, Status> {
    let channel = connect::connect(hub, uplink.credentials.client_config()).await;
    let channel = channel.map_err(|error| Status::unavailable(fluvial_model::causes::chain(&error)))?;
    let mut client = NodeServiceClient::new(channel);
    match question {
        Question::FindMember => {
            let found = client.find_member(v1::FindMemberRequest {}).await?.into_inner();
            Ok(Answer::Member(found.address))
        }
        Question::Renew(csr) => {
            let renewed = client.renew_node(v1::RenewNodeRequest { csr: csr.clone() }).await?.into_inner();
            Ok(Answer::Certificate(v1::RenewResponse { certificate: renewed.certificate, ca: renewed.ca }))
        }
    }
}

/// The address of the agent that speaks for the node's cluster.
pub(super) async fn member(uplink: &mut Uplink) -> Result<String, Lost> {
    let found = match ask(uplink, &Question::FindMember).await {
        Ok(Answer::Member(address)) => Ok(address),
        Ok(Answer::Certificate(_)) => Ok(String::new()),
        Err(status) => Err(status),
    };
    match (found, uplink.agent.member.clone()) {
        (Ok(address), known) if !address.is_empty() => {
            if known.as_ref() != Some(&address) {
                uplink.agent.member = Some(address.clone());
                if let Err(error) = uplink.dir.set_agent(&uplink.agent) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "where the agent listens was not noted");
                }
            }
            Ok(address)
        }
        (Ok(_), Some(known)) => Ok(known),
        (Ok(_), None) => Err(Lost::Homeless),
        (Err(status), Some(known)) => {
            tracing::debug!(why = status.message(), "no hub says where the agent of the cluster is");
            Ok(known)
        }
        (Err(status), None) => Err(Lost::Refused(Box::new(status))),
    }
}

/// A new certificate for the node.
pub(super) async fn renew(uplink: &Uplink, csr: String) -> Result<v1::RenewResponse, Status> {
    match ask(uplink, &Question::Renew(csr)).await? {
        Answer::Certificate(renewed) => Ok(renewed),
        Answer::Member(_) => Err(Status::internal("a hub answered another question")),
    }
}
