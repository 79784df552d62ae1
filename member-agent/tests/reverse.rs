//! Relays on connections that the source's agent dials, over real TLS: who may ask what on them, and when they end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fluvial_certs::listen::RunningServer;
use fluvial_certs::tls::ALPN_H2;
use fluvial_certs::{Authority, Bundle, Identity, KeyPair, Reloadable, TrustDomain};
use fluvial_member_agent::denied::Denials;
use fluvial_member_agent::dial::Dialler;
use fluvial_member_agent::listener::{self, AgentFront, Port, Rules};
use fluvial_member_agent::relay::reverse::keep_dialling;
use fluvial_member_agent::relay::{Awaited, RelayPlace, Relays};
use fluvial_model::manifest::RelativePath;
use fluvial_proto::v1;
use fluvial_proto::v1::relay_service_server::RelayServiceServer;
use fluvial_transfer::place::readonly::Source as _;
use fluvial_transfer::{Location, TransferError};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;
use tonic::service::Routes;
use tonic::transport::Channel;

/// Generous: the machine may have other work.
const DEADLINE: Duration = Duration::from_secs(60);
const OPERATION: &str = "op-1";

fn domain() -> TrustDomain {
    TrustDomain::new("test.example").unwrap()
}

/// The agent of a cluster, as far as relays go.
struct Agent {
    cluster: String,
    denied: Denials,
    dialler: Dialler,
    relays: Relays,
    front: AgentFront,
    disk: TempDir,
}

impl Agent {
    fn new(authority: &Authority, cluster: &str) -> Self {
        let disk = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let identity = Identity::Cluster { name: cluster.to_owned() };
        let day = Duration::from_secs(86_400);
        let leaf = authority.issue_for_key(&key, &identity, &[], Timestamp::now(), day).unwrap();
        let bundle = Bundle::new(&leaf.cert_pem, &key, &authority.cert_pem()).unwrap();
        let credentials = Arc::new(Reloadable::new(bundle, &[ALPN_H2]).unwrap());
        let denied = Denials::open(disk.path()).unwrap();
        let relays = Relays::default();
        let front = AgentFront {
            rules: Rules { cluster: cluster.to_owned(), leads: true },
            guard: listener::guard(credentials.clone(), domain(), &denied),
            services: Routes::new(RelayServiceServer::new(relays.clone())).prepare().into_axum_router(),
            awaited: Awaited::default(),
        };
        let dialler = Dialler::new(credentials, domain(), denied.clone());
        Self { cluster: cluster.to_owned(), denied, dialler, relays, front, disk }
    }

    async fn listen(&self) -> (RunningServer, String) {
        let port = Port::open("127.0.0.1:0".parse().unwrap(), None).await.unwrap();
        let address = port.address.clone();
        (port.serve(self.front.clone()).unwrap(), address)
    }

    /// Serves a folder with one file to `peer`, for as long as the result is kept.
    fn serve(&self, operation: &str, peer: &str) -> impl Drop + use<> {
        let folder = self.disk.path().join("source");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("file"), format!("of {}", self.cluster)).unwrap();
        let place = Location::new(format!("file://{}", folder.display())).open().unwrap();
        self.relays.serve(operation, peer, vec![place])
    }

    /// Dials `cluster`'s agent until what is returned is dropped.
    fn dialling(&self, cluster: &str, address: &str, operation: &str) -> AbortOnDropHandle<()> {
        let (dialler, front) = (self.dialler.clone(), self.front.clone());
        let [cluster, address, operation] = [cluster, address, operation].map(str::to_owned);
        let dialling = async move { keep_dialling(&dialler, &front, &cluster, &address, &operation).await };
        AbortOnDropHandle::new(tokio::spawn(dialling))
    }

    /// A channel to `cluster`'s agent, which listens nowhere.
    fn channel(&self, cluster: &str) -> Channel {
        self.front.awaited.channel(&self.dialler, cluster, "", OPERATION).unwrap()
    }

    fn deny(&self, cluster: &str) {
        let identity = format!("cluster/{cluster}");
        let before_ns = i64::try_from(Timestamp::now().as_nanosecond()).unwrap() + 3_600_000_000_000;
        self.denied.add(&v1::Denied { identities: vec![v1::DeniedIdentity { identity, before_ns }] });
    }
}

