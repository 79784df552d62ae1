//! Keys that cannot be a tree: one that is a file and a prefix of others.

/// Finds collisions in keys that come in bytewise order (as S3 lists them; another order is an error of the server).
///
/// `a` and `a/b` need not be neighbours: `a-b` sorts between them. The keys that can still collide are those that are
/// prefixes of the current one: a chain, whose length is bounded by the depth of paths.
#[derive(Default)]
pub(super) struct Collisions {
    /// Files whose text is a prefix of the last key, each a prefix of the next.
    chain: Vec<String>,
    last: String,
}

impl Collisions {
    /// The next key, below the place's prefix.
    pub(super) fn add(&mut self, key: &str) -> Result<(), String> {
        if !self.last.is_empty() && key.as_bytes() <= self.last.as_bytes() {
            return Err("the server does not list keys in order".to_owned());
        }
        key.clone_into(&mut self.last);
        self.chain.retain(|file| key.starts_with(file.as_str()));
        if let Some(file) = self.chain.iter().find(|file| key[file.len()..].starts_with('/')) {
            return Err(format!("the key {file:?} is a file and also a directory"));
        }
        if !key.ends_with('/') {
            self.chain.push(key.to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_also_a_directory_is_found_across_keys_in_between() {
        let mut keys = Collisions::default();
        for key in ["a", "a-b", "a-b.c"] {
            keys.add(key).unwrap();
        }
        assert_eq!(keys.add("a/b"), Err("the key \"a\" is a file and also a directory".to_owned()));
    }

    #[test]
    fn a_directory_marker_and_its_files_do_not_collide() {
        let mut keys = Collisions::default();
        for key in ["a/", "a/b", "ab"] {
            keys.add(key).unwrap();
        }
    }
}
