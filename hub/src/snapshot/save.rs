//! Saving: the store at one revision, the blocks that it needs, and the keys without which both are worth nothing.
//!
//! The store is listed page by page at the revision of the first page, so that writing goes on meanwhile and nothing is
//! held. The key to seal with comes from whoever asks, who alone knows the password.
//!
//! Invariants: every key is in the snapshot as it was at the header's revision, or the snapshot is not whole; an
//! acknowledged write that came before the call is in it.

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fluvial_certs::Authority;
use fluvial_model::kinds::Dataset;
use fluvial_model::manifest::block::{Node, decode};
use fluvial_model::manifest::{BlockHash, Item, Root};
use fluvial_model::resource::Resource as _;
use fluvial_model::store::KeyValue;
use fluvial_proto::v1;
use fluvial_proto::v1::snapshot_record::Record;
use fluvial_raft::{Consistency, ListRequest, Listing, StoreError};
use secrecy::ExposeSecret as _;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use zeroize::Zeroizing;

use super::format::{Footer, Writer, header};
use super::key::{Derivation, KEY_BYTES};
use crate::blocks::Blocks;
use crate::clock::SharedClock;
use crate::objects::Objects;
use crate::sessions::epoch;
use crate::vault;

/// Keys listed at a time: with the largest values (2 MiB) half a gigabyte, with usual ones half a megabyte.
const PAGE: usize = 256;
/// What goes out at a time, and how much of it may wait.
const CHUNK: usize = 256 * 1024;
const CHUNKS: usize = 8;
/// How long whoever asked may take to take the next chunk.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// Why no snapshot was begun, or why it broke off.
#[derive(Debug, Error)]
pub enum SaveError {
    #[error("another snapshot is being saved by this hub: wait for it, or ask another hub")]
    Busy,
    #[error("reading the store")]
    Store(#[from] StoreError),
    #[error("writing the snapshot")]
    Write(#[from] io::Error),
}

/// Everything that a hub's snapshots are made of.
pub struct Saver {
    objects: Objects,
    blocks: Blocks,
    authority: Arc<Authority>,
    data_key: Zeroizing<[u8; vault::KEY_BYTES]>,
    cluster: String,
    clock: SharedClock,
    turn: Arc<Semaphore>,
}

impl std::fmt::Debug for Saver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saver").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Saver {
    #[must_use]
    pub fn new(
        objects: Objects,
        blocks: Blocks,
        authority: Arc<Authority>,
        (data_key, cluster): (Zeroizing<[u8; vault::KEY_BYTES]>, String),
        clock: SharedClock,
    ) -> Self {
        Self { objects, blocks, authority, data_key, cluster, clock, turn: Arc::new(Semaphore::new(1)) }
    }

    /// Begins a snapshot of what the store holds now, and gives its bytes as they come.
    ///
    /// # Errors
    /// If another one is under way, or the store does not answer.
    pub async fn begin(
        self: &Arc<Self>,
        derivation: Derivation,
        key: Zeroizing<[u8; KEY_BYTES]>,
    ) -> Result<mpsc::Receiver<io::Result<Bytes>>, SaveError> {
        let turn = self.turn.clone().try_acquire_owned().map_err(|_| SaveError::Busy)?;
        let epoch = epoch(&self.objects).await?;
        let first = self.objects.store.list(ListRequest { limit: Some(PAGE), ..ListRequest::default() }).await?;
        let (chunks, taken) = mpsc::channel(CHUNKS);
        let (saver, runtime) = (self.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            let outlet = Outlet { chunks: chunks.clone(), runtime: runtime.clone(), waiting: BytesMut::new() };
            if let Err(error) = saver.write(outlet, (derivation, key), epoch, first, &runtime, turn) {
                tracing::warn!(error = &error as &dyn std::error::Error, "a snapshot breaks off");
                // Whoever asked may be gone, and notices that the end is missing in any case.
                let _ = chunks.try_send(Err(io::Error::other(error)));
            }
        });
        Ok(taken)
    }

