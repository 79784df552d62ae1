//! The identities, and calls in their names.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use fluvial_certs::tls::{self, ALPN_H2};
use fluvial_certs::{Authority, Bundle, Identity, KeyPair, TrustDomain};
use fluvial_model::kinds::Cluster;
use fluvial_model::resource::Resource as _;
use http_body_util::BodyExt as _;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::{SignedDuration, Timestamp};
use rustls::ClientConfig;

use crate::enrol::revocations::{Revocation, revocation_key};
use crate::peers::dial;
use crate::run::tests::fixture::{LIMIT, TestHub, cluster, user};

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Who {
    /// Without a certificate.
    Nobody,
    /// An administrator of an authority that is not ours, under the same name.
    Foreign,
    /// An administrator whose certificate has expired.
    Expired,
    /// The agent of a cluster that was removed.
    Revoked,
    /// A user without rights.
    Stranger,
    Administrator,
    /// The agent of the cluster `alpha`.
    Agent,
    /// The agent of the cluster `beta`.
    OtherAgent,
    /// A node of `alpha`.
    Node,
    /// The hub, calling itself.
    Hub,
    /// A hub that was removed.
    RemovedHub,
}

impl Who {
    pub(super) const ALL: [Self; 11] = [
        Self::Nobody,
        Self::Foreign,
        Self::Expired,
        Self::Revoked,
        Self::Stranger,
        Self::Administrator,
        Self::Agent,
        Self::OtherAgent,
        Self::Node,
        Self::Hub,
        Self::RemovedHub,
    ];

    /// Whether TLS ends before anything can be asked.
    pub(super) fn is_cut(self) -> bool {
        matches!(self, Self::Foreign | Self::Expired)
    }

    fn identity(self) -> Option<Identity> {
        Some(match self {
            Self::Nobody => return None,
            Self::Foreign | Self::Expired | Self::Administrator => user(),
            Self::Stranger => Identity::User { name: "bob".to_owned(), groups: vec!["team".to_owned()] },
            Self::Revoked => cluster("gone"),
            Self::Agent => cluster("alpha"),
            Self::OtherAgent => cluster("beta"),
            Self::Node => Identity::Node { cluster: "alpha".to_owned(), name: "n".to_owned() },
            Self::Hub => Identity::Hub { id: 1 },
            Self::RemovedHub => Identity::Hub { id: 9 },
        })
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// The connection was refused.
    Cut,
    Answer {
        status: StatusCode,
        /// The status of a gRPC call, wherever it stands.
        grpc: Option<String>,
    },
}

/// A hub, and a way to call it as anybody.
pub(super) struct Callers {
    pub(super) hub: TestHub,
    tls: HashMap<Who, Arc<ClientConfig>>,
}

impl Callers {
    /// A hub that knows `alpha` and `beta`, has removed `gone` and hub 9.
    pub(super) async fn new() -> Self {
        let hub = TestHub::start().await;
        for name in ["alpha", "beta"] {
            let object = Cluster::new("", name, Default::default());
            hub.put(&object.key(), serde_json::to_vec(&object).unwrap()).await;
        }
        let tls = Who::ALL.into_iter().map(|who| (who, tls_of(&hub, who))).collect();
        for who in [Who::Revoked, Who::RemovedHub] {
            let key = revocation_key(&who.identity().unwrap());
            hub.put(&key, Revocation { before: Timestamp::now() }.to_bytes()).await;
        }
        Self { hub, tls }
    }

    /// A connection as `who`, which may end at any time.
    pub(super) async fn connect(&self, who: Who) -> Option<SendRequest<Body>> {
        let stream = dial(&self.hub.address(), self.tls[&who].clone()).await.ok()?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.ok()?;
        // Ends with the sender.
        tokio::spawn(connection);
        Some(sender)
    }

    /// Calls as `who`. A stream that does not end is given up once its head is there, unless it is gRPC.
    pub(super) async fn call(
        &self,
        sender: &mut Option<SendRequest<Body>>,
        who: Who,
        (method, path): (&str, &str),
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Heard {
        if sender.as_ref().is_none_or(|sender| sender.is_closed()) {
            *sender = self.connect(who).await;
        }
        let Some(open) = sender else { return Heard::Cut };
        let mut request = Request::builder().method(method).uri(format!("https://{}{path}", self.hub.address()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(Bytes::copy_from_slice(body))).unwrap();
        let Ok(response) = tokio::time::timeout(LIMIT, open.send_request(request)).await.expect("an answer") else {
            return Heard::Cut;
        };
        let (head, body) = response.into_parts();
        let code = |headers: &HeaderMap| headers.get("grpc-status").map(|value| value.to_str().unwrap().to_owned());
        let mut grpc = code(&head.headers);
        if grpc.is_none() && head.headers.get("content-type").is_some_and(|value| value == "application/grpc") {
            let whole = tokio::time::timeout(LIMIT, body.collect()).await.expect("the answer ends");
            grpc = whole.ok().and_then(|whole| whole.trailers().and_then(code));
        }
        Heard::Answer { status: head.status, grpc }
    }
}

fn tls_of(hub: &TestHub, who: Who) -> Arc<ClientConfig> {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let Some(identity) = who.identity() else { return hub.tls(None, ALPN_H2) };
    let stranger = Authority::generate(TrustDomain::new("fluvial.test").unwrap(), Timestamp::now()).unwrap();
    let authority = if who == Who::Foreign { &stranger } else { &hub.authority };
    // No earlier than the authority, which is dated back by a minute.
    let (ago, life) = if who == Who::Expired { (40, Duration::from_secs(20)) } else { (0, DAY) };
    let ago = SignedDuration::from_secs(ago);
    let (key, roots) = (KeyPair::generate().unwrap(), hub.authority.cert_pem());
    let at = Timestamp::now().checked_sub(ago).unwrap();
    let leaf = authority.issue_for_key(&key, &identity, &[], at, life).unwrap();
    let bundle = Bundle::new(&leaf.cert_pem, &key, &authority.cert_pem()).unwrap();
    let trusted = fluvial_certs::bundle::parse_roots(&roots).unwrap();
    Arc::new(tls::client_config(Some(&bundle), &trusted, &[ALPN_H2]).unwrap())
}
