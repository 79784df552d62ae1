//! Options of a place: what stands in the spec, and what goes into a Secret beside it.
//!
//! Invariants: a value that is a secret is in no spec, no error and no output; the Secret belongs to the object that
//! uses it and goes with it.

use std::collections::BTreeMap;
use std::io::Read as _;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use clap::error::ErrorKind;
use fluvial_model::kinds::source::{EncryptOption, EncryptOptionSource, is_secret_option};
use fluvial_model::kinds::{Secret, SecretKeySelector};
use fluvial_model::resource::Resource as _;
use http::Method;
use kube::Client;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

use crate::args::pair;
use crate::client::{self, Failure, JSON, MERGE_PATCH};
use crate::objects;

/// Says whose options a Secret holds: `dataset.NAME` or `storage.NAME`.
const OWNER_LABEL: &str = "fluvial.io/options-of";
/// The most bytes of one secret value.
const MAX_VALUE: u64 = 64 * 1024;

#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// An option of the place, such as endpoint=https://s3.example.com; what is a secret by its name goes into a Secret.
    #[arg(long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// An option that goes into a Secret. VALUE may be @FILE or env:VARIABLE.
    #[arg(long = "secret-option", value_name = "KEY=VALUE")]
    secret_options: Vec<String>,
}

/// Options, sorted into what may be seen and what may not.
#[derive(Debug, Default)]
pub(crate) struct Sorted {
    pub plain: BTreeMap<String, String>,
    pub secret: BTreeMap<String, SecretString>,
}

impl Options {
    /// Sorts what was given on the command line. A malformed option ends the process as a wrong usage, which, unlike
    /// the parser's own errors, does not repeat it.
    ///
    /// # Errors
    /// If a file or variable with a secret cannot be read.
    pub(crate) fn sorted(&self) -> Result<Sorted> {
        let usage = |option: &str| {
            let message = format!("{option}: expected KEY=VALUE, each key once\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).exit()
        };
        let Some(plain) = pairs(&self.options) else { usage("--option") };
        let Some(hidden) = pairs(&self.secret_options) else { usage("--secret-option") };
        sort(plain, hidden)
    }
}

/// Keys and values; none if one is malformed or comes twice.
fn pairs(texts: &[String]) -> Option<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for text in texts {
        let (key, value) = pair(text).ok()?;
        if found.insert(key, value).is_some() {
            return None;
        }
    }
    Some(found)
}

/// Sorts options that are known already; see [`Options::sorted`].
///
/// # Errors
/// If a file or variable with a secret cannot be read.
pub(crate) fn sort(plain: BTreeMap<String, String>, hidden: BTreeMap<String, String>) -> Result<Sorted> {
    let mut sorted = Sorted::default();
    for (key, value) in plain {
        if is_secret_option(&key) {
            sorted.secret.insert(key, value.into());
        } else {
            sorted.plain.insert(key, value);
        }
    }
    for (key, value) in hidden {
        if sorted.plain.contains_key(&key) || sorted.secret.contains_key(&key) {
            bail!("--secret-option {key}: it is given by --option too");
        }
        let value = secret_value(&value).with_context(|| format!("--secret-option {key}"))?;
        sorted.secret.insert(key, value);
    }
    Ok(sorted)
}

/// The value of a secret: itself, or what `@FILE` or `env:VARIABLE` names.
///
/// # Errors
/// If file or variable cannot be read.
pub(crate) fn secret_value(text: &str) -> Result<SecretString> {
    if let Some(variable) = text.strip_prefix("env:") {
        let value = std::env::var(variable).ok().with_context(|| format!("the variable {variable} is not set"))?;
        return Ok(value.into());
    }
    let Some(path) = text.strip_prefix('@') else { return Ok(text.into()) };
    let mut value = String::new();
    let file = std::fs::File::open(path).with_context(|| format!("reading {path}"))?;
    let size = file.take(MAX_VALUE + 1).read_to_string(&mut value).with_context(|| format!("reading {path}"))?;
    if size as u64 > MAX_VALUE {
        bail!("{path} has more than {MAX_VALUE} bytes: a secret is short");
    }
    // Editors end files with a line feed that is no part of the secret.
    Ok(value.trim_end_matches(['\n', '\r']).into())
}

/// A Secret for the options of one object.
#[derive(Debug)]
pub(crate) struct Keeper {
    namespace: String,
    name: String,
    owner: String,
    values: BTreeMap<String, SecretString>,
}

impl Keeper {
    /// For `owner`, such as `dataset.NAME`.
    pub(crate) fn new(namespace: &str, name: String, owner: String, values: BTreeMap<String, SecretString>) -> Self {
        Self { namespace: namespace.to_owned(), name, owner, values }
    }

    /// How the spec refers to the values.
    pub(crate) fn references(&self, with_namespace: bool) -> Vec<EncryptOption> {
        let reference = |key: &String| EncryptOption {
            name: key.clone(),
            value_from: EncryptOptionSource {
                secret_key_ref: SecretKeySelector {
                    name: self.name.clone(),
                    key: key.clone(),
                    namespace: if with_namespace { self.namespace.clone() } else { String::new() },
                },
            },
        };
        self.values.keys().map(reference).collect()
    }

    fn path(&self) -> String {
        objects::path(&Secret::INFO, &self.namespace, Some(&self.name))
    }

