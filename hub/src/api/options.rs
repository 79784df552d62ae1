//! ① The query parameters of a call, read and checked once.

use std::collections::BTreeMap;
use std::time::Duration;

use fluvial_model::names::printable;
use fluvial_model::store::Revision;

use super::status::ApiError;

/// What to do about fields that a kind does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    Strict,
    Warn,
    Ignore,
}

/// How fresh or how exact a list must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionMatch {
    NotOlderThan,
    Exact,
}

/// Every parameter that some call understands; unknown ones are ignored, as Kubernetes does.
#[derive(Debug, Clone, Default)]
pub struct Options {
    values: BTreeMap<String, String>,
}

impl Options {
    /// Reads a query string. A repeated parameter keeps its first value.
    ///
    /// # Errors
    /// If it is not form-encoded UTF-8.
    pub fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let uri = format!("/?{}", query.unwrap_or_default());
        let uri: http::Uri = uri.parse().map_err(|_| ApiError::BadRequest("the query string is malformed".into()))?;
        let pairs: axum::extract::Query<Vec<(String, String)>> = axum::extract::Query::try_from_uri(&uri)
            .map_err(|error| ApiError::BadRequest(format!("the query string is malformed: {error}")))?;
        let mut values = BTreeMap::new();
        for (key, value) in pairs.0 {
            values.entry(key).or_insert(value);
        }
        Ok(Self { values })
    }

    /// A parameter's text, if it is there and not empty.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A yes-or-no parameter; `watch` and `watch=` are yes.
    ///
    /// # Errors
    /// If it is neither.
    pub fn flag(&self, key: &str) -> Result<bool, ApiError> {
        match self.values.get(key).map(String::as_str) {
            None | Some("false" | "0" | "False" | "FALSE" | "f") => Ok(false),
            Some("" | "true" | "1" | "True" | "TRUE" | "t") => Ok(true),
            Some(other) => Err(bad(key, other, "true or false")),
        }
    }

    fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        self.text(key).map(|text| text.parse().map_err(|_| bad(key, text, "a number of at least 0"))).transpose()
    }

    /// `limit`; none for "everything", which 0 means too.
    ///
    /// # Errors
    /// If it is not a number.
    pub fn limit(&self) -> Result<Option<usize>, ApiError> {
        Ok(self.number("limit")?.filter(|n| *n > 0).map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    }

    /// `resourceVersion`, if given.
    ///
    /// # Errors
    /// If it is not one that this API hands out.
    pub fn resource_version(&self) -> Result<Option<Revision>, ApiError> {
        Ok(self.number("resourceVersion")?.map(Revision))
    }

    /// `resourceVersionMatch`, if given.
    ///
    /// # Errors
    /// If it is no word of it.
    pub fn version_match(&self) -> Result<Option<VersionMatch>, ApiError> {
        match self.text("resourceVersionMatch") {
            None => Ok(None),
            Some("NotOlderThan") => Ok(Some(VersionMatch::NotOlderThan)),
            Some("Exact") => Ok(Some(VersionMatch::Exact)),
            Some(other) => Err(bad("resourceVersionMatch", other, "NotOlderThan or Exact")),
        }
    }

    /// `timeoutSeconds`, if given.
    ///
    /// # Errors
    /// If it is not a number.
    pub fn timeout(&self) -> Result<Option<Duration>, ApiError> {
        Ok(self.number("timeoutSeconds")?.filter(|n| *n > 0).map(Duration::from_secs))
    }

    /// Whether nothing is to be written.
    ///
    /// # Errors
    /// If `dryRun` is there and not `All`.
    pub fn dry_run(&self) -> Result<bool, ApiError> {
        match self.text("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(bad("dryRun", other, "All")),
        }
    }

    /// `fieldValidation`; strict unless told otherwise.
    ///
    /// # Errors
    /// If it is no word of it.
    pub fn field_validation(&self) -> Result<FieldValidation, ApiError> {
        match self.text("fieldValidation") {
            None | Some("Strict") => Ok(FieldValidation::Strict),
            Some("Warn") => Ok(FieldValidation::Warn),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some(other) => Err(bad("fieldValidation", other, "Strict, Warn or Ignore")),
        }
    }
}

fn bad(key: &str, value: &str, right: &str) -> ApiError {
    ApiError::BadRequest(format!("query parameter {key}: \"{}\" must be {right}", printable(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_checked() {
        let options =
            Options::parse(Some("watch&limit=5&labelSelector=a%3Db,c&dryRun=All&fieldValidation=Warn")).unwrap();
        assert!(options.flag("watch").unwrap());
        assert_eq!(options.limit().unwrap(), Some(5));
        assert_eq!(options.text("labelSelector"), Some("a=b,c"));
        assert!(options.dry_run().unwrap());
        assert_eq!(options.field_validation().unwrap(), FieldValidation::Warn);
        for query in ["limit=-1", "resourceVersion=x", "dryRun=Some", "fieldValidation=x", "watch=perhaps"] {
            let options = Options::parse(Some(query)).unwrap();
            let results = [
                options.limit().err(),
                options.resource_version().err(),
                options.dry_run().err(),
                options.field_validation().err(),
                options.flag("watch").err(),
            ];
            let errors: Vec<_> = results.into_iter().flatten().collect();
            assert_eq!(errors.len(), 1, "{query}");
            assert_eq!(errors[0].code().as_u16(), 400);
        }
    }
}
