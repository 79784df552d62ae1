//! Which inode is where, for as long as the kernel remembers it.
//!
//! An inode keeps its number while it is known, whatever it is renamed to; a file that takes the place of one that is
//! still open is another inode, whoever put it there, so that the kernel never mixes their pages.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use fluvial_model::manifest::{PathError, RelativePath};
use nix::libc;

use crate::write::home::{Attr, Kind, OpenFile, errno};

/// The root.
pub const ROOT: u64 = 1;
/// Numbers that are given when the one that the home has is taken: above those that file systems give.
const OWN_NUMBERS: u64 = 1 << 63;

/// An inode that the kernel knows.
struct Node {
    parent: u64,
    name: Arc<str>,
    kind: Kind,
    identity: u64,
    /// How often the kernel was told of it.
    lookups: u64,
    /// Nothing leads to it any more.
    gone: bool,
    /// Who has it open.
    handles: Vec<(u64, Arc<dyn OpenFile>)>,
}

/// All of them.
pub struct Nodes {
    by_number: HashMap<u64, Node>,
    by_place: HashMap<(u64, Arc<str>), u64>,
    next: u64,
}

impl Default for Nodes {
    fn default() -> Self {
        Self { by_number: HashMap::new(), by_place: HashMap::new(), next: OWN_NUMBERS }
    }
}

/// What a path error is to a program.
#[must_use]
pub fn bad_path(error: &PathError) -> io::Error {
    match error {
        PathError::TooLong { .. } | PathError::TooDeep { .. } | PathError::ComponentTooLong { .. } => {
            errno(libc::ENAMETOOLONG)
        }
        _ => errno(libc::EINVAL),
    }
}

impl Nodes {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_number.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    /// Where an inode is.
    ///
    /// # Errors
    /// `ESTALE` if it is nowhere.
    pub fn path(&self, number: u64) -> io::Result<RelativePath> {
        let mut names: Vec<&str> = Vec::new();
        let mut at = number;
        while at != ROOT {
            let node = self.by_number.get(&at).filter(|node| !node.gone).ok_or_else(|| errno(libc::ESTALE))?;
            names.push(&node.name);
            at = node.parent;
        }
        if names.is_empty() {
            return Ok(RelativePath::root());
        }
        names.reverse();
        RelativePath::parse(&names.join("/")).map_err(|error| bad_path(&error))
    }

    /// Whether nothing leads to an inode.
    #[must_use]
    pub fn is_gone(&self, number: u64) -> bool {
        self.by_number.get(&number).is_some_and(|node| node.gone)
    }

    /// What an inode is.
    #[must_use]
    pub fn kind(&self, number: u64) -> Option<Kind> {
        if number == ROOT { Some(Kind::Directory) } else { self.by_number.get(&number).map(|node| node.kind) }
    }

    /// The number that a name has, or would have.
    #[must_use]
    pub fn shown(&self, parent: u64, name: &str, number: u64) -> u64 {
        self.by_place.get(&(parent, Arc::from(name))).copied().unwrap_or(number)
    }

    /// The inode of a name that the home was just asked for. The kernel is told of it.
    pub fn enter(&mut self, parent: u64, name: &str, attr: &Attr) -> u64 {
        let place = (parent, Arc::<str>::from(name));
        if let Some(number) = self.by_place.get(&place).copied()
            && let Some(node) = self.by_number.get_mut(&number)
        {
            let other = node.kind != attr.kind || (node.identity != attr.identity && !node.handles.is_empty());
            if !other {
                node.identity = attr.identity;
                node.lookups += 1;
                return number;
            }
            // Somebody else put another one in its place.
            node.gone = true;
        }
        let taken = |number: u64| number <= ROOT || self.by_number.contains_key(&number);
        let mut number = attr.number;
        while taken(number) {
            number = self.next;
            self.next += 1;
        }
        let node = Node {
            parent,
            name: place.1.clone(),
            kind: attr.kind,
            identity: attr.identity,
            lookups: 1,
            gone: false,
            handles: Vec::new(),
        };
        self.by_number.insert(number, node);
        self.by_place.insert(place, number);
        number
    }

    /// The kernel has forgotten an inode so many times.
    pub fn forget(&mut self, number: u64, lookups: u64) {
        if let Some(node) = self.by_number.get_mut(&number) {
            node.lookups = node.lookups.saturating_sub(lookups);
        }
        self.drop_if_unknown(number);
    }

    fn drop_if_unknown(&mut self, number: u64) {
        let Some(node) = self.by_number.get(&number).filter(|node| node.lookups == 0 && node.handles.is_empty()) else {
            return;
        };
        let place = (node.parent, node.name.clone());
        if self.by_place.get(&place) == Some(&number) {
            self.by_place.remove(&place);
        }
        self.by_number.remove(&number);
    }

