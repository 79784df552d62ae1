//! `fluvial token create`: a token that one cluster, or one hub, may join with, once.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::client;

const TOKENS: &str = "/apis/fluvial.io/v1alpha1/tokens";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the command that joins with a new token.
    Create {
        /// The cluster that may join.
        #[arg(long, required_unless_present = "hub", conflicts_with = "hub")]
        cluster: Option<String>,
        /// For another hub.
        #[arg(long)]
        hub: bool,
        /// How long it is good for: seconds, or a number with s, m or h.
        #[arg(long, default_value = "15m", value_parser = seconds)]
        ttl: u64,
    },
}

/// Seconds of a text such as `90`, `90s`, `15m` or `1h`.
fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, text.chars().last()),
        None => (text, None),
    };
    let factor = match unit {
        Some('h') => 3600,
        Some('m') => 60,
        _ => 1,
    };
    let wrong = || format!("\"{text}\" is no duration: write a number of at least 1 with s, m or h, such as 15m");
    number.parse::<u64>().ok().filter(|n| *n > 0).and_then(|n| n.checked_mul(factor)).ok_or_else(wrong)
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, command: Command) -> Result<()> {
    let Command::Create { cluster, hub, ttl } = command;
    let client = client::connect(kubeconfig).await?;
    let wish =
        if hub { json!({ "hub": true, "ttlSeconds": ttl }) } else { json!({ "cluster": cluster, "ttlSeconds": ttl }) };
    let answer: Value =
        serde_json::from_str(&client::post(&client, TOKENS, &wish).await?).context("reading the hub's answer")?;
    let line = answer.get("command").and_then(Value::as_str).context("the hub's answer has no command")?;
    writeln!(std::io::stdout(), "{line}").context("printing the command")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, expected) in [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200)] {
            assert_eq!(seconds(text), Ok(expected));
        }
        for text in ["", "m", "-1m", "0", "1.5h", "1d", "99999999999999999999h"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
