//! What holds of every tree, however it was built.

#![allow(clippy::unwrap_used)]
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::ops::ControlFlow;

use bytes::Bytes;
use proptest::prelude::*;

use super::block::{MAX_BLOCK_BYTES, Node, decode};
use super::diff::aspects;
use super::*;

type Blocks = HashMap<BlockHash, Bytes>;
type Tree = BTreeMap<RelativePath, Entry>;

fn path(text: &str) -> RelativePath {
    RelativePath::parse(text).unwrap()
}

fn file(size: u64) -> Entry {
    Entry::File(File { size, mtime_ns: -5, mode: 0o644, digest: None })
}

fn build(tree: &Tree, blocks: &mut Blocks) -> Built {
    let mut builder = TreeBuilder::new(|hash, bytes: Vec<u8>| {
        assert!(bytes.len() <= MAX_BLOCK_BYTES);
        assert_eq!(decode(&bytes).unwrap().encode(), bytes);
        blocks.insert(hash, bytes.into());
        Ok::<(), Infallible>(())
    });
    for (path, entry) in tree {
        builder.push(path, entry.clone()).unwrap();
    }
    builder.finish().unwrap()
}

/// The tree with every parent directory spelled out.
fn spelled_out(tree: &Tree) -> Tree {
    let mut full = tree.clone();
    for path in tree.keys() {
        let mut parent = path.parent();
        while let Some(directory) = parent.filter(|parent| !parent.is_root()) {
            full.insert(directory.clone(), Entry::Directory);
            parent = directory.parent();
        }
    }
    full
}

fn read(root: Root, blocks: &Blocks) -> Tree {
    walk(root, |hash: &BlockHash| blocks.get(hash).cloned()).map(Result::unwrap).collect()
}

fn naive_diff(a: &Tree, b: &Tree) -> Vec<Difference> {
    let mut paths: Vec<_> = a.keys().chain(b.keys()).cloned().collect();
    paths.sort();
    paths.dedup();
    let change = |path: &RelativePath| match (a.get(path), b.get(path)) {
        (Some(before), None) => Some(Change::Removed(before.clone())),
        (None, Some(after)) => Some(Change::Added(after.clone())),
        (Some(before), Some(after)) if before != after => {
            Some(Change::Changed { before: before.clone(), after: after.clone(), what: aspects(before, after) })
        }
        _ => None,
    };
    paths.into_iter().filter_map(|path| change(&path).map(|change| Difference { path, change })).collect()
}

