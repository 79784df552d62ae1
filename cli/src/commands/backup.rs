//! `fluvial backup`, `fluvial restore`: snapshots of datasets, and what becomes of them.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use fluvial_model::kinds::{DataBackup, DataBackupSpec, DataRestore, DataRestoreSpec, MemberDirectory};
use fluvial_model::resource::Resource;
use http::Method;
use kube::Client;

use super::operation;
use crate::client::{self, JSON};
use crate::kinds::in_path;
use crate::objects;

#[derive(Debug, Args)]
pub(crate) struct Backup {
    dataset: String,
    /// The BackupRepository.
    #[arg(long)]
    repository: String,
    /// Check the repository's structure afterwards.
    #[arg(long)]
    check: bool,
    /// Only say who would do it, and how much there is.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    begin: operation::Begin,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The dataset to fill, or to make.
    dataset: String,
    /// The BackupRepository.
    #[arg(long)]
    repository: String,
    /// The beginning of a snapshot's id; the newest of the dataset if not given.
    #[arg(long)]
    snapshot: Option<String>,
    /// The dataset whose newest snapshot is meant, if it has another name.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    from: Option<String>,
    /// The Storage that gets a new home of the dataset.
    #[arg(long, value_name = "STORAGE", required_unless_present = "directory", conflicts_with = "directory")]
    to: Option<String>,
    /// A directory of a member's machine, empty or not there yet; the catalog does not know it.
    #[arg(long, requires = "cluster")]
    directory: Option<PathBuf>,
    /// The member on whose machine the directory is.
    #[arg(long, requires = "directory")]
    cluster: Option<String>,
    /// A file or directory to restore; everything if none is given.
    #[arg(long = "path", value_name = "PATH")]
    paths: Vec<String>,
    /// Parallel streams; 16 if not given.
    #[arg(long)]
    parallelism: Option<u32>,
    #[command(flatten)]
    begin: operation::Begin,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, arguments: Backup) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    let Backup { dataset, repository, check, dry_run, begin } = arguments;
    let spec = DataBackupSpec { dataset: dataset.clone(), repository, check, dry_run, ..DataBackupSpec::default() };
    let begin = operation::Begin { wait: begin.wait || dry_run, ..begin };
    let operation = DataBackup::new(begin.namespace.of(&client), "", spec);
    create(&client, operation, &dataset, &begin).await
}

pub(crate) async fn restore(kubeconfig: Option<PathBuf>, arguments: Restore) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    let directory = match (arguments.directory, arguments.cluster) {
        (Some(directory), Some(cluster)) => {
            let path = std::path::absolute(&directory).context("reading the directory")?;
            let Some(path) = path.to_str() else { bail!("directory {}: it is not UTF-8", directory.display()) };
            Some(MemberDirectory { cluster, path: path.to_owned() })
        }
        _ => None,
    };
    let spec = DataRestoreSpec {
        dataset: arguments.dataset.clone(),
        repository: arguments.repository,
        snapshot: arguments.snapshot.unwrap_or_default(),
        from_dataset: arguments.from.unwrap_or_default(),
        paths: arguments.paths,
        storage: arguments.to.unwrap_or_default(),
        directory,
        parallelism: arguments.parallelism,
        ..DataRestoreSpec::default()
    };
    let operation = DataRestore::new(arguments.begin.namespace.of(&client), "", spec);
    create(&client, operation, &arguments.dataset, &arguments.begin).await
}

/// Creates an operation, and follows it if that is asked for.
async fn create<R: Resource>(client: &Client, mut wish: R, dataset: &str, begin: &operation::Begin) -> Result<()> {
    let namespace = in_path("namespace", begin.namespace.of(client))?.to_owned();
    match &begin.name {
        Some(name) => wish.meta_mut().name.clone_from(name),
        None => wish.meta_mut().generate_name = format!("{dataset}-"),
    }
    let object = serde_json::to_value(&wish).context("writing the operation as JSON")?;
    let made =
        client::write(client, Method::POST, &objects::path(&R::INFO, &namespace, None), Some((JSON, &object))).await?;
    let made = R::from_value(&made).context("reading the hub's answer")?;
    let name = made.meta().name.clone();
    let object = serde_json::to_value(&made).context("writing the operation")?;
    operation::begun(client, (&R::INFO, &namespace, &name), &object, begin).await
}
