//! `fluvial user`: users of the hub's own making, and their credentials.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use fluvial_certs::KeyPair;
use fluvial_model::kinds::{User, UserSpec};
use fluvial_model::resource::Resource as _;
use http::Method;
use kube::Client;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::get::{self, Form, Which};
use super::hook::hub;
use crate::args::seconds;
use crate::kinds::in_path;
use crate::{client, objects, output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a user, and print a kubeconfig with its first credential. What it may do, roles and their bindings say.
    Create {
        name: String,
        /// A group that bindings may name; give it again for more.
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
        #[command(flatten)]
        credential: Credential,
    },
    /// Print a kubeconfig with another credential of a user.
    Kubeconfig {
        name: String,
        #[command(flatten)]
        credential: Credential,
    },
    /// List the users that were created.
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: Form,
    },
    /// Make everything useless that a user was given so far; who deletes the user does so, too.
    Revoke { name: String },
}

/// What the kubeconfig holds.
#[derive(Debug, Args)]
pub(crate) struct Credential {
    /// A bearer token in place of a certificate.
    #[arg(long)]
    token: bool,
    /// How long it is good for: seconds, or a number with s, m, h or d.
    #[arg(long, default_value = "90d", value_parser = seconds)]
    ttl: u64,
    /// Write the kubeconfig to this file, which only its owner may read.
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, command: Command) -> Result<()> {
    let settings = client::kubeconfig(kubeconfig.clone())?;
    let client = client::connect(kubeconfig).await?;
    match command {
        Command::Create { name, groups, credential } => {
            in_path("user", &name)?;
            let user = serde_json::to_value(User::new("", &name, UserSpec { groups })).context("writing the user")?;
            client::post(&client, &objects::path(&User::INFO, "", None), &user).await?;
            give(&client, &settings, &name, credential).await
        }
        Command::Kubeconfig { name, credential } => give(&client, &settings, &name, credential).await,
        Command::List { output } => get::one_kind(&client, "users.fluvial.io", Which::default(), output).await,
        Command::Revoke { name } => {
            client::write(&client, Method::DELETE, &credentials(&name)?, None).await?;
            output::print(&format!("what user \"{name}\" was given so far is good for nothing any more"))
        }
    }
}

fn credentials(name: &str) -> Result<String> {
    Ok(format!("{}/credentials", objects::path(&User::INFO, "", Some(in_path("user", name)?))))
}

/// Asks for a credential and writes the kubeconfig that holds it. A certificate's key never leaves this machine.
async fn give(client: &Client, settings: &std::path::Path, name: &str, credential: Credential) -> Result<()> {
    let Credential { token, ttl, file } = credential;
    let path = credentials(name)?;
    let ask = async |wish: Value| -> Result<Value> {
        let answer = client::post(client, &path, &wish).await?;
        serde_json::from_str(&answer).context("reading the hub's answer")
    };
    let user = if token {
        let answer = ask(json!({ "token": true, "ttlSeconds": ttl })).await?;
        json!({ "token": text(&answer, "token")? })
    } else {
        let key = KeyPair::generate().context("making a key")?;
        let csr = key.csr().context("asking for a certificate")?;
        let answer = ask(json!({ "csr": csr, "ttlSeconds": ttl })).await?;
        json!({
            "client-certificate-data": STANDARD.encode(text(&answer, "certificate")?),
            "client-key-data": STANDARD.encode(key.to_pem().expose_secret()),
        })
    };
    let (server, ca) = hub(settings)?;
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fluvial",
        "clusters": [{
            "name": "fluvial",
            "cluster": { "server": server, "certificate-authority-data": STANDARD.encode(ca) },
        }],
        "users": [{ "name": name, "user": user }],
        "contexts": [{
            "name": "fluvial",
            "context": { "cluster": "fluvial", "user": name, "namespace": client.default_namespace() },
        }],
    });
    let yaml = serde_yaml_ng::to_string(&config).context("writing the kubeconfig")?;
    match file {
        Some(file) => client::write_private(&file, &yaml),
        None => output::print(yaml.trim_end()),
    }
}

fn text<'a>(answer: &'a Value, field: &str) -> Result<&'a str> {
    answer.get(field).and_then(Value::as_str).with_context(|| format!("the hub's answer has no {field}"))
}
