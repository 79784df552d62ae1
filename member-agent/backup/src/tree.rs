//! Trees of a snapshot, in path order, and what their nodes are in a manifest.

use std::sync::Arc;

use fluvial_model::manifest::{Digest, Entry, File, RelativePath};
use fluvial_transfer::TransferError;
use fluvial_transfer::place::check_link;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{IndexedFullStatus, TreeId, jiff};

use crate::BackupError;

/// A repository with its index in memory: some 60 bytes for each blob, which has 1 MiB on average.
pub(crate) type Indexed = rustic_core::Repository<IndexedFullStatus>;

/// Go's bits for what Unix keeps above the permissions, as restic writes modes.
const SPECIAL: [(u32, u32); 3] = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];

/// A mode as restic writes it.
pub(crate) fn mode_to_restic(mode: u32) -> u32 {
    SPECIAL.iter().fold(mode & 0o777, |all, (unix, go)| if mode & unix == 0 { all } else { all | go })
}

fn mode_from_restic(mode: u32) -> u32 {
    SPECIAL.iter().fold(mode & 0o777, |all, (unix, go)| if mode & go == 0 { all } else { all | unix })
}

/// Nanoseconds since the epoch as the library's time.
pub(crate) fn time_to_restic(nanoseconds: i64) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_nanosecond(nanoseconds.into()).ok()
}

fn time_from_restic(time: Option<jiff::Timestamp>) -> i64 {
    let nanoseconds = time.map_or(0, jiff::Timestamp::as_nanosecond);
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}

/// Size and modification time of a node.
pub(crate) fn size_and_time(meta: &Metadata) -> (u64, i64) {
    (meta.size, time_from_restic(meta.mtime))
}

/// What a node is in a manifest.
///
/// # Errors
/// For what a dataset cannot hold.
pub(crate) fn entry_of(
    node: &Node,
    path: &RelativePath,
    place: &str,
    digest: Option<Digest>,
) -> Result<Entry, TransferError> {
    let refuse = |why: &str| TransferError::BadEntry {
        place: place.to_owned(),
        name: path.as_str().escape_debug().to_string(),
        why: why.to_owned(),
    };
    match &node.node_type {
        NodeType::File => {
            let (size, mtime_ns) = size_and_time(&node.meta);
            let mode = mode_from_restic(node.meta.mode.unwrap_or(0o644));
            Ok(Entry::File(File { size, mtime_ns, mode, digest }))
        }
        NodeType::Dir => Ok(Entry::Directory),
        NodeType::Symlink { .. } => {
            let target =
                node.node_type.to_link().to_str().ok_or_else(|| refuse("the target of the link is not UTF-8"))?;
            check_link(path, target).map_err(|why| refuse(&why))?;
            Ok(Entry::Symlink { target: target.to_owned() })
        }
        NodeType::Fifo => Err(refuse("it is a fifo")),
        NodeType::Socket => Err(refuse("it is a socket")),
        NodeType::Dev { .. } | NodeType::Chardev { .. } => Err(refuse("it is a device")),
    }
}

/// Which part of a tree is meant: everything, if no path is given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection(pub(crate) Vec<RelativePath>);

impl Selection {
    /// Whether a path is chosen, or lies below one that is.
    pub(crate) fn has(&self, path: &RelativePath) -> bool {
        self.0.is_empty() || self.0.iter().any(|chosen| path.strip_prefix(chosen).is_some())
    }

    /// Whether something below a path may be chosen.
    fn leads_through(&self, path: &RelativePath) -> bool {
        self.has(path) || self.0.iter().any(|chosen| chosen.strip_prefix(path).is_some())
    }
}

/// Every chosen node below a tree, directories before what is in them. One directory of each level is in memory.
pub(crate) struct Walk {
    repository: Arc<Indexed>,
    selection: Selection,
    open: Vec<(RelativePath, std::vec::IntoIter<Node>)>,
    place: String,
    ended: bool,
}

impl Walk {
    pub(crate) fn new(
        repository: Arc<Indexed>,
        tree: TreeId,
        selection: Selection,
        place: &str,
    ) -> Result<Self, BackupError> {
        let mut walk = Self { repository, selection, open: Vec::new(), place: place.to_owned(), ended: false };
        walk.enter(RelativePath::root(), tree)?;
        Ok(walk)
    }

    fn enter(&mut self, path: RelativePath, tree: TreeId) -> Result<(), BackupError> {
        let tree = self.repository.get_tree(&tree);
        let tree = tree.map_err(|error| BackupError::library("read tree", &self.place, &error))?;
        self.open.push((path, tree.nodes.into_iter()));
        Ok(())
    }

    fn step(&mut self) -> Result<Option<(RelativePath, Node)>, BackupError> {
        loop {
            let Some((directory, nodes)) = self.open.last_mut() else { return Ok(None) };
            let Some(node) = nodes.next() else {
                self.open.pop();
                continue;
            };
            let name = node.name().into_owned();
            let joined = match name.to_str() {
                Some(name) => directory.join(name).map_err(|error| error.to_string()),
                None => Err("its name is not UTF-8".to_owned()),
            };
            let path = match joined {
                Ok(path) => path,
                Err(why) if self.selection.has(directory) => {
                    let name = format!("{directory}/{}", name.to_string_lossy().escape_debug());
                    return Err(TransferError::BadEntry { place: self.place.clone(), name, why }.into());
                }
                Err(_) => continue,
            };
            if !self.selection.leads_through(&path) {
                continue;
            }
            if let Some(tree) = node.subtree {
                self.enter(path.clone(), tree)?;
            }
            if self.selection.has(&path) {
                return Ok(Some((path, node)));
            }
        }
    }
}

impl Iterator for Walk {
    type Item = Result<(RelativePath, Node), BackupError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let step = self.step();
        self.ended = !matches!(step, Ok(Some(_)));
        step.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_times_come_back() {
        for mode in [0, 0o644, 0o7777, 0o4755, 0o1777] {
            assert_eq!(mode_from_restic(mode_to_restic(mode)), mode);
        }
        assert_eq!(mode_to_restic(0o4755), 0o755 | 1 << 23);
        for time in [0, -1, 1_700_000_000_123_456_789] {
            assert_eq!(time_from_restic(time_to_restic(time)), time);
        }
    }

    #[test]
    fn a_selection_leads_to_what_is_chosen_and_no_further() {
        let path = |text: &str| RelativePath::parse(text).unwrap();
        let selection = Selection(vec![path("a/b")]);
        assert!(selection.leads_through(&path("a")) && !selection.has(&path("a")));
        assert!(selection.has(&path("a/b")) && selection.has(&path("a/b/c")));
        assert!(!selection.leads_through(&path("a/bc")) && !selection.leads_through(&path("b")));
        assert!(Selection::default().has(&path("b")));
    }
}
