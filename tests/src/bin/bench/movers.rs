//! The programs that a copy of a tree is compared with, and the settings of each; the fastest one is the peer.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fluvial_tests::minio::Minio;
use tokio::process::Command;

use crate::measured::{self, Usage};
use crate::programs;
use crate::rclone::{Rclone, Setting};

/// An end of a copy.
#[derive(Debug, Clone)]
pub(crate) enum End {
    Folder(PathBuf),
    /// A prefix of the bucket.
    Prefix(String),
}

/// A program with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mover {
    Rclone(Setting),
    /// Does not copy between two endpoints.
    S5cmd,
    Juicefs,
}

/// Streams of the movers that take one number: rclone's fast setting has as many.
const THREADS: &str = "32";

impl Mover {
    /// Those that can do it.
    pub(crate) fn all(from: &End, to: &End) -> Vec<Self> {
        let mut all: Vec<_> = Setting::ALL.into_iter().map(Self::Rclone).collect();
        all.push(Self::Juicefs);
        if matches!((from, to), (End::Folder(_), _) | (_, End::Folder(_))) {
            all.push(Self::S5cmd);
        }
        all
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Rclone(_) => "rclone",
            Self::S5cmd => "s5cmd",
            Self::Juicefs => "juicefs sync",
        }
    }

    /// The flags and what they verify.
    pub(crate) fn note(self) -> String {
        match self {
            Self::Rclone(setting) => setting.note(),
            Self::S5cmd => format!("s5cmd --numworkers {THREADS}: sends checksums, reads nothing back"),
            Self::Juicefs => format!("juicefs sync --threads {THREADS}: reads nothing back"),
        }
    }
}

/// All of them, in front of one server.
pub(crate) struct Movers {
    pub(crate) rclone: Rclone,
    minio: (String, String, String),
    bucket: &'static str,
    home: PathBuf,
}

impl Movers {
    pub(crate) fn new(minio: &Minio, bucket: &'static str, folder: &Path) -> Result<Self> {
        let rclone = Rclone::new(minio, folder)?;
        let access = (minio.endpoint.clone(), minio.access_key.clone(), minio.secret_key.clone());
        Ok(Self { rclone, minio: access, bucket, home: folder.to_owned() })
    }

    /// Copies a tree with one of them.
    pub(crate) async fn copy(&self, mover: Mover, from: &End, to: &End) -> Result<Usage> {
        let (endpoint, access, secret) = &self.minio;
        let bucket = self.bucket;
        let mut command = match mover {
            Mover::Rclone(setting) => {
                return self.rclone.copy(setting, &self.remote("one", from), &self.remote("two", to)).await;
            }
            Mover::S5cmd => {
                let at = |end: &End, all: &str| match end {
                    End::Folder(folder) => format!("{}/", folder.display()),
                    End::Prefix(prefix) => format!("s3://{bucket}/{prefix}/{all}"),
                };
                let mut command = Command::new(programs::peer("s5cmd")?);
                command.args(["--endpoint-url", endpoint, "--numworkers", THREADS, "cp", &at(from, "*"), &at(to, "")]);
                command
            }
            Mover::Juicefs => {
                let host = endpoint.trim_start_matches("http://");
                let at = |end: &End| match end {
                    End::Folder(folder) => format!("{}/", folder.display()),
                    End::Prefix(prefix) => format!("minio://{access}:{secret}@{host}/{bucket}/{prefix}/"),
                };
                let mut command = Command::new(programs::peer("juicefs")?);
                command.args(["sync", "--threads", THREADS, &at(from), &at(to)]);
                command
            }
        };
        // Their own settings and nobody else's.
        command.env_clear().env("HOME", &self.home);
        command.env("AWS_ACCESS_KEY_ID", access).env("AWS_SECRET_ACCESS_KEY", secret).env("AWS_REGION", Minio::REGION);
        measured::run(command, &self.home.join(format!("{}.log", mover.name()))).await
    }

    /// An end as rclone names it.
    pub(crate) fn remote(&self, remote: &str, end: &End) -> String {
        match end {
            End::Folder(folder) => folder.display().to_string(),
            End::Prefix(prefix) => format!("{remote}:{}/{prefix}", self.bucket),
        }
    }
}
