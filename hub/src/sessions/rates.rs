//! ④ What each running transfer may take of the Links on its way: leases, which agents are told by their sessions.
//!
//! Every hub has the whole store, so each reckons the shares for the agents that it serves by the same function
//! (`model::bandwidth`) and asks nobody. A lease runs from the moment at which a hub knew that nothing newer was decided
//! than what it reckoned with, by a read that a majority confirmed: an agent of a hub that is cut off holds no lease for
//! longer than [`LEASE`].
//!
//! Invariants: nothing of this is stored, and no assignment changes by it: a share that grows or shrinks restarts nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fluvial_model::bandwidth::{self, Transfer};
use fluvial_model::kinds::{Cluster, DataMigrate, Link};
use fluvial_model::resource::Resource;
use fluvial_model::store::{Event, KeyValue};
use fluvial_proto::v1;
use fluvial_raft::{Consistency, ListRequest, Watch};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::EPOCH_KEY;
use crate::objects::{ObjectError, Objects};

/// How long a share is good for.
const LEASE: Duration = Duration::from_secs(30);
/// How often leases are renewed: two renewals may be lost.
const RENEW: Duration = Duration::from_secs(10);
/// Pause after the store did not answer.
const RETRY: Duration = Duration::from_millis(500);

/// Operation → bytes per second; `None` without a cap.
type Shares = BTreeMap<String, Option<u64>>;

/// Everybody's shares, as they were last reckoned.
#[derive(Debug, Clone, Default)]
pub(super) struct Reckoned {
    /// By the cluster whose agent moves the bytes.
    shares: Arc<BTreeMap<String, Shares>>,
    /// Since when the leases run; `None` before the first reckoning.
    confirmed: Option<Instant>,
}

/// The shares, for every session of this hub; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    reckoned: watch::Sender<Reckoned>,
}

/// What one session has told, and has yet to tell.
#[derive(Debug, Default)]
pub(super) struct Telling {
    told: (Shares, Option<Instant>),
    waiting: bool,
}

impl Telling {
    /// Looks at what was reckoned: news, and leases that were renewed, are to be told. An agent without transfers is left
    /// in peace.
    pub(super) fn note(&mut self, reckoned: &Reckoned, cluster: &str) {
        let own = reckoned.shares.get(cluster).cloned().unwrap_or_default();
        let news = own != self.told.0 || (!own.is_empty() && reckoned.confirmed != self.told.1);
        self.told = (own, reckoned.confirmed);
        self.waiting |= news;
    }

    pub(super) fn waits(&self) -> bool {
        self.waiting
    }

    /// The newest word, if it was not told.
    pub(super) fn take(&mut self) -> Option<v1::Rates> {
        let (shares, confirmed) = &self.told;
        let left = confirmed.map_or(Duration::ZERO, |since| LEASE.saturating_sub(since.elapsed()));
        std::mem::take(&mut self.waiting).then(|| v1::Rates {
            lease_ms: u64::try_from(left.as_millis()).unwrap_or(0),
            rates: shares
                .iter()
                .map(|(operation, share)| v1::Rate { operation: operation.clone(), bytes_per_second: *share })
                .collect(),
        })
    }
}

impl Rates {
    pub(super) fn subscribe(&self) -> watch::Receiver<Reckoned> {
        self.reckoned.subscribe()
    }

    /// Follows the store for ever.
    pub async fn run(self, objects: Objects) {
        loop {
            if let Err(error) = self.follow(&objects).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "reckoning shares of links");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow(&self, objects: &Objects) -> Result<(), ObjectError> {
        // Before the first reading: a change in between is then seen twice rather than never.
        let since = objects.store.revision();
        let asked = Instant::now();
        let mut known = Known::load(objects).await?;
        let watch = async |prefix: String| -> Result<Watch, ObjectError> {
            objects.store.watch(&prefix, since).await.map_err(|source| ObjectError::Store { key: prefix, source })
        };
        let mut links = watch(Link::INFO.prefix()).await?;
        let mut clusters = watch(Cluster::INFO.prefix()).await?;
        let mut migrates = watch(DataMigrate::INFO.prefix()).await?;
        self.reckoned.send_replace(Reckoned { shares: known.shares(), confirmed: Some(asked) });
        let mut renew = tokio::time::interval_at(asked + RENEW, RENEW);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let failed = |source| ObjectError::Store { key: "/".to_owned(), source };
        loop {
            let changed = tokio::select! {
                events = links.next() => known.links(objects, &events.map_err(failed)?),
                events = clusters.next() => known.clusters(objects, &events.map_err(failed)?),
                events = migrates.next() => known.migrates(objects, &events.map_err(failed)?),
                _ = renew.tick() => {
                    let asked = Instant::now();
                    objects.store.get(EPOCH_KEY, Consistency::Linearizable).await.map_err(failed)?;
                    self.reckoned.send_modify(|reckoned| reckoned.confirmed = Some(asked));
                    false
                }
            };
            if changed {
                let shares = known.shares();
                self.reckoned.send_if_modified(|reckoned| {
                    let changed = reckoned.shares != shares;
                    reckoned.shares = shares;
                    changed
                });
            }
        }
    }
}

/// What the shares depend on.
#[derive(Default)]
struct Known {
    links: BTreeMap<String, Link>,
    clusters: BTreeMap<String, Cluster>,
    /// By the operation's key.
    transfers: BTreeMap<String, Transfer>,
}

impl Known {
    async fn load(objects: &Objects) -> Result<Self, ObjectError> {
        let mut known = Self::default();
        for link in list::<Link>(objects).await? {
            known.links.insert(link.metadata.name.clone(), link);
        }
        for cluster in list::<Cluster>(objects).await? {
            known.clusters.insert(cluster.metadata.name.clone(), cluster);
        }
        for operation in list::<DataMigrate>(objects).await? {
            known.transfers.extend(Transfer::of(&operation).map(|transfer| (operation.key(), transfer)));
        }
        Ok(known)
    }

