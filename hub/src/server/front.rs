//! What stands before the hub's services: identity, deny list, rules.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use axum::response::IntoResponse as _;
use fluvial_certs::listen::{self, Answer, Guard, Limits, Peer};
use fluvial_certs::{Identity, UserSecret};
use hyper::body::Incoming;
use secrecy::{ExposeSecret as _, SecretString};
use tower::ServiceExt as _;

use super::Services;
use super::access::{Denial, Family, decide, is_grpc, precedes_deny_list, takes_token};
use crate::api::Caller;
use crate::api::access::{Bearer, Proof};
use crate::api::impersonation::acts_as;
use crate::api::status::ApiError;
use crate::audit::call::Call;
use crate::audit::{Notes, Origin};
use crate::clock::SharedClock;
use crate::oidc::{Known, Providers};
use crate::rights::Rights;

/// What a peer may send unread: 256 KiB a stream (a quarter of the largest block), 1 MiB a connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// The same for a hub, whose log entries and snapshots must not wait for window updates; there are few of them.
const HUB_STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const HUB_CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// An agent needs one stream for its session and a few for blocks; hubs and users watch many things at a time.
const AGENT_STREAMS: u32 = 16;
const STREAMS: u32 = 256;

/// The hub's rules and services; clones share them.
#[derive(Clone)]
pub(super) struct Front {
    pub(super) guard: Guard,
    pub(super) services: Arc<Services>,
    pub(super) rights: Rights,
    pub(super) providers: Arc<Providers>,
    pub(super) notes: Notes,
    pub(super) clock: SharedClock,
}

impl listen::Front for Front {
    fn limits(&self, peer: &Peer) -> Limits {
        let (streams, stream_window, connection_window) = match peer.verified.as_ref().map(|v| &v.identity) {
            Some(Identity::Hub { .. }) => (STREAMS, HUB_STREAM_WINDOW, HUB_CONNECTION_WINDOW),
            Some(Identity::Cluster { .. } | Identity::Node { .. }) => (AGENT_STREAMS, STREAM_WINDOW, CONNECTION_WINDOW),
            _ => (STREAMS, STREAM_WINDOW, CONNECTION_WINDOW),
        };
        Limits { streams, stream_window, connection_window }
    }

    fn answer(&self, peer: &Peer, request: Request<Incoming>) -> Answer {
        let (front, peer) = (self.clone(), peer.clone());
        Box::pin(async move {
            let is_grpc = is_grpc(request.uri().path(), request.headers());
            let (method, uri) = (request.method().clone(), request.uri().clone());
            let mut origin = Origin::new(None, &peer);
            let response = match front.admit(&peer, &mut origin, request).await {
                Ok((router, request)) => match router.oneshot(request.map(Body::new)).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                },
                Err(refusal) => *refusal,
            };
            let call = Call::new(origin, is_grpc, &method, &uri);
            if let Some(entry) = call.note(&response, front.clock.now()) {
                front.notes.put(entry);
            }
            response
        })
    }
}

impl Front {
    /// The services that the request may go to, or what to answer instead; `origin` becomes who it is from.
    async fn admit(
        &self,
        peer: &Peer,
        origin: &mut Origin,
        mut request: Request<Incoming>,
    ) -> Result<(axum::Router, Request<Incoming>), Box<Response<Body>>> {
        let verified = peer.verified.as_deref();
        let bearer = if verified.is_none() { self.bearer(&request).await? } else { None };
        let identity = verified.map(|v| &v.identity).or(bearer.as_ref().map(|(_, identity)| identity));
        *origin = Origin::new(identity, peer);
        let family = decide(request.uri().path(), request.headers(), identity).map_err(|denial| denied(&denial))?;
        if let Some(Err(error)) = verified.map(|v| self.guard.denied.check(v)) {
            return Err(refusal(family, StatusCode::FORBIDDEN, &error.to_string()).into());
        }
        // Everyone else waits until the store could be read for the first time.
        let known = *self.guard.denied_changed.borrow() > 0 && (family == Family::Grpc || self.rights.are_known());
        if !known && !precedes_deny_list(request.uri().path()) {
            return Err(refusal(family, StatusCode::SERVICE_UNAVAILABLE, "this hub is starting: try again").into());
        }
        request.extensions_mut().insert(peer.clone());
        let router = match family {
            Family::Grpc => &self.services.grpc,
            Family::Rest => {
                let caller = acts_as(request.headers(), &self.rights, Caller(identity.cloned()));
                let caller = caller.map_err(|error| Box::new(error.into_response()))?;
                origin.acts_as(&caller);
                request.extensions_mut().insert(caller);
                request.extensions_mut().insert(self.rights.clone());
                if let Some((bearer, _)) = bearer {
                    peer.known.store(true, Ordering::Relaxed);
                    request.extensions_mut().insert(bearer);
                }
                &self.services.rest
            }
        };
        request.extensions_mut().insert(origin.clone());
        Ok((router.clone(), request))
    }
}

impl Front {
    /// The user's token that a request carries, if it carries one, and whose it is.
    async fn bearer(&self, request: &Request<Incoming>) -> Result<Option<(Bearer, Identity)>, Box<Response<Body>>> {
        let text = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = text.and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
        let Some(token) = token.filter(|_| takes_token(request.uri().path(), request.headers())) else {
            return Ok(None);
        };
        if !self.rights.are_known() {
            return Err(
                refusal(Family::Rest, StatusCode::SERVICE_UNAVAILABLE, "this hub is starting: try again").into()
            );
        }
        let refused = |message: String| Box::new(ApiError::TokenRefused { message }.into_response());
        let token = SecretString::from(token);
        let now = self.clock.now();
        if !UserSecret::is_meant_by(token.expose_secret()) {
            let known = self.providers.authenticate(&self.rights, token.expose_secret(), now).await;
            let Known { identity, until, provider } = known.map_err(|problem| refused(problem.to_string()))?;
            return Ok(Some((Bearer { proof: Proof::Provider(provider), until }, identity)));
        }
        let known = self.rights.authenticate(token.expose_secret(), now);
        let (identity, until) = known.map_err(|problem| refused(problem.to_string()))?;
        Ok(Some((Bearer { proof: Proof::Own(Arc::new(token)), until }, identity)))
    }
}

fn denied(denial: &Denial) -> Box<Response<Body>> {
    let (family, code) = match denial {
        Denial::NoCertificate { family, .. } => (*family, StatusCode::UNAUTHORIZED),
        Denial::Forbidden { family, .. } => (*family, StatusCode::FORBIDDEN),
    };
    refusal(family, code, &denial.to_string()).into()
}

/// A refusal in the words of the family: a gRPC status, or a Kubernetes Status.
fn refusal(family: Family, code: StatusCode, message: &str) -> Response<Body> {
    let (grpc, reason) = match code {
        StatusCode::UNAUTHORIZED => (tonic::Code::Unauthenticated, "Unauthorized"),
        StatusCode::FORBIDDEN => (tonic::Code::PermissionDenied, "Forbidden"),
        _ => (tonic::Code::Unavailable, "ServiceUnavailable"),
    };
    match family {
        Family::Grpc => tonic::Status::new(grpc, message).into_http(),
        Family::Rest => {
            let status = serde_json::json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
                "reason": reason, "code": code.as_u16(),
            });
            let mut response = Response::new(Body::from(status.to_string()));
            *response.status_mut() = code;
            response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
            if code == StatusCode::SERVICE_UNAVAILABLE {
                response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
            }
            response
        }
    }
}
