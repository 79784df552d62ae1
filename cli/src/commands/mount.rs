//! `fluvial mount`, `fluvial unmount`: datasets as directories of this machine, and the process behind each of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use fluvial_member_agent::{mounts, platform};
use fluvial_model::kinds::{CacheLocation, Cluster, ClusterState, DatasetMount, DatasetMountPhase, DatasetMountSpec};
use fluvial_model::manifest::Digest;
use fluvial_model::resource::Resource as _;
use fluvial_mount::device::{FS_TYPE, mounted_at};
use http::Method;
use kube::Client;
use tokio::time::Instant;

use super::until_told_to_stop;
use crate::args::{Namespace, duration};
use crate::client::{self, JSON};
use crate::kinds::in_path;
use crate::{objects, output};

/// How often it is looked whether a mount still stands.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often while it goes.
const GOING_EVERY: Duration = Duration::from_millis(50);
/// Digits of the hash in a mount's name: enough for the mounts of one dataset.
const NAME_DIGITS: usize = 8;

#[derive(Debug, Args)]
pub(crate) struct Mount {
    dataset: String,
    /// A directory of this machine, empty or not there yet.
    directory: PathBuf,
    /// The member whose agent mounts it; else one that runs on this machine, preferably with the dataset in its cache.
    #[arg(long)]
    cluster: Option<String>,
    /// The node of the cluster on whose machine it is; the machine of the cluster's agent if not given.
    #[arg(long, requires = "cluster")]
    node: Option<String>,
    /// Only read, whatever the dataset's access modes allow.
    #[arg(long)]
    read_only: bool,
    #[command(flatten)]
    namespace: Namespace,
    /// Return once it is mounted; else it stays until SIGINT or SIGTERM.
    #[arg(short, long)]
    detach: bool,
    /// How long to wait until it is mounted.
    #[arg(long, default_value = "2m", value_parser = duration)]
    timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Unmount {
    /// The directory, or the name of the DatasetMount.
    #[arg(value_name = "DIRECTORY|NAME")]
    what: String,
    #[command(flatten)]
    namespace: Namespace,
    /// How long to wait until it is gone.
    #[arg(long, default_value = "1m", value_parser = duration)]
    timeout: Duration,
}

/// The process that serves one mount, for the agent of this data directory. Agents start it.
#[derive(Debug, Args)]
pub(crate) struct ServeMount {
    #[arg(long)]
    data_dir: PathBuf,
    #[arg(long)]
    mount: String,
}

pub(crate) async fn serve(arguments: ServeMount) -> Result<()> {
    let (_directory, socket) = mounts::socket_in(&arguments.data_dir).context("opening the agent's data directory")?;
    Ok(fluvial_mount::process::run(socket, arguments.mount).await?)
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, arguments: Mount) -> Result<()> {
    let mut stop = std::pin::pin!(until_told_to_stop()?);
    let client = client::connect(kubeconfig).await?;
    let namespace = in_path("namespace", arguments.namespace.of(&client))?.to_owned();
    let directory = std::path::absolute(&arguments.directory).context("reading the directory")?;
    let Some(shown) = directory.to_str() else { bail!("directory {}: it is not UTF-8", directory.display()) };
    let cluster = match arguments.cluster {
        Some(cluster) => cluster,
        None => local_cluster(&client, &namespace, &arguments.dataset).await?,
    };
    let (dataset, read_only, node) = (arguments.dataset, arguments.read_only, arguments.node.unwrap_or_default());
    let spec = DatasetMountSpec { dataset, cluster, directory: shown.to_owned(), node, read_only };
    let name = name_of(&spec);
    create(&client, &namespace, &name, &spec).await?;
    let mounted = tokio::select! {
        mounted = until_mounted(&client, (&namespace, &name), arguments.timeout) => mounted,
        () = &mut stop => Err(anyhow::anyhow!("stopped before it was mounted")),
    };
    let mode = match mounted {
        Ok(mode) => mode,
        Err(error) => {
            delete(&client, &namespace, &name).await?;
            return Err(error);
        }
    };
    output::print(&format!("{} is mounted at {shown} by {}: {mode}", spec.dataset, spec.cluster))?;
    if arguments.detach {
        return Ok(());
    }
    loop {
        tokio::select! {
            () = &mut stop => {
                delete(&client, &namespace, &name).await?;
                return until_gone(&directory, arguments.timeout).await;
            }
            () = tokio::time::sleep(LOOK_EVERY) => {
                // The hub may be away for a while: the mount does not mind.
                if let Ok(None) = objects::get::<DatasetMount>(&client, &namespace, &name).await {
                    output::print(&format!("{} was unmounted from {shown}", spec.dataset))?;
                    return Ok(());
                }
            }
        }
    }
}

pub(crate) async fn unmount(kubeconfig: Option<PathBuf>, arguments: Unmount) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    let namespace = in_path("namespace", arguments.namespace.of(&client))?.to_owned();
    let directory = std::path::absolute(&arguments.what).context("reading the directory")?;
    let here = local_clusters(&client).await?;
    let mut found = None;
    for mount in objects::list::<DatasetMount>(&client, &namespace).await? {
        let local = here.iter().any(|cluster| cluster.metadata.name == mount.spec.cluster);
        let named = mount.metadata.name == arguments.what;
        if named || (local && Path::new(&mount.spec.directory) == directory) {
            found = Some((mount, local));
        }
    }
    let Some((mount, local)) = found else {
        bail!(
            "nothing is mounted at \"{}\", and no DatasetMount of namespace {namespace} has this name",
            arguments.what
        )
    };
    delete(&client, &namespace, &mount.metadata.name).await?;
    // One that failed has nothing there; what is there may be another's.
    let failed = mount.status.as_ref().is_some_and(|status| status.phase == DatasetMountPhase::Failed);
    if local && !failed {
        until_gone(Path::new(&mount.spec.directory), arguments.timeout).await?;
    }
    output::print(&format!("{} is unmounted from {}", mount.spec.dataset, mount.spec.directory))
}

