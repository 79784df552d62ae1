//! ⑤ Manifest blocks between this agent and the hub: pushed before the report that names their root, pulled before a
//! version is cached or checked.
//!
//! A block that the hub has is pushed no second time, nor anything below it: children go before parents, and what was
//! stored is noted in the ledger. Blocks that arrive are checked against their name.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use fluvial_model::manifest::{BlockHash, DecodeError, Item, Node, Root, decode};
use fluvial_proto::v1::agent_service_client::AgentServiceClient;
use fluvial_proto::v1::{Block, BlockRequest};
use fluvial_transfer::{BlockStore, TransferError};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::ledger::{self, Ledger};

/// Blocks of one call: 64 × 256 KiB = 16 MiB at most.
const BLOCKS_PER_CALL: usize = 64;
/// How long one call may take: 16 MiB over a slow line.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Why blocks could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{op}: the hub does not answer or refuses")]
    Hub {
        op: &'static str,
        #[source]
        source: Box<tonic::Status>,
    },
    #[error("pull block {block}: the hub sent other bytes")]
    OtherBytes { block: BlockHash },
    #[error("push version {root}: block {block} is not here")]
    Missing { root: Root, block: BlockHash },
    #[error("read block {block}")]
    Decode {
        block: BlockHash,
        #[source]
        source: DecodeError,
    },
    #[error("use block store")]
    Store(#[source] TransferError),
    #[error("note pushed blocks")]
    Ledger(#[source] ledger::Error),
    #[error("{op}: the agent is ending")]
    Ending { op: &'static str },
}

/// The connection to the hub of the moment.
#[derive(Debug, Clone)]
pub struct HubLink(watch::Receiver<Option<Channel>>);

impl HubLink {
    /// Follows the channel that the uplink publishes.
    #[must_use]
    pub fn new(channel: watch::Receiver<Option<Channel>>) -> Self {
        Self(channel)
    }

    /// Waits for a connection; the caller bounds the wait by its own cancellation.
    async fn client(&self, op: &'static str) -> Result<AgentServiceClient<Channel>, Error> {
        let mut channel = self.0.clone();
        let connected = channel.wait_for(Option::is_some).await.map_err(|_| Error::Ending { op })?;
        connected.clone().map(AgentServiceClient::new).ok_or(Error::Ending { op })
    }
}

async fn bounded<T>(op: &'static str, call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, Error> {
    let done = tokio::time::timeout(CALL_TIMEOUT, Box::pin(call)).await;
    let done = done.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded(format!("no answer in {CALL_TIMEOUT:?}"))));
    done.map_err(|source| Error::Hub { op, source: Box::new(source) })
}

/// The blocks directly below a block.
fn children(hash: BlockHash, bytes: &[u8]) -> Result<Vec<BlockHash>, Error> {
    Ok(match decode(bytes).map_err(|source| Error::Decode { block: hash, source })? {
        Node::Index { children, .. } => children.into_iter().map(|child| child.block.hash).collect(),
        Node::Page(entries) => entries
            .into_iter()
            .filter_map(|entry| match entry.item {
                Item::Directory(block) => Some(block.hash),
                Item::File(_) | Item::Symlink { .. } => None,
            })
            .collect(),
    })
}

/// Gives the hub every block of a version that it does not have.
///
/// # Errors
/// When a block is not here, or the hub does not take one.
pub async fn push(link: &HubLink, ledger: &Ledger, blocks: &BlockStore, root: Root) -> Result<(), Error> {
    const OP: &str = "push blocks";
    let hashes = {
        let blocks = blocks.clone();
        ledger.call(move |ledger| Ok(unpushed(ledger, &blocks, root))).await.map_err(Error::Ledger)??
    };
    for batch in hashes.chunks(BLOCKS_PER_CALL) {
        let mut client = link.client(OP).await?;
        let (batch, store) = (batch.to_vec(), blocks.clone());
        let found: Vec<Block> = {
            let batch = batch.clone();
            let read = move || batch.into_iter().map(|hash| block(&store, root, hash)).collect::<Result<_, _>>();
            tokio::task::spawn_blocking(read).await.map_err(|_| Error::Ending { op: OP })??
        };
        bounded(OP, client.put_blocks(tokio_stream::iter(found))).await?;
        ledger.call(move |ledger| ledger.note_pushed(&batch)).await.map_err(Error::Ledger)?;
    }
    Ok(())
}

fn block(store: &BlockStore, root: Root, hash: BlockHash) -> Result<Block, Error> {
    let data = store.get(&hash).map_err(Error::Store)?.ok_or(Error::Missing { root, block: hash })?;
    Ok(Block { hash: Bytes::copy_from_slice(hash.as_bytes()), data })
}

/// What the hub does not have of a version, children before parents.
fn unpushed(ledger: &Ledger, blocks: &BlockStore, root: Root) -> Result<Vec<BlockHash>, Error> {
    enum Step {
        Enter(BlockHash),
        Leave(BlockHash),
    }
    let mut seen = HashSet::new();
    let mut order = Vec::new();
    let mut stack = vec![Step::Enter(root.block())];
    while let Some(step) = stack.pop() {
        match step {
            Step::Leave(hash) => order.push(hash),
            Step::Enter(hash) => {
                if !seen.insert(hash) || ledger.pushed(&hash).map_err(Error::Ledger)? {
                    continue;
                }
                let bytes = blocks.get(&hash).map_err(Error::Store)?.ok_or(Error::Missing { root, block: hash })?;
                stack.push(Step::Leave(hash));
                stack.extend(children(hash, &bytes)?.into_iter().map(Step::Enter));
            }
        }
    }
    Ok(order)
}

/// Fetches every block of a version that is not here.
///
/// # Errors
/// When the hub does not answer, does not have one, or sends other bytes.
pub async fn pull(link: &HubLink, blocks: &BlockStore, root: Root) -> Result<(), Error> {
    let mut seen = HashSet::from([root.block()]);
    let mut wanted = vec![root.block()];
    while let Some(hash) = wanted.pop() {
        let bytes = fetch(link, blocks, hash).await?;
        wanted.extend(children(hash, &bytes)?.into_iter().filter(|child| seen.insert(*child)));
    }
    Ok(())
}

/// A block from here or, if it is not here, from the hub; then it is kept here too.
///
/// # Errors
/// As [`pull`].
pub async fn fetch(link: &HubLink, blocks: &BlockStore, hash: BlockHash) -> Result<Bytes, Error> {
    const OP: &str = "pull block";
    let store = blocks.clone();
    let here = tokio::task::spawn_blocking(move || store.get(&hash)).await.map_err(|_| Error::Ending { op: OP })?;
    // A block that cannot be read is asked for like one that is missing.
    if let Some(bytes) = here.unwrap_or_default() {
        return Ok(bytes);
    }
    let mut client = link.client(OP).await?;
    let request = BlockRequest { hash: Bytes::copy_from_slice(hash.as_bytes()) };
    let data = bounded(OP, client.get_block(request)).await?.into_inner().data;
    if BlockHash::of(&data) != hash {
        return Err(Error::OtherBytes { block: hash });
    }
    let (store, copy) = (blocks.clone(), data.clone());
    let put = tokio::task::spawn_blocking(move || store.put(&copy)).await;
    put.map_err(|_| Error::Ending { op: OP })?.map_err(Error::Store)?;
    Ok(data)
}
