//! Join tokens, and the one command that uses each.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use fluvial_model::access::On;
use fluvial_model::kinds::FLUVIAL_GROUP;
use http::Extensions;
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::ViewsState;
use crate::api::body;
use crate::api::status::ApiError;
use crate::api::{Verb, allowed};
use crate::audit::{Act, Origin};
use crate::enrol::tokens::TokenError;
use crate::enrol::{TokenRequest, mint};

/// The most bytes of a request for a token.
const MAX_BODY: usize = 4096;

/// `POST tokens`: `{"cluster": NAME}` or `{"hub": true}`, and `"ttlSeconds"`.
pub(super) async fn create(
    State(state): State<ViewsState>,
    extensions: Extensions,
    body: Body,
) -> Result<Response, ApiError> {
    let body = body::read(body).await?;
    if body.len() > MAX_BODY {
        return Err(ApiError::TooLarge { limit: MAX_BODY });
    }
    let request: TokenRequest = serde_json::from_slice(&body).map_err(|error| {
        ApiError::BadRequest(format!("expected {{\"cluster\": NAME}} or {{\"hub\": true}}: {error}"))
    })?;
    if request.hub {
        // A hub has the fleet's keys: a right of its own, which no other one implies.
        let on = On::Resource { group: FLUVIAL_GROUP, resource: "tokens", subresource: "hub", namespace: "", name: "" };
        allowed(&extensions, Verb::Create, on, None)?;
    }
    let (origin, act) = (Origin::of(&extensions), Act::of_fleet("create", "jointokens", ""));
    let objects = state.objects.recorded(&origin, act, 201, &state.issuer.clock);
    let pin = state.issuer.authority.spki_pin();
    let minted = mint(&objects, &state.issuer.clock, pin, &request).await.map_err(refused)?;
    let token = minted.text.expose_secret();
    let url = format!("https://{}", state.advertise);
    let command = if request.hub {
        format!("fluvial hub join --hub {url} --token {token} --data-dir fluvial-hub --listen HOST:PORT")
    } else {
        format!("fluvial member join --hub {url} --token {token} --data-dir fluvial-{}", request.cluster)
    };
    let answer = json!({ "token": token, "command": command, "expiresAt": minted.expires_at });
    Ok((StatusCode::CREATED, axum::Json(answer)).into_response())
}

fn refused(error: TokenError) -> ApiError {
    match error {
        TokenError::Store(source) => source.into(),
        TokenError::Collision => ApiError::Unavailable { message: error.to_string(), retry_after_seconds: 1 },
        TokenError::Purpose | TokenError::Cluster { .. } | TokenError::Lifetime { .. } => {
            ApiError::BadRequest(error.to_string())
        }
    }
}
