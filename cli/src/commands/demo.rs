//! `fluvial demo`: the main job, ① to ⑧, on real input in one process.
//!
//! Three hubs, two clusters ("onprem" with a folder as its store, "cloud" with an S3 endpoint over loopback), a dataset
//! from a real folder, a cache of it, a migration to the other cloud, three questions to the catalog, a cluster that
//! leaves. Everything goes through the same API, tokens and agents as in earnest.
//! Invariant: the source is only read; all that is written lies in one folder, which is removed unless it was named.

mod bucket;
mod compare;
mod endpoint;
mod show;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args;
use fluvial_model::kinds::{
    CacheLocation, ClusterChoice, Dataset, DatasetChoice, DatasetStatus, Home, MigrateMode, Mount, PlacementSpec,
    StorageSpec,
};
use kube::Client;

use super::options::Sorted;
use super::progress::Progress;
use super::{cluster, dataset, migrate, options, placement, query, storage, until_told_to_stop};
use crate::local::Federation;
use crate::{objects, output};
use endpoint::Endpoint;
use show::Show;

const NAMESPACE: &str = "default";
const ONPREM: &str = "onprem";
const CLOUD: &str = "cloud";
const BUCKET: &str = "datasets";
const DISK: &str = "onprem-disk";
const STORE: &str = "cloud-s3";
const DATASET: &str = "sample";
const PLACEMENT: &str = "near-the-gpus";
/// For steps that depend on how much data there is: a terabyte at 30 MB/s would still end.
const DATA_LIMIT: Duration = Duration::from_secs(10 * 3600);
/// For steps that do not.
const STEP_LIMIT: Duration = Duration::from_secs(120);
const STEPS: usize = 9;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The folder to make the dataset of; the cargo registry if not given. It is only read.
    #[arg(long)]
    source: Option<PathBuf>,
    /// An empty folder for everything that the demo writes, kept afterwards; a temporary one if not given.
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let source = source(arguments.source)?;
    let (data_dir, temporary) = place(arguments.data_dir)?;
    let stop = until_told_to_stop()?;
    let outcome = tokio::select! {
        outcome = Box::pin(perform(&source, &data_dir)) => outcome,
        () = stop => Err(anyhow!("stopped before the end")),
    };
    if let Some(temporary) = temporary {
        temporary.close().with_context(|| format!("removing {}", data_dir.display()))?;
    }
    outcome
}

/// The folder to read, absolute.
fn source(named: Option<PathBuf>) -> Result<PathBuf> {
    let cargo = || {
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo"))).map(|home| home.join("registry"))
    };
    let source = match named {
        Some(named) => named,
        None => {
            cargo().filter(|folder| folder.is_dir()).context("there is no cargo registry here: give --source FOLDER")?
        }
    };
    let found = source.canonicalize().with_context(|| format!("finding --source {}", source.display()))?;
    ensure!(found.is_dir(), "--source {}: must be a folder", found.display());
    Ok(found)
}

/// Where to write, and the guard that removes it.
fn place(named: Option<PathBuf>) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    let Some(named) = named else {
        let temporary = tempfile::Builder::new().prefix("fluvial-demo-").tempdir().context("making a folder")?;
        return Ok((temporary.path().to_owned(), Some(temporary)));
    };
    let making = || format!("making --data-dir {}", named.display());
    std::fs::create_dir_all(&named).with_context(making)?;
    let found = named.canonicalize().with_context(making)?;
    ensure!(found.read_dir().with_context(making)?.next().is_none(), "--data-dir {}: must be empty", found.display());
    Ok((found, None))
}

async fn perform(source: &Path, data_dir: &Path) -> Result<()> {
    let mut show = Show::new(STEPS);
    show.step("three hubs, of which any two suffice")?;
    let any_port = Some(([127, 0, 0, 1], 0).into());
    let mut federation = Box::pin(Federation::start_hubs(data_dir.join("federation"), Some(3), any_port)).await?;
    show.done(&format!("{}; kubectl --kubeconfig {}", federation.url(), federation.kubeconfig().display()))?;

    let endpoint = Endpoint::start(&data_dir.join("s3"), BUCKET).await?;
    let outcome = Box::pin(main_job(&mut show, &mut federation, &endpoint, source)).await;
    federation.shutdown().await;
    endpoint.stop().await;
    outcome?;
    output::print(&format!("done in {:.1} s", show.total().as_secs_f64()))
}

