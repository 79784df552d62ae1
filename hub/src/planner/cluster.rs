//! ⑧ Reconciles a cluster: judges its silence, and sees it off when it is removed.
//!
//! Removal is bounded: the cluster's work is withdrawn first, so that its agent cleans up while it may still speak;
//! then, when nothing is cached there any more or the time is up, the object goes, and in the same transaction its
//! certificates are revoked.

use std::time::Duration;

use fluvial_certs::Identity;
use fluvial_model::desired::Work;
use fluvial_model::kinds::cluster::CLUSTER_FINALIZER;
use fluvial_model::kinds::{Cluster, ClusterState};
use fluvial_model::liveness;
use fluvial_model::resource::Resource;
use fluvial_model::store::Revision;
use fluvial_raft::Consistency;
use jiff::Timestamp;
use tracing::{info, warn};

use super::PlannerContext;
use super::apply::Change;
use super::mirror::Mirror;
use crate::audit::Act;
use crate::enrol::{self, Revocation};
use crate::objects::ObjectError;

/// How long a cluster that is being removed may take to clean up before it is cut off.
const LEAVE_WITHIN: Duration = Duration::from_secs(30);
/// After so long `lastSeen` is written again while nothing else changes, of a part of the clusters in each second: it is
/// never more than a minute old.
const LAST_SEEN_EVERY: Duration = Duration::from_secs(45);
const LAST_SEEN_SPREAD: usize = 15;
/// Clusters judged in one transaction: objects of about 1 KiB.
const JUDGE_BATCH: usize = 100;
/// Tries of one such transaction, each without one more cluster.
const JUDGE_TRIES: usize = 5;
/// Assignments and reports withdrawn in one transaction when a cluster goes.
const WITHDRAW_BATCH: usize = 100;

/// Judges the silence of every cluster, as a hub that has led for `leading`.
pub(super) async fn judge(context: &PlannerContext, mirror: &Mirror, leading: Duration) -> Result<(), ObjectError> {
    let now = context.clock.now();
    let mut changed: Vec<Judged<'_>> = Vec::new();
    let mut refreshed: Vec<Judged<'_>> = Vec::new();
    for (name, cluster) in &mirror.clusters {
        let Some(revision) = mirror.cluster_revisions.get(name) else { continue };
        let (previous, silence) = (cluster.state(), context.liveness.silence(name));
        let leaving = cluster.metadata.deletion_timestamp.is_some();
        let state = if leaving { ClusterState::Leaving } else { liveness::state(previous, silence, leading) };
        let judged = Judged { cluster, revision: *revision, state, silence };
        let seen = cluster.status.as_ref().and_then(|s| s.last_seen);
        let heard = silence.is_some_and(|silence| silence < liveness::SUSPECT_AFTER);
        if state != previous {
            info!(cluster = name, from = previous.as_str(), to = state.as_str(), "cluster state");
            changed.push(judged);
        } else if heard && seen.is_none_or(|seen| now.duration_since(seen).unsigned_abs() >= LAST_SEEN_EVERY) {
            refreshed.push(judged);
        }
    }
    // Those that became stale together are spread, so that a fleet does not write all at once.
    refreshed.sort_by_key(|judged| judged.cluster.status.as_ref().and_then(|s| s.last_seen));
    refreshed.truncate((mirror.clusters.len() / LAST_SEEN_SPREAD).max(JUDGE_BATCH));
    changed.append(&mut refreshed);
    for batch in changed.chunks(JUDGE_BATCH) {
        let mut batch: Vec<&Judged<'_>> = batch.iter().collect();
        for _ in 0..JUDGE_TRIES {
            // One that was changed by its agent at the same time is judged at the next tick; the others need not wait.
            let Some(overtaken) = write(context, &batch, now).await? else { break };
            batch.retain(|judged| judged.cluster.key() != overtaken);
        }
    }
    Ok(())
}

/// What is to be written of a cluster.
struct Judged<'a> {
    cluster: &'a Cluster,
    revision: Revision,
    state: ClusterState,
    silence: Option<Duration>,
}

