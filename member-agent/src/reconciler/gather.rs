//! What the ledger asks for, reduced to what the plan decides on.

use std::collections::HashMap;

use fluvial_model::desired::Work;
use fluvial_model::report::{LoadPhase, MigratePhase, Problem, Report, RestoreReport, StoredReport};

use super::plan::{Assigned, Doing};
use crate::ledger::{Assignment, Error, Ledger};

/// Work that ended by itself in this process: generation and what was being done, by id.
pub type Ended = HashMap<String, (u64, Doing)>;

/// Reads the ledger.
///
/// # Errors
/// The ledger's.
pub async fn gather(ledger: &Ledger, ended: &Ended) -> Result<Vec<Assigned>, Error> {
    let with_reports = ledger
        .call(|ledger| {
            let assignments = ledger.assignments()?.into_iter();
            assignments.map(|a| Ok((ledger.last_report(&a.id)?, a))).collect::<Result<Vec<_>, Error>>()
        })
        .await?;
    Ok(with_reports.into_iter().map(|(report, assignment)| assigned(&assignment, report.as_ref(), ended)).collect())
}

fn assigned(assignment: &Assignment, report: Option<&StoredReport>, ended: &Ended) -> Assigned {
    let doing = if assignment.withdrawn { Doing::Cleaning } else { Doing::Working };
    let ended_here = ended.get(&assignment.id) == Some(&(assignment.generation, doing));
    let finished_before = !assignment.withdrawn
        && report.is_some_and(|stored| stored.generation == assignment.generation && finished(&stored.report));
    Assigned {
        id: assignment.id.clone(),
        generation: assignment.generation,
        withdrawn: assignment.withdrawn,
        leaves_traces: match assignment.work {
            Work::Cache(_) | Work::Migrate(_) | Work::Mount(_) | Work::Restore(_) => true,
            Work::Scan(_)
            | Work::Remove(_)
            | Work::Serve(_)
            | Work::Backup(_)
            | Work::Repository(_)
            | Work::Load(_) => false,
        },
        settled: ended_here || finished_before,
    }
}

/// Whether a report is the last word on its generation, also after a restart. A cache is looked after for as long as it is
/// wanted: what it holds is looked at again at every start.
fn finished(report: &Report) -> bool {
    let given_up = |problem: &Option<Problem>| problem.as_ref().is_some_and(|problem| !problem.retrying);
    match report {
        Report::Scan(scan) => scan.found.is_some() || given_up(&scan.problem),
        Report::Cache(_) | Report::Mount(_) | Report::Serve(_) => false,
        Report::Backup(backup) => backup.written.is_some() || given_up(&backup.problem),
        Report::Repository(repository) => repository.found.is_some() || given_up(&repository.problem),
        Report::Migrate(migrate) | Report::Restore(RestoreReport { copy: migrate, .. }) => match migrate.phase {
            MigratePhase::Done | MigratePhase::Failed | MigratePhase::Discarded => true,
            MigratePhase::Planning | MigratePhase::Copying | MigratePhase::Verifying => false,
        },
        Report::Load(load) => matches!(load.phase, LoadPhase::Done | LoadPhase::Failed),
        Report::Remove(remove) => remove.removed || given_up(&remove.problem),
    }
}
