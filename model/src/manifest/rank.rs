//! Every entry of a tree by number: its rank in the order of [`walk`](super::walk), a directory before what is in it, the
//! root 0.
//!
//! The sums in the blocks say how many entries are below each of them, so that both ways, from a path to its rank and
//! back, open only the blocks on the way: a tree of any size can be numbered without a table. A rank means something
//! within one version only.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::block::{BlockRef, Item, Node, PageEntry};
use super::hash::{BlockHash, Root};
use super::path::RelativePath;
use super::read::ReadError;

/// An entry, found by its rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranked {
    /// Where it is; the root's path for rank 0.
    pub path: RelativePath,
    /// The rank of the directory that it is in; the root is in itself.
    pub parent: u64,
    /// What it is.
    pub item: Item,
}

/// How many ranks an entry takes: its own, and those of what is below it.
#[must_use]
pub fn weight(item: &Item) -> u64 {
    let totals = item.totals();
    totals.files.saturating_add(totals.dirs)
}

/// Opens a block at the level that its parent announced.
fn open<N>(nodes: &N, hash: &BlockHash, level: Option<u8>) -> Result<Arc<Node>, ReadError>
where
    N: Fn(&BlockHash) -> Result<Arc<Node>, ReadError>,
{
    let node = nodes(hash)?;
    let found = match node.as_ref() {
        Node::Page(_) => 0,
        Node::Index { level, .. } => *level,
    };
    // Levels go down, so that blocks that form a cycle are an error and no endless way.
    if level.is_some_and(|level| level != found) {
        return Err(ReadError::Misplaced { block: *hash, why: "a block of another level than announced" });
    }
    Ok(node)
}

/// The root as a directory.
///
/// # Errors
/// When its block is missing or not valid.
pub fn root_item<N>(root: Root, nodes: &N) -> Result<Item, ReadError>
where
    N: Fn(&BlockHash) -> Result<Arc<Node>, ReadError>,
{
    Ok(Item::Directory(BlockRef { hash: root.block(), totals: nodes(&root.block())?.totals() }))
}

/// The entry with this rank; `None` if the tree has fewer.
///
/// # Errors
/// When a block on the way is missing, not valid or out of place.
pub fn by_rank<N>(root: Root, rank: u64, nodes: &N) -> Result<Option<Ranked>, ReadError>
where
    N: Fn(&BlockHash) -> Result<Arc<Node>, ReadError>,
{
    if rank == 0 {
        let item = root_item(root, nodes)?;
        return Ok(Some(Ranked { path: RelativePath::root(), parent: 0, item }));
    }
    let (mut path, mut directory, mut hash) = (RelativePath::root(), 0, root.block());
    // One turn for each directory on the way: `join` bounds their number.
    loop {
        let mut next = None;
        let mut failed = None;
        each(nodes, &hash, directory, rank, &mut |at, entry| {
            if rank < at + weight(&entry.item) {
                match path.join(&entry.name) {
                    Ok(path) => next = Some((at, path, entry.item.clone())),
                    Err(error) => failed = Some(ReadError::Path(error)),
                }
            }
            ControlFlow::Break(())
        })?;
        match (failed, next) {
            (Some(error), _) => return Err(error),
            (None, None) => return Ok(None),
            (None, Some((at, path, item))) if at == rank => return Ok(Some(Ranked { path, parent: directory, item })),
            (None, Some((at, below, Item::Directory(block)))) => (path, directory, hash) = (below, at, block.hash),
            // Only a directory takes more than one rank.
            (None, Some(_)) => return Ok(None),
        }
    }
}

