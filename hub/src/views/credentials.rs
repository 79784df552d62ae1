//! Credentials of users: certificates and tokens, made and taken back.
//!
//! Invariants: who makes credentials for a user may act as that user; a token's secret and a certificate's key are kept
//! nowhere here; what was made before it was taken back opens nothing any more, on any hub.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use fluvial_certs::{Identity, USER_SECRET_BYTES, UserSecret};
use fluvial_model::kinds::{User, UserToken, UserTokenSpec};
use fluvial_model::meta::OwnerReference;
use fluvial_model::resource::Resource as _;
use fluvial_model::store::{Compare, Op, Txn, TxnOutcome};
use fluvial_raft::Consistency;
use http::Extensions;
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::json;

use super::ViewsState;
use crate::api::caller;
use crate::api::grants::may_act_as;
use crate::api::status::{ApiError, Subject};
use crate::audit::{Act, Origin};
use crate::clock::fresh_uid;
use crate::enrol::issuer::IssueError;
use crate::enrol::revocations::user_revocation;
use crate::objects::Stored;

/// The most bytes of a request: a signing request, and some more.
const MAX_BODY: usize = 32 * 1024;
/// How long credentials are good for if nothing is said, and at most.
const LIFETIME: Duration = Duration::from_secs(90 * 86_400);
const LIFETIME_MAX: Duration = Duration::from_secs(365 * 86_400);

/// What is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Wish {
    /// A signing request in PEM, for a certificate.
    csr: Option<String>,
    /// A bearer token.
    token: bool,
    ttl_seconds: Option<u64>,
}

impl Wish {
    fn lifetime(&self) -> Result<Duration, ApiError> {
        let life = self.ttl_seconds.map_or(LIFETIME, Duration::from_secs);
        if (Duration::from_secs(1)..=LIFETIME_MAX).contains(&life) {
            return Ok(life);
        }
        let most = LIFETIME_MAX.as_secs();
        Err(ApiError::BadRequest(format!("ttlSeconds is {}; it must be from 1 to {most}", life.as_secs())))
    }
}

async fn user(state: &ViewsState, name: &str) -> Result<Stored<User>, ApiError> {
    let found = state.objects.get::<User>("", name, Consistency::Linearizable).await?;
    found.ok_or_else(|| ApiError::NotFound(Subject::new(&User::INFO, name)))
}

/// `POST users/NAME/credentials`: `{"csr": PEM}` or `{"token": true}`, and `"ttlSeconds"`.
pub(super) async fn create(
    State(state): State<ViewsState>,
    Path(name): Path<String>,
    extensions: Extensions,
    body: Bytes,
) -> Result<Response, ApiError> {
    if body.len() > MAX_BODY {
        return Err(ApiError::TooLarge { limit: MAX_BODY });
    }
    let wish: Wish = serde_json::from_slice(&body)
        .map_err(|error| ApiError::BadRequest(format!("expected {{\"csr\": PEM}} or {{\"token\": true}}: {error}")))?;
    let life = wish.lifetime()?;
    let user = user(&state, &name).await?;
    let origin = Origin::of(&extensions);
    let (caller, rights) = caller(&extensions);
    may_act_as(&rights, &caller, &name, &user.object.spec.groups)?;
    match (&wish.csr, wish.token) {
        (Some(csr), false) => certificate(&state, &user, csr, life, &origin).await,
        (None, true) => token(&state, &user, life, &origin).await,
        _ => Err(ApiError::BadRequest("say either csr, for a certificate, or token, and not both".into())),
    }
}

async fn certificate(
    state: &ViewsState,
    user: &Stored<User>,
    csr: &str,
    life: Duration,
    origin: &Origin,
) -> Result<Response, ApiError> {
    let identity = Identity::User { name: user.object.metadata.name.clone(), groups: user.object.spec.groups.clone() };
    let issuer = state.issuer.living(life);
    let csr = issuer.read(csr).map_err(refused)?;
    let leaf = issuer.issue(&csr, &identity, None, origin).await.map_err(refused)?;
    let answer = json!({ "certificate": leaf, "ca": issuer.roots() });
    Ok((StatusCode::CREATED, axum::Json(answer)).into_response())
}

