//! ①⑧ What operations have in common: what of them may be changed; of all but migrations, their status and how it
//! changes.

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::datamigrate::{OperationPhase, Progress, Shown};
use crate::catalog::Row;
use crate::field::{FieldErrors, Path};
use crate::meta::{Condition, ConditionStatus, ObjectMeta, set_condition};
use crate::report::Problem;

/// Reports what of an operation's spec was changed that must not be: each field with whether it was, and `cancel` before and
/// after.
pub(super) fn check_change(fixed: &[(&str, bool)], (before, after): (bool, bool), errors: &mut FieldErrors) {
    let spec = Path::root("spec");
    for (field, _) in fixed.iter().filter(|(_, changed)| *changed) {
        errors.immutable(&spec.key(field));
    }
    if before && !after {
        errors.push(&spec.key("cancel"), "cannot be taken back: create another operation");
    }
}

/// Where an operation stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OperationStatus {
    pub phase: OperationPhase,
    /// While Executing: what is being done; afterwards why it ended so.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub observed_generation: i64,
    /// The cluster whose agent does it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub executor: String,
    pub progress: Progress,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub started_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub finished_time: Option<Timestamp>,
    /// `Unfinished`, or how long it took, as Fluid's clients read it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub duration: String,
    pub conditions: Vec<Condition>,
}

impl OperationStatus {
    /// An agent was chosen.
    pub fn begin(&mut self, executor: &str, message: String, now: Timestamp) {
        self.phase = OperationPhase::Executing;
        "Planning".clone_into(&mut self.reason);
        self.message = message;
        executor.clone_into(&mut self.executor);
        self.started_time = Some(now);
        "Unfinished".clone_into(&mut self.duration);
    }

    /// Something is waited for.
    pub fn wait(&mut self, message: String) {
        self.phase = OperationPhase::Pending;
        self.message = message;
    }

    /// It goes on: what is being done, how far it is, and what is in the way.
    pub fn go_on(&mut self, doing: &str, progress: &Progress, problem: Option<&Problem>) {
        self.phase = OperationPhase::Executing;
        doing.clone_into(&mut self.reason);
        if *progress != Progress::default() {
            self.progress = progress.clone();
        }
        self.message = problem.map_or_else(String::new, |p| format!("{}: {}", p.reason, p.message));
    }

    /// It has ended.
    pub fn finish(&mut self, phase: OperationPhase, reason: &str, message: &str, now: Timestamp) {
        self.phase = phase;
        reason.clone_into(&mut self.reason);
        message.clone_into(&mut self.message);
        self.started_time.get_or_insert(now);
        self.finished_time = Some(now);
        let took = self.started_time.map_or(SignedDuration::ZERO, |start| now.duration_since(start));
        self.duration = crate::migration::duration_text(took);
        self.progress.eta_seconds = None;
        let condition = Condition {
            kind: phase.as_str().to_owned(),
            status: ConditionStatus::True,
            observed_generation: self.observed_generation,
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: now,
        };
        set_condition(&mut self.conditions, condition);
    }

    /// The row that SQL shows.
    pub(crate) fn row(&self, kind: &str, metadata: &ObjectMeta, dataset: &str, from: &str, to: &str) -> Row {
        let shown = Shown {
            kind,
            dataset: Some(dataset),
            from,
            to,
            phase: self.phase,
            progress: &self.progress,
            times: (self.started_time, self.finished_time),
            message: &self.message,
        };
        shown.row(metadata)
    }
}
