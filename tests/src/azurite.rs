//! A real Azure Blob Storage for one test: Azurite, Microsoft's emulator, from the test bed, on a free loopback port.
//!
//! Invariants: it has one container and is ready when `start` returns; killed, and its data removed, on drop. The few
//! requests here set a test up and look at what it did; they share no code with the product's client.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::bed::{bed_bin, free_port};
use crate::wait::wait_for;

/// It is a program of Node, which takes seconds to load; ten tests starting one each on two cores take many times that.
const READY_DEADLINE: Duration = Duration::from_secs(120);
/// A request to loopback that takes longer than this has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The account that every emulator has.
const ACCOUNT: &str = "devstoreaccount1";
/// What permits everything on that account until 2099: an account SAS, signed with [`Azurite::KEY`].
const TOKEN: &str = "sv=2018-11-09&ss=b&srt=sco&sp=rwdlac&se=2099-01-01T00%3A00%3A00Z&\
                     sig=CPoOux8rQhR0b5pwICKRhVPCypVOv2XSgLfWcXpc32c%3D";

/// A running Azurite.
pub struct Azurite {
    /// With the account, without a trailing slash.
    pub endpoint: String,
    child: Child,
    agent: ureq::Agent,
    _data: TempDir,
}

impl Azurite {
    /// The key of its account, which is public.
    pub const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    /// Starts a server with one empty container, `container`.
    #[track_caller]
    pub fn start() -> Self {
        let data = tempfile::tempdir().expect("a temporary folder can be made");
        let port = free_port();
        let child = Command::new(bed_bin("azurite"))
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--location"])
            .arg(data.path())
            .args(["--silent", "--disableTelemetry", "--skipApiVersionCheck"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the bed's azurite is executable");
        let agent = ureq::Agent::config_builder().timeout_global(Some(REQUEST_TIMEOUT)).build().new_agent();
        let server = Self { endpoint: format!("http://127.0.0.1:{port}/{ACCOUNT}"), child, agent, _data: data };
        let url = format!("{}/container?restype=container&{TOKEN}", server.endpoint);
        wait_for(READY_DEADLINE, "Azurite to make a container", || match server.agent.put(&url).send_empty() {
            // Asked twice, when the first answer was lost.
            Ok(_) | Err(ureq::Error::StatusCode(409)) => Ok(()),
            Err(error) => Err(error),
        });
        server
    }

    /// The names of all blobs, sorted: up to five thousand.
    #[track_caller]
    pub fn names(&self) -> Vec<String> {
        let url = format!("{}/container?restype=container&comp=list&{TOKEN}", self.endpoint);
        let mut answer = self.agent.get(&url).call().unwrap_or_else(|e| panic!("listing failed: {e}"));
        let text = answer.body_mut().read_to_string().unwrap_or_else(|e| panic!("listing failed: {e}"));
        text.split("<Name>").skip(1).filter_map(|rest| Some(rest.split_once("</Name>")?.0.to_owned())).collect()
    }

    /// The arguments with which the command line reaches it, with this key of its account.
    pub fn options(&self, key: &str) -> Vec<String> {
        let values = [("--option", "endpoint", &*self.endpoint), ("--option", "account_name", ACCOUNT)];
        let values = values.into_iter().chain([("--secret-option", "account_key", key)]);
        values.flat_map(|(flag, name, value)| [flag.to_owned(), format!("{name}={value}")]).collect()
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        // Already gone is as good: there is nothing to report while a test ends.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
