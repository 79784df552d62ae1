//! ③ Routes: which version of a dataset is read where, and which agent moves it.
//!
//! A place on a machine (`file://`) is reached by its own cluster's agent alone; an object store by every agent. A mount
//! on a machine that lies in no Storage may be one file system that several machines see: when nothing else is left, an
//! agent may try whether it sees the same files. It compares them with the manifest first, so that trying is safe.
//!
//! When no agent reaches both ends, the target's agent reads through the source's (`relay`), if one of the two listens:
//! it is the other one that dials.
//!
//! Deliberately absent: prices, relays through a hub, and whether an address can be dialled from where the other agent is: the
//! agents find out, and have the other way if both listen.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{Endpoint, Relay};
use crate::kinds::source::EncryptOption;
use crate::kinds::{Cluster, ClusterState, Dataset, HomeState, SecretKeySelector, Storage};
use crate::uri::Uri;

/// Somewhere that a whole version of the dataset can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub endpoints: Vec<Endpoint>,
    /// The cluster that local endpoints belong to, or that the home's Storage names.
    pub cluster: Option<String>,
    /// The version held, if it is a home.
    pub root: Option<String>,
    /// Local, and no Storage says that it is one cluster's own: others may see the same files.
    pub maybe_shared: bool,
    /// For people: `home in STORAGE` or `the dataset's mounts`.
    pub what: String,
}

impl Source {
    /// Whether `cluster`'s agent can read it.
    #[must_use]
    pub fn reached_by(&self, cluster: &str) -> bool {
        self.endpoints.iter().all(|e| !e.uri.is_local()) || self.cluster.as_deref() == Some(cluster)
    }
}

/// The secret options of a place, with the namespace filled in.
fn secrets(
    options: &[EncryptOption],
    namespace: &str,
    own_namespace_only: bool,
) -> BTreeMap<String, SecretKeySelector> {
    options
        .iter()
        .map(|option| {
            let mut reference = option.value_from.secret_key_ref.clone();
            if own_namespace_only || reference.namespace.is_empty() {
                namespace.clone_into(&mut reference.namespace);
            }
            (option.name.clone(), reference)
        })
        .collect()
}

/// A place inside a Storage.
#[must_use]
pub fn storage_endpoint(storage: &Storage, uri: Uri) -> Endpoint {
    Endpoint {
        path: String::new(),
        uri,
        options: storage.spec.options.clone(),
        secrets: secrets(&storage.spec.encrypt_options, "default", false),
    }
}

/// The mounts of a dataset, as an agent opens them. Secrets come from the dataset's own namespace.
#[must_use]
pub fn mount_endpoints(dataset: &Dataset) -> Vec<Endpoint> {
    let endpoint = |(mount, uri): (crate::kinds::Mount, Uri)| Endpoint {
        path: mount.tree_path().to_owned(),
        uri,
        secrets: secrets(&mount.encrypt_options, &dataset.metadata.namespace, true),
        options: mount.options,
    };
    dataset.spec.readable_mounts().into_iter().map(endpoint).collect()
}

/// Everywhere that the dataset can be read from: its Ready homes of the current version, then its mounts.
#[must_use]
pub fn sources(dataset: &Dataset, storages: &BTreeMap<String, Storage>) -> Vec<Source> {
    let status = dataset.status.clone().unwrap_or_default();
    let mut found: Vec<Source> = status
        .homes
        .iter()
        .filter(|home| home.state == HomeState::Ready && status.root.as_deref() == Some(&home.root))
        .filter_map(|home| {
            let storage = storages.get(&home.storage)?;
            let uri = Uri::parse(&home.uri).ok()?;
            Some(Source {
                endpoints: vec![storage_endpoint(storage, uri)],
                cluster: Some(home.cluster.clone()),
                root: Some(home.root.clone()),
                maybe_shared: false,
                what: format!("home in {}", home.storage),
            })
        })
        .collect();
    let endpoints = mount_endpoints(dataset);
    if !endpoints.is_empty() {
        let cluster = status.source_cluster;
        let maybe_shared = endpoints.iter().any(|e| e.uri.is_local()) && owners(&endpoints, storages).is_empty();
        found.push(Source { endpoints, cluster, root: None, maybe_shared, what: "the dataset's mounts".to_owned() });
    }
    found
}

