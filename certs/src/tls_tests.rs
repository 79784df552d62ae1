//! Real handshakes in memory: who gets through, and who does not.

use std::io::{ErrorKind, Read as _, Write as _};

use rustls::{ClientConnection, ServerConnection};

use super::*;
use crate::identity::Identity;
use crate::reload::Reloadable;
use crate::testing::{DAY, HUB_NAME, Site, cluster, hub, node, trust_domain, user};

/// What came of a connection on which the client had something to say.
#[derive(Debug)]
struct Outcome {
    client: Result<(), rustls::Error>,
    server: Result<(), rustls::Error>,
    /// The application bytes that reached the server.
    heard: Vec<u8>,
    /// Leaf and authority that the client saw.
    seen_by_client: Vec<CertificateDer<'static>>,
    seen_by_server: Vec<CertificateDer<'static>>,
    alpn: Option<Vec<u8>>,
    resumed: bool,
}

/// Runs a whole connection in memory: handshake, and the client's message as soon as TLS lets it out.
fn connect(client: Arc<ClientConfig>, server: Arc<ServerConfig>, name: &str) -> Outcome {
    let mut client = ClientConnection::new(client, name.to_owned().try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    client.writer().write_all(b"token").unwrap();
    let (mut client_end, mut server_end) = (Ok(()), Ok(()));
    let mut heard = Vec::new();
    // Flights until neither side has anything left to send: no handshake has more than a handful.
    loop {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        let mut reply = Vec::new();
        let said = flight.len();
        let mut rest = &flight[..];
        while !rest.is_empty() && server_end.is_ok() {
            server.read_tls(&mut rest).unwrap();
            server_end = server.process_new_packets().map(|_| ());
        }
        match server.reader().read_to_end(&mut heard) {
            Ok(_) => {}
            Err(error) => assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::UnexpectedEof), "{error}"),
        }
        while server.wants_write() {
            server.write_tls(&mut reply).unwrap();
        }
        let answered = reply.len();
        let mut rest = &reply[..];
        while !rest.is_empty() && client_end.is_ok() {
            client.read_tls(&mut rest).unwrap();
            client_end = client.process_new_packets().map(|_| ());
        }
        if said + answered == 0 {
            break;
        }
    }
    let owned = |chain: Option<&[CertificateDer<'static>]>| chain.map(<[_]>::to_vec).unwrap_or_default();
    Outcome {
        client: client_end,
        server: server_end,
        heard,
        seen_by_client: owned(client.peer_certificates()),
        seen_by_server: owned(server.peer_certificates()),
        alpn: client.alpn_protocol().map(<[u8]>::to_vec),
        resumed: client.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
    }
}

fn server(bundle: &Bundle) -> Arc<ServerConfig> {
    server_config(bundle).unwrap().into()
}

fn client(bundle: Option<&Bundle>, site: &Site) -> Arc<ClientConfig> {
    client_config(bundle, &[site.authority.certificate().clone()], &[ALPN_H2]).unwrap().into()
}

fn newcomer(pin: SpkiPin) -> Arc<ClientConfig> {
    pinned_client_config(pin, &[ALPN_H2]).unwrap().into()
}

fn refused(result: &Result<(), rustls::Error>) -> &CertificateError {
    match result {
        Err(rustls::Error::InvalidCertificate(error)) => error,
        other => panic!("expected a refused certificate, got {other:?}"),
    }
}

