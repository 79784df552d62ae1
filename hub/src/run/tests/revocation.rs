//! What was allowed once may be taken back, at once.

use std::time::Duration;

use fluvial_certs::tls::ALPN_H2;
use jiff::Timestamp;

use super::fixture::{LIMIT, TestHub, channel, cluster};
use super::session::{Agent, register};
use crate::enrol::revocation;

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_is_cut_off_at_once_and_stays_out() {
    let hub = TestHub::start().await;
    register(&hub, "alpha").await;
    register(&hub, "beta").await;
    let old = hub.channel(Some(&cluster("alpha")));
    let mut agent = Agent::connect(old.clone(), "i", 0, 0).await;
    agent.welcome().await;
    let mut bystander = Agent::connect(hub.channel(Some(&cluster("beta"))), "j", 0, 0).await;
    bystander.welcome().await;

    let (key, value) = revocation("alpha", Timestamp::now());
    hub.put(&key, value).await;
    let cut = async { while agent.next().await.is_ok() {} };
    // A second is the promise; the rest is for a busy machine.
    tokio::time::timeout(Duration::from_secs(5), cut).await.expect("the session ends at once");

    let mut client = fluvial_proto::v1::agent_service_client::AgentServiceClient::new(old);
    // Refused or cut off, as the call meets the connection's end.
    assert!(client.session(futures::stream::empty()).await.is_err());

    // A certificate that is issued from now on is another matter, and so is another cluster.
    let mut fresh = Agent::connect(hub.channel(Some(&cluster("alpha"))), "i", 0, 0).await;
    fresh.welcome().await;
    bystander.say(fluvial_proto::v1::agent_message::Message::Heartbeat(Default::default())).await;
    bystander.next().await.unwrap();
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_when_its_certificate_does() {
    let hub = TestHub::start().await;
    register(&hub, "alpha").await;
    let brief = hub.tls_for(Some(&cluster("alpha")), ALPN_H2, Duration::from_secs(3));
    let mut agent = Agent::connect(channel(hub.address(), brief), "i", 0, 0).await;
    agent.welcome().await;
    // Without an end it would go on: this agent says nothing for less time than makes a hub give up on it.
    let ended = async { while agent.next().await.is_ok() {} };
    tokio::time::timeout(LIMIT / 2, ended).await.expect("the session ends with the certificate");
    hub.hub.shutdown().await;
}
