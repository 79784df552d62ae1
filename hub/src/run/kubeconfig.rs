//! The administrator's kubeconfig: the same file for `fluvial` and for `kubectl`.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluvial_certs::{Identity, KeyPair};
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::RunError;
use super::home::Home;
use crate::clock::{Clock as _, SystemClock};

/// A year: it is made on a hub's own machine and renewed by making another.
const ADMIN_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// A kubeconfig, in YAML, with a new certificate for the user `admin` of the group `system:masters`, for the fleet of
/// the hub in `data_dir`, reached at `url`. It holds a private key: keep it as one.
///
/// # Errors
/// If the directory holds no hub.
pub fn admin_kubeconfig(data_dir: &Path, url: &str) -> Result<String, RunError> {
    let authority = Home::new(data_dir).authority()?;
    let key = KeyPair::generate().map_err(RunError::Key)?;
    let admin = Identity::User { name: "admin".to_owned(), groups: vec!["system:masters".to_owned()] };
    let leaf =
        authority.issue_for_key(&key, &admin, &[], SystemClock.now(), ADMIN_LIFETIME).map_err(RunError::Issue)?;
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fluvial",
        "clusters": [{
            "name": "fluvial",
            "cluster": { "server": url, "certificate-authority-data": STANDARD.encode(authority.cert_pem()) },
        }],
        "users": [{
            "name": "admin",
            "user": {
                "client-certificate-data": STANDARD.encode(leaf.cert_pem),
                "client-key-data": STANDARD.encode(key.to_pem().expose_secret()),
            },
        }],
        "contexts": [{
            "name": "fluvial",
            "context": { "cluster": "fluvial", "user": "admin", "namespace": "default" },
        }],
    });
    serde_yaml_ng::to_string(&config).map_err(RunError::Kubeconfig)
}