fn refused(error: IssueError) -> ApiError {
    match error {
        IssueError::Request(source) => ApiError::BadRequest(source.to_string()),
        IssueError::Store { source, .. } => source.into(),
        IssueError::Issue { .. } | IssueError::Revocation { .. } => {
            ApiError::Internal { message: fluvial_model::causes::chain(&error) }
        }
    }
}

async fn token(state: &ViewsState, user: &Stored<User>, life: Duration, origin: &Origin) -> Result<Response, ApiError> {
    let mut random = [0; USER_SECRET_BYTES];
    rand::fill(&mut random);
    let secret = UserSecret::mint(&random);
    let now = state.issuer.clock.now();
    let expires_at = SignedDuration::try_from(life).ok().and_then(|life| now.checked_add(life).ok());
    let owner = &user.object.metadata;
    let spec = UserTokenSpec {
        user: owner.name.clone(),
        user_uid: owner.uid.clone(),
        secret_hash: secret.secret_hash(),
        expires_at,
    };
    let mut object = UserToken::new("", secret.id(), spec);
    object.metadata.uid = fresh_uid();
    object.metadata.generation = 1;
    object.metadata.creation_timestamp = Timestamp::from_second(now.as_second()).ok();
    object.metadata.owner_references = vec![OwnerReference {
        api_version: User::INFO.api_version(),
        kind: User::INFO.kind.to_owned(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        ..OwnerReference::default()
    }];
    let mut txn = Txn::create(object.key(), state.objects.encode(&object)?);
    txn.compares.push(Compare::UnchangedSince { key: user.object.key(), revision: user.revision });
    let mut entry = origin.entry(&Act::of_fleet("create", "usertokens", secret.id()), 201, now);
    entry.add(&format!("user/{}", owner.name));
    txn.audit.push(entry);
    match state.objects.store.txn(txn).await? {
        TxnOutcome::Committed { .. } => {
            let answer = json!({ "token": secret.text().expose_secret(), "id": secret.id(), "expiresAt": expires_at });
            Ok((StatusCode::CREATED, axum::Json(answer)).into_response())
        }
        TxnOutcome::Conflict { .. } => Err(ApiError::Conflict {
            subject: Subject::new(&User::INFO, &owner.name),
            message: "the user changed while the token was made: try again".into(),
        }),
    }
}

/// `DELETE users/NAME/credentials`: everything that was issued so far opens nothing any more, whether there is such a User
/// or not: the administrator's first certificate belongs to none.
pub(super) async fn revoke(
    State(state): State<ViewsState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let identity = Identity::User { name: name.clone(), groups: Vec::new() };
    identity.check().map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let (key, value) = user_revocation(&name, state.issuer.clock.now());
    let mut ops = vec![Op::Put { key, value }];
    let tokens = state.objects.list::<UserToken>(Consistency::Linearizable).await?;
    let own = tokens.into_iter().filter(|token| token.object.spec.user == name);
    ops.extend(own.map(|token| Op::Delete { key: token.object.key() }));
    let taken = ops.len() - 1;
    let origin = Origin::of(request.extensions());
    let entry = origin.entry(&Act::of_fleet("revoke", "certificates", &identity.path()), 200, state.issuer.clock.now());
    // A transaction has a bound; whoever has more tokens than that loses them in several.
    for part in ops.chunks(fluvial_raft::store::COMMON_TXN_OPS) {
        state.objects.store.txn(Txn { ops: part.to_vec(), audit: vec![entry.clone()], ..Txn::default() }).await?;
    }
    Ok((StatusCode::OK, axum::Json(json!({ "user": name, "tokens": taken }))).into_response())
}
