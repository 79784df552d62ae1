//! The binary `fluvial`: arguments in, one clear line of error out. Exit code 1 is a failure, 2 a wrong usage.
//!
//! Deliberately absent: decisions and I/O of their own; every command calls the hub's crate or its API.

mod args;
mod client;
mod commands;
mod kinds;
mod local;
mod objects;
mod output;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::commands::{
    apply, audit, backup, cluster, completion, dataset, delete, demo, describe, get, hook, hub, kubeconfig, load,
    member, migrate, mount, node, op, placement, query, repository, storage, token, up, user, watch,
};

/// A federation hub for datasets.
#[derive(Debug, Parser)]
#[command(name = "fluvial", version, about)]
struct Arguments {
    /// The hub's address and the caller's identity; else $FLUVIAL_KUBECONFIG, else ~/.config/fluvial/kubeconfig.
    #[arg(long, global = true, env = "FLUVIAL_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run hubs and host members in one process.
    Up(up::Arguments),
    /// Show the main job on real data, in one process.
    Demo(demo::Arguments),
    /// Make a hub, run it, let another hub join, or see one off.
    #[command(subcommand)]
    Hub(hub::Command),
    /// Let this machine join as a cluster, or run its agent.
    #[command(subcommand)]
    Member(member::Command),
    /// Further machines of a cluster: join, run, remove.
    #[command(subcommand)]
    Node(node::Command),
    /// Tokens to join with.
    #[command(subcommand)]
    Token(token::Command),
    /// Users: create, list, revoke, and kubeconfigs for them.
    #[command(subcommand)]
    User(user::Command),
    /// Member clusters: list, get, drain, remove.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Datasets: create, and look into them.
    #[command(subcommand)]
    Dataset(dataset::Command),
    /// Addresses that stores call when something in them changed.
    #[command(subcommand)]
    Hook(hook::Command),
    /// Places where data of record can live.
    #[command(subcommand)]
    Storage(storage::Command),
    /// Which datasets are cached where.
    #[command(subcommand)]
    Placement(placement::Command),
    /// Bring a dataset into a Storage.
    Migrate(migrate::Arguments),
    /// Bring a dataset into the caches that hold it, before anybody reads.
    Load(load::Arguments),
    /// Write a snapshot of a dataset into a BackupRepository.
    Backup(backup::Backup),
    /// Make a home of a dataset, or a directory, of a snapshot.
    Restore(backup::Restore),
    /// Repositories of backups: create, list, snapshots, check, prune.
    #[command(subcommand)]
    Repository(repository::Command),
    /// Show a dataset as a directory of this machine.
    Mount(mount::Mount),
    /// Take such a directory away.
    Unmount(mount::Unmount),
    #[command(hide = true)]
    ServeMount(mount::ServeMount),
    /// Operations: list, wait, cancel.
    #[command(subcommand)]
    Op(op::Command),
    /// Ask the catalog in SQL.
    Query(query::Arguments),
    /// Show who did what, and whether that record is whole.
    Audit(audit::Arguments),
    /// Show objects of any kind.
    Get(get::Arguments),
    /// Show one object in full, with what happened to it.
    Describe(describe::Arguments),
    /// Make objects be what a file says.
    Apply(apply::Arguments),
    /// Delete an object.
    Delete(delete::Arguments),
    /// Print a line for each change.
    Watch(watch::Arguments),
    /// Print or copy the kubeconfig in use.
    Kubeconfig(kubeconfig::Arguments),
    /// Print a shell's completion script.
    Completion(completion::Arguments),
}

/// The demo ends hubs that talk with each other, and an agent that was removed and says so: neither is news.
const QUIET_DEMO: &str = "error,openraft=off,fluvial_member_agent::uplink=off";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    fluvial_mount::bound_heaps();
    // The client library logs what its callers are told anyway: a failure is one line. A heartbeat that came late
    // is nothing that anybody could act on.
    let default = if matches!(arguments.command, Command::Demo(_)) {
        QUIET_DEMO
    } else {
        "warn,kube_client=off,openraft::core::heartbeat=error"
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // Several libraries bring a provider: the choice must be made once, before any of them is asked.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("error: a TLS provider was installed before ours");
        return ExitCode::FAILURE;
    }
    raise_open_files();
    let outcome = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            let Arguments { kubeconfig, command } = arguments;
            match command {
                Command::Up(arguments) => up::run(arguments).await,
                Command::Demo(arguments) => demo::run(arguments).await,
                Command::Hub(command) => hub::run(kubeconfig, command).await,
                Command::Member(command) => member::run(command).await,
                Command::Node(command) => node::run(kubeconfig, command).await,
                Command::Token(command) => token::run(kubeconfig, command).await,
                Command::User(command) => user::run(kubeconfig, command).await,
                Command::Cluster(command) => cluster::run(kubeconfig, command).await,
                Command::Dataset(command) => dataset::run(kubeconfig, command).await,
                Command::Hook(command) => hook::run(kubeconfig, command).await,
                Command::Storage(command) => storage::run(kubeconfig, command).await,
                Command::Placement(command) => placement::run(kubeconfig, command).await,
                Command::Migrate(arguments) => migrate::run(kubeconfig, arguments).await,
                Command::Load(arguments) => load::run(kubeconfig, arguments).await,
                Command::Backup(arguments) => backup::run(kubeconfig, arguments).await,
                Command::Restore(arguments) => backup::restore(kubeconfig, arguments).await,
                Command::Repository(command) => repository::run(kubeconfig, command).await,
                Command::Mount(arguments) => mount::run(kubeconfig, arguments).await,
                Command::Unmount(arguments) => mount::unmount(kubeconfig, arguments).await,
                Command::ServeMount(arguments) => mount::serve(arguments).await,
                Command::Op(command) => op::run(kubeconfig, command).await,
                Command::Query(arguments) => query::run(kubeconfig, arguments).await,
                Command::Audit(arguments) => audit::run(kubeconfig, arguments).await,
                Command::Get(arguments) => get::run(kubeconfig, arguments).await,
                Command::Describe(arguments) => describe::run(kubeconfig, arguments).await,
                Command::Apply(arguments) => apply::run(kubeconfig, arguments).await,
                Command::Delete(arguments) => delete::run(kubeconfig, arguments).await,
                Command::Watch(arguments) => watch::run(kubeconfig, arguments).await,
                Command::Kubeconfig(arguments) => kubeconfig::run(kubeconfig, arguments),
                Command::Completion(arguments) => completion::run(arguments, Arguments::command()),
            }
        })
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Caches and mounts have many files open: what the system allows is used. What it does not is not.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        eprintln!("warning: the limit of open files stays as it is: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_of_every_command_fit_together() {
        Arguments::command().debug_assert();
    }
}
