//! ② Which watchers a commit concerns: those are woken, the others sleep on.
//!
//! A hub has ten thousand sessions, each with a watch of its own, and a commit mostly concerns one of them. Watchers are
//! found by the folders of a changed key, so that a commit costs what it changes, however many watch.
//!
//! Invariant: a watcher is marked before the revision that concerns it is announced, and woken after. Who first reads the
//! newest revision and then finds no mark beyond its own place has therefore missed nothing up to that revision.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fluvial_model::store::{Event, Revision};
use tokio::sync::Notify;

/// What one watcher waits for.
#[derive(Debug)]
pub struct Mark {
    prefix: String,
    /// The newest revision with an event for this watcher.
    due: AtomicU64,
    wake: Notify,
}

impl Mark {
    /// The newest revision with an event under the prefix, as far as it was published.
    pub fn due(&self) -> Revision {
        Revision(self.due.load(Ordering::Acquire))
    }

    /// Returns when there may be something new. Dropping the future loses nothing.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// True if this is the first word of that revision.
    fn raise(&self, revision: Revision) -> bool {
        self.due.fetch_max(revision.0, Ordering::AcqRel) < revision.0
    }
}

#[derive(Debug, Default)]
struct Table {
    /// By prefixes that end at a slash, which almost all do.
    folders: HashMap<String, Vec<Arc<Mark>>>,
    others: Vec<Arc<Mark>>,
}

/// The watchers of one replica.
#[derive(Debug, Default)]
pub struct Watchers {
    table: Mutex<Table>,
}

impl Watchers {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up a watcher. The caller raises it to what happened before.
    pub fn enter(&self, prefix: &str) -> Arc<Mark> {
        let mark = Arc::new(Mark { prefix: prefix.to_owned(), due: AtomicU64::new(0), wake: Notify::new() });
        let mut table = self.table();
        if prefix.ends_with('/') {
            table.folders.entry(prefix.to_owned()).or_default().push(mark.clone());
        } else {
            table.others.push(mark.clone());
        }
        mark
    }

    /// Lets one go.
    pub fn leave(&self, mark: &Arc<Mark>) {
        let mut table = self.table();
        let remove = |marks: &mut Vec<Arc<Mark>>| {
            if let Some(at) = marks.iter().position(|other| Arc::ptr_eq(other, mark)) {
                marks.swap_remove(at);
            }
        };
        match table.folders.get_mut(&mark.prefix) {
            Some(marks) => {
                remove(marks);
                if marks.is_empty() {
                    table.folders.remove(&mark.prefix);
                }
            }
            None => remove(&mut table.others),
        }
    }

    /// Marks those whom the events concern; they are to be woken once the events can be read.
    pub fn mark(&self, events: &[Arc<Event>]) -> Vec<Arc<Mark>> {
        let table = self.table();
        let mut marked = Vec::new();
        let mut raise = |mark: &Arc<Mark>, revision| {
            if mark.raise(revision) {
                marked.push(mark.clone());
            }
        };
        for event in events {
            for (slash, _) in event.key.match_indices('/') {
                for mark in table.folders.get(&event.key[..=slash]).into_iter().flatten() {
                    raise(mark, event.revision);
                }
            }
            for mark in table.others.iter().filter(|mark| event.key.starts_with(&mark.prefix)) {
                raise(mark, event.revision);
            }
        }
        marked
    }

    /// Marks everybody, as after a snapshot took the place of events.
    pub fn mark_all(&self, revision: Revision) -> Vec<Arc<Mark>> {
        let table = self.table();
        let all = table.folders.values().flatten().chain(&table.others);
        all.filter(|mark| mark.raise(revision)).cloned().collect()
    }

    /// Marks one, before it first looks.
    pub fn begin(mark: &Mark, revision: Revision) {
        mark.raise(revision);
    }

    /// Wakes those.
    pub fn wake(marked: &[Arc<Mark>]) {
        for mark in marked {
            mark.wake.notify_one();
        }
    }

    #[cfg(test)]
    fn count(&self) -> usize {
        let table = self.table();
        table.folders.values().map(Vec::len).sum::<usize>() + table.others.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(key: &str, revision: u64) -> Arc<Event> {
        Arc::new(Event { revision: Revision(revision), key: key.to_owned(), value: None, previous: None })
    }

    #[test]
    fn a_change_marks_those_above_it_and_nobody_else() {
        let watchers = Watchers::default();
        let [all, folder, sibling, name, longer] =
            ["/", "/a/b/", "/a/bc/", "/a/b", "/a/b/c/d/"].map(|prefix| watchers.enter(prefix));
        let marked = watchers.mark(&[event("/a/b/c", 7), event("/a/b/d", 7)]);
        assert_eq!(marked.len(), 3, "each once for a revision");
        assert_eq!([&all, &folder, &name].map(|mark| mark.due()), [Revision(7); 3]);
        assert_eq!([&sibling, &longer].map(|mark| mark.due()), [Revision(0); 2]);
        watchers.mark(&[event("/a/b/c", 5)]);
        assert_eq!(folder.due(), Revision(7), "never back");
        for mark in [all, folder, sibling, name, longer] {
            watchers.leave(&mark);
        }
        assert_eq!(watchers.count(), 0);
    }

    #[test]
    fn two_watchers_of_one_prefix_leave_by_themselves() {
        let watchers = Watchers::default();
        let (one, other) = (watchers.enter("/a/"), watchers.enter("/a/"));
        watchers.leave(&one);
        assert_eq!(watchers.mark(&[event("/a/x", 1)]).len(), 1);
        assert_eq!((one.due(), other.due()), (Revision(0), Revision(1)));
    }
}
