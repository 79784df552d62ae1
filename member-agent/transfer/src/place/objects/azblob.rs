//! Azure Blob Storage: `azblob://CONTAINER/PREFIX`. Azure forgets the blocks of a file that was not completed after a week.

use opendal::{Operator, services};
use reqwest::redirect::Policy;

use super::Objects;
use super::manner::{Manner, Version};
use super::open::{Opened, endpoint_of, known_options, split};
use crate::TransferError;
use crate::location::Location;
use crate::place::PartLimits;
use crate::place::dal::Dal;

/// The options that are known.
const OPTIONS: [&str; 4] = ["endpoint", "account_name", "account_key", "sas_token"];
/// Azure's ETag is another one after each write, of metadata too. Its metadata has no `-` in their names.
const MANNER: Manner = Manner {
    version: Version::ETag,
    mode: "fluvial_mode",
    kind: "fluvial_kind",
    parts: PartLimits { smallest: 1 << 20, most: 50_000, in_order: true },
    page: 5000,
    refuses,
};

/// Azure takes `\` for `/`, and dots from the ends of names.
fn refuses(key: &str) -> Option<&'static str> {
    let other = key.split('/').any(|part| part.contains('\\') || part.ends_with('.'));
    other.then_some("Azure keeps no name that has a backslash in it or a dot at its end")
}

impl Objects {
    /// A prefix of a container of Azure: `azblob://CONTAINER/PREFIX`. Options are OpenDAL's: `account_name`, `endpoint` (else
    /// that of the account in the public cloud) and, among the secrets, `account_key` or `sas_token`; without either,
    /// requests are not signed.
    ///
    /// # Errors
    /// When the URI or an option cannot be used.
    pub(crate) fn azblob(location: &Location, rest: &str) -> Result<Self, TransferError> {
        let bad = |why: String| TransferError::BadLocation { uri: location.shown(), why };
        let Opened { bucket, prefix } = split(location, rest, "azblob://container/prefix")?;
        known_options(location, &OPTIONS)?;
        let (account, key, token) =
            (location.option("account_name"), location.option("account_key"), location.option("sas_token"));
        let public = account.map(|account| format!("https://{account}.blob.core.windows.net"));
        let endpoint = endpoint_of(location, public)?
            .ok_or_else(|| bad("option `account_name` or `endpoint` is needed".to_owned()))?;
        let builder = services::Azblob::default().root("/").container(bucket).endpoint(&endpoint);
        let builder = match (key, token) {
            (Some(_), Some(_)) => return Err(bad("`account_key` and `sas_token` are both given: give one".to_owned())),
            (Some(key), None) => {
                let account = account.ok_or_else(|| bad("`account_key` is given without `account_name`".to_owned()))?;
                builder.account_name(account).account_key(key)
            }
            (None, Some(token)) => builder.sas_token(token.trim_start_matches('?')),
            // What the environment of the agent holds is not the user's.
            (None, None) => builder.skip_signature(),
        };
        let operator = Operator::new(builder).map_err(|error| bad(error.message().to_owned()))?;
        let dal = Dal::new(operator, Policy::none(), location.shown()).map_err(bad)?;
        Ok(Self::new(dal, prefix, MANNER, None))
    }
}
