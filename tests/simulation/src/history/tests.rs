//! The judges, judged: by histories that are wrong, and by ones that a register really gave.

use proptest::prelude::*;

use super::watches::Told;
use super::*;

const INITIAL: u64 = 0;

fn at(client: usize, kind: Kind, called: u64, answered: u64) -> Operation {
    let time = Duration::from_millis;
    Operation { client, kind, called: time(called), answered: Some(time(answered)), revision: None }
}

fn open(client: usize, kind: Kind, called: u64) -> Operation {
    Operation { answered: None, ..at(client, kind, called, 0) }
}

fn write(value: u64) -> Kind {
    Kind::Write { value }
}

fn read(value: u64) -> Kind {
    Kind::Read { value }
}

fn swap(expected: u64, value: u64, done: bool) -> Kind {
    Kind::Swap { expected, value, done: Some(done) }
}

fn fits(operations: &[Operation]) -> bool {
    linear::check(operations, INITIAL).is_ok()
}

#[test]
fn a_stale_read_is_found() {
    assert!(fits(&[at(0, write(1), 0, 10), at(1, read(0), 5, 20)]), "they overlap");
    assert!(!fits(&[at(0, write(1), 0, 10), at(1, read(0), 11, 20)]));
    let stuck = linear::check(&[at(0, write(1), 0, 10), at(1, read(0), 11, 20)], INITIAL).unwrap_err();
    assert_eq!((stuck.fitting, stuck.stuck.kind), (1, read(0)));
}

#[test]
fn a_lost_write_is_found() {
    let (first, second) = (at(0, write(1), 0, 10), at(1, write(2), 20, 30));
    assert!(fits(&[first, second, at(0, read(2), 40, 50)]));
    assert!(!fits(&[first, second, at(0, read(1), 40, 50)]), "2 was acknowledged, and is gone");
}

#[test]
fn reads_that_go_back_are_found() {
    let write = at(0, write(1), 0, 100);
    assert!(fits(&[write, at(1, read(0), 10, 20), at(2, read(1), 30, 40)]));
    assert!(!fits(&[write, at(1, read(1), 10, 20), at(2, read(0), 30, 40)]), "seen, and unseen");
}

#[test]
fn two_swaps_of_one_value_are_found() {
    let (one, other) = (at(0, swap(0, 1, true), 0, 50), at(1, swap(0, 2, true), 0, 50));
    assert!(!fits(&[one, other]));
    assert!(fits(&[one, at(1, swap(0, 2, false), 0, 50)]));
    assert!(!fits(&[at(0, swap(0, 1, false), 0, 50)]), "nobody was in its way");
}

#[test]
fn what_was_never_answered_may_have_happened_at_any_time_or_not() {
    let lost = open(0, write(1), 0);
    assert!(fits(&[lost, at(1, read(0), 50, 60)]));
    assert!(fits(&[lost, at(1, read(0), 50, 60), at(1, read(1), 70, 80)]));
    assert!(!fits(&[lost, at(1, read(1), 50, 60), at(1, read(0), 70, 80)]));
    assert!(!fits(&[open(0, write(1), 20), at(1, read(1), 5, 10)]), "not before it was called");
    let maybe = open(0, Kind::Swap { expected: 0, value: 5, done: None }, 0);
    assert!(fits(&[maybe, at(1, swap(0, 6, false), 10, 20)]), "it was in the way");
}

fn revised(operation: Operation, revision: u64) -> Operation {
    Operation { revision: Some(revision), ..operation }
}

#[test]
fn revisions_that_contradict_the_clock_or_each_other_are_found() {
    let good = [
        revised(at(0, write(1), 0, 10), 5),
        revised(at(1, read(1), 11, 20), 5),
        revised(at(0, swap(1, 2, true), 21, 30), 6),
    ];
    assert_eq!(revisions::check(&good), Ok(()));
    let mut stale = good.to_vec();
    stale.push(revised(at(1, read(1), 31, 40), 5));
    assert!(revisions::check(&stale).unwrap_err().contains("later revision"));
    let mut twice = good.to_vec();
    twice.push(revised(at(1, write(3), 25, 40), 6));
    assert!(revisions::check(&twice).is_err(), "one revision, two writes");
    let mut other = good.to_vec();
    other.push(revised(at(1, read(9), 15, 25), 5));
    assert!(revisions::check(&other).unwrap_err().contains("both"), "one revision, two values");
    let mut refused = good.to_vec();
    refused.push(at(1, swap(2, 7, false), 31, 40));
    assert!(revisions::check(&refused).unwrap_err().contains("nobody was in its way"));
    refused.push(open(0, write(8), 35));
    assert_eq!(revisions::check(&refused), Ok(()), "this one may have been");
    let mut again = good.to_vec();
    again.push(revised(at(1, write(3), 31, 40), 6));
    assert!(revisions::check(&again).is_err(), "a write does not take a revision that was there");
}

