//! ④ What an agent has yet to be told.
//!
//! Invariants: what waits is ids, and a message is made from the newest state when there is room for it, so that an
//! agent that was slow gets the last word and not the history; `Synced` names a revision only after everything up to
//! it was sent; an assignment's generation is the newest revision among its own and its Secrets', so that a changed
//! Secret reaches the agents that use it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluvial_model::desired::{Endpoint, Work, assignment_key, assignments_prefix, split_assignment_key};
use fluvial_model::kinds::Secret;
use fluvial_model::resource::Resource as _;
use fluvial_model::store::{Event, KeyValue, Revision};
use fluvial_proto::v1;
use fluvial_proto::v1::hub_message::Message;
use fluvial_raft::{Consistency, ListRequest, StoreError, Watch};

use crate::objects::{ObjectError, Objects, Stored};

/// The start of a feed: what to watch, what waits, and whether it is everything.
pub(super) struct Feed {
    pub(super) watch: Watch,
    pub(super) queue: Queue,
    /// All assignments follow, because the agent's cursor was of no use.
    pub(super) full: bool,
}

/// The ids that wait to be sent to one agent.
pub(super) struct Queue {
    objects: Objects,
    cluster: String,
    /// Id → the newest revision at which we know it changed.
    pending: BTreeMap<String, Revision>,
    /// Id → keys of the Secrets that it names.
    secrets: HashMap<String, BTreeSet<String>>,
    /// What `Synced` said last.
    synced: Option<Revision>,
    sync_owed: bool,
}