fn identity(chain: &[CertificateDer<'_>]) -> Identity {
    Identity::from_leaf(&chain[0], &trust_domain()).unwrap().identity
}

#[test]
fn hub_and_member_know_each_other_by_certificate() {
    let site = Site::new();
    for caller in [cluster("a"), hub(2), user("ann", &["one", "two"])] {
        let outcome = connect(client(Some(&site.bundle(&caller)), &site), server(&site.bundle(&hub(1))), HUB_NAME);
        assert_eq!((&outcome.client, &outcome.server), (&Ok(()), &Ok(())));
        assert_eq!(outcome.heard, b"token");
        assert_eq!(identity(&outcome.seen_by_client), hub(1));
        assert_eq!(identity(&outcome.seen_by_server), caller);
        assert_eq!(outcome.alpn.as_deref(), Some(ALPN_H2));
    }
}

#[test]
fn a_client_without_a_certificate_is_let_in_unnamed() {
    let site = Site::new();
    let outcome = connect(client(None, &site), server(&site.bundle(&hub(1))), "127.0.0.1");
    assert_eq!((&outcome.client, &outcome.server), (&Ok(()), &Ok(())));
    assert_eq!((outcome.heard.as_slice(), outcome.seen_by_server.len()), (&b"token"[..], 0));
}

#[test]
fn a_client_of_another_authority_is_refused_unheard() {
    let (site, other) = (Site::new(), Site::new());
    // It trusts our hub, but its own certificate comes from elsewhere.
    let outcome = connect(client(Some(&other.bundle(&cluster("a"))), &site), server(&site.bundle(&hub(1))), HUB_NAME);
    assert_eq!(refused(&outcome.server), &CertificateError::UnknownIssuer);
    assert_eq!(outcome.heard, b"");
}

#[test]
fn an_expired_client_is_refused_unheard() {
    let site = Site::new();
    let past = site.now.checked_sub(2 * DAY).unwrap();
    let expired = site.bundle_at(&cluster("a"), past);
    let outcome = connect(client(Some(&expired), &site), server(&site.bundle(&hub(1))), HUB_NAME);
    assert!(matches!(refused(&outcome.server), CertificateError::ExpiredContext { .. }));
    assert_eq!(outcome.heard, b"");
}

#[test]
fn an_expired_hub_is_refused_before_anything_is_said() {
    let site = Site::new();
    let past = site.now.checked_sub(2 * DAY).unwrap();
    for client in [client(None, &site), newcomer(site.authority.spki_pin())] {
        let outcome = connect(client, server(&site.bundle_at(&hub(1), past)), HUB_NAME);
        assert!(matches!(refused(&outcome.client), CertificateError::ExpiredContext { .. }));
        assert_eq!(outcome.heard, b"");
    }
}

#[test]
fn a_hub_of_another_authority_or_name_is_refused_before_anything_is_said() {
    let (site, other) = (Site::new(), Site::new());
    let outcome = connect(client(None, &site), server(&other.bundle(&hub(1))), HUB_NAME);
    assert_eq!(refused(&outcome.client), &CertificateError::UnknownIssuer);
    assert_eq!(outcome.heard, b"");

    let outcome = connect(client(None, &site), server(&site.bundle(&hub(1))), "other.example");
    assert!(matches!(refused(&outcome.client), CertificateError::NotValidForNameContext { .. }));
    assert_eq!(outcome.heard, b"");
}

#[test]
fn a_member_or_a_user_cannot_pose_as_a_hub() {
    let site = Site::new();
    for impostor in [cluster("a"), user("ann", &[])] {
        for client in [client(None, &site), newcomer(site.authority.spki_pin())] {
            let outcome = connect(client, server(&site.bundle(&impostor)), HUB_NAME);
            refused(&outcome.client);
            assert_eq!(outcome.heard, b"", "{impostor:?}");
        }
    }
}

#[test]
fn a_newcomer_with_the_right_pin_meets_the_hub_and_learns_its_authority() {
    let site = Site::new();
    let pin = site.authority.spki_pin();
    let outcome = connect(newcomer(pin), server(&site.bundle(&hub(1))), HUB_NAME);
    assert_eq!((&outcome.client, &outcome.server), (&Ok(()), &Ok(())));
    assert_eq!(outcome.heard, b"token");
    assert_eq!(pin.find_in(&outcome.seen_by_client).as_ref(), Some(site.authority.certificate()));
}

#[test]
fn a_newcomer_with_another_pin_says_nothing() {
    let (site, other) = (Site::new(), Site::new());
    let pin = other.authority.spki_pin();
    let outcome = connect(newcomer(pin), server(&site.bundle(&hub(1))), HUB_NAME);
    let CertificateError::Other(OtherError(reason)) = refused(&outcome.client) else {
        panic!("expected a pin mismatch, got {outcome:?}");
    };
    assert_eq!(reason.downcast_ref(), Some(&PinMismatch { pin }));
    assert_eq!(outcome.heard, b"");
}

#[test]
fn showing_the_pinned_authority_beside_a_foreign_leaf_helps_nobody() {
    let (site, attacker) = (Site::new(), Site::new());
    let own = attacker.bundle(&hub(1));
    // The authority's certificate is public: the attacker sends it along, after a leaf that it did not sign.
    let chain = vec![own.chain()[0].clone(), site.authority.certificate().clone()];
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, own.key())
        .unwrap();
    let outcome = connect(newcomer(site.authority.spki_pin()), config.into(), HUB_NAME);
    assert_eq!(refused(&outcome.client), &CertificateError::UnknownIssuer);
    assert_eq!(outcome.heard, b"");
}

#[test]
fn a_newcomer_checks_the_name_of_the_hub() {
    let site = Site::new();
    let outcome = connect(newcomer(site.authority.spki_pin()), server(&site.bundle(&hub(1))), "other.example");
    assert!(matches!(refused(&outcome.client), CertificateError::NotValidForNameContext { .. }));
    assert_eq!(outcome.heard, b"");
}

#[test]
fn a_newcomer_refuses_an_expired_authority_even_with_the_right_pin() {
    let long_ago = jiff::Timestamp::now().checked_sub(11 * 365 * DAY).unwrap();
    let authority = crate::Authority::generate(trust_domain(), long_ago).unwrap();
    let site = Site { authority, now: long_ago };
    let outcome = connect(newcomer(site.authority.spki_pin()), server(&site.bundle(&hub(1))), HUB_NAME);
    assert_eq!(refused(&outcome.client), &CertificateError::Expired);
    assert_eq!(outcome.heard, b"");
}

