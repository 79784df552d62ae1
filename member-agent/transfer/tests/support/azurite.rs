//! Azurite, Microsoft's own emulator of Azure Blob Storage: it checks signatures, tokens and conditions.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fluvial_transfer::Location;

use super::bed;
use super::sas::account_token;

/// The account that every emulator has.
pub const ACCOUNT: &str = "devstoreaccount1";
/// Its key, which is public too.
pub const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
/// The container that is made.
pub const CONTAINER: &str = "container";

/// A server with one container, ended on drop.
pub struct Azurite {
    child: Child,
    pub port: u16,
    _data: tempfile::TempDir,
}

impl Azurite {
    pub fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = fs::File::create(data.path().join("log")).unwrap();
        let child = Command::new(bed("azurite"))
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--location"])
            .arg(data.path())
            .args(["--silent", "--disableTelemetry", "--skipApiVersionCheck"])
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, port, _data: data };
        server.make_container();
        server
    }

    /// Makes the container, with a token for the account: waits until the server is up.
    fn make_container(&self) {
        let token = account_token(ACCOUNT, KEY);
        let request = format!(
            "PUT /{ACCOUNT}/{CONTAINER}?restype=container&{token} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\ncontent-length: 0\r\n\
             connection: close\r\n\r\n",
            self.port
        );
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let mut answer = String::new();
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
                let _ = stream.write_all(request.as_bytes());
                let _ = stream.read_to_string(&mut answer);
            }
            if answer.starts_with("HTTP/1.1 201") {
                return;
            }
            assert!(answer.is_empty(), "Azurite makes no container: {answer}");
            assert!(Instant::now() < deadline, "Azurite did not become ready");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn location(&self, prefix: &str) -> Location {
        self.location_at(self.port, prefix)
    }

    /// The same store at another port, where a proxy is.
    pub fn location_at(&self, port: u16, prefix: &str) -> Location {
        let mut location = self.unsigned(port, prefix);
        location.secrets.insert("account_key".into(), KEY.into());
        location
    }

    /// Without a key.
    pub fn unsigned(&self, port: u16, prefix: &str) -> Location {
        let mut location = Location::new(format!("azblob://{CONTAINER}/{prefix}"));
        location.options.insert("endpoint".into(), format!("http://127.0.0.1:{port}/{ACCOUNT}"));
        location.options.insert("account_name".into(), ACCOUNT.into());
        location
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
