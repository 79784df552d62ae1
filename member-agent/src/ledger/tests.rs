//! Fencing, crashes, full synchronisations and reports.

use std::os::unix::fs::PermissionsExt;

use fluvial_model::desired::{DatasetKey, ScanWork};
use fluvial_model::report::{RemoveReport, ScanReport};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn open() -> (TempDir, Ledger) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    (dir, ledger)
}

fn scan(name: &str, assignment_generation: u64, content: i64) -> Assignment {
    let dataset = DatasetKey { namespace: "default".into(), name: name.into(), uid: "1".into() };
    let work = Work::Scan(ScanWork { dataset, generation: content, request: String::new(), sources: Vec::new() });
    Assignment { id: work.id(), generation: assignment_generation, work, secrets: Secrets::default(), withdrawn: false }
}

fn withdrawn(assignment: &Assignment) -> Assignment {
    Assignment { withdrawn: true, ..assignment.clone() }
}

fn said(text: &str) -> Report {
    let problem = fluvial_model::report::Problem { reason: text.into(), message: String::new(), retrying: true };
    Report::Scan(ScanReport { generation: 1, request: String::new(), found: None, problem: Some(problem) })
}

fn nobody() -> HashSet<String> {
    HashSet::new()
}

#[test]
fn what_was_accepted_survives_a_crash_before_anything_was_done_about_it() {
    let (dir, ledger) = open();
    let (a, b) = (scan("a", 3, 1), scan("b", 4, 1));
    assert_eq!(ledger.assign(&a, true).unwrap(), Acceptance::Accept);
    assert_eq!(ledger.assign(&b, true).unwrap(), Acceptance::Accept);
    ledger.report(&a.id, 3, &said("x")).unwrap();
    ledger.synced(Position { epoch: 7, cursor: 9 }, None).unwrap();
    drop(ledger);
    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(ledger.assignments().unwrap(), [a.clone(), b]);
    assert_eq!(ledger.position().unwrap(), Position { epoch: 7, cursor: 9 });
    assert_eq!(ledger.last_report(&a.id).unwrap(), Some(StoredReport { generation: 3, report: said("x") }));
}

#[test]
fn an_assignment_never_goes_back_nor_changes_within_a_generation() {
    let (_dir, ledger) = open();
    let cases = [
        (scan("a", 3, 1), Acceptance::Accept),
        (scan("a", 3, 1), Acceptance::Duplicate),
        (scan("a", 3, 2), Acceptance::Contradiction),
        (scan("a", 2, 2), Acceptance::Stale),
        (scan("a", 4, 2), Acceptance::Accept),
    ];
    for (offered, expected) in cases {
        assert_eq!(ledger.assign(&offered, true).unwrap(), expected, "{offered:?}");
    }
    assert_eq!(ledger.assignments().unwrap(), [scan("a", 4, 2)]);
}

#[test]
fn a_late_message_does_not_bring_back_what_was_withdrawn() {
    let (_dir, ledger) = open();
    let a = scan("a", 3, 1);
    ledger.assign(&a, true).unwrap();
    ledger.withdraw(&a.id, 2).unwrap();
    assert_eq!(ledger.assignments().unwrap(), std::slice::from_ref(&a), "an older withdrawal is late as well");
    ledger.withdraw(&a.id, 5).unwrap();
    assert_eq!(ledger.assign(&scan("a", 4, 1), true).unwrap(), Acceptance::Stale);
    assert_eq!(ledger.assign(&scan("a", 5, 1), true).unwrap(), Acceptance::Contradiction);
    assert_eq!(ledger.assignments().unwrap(), [Assignment { generation: 5, ..withdrawn(&a) }]);
    assert_eq!(ledger.assign(&scan("a", 6, 1), true).unwrap(), Acceptance::Accept);
}

#[test]
fn another_history_is_right_however_old_its_generations_are() {
    let (_dir, ledger) = open();
    ledger.assign(&scan("a", 9, 2), true).unwrap();
    assert_eq!(ledger.assign(&scan("a", 3, 1), false).unwrap(), Acceptance::Accept);
    assert_eq!(ledger.assign(&scan("a", 3, 1), false).unwrap(), Acceptance::Duplicate);
    assert_eq!(ledger.assignments().unwrap(), [scan("a", 3, 1)]);
}

#[test]
fn what_a_full_synchronisation_does_not_mention_is_withdrawn_when_it_is_complete() {
    let (dir, ledger) = open();
    let (a, b) = (scan("a", 1, 1), scan("b", 1, 1));
    ledger.assign(&a, true).unwrap();
    ledger.assign(&b, true).unwrap();
    // A synchronisation that broke off half-way has withdrawn nothing.
    drop(ledger);
    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(ledger.assignments().unwrap(), [a.clone(), b.clone()]);
    ledger.synced(Position { epoch: 2, cursor: 5 }, Some(&HashSet::from([b.id.clone()]))).unwrap();
    assert_eq!(ledger.assignments().unwrap(), [withdrawn(&a), b.clone()]);
    ledger.forget(&b.id, 1).unwrap();
    ledger.forget(&a.id, 1).unwrap();
    assert_eq!(ledger.assignments().unwrap(), [b], "only what is withdrawn is forgotten");
}

