//! Whole commands against one real hub: what they print, what they change, and how they fail.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use fluvial_tests::wait::wait_for;
use serde_json::{Value, json};
use tempfile::TempDir;

use support::{DATASET, DEADLINE, Hub, first_hub, fluvial, said};

/// A hub that answers, and the settings that reach it.
struct Bed {
    folder: TempDir,
    hub: Hub,
    kubeconfig: PathBuf,
}

impl Bed {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (hub, kubeconfig) = first_hub(folder.path());
        let bed = Self { folder, hub, kubeconfig };
        wait_for(DEADLINE, "a hub that answers", || bed.run(&["get", "namespace", "default"]));
        bed
    }

    fn output(&self, arguments: &[&str]) -> Output {
        fluvial().env("FLUVIAL_KUBECONFIG", &self.kubeconfig).args(arguments).output().unwrap()
    }

    /// What a command prints, or why it fails.
    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        said(self.output(arguments))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(arguments).unwrap()).unwrap()
    }

    /// Applies a text by stdin.
    fn apply(&self, text: &str) -> Result<String, String> {
        let mut child = fluvial()
            .env("FLUVIAL_KUBECONFIG", &self.kubeconfig)
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        said(child.wait_with_output().unwrap())
    }
}

const CLUSTER: &str = "apiVersion: fluvial.io/v1alpha1\nkind: Cluster\nmetadata: {name: a}\n";

#[test]
fn apply_creates_changes_and_leaves_alone_what_documents_say() {
    let bed = Bed::start();
    let created = format!("{DATASET}---\n# nothing\n---\n{CLUSTER}");
    assert_eq!(bed.apply(&created).unwrap(), "dataset.data.fluid.io/d created\ncluster.fluvial.io/a created\n");
    assert_eq!(bed.apply(&created).unwrap(), "dataset.data.fluid.io/d unchanged\ncluster.fluvial.io/a unchanged\n");
    let options = "path: \"/\", options: {region: x, endpoint: \"http://e\"}";
    assert_eq!(bed.apply(&DATASET.replace("path: \"/\"", options)).unwrap(), "dataset.data.fluid.io/d configured\n");
    // A label that is taken out of the document is taken out of the object.
    assert_eq!(bed.apply(&DATASET.replace(", labels: {team: a}", "")).unwrap(), "dataset.data.fluid.io/d configured\n");
    let held = bed.json(&["get", "dataset", "d", "-o", "json"]);
    assert_eq!((&held["metadata"]["labels"], &held["spec"]["mounts"][0]["options"]), (&Value::Null, &Value::Null));
    let file = bed.folder.path().join("list.json");
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "n" } },
        { "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s", "namespace": "n" }, "stringData": { "k": "hunter2" } },
    ] });
    std::fs::write(&file, list.to_string()).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(
        bed.run(&["apply", "--dry-run", "-f", file]).unwrap(),
        "namespace/n created (dry run)\nsecret/s created (dry run)\n"
    );
    assert!(bed.run(&["get", "namespace", "n"]).is_err());
    // The namespace of the second document is the first one's to make.
    assert_eq!(bed.run(&["apply", "-f", file]).unwrap(), "namespace/n created\nsecret/s created\n");
    assert_eq!(bed.run(&["apply", "-f", file]).unwrap(), "namespace/n unchanged\nsecret/s unchanged\n");
}

