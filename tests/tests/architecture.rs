//! The house rules that no compiler holds: which crate may depend on which (docs/architecture.md, "Arrows"), what the
//! pure core may not use, and what a source file looks like.
//!
//! Each failure names the place and why the rule is there. The rules are data at the top of this file; the checks are
//! functions over plain values, so that one of the tests can show that they do catch a wrong arrow.
#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};
use fluvial_tests::bed::repo_root;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Which crates of ours one crate may use, and why no others. Tests are free: only normal and build dependencies count.
struct Arrows {
    from: &'static str,
    to: &'static [&'static str],
    why: &'static str,
}

const ARROWS: &[Arrows] = &[
    Arrows { from: "fluvial-model", to: &[], why: "the pure core knows nobody" },
    Arrows { from: "fluvial-certs", to: &[], why: "trust is a leaf: hub and agent use it alike" },
    Arrows { from: "fluvial-proto", to: &["fluvial-model"], why: "the wire carries the model's words" },
    Arrows {
        from: "fluvial-raft",
        to: &["fluvial-model", "fluvial-proto"],
        why: "the store keeps the model's words and knows no hub",
    },
    Arrows {
        from: "fluvial-etcd",
        to: &["fluvial-model", "fluvial-proto", "fluvial-raft"],
        why: "the store over etcd has the trait, the catalog and the contract of the other one, and knows no hub",
    },
    Arrows {
        from: "fluvial-transfer",
        to: &["fluvial-model", "fluvial-proto"],
        why: "copying is below the engines that use it",
    },
    Arrows {
        from: "fluvial-backup",
        to: &["fluvial-model", "fluvial-transfer"],
        why: "a backup reads and writes places, and nothing rests on it but the agent",
    },
    Arrows {
        from: "fluvial-engine",
        to: &["fluvial-model", "fluvial-proto", "fluvial-transfer"],
        why: "mount → engine → transfer, never back",
    },
    Arrows {
        from: "fluvial-mount",
        to: &["fluvial-model", "fluvial-proto", "fluvial-engine", "fluvial-transfer"],
        why: "mount → engine → transfer, never back",
    },
    Arrows {
        from: "fluvial-operator",
        to: &["fluvial-model", "fluvial-proto"],
        why: "the operator speaks Kubernetes, not engines",
    },
    Arrows {
        from: "fluvial-member-agent",
        to: &[
            "fluvial-model",
            "fluvial-proto",
            "fluvial-certs",
            "fluvial-backup",
            "fluvial-engine",
            "fluvial-transfer",
            "fluvial-mount",
            "fluvial-operator",
        ],
        why: "an agent reaches the hub over the wire only, never through raft or hub",
    },
    Arrows {
        from: "fluvial-hub",
        to: &["fluvial-model", "fluvial-proto", "fluvial-raft", "fluvial-etcd", "fluvial-certs"],
        why: "a hub reaches its agents over the wire only, never through member-agent",
    },
    Arrows {
        from: "fluvial",
        to: &[
            "fluvial-model",
            "fluvial-proto",
            "fluvial-raft",
            "fluvial-certs",
            "fluvial-hub",
            "fluvial-backup",
            "fluvial-engine",
            "fluvial-transfer",
            "fluvial-mount",
            "fluvial-operator",
            "fluvial-member-agent",
        ],
        why: "the binary wires everything that runs, and no tests",
    },
    Arrows {
        from: "fluvial-simulation",
        to: &["fluvial-model", "fluvial-raft"],
        why: "it simulates the store, below everything that stands on it",
    },
    Arrows {
        from: "fluvial-tests",
        to: &[
            "fluvial-simulation",
            "fluvial-model",
            "fluvial-proto",
            "fluvial-raft",
            "fluvial-certs",
            "fluvial-hub",
            "fluvial-backup",
            "fluvial-engine",
            "fluvial-transfer",
            "fluvial-mount",
            "fluvial-operator",
            "fluvial-member-agent",
        ],
        why: "the tests see the binary from outside, as its users do",
    },
];

/// What the pure core may not use, and what it would bring in.
const NOT_IN_MODEL: &[(&str, &str)] = &[
    ("tokio", "a runtime"),
    ("tonic", "the wire"),
    ("kube", "a client"),
    ("openraft", "consensus"),
    ("rustls", "the wire"),
    ("rand", "randomness"),
    ("tracing", "logging"),
];

/// A file that has grown past this holds more than one idea.
const MOST_LINES: usize = 700;

// --- the checks ---------------------------------------------------------------------------------------------------

/// Every arrow of `drawn` (from, to) between crates of ours that [`ARROWS`] does not allow, as sentences.
fn forbidden<'a>(drawn: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    drawn
        .into_iter()
        .filter_map(|(from, to)| match ARROWS.iter().find(|arrows| arrows.from == from) {
            None => Some(format!("{from} → {to}: {from} has no row in ARROWS; decide what it may depend on")),
            Some(arrows) if arrows.to.contains(&to) => None,
            Some(arrows) => Some(format!("{from} → {to}: {}", arrows.why)),
        })
        .collect()
}

/// What is wrong with one source file, as sentences that begin with `name`.
fn untidy(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let lines = text.lines().count();
    if lines > MOST_LINES {
        faults.push(format!("{name}: {lines} lines, more than {MOST_LINES}: move one idea out"));
    }
    // A file of a single line says all that a header could.
    let code = text.trim_start();
    if code.lines().count() > 1 && !code.starts_with("//!") {
        faults.push(format!("{name}: begins without a `//!` header that says its job"));
    }
    // Spelled in two parts, so that this file does not match itself.
    if text.contains(concat!("#[", "ignore")) {
        faults.push(format!("{name}: an ignored test checks nothing: mend it or remove it"));
    }
    faults
}

