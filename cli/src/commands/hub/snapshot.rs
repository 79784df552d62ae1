//! `fluvial hub snapshot`: the hub into a file, a hub from a file, and what is in a file.
//!
//! Invariants: a file appears under its name when it is whole and on the disk, in place of an older one; the password
//! leaves this process only as the key that is derived from it, and is part of no error.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use clap::error::ErrorKind;
use fluvial_hub::run;
use fluvial_hub::snapshot::key::Derivation;
use fluvial_hub::snapshot::{self, Contents, RestoreOptions};
use http::Method;
use http_body_util::BodyExt as _;
use kube::Client;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::HUBS;
use crate::args::duration;
use crate::client::{self, Call, Failure, JSON, write_private};
use crate::commands::options::secret_value;
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Save everything that the hubs hold, as of now, in an encrypted file.
    Save {
        file: PathBuf,
        /// The password that opens the file again.
        #[arg(long, value_name = "env:NAME|file:PATH")]
        password: String,
    },
    /// Make the first hub of a new federation from such a file, when all hubs are lost; then start it and let others join.
    Restore {
        file: PathBuf,
        #[arg(long)]
        data_dir: PathBuf,
        /// Where the hub will listen: agents look for it where hubs were before.
        #[arg(long)]
        listen: SocketAddr,
        /// Where to write a new kubeconfig for the administrator.
        #[arg(long)]
        kubeconfig: PathBuf,
        /// The host:port by which others reach it, if it is not the one it listens on.
        #[arg(long)]
        advertise: Option<String>,
        /// The password that the file was saved with.
        #[arg(long, value_name = "env:NAME|file:PATH")]
        password: String,
        /// How long agents keep what was made after the snapshot, from the hub's first start on.
        #[arg(long, default_value = "15m", value_parser = duration)]
        settle: Duration,
    },
    /// Check that a file is whole, and say what it holds. Needs no password.
    Inspect {
        file: PathBuf,
        #[arg(short, long, value_enum, default_value_t)]
        output: output::Form,
    },
    /// End the time after a restore in which agents keep what the hub does not know.
    Settle,
}

pub(super) async fn run(kubeconfig: Option<PathBuf>, command: Command) -> Result<()> {
    match command {
        Command::Save { file, password } => {
            let password = given(&password)?;
            let client = client::connect(kubeconfig).await?;
            let contents = save(&client, &file, password).await?;
            output::print(&format!("{} has {}", file.display(), summary(&contents)))
        }
        Command::Restore { file, data_dir, listen, kubeconfig, advertise, password, settle } => {
            let password = given(&password)?;
            let options = RestoreOptions { file, password, data_dir: data_dir.clone(), listen, advertise, settle };
            // It reads and writes files, and has a processor busy.
            let report = tokio::task::spawn_blocking(move || snapshot::restore(options)).await??;
            let url = format!("https://{}", report.record.advertise);
            write_private(&kubeconfig, &run::admin_kubeconfig(&data_dir, &url)?)?;
            eprintln!(
                "restored {} as hub {} at revision {} for {url}; start it: fluvial hub run --data-dir {}",
                summary(&report.contents),
                report.record.node_id,
                report.revision,
                data_dir.display()
            );
            Ok(())
        }
        Command::Inspect { file, output } => {
            let contents = tokio::task::spawn_blocking(move || snapshot::inspect(&file)).await??;
            match output {
                output::Form::Table => output::print(&table(&contents)),
                form => output::value(&described(&contents), form),
            }
        }
        Command::Settle => {
            let client = client::connect(kubeconfig).await?;
            let answer = client::write(&client, Method::DELETE, &format!("{HUBS}/recovery"), None).await?;
            let ended = answer.get("ended").and_then(Value::as_bool) == Some(true);
            output::print(if ended { "the recovery is over" } else { "no recovery was under way" })
        }
    }
}

/// A password that is not on the command line itself. A wrong usage ends the process without repeating what was given,
/// which may be the password.
fn given(text: &str) -> Result<SecretString> {
    let place = match text.split_once(':') {
        Some(("env", _)) => text.to_owned(),
        Some(("file", path)) => format!("@{path}"),
        _ => {
            let message = "--password: expected env:NAME or file:PATH; others can see what is on a command line\n";
            clap::Error::raw(ErrorKind::ValueValidation, message).exit()
        }
    };
    secret_value(&place).context("reading the password")
}

/// Has a hub save itself into `file`.
async fn save(client: &Client, file: &Path, password: SecretString) -> Result<Contents> {
    let shown = || format!("writing {}", file.display());
    let folder = file.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Only its owner may read it; it goes if anything fails.
    let mut part = tempfile::Builder::new().prefix(".fluvial-snapshot-").tempfile_in(folder).with_context(shown)?;
    let derivation = Derivation::fresh();
    let key = {
        let derivation = derivation.clone();
        tokio::task::spawn_blocking(move || derivation.derive(&password)).await??
    };
    let wish = json!({ "derivation": derivation, "key": STANDARD.encode(key.as_slice()) });
    let path = format!("{HUBS}/snapshot");
    let content = Some((JSON, serde_json::to_vec(&wish).context("writing the request")?));
    let call = Call { method: Method::POST, path: &path, content, accept: "*/*" };
    let mut body = client::open(client, call).await?.into_body();
    loop {
        let frame = tokio::time::timeout(client::ANSWER_WITHIN, body.frame()).await.map_err(|_| Failure::Silent)?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| anyhow!(error).context("the hub broke off: the snapshot is not whole"))?;
        if let Ok(data) = frame.into_data() {
            part.write_all(&data).with_context(shown)?;
        }
    }
    let contents = snapshot::inspect(part.path())?;
    part.as_file().sync_all().with_context(shown)?;
    part.persist(file).with_context(shown)?;
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).with_context(shown)?;
    Ok(contents)
}

fn summary(contents: &Contents) -> String {
    let blocks = output::count(contents.footer.blocks, "block", "blocks");
    let missing = match contents.footer.missing_blocks {
        0 => String::new(),
        missing => format!(" ({missing} more are on no hub)"),
    };
    let objects = output::count(contents.footer.objects, "object", "objects");
    format!("{objects} and {blocks}{missing} of revision {}", contents.header.revision)
}

fn described(contents: &Contents) -> Value {
    let Contents { format, header, footer, bytes, digest, .. } = contents;
    json!({
        "format": format,
        "fluvial": header.fluvial,
        "created": header.created,
        "trustDomain": header.trust_domain,
        "cluster": header.cluster,
        "revision": header.revision,
        "epoch": header.epoch,
        "objects": footer.objects,
        "blocks": footer.blocks,
        "missingBlocks": footer.missing_blocks,
        "contentBytes": footer.bytes,
        "fileBytes": bytes,
        "blake3": digest.to_string(),
    })
}

fn table(contents: &Contents) -> String {
    let described = described(contents);
    let rows = described.as_object().into_iter().flatten();
    let rows = rows.map(|(name, value)| vec![name.clone(), output::cell(value)]).collect();
    output::table(&["FIELD".to_owned(), "VALUE".to_owned()], rows, &[])
}
