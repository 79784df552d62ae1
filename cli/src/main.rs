//! The binary `fluvial`: arguments in, one clear line of error out. Exit code 1 is a failure, 2 a wrong usage.
//!
//! Deliberately absent: decisions and I/O of their own; every command calls the hub's crate or its API.

mod client;
mod commands;
mod local;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::{hub, member, query, token, up};

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
    /// Make a hub, run it, or let another hub join.
    #[command(subcommand)]
    Hub(hub::Command),
    /// Let this machine join as a cluster, or run its agent.
    #[command(subcommand)]
    Member(member::Command),
    /// Tokens to join with.
    #[command(subcommand)]
    Token(token::Command),
    /// Ask the catalog in SQL.
    Query(query::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // Several libraries bring a provider: the choice must be made once, before any of them is asked.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("error: a TLS provider was installed before ours");
        return ExitCode::FAILURE;
    }
    let outcome = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            match arguments.command {
                Command::Up(up) => up::run(up).await,
                Command::Hub(command) => hub::run(command).await,
                Command::Member(command) => member::run(command).await,
                Command::Token(command) => token::run(arguments.kubeconfig, command).await,
                Command::Query(query) => query::run(arguments.kubeconfig, query).await,
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
