//! The tree of one version, by rank: what an inode is, what is in a directory.
//!
//! Nothing is held of the tree but a bounded cache of decoded blocks, which all versions of a mount share.

use std::ops::ControlFlow;
use std::sync::Arc;

use fluvial_model::manifest::rank::{self, Ranked};
use fluvial_model::manifest::{BlockHash, BlockRef, Item, Node, PageEntry, ReadError, Root, decode};
use fluvial_transfer::BlockStore;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

/// Most bytes of decoded blocks in memory, by [`NodeWeight`]'s estimate.
const NODES_BYTES: u64 = 32 << 20;
/// About so many blocks are that.
const NODES: usize = 1024;
/// Inodes whose places are remembered: some 300 bytes each.
const PLACES: usize = 4096;

/// What an entry takes in memory, its name not counted.
const ENTRY_BYTES: u64 = 120;

#[derive(Debug, Clone)]
struct NodeWeight;

impl Weighter<BlockHash, Arc<Node>> for NodeWeight {
    fn weight(&self, _key: &BlockHash, node: &Arc<Node>) -> u64 {
        match node.as_ref() {
            Node::Page(entries) => entries.iter().map(|entry| ENTRY_BYTES + entry.name.len() as u64).sum::<u64>() + 64,
            Node::Index { children, .. } => {
                children.iter().map(|child| ENTRY_BYTES + child.first.len() as u64).sum::<u64>() + 64
            }
        }
    }
}

/// Decoded blocks. Clones are one cache.
#[derive(Clone)]
pub struct Nodes {
    blocks: BlockStore,
    cache: Arc<Cache<BlockHash, Arc<Node>, NodeWeight>>,
}

impl Nodes {
    /// Reads blocks from this store.
    #[must_use]
    pub fn new(blocks: BlockStore) -> Self {
        Self { blocks, cache: Arc::new(Cache::with_weighter(NODES, NODES_BYTES, NodeWeight)) }
    }

    fn get(&self, hash: &BlockHash) -> Result<Arc<Node>, ReadError> {
        if let Some(node) = self.cache.get(hash) {
            return Ok(node);
        }
        let bytes = self.blocks.getter()(hash).ok_or(ReadError::Missing { block: *hash })?;
        let node = Arc::new(decode(&bytes).map_err(|source| ReadError::Decode { block: *hash, source })?);
        self.cache.insert(*hash, node.clone());
        Ok(node)
    }
}

/// One version.
pub struct Tree {
    /// Its name.
    pub root: Root,
    nodes: Nodes,
    places: Cache<u64, Arc<Ranked>>,
}

impl Tree {
    /// The tree of `root`, of which no block is read yet.
    #[must_use]
    pub fn new(root: Root, nodes: Nodes) -> Self {
        Self { root, nodes, places: Cache::new(PLACES) }
    }

    /// The entry of a rank.
    ///
    /// # Errors
    /// When a block is missing or not valid.
    pub fn place(&self, rank: u64) -> Result<Option<Arc<Ranked>>, ReadError> {
        if let Some(place) = self.places.get(&rank) {
            return Ok(Some(place));
        }
        let found = rank::by_rank(self.root, rank, &|hash| self.nodes.get(hash))?.map(Arc::new);
        if let Some(place) = &found {
            self.places.insert(rank, place.clone());
        }
        Ok(found)
    }

    /// An entry of a directory by name, with its rank.
    ///
    /// # Errors
    /// As [`Tree::place`].
    pub fn child(&self, directory: &BlockRef, rank: u64, name: &str) -> Result<Option<(u64, Item)>, ReadError> {
        rank::child(directory, rank, name, &|hash| self.nodes.get(hash))
    }

    /// The entries of a directory from a rank on.
    ///
    /// # Errors
    /// As [`Tree::place`].
    pub fn entries<V>(&self, directory: &BlockRef, rank: u64, from: u64, visit: &mut V) -> Result<(), ReadError>
    where
        V: FnMut(u64, &PageEntry) -> ControlFlow<()>,
    {
        rank::entries(directory, rank, from, &|hash| self.nodes.get(hash), visit)
    }

    /// Sums over the whole tree.
    ///
    /// # Errors
    /// As [`Tree::place`].
    pub fn totals(&self) -> Result<fluvial_model::manifest::Totals, ReadError> {
        Ok(self.nodes.get(&self.root.block())?.totals())
    }
}