/// Whether one store holds both ends and can be told to copy by itself: a home in S3, the same endpoint and region.
/// `Some(true)` if the keys are the same too, `Some(false)` if they are in different Secrets, which may hold the same: only
/// the agent sees. It also finds out whether the store does.
#[must_use]
pub fn server_side(source: &Source, target: &Endpoint) -> Option<bool> {
    let [from] = source.endpoints.as_slice() else { return None };
    let s3 = |endpoint: &Endpoint| endpoint.uri.scheme() == "s3" && endpoint.path.is_empty();
    let option = |key: &str| from.options.get(key) == target.options.get(key);
    let secret = |key: &str| from.secrets.get(key) == target.secrets.get(key);
    let one = source.root.is_some() && s3(from) && s3(target) && option("endpoint") && option("region");
    one.then(|| {
        ["access_key_id", "secret_access_key", "session_token"].into_iter().all(|key| option(key) && secret(key))
    })
}

/// The clusters whose Storages hold local endpoints.
#[must_use]
pub fn owners(endpoints: &[Endpoint], storages: &BTreeMap<String, Storage>) -> BTreeSet<String> {
    let holds = |storage: &&Storage| {
        let base = Uri::parse(&storage.spec.uri);
        base.is_ok_and(|base| endpoints.iter().any(|e| e.uri.is_local() && base.contains(&e.uri)))
    };
    storages.values().filter(holds).map(|storage| storage.spec.cluster.clone()).collect()
}

/// The source that `cluster`'s agent should read: what is its own first, then what it reaches, homes before mounts, then
/// what it may see.
#[must_use]
pub fn nearest<'a>(sources: &'a [Source], cluster: &str) -> Option<&'a Source> {
    let reachable = || sources.iter().filter(|s| s.reached_by(cluster));
    let own = reachable().find(|s| s.cluster.as_deref() == Some(cluster));
    own.or_else(|| reachable().next()).or_else(|| sources.iter().find(|s| s.maybe_shared))
}

/// How a dataset travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `pull`, `push`, `local` or `relay`.
    pub name: &'static str,
    pub executor: String,
    pub source: Source,
    /// The agent through which the source is read.
    pub relay: Option<Relay>,
    pub reasons: Vec<String>,
}

/// Why no agent can move it, each a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoute {
    pub reasons: Vec<String>,
    /// Whether waiting may help (an agent is away), or the request can never work as it stands.
    pub may_change: bool,
}

