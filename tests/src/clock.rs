//! Wall clocks of single processes, moved by a test: a small library that is loaded before all others answers in the
//! system's place. The machine's clock is never touched.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The clock of one process.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    path: PathBuf,
    shift: File,
}

impl Clock {
    /// Makes one named `name` in `folder`, at the right time.
    #[track_caller]
    pub fn new(folder: &Path, name: &str) -> Self {
        let library = folder.join("shift.so");
        if !library.exists() {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/clock/shift.c");
            let mut compiler = Command::new("cc");
            compiler.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(source);
            let output = compiler.output().expect("there is a C compiler");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let path = folder.join(name);
        let shift = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let clock = Self { library, path, shift: shift.expect("a file can be made") };
        clock.shift(0);
        clock
    }

    /// From now on it shows so many seconds more than the machine's.
    #[track_caller]
    pub fn shift(&self, seconds: i64) {
        self.shift.write_all_at(&seconds.to_ne_bytes(), 0).expect("a file can be written");
    }

    /// What the environment of the process must have.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![("LD_PRELOAD".into(), text(&self.library)), ("FLUVIAL_TEST_CLOCK".into(), text(&self.path))]
    }
}