    /// Stores the values. What an earlier attempt for the same owner left behind is replaced.
    ///
    /// # Errors
    /// With what the hub says; if the name is taken by a Secret of somebody else.
    pub(crate) async fn store(&self, client: &Client) -> Result<()> {
        if self.values.is_empty() {
            return Ok(());
        }
        let data: BTreeMap<&String, String> =
            self.values.iter().map(|(key, value)| (key, STANDARD.encode(value.expose_secret()))).collect();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": { "name": self.name, "namespace": self.namespace, "labels": { OWNER_LABEL: self.owner } },
            "data": data,
        });
        let collection = objects::path(&Secret::INFO, &self.namespace, None);
        let create = || client::write(client, Method::POST, &collection, Some((JSON, &secret)));
        match create().await {
            Err(Failure::Refused(status)) if status.reason == "AlreadyExists" => {}
            created => return Ok(created.map(|_| ())?),
        }
        let held = client::get(client, &self.path(), JSON).await?;
        let owner = held.pointer("/metadata/labels").and_then(|labels| labels.get(OWNER_LABEL)).and_then(Value::as_str);
        if owner != Some(self.owner.as_str()) {
            bail!(
                "secret \"{}\" in namespace \"{}\" is in the way of these options: delete or rename it",
                self.name,
                self.namespace
            );
        }
        client::write(client, Method::DELETE, &self.path(), None).await?;
        create().await?;
        Ok(())
    }

    /// Lets the Secret go with its owner from now on.
    ///
    /// # Errors
    /// With what the hub says.
    pub(crate) async fn give_to(&self, client: &Client, owner: &Value) -> Result<()> {
        if self.values.is_empty() {
            return Ok(());
        }
        let reference = json!({
            "apiVersion": owner.get("apiVersion"), "kind": owner.get("kind"),
            "name": owner.pointer("/metadata/name"), "uid": owner.pointer("/metadata/uid"),
        });
        let patch = json!({ "metadata": { "ownerReferences": [reference] } });
        client::write(client, Method::PATCH, &self.path(), Some((MERGE_PATCH, &patch))).await?;
        Ok(())
    }
}

/// Creates an object and the Secret that it refers to: tried first, so that a mistake leaves neither.
///
/// # Errors
/// With what the hub says.
pub(crate) async fn create_with(client: &Client, path: &str, object: &Value, keeper: &Keeper) -> Result<Value> {
    let trial = client::with_query(path, [("dryRun", "All")]);
    client::write(client, Method::POST, &trial, Some((JSON, object))).await?;
    keeper.store(client).await?;
    let made = match client::write(client, Method::POST, path, Some((JSON, object))).await {
        Ok(made) => made,
        Err(failure) => {
            // An outcome that is not known may be a success, which needs the Secret.
            if failure.code().is_some_and(|code| code != 504) && !keeper.values.is_empty() {
                let _ = client::write(client, Method::DELETE, &keeper.path(), None).await;
            }
            return Err(failure.into());
        }
    };
    keeper.give_to(client, &made).await?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn shown(secrets: &BTreeMap<String, SecretString>) -> BTreeMap<String, String> {
        secrets.iter().map(|(k, v)| (k.clone(), v.expose_secret().to_owned())).collect()
    }

    #[test]
    fn what_is_a_secret_by_its_name_goes_into_the_secret() {
        let sorted = sort(map(&[("endpoint", "http://e"), ("secret_access_key", "k")]), map(&[("x", "y=z")])).unwrap();
        assert_eq!(sorted.plain, map(&[("endpoint", "http://e")]));
        assert_eq!(shown(&sorted.secret), map(&[("secret_access_key", "k"), ("x", "y=z")]));
        assert!(!format!("{sorted:?}").contains("y=z"));
    }

    #[test]
    fn secret_values_come_from_files_and_variables() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "hunter2\n").unwrap();
        let value = |text: &str| secret_value(text).map(|value| value.expose_secret().to_owned());
        assert_eq!(value(&format!("@{}", file.display())).unwrap(), "hunter2");
        assert_eq!(value("env:CARGO_PKG_NAME").unwrap(), "fluvial");
        assert_eq!(value("plain").unwrap(), "plain");
        assert_eq!(
            value("env:FLUVIAL_NO_SUCH_VARIABLE").unwrap_err().to_string(),
            "the variable FLUVIAL_NO_SUCH_VARIABLE is not set"
        );
        assert!(value("@/nonexistent").is_err());
        std::fs::write(&file, "x".repeat(70_000)).unwrap();
        assert!(value(&format!("@{}", file.display())).is_err());
    }

    #[test]
    fn an_option_given_twice_is_refused_without_its_value() {
        let error = sort(map(&[("a", "hunter2")]), map(&[("a", "hunter3")])).unwrap_err();
        assert_eq!(error.to_string(), "--secret-option a: it is given by --option too");
        assert_eq!(pairs(&["a=1".to_owned(), "a=2".to_owned()]), None);
        assert_eq!(pairs(&["hunter2".to_owned()]), None);
    }

    #[test]
    fn the_spec_refers_to_each_value_and_holds_none() {
        let sorted = sort(BTreeMap::new(), map(&[("token", "hunter2")])).unwrap();
        let keeper = Keeper::new("default", "s-options".to_owned(), "storage.s".to_owned(), sorted.secret);
        assert_eq!(
            serde_json::to_value(keeper.references(true)).unwrap(),
            json!([{ "name": "token", "valueFrom": { "secretKeyRef": { "name": "s-options", "key": "token", "namespace": "default" } } }])
        );
    }
}
