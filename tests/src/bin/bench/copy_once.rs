//! One copy with the transfer crate as the agent makes it: default streams and parts, its journal and blocks on disk.
//!
//! It runs in a process of its own, like the peer, so that memory and processor time are the copy's alone.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use fluvial_model::manifest::RelativePath;
use fluvial_transfer::{BlockStore, CopyContext, CopyJob, Journal, Location, Progress, SourceMount, copy};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Environment variables with the S3 server's address and keys: arguments can be seen by everybody on the machine.
pub(crate) const ENDPOINT: &str = "BENCH_S3_ENDPOINT";
pub(crate) const ACCESS_KEY: &str = "BENCH_S3_ACCESS_KEY";
pub(crate) const SECRET_KEY: &str = "BENCH_S3_SECRET_KEY";
pub(crate) const REGION: &str = "BENCH_S3_REGION";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// `file:///DIR` or `s3://BUCKET/PREFIX`.
    source: String,
    target: String,
    /// Gets the journal and the blocks.
    state: PathBuf,
}

/// A location, with the keys of the environment if it is in a bucket.
pub(crate) fn location(uri: String) -> Result<Location> {
    let s3 = uri.starts_with("s3://");
    let mut location = Location::new(uri);
    if s3 {
        let variable = |name: &str| std::env::var(name).with_context(|| format!("reading {name}"));
        location.options.insert("endpoint".into(), variable(ENDPOINT)?);
        location.options.insert("region".into(), variable(REGION)?);
        location.secrets.insert("access_key_id".into(), variable(ACCESS_KEY)?.into());
        location.secrets.insert("secret_access_key".into(), variable(SECRET_KEY)?.into());
    }
    Ok(location)
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { source, target, state } = arguments;
    std::fs::create_dir_all(&state).context("making the state folder")?;
    let sources = vec![SourceMount { path: RelativePath::root(), location: location(source)? }];
    let job = CopyJob::new("bench", sources, location(target)?);
    let journal = Journal::open(state.join("journal.db"))?;
    let blocks = BlockStore::open(state.join("blocks"))?;
    let (progress, _) = watch::channel(Progress::default());
    let report = copy(job, CopyContext::new(journal, blocks, progress, CancellationToken::new())).await?;
    eprintln!("{}", serde_json::to_string(&report)?);
    Ok(())
}
