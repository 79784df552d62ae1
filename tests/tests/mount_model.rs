//! Random operations through a writable mount and on a simple file system in memory, compared after each step, and once
//! more after the mount was taken away and made again.
//!
//! `FLUVIAL_SEED=N` repeats a run, `FLUVIAL_CASES=N` makes it longer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::PathBuf;

use fluvial_tests::federation::Up;
use fluvial_tests::minio::Minio;
use fluvial_tests::mount::{HomeKind, Mounted, writable_dataset};
use fluvial_tests::promise::promised;
use fluvial_tests::reference::{Limits, Op, Outcome, Path, Reference, SLOTS, Shown};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestRunner};

/// The mounted directory of one case, and what programs have open there.
struct Real {
    directory: PathBuf,
    slots: [Option<File>; SLOTS],
}

impl Real {
    fn at(&self, path: &Path) -> PathBuf {
        path.iter().fold(self.directory.clone(), |at, name| at.join(name))
    }

    fn apply(&mut self, op: &Op) -> Outcome {
        let done = self.attempt(op);
        done.map_err(|error| error.raw_os_error().unwrap_or_else(|| panic!("{op:?}: {error}")))
    }

    fn attempt(&mut self, op: &Op) -> std::io::Result<Vec<u8>> {
        let closed = || std::io::Error::from_raw_os_error(9);
        match op {
            Op::Create(path) => {
                drop(OpenOptions::new().write(true).create_new(true).mode(0o644).open(self.at(path))?);
            }
            Op::Write(path, offset, length, byte) => {
                let file = OpenOptions::new().write(true).open(self.at(path))?;
                file.write_all_at(&vec![*byte; *length], *offset)?;
            }
            Op::Append(path, length, byte) => {
                OpenOptions::new().append(true).open(self.at(path))?.write_all(&vec![*byte; *length])?;
            }
            Op::Replace(path, length, byte) => fs::write(self.at(path), vec![*byte; *length])?,
            Op::Truncate(path, size) => nix::unistd::truncate(&self.at(path), i64::try_from(*size).unwrap())?,
            Op::Chmod(path, mode) => {
                // Of a file: of a directory not every home keeps it.
                let file = OpenOptions::new().write(true).open(self.at(path))?;
                file.set_permissions(Permissions::from_mode(*mode))?;
            }
            Op::Unlink(path) => fs::remove_file(self.at(path))?,
            Op::MakeDirectory(path) => fs::create_dir(self.at(path))?,
            Op::RemoveDirectory(path) => fs::remove_dir(self.at(path))?,
            Op::Rename(from, to) => fs::rename(self.at(from), self.at(to))?,
            Op::Link(path) => symlink("a", self.at(path))?,
            Op::Open(slot, path) => {
                self.slots[*slot] = None;
                self.slots[*slot] = Some(File::options().read(true).write(true).open(self.at(path))?);
            }
            Op::WriteOpen(slot, offset, length, byte) => {
                let file = self.slots[*slot].as_ref().ok_or_else(closed)?;
                file.write_all_at(&vec![*byte; *length], *offset)?;
            }
            Op::TruncateOpen(slot, size) => self.slots[*slot].as_ref().ok_or_else(closed)?.set_len(*size)?,
            Op::ReadOpen(slot) => {
                let file = self.slots[*slot].as_ref().ok_or_else(closed)?;
                let mut contents = vec![0; usize::try_from(file.metadata()?.len()).unwrap()];
                file.read_exact_at(&mut contents, 0)?;
                return Ok(contents);
            }
            Op::Close(slot) => drop(self.slots[*slot].take().ok_or_else(closed)?),
        }
        Ok(Vec::new())
    }

    fn shown(&self) -> BTreeMap<Path, Shown> {
        let mut shown = BTreeMap::new();
        let mut open = vec![Path::new()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(self.at(&directory)).unwrap() {
                let entry = entry.unwrap();
                let path = [&directory[..], &[entry.file_name().into_string().unwrap()]].concat();
                let (kind, found) = (entry.file_type().unwrap(), entry.metadata().unwrap());
                assert_eq!(kind, found.file_type(), "{path:?}: the listing says another kind");
                let entry = if kind.is_dir() {
                    open.push(path.clone());
                    Shown::Directory
                } else if kind.is_symlink() {
                    Shown::Link(fs::read_link(self.at(&path)).unwrap().to_str().unwrap().to_owned())
                } else {
                    let contents = fs::read(self.at(&path)).unwrap();
                    assert_eq!(found.len(), contents.len() as u64, "{path:?}: stat says another size");
                    Shown::File { contents, mode: found.permissions().mode() & 0o7777 }
                };
                shown.insert(path, entry);
            }
        }
        shown
    }
}

fn path(last: &'static [&'static str]) -> impl Strategy<Value = Path> {
    let directory = prop::sample::select(&["a", "b", "c"][..]);
    (prop::collection::vec(directory, 0..3), prop::sample::select(last))
        .prop_map(|(directories, name)| directories.into_iter().chain([name]).map(str::to_owned).collect())
}