#[test]
fn a_second_connection_shows_its_certificate_again() {
    let site = Site::new();
    let (client, server) = (client(Some(&site.bundle(&cluster("a"))), &site), server(&site.bundle(&hub(1))));
    for _ in 0..2 {
        let outcome = connect(client.clone(), server.clone(), HUB_NAME);
        assert_eq!((outcome.resumed, identity(&outcome.seen_by_server)), (false, cluster("a")));
    }
}

#[test]
fn replaced_credentials_are_presented_at_the_next_connection() {
    let site = Site::new();
    let hub_side = Reloadable::new(site.bundle(&hub(1)), &[ALPN_H2]).unwrap();
    let member_side = Reloadable::new(site.bundle(&cluster("a")), &[ALPN_H2]).unwrap();
    let presented = || {
        let outcome = connect(member_side.client_config(), hub_side.server_config(), HUB_NAME);
        assert_eq!((&outcome.client, &outcome.server), (&Ok(()), &Ok(())));
        (outcome.seen_by_client[0].clone(), outcome.seen_by_server[0].clone())
    };
    let first = presented();
    assert_eq!(first, presented(), "nothing changes by itself");
    assert_eq!(hub_side.replace(site.bundle(&hub(1))).unwrap(), 2);
    let second = presented();
    assert_ne!(first.0, second.0);
    assert_eq!(first.1, second.1);
    member_side.replace(site.bundle(&cluster("a"))).unwrap();
    assert_ne!(second.1, presented().1);
    assert_eq!((hub_side.generation(), member_side.current().generation), (2, 2));
}

#[test]
fn an_authority_is_rotated_without_a_failed_handshake() {
    let (old, new) = (Site::new(), Site::new());
    let (old_root, new_root) = (old.authority.cert_pem(), new.authority.cert_pem());
    let both = format!("{old_root}{new_root}");
    let bundle = |site: &Site, identity: &Identity, roots: &str| {
        let key = crate::KeyPair::generate().unwrap();
        Bundle::new(&site.leaf(&key, identity).cert_pem, &key, roots).unwrap()
    };
    let hub_side = Reloadable::new(bundle(&old, &hub(1), &old_root), &[ALPN_H2]).unwrap();
    let member_side = Reloadable::new(bundle(&old, &cluster("a"), &old_root), &[ALPN_H2]).unwrap();
    let steps: [(&Reloadable, &Site, Identity, &str); 6] = [
        (&hub_side, &old, hub(1), &both),
        (&member_side, &old, cluster("a"), &both),
        (&member_side, &new, cluster("a"), &both),
        (&hub_side, &new, hub(1), &both),
        (&hub_side, &new, hub(1), &new_root),
        (&member_side, &new, cluster("a"), &new_root),
    ];
    for (number, (side, site, identity, roots)) in steps.into_iter().enumerate() {
        side.replace(bundle(site, &identity, roots)).unwrap();
        let outcome = connect(member_side.client_config(), hub_side.server_config(), HUB_NAME);
        assert_eq!((&outcome.client, &outcome.server), (&Ok(()), &Ok(())), "step {number}");
    }
}

#[test]
fn an_agent_speaks_to_the_agent_that_it_called_and_to_nobody_else() {
    let (site, other) = (Site::new(), Site::new());
    let denied = Arc::new(DenyList::default());
    let call = |expected: &Identity, answers: Bundle| {
        let ours = site.bundle(&cluster("b"));
        let client = peer_client_config(&ours, trust_domain(), expected.clone(), denied.clone(), ALPN_H2).unwrap();
        let answering = Reloadable::new(answers, &[ALPN_H2]).unwrap();
        connect(Arc::new(client), answering.server_config(), "agent.invalid")
    };
    for expected in [cluster("a"), node("a", "n")] {
        let outcome = call(&expected, site.bundle(&expected));
        assert_eq!((outcome.client, outcome.heard.as_slice()), (Ok(()), &b"token"[..]));
        let impostors = [site.bundle(&cluster("c")), site.bundle(&hub(1)), other.bundle(&expected)];
        for impostor in impostors.into_iter().chain([site.bundle(&user("a", &[]))]) {
            let outcome = call(&expected, impostor);
            assert!(outcome.client.is_err() && outcome.heard.is_empty(), "{outcome:?}");
        }
    }
    let known = site.bundle(&node("a", "n"));
    // Whoever denies a cluster denies its nodes.
    denied.deny_identity(&cluster("a"), site.now.checked_add(DAY).unwrap());
    assert!(call(&node("a", "n"), known).client.is_err(), "it was revoked");
}
