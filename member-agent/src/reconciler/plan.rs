//! What to start, stop, clean up and forget. Pure: the same input gives the same steps, and once they are done there are
//! none.
//!
//! | assignment | runs | step |
//! |---|---|---|
//! | wanted, not settled | nothing | start |
//! | wanted, settled | nothing | |
//! | wanted | work of this generation, or a clean-up | (it goes on; afterwards the next round decides) |
//! | wanted | work of another generation | stop, then start |
//! | withdrawn, leaves traces | nothing | clean, then forget |
//! | withdrawn, leaves none or was cleaned | nothing | forget |
//! | withdrawn | work | stop |
//! | none | anything | stop |

use std::collections::{BTreeMap, BTreeSet};

/// What a task does for an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Doing {
    /// What was asked for.
    Working,
    /// Removing the traces of what is no longer asked for.
    Cleaning,
}

/// An assignment in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    pub id: String,
    pub generation: u64,
    /// Taken back.
    pub withdrawn: bool,
    /// Whether taking it back leaves something to remove.
    pub leaves_traces: bool,
    /// Nothing is left to be done for this generation; of a withdrawn one: nothing is left to clean up.
    pub settled: bool,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    pub id: String,
    pub generation: u64,
    pub doing: Doing,
    /// It was told to stop.
    pub stopping: bool,
}

/// What to do. A restart is a stop, and a start in the round after the task has ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Tell the task to end, resumably.
    Stop { id: String },
    /// Start the work.
    Start { id: String, generation: u64 },
    /// Start removing what the work left, and forget it afterwards.
    Clean { id: String, generation: u64 },
    /// Remove the withdrawn assignment from the ledger.
    Forget { id: String, generation: u64 },
}

/// The steps from what runs to what is assigned; stops first, else in the order of ids.
#[must_use]
pub fn plan(assigned: &[Assigned], running: &[Running]) -> Vec<Step> {
    let tasks: BTreeMap<&str, &Running> = running.iter().map(|task| (task.id.as_str(), task)).collect();
    let known: BTreeSet<&str> = assigned.iter().map(|assigned| assigned.id.as_str()).collect();
    let orphans = running.iter().filter(|task| !task.stopping && !known.contains(task.id.as_str()));
    let mut steps: Vec<Step> = orphans.map(|task| Step::Stop { id: task.id.clone() }).collect();
    for assigned in assigned {
        let step = match tasks.get(assigned.id.as_str()) {
            Some(task) => beside(assigned, task),
            None => alone(assigned),
        };
        steps.extend(step);
    }
    steps.sort();
    steps
}

/// The step for an assignment whose task is there.
fn beside(assigned: &Assigned, task: &Running) -> Option<Step> {
    let stop = match (task.stopping, task.doing) {
        (true, _) | (false, Doing::Cleaning) => false,
        (false, Doing::Working) => assigned.withdrawn || task.generation != assigned.generation,
    };
    stop.then(|| Step::Stop { id: assigned.id.clone() })
}

