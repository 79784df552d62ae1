//! ① In which shape the caller wants its answer: the object, a `Table` of it, or its metadata alone.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

use super::status::ApiError;

/// The shape of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Object,
    Table,
    Metadata,
}

/// The first shape of `Accept` that can be served.
///
/// # Errors
/// 406 if there is none.
pub fn shape(headers: &HeaderMap) -> Result<Shape, ApiError> {
    let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    if accept.iter().all(|value| value.trim().is_empty()) {
        return Ok(Shape::Object);
    }
    accept
        .iter()
        .flat_map(|value| value.split(','))
        .find_map(served)
        .ok_or(ApiError::NotAcceptable { offered: "application/json" })
}

fn served(range: &str) -> Option<Shape> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?.to_ascii_lowercase();
    if !matches!(media.as_str(), "application/json" | "application/*" | "*/*") {
        return None;
    }
    let mut shape = Shape::Object;
    for part in parts {
        match part.split_once('=') {
            Some(("as", "Table")) => shape = Shape::Table,
            Some(("as", "PartialObjectMetadata" | "PartialObjectMetadataList")) => shape = Shape::Metadata,
            Some(("as", _)) => return None,
            Some(("g", group)) if group != "meta.k8s.io" => return None,
            Some(("v", version)) if version != "v1" => return None,
            // Not at all wanted.
            Some(("q", quality)) if quality.parse() == Ok(0.0_f32) => return None,
            _ => {}
        }
    }
    Some(shape)
}

/// The media type of a body, without parameters, lower-case; empty if none was named.
#[must_use]
pub fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(accept: &str) -> Result<Shape, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        shape(&headers).map_err(|e| e.code().as_u16())
    }

    #[test]
    fn the_first_shape_that_can_be_served_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(ask(kubectl), Ok(Shape::Table));
        assert_eq!(ask("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"), Ok(Shape::Object));
        assert_eq!(ask("application/vnd.kubernetes.protobuf, */*;q=0.5"), Ok(Shape::Object));
        assert_eq!(ask("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"), Ok(Shape::Metadata));
        assert_eq!(ask("text/html"), Err(406));
        assert_eq!(shape(&HeaderMap::new()).unwrap(), Shape::Object);
    }
}