// --- what there is ------------------------------------------------------------------------------------------------

fn workspace() -> Metadata {
    MetadataCommand::new()
        .manifest_path(repo_root().join("Cargo.toml"))
        .no_deps()
        .other_options(["--locked".to_owned(), "--offline".to_owned()])
        .exec()
        .unwrap()
}

/// The names of the direct dependencies that end up in the crate or its build script.
fn shipped_dependencies(package: &Package) -> impl Iterator<Item = &str> {
    let shipped = package.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development);
    shipped.map(|dependency| dependency.name.as_str())
}

fn folder(package: &Package) -> &Path {
    package.manifest_path.parent().unwrap().as_std_path()
}

/// Every `.rs` file below `folder`, which may be absent.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

// --- the rules ----------------------------------------------------------------------------------------------------

#[test]
fn crates_depend_on_each_other_only_along_the_arrows() {
    let workspace = workspace();
    let members: BTreeSet<&str> = workspace.packages.iter().map(|package| package.name.as_str()).collect();
    let drawn = workspace.packages.iter().flat_map(|package| {
        let ours = shipped_dependencies(package).filter(|name| members.contains(name));
        ours.map(|to| (package.name.as_str(), to))
    });
    assert_eq!(forbidden(drawn), Vec::<String>::new());

    let without_row: Vec<_> =
        members.iter().filter(|name| !ARROWS.iter().any(|arrows| arrows.from == **name)).collect();
    assert_eq!(without_row, Vec::<&&str>::new(), "every member has a row in ARROWS");
}

#[test]
fn a_wrong_arrow_is_named_with_its_reason() {
    let drawn =
        [("fluvial-raft", "fluvial-model"), ("fluvial-member-agent", "fluvial-raft"), ("fluvial-new", "fluvial")];
    assert_eq!(
        forbidden(drawn),
        [
            "fluvial-member-agent → fluvial-raft: an agent reaches the hub over the wire only, never through raft or hub",
            "fluvial-new → fluvial: fluvial-new has no row in ARROWS; decide what it may depend on",
        ]
    );
}

#[test]
fn the_model_stays_pure() {
    let workspace = workspace();
    let model = workspace.packages.iter().find(|package| package.name.as_str() == "fluvial-model").unwrap();
    let used: BTreeSet<&str> = shipped_dependencies(model).collect();
    let faults: Vec<String> = NOT_IN_MODEL
        .iter()
        .filter(|(name, _)| used.contains(name))
        .map(|(name, brings)| format!("fluvial-model → {name}: brings {brings} into the pure core"))
        .collect();
    assert_eq!(faults, Vec::<String>::new());
}

#[test]
fn nothing_that_is_shipped_has_the_seams_of_the_simulation() {
    let workspace = workspace();
    let simulated = |package: &&Package| {
        let mut shipped = package.dependencies.iter().filter(|one| one.kind != DependencyKind::Development);
        shipped.any(|one| one.name == "fluvial-raft" && one.features.iter().any(|feature| feature == "simulation"))
    };
    let with: Vec<&str> = workspace.packages.iter().filter(simulated).map(|package| package.name.as_str()).collect();
    assert_eq!(with, ["fluvial-simulation"], "known bugs are behind that feature");
    let uses: Vec<&str> = workspace
        .packages
        .iter()
        .filter(|package| shipped_dependencies(package).any(|name| name == "fluvial-simulation"))
        .map(|package| package.name.as_str())
        .collect();
    assert_eq!(uses, ["fluvial-tests"]);
}

#[test]
fn every_member_takes_the_lints_of_the_workspace() {
    let without: Vec<String> = workspace()
        .packages
        .iter()
        .filter(|package| {
            let manifest: toml::Table = std::fs::read_to_string(&package.manifest_path).unwrap().parse().unwrap();
            let inherits =
                manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
            inherits != Some(true)
        })
        .map(|package| format!("{}: its manifest lacks `lints.workspace = true`", package.name))
        .collect();
    assert_eq!(without, Vec::<String>::new());
}

#[test]
fn source_files_are_tidy() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for package in &workspace().packages {
        for part in ["src", "tests", "benches", "build.rs"] {
            let place = folder(package).join(part);
            let files = if place.is_file() { vec![place] } else { rust_files(&place) };
            for file in files.iter().filter(|file| !file.components().any(|part| part.as_os_str() == "generated")) {
                let name = file.strip_prefix(repo_root()).unwrap().display().to_string();
                faults.extend(untidy(&name, &std::fs::read_to_string(file).unwrap()));
                seen += 1;
            }
        }
    }
    assert_eq!(faults, Vec::<String>::new());
    assert!(seen > 0, "no source file was found, so nothing was checked");
}

#[test]
fn an_untidy_file_is_named_with_each_of_its_faults() {
    let long = format!("fn main() {{}}\n{}", "\n".repeat(MOST_LINES));
    assert_eq!(
        untidy("a.rs", &long),
        ["a.rs: 701 lines, more than 700: move one idea out", "a.rs: begins without a `//!` header that says its job"]
    );
    let ignored = concat!("//! A header.\n#[", "ignore = \"slow\"]\nfn a() {}\n");
    assert_eq!(untidy("b.rs", ignored), ["b.rs: an ignored test checks nothing: mend it or remove it"]);
    assert_eq!(untidy("main.rs", "fn main() {}\n"), Vec::<String>::new());
}
