//! A token for a whole account, signed with its key: "Create an account SAS" in the REST reference of Azure Storage.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::Sha256;

/// The version of the service whose way of signing this is.
const VERSION: &str = "2018-11-09";
const EXPIRY: &str = "2099-01-01T00:00:00Z";

/// What stands behind the `?`: everything is permitted on the account's containers and blobs.
pub fn account_token(account: &str, key: &str) -> String {
    let permissions = "rwdlac";
    let signed = format!("{account}\n{permissions}\nb\nsco\n\n{EXPIRY}\n\n\n{VERSION}\n");
    let mut mac = Hmac::<Sha256>::new_from_slice(&BASE64_STANDARD.decode(key).unwrap()).unwrap();
    mac.update(signed.as_bytes());
    let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
    let escape = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    format!("sv={VERSION}&ss=b&srt=sco&sp={permissions}&se={}&sig={}", escape(EXPIRY), escape(&signature))
}
