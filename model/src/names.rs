//! ① The rules for names, each with an error that says what would be right.
//!
//! Sources: RFC 1035 and RFC 1123 as Kubernetes applies them.

use std::fmt::Write as _;

/// The longest label (RFC 1035 section 2.3.4), bytes.
pub const MAX_LABEL: usize = 63;
/// The longest subdomain, bytes.
pub const MAX_SUBDOMAIN: usize = 253;

/// Which rule a kind's names follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// A DNS-1035 label: starts with a letter, at most 63 characters.
    Dns1035Label,
    /// A DNS-1123 subdomain: labels that may start with a digit, joined by dots, at most 253 characters.
    Dns1123Subdomain,
    /// A part of a path: whatever stands between two slashes, at most 253 bytes. Roles and their bindings are named so.
    PathSegment,
}

impl NameRule {
    /// Why `name` breaks the rule, or nothing if it does not.
    #[must_use]
    pub fn problem(self, name: &str) -> Option<String> {
        if name.is_empty() {
            return Some("must not be empty".to_owned());
        }
        match self {
            Self::Dns1035Label => dns1035_problem(name),
            Self::Dns1123Subdomain => subdomain_problem(name),
            Self::PathSegment => segment_problem(name),
        }
    }

    /// The longest name, in bytes.
    #[must_use]
    pub const fn longest(self) -> usize {
        match self {
            Self::Dns1035Label => MAX_LABEL,
            Self::Dns1123Subdomain | Self::PathSegment => MAX_SUBDOMAIN,
        }
    }
}

fn label_characters(label: &str) -> bool {
    label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn dns1035_problem(name: &str) -> Option<String> {
    let rule = "must be a DNS-1035 label: lower-case letters, digits and '-', starting with a letter, ending with a \
                letter or digit, at most 63 characters (for example 'my-name')";
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    let ends = !name.ends_with('-');
    (name.len() > MAX_LABEL || !starts || !ends || !label_characters(name)).then(|| rule.to_owned())
}

fn subdomain_problem(name: &str) -> Option<String> {
    let rule = "must be a DNS-1123 subdomain: lower-case letters, digits, '-' and '.', each part starting and ending \
                with a letter or digit, at most 253 characters (for example 'my.name-1')";
    let part_ok =
        |part: &str| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-') && label_characters(part);
    (name.len() > MAX_SUBDOMAIN || !name.split('.').all(part_ok)).then(|| rule.to_owned())
}

fn segment_problem(name: &str) -> Option<String> {
    let rule = "must not be '.' or '..', nor hold '/', '%' or control characters, and have at most 253 bytes (for example \
                'team:readers')";
    let bad = |c: char| c == '/' || c == '%' || c.is_control();
    (name.len() > MAX_SUBDOMAIN || name == "." || name == ".." || name.contains(bad)).then(|| rule.to_owned())
}

/// Why `key` is no label or annotation key (`[prefix/]name`), if so.
#[must_use]
pub fn label_key_problem(key: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|p| subdomain_problem(p).is_some()) {
        return Some("the part before '/' must be a DNS-1123 subdomain".to_owned());
    }
    if name.is_empty() || !qualified_text(name) {
        return Some(
            "must be letters, digits, '-', '_' or '.', starting and ending with a letter or digit, at most 63 characters"
                .to_owned(),
        );
    }
    None
}

/// Why `value` is no label value, if so. The empty value is one.
#[must_use]
pub fn label_value_problem(value: &str) -> Option<String> {
    (!value.is_empty() && !qualified_text(value)).then(|| {
        "must be empty or letters, digits, '-', '_' or '.', starting and ending with a letter or digit, at most 63 \
         characters"
            .to_owned()
    })
}

fn qualified_text(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= MAX_LABEL && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|b| inner(*b))
}

/// `text` with everything that could break a line or a terminal escaped, cut to a length that suits an error message.
#[must_use]
pub fn printable(text: &str) -> String {
    const MOST: usize = 120;
    let mut out = String::new();
    for c in text.chars().take(MOST) {
        if c.is_control() {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_rfc_1035() {
        for good in ["a", "abc", "a-1", &"a".repeat(63)] {
            assert_eq!(NameRule::Dns1035Label.problem(good), None, "{good}");
        }
        for bad in ["", "1a", "-a", "a-", "A", "a_b", "a.b", "ä", "a\n", &"a".repeat(64)] {
            assert!(NameRule::Dns1035Label.problem(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn subdomains_follow_rfc_1123() {
        for good in ["a", "1a", "a.b-c.9"] {
            assert_eq!(NameRule::Dns1123Subdomain.problem(good), None, "{good}");
        }
        for bad in ["", ".a", "a..b", "a.", "a.-b", "A", &"a".repeat(254)] {
            assert!(NameRule::Dns1123Subdomain.problem(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn label_keys_and_values_are_checked() {
        assert_eq!(label_key_problem("fluvial.io/cloud"), None);
        assert!(label_key_problem("a/b/c").is_some());
        assert!(label_key_problem("").is_some());
        assert_eq!(label_value_problem(""), None);
        assert_eq!(label_value_problem("eu_1.a-B"), None);
        assert!(label_value_problem("'; drop table datasets; --").is_some());
    }
}
