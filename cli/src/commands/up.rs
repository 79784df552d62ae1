//! `fluvial up`: hubs and host members in one process, from one folder.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;

use super::until_told_to_stop;
use crate::local::{Federation, Wish};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where everything is kept; what is there already is taken up.
    #[arg(long)]
    data_dir: PathBuf,
    /// How many hubs: 1, or 3 to survive the loss of one.
    #[arg(long)]
    hubs: Option<usize>,
    /// Host members, separated by commas; each has its own folder and joins by a token.
    #[arg(long, value_delimiter = ',')]
    members: Option<Vec<String>>,
    /// Where the first hub listens; 127.0.0.1:7461 in a new folder.
    #[arg(long)]
    listen: Option<SocketAddr>,
}

/// Prints one line of JSON when everything answers, and runs until SIGINT or SIGTERM.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { data_dir, hubs, members, listen } = arguments;
    let mut stop = std::pin::pin!(until_told_to_stop()?);
    let federation = tokio::select! {
        started = Box::pin(Federation::start(Wish { data_dir, hubs, members, listen })) => started?,
        () = &mut stop => return Ok(()),
    };
    let line = json!({
        "address": federation.url(),
        "kubeconfig": federation.kubeconfig(),
        "pid": std::process::id(),
        "hubs": federation.hub_urls(),
        "members": federation.members(),
    });
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("printing the address")?;
    let failure = tokio::select! {
        () = stop => None,
        failure = federation.failed() => Some(failure),
    };
    federation.shutdown().await;
    failure.map_or(Ok(()), |failure| Err(failure).context("a hub had to stop"))
}
