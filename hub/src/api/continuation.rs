//! ① Continue tokens: where the next page of a list begins, and at which revision.
//!
//! A token is sealed with the hubs' data key for the collection it came from, so that every hub accepts it, nobody can
//! alter it, and it opens no other collection.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fluvial_model::store::Revision;
use serde::{Deserialize, Serialize};

use super::status::ApiError;
use crate::vault::Vault;

/// The longest token that is looked at: a key of 1,024 bytes and the seal, twice in base64, with room.
const MAX_TOKEN: usize = 8 * 1024;

/// Where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continuation {
    /// The list's revision: every page shows the same state.
    pub revision: Revision,
    /// The last key that was looked at.
    pub after: String,
}

fn context(prefix: &str) -> String {
    format!("continue {prefix}")
}

impl Continuation {
    /// The token's text for the collection under `prefix`.
    ///
    /// # Errors
    /// If it cannot be sealed.
    pub fn seal(&self, vault: &Vault, prefix: &str) -> Result<String, ApiError> {
        let failed = |why: String| ApiError::Internal { message: format!("sealing a continue token: {why}") };
        let plain = serde_json::to_vec(self).map_err(|error| failed(error.to_string()))?;
        let sealed = vault.seal(&context(prefix), &plain).map_err(|error| failed(error.to_string()))?;
        Ok(URL_SAFE_NO_PAD.encode(sealed))
    }

    /// What a token says.
    ///
    /// # Errors
    /// 400 if this hub's cluster did not make it for this collection.
    pub fn open(text: &str, vault: &Vault, prefix: &str) -> Result<Self, ApiError> {
        let refused = || {
            ApiError::BadRequest(
                "continue token is not valid: it was altered, or belongs to another list or hub".into(),
            )
        };
        if text.len() > MAX_TOKEN {
            return Err(refused());
        }
        let sealed = URL_SAFE_NO_PAD.decode(text).map_err(|_| refused())?;
        let plain = vault.open(&context(prefix), &sealed).map_err(|_| refused())?;
        serde_json::from_slice(&plain).map_err(|_| refused())
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn a_token_opens_only_unaltered_and_for_its_own_collection() {
        let vault = Vault::new(&Zeroizing::new([3; crate::vault::KEY_BYTES]));
        let place = Continuation { revision: Revision(7), after: "/registry/x/y/z".into() };
        let token = place.seal(&vault, "/registry/x/y/").unwrap();
        assert_eq!(Continuation::open(&token, &vault, "/registry/x/y/").unwrap(), place);
        assert!(Continuation::open(&token, &vault, "/registry/core/secrets/").is_err());
        let other = Vault::new(&Zeroizing::new([4; crate::vault::KEY_BYTES]));
        assert!(Continuation::open(&token, &other, "/registry/x/y/").is_err());
        for position in 0..token.len() {
            let mut altered = token.clone().into_bytes();
            altered[position] = if altered[position] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).unwrap();
            let opened = Continuation::open(&altered, &vault, "/registry/x/y/");
            // JSON's insignificant bits aside, only the same place can come out.
            assert!(opened.is_err() || opened.unwrap() == place, "{position}");
        }
    }
}