/// Chooses a route to `target`: the target's agent pulls if it reaches the source, else the source's agent pushes, else
/// the target's agent pulls through the source's.
///
/// # Errors
/// With the reason for every pair of source and agent, when none can do it.
pub fn choose(sources: &[Source], target: &Storage, clusters: &BTreeMap<String, Cluster>) -> Result<Route, NoRoute> {
    let target_local = Uri::parse(&target.spec.uri).is_ok_and(|uri| uri.is_local());
    let target_cluster = target.spec.cluster.as_str();
    let mut refused = Vec::new();
    let mut may_change = false;
    for source in sources {
        let owner = source.cluster.as_deref();
        for executor in [Some(target_cluster), owner].into_iter().flatten() {
            let name = match (executor == target_cluster, owner == Some(target_cluster)) {
                (true, true) => "local",
                (true, false) => "pull",
                (false, _) => "push",
            };
            let plan = format!("{name} from {} by {executor}", source.what);
            if !source.reached_by(executor) {
                refused.push(format!("{plan}: it does not reach {}", place(source)));
                continue;
            }
            if target_local && executor != target_cluster {
                refused.push(format!("{plan}: it does not reach {}", target.spec.uri));
                continue;
            }
            match clusters.get(executor) {
                None => refused.push(format!("{plan}: there is no cluster {executor}")),
                Some(c) if c.metadata.deletion_timestamp.is_some() => {
                    refused.push(format!("{plan}: the cluster is being removed"));
                }
                Some(c) if matches!(c.state(), ClusterState::Ready | ClusterState::Suspect) => {
                    let mut reasons = vec![format!("chosen: {plan}")];
                    reasons.extend(refused.into_iter().map(|r| format!("refused: {r}")));
                    let (executor, source) = (executor.to_owned(), source.clone());
                    return Ok(Route { name, executor, source, relay: None, reasons });
                }
                Some(c) => {
                    may_change = true;
                    refused.push(format!("{plan}: the cluster is {}", c.state().as_str()));
                }
            }
        }
    }
    let target_ready = clusters.get(target_cluster).is_some_and(is_there);
    // Who sees the same file systems as the source's agent sees the source.
    let machine = |cluster: &str| clusters.get(cluster).and_then(|c| c.status.as_ref()).map(|s| s.machine.as_str());
    let same_machine = |source: &Source| {
        let theirs = source.cluster.as_deref().and_then(machine).filter(|text| !text.is_empty());
        source.maybe_shared && theirs.is_some() && theirs == machine(target_cluster)
    };
    if !may_change && target_ready && !sources.iter().any(same_machine) {
        for source in sources {
            match relay(source, target_cluster, clusters) {
                Ok(relay) => {
                    let dials = if relay.address.is_empty() { ", which dials it" } else { "" };
                    let why = format!("chosen: {}{dials}", relay_plan(source, target_cluster, &relay.cluster));
                    let refused = refused.into_iter().map(|r| format!("refused: {r}"));
                    let reasons = std::iter::once(why).chain(refused).collect();
                    let (executor, source) = (target_cluster.to_owned(), source.clone());
                    return Ok(Route { name: "relay", executor, source, relay: Some(relay), reasons });
                }
                Err(why) => refused.extend(why),
            }
        }
    }
    if let Some(source) = sources.iter().find(|s| s.maybe_shared && target_local && target_ready && !may_change) {
        let why = format!("chosen: pull from {} by {target_cluster}, which may see the same files", source.what);
        let reasons = std::iter::once(why).chain(refused.into_iter().map(|r| format!("refused: {r}"))).collect();
        let (executor, source) = (target_cluster.to_owned(), source.clone());
        return Ok(Route { name: "pull", executor, source, relay: None, reasons });
    }
    if refused.is_empty() {
        refused.push("the dataset has no source that this release can read".to_owned());
    }
    Err(NoRoute { reasons: refused, may_change })
}

fn is_there(cluster: &Cluster) -> bool {
    let leaving = cluster.metadata.deletion_timestamp.is_some();
    !leaving && matches!(cluster.state(), ClusterState::Ready | ClusterState::Suspect)
}

fn relay_plan(source: &Source, target: &str, through: &str) -> String {
    format!("relay from {} by {target} through {through}", source.what)
}

/// The agent through which `target`'s agent reads a source that it does not reach; else why not, if it is worth a word.
fn relay(source: &Source, target: &str, clusters: &BTreeMap<String, Cluster>) -> Result<Relay, Option<String>> {
    let owner = source.cluster.as_deref().filter(|owner| *owner != target).ok_or(None)?;
    let plan = || relay_plan(source, target, owner);
    clusters.get(owner).filter(|cluster| is_there(cluster)).ok_or(None)?;
    let address = address(owner, clusters);
    if address.is_empty() && self::address(target, clusters).is_empty() {
        return Err(Some(format!("{}: neither listens: run one of them with --listen and --advertise", plan())));
    }
    Ok(Relay { cluster: owner.to_owned(), address: address.to_owned() })
}

/// Where a cluster's agent listens; empty if nowhere, or if that is not known.
pub(crate) fn address<'a>(cluster: &str, clusters: &'a BTreeMap<String, Cluster>) -> &'a str {
    clusters.get(cluster).and_then(|c| c.status.as_ref()).map_or("", |status| &status.address)
}

