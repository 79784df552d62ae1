//! `fluvial hook`: addresses that stores call when something in them changed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use clap::{Args, Subcommand};
use fluvial_model::kinds::{SecretKeySelector, SourceHook, SourceHookSpec};
use fluvial_model::resource::Resource as _;
use kube::config::Kubeconfig;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::options::{self, Keeper};
use crate::args::Namespace;
use crate::kinds::in_path;
use crate::{client, objects, output};

/// Under this key the Secret holds the token.
const KEY: &str = "token";
/// 256 bits: nobody guesses them.
const TOKEN_BYTES: usize = 32;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create an address for the notifications of a store, and print it with its token, once, as JSON.
    Create(Create),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    name: String,
    #[command(flatten)]
    namespace: Namespace,
    /// Write the hub's CA certificates to this file, for the store that is to trust them.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, command: Command) -> Result<()> {
    let Command::Create(Create { name, namespace, ca_file }) = command;
    let path = client::kubeconfig(kubeconfig.clone())?;
    let client = client::connect(kubeconfig).await?;
    let namespace = namespace.of(&client);
    in_path("namespace", namespace)?;
    in_path("hook", &name)?;
    let (server, ca) = hub(&path)?;
    let token: SecretString = URL_SAFE_NO_PAD.encode(rand::random::<[u8; TOKEN_BYTES]>()).into();
    let values = BTreeMap::from([(KEY.to_owned(), token.clone())]);
    let secret = format!("{name}-hook-token");
    let keeper = Keeper::new(namespace, secret.clone(), format!("sourcehook.{name}"), values);
    let reference = SecretKeySelector { name: secret, key: KEY.to_owned(), namespace: String::new() };
    let hook = SourceHook::new(namespace, &name, SourceHookSpec { token_secret_ref: reference });
    let hook = serde_json::to_value(&hook).context("writing the hook as JSON")?;
    options::create_with(&client, &objects::path(&SourceHook::INFO, namespace, None), &hook, &keeper).await?;
    if let Some(file) = ca_file {
        std::fs::write(&file, ca).with_context(|| format!("writing {}", file.display()))?;
    }
    let own = objects::path(&SourceHook::INFO, namespace, Some(&name));
    let answer = json!({ "url": format!("{server}{own}/notifications"), "token": token.expose_secret() });
    output::print(&answer.to_string())
}

/// Where the hub of a kubeconfig is, and its CA certificates in PEM.
pub(super) fn hub(path: &std::path::Path) -> Result<(String, Vec<u8>)> {
    let shown = || format!("reading {}", path.display());
    let file = Kubeconfig::read_from(path).with_context(shown)?;
    let context = file.contexts.iter().find(|context| Some(&context.name) == file.current_context.as_ref());
    let named = context.and_then(|context| context.context.as_ref()).map(|context| &context.cluster);
    let cluster = file.clusters.iter().find(|cluster| Some(&cluster.name) == named).and_then(|c| c.cluster.as_ref());
    let server =
        cluster.and_then(|cluster| cluster.server.clone()).context("it names no server").with_context(shown)?;
    let ca = cluster.and_then(|cluster| cluster.certificate_authority_data.as_deref()).unwrap_or_default();
    let ca = STANDARD.decode(ca).context("certificate-authority-data is no base64").with_context(shown)?;
    Ok((server.trim_end_matches('/').to_owned(), ca))
}