#[test]
fn a_watch_that_skips_repeats_turns_round_or_makes_up_is_found() {
    let writes: Vec<_> = (1..=4).map(|n| revised(at(0, write(n), n * 10, n * 10 + 5), 100 + n)).collect();
    let told = |revision: u64| Told { revision, value: revision - 100 };
    let all = [told(101), told(102), told(103), told(104)];
    assert_eq!(watches::check(&writes, 100, &all), Ok(()));
    assert_eq!(watches::check(&writes, 102, &all[2..]), Ok(()));
    assert_eq!(watches::check(&writes, 100, &all[..2]), Ok(()), "it ended early");
    assert!(watches::check(&writes, 100, &[all[0], all[2]]).unwrap_err().contains("not told"));
    assert!(watches::check(&writes, 100, &[all[0], all[1], all[1]]).is_err());
    assert!(watches::check(&writes, 100, &[all[1], all[0]]).is_err());
    assert!(watches::check(&writes, 102, &all).is_err(), "what was before");
    assert!(watches::check(&writes, 100, &[Told { revision: 101, value: 9 }]).is_err());
}

/// Every order of a few operations, tried one by one.
fn fits_by_trying(operations: &[Operation]) -> bool {
    fn go(left: &[Operation], value: u64) -> bool {
        if left.iter().all(|one| one.answered.is_none()) {
            return true;
        }
        (0..left.len()).any(|next| {
            let one = left[next];
            let first = left.iter().all(|other| other.answered.is_none_or(|answered| answered >= one.called));
            let after = match one.kind {
                Kind::Write { value } => Some(value),
                Kind::Read { value: read } => (read == value).then_some(value),
                Kind::Swap { expected, value: new, done } => {
                    let does = expected == value;
                    done.is_none_or(|done| done == does).then_some(if does { new } else { value })
                }
            };
            let rest: Vec<_> = left.iter().enumerate().filter(|(at, _)| *at != next).map(|(_, one)| *one).collect();
            first && after.is_some_and(|after| go(&rest, after))
        })
    }
    go(operations, INITIAL)
}

prop_compose! {
    /// Anything: most such histories are wrong.
    fn operation()(kind in 0..4, value in 0..4_u64, expected in 0..4_u64, done: bool, called in 0..12_u64,
                   length in 0..8_u64, lost in prop::bool::weighted(0.2)) -> Operation {
        let kind = match kind {
            0 => write(value),
            1 => read(value),
            2 if !lost => swap(expected, value, done),
            _ => Kind::Swap { expected, value, done: None },
        };
        let lost = (lost && !matches!(kind, Kind::Read { .. })) || matches!(kind, Kind::Swap { done: None, .. });
        if lost { open(0, kind, called) } else { at(0, kind, called, called + length) }
    }
}

/// A register, asked by so many clients in turns that `choices` say; each operation takes effect at some time between its
/// call and its answer.
fn really(choices: &[(u8, u8, u64, u64)]) -> Vec<Operation> {
    let (mut register, mut now, mut next) = (INITIAL, 0, 1);
    let mut operations = Vec::new();
    for (what, client, before, after) in choices {
        now += 10;
        let kind = match what % 4 {
            0 => write(next),
            1 => read(register),
            2 => swap(register, next, true),
            _ => swap(u64::MAX, next, false),
        };
        if let Kind::Write { value } | Kind::Swap { value, done: Some(true), .. } = kind {
            register = value;
        }
        next += 1;
        let lost = *what > 250 && matches!(kind, Kind::Write { .. });
        let called = u64::saturating_sub(now, before % 25);
        let one = at(usize::from(*client), kind, called, now + after % 25);
        operations.push(if lost { Operation { answered: None, ..one } } else { one });
    }
    operations
}

proptest! {
    #[test]
    fn the_search_finds_what_trying_every_order_finds(operations in prop::collection::vec(operation(), 0..7)) {
        prop_assert_eq!(fits(&operations), fits_by_trying(&operations));
    }

    #[test]
    fn what_a_register_answered_is_never_refused(choices in prop::collection::vec(any::<(u8, u8, u64, u64)>(), 0..150)) {
        prop_assert_eq!(linear::check(&really(&choices), INITIAL), Ok(()));
    }

    #[test]
    fn a_read_of_an_overwritten_value_is_found(choices in prop::collection::vec(any::<(u8, u8, u64, u64)>(), 20..60)) {
        let mut operations = really(&choices);
        let written: Vec<u64> = operations.iter().filter_map(Operation::wrote).collect();
        prop_assume!(written.len() > 1);
        // Long after all of them.
        operations.push(at(9, read(written[0]), 1_000_000, 1_000_001));
        prop_assume!(!may_be_last(&operations, written[0]));
        prop_assert!(!fits(&operations));
    }
}

/// Whether no other write is wholly after that of `value`.
fn may_be_last(operations: &[Operation], value: u64) -> bool {
    let of = operations.iter().find(|one| one.wrote() == Some(value)).unwrap();
    operations.iter().all(|one| one.wrote().is_none() || Some(one.called) <= of.answered)
}
