//! The main job in one command, and `fluvial up` as the README promises it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::process::Command;

use fluvial_tests::bed::fluvial_bin;
use fluvial_tests::federation::Up;
use fluvial_tests::tree;

#[test]
fn the_demo_does_the_main_job_on_any_folder_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    tree::make(&source, 31, 60, 20_000);
    // Longer than a file's name may be, as paths of real folders are; and more than one part of an upload.
    let deep = source.join("a-folder-with-a-long-name-as-packages-have-them/".repeat(6));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("at the end.bin"), tree::bytes(1, 20 << 20)).unwrap();
    let temporary = folder.path().join("tmp");
    fs::create_dir(&temporary).unwrap();

    let output =
        Command::new(fluvial_bin()).args(["demo", "--source"]).arg(&source).env("TMPDIR", &temporary).output().unwrap();

    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains("61 files") && said.contains("all the same"), "{said}");
    assert!(said.contains("[9/9]") && said.contains("done in"), "{said}");
    assert!(!errors.contains("ERROR"), "{errors}");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "the demo removes what it wrote");
}

#[test]
fn a_demo_of_a_folder_that_is_not_there_says_so() {
    let output = Command::new(fluvial_bin()).args(["demo", "--source", "/no/such/folder"]).output().unwrap();

    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/folder"));
    let usage = Command::new(fluvial_bin()).args(["demo", "--no-such-flag"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn up_prints_one_line_serves_kubectl_and_goes_on_after_a_kill() {
    let mut up = Up::start(3, &["a", "b"]);
    let (address, kubeconfig) = (up.ready["address"].clone(), up.ready["kubeconfig"].clone());
    assert!(address.as_str().is_some_and(|address| address.contains("127.0.0.1:")), "{}", up.ready);
    let clusters = |up: &Up| {
        let mut command = Command::new(fluvial_tests::bed::bed_bin("kubectl"));
        command.args(["--kubeconfig", kubeconfig.as_str().unwrap(), "get", "clusters", "-o", "name"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}: {}", up.ready, String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(clusters(&up).lines().count(), 2);
    let source = up.folder().join("source");
    tree::make(&source, 37, 20, 1000);
    let before = up.api.path_dataset("kept", &source)["status"]["root"].clone();

    up.kill();
    up.run();

    assert_eq!(up.ready["address"], address, "it is found where it was");
    assert_eq!(clusters(&up).lines().count(), 2);
    assert_eq!(up.api.get("dataset", "kept").unwrap()["status"]["root"], before);
    assert!(!before.is_null());
}
