//! Hubs as processes of the binary under test, for the tests of whole commands.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]
#![allow(dead_code, reason = "each test binary uses some of them")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use fluvial_tests::bed::free_port;

/// How long an election, a start or a join may take on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A hub process; killed when dropped.
pub struct Hub {
    process: Child,
    data_dir: PathBuf,
}

impl Hub {
    pub fn run(data_dir: PathBuf) -> Self {
        let process = fluvial()
            .args(["hub", "run", "--data-dir"])
            .arg(&data_dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, data_dir }
    }

    /// SIGKILL, and the same data directory again.
    pub fn killed_and_run_again(mut self) -> Self {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        Self::run(self.data_dir.clone())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // It may be gone already: that is what some tests are about.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The binary under test.
pub fn fluvial() -> Command {
    Command::new(env!("CARGO_BIN_EXE_fluvial"))
}

/// What a command printed, or why it failed.
pub fn said(output: Output) -> Result<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The first hub and the kubeconfig that reaches it.
pub fn first_hub(folder: &Path) -> (Hub, PathBuf) {
    let listen: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let (data_dir, kubeconfig) = (folder.join("hub-1"), folder.join("kubeconfig"));
    let init = fluvial()
        .args(["hub", "init", "--listen", &listen.to_string(), "--data-dir"])
        .arg(&data_dir)
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .output()
        .unwrap();
    said(init).unwrap();
    (Hub::run(data_dir), kubeconfig)
}

/// A dataset that no agent has looked at.
pub const DATASET: &str = "apiVersion: data.fluid.io/v1alpha1\nkind: Dataset\nmetadata: {name: d, labels: {team: a}}\n\
                       spec: {mounts: [{mountPoint: \"file:///data\", path: \"/\"}]}\n";
