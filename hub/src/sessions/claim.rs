//! Whether an agent may speak for its cluster, and what it says of itself.
//!
//! Invariant: the Cluster object names one installation of the agent. Another one takes over only when the first was
//! not heard from for a while, by any hub, so that two machines that hold the same certificate never work at once.

use std::time::Duration;

use fluvial_model::kinds::cluster::ClusterStatus;
use fluvial_model::kinds::{Cluster, MediumUsage};
use fluvial_model::report::AgentReport;
use fluvial_model::resource::Resource as _;
use fluvial_model::store::{Txn, TxnOutcome};
use fluvial_proto::v1;
use fluvial_raft::{Consistency, StoreError};
use tonic::Status;

use super::{AskError, SessionContext, object_status};
use crate::objects::ObjectError;

/// After this much silence another installation may take over: three heartbeats.
pub(super) const TAKEOVER: Duration = Duration::from_secs(15);
/// How long a process that lives may take to say so.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The planner writes the same object: a race is lost seldom, and not often in a row.
const TRIES: usize = 10;
/// The longest name of an installation; agents use a UUID.
const MAX_INSTANCE: usize = 128;

/// Lets `report`'s installation speak for `cluster`, and writes down what it says of itself.
pub(super) async fn claim(context: &SessionContext, cluster: &str, report: &AgentReport) -> Result<(), Status> {
    if report.instance.is_empty() || report.instance.len() > MAX_INSTANCE {
        return Err(Status::invalid_argument(format!("the agent's instance must be 1 to {MAX_INSTANCE} bytes long")));
    }
    write(context, cluster, report, true).await
}

/// Writes down what the installation that speaks for `cluster` says of itself.
pub(super) async fn update(context: &SessionContext, cluster: &str, report: &AgentReport) -> Result<(), Status> {
    write(context, cluster, report, false).await
}

async fn write(context: &SessionContext, name: &str, report: &AgentReport, may_take: bool) -> Result<(), Status> {
    for _ in 0..TRIES {
        let found = context.objects.get::<Cluster>("", name, Consistency::Linearizable).await;
        let Some(stored) = found.map_err(|error| object_status(&error))? else {
            return Err(Status::permission_denied(format!("cluster \"{name}\" was removed: join again")));
        };
        let mut cluster = stored.object;
        let before = cluster.status.clone().unwrap_or_default();
        let other = !before.instance.is_empty() && before.instance != report.instance;
        if other && (!may_take || is_alive(context, name, &report.instance).await) {
            return Err(Status::already_exists(format!(
                "another agent speaks for cluster \"{name}\": stop it first, and try again after {TAKEOVER:?}"
            )));
        }
        let after = described(before.clone(), report);
        if after == before {
            return Ok(());
        }
        cluster.status = Some(after);
        let value = context.objects.encode(&cluster).map_err(|error| object_status(&error))?;
        match context.objects.txn(Txn::replace(cluster.key(), stored.revision, value)).await {
            Ok(TxnOutcome::Committed { .. }) => return Ok(()),
            Ok(TxnOutcome::Conflict { .. })
            | Err(ObjectError::Store { source: StoreError::UnknownOutcome { .. }, .. }) => {}
            Err(error) => return Err(object_status(&error)),
        }
    }
    Err(Status::aborted(format!("cluster \"{name}\" is being changed by others: try again")))
}

/// Refuses a second process of one installation, such as one on a copied data directory, for as long as the first answers.
///
/// A process that was killed does not answer: the next one need not wait until its silence is noticed.
pub(super) async fn alone(context: &SessionContext, cluster: &str, report: &AgentReport) -> Result<(), Status> {
    let ask = v1::Ask { id: 0, question: Some(v1::ask::Question::WhichProcess(v1::WhichProcess {})) };
    let asked = tokio::time::timeout(ANSWER_WITHIN, context.registry.ask(cluster, ask.clone())).await;
    let reply = match asked {
        Ok(Err(AskError::NotHere { .. })) => {
            context.peers.ask_agent(cluster, &ask, ANSWER_WITHIN).await.ok().flatten().unwrap_or_default()
        }
        Ok(Ok(reply)) => reply,
        Ok(Err(_)) | Err(_) => v1::AskReply::default(),
    };
    if reply.data.is_empty() || report.process.is_empty() || reply.data == report.process.as_bytes() {
        return Ok(());
    }
    Err(Status::already_exists(format!(
        "another agent with the same identity speaks for cluster \"{cluster}\": two must not run on copies of one data \
         directory"
    )))
}

/// Whether an installation other than `instance` has, or just had, a session at any hub.
async fn is_alive(context: &SessionContext, cluster: &str, instance: &str) -> bool {
    context.registry.instance(cluster).is_some_and(|live| live != instance)
        || context.liveness.silence(cluster).is_some_and(|silence| silence < TAKEOVER)
        || context.peers.session_elsewhere(cluster).await
}

/// The status with what the agent says of itself in it; the rest is the planner's.
fn described(mut status: ClusterStatus, report: &AgentReport) -> ClusterStatus {
    let sum = |of: fn(&MediumUsage) -> u64| {
        report.nodes.iter().flat_map(|node| &node.media).map(of).fold(0, u64::saturating_add)
    };
    status.platform.clone_from(&report.platform);
    status.agent_version.clone_from(&report.version);
    status.engines.clone_from(&report.engines);
    status.nodes.clone_from(&report.nodes);
    status.instance.clone_from(&report.instance);
    status.machine.clone_from(&report.machine);
    status.address.clone_from(&report.address);
    status.capacity_bytes = sum(|medium| medium.capacity_bytes);
    status.used_bytes = sum(|medium| medium.cached_bytes);
    status
}

#[cfg(test)]
mod tests {
    use fluvial_model::kinds::{ClusterState, NodeUsage};

    use super::*;

    #[test]
    fn what_an_agent_says_of_itself_leaves_the_state_alone() {
        let medium = |cached_bytes, capacity_bytes| MediumUsage { medium: "SSD".into(), cached_bytes, capacity_bytes };
        let node = |media| NodeUsage { node: "n".into(), media, ..NodeUsage::default() };
        let report = AgentReport {
            platform: "host".into(),
            version: "1".into(),
            instance: "i".into(),
            machine: String::new(),
            address: "h:1".into(),
            process: "p".into(),
            engines: vec!["nodecache".into()],
            nodes: vec![node(vec![medium(1, 10), medium(2, 20)]), node(vec![medium(4, u64::MAX)])],
        };
        let before = ClusterStatus { state: ClusterState::Suspect, observed_generation: 3, ..ClusterStatus::default() };
        let expected = ClusterStatus {
            platform: "host".into(),
            agent_version: "1".into(),
            instance: "i".into(),
            machine: String::new(),
            address: "h:1".into(),
            engines: vec!["nodecache".into()],
            nodes: report.nodes.clone(),
            capacity_bytes: u64::MAX,
            used_bytes: 7,
            ..before.clone()
        };
        assert_eq!(described(before, &report), expected);
    }
}
