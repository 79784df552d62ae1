//! Runs seeds, each in a process of its own: what a run before it left behind in a process cannot change it, a hang or
//! an abort ends one seed and not all, and as many run at once as there are cores.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fluvial_raft::simulation::Bug;
use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::world::{self, Options};

/// A seed that has not ended by then is undecided, which is a failure: one takes seconds.
const LIMIT: Duration = Duration::from_secs(150);

/// What came of one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub seed: u64,
    pub fault: Option<String>,
    pub figures: BTreeMap<String, u64>,
    /// Everything that happened, if that was asked for.
    #[serde(skip)]
    pub trace: String,
}

/// Starts processes that simulate.
pub struct Runner {
    program: PathBuf,
    scratch: tempfile::TempDir,
}

impl Runner {
    /// `program` is this program or one that understands the same hidden arguments: see [`serve`].
    #[must_use]
    pub fn new(program: &Path) -> Self {
        let memory = Path::new("/dev/shm");
        // A file system in memory: what a disk really does with a sync is not the question here.
        let scratch = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let scratch = scratch.expect("a directory for the simulated disks");
        let source = scratch.path().join("preload.c");
        std::fs::write(&source, include_str!("preload.c")).expect("the source of the preloaded library");
        let built = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .arg(scratch.path().join("preload.so"))
            .arg(&source)
            .arg("-ldl")
            .status()
            .expect("a C compiler, which Rust links with");
        assert!(built.success(), "the preloaded library is built");
        Self { program: program.to_owned(), scratch }
    }

    /// Runs one seed; `trace` keeps everything that happened.
    #[must_use]
    pub fn run(&self, options: Options, trace: bool) -> Report {
        let disk = tempfile::tempdir_in(self.scratch.path()).expect("a directory for one seed's disks");
        std::fs::write(disk.path().join("control"), b"").expect("the disk's control file");
        let mut command = Command::new(&self.program);
        command
            .args(["one", &options.seed.to_string(), "--seconds", &options.seconds.to_string(), "--disk"])
            .arg(disk.path())
            .env("LD_PRELOAD", self.scratch.path().join("preload.so"))
            .env("FLUVIAL_SIM_SEED", options.seed.to_string())
            .env("FLUVIAL_SIM_DISK", disk.path())
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(bug) = options.bug {
            command.args(["--bug", &format!("{bug:?}")]);
        }
        if trace {
            command.arg("--trace");
        }
        let mut child = command.spawn().expect("a process for one seed");
        let mut stdout = child.stdout.take().expect("its output");
        let mut stderr = child.stderr.take().expect("its errors");
        let text = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stdout.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let errors = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stderr.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait().expect("the process can be waited for") {
                break Some(status);
            }
            if Instant::now() > deadline {
                child.kill().expect("the process can be killed");
                child.wait().expect("the process ends");
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let (text, errors) = (text.join().unwrap_or_default(), errors.join().unwrap_or_default());
        let (before, last) = text.trim_end().rsplit_once('\n').unwrap_or(("", text.trim_end()));
        let mut report = serde_json::from_str(last).unwrap_or_else(|_| Report {
            seed: options.seed,
            fault: Some(match status {
                None => format!("undecided after {} s", LIMIT.as_secs()),
                Some(status) => format!("the process ended with {status}: {}", errors.trim()),
            }),
            figures: BTreeMap::new(),
            trace: String::new(),
        });
        report.trace = if trace { format!("{before}\n") } else { String::new() };
        report
    }

    /// Runs seed after seed on all cores, as long as `next` gives some, and hands each report to `each`, which says
    /// whether to go on.
    pub fn run_all(
        &self,
        next: impl FnMut() -> Option<Options> + Send,
        each: impl FnMut(Options, Report) -> bool + Send,
    ) {
        let (next, each, enough) = (Mutex::new(next), Mutex::new(each), AtomicBool::new(false));
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        std::thread::scope(|scope| {
            for _ in 0..cores {
                scope.spawn(|| {
                    while !enough.load(Ordering::Relaxed) {
                        let options = (next.lock().expect("no thread panicked"))();
                        let Some(options) = options else { return };
                        let report = self.run(options, false);
                        if !(each.lock().expect("no thread panicked"))(options, report) {
                            enough.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
    }
}

/// The process of one seed: simulates and prints what came of it, the trace first if it is asked for.
#[allow(clippy::print_stdout, reason = "the output is what this process is for")]
pub fn serve(options: Options, disk: &Path, trace: bool) {
    let outcome = world::run(options, Disk::new(disk));
    if trace {
        print!("{}", outcome.trace);
    }
    let report = Report { seed: options.seed, fault: outcome.fault, figures: outcome.figures, trace: String::new() };
    println!("{}", serde_json::to_string(&report).expect("a report is JSON"));
}

/// The known bug of this name.
///
/// # Errors
/// With the names that there are.
pub fn bug(name: &str) -> Result<Bug, String> {
    let found = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name);
    found.ok_or_else(|| format!("known bugs are {:?}", Bug::ALL))
}