/// One name for one dataset at one directory of one cluster.
fn name_of(spec: &DatasetMountSpec) -> String {
    let node = if spec.node.is_empty() { String::new() } else { format!("\0{}", spec.node) };
    let text = format!("{}\0{}{node}", spec.cluster, spec.directory);
    let hash = Digest::of(text.as_bytes()).to_string();
    format!("{}-{}", spec.dataset, &hash[..NAME_DIGITS])
}

/// Clusters whose agents see the same mounts as this process.
async fn local_clusters(client: &Client) -> Result<Vec<Cluster>> {
    let machine = platform::host::machine();
    let mut here = objects::list::<Cluster>(client, "").await?;
    here.retain(|cluster| {
        let same = cluster.status.as_ref().is_some_and(|status| !machine.is_empty() && status.machine == machine);
        same && cluster.state() == ClusterState::Ready
    });
    Ok(here)
}

/// A cluster that can mount here: one that has the dataset in its cache, or else the first by name.
async fn local_cluster(client: &Client, namespace: &str, dataset: &str) -> Result<String> {
    let here = local_clusters(client).await?;
    let mut names: Vec<String> = here.into_iter().map(|cluster| cluster.metadata.name).collect();
    names.sort();
    let mut best: Option<(u64, String)> = None;
    for name in names {
        let location = objects::get::<CacheLocation>(client, namespace, &format!("{dataset}.{name}")).await?;
        let cached = location.and_then(|location| location.status).map_or(0, |status| status.cached_bytes);
        if best.as_ref().is_none_or(|(most, _)| cached > *most) {
            best = Some((cached, name));
        }
    }
    match best {
        Some((_, name)) => Ok(name),
        None => bail!(
            "no member agent runs on this machine: start one with `fluvial member join` and `fluvial member run`, or \
             name the member that is to mount it with --cluster"
        ),
    }
}

async fn create(client: &Client, namespace: &str, name: &str, spec: &DatasetMountSpec) -> Result<()> {
    if let Some(known) = objects::get::<DatasetMount>(client, namespace, name).await? {
        if known.spec == *spec && known.metadata.deletion_timestamp.is_none() {
            return Ok(());
        }
        bail!("DatasetMount {name} is another mount already: delete it with `fluvial unmount {name}`");
    }
    let object =
        serde_json::to_value(DatasetMount::new(namespace, name, spec.clone())).context("writing it as JSON")?;
    let path = objects::path(&DatasetMount::INFO, namespace, None);
    client::write(client, Method::POST, &path, Some((JSON, &object))).await?;
    Ok(())
}

async fn delete(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let path = objects::path(&DatasetMount::INFO, namespace, Some(name));
    match client::write(client, Method::DELETE, &path, None).await {
        Err(failure) if !failure.is_not_found() => Err(failure.into()),
        _ => Ok(()),
    }
}

/// Waits until readers are served, and says how.
async fn until_mounted(client: &Client, (namespace, name): (&str, &str), limit: Duration) -> Result<String> {
    let mut last = String::new();
    let waited = objects::until::<DatasetMount, String>(client, (namespace, name), limit, "the mount", |mount| {
        let Some(mount) = mount else { bail!("DatasetMount {name} was deleted") };
        let status = mount.status.unwrap_or_default();
        last = status.message.clone();
        match status.phase {
            DatasetMountPhase::Mounted if status.message.is_empty() => Ok(Some(status.mode)),
            DatasetMountPhase::Mounted => Ok(Some(format!("{} ({})", status.mode, status.message))),
            DatasetMountPhase::Failed => bail!("{}", status.message),
            DatasetMountPhase::Pending | DatasetMountPhase::Mounting => Ok(None),
        }
    })
    .await;
    if last.is_empty() { waited } else { waited.with_context(|| format!("mounting: {last}")) }
}

/// Waits until nothing of ours is at a directory.
async fn until_gone(directory: &Path, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let resolved = mounts::resolve(directory).unwrap_or_else(|_| directory.to_owned());
    while mounted_at(&resolved).context("reading the mount table")?.is_some_and(|line| line.fs_type == FS_TYPE) {
        if Instant::now() >= deadline {
            bail!("{} is still mounted after {limit:?}: its agent may be away", directory.display());
        }
        tokio::time::sleep(GOING_EVERY).await;
    }
    Ok(())
}
