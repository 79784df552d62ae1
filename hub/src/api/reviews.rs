//! ① May I, may they, and who am I: Kubernetes' reviews, which `kubectl auth` asks. They are answered and stored nowhere.
//!
//! | call | answer |
//! |---|---|
//! | `POST …/authorization.k8s.io/v1/selfsubjectaccessreviews` | whether the caller may |
//! | `POST …/authorization.k8s.io/v1/subjectaccessreviews`, `…/namespaces/NS/localsubjectaccessreviews` | whether somebody may |
//! | `POST …/authorization.k8s.io/v1/selfsubjectrulesreviews` | the caller's rules in a namespace |
//! | `POST …/authentication.k8s.io/v1/selfsubjectreviews` | who the caller is |

use axum::body::Body;
use axum::response::Response;
use fluvial_model::access::defaults::{AUTHENTICATION_GROUP, AUTHORIZATION_GROUP};
use fluvial_model::access::{AUTHENTICATED, Action, Allowed, On, PolicyRule, Refusal, Who};
use http::request::Parts;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{self, Notation};
use super::negotiate::content_type;
use super::status::{ApiError, json_response};
use super::{Verb, allowed, caller, protobuf, wrong_method};
use crate::rights::Rights;

/// A review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Review<'a> {
    SelfAccess,
    Access,
    LocalAccess { namespace: &'a str },
    SelfRules,
    Myself,
}

impl Review<'_> {
    /// Group, plural name and kind.
    const fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::SelfAccess => (AUTHORIZATION_GROUP, "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
            Self::Access => (AUTHORIZATION_GROUP, "subjectaccessreviews", "SubjectAccessReview"),
            Self::LocalAccess { .. } => (AUTHORIZATION_GROUP, "localsubjectaccessreviews", "LocalSubjectAccessReview"),
            Self::SelfRules => (AUTHORIZATION_GROUP, "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
            Self::Myself => (AUTHENTICATION_GROUP, "selfsubjectreviews", "SelfSubjectReview"),
        }
    }
}

/// The review that a path asks for.
#[must_use]
pub fn asked<'a>(group: &str, version: &str, rest: &[&'a str]) -> Option<Review<'a>> {
    if version != "v1" {
        return None;
    }
    match (group, rest) {
        (AUTHORIZATION_GROUP, ["selfsubjectaccessreviews"]) => Some(Review::SelfAccess),
        (AUTHORIZATION_GROUP, ["subjectaccessreviews"]) => Some(Review::Access),
        (AUTHORIZATION_GROUP, ["namespaces", namespace, "localsubjectaccessreviews"]) => {
            Some(Review::LocalAccess { namespace })
        }
        (AUTHORIZATION_GROUP, ["selfsubjectrulesreviews"]) => Some(Review::SelfRules),
        (AUTHENTICATION_GROUP, ["selfsubjectreviews"]) => Some(Review::Myself),
        _ => None,
    }
}

