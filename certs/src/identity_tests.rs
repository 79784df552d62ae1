//! Which names are identities, and which are not.

use proptest::prelude::*;

use super::*;
use crate::testing::{self, Site, cluster, hub, node, trust_domain, user};

#[test]
fn each_identity_has_one_uri_and_each_uri_one_identity() {
    let cases = [
        (hub(0), "spiffe://fluvial.test/hub/0"),
        (hub(u64::MAX), "spiffe://fluvial.test/hub/18446744073709551615"),
        (cluster("a"), "spiffe://fluvial.test/cluster/a"),
        (cluster("eu-west-1"), "spiffe://fluvial.test/cluster/eu-west-1"),
        (node("eu-west-1", "n-1.x"), "spiffe://fluvial.test/cluster/eu-west-1/node/n-1.x"),
        (user("ann", &[]), "spiffe://fluvial.test/user/ann"),
        (user("ann.b_c-9", &[]), "spiffe://fluvial.test/user/ann.b_c-9"),
    ];
    for (identity, uri) in cases {
        assert_eq!(identity.uri(&trust_domain()), uri);
        assert_eq!(Identity::parse(uri, &trust_domain()), Ok(identity));
    }
}

#[test]
fn any_other_text_is_refused_with_its_reason() {
    let form = |uri: &str| Error::Form { uri: uri.into() };
    let other = |uri: &str| Error::OtherTrustDomain { uri: uri.into(), expected: "fluvial.test".into() };
    let hub_id = |value: &str| Error::HubId { value: value.into() };
    let name = |value: &str| Error::ClusterName { value: value.into() };
    let user_name = |value: &str| Error::UserName { value: value.into() };
    let long = "a".repeat(64);
    let long_uri = format!("spiffe://fluvial.test/cluster/{long}");
    let cases: Vec<(&str, Error)> = vec![
        ("", form("")),
        ("fluvial.test/hub/1", form("fluvial.test/hub/1")),
        ("https://fluvial.test/hub/1", form("https://fluvial.test/hub/1")),
        ("SPIFFE://fluvial.test/hub/1", form("SPIFFE://fluvial.test/hub/1")),
        ("spiffe://fluvial.test", form("spiffe://fluvial.test")),
        ("spiffe://fluvial.test/", form("spiffe://fluvial.test/")),
        ("spiffe://fluvial.test/hub", form("spiffe://fluvial.test/hub")),
        ("spiffe://fluvial.test/Hub/1", form("spiffe://fluvial.test/Hub/1")),
        ("spiffe://fluvial.test/robot/1", form("spiffe://fluvial.test/robot/1")),
        ("spiffe://fluvial.test/hub/1/", form("spiffe://fluvial.test/hub/1/")),
        ("spiffe://fluvial.test/cluster/a/agent/b", form("spiffe://fluvial.test/cluster/a/agent/b")),
        ("spiffe://fluvial.test/cluster/A/node/b", name("A")),
        ("spiffe://fluvial.test/cluster/a/node/", Error::NodeName { value: String::new() }),
        ("spiffe://fluvial.test/cluster/a/node/b/c", Error::NodeName { value: "b/c".into() }),
        ("spiffe://fluvial.test/cluster/a/node/b/node/c", Error::NodeName { value: "b/node/c".into() }),
        ("spiffe://fluvial.test/hub/1/node/b", form("spiffe://fluvial.test/hub/1/node/b")),
        ("spiffe://fluvial.test//hub/1", form("spiffe://fluvial.test//hub/1")),
        ("spiffe://other.test/hub/1", other("spiffe://other.test/hub/1")),
        ("spiffe://Fluvial.test/hub/1", other("spiffe://Fluvial.test/hub/1")),
        ("spiffe://fluvial.test:443/hub/1", other("spiffe://fluvial.test:443/hub/1")),
        ("spiffe://fluvial.test.evil/hub/1", other("spiffe://fluvial.test.evil/hub/1")),
        ("spiffe:///hub/1", other("spiffe:///hub/1")),
        ("spiffe://fluvial.test/hub/", hub_id("")),
        ("spiffe://fluvial.test/hub/01", hub_id("01")),
        ("spiffe://fluvial.test/hub/+1", hub_id("+1")),
        ("spiffe://fluvial.test/hub/18446744073709551616", hub_id("18446744073709551616")),
        ("spiffe://fluvial.test/cluster/", name("")),
        ("spiffe://fluvial.test/cluster/A", name("A")),
        ("spiffe://fluvial.test/cluster/1a", name("1a")),
        ("spiffe://fluvial.test/cluster/-a", name("-a")),
        ("spiffe://fluvial.test/cluster/a-", name("a-")),
        ("spiffe://fluvial.test/cluster/..", name("..")),
        ("spiffe://fluvial.test/cluster/a%2fb", name("a%2fb")),
        ("spiffe://fluvial.test/cluster/a?x", name("a?x")),
        (&long_uri, name(&long)),
        ("spiffe://fluvial.test/user/", user_name("")),
        ("spiffe://fluvial.test/user/Ann", user_name("Ann")),
        ("spiffe://fluvial.test/user/.", user_name(".")),
        ("spiffe://fluvial.test/user/ann ", user_name("ann ")),
    ];
    for (uri, error) in cases {
        assert_eq!(Identity::parse(uri, &trust_domain()), Err(error), "{uri}");
    }
}

