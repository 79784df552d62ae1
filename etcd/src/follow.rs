//! ② Keeping the catalog up with etcd: everything once, then a watch from there.
//!
//! One watch for each hub, over all keys of its fleet. When it breaks, it begins again after the last revision that was
//! applied; when etcd has forgotten what came then, the catalog is filled anew. Progress that etcd reports says that
//! nothing is missing up to a revision, which counts what others write to the same etcd too.
//!
//! Invariants: nothing is applied that is older than the catalog, or of another etcd than it was filled from; an etcd
//! that went back is not followed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fluvial_model::store::Revision;
use fluvial_raft::StoreError;
use fluvial_raft::replica::{Change, Filling, Trail};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::link::{Asked, Current, MAX_ANSWER};
use crate::pb;
use crate::pb::watch_request::RequestUnion;
use crate::store::Inner;
use crate::wire::{Key, decode_audit, header, key_value, revision, signed};

/// How long etcd may take to begin a watch, and to answer when it is asked how far the watch is.
const SILENCE: Duration = Duration::from_secs(5);
/// The pause before a watch that broke begins again.
const AGAIN: Duration = Duration::from_millis(100);
/// How often a watch is asked how far it is: etcd does not answer while it is busy sending older events.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(50);
/// Requests to the watch that wait to be sent: one to begin it, then one for each question how far it is.
const REQUESTS: usize = 4;
/// Keys in a page of the filling, if they fit into one answer.
const PAGE: i64 = 1000;

/// A hub that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HubEntry {
    pub id: u64,
    /// `HOST:PORT`.
    pub address: String,
}

/// Who leads, as etcd has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leader {
    pub id: u64,
    /// When the key was made: the term.
    pub created: Revision,
    pub lease: i64,
}

/// What is in etcd beside the data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Whose prefix it is.
    pub fleet: Option<String>,
    pub compacted: Revision,
    pub hubs: BTreeMap<u64, HubEntry>,
    pub leader: Option<Leader>,
    /// Where this was read; older events say nothing new.
    pub at: Revision,
}

impl Meta {
    fn change(&mut self, key: &Key<'_>, kv: Option<&pb::KeyValue>) {
        match key {
            Key::Fleet => self.fleet = kv.map(|kv| String::from_utf8_lossy(&kv.value).into_owned()),
            Key::Compacted => {
                self.compacted = kv.map_or(Revision(0), |kv| number(&kv.value).map_or(Revision(0), Revision))
            }
            Key::Hub(id) => match kv.and_then(|kv| serde_json::from_slice(&kv.value).ok()) {
                Some(entry) => drop(self.hubs.insert(*id, entry)),
                None => drop(self.hubs.remove(id)),
            },
            Key::Leader => {
                self.leader = kv.and_then(|kv| {
                    let id = number(&kv.value)?;
                    Some(Leader { id, created: revision(kv.create_revision), lease: kv.lease })
                });
            }
            Key::Data(_) | Key::Audit | Key::Other => {}
        }
    }
}

/// A number as it is stored: decimal digits.
pub(crate) fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Follows etcd until the task is ended.
pub(crate) async fn run(inner: Arc<Inner>) {
    loop {
        if let Err(error) = follow(&inner).await {
            tracing::warn!(error = %fluvial_model::causes::chain(&error), "following etcd was interrupted");
        }
        inner.progress.send_replace(None);
        tokio::time::sleep(AGAIN).await;
    }
}

/// Reads what is beside the data, and whose etcd this is.
async fn read_meta(inner: &Inner) -> Result<(Meta, u64), StoreError> {
    let (key, range_end) = inner.keys.all_meta();
    let answer = inner.range(pb::RangeRequest { key, range_end, ..pb::RangeRequest::default() }).await?;
    let header = header(answer.header)?;
    let mut meta = Meta { at: revision(header.revision), ..Meta::default() };
    for kv in &answer.kvs {
        meta.change(&inner.keys.read(&kv.key)?, Some(kv));
    }
    Ok((meta, header.cluster_id))
}

async fn follow(inner: &Inner) -> Result<(), StoreError> {
    let (mut meta, cluster) = read_meta(inner).await?;
    if meta.fleet.as_ref() != Some(&inner.fleet) {
        let found = meta.fleet.map_or_else(|| "no fleet".to_owned(), |fleet| format!("fleet {fleet}"));
        let prefix = inner.keys.prefix();
        return Err(StoreError::unavailable(format!("etcd has {found} at {prefix}, not {}", inner.fleet)));
    }
    let here = inner.replica.revision();
    if meta.at < here {
        return Err(went_back(here, meta.at));
    }
    let source = inner.source(cluster);
    if inner.replica.source() != source {
        fill(inner, &source).await?;
        // The watch begins after the filling: what changed meanwhile beside the data is in neither.
        (meta, _) = read_meta(inner).await?;
    }
    let (forget, newest) = (meta.compacted, meta.at);
    inner.meta.send_replace(meta);
    let here = inner.replica.revision();
    inner.replica.apply(Vec::new(), Vec::new(), here, Some(forget)).await?;

    let current = inner.link.connection(inner.deadline()).await?;
    let followed = watch(inner, &current, &source, newest).await;
    inner.link.failed(&current).await;
    followed
}