    /// In a task of the blocking pool.
    fn write(
        &self,
        outlet: Outlet,
        (derivation, key): (Derivation, Zeroizing<[u8; KEY_BYTES]>),
        epoch: u64,
        first: Listing,
        runtime: &Handle,
        _turn: OwnedSemaphorePermit,
    ) -> Result<(), SaveError> {
        let revision = first.revision;
        let whose = (self.authority.trust_domain().to_string(), self.cluster.clone());
        let header = header(derivation, self.clock.now(), whose, (revision.0, epoch));
        let mut writer = Writer::begin(outlet, &header, &key)?;
        writer.put(Record::Keys(v1::SnapshotKeys {
            ca: self.authority.cert_pem(),
            ca_key: self.authority.key_pem().expose_secret().to_owned(),
            data_key: Bytes::copy_from_slice(self.data_key.as_slice()),
        }))?;
        let mut footer = Footer::default();
        let mut roots = Vec::new();
        let datasets = Dataset::INFO.prefix();
        let mut page = first;
        loop {
            let after = page.items.last().map(|kv| kv.key.clone());
            for kv in page.items {
                if kv.key.starts_with(&datasets) {
                    self.note_roots(&kv, &mut roots);
                }
                footer.objects += 1;
                writer.put(Record::Object(v1::SnapshotObject { key: kv.key, value: kv.value.into() }))?;
            }
            if !page.more {
                break;
            }
            let request = ListRequest { after, limit: Some(PAGE), revision: Some(revision), ..ListRequest::default() };
            page = runtime
                .block_on(self.objects.store.list(ListRequest { consistency: Consistency::Stale, ..request }))?;
        }
        self.write_blocks(roots, &mut writer, &mut footer)?;
        let Footer { objects, blocks, .. } = footer;
        writer.finish(footer)?.finish()?;
        tracing::info!(revision = revision.0, objects, blocks, "a snapshot was saved");
        Ok(())
    }

    /// The versions that a dataset is in.
    fn note_roots(&self, kv: &KeyValue, roots: &mut Vec<BlockHash>) {
        let dataset = match self.objects.decode::<Dataset>(kv) {
            Ok(stored) => stored.object,
            Err(error) => return tracing::error!(key = kv.key, %error, "a dataset is saved without its manifests"),
        };
        let status = dataset.status.unwrap_or_default();
        let texts = status.root.iter().chain(status.homes.iter().map(|home| &home.root));
        roots.extend(texts.filter_map(|text| text.parse::<Root>().ok()).map(|root| root.block()));
    }

    /// Every block below `roots`, from whichever hub has it.
    fn write_blocks(
        &self,
        roots: Vec<BlockHash>,
        writer: &mut Writer<Outlet>,
        footer: &mut Footer,
    ) -> Result<(), SaveError> {
        let get = self.blocks.getter();
        // 32 bytes a block of at most 256 KiB: the set is a ten-thousandth of what it stands for.
        let mut seen: HashSet<BlockHash> = roots.iter().copied().collect();
        let mut waiting: Vec<BlockHash> = seen.iter().copied().collect();
        while let Some(hash) = waiting.pop() {
            let Some(data) = get(&hash) else {
                footer.missing_blocks += 1;
                continue;
            };
            waiting.extend(below(&data).into_iter().filter(|hash| seen.insert(*hash)));
            footer.blocks += 1;
            writer.put(Record::Block(v1::SnapshotBlock { hash: Bytes::copy_from_slice(hash.as_bytes()), data }))?;
        }
        Ok(())
    }
}

/// The blocks that a block names.
fn below(data: &[u8]) -> Vec<BlockHash> {
    match decode(data) {
        Ok(Node::Index { children, .. }) => children.into_iter().map(|child| child.block.hash).collect(),
        Ok(Node::Page(entries)) => {
            let directories = entries.into_iter().filter_map(|entry| match entry.item {
                Item::Directory(block) => Some(block.hash),
                Item::File(_) | Item::Symlink { .. } => None,
            });
            directories.collect()
        }
        Err(error) => {
            tracing::warn!(%error, "a block of a manifest is saved without what is below it");
            Vec::new()
        }
    }
}

/// Hands bytes on to whoever asked.
struct Outlet {
    chunks: mpsc::Sender<io::Result<Bytes>>,
    runtime: Handle,
    waiting: BytesMut,
}

impl Outlet {
    fn send(&mut self) -> io::Result<()> {
        let chunk = self.waiting.split().freeze();
        let sent = self.runtime.block_on(self.chunks.send_timeout(Ok(chunk), TAKEN_WITHIN));
        sent.map_err(|error| match error {
            mpsc::error::SendTimeoutError::Closed(_) => io::ErrorKind::BrokenPipe.into(),
            mpsc::error::SendTimeoutError::Timeout(_) => io::ErrorKind::TimedOut.into(),
        })
    }

    fn finish(mut self) -> io::Result<()> {
        if self.waiting.is_empty() { Ok(()) } else { self.send() }
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= CHUNK {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
