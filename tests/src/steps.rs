//! Steps that many whole-system tests take: stores, datasets and migrations made as a user makes them.

use std::path::Path;

use serde_json::Value;

use crate::federation::{Api, DEADLINE};
use crate::minio::Minio;
use crate::wait::wait_for;

/// The arguments with which the command line reaches a server's buckets.
pub fn s3_options(minio: &Minio) -> Vec<String> {
    s3_options_at(minio, &minio.endpoint)
}

/// The same, at another endpoint than the server's own.
pub fn s3_options_at(minio: &Minio, endpoint: &str) -> Vec<String> {
    let option = |flag: &str, key: &str, value: &str| [flag.to_owned(), format!("{key}={value}")];
    [
        option("--option", "endpoint", endpoint),
        option("--option", "region", Minio::REGION),
        option("--secret-option", "access_key_id", &minio.access_key),
        option("--secret-option", "secret_access_key", &minio.secret_key),
    ]
    .concat()
}

/// `file://` and a folder.
pub fn file_uri(folder: &Path) -> String {
    format!("file://{}", folder.to_str().expect("a UTF-8 path"))
}

impl Api {
    /// Runs `fluvial` with arguments of two kinds.
    ///
    /// # Errors
    /// With its standard error.
    pub fn fluvial_with(&self, arguments: &[&str], more: &[String]) -> Result<String, String> {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        self.fluvial(&[arguments, &more].concat())
    }

    /// A Storage in a folder of a cluster; the folder is made.
    #[track_caller]
    pub fn path_storage(&self, name: &str, cluster: &str, folder: &Path) {
        std::fs::create_dir_all(folder).expect("a folder can be made");
        let uri = file_uri(folder);
        self.fluvial(&["storage", "create", name, "--uri", &uri, "--cluster", cluster]).expect("a storage is made");
    }

    /// A Storage in a bucket; `place` is `BUCKET` or `BUCKET/PREFIX`.
    #[track_caller]
    pub fn s3_storage(&self, name: &str, cluster: &str, place: &str, minio: &Minio) {
        self.s3_storage_at(name, cluster, place, minio, &minio.endpoint);
    }

    /// The same, reached at another endpoint than the server's own.
    #[track_caller]
    pub fn s3_storage_at(&self, name: &str, cluster: &str, place: &str, minio: &Minio, endpoint: &str) {
        let uri = format!("s3://{place}");
        let arguments = ["storage", "create", name, "--uri", &uri, "--cluster", cluster];
        self.fluvial_with(&arguments, &s3_options_at(minio, endpoint)).expect("a storage is made");
    }

    /// A dataset of a folder, scanned.
    #[track_caller]
    pub fn path_dataset(&self, name: &str, folder: &Path) -> Value {
        self.fluvial(&["dataset", "create", name, "--mount", &file_uri(folder), "--wait", "--timeout", "60s"])
            .expect("a dataset is made");
        self.get("dataset", name).expect("it is there")
    }

    /// A dataset of a bucket, scanned.
    #[track_caller]
    pub fn s3_dataset(&self, name: &str, place: &str, minio: &Minio) -> Value {
        self.s3_dataset_at(name, place, minio, &minio.endpoint)
    }

    /// The same, reached at another endpoint than the server's own.
    #[track_caller]
    pub fn s3_dataset_at(&self, name: &str, place: &str, minio: &Minio, endpoint: &str) -> Value {
        let mount = format!("s3://{place}");
        self.fluvial_with(
            &["dataset", "create", name, "--mount", &mount, "--wait", "--timeout", "60s"],
            &s3_options_at(minio, endpoint),
        )
        .expect("a dataset is made");
        self.get("dataset", name).expect("it is there")
    }

    /// Begins a migration named `operation`.
    #[track_caller]
    pub fn begin_migration(&self, operation: &str, dataset: &str, storage: &str) {
        self.fluvial(&["migrate", dataset, "--to", storage, "--name", operation]).expect("a migration is made");
    }

    /// Waits until a migration has copied some bytes and not all, and returns the agent that copies.
    ///
    /// A migration that ends before is a test that does not test: it panics.
    #[track_caller]
    pub fn in_mid_copy(&self, operation: &str) -> String {
        wait_for(DEADLINE, "some bytes to be copied", || {
            let found = self.get("datamigrate", operation).ok_or("gone")?;
            let status = &found["status"];
            let ended = ["Complete", "Failed", "Cancelled"].iter().any(|phase| status["phase"] == *phase);
            assert!(!ended, "{operation} ended too soon to be disturbed: {status}");
            let some = status["reason"] == "Copying" && status["progress"]["bytesDone"].as_u64() > Some(0);
            let executor = status["plan"]["executor"].as_str().map(str::to_owned);
            if some { executor.ok_or("nobody copies") } else { Err("not yet") }
        })
    }

    /// Waits until a migration has ended, and returns the phase that it ended in with its message.
    #[track_caller]
    pub fn ended(&self, operation: &str) -> (String, String) {
        let ends = ["Complete", "Failed", "Cancelled"];
        let found = self.wait_until("datamigrate", operation, "/status/phase", |phase| {
            phase.as_str().is_some_and(|phase| ends.contains(&phase))
        });
        let text = |field: &str| found["status"][field].as_str().unwrap_or_default().to_owned();
        (text("phase"), text("message"))
    }

    /// Waits until a migration is complete.
    #[track_caller]
    pub fn complete(&self, operation: &str) {
        let (phase, message) = self.ended(operation);
        assert_eq!(phase, "Complete", "{operation}: {message}");
    }

    /// The URI of the home of a dataset in a Storage.
    #[track_caller]
    pub fn home(&self, dataset: &str, storage: &str) -> String {
        let found = self.get("dataset", dataset).expect("the dataset is there");
        let homes = found["status"]["homes"].as_array().cloned().unwrap_or_default();
        let home = homes.iter().find(|home| home["storage"] == storage);
        home.and_then(|home| home["uri"].as_str()).unwrap_or_else(|| panic!("no home there: {homes:?}")).to_owned()
    }
}
