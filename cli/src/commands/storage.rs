//! `fluvial storage`: places where data of record can live.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use fluvial_model::kinds::{Storage, StorageSpec};
use fluvial_model::resource::Resource as _;
use kube::Client;

use super::dataset::location_uri;
use super::options::{self, Keeper, Options, Sorted};
use crate::args::bytes;
use crate::{client, objects, output};

/// Storages stand in no namespace: their Secrets are kept in this one.
const SECRETS_IN: &str = "default";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a Storage.
    Create(Create),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    name: String,
    /// Where it is: s3://, oss:// or gs://bucket/prefix, azblob://container/prefix, file:///dir or a local folder.
    #[arg(long)]
    uri: String,
    /// The cluster that it belongs to; for file:// the only one that reaches it.
    #[arg(long)]
    cluster: String,
    #[command(flatten)]
    options: Options,
    /// The most that datasets may take here, such as 20Gi.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    capacity: Option<u64>,
    /// The price of keeping a GB for a month.
    #[arg(long)]
    price_per_gb_month: Option<f64>,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, command: Command) -> Result<()> {
    let Command::Create(arguments) = command;
    let spec = StorageSpec {
        uri: location_uri(&arguments.uri).context("--uri")?,
        cluster: arguments.cluster,
        capacity_bytes: arguments.capacity,
        price_per_gb_month: arguments.price_per_gb_month,
        ..StorageSpec::default()
    };
    let options = arguments.options.sorted()?;
    let client = client::connect(kubeconfig).await?;
    let made = create(&client, &arguments.name, spec, options).await?;
    output::print(&format!("storage.fluvial.io/{} created", made.metadata.name))
}

/// Creates a Storage, and the Secret with its secret options.
///
/// # Errors
/// With what the hub says; then neither exists.
pub(crate) async fn create(client: &Client, name: &str, spec: StorageSpec, options: Sorted) -> Result<Storage> {
    let keeper = Keeper::new(SECRETS_IN, format!("{name}-storage-options"), format!("storage.{name}"), options.secret);
    let spec = StorageSpec { options: options.plain, encrypt_options: keeper.references(true), ..spec };
    let storage = serde_json::to_value(Storage::new("", name, spec)).context("writing the storage as JSON")?;
    let path = objects::path(&Storage::INFO, "", None);
    let made = options::create_with(client, &path, &storage, &keeper).await?;
    Storage::from_value(&made).context("reading the hub's answer")
}
