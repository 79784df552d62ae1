//! A leaf's subject with several organizations.
//!
//! The certificate library keeps one value per attribute type, but a user has one `O` per group. So the library builds
//! the certificate, and this module replaces the subject in the signed part and has it signed again.
//! Only the subject's bytes change; every other field is carried over as it stands.

use rcgen::SigningKey;
use yasna::models::ObjectIdentifier;
use yasna::{DERWriter, construct_der, parse_der};

use crate::identity::Identity;

/// X.520 commonName.
const COMMON_NAME: &[u64] = &[2, 5, 4, 3];
/// X.520 organizationName.
const ORGANIZATION: &[u64] = &[2, 5, 4, 10];
/// Fields before the subject in a version 3 TBSCertificate: version, serial, algorithm, issuer, validity.
const FIELDS_BEFORE_SUBJECT: usize = 5;
/// Fields after it: public key and extensions.
const FIELDS_AFTER_SUBJECT: usize = 2;

/// Returns the certificate with the identity's common name and groups as its subject, signed by `signer`.
/// `None` if the input is not a version 3 certificate with extensions, or if signing fails.
pub(crate) fn with_subject(certificate: &[u8], identity: &Identity, signer: &impl SigningKey) -> Option<Vec<u8>> {
    let (before, after, algorithm) = parse_der(certificate, |reader| {
        reader.read_sequence(|reader| {
            let (before, after) = reader.next().read_sequence(|tbs| {
                let mut fields =
                    |count: usize| (0..count).map(|_| tbs.next().read_der()).collect::<Result<Vec<_>, _>>();
                let before = fields(FIELDS_BEFORE_SUBJECT)?;
                fields(1)?;
                Ok((before, fields(FIELDS_AFTER_SUBJECT)?))
            })?;
            let algorithm = reader.next().read_der()?;
            reader.next().read_der()?;
            Ok((before, after, algorithm))
        })
    })
    .ok()?;

    let tbs = construct_der(|writer| {
        writer.write_sequence(|writer| {
            before.iter().for_each(|field| writer.next().write_der(field));
            write_subject(writer.next(), identity);
            after.iter().for_each(|field| writer.next().write_der(field));
        });
    });
    let signature = signer.sign(&tbs).ok()?;
    Some(construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_der(&tbs);
            writer.next().write_der(&algorithm);
            writer.next().write_bitvec_bytes(&signature, signature.len() * 8);
        });
    }))
}

fn write_subject(writer: DERWriter<'_>, identity: &Identity) {
    writer.write_sequence(|names| {
        let organizations = identity.groups().iter().map(|group| (ORGANIZATION, group.clone()));
        for (kind, value) in organizations.chain([(COMMON_NAME, identity.common_name())]) {
            names.next().write_set(|set| {
                set.next().write_sequence(|pair| {
                    pair.next().write_oid(&ObjectIdentifier::from_slice(kind));
                    pair.next().write_utf8_string(&value);
                });
            });
        }
    });
}