fn op() -> impl Strategy<Value = Op> {
    let file = || path(&["a", "b", "c"]);
    let link = || path(&["l", "m"]);
    let offset = || prop_oneof![0..9_u64, 4090..4100_u64, (1 << 20) - 5..(1_u64 << 20) + 5];
    let length = || prop_oneof![0..9_usize, 4090..4100_usize, Just(70_000), Just((1 << 20) + 3)];
    let slot = || 0..SLOTS;
    prop_oneof![
        3 => file().prop_map(Op::Create),
        3 => (file(), offset(), length(), any::<u8>()).prop_map(|(p, o, l, b)| Op::Write(p, o, l, b)),
        2 => (file(), length(), any::<u8>()).prop_map(|(p, l, b)| Op::Append(p, l, b)),
        3 => (file(), length(), any::<u8>()).prop_map(|(p, l, b)| Op::Replace(p, l, b)),
        2 => (file(), offset()).prop_map(|(p, size)| Op::Truncate(p, size)),
        1 => (file(), prop::sample::select(&[0o600_u32, 0o644, 0o755][..])).prop_map(|(p, mode)| Op::Chmod(p, mode)),
        2 => file().prop_map(Op::Unlink),
        4 => file().prop_map(Op::MakeDirectory),
        1 => file().prop_map(Op::RemoveDirectory),
        4 => (file(), file()).prop_map(|(from, to)| Op::Rename(from, to)),
        1 => link().prop_map(Op::Link),
        1 => link().prop_map(Op::Unlink),
        1 => (link(), link()).prop_map(|(from, to)| Op::Rename(from, to)),
        3 => (slot(), file()).prop_map(|(slot, p)| Op::Open(slot, p)),
        3 => (slot(), offset(), length(), any::<u8>()).prop_map(|(s, o, l, b)| Op::WriteOpen(s, o, l, b)),
        1 => (slot(), offset()).prop_map(|(s, size)| Op::TruncateOpen(s, size)),
        2 => slot().prop_map(Op::ReadOpen),
        2 => slot().prop_map(Op::Close),
    ]
}

/// A number from the environment.
fn number(name: &str, otherwise: impl FnOnce() -> u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or_else(otherwise)
}

fn short(shown: &BTreeMap<Path, Shown>) -> Vec<String> {
    let text = |(path, shown): (&Path, &Shown)| match shown {
        Shown::File { contents, mode } => {
            let first: Vec<u8> = contents.iter().copied().take(4).collect();
            let sum: u64 = contents.iter().map(|byte| u64::from(*byte)).sum();
            format!("{} {mode:o} {} bytes {first:?} sum {sum}", path.join("/"), contents.len())
        }
        other => format!("{} {other:?}", path.join("/")),
    };
    shown.iter().map(text).collect()
}

fn compare(kind: HomeKind, limits: Limits, cases: u32, length: usize) {
    let minio = (kind == HomeKind::Bucket).then(Minio::start);
    let up = Up::start(1, &["a"]);
    writable_dataset(&up.api, kind, "ReadWriteMany", up.folder(), minio.as_ref());
    let mount = Mounted::new(&up.api, "set", up.folder().join("mount"));
    let seed = number("FLUVIAL_SEED", rand_seed);
    eprintln!("FLUVIAL_SEED={seed} repeats this run");
    let cases = u32::try_from(number("FLUVIAL_CASES", || cases.into())).unwrap();
    let config = Config {
        cases,
        max_shrink_iters: 60,
        failure_persistence: None,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    };
    let ended: RefCell<Vec<(PathBuf, Reference)>> = RefCell::default();
    let done = TestRunner::new(config).run(&prop::collection::vec(op(), length), |ops| {
        let directory = mount.directory.join(format!("case-{}", ended.borrow().len()));
        fs::create_dir(&directory).unwrap();
        let mut reference = Reference::new(limits);
        let mut real = Real { directory: directory.clone(), slots: [const { None }; SLOTS] };
        ended.borrow_mut().push((directory, reference.clone()));
        for (step, op) in ops.iter().enumerate() {
            let (expected, found) = (reference.apply(op), real.apply(op));
            prop_assert!(found == expected, "step {step}, {op:?}: {:?}", (found.err(), expected.err()));
            let (expected, found) = (reference.shown(), real.shown());
            prop_assert!(
                found == expected,
                "after step {step}, {op:?}: {:?}, not {:?}",
                short(&found),
                short(&expected)
            );
        }
        real.slots = [const { None }; SLOTS];
        ended.borrow_mut().last_mut().unwrap().1 = reference;
        Ok(())
    });
    if let Err(error) = done {
        panic!("FLUVIAL_SEED={seed}: {error}");
    }
    let directory = mount.directory.clone();
    mount.end(&up.api);
    let again = Mounted::new(&up.api, "set", directory);
    for (directory, reference) in ended.into_inner() {
        let real = Real { directory: directory.clone(), slots: [const { None }; SLOTS] };
        let (expected, found) = (reference.shown(), real.shown());
        assert!(found == expected, "FLUVIAL_SEED={seed}: {directory:?} after a new mount: {:?}", short(&found));
    }
    again.end(&up.api);
}

fn rand_seed() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos().into()
}

#[test]
fn a_mounted_folder_does_what_a_simple_file_system_does() {
    promised("A rename is one step in a folder");
    compare(HomeKind::Folder, Limits { directories_move: true }, 20, 60);
}

#[test]
fn a_mounted_bucket_does_what_a_simple_file_system_does_but_move_directories() {
    promised("of a directory that holds anything, and of a file over 5 GiB, it is EXDEV");
    compare(HomeKind::Bucket, Limits { directories_move: false }, 4, 40);
}
