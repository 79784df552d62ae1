//! Which assignments and reports are of which dataset, so that planning one dataset costs what it has, and not what there
//! is of clusters.

use std::collections::{BTreeMap, BTreeSet};

use super::mirror::Named;

/// The kinds of work that a dataset's upkeep owns, as their ids begin.
const OWN_WORK: [&str; 4] = ["scan", "cache", "remove", "mount"];

/// Work by dataset: cluster and id of each piece.
#[derive(Debug, Default)]
pub(super) struct WorkIndex {
    of: BTreeMap<Named, BTreeSet<Named>>,
}

/// The dataset whose upkeep owns the work; ids begin with the kind of work and the dataset.
pub(super) fn owner(id: &str) -> Option<Named> {
    let mut parts = id.split('/');
    let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    // A dataset's work has more to its name than the dataset.
    parts.next()?;
    OWN_WORK.contains(&kind).then(|| (namespace.to_owned(), name.to_owned()))
}

impl WorkIndex {
    /// There is an assignment, or a report, of this id in this cluster.
    pub(super) fn note(&mut self, cluster: &str, id: &str) {
        if let Some(dataset) = owner(id) {
            self.of.entry(dataset).or_default().insert((cluster.to_owned(), id.to_owned()));
        }
    }

    /// There is neither any more.
    pub(super) fn forget(&mut self, cluster: &str, id: &str) {
        let Some(dataset) = owner(id) else { return };
        if let Some(work) = self.of.get_mut(&dataset) {
            work.remove(&(cluster.to_owned(), id.to_owned()));
            if work.is_empty() {
                self.of.remove(&dataset);
            }
        }
    }

    /// All of one dataset.
    pub(super) fn of(&self, dataset: &Named) -> BTreeSet<Named> {
        self.of.get(dataset).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(one: &str, other: &str) -> Named {
        (one.to_owned(), other.to_owned())
    }

    #[test]
    fn work_is_found_by_its_dataset_until_it_is_gone() {
        let mut index = WorkIndex::default();
        index.note("a", "cache/ns/d/uid");
        index.note("b", "cache/ns/d/uid");
        index.note("a", "cache/ns/d2/uid");
        index.note("a", "migrate/ns/d/uid");
        let dataset = named("ns", "d");
        assert_eq!(index.of(&dataset), BTreeSet::from([named("a", "cache/ns/d/uid"), named("b", "cache/ns/d/uid")]));
        index.forget("a", "cache/ns/d/uid");
        index.forget("b", "cache/ns/d/uid");
        assert!(index.of(&dataset).is_empty());
        assert_eq!(index.of.len(), 1, "nothing is left of it");
    }
}
