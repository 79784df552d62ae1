//! ③ Writable mounts: which there are, what they write to, and that what they wrote is listed.
//!
//! A writable mount writes to the dataset's own mounts, its sources of record. A home in a Storage is a verified copy of
//! one version, and is never written.

use super::mounts::live;
use super::{Facts, rescan};
use crate::desired::Endpoint;
use crate::kinds::{Cluster, DatasetMount, DatasetMountPhase, DatasetStatus};
use crate::report::Report;
use crate::route;
use crate::uri::Uri;

/// What may be written through mounts of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteAccess {
    /// Nothing.
    None,
    /// By one mount at a time.
    Once,
    /// By every mount.
    Many,
}

/// What the access modes of a dataset allow: the most that any of them does.
#[must_use]
pub fn access(modes: &[String]) -> WriteAccess {
    let has = |wanted: &str| modes.iter().any(|mode| mode == wanted);
    if has("ReadWriteMany") {
        WriteAccess::Many
    } else if has("ReadWriteOnce") || has("ReadWriteOncePod") {
        WriteAccess::Once
    } else {
        WriteAccess::None
    }
}

/// Whether a mount is to be writable.
pub(super) fn wanted(facts: &Facts<'_>, mount: &DatasetMount) -> bool {
    !mount.spec.read_only && access(&facts.dataset.spec.access_modes) != WriteAccess::None
}

/// Why a mount cannot be written through, or not yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    Waits(String),
    Fails(String),
}

/// What a mount writes to, and which paths of it are only read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Homes {
    pub endpoints: Vec<Endpoint>,
    pub read_only_paths: Vec<String>,
}

/// What a mount writes to.
///
/// # Errors
/// Why it writes to nothing, and what would be right.
pub(super) fn homes(facts: &Facts<'_>, status: &DatasetStatus, mount: &DatasetMount) -> Result<Homes, Refusal> {
    let fails = |message: String| Err(Refusal::Fails(message));
    let spec = &facts.dataset.spec;
    if !mount.spec.node.is_empty() {
        return fails(format!(
            "node \"{}\" does not write: the agent of the cluster does; mount the dataset without --node, or with \
             --read-only",
            mount.spec.node
        ));
    }
    let endpoints = route::mount_endpoints(facts.dataset);
    let other =
        spec.mounts.iter().find(|mount| !Uri::parse(&mount.mount_point).is_ok_and(|uri| uri.takes_mount_writes()));
    if let Some(other) = other {
        return fails(format!(
            "{} cannot be written: a writable mount needs sources of scheme file:// or s3://; mount the dataset with \
             --read-only",
            other.mount_point
        ));
    }
    if endpoints.is_empty() {
        return fails(
            "the dataset has no source to write to: homes in Storages are never written; mount it with \
                      --read-only"
                .to_owned(),
        );
    }
    for endpoint in &endpoints {
        let within = |uri: &str| Uri::parse(uri).is_ok_and(|home| home.contains(&endpoint.uri));
        if let Some(home) = status.homes.iter().find(|home| within(&home.uri)) {
            return fails(format!(
                "{} lies in a home in Storage \"{}\", and homes are never written; mount the dataset with --read-only",
                endpoint.uri, home.storage
            ));
        }
    }
    if let Some(local) = endpoints.iter().find(|endpoint| endpoint.uri.is_local()) {
        let Some(owner) = &status.source_cluster else {
            return Err(Refusal::Waits("waits until the dataset's sources were listed".to_owned()));
        };
        if !sees(facts, &mount.spec.cluster, owner) {
            return fails(format!(
                "cluster \"{}\" does not reach {}, which is on cluster \"{owner}\": mount the dataset there, or with \
                 --read-only",
                mount.spec.cluster, local.uri
            ));
        }
    }
    if access(&spec.access_modes) == WriteAccess::Once
        && let Some(first) = rival(facts, mount)
    {
        return fails(format!(
            "mount \"{}\" on cluster \"{}\" writes to the dataset already, and its access mode is ReadWriteOnce: \
             unmount that one, or mount this one with --read-only",
            first.metadata.name, first.spec.cluster
        ));
    }
    let read_only = spec.mounts.iter().filter(|mount| mount.read_only);
    Ok(Homes { endpoints, read_only_paths: read_only.map(|mount| mount.tree_path().to_owned()).collect() })
}

/// Whether two clusters see the same files: they are one, or their agents run on one machine.
fn sees(facts: &Facts<'_>, cluster: &str, owner: &str) -> bool {
    let machine = |name: &str| {
        let status = facts.clusters.get(name).and_then(|cluster: &Cluster| cluster.status.as_ref());
        status.map(|status| status.machine.clone()).filter(|machine| !machine.is_empty())
    };
    cluster == owner || machine(cluster).is_some_and(|here| machine(owner) == Some(here))
}

/// Another writable mount of the dataset, which was there before.
fn rival<'a>(facts: &Facts<'a>, mount: &DatasetMount) -> Option<&'a DatasetMount> {
    let age = |mount: &DatasetMount| {
        let stands = mount.status.as_ref().is_some_and(|status| status.phase == DatasetMountPhase::Mounted);
        (!stands, mount.metadata.creation_timestamp, mount.metadata.uid.clone())
    };
    live(facts).filter(|other| wanted(facts, other)).find(|other| age(other) < age(mount))
}

/// Counts what was written since the last look as a change at the sources. That a mount is gone that had written is one
/// too: what it wrote last may not have been told.
pub(super) fn notice(facts: &Facts<'_>, status: &mut DatasetStatus) {
    let written = written(facts);
    if status.writes_noticed != written {
        rescan::notice(status);
        status.writes_noticed = written;
    }
}

/// What the writable mounts say of their writes, as one text: another one whenever something was written.
fn written(facts: &Facts<'_>) -> String {
    let mut said: Vec<String> = Vec::new();
    for ((_, id), stored) in facts.reports {
        if let Report::Mount(mount) = &stored.report
            && !mount.written.is_empty()
        {
            let name = id.rsplit('/').next().unwrap_or_default();
            said.push(format!("{name}={}", mount.written));
        }
    }
    said.join(",")
}
