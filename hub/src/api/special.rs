//! ① Calls that are about no object: questions to the catalog.

use axum::body::Body;
use axum::response::Response;
use fluvial_model::causes::chain;
use fluvial_model::names::printable;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;

use super::ApiState;
use super::body::{self, Notation};
use super::negotiate::content_type;
use super::status::{ApiError, json_response};
use crate::catalog::{Format, QueryError, Sight};

/// Where questions are asked.
pub const QUERY_PATH: &str = "/apis/fluvial.io/v1alpha1/query";
/// Where the catalog's tables and columns are listed.
pub const SCHEMA_PATH: &str = "/apis/fluvial.io/v1alpha1/query/schema";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    sql: String,
    #[serde(default)]
    consistency: Freshness,
    #[serde(default)]
    format: Format,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Freshness {
    #[default]
    Linearizable,
    Stale,
}

/// `POST` of a question: `{"sql", "consistency": "linearizable|stale", "format": "json|csv|arrow|table"}`, from somebody
/// who sees `sight`.
///
/// # Errors
/// 400 for a statement that is not allowed or wrong, 422 for one that exceeds a limit, 429 if too many run.
pub async fn query(state: &ApiState, headers: &HeaderMap, bytes: &[u8], sight: &Sight) -> Result<Response, ApiError> {
    let value = body::parse(bytes, Notation::of(&content_type(headers))?, false)?;
    let question: Question = serde_json::from_value(value)
        .map_err(|error| ApiError::BadRequest(format!("the body is no query: {error}")))?;
    if question.consistency == Freshness::Linearizable {
        // Once this read is answered, everything acknowledged before has been applied here.
        state.objects.store.get("/registry", fluvial_raft::Consistency::Linearizable).await?;
    }
    let answer = state.catalog.query(&question.sql, question.format, sight).await?;
    let mut response = Response::new(Body::from(answer.bytes));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.media_type));
    Ok(response)
}

/// `GET` of the tables and their columns.
pub fn schema(state: &ApiState) -> Response {
    json_response(http::StatusCode::OK, &state.catalog.schema())
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Busy { .. } => Self::TooManyRequests { message: error.to_string() },
            QueryError::Limit { .. } => {
                let subject =
                    super::status::Subject { group: "fluvial.io", kind: "Query", plural: "query", name: String::new() };
                Self::invalid(subject, "sql", error.to_string())
            }
            QueryError::Refused { .. } => Self::BadRequest(error.to_string()),
            QueryError::Sql { message } => Self::BadRequest(format!("the statement is wrong: {}", printable(&message))),
            QueryError::Open { .. } => Self::Unavailable { message: chain(&error), retry_after_seconds: 1 },
            QueryError::Encode { .. } | QueryError::Ended => Self::Internal { message: chain(&error) },
        }
    }
}
