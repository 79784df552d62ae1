//! Where the programs are that a system test starts: those of the test bed (installed by `tests/bed/install`) and
//! `fluvial` itself.
//!
//! Invariants: a program comes from the bed or from this build, never from whatever `PATH` happens to hold, so that
//! every machine tests against the same versions.

use std::ffi::OsString;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The root of the checkout.
pub fn repo_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies one folder below the root")
}

/// The path of a bed program, such as `minio` or `kubectl`.
///
/// A missing program is installed first, which can take minutes. On CI (`CI=true`) it is a failure instead: there the
/// bed is installed before the tests, and a test that installs would hide that this step is broken.
#[track_caller]
pub fn bed_bin(name: &str) -> PathBuf {
    let program = bed_folder().join(name);
    if program.is_file() {
        return program;
    }
    let on_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!on_ci, "`{name}` is missing at {}: run `tests/bed/install {name}` before the tests", program.display());
    let status = Command::new(installer()).arg(name).status().expect("tests/bed/install is executable");
    assert!(status.success(), "`tests/bed/install {name}` ended with {status}");
    program
}

/// The `fluvial` binary of this build: `$FLUVIAL_BIN`, else the one beside the running test's own target folder.
///
/// The nextest profile builds it before the first system test (`.config/nextest.toml`); under plain `cargo test` it is
/// the caller's to build with `cargo build -p fluvial`.
#[track_caller]
pub fn fluvial_bin() -> PathBuf {
    let program = std::env::var_os("FLUVIAL_BIN").map_or_else(beside_this_test, PathBuf::from);
    assert!(program.is_file(), "no `fluvial` at {}: run `cargo build -p fluvial`", program.display());
    program
}

/// A TCP port on loopback that was free a moment ago. Nothing keeps it free: who starts a server on it must be ready
/// to try again with another.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

/// Test executables are `target/PROFILE/deps/NAME-HASH`, binaries `target/PROFILE/NAME`.
fn beside_this_test() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").join("fluvial")
}

fn installer() -> PathBuf {
    repo_root().join("tests/bed/install")
}

/// The installer knows the folder; asking it keeps the rule in one place.
fn bed_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let output = Command::new(installer()).arg("--print-path").output().expect("tests/bed/install is executable");
        assert!(output.status.success(), "`tests/bed/install --print-path` ended with {}", output.status);
        PathBuf::from(os_string(output.stdout.trim_ascii_end()))
    })
}

fn os_string(bytes: &[u8]) -> OsString {
    use std::os::unix::ffi::OsStringExt;
    OsString::from_vec(bytes.to_vec())
}
