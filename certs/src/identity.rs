//! The words of the trust domain: who a certificate speaks for.
//!
//! An identity is carried as exactly one SPIFFE URI in a leaf's subject alternative names and repeated in the subject:
//!
//! | identity | URI | subject |
//! |---|---|---|
//! | hub 7 | `spiffe://TRUST/hub/7` | `CN=hub-7` |
//! | cluster a | `spiffe://TRUST/cluster/a` | `CN=cluster-a` |
//! | node n of cluster a | `spiffe://TRUST/cluster/a/node/n` | `CN=node-n` |
//! | user ann | `spiffe://TRUST/user/ann` | `CN=ann`, one `O` per group, as Kubernetes has it |
//!
//! Invariant: parsing is exact. One text names one identity and one identity has one text, so comparing identities and
//! comparing texts agree; anything else (another case, another domain, one segment more) is an error and never a guess.
//! Deliberately absent: signatures and validity. [`Identity::from_leaf`] reads a leaf that TLS has already verified.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};

/// Longest trust domain, as SPIFFE limits it.
const TRUST_DOMAIN_MAX: usize = 255;
/// Longest cluster or user name: a DNS label. With its prefix it may exceed no certificate field that we write
/// (`CN` is limited to 64 characters, see [`Identity::common_name`]).
const NAME_MAX: usize = 63;
/// Longest group name: X.509's upper bound for an organization.
const GROUP_MAX: usize = 64;
/// Most groups of one user. 32 groups of 64 bytes are 2 KiB of certificate, well under one TLS record.
pub const GROUPS_MAX: usize = 32;
/// Serial numbers are 8 bytes of issue time (Unix nanoseconds) and 8 random bytes.
pub(crate) const SERIAL_BYTES: usize = 16;

/// Why a trust domain, an identity or a leaf was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    #[error("parse trust domain {value:?}: expected 1 to {TRUST_DOMAIN_MAX} of a-z, 0-9, '.', '-' and '_'")]
    TrustDomain { value: String },
    #[error(
        "parse identity {uri:?}: expected a URI of the form spiffe://TRUST/hub/ID, /cluster/NAME, /cluster/NAME/node/NODE or /user/NAME"
    )]
    Form { uri: String },
    #[error("parse identity {uri:?}: expected trust domain {expected:?}")]
    OtherTrustDomain { uri: String, expected: String },
    #[error("check hub id {value:?}: expected a decimal number below 2^64 without leading zeros")]
    HubId { value: String },
    #[error(
        "check cluster name {value:?}: expected 1 to {NAME_MAX} of a-z, 0-9 and '-', starting with a letter and \
         ending with a letter or a digit"
    )]
    ClusterName { value: String },
    #[error(
        "check node name {value:?}: expected 1 to {NAME_MAX} of a-z, 0-9, '.' and '-', starting and ending with a letter \
         or a digit"
    )]
    NodeName { value: String },
    #[error(
        "check user name {value:?}: expected 1 to {NAME_MAX} of a-z, 0-9, '.', '-' and '_', starting and ending with \
         a letter or a digit"
    )]
    UserName { value: String },
    #[error("check group {value:?}: expected 1 to {GROUP_MAX} visible ASCII characters")]
    Group { value: String },
    #[error("check groups: {count} given, expected at most {GROUPS_MAX}")]
    TooManyGroups { count: usize },
    #[error("read leaf: not one X.509 certificate in DER")]
    Malformed,
    #[error("read leaf: it is a certificate authority, expected an end entity")]
    IsAuthority,
    #[error("read leaf: expected exactly one URI among the subject alternative names, found {found}")]
    UriCount { found: usize },
    #[error("read leaf: subject does not repeat the identity {uri:?}")]
    Subject { uri: String },
    #[error("read leaf: serial {serial} was not made by a fluvial authority")]
    Serial { serial: String },
    #[error("read leaf: validity is outside the range of representable times")]
    Validity,
}

/// The name of a trust domain: everything one authority vouches for, for example `fluvial.example`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`Error::TrustDomain`] unless it is 1 to 255 characters of `a-z 0-9 . - _`.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        let good = (1..=TRUST_DOMAIN_MAX).contains(&name.len())
            && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
        if good { Ok(Self(name)) } else { Err(Error::TrustDomain { value: name }) }
    }

    /// The name without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URI of the domain itself, which its authority carries: `spiffe://TRUST`.
    pub fn uri(&self) -> String {
        format!("spiffe://{}", self.0)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::new(text)
    }
}

/// Who a certificate speaks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// One hub replica.
    Hub {
        /// The replica's number in the consensus group.
        id: u64,
    },
    /// The member agents of one cluster.
    Cluster {
        /// The Cluster object's name.
        name: String,
    },
    /// One more machine of a cluster, beside the one whose agent speaks for it.
    Node {
        /// The Cluster object's name.
        cluster: String,
        /// The machine's name in it.
        name: String,
    },
    /// A person or a program that uses the API.
    User {
        /// The user's name.
        name: String,
        /// The groups that the authority vouches for; not part of the URI.
        groups: Vec<String>,
    },
}