    fn shares(&self) -> Arc<BTreeMap<String, Shares>> {
        let transfers: Vec<Transfer> = self.transfers.values().cloned().collect();
        let shares = bandwidth::shares(&self.links, &self.clusters, &transfers);
        let mut all: BTreeMap<String, Shares> = BTreeMap::new();
        for (transfer, share) in transfers.into_iter().zip(shares) {
            all.entry(transfer.executor).or_default().insert(transfer.operation, share);
        }
        Arc::new(all)
    }

    fn links(&mut self, objects: &Objects, events: &[Arc<Event>]) -> bool {
        for event in events {
            match read::<Link>(objects, event) {
                Some(link) => self.links.insert(link.metadata.name.clone(), link),
                None => self.links.remove(name_of(&event.key)),
            };
        }
        true
    }

    /// Clusters change all the time; their labels do not.
    fn clusters(&mut self, objects: &Objects, events: &[Arc<Event>]) -> bool {
        let mut changed = false;
        for event in events {
            let now = read::<Cluster>(objects, event);
            let labels = now.as_ref().map(|cluster| cluster.metadata.labels.clone());
            let before = match now {
                Some(cluster) => self.clusters.insert(cluster.metadata.name.clone(), cluster),
                None => self.clusters.remove(name_of(&event.key)),
            };
            changed |= before.map(|cluster| cluster.metadata.labels) != labels;
        }
        changed
    }

    /// Operations change with every report; their ways do not.
    fn migrates(&mut self, objects: &Objects, events: &[Arc<Event>]) -> bool {
        let mut changed = false;
        for event in events {
            let now = read::<DataMigrate>(objects, event).as_ref().and_then(Transfer::of);
            let before = match now.clone() {
                Some(transfer) => self.transfers.insert(event.key.clone(), transfer),
                None => self.transfers.remove(&event.key),
            };
            changed |= before != now;
        }
        changed
    }
}

fn name_of(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default()
}

/// All objects of a kind that can be read.
async fn list<R: Resource>(objects: &Objects) -> Result<Vec<R>, ObjectError> {
    let prefix = R::INFO.prefix();
    let request = ListRequest { prefix: prefix.clone(), ..ListRequest::default() };
    let listing = objects.store.list(request).await.map_err(|source| ObjectError::Store { key: prefix, source })?;
    Ok(listing.items.iter().filter_map(|kv| decode(objects, kv)).collect())
}

/// The object as it is after the event; `None` if it is gone or cannot be read.
fn read<R: Resource>(objects: &Objects, event: &Event) -> Option<R> {
    decode(objects, event.value.as_ref()?)
}

/// An object that cannot be read must not stop the others.
fn decode<R: Resource>(objects: &Objects, kv: &KeyValue) -> Option<R> {
    match objects.decode::<R>(kv) {
        Ok(found) => Some(found.object),
        Err(error) => {
            tracing::warn!(key = kv.key, error = %fluvial_model::causes::chain(&error), "left out of the shares");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reckoned(shares: &[(&str, Option<u64>)], confirmed: Option<Instant>) -> Reckoned {
        let own: Shares = shares.iter().map(|&(operation, share)| (operation.to_owned(), share)).collect();
        Reckoned { shares: Arc::new(BTreeMap::from([("a".to_owned(), own)])), confirmed }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_is_told_its_own_news_and_renewals_with_what_is_left_of_the_lease() {
        let mut telling = Telling::default();
        let start = Instant::now();
        telling.note(&reckoned(&[("m", Some(7))], Some(start)), "b");
        assert_eq!(telling.take(), None, "another cluster's shares are no news");

        tokio::time::advance(Duration::from_secs(4)).await;
        telling.note(&reckoned(&[("m", Some(7)), ("n", None)], Some(start)), "a");
        let told = telling.take().unwrap();
        assert_eq!(told.lease_ms, 26_000);
        let rates: Vec<_> = told.rates.iter().map(|r| (r.operation.as_str(), r.bytes_per_second)).collect();
        assert_eq!(rates, [("m", Some(7)), ("n", None)]);
        telling.note(&reckoned(&[("m", Some(7)), ("n", None)], Some(start)), "a");
        assert_eq!(telling.take(), None, "nothing is new");

        let renewed = Instant::now();
        telling.note(&reckoned(&[("m", Some(7)), ("n", None)], Some(renewed)), "a");
        assert_eq!(telling.take().unwrap().lease_ms, 30_000);
        tokio::time::advance(LEASE * 2).await;
        telling.note(&reckoned(&[("m", Some(9))], Some(renewed)), "a");
        assert_eq!(telling.take().unwrap().lease_ms, 0, "a hub that is cut off gives no leases");
        telling.note(&reckoned(&[], Some(renewed)), "a");
        assert_eq!(telling.take().unwrap().rates, []);
        telling.note(&reckoned(&[], Some(Instant::now())), "a");
        assert_eq!(telling.take(), None, "an agent without transfers is left in peace");
    }
}
