//! What nodes give each other, over real TLS: to whom, and what becomes of bytes that are wrong.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fluvial_certs::listen::RunningServer;
use fluvial_certs::tls::ALPN_H2;
use fluvial_certs::{Authority, Bundle, Identity, KeyPair, Reloadable, TrustDomain};
use fluvial_engine::contract::Bed;
use fluvial_engine::{Contents, Engine, EngineError, InFlight, Marks, NodeCache, NodeCacheConfig, Peers, Tier};
use fluvial_member_agent::denied::Denials;
use fluvial_member_agent::dial::Dialler;
use fluvial_member_agent::listener::{self, AgentFront, Port, Rules};
use fluvial_member_agent::relay::Awaited;
use fluvial_member_agent::share::{Shares, Sharing};
use fluvial_model::kinds::NodeUsage;
use fluvial_model::manifest::RelativePath;
use fluvial_model::share::Node;
use fluvial_proto::v1;
use fluvial_proto::v1::share_service_server::{ShareService, ShareServiceServer};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// The dataset's one large file: several fetches, the last of them not a whole one.
const FILE: &str = "file";

fn contents() -> Vec<u8> {
    (0..20_500_001u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn domain() -> TrustDomain {
    TrustDomain::new("test.example").unwrap()
}

fn node(cluster: &str, name: &str) -> Identity {
    Identity::Node { cluster: cluster.to_owned(), name: name.to_owned() }
}

/// One machine: its source, its cache, its identity.
struct Machine {
    bed: Bed,
    state: TempDir,
    denied: Denials,
    credentials: Arc<Reloadable>,
    name: String,
}

/// A machine whose identity is issued by `authority`. All have the same file at their sources.
fn machine(authority: &Authority, identity: &Identity) -> Machine {
    let state = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let day = Duration::from_secs(86_400);
    let leaf = authority.issue_for_key(&key, identity, &[], Timestamp::now(), day).unwrap();
    let bundle = Bundle::new(&leaf.cert_pem, &key, &authority.cert_pem()).unwrap();
    let credentials = Arc::new(Reloadable::new(bundle, &[ALPN_H2]).unwrap());
    let bed = Bed::new(|_, _, _| unreachable!("the caches are opened here"));
    bed.write(FILE, &contents(), 1_700_000_000);
    let name = identity.path().rsplit('/').next().unwrap().to_owned();
    Machine { bed, denied: Denials::open(state.path()).unwrap(), state, credentials, name }
}

impl Machine {
    fn cache(&self, peers: Option<Arc<dyn Peers>>) -> Arc<NodeCache> {
        let config = NodeCacheConfig {
            index: self.state.path().join("cache.db"),
            tiers: vec![Tier {
                medium: "SSD".to_owned(),
                dir: self.state.path().join("cache"),
                quota_bytes: 1 << 30,
                marks: Marks::default(),
            }],
            node: NodeUsage { node: self.name.clone(), ..NodeUsage::default() },
            blocks: self.bed.blocks.clone(),
            peers,
            in_flight: InFlight::default(),
        };
        Arc::new(NodeCache::open(config).unwrap())
    }

    /// Asks `other` for everything.
    fn asking(&self, other: &Node) -> Arc<dyn Peers> {
        let dialler = Dialler::new(self.credentials.clone(), domain(), self.denied.clone());
        let nodes = watch::Sender::new(vec![other.clone()]).subscribe();
        Arc::new(Sharing::new("a", &self.name, dialler, nodes))
    }

    async fn serve(&self, service: impl ShareService) -> (RunningServer, Node) {
        let port = Port::open("127.0.0.1:0".parse().unwrap(), None).await.unwrap();
        let address = port.address.clone();
        let services = Routes::new(ShareServiceServer::new(service)).prepare().into_axum_router();
        let rules = Rules { cluster: "a".to_owned(), leads: false };
        let guard = listener::guard(self.credentials.clone(), domain(), &self.denied);
        let server = port.serve(AgentFront { rules, guard, services, awaited: Awaited::default() }).unwrap();
        (server, Node { name: self.name.clone(), address, capacity_bytes: 1, leads: false })
    }

    /// Prepares the version in a cache.
    async fn prepare(&self, cache: &NodeCache, digested: bool) -> fluvial_engine::CacheRequest {
        let request = self.bed.request("set", self.bed.version(&[FILE], digested));
        let request = fluvial_engine::CacheRequest { on_demand: true, ..request };
        cache.prepare(&request).await.unwrap();
        request
    }

    fn lose_source(&self) {
        self.bed.remove(FILE);
    }

    /// The one complete file of the cache.
    fn object(&self) -> PathBuf {
        let shelves = fs::read_dir(self.state.path().join("cache/objects")).unwrap().flatten();
        let objects = shelves.flat_map(|shelf| fs::read_dir(shelf.path()).unwrap().flatten());
        objects.map(|object| object.path()).next().unwrap()
    }
}

/// Reads the whole file as a reader does: piece by piece, each looked at as soon as it is there.
async fn read(cache: &NodeCache, request: &fluvial_engine::CacheRequest) -> Result<Vec<u8>, EngineError> {
    use std::os::unix::fs::FileExt;
    let path = RelativePath::parse(FILE).unwrap();
    let open = cache.open(&request.dataset.uid, request.root, &path).await?;
    let mut found = vec![0; usize::try_from(open.size).unwrap()];
    match &open.contents {
        Contents::Complete(file) => file.read_exact_at(&mut found, 0).unwrap(),
        Contents::Filling(file, filling) => {
            let size = found.len();
            for (number, piece) in found.chunks_mut(3 << 20).enumerate() {
                let offset = number as u64 * (3 << 20);
                filling.fill(offset, piece.len() as u64).await?;
                file.read_exact_at(piece, offset).unwrap();
            }
            filling.fill(0, size as u64).await?;
        }
        Contents::Through(_) => panic!("there is room"),
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gives_what_it_owns_to_the_nodes_of_its_cluster_and_to_nobody_else() {
    let now = Timestamp::now();
    let (authority, strange) =
        (Authority::generate(domain(), now).unwrap(), Authority::generate(domain(), now).unwrap());
    let owner = machine(&authority, &node("a", "owner"));
    let cache = owner.cache(None);
    owner.prepare(&cache, true).await;
    let (server, at) = owner.serve(Shares::new(cache, 8)).await;

    let friend = machine(&authority, &node("a", "friend"));
    let friends = friend.cache(Some(friend.asking(&at)));
    let request = friend.prepare(&friends, true).await;
    friend.lose_source();
    assert!(read(&friends, &request).await.unwrap() == contents(), "it comes from the owner, for there is no source");

    let revoked = machine(&authority, &node("a", "revoked"));
    let denied = v1::DeniedIdentity { identity: node("a", "revoked").path(), before_ns: i64::MAX };
    owner.denied.add(&v1::Denied { identities: vec![denied] });
    let stranger = machine(&strange, &node("a", "stranger"));
    let neighbour = machine(&authority, &node("b", "neighbour"));
    let user = machine(&authority, &Identity::User { name: "ann".to_owned(), groups: Vec::new() });
    for caller in [revoked, stranger, neighbour, user] {
        let theirs = caller.cache(Some(caller.asking(&at)));
        let request = caller.prepare(&theirs, true).await;
        caller.lose_source();
        let refused = read(&theirs, &request).await;
        assert!(refused.is_err(), "{} got the file", caller.name);
    }
    server.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_without_a_digest_are_given_only_if_both_know_the_same_version() {
    let authority = Authority::generate(domain(), Timestamp::now()).unwrap();
    let owner = machine(&authority, &node("a", "owner"));
    let cache = owner.cache(None);
    let theirs = owner.prepare(&cache, false).await;
    let (server, at) = owner.serve(Shares::new(cache.clone(), 8)).await;
    // It holds the file open, on its way, so that it knows which version it reads.
    let path = RelativePath::parse(FILE).unwrap();
    let _open = cache.open(&theirs.dataset.uid, theirs.root, &path).await.unwrap();

    // Another file with the same name, size and time on another machine.
    let asker = machine(&authority, &node("a", "asker"));
    let mut other = contents();
    other[7] ^= 1;
    asker.bed.write(FILE, &other, 1_700_000_000);
    let askers = asker.cache(Some(asker.asking(&at)));
    let request = asker.prepare(&askers, false).await;
    assert_eq!(request.root, theirs.root, "the manifest does not tell them apart");
    assert!(read(&askers, &request).await.unwrap() == other, "two versions are never mixed");
    server.shutdown(Duration::ZERO).await;
}

fn flip(file: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_file_that_was_tampered_with_is_not_given_to_others() {
    let authority = Authority::generate(domain(), Timestamp::now()).unwrap();
    for digested in [true, false] {
        let owner = machine(&authority, &node("a", "owner"));
        let cache = owner.cache(None);
        let theirs = owner.prepare(&cache, digested).await;
        assert!(read(&cache, &theirs).await.unwrap() == contents());
        flip(&owner.object(), 12_000_000);
        let (server, at) = owner.serve(Shares::new(cache, 8)).await;
        let asker = machine(&authority, &node("a", "asker"));
        let askers = asker.cache(Some(asker.asking(&at)));
        let request = asker.prepare(&askers, digested).await;
        // Each piece is right as it is read, not only all of them in the end.
        assert!(read(&askers, &request).await.unwrap() == contents());
        server.shutdown(Duration::ZERO).await;
    }
}

/// A node that lies.
struct Liar(Arc<AtomicUsize>);

#[tonic::async_trait]
impl ShareService for Liar {
    type ReadSharedStream = tokio_stream::Iter<std::vec::IntoIter<Result<v1::SharedChunk, Status>>>;

    async fn read_shared(
        &self,
        request: Request<v1::ReadSharedRequest>,
    ) -> Result<Response<Self::ReadSharedStream>, Status> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let length = usize::try_from(request.get_ref().length).unwrap();
        let chunks: Vec<_> =
            vec![7; length].chunks(1 << 20).map(|chunk| Ok(v1::SharedChunk { data: chunk.to_vec().into() })).collect();
        Ok(Response::new(tokio_stream::iter(chunks)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lies_is_found_out_and_not_asked_again() {
    let authority = Authority::generate(domain(), Timestamp::now()).unwrap();
    let liar = machine(&authority, &node("a", "liar"));
    let asked = Arc::new(AtomicUsize::new(0));
    let (server, at) = liar.serve(Liar(asked.clone())).await;
    let asker = machine(&authority, &node("a", "asker"));
    let cache = asker.cache(Some(asker.asking(&at)));
    asker.bed.write("second", &contents()[..9_000_000], 1_700_000_001);
    let root = asker.bed.version(&[FILE, "second"], true);
    let request = fluvial_engine::CacheRequest { paths: Vec::new(), ..asker.bed.request("set", root) };
    cache.prepare(&request).await.unwrap();

    // What is held was verified, whoever gave it.
    let loaded = cache.load(&request).await.unwrap();

    assert_eq!(loaded, fluvial_engine::Loaded::Complete);
    let found = read(&cache, &request).await.unwrap();
    assert!(found == contents());
    let before = asked.load(Ordering::SeqCst);
    assert!(before > 0, "it was asked");
    asker.bed.write("third", &contents()[..9_000_000], 1_700_000_002);
    let root = asker.bed.version(&[FILE, "second", "third"], true);
    let request = asker.bed.request("set", root);
    cache.prepare(&request).await.unwrap();
    cache.load(&request).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), before, "it is not asked again");
    server.shutdown(Duration::ZERO).await;
}
