//! The certificate authority of one trust domain.
//!
//! It decides everything in a leaf: identity, names, purposes, validity, serial. From a request it takes the public key
//! and nothing else. Invariants: a leaf never outlives its authority; a leaf carries exactly one SPIFFE URI; only a hub
//! carries DNS names or addresses, so no member's certificate can pose as a server.
//! Deliberately absent: who may ask (tokens, renewal by an existing certificate) and where the key is kept.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use secrecy::SecretString;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::csr::Csr;
use crate::identity::{self, Identity, TrustDomain};
use crate::keys::{self, KeyPair};
use crate::pin::SpkiPin;
use crate::subject;

/// Life of an authority: ten years of 365 days. It is replaced by rotation, not by waiting.
pub const AUTHORITY_LIFETIME: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
/// How far before the present a certificate starts to be valid, for peers whose clock is behind.
pub const BACKDATE: SignedDuration = SignedDuration::from_secs(60);
/// Default life of hub and cluster leaves.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Most extra names on one hub's certificate: listen addresses, host names and a few aliases.
pub const EXTRA_NAMES_MAX: usize = 64;

/// Why the authority could not be made, loaded or would not issue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("prepare authority key")]
    Key(#[source] keys::Error),
    #[error("check identity to issue for")]
    Identity(#[source] identity::Error),
    #[error("sign certificate")]
    Sign(#[source] rcgen::Error),
    #[error("sign certificate: subject could not be written")]
    Subject,
    #[error("read authority certificate: expected one X.509 certificate authority in PEM")]
    Malformed,
    #[error("read authority certificate: expected exactly one URI spiffe://TRUST among its alternative names")]
    TrustDomain,
    #[error("load authority: the key does not belong to the certificate")]
    KeyMismatch,
    #[error("issue for {identity}: only a hub may have extra names")]
    ExtraNames { identity: String },
    #[error("issue: {count} extra names, expected at most {EXTRA_NAMES_MAX}")]
    TooManyNames { count: usize },
    #[error("issue: extra name {name:?}, expected a lower-case DNS name or an IP address")]
    ExtraName { name: String },
    #[error("issue: lifetime of {lifetime:?}, expected at least one second")]
    Lifetime { lifetime: Duration },
    #[error("issue at {now}: the authority is valid from {not_before} to {not_after}")]
    OutsideValidity { now: Timestamp, not_before: Timestamp, not_after: Timestamp },
    #[error("issue at {now}: time out of range")]
    Time { now: Timestamp },
}

/// A name besides the identity under which a hub is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SubjectAltName {
    /// A host name, lower case.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl SubjectAltName {
    /// Takes a host part of an address: an IP address if it reads as one (with or without brackets), else a DNS name.
    pub fn from_host(host: &str) -> Self {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        bare.parse().map_or_else(|_| Self::Dns(host.to_ascii_lowercase()), Self::Ip)
    }

    fn to_san(&self) -> Result<SanType, Error> {
        match self {
            Self::Ip(address) => Ok(SanType::IpAddress(*address)),
            Self::Dns(name) => {
                let wrong = || Error::ExtraName { name: name.chars().take(120).collect() };
                // A lower-case DNS name by the same rules that TLS will compare it with.
                rustls_pki_types::DnsName::try_from(name.as_str()).map_err(|_| wrong())?;
                if name.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(wrong());
                }
                Ok(SanType::DnsName(Ia5String::try_from(name.as_str()).map_err(|_| wrong())?))
            }
        }
    }
}

/// An issued certificate and what the hub records about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The certificate alone; a server presents its authority after it (see [`crate::bundle`]).
    pub cert_pem: String,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Start of validity: [`BACKDATE`] before issue.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
}

/// A certificate authority with its key.
pub struct Authority {
    trust_domain: TrustDomain,
    der: CertificateDer<'static>,
    not_before: Timestamp,
    not_after: Timestamp,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority, valid for ten years from `now`.
    ///
    /// # Errors
    /// [`Error::Key`], [`Error::Sign`] or [`Error::Time`].
    pub fn generate(trust_domain: TrustDomain, now: Timestamp) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(Error::Key)?;
        let end = now.checked_add(AUTHORITY_LIFETIME).map_err(|_| Error::Time { now })?;

        let mut params = CertificateParams::default();
        params.serial_number = Some(serial(now)?);
        params.not_before = to_time(backdated(now)?)?;
        params.not_after = to_time(end)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = DistinguishedName::new();
        // The key is part of the name, so that old and new authority differ by name too while one replaces the other.
        let name = format!("Fluvial authority {}", &key.pin().to_hex()[..16]);
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![uri_san(&trust_domain.uri())?];

