//! A real HDFS of one name node and one data node, ended on drop.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fluvial_transfer::Location;

use super::bed;

pub struct Hdfs {
    child: Child,
    pub port: u16,
    _data: tempfile::TempDir,
}

impl Hdfs {
    /// With a copy of a folder at `/data/set`.
    pub fn start(folder: &Path) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut child = Command::new(bed("hdfs"))
            .arg(data.path())
            .args([folder.as_os_str(), "/data/set".as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().expect("HDFS says its port once it is ready");
        Self { child, port, _data: data }
    }

    pub fn location(&self, directory: &str) -> Location {
        let mut location = Location::new(format!("webhdfs://127.0.0.1:{}/{directory}", self.port));
        location.options.insert("user_name".into(), "root".into());
        location
    }
}

impl Drop for Hdfs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
