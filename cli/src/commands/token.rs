//! `fluvial token`: tokens that one cluster, or one hub, may join with, once.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use fluvial_model::kinds::JoinToken;
use fluvial_model::resource::Resource as _;
use serde_json::{Value, json};

use super::delete;
use super::get::{self, Form, Which};
use crate::args::seconds;
use crate::kinds::in_path;
use crate::{client, objects, output};

const TOKENS: &str = "/apis/fluvial.io/v1alpha1/tokens";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the command that joins with a new token.
    Create {
        /// The cluster that may join.
        #[arg(long, required_unless_present = "hub", conflicts_with = "hub")]
        cluster: Option<String>,
        /// For another hub.
        #[arg(long)]
        hub: bool,
        /// How long it is good for: seconds, or a number with s, m, h or d.
        #[arg(long, default_value = "15m", value_parser = seconds)]
        ttl: u64,
    },
    /// List the tokens that were handed out; the tokens themselves are kept nowhere.
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: Form,
    },
    /// Make a token useless, by the name that `list` shows.
    Revoke { name: String },
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, command: Command) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    match command {
        Command::Create { cluster, hub, ttl } => {
            let wish = if hub {
                json!({ "hub": true, "ttlSeconds": ttl })
            } else {
                json!({ "cluster": cluster, "ttlSeconds": ttl })
            };
            let answer = client::post(&client, TOKENS, &wish).await?;
            let answer: Value = serde_json::from_str(&answer).context("reading the hub's answer")?;
            let line = answer.get("command").and_then(Value::as_str).context("the hub's answer has no command")?;
            output::print(line)
        }
        Command::List { output } => get::one_kind(&client, "jointokens", Which::default(), output).await,
        Command::Revoke { name } => {
            let path = objects::path(&JoinToken::INFO, "", Some(in_path("token", &name)?));
            delete::remove(&client, &path).await?;
            output::print(&format!("token \"{name}\" is revoked"))
        }
    }
}
