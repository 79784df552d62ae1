//! `fluvial member`: join, run.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Subcommand;
use fluvial_member_agent::platform::host::{Marks, TierConfig};
use fluvial_member_agent::{Agent, AgentConfig, JoinConfig, MemoryLimit, UplinkState};
use secrecy::SecretString;

use super::until_told_to_stop;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Let this machine join as a cluster, with a token of `fluvial token create --cluster`.
    Join {
        /// A hub, https://HOST:PORT.
        #[arg(long)]
        hub: String,
        #[arg(long, env = "FLUVIAL_TOKEN", hide_env_values = true)]
        token: String,
        #[arg(long)]
        data_dir: PathBuf,
        /// The cluster, if it is to be checked against the token's.
        #[arg(long)]
        cluster: Option<String>,
    },
    /// Run the agent of a cluster that has joined, until SIGINT or SIGTERM.
    Run {
        #[arg(long)]
        data_dir: PathBuf,
        /// A cache tier, fastest first: MEM, SSD or HDD, its folder, and the most bytes in it. One SSD tier in the data
        /// directory if not given.
        /// Above HIGH hundredths of that, files that nobody wants beforehand are given up down to LOW hundredths: 95-90 if
        /// not given.
        #[arg(long = "tier", value_name = "MEDIUM=DIR[:BYTES[:HIGH-LOW]]", value_parser = tier)]
        tiers: Vec<TierConfig>,
        /// Most bytes that one writable mount stages on this machine until they are at the home, such as 50Gi.
        #[arg(long, value_name = "BYTES", value_parser = amount, default_value = "10Gi")]
        staging: u64,
        /// Most memory of the agent, such as 1Gi; 192Mi at least. Mount processes, and backups while they run, are not
        /// in it.
        #[arg(long, value_name = "BYTES", value_parser = memory, default_value = "640Mi")]
        memory: MemoryLimit,
        /// The node's name; the machine's if not given.
        #[arg(long)]
        node_name: Option<String>,
        /// A label of the node, such as topology.kubernetes.io/zone=a.
        #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = label)]
        node_labels: Vec<(String, String)>,
        /// Listen here for the agents of other clusters, which read through this one what they do not reach, and for the
        /// nodes of this cluster.
        #[arg(long, value_name = "IP:PORT")]
        listen: Option<SocketAddr>,
        /// How others reach that; the address itself if not given.
        #[arg(long, value_name = "HOST:PORT", requires = "listen")]
        advertise: Option<String>,
    },
}

pub(super) fn tier(text: &str) -> Result<TierConfig, String> {
    let wrong = |why: &str| {
        format!(
            "\"{text}\" is no tier: {why}; write MEDIUM=DIR, MEDIUM=DIR:BYTES or MEDIUM=DIR:BYTES:HIGH-LOW, such as \
             SSD=/cache:20Gi:95-90"
        )
    };
    let (medium, rest) = text.split_once('=').ok_or_else(|| wrong("it has no '='"))?;
    if !["MEM", "SSD", "HDD"].contains(&medium) {
        return Err(wrong("the medium must be MEM, SSD or HDD"));
    }
    let (rest, marks) = match rest.rsplit_once(':').and_then(|(before, last)| Some((before, last.split_once('-')?))) {
        Some((before, (high, low))) if before.contains(':') => {
            let number = |text: &str| text.parse::<u8>().ok().filter(|number| (1..=100).contains(number));
            let marks = number(high).zip(number(low)).filter(|(high, low)| low <= high);
            let wrong = || wrong("its marks are no two numbers from 100 to 1, the higher one first");
            (before, marks.map(|(high, low)| Marks { high, low }).ok_or_else(wrong)?)
        }
        _ => (rest, Marks::default()),
    };
    let (dir, quota_bytes) = match rest.rsplit_once(':') {
        Some((dir, size)) => (dir, Some(bytes(size).ok_or_else(|| wrong("its size is no number of bytes"))?)),
        None => (rest, None),
    };
    if dir.is_empty() {
        return Err(wrong("it has no folder"));
    }
    Ok(TierConfig { medium: medium.to_owned(), dir: dir.into(), quota_bytes, marks })
}