impl Feed {
    /// Begins where the agent is, if its cursor is in this history; else with everything.
    pub(super) async fn open(
        objects: &Objects,
        cluster: &str,
        same_history: bool,
        cursor: Revision,
    ) -> Result<Self, ObjectError> {
        let prefix = assignments_prefix(cluster);
        let failed = |source| ObjectError::Store { key: prefix.clone(), source };
        if same_history && cursor > Revision(0) && cursor <= objects.store.revision() {
            match objects.store.watch(&prefix, cursor).await {
                Ok(watch) => {
                    let listing = list(objects, &prefix, Consistency::Stale).await?;
                    let mut queue = Queue::new(objects, cluster);
                    for kv in &listing.items {
                        queue.resume(kv).await?;
                    }
                    return Ok(Self { watch, queue, full: false });
                }
                Err(StoreError::Compacted { .. } | StoreError::FutureRevision { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        // The agent drops whatever is not listed: only the newest list will do.
        let listing = list(objects, &prefix, Consistency::Linearizable).await?;
        let watch = objects.store.watch(&prefix, listing.revision).await.map_err(failed)?;
        let mut queue = Queue::new(objects, cluster);
        for kv in &listing.items {
            queue.mark(&kv.key, kv.mod_revision);
        }
        Ok(Self { watch, queue, full: true })
    }
}

async fn list(objects: &Objects, prefix: &str, consistency: Consistency) -> Result<fluvial_raft::Listing, ObjectError> {
    let request = ListRequest { prefix: prefix.to_owned(), consistency, ..ListRequest::default() };
    objects.store.list(request).await.map_err(|source| ObjectError::Store { key: prefix.to_owned(), source })
}

/// An assignment with everything it takes to act on it.
struct Resolved {
    generation: Revision,
    values: HashMap<String, String>,
    secrets: BTreeSet<String>,
}

impl Queue {
    fn new(objects: &Objects, cluster: &str) -> Self {
        Self {
            objects: objects.clone(),
            cluster: cluster.to_owned(),
            pending: BTreeMap::new(),
            secrets: HashMap::new(),
            synced: None,
            sync_owed: true,
        }
    }

    /// Takes up an assignment that the agent may know. One whose generation comes from a Secret is sent again: the
    /// agent's cursor says nothing about Secrets.
    async fn resume(&mut self, kv: &KeyValue) -> Result<(), ObjectError> {
        let Some((_, id)) = split_assignment_key(&kv.key) else { return Ok(()) };
        let Some(resolved) = resolve(&self.objects, kv).await? else { return Ok(()) };
        if resolved.generation > kv.mod_revision {
            self.pending.insert(id.to_owned(), resolved.generation);
        }
        self.remember(id, resolved.secrets);
        Ok(())
    }

    fn remember(&mut self, id: &str, secrets: BTreeSet<String>) {
        if secrets.is_empty() {
            self.secrets.remove(id);
        } else {
            self.secrets.insert(id.to_owned(), secrets);
        }
    }

    fn mark(&mut self, key: &str, revision: Revision) {
        if let Some((_, id)) = split_assignment_key(key) {
            let newest = self.pending.entry(id.to_owned()).or_insert(revision);
            *newest = revision.max(*newest);
        }
    }

    /// Notes changed assignments.
    pub(super) fn note(&mut self, events: &[std::sync::Arc<Event>]) {
        for event in events {
            self.mark(&event.key, event.revision);
        }
    }

    /// Notes a changed Secret, or, without a key, that any may have changed.
    pub(super) fn note_secret(&mut self, key: Option<&str>) {
        let names = |keys: &BTreeSet<String>| key.is_none_or(|key| keys.contains(key));
        for id in self.secrets.iter().filter(|(_, keys)| names(keys)).map(|(id, _)| id) {
            self.pending.entry(id.clone()).or_default();
        }
    }

    /// `Synced` is due again if the store went on since the last one.
    pub(super) fn owe_sync(&mut self) {
        self.sync_owed = true;
    }

    /// Whether [`Queue::next`] has something.
    pub(super) fn has_work(&self, at: Revision) -> bool {
        !self.pending.is_empty() || (self.sync_owed && self.synced.is_none_or(|synced| synced < at))
    }

    /// The next message; `at` is how far the watch is.
    pub(super) async fn next(&mut self, at: Revision) -> Result<Option<Message>, ObjectError> {
        let Some((id, revision)) = self.pending.pop_first() else {
            self.sync_owed = false;
            self.synced = Some(at);
            return Ok(Some(Message::Synced(v1::Synced { revision: at.0 })));
        };
        self.sync_owed = true;
        let key = assignment_key(&self.cluster, &id);
        let found = self.objects.store.get(&key, Consistency::Stale).await;
        let Some(kv) = found.map_err(|source| ObjectError::Store { key, source })? else {
            self.secrets.remove(&id);
            return Ok(Some(Message::Withdraw(v1::Withdraw { id, generation: revision.0 })));
        };
        let Some(resolved) = resolve(&self.objects, &kv).await? else { return Ok(None) };
        self.remember(&id, resolved.secrets);
        Ok(Some(Message::Assign(v1::Assign {
            id,
            generation: resolved.generation.0,
            work: kv.value.into(),
            secrets: resolved.values,
        })))
    }
}

/// The generation and the secrets of a stored assignment; nothing if it cannot be read, which is logged.
async fn resolve(objects: &Objects, kv: &KeyValue) -> Result<Option<Resolved>, ObjectError> {
    let work: Work = match serde_json::from_slice(&kv.value) {
        Ok(work) => work,
        Err(error) => {
            tracing::error!(key = kv.key, %error, "a stored assignment cannot be read");
            return Ok(None);
        }
    };
    let mut resolved = Resolved { generation: kv.mod_revision, values: HashMap::new(), secrets: BTreeSet::new() };
    let mut read: HashMap<String, Option<Stored<Secret>>> = HashMap::new();
    for reference in work.endpoints().flat_map(|endpoint| endpoint.secrets.values()) {
        let key = Secret::INFO.key(&reference.namespace, &reference.name);
        if !read.contains_key(&key) {
            let secret = objects.get::<Secret>(&reference.namespace, &reference.name, Consistency::Stale).await?;
            read.insert(key.clone(), secret);
        }
        // A Secret that does not exist yet counts as named, so that its creation is noticed.
        if let Some(Some(secret)) = read.get(&key) {
            resolved.generation = resolved.generation.max(secret.revision);
            if let Some(value) = plain(&secret.object, &reference.key) {
                resolved.values.insert(Endpoint::secret_id(reference), value);
            }
        }
        resolved.secrets.insert(key);
    }
    Ok(Some(resolved))
}

/// Values come from the same reading as the revision: one generation never carries two contents.
fn plain(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(secret.data.get(key)?).ok()?).ok()
}
