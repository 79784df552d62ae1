//! Where data is: a URI, options and secrets, and the one table of schemes that can be opened.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use fluvial_model::manifest::RelativePath;
use secrecy::{ExposeSecret as _, SecretString};

use crate::TransferError;
use crate::place::Place;
use crate::place::local::LocalPlace;
use crate::place::objects::Objects;
use crate::place::readonly::ReadOnly;
use crate::place::s3::S3Place;
use crate::place::store::Store;
use crate::place::web::Web;

/// The schemes that [`Location::open`] knows.
pub const SCHEMES: &str = "file, s3, oss, gs, azblob, webhdfs, http, https";

/// A tree somewhere: `file:///dir`, `s3://bucket/prefix`, `oss://bucket/prefix`, `gs://bucket/prefix`, `azblob://container/prefix`,
/// `webhdfs://host:port/dir`, `https://host/dir/` or one file, `https://host/file`. The last three are only read.
///
/// Option keys are OpenDAL's: for `s3` `endpoint`, `region`, `enable_virtual_host_style` (`true`), and, usually among the
/// secrets, `access_key_id`, `secret_access_key`, `session_token`; for `oss` `endpoint`, `region`, `addressing_style` and the
/// secrets `access_key_id`, `access_key_secret`, `security_token`; for `gs` `endpoint` and the secret `credential` or `token`;
/// for `azblob` `endpoint`, `account_name` and the secret `account_key` or `sas_token` (to all of these, requests without keys
/// are not signed); for `webhdfs` `endpoint`, `user_name` and the secret `delegation`; for `http` and `https` `username` and
/// the secrets `password` or `token`.
#[derive(Clone, Default)]
pub struct Location {
    /// Scheme and place.
    pub uri: String,
    /// Options that may be shown.
    pub options: BTreeMap<String, String>,
    /// Options that may not.
    pub secrets: BTreeMap<String, SecretString>,
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Options too can hold a key that somebody put into the wrong map: only their names are shown.
        f.debug_struct("Location")
            .field("uri", &self.shown())
            .field("options", &self.options.keys().collect::<Vec<_>>())
            .field("secrets", &self.secrets.keys().collect::<Vec<_>>())
            .finish()
    }
}

/// What a place is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Listing and reading.
    Read,
    /// Also writing and deleting.
    Write,
}

/// A location that appears at a path of the dataset.
#[derive(Debug, Clone)]
pub struct SourceMount {
    /// Where its tree appears; [`RelativePath::root`] for the dataset itself.
    pub path: RelativePath,
    /// Where its data are.
    pub location: Location,
}

impl Location {
    /// A location without options.
    #[must_use]
    pub fn new(uri: impl Into<String>) -> Self {
        Self { uri: uri.into(), ..Self::default() }
    }

    /// The URI without user, password, query and fragment, which people put secrets into.
    #[must_use]
    pub fn shown(&self) -> String {
        let end = self.uri.find(['?', '#']).unwrap_or(self.uri.len());
        let bare = &self.uri[..end];
        let Some((scheme, rest)) = bare.split_once("://") else { return bare.to_owned() };
        let authority = rest.find('/').unwrap_or(rest.len());
        match rest[..authority].rfind('@') {
            Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
            None => bare.to_owned(),
        }
    }

    /// An option, secret or not.
    pub(crate) fn option(&self, key: &str) -> Option<&str> {
        let secret = self.secrets.get(key).map(|secret| secret.expose_secret());
        secret.or_else(|| self.options.get(key).map(String::as_str))
    }

    /// The names of all options, secret or not.
    pub(crate) fn option_keys(&self) -> impl Iterator<Item = &str> {
        self.options.keys().chain(self.secrets.keys()).map(String::as_str)
    }

    fn bad(&self, why: impl Into<String>) -> TransferError {
        TransferError::BadLocation { uri: self.shown(), why: why.into() }
    }

    /// Opens the place; nothing is contacted yet.
    ///
    /// # Errors
    /// [`TransferError::UnsupportedScheme`] and [`TransferError::BadLocation`].
    pub fn open(&self) -> Result<Arc<dyn Place>, TransferError> {
        match self.split()? {
            ("file", rest) => Ok(Arc::new(LocalPlace::new(self.directory(rest)?))),
            ("s3", rest) => Ok(Arc::new(S3Place::new(self, rest)?)),
            ("oss", rest) => Ok(Arc::new(Objects::oss(self, rest)?)),
            ("gs", rest) => Ok(Arc::new(Objects::gcs(self, rest)?)),
            ("azblob", rest) => Ok(Arc::new(Objects::azblob(self, rest)?)),
            ("webhdfs", rest) => Ok(Arc::new(ReadOnly(Store::webhdfs(self, rest)?))),
            ("http" | "https", _) => Ok(Arc::new(ReadOnly(Web::new(self)?))),
            (scheme, _) => Err(TransferError::UnsupportedScheme { scheme: scheme.to_owned(), supported: SCHEMES }),
        }
    }

    /// Opens the place as one that a copy is written to: invisible until [`Place::commit`].
    ///
    /// # Errors
    /// As [`Location::open`].
    pub fn open_target(&self) -> Result<Arc<dyn Place>, TransferError> {
        match self.split()? {
            ("file", rest) => Ok(Arc::new(LocalPlace::target(self.directory(rest)?)?)),
            _ => self.open(),
        }
    }

    fn split(&self) -> Result<(&str, &str), TransferError> {
        self.uri
            .split_once("://")
            .ok_or_else(|| self.bad("it has no scheme; write `file:///dir` or `s3://bucket/prefix`"))
    }

    /// The directory of a `file` URI. It is taken as written: no percent-decoding, so that every name can be given.
    fn directory(&self, rest: &str) -> Result<PathBuf, TransferError> {
        if !rest.starts_with('/') {
            return Err(self.bad("a file location needs an absolute path, as in `file:///dir`"));
        }
        if rest.contains('\0') || rest.split('/').any(|component| component == "..") {
            return Err(self.bad("the path must not hold `..` or NUL"));
        }
        let trimmed = rest.trim_end_matches('/');
        Ok(PathBuf::from(if trimmed.is_empty() { "/" } else { trimmed }))
    }
}

/// Checks that a location can be used.
///
/// # Errors
/// What is wrong, as precisely as the place tells: not found, refused, read-only, no such bucket, unreachable.
pub async fn probe(location: &Location, access: Access) -> Result<(), TransferError> {
    location.open()?.probe(access).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let mut location = Location::new("s3://user:pass@bucket/prefix?secret=1");
        location.secrets.insert("secret_access_key".into(), "hidden".into());
        location.options.insert("token".into(), "hidden".into());
        let shown = format!("{location:?}");
        let expected = r#"Location { uri: "s3://bucket/prefix", options: ["token"], secrets: ["secret_access_key"] }"#;
        assert_eq!(shown, expected);
    }

    #[test]
    fn an_unknown_scheme_is_refused_with_those_supported() {
        let message = Location::new("ftp://host/dir").open().err().map(|error| error.to_string());
        assert_eq!(
            message.as_deref(),
            Some(
                "open location: scheme \"ftp\" is not supported; supported are file, s3, oss, gs, azblob, webhdfs, http, https"
            )
        );
    }
}
