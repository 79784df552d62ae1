//! ① Nobody hands out what they do not have: neither by a role, nor by a binding, nor by a user's groups.
//!
//! As in Kubernetes, the verb `escalate` on a role lifts this for what is written into it, `bind` for what is given by it, and
//! `impersonate` on users and groups is what it takes to make somebody's credentials.
//!
//! Deliberately absent: a change of roles while this is asked. What is compared with is in force on this hub.

use fluvial_certs::Identity;
use fluvial_model::access::{On, PolicyRule, RBAC_GROUP, RoleRef, Ungranted, ungranted};
use fluvial_model::kinds::{ClusterRole, ClusterRoleBinding, Role, RoleBinding, User};
use fluvial_model::names::printable;
use fluvial_model::resource::{KindInfo, Resource};
use http::Extensions;
use serde_json::{Value, json};

use super::path::Target;
use super::status::{ApiError, Subject};
use super::stored;
use super::{Caller, Verb, authorize, caller};
use crate::rights::Rights;

/// How many missing rights a refusal names.
const MOST_NAMED: usize = 5;

/// Whether the caller may write an object that gives rights to others; objects of other kinds pass.
///
/// # Errors
/// 403, with what of it the caller does not have; 404 for a role that does not exist.
pub(super) fn check(
    extensions: &Extensions,
    target: &Target,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let info = &target.kind.info;
    let is = |other: &KindInfo| info.group == other.group && info.plural == other.plural;
    let same = |field: &str| old.is_some_and(|old| old.get(field) == new.get(field));
    let (caller, rights) = caller(extensions);
    let place = target.namespace_text();
    if is(&Role::INFO) || is(&ClusterRole::INFO) {
        let rules: Vec<PolicyRule> =
            serde_json::from_value(new.get("rules").cloned().unwrap_or_default()).unwrap_or_default();
        return if same("rules") { Ok(()) } else { writes(&rights, &caller, target, new, &rules) };
    }
    if is(&RoleBinding::INFO) || is(&ClusterRoleBinding::INFO) {
        let role: RoleRef = serde_json::from_value(new.get("roleRef").cloned().unwrap_or_default()).unwrap_or_default();
        return if same("roleRef") && same("subjects") {
            Ok(())
        } else {
            gives(&rights, &caller, target, place, new, &role)
        };
    }
    if is(&User::INFO) && !same("spec") {
        let user = User::from_value(new).map_err(|error| ApiError::BadRequest(error.to_string()))?;
        return may_act_as(&rights, &caller, &user.metadata.name, &user.spec.groups);
    }
    Ok(())
}

fn role_on<'a>(plural: &'a str, namespace: &'a str, name: &'a str) -> On<'a> {
    On::Resource { group: RBAC_GROUP, resource: plural, subresource: "", namespace, name }
}

/// A role with these rules.
fn writes(
    rights: &Rights,
    caller: &Caller,
    target: &Target,
    object: &Value,
    rules: &[PolicyRule],
) -> Result<(), ApiError> {
    let (place, name) = (target.namespace_text(), stored::meta(object, "name"));
    if authorize(rights, caller, Verb::Escalate, role_on(target.kind.info.plural, place, name)).is_ok() {
        return Ok(());
    }
    within(rights, caller, place, rules).map_err(|missing| refused(target, name, caller, &missing))
}

/// A binding to this role.
fn gives(
    rights: &Rights,
    caller: &Caller,
    target: &Target,
    place: &str,
    object: &Value,
    role: &RoleRef,
) -> Result<(), ApiError> {
    let (plural, home) = if role.kind == "Role" { (Role::INFO.plural, place) } else { (ClusterRole::INFO.plural, "") };
    // A ClusterRole may be bound in one namespace by whoever may do so there.
    if authorize(rights, caller, Verb::Bind, role_on(plural, place, &role.name)).is_ok() {
        return Ok(());
    }
    let rules = rights.policy().rules_of(place, role).map(<[PolicyRule]>::to_vec);
    let Some(rules) = rules else {
        let info = if home.is_empty() { ClusterRole::INFO } else { Role::INFO };
        return Err(ApiError::NotFound(Subject::new(&info, &role.name)));
    };
    let name = stored::meta(object, "name");
    within(rights, caller, place, &rules).map_err(|missing| refused(target, name, caller, &missing))
}

/// Whether the caller has all that `rules` allow, in `place`.
fn within(rights: &Rights, caller: &Caller, place: &str, rules: &[PolicyRule]) -> Result<(), Ungranted> {
    let Some(who) = caller.who() else { return Err(Ungranted::Parts(rules.to_vec())) };
    if who.is_master() {
        return Ok(());
    }
    let policy = rights.policy();
    let owned: Vec<&PolicyRule> = policy.rules(who, place).collect();
    ungranted(&owned, rules).map_or(Ok(()), Err)
}

fn refused(target: &Target, name: &str, caller: &Caller, missing: &Ungranted) -> ApiError {
    let subject = Subject::new(&target.kind.info, name);
    let user = caller.who().map(|who| printable(who.user)).unwrap_or_default();
    let what = match missing {
        Ungranted::TooLarge { parts } => format!("it is too large to be compared with what they have ({parts} parts)"),
        Ungranted::Parts(parts) => {
            let named: Vec<String> = parts.iter().take(MOST_NAMED).map(|part| json!(part).to_string()).collect();
            let more = if parts.len() > MOST_NAMED { ", and more" } else { "" };
            format!("they do not have these rights themselves: {}{more}", named.join(", "))
        }
    };
    let message =
        format!("{}forbidden: user \"{user}\" is attempting to grant what they may not: {what}", subject.described());
    ApiError::Forbidden { subject: Some(subject), message }
}

/// Whether the caller may act as this user of these groups, which is what credentials let their bearer do.
///
/// # Errors
/// 403 that names the first of them that is not allowed.
pub(crate) fn may_act_as(rights: &Rights, caller: &Caller, user: &str, groups: &[String]) -> Result<(), ApiError> {
    let on = |resource, name| On::Resource { group: "", resource, subresource: "", namespace: "", name };
    let all = std::iter::once(("users", user)).chain(groups.iter().map(|group| ("groups", group.as_str())));
    for (resource, name) in all {
        authorize(rights, caller, Verb::Impersonate, on(resource, name)).map_err(|denied| {
            let message = format!("{resource} \"{}\" is forbidden: {denied}", printable(name));
            ApiError::Forbidden { subject: None, message }
        })?;
    }
    Ok(())
}

/// A caller who acts as somebody else.
pub(super) fn acting(user: String, groups: Vec<String>) -> Caller {
    Caller(Some(Identity::User { name: user, groups }))
}