        let certificate = params.self_signed(&key).map_err(Error::Sign)?;
        Self::assemble(certificate.der().clone(), key)
    }

    /// Loads an authority written with [`Authority::cert_pem`] and [`Authority::key_pem`].
    ///
    /// # Errors
    /// Anything but an authority certificate of one trust domain and its own key.
    pub fn from_pem(cert_pem: &str, key_pem: &SecretString) -> Result<Self, Error> {
        let key = KeyPair::from_pem(key_pem).map_err(Error::Key)?;
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|_| Error::Malformed)?;
        Self::assemble(der, key)
    }

    fn assemble(der: CertificateDer<'static>, key: KeyPair) -> Result<Self, Error> {
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| Error::Malformed)?;
        if !certificate.is_ca() {
            return Err(Error::Malformed);
        }
        if certificate.public_key().raw != key.spki() {
            return Err(Error::KeyMismatch);
        }
        let trust_domain = trust_domain_of(&certificate)?;
        let bound = |seconds| Timestamp::from_second(seconds).map_err(|_| Error::Malformed);
        let not_before = bound(certificate.validity().not_before.timestamp())?;
        let not_after = bound(certificate.validity().not_after.timestamp())?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(Error::Sign)?;
        Ok(Self { trust_domain, not_before, not_after, issuer, der })
    }

    /// The domain it vouches for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The certificate in DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The certificate in PEM; public.
    pub fn cert_pem(&self) -> String {
        certificate_pem(&self.der)
    }

    /// The key in PEM.
    pub fn key_pem(&self) -> SecretString {
        self.issuer.key().to_pem()
    }

    /// What join tokens pin.
    pub fn spki_pin(&self) -> SpkiPin {
        self.issuer.key().pin()
    }

    /// Issues a leaf for the key of a verified request. Every other field is decided here.
    ///
    /// `lifetime` counts from `now` and is cut at the authority's own end.
    ///
    /// # Errors
    /// An identity that cannot be written, extra names where none may be or that are no names, a lifetime under one
    /// second, or a time outside the authority's validity.
    pub fn issue(
        &self,
        csr: &Csr,
        identity: &Identity,
        extra: &[SubjectAltName],
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Leaf, Error> {
        self.issue_for(csr.public_key(), identity, extra, now, lifetime)
    }

    /// As [`Authority::issue`], for a key that this process made itself.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue_for_key(
        &self,
        key: &KeyPair,
        identity: &Identity,
        extra: &[SubjectAltName],
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Leaf, Error> {
        self.issue_for(key, identity, extra, now, lifetime)
    }

    fn issue_for(
        &self,
        public_key: &impl PublicKeyData,
        identity: &Identity,
        extra: &[SubjectAltName],
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Leaf, Error> {
        identity.check().map_err(Error::Identity)?;
        if !extra.is_empty() && !matches!(identity, Identity::Hub { .. }) {
            return Err(Error::ExtraNames { identity: identity.path() });
        }
        if extra.len() > EXTRA_NAMES_MAX {
            return Err(Error::TooManyNames { count: extra.len() });
        }
        if lifetime < Duration::from_secs(1) {
            return Err(Error::Lifetime { lifetime });
        }
        if now < self.not_before || now >= self.not_after {
            return Err(Error::OutsideValidity { now, not_before: self.not_before, not_after: self.not_after });
        }
        let not_before = backdated(now)?;
        // A lifetime beyond the range of time is certainly beyond the authority's end.
        let wanted = SignedDuration::try_from(lifetime).ok().and_then(|life| now.checked_add(life).ok());
        let not_after =
            whole_second(wanted.map_or(self.not_after, |end| end.min(self.not_after))).ok_or(Error::Time { now })?;

        let serial = serial(now)?;
        let mut params = CertificateParams::default();
        params.not_before = to_time(not_before)?;
        params.not_after = to_time(not_after)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes(identity);
        params.subject_alt_names = vec![uri_san(&identity.uri(&self.trust_domain))?];
        for name in extra {
            params.subject_alt_names.push(name.to_san()?);
        }
        let hex = hex::encode(serial.to_bytes());
        params.serial_number = Some(serial);
        // The library's subject holds one organization only; `subject` writes the real one.
        let draft = params.signed_by(public_key, &self.issuer).map_err(Error::Sign)?;
        let der = subject::with_subject(draft.der(), identity, self.issuer.key()).ok_or(Error::Subject)?;
        Ok(Leaf { cert_pem: certificate_pem(&der), serial: hex, not_before, not_after })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("pin", &self.spki_pin().to_string())
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// What a leaf may be used for: hubs, clusters and nodes speak both ways among each other, a user only calls.
fn purposes(identity: &Identity) -> Vec<ExtendedKeyUsagePurpose> {
    match identity {
        Identity::Hub { .. } | Identity::Cluster { .. } | Identity::Node { .. } => {
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]
        }
        Identity::User { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
    }
}

fn trust_domain_of(certificate: &X509Certificate<'_>) -> Result<TrustDomain, Error> {
    let names = certificate.subject_alternative_name().map_err(|_| Error::TrustDomain)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let [uri] = uris[..] else { return Err(Error::TrustDomain) };
    let name = uri.strip_prefix("spiffe://").ok_or(Error::TrustDomain)?;
    TrustDomain::new(name).map_err(|_| Error::TrustDomain)
}

fn uri_san(uri: &str) -> Result<SanType, Error> {
    Ia5String::try_from(uri).map(SanType::URI).map_err(Error::Sign)
}

fn serial(now: Timestamp) -> Result<SerialNumber, Error> {
    let mut random = [0u8; 8];
    rand::fill(&mut random);
    let serial = identity::serial_for(now, random).ok_or(Error::Time { now })?;
    Ok(SerialNumber::from_slice(&serial))
}

fn backdated(now: Timestamp) -> Result<Timestamp, Error> {
    now.checked_sub(BACKDATE).ok().and_then(whole_second).ok_or(Error::Time { now })
}

/// Certificates count whole seconds; the fraction is cut, so that what is recorded equals what is in the certificate.
fn whole_second(time: Timestamp) -> Option<Timestamp> {
    Timestamp::from_second(time.as_second()).ok()
}

fn to_time(at: Timestamp) -> Result<OffsetDateTime, Error> {
    OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|_| Error::Time { now: at })
}

/// A certificate as PEM.
pub(crate) fn certificate_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|&b| char::from(b)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