async fn read(channel: &Channel, operation: &str) -> Result<String, TransferError> {
    let place = RelayPlace::new(channel.clone(), "a", operation, 0, "the source");
    let (_, data) = place.fetch(&RelativePath::parse("file").unwrap(), 4).await?;
    Ok(String::from_utf8(data.to_vec()).unwrap())
}

/// Reads until it succeeds.
async fn read_at_last(channel: &Channel) -> String {
    let begun = Instant::now();
    loop {
        match read(channel, OPERATION).await {
            Ok(read) => return read,
            Err(error) => assert!(begun.elapsed() < DEADLINE && error.is_transient(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Reads until it fails.
async fn cut(channel: &Channel) -> TransferError {
    let begun = Instant::now();
    loop {
        if let Err(error) = read(channel, OPERATION).await {
            return error;
        }
        assert!(begun.elapsed() < DEADLINE, "it is not cut");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_cannot_be_dialled_is_read_on_the_connection_that_it_dials() {
    let authority = Authority::generate(domain(), Timestamp::now()).unwrap();
    let (a, b) = (Agent::new(&authority, "a"), Agent::new(&authority, "b"));
    let (server, address) = b.listen().await;
    let _served = a.serve(OPERATION, "b");
    let _for_another = a.serve("op-2", "c");
    let channel = b.channel("a");
    let dialling = a.dialling("b", &address, OPERATION);
    assert_eq!(read_at_last(&channel).await, "of a");

    // Who is at the other end is known: what is served to another cluster is not served to this one.
    let refused = read(&channel, "op-2").await.unwrap_err();
    assert!(refused.to_string().contains("op-2 is not served to this caller"), "{refused}");

    // It breaks, and is there again.
    drop(dialling);
    cut(&channel).await;
    let _dialling = a.dialling("b", &address, OPERATION);
    assert_eq!(read_at_last(&channel).await, "of a");
    server.shutdown(Duration::ZERO).await;
    cut(&channel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_the_place_of_the_agent_that_is_waited_for() {
    let authority = Authority::generate(domain(), Timestamp::now()).unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|cluster| Agent::new(&authority, cluster));
    let stranger = Agent::new(&Authority::generate(domain(), Timestamp::now()).unwrap(), "a");
    let (_server, address) = b.listen().await;
    // All of them would answer.
    let _served = [&a, &c, &stranger].map(|agent| agent.serve(OPERATION, "b"));
    let channel = b.channel("a");
    let _impostors = [&c, &stranger].map(|agent| agent.dialling("b", &address, OPERATION));
    let _wrong = a.dialling("b", &address, "op-2");
    let silent = read(&channel, OPERATION).await.unwrap_err();
    assert!(silent.is_transient(), "{silent}");
    let _dialling = a.dialling("b", &address, OPERATION);
    assert_eq!(read_at_last(&channel).await, "of a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_revoked_ends_the_connection_at_either_end() {
    for revoking in ["a", "b"] {
        let authority = Authority::generate(domain(), Timestamp::now()).unwrap();
        let (a, b) = (Agent::new(&authority, "a"), Agent::new(&authority, "b"));
        let (_server, address) = b.listen().await;
        let _served = a.serve(OPERATION, "b");
        let channel = b.channel("a");
        let _dialling = a.dialling("b", &address, OPERATION);
        assert_eq!(read_at_last(&channel).await, "of a");
        if revoking == "a" {
            a.deny("b")
        } else {
            b.deny("a")
        }
        cut(&channel).await;
        let still = read(&channel, OPERATION).await;
        assert!(still.is_err(), "{revoking} denied the other, which is back");
    }
}
