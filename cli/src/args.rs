//! Arguments that several commands read: durations, sizes, pairs and namespaces.

use std::time::Duration;

use clap::Args;
use kube::Client;

/// A namespace, if it is not the kubeconfig's.
#[derive(Debug, Clone, Args)]
pub(crate) struct Namespace {
    /// The namespace; the kubeconfig's if not given.
    #[arg(short, long)]
    pub namespace: Option<String>,
}

impl Namespace {
    pub(crate) fn of<'a>(&'a self, client: &'a Client) -> &'a str {
        self.namespace.as_deref().unwrap_or_else(|| client.default_namespace())
    }
}

/// Seconds of a text such as `90`, `90s`, `15m` or `1h`.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
    let unit = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1));
    let wrong = || format!("\"{text}\" is no duration: write a number of at least 1 with s, m, h or d, such as 15m");
    number.parse::<u64>().ok().filter(|n| *n > 0).and_then(|n| n.checked_mul(factor)).ok_or_else(wrong)
}

/// See [`seconds`].
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    // A hundred years: deadlines must be times that a clock can show.
    const LONGEST: u64 = 100 * 365 * 86_400;
    let seconds = seconds(text)?;
    if seconds > LONGEST {
        Err(format!("\"{text}\" is too long: at most {LONGEST}s"))
    } else {
        Ok(Duration::from_secs(seconds))
    }
}

/// Bytes of a text such as `1048576`, `512Mi`, `20Gi` or `5G`; at least one.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let units = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
    ];
    let unit = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1_u64));
    let wrong =
        || format!("\"{text}\" is no number of bytes: write a whole number with Ki, Mi, Gi, k, M or G, such as 20Gi");
    number.parse::<u64>().ok().filter(|n| *n > 0).and_then(|n| n.checked_mul(factor)).ok_or_else(wrong)
}

/// `KEY=VALUE`. The value is not repeated in the error: it may be a secret.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, expected) in [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86_400)] {
            assert_eq!(seconds(text), Ok(expected));
        }
        for text in ["", "m", "-1m", "0", "1.5h", "1w", "99999999999999999999h"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert!(duration("999999999d").is_err());
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, expected) in [("7", 7), ("512Mi", 512 << 20), ("20Gi", 20 << 30), ("5G", 5_000_000_000)] {
            assert_eq!(bytes(text), Ok(expected));
        }
        for text in ["", "0", "Gi", "1.5Gi", "-1", "99999999Pi"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pairs_split_at_the_first_equals_sign() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        for bad in ["", "a", "=b"] {
            assert!(pair(bad).is_err(), "{bad}");
        }
    }
}