impl Identity {
    /// Checks that every part can be written into a certificate and read back unchanged.
    ///
    /// # Errors
    /// The error that names the first part at fault.
    pub fn check(&self) -> Result<(), Error> {
        match self {
            Self::Hub { .. } => Ok(()),
            Self::Cluster { name } => check_cluster_name(name),
            Self::Node { cluster, name } => check_cluster_name(cluster).and_then(|()| check_node_name(name)),
            Self::User { name, groups } => {
                check_user_name(name)?;
                if groups.len() > GROUPS_MAX {
                    return Err(Error::TooManyGroups { count: groups.len() });
                }
                groups.iter().try_for_each(|group| check_group(group))
            }
        }
    }

    /// The identity without groups: `hub/7`, `cluster/a`, `cluster/a/node/n`, `user/ann`. Unique within a trust domain.
    pub fn path(&self) -> String {
        match self {
            Self::Hub { id } => format!("hub/{id}"),
            Self::Cluster { name } => format!("cluster/{name}"),
            Self::Node { cluster, name } => format!("cluster/{cluster}/node/{name}"),
            Self::User { name, .. } => format!("user/{name}"),
        }
    }

    /// The SPIFFE URI in `trust_domain`.
    pub fn uri(&self, trust_domain: &TrustDomain) -> String {
        format!("{}/{}", trust_domain.uri(), self.path())
    }

    /// The common name of the subject. X.509 limits it to 64 characters, so a cluster's name stands alone when a
    /// prefix would exceed that; the URI, not this name, is what decides.
    pub fn common_name(&self) -> String {
        match self {
            Self::Hub { id } => format!("hub-{id}"),
            Self::Cluster { name } if name.len() + "cluster-".len() > 64 => name.clone(),
            Self::Cluster { name } => format!("cluster-{name}"),
            Self::Node { name, .. } if name.len() + "node-".len() > 64 => name.clone(),
            Self::Node { name, .. } => format!("node-{name}"),
            Self::User { name, .. } => name.clone(),
        }
    }

    /// The groups of a user; empty for the others.
    pub fn groups(&self) -> &[String] {
        match self {
            Self::User { groups, .. } => groups,
            Self::Hub { .. } | Self::Cluster { .. } | Self::Node { .. } => &[],
        }
    }

    /// Parses a SPIFFE URI; a user parsed so has no groups.
    ///
    /// # Errors
    /// Anything but exactly one of the four forms in exactly this trust domain.
    pub fn parse(uri: &str, trust_domain: &TrustDomain) -> Result<Self, Error> {
        let form = || Error::Form { uri: shorten(uri) };
        let rest = uri.strip_prefix("spiffe://").ok_or_else(form)?;
        let (domain, path) = rest.split_once('/').ok_or_else(form)?;
        if domain != trust_domain.as_str() {
            return Err(Error::OtherTrustDomain { uri: shorten(uri), expected: trust_domain.to_string() });
        }
        let (kind, name) = path.split_once('/').ok_or_else(form)?;
        if let ("cluster", Some((cluster, node))) = (kind, name.split_once("/node/")) {
            let identity = Self::Node { cluster: cluster.to_owned(), name: node.to_owned() };
            return identity.check().map(|()| identity);
        }
        if name.contains('/') {
            return Err(form());
        }
        match kind {
            "hub" => Ok(Self::Hub { id: parse_hub_id(name)? }),
            "cluster" => check_cluster_name(name).map(|()| Self::Cluster { name: name.to_owned() }),
            "user" => check_user_name(name).map(|()| Self::User { name: name.to_owned(), groups: Vec::new() }),
            _ => Err(form()),
        }
    }

    /// Reads who a leaf speaks for. The caller has verified the leaf's signature, purpose and validity in a handshake.
    ///
    /// # Errors
    /// Anything that an authority of this trust domain would not have issued. Never panics, whatever the bytes.
    pub fn from_leaf(der: &[u8], trust_domain: &TrustDomain) -> Result<Verified, Error> {
        let (rest, leaf) = X509Certificate::from_der(der).map_err(|_| Error::Malformed)?;
        if !rest.is_empty() {
            return Err(Error::Malformed);
        }
        if leaf.is_ca() {
            return Err(Error::IsAuthority);
        }
        let mut identity = Self::parse(only_uri(&leaf)?, trust_domain)?;
        let (common_name, organizations) =
            subject_parts(leaf.subject()).ok_or_else(|| Error::Subject { uri: identity.uri(trust_domain) })?;
        if let Self::User { groups, .. } = &mut identity {
            groups.clone_from(&organizations);
        }
        if common_name != identity.common_name() || identity.groups() != organizations {
            return Err(Error::Subject { uri: identity.uri(trust_domain) });
        }
        identity.check()?;

        let serial = hex::encode(leaf.raw_serial());
        let issued_at = issued_at(leaf.raw_serial()).ok_or_else(|| Error::Serial { serial: shorten(&serial) })?;
        let time =
            |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).map_err(|_| Error::Validity);
        Ok(Verified {
            identity,
            serial,
            issued_at,
            not_before: time(leaf.validity().not_before)?,
            not_after: time(leaf.validity().not_after)?,
            fingerprint: hex::encode(Sha256::digest(der)),
        })
    }
}

