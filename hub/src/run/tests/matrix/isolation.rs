//! An agent learns and touches the things of its own cluster, whatever it says.

use std::collections::BTreeMap;

use bytes::Bytes;
use fluvial_certs::{Bundle, Identity, KeyPair};
use fluvial_model::desired::{assignment_key, split_assignment_key};
use fluvial_model::kinds::Cluster;
use fluvial_model::manifest::BlockHash;
use fluvial_model::report::{AgentReport, CacheReport, Report, StoredReport, report_key};
use fluvial_proto::v1;
use fluvial_proto::v1::agent_message::Message as FromAgent;
use fluvial_proto::v1::agent_service_client::AgentServiceClient;
use fluvial_proto::v1::hub_message::Message as ToAgent;
use fluvial_proto::v1::node_service_client::NodeServiceClient;
use fluvial_raft::{Consistency, Store as _};
use prost::Message as _;
use tonic::Code;

use crate::run::tests::fixture::{LIMIT, TestHub, cluster, eventually};
use crate::run::tests::session::{Agent, assign, put_secret, register};

/// Everything that an agent is told until it is synced at `at`, without how far the whole store is: ids with the whole
/// message.
async fn told(agent: &mut Agent, at: u64) -> BTreeMap<String, Vec<u8>> {
    let mut told = BTreeMap::new();
    loop {
        match agent.next().await.unwrap() {
            ToAgent::Synced(synced) if synced.revision >= at => return told,
            ToAgent::Synced(_) => {}
            ToAgent::Assign(assign) => _ = told.insert(assign.id.clone(), assign.encode_to_vec()),
            ToAgent::Withdraw(withdraw) => _ = told.insert(withdraw.id.clone(), withdraw.encode_to_vec()),
            other => panic!("{other:?}"),
        }
    }
}

/// Alpha with an assignment and its secret.
async fn alpha(hub: &TestHub) -> (String, u64) {
    register(hub, "alpha").await;
    register(hub, "beta").await;
    put_secret(hub, "of-alpha", "alpha's password").await;
    assign(hub, "alpha", "one", Some("of-alpha")).await
}