fn collect_diff(a: Root, b: Root, get: &impl Fn(&BlockHash) -> Option<Bytes>) -> Vec<Difference> {
    let mut found = Vec::new();
    let _ = diff(a, b, get, &mut |difference| {
        found.push(difference);
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

fn any_entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        6 => (any::<u64>(), any::<i64>(), 0u32..=0o7777, proptest::option::of(any::<[u8; 32]>())).prop_map(
            |(size, mtime_ns, mode, digest)| Entry::File(File {
                size: size >> 20,
                mtime_ns,
                mode,
                digest: digest.map(Digest::from_bytes)
            })
        ),
        1 => Just(Entry::Directory),
        1 => "[a-z./]{1,20}".prop_map(|target| Entry::Symlink { target }),
    ]
}

/// A tree without anything below a file.
fn any_tree() -> impl Strategy<Value = Tree> {
    proptest::collection::btree_map("[a-d !\n\u{e9}-]{1,2}(/[a-c.]{2,3}x){0,3}", any_entry(), 0..60).prop_map(|raw| {
        let mut tree = Tree::new();
        for (text, entry) in raw {
            let path = path(&text);
            let mut parent = path.parent();
            let mut below_a_file = false;
            while let Some(directory) = parent {
                below_a_file |= tree.get(&directory).is_some_and(|entry: &Entry| *entry != Entry::Directory);
                parent = directory.parent();
            }
            let holds_something = tree.keys().any(|other| other != &path && other.strip_prefix(&path).is_some());
            if !below_a_file && (!holds_something || entry == Entry::Directory) {
                tree.insert(path, entry);
            }
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_tree_reads_back_as_it_was_built(tree in any_tree()) {
        let mut blocks = Blocks::new();
        let built = build(&tree, &mut blocks);
        let full = spelled_out(&tree);
        prop_assert_eq!(read(built.root, &blocks), full.clone());
        let sums = full.values().fold(Totals::default(), |sum, entry| sum.plus(entry.totals()));
        prop_assert_eq!(built.totals, sums);
        let get = |hash: &BlockHash| blocks.get(hash).cloned();
        prop_assert_eq!(totals(built.root, &get).unwrap(), sums);
        for (path, entry) in &full {
            prop_assert_eq!(lookup(built.root, path, &get).unwrap().map(|item| item.entry()), Some(entry.clone()));
        }
    }

    #[test]
    fn the_root_does_not_depend_on_which_parents_were_given(tree in any_tree()) {
        let sparse = build(&tree, &mut Blocks::new());
        let full = build(&spelled_out(&tree), &mut Blocks::new());
        prop_assert_eq!(sparse, full);
    }

    #[test]
    fn the_difference_is_the_naive_difference(a in any_tree(), b in any_tree(), shared in any_tree()) {
        let mut blocks = Blocks::new();
        let merge = |own: &Tree| {
            // Something in common, below a directory that the generator cannot make.
            let mut tree = own.clone();
            tree.extend(shared.iter().map(|(path, entry)| (self::path("shared").join_path(path).unwrap(), entry.clone())));
            tree
        };
        let (a, b) = (merge(&a), merge(&b));
        let (root_a, root_b) = (build(&a, &mut blocks).root, build(&b, &mut blocks).root);
        let get = |hash: &BlockHash| blocks.get(hash).cloned();
        prop_assert_eq!(collect_diff(root_a, root_b, &get), naive_diff(&spelled_out(&a), &spelled_out(&b)));
    }

    #[test]
    fn decoding_any_bytes_gives_an_error_or_the_one_node_of_these_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut framed = vec![1, bytes.first().copied().unwrap_or(0) & 1];
        framed.extend(&bytes);
        for candidate in [bytes, framed] {
            if let Ok(node) = decode(&candidate) {
                prop_assert_eq!(node.encode(), candidate);
            }
        }
    }

    #[test]
    fn decoding_a_damaged_block_never_panics(tree in any_tree(), at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut blocks = Blocks::new();
        build(&tree, &mut blocks);
        for block in blocks.values() {
            let mut damaged = block.to_vec();
            let at = at.index(damaged.len());
            damaged[at] = value;
            if let Ok(node) = decode(&damaged) {
                prop_assert_eq!(node.encode(), damaged);
            }
        }
    }
}

fn large_directory(count: usize) -> Tree {
    (0..count).map(|number| (path(&format!("d/file-{number:07}")), file(number as u64))).collect()
}

#[test]
fn a_directory_of_a_hundred_thousand_files_is_many_small_blocks() {
    let mut blocks = Blocks::new();
    let tree = large_directory(100_000);
    let built = build(&tree, &mut blocks);
    assert!(blocks.len() > 50, "{} blocks", blocks.len());
    assert_eq!(built.totals.files, 100_000);
    assert_eq!(read(built.root, &blocks).len(), 100_001);
    let opened = Cell::new(0);
    let get = |hash: &BlockHash| {
        opened.set(opened.get() + 1);
        blocks.get(hash).cloned()
    };
    let listed = list(built.root, &path("d"), Some("file-0050000"), 3, &get).unwrap();
    let names: Vec<_> = listed.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["file-0050001", "file-0050002", "file-0050003"]);
    assert!(opened.get() <= 7, "{} blocks opened", opened.get());
}

#[test]
fn one_more_file_changes_few_blocks_and_is_found_by_opening_few() {
    let mut blocks = Blocks::new();
    let mut tree = large_directory(100_000);
    let before = build(&tree, &mut blocks).root;
    let count = blocks.len();
    tree.insert(path("d/file-0050000-new"), file(7));
    let after = build(&tree, &mut blocks).root;
    assert!(blocks.len() - count <= 5, "{} new blocks", blocks.len() - count);
    let opened = Cell::new(0);
    let get = |hash: &BlockHash| {
        opened.set(opened.get() + 1);
        blocks.get(hash).cloned()
    };
    let expected = Difference { path: path("d/file-0050000-new"), change: Change::Added(file(7)) };
    assert_eq!(collect_diff(before, after, &get), [expected]);
    assert!(opened.get() <= 16, "{} blocks opened", opened.get());
}

#[test]
fn an_empty_tree_has_a_root_and_nothing_in_it() {
    let mut blocks = Blocks::new();
    let built = build(&Tree::new(), &mut blocks);
    assert_eq!(built.totals, Totals::default());
    assert_eq!(read(built.root, &blocks), Tree::new());
}

#[test]
fn entries_out_of_order_or_below_a_file_are_refused() {
    let mut builder = TreeBuilder::new(|_, _| Ok::<(), Infallible>(()));
    builder.push(&path("b"), file(1)).unwrap();
    assert_eq!(builder.push(&path("a"), file(1)), Err(BuildError::Order { path: path("a") }));
    assert_eq!(builder.push(&path("b"), file(1)), Err(BuildError::Order { path: path("b") }));
    assert_eq!(builder.push(&path("b/b"), file(1)), Err(BuildError::NotADirectory { path: path("b/b") }));
    builder.push(&path("c/x"), file(1)).unwrap();
    // A directory that is still open may be named late.
    builder.push(&path("c"), Entry::Directory).unwrap();
}

#[test]
fn path_order_is_that_of_a_walk_and_of_the_sort_key() {
    let mut paths: Vec<_> = ["a b", "a", "a/c", "a-b", "a!", "a/b/c", "ab"].map(path).into();
    paths.sort();
    let sorted: Vec<_> = paths.iter().map(RelativePath::as_str).collect();
    assert_eq!(sorted, ["a", "a/b/c", "a/c", "a b", "a!", "a-b", "ab"]);
    let mut by_key = paths.clone();
    by_key.sort_by_key(RelativePath::sort_key);
    assert_eq!(by_key, paths);
}

#[test]
fn bad_paths_are_refused_naming_the_part() {
    let long = "n".repeat(256);
    let deep = vec!["d"; 65].join("/");
    let cases: [(&str, &str); 9] = [
        ("", "path is empty; a relative path such as `dir/file` is needed"),
        ("/etc", "path \"/etc\" is absolute; it must be relative, without a leading `/`"),
        ("a/../b", "path \"a/../b\" has the component \"..\"; `.` and `..` are not allowed"),
        ("./a", "path \"./a\" has the component \".\"; `.` and `..` are not allowed"),
        ("a//b", "path \"a//b\" has an empty component; write one `/` between names and none at the end"),
        ("a/", "path \"a/\" has an empty component; write one `/` between names and none at the end"),
        ("a/b\0c", "path component \"b\\0c\" holds a NUL byte"),
        (&long, "path component \"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\"… is 256 bytes long; at most 255 are allowed"),
        (&deep, "path \"d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/\"… has 65 components; at most 64 are allowed"),
    ];
    for (text, message) in cases {
        assert_eq!(RelativePath::parse(text).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_root_is_its_hex_text_in_json() {
    let root = Root::of(b"x");
    let json = serde_json::to_string(&root).unwrap();
    assert_eq!(json, format!("\"{root}\""));
    assert_eq!(serde_json::from_str::<Root>(&json).unwrap(), root);
    assert_eq!("xyz".parse::<Root>(), Err(HashError::Length { what: "manifest root", found: 3 }));
}

#[test]
fn a_missing_block_and_a_cycle_are_errors() {
    let mut blocks = Blocks::new();
    let root = build(&large_directory(10), &mut blocks).root;
    assert_eq!(walk(root, |_: &BlockHash| None).next(), Some(Err(ReadError::Missing { block: root.block() })));
    // A store that answers every question with the same directory.
    let page = blocks[&root.block()].clone();
    let last = walk(root, |_: &BlockHash| Some(page.clone())).last();
    assert!(matches!(last, Some(Err(ReadError::Path(PathError::TooDeep { .. })))), "{last:?}");
    assert!(matches!(decode(&page).unwrap(), Node::Page(_)));
}
