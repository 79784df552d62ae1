//! `fluvial completion`: what a shell needs to complete these commands.

use anyhow::Result;
use clap::{Args, ValueEnum};
use clap_complete::Shell;

use crate::output;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    shell: Known,
}

pub(crate) fn run(arguments: Arguments, mut command: clap::Command) -> Result<()> {
    let shell = match arguments.shell {
        Known::Bash => Shell::Bash,
        Known::Zsh => Shell::Zsh,
        Known::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "fluvial", &mut script);
    output::write(&script)
}