/// Bytes of a text such as `1048576`, `512Mi` or `20Gi`; at least one.
fn bytes(text: &str) -> Option<u64> {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)];
    let unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (number, shift) = unit.unwrap_or((text, 0));
    number.parse::<u64>().ok().filter(|n| *n > 0)?.checked_mul(1 << shift)
}

fn amount(text: &str) -> Result<u64, String> {
    bytes(text).ok_or_else(|| format!("\"{text}\" is no number of bytes: write 1048576, 512Mi or 20Gi"))
}

pub(super) fn memory(text: &str) -> Result<MemoryLimit, String> {
    let bytes = amount(text)?;
    MemoryLimit::new(bytes).ok_or_else(|| format!("\"{text}\" is too little memory: an agent needs 192Mi at least"))
}

pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("\"{text}\" is no label: write KEY=VALUE")),
    }
}

pub(crate) async fn run(command: Command) -> Result<()> {
    match command {
        Command::Join { hub, token, data_dir, cluster } => {
            let shown = data_dir.display().to_string();
            let token = SecretString::from(token);
            let joined = fluvial_member_agent::join(JoinConfig { hub, token, data_dir, cluster, node: None }).await?;
            eprintln!("cluster \"{}\" has joined; start it: fluvial member run --data-dir {shown}", joined.cluster);
            Ok(())
        }
        Command::Run { data_dir, tiers, staging, memory, node_name, node_labels, listen, advertise } => {
            let (labels, staging_bytes) = (node_labels.into_iter().collect(), Some(staging));
            let rest = AgentConfig { memory, ..AgentConfig::default() };
            serve(AgentConfig { data_dir, tiers, staging_bytes, node_name, labels, listen, advertise, ..rest }).await
        }
    }
}

/// Runs the agent and says how it stands with the hubs whenever that changes.
pub(super) async fn serve(config: AgentConfig) -> Result<()> {
    let mut stop = std::pin::pin!(until_told_to_stop()?);
    let agent = Agent::start(config).await?;
    let mut state = agent.state();
    let cluster = agent.cluster().to_owned();
    let ended = loop {
        match &*state.borrow_and_update() {
            UplinkState::Connecting | UplinkState::Stopped => {}
            UplinkState::Connected { hub } => eprintln!("cluster \"{cluster}\" is connected to hub {hub}"),
            UplinkState::Conflict { message } | UplinkState::Revoked { message } => {
                eprintln!("cluster \"{cluster}\": the hub refuses this agent: {message}");
            }
        }
        tokio::select! {
            () = &mut stop => break Ok(()),
            changed = state.changed() => if changed.is_err() {
                break Err(anyhow!("the agent of cluster \"{cluster}\" ended by itself"));
            },
        }
    };
    agent.shutdown().await;
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_read_with_their_size() {
        let expected = |medium: &str, dir: &str, quota_bytes| TierConfig {
            medium: medium.into(),
            dir: dir.into(),
            quota_bytes,
            marks: Marks::default(),
        };
        assert_eq!(tier("SSD=/cache"), Ok(expected("SSD", "/cache", None)));
        assert_eq!(tier("MEM=/dev/shm/f:512Mi"), Ok(expected("MEM", "/dev/shm/f", Some(512 << 20))));
        assert_eq!(tier("HDD=d:1"), Ok(expected("HDD", "d", Some(1))));
        let marked = TierConfig { marks: Marks { high: 80, low: 60 }, ..expected("SSD", "/c", Some(1 << 30)) };
        assert_eq!(tier("SSD=/c:1Gi:80-60"), Ok(marked));
        for bad in ["SSD=/c:1Gi:60-80", "SSD=/c:1Gi:80-", "SSD=/c:1Gi:101-60", "SSD=/c:1Gi:80-0"] {
            assert!(tier(bad).unwrap_err().contains("its marks"), "{bad}");
        }
        for bad in ["", "SSD", "TAPE=/t", "SSD=", "SSD=:1", "SSD=/c:", "SSD=/c:0", "SSD=/c:1.5Gi", "SSD=/c:99999999Ti"]
        {
            assert!(tier(bad).unwrap_err().starts_with(&format!("\"{bad}\" is no tier")), "{bad}");
        }
    }
}
