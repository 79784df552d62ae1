//! What the authority issues, and what it refuses to.

use x509_parser::prelude::ParsedExtension;

use super::*;
use crate::testing::{DAY, Site, cluster, der, hub, trust_domain, user};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn authority() -> Authority {
    Authority::generate(trust_domain(), at(0)).unwrap()
}

fn csr() -> Csr {
    Csr::from_pem(&KeyPair::generate().unwrap().csr().unwrap()).unwrap()
}

#[test]
fn every_identity_survives_issue_and_reading() {
    let authority = authority();
    // 0.5 s past the second, to see what is cut and what is kept.
    let now = at(100).checked_add(SignedDuration::from_millis(500)).unwrap();
    let name = "c".repeat(63);
    for identity in
        [hub(7), cluster("a"), cluster(&name), user("ann", &[]), user("ann", &["system:masters", "b", "a", "b"])]
    {
        let leaf = authority.issue(&csr(), &identity, &[], now, DAY).unwrap();
        assert_eq!((leaf.not_before, leaf.not_after), (at(40), at(100 + 86_400)));
        let bytes = der(&leaf.cert_pem);
        let read = Identity::from_leaf(&bytes, &trust_domain()).unwrap();
        let expected = crate::Verified {
            identity,
            serial: leaf.serial,
            issued_at: now,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            fingerprint: read.fingerprint.clone(),
        };
        assert_eq!(read, expected);
        assert_eq!(read.fingerprint.len(), 64);
    }
}

#[test]
fn a_leaf_is_signed_by_the_authority_for_the_key_of_the_request() {
    let (authority, csr) = (authority(), csr());
    let leaf = authority.issue(&csr, &user("ann", &["x", "y"]), &[], at(0), DAY).unwrap();
    let bytes = der(&leaf.cert_pem);
    let (_, root) = X509Certificate::from_der(authority.certificate()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&bytes).unwrap();
    assert_eq!(leaf.verify_signature(Some(root.public_key())), Ok(()));
    assert_eq!(leaf.public_key().raw, csr.public_key().subject_public_key_info());
    assert_eq!(leaf.issuer(), root.subject());
}

#[test]
fn a_request_cannot_choose_anything_but_its_key() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut wishes = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wishes.distinguished_name.push(DnType::CommonName, "admin");
    wishes.distinguished_name.push(DnType::OrganizationName, "system:masters");
    wishes.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    let csr = Csr::from_pem(&wishes.serialize_request(&key).unwrap().pem().unwrap()).unwrap();

    let leaf = authority().issue(&csr, &cluster("a"), &[], at(0), DAY).unwrap();
    let bytes = der(&leaf.cert_pem);
    let (_, leaf) = X509Certificate::from_der(&bytes).unwrap();
    assert!(!leaf.is_ca());
    assert_eq!(leaf.subject().to_string(), "CN=cluster-a");
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names[..], [GeneralName::URI("spiffe://fluvial.test/cluster/a")]);
}

#[test]
fn hubs_and_clusters_speak_both_ways_and_users_only_call() {
    let authority = authority();
    for (identity, expected) in
        [(hub(1), (true, true)), (cluster("a"), (true, true)), (user("ann", &[]), (true, false))]
    {
        let leaf = authority.issue(&csr(), &identity, &[], at(0), DAY).unwrap();
        let bytes = der(&leaf.cert_pem);
        let (_, leaf) = X509Certificate::from_der(&bytes).unwrap();
        let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
        assert_eq!((purposes.client_auth, purposes.server_auth), expected, "{identity:?}");
        assert!(!purposes.any && purposes.other.is_empty());
        let usage = leaf.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign());
    }
}

#[test]
fn only_hubs_have_extra_names_and_only_real_ones() {
    let authority = authority();
    let issue = |identity: &Identity, names: &[&str]| {
        let names: Vec<_> = names.iter().map(|&n| SubjectAltName::Dns(n.into())).collect();
        authority.issue(&csr(), identity, &names, at(0), DAY)
    };
    assert!(issue(&hub(1), &["localhost", "hub-1.example"]).is_ok());
    assert!(
        matches!(issue(&cluster("a"), &["hub.example"]), Err(Error::ExtraNames { identity }) if identity == "cluster/a")
    );
    for wrong in ["", "Hub.example", "a b", "a..b", "évil.example", "spiffe://x"] {
        assert!(matches!(issue(&hub(1), &[wrong]), Err(Error::ExtraName { name }) if name == wrong), "{wrong}");
    }
    assert!(matches!(issue(&hub(1), &["a"; 65]), Err(Error::TooManyNames { count: 65 })));
}

