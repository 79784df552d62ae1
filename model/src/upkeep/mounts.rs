//! ③⑧ The mounts of a dataset: what their clusters are told, and what is known of them.

use super::writes::{self, Refusal};
use super::{Facts, Next, WorkById, key, report};
use crate::desired::{MountWork, Work};
use crate::kinds::{Cluster, ClusterState, DatasetMount, DatasetMountPhase, DatasetMountStatus};
use crate::report::{MountReport, Report};
use crate::route;

/// The platform whose members mount by themselves; on Kubernetes pods ask for volumes.
const PLATFORM: &str = "host";

/// Mounts that are wanted in clusters that can be told so.
pub(super) fn live<'a>(facts: &Facts<'a>) -> impl Iterator<Item = &'a DatasetMount> {
    let clusters = facts.clusters;
    facts.mounts.iter().copied().filter(move |mount| {
        mount.metadata.deletion_timestamp.is_none() && clusters.get(&mount.spec.cluster).is_some_and(can_mount)
    })
}

fn can_mount(cluster: &Cluster) -> bool {
    cluster.state() != ClusterState::Leaving
        && cluster.status.as_ref().is_none_or(|status| status.platform.is_empty() || status.platform == PLATFORM)
}

/// Tells every live mount's cluster which version to show, and says how each mount stands.
pub(super) fn plan(facts: &Facts<'_>, next: &mut Next) {
    let mut dataset = facts.dataset.clone();
    dataset.status = Some(next.status.clone());
    let sources = route::sources(&dataset, facts.storages);
    for mount in facts.mounts {
        let cluster = &mount.spec.cluster;
        let mut status = DatasetMountStatus {
            observed_generation: mount.metadata.generation,
            ..mount.status.clone().unwrap_or_default()
        };
        let waits = |message: String| (DatasetMountPhase::Pending, message);
        let fails = |message: String| (DatasetMountPhase::Failed, message);
        let source = route::nearest(&sources, cluster);
        let earlier = rival(facts, mount);
        let stands = match (facts.clusters.get(cluster), &next.status.root, source) {
            (None, ..) => waits(format!("cluster \"{cluster}\" is not registered")),
            (Some(known), ..) if !can_mount(known) => {
                fails(format!("cluster \"{cluster}\" is leaving or mounts by pods, not by directories"))
            }
            _ if earlier.is_some() => fails(format!(
                "mount \"{}\" has this directory already",
                earlier.map(|other| other.metadata.name.as_str()).unwrap_or_default()
            )),
            _ if writes::wanted(facts, mount) => match writes::homes(facts, &next.status, mount) {
                Err(Refusal::Waits(message)) => waits(message),
                Err(Refusal::Fails(message)) => fails(message),
                Ok(homes) => {
                    let work = Work::Mount(MountWork {
                        dataset: key(&dataset),
                        mount: mount.metadata.uid.clone(),
                        root: String::new(),
                        directory: mount.spec.directory.clone(),
                        node: String::new(),
                        homes: homes.endpoints,
                        read_only_paths: homes.read_only_paths,
                    });
                    tell(facts, next, mount, work, &mut status)
                }
            },
            (_, None, _) => waits("waits until the dataset's sources were listed".to_owned()),
            (_, _, None) => fails("the cluster reaches neither a home nor the mounts of the dataset".to_owned()),
            (_, Some(root), Some(source)) => {
                let work = Work::Mount(MountWork {
                    dataset: key(&dataset),
                    mount: mount.metadata.uid.clone(),
                    root: source.root.clone().unwrap_or_else(|| root.clone()),
                    directory: mount.spec.directory.clone(),
                    node: mount.spec.node.clone(),
                    homes: Vec::new(),
                    read_only_paths: Vec::new(),
                });
                tell(facts, next, mount, work, &mut status)
            }
        };
        (status.phase, status.message) = stands;
        next.mounts.insert(mount.metadata.name.clone(), status);
    }
}

/// Tells a mount's cluster what to do, and how it stands with that.
fn tell(
    facts: &Facts<'_>,
    next: &mut Next,
    mount: &DatasetMount,
    work: Work,
    status: &mut DatasetMountStatus,
) -> (DatasetMountPhase, String) {
    let said = match report(facts, &mount.spec.cluster, &work) {
        Some(Report::Mount(said)) => Some(said.clone()),
        _ => None,
    };
    if mount.metadata.deletion_timestamp.is_none() {
        next.assignments.insert((mount.spec.cluster.clone(), WorkById(work)));
    }
    said.map_or((DatasetMountPhase::Mounting, String::new()), |said| reported(status, said))
}

/// Another mount of the same dataset on the same directory, which was there before.
fn rival<'a>(facts: &Facts<'a>, mount: &DatasetMount) -> Option<&'a DatasetMount> {
    let age = |mount: &DatasetMount| {
        let stands = mount.status.as_ref().is_some_and(|status| status.phase == DatasetMountPhase::Mounted);
        (!stands, mount.metadata.creation_timestamp, mount.metadata.uid.clone())
    };
    let directory = |mount: &DatasetMount| mount.spec.directory.trim_end_matches('/').to_owned();
    live(facts).find(|other| {
        let machine = |mount: &DatasetMount| (mount.spec.cluster.clone(), mount.spec.node.clone());
        machine(other) == machine(mount) && directory(other) == directory(mount) && age(other) < age(mount)
    })
}

fn reported(status: &mut DatasetMountStatus, said: MountReport) -> (DatasetMountPhase, String) {
    status.root = Some(said.root).filter(|root| !root.is_empty());
    status.process = said.process;
    status.mode = match (said.mounted, said.passthrough) {
        (false, _) => String::new(),
        (true, _) if said.writable => "read-write".to_owned(),
        (true, true) => "passthrough".to_owned(),
        (true, false) => "daemon".to_owned(),
    };
    match said.problem {
        Some(problem) => {
            let phase = if problem.retrying { DatasetMountPhase::Mounting } else { DatasetMountPhase::Failed };
            (phase, format!("{}: {}", problem.reason, problem.message))
        }
        None if said.mounted => (DatasetMountPhase::Mounted, said.without_passthrough),
        None => (DatasetMountPhase::Mounting, String::new()),
    }
}