/// Writes the states of these, or of none: then the key of one that was overtaken.
async fn write(
    context: &PlannerContext,
    judged: &[&Judged<'_>],
    now: Timestamp,
) -> Result<Option<String>, ObjectError> {
    let mut change = Change::default();
    for Judged { cluster, revision, state, silence } in judged {
        let mut object = (*cluster).clone();
        let mut status = object.status.take().unwrap_or_default();
        if status.state != *state {
            status.state_since = Some(now);
        }
        status.state = *state;
        if let Some(silence) = silence {
            status.last_seen = now.checked_sub(*silence).ok();
        }
        object.status = Some(status);
        change.put(context, &object, Some(*revision))?;
    }
    change.commit_or_tell(context).await
}

/// Sees a cluster off when it is being removed.
pub(super) async fn reconcile(context: &PlannerContext, mirror: &mut Mirror, name: &str) -> Result<(), ObjectError> {
    let (Some(cluster), Some(revision)) = (mirror.clusters.get(name), mirror.cluster_revisions.get(name)) else {
        return Ok(());
    };
    let Some(since) = cluster.metadata.deletion_timestamp else {
        return revoke_nodes(context, cluster, *revision).await;
    };
    let waited = context.clock.now().duration_since(since).unsigned_abs();
    if waited < LEAVE_WITHIN && may_still_clean(mirror, name, cluster) {
        return Ok(());
    }
    let others: Vec<&String> = cluster.metadata.finalizers.iter().filter(|f| *f != CLUSTER_FINALIZER).collect();
    if !others.is_empty() {
        return Ok(());
    }
    let (revision, key) = (*revision, cluster.key());
    let left: Vec<String> = mirror
        .assignments
        .keys()
        .chain(mirror.reports.keys())
        .filter(|(cluster, _)| cluster == name)
        .map(|(_, id)| id.clone())
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    if !left.is_empty() {
        warn!(cluster = name, assignments = left.len(), "the cluster is removed before its agent has cleaned up");
    }
    for batch in left.chunks(WITHDRAW_BATCH) {
        let mut change = Change::default();
        for id in batch {
            change.withdraw(mirror, name, id);
        }
        change.commit(context).await?;
    }
    super::still_leading(context).await.map_err(|source| ObjectError::Store { key: key.clone(), source })?;
    let mut change = Change::default();
    change.delete(key, revision);
    change.record(context, &Act::of_fleet("delete", Cluster::INFO.plural, name));
    let revoked = Identity::Cluster { name: name.to_owned() }.path();
    change.record(context, &Act::of_fleet("revoke", "certificates", &revoked));
    let (revocation, value) = enrol::revocation(name, context.clock.now());
    let known = context
        .objects
        .store
        .get(&revocation, Consistency::Linearizable)
        .await
        .map_err(|source| ObjectError::Store { key: revocation.clone(), source })?;
    change.put_bytes(revocation, known.map(|kv| kv.mod_revision), value);
    if change.commit(context).await? {
        info!(cluster = name, "cluster removed, its certificates are revoked");
    }
    Ok(())
}

/// Puts in force which nodes are revoked.
async fn revoke_nodes(context: &PlannerContext, cluster: &Cluster, revision: Revision) -> Result<(), ObjectError> {
    for (node, until) in &cluster.spec.revoked_nodes {
        let identity = Identity::Node { cluster: cluster.metadata.name.clone(), name: node.clone() };
        let key = enrol::revocation_key(&identity);
        let failed = |source| ObjectError::Store { key: key.clone(), source };
        let known = context.objects.store.get(&key, Consistency::Linearizable).await.map_err(failed)?;
        let in_force = known.as_ref().and_then(|kv| Revocation::read(&kv.key, &kv.value).ok());
        if in_force.is_some_and(|revocation| revocation.before >= *until) {
            continue;
        }
        let mut change = Change::default();
        change.rests_on(cluster.key(), Some(revision));
        change.record(context, &Act::of_fleet("revoke", "certificates", &identity.path()));
        let value = Revocation { before: *until }.to_bytes();
        change.put_bytes(key, known.map(|kv| kv.mod_revision), value);
        if change.commit(context).await? {
            info!(cluster = cluster.metadata.name, node, "a node's certificates are revoked");
        }
    }
    Ok(())
}

/// Whether the agent is there and has something left to take away.
fn may_still_clean(mirror: &Mirror, name: &str, cluster: &Cluster) -> bool {
    let status = cluster.status.clone().unwrap_or_default();
    if status.last_seen.is_none() {
        return false;
    }
    // Caches are withdrawn by their datasets' upkeep as soon as the cluster is Leaving; migrations end by themselves.
    let busy =
        mirror.assignments.iter().any(|((cluster, _), at)| cluster == name && !matches!(at.value, Work::Scan(_)));
    busy || status.used_bytes > 0 || status.state != ClusterState::Leaving
}
