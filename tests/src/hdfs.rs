//! A real HDFS for one test: one name node and one data node in one process on loopback, from the test bed.
//!
//! Invariants: it holds a copy of a folder and is ready when `start` returns; killed, and its data removed, on drop.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::bed::bed_bin;

/// A running HDFS.
pub struct Hdfs {
    /// HOST:PORT of the name node's HTTP server.
    pub address: String,
    child: Child,
    _data: TempDir,
}

impl Hdfs {
    /// Starts one with a copy of `folder` at `remote`.
    #[track_caller]
    pub fn start(folder: &Path, remote: &str) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder can be made");
        let mut child = Command::new(bed_bin("hdfs"))
            .arg(data.path())
            .arg(folder)
            .arg(remote)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("java can be started");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        output.read_line(&mut line).expect("its output can be read");
        let port: u16 = line.trim().parse().expect("HDFS says its port once it is ready");
        Self { address: format!("127.0.0.1:{port}"), child, _data: data }
    }
}

impl Drop for Hdfs {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