/// Beta with many, one of the same name; returns the last revision.
async fn beta(hub: &TestHub) -> u64 {
    put_secret(hub, "of-beta", "beta's password").await;
    let mut last = 0;
    for name in ["one", "two", "three"] {
        let (id, revision) = assign(hub, "beta", name, Some("of-beta")).await;
        let report = StoredReport { generation: revision, report: Report::Cache(CacheReport::default()) };
        last = hub.put(&report_key("beta", &id), serde_json::to_vec(&report).unwrap()).await.0;
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_hears_the_same_bytes_whatever_another_cluster_has() {
    let hub = TestHub::start().await;
    let (_, at) = alpha(&hub).await;
    let channel = hub.channel(Some(&cluster("alpha")));
    let mut agent = Agent::connect(channel.clone(), "i", 0, 0).await;
    agent.welcome().await;
    let alone = told(&mut agent, at).await;
    assert_eq!(alone.len(), 1);

    let other = hub.channel(Some(&cluster("beta")));
    let mut neighbour = Agent::connect(other, "j", 0, 0).await;
    neighbour.welcome().await;
    let last = beta(&hub).await;
    // The session that is open hears of none of it, not even of the Secret.
    assert_eq!(told(&mut agent, last).await, BTreeMap::new());
    drop(agent);
    // Nor does a new one, from the beginning or from where beta is.
    for (cursor, expected) in [(0, &alone), (last, &BTreeMap::new())] {
        let mut again = Agent::connect(channel.clone(), "i", u64::from(cursor > 0), cursor).await;
        assert_eq!(again.welcome().await.full, cursor == 0);
        assert_eq!(told(&mut again, last).await, *expected, "from {cursor}");
    }
    for bytes in alone.values() {
        assert!(!bytes.windows(4).any(|window| window == b"beta"));
    }
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_another_cluster_opens_nothing() {
    let hub = TestHub::start().await;
    let (id, at) = alpha(&hub).await;
    // Between alpha's assignment and its change lies all that beta has.
    let (before, last) = (at, beta(&hub).await);
    hub.delete(&assignment_key("alpha", &id)).await;
    let mut agent = Agent::connect(hub.channel(Some(&cluster("beta"))), "j", 1, before).await;
    assert!(!agent.welcome().await.full);
    let heard = told(&mut agent, last).await;
    let work: Vec<v1::Assign> = heard.values().map(|bytes| v1::Assign::decode(bytes.as_slice()).unwrap()).collect();
    assert_eq!(work.len(), 3);
    for assign in work {
        assert_eq!(assign.secrets.into_values().collect::<Vec<_>>(), ["beta's password"], "{}", assign.id);
    }
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_says_of_anothers_work_changes_nothing() {
    let hub = TestHub::start().await;
    let (id, generation) = alpha(&hub).await;
    let store = hub.hub.store();
    let state = async || {
        let listing = store.list(fluvial_raft::ListRequest::default()).await.unwrap();
        let of_beta = |key: &str| key.ends_with("/clusters/beta");
        listing.items.into_iter().filter(|kv| !of_beta(&kv.key)).collect::<Vec<_>>()
    };
    let before = state().await;
    let mut agent = Agent::connect(hub.channel(Some(&cluster("beta"))), "j", 0, 0).await;
    agent.welcome().await;
    let report = Report::Cache(CacheReport { phase: "Ready".into(), ..CacheReport::default() });
    let report = Bytes::from(serde_json::to_vec(&report).unwrap());
    let ids = [id.clone(), format!("../alpha/{id}"), format!("/assignments/alpha/{id}"), String::new(), "..".into()];
    for id in &ids {
        agent.say(FromAgent::Ack(v1::Ack { id: id.clone(), generation, refused: "no".into() })).await;
        agent.say(FromAgent::Report(v1::WorkReport { id: id.clone(), generation, report: report.clone() })).await;
        // It may stop repeating it: nobody needs it.
        loop {
            match agent.next().await.unwrap() {
                ToAgent::ReportStored(ack) => break assert_eq!(&ack.id, id),
                ToAgent::Synced(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    let own = AgentReport { version: "9".into(), instance: "j".into(), ..AgentReport::default() };
    let mut own = serde_json::to_value(&own).unwrap();
    own["cluster"] = "alpha".into();
    agent.say(FromAgent::AgentReport(Bytes::from(own.to_string()))).await;
    let noted = async || {
        let found = hub.hub.objects().get::<Cluster>("", "beta", Consistency::Linearizable).await.unwrap();
        found.and_then(|stored| stored.object.status).filter(|status| status.agent_version == "9")
    };
    eventually("beta's own report is noted", noted).await;
    assert_eq!(state().await, before);
    assert_eq!(split_assignment_key(&assignment_key("beta", &ids[1])).unwrap().0, "beta");
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_anothers_question_is_nobodys() {
    let hub = TestHub::start().await;
    alpha(&hub).await;
    let mut asked = Agent::connect(hub.channel(Some(&cluster("alpha"))), "i", 0, 0).await;
    asked.welcome().await;
    let mut liar = Agent::connect(hub.channel(Some(&cluster("beta"))), "j", 0, 0).await;
    liar.welcome().await;
    let hub_calls = hub.channel(Some(&Identity::Hub { id: 1 }));
    let question = v1::AskAgentRequest {
        cluster: "alpha".into(),
        ask: Some(v1::Ask { id: 0, question: Some(v1::ask::Question::WhichProcess(v1::WhichProcess {})) }),
    };
    let answer = tokio::spawn(async move {
        let mut client = v1::hub_service_client::HubServiceClient::new(hub_calls);
        client.ask_agent(question).await.unwrap().into_inner()
    });
    let ask = loop {
        match asked.next().await.unwrap() {
            ToAgent::Ask(ask) => break ask,
            ToAgent::Synced(_) | ToAgent::Assign(_) => {}
            other => panic!("{other:?}"),
        }
    };
    let reply = |data: &'static [u8]| {
        FromAgent::Reply(v1::AskReply { id: ask.id, data: Bytes::from_static(data), problem: Bytes::new() })
    };
    liar.say(reply(b"a lie")).await;
    // What it said is behind this.
    liar.say(FromAgent::Heartbeat(v1::Heartbeat { sequence: 7 })).await;
    while !matches!(liar.next().await.unwrap(), ToAgent::Heartbeat(_)) {}
    asked.say(reply(b"the truth")).await;
    let answer = tokio::time::timeout(LIMIT, answer).await.unwrap().unwrap();
    assert_eq!(answer.data, Bytes::from_static(b"the truth"));
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_for_who_calls_whatever_the_request_names() {
    let hub = TestHub::start().await;
    alpha(&hub).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut named = rcgen::CertificateParams::new(vec!["alpha".to_owned()]).unwrap();
    named.distinguished_name.push(rcgen::DnType::CommonName, "cluster-alpha");
    let uri = "spiffe://fluvial.test/cluster/alpha".try_into().unwrap();
    named.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    let csr = named.serialize_request(&key).unwrap().pem().unwrap();
    let ours = KeyPair::from_pem(&key.serialize_pem().into()).unwrap();
    let domain = hub.authority.trust_domain();
    let mut agents = AgentServiceClient::new(hub.channel(Some(&cluster("beta"))));
    let renewed = agents.renew(v1::RenewRequest { csr: csr.clone() }).await.unwrap().into_inner();
    let bundle = Bundle::new(&renewed.certificate, &ours, &renewed.ca).unwrap();
    assert_eq!(bundle.verified(domain).unwrap().identity, cluster("beta"));
    let node = Identity::Node { cluster: "beta".into(), name: "n".into() };
    let mut nodes = NodeServiceClient::new(hub.channel(Some(&node)));
    let renewed = nodes.renew_node(v1::RenewNodeRequest { csr }).await.unwrap().into_inner();
    let bundle = Bundle::new(&renewed.certificate, &ours, &renewed.ca).unwrap();
    assert_eq!(bundle.verified(domain).unwrap().identity, node);
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_finds_the_agent_of_its_own_cluster() {
    let hub = TestHub::start().await;
    for (name, address) in [("alpha", "alpha.example:1"), ("beta", "beta.example:2")] {
        let mut object = Cluster::new("", name, Default::default());
        object.status.get_or_insert_default().address = address.to_owned();
        hub.put(&fluvial_model::resource::Resource::key(&object), serde_json::to_vec(&object).unwrap()).await;
        let node = Identity::Node { cluster: name.into(), name: "n".into() };
        let mut calls = NodeServiceClient::new(hub.channel(Some(&node)));
        let found = calls.find_member(v1::FindMemberRequest {}).await.unwrap().into_inner();
        assert_eq!(found.address, address);
    }
    let gone = Identity::Node { cluster: "gone".into(), name: "n".into() };
    let mut calls = NodeServiceClient::new(hub.channel(Some(&gone)));
    let refused = calls.find_member(v1::FindMemberRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    hub.hub.shutdown().await;
}

/// A block's name is 256 bits of its content: who knows it had it from an assignment or a block of its own, or has the
/// content. That there is a block is told to nobody who does not know its name.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_is_had_by_its_name_alone_and_cannot_be_replaced() {
    let hub = TestHub::start().await;
    alpha(&hub).await;
    let mut alpha = AgentServiceClient::new(hub.channel(Some(&cluster("alpha"))));
    let mut beta = AgentServiceClient::new(hub.channel(Some(&cluster("beta"))));
    let data = Bytes::from_static(b"a block of alpha's");
    let hash = BlockHash::of(&data);
    let block = |data: &Bytes| v1::Block { hash: Bytes::copy_from_slice(hash.as_bytes()), data: data.clone() };
    alpha.put_blocks(futures::stream::iter([block(&data)])).await.unwrap();
    // Whether it was here already is not said: pushing does not ask.
    let again = beta.put_blocks(futures::stream::iter([block(&data)])).await.unwrap().into_inner();
    assert_eq!(again.stored, 1);
    let forged = beta.put_blocks(futures::stream::iter([block(&Bytes::from_static(b"of beta's"))])).await;
    assert_eq!(forged.unwrap_err().code(), Code::InvalidArgument);
    for part in [&hash.as_bytes()[..31], &[], &[0; 33]] {
        let refused = beta.get_block(v1::BlockRequest { hash: Bytes::copy_from_slice(part) }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let mut near = *hash.as_bytes();
    near[31] ^= 1;
    let refused = beta.get_block(v1::BlockRequest { hash: Bytes::copy_from_slice(&near) }).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let kept = alpha.get_block(v1::BlockRequest { hash: Bytes::copy_from_slice(hash.as_bytes()) }).await.unwrap();
    assert_eq!(kept.into_inner().data, data);
    hub.hub.shutdown().await;
}
