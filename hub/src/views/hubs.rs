//! The fleet of hubs: who belongs to it, and leaving it.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use fluvial_model::store::{Txn, TxnOutcome};
use fluvial_raft::Consistency;
use serde_json::json;

use super::ViewsState;
use crate::api::status::ApiError;
use crate::audit::{Act, Origin};
use crate::enrol::join::{AdmittedHub, admitted_hubs, hub_key};

/// `GET hubs`. `changing`: a change of who votes is half done.
pub(super) async fn list(State(state): State<ViewsState>) -> Response {
    let hub = |hub: crate::peers::Hub| {
        json!({
            "id": hub.id,
            "name": format!("hub-{}", hub.id),
            "address": hub.address,
            "role": if hub.voter { "voter" } else { "learner" },
            "leader": hub.leader,
        })
    };
    let items: Vec<_> = state.peers.hubs().into_iter().map(hub).collect();
    let changing = state.peers.is_changing();
    let list = json!({ "apiVersion": "fluvial.io/v1alpha1", "kind": "HubList", "changing": changing, "items": items });
    axum::Json(list).into_response()
}

/// `DELETE hubs/ID`: the leader removes the hub from the fleet and revokes its certificates, soon after this answers.
pub(super) async fn leave(
    State(state): State<ViewsState>,
    origin: Option<Extension<Origin>>,
    Path(id): Path<u64>,
) -> Result<Response, ApiError> {
    let key = hub_key(id);
    let hubs = admitted_hubs(&state.objects, Consistency::Linearizable).await?;
    if !hubs.iter().any(|hub| hub.id != id && !hub.leaving) {
        return Err(ApiError::BadRequest(format!(
            "hub {id} is the last one: a fleet without hubs cannot be used any more"
        )));
    }
    let missing = || ApiError::NoSuchPath { path: format!("hub {id}") };
    let stored = state.objects.store.get(&key, Consistency::Linearizable).await?.ok_or_else(missing)?;
    let unreadable = |error: serde_json::Error| ApiError::Internal { message: error.to_string() };
    let mut hub: AdmittedHub = serde_json::from_slice(&stored.value).map_err(unreadable)?;
    hub.leaving = true;
    let value = serde_json::to_vec(&hub).map_err(unreadable)?;
    let Extension(origin) = origin.unwrap_or_default();
    let act = Act::of_fleet("delete", "hubs", &id.to_string());
    let objects = state.objects.recorded(&origin, act, 202, &state.issuer.clock);
    match objects.store.txn(Txn::replace(key, stored.mod_revision, value)).await? {
        TxnOutcome::Committed { .. } => {
            Ok((StatusCode::ACCEPTED, axum::Json(json!({ "id": id, "leaving": true }))).into_response())
        }
        TxnOutcome::Conflict { .. } => Err(ApiError::Unavailable {
            message: format!("hub {id} was changed at the same time: try again"),
            retry_after_seconds: 1,
        }),
    }
}