#[test]
fn a_trust_domain_is_lower_case_and_bounded() {
    for wrong in ["", "A.test", "a b", "a/b", "a:1", &"a".repeat(256)] {
        assert_eq!(TrustDomain::new(wrong), Err(Error::TrustDomain { value: wrong.into() }));
    }
    assert_eq!(TrustDomain::new("a".repeat(255)).unwrap().as_str().len(), 255);
}

#[test]
fn identities_that_no_certificate_may_carry_are_refused() {
    let group = |value: &str| Err(Error::Group { value: value.into() });
    assert_eq!(user("ann", &["a b"]).check(), group("a b"));
    assert_eq!(user("ann", &[""]).check(), group(""));
    assert_eq!(user("ann", &["é"]).check(), group("é"));
    assert_eq!(user("ann", &["g"; 33]).check(), Err(Error::TooManyGroups { count: 33 }));
    assert_eq!(user("ann", &["system:masters"]).check(), Ok(()));
}

/// A leaf with the given alternative names and common name, from a hand that is free to do wrong.
fn foreign_leaf(uris: &[&str], common_name: &str, authority: bool) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|&uri| rcgen::SanType::URI(uri.try_into().unwrap())).collect();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
    if authority {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    }
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

#[test]
fn a_leaf_that_our_authority_would_not_issue_is_refused() {
    let uri = "spiffe://fluvial.test/hub/1";
    let read = |der: &[u8]| Identity::from_leaf(der, &trust_domain()).unwrap_err();
    assert_eq!(read(b"hello"), Error::Malformed);
    assert_eq!(read(&foreign_leaf(&[], "hub-1", false)), Error::UriCount { found: 0 });
    assert_eq!(read(&foreign_leaf(&[uri, uri], "hub-1", false)), Error::UriCount { found: 2 });
    assert_eq!(read(&foreign_leaf(&[uri], "hub-1", true)), Error::IsAuthority);
    assert_eq!(read(&foreign_leaf(&[uri], "hub-2", false)), Error::Subject { uri: uri.into() });
    assert!(matches!(read(&foreign_leaf(&[uri], "hub-1", false)), Error::Serial { .. }));
    let mut trailing = foreign_leaf(&[uri], "hub-1", false);
    trailing.push(0);
    assert_eq!(read(&trailing), Error::Malformed);
}

#[test]
fn a_leaf_of_another_trust_domain_is_refused() {
    let site = Site::new();
    let leaf = site.leaf(&crate::KeyPair::generate().unwrap(), &hub(1));
    let other = TrustDomain::new("other.test").unwrap();
    assert_eq!(
        Identity::from_leaf(&testing::der(&leaf.cert_pem), &other),
        Err(Error::OtherTrustDomain { uri: "spiffe://fluvial.test/hub/1".into(), expected: "other.test".into() })
    );
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic_and_what_it_accepts_it_writes(uri in "(spiffe://fluvial\\.test/(hub|cluster|user)/)?\\PC{0,80}") {
        if let Ok(identity) = Identity::parse(&uri, &trust_domain()) {
            prop_assert_eq!(identity.uri(&trust_domain()), uri);
            prop_assert_eq!(identity.check(), Ok(()));
        }
    }

    #[test]
    fn no_bytes_make_the_leaf_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Identity::from_leaf(&bytes, &trust_domain()).is_err());
    }

    #[test]
    fn no_damage_to_a_leaf_makes_the_reader_panic(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        static LEAF: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            let site = Site::new();
            let key = crate::KeyPair::generate().unwrap();
            testing::der(&site.leaf(&key, &user("ann", &["one", "two"])).cert_pem)
        });
        let mut der = LEAF.clone();
        for (at, value) in flips {
            let at = at.index(der.len());
            der[at] = value;
        }
        let _ = Identity::from_leaf(&der, &trust_domain());
        let _ = Identity::from_leaf(&der[..cut.index(der.len())], &trust_domain());
    }
}