#[test]
fn a_mistake_in_any_document_leaves_everything_as_it_was() {
    let bed = Bed::start();
    let storage =
        "apiVersion: fluvial.io/v1alpha1\nkind: Storage\nmetadata: {name: s}\nspec: {uri: \"ftp://x\", cluster: A}\n";
    let error = bed.apply(&format!("{DATASET}---\n{CLUSTER}---\n{storage}")).unwrap_err();
    assert!(error.starts_with("error: nothing was changed: -, document 3: storage.fluvial.io/s: "), "{error}");
    assert!(error.contains("\n  spec.uri: ") && error.contains("\n  spec.cluster: "), "{error}");
    assert!(bed.run(&["get", "dataset", "d"]).is_err());
    for (bad, word) in [
        (DATASET.replace("Dataset", "Datazet"), "kind \"Datazet\": the hub serves no such kind"),
        (DATASET.replace("name: d, ", ""), "metadata.name: required value"),
        (DATASET.replace("mounts:", "mountz:"), "mountz"),
        ("a: [".to_owned(), "document 1"),
        (String::new(), "nothing to apply"),
    ] {
        let error = bed.apply(&bad).unwrap_err();
        assert!(error.starts_with("error: ") && error.contains(word), "{word}: {error}");
    }
    // What a document refers to may be an earlier one's to make, and only then.
    let good = storage.replace("ftp://x", "s3://bucket").replace("cluster: A", "cluster: a");
    assert!(bed.apply(&format!("{good}---\n{CLUSTER}")).unwrap_err().contains("no Cluster named a"));
    assert!(bed.apply(&format!("{CLUSTER}---\n{good}")).unwrap().ends_with("storage.fluvial.io/s created\n"));
}

#[test]
fn objects_are_shown_in_every_form_by_every_name_of_their_kind() {
    let bed = Bed::start();
    bed.apply(&format!("{DATASET}---\n{}---\n{CLUSTER}", DATASET.replace("name: d, labels: {team: a}", "name: e")))
        .unwrap();
    let table = bed.run(&["get", "ds,cl"]);
    assert!(table.unwrap_err().contains("there is no kind \"ds\": the hub serves "));
    for word in ["dataset", "datasets", "Dataset", "datasets.data.fluid.io"] {
        let table = bed.run(&["get", word]).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert!(
            lines[0].starts_with("NAME   UFS TOTAL SIZE") && lines[1].starts_with("d ") && lines.len() == 3,
            "{table}"
        );
        assert!(!table.contains("ROOT") && lines.iter().all(|line| line.trim_end() == *line), "{table}");
    }
    assert!(bed.run(&["get", "dataset", "-A", "-o", "wide"]).unwrap().starts_with("NAMESPACE   NAME"));
    assert_eq!(bed.run(&["get", "dataset", "-l", "team=a", "-o", "name"]).unwrap(), "dataset.data.fluid.io/d\n");
    assert_eq!(
        bed.run(&["get", "dataset,cl", "-o", "name"]).unwrap(),
        "dataset.data.fluid.io/d\ndataset.data.fluid.io/e\ncluster.fluvial.io/a\n"
    );
    assert!(bed.run(&["get", "dataset,cl"]).unwrap().contains("\n\nNAME"));
    let list = bed.json(&["get", "dataset,cluster", "-o", "json"]);
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("List"), 3));
    assert!(bed.run(&["get", "dataset", "d", "-o", "yaml"]).unwrap().contains("\n  - mountPoint: file:///data\n"));
    let empty = bed.output(&["get", "placement"]);
    assert_eq!((empty.status.code(), empty.stdout.len()), (Some(0), 0));
    assert_eq!(String::from_utf8_lossy(&empty.stderr), "no placements found in namespace default\n");
    let described = bed.run(&["describe", "dataset", "d"]).unwrap();
    for part in
        ["Name:         d\n", "Namespace:    default\n", "Labels:\n  team: a\n", "Spec:\n  mounts:\n", "Events: none\n"]
    {
        assert!(described.contains(part), "{part}: {described}");
    }
    assert!(bed.run(&["cluster", "list"]).unwrap().starts_with("NAME   STATE"));
    assert_eq!(bed.json(&["cluster", "get", "a", "-o", "json"])["metadata"]["name"], "a");
    assert!(
        bed.run(&["get", "dataset", "../../secrets"])
            .unwrap_err()
            .starts_with("error: dataset \"../../secrets\": must be")
    );
    assert_eq!(
        bed.run(&["get", "dataset", "nobody"]).unwrap_err(),
        "error: datasets.data.fluid.io \"nobody\" not found\n"
    );
}

