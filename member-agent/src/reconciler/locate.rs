//! From an endpoint, which names its secrets, to a location, which holds them.

use fluvial_model::desired::{Endpoint, MountWork};
use fluvial_model::manifest::{PathError, RelativePath};
use fluvial_mount::write::spec::HomeSpec;
use fluvial_transfer::{Location, SourceMount};
use secrecy::ExposeSecret;

use crate::ledger::Secrets;

/// Why an endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open {uri}: the value of option \"{option}\" (secret {secret}) did not come with the work")]
    NoSecret { uri: String, option: String, secret: String },
    #[error("open {uri}: its path in the dataset")]
    Path {
        uri: String,
        #[source]
        source: PathError,
    },
}

/// The location of an endpoint.
///
/// # Errors
/// [`Error::NoSecret`].
pub fn location(endpoint: &Endpoint, secrets: &Secrets) -> Result<Location, Error> {
    let uri = endpoint.uri.to_string();
    let mut location = Location { options: endpoint.options.clone(), ..Location::new(uri.clone()) };
    for (option, reference) in &endpoint.secrets {
        let secret = Endpoint::secret_id(reference);
        let Some(value) = secrets.0.get(&secret) else {
            return Err(Error::NoSecret { uri, option: option.clone(), secret });
        };
        location.secrets.insert(option.clone(), value.as_str().into());
    }
    Ok(location)
}

/// The location of an endpoint at its place in the dataset.
///
/// # Errors
/// As [`location`], and for a path that is none.
pub fn mount(endpoint: &Endpoint, secrets: &Secrets) -> Result<SourceMount, Error> {
    let path = path(&endpoint.path).map_err(|source| Error::Path { uri: endpoint.uri.to_string(), source })?;
    Ok(SourceMount { path, location: location(endpoint, secrets)? })
}

/// Every source of a dataset.
///
/// # Errors
/// As [`mount`].
pub fn mounts(endpoints: &[Endpoint], secrets: &Secrets) -> Result<Vec<SourceMount>, Error> {
    endpoints.iter().map(|endpoint| mount(endpoint, secrets)).collect()
}

/// What a writable mount writes to, with what opens it.
///
/// # Errors
/// As [`location`].
pub fn homes(work: &MountWork, secrets: &Secrets) -> Result<Vec<HomeSpec>, Error> {
    let home = |endpoint: &Endpoint| {
        let location = location(endpoint, secrets)?;
        let opened = location.secrets.iter().map(|(key, value)| (key.clone(), value.expose_secret().to_owned()));
        Ok(HomeSpec {
            path: endpoint.path.clone(),
            uri: location.uri.clone(),
            secrets: opened.collect(),
            options: location.options.clone(),
            read_only: work.read_only_paths.contains(&endpoint.path),
        })
    };
    work.homes.iter().map(home).collect()
}

/// A path in a dataset as users write it, with or without slashes around it.
///
/// # Errors
/// When it leads nowhere in a dataset.
pub fn path(text: &str) -> Result<RelativePath, PathError> {
    let text = text.trim_matches('/');
    if text.is_empty() { Ok(RelativePath::root()) } else { RelativePath::parse(text) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use fluvial_model::kinds::SecretKeySelector;
    use fluvial_model::uri::Uri;

    #[test]
    fn a_secret_comes_with_the_work_or_is_missed_by_name() {
        let reference = SecretKeySelector { namespace: "team".into(), name: "keys".into(), key: "id".into() };
        let endpoint = Endpoint {
            path: "/models/".into(),
            uri: Uri::parse("s3://bucket/prefix").unwrap(),
            options: BTreeMap::from([("region".to_owned(), "eu".to_owned())]),
            secrets: BTreeMap::from([("access_key_id".to_owned(), reference)]),
        };
        let missing = mount(&endpoint, &Secrets::default()).unwrap_err().to_string();
        let expected = "open s3://bucket/prefix: the value of option \"access_key_id\" (secret team/keys/id) did not come \
                        with the work";
        assert_eq!(missing, expected);
        let secrets = Secrets(BTreeMap::from([("team/keys/id".to_owned(), "AKIA".to_owned())]));
        let mount = mount(&endpoint, &secrets).unwrap();
        assert_eq!((mount.path.as_str(), mount.location.uri.as_str()), ("models", "s3://bucket/prefix"));
        assert_eq!(mount.location.secrets["access_key_id"].expose_secret(), "AKIA");
        assert!(!format!("{secrets:?}").contains("AKIA"));
    }
}
