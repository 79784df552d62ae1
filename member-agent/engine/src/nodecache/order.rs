//! In which order a dataset's files were first read from a cold cache, and what of them: a reader who begins again is
//! likely to go the same way, in this version and in the next.
//!
//! Pure: notes in, entries out. At most [`MOST_FILES`] files with [`MOST_RANGES`] ranges each, some 2 MiB a dataset; later
//! files are not noted, and of a file that is read in more pieces all is taken.

use std::collections::HashMap;

use super::PART_BYTES;

/// Files of one order.
const MOST_FILES: usize = 8192;
/// Ranges of one file.
const MOST_RANGES: usize = 16;

/// One file, and which of its parts were read: half-open ranges of part numbers, in the order in which they were read first.
/// Without ranges it is all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    pub path: String,
    pub ranges: Vec<(u32, u32)>,
}

/// The order of one dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Order {
    accesses: Vec<Access>,
    by_path: HashMap<String, usize>,
    /// The files before this one are not to be fetched again beforehand.
    reached: usize,
    changed: bool,
}

impl Order {
    /// An order as it was written; what cannot be read is nothing.
    pub(super) fn read(text: &str) -> Self {
        let entries: Vec<(String, Vec<(u32, u32)>)> = serde_json::from_str(text).unwrap_or_default();
        let mut order = Self::default();
        for (path, ranges) in entries.into_iter().take(MOST_FILES) {
            order.by_path.insert(path.clone(), order.accesses.len());
            order.accesses.push(Access { path, ranges });
        }
        order
    }

    /// The order as text, if it has changed since the last time.
    pub(super) fn write(&mut self) -> Option<String> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let of = |access: &Access| (access.path.clone(), access.ranges.clone());
        serde_json::to_string(&self.accesses.iter().map(of).collect::<Vec<_>>()).ok()
    }

    /// Goes over to a version: leaves out the files that are not in it.
    pub(super) fn keep(&mut self, stayed: impl Fn(&str) -> bool) {
        let before = self.accesses.len();
        self.accesses.retain(|access| stayed(&access.path));
        if self.accesses.len() < before {
            self.changed = true;
            self.reached = 0;
            self.by_path = self.accesses.iter().enumerate().map(|(at, access)| (access.path.clone(), at)).collect();
        }
    }

    /// Notes that a range of a file of `size` bytes was read from a cache that did not have it.
    pub(super) fn note(&mut self, path: &str, offset: u64, length: u64, size: u64) {
        let part = |at: u64| u32::try_from(at).unwrap_or(u32::MAX);
        let (from, to) = (part(offset / PART_BYTES), part((offset + length).min(size).div_ceil(PART_BYTES)));
        let whole = part(size.div_ceil(PART_BYTES));
        if from >= to {
            return;
        }
        let Some(at) = self.by_path.get(path).copied() else {
            if self.accesses.len() < MOST_FILES {
                let ranges = if (from, to) == (0, whole) { Vec::new() } else { vec![(from, to)] };
                self.by_path.insert(path.to_owned(), self.accesses.len());
                self.accesses.push(Access { path: path.to_owned(), ranges });
                self.changed = true;
            }
            return;
        };
        let ranges = &mut self.accesses[at].ranges;
        if ranges.is_empty() || ranges.iter().any(|(start, end)| *start <= from && to <= *end) {
            return;
        }
        self.changed = true;
        // Who reads on makes a range longer.
        match ranges.iter_mut().find(|(start, end)| *start <= from && from <= *end) {
            Some(range) => range.1 = to,
            None => ranges.push((from, to)),
        }
        if ranges.len() > MOST_RANGES || ranges.contains(&(0, whole)) {
            ranges.clear();
        }
    }

    /// What to fetch now that a file is opened: the `window` files behind it, as far as they were not asked for. A file that
    /// was `missing` though it was asked for before says that the cache was emptied since.
    pub(super) fn opened(&mut self, path: &str, missing: bool, window: usize) -> Vec<Access> {
        let Some(at) = self.by_path.get(path).copied() else { return Vec::new() };
        if missing && at < self.reached {
            self.reached = at + 1;
        }
        self.up_to(at + 1, (at + 1).saturating_add(window))
    }

    /// All of it, for who wants everything.
    pub(super) fn everything(&mut self) -> Vec<Access> {
        self.up_to(0, usize::MAX)
    }

    fn up_to(&mut self, from: usize, to: usize) -> Vec<Access> {
        let (from, to) = (self.reached.max(from), to.min(self.accesses.len()));
        if from >= to {
            return Vec::new();
        }
        self.reached = to;
        self.accesses[from..to].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn paths(accesses: &[Access]) -> Vec<&str> {
        accesses.iter().map(|access| access.path.as_str()).collect()
    }

    #[test]
    fn files_stand_in_the_order_of_their_first_read_with_what_was_read_of_them() {
        let mut order = Order::default();
        order.note("b", 0, 10, 10);
        order.note("large", 5 * MIB, MIB, 50 * MIB);
        order.note("a", 0, 10, 10);
        order.note("large", 6 * MIB, 2 * MIB, 50 * MIB);
        order.note("large", MIB, 10, 50 * MIB);
        order.note("b", 0, 10, 10);
        let text = order.write().unwrap();
        assert_eq!(text, r#"[["b",[]],["large",[[5,8],[1,2]]],["a",[]]]"#);
        assert_eq!(order.write(), None, "nothing has changed since");
        let mut again = Order::read(&text);
        assert_eq!(paths(&again.everything()), ["b", "large", "a"]);
        order.note("c", 0, 1, 1);
        order.keep(|path| path != "large");
        assert_eq!(order.write().unwrap(), r#"[["b",[]],["a",[]],["c",[]]]"#);
        assert_eq!(paths(&order.opened("b", true, 9)), ["a", "c"]);
        assert_eq!(Order::read("no JSON"), Order::default());
    }

    #[test]
    fn it_is_bounded() {
        let mut order = Order::default();
        for number in 0..MOST_RANGES as u64 + 1 {
            order.note("scattered", number * 10 * MIB, MIB, 1000 * MIB);
        }
        for number in 0..2 * MOST_FILES {
            order.note(&number.to_string(), 0, 1, 1);
        }
        let all = order.everything();
        assert_eq!(all.len(), MOST_FILES);
        assert_eq!(all[0], Access { path: "scattered".to_owned(), ranges: Vec::new() });
    }

    #[test]
    fn each_file_is_asked_for_once_unless_the_cache_was_emptied() {
        let mut order = Order::default();
        for path in ["a", "b", "c", "d", "e"] {
            order.note(path, 0, 1, 1);
        }
        assert_eq!(paths(&order.opened("a", true, 2)), ["b", "c"]);
        assert_eq!(paths(&order.opened("b", false, 2)), ["d"]);
        assert_eq!(paths(&order.opened("a", false, 2)), [""; 0]);
        assert_eq!(paths(&order.opened("a", true, 2)), ["b", "c"], "it is gone again");
        assert_eq!(paths(&order.opened("x", true, 2)), [""; 0]);
    }
}