#[test]
fn what_is_deleted_is_gone_and_what_is_watched_is_told() {
    let bed = Bed::start();
    bed.apply(DATASET).unwrap();
    let watch = |form: &str| {
        fluvial()
            .env("FLUVIAL_KUBECONFIG", &bed.kubeconfig)
            .args(["watch", "dataset", "-o", form, "--timeout", "8s"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let (lines, objects) = (watch("table"), watch("json"));
    // Whether they began before or after this, both must come to know of the second dataset.
    bed.run(&["delete", "dataset", "d", "--wait"]).unwrap();
    bed.apply(&DATASET.replace("name: d", "name: e")).unwrap();
    let shown = said(lines.wait_with_output().unwrap()).unwrap();
    assert!(shown.contains("ADDED      dataset.data.fluid.io/e   generation=1"), "{shown}");
    let shown = said(objects.wait_with_output().unwrap()).unwrap();
    let last: Value = serde_json::from_str(shown.lines().rfind(|line| line.contains("ADDED")).unwrap()).unwrap();
    assert_eq!((&last["type"], &last["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("e")));
    assert_eq!(bed.run(&["delete", "dataset", "d"]).unwrap_err(), "error: datasets.data.fluid.io \"d\" not found\n");
    assert_eq!(bed.run(&["delete", "dataset", "e"]).unwrap(), "dataset.data.fluid.io/e deleted\n");
}

#[test]
fn a_watch_goes_on_after_its_hub_was_killed() {
    let mut bed = Bed::start();
    let file = bed.folder.path().join("watched");
    let mut watch = fluvial()
        .env("FLUVIAL_KUBECONFIG", &bed.kubeconfig)
        .args(["watch", "datasets"])
        .stdout(std::fs::File::create(&file).unwrap())
        .spawn()
        .unwrap();
    let seen = |what: &str, name: &str| {
        wait_for(DEADLINE, name, || {
            let text = std::fs::read_to_string(&file).unwrap();
            if text.contains(&format!("{what:<8}   dataset.data.fluid.io/{name} ")) { Ok(text) } else { Err(text) }
        })
    };
    bed.apply(DATASET).unwrap();
    seen("ADDED", "d");
    bed.hub = bed.hub.killed_and_run_again();
    wait_for(DEADLINE, "the hub again", || bed.apply(&DATASET.replace("name: d", "name: e")));
    seen("ADDED", "e");
    bed.run(&["delete", "dataset", "d"]).unwrap();
    let text = seen("DELETED", "d");
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(text.matches("ADDED      dataset.data.fluid.io/d ").count(), 1, "{text}");
}

/// That a secret is in nothing that a command printed.
fn says_nothing_of(secret: &str, output: &Output) {
    for text in [&output.stdout, &output.stderr] {
        assert!(!String::from_utf8_lossy(text).contains(secret), "{}", String::from_utf8_lossy(text));
    }
}

#[test]
fn secret_options_go_into_a_secret_that_is_never_shown_and_goes_with_its_owner() {
    let bed = Bed::start();
    bed.apply(CLUSTER).unwrap();
    let file = bed.folder.path().join("session");
    std::fs::write(&file, "hunter3\n").unwrap();
    let from_file = format!("session_token=@{}", file.display());
    let create = [
        "storage",
        "create",
        "s",
        "--cluster",
        "a",
        "--uri",
        "s3://bucket/x",
        "--capacity",
        "1Gi",
        "--option",
        "endpoint=http://e",
        "--option",
        "access_key_id=AKIA",
        "--option",
        "secret_access_key=hunter2",
        "--secret-option",
        &from_file,
    ];
    let output = bed.output(&create);
    says_nothing_of("hunter", &output);
    assert_eq!(said(output).unwrap(), "storage.fluvial.io/s created\n");
    let storage = bed.json(&["get", "storage", "s", "-o", "json"]);
    let reference = |key: &str| json!({ "name": key, "valueFrom": { "secretKeyRef": { "name": "s-storage-options", "key": key, "namespace": "default" } } });
    assert_eq!(
        storage["spec"],
        json!({
            "uri": "s3://bucket/x", "cluster": "a", "capacityBytes": 1 << 30, "options": { "endpoint": "http://e" },
            "encryptOptions": [reference("access_key_id"), reference("secret_access_key"), reference("session_token")],
        })
    );
    for arguments in [
        &["get", "secret", "s-storage-options", "-o", "yaml"][..],
        &["get", "secrets", "-A", "-o", "json"],
        &["describe", "secret", "s-storage-options"],
        &["watch", "secrets", "-o", "json", "--timeout", "1s"],
        &["query", "select * from storages"],
    ] {
        let output = bed.output(arguments);
        assert!(output.status.success(), "{arguments:?}");
        says_nothing_of("aHVudGVy", &output);
        says_nothing_of("hunter", &output);
    }
    // Created again, it fails and leaves the Secret of the first one alone.
    assert!(bed.run(&create).unwrap_err().contains("already exists"));
    assert!(bed.run(&["get", "secret", "s-storage-options"]).is_ok());
    // A mistake leaves no Secret behind, and none is said of it.
    let bad = ["dataset", "create", "d", "--mount", "s3://B", "--secret-option", "token=hunter2"];
    let output = bed.output(&bad);
    says_nothing_of("hunter2", &output);
    assert!(said(output).unwrap_err().contains("spec.mounts[0].mountPoint"));
    assert!(bed.run(&["get", "secret", "d-options"]).is_err());
    for bad in [&["--secret-option", "hunter2"], &["--option", "hunter2"]] {
        let output = bed.output(&[&["dataset", "create", "d", "--mount", "s3://bucket"][..], bad].concat());
        says_nothing_of("hunter2", &output);
        assert_eq!(output.status.code(), Some(2));
    }
    bed.run(&["delete", "storage", "s", "--wait"]).unwrap();
    wait_for(DEADLINE, "the Secret goes with its owner", || match bed.run(&["get", "secret", "s-storage-options"]) {
        Ok(shown) => Err(shown),
        Err(_) => Ok(()),
    });
}

#[test]
fn datasets_placements_and_migrations_are_created_as_they_are_written() {
    let bed = Bed::start();
    bed.apply(CLUSTER).unwrap();
    let mounts = [
        "dataset",
        "create",
        "d",
        "--mount",
        "s3://bucket/a",
        "--mount",
        "/data/year=2024=/y",
        "--option",
        "region=r",
        "--label",
        "t=x",
    ];
    assert_eq!(bed.run(&mounts).unwrap(), "dataset.data.fluid.io/d created\n");
    let dataset = bed.json(&["get", "dataset", "d", "-o", "json"]);
    assert_eq!(dataset["metadata"]["labels"], json!({ "t": "x" }));
    assert_eq!(
        dataset["spec"]["mounts"],
        json!([
            { "mountPoint": "s3://bucket/a", "path": "/a", "options": { "region": "r" } },
            { "mountPoint": "file:///data/year=2024", "name": "y", "path": "/y" },
        ])
    );
    let unread = bed.run(&["dataset", "ls", "d"]).unwrap_err();
    assert!(unread.contains("was not scanned yet"), "{unread}");
    let wait = bed.run(&["dataset", "create", "w", "--mount", "/data", "--wait", "--timeout", "1s"]).unwrap_err();
    assert!(wait.contains("dataset \"w\" was not scanned within 1s: waits for a Ready cluster"), "{wait}");

    let place = [
        "placement",
        "create",
        "p",
        "--dataset",
        "d",
        "--cluster-selector",
        "gpu=a100,!old",
        "--count",
        "2",
        "--spread-by",
        "cloud",
        "--path",
        "/y",
        "--pinned",
    ];
    assert_eq!(bed.run(&place).unwrap(), "placement.fluvial.io/p created\n");
    let expressions =
        json!([{ "key": "gpu", "operator": "In", "values": ["a100"] }, { "key": "old", "operator": "DoesNotExist" }]);
    assert_eq!(
        bed.json(&["get", "pl", "p", "-o", "json"])["spec"],
        json!({
            "datasets": { "names": ["d"] }, "paths": ["/y"], "pinned": true,
            "clusters": { "selector": { "matchExpressions": expressions }, "count": 2, "spreadBy": "cloud" },
        })
    );

    let error = bed.run(&["migrate", "nobody", "--to", "nowhere"]).unwrap_err();
    assert!(error.contains("\n  spec.from.dataset.name: no Dataset named nobody;"), "{error}");
    assert!(error.contains("\n  spec.to.storage.name: no Storage named nowhere;"), "{error}");
    bed.run(&["storage", "create", "s", "--cluster", "a", "--uri", "s3://bucket/s"]).unwrap();
    let made = bed.json(&["migrate", "d", "--to", "s", "--mode", "move", "--parallelism", "3", "-o", "json"]);
    let name = made["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("d-") && name.len() == 7, "{name}");
    assert_eq!(
        made["spec"],
        json!({ "from": { "dataset": { "name": "d" } }, "to": { "storage": { "name": "s" } }, "mode": "move", "parallelism": 3 })
    );
    assert!(bed.run(&["op", "list"]).unwrap().contains(&name));
    let waited = bed.output(&["op", "wait", &name, "--timeout", "1s"]);
    assert_eq!(waited.status.code(), Some(1));
    let waited = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert!(waited.contains(&format!("it goes on: follow it by `fluvial op wait {name} -n default`")), "{waited}");
    bed.run(&["op", "cancel", &name]).unwrap();
    let cancelled = bed.output(&["op", "wait", &name, "--timeout", "30s"]);
    assert_eq!(cancelled.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&cancelled.stderr).contains(&format!("operation \"{name}\" is Cancelled: ")));
}

#[test]
fn a_cluster_is_drained_used_again_and_removed() {
    let bed = Bed::start();
    bed.apply(CLUSTER).unwrap();
    bed.run(&["storage", "create", "s", "--cluster", "a", "--uri", "s3://bucket/s"]).unwrap();
    bed.run(&["cluster", "drain", "a"]).unwrap();
    assert_eq!(bed.json(&["cluster", "get", "a", "-o", "json"])["spec"], json!({ "drain": true }));
    bed.run(&["cluster", "drain", "a", "--undo"]).unwrap();
    assert_eq!(bed.json(&["cluster", "get", "a", "-o", "json"])["spec"], json!({}));
    let removed = bed.output(&["cluster", "remove", "a"]);
    let told = String::from_utf8_lossy(&removed.stderr).into_owned();
    assert_eq!(said(removed).unwrap(), "cluster \"a\" is removed: its certificates are revoked\n");
    assert_eq!(told, "warning: storages that belong to \"a\" stay, with what is in them: s\n");
    assert!(bed.run(&["cluster", "get", "a"]).is_err());
}

#[test]
fn questions_are_answered_in_every_form() {
    let bed = Bed::start();
    bed.apply(DATASET).unwrap();
    let sql = "select name, total_bytes as n, root from datasets";
    assert_eq!(bed.run(&["query", sql]).unwrap(), "[\n{\"name\":\"d\",\"n\":0,\"root\":null}\n]\n");
    assert_eq!(bed.run(&["query", "-o", "json", sql]).unwrap(), bed.run(&["query", sql]).unwrap());
    assert_eq!(bed.run(&["query", "-o", "csv", sql]).unwrap(), "name,n,root\nd,0,\n");
    assert_eq!(bed.run(&["query", "-o", "table", sql]).unwrap(), "name   n   root\nd      0\n");
    let arrow = bed.output(&["query", "-o", "arrow", sql]).stdout;
    // An IPC stream begins with the continuation mark and ends with an empty message.
    assert_eq!((&arrow[..4], &arrow[arrow.len() - 8..]), (&[0xff; 4][..], &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0][..]));
    let schema = bed.run(&["query", "--schema", "-o", "csv"]).unwrap();
    assert!(
        schema.starts_with("table,column,type\n") && schema.contains("\ndatasets,total_bytes,integer\n"),
        "{schema}"
    );
    assert!(bed.json(&["query", "--schema"])["tables"].is_array());
    let error = bed.run(&["query", "select nothing from datasets"]).unwrap_err();
    assert!(error.starts_with("error: ") && error.contains("nothing") && error.lines().count() == 1, "{error}");
}

#[test]
fn tokens_hubs_and_settings_are_shown_and_taken_back() {
    let bed = Bed::start();
    let line = bed.run(&["token", "create", "--cluster", "a", "--ttl", "5m"]).unwrap();
    let secret = line.split_whitespace().skip_while(|word| *word != "--token").nth(1).unwrap();
    let listed = bed.output(&["token", "list", "-o", "json"]);
    says_nothing_of(secret, &listed);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let name = listed["items"][0]["metadata"]["name"].as_str().unwrap();
    assert_eq!(bed.run(&["token", "revoke", name]).unwrap(), format!("token \"{name}\" is revoked\n"));
    assert_eq!(bed.json(&["token", "list", "-o", "json"])["items"], json!([]));

    let hubs = bed.json(&["hub", "members", "-o", "json"]);
    assert_eq!(
        (&hubs[0]["name"], &hubs[0]["role"], &hubs[0]["leader"]),
        (&json!("hub-1"), &json!("voter"), &json!(true))
    );
    assert!(bed.run(&["hub", "members"]).unwrap().starts_with("ID   NAME    ADDRESS"));
    assert!(bed.run(&["hub", "remove", "hub-1"]).unwrap_err().contains("hub 1 is the last one"));
    assert!(bed.run(&["hub", "remove", "one"]).unwrap_err().contains("ID \"one\": must be a hub's id or name"));

    let copy = bed.folder.path().join("copy/kubeconfig");
    bed.run(&["kubeconfig", "--output", copy.to_str().unwrap()]).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&copy).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(bed.run(&["kubeconfig"]).unwrap(), std::fs::read_to_string(&bed.kubeconfig).unwrap());
    let by_flag = fluvial().arg("--kubeconfig").arg(&copy).args(["get", "ns", "-o", "name"]).output().unwrap();
    assert_eq!(said(by_flag).unwrap(), "namespace/default\n");
}

#[test]
fn every_shell_gets_a_script_that_knows_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = said(fluvial().args(["completion", shell]).output().unwrap()).unwrap();
        assert!(["fluvial", "migrate", "describe"].iter().all(|word| script.contains(word)), "{shell}");
    }
    assert_eq!(fluvial().args(["completion", "tcsh"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn a_hub_that_is_away_is_named_in_one_line() {
    let bed = Bed::start();
    let Bed { folder, hub, kubeconfig } = bed;
    drop(hub);
    let get =
        |kubeconfig: &Path| fluvial().arg("--kubeconfig").arg(kubeconfig).args(["get", "datasets"]).output().unwrap();
    let output = get(&kubeconfig);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(
        error.starts_with("error: the hub at https://127.0.0.1:")
            && error.contains(" cannot be reached: Connection refused"),
        "{error}"
    );
    let broken = folder.path().join("broken");
    std::fs::write(&broken, "a: [").unwrap();
    let error = said(get(&broken)).unwrap_err();
    assert!(error.starts_with("error: reading ") && error.contains("broken"), "{error}");
    for wrong in
        [&["get"][..], &["migrate", "d"], &["query"], &["dataset", "create", "d"], &["get", "dataset", "-o", "xml"]]
    {
        assert_eq!(fluvial().args(wrong).output().unwrap().status.code(), Some(2), "{wrong:?}");
    }
}
