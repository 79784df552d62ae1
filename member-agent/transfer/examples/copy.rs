//! One copy: `copy JOB SOURCE-URI TARGET-URI STATE-DIR [PART-SIZE]`; S3 options come from the usual `AWS_` variables.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::PathBuf;

use fluvial_model::manifest::RelativePath;
use fluvial_transfer::{BlockStore, CopyContext, CopyJob, Journal, Location, Progress, SourceMount, copy};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn location(uri: &str) -> Location {
    let mut location = Location::new(uri);
    let variable = |name: &str| std::env::var(name).ok();
    for (option, name) in [("endpoint", "AWS_ENDPOINT_URL"), ("region", "AWS_REGION")] {
        location.options.extend(variable(name).map(|value| (option.to_owned(), value)));
    }
    for (option, name) in [("access_key_id", "AWS_ACCESS_KEY_ID"), ("secret_access_key", "AWS_SECRET_ACCESS_KEY")] {
        location.secrets.extend(variable(name).map(|value| (option.to_owned(), value.into())));
    }
    location
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [id, source, target, state, rest @ ..] = arguments.as_slice() else {
        return Err("usage: copy JOB SOURCE-URI TARGET-URI STATE-DIR [PART-SIZE]".into());
    };
    let state = PathBuf::from(state);
    std::fs::create_dir_all(&state)?;
    let sources = vec![SourceMount { path: RelativePath::root(), location: location(source) }];
    let mut job = CopyJob::new(id, sources, location(target));
    if let Some(part_size) = rest.first() {
        job.part_size = part_size.parse()?;
    }
    let (progress, _) = watch::channel(Progress::default());
    let journal = Journal::open(state.join("journal.sqlite"))?;
    let blocks = BlockStore::open(state.join("blocks"))?;
    let report = copy(job, CopyContext::new(journal, blocks, progress, CancellationToken::new())).await?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