/// The entry of this name in a directory, given the directory's rank, with its own.
///
/// # Errors
/// As [`by_rank`].
pub fn child<N>(directory: &BlockRef, rank: u64, name: &str, nodes: &N) -> Result<Option<(u64, Item)>, ReadError>
where
    N: Fn(&BlockHash) -> Result<Arc<Node>, ReadError>,
{
    let (mut hash, mut level, mut at) = (directory.hash, None, rank + 1);
    loop {
        match open(nodes, &hash, level)?.as_ref() {
            Node::Index { level: found, children } => {
                // The last child whose first name is not behind the name.
                let after = children.partition_point(|child| child.first.as_bytes() <= name.as_bytes());
                let Some(chosen) = after.checked_sub(1) else { return Ok(None) };
                at += children[..chosen].iter().map(|child| entries_of(&child.block)).sum::<u64>();
                (hash, level) = (children[chosen].block.hash, Some(found - 1));
            }
            Node::Page(entries) => {
                let Ok(chosen) = entries.binary_search_by(|entry| entry.name.as_bytes().cmp(name.as_bytes())) else {
                    return Ok(None);
                };
                at += entries[..chosen].iter().map(|entry| weight(&entry.item)).sum::<u64>();
                return Ok(Some((at, entries[chosen].item.clone())));
            }
        }
    }
}

/// Visits the entries of a directory, given its rank, from the first that reaches the rank `from`, each with its rank.
///
/// # Errors
/// As [`by_rank`].
pub fn entries<N, V>(directory: &BlockRef, rank: u64, from: u64, nodes: &N, visit: &mut V) -> Result<(), ReadError>
where
    N: Fn(&BlockHash) -> Result<Arc<Node>, ReadError>,
    V: FnMut(u64, &PageEntry) -> ControlFlow<()>,
{
    each(nodes, &directory.hash, rank, from, visit)
}

fn entries_of(block: &BlockRef) -> u64 {
    block.totals.files.saturating_add(block.totals.dirs)
}

