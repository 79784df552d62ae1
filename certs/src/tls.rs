//! rustls configurations, all in one place so that all have the same rules.
//!
//! TLS 1.3 only, provider `ring`, no session resumption: a resumed session skips the check of the client's certificate,
//! and with it expiry and revocation. A server lets clients without a certificate in, because a newcomer has only its
//! token and a user may have only a bearer token; who may do what is decided per call.
//!
//! First contact: [`pinned_client_config`] trusts nothing but a pin. It takes from the presented chain the authority
//! whose key has that pin and then verifies the leaf up to it as usual: signature, purpose, validity, server name. The
//! handshake fails before the first application byte, so a token is never shown to the wrong hub.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::bundle::Bundle;
use crate::identity::{Identity, TrustDomain};
use crate::pin::SpkiPin;
use crate::revocation::DenyList;

/// ALPN of HTTP/2: what gRPC speaks.
pub const ALPN_H2: &[u8] = b"h2";
/// ALPN of a connection whose other end asks: HTTP/2 in which who was dialled is the client ([`crate::listen::reverse`]).
pub const ALPN_REVERSE: &[u8] = b"fluvial-reverse";
/// ALPN of HTTP/1.1: browsers and scripts.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Why a configuration could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("build tls configuration: root certificate not usable")]
    Root(#[source] rustls::Error),
    #[error("build tls configuration: verifier not usable")]
    Verifier(#[source] VerifierBuilderError),
    #[error("build tls configuration: certificate or key not usable")]
    Credentials(#[source] rustls::Error),
    #[error("build tls configuration: protocol versions not supported")]
    Versions(#[source] rustls::Error),
}

/// Why a chain was refused at first contact; the source inside the TLS error.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no certificate authority in the presented chain has the pinned key {pin}; is this the hub of the token?")]
pub struct PinMismatch {
    /// The pin that was looked for.
    pub pin: SpkiPin,
}

/// For a server: presents the bundle's chain, asks for a client certificate of its roots, and lets clients without one
/// in. Speaks HTTP/2 and HTTP/1.1.
///
/// # Errors
/// Credentials or roots that rustls cannot use.
pub fn server_config(bundle: &Bundle) -> Result<ServerConfig, Error> {
    let provider = provider();
    let roots = Arc::new(root_store(bundle.roots())?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(Error::Verifier)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(VERSIONS)
        .map_err(Error::Versions)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(bundle.chain().to_vec(), bundle.key())
        .map_err(Error::Credentials)?;
    config.alpn_protocols = protocols(&[ALPN_H2, ALPN_HTTP1, ALPN_REVERSE]);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// For a client: trusts `roots`, presents the bundle if there is one, and offers the protocols `alpn` in this order.
///
/// # Errors
/// Credentials or roots that rustls cannot use.
pub fn client_config(
    bundle: Option<&Bundle>,
    roots: &[CertificateDer<'static>],
    alpn: &[&[u8]],
) -> Result<ClientConfig, Error> {
    let provider = provider();
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(root_store(roots)?), provider.clone())
        .build()
        .map_err(Error::Verifier)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(VERSIONS)
        .map_err(Error::Versions)?
        .with_webpki_verifier(verifier);
    let config = match bundle {
        Some(bundle) => {
            builder.with_client_auth_cert(bundle.chain().to_vec(), bundle.key()).map_err(Error::Credentials)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(finished(config, alpn))
}

/// For a newcomer with a join token: trusts the authority with this pin and nothing else.
///
/// After the handshake the authority's certificate is in the peer's chain: [`SpkiPin::find_in`].
///
/// # Errors
/// [`Error::Versions`] if the provider lacks TLS 1.3.
pub fn pinned_client_config(pin: SpkiPin, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
    let provider = provider();
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(VERSIONS)
        .map_err(Error::Versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedAuthority { pin, provider }))
        .with_no_client_auth();
    Ok(finished(config, alpn))
}

/// For one agent that calls another: presents the bundle, trusts its roots, and speaks to nobody but `expected`, whatever
/// the address is called, by the protocol `alpn`. Agents' certificates name no host: who they are is their identity.
///
/// # Errors
/// Credentials or roots that rustls cannot use.
pub fn peer_client_config(
    bundle: &Bundle,
    trust_domain: TrustDomain,
    expected: Identity,
    denied: Arc<DenyList>,
    alpn: &[u8],
) -> Result<ClientConfig, Error> {
    let provider = provider();
    let roots = root_store(bundle.roots())?;
    let verifier = PeerIdentity { roots, trust_domain, expected, denied, provider: provider.clone() };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(VERSIONS)
        .map_err(Error::Versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(bundle.chain().to_vec(), bundle.key())
        .map_err(Error::Credentials)?;
    Ok(finished(config, &[alpn]))
}

fn finished(mut config: ClientConfig, alpn: &[&[u8]]) -> ClientConfig {
    config.alpn_protocols = protocols(alpn);
    config.resumption = Resumption::disabled();
    config
}

fn protocols(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.to_vec()).collect()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn root_store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(Error::Root)?;
    }
    Ok(store)
}

/// What every verifier leaves to its provider: whether the other end has the key of the certificate that it shows.
macro_rules! signatures_of_provider {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Trusts the authority in the presented chain whose key has the pin.
#[derive(Debug)]
struct PinnedAuthority {
    pin: SpkiPin,
    provider: Arc<CryptoProvider>,
}

impl PinnedAuthority {
    /// The pinned authority, if it is presented and valid at `now`. The chain's other certificates prove nothing.
    fn authority(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<CertificateDer<'static>, rustls::Error> {
        let refused = || CertificateError::Other(OtherError(Arc::new(PinMismatch { pin: self.pin })));
        let authority = self.pin.find_in(chain).ok_or_else(refused)?;
        let (_, parsed) = X509Certificate::from_der(&authority).map_err(|_| CertificateError::BadEncoding)?;
        let seconds = i64::try_from(now.as_secs()).map_err(|_| rustls::Error::FailedToGetCurrentTime)?;
        let now = ASN1Time::from_timestamp(seconds).map_err(|_| rustls::Error::FailedToGetCurrentTime)?;
        // A trust anchor's validity is nobody else's business to check.
        if !parsed.validity().is_valid_at(now) {
            return Err(CertificateError::Expired.into());
        }
        Ok(authority.into_owned())
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority(intermediates, now)?)?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::Other(OtherError(Arc::new(error))))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    signatures_of_provider!();
}

/// Why a peer is not the one that was called.
#[derive(Debug, thiserror::Error)]
#[error("the certificate is that of {found}, expected {expected}")]
pub struct OtherPeer {
    /// Who answered.
    pub found: String,
    /// Who was called.
    pub expected: String,
}

/// Trusts a leaf of the roots that is one identity's.
#[derive(Debug)]
struct PeerIdentity {
    roots: RootCertStore,
    trust_domain: TrustDomain,
    expected: Identity,
    denied: Arc<DenyList>,
    provider: Arc<CryptoProvider>,
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

impl ServerCertVerifier for PeerIdentity {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, algorithms)?;
        let verified = Identity::from_leaf(end_entity, &self.trust_domain).map_err(refused)?;
        if verified.identity != self.expected {
            let (found, expected) = (verified.identity.path(), self.expected.path());
            return Err(refused(OtherPeer { found, expected }));
        }
        self.denied.check(&verified).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures_of_provider!();
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