    /// A name was removed.
    pub fn removed(&mut self, parent: u64, name: &str) {
        if let Some(number) = self.by_place.remove(&(parent, Arc::from(name)))
            && let Some(node) = self.by_number.get_mut(&number)
        {
            node.gone = true;
        }
    }

    /// An entry was renamed, in place of whatever was there.
    pub fn renamed(&mut self, (parent, name): (u64, &str), (new_parent, new_name): (u64, &str)) {
        let (from, to) = ((parent, Arc::<str>::from(name)), (new_parent, Arc::<str>::from(new_name)));
        if from == to {
            return;
        }
        self.removed(new_parent, new_name);
        if let Some(number) = self.by_place.remove(&from)
            && let Some(node) = self.by_number.get_mut(&number)
        {
            (node.parent, node.name) = (new_parent, to.1.clone());
            self.by_place.insert(to, number);
        }
    }

    /// An inode was opened.
    pub fn opened(&mut self, number: u64, handle: u64, file: Arc<dyn OpenFile>, identity: Option<u64>) {
        if let Some(node) = self.by_number.get_mut(&number) {
            node.identity = identity.unwrap_or(node.identity);
            node.handles.push((handle, file));
        }
    }

    /// A handle of an inode.
    #[must_use]
    pub fn handle(&self, number: u64, handle: u64) -> Option<Arc<dyn OpenFile>> {
        let node = self.by_number.get(&number)?;
        node.handles.iter().find(|(known, _)| *known == handle).map(|(_, file)| file.clone())
    }

    /// Any handle of an inode, the latest first.
    #[must_use]
    pub fn any_handle(&self, number: u64) -> Option<Arc<dyn OpenFile>> {
        self.by_number.get(&number)?.handles.last().map(|(_, file)| file.clone())
    }

    /// A handle was closed.
    pub fn closed(&mut self, number: u64, handle: u64) -> Option<Arc<dyn OpenFile>> {
        let node = self.by_number.get_mut(&number)?;
        let at = node.handles.iter().position(|(known, _)| *known == handle)?;
        let (_, file) = node.handles.swap_remove(at);
        self.drop_if_unknown(number);
        Some(file)
    }

    /// Names that nobody has open, as many as are asked for: what the kernel may be asked to forget.
    #[must_use]
    pub fn idle(&self, most: usize) -> Vec<(u64, Arc<str>)> {
        let idle = self.by_number.values();
        let idle = idle.filter(|node| node.handles.is_empty() && !node.gone && node.kind != Kind::Directory);
        idle.take(most).map(|node| (node.parent, node.name.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn attr(number: u64, kind: Kind) -> Attr {
        let now = SystemTime::UNIX_EPOCH;
        Attr {
            number,
            identity: number,
            kind,
            size: 0,
            blocks: 0,
            mode: 0o644,
            links: 1,
            owner: (0, 0),
            accessed: now,
            modified: now,
            changed: now,
        }
    }

    #[test]
    fn what_is_renamed_takes_what_is_below_it_along() {
        let mut nodes = Nodes::default();
        let directory = nodes.enter(ROOT, "a", &attr(5, Kind::Directory));
        let file = nodes.enter(directory, "f", &attr(6, Kind::File));
        nodes.renamed((ROOT, "a"), (ROOT, "b"));
        assert_eq!(nodes.path(file).unwrap().as_str(), "b/f");
        assert_eq!(nodes.enter(ROOT, "a", &attr(5, Kind::Directory)), OWN_NUMBERS, "its number is taken");
    }

    #[test]
    fn what_was_replaced_or_removed_is_nowhere_and_its_number_is_not_given_again() {
        let mut nodes = Nodes::default();
        let (one, two) = (nodes.enter(ROOT, "1", &attr(5, Kind::File)), nodes.enter(ROOT, "2", &attr(6, Kind::File)));
        nodes.renamed((ROOT, "1"), (ROOT, "2"));
        assert_eq!(nodes.path(one).unwrap().as_str(), "2");
        assert_eq!(nodes.path(two).unwrap_err().raw_os_error(), Some(libc::ESTALE));
        nodes.removed(ROOT, "2");
        assert!(nodes.is_gone(one));
        assert!(nodes.enter(ROOT, "3", &attr(5, Kind::File)) >= OWN_NUMBERS);
        nodes.forget(one, 1);
        assert_eq!(nodes.enter(ROOT, "4", &attr(5, Kind::File)), 5);
    }

    #[test]
    fn what_the_kernel_forgets_is_forgotten() {
        let mut nodes = Nodes::default();
        let one = nodes.enter(ROOT, "1", &attr(5, Kind::File));
        assert_eq!(nodes.enter(ROOT, "1", &attr(5, Kind::File)), one);
        nodes.forget(one, 1);
        assert_eq!(nodes.len(), 1);
        nodes.forget(one, 1);
        assert!(nodes.is_empty());
    }
}
