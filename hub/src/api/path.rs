//! ① Reads a request's path: which kind, namespace, name and subresource it names. Driven by the table of kinds.

use fluvial_model::access::On;
use fluvial_model::kinds;
use fluvial_model::names::printable;
use fluvial_model::resource::{Kind, Scope};

use super::status::ApiError;

/// The part of an object that a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    Status,
}

/// What a path under `/api/v1` or `/apis/GROUP/VERSION` names.
#[derive(Clone)]
pub struct Target {
    pub kind: &'static Kind,
    /// None for a cluster-scoped kind, and for a list over all namespaces.
    pub namespace: Option<String>,
    /// None for a collection.
    pub name: Option<String>,
    pub part: Part,
}

impl Target {
    /// The namespace, empty if there is none.
    #[must_use]
    pub fn namespace_text(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }

    /// What access rules call it.
    #[must_use]
    pub fn on(&self) -> On<'_> {
        let info = &self.kind.info;
        // A Namespace lies in itself, as in Kubernetes: who may read one namespace may read its object.
        let of_itself = info.group.is_empty() && info.plural == "namespaces";
        let namespace = if of_itself { self.name.as_deref() } else { self.namespace.as_deref() };
        On::Resource {
            group: info.group,
            resource: info.plural,
            subresource: match self.part {
                Part::Whole => "",
                Part::Status => "status",
            },
            namespace: namespace.unwrap_or_default(),
            name: self.name.as_deref().unwrap_or_default(),
        }
    }

    /// The start of the keys of the collection.
    #[must_use]
    pub fn prefix(&self) -> String {
        match &self.namespace {
            Some(namespace) => self.kind.info.namespace_prefix(namespace),
            None => self.kind.info.prefix(),
        }
    }
}

/// The path, split at `/` and percent-decoded, part by part.
///
/// # Errors
/// Bytes that are not UTF-8, NUL and control characters, empty parts.
pub fn segments(path: &str) -> Result<Vec<String>, ApiError> {
    let trimmed = path.strip_prefix('/').unwrap_or(path);
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    if trimmed.is_empty() {
        return Ok(Vec::new());
    }
    trimmed.split('/').map(decode).collect()
}

fn decode(part: &str) -> Result<String, ApiError> {
    let bad = |why: &str| ApiError::BadRequest(format!("path segment \"{}\" {why}", printable(part)));
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let hex = |byte: Option<u8>| byte.and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (hex(rest.next()), hex(rest.next())) else {
            return Err(bad("has a '%' that two hexadecimal digits do not follow"));
        };
        bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
    }
    let text = String::from_utf8(bytes).map_err(|_| bad("is not UTF-8"))?;
    if text.is_empty() || text == "." || text == ".." || text.contains('/') || text.chars().any(char::is_control) {
        return Err(bad("must not be empty, '.' or '..', nor hold '/' or control characters"));
    }
    Ok(text)
}

/// Finds what `rest`, the segments behind the group and version, names.
///
/// # Errors
/// 404 if the kind or subresource does not exist, 400 if a name breaks its kind's rule.
pub fn target(group: &str, version: &str, rest: &[String], path: &str) -> Result<Target, ApiError> {
    let nowhere = || ApiError::NoSuchPath { path: printable(path) };
    let find =
        |plural: &str| kinds::find(group, plural).filter(|kind| kind.info.version == version).ok_or_else(nowhere);
    let parts: Vec<&str> = rest.iter().map(String::as_str).collect();
    let (namespace, parts) = match parts.as_slice() {
        // `namespaces/NAME` and `namespaces/NAME/status` are the Namespace itself; longer paths lie inside it.
        ["namespaces", _] | ["namespaces", _, "status"] if group.is_empty() => (None, parts.as_slice()),
        ["namespaces", namespace, inside @ ..] if !inside.is_empty() => (Some((*namespace).to_owned()), inside),
        other => (None, other),
    };
    let (plural, name, part) = match parts {
        [plural] => (*plural, None, Part::Whole),
        [plural, name] => (*plural, Some(*name), Part::Whole),
        [plural, name, "status"] => (*plural, Some(*name), Part::Status),
        _ => return Err(nowhere()),
    };
    let kind = find(plural)?;
    match kind.info.scope {
        Scope::Cluster if namespace.is_some() => return Err(nowhere()),
        Scope::Namespaced if namespace.is_none() && name.is_some() => return Err(nowhere()),
        _ => {}
    }
    if part == Part::Status && !kind.info.status {
        return Err(nowhere());
    }
    if let Some(namespace) = &namespace
        && let Some(problem) = kinds_namespace_problem(namespace)
    {
        return Err(ApiError::BadRequest(format!("namespace \"{}\" {problem}", printable(namespace))));
    }
    if let Some(name) = name
        && let Some(problem) = kind.info.name_rule.problem(name)
    {
        return Err(ApiError::BadRequest(format!("name \"{}\" {problem}", printable(name))));
    }
    Ok(Target { kind, namespace, name: name.map(ToOwned::to_owned), part })
}

fn kinds_namespace_problem(name: &str) -> Option<String> {
    let rule = kinds::find("", "namespaces").map(|kind| kind.info.name_rule)?;
    rule.problem(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plural, namespace, name, part.
    type Named = (&'static str, Option<String>, Option<String>, Part);

    fn read(group: &str, version: &str, path: &str) -> Result<Named, u16> {
        let rest = segments(path).map_err(|e| e.code().as_u16())?;
        let target = target(group, version, &rest, path).map_err(|e| e.code().as_u16())?;
        Ok((target.kind.info.plural, target.namespace, target.name, target.part))
    }

    #[test]
    fn paths_name_kinds_namespaces_and_names() {
        let s = |text: &str| Some(text.to_owned());
        assert_eq!(read("", "v1", "namespaces"), Ok(("namespaces", None, None, Part::Whole)));
        assert_eq!(read("", "v1", "namespaces/a"), Ok(("namespaces", None, s("a"), Part::Whole)));
        assert_eq!(read("", "v1", "namespaces/a/status"), Ok(("namespaces", None, s("a"), Part::Status)));
        assert_eq!(read("", "v1", "namespaces/a/secrets"), Ok(("secrets", s("a"), None, Part::Whole)));
        assert_eq!(read("", "v1", "secrets"), Ok(("secrets", None, None, Part::Whole)));
        assert_eq!(read("fluvial.io", "v1alpha1", "clusters/x"), Ok(("clusters", None, s("x"), Part::Whole)));
        assert_eq!(
            read("data.fluid.io", "v1alpha1", "namespaces/a/datasets/d/status"),
            Ok(("datasets", s("a"), s("d"), Part::Status))
        );
    }

    #[test]
    fn paths_that_name_nothing_are_refused() {
        for (path, code) in [
            ("namespaces/a/clusters", 404),
            ("datasets", 404),
            ("clusters/x/scale", 404),
            ("placements/p", 404),
            ("clusters/a%00b", 400),
            ("clusters/%ff", 400),
            ("clusters/%zz", 400),
            ("clusters/..", 400),
            ("clusters/a%2fb", 400),
            ("clusters//x", 400),
            ("clusters/UPPER", 400),
            ("namespaces/Bad_/placements", 400),
            ("namespaces/a/cachelocations/c/status", 404),
        ] {
            assert_eq!(read("fluvial.io", "v1alpha1", path).unwrap_err(), code, "{path}");
        }
        assert_eq!(read("fluvial.io", "v2", "clusters").unwrap_err(), 404);
    }
}
