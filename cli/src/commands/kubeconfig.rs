//! `fluvial kubeconfig`: the file that opens the hub, for `kubectl` and others.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{client, output};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Copy it to this file, which only its owner may read, instead of printing it. It holds a private key.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(kubeconfig: Option<PathBuf>, arguments: Arguments) -> Result<()> {
    let path = client::kubeconfig(kubeconfig)?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    match arguments.output {
        Some(copy) => client::write_private(&copy, &text),
        None => output::print(&text),
    }
}
