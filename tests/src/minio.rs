//! A real S3 server for one test: MinIO from the test bed, on a free loopback port, with its data in a temporary
//! folder.
//!
//! Invariants: ready when `start` returns; killed, waited for and its data removed on drop. Each server has a secret
//! of its own, so that a test can look for it where no secret may appear. The few S3 calls here set a test up and look
//! at what it did; they share no code with the product's own S3 client.

use crate::bed::{bed_bin, free_port};
use crate::wait::wait_for;
use rusty_s3::actions::ListObjectsV2;
use rusty_s3::signing::sign;
use rusty_s3::{Bucket, Credentials, Method, S3Action, UrlStyle};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// MinIO is ready in about 0.6 s on an idle machine; ten tests starting one each on two cores take ten times that.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// A request to loopback that takes longer than this has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A presigned request is sent at once.
const SIGNATURE_VALID: Duration = Duration::from_secs(60);
/// Another process can take the free port before MinIO does: three tries make that a non-event.
const START_ATTEMPTS: u32 = 3;
/// The largest object that [`Minio::get_object`] reads into memory.
const GET_LIMIT_BYTES: u64 = 1 << 30;

const LOG_FILE: &str = "minio.log";
const DATA_FOLDER: &str = "data";

/// Where MinIO tells of changes.
pub struct Webhook {
    pub url: String,
    /// Sent as a bearer token.
    pub token: String,
    /// The certificates that it trusts for it, in PEM.
    pub ca_file: PathBuf,
}

/// A running MinIO server.
pub struct Minio {
    /// `http://127.0.0.1:PORT`, without a trailing slash.
    pub endpoint: String,
    /// The root user's access key.
    pub access_key: String,
    /// The root user's secret key: different for each server.
    pub secret_key: String,
    child: Child,
    dir: TempDir,
    agent: ureq::Agent,
}

impl Minio {
    /// The region that requests are signed for.
    pub const REGION: &'static str = "us-east-1";

    /// Starts a server with no buckets and returns when it is ready.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// The same, with an address that it calls for buckets that are to [`Minio::notify`].
    #[track_caller]
    pub fn start_with(webhook: Option<&Webhook>) -> Self {
        for attempt in 1..=START_ATTEMPTS {
            let mut server = Self::spawn(webhook);
            match server.wait_until_ready() {
                Ok(()) => return server,
                Err(exit) => assert!(attempt < START_ATTEMPTS, "MinIO did not start: {exit}\n{}", server.log()),
            }
        }
        unreachable!("the last attempt returns or panics")
    }

