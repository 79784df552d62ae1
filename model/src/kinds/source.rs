//! ① Mounts and their options: how a dataset or a storage names bytes and the credentials that open them.
//!
//! Invariant: no secret stands in a spec; secret options are references to keys of a Secret.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::field::{FieldErrors, Path};
use crate::uri::{Uri, UriError};

/// Option names whose values are secrets, whatever the store.
pub const SECRET_OPTIONS: &[&str] = &[
    "access_key_id",
    "secret_access_key",
    "session_token",
    "security_token",
    "access_key_secret",
    "account_key",
    "sas_token",
    "credential",
    "token",
    "delegation",
    "password",
    "client_secret",
    "server_side_encryption_customer_key",
    "fs.s3a.access.key",
    "fs.s3a.secret.key",
    "fs.oss.accessKeyId",
    "fs.oss.accessKeySecret",
    "aws.accessKeyId",
    "aws.secretKey",
    "access-key",
    "secret-key",
];

/// Whether an option's value must not stand in a spec.
#[must_use]
pub fn is_secret_option(key: &str) -> bool {
    SECRET_OPTIONS.iter().any(|secret| secret.eq_ignore_ascii_case(key))
}

/// A key of a Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct SecretKeySelector {
    pub name: String,
    #[serde(default)]
    pub key: String,
    /// Only where the referring object has no namespace of its own; `default` if empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// An option whose value is kept in a Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EncryptOption {
    pub name: String,
    pub value_from: EncryptOptionSource,
}

/// Where the value of a secret option is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EncryptOptionSource {
    pub secret_key_ref: SecretKeySelector,
}

/// One source of a dataset, mounted at a path of its tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    pub mount_point: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where the source appears in the dataset; empty means `/<name>`, and `/` is the dataset's root.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub encrypt_options: Vec<EncryptOption>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

impl Mount {
    /// The path inside the dataset, without slashes at either end; empty for the root.
    #[must_use]
    pub fn tree_path(&self) -> &str {
        let path = if self.path.is_empty() { &self.name } else { &self.path };
        path.trim_matches('/')
    }
}

/// Checks a location that bytes are read from or written to.
pub fn validate_uri(text: &str, path: &Path, errors: &mut FieldErrors) {
    match Uri::parse(text) {
        Ok(_) => {}
        // The value is not repeated where it may hold a password.
        Err(error @ UriError::Credentials(_)) => errors.push(path, error.to_string()),
        Err(error) => errors.invalid(path, text, error),
    }
}

/// Checks the options of one location.
pub fn validate_options(
    options: &BTreeMap<String, String>,
    encrypt_options: &[EncryptOption],
    path: &Path,
    errors: &mut FieldErrors,
) {
    for key in options.keys().filter(|key| is_secret_option(key)) {
        errors.push(
            &path.key("options").key(key),
            "is a secret and must not stand in a spec: put it into a Secret and refer to it by encryptOptions",
        );
    }
    for (i, option) in encrypt_options.iter().enumerate() {
        let at = path.key("encryptOptions").index(i);
        let reference = &option.value_from.secret_key_ref;
        for (field, value) in [("name", &reference.name), ("key", &reference.key)] {
            if value.is_empty() {
                errors.required(&at.key("valueFrom").key("secretKeyRef").key(field), "the Secret and its key");
            }
        }
        if option.name.is_empty() {
            errors.required(&at.key("name"), "the option that the Secret's key gives");
        }
    }
}
