//! rclone, with the two settings that are tried before the faster one is compared with.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fluvial_tests::minio::Minio;
use tokio::process::Command;

use crate::measured::{self, Usage};
use crate::programs;

/// How rclone is told to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    /// As careful as it can be while copying: whole-file MD5 in the metadata, sums compared where both ends have one.
    Checksum,
    /// As fast as it can reasonably be: nothing is summed beyond what S3 demands, nothing is looked at again.
    Fast,
}

impl Setting {
    pub(crate) const ALL: [Self; 2] = [Self::Checksum, Self::Fast];

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Checksum => &["--checksum", "--transfers", "8", "--checkers", "16"],
            Self::Fast => &[
                "--ignore-checksum",
                "--s3-disable-checksum",
                "--s3-no-head",
                "--s3-no-check-bucket",
                "--no-traverse",
                "--transfers",
                "32",
                "--checkers",
                "32",
                "--s3-upload-concurrency",
                "8",
                "--s3-chunk-size",
                "8M",
                "--multi-thread-streams",
                "8",
            ],
        }
    }

    /// The flags and what they verify.
    pub(crate) fn note(self) -> String {
        let verifies = match self {
            Self::Checksum => "checks sizes and MD5 sums that S3 reports, reads nothing back",
            Self::Fast => "checks sizes only",
        };
        format!("rclone {}: {verifies}", self.flags().join(" "))
    }
}

/// rclone with two remotes, `one` and `two`, of the same server. As they differ in name it streams between them, as
/// between two clouds, instead of letting the server copy to itself.
pub(crate) struct Rclone {
    program: PathBuf,
    environment: Vec<(String, String)>,
    log: PathBuf,
}

/// The settings of remotes of these names, in capitals, on one server.
pub(crate) fn environment(minio: &Minio, remotes: &[&str]) -> Vec<(String, String)> {
    let settings = [
        ("TYPE", "s3"),
        ("PROVIDER", "Minio"),
        ("ENDPOINT", &minio.endpoint),
        ("REGION", Minio::REGION),
        ("ACCESS_KEY_ID", &minio.access_key),
        ("SECRET_ACCESS_KEY", &minio.secret_key),
    ];
    let of = |remote: &&str| settings.map(|(key, value)| (format!("RCLONE_CONFIG_{remote}_{key}"), value.to_owned()));
    remotes.iter().flat_map(of).collect()
}

impl Rclone {
    pub(crate) fn new(minio: &Minio, folder: &Path) -> Result<Self> {
        let mut environment = vec![("HOME".to_owned(), folder.display().to_string())];
        environment.extend(self::environment(minio, &["ONE", "TWO"]));
        Ok(Self { program: programs::peer("rclone")?, environment, log: folder.join("rclone.log") })
    }

    /// Runs one of its commands.
    async fn run(&self, arguments: &[&str]) -> Result<Usage> {
        let mut command = Command::new(&self.program);
        // Its own settings and nobody else's.
        command.env_clear().envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.args(["--config", "", "--quiet"]).args(arguments);
        measured::run(command, &self.log).await
    }

    /// Copies a tree.
    pub(crate) async fn copy(&self, setting: Setting, source: &str, target: &str) -> Result<Usage> {
        self.run(&[&["copy", source, target], setting.flags()].concat()).await
    }

    /// Compares two trees by reading every byte of both.
    pub(crate) async fn check(&self, source: &str, target: &str) -> Result<Usage> {
        self.run(&["check", "--download", "--checkers", "8", source, target]).await
    }
}
