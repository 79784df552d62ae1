//! What one side of a connection presents and trusts: its chain, its key, the roots.
//!
//! Invariant: the chain is the leaf followed by the root that issued it. The root belongs there although TLS does not
//! need it: a newcomer knows only its pin and has to see it. During a rotation there are two roots; the chain shows
//! the one that signed this leaf.

use std::fmt;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{self, Identity, TrustDomain, Verified};
use crate::keys::{self, KeyPair};

/// Why credentials do not fit together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    #[error("read roots: expected at least one certificate authority in PEM, and nothing but such")]
    Roots,
    #[error("read leaf: expected one certificate in PEM")]
    Leaf,
    #[error("combine credentials: the key does not belong to the leaf")]
    KeyMismatch,
    #[error("combine credentials: none of the roots issued the leaf")]
    Issuer,
}

/// Certificates and key of one process.
pub struct Bundle {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Vec<CertificateDer<'static>>,
}

impl Bundle {
    /// Puts together an issued leaf, its key and the roots (one or, during a rotation, several) in PEM.
    ///
    /// # Errors
    /// Parts that cannot be read or do not belong together.
    pub fn new(leaf_pem: &str, key: &KeyPair, roots_pem: &str) -> Result<Self, Error> {
        let roots = parse_roots(roots_pem)?;
        let leaf = CertificateDer::from_pem_slice(leaf_pem.as_bytes()).map_err(|_| Error::Leaf)?;
        let (_, parsed) = X509Certificate::from_der(&leaf).map_err(|_| Error::Leaf)?;
        if parsed.public_key().raw != key.spki() {
            return Err(Error::KeyMismatch);
        }
        let issuer = roots.iter().find(|root| {
            X509Certificate::from_der(root)
                .is_ok_and(|(_, root)| parsed.verify_signature(Some(root.public_key())).is_ok())
        });
        let chain = vec![leaf.clone(), issuer.ok_or(Error::Issuer)?.clone()];
        Ok(Self { chain, key: key.to_der(), roots })
    }

    /// Leaf first, then the root that issued it.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The roots that this side trusts.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The leaf's private key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// Who this bundle speaks for.
    ///
    /// # Errors
    /// As [`Identity::from_leaf`].
    pub fn verified(&self, trust_domain: &TrustDomain) -> Result<Verified, identity::Error> {
        Identity::from_leaf(&self.chain[0], trust_domain)
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle").field("roots", &self.roots.len()).finish_non_exhaustive()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        keys::wipe(&mut self.key);
    }
}

/// Reads one or more certificate authorities from PEM.
///
/// # Errors
/// [`Error::Roots`] unless there is at least one and each is an authority.
pub fn parse_roots(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let roots: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|_| Error::Roots)?;
    let authority = |der: &CertificateDer<'_>| X509Certificate::from_der(der).is_ok_and(|(_, c)| c.is_ca());
    if roots.is_empty() || !roots.iter().all(authority) { Err(Error::Roots) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Site};

    #[test]
    fn the_chain_is_the_leaf_and_the_root_that_issued_it() {
        let (old, new) = (Site::new(), Site::new());
        let key = KeyPair::generate().unwrap();
        let leaf = new.leaf(&key, &testing::hub(1));
        let roots = format!("{}{}", old.authority.cert_pem(), new.authority.cert_pem());
        let bundle = Bundle::new(&leaf.cert_pem, &key, &roots).unwrap();
        assert_eq!(bundle.chain()[1..], [new.authority.certificate().clone()]);
        assert_eq!(bundle.roots(), [old.authority.certificate().clone(), new.authority.certificate().clone()]);
        assert_eq!(bundle.verified(new.authority.trust_domain()).unwrap().identity, testing::hub(1));
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let (site, other) = (Site::new(), Site::new());
        let key = KeyPair::generate().unwrap();
        let leaf = site.leaf(&key, &testing::hub(1)).cert_pem;
        let root = site.authority.cert_pem();
        let refuse = |leaf: &str, key: &KeyPair, roots: &str| Bundle::new(leaf, key, roots).unwrap_err();
        assert_eq!(refuse(&leaf, &KeyPair::generate().unwrap(), &root), Error::KeyMismatch);
        assert_eq!(refuse(&leaf, &key, &other.authority.cert_pem()), Error::Issuer);
        assert_eq!(refuse(&leaf, &key, &leaf), Error::Roots);
        assert_eq!(refuse(&leaf, &key, ""), Error::Roots);
        assert_eq!(refuse("", &key, &root), Error::Leaf);
    }
}