fn each<N, V>(nodes: &N, hash: &BlockHash, directory: u64, from: u64, visit: &mut V) -> Result<(), ReadError>
where
    N: Fn(&BlockHash) -> Result<Arc<Node>, ReadError>,
    V: FnMut(u64, &PageEntry) -> ControlFlow<()>,
{
    let mut at = directory + 1;
    // Blocks that are still to be opened, the next one last: as many as are beside the way down.
    let mut pending = vec![(*hash, None)];
    while let Some((hash, level)) = pending.pop() {
        match open(nodes, &hash, level)?.as_ref() {
            Node::Index { level, children } => {
                let mut skipped = 0;
                for child in children {
                    let end = at.saturating_add(entries_of(&child.block));
                    if end > from {
                        break;
                    }
                    at = end;
                    skipped += 1;
                }
                pending.extend(children[skipped..].iter().rev().map(|child| (child.block.hash, Some(level - 1))));
            }
            Node::Page(entries) => {
                for entry in entries {
                    let end = at.saturating_add(weight(&entry.item));
                    if end > from && visit(at, entry).is_break() {
                        return Ok(());
                    }
                    at = end;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::{BTreeMap, HashMap};

    use proptest::prelude::*;

    use super::super::block::decode;
    use super::super::{Entry, File, TreeBuilder, walk};
    use super::*;

    type Blocks = HashMap<BlockHash, Vec<u8>>;

    fn build(paths: &BTreeMap<RelativePath, Entry>) -> (Root, Blocks) {
        let blocks = RefCell::new(Blocks::new());
        let mut builder = TreeBuilder::new(|hash: BlockHash, bytes: Vec<u8>| {
            blocks.borrow_mut().insert(hash, bytes);
            Ok::<(), std::convert::Infallible>(())
        });
        let mut sorted: Vec<_> = paths.iter().collect();
        sorted.sort_by_key(|(path, _)| path.sort_key());
        for (path, entry) in sorted {
            builder.push(path, entry.clone()).unwrap();
        }
        let root = builder.finish().unwrap().root;
        (root, blocks.into_inner())
    }

    fn check(paths: &BTreeMap<RelativePath, Entry>) {
        let (root, blocks) = build(paths);
        let nodes = |hash: &BlockHash| -> Result<Arc<Node>, ReadError> {
            let bytes = blocks.get(hash).ok_or(ReadError::Missing { block: *hash })?;
            decode(bytes).map(Arc::new).map_err(|source| ReadError::Decode { block: *hash, source })
        };
        let walked: Vec<_> = walk(root, |hash: &BlockHash| blocks.get(hash).map(|b| b.clone().into()))
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        let mut ranks = HashMap::from([(RelativePath::root(), 0)]);
        for (rank, (path, entry)) in (1_u64..).zip(&walked) {
            let found = by_rank(root, rank, &nodes).unwrap().unwrap();
            assert_eq!((&found.path, &found.item.entry()), (path, entry));
            ranks.insert(path.clone(), rank);
            let parent = path.parent().unwrap();
            assert_eq!(found.parent, ranks[&parent]);
            let above = by_rank(root, found.parent, &nodes).unwrap().unwrap();
            let Item::Directory(block) = above.item else { panic!("{parent:?} is a directory") };
            let (again, item) = child(&block, found.parent, path.name().unwrap(), &nodes).unwrap().unwrap();
            assert_eq!((again, &item), (rank, &found.item));
            assert_eq!(child(&block, found.parent, "\u{10ffff}", &nodes).unwrap(), None);
        }
        assert_eq!(by_rank(root, walked.len() as u64 + 1, &nodes).unwrap(), None);
        for (directory, rank) in &ranks {
            let Item::Directory(block) = by_rank(root, *rank, &nodes).unwrap().unwrap().item else { continue };
            let expected: Vec<u64> = walked
                .iter()
                .filter(|(path, _)| path.parent().as_ref() == Some(directory))
                .map(|(path, _)| ranks[path])
                .collect();
            let mut listed = Vec::new();
            // One at a time, as a reader that comes back for each does.
            let mut from = rank + 1;
            loop {
                let before = listed.len();
                entries(&block, *rank, from, &nodes, &mut |at, entry| {
                    listed.push(at);
                    from = at + weight(&entry.item);
                    ControlFlow::Break(())
                })
                .unwrap();
                if listed.len() == before {
                    break;
                }
            }
            assert_eq!(listed, expected, "{directory:?}");
        }
    }

    fn file() -> Entry {
        Entry::File(File { size: 7, mtime_ns: 1, mode: 0o644, digest: None })
    }

    proptest! {
        #[test]
        fn ranks_are_the_order_of_the_walk(names in prop::collection::btree_set("[a-c]{1,2}(/[a-c]{1,2}){0,3}", 0..60)) {
            let mut paths = BTreeMap::new();
            for name in &names {
                let path = RelativePath::parse(name).unwrap();
                let mut above = path.parent();
                let mut free = !names.iter().any(|other| other.starts_with(&format!("{name}/")));
                while let Some(directory) = above.filter(|directory| !directory.is_root()) {
                    free &= !matches!(paths.get(&directory), Some(Entry::File(_)));
                    above = directory.parent();
                }
                if free {
                    paths.insert(path, file());
                }
            }
            check(&paths);
        }
    }

    #[test]
    fn a_directory_of_many_pages_is_numbered_through_its_index() {
        let mut paths = BTreeMap::new();
        for number in 0..6000 {
            paths.insert(
                RelativePath::parse(&format!("many/file {number} with a name of some length")).unwrap(),
                file(),
            );
        }
        paths.insert(RelativePath::parse("z/last").unwrap(), file());
        let (root, blocks) = build(&paths);
        assert!(blocks.len() > 5, "it has an index");
        let nodes = |hash: &BlockHash| -> Result<Arc<Node>, ReadError> { Ok(Arc::new(decode(&blocks[hash]).unwrap())) };
        let last = by_rank(root, 6003, &nodes).unwrap().unwrap();
        assert_eq!((last.path.as_str(), last.parent), ("z/last", 6002));
        let many = by_rank(root, 1, &nodes).unwrap().unwrap();
        let Item::Directory(block) = many.item else { panic!("it is a directory") };
        let mut count = 0;
        entries(&block, 1, 2, &nodes, &mut |at, entry| {
            assert_eq!(child(&block, 1, &entry.name, &nodes).unwrap().unwrap().0, at);
            count += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(count, 6000);
    }
}
