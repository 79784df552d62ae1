//! Where the measured programs are: the peers in the test bed, `fluvial` in this checkout's release build.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use fluvial_tests::bed::repo_root;

/// A peer. Never what `PATH` happens to hold: its version is pinned by the bed.
pub(crate) fn peer(name: &str) -> Result<PathBuf> {
    let installer = repo_root().join("tests/bed/install");
    let output =
        Command::new(installer).arg("--print-path").output().context("asking tests/bed/install for its folder")?;
    ensure!(output.status.success(), "`tests/bed/install --print-path` ended with {}", output.status);
    let program = PathBuf::from(String::from_utf8(output.stdout)?.trim_end()).join(name);
    if !program.is_file() {
        bail!("the peer `{name}` is missing: run `tests/bed/install benches`");
    }
    Ok(program)
}

/// `$FLUVIAL_BIN`, or the release build of this checkout, which is brought up to date first.
pub(crate) fn fluvial() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("FLUVIAL_BIN") {
        return Ok(program.into());
    }
    eprintln!("building fluvial");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--quiet", "-p", "fluvial"])
        .current_dir(repo_root())
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "`cargo build --release -p fluvial` ended with {status}");
    let this = std::env::current_exe().context("finding this program")?;
    // Both lie in target/release.
    let program = this.with_file_name("fluvial");
    ensure!(program.is_file(), "no `fluvial` beside {}: run this with `cargo run --release`", this.display());
    Ok(program)
}
