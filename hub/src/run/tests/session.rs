//! ④⑦ What an agent is told and what becomes of what it says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fluvial_certs::Identity;
use fluvial_model::desired::{CacheWork, DatasetKey, Endpoint, Work, assignment_key};
use fluvial_model::kinds::{Cluster, Dataset, DatasetSpec, DatasetStatus, Mount, Secret, SecretKeySelector};
use fluvial_model::manifest::{BlockHash, Digest, Entry, File, RelativePath, TreeBuilder};
use fluvial_model::report::{AgentReport, CacheReport, Report, StoredReport, report_key};
use fluvial_model::resource::Resource as _;
use fluvial_model::uri::Uri;
use fluvial_proto::v1;
use fluvial_proto::v1::agent_message::Message as FromAgent;
use fluvial_proto::v1::agent_service_client::AgentServiceClient;
use fluvial_proto::v1::hub_message::Message as ToAgent;
use fluvial_raft::{Consistency, Store as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::fixture::{LIMIT, TestHub, cluster, eventually, user};

/// An agent that says what a test makes it say.
pub(super) struct Agent {
    said: mpsc::Sender<v1::AgentMessage>,
    heard: Streaming<v1::HubMessage>,
}

impl Agent {
    /// Opens a session and says hello.
    pub(super) async fn connect(channel: Channel, instance: &str, epoch: u64, cursor: u64) -> Self {
        Self::connect_knowing(channel, instance, (epoch, cursor), 0).await
    }

    /// The same, of an agent that has met hubs of the history `newest_epoch`.
    pub(super) async fn connect_knowing(
        channel: Channel,
        instance: &str,
        (epoch, cursor): (u64, u64),
        newest_epoch: u64,
    ) -> Self {
        let (said, stream) = mpsc::channel(8);
        let heard = AgentServiceClient::new(channel).session(ReceiverStream::new(stream)).await.unwrap().into_inner();
        let mut agent = Self { said, heard };
        agent.say(FromAgent::Hello(v1::Hello { epoch, cursor, agent_report: report(instance), newest_epoch })).await;
        agent
    }

    pub(super) async fn say(&mut self, message: FromAgent) {
        self.said.send(v1::AgentMessage { message: Some(message) }).await.unwrap();
    }

    pub(super) async fn next(&mut self) -> Result<ToAgent, Status> {
        let heard = tokio::time::timeout(LIMIT, self.heard.message()).await.expect("the hub says something");
        match heard? {
            Some(message) => Ok(message.message.unwrap()),
            None => Err(Status::cancelled("the hub ended the session")),
        }
    }

    pub(super) async fn welcome(&mut self) -> v1::Welcome {
        match self.next().await.unwrap() {
            ToAgent::Welcome(welcome) => welcome,
            other => panic!("{other:?}"),
        }
    }

    /// Everything up to the `Synced` that is not behind revision `at`: assigned and withdrawn ids with their
    /// generations, and its revision. A hub may sync an agent that comes back before it has seen what is new.
    pub(super) async fn until_synced(&mut self, at: u64) -> (Vec<(String, u64)>, Vec<(String, u64)>, u64) {
        let (mut assigned, mut withdrawn) = (Vec::new(), Vec::new());
        loop {
            match self.next().await.unwrap() {
                ToAgent::Assign(assign) => assigned.push((assign.id, assign.generation)),
                ToAgent::Withdraw(withdraw) => withdrawn.push((withdraw.id, withdraw.generation)),
                ToAgent::Synced(synced) if synced.revision < at => {}
                ToAgent::Synced(synced) => return (assigned, withdrawn, synced.revision),
                other => panic!("{other:?}"),
            }
        }
    }

    pub(super) async fn assign(&mut self) -> v1::Assign {
        loop {
            match self.next().await.unwrap() {
                ToAgent::Assign(assign) => return assign,
                ToAgent::Synced(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn stored(&mut self) -> v1::Ack {
        loop {
            match self.next().await.unwrap() {
                ToAgent::ReportStored(ack) => return ack,
                ToAgent::Synced(_) | ToAgent::Assign(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn report(instance: &str) -> Bytes {
    let report =
        AgentReport { platform: "host".into(), version: "1".into(), instance: instance.into(), ..Default::default() };
    serde_json::to_vec(&report).unwrap().into()
}

fn work(name: &str, secret: Option<&str>) -> Work {
    let mut secrets = BTreeMap::new();
    if let Some(secret) = secret {
        let reference = SecretKeySelector { name: secret.into(), key: "password".into(), namespace: "default".into() };
        secrets.insert("secret_access_key".to_owned(), reference);
    }
    let uri = Uri::parse("s3://bucket/data").unwrap();
    Work::Cache(CacheWork {
        on_demand: false,
        dataset: DatasetKey { namespace: "default".into(), name: name.into(), uid: "u".into() },
        root: "0".repeat(64),
        sources: vec![Endpoint { path: String::new(), uri, options: BTreeMap::new(), secrets }],
        paths: Vec::new(),
        pinned: false,
    })
}

pub(super) async fn assign(hub: &TestHub, cluster: &str, name: &str, secret: Option<&str>) -> (String, u64) {
    let work = work(name, secret);
    let revision = hub.put(&assignment_key(cluster, &work.id()), serde_json::to_vec(&work).unwrap()).await;
    (work.id(), revision.0)
}

pub(super) async fn put_secret(hub: &TestHub, name: &str, password: &str) -> u64 {
    let mut secret = Secret { api_version: "v1".into(), kind: "Secret".into(), ..Secret::default() };
    secret.metadata.name = name.into();
    secret.metadata.namespace = "default".into();
    secret.data.insert("password".into(), STANDARD.encode(password));
    let value = hub.hub.objects().encode(&secret).unwrap();
    hub.put(&secret.key(), value).await.0
}

/// Makes the Cluster object, as a join does.
pub(super) async fn register(hub: &TestHub, name: &str) {
    let object = Cluster::new("", name, Default::default());
    hub.put(&object.key(), serde_json::to_vec(&object).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_told_everything_once_and_then_what_changed() {
    let hub = TestHub::start().await;
    register(&hub, "alpha").await;
    let (one, two) = (assign(&hub, "alpha", "one", None).await, assign(&hub, "alpha", "two", None).await);
    assign(&hub, "beta", "others", None).await;

    let channel = hub.channel(Some(&cluster("alpha")));
    let mut agent = Agent::connect(channel.clone(), "i", 0, 0).await;
    let welcome = agent.welcome().await;
    assert_eq!((welcome.epoch, welcome.full, welcome.hubs), (1, true, vec![hub.address()]));
    let (assigned, withdrawn, _) = agent.until_synced(two.1).await;
    assert_eq!((assigned, withdrawn), (vec![one.clone(), two.clone()], vec![]));

    let three = assign(&hub, "alpha", "three", None).await;
    let (assigned, _, cursor) = agent.until_synced(three.1).await;
    assert_eq!(assigned, [three]);
    drop(agent);

    let gone = hub.delete(&assignment_key("alpha", &one.0)).await;
    let mut agent = Agent::connect(channel.clone(), "i", 1, cursor).await;
    assert!(!agent.welcome().await.full);
    let (assigned, withdrawn, cursor) = agent.until_synced(gone.0).await;
    assert_eq!((assigned, withdrawn), (vec![], vec![(one.0, gone.0)]));
    drop(agent);

    // A cursor of another history is of no use.
    let mut agent = Agent::connect(channel, "i", 7, cursor).await;
    assert!(agent.welcome().await.full);
    assert_eq!(agent.until_synced(cursor).await.0.len(), 2);
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_secret_reaches_the_agents_that_use_it() {
    let hub = TestHub::start().await;
    register(&hub, "alpha").await;
    let old = put_secret(&hub, "s3", "first").await;
    let (id, assigned_at) = assign(&hub, "alpha", "one", Some("s3")).await;
    assert!(assigned_at > old);

    let channel = hub.channel(Some(&cluster("alpha")));
    let mut agent = Agent::connect(channel.clone(), "i", 0, 0).await;
    agent.welcome().await;
    let first = agent.assign().await;
    assert_eq!((&first.id, first.generation), (&id, assigned_at));
    assert_eq!(first.secrets, [("default/s3/password".to_owned(), "first".to_owned())].into());
    let (_, _, cursor) = agent.until_synced(assigned_at).await;

    let changed = put_secret(&hub, "s3", "second").await;
    let second = agent.assign().await;
    assert_eq!((&second.id, second.generation, second.work == first.work), (&id, changed, true));
    assert_eq!(second.secrets["default/s3/password"], "second");
    drop(agent);

    // Changed while the agent was away.
    let changed = put_secret(&hub, "s3", "third").await;
    let mut agent = Agent::connect(channel, "i", 1, cursor).await;
    assert!(!agent.welcome().await.full);
    let third = agent.assign().await;
    assert_eq!((third.generation, third.secrets["default/s3/password"].as_str()), (changed, "third"));
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_are_stored_and_acknowledged_and_never_outlive_their_assignment() {
    let hub = TestHub::start().await;
    register(&hub, "alpha").await;
    let (id, generation) = assign(&hub, "alpha", "one", None).await;
    let mut agent = Agent::connect(hub.channel(Some(&cluster("alpha"))), "i", 0, 0).await;
    agent.welcome().await;

    let filling =
        |cached_bytes| Report::Cache(CacheReport { phase: "Filling".into(), cached_bytes, ..Default::default() });
    let said = |id: &str, report: &Report| {
        let report = serde_json::to_vec(report).unwrap().into();
        FromAgent::Report(v1::WorkReport { id: id.to_owned(), generation, report })
    };
    for bytes in [1, 2, 3] {
        agent.say(said(&id, &filling(bytes))).await;
    }
    let ack = agent.stored().await;
    assert_eq!((&ack.id, ack.generation, ack.refused.as_str()), (&id, generation, ""));
    let key = report_key("alpha", &id);
    let last = StoredReport { generation, report: filling(3) };
    let stored = || async {
        let kv = hub.hub.store().get(&key, Consistency::Linearizable).await.unwrap()?;
        (serde_json::from_slice::<StoredReport>(&kv.value).unwrap() == last).then_some(kv.mod_revision)
    };
    let revision = eventually("the last report is stored", stored).await;

    // The same again writes nothing.
    agent.say(said(&id, &filling(3))).await;
    agent.stored().await;
    assert_eq!(stored().await, Some(revision));

    hub.delete(&assignment_key("alpha", &id)).await;
    hub.delete(&key).await;
    loop {
        match agent.next().await.unwrap() {
            ToAgent::Withdraw(_) => break,
            ToAgent::Synced(_) | ToAgent::Assign(_) | ToAgent::ReportStored(_) => {}
            other => panic!("{other:?}"),
        }
    }
    agent.say(said(&id, &filling(9))).await;
    assert_eq!(agent.stored().await.id, id);
    assert_eq!(hub.hub.store().get(&key, Consistency::Linearizable).await.unwrap(), None);
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_installation_at_a_time_speaks_for_a_cluster() {
    let hub = TestHub::start().await;
    register(&hub, "alpha").await;
    let channel = || hub.channel(Some(&cluster("alpha")));
    let mut first = Agent::connect(channel(), "one", 0, 0).await;
    first.welcome().await;
    let stored = hub.hub.objects().get::<Cluster>("", "alpha", Consistency::Linearizable).await.unwrap().unwrap();
    assert_eq!(stored.object.status.unwrap().instance, "one");

    let mut second = Agent::connect(channel(), "two", 0, 0).await;
    assert_eq!(second.next().await.unwrap_err().code(), Code::AlreadyExists);

    // The same one may come back before its old connection is known to be dead.
    let mut again = Agent::connect(channel(), "one", 0, 0).await;
    again.welcome().await;
    let ended = loop {
        match first.next().await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Aborted);

    let mut stranger = Agent::connect(hub.channel(Some(&cluster("gone"))), "x", 0, 0).await;
    assert_eq!(stranger.next().await.unwrap_err().code(), Code::PermissionDenied);
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_are_answered_and_noted() {
    let hub = TestHub::start().await;
    register(&hub, "alpha").await;
    let mut agent = Agent::connect(hub.channel(Some(&cluster("alpha"))), "i", 0, 0).await;
    agent.welcome().await;
    agent.say(FromAgent::Heartbeat(v1::Heartbeat { sequence: 42 })).await;
    let answered = loop {
        match agent.next().await.unwrap() {
            ToAgent::Heartbeat(heartbeat) => break heartbeat.sequence,
            ToAgent::Synced(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(answered, 42);
    assert!(hub.hub.liveness().silence("alpha").unwrap() < Duration::from_secs(5));
    hub.hub.shutdown().await;
}

/// A dataset of one directory with one file, its blocks pushed by its agent.
async fn dataset(hub: &TestHub, identity: &Identity, content: &[u8]) {
    let mut blocks = Vec::new();
    let mut builder = TreeBuilder::new(|hash: BlockHash, data: Vec<u8>| {
        blocks.push(v1::Block { hash: Bytes::copy_from_slice(hash.as_bytes()), data: data.into() });
        Ok::<_, std::convert::Infallible>(())
    });
    let file = File { size: content.len() as u64, mtime_ns: 0, mode: 0o644, digest: Some(Digest::of(content)) };
    builder.push(&RelativePath::parse("dir/file").unwrap(), Entry::File(file)).unwrap();
    let root = builder.finish().unwrap().root.to_string();
    let pushed = blocks.len() as u64;
    let mut agent = AgentServiceClient::new(hub.channel(Some(identity)));
    let stored = agent.put_blocks(futures::stream::iter(blocks)).await.unwrap().into_inner().stored;
    assert_eq!(stored, pushed);
    let mount = Mount { mount_point: "file:///data".into(), path: "/".into(), ..Mount::default() };
    let mut object = Dataset::new("default", "set", DatasetSpec { mounts: vec![mount], ..DatasetSpec::default() });
    object.status =
        Some(DatasetStatus { root: Some(root), source_cluster: Some("alpha".into()), ..DatasetStatus::default() });
    hub.put(&object.key(), serde_json::to_vec(&object).unwrap()).await;
}

/// Answers one question about a file with a part of `content`.
async fn answer_from(agent: &mut Agent, content: &[u8]) {
    loop {
        let ask = match agent.next().await.unwrap() {
            ToAgent::Ask(ask) => ask,
            ToAgent::Synced(_) => continue,
            other => panic!("{other:?}"),
        };
        let Some(v1::ask::Question::ReadFile(read)) = ask.question else { panic!("no question") };
        assert_eq!(read.path, "dir/file");
        let start = usize::try_from(read.offset).unwrap();
        let end = content.len().min(start + read.length as usize);
        let data = Bytes::copy_from_slice(&content[start..end]);
        agent.say(FromAgent::Reply(v1::AskReply { id: ask.id, data, problem: Bytes::new() })).await;
        if end == content.len() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_is_listed_and_its_file_is_read_through_its_agent() {
    let hub = Arc::new(TestHub::start().await);
    register(&hub, "alpha").await;
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    dataset(&hub, &cluster("alpha"), &content).await;
    let base = "/apis/data.fluid.io/v1alpha1/namespaces/default/datasets/set";
    let get = async |path: String| {
        let (status, bytes) = hub.rest(Some(&user()), "GET", &format!("{base}/{path}"), Value::Null).await;
        (status, bytes)
    };

    let (status, bytes) = get("tree?path=/".into()).await;
    let listing: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(status, StatusCode::OK, "{listing}");
    assert_eq!(listing["items"], json!([{ "name": "dir", "type": "directory", "bytes": content.len(), "files": 1 }]));
    let (_, bytes) = get("tree?path=dir&limit=1".into()).await;
    let listing: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((&listing["items"][0]["name"], &listing["items"][0]["size"]), (&json!("file"), &json!(content.len())));

    assert_eq!(get("file?path=dir/file".into()).await.0, StatusCode::SERVICE_UNAVAILABLE, "no agent is there");
    let mut agent = Agent::connect(hub.channel(Some(&cluster("alpha"))), "i", 0, 0).await;
    agent.welcome().await;
    let ((status, bytes), ()) = tokio::join!(get("file?path=dir/file".into()), answer_from(&mut agent, &content));
    assert_eq!((status, bytes == content), (StatusCode::OK, true));
    assert_eq!(get("file?path=dir".into()).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(get("file?path=none".into()).await.0, StatusCode::NOT_FOUND);
    drop(agent);
    Arc::into_inner(hub).unwrap().hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cursor_of_a_synced_agent_is_not_behind_what_it_was_told() {
    let hub = TestHub::start().await;
    register(&hub, "alpha").await;
    let mut agent = Agent::connect(hub.channel(Some(&cluster("alpha"))), "i", 0, 0).await;
    agent.welcome().await;
    agent.until_synced(0).await;
    let (id, generation) = assign(&hub, "alpha", "one", None).await;
    let (assigned, _, cursor) = agent.until_synced(generation).await;
    assert_eq!(assigned, [(id, generation)]);
    assert!(cursor >= generation);
    hub.hub.shutdown().await;
}
