//! ① for a member: a join token becomes an identity in the data directory.
//!
//! The key is written before anything is sent, so that a reply that was lost can be asked for again with the same key,
//! within the time that the hub allows. The token goes only to a hub whose authority has the key that the token pins.
//! Invariant: a data directory belongs to one cluster for ever.

use std::path::PathBuf;
use std::time::Duration;

use fluvial_certs::JoinToken;
use fluvial_certs::tls::{ALPN_H2, pinned_client_config};
use fluvial_proto::v1::join_service_client::JoinServiceClient;
use fluvial_proto::v1::{JoinRequest, JoinResponse};
use secrecy::{ExposeSecret, SecretString};
use tonic::Code;

use crate::connect;
use crate::identity::{self, AgentFile, DataDir};

/// How long the hub may take to answer: one replicated write and one signature.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// Why joining failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("join: read token")]
    Token(#[source] fluvial_certs::token::Error),
    #[error("join: data directory {dir} belongs to cluster \"{cluster}\", not to \"{asked}\": use another directory")]
    OtherCluster { dir: String, cluster: String, asked: String },
    #[error("join: data directory {dir} belongs to {known}, not to {asked}: use another directory")]
    OtherNode { dir: String, known: String, asked: String },
    #[error("join: prepare identity")]
    Identity(#[source] identity::Error),
    #[error("join: prepare tls")]
    Tls(#[source] fluvial_certs::tls::Error),
    #[error("join: reach hub")]
    Connect(#[source] connect::Error),
    #[error("join: the hub refuses: {message}")]
    Refused { message: String },
    #[error("join: the hub does not answer; the same command may be repeated with the same token")]
    NoAnswer(#[source] Box<tonic::Status>),
    #[error("join: the hub's answer cannot be used: {why}")]
    Answer { why: String },
}

/// What to join with.
#[derive(Debug)]
pub struct JoinConfig {
    /// Address of a hub: `https://HOST:PORT` or `HOST:PORT`.
    pub hub: String,
    /// The token's text.
    pub token: SecretString,
    /// The data directory, empty or of the same cluster.
    pub data_dir: PathBuf,
    /// The cluster to join; if not given, the one that the data directory belongs to, else the token's.
    pub cluster: Option<String>,
    /// The node that this machine becomes; nothing for the agent that speaks for the cluster.
    pub node: Option<String>,
}

/// What was joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The cluster.
    pub cluster: String,
    /// The trust domain.
    pub trust_domain: String,
    /// Addresses of the hubs.
    pub hubs: Vec<String>,
}

/// Joins, or joins again (after the certificate has expired, or because a reply was lost).
///
/// # Errors
/// See [`Error`]; nothing but the key has been written then.
pub async fn join(config: JoinConfig) -> Result<Joined, Error> {
    let JoinConfig { hub, token, data_dir, cluster, node } = config;
    let token: JoinToken = token.expose_secret().parse().map_err(Error::Token)?;
    let address = connect::address(&hub).map_err(Error::Connect)?;
    let dir = DataDir::open(&data_dir).map_err(Error::Identity)?;
    let known = dir.agent().map_err(Error::Identity)?;
    let other = |known: &AgentFile, asked: &str| Error::OtherCluster {
        dir: data_dir.display().to_string(),
        cluster: known.cluster.clone(),
        asked: asked.to_owned(),
    };
    if let (Some(known), Some(asked)) = (&known, &cluster)
        && known.cluster != *asked
    {
        return Err(other(known, asked));
    }
    if let Some(known) = &known
        && known.node != node
    {
        let who =
            |node: &Option<String>| node.as_ref().map_or("the cluster's agent".to_owned(), |n| format!("node \"{n}\""));
        let dir = data_dir.display().to_string();
        return Err(Error::OtherNode { dir, known: who(&known.node), asked: who(&node) });
    }
    let asked = cluster.or_else(|| known.as_ref().map(|known| known.cluster.clone())).unwrap_or_default();

    let csr = dir.key().and_then(|key| key.csr().map_err(identity::Error::Key)).map_err(Error::Identity)?;
    let tls = pinned_client_config(token.pin(), &[ALPN_H2]).map_err(Error::Tls)?;
    let channel = connect::connect(&address, tls.into()).await.map_err(Error::Connect)?;
    let request = JoinRequest {
        token: token.text().expose_secret().to_owned(),
        csr,
        cluster: asked.clone(),
        hub_address: String::new(),
        node: node.clone().unwrap_or_default(),
    };
    let mut client = JoinServiceClient::new(channel);
    let call = client.join(request);
    let answer = tokio::time::timeout(REPLY_TIMEOUT, Box::pin(call)).await;
    let answer = match answer {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) if unknown_outcome(status.code()) => return Err(Error::NoAnswer(Box::new(status))),
        Ok(Err(status)) => return Err(Error::Refused { message: status.message().to_owned() }),
        Err(_) => {
            let status = tonic::Status::deadline_exceeded(format!("no answer within {REPLY_TIMEOUT:?}"));
            return Err(Error::NoAnswer(Box::new(status)));
        }
    };
    if let Some(known) = &known
        && known.cluster != answer.cluster
    {
        return Err(other(known, &answer.cluster));
    }
    settle(&dir, known, &token, (&asked, node), &address, answer)
}

/// Checks the answer and writes it down.
fn settle(
    dir: &DataDir,
    known: Option<AgentFile>,
    token: &JoinToken,
    (asked, node): (&str, Option<String>),
    address: &str,
    answer: JoinResponse,
) -> Result<Joined, Error> {
    let wrong = |why: &str| Error::Answer { why: why.to_owned() };
    if !asked.is_empty() && asked != answer.cluster {
        return Err(wrong("it is for another cluster than asked"));
    }
    let roots = fluvial_certs::bundle::parse_roots(&answer.ca).map_err(|_| wrong("its roots cannot be read"))?;
    if token.pin().find_in(&roots).is_none() {
        return Err(wrong("the pinned authority is not among its roots"));
    }
    let bundle = dir.set_certificate(&answer.certificate, &answer.ca).map_err(Error::Identity)?;
    let leaf = identity::verified(&bundle, &answer.trust_domain).map_err(Error::Identity)?;
    let hubs = if answer.hubs.is_empty() { vec![address.to_owned()] } else { answer.hubs };
    let member = known.as_ref().and_then(|known| known.member.clone());
    let instance = known.map_or_else(|| uuid::Uuid::new_v4().to_string(), |known| known.instance);
    let (cluster, trust_domain) = (answer.cluster, answer.trust_domain);
    let agent = AgentFile { cluster, trust_domain, hubs, instance, node, member };
    if leaf.identity != agent.identity() {
        return Err(wrong("its certificate is for somebody else"));
    }
    dir.set_agent(&agent).map_err(Error::Identity)?;
    Ok(Joined { cluster: agent.cluster, trust_domain: agent.trust_domain, hubs: agent.hubs })
}

/// Whether the hub may have done what was asked although it did not say so.
fn unknown_outcome(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Aborted)
}
