//! Whether there is an order of the operations, each somewhere between its call and its answer, in which one register
//! gives these answers.
//!
//! The search of Wing and Gong (1993) with Lowe's memory of what was tried (2017): calls and answers lie in a list by time;
//! a call before the first answer may be next; when none of them fits, the attempt ends. Which operations have had a turn,
//! and the value, are remembered, so that no situation is searched twice.
//!
//! What keeps it short: an operation that fits and leaves the value as it is has its turn at once, for it can only be in the
//! way later; the others are tried in the order of their revisions, those that nobody saw last, for most of them never
//! happened. That is an order to try, and proves nothing.

use std::collections::{HashMap, HashSet};

use super::{Kind, Operation};

/// Why there is no such order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impossible {
    /// How many operations fit at most.
    pub fitting: usize,
    /// The operation that could not be answered as it was, whatever came before.
    pub stuck: Operation,
}

/// The list: node 0 is before the first; each operation has a node for its call, and one for its answer if it has one.
struct Events {
    next: Vec<usize>,
    before: Vec<usize>,
    /// The operation of a node, and whether it is the call.
    of: Vec<(usize, bool)>,
    /// The nodes of each operation.
    nodes: Vec<[usize; 2]>,
    /// In which order operations are tried.
    order: Vec<u64>,
}

const END: usize = usize::MAX;

impl Events {
    fn new(operations: &[Operation]) -> Self {
        let mut times = Vec::with_capacity(operations.len() * 2);
        for (number, operation) in operations.iter().enumerate() {
            // At the same moment a call is before an answer: the two may overlap.
            times.push((operation.called, false, number));
            times.extend(operation.answered.map(|answered| (answered, true, number)));
        }
        times.sort_unstable();
        let mut events = Self {
            next: vec![END],
            before: vec![END],
            of: vec![(END, false)],
            nodes: vec![[END; 2]; operations.len()],
            order: order(operations),
        };
        for (_, is_answer, number) in times {
            let node = events.of.len();
            events.next[node - 1] = node;
            events.next.push(END);
            events.before.push(node - 1);
            events.of.push((number, !is_answer));
            events.nodes[number][usize::from(is_answer)] = node;
        }
        events
    }

    /// What may be next when the register has this value, in the order to try, each with the value after it; and who is
    /// answered first of those that had no turn.
    fn candidates(&self, operations: &[Operation], value: u64) -> (Vec<(usize, u64)>, Option<usize>) {
        let (mut fitting, mut look, mut at) = (Vec::new(), None, self.next[0]);
        while at != END {
            let (number, is_call) = self.of[at];
            if !is_call {
                break;
            }
            let kind = operations[number].kind;
            match step(value, kind) {
                Some(_) if is_look(kind) => look = look.or(Some(number)),
                Some(after) => fitting.push((number, after)),
                None => {}
            }
            at = self.next[at];
        }
        if let Some(look) = look {
            fitting = vec![(look, value)];
        }
        fitting.sort_by_key(|(number, _)| self.order[*number]);
        (fitting, (at != END).then(|| self.of[at].0))
    }

    /// Takes an operation out of the list.
    fn take(&mut self, number: usize) {
        self.nodes[number].into_iter().filter(|node| *node != END).for_each(|node| self.take_out(node));
    }

    /// Puts the one back that was taken last.
    fn give_back(&mut self, number: usize) {
        self.nodes[number].into_iter().rev().filter(|node| *node != END).for_each(|node| self.put_back(node));
    }

    fn take_out(&mut self, node: usize) {
        let (before, next) = (self.before[node], self.next[node]);
        self.next[before] = next;
        if next != END {
            self.before[next] = before;
        }
    }

    /// What was taken out last is put back first.
    fn put_back(&mut self, node: usize) {
        let (before, next) = (self.before[node], self.next[node]);
        self.next[before] = node;
        if next != END {
            self.before[next] = node;
        }
    }
}

/// The value after an operation; `None` if a register with this value does not answer so.
fn step(value: u64, kind: Kind) -> Option<u64> {
    match kind {
        Kind::Write { value } => Some(value),
        Kind::Read { value: read } => (read == value).then_some(value),
        Kind::Swap { expected, value: new, done } => {
            let does = expected == value;
            (done.is_none_or(|done| done == does)).then_some(if does { new } else { value })
        }
    }
}

/// Whether an operation can only have told what the value was.
fn is_look(kind: Kind) -> bool {
    matches!(kind, Kind::Read { .. } | Kind::Swap { done: Some(false), .. })
}

/// The order to try: the revision, whoever told it; what nobody saw comes last.
fn order(operations: &[Operation]) -> Vec<u64> {
    let value = |kind| match kind {
        Kind::Read { value } | Kind::Write { value } | Kind::Swap { value, .. } => value,
    };
    let told = operations.iter().filter_map(|one| Some((value(one.kind), one.revision?)));
    let known: HashMap<u64, u64> = told.collect();
    operations.iter().map(|one| known.get(&value(one.kind)).copied().unwrap_or(u64::MAX)).collect()
}

/// A moment of the search.
struct Moment {
    /// What may be next, with the value after it, and how many of them were tried.
    candidates: Vec<(usize, u64)>,
    tried: usize,
    /// Who is answered first: he must have his turn now.
    first: Option<usize>,
    /// Whose turn led here.
    came_by: usize,
}

/// Looks for an order. `initial` is the value before all of them.
///
/// # Errors
/// With the operation at which every order ends.
pub fn check(operations: &[Operation], initial: u64) -> Result<(), Impossible> {
    let mut events = Events::new(operations);
    let mut had_turn = vec![0_u64; operations.len().div_ceil(64)];
    let mut left = operations.iter().filter(|one| one.answered.is_some()).count();
    let all = left;
    let mut tried = HashSet::new();
    let mut worst: Option<Impossible> = None;
    let moment = |events: &Events, value, came_by| {
        let (candidates, first) = events.candidates(operations, value);
        Moment { candidates, tried: 0, first, came_by }
    };
    let mut moments = vec![moment(&events, initial, END)];
    while let Some(now) = moments.last_mut()
        && left > 0
    {
        if let Some((number, after)) = now.candidates.get(now.tried).copied() {
            now.tried += 1;
            had_turn[number / 64] ^= 1 << (number % 64);
            if tried.insert((had_turn.clone(), after)) {
                events.take(number);
                left -= usize::from(operations[number].answered.is_some());
                moments.push(moment(&events, after, number));
            } else {
                had_turn[number / 64] ^= 1 << (number % 64);
            }
            continue;
        }
        let fitting = all - left;
        if let Some(stuck) = now.first.filter(|_| worst.as_ref().is_none_or(|worst| worst.fitting < fitting)) {
            worst = Some(Impossible { fitting, stuck: operations[stuck] });
        }
        let number = now.came_by;
        moments.pop();
        if number != END {
            events.give_back(number);
            left += usize::from(operations[number].answered.is_some());
            had_turn[number / 64] ^= 1 << (number % 64);
        }
    }
    match worst {
        Some(worst) if left > 0 => Err(worst),
        _ => Ok(()),
    }
}
