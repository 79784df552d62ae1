//! ① Acting as somebody else, by Kubernetes' headers: `kubectl --as ann --as-group team`.
//!
//! Invariant: whoever sends such a header is either allowed to and acts as the other, or is refused; it is never ignored.
//!
//! Deliberately absent: uids and extra values, which no rule here could use.

use http::HeaderMap;

use super::Caller;
use super::grants::{acting, may_act_as};
use super::status::ApiError;
use crate::rights::Rights;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
/// What all these headers begin with.
const ANY: &str = "impersonate-";

/// As whom the caller of a request acts.
///
/// # Errors
/// 400 for headers that make no sense, 403 without the right to.
pub(crate) fn acts_as(headers: &HeaderMap, rights: &Rights, caller: Caller) -> Result<Caller, ApiError> {
    let Some(first) = headers.keys().find(|name| name.as_str().starts_with(ANY)) else { return Ok(caller) };
    if caller.0.is_none() {
        return Err(ApiError::Unauthorized);
    }
    let text = |value: &http::HeaderValue, name: &str| {
        let text = value.to_str().ok().filter(|text| !text.is_empty());
        text.map(str::to_owned).ok_or_else(|| ApiError::BadRequest(format!("header {name} must be visible ASCII")))
    };
    if let Some(other) =
        headers.keys().map(http::HeaderName::as_str).find(|name| name.starts_with(ANY) && ![USER, GROUP].contains(name))
    {
        return Err(ApiError::BadRequest(format!("header {other} is not understood: impersonate a user and groups")));
    }
    let Some(user) = headers.get(USER) else {
        return Err(ApiError::BadRequest(format!("header {first} needs {USER} beside it")));
    };
    let user = text(user, USER)?;
    let groups = headers.get_all(GROUP).iter().map(|group| text(group, GROUP)).collect::<Result<Vec<_>, _>>()?;
    may_act_as(rights, &caller, &user, &groups)?;
    Ok(acting(user, groups))
}
