//! What running processes hold of memory and take of the processors, read from `/proc`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

/// Resident memory of a process, in KiB.
pub(crate) fn resident_kib(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process without memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Processor time of a process since it began, in seconds.
pub(crate) fn cpu_seconds(process: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("a system without clock ticks")?;
    Ok(ticks(&text).context("reading /proc/PID/stat")? as f64 / per_second as f64)
}

/// User and system time of a line of `/proc/PID/stat`; the program's name may hold anything but the last bracket.
fn ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// How many cores these processes take together, over so long.
pub(crate) async fn cores(processes: &[u32], length: Duration) -> Result<f64> {
    let sum = || processes.iter().map(|process| cpu_seconds(*process)).sum::<Result<f64>>();
    let (before, started) = (sum()?, Instant::now());
    tokio::time::sleep(length).await;
    Ok((sum()? - before) / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_a_name_with_brackets_and_blanks() {
        let line = "7 (a ) b) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 5 1000 10";
        assert_eq!(ticks(line), Some(300));
    }

    #[test]
    fn this_process_has_memory_and_time() {
        let own = std::process::id();
        assert!(resident_kib(own).unwrap() > 100);
        assert!(cpu_seconds(own).unwrap() >= 0.0);
    }
}
