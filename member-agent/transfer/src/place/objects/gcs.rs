//! Google Cloud Storage: `gs://BUCKET/PREFIX`, over its JSON API; files in parts over its XML API.
//!
//! A version is an object's generation: what the two APIs call ETag differs. Each write of contents makes a new generation;
//! metadata that someone sets afterwards do not.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use opendal::{Operator, services};
use reqwest::redirect::Policy;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use super::Objects;
use super::manner::{Manner, Version};
use super::open::{Opened, endpoint_of, known_options, refuses, split};
use crate::TransferError;
use crate::location::Location;
use crate::place::PartLimits;
use crate::place::dal::Dal;

/// The options that are known.
const OPTIONS: [&str; 3] = ["endpoint", "credential", "token"];
/// Where it is when nothing else is said.
const ENDPOINT: &str = "https://storage.googleapis.com";
const MANNER: Manner = Manner {
    version: Version::Generation,
    mode: "fluvial-mode",
    kind: "fluvial-kind",
    parts: PartLimits { smallest: 5 << 20, most: 10_000, in_order: true },
    page: 1000,
    refuses,
};

impl Objects {
    /// A prefix of a bucket of Google Cloud Storage: `gs://BUCKET/PREFIX`. Options are OpenDAL's: `endpoint` and, among the
    /// secrets, `credential` (the key of a service account, as JSON or that in base64) or `token` (an OAuth 2 token);
    /// without either, requests are not signed.
    ///
    /// # Errors
    /// When the URI or an option cannot be used.
    pub(crate) fn gcs(location: &Location, rest: &str) -> Result<Self, TransferError> {
        let bad = |why: String| TransferError::BadLocation { uri: location.shown(), why };
        let Opened { bucket, prefix } = split(location, rest, "gs://bucket/prefix")?;
        known_options(location, &OPTIONS)?;
        let endpoint = endpoint_of(location, None)?.unwrap_or_else(|| ENDPOINT.to_owned());
        // What the environment of the agent holds, or its machine is given, is not the user's.
        let builder = services::Gcs::default().root("/").bucket(bucket).endpoint(&endpoint);
        let builder = builder.disable_config_load().disable_vm_metadata();
        let builder = match (location.option("credential"), location.option("token")) {
            (Some(_), Some(_)) => return Err(bad("`credential` and `token` are both given: give one".to_owned())),
            (Some(key), None) => builder.credential(&service_account(key).map_err(|why| bad(why.to_owned()))?),
            (None, Some(token)) => builder.token(token.to_owned()),
            (None, None) => builder.skip_signature(),
        };
        let operator = Operator::new(builder).map_err(|error| bad(error.message().to_owned()))?;
        let dal = Dal::new(operator, Policy::none(), location.shown()).map_err(bad)?;
        Ok(Self::new(dal, prefix, MANNER, None))
    }
}

/// The key of a service account in base64. Other kinds of credentials name files, URLs and programs of the machine that uses
/// them, which is the agent's: they are refused.
fn service_account(text: &str) -> Result<String, &'static str> {
    const WRONG: &str = "`credential` must be the JSON key of a service account, as it is or in base64";
    let text = text.trim();
    let json = if text.starts_with('{') {
        text.as_bytes().to_vec()
    } else {
        BASE64_STANDARD.decode(text).map_err(|_| WRONG)?
    };
    let key: Value = serde_json::from_slice(&json).map_err(|_| WRONG)?;
    if key["type"] != "service_account" {
        return Err(WRONG);
    }
    if key["client_email"].as_str().is_none_or(str::is_empty) {
        return Err("`credential` has no `client_email`");
    }
    let private = key["private_key"].as_str().unwrap_or_default();
    PrivatePkcs8KeyDer::from_pem_slice(private.as_bytes())
        .map_err(|_| "`credential` has a `private_key` that is not PKCS #8 in PEM")?;
    Ok(BASE64_STANDARD.encode(json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_of_a_service_account_is_a_credential() {
        let pem = r"-----BEGIN PRIVATE KEY-----\nMAAA\n-----END PRIVATE KEY-----\n";
        let key = &format!(r#"{{"type":"service_account","private_key":"{pem}","client_email":"e@x"}}"#);
        assert_eq!(service_account(key), service_account(&BASE64_STANDARD.encode(key)));
        assert!(service_account(key).is_ok());
        for wrong in [
            "",
            "k",
            "{}",
            r#"{"type":"external_account","credential_source":{"executable":{"command":"id"}}}"#,
            r#"{"type":"service_account","private_key":"","client_email":"e@x"}"#,
            r#"{"type":"service_account","private_key":"k","client_email":"e@x"}"#,
            &key.replace("client_email", "email"),
        ] {
            assert!(service_account(wrong).is_err(), "{wrong}");
        }
    }
}