fn place(source: &Source) -> String {
    source.endpoints.iter().map(|e| e.uri.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{ClusterSpec, ClusterStatus, StorageSpec};

    fn clusters(states: &[(&str, ClusterState)]) -> BTreeMap<String, Cluster> {
        states
            .iter()
            .map(|(name, state)| {
                let mut cluster = Cluster::new("", name, ClusterSpec::default());
                cluster.status = Some(ClusterStatus { state: *state, ..ClusterStatus::default() });
                ((*name).to_owned(), cluster)
            })
            .collect()
    }

    fn storage(cluster: &str, uri: &str) -> Storage {
        Storage::new(
            "",
            "st",
            StorageSpec { uri: uri.to_owned(), cluster: cluster.to_owned(), ..StorageSpec::default() },
        )
    }

    fn source(cluster: &str, uri: &str) -> Source {
        let endpoint = Endpoint {
            path: String::new(),
            uri: Uri::parse(uri).unwrap(),
            options: BTreeMap::new(),
            secrets: BTreeMap::new(),
        };
        Source {
            endpoints: vec![endpoint],
            cluster: Some(cluster.to_owned()),
            root: None,
            maybe_shared: false,
            what: "mounts".to_owned(),
        }
    }

    #[test]
    fn the_agent_that_reaches_both_ends_moves_the_bytes() {
        let ready = clusters(&[("a", ClusterState::Ready), ("b", ClusterState::Ready)]);
        for (from, to, expected) in [
            ("file:///src", "s3://bucket/x", ("push", "a")),
            ("s3://source/x", "file:///dst", ("pull", "b")),
            ("s3://source/x", "s3://bucket/x", ("pull", "b")),
        ] {
            let route = choose(&[source("a", from)], &storage("b", to), &ready).unwrap();
            assert_eq!((route.name, route.executor.as_str()), expected, "{from} -> {to}");
        }
        let local = choose(&[source("b", "file:///src")], &storage("b", "file:///dst"), &ready).unwrap();
        assert_eq!((local.name, local.executor.as_str()), ("local", "b"));
    }

    #[test]
    fn only_one_store_with_the_same_keys_copies_by_itself() {
        let home = Source { root: Some("r".to_owned()), ..source("a", "s3://one/x") };
        let endpoint = |uri: &str| source("b", uri).endpoints.remove(0);
        let target = endpoint("s3://two/y");
        assert_eq!(server_side(&home, &target), Some(true), "buckets may differ");
        assert_eq!(server_side(&source("a", "s3://one/x"), &target), None, "what was never read has no digests");
        assert_eq!(server_side(&home, &endpoint("file:///y")), None);
        for key in ["endpoint", "region"] {
            let mut other = target.clone();
            other.options.insert(key.to_owned(), "elsewhere".to_owned());
            assert_eq!(server_side(&home, &other), None, "{key}");
        }
        let mut other = target;
        let key = SecretKeySelector { namespace: "n".into(), name: "other".into(), key: "k".into() };
        other.secrets.insert("access_key_id".to_owned(), key);
        assert_eq!(server_side(&home, &other), Some(false));
    }

    #[test]
    fn two_machines_that_share_nothing_have_no_route_and_the_reasons_say_so() {
        let ready = clusters(&[("a", ClusterState::Ready), ("b", ClusterState::Ready)]);
        let refused = choose(&[source("a", "file:///src")], &storage("b", "file:///dst"), &ready).unwrap_err();
        assert!(!refused.may_change);
        assert_eq!(refused.reasons.len(), 3);
        assert!(refused.reasons[2].contains("relay from mounts by b through a: neither listens"));
    }

    #[test]
    fn who_reaches_no_source_reads_through_another_agent_if_one_of_them_listens() {
        let mut ready = clusters(&[("a", ClusterState::Ready), ("b", ClusterState::Ready)]);
        let listens = |cluster: &str, address: &str, clusters: &mut BTreeMap<String, Cluster>| {
            address.clone_into(&mut clusters.get_mut(cluster).unwrap().status.as_mut().unwrap().address);
        };
        listens("a", "10.0.0.1:7500", &mut ready);
        ready.get_mut("a").unwrap().status.as_mut().unwrap().machine = "m1".to_owned();
        let local = source("a", "file:///src");
        let route = choose(std::slice::from_ref(&local), &storage("b", "file:///dst"), &ready).unwrap();
        assert_eq!((route.name, route.executor.as_str(), route.reasons.len()), ("relay", "b", 3));
        assert_eq!(route.relay, Some(Relay { cluster: "a".to_owned(), address: "10.0.0.1:7500".to_owned() }));
        assert_eq!(route.reasons[0], "chosen: relay from mounts by b through a");
        let mut behind = clusters(&[("a", ClusterState::Ready), ("b", ClusterState::Ready)]);
        listens("b", "10.0.0.2:7500", &mut behind);
        let route = choose(std::slice::from_ref(&local), &storage("b", "file:///dst"), &behind).unwrap();
        assert_eq!((route.name, route.executor.as_str()), ("relay", "b"), "who reads is the same, whoever dials");
        assert_eq!(route.relay, Some(Relay { cluster: "a".to_owned(), address: String::new() }));
        assert_eq!(route.reasons[0], "chosen: relay from mounts by b through a, which dials it");
        let direct = choose(&[source("a", "file:///src")], &storage("b", "s3://bucket/x"), &ready).unwrap();
        assert_eq!((direct.name, direct.relay), ("push", None), "who reaches both ends needs nobody");

        // Files that both may see: a relay is sure, unless it is known that both see the same.
        let shared = Source { maybe_shared: true, ..local };
        let choose =
            |ready: &_| choose(std::slice::from_ref(&shared), &storage("b", "file:///dst"), ready).unwrap().name;
        assert_eq!(choose(&ready), "relay");
        ready.get_mut("b").unwrap().status.as_mut().unwrap().machine = "m1".to_owned();
        assert_eq!(choose(&ready), "pull");
    }

    #[test]
    fn files_that_no_storage_claims_may_be_seen_by_the_target_too() {
        let states = [("a", ClusterState::Ready), ("b", ClusterState::Ready)];
        let shared = Source { maybe_shared: true, ..source("a", "file:///nfs/x") };
        let route = choose(std::slice::from_ref(&shared), &storage("b", "file:///dst"), &clusters(&states)).unwrap();
        assert_eq!((route.name, route.executor.as_str(), route.reasons.len()), ("pull", "b", 4));
        assert_eq!(nearest(std::slice::from_ref(&shared), "b"), Some(&shared));
        let object = choose(std::slice::from_ref(&shared), &storage("b", "s3://bucket/x"), &clusters(&states)).unwrap();
        assert_eq!((object.name, object.executor.as_str()), ("push", "a"), "what is sure comes first");

        let away = clusters(&[("a", ClusterState::Ready), ("b", ClusterState::Unreachable)]);
        assert!(choose(&[shared], &storage("b", "file:///dst"), &away).is_err());
    }

    #[test]
    fn a_storage_claims_the_files_below_it_for_its_cluster() {
        let endpoints = source("a", "file:///data/set").endpoints;
        let storages = |uri: &str| BTreeMap::from([("st".to_owned(), storage("a", uri))]);
        assert_eq!(owners(&endpoints, &storages("file:///data")), BTreeSet::from(["a".to_owned()]));
        assert_eq!(owners(&endpoints, &storages("file:///dat")), BTreeSet::new());
    }

    #[test]
    fn an_agent_that_is_away_is_waited_for_unless_another_can_do_it() {
        let target = storage("b", "s3://bucket/x");
        let away = clusters(&[("a", ClusterState::Ready), ("b", ClusterState::Unreachable)]);
        assert_eq!(choose(&[source("a", "s3://source/x")], &target, &away).unwrap().executor, "a");
        let both = clusters(&[("a", ClusterState::Unreachable), ("b", ClusterState::Unreachable)]);
        assert!(choose(&[source("a", "s3://source/x")], &target, &both).unwrap_err().may_change);
    }
}
