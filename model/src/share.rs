//! ⑤ Which node of a cluster fetches what from the source, and keeps it for the others.
//!
//! Files are cut into ranges of [`RANGE_BYTES`]; a smaller file is one range. The owner of a range is chosen by weighted
//! rendezvous hashing over the nodes that live (Thaler and Ravishankar 1998; weights by Schindelhauer and Schomaker 2005:
//! each node draws -w / ln h from the hash h of its name and the range, the greatest draw wins). No node has to be asked,
//! and a node that comes or goes moves the ranges that it gains or loses, and no other.

use serde::{Deserialize, Serialize};

/// Bytes of a range: large enough that a sequential reader seldom changes owners, small enough that a large model file is
/// spread over a cluster.
pub const RANGE_BYTES: u64 = 64 << 20;

/// A node that shares its cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name in the cluster.
    pub name: String,
    /// Where it listens, `HOST:PORT`.
    pub address: String,
    /// Bytes that its cache may hold: its weight. A node without room owns nothing.
    pub capacity_bytes: u64,
    /// It is the agent that speaks for the cluster.
    pub leads: bool,
}

/// What a file is called when its ranges are given to owners: its digest if it is known, else dataset, version and path.
/// Every node gives the same file the same name.
#[must_use]
pub fn file_key(digest: Option<&[u8; 32]>, uid: &str, root: &str, path: &str) -> [u8; 32] {
    match digest {
        Some(digest) => *digest,
        None => *blake3::hash(format!("{uid}\0{root}\0{path}").as_bytes()).as_bytes(),
    }
}

/// The node that owns the range of a file in which `offset` lies; none if no node has room.
#[must_use]
pub fn owner<'a>(nodes: &'a [Node], file: &[u8; 32], offset: u64) -> Option<&'a Node> {
    let range = offset / RANGE_BYTES;
    let draws = nodes.iter().filter(|node| node.capacity_bytes > 0).map(|node| (draw(node, file, range), node));
    // Equal draws (of equal names) are told apart by name, so that the order of the list does not matter.
    draws.max_by(|(one, a), (other, b)| one.total_cmp(other).then_with(|| a.name.cmp(&b.name))).map(|(_, node)| node)
}

#[allow(clippy::cast_precision_loss, reason = "a weight and a hash as fractions")]
fn draw(node: &Node, file: &[u8; 32], range: u64) -> f64 {
    let mut hasher = blake3::Hasher::new_keyed(file);
    hasher.update(&range.to_le_bytes());
    hasher.update(node.name.as_bytes());
    let hash = hasher.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    // 53 bits, moved off both ends: strictly between 0 and 1.
    let fraction = ((u64::from_le_bytes(first) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -(node.capacity_bytes as f64) / fraction.ln()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn node(name: &str, capacity_bytes: u64) -> Node {
        Node { name: name.to_owned(), address: format!("{name}:1"), capacity_bytes, leads: false }
    }

    fn owners(nodes: &[Node], files: u64) -> BTreeMap<(u64, u64), String> {
        let ranges = (0..files).flat_map(|file| (0..2).map(move |range| (file, range)));
        let owner = |(file, range): (u64, u64)| {
            let key = file_key(None, "uid", "root", &file.to_string());
            owner(nodes, &key, range * RANGE_BYTES).unwrap().name.clone()
        };
        ranges.map(|at| (at, owner(at))).collect()
    }

    #[test]
    fn a_range_has_one_owner_and_a_file_several() {
        let nodes = [node("a", 1), node("b", 1), node("c", 1)];
        let key = file_key(Some(&[7; 32]), "", "", "");
        let at = |offset| owner(&nodes, &key, offset).unwrap();
        assert_eq!(at(0), at(RANGE_BYTES - 1));
        assert!((0..32).any(|range| at(range * RANGE_BYTES) != at(0)));
        assert_eq!(owner(&[], &key, 0), None);
        assert_eq!(owner(&[node("a", 0)], &key, 0), None, "a node without room owns nothing");
        let reversed: Vec<_> = nodes.iter().rev().cloned().collect();
        assert_eq!(owner(&reversed, &key, 0), owner(&nodes, &key, 0));
    }

    proptest! {
        #[test]
        fn who_comes_or_goes_moves_its_own_ranges_alone(
            capacities in proptest::collection::vec(1u64..1_000_000, 2..8), gone in 0usize..8,
        ) {
            let nodes: Vec<_> = capacities.iter().enumerate().map(|(n, bytes)| node(&format!("n{n}"), *bytes)).collect();
            let gone = &nodes[gone % nodes.len()].name;
            let rest: Vec<_> = nodes.iter().filter(|node| node.name != *gone).cloned().collect();
            let (with, without) = (owners(&nodes, 200), owners(&rest, 200));
            for (range, owner) in &with {
                prop_assert!(owner == gone || without[range] == *owner, "{range:?}: {owner} → {}", without[range]);
            }
        }

        #[test]
        fn each_node_owns_its_part(capacities in proptest::collection::vec(1u64..10, 2..6)) {
            let nodes: Vec<_> =
                capacities.iter().enumerate().map(|(n, part)| node(&format!("n{n}"), part << 30)).collect();
            let files = 2000;
            let mut held: BTreeMap<String, f64> = BTreeMap::new();
            owners(&nodes, files).into_values().for_each(|owner| *held.entry(owner).or_default() += 1.0);
            let all: u64 = capacities.iter().sum();
            for (node, part) in nodes.iter().zip(&capacities) {
                let fair = 2.0 * files as f64 * *part as f64 / all as f64;
                let found = held.get(&node.name).copied().unwrap_or_default();
                // Six standard deviations of a binomial draw.
                prop_assert!((found - fair).abs() < 6.0 * fair.sqrt() + 1.0, "{}: {found}, fair {fair}", node.name);
            }
        }
    }
}