/// What is said when etcd has less than it had.
pub(crate) fn went_back(from: Revision, to: Revision) -> StoreError {
    let what =
        format!("etcd went back from revision {from} to {to}: restore it with --bump-revision and --mark-compacted");
    StoreError::unavailable(what)
}

async fn watch(inner: &Inner, current: &Current, source: &str, newest: Revision) -> Result<(), StoreError> {
    let begun = inner.replica.revision();
    let (requests, mut answers) = begin(inner, current, begun).await?;
    let mut feed = Feed { inner, pending: Vec::new() };
    inner.progress.send_replace(Some(requests.clone()));
    let mut asked = inner.asked.subscribe();
    asked.mark_unchanged();
    let mut unanswered: Option<Instant> = Some(Instant::now());
    loop {
        if inner.replica.revision() >= newest {
            inner.caught_up.send_if_modified(|caught_up| !std::mem::replace(caught_up, true));
        }
        let behind = !*inner.caught_up.borrow();
        let silent_at = unanswered.map(|since| since + SILENCE);
        let answer = tokio::select! {
            answer = answers.message() => answer,
            changed = asked.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                unanswered.get_or_insert_with(Instant::now);
                continue;
            }
            // After a start nobody may ask before this hub is where etcd was.
            () = tokio::time::sleep(ASK_EVERY), if behind => {
                ask(&requests);
                unanswered.get_or_insert_with(Instant::now);
                continue;
            }
            () = tokio::time::sleep_until(silent_at.unwrap_or_else(Instant::now)), if silent_at.is_some() => {
                return Err(StoreError::unavailable("etcd does not say how far the watch is"));
            }
        };
        let lost = |status: tonic::Status| StoreError::unavailable(format!("the watch broke: {}", status.message()));
        let Some(answer) = answer.map_err(lost)? else { return Err(StoreError::unavailable("the watch ended")) };
        unanswered = None;
        if answer.compact_revision > 0 {
            let missed = revision(answer.compact_revision);
            tracing::warn!(
                at = begun.0,
                begins = missed.0,
                "etcd has forgotten what this hub missed: it reads all anew"
            );
            return fill(inner, source).await;
        }
        if answer.canceled {
            return Err(StoreError::unavailable(format!("etcd ended the watch: {}", answer.cancel_reason)));
        }
        feed.take(answer).await?;
    }
}

/// Asks how far the watch is; if it has been asked and has not answered, it need not be asked again.
pub(crate) fn ask(requests: &mpsc::Sender<pb::WatchRequest>) {
    let request = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
    let _ = requests.try_send(pb::WatchRequest { request_union: Some(request) });
}

type Begun = (mpsc::Sender<pb::WatchRequest>, Streaming<pb::WatchResponse>);

async fn begin(inner: &Inner, current: &Current, after: Revision) -> Result<Begun, StoreError> {
    let (requests, queue) = mpsc::channel(REQUESTS);
    let (key, range_end) = inner.keys.all();
    let create = pb::WatchCreateRequest {
        key,
        range_end,
        start_revision: signed(after.next()),
        progress_notify: true,
        fragment: true,
    };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let closed = |_| StoreError::unavailable("the watch ended");
    requests.send(request).await.map_err(closed)?;
    let mut client = pb::watch_client::WatchClient::new(current.channel.clone()).max_decoding_message_size(MAX_ANSWER);
    let mut request = current.request(ReceiverStream::new(queue));
    // A member without a leader ends the watch instead of going silent.
    request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
    let answers = timeout(SILENCE, client.watch(request)).await;
    let answers = answers.map_err(|_| StoreError::unavailable("etcd did not begin the watch in time"))?;
    let refused =
        |status: tonic::Status| StoreError::unavailable(format!("the watch was refused: {}", status.message()));
    Ok((requests, answers.map_err(refused)?.into_inner()))
}

/// Puts what a watch says into the catalog.
struct Feed<'a> {
    inner: &'a Inner,
    /// The last revision of an answer of which more parts follow: it may be cut.
    pending: Vec<pb::Event>,
}

