//! A bare machine: its name, its cache tiers, what room there is.

use std::io;
use std::path::{Path, PathBuf};

pub use fluvial_engine::Marks;
use fluvial_engine::Tier;
use nix::sys::statvfs::statvfs;

/// The default tier is no larger than this.
const DEFAULT_QUOTA_MOST: u64 = 20 << 30;
/// And no larger than the free space divided by this.
const DEFAULT_QUOTA_DIVISOR: u64 = 2;

/// A tier, as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierConfig {
    /// `MEM`, `SSD` or `HDD`.
    pub medium: String,
    /// Its directory; a MEM tier's is on a memory file system.
    pub dir: PathBuf,
    /// Most bytes in it; if not given, half of what is free there now, at most 20 GiB.
    pub quota_bytes: Option<u64>,
    /// When files are given up beforehand.
    pub marks: Marks,
}

/// Why the platform cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("prepare tier {dir}: medium \"{medium}\" is not known; use MEM, SSD or HDD")]
    Medium { dir: String, medium: String },
    #[error("prepare tier {dir}: two tiers have this directory")]
    Twice { dir: String },
    #[error("prepare tier {dir}")]
    Directory {
        dir: String,
        #[source]
        source: io::Error,
    },
    #[error("read host name; give the node a name")]
    HostName(#[source] io::Error),
}

/// The tiers to use: those configured, or one SSD tier in the data directory.
///
/// # Errors
/// When a directory cannot be used or the configuration contradicts itself.
pub fn tiers(configured: &[TierConfig], data_dir: &Path) -> Result<Vec<Tier>, Error> {
    let default = [TierConfig {
        medium: "SSD".to_owned(),
        dir: data_dir.join("cache"),
        quota_bytes: None,
        marks: Marks::default(),
    }];
    let wanted = if configured.is_empty() { &default } else { configured };
    let mut tiers: Vec<Tier> = Vec::new();
    for TierConfig { medium, dir, quota_bytes, marks } in wanted {
        let shown = || dir.display().to_string();
        if !["MEM", "SSD", "HDD"].contains(&medium.as_str()) {
            return Err(Error::Medium { dir: shown(), medium: medium.clone() });
        }
        let failed = |source| Error::Directory { dir: shown(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let dir = dir.canonicalize().map_err(failed)?;
        if tiers.iter().any(|tier| tier.dir == dir) {
            return Err(Error::Twice { dir: shown() });
        }
        let quota_bytes = match quota_bytes {
            Some(bytes) => *bytes,
            None => (free(&dir).map_err(failed)? / DEFAULT_QUOTA_DIVISOR).min(DEFAULT_QUOTA_MOST),
        };
        tiers.push(Tier { medium: medium.clone(), dir, quota_bytes, marks: *marks });
    }
    Ok(tiers)
}

/// Bytes that an ordinary user can still write there.
fn free(dir: &Path) -> io::Result<u64> {
    let found = statvfs(dir).map_err(io::Error::from)?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// What tells this machine, and what is seen of its mounts, from others: the boot and the mount namespace. Empty where
/// the kernel tells neither.
#[must_use]
pub fn machine() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mounts = std::fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
    let text = format!("{} {}", boot.trim(), mounts.display());
    if text.trim().is_empty() { String::new() } else { text }
}

/// The name of this machine.
///
/// # Errors
/// [`Error::HostName`].
pub fn node_name() -> Result<String, Error> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").map_err(Error::HostName)?;
    let name = name.trim();
    if name.is_empty() { Err(Error::HostName(io::ErrorKind::NotFound.into())) } else { Ok(name.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tiers_there_is_one_of_half_the_free_space_at_most_twenty_gibibytes() {
        let dir = tempfile::tempdir().unwrap();
        let found = tiers(&[], dir.path()).unwrap();
        let cache = dir.path().join("cache").canonicalize().unwrap();
        let quota = found[0].quota_bytes;
        assert_eq!(
            found,
            [Tier { medium: "SSD".to_owned(), dir: cache.clone(), quota_bytes: quota, marks: Marks::default() }]
        );
        assert!(quota > 0 && quota <= 20 << 30 && quota <= free(&cache).unwrap(), "{quota}");
    }

    #[test]
    fn tiers_that_contradict_each_other_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tier = |medium: &str| TierConfig {
            medium: medium.into(),
            dir: dir.path().into(),
            quota_bytes: Some(1),
            marks: Marks::default(),
        };
        assert!(matches!(tiers(&[tier("TAPE")], dir.path()), Err(Error::Medium { .. })));
        assert!(matches!(tiers(&[tier("MEM"), tier("SSD")], dir.path()), Err(Error::Twice { .. })));
    }
}