async fn main_job(show: &mut Show, federation: &mut Federation, endpoint: &Endpoint, source: &Path) -> Result<()> {
    show.step("two clusters join, each by a token of its own: onprem and cloud")?;
    for name in [ONPREM, CLOUD] {
        federation.add_member(name).await?;
    }
    let client = federation.client().clone();
    make_storages(&client, source, endpoint).await?;
    show.done(&format!("onprem has the store {DISK}, cloud has {STORE} at {}", endpoint.url()))?;

    show.step(&format!("the dataset \"{DATASET}\" is what lies in {}", source.display()))?;
    let mount = Mount { mount_point: file_uri(source)?, path: "/".into(), ..Mount::default() };
    let wish = dataset::Wish { name: DATASET.into(), mounts: vec![mount], ..dataset::Wish::default() };
    dataset::create(&client, NAMESPACE, wish).await?;
    let listed = dataset::scanned(&client, NAMESPACE, DATASET, DATA_LIMIT, "").await?;
    show.done(&format!("{}, version {}", dataset::totals(DATASET, &listed), short(listed.root.as_deref())))?;

    show.step("a Placement caches it in one cluster that can read it")?;
    show.done(&place_cache(&client).await?)?;

    show.step(&format!("it migrates to the store {STORE} of the other cloud"))?;
    let result = move_to_cloud(&client).await?;
    show.done(&result)?;

    show.step("source and target are compared byte by byte, without Fluvial's help")?;
    let home = home(&client).await?;
    let (folder, from) = (endpoint.folder(&home.uri)?, source.to_owned());
    let same = tokio::task::spawn_blocking(move || compare::folders(&from, &folder)).await.context("comparing")??;
    show.done(&format!("{} files, {}, all the same", same.files, output::bytes(same.bytes)))?;

    show.step("three questions to the catalog")?;
    for sql in QUESTIONS {
        let answer = query::ask(&client, sql, query::Form::Table, "linearizable").await?;
        let answer = serde_json::from_slice(&answer).context("reading the hub's answer")?;
        show.note(&format!("> {sql}"))?;
        show.note(&query::table(&answer))?;
    }
    show.done("answered from the catalog, linearizable")?;

    show.step("the cluster onprem is removed")?;
    let mut told = Vec::new();
    cluster::remove(&client, ONPREM, Some(STEP_LIMIT), &mut |line: &str| told.push(line.to_owned())).await?;
    told.iter().try_for_each(|line| show.note(line))?;
    show.done("its cache is emptied and its certificate revoked")?;

    show.step("the dataset is still whole in the cloud")?;
    let home = self::home(&client).await?;
    show.done(&format!("{} at {}", output::bytes(home.bytes), home.uri))
}

const QUESTIONS: [&str; 3] = [
    "select name, state, platform, agent_version from clusters order by name",
    "select 'home' as what, dataset, cluster, bytes, uri as at from homes union all \
     select 'cache', dataset, cluster, cached_bytes, engine from cache_locations",
    "select name, phase, from_cluster, to_cluster, files_done, bytes_done, round(bytes_per_second / 1e6, 1) as mb_per_s \
     from operations",
];

async fn make_storages(client: &Client, source: &Path, endpoint: &Endpoint) -> Result<()> {
    // It says whose disk the source lies on: both agents are on this machine, and either could read it.
    let disk = StorageSpec { uri: file_uri(source)?, cluster: ONPREM.into(), ..StorageSpec::default() };
    storage::create(client, DISK, disk, Sorted::default()).await?;
    let cloud = StorageSpec { uri: format!("s3://{BUCKET}/homes"), cluster: CLOUD.into(), ..StorageSpec::default() };
    let (access_key, secret_key) = endpoint.keys();
    let text = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let open = BTreeMap::from([("endpoint", &*endpoint.url()), ("region", "us-east-1")].map(text));
    let hidden = BTreeMap::from([("access_key_id", access_key), ("secret_access_key", secret_key)].map(text));
    storage::create(client, STORE, cloud, options::sort(open, hidden)?).await.map(|_| ())
}

fn file_uri(folder: &Path) -> Result<String> {
    let path = folder.to_str().with_context(|| format!("--source {}: must be UTF-8", folder.display()))?;
    Ok(format!("file://{path}"))
}

/// Caches the dataset, and says what is held.
async fn place_cache(client: &Client) -> Result<String> {
    let spec = PlacementSpec {
        datasets: DatasetChoice { names: vec![DATASET.into()], selector: None },
        clusters: ClusterChoice { names: vec![ONPREM.into()], ..ClusterChoice::default() },
        ..PlacementSpec::default()
    };
    placement::create(client, NAMESPACE, PLACEMENT, spec).await?;
    let (_, locations) = placement::filled(client, NAMESPACE, PLACEMENT, DATA_LIMIT).await?;
    let held = |location: &CacheLocation| {
        let status = location.status.clone().unwrap_or_default();
        let media = status.nodes.iter().flat_map(|node| &node.media);
        let media: Vec<_> = media.map(|m| format!("{} on {}", output::bytes(m.cached_bytes), m.medium)).collect();
        format!("{}: {} files, {}", location.spec.cluster, status.cached_files, media.join(", "))
    };
    Ok(locations.iter().map(held).collect::<Vec<_>>().join("; "))
}

/// Migrates the dataset, with a bar on a terminal, and says how it went.
async fn move_to_cloud(client: &Client) -> Result<String> {
    let name = format!("{DATASET}-to-cloud");
    let wish = migrate::Wish {
        dataset: DATASET.into(),
        to: STORE.into(),
        mode: MigrateMode::Copy,
        name: name.clone(),
        ..migrate::Wish::default()
    };
    migrate::create(client, NAMESPACE, &wish).await?;
    let status = migrate::follow(client, NAMESPACE, &name, DATA_LIMIT, &mut Progress::stderr()).await?;
    migrate::complete(&name, &status)?;
    let route = status.plan.map(|plan| format!("{} by {}", plan.route, plan.executor)).unwrap_or_default();
    let rate = status.progress.bytes_per_second / 1e6;
    Ok(format!("{route}, {rate:.1} MB/s, verified at the target"))
}

/// The home in the cloud, which must be of the dataset's own version.
async fn home(client: &Client) -> Result<Home> {
    let dataset = objects::get::<Dataset>(client, NAMESPACE, DATASET).await?.context("the dataset is gone")?;
    let DatasetStatus { root, homes, .. } = dataset.status.unwrap_or_default();
    let home =
        homes.into_iter().find(|home| home.storage == STORE).context("the catalog knows no home in the cloud")?;
    ensure!(root.as_ref() == Some(&home.root), "the home in the cloud is not of the dataset's version");
    Ok(home)
}

fn short(root: Option<&str>) -> &str {
    root.and_then(|root| root.get(..12)).unwrap_or_default()
}