/// What a verified leaf says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Who speaks.
    pub identity: Identity,
    /// The serial number, lower-case hex.
    pub serial: String,
    /// When the authority issued it, to the nanosecond; `not_before` is a little earlier, for clocks that are behind.
    pub issued_at: Timestamp,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity: a long stream must be closed then, because TLS checks it only at the handshake.
    pub not_after: Timestamp,
    /// SHA-256 of the certificate, lower-case hex.
    pub fingerprint: String,
}

/// The serial number for a certificate issued at `now`; `None` where its first byte would not be a positive, non-zero
/// one (before 1972 and after 2262), because DER would then store another number of bytes.
pub(crate) fn serial_for(now: Timestamp, random: [u8; 8]) -> Option<[u8; SERIAL_BYTES]> {
    let nanos = u64::try_from(now.as_nanosecond()).ok()?.to_be_bytes();
    if !(0x01..0x80).contains(&nanos[0]) {
        return None;
    }
    let mut serial = [0; SERIAL_BYTES];
    serial[..8].copy_from_slice(&nanos);
    serial[8..].copy_from_slice(&random);
    Some(serial)
}

/// The inverse of [`serial_for`].
fn issued_at(serial: &[u8]) -> Option<Timestamp> {
    let serial: [u8; SERIAL_BYTES] = serial.try_into().ok()?;
    let (nanos, _) = serial.split_first_chunk::<8>()?;
    if !(0x01..0x80).contains(&nanos[0]) {
        return None;
    }
    Timestamp::from_nanosecond(i128::from(u64::from_be_bytes(*nanos))).ok()
}

/// The single URI among the subject alternative names.
fn only_uri<'a>(leaf: &'a X509Certificate<'_>) -> Result<&'a str, Error> {
    let names = leaf.subject_alternative_name().map_err(|_| Error::Malformed)?;
    let mut uris = Vec::new();
    for name in names.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => return Err(Error::Malformed),
            _ => {}
        }
    }
    match uris[..] {
        [uri] => Ok(uri),
        _ => Err(Error::UriCount { found: uris.len() }),
    }
}

/// The common name and the organizations of a subject that has exactly one common name and nothing else.
fn subject_parts(subject: &X509Name<'_>) -> Option<(String, Vec<String>)> {
    let texts = |attributes: Vec<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
        attributes.into_iter().map(|a| a.as_str().ok().map(str::to_owned)).collect::<Option<Vec<_>>>()
    };
    let names = texts(subject.iter_common_name().collect())?;
    let organizations = texts(subject.iter_organization().collect())?;
    let [name] = <[String; 1]>::try_from(names).ok()?;
    (subject.iter_attributes().count() == 1 + organizations.len()).then_some((name, organizations))
}

fn parse_hub_id(text: &str) -> Result<u64, Error> {
    let id = text.parse::<u64>().ok().filter(|id| id.to_string() == text);
    id.ok_or_else(|| Error::HubId { value: shorten(text) })
}

pub(crate) fn check_cluster_name(name: &str) -> Result<(), Error> {
    let good = (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-');
    if good { Ok(()) } else { Err(Error::ClusterName { value: shorten(name) }) }
}

fn check_node_name(name: &str) -> Result<(), Error> {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let good = name.len() <= NAME_MAX
        && edge(name.as_bytes().first())
        && edge(name.as_bytes().last())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'));
    if good { Ok(()) } else { Err(Error::NodeName { value: shorten(name) }) }
}

fn check_user_name(name: &str) -> Result<(), Error> {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
        && name.starts_with(edge)
        && name.ends_with(edge);
    if good { Ok(()) } else { Err(Error::UserName { value: shorten(name) }) }
}

fn check_group(group: &str) -> Result<(), Error> {
    let good = (1..=GROUP_MAX).contains(&group.len()) && group.bytes().all(|b| b.is_ascii_graphic());
    if good { Ok(()) } else { Err(Error::Group { value: shorten(group) }) }
}

/// The start of a text, so that a hostile one cannot fill a log.
fn shorten(text: &str) -> String {
    const KEPT: usize = 120;
    text.chars().take(KEPT).collect()
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
