//! Which store a hub is made for or run with: the arguments of `fluvial hub init|join|run`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use fluvial_hub::run::EtcdOptions;
use secrecy::SecretString;

/// Where the fleet's state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// With the hubs, replicated by Raft.
    Raft,
    /// In an etcd that is already there.
    Etcd,
}

#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// Who keeps the fleet's state. For all hubs of a fleet the same.
    #[arg(long, value_enum)]
    store: Option<Kind>,
    /// Members of etcd, https://HOST:PORT; several with commas, or by repeating.
    #[arg(long, value_name = "URL", value_delimiter = ',', env = "FLUVIAL_ETCD_ENDPOINTS")]
    etcd_endpoints: Vec<String>,
    /// Who vouches for etcd's members: a file in PEM.
    #[arg(long, value_name = "FILE")]
    etcd_ca: Option<PathBuf>,
    /// The hub's certificate for etcd: a file in PEM.
    #[arg(long, value_name = "FILE", requires = "etcd_key")]
    etcd_cert: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,
    /// The hub's user, where etcd asks for one; its password is read from the file below or from $FLUVIAL_ETCD_PASSWORD.
    #[arg(long, value_name = "NAME")]
    etcd_user: Option<String>,
    #[arg(long, value_name = "FILE", requires = "etcd_user")]
    etcd_password_file: Option<PathBuf>,
    /// What all keys of this fleet begin with in etcd.
    #[arg(long, default_value = "/fluvial/")]
    etcd_prefix: String,
}

impl StoreArgs {
    /// The etcd that is named, if one is.
    pub(crate) fn etcd(self) -> Result<Option<EtcdOptions>> {
        let named = !self.etcd_endpoints.is_empty();
        if self.store != Some(Kind::Etcd) {
            let alone = self.etcd_ca.is_none() && self.etcd_cert.is_none() && self.etcd_user.is_none();
            ensure!(alone && (!named || self.store.is_none()), "--etcd-…: says nothing without --store etcd");
            return Ok(None);
        }
        ensure!(named, "--store etcd: needs --etcd-endpoints URL[,URL]");
        // They are kept for later starts, which may be in another directory.
        let absolute = |path: Option<PathBuf>| {
            path.map(|path| std::path::absolute(&path).with_context(|| format!("finding {}", path.display())))
                .transpose()
        };
        Ok(Some(EtcdOptions {
            endpoints: self.etcd_endpoints,
            ca: absolute(self.etcd_ca)?,
            certificate: absolute(self.etcd_cert)?,
            key: absolute(self.etcd_key)?,
            user: self.etcd_user,
            password_file: absolute(self.etcd_password_file)?,
            prefix: self.etcd_prefix,
        }))
    }
}

/// The password that the environment has. On a command line it would be seen by all.
pub(crate) fn password() -> Option<SecretString> {
    std::env::var("FLUVIAL_ETCD_PASSWORD").ok().filter(|password| !password.is_empty()).map(SecretString::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        store: StoreArgs,
    }

    fn etcd(arguments: &[&str]) -> Result<Option<EtcdOptions>> {
        Command::try_parse_from([&["test"], arguments].concat())?.store.etcd()
    }

    #[test]
    fn etcd_is_named_whole_or_not_at_all() {
        assert_eq!(etcd(&[]).unwrap(), None);
        assert_eq!(etcd(&["--store", "raft"]).unwrap(), None);
        let named = etcd(&["--store", "etcd", "--etcd-endpoints", "https://a:1,https://b:2", "--etcd-ca", "ca"]);
        let named = named.unwrap().unwrap();
        assert_eq!((named.endpoints.len(), named.prefix.as_str()), (2, "/fluvial/"));
        assert!(named.ca.unwrap().is_absolute());
        assert!(etcd(&["--store", "etcd"]).is_err());
        assert!(etcd(&["--etcd-user", "hub"]).is_err());
        assert!(etcd(&["--store", "raft", "--etcd-endpoints", "https://a:1"]).is_err());
        assert!(etcd(&["--store", "etcd", "--etcd-endpoints", "https://a:1", "--etcd-cert", "c"]).is_err());
    }
}
