//! The three 32-byte names of the manifest: of contents, of blocks and of whole trees. Text is 64 lower-case hex digits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The text has the wrong length.
    #[error("parse {what}: {found} characters, expected 64 hex digits")]
    Length {
        /// Which kind of hash was expected.
        what: &'static str,
        /// Characters found.
        found: usize,
    },
    /// The text holds something that is not a lower-case hex digit.
    #[error("parse {what}: character {at} is not a lower-case hex digit")]
    Digit {
        /// Which kind of hash was expected.
        what: &'static str,
        /// Position of the first bad byte, from 0.
        at: usize,
    },
}

fn parse_hex(what: &'static str, text: &str) -> Result<[u8; 32], HashError> {
    if text.len() != 64 {
        return Err(HashError::Length { what, found: text.len() });
    }
    let mut bytes = [0; 32];
    for (at, digit) in text.bytes().enumerate() {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return Err(HashError::Digit { what, at }),
        };
        bytes[at / 2] |= if at % 2 == 0 { value << 4 } else { value };
    }
    Ok(bytes)
}

macro_rules! hash_newtype {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 32]);

        impl $name {
            /// From raw bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The BLAKE3 of `data`.
            #[must_use]
            pub fn of(data: &[u8]) -> Self {
                Self(*blake3::hash(data).as_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = HashError;
            fn from_str(text: &str) -> Result<Self, HashError> {
                parse_hex($what, text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = HashError;
            fn try_from(text: String) -> Result<Self, HashError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(hash: $name) -> String {
                hash.to_string()
            }
        }
    };
}

hash_newtype! {
    /// BLAKE3 of the contents of a file.
    Digest, "digest"
}
hash_newtype! {
    /// BLAKE3 of the bytes of a block: its name.
    BlockHash, "block hash"
}
hash_newtype! {
    /// The name of a whole tree: the hash of its topmost block.
    Root, "manifest root"
}

impl Root {
    /// The topmost block of the tree.
    #[must_use]
    pub const fn block(self) -> BlockHash {
        BlockHash(self.0)
    }
}

impl From<BlockHash> for Root {
    fn from(hash: BlockHash) -> Root {
        Root(hash.0)
    }
}
