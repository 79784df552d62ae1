//! ③⑧ Upkeep of a repository: it is listed when its spec changes, after each backup and on request; pruned and checked on
//! request. One thing at a time, each named by what it is for.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{answers, place};
use crate::desired::{DatasetKey, RepositoryTask, RepositoryWork};
use crate::kinds::backuprepository::{CHECK_REQUESTED, LIST_REQUESTED, PRUNE_REQUESTED};
use crate::kinds::{BackupRepository, BackupRepositoryStatus, CheckResult, Cluster};
use crate::meta::{Condition, ConditionStatus, set_condition};
use crate::report::{Problem, RepositoryReport};

/// Everything that the upkeep of a repository depends on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub repository: &'a BackupRepository,
    pub clusters: &'a BTreeMap<String, Cluster>,
    /// When the last backup into it ended.
    pub last_backup: Option<Timestamp>,
    /// The assignment as it stands: the cluster and the work.
    pub assigned: Option<(&'a str, &'a RepositoryWork)>,
    /// What that cluster's agent says of it.
    pub report: Option<&'a RepositoryReport>,
    pub now: Timestamp,
}

/// What should be so now.
#[derive(Debug, Clone, PartialEq)]
pub struct Next {
    pub status: BackupRepositoryStatus,
    /// The assignment that should exist, and where.
    pub assignment: Option<(String, RepositoryWork)>,
}

/// Decides what a repository needs.
#[must_use]
pub fn step(facts: &Facts<'_>) -> Next {
    let repository = facts.repository;
    let mut status = repository.status.clone().unwrap_or_default();
    if repository.metadata.deletion_timestamp.is_some() {
        return Next { status, assignment: None };
    }
    if let (Some((_, work)), Some(report)) = (facts.assigned, facts.report)
        && report.request == work.request
    {
        fold(facts, &mut status, work, report);
    }
    let Some((request, task)) = wanted(facts, &status) else { return Next { status, assignment: None } };
    let kept = facts.assigned.map(|(cluster, _)| cluster).filter(|name| facts.clusters.contains_key(*name));
    let chosen = match repository.spec.cluster.as_str() {
        "" => kept
            .map(str::to_owned)
            .or_else(|| facts.clusters.iter().find(|(_, cluster)| answers(cluster)).map(|(name, _)| name.clone())),
        named => facts.clusters.contains_key(named).then(|| named.to_owned()),
    };
    let Some(place) = place(repository) else { return Next { status, assignment: None } };
    let Some(cluster) = chosen else {
        let message = match repository.spec.cluster.as_str() {
            "" => "waits for a Ready cluster".to_owned(),
            named => format!("there is no cluster {named}"),
        };
        ready(facts, &mut status, ConditionStatus::Unknown, "NoCluster", &message);
        return Next { status, assignment: None };
    };
    let metadata = &repository.metadata;
    let repository = DatasetKey { namespace: String::new(), name: metadata.name.clone(), uid: metadata.uid.clone() };
    Next { status, assignment: Some((cluster, RepositoryWork { repository, place, request, task })) }
}

/// What is to be done now, and the text that it is for; `None` if everything is done.
fn wanted(facts: &Facts<'_>, status: &BackupRepositoryStatus) -> Option<(String, RepositoryTask)> {
    let repository = facts.repository;
    let list = list_request(facts);
    if status.list_handled != list {
        return Some((list, RepositoryTask::List { create: repository.spec.create }));
    }
    let prune = repository.asked(PRUNE_REQUESTED);
    if prune != status.prune_handled {
        return Some((
            format!("prune/{prune}"),
            RepositoryTask::Prune { retention: repository.spec.retention.clone() },
        ));
    }
    let check = repository.asked(CHECK_REQUESTED);
    if check != status.check_handled {
        return Some((format!("check/{check}"), RepositoryTask::Check { read_data: check.starts_with("data") }));
    }
    None
}

fn list_request(facts: &Facts<'_>) -> String {
    let repository = facts.repository;
    let backup = facts.last_backup.map(|time| time.to_string()).unwrap_or_default();
    format!("list/{}/{backup}/{}", repository.metadata.generation, repository.asked(LIST_REQUESTED))
}

/// What an agent said becomes status.
fn fold(facts: &Facts<'_>, status: &mut BackupRepositoryStatus, work: &RepositoryWork, report: &RepositoryReport) {
    if let Some(problem) = &report.problem {
        let message = format!("{}: {}", problem.reason, problem.message);
        ready(facts, status, ConditionStatus::False, &problem.reason, &message);
        if problem.retrying {
            return;
        }
    }
    if let Some(found) = &report.found {
        status.snapshots.clone_from(&found.newest);
        status.snapshot_count = found.count;
        status.observed_generation = facts.repository.metadata.generation;
        ready(facts, status, ConditionStatus::True, "Opened", "it can be used");
    } else if report.problem.is_none() {
        return;
    }
    match &work.task {
        RepositoryTask::List { .. } => status.list_handled.clone_from(&work.request),
        RepositoryTask::Prune { .. } => {
            status.prune_handled = handled(&work.request);
            if report.found.is_some() {
                status.last_prune_time = Some(facts.now);
            }
        }
        RepositoryTask::Check { read_data } => {
            status.check_handled = handled(&work.request);
            let failed = |p: &Problem| vec![format!("{}: {}", p.reason, p.message)];
            let problems = report.problems.clone().or_else(|| report.problem.as_ref().map(failed)).unwrap_or_default();
            if let Some(first) = problems.first() {
                ready(facts, status, ConditionStatus::False, "Damaged", first);
            }
            status.last_check =
                Some(CheckResult { request: handled(&work.request), read_data: *read_data, time: facts.now, problems });
        }
    }
}

/// The text of the annotation that a request is for.
fn handled(request: &str) -> String {
    request.split_once('/').map_or(request, |(_, text)| text).to_owned()
}

fn ready(facts: &Facts<'_>, status: &mut BackupRepositoryStatus, is: ConditionStatus, reason: &str, message: &str) {
    let condition = Condition {
        kind: "Ready".to_owned(),
        status: is,
        observed_generation: facts.repository.metadata.generation,
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: facts.now,
    };
    set_condition(&mut status.conditions, condition);
}