#[test]
fn a_position_that_is_known_is_not_written_again() {
    let (dir, ledger) = open();
    let position = Position { epoch: 2, cursor: 5 };
    ledger.synced(position, None).unwrap();
    let log = || std::fs::metadata(dir.path().join("ledger.db-wal")).unwrap().len();
    let before = log();
    ledger.synced(position, None).unwrap();
    assert_eq!((log(), ledger.position().unwrap()), (before, position));
}

#[test]
fn a_secret_that_changed_is_kept_without_a_new_generation() {
    let (_dir, ledger) = open();
    let old = scan("a", 1, 1);
    let new = Assignment { secrets: Secrets([("s".to_owned(), "v".to_owned())].into()), ..old.clone() };
    ledger.assign(&old, true).unwrap();
    assert_eq!(ledger.assign(&new, true).unwrap(), Acceptance::Duplicate);
    assert_eq!(ledger.assignments().unwrap(), [new]);
}

#[test]
fn a_second_agent_on_the_same_directory_is_refused_until_the_first_has_ended() {
    let (dir, ledger) = open();
    let clone = ledger.clone();
    drop(ledger);
    assert!(matches!(Ledger::open(dir.path()), Err(Error::Locked { .. })));
    drop(clone);
    Ledger::open(dir.path()).unwrap();
}

#[test]
fn nobody_else_may_read_the_ledger() {
    let (dir, ledger) = open();
    ledger.assign(&scan("a", 1, 1), true).unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
    }
}

#[test]
fn a_report_is_to_be_sent_until_exactly_that_one_is_stored() {
    let (_dir, ledger) = open();
    let a = scan("a", 1, 1);
    ledger.assign(&a, true).unwrap();
    ledger.report(&a.id, 1, &said("first")).unwrap();
    let first = ledger.unsent(10, &nobody()).unwrap();
    assert_eq!(first.len(), 1);
    assert_eq!(ledger.unsent(10, &HashSet::from([a.id.clone()])).unwrap(), []);
    // While the first is on its way there is a second.
    ledger.report(&a.id, 1, &said("second")).unwrap();
    ledger.stored(&a.id, 1, first[0].sequence).unwrap();
    let second = ledger.unsent(10, &nobody()).unwrap();
    assert_eq!(second[0].report, serde_json::to_vec(&said("second")).unwrap());
    ledger.stored(&a.id, 1, second[0].sequence).unwrap();
    ledger.report(&a.id, 1, &said("second")).unwrap();
    assert_eq!(ledger.unsent(10, &nobody()).unwrap(), [], "what was said and stored is not said again");
    ledger.say_again().unwrap();
    assert_eq!(ledger.unsent(10, &nobody()).unwrap(), second);
}

#[test]
fn a_task_of_an_older_generation_has_nothing_to_say() {
    let (_dir, ledger) = open();
    let a = scan("a", 2, 1);
    ledger.assign(&a, true).unwrap();
    ledger.report(&a.id, 1, &said("late")).unwrap();
    ledger.report("remove/x/y/z", 1, &Report::Remove(RemoveReport { removed: true, problem: None })).unwrap();
    ledger.withdraw(&a.id, 2).unwrap();
    ledger.report(&a.id, 2, &said("late as well")).unwrap();
    assert_eq!(ledger.unsent(10, &nobody()).unwrap(), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn generations_only_grow(offers in proptest::collection::vec((0u64..5, 0i64..2, any::<bool>()), 1..20)) {
        let (_dir, ledger) = open();
        let mut highest = 0;
        for (generation, content, take_back) in offers {
            let offered = scan("a", generation, content);
            if take_back {
                ledger.withdraw(&offered.id, generation).unwrap();
            } else {
                ledger.assign(&offered, true).unwrap();
            }
            let now = ledger.assignment(&offered.id).unwrap().map_or(0, |known| known.generation);
            prop_assert!(now >= highest);
            highest = now;
        }
    }
}

#[test]
fn the_newest_epoch_is_remembered_and_an_older_one_is_not_taken_for_it() {
    let dir = tempfile::tempdir().unwrap();
    {
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.newest_epoch().unwrap(), 0);
        assert_eq!(ledger.met(3).unwrap(), 3);
        assert_eq!(ledger.met(2).unwrap(), 3);
    }
    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(ledger.newest_epoch().unwrap(), 3);
    assert_eq!(ledger.position().unwrap(), Position::default(), "meeting hubs is not knowing their wishes");
}