impl Feed<'_> {
    async fn take(&mut self, answer: pb::WatchResponse) -> Result<(), StoreError> {
        if answer.events.is_empty() && self.pending.is_empty() {
            if answer.created {
                return Ok(());
            }
            // Progress: nothing up to here is missing.
            let upto = revision(header(answer.header)?.revision);
            return self.inner.replica.apply(Vec::new(), Vec::new(), upto, None).await;
        }
        let mut events = std::mem::take(&mut self.pending);
        events.extend(answer.events);
        if answer.fragment {
            let last = events.last().and_then(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
            let whole = events.partition_point(|event| event.kv.as_ref().is_some_and(|kv| kv.mod_revision < last));
            self.pending = events.split_off(whole);
        }
        self.apply(&events).await
    }

    async fn apply(&self, events: &[pb::Event]) -> Result<(), StoreError> {
        let inner = self.inner;
        let known = inner.meta.borrow().clone();
        let mut meta = known.clone();
        let mut changes = Vec::with_capacity(events.len());
        let mut trail = Vec::new();
        let mut upto = Revision(0);
        for event in events {
            let Some(kv) = &event.kv else { continue };
            let at = revision(kv.mod_revision);
            upto = upto.max(at);
            let written = (event.r#type() == pb::event::Type::Put).then_some(kv);
            match inner.keys.read(&kv.key)? {
                Key::Data(key) => changes.push(Change {
                    revision: at,
                    key: key.to_owned(),
                    value: written.map(|kv| key_value(key, kv)),
                }),
                Key::Audit => {
                    if let Some(kv) = written {
                        trail.push(Trail { revision: at, entries: decode_audit(&kv.value)? });
                    }
                }
                other if at > meta.at => meta.change(&other, written),
                _ => {}
            }
        }
        let forget = (meta.compacted > known.compacted).then_some(meta.compacted);
        inner.replica.apply(changes, trail, upto, forget).await?;
        inner.meta.send_if_modified(|current| {
            let changed = *current != meta;
            *current = meta;
            changed
        });
        Ok(())
    }
}

/// Fills the catalog with all that etcd has, at one revision.
async fn fill(inner: &Inner, source: &str) -> Result<(), StoreError> {
    let started = Instant::now();
    let (mut at, mut count) = (0, 0);
    let mut filling = inner.replica.fill().await?;
    for range in [inner.keys.all_data(), inner.keys.all_audit()] {
        let (mut key, range_end) = range;
        let mut limit = PAGE;
        loop {
            let request = pb::RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit,
                revision: at,
                ..pb::RangeRequest::default()
            };
            let page = match inner.range(request).await {
                Err(StoreError::TooLarge { .. }) if limit > 1 => {
                    limit = (limit / 4).max(1);
                    continue;
                }
                page => page?,
            };
            if at == 0 {
                let header = header(page.header)?;
                if inner.source(header.cluster_id) != source {
                    return Err(StoreError::unavailable("etcd became another one while it was read"));
                }
                at = header.revision;
            }
            count += page.kvs.len();
            filling = put(inner, filling, &page.kvs).await?;
            match page.kvs.last() {
                // The next key is the one that is longer by a zero.
                Some(last) if page.more => key = Bytes::from([&last.key[..], &[0]].concat()),
                _ => break,
            }
        }
    }
    let filling = filling.order_trail(decode_audit).await?;
    inner.replica.install(filling, source, revision(at)).await?;
    tracing::info!(count, revision = at, took = ?started.elapsed(), "the catalog is filled from etcd");
    Ok(())
}

/// Puts one page into the filling.
async fn put(inner: &Inner, filling: Filling, page: &[pb::KeyValue]) -> Result<Filling, StoreError> {
    let (mut values, mut trail) = (Vec::new(), Vec::new());
    for kv in page {
        match inner.keys.read(&kv.key)? {
            Key::Data(key) => values.push(key_value(key, kv)),
            Key::Audit => trail.push((revision(kv.mod_revision), kv.value.to_vec())),
            _ => return Err(StoreError::Corrupt { what: format!("the key {:?} in etcd", kv.key) }),
        }
    }
    filling.put(values).await?.put_trail(trail).await
}

impl Inner {
    /// A linearizable read.
    pub(crate) async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, StoreError> {
        let call = |current: Current| {
            let request = current.request(request.clone());
            async move {
                let mut client =
                    pb::kv_client::KvClient::new(current.channel.clone()).max_decoding_message_size(MAX_ANSWER);
                client.range(request).await.map(tonic::Response::into_inner)
            }
        };
        self.link.call(self.deadline(), Asked::Read, call).await
    }

    /// A write, or something like it.
    pub(crate) async fn write(
        &self,
        request: pb::TxnRequest,
        deadline: Instant,
    ) -> Result<pb::TxnResponse, StoreError> {
        let asked = Asked::Write {
            ops: request.compare.len().max(request.success.len()),
            bytes: prost::Message::encoded_len(&request),
        };
        let call = |current: Current| {
            let request = current.request(request.clone());
            async move {
                let mut client =
                    pb::kv_client::KvClient::new(current.channel.clone()).max_decoding_message_size(MAX_ANSWER);
                client.txn(request).await.map(tonic::Response::into_inner)
            }
        };
        self.link.call(deadline, asked, call).await
    }
}