/// The step for an assignment without a task.
fn alone(assigned: &Assigned) -> Option<Step> {
    let (id, generation) = (assigned.id.clone(), assigned.generation);
    match (assigned.withdrawn, assigned.settled) {
        (false, false) => Some(Step::Start { id, generation }),
        (false, true) => None,
        (true, false) if assigned.leaves_traces => Some(Step::Clean { id, generation }),
        (true, _) => Some(Step::Forget { id, generation }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assigned(generation: u64, withdrawn: bool, leaves_traces: bool, settled: bool) -> Assigned {
        Assigned { id: "a".to_owned(), generation, withdrawn, leaves_traces, settled }
    }

    fn running(generation: u64, doing: Doing, stopping: bool) -> Running {
        Running { id: "a".to_owned(), generation, doing, stopping }
    }

    #[test]
    fn each_case_has_its_step() {
        use Doing::{Cleaning, Working};
        let id = || "a".to_owned();
        let (start, clean) = (Step::Start { id: id(), generation: 2 }, Step::Clean { id: id(), generation: 2 });
        let (stop, forget) = (Step::Stop { id: id() }, Step::Forget { id: id(), generation: 2 });
        let cases = [
            ("new work", Some(assigned(2, false, true, false)), None, Some(&start)),
            ("settled work", Some(assigned(2, false, true, true)), None, None),
            ("work that runs", Some(assigned(2, false, true, false)), Some(running(2, Working, false)), None),
            (
                "an older generation runs",
                Some(assigned(2, false, true, false)),
                Some(running(1, Working, false)),
                Some(&stop),
            ),
            ("and was told to stop", Some(assigned(2, false, true, false)), Some(running(1, Working, true)), None),
            (
                "assigned again while cleaned up",
                Some(assigned(2, false, true, false)),
                Some(running(1, Cleaning, false)),
                None,
            ),
            ("withdrawn, runs", Some(assigned(2, true, true, false)), Some(running(2, Working, false)), Some(&stop)),
            ("withdrawn, with traces", Some(assigned(2, true, true, false)), None, Some(&clean)),
            (
                "withdrawn, being cleaned up",
                Some(assigned(2, true, true, false)),
                Some(running(2, Cleaning, false)),
                None,
            ),
            ("withdrawn, cleaned up", Some(assigned(2, true, true, true)), None, Some(&forget)),
            ("withdrawn, without traces", Some(assigned(2, true, false, false)), None, Some(&forget)),
            ("not assigned, runs", None, Some(running(2, Working, false)), Some(&stop)),
            ("not assigned, stopping", None, Some(running(2, Cleaning, true)), None),
        ];
        for (name, assigned, running, expected) in cases {
            let steps = plan(assigned.as_slice(), running.as_slice());
            assert_eq!(steps.first(), expected, "{name}");
            assert!(steps.len() <= 1, "{name}");
        }
    }

    /// Carries steps out on paper.
    fn done(steps: &[Step], assigned: &mut Vec<Assigned>, running: &mut Vec<Running>) {
        for step in steps {
            match step.clone() {
                Step::Stop { id } => {
                    running.iter_mut().filter(|task| task.id == id).for_each(|task| task.stopping = true)
                }
                Step::Start { id, generation } => {
                    running.push(Running { id, generation, doing: Doing::Working, stopping: false });
                }
                Step::Clean { id, generation } => {
                    running.push(Running { id, generation, doing: Doing::Cleaning, stopping: false });
                }
                Step::Forget { id, .. } => assigned.retain(|assigned| assigned.id != id),
            }
        }
    }

    fn worlds() -> impl Strategy<Value = (Vec<Assigned>, Vec<Running>)> {
        let assigned =
            (0u8..6, 1u64..4, any::<[bool; 3]>()).prop_map(|(id, generation, [withdrawn, traces, settled])| Assigned {
                id: id.to_string(),
                generation,
                withdrawn,
                leaves_traces: traces,
                settled,
            });
        let running =
            (0u8..6, 1u64..4, any::<[bool; 2]>()).prop_map(|(id, generation, [cleaning, stopping])| Running {
                id: id.to_string(),
                generation,
                doing: if cleaning { Doing::Cleaning } else { Doing::Working },
                stopping,
            });
        let some = |max| 0..max;
        (proptest::collection::vec(assigned, some(8)), proptest::collection::vec(running, some(8))).prop_map(
            |(mut assigned, mut running)| {
                assigned.sort_by(|a, b| a.id.cmp(&b.id));
                assigned.dedup_by(|a, b| a.id == b.id);
                running.sort_by(|a, b| a.id.cmp(&b.id));
                running.dedup_by(|a, b| a.id == b.id);
                (assigned, running)
            },
        )
    }

    proptest! {
        #[test]
        fn planning_again_does_nothing((mut assigned, mut running) in worlds()) {
            let steps = plan(&assigned, &running);
            done(&steps, &mut assigned, &mut running);
            prop_assert_eq!(plan(&assigned, &running), vec![]);
        }

        #[test]
        fn nothing_is_started_beside_a_task_of_the_same_id((assigned, running) in worlds()) {
            for step in plan(&assigned, &running) {
                if let Step::Start { id, .. } | Step::Clean { id, .. } | Step::Forget { id, .. } = step {
                    prop_assert!(!running.iter().any(|task| task.id == id));
                }
            }
        }

        #[test]
        fn rounds_come_to_an_end_with_exactly_what_is_wanted((mut assigned, mut running) in worlds()) {
            for _ in 0..4 {
                let steps = plan(&assigned, &running);
                done(&steps, &mut assigned, &mut running);
                // Tasks that were told to stop end, and clean-ups end with the assignment forgotten.
                for task in running.iter().filter(|task| task.doing == Doing::Cleaning && !task.stopping) {
                    assigned.retain(|assigned| !(assigned.withdrawn && assigned.id == task.id));
                }
                running.retain(|task| !task.stopping && task.doing == Doing::Working);
            }
            let wanted: Vec<_> = assigned.iter().filter(|a| !a.settled).map(|a| (a.id.clone(), a.generation)).collect();
            prop_assert!(assigned.iter().all(|a| !a.withdrawn));
            for (id, generation) in wanted {
                prop_assert!(running.iter().any(|task| task.id == id && task.generation == generation));
            }
            prop_assert!(running.iter().all(|task| assigned.iter().any(|a| a.id == task.id)));
        }
    }
}
