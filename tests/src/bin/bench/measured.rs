//! One run of a program: how long it took, what it cost the processors, and the most memory that it held.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use tokio::process::Command;

/// How often the memory is looked at. The kernel keeps the highest value, so only what a process takes in its last
/// moments can be missed.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A run that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(600);

/// What one run came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_mib: f64,
}

impl Usage {
    /// One run after another.
    pub(crate) fn and_then(self, next: Self) -> Self {
        Self {
            seconds: self.seconds + next.seconds,
            cpu_seconds: self.cpu_seconds + next.cpu_seconds,
            peak_mib: self.peak_mib.max(next.peak_mib),
        }
    }
}

/// Runs a program that must succeed; it is killed if this is dropped. Its output goes to `log`.
///
/// Processor time is that of every child that ended meanwhile: callers run one at a time.
pub(crate) async fn run(mut command: Command, log: &Path) -> Result<Usage> {
    let name = command.as_std().get_program().display().to_string();
    let output = || File::create(log).with_context(|| format!("writing {}", log.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output()?).kill_on_drop(true);
    let before = children_cpu()?;
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
    let status = Path::new("/proc").join(child.id().context("a child that runs has an id")?.to_string()).join("status");
    let mut peak_kib = 0;
    let exit = loop {
        tokio::select! {
            exit = child.wait() => break exit?,
            () = tokio::time::sleep(LOOK_EVERY) => {
                let text = std::fs::read_to_string(&status).unwrap_or_default();
                peak_kib = peak_kib.max(high_water_kib(&text).unwrap_or_default());
                ensure!(started.elapsed() < LIMIT, "{name} did not end within {LIMIT:?}");
            }
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    let said = || std::fs::read_to_string(log).unwrap_or_default();
    ensure!(exit.success(), "{name} ended with {exit}: {}", said());
    Ok(Usage { seconds, cpu_seconds: children_cpu()? - before, peak_mib: peak_kib as f64 / 1024.0 })
}

fn children_cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
}

/// `VmHWM` of `/proc/PID/status`.
pub(crate) fn high_water_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_found_among_the_others() {
        let status = "Name:\tcat\nVmPeak:\t    9999 kB\nVmHWM:\t    1684 kB\nVmRSS:\t    1000 kB\n";
        assert_eq!(high_water_kib(status), Some(1684));
        assert_eq!(high_water_kib("Name:\tgone\nState:\tZ (zombie)\n"), None);
    }

    #[test]
    fn two_runs_add_up_but_their_memory_does_not() {
        let one = Usage { seconds: 1.0, cpu_seconds: 2.0, peak_mib: 30.0 };
        let two = Usage { seconds: 0.5, cpu_seconds: 1.0, peak_mib: 20.0 };
        let both = one.and_then(two);
        assert_eq!((both.seconds, both.cpu_seconds, both.peak_mib), (1.5, 3.0, 30.0));
    }

    #[tokio::test]
    async fn a_program_that_fails_is_an_error_with_what_it_said() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no room >&2; exit 3"]);
        let error = run(command, &folder.path().join("log")).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no room"), "{error}");
    }
}