    /// Stops the server in its tracks: connections stay, answers do not come.
    pub fn hang(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "MinIO runs");
    }

    /// The folder that holds the server's data: one folder per bucket.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join(DATA_FOLDER)
    }

    /// Creates an empty bucket. Names have three characters or more.
    #[track_caller]
    pub fn create_bucket(&self, name: &str) {
        let url = self.bucket(name).create_bucket(&self.credentials()).sign(SIGNATURE_VALID);
        self.agent.put(url.as_str()).send_empty().unwrap_or_else(|e| panic!("creating bucket `{name}` failed: {e}"));
    }

    /// Stores one object, replacing an earlier one of that key.
    #[track_caller]
    pub fn put_object(&self, bucket: &str, key: &str, body: &[u8]) {
        let url = self.bucket(bucket).put_object(Some(&self.credentials()), key).sign(SIGNATURE_VALID);
        self.agent.put(url.as_str()).send(body).unwrap_or_else(|e| panic!("putting `{bucket}/{key}` failed: {e}"));
    }

    /// The whole content of one object.
    #[track_caller]
    pub fn get_object(&self, bucket: &str, key: &str) -> Vec<u8> {
        let url = self.bucket(bucket).get_object(Some(&self.credentials()), key).sign(SIGNATURE_VALID);
        let mut response =
            self.agent.get(url.as_str()).call().unwrap_or_else(|e| panic!("getting `{bucket}/{key}` failed: {e}"));
        let body = response.body_mut().with_config().limit(GET_LIMIT_BYTES).read_to_vec();
        body.unwrap_or_else(|e| panic!("reading `{bucket}/{key}` failed: {e}"))
    }

    /// The keys of all objects of a bucket, sorted: up to a thousand.
    #[track_caller]
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        let url = self.bucket(bucket).list_objects_v2(Some(&self.credentials())).sign(SIGNATURE_VALID);
        let found = ListObjectsV2::parse_response(&self.text(url.as_str())).expect("MinIO lists objects");
        found.contents.into_iter().map(|object| object.key).collect()
    }

    /// The ids of uploads that were begun and neither completed nor aborted.
    ///
    /// MinIO lists uploads of one exact key only, so its folder is looked at.
    #[track_caller]
    pub fn uploads(&self) -> Vec<String> {
        let mut found = Vec::new();
        for folder in std::fs::read_dir(self.dir().join(".minio.sys/multipart")).into_iter().flatten().flatten() {
            for upload in std::fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                found.push(upload.path().display().to_string());
            }
        }
        found
    }

    fn text(&self, url: &str) -> String {
        let mut response = self.agent.get(url).call().unwrap_or_else(|e| panic!("listing failed: {e}"));
        response.body_mut().read_to_string().unwrap_or_else(|e| panic!("listing failed: {e}"))
    }

    /// Has every change in a bucket told to the webhook.
    #[track_caller]
    pub fn notify(&self, bucket: &str) {
        let url = format!("{}/{bucket}", self.endpoint).parse().expect("an address and a name make a URL");
        let (method, query) = (Method::Put, [("notification", "")]);
        let now = SystemTime::now().try_into().expect("this is a year that can be written");
        let (key, secret, life) = (&self.access_key, &self.secret_key, SIGNATURE_VALID.as_secs());
        let headers = std::iter::empty::<(&str, &str)>();
        let url = sign(&now, method, url, key, secret, None, Self::REGION, life, query.into_iter(), headers);
        let events =
            ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"].map(|event| format!("<Event>{event}</Event>")).concat();
        let queue = "<Queue>arn:minio:sqs::FLUVIAL:webhook</Queue>";
        let body = format!(
            "<NotificationConfiguration><QueueConfiguration>{queue}{events}</QueueConfiguration></NotificationConfiguration>"
        );
        self.agent.put(url.as_str()).send(&body).unwrap_or_else(|e| panic!("notifying of `{bucket}` failed: {e}"));
    }

    fn spawn(webhook: Option<&Webhook>) -> Self {
        let dir = tempfile::Builder::new().prefix("minio-").tempdir().expect("the temporary folder is writable");
        let log = File::create(dir.path().join(LOG_FILE)).expect("a new folder is writable");
        let port = free_port();
        let access_key = "bed-root".to_owned();
        let secret_key = format!("bed-secret-{}-{port}", std::process::id());
        let mut command = Command::new(bed_bin("minio"));
        let certs = dir.path().join("certs");
        command
            .args(["server", "--quiet", "--address"])
            .arg(format!("127.0.0.1:{port}"))
            .arg("--certs-dir")
            .arg(&certs)
            .arg(dir.path().join(DATA_FOLDER))
            // Its own settings and nobody else's: MinIO reads MINIO_* and the home folder.
            .env_clear()
            .env("HOME", dir.path())
            .env("MINIO_ROOT_USER", &access_key)
            .env("MINIO_ROOT_PASSWORD", &secret_key)
            .env("MINIO_BROWSER", "off")
            .env("MINIO_UPDATE", "off");
        std::fs::create_dir_all(certs.join("CAs")).expect("a new folder is writable");
        if let Some(Webhook { url, token, ca_file }) = webhook {
            std::fs::copy(ca_file, certs.join("CAs/hub.crt")).expect("the CA's file can be read");
            let variables = [("ENABLE", "on"), ("ENDPOINT", url.as_str()), ("AUTH_TOKEN", token.as_str())];
            command.envs(variables.map(|(name, value)| (format!("MINIO_NOTIFY_WEBHOOK_{name}_FLUVIAL"), value)));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle can be doubled"))
            .stderr(log)
            .spawn()
            .expect("the bed's minio is executable");
        let agent = ureq::Agent::config_builder().timeout_global(Some(REQUEST_TIMEOUT)).build().new_agent();
        Self { endpoint: format!("http://127.0.0.1:{port}"), access_key, secret_key, child, dir, agent }
    }

    /// Waits for the answer to a signed request: that a bucket which nobody made does not exist. MinIO's own
    /// `/minio/health/ready` says yes while the S3 API still answers 503, because users are loaded later.
    ///
    /// `Err` when the process has ended instead.
    #[track_caller]
    fn wait_until_ready(&mut self) -> Result<(), ExitStatus> {
        wait_for(READY_DEADLINE, "MinIO to answer S3 requests", || {
            if let Some(exit) = self.child.try_wait().expect("a child of ours can be asked for its state") {
                return Ok(Err(exit));
            }
            let url = self.bucket("nobody-made-this").head_bucket(Some(&self.credentials())).sign(SIGNATURE_VALID);
            match self.agent.head(url.as_str()).call() {
                Err(ureq::Error::StatusCode(404)) => Ok(Ok(())),
                other => Err(other.map(|response| response.status())),
            }
        })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join(LOG_FILE)).unwrap_or_else(|e| format!("(no log: {e})"))
    }

    fn bucket(&self, name: &str) -> Bucket {
        let endpoint = self.endpoint.parse().expect("an address and a port make a URL");
        Bucket::new(endpoint, UrlStyle::Path, name.to_owned(), Self::REGION).expect("path style accepts any name")
    }

    fn credentials(&self) -> Credentials {
        Credentials::new(&self.access_key, &self.secret_key)
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        // Already gone is as good: there is nothing to report while a test ends.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
