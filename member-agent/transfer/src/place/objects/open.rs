//! What the locations of all these stores share: a bucket and a prefix, an endpoint, and options that are known.

use fluvial_model::manifest::RelativePath;
use url::Url;

use crate::TransferError;
use crate::location::Location;

/// The longest key of OSS, in bytes.
const LONGEST_KEY: usize = 1023;

/// A location's two parts.
pub(super) struct Opened<'a> {
    pub(super) bucket: &'a str,
    /// Empty, or with a `/` at its end.
    pub(super) prefix: String,
}

fn bad(location: &Location, why: impl Into<String>) -> TransferError {
    TransferError::BadLocation { uri: location.shown(), why: why.into() }
}

/// Bucket and prefix of what stands behind the scheme; `example` is how it is written.
pub(super) fn split<'a>(location: &Location, rest: &'a str, example: &str) -> Result<Opened<'a>, TransferError> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() || bucket.contains(['@', '?', '#', ':']) {
        return Err(bad(location, format!("it must be `{example}`")));
    }
    let prefix = prefix.trim_end_matches('/');
    if !prefix.is_empty() {
        RelativePath::parse(prefix).map_err(|error| bad(location, error.to_string()))?;
    }
    if prefix.trim_start() != prefix {
        return Err(bad(location, "the prefix must not begin with white space"));
    }
    Ok(Opened { bucket, prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") } })
}

/// Refuses options that the store does not have.
pub(super) fn known_options(location: &Location, known: &[&str]) -> Result<(), TransferError> {
    match location.option_keys().find(|key| !known.contains(key)) {
        Some(unknown) => Err(bad(location, format!("option `{unknown}` is not known; known are {}", known.join(", ")))),
        None => Ok(()),
    }
}

/// The URL of the store: the option `endpoint`, over TLS where it has no scheme, else what it is `otherwise`.
pub(super) fn endpoint_of(location: &Location, otherwise: Option<String>) -> Result<Option<String>, TransferError> {
    let endpoint = match location.option("endpoint") {
        Some(endpoint) if endpoint.contains("://") => Some(endpoint.to_owned()),
        Some(endpoint) => Some(format!("https://{endpoint}")),
        None => otherwise,
    };
    if let Some(endpoint) = &endpoint {
        Url::parse(endpoint).map_err(|error| bad(location, format!("option `endpoint` is not a URL: {error}")))?;
    }
    Ok(endpoint.map(|endpoint| endpoint.trim_end_matches('/').to_owned()))
}

/// Why neither OSS nor GCS is given a key: both list keys as XML or take no line breaks, and have a longest one. The slash at
/// the end of a directory's is counted.
pub(super) fn refuses(key: &str) -> Option<&'static str> {
    if key.len() >= LONGEST_KEY {
        return Some("with its prefix it is longer than the 1,022 bytes that this kind of store has for a name");
    }
    if key.contains(char::is_control) {
        return Some("this kind of store keeps no name that has a control character in it");
    }
    key.starts_with('\\').then_some("this kind of store keeps no name that begins with a backslash")
}
