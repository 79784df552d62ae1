//! A stock `kubectl` with the kubeconfig that Fluvial wrote: the verbs that its users have in their fingers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use fluvial_tests::bed::bed_bin;
use fluvial_tests::federation::{DEADLINE, Up, said};
use fluvial_tests::tree;

fn dataset(name: &str, uri: &str) -> String {
    format!(
        "apiVersion: data.fluid.io/v1alpha1\nkind: Dataset\nmetadata:\n  name: {name}\n  labels: {{team: vision}}\n\
         spec:\n  mounts:\n  - mountPoint: {uri}\n    name: data\n---\n"
    )
}

#[test]
fn every_verb_does_what_its_users_expect() {
    let up = Up::start(1, &["a"]);
    let api = &up.api;
    let source = up.folder().join("source");
    tree::make(&source, 41, 12, 100);
    let uri = format!("file://{}", source.display());
    let kubectl = |arguments: &[&str]| api.kubectl(arguments).unwrap_or_else(|e| panic!("{arguments:?}: {e}"));

    // apply, and apply again; dry run on the server; what differs.
    let both = dataset("one", &uri) + &dataset("two", &uri);
    assert!(api.apply(&both).unwrap().contains("dataset.data.fluid.io/two created"));
    assert!(api.apply(&both).unwrap().contains("dataset.data.fluid.io/two unchanged"));
    let file = up.folder().join("three.yaml");
    fs::write(&file, dataset("three", &uri)).unwrap();
    let file = file.to_str().unwrap();
    kubectl(&["apply", "--dry-run=server", "-f", file]);
    assert_eq!(api.get("dataset", "three"), None);
    kubectl(&["create", "-f", file]);
    assert!(api.kubectl(&["create", "-f", file]).unwrap_err().contains("AlreadyExists"));

    // wait: for a condition and for a path.
    kubectl(&["wait", "dataset", "--all", "--for=condition=Scanned", "--timeout=60s"]);
    kubectl(&["wait", "dataset/one", "--for=jsonpath={.status.files}=12", "--timeout=60s"]);

    // get: tables, wide, by label, by field, by short name and all namespaces, in pages.
    let table = kubectl(&["get", "datasets", "-l", "team=vision", "--sort-by=.metadata.name"]);
    assert!(table.lines().next().unwrap().starts_with("NAME") && table.lines().count() == 4, "{table}");
    assert_eq!(kubectl(&["get", "datasets", "-A", "-o", "wide", "--chunk-size=1", "--no-headers"]).lines().count(), 3);
    assert_eq!(kubectl(&["get", "dataset,cluster", "-o", "name"]).lines().count(), 4);
    assert_eq!(kubectl(&["get", "datasets", "--field-selector", "metadata.name=two", "-o", "name"]).lines().count(), 1);
    assert_eq!(kubectl(&["get", "datasets", "-l", "team in (other)", "-o", "name"]), "");

    // Schema, resources, versions, rights.
    assert!(kubectl(&["explain", "dataset.spec.mounts"]).contains("mountPoint"));
    assert!(kubectl(&["api-resources"]).contains("datamigrates"));
    kubectl(&["version"]);

    // label, annotate, patches of three kinds, replace, edit.
    kubectl(&["label", "dataset", "one", "tier=hot"]);
    kubectl(&["annotate", "dataset", "one", "note=kept"]);
    kubectl(&["patch", "dataset", "one", "--type=merge", "-p", r#"{"metadata":{"labels":{"tier":"cold"}}}"#]);
    let add = r#"[{"op":"test","path":"/metadata/labels/tier","value":"cold"},{"op":"remove","path":"/metadata/labels/tier"}]"#;
    kubectl(&["patch", "dataset", "one", "--type=json", "-p", add]);
    let wrong = api.kubectl(&["patch", "dataset", "one", "--type=json", "-p", add]).unwrap_err();
    assert!(!wrong.is_empty(), "the test of a JSON patch is made");
    let editor = up.folder().join("editor");
    fs::write(&editor, "#!/bin/sh\nsed -i 's/note: kept/note: edited/' \"$1\"\n").unwrap();
    fs::set_permissions(&editor, fs::Permissions::from_mode(0o700)).unwrap();
    let mut edit = Command::new(bed_bin("kubectl"));
    edit.arg("--kubeconfig").arg(&api.kubeconfig).args(["edit", "dataset", "one"]).env("KUBE_EDITOR", &editor);
    said(edit.output().unwrap()).unwrap();
    let one = api.get("dataset", "one").unwrap();
    assert_eq!(one["metadata"]["annotations"]["note"], "edited");
    assert_eq!(one["metadata"]["labels"], serde_json::json!({ "team": "vision" }));

    // describe tells the story.
    let story = kubectl(&["describe", "dataset", "one"]);
    assert!(story.contains("Scanned") && story.contains("team=vision"), "{story}");

    // watch: a change is told while it lasts; delete, by name and by label.
    let mut watch = Command::new(bed_bin("kubectl"))
        .arg("--kubeconfig")
        .arg(&api.kubeconfig)
        .args(["get", "dataset", "two", "-w", "--output-watch-events"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (line, lines) = std::sync::mpsc::channel();
    let out = watch.stdout.take().unwrap();
    let reading = std::thread::spawn(move || {
        for read in BufReader::new(out).lines().map_while(Result::ok) {
            let _ = line.send(read);
        }
    });
    let mut told = vec![lines.recv_timeout(DEADLINE).unwrap()];
    kubectl(&["delete", "dataset", "two"]);
    while !told.iter().any(|line| line.starts_with("DELETED")) {
        told.push(lines.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("{told:?}")));
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
    reading.join().unwrap();
    assert!(told[0].starts_with("EVENT") && told[1].starts_with("ADDED"), "{told:?}");
    kubectl(&["delete", "datasets", "-l", "team=vision"]);
    assert_eq!(kubectl(&["get", "datasets", "-o", "name"]), "");
}