/// What may be asked for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    resource_attributes: Option<Resource>,
    non_resource_attributes: Option<Path>,
    user: String,
    groups: Vec<String>,
    namespace: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Resource {
    namespace: String,
    verb: String,
    group: String,
    resource: String,
    subresource: String,
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Path {
    path: String,
    verb: String,
}

/// Answers a review.
///
/// # Errors
/// 403 without the right to ask, 400 for a question that is none.
pub async fn answer(review: Review<'_>, parts: &Parts, body: Body) -> Result<Response, ApiError> {
    let (group, resource, kind) = review.names();
    if parts.method != Method::POST {
        return Err(wrong_method(&parts.method, resource));
    }
    let namespace = if let Review::LocalAccess { namespace } = review { namespace } else { "" };
    let on = On::Resource { group, resource, subresource: "", namespace, name: "" };
    allowed(&parts.extensions, Verb::Create, on, None)?;
    let bytes = body::read(body).await?;
    let media_type = content_type(&parts.headers);
    let mut object = if media_type == protobuf::MEDIA_TYPE {
        let malformed = || ApiError::BadRequest(format!("the body is no protobuf of a {kind}"));
        protobuf::parse_review(kind, &bytes).ok_or_else(malformed)?
    } else {
        body::parse(&bytes, Notation::of(&media_type)?, false)?
    };
    if !object.is_object() {
        return Err(ApiError::BadRequest(format!("the body is no {kind}: it is no object")));
    }
    let spec = object.get("spec").filter(|spec| !spec.is_null()).cloned().unwrap_or_else(|| json!({}));
    let spec: Spec = serde_json::from_value(spec)
        .map_err(|error| ApiError::BadRequest(format!("the body is no {kind}: spec: {error}")))?;
    let (caller, rights) = caller(&parts.extensions);
    let own = caller.who().ok_or(ApiError::Unauthorized)?;
    let status = match review {
        Review::SelfAccess => may(&rights, own, &spec, None)?,
        Review::Access | Review::LocalAccess { .. } => {
            if spec.user.is_empty() && spec.groups.is_empty() {
                return Err(ApiError::BadRequest("spec.user or spec.groups must say whom it is about".into()));
            }
            let who = Who { user: &spec.user, groups: &spec.groups };
            may(&rights, who, &spec, (!namespace.is_empty()).then_some(namespace))?
        }
        Review::SelfRules => rules(&rights, own, &spec.namespace),
        Review::Myself => {
            let groups: Vec<&str> = own.groups.iter().map(String::as_str).chain([AUTHENTICATED]).collect();
            json!({ "userInfo": { "username": own.user, "groups": groups } })
        }
    };
    object["apiVersion"] = json!(format!("{group}/v1"));
    object["kind"] = json!(kind);
    object["status"] = status;
    if object.get("metadata").is_none_or(Value::is_null) {
        object["metadata"] = json!({});
    }
    Ok(json_response(StatusCode::CREATED, &object))
}

/// Whether `who` may do what a spec asks; in `inside` alone, if that is given.
fn may(rights: &Rights, who: Who<'_>, spec: &Spec, inside: Option<&str>) -> Result<Value, ApiError> {
    let bad = |message: &str| Err(ApiError::BadRequest(message.to_owned()));
    let action = match (&spec.resource_attributes, &spec.non_resource_attributes) {
        (Some(of), None) => {
            if inside.is_some_and(|namespace| of.namespace != namespace) {
                return bad("spec.resourceAttributes.namespace must be the namespace of the review");
            }
            let on = On::Resource {
                group: &of.group,
                resource: &of.resource,
                subresource: &of.subresource,
                namespace: &of.namespace,
                name: &of.name,
            };
            Action { verb: &of.verb, on }
        }
        (None, Some(of)) if inside.is_none() => Action { verb: &of.verb, on: On::Path(&of.path) },
        _ => return bad("exactly one of spec.resourceAttributes and spec.nonResourceAttributes must be given"),
    };
    Ok(match rights.policy().decide(who, action) {
        Ok(Allowed::Master) => json!({ "allowed": true, "reason": "by the group system:masters" }),
        Ok(Allowed::Binding { namespace, name }) if namespace.is_empty() => {
            json!({ "allowed": true, "reason": format!("by ClusterRoleBinding \"{name}\"") })
        }
        Ok(Allowed::Binding { namespace, name }) => {
            json!({ "allowed": true, "reason": format!("by RoleBinding \"{namespace}/{name}\"") })
        }
        Err(Refusal { .. }) => json!({ "allowed": false }),
    })
}

fn rules(rights: &Rights, who: Who<'_>, namespace: &str) -> Value {
    let policy = rights.policy();
    let everything = [
        PolicyRule {
            verbs: vec!["*".into()],
            api_groups: vec!["*".into()],
            resources: vec!["*".into()],
            ..PolicyRule::default()
        },
        PolicyRule { verbs: vec!["*".into()], non_resource_urls: vec!["*".into()], ..PolicyRule::default() },
    ];
    let mut all: Vec<&PolicyRule> = policy.rules(who, namespace).collect();
    if who.is_master() {
        all.extend(&everything);
    }
    let (of_paths, of_resources): (Vec<&PolicyRule>, Vec<&PolicyRule>) =
        all.into_iter().partition(|rule| !rule.non_resource_urls.is_empty());
    json!({ "resourceRules": of_resources, "nonResourceRules": of_paths, "incomplete": false })
}
