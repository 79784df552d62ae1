//! Saving a snapshot of the hub, and the recovery after a restore.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;
use tokio_stream::wrappers::ReceiverStream;
use zeroize::Zeroizing;

use super::ViewsState;
use crate::api::status::ApiError;
use crate::recovery;
use crate::snapshot::key::{Derivation, KEY_BYTES};
use crate::snapshot::save::SaveError;

/// The most bytes of a request for a snapshot.
const MAX_BODY: usize = 4096;
/// What a snapshot is sent as.
const MEDIA_TYPE: &str = "application/vnd.fluvial.hub-snapshot";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SaveRequest {
    /// How the key came from a password.
    derivation: Derivation,
    /// The key, in base64.
    key: String,
}

/// `POST hubs/snapshot`: `{"derivation": {…}, "key": KEY}`, answered with the snapshot as it is written.
pub(super) async fn save(State(state): State<ViewsState>, body: Bytes) -> Result<Response, ApiError> {
    let bad = |what: &str| ApiError::BadRequest(what.to_owned());
    if body.len() > MAX_BODY {
        return Err(ApiError::TooLarge { limit: MAX_BODY });
    }
    // What cannot be read is not repeated: it may hold the key.
    let request: SaveRequest =
        serde_json::from_slice(&body).map_err(|_| bad("expected {\"derivation\": {…}, \"key\": KEY}"))?;
    let text = Zeroizing::new(request.key);
    request.derivation.check().map_err(|error| bad(&error.to_string()))?;
    let key = STANDARD.decode(text.as_bytes()).map(Zeroizing::new).ok();
    let key = key.and_then(|key| <[u8; KEY_BYTES]>::try_from(key.as_slice()).ok()).map(Zeroizing::new);
    let key = key.ok_or_else(|| bad("key: must be 32 bytes in base64"))?;
    let chunks = state.saver.begin(request.derivation, key).await.map_err(refused)?;
    Ok(([(CONTENT_TYPE, MEDIA_TYPE)], Body::from_stream(ReceiverStream::new(chunks))).into_response())
}

fn refused(error: SaveError) -> ApiError {
    match error {
        SaveError::Busy => ApiError::TooManyRequests { message: error.to_string() },
        SaveError::Store(source) => source.into(),
        SaveError::Write(source) => ApiError::Internal { message: source.to_string() },
    }
}

/// `GET hubs/recovery`.
pub(super) async fn recovery(State(state): State<ViewsState>) -> Result<Response, ApiError> {
    let recovery = recovery::under_way(&state.objects).await?.map(|(recovery, _)| recovery);
    let until = recovery.as_ref().and_then(|recovery| recovery.until);
    Ok(axum::Json(json!({ "recovering": recovery.is_some(), "until": until })).into_response())
}

/// `DELETE hubs/recovery`: agents drop what this hub does not know.
pub(super) async fn settle(State(state): State<ViewsState>) -> Result<Response, ApiError> {
    let was = recovery::end(&state.objects).await?;
    Ok(axum::Json(json!({ "recovering": false, "ended": was })).into_response())
}