#[test]
fn a_host_is_an_address_if_it_reads_as_one() {
    assert_eq!(SubjectAltName::from_host("127.0.0.1"), SubjectAltName::Ip([127, 0, 0, 1].into()));
    assert_eq!(SubjectAltName::from_host("[::1]"), SubjectAltName::Ip("::1".parse().unwrap()));
    assert_eq!(SubjectAltName::from_host("Hub.Example"), SubjectAltName::Dns("hub.example".into()));
}

#[test]
fn a_leaf_never_outlives_its_authority() {
    let authority = authority();
    let end = at(0).checked_add(AUTHORITY_LIFETIME).unwrap();
    let late = end.checked_sub(SignedDuration::from_secs(60)).unwrap();
    for lifetime in [DAY, Duration::MAX] {
        assert_eq!(authority.issue(&csr(), &hub(1), &[], late, lifetime).unwrap().not_after, end);
    }
    assert!(matches!(authority.issue(&csr(), &hub(1), &[], end, DAY), Err(Error::OutsideValidity { .. })));
    assert!(matches!(authority.issue(&csr(), &hub(1), &[], at(-61), DAY), Err(Error::OutsideValidity { .. })));
}

#[test]
fn a_lifetime_under_a_second_is_refused() {
    let lifetime = Duration::from_millis(999);
    assert!(matches!(authority().issue(&csr(), &hub(1), &[], at(0), lifetime), Err(Error::Lifetime { .. })));
}

#[test]
fn an_invalid_identity_is_not_issued() {
    let error = authority().issue(&csr(), &cluster("A/../b"), &[], at(0), DAY).unwrap_err();
    let expected = identity::Error::ClusterName { value: "A/../b".into() };
    assert!(matches!(error, Error::Identity(source) if source == expected));
}

#[test]
fn two_leaves_for_one_key_have_two_serials() {
    let (authority, csr) = (authority(), csr());
    let issue = || authority.issue(&csr, &hub(1), &[], at(0), DAY).unwrap().serial;
    assert_ne!(issue(), issue());
}

#[test]
fn an_authority_survives_its_pem() {
    let first = authority();
    let second = Authority::from_pem(&first.cert_pem(), &first.key_pem()).unwrap();
    assert_eq!(second.cert_pem(), first.cert_pem());
    assert_eq!(second.spki_pin(), first.spki_pin());
    assert_eq!(Some(second.spki_pin()), SpkiPin::of_certificate(first.certificate()));
    assert_eq!(second.trust_domain(), &trust_domain());
    // What the loaded one issues, the first one's certificate vouches for.
    let leaf = second.issue(&csr(), &hub(1), &[], at(0), DAY).unwrap();
    let bytes = der(&leaf.cert_pem);
    let (_, leaf) = X509Certificate::from_der(&bytes).unwrap();
    let (_, root) = X509Certificate::from_der(first.certificate()).unwrap();
    assert_eq!(leaf.verify_signature(Some(root.public_key())), Ok(()));
    assert_eq!(leaf.issuer(), root.subject());
}

#[test]
fn an_authority_with_a_foreign_key_or_a_leaf_in_its_place_is_refused() {
    let (first, second) = (authority(), authority());
    assert!(matches!(Authority::from_pem(&first.cert_pem(), &second.key_pem()), Err(Error::KeyMismatch)));
    let site = Site::new();
    let key = KeyPair::generate().unwrap();
    let leaf = site.leaf(&key, &hub(1));
    assert!(matches!(Authority::from_pem(&leaf.cert_pem, &key.to_pem()), Err(Error::Malformed)));
    assert!(matches!(Authority::from_pem("", &first.key_pem()), Err(Error::Malformed)));
}

#[test]
fn the_authority_is_valid_for_ten_years_and_signs_leaves_only() {
    let authority = authority();
    let (_, root) = X509Certificate::from_der(authority.certificate()).unwrap();
    let validity = root.validity();
    assert_eq!(validity.not_before.timestamp(), at(-60).as_second());
    assert_eq!(validity.not_after.timestamp(), at(10 * 365 * 86_400).as_second());
    let constraints = root.basic_constraints().unwrap().unwrap().value;
    assert_eq!((constraints.ca, constraints.path_len_constraint), (true, Some(0)));
    let critical = |e: &&x509_parser::extensions::X509Extension<'_>| {
        matches!(e.parsed_extension(), ParsedExtension::KeyUsage(usage) if usage.key_cert_sign()) && e.critical
    };
    assert_eq!(root.extensions().iter().filter(critical).count(), 1);
}

#[test]
fn debug_shows_no_key() {
    let authority = authority();
    let expected = format!(
        "Authority {{ trust_domain: TrustDomain(\"fluvial.test\"), pin: \"{}\", not_after: {:?}, .. }}",
        authority.spki_pin(),
        authority.not_after
    );
    assert_eq!(format!("{authority:?}"), expected);
}
