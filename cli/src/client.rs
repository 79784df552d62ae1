//! The hub's API, as the kubeconfig opens it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use secrecy::SecretString;
use serde_json::Value;

/// The kubeconfig to use: the one named, else the user's.
fn settings(named: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf> {
    match named.or_else(|| home.map(|home| home.join(".config/fluvial/kubeconfig"))) {
        Some(path) if path.exists() => Ok(path),
        Some(path) => bail!(
            "there is no kubeconfig at {}: give --kubeconfig, or make a hub by `fluvial hub init`",
            path.display()
        ),
        None => bail!("no home folder is known: give --kubeconfig"),
    }
}

/// Connects as the kubeconfig says.
///
/// # Errors
/// If there is none, or it cannot be used.
pub(crate) async fn connect(named: Option<PathBuf>) -> Result<Client> {
    let path = settings(named, std::env::var_os("HOME").map(PathBuf::from))?;
    let shown = || format!("reading {}", path.display());
    let file = Kubeconfig::read_from(&path).with_context(shown)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.with_context(shown)?;
    Client::try_from(config).context("setting up the connection")
}

/// Sends a JSON body and gives the answer's text.
///
/// # Errors
/// With what the hub says of it.
pub(crate) async fn post(client: &Client, path: &str, body: &Value) -> Result<String> {
    let request = Request::post(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(body)?)
        .context("building the request")?;
    match client.request_text(request).await {
        Ok(text) => Ok(text),
        Err(kube::Error::Api(status)) => bail!("{}", status.message),
        Err(error) => Err(error).context("asking the hub"),
    }
}

/// Writes a file that only its owner may read, for it holds a key.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    fluvial_certs::files::write_secret(path, &SecretString::from(text))
        .with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubeconfig_named_comes_before_the_users_own() {
        let folder = std::env::temp_dir().join(format!("fluvial-settings-{}", std::process::id()));
        let own = folder.join(".config/fluvial/kubeconfig");
        std::fs::create_dir_all(own.parent().unwrap()).unwrap();
        let named = folder.join("named");
        std::fs::write(&own, "").unwrap();
        std::fs::write(&named, "").unwrap();
        assert_eq!(settings(Some(named.clone()), Some(folder.clone())).unwrap(), named);
        assert_eq!(settings(None, Some(folder.clone())).unwrap(), own);
        assert!(settings(Some(folder.join("absent")), Some(folder.clone())).is_err());
        assert!(settings(None, None).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
